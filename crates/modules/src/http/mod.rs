//! The modules of the `http` context, by nginx's names.

pub mod proxy;
pub mod ssl;

//! Modules of the `http` block.

pub mod ssl;

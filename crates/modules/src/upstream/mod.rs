//! The modules of the `upstream` context, by nginx's names.

pub mod keepalive;

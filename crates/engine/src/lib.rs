//! Executes a program: listeners, HTTP, upstreams, tunnels, reload, drain.

pub mod errorlog;
pub mod localtime;

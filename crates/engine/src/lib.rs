//! Executes a program: listeners, HTTP, upstreams, tunnels, reload, drain.

pub mod errorlog;
pub mod io;
mod localtime;
pub mod timer;

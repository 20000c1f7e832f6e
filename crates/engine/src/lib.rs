//! Executes a program: listeners, HTTP, upstreams, tunnels, reload, drain.

pub mod contract;
pub mod errorlog;
pub mod generation;
pub mod http;
pub mod http1;
pub mod io;
mod localtime;
pub mod timer;
pub mod tunnel;

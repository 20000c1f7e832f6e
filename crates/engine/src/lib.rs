//! Executes a program: listeners, HTTP, upstreams, tunnels, reload, drain.

pub mod io;
pub mod timer;
pub mod tunnel;

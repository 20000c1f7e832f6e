//! Executes a program: listeners, HTTP, upstreams, tunnels, reload, drain.

pub mod cache;
pub mod contract;
pub mod disk;
pub mod errorlog;
pub mod files;
pub mod generation;
pub mod hash;
pub mod http;
pub mod http1;
pub mod http2;
pub mod io;
pub mod localtime;
pub mod md5;
pub mod memory;
pub mod open_files;
pub mod proxy_protocol;
pub mod reactor;
pub mod resolver;
pub mod settings;
pub mod syslog;
pub mod temp_file;
pub mod timer;
pub mod tls;
pub mod tunnel;
pub mod upstream;
pub mod worker;

/// The version of nginx whose behaviour is the reference: `$nginx_version`, and in `-V`.
pub const NGINX_VERSION: &str = "1.31.5";

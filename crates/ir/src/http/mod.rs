//! The spine of `http`: its blocks, servers, locations, listening addresses, upstreams.

pub mod core;
pub mod listen;
pub mod resolver;
pub mod server_name;
pub(crate) mod tree;
pub mod upstream;

pub use core::HttpCore;
pub use upstream::HttpUpstream;

//! The modules of the `http` block.

pub mod map;
pub mod proxy;
pub mod rewrite;

pub use map::Map;
pub use proxy::Proxy;
pub use rewrite::Rewrite;

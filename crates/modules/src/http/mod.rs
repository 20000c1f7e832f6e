//! The modules of the `http` block.

pub mod map;
pub mod rewrite;

pub use map::Map;
pub use rewrite::Rewrite;

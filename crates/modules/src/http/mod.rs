//! The modules of the `http` block.

pub mod rewrite;

pub use rewrite::Rewrite;

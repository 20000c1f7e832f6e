//! The modules of the `http` block.

mod files;
pub mod index;
pub mod map;
pub mod rewrite;
pub mod static_files;
pub mod try_files;

pub use index::Index;
pub use map::Map;
pub use rewrite::Rewrite;
pub use static_files::Static;
pub use try_files::TryFiles;

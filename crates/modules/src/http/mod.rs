//! The modules of the `http` block.

pub mod autoindex;
mod files;
mod forwarded;
pub mod geo;
pub mod index;
pub mod map;
pub mod not_modified;
pub mod range_filter;
pub mod rewrite;
pub mod split_clients;
pub mod static_files;
pub mod try_files;

pub use autoindex::Autoindex;
pub use geo::Geo;
pub use index::Index;
pub use map::Map;
pub use not_modified::NotModified;
pub use range_filter::RangeFilter;
pub use rewrite::Rewrite;
pub use split_clients::SplitClients;
pub use static_files::Static;
pub use try_files::TryFiles;

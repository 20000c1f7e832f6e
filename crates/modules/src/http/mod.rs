//! The modules of the `http` block; each file is named after nginx's module without `ngx_http_`.

pub mod access;
pub mod auth_basic;
mod files;
mod forwarded;
pub mod geo;
pub mod headers;
pub mod index;
pub mod log;
pub mod map;
pub mod not_modified;
pub mod proxy;
pub mod range_filter;
pub mod realip;
pub mod rewrite;
pub mod split_clients;
pub mod ssl;
pub mod static_files;
pub mod try_files;

pub use access::Access;
pub use auth_basic::AuthBasic;
pub use geo::Geo;
pub use headers::Headers;
pub use index::Index;
pub use log::Log;
pub use map::Map;
pub use not_modified::NotModified;
pub use proxy::Proxy;
pub use range_filter::RangeFilter;
pub use realip::RealIp;
pub use rewrite::Rewrite;
pub use split_clients::SplitClients;
pub use ssl::Ssl;
pub use static_files::Static;
pub use try_files::TryFiles;

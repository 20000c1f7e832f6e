//! The modules of the `http` block; each file is named after nginx's module without `ngx_http_`.

mod files;
pub mod index;
pub mod log;
pub mod map;
pub mod proxy;
pub mod rewrite;
pub mod ssl;
pub mod static_files;
pub mod try_files;

pub use index::Index;
pub use log::Log;
pub use map::Map;
pub use proxy::Proxy;
pub use rewrite::Rewrite;
pub use ssl::Ssl;
pub use static_files::Static;
pub use try_files::TryFiles;

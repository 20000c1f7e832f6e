//! The modules of the `http` block; each file is named after nginx's module without `ngx_http_`.

pub mod log;
pub mod map;
pub mod proxy;
pub mod rewrite;
pub mod ssl;

pub use log::Log;
pub use map::Map;
pub use proxy::Proxy;
pub use rewrite::Rewrite;
pub use ssl::Ssl;

//! Modules of the `http` context; each file is named after nginx's module without `ngx_http_`.

pub mod access;
pub mod auth_basic;
pub mod headers;
pub mod log;
pub mod realip;

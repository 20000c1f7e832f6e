//! Modules of the `http` context; each file is named after nginx's module without `ngx_http_`.

pub mod access;
pub mod auth_basic;
pub mod empty_gif;
pub mod headers;
mod limit;
pub mod limit_conn;
pub mod limit_req;
pub mod log;
pub mod realip;
pub mod referer;
pub mod secure_link;
pub mod split_clients;
pub mod stub_status;

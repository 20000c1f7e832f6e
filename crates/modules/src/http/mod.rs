//! Modules of the `http` context; each file is named after nginx's module without `ngx_http_`.

pub mod log;

//! What the directives of a `…_pass` module say of an exchange.

use std::sync::Arc;

use super::Tls;
use crate::http::Template;
use crate::io::ConnectOptions;
use crate::upstream::{Buffering, Caching, Hidden};

/// Kinds of failure that another peer may make good, as bits (nginx: `proxy_next_upstream`).
pub mod next {
    pub const ERROR: u32 = 1 << 1;
    pub const TIMEOUT: u32 = 1 << 2;
    pub const INVALID_HEADER: u32 = 1 << 3;
    pub const HTTP_500: u32 = 1 << 4;
    pub const HTTP_502: u32 = 1 << 5;
    pub const HTTP_503: u32 = 1 << 6;
    pub const HTTP_504: u32 = 1 << 7;
    pub const HTTP_403: u32 = 1 << 8;
    pub const HTTP_404: u32 = 1 << 9;
    pub const HTTP_429: u32 = 1 << 10;
    pub const NON_IDEMPOTENT: u32 = 1 << 14;
    pub const OFF: u32 = 1 << 31;

    /// A copy of the cache may be used while it is renewed; of the next server it says nothing.
    pub const UPDATING: u32 = 1 << 30;

    pub(in crate::upstream) fn of_status(status: u16) -> Option<u32> {
        Some(match status {
            500 => HTTP_500,
            502 => HTTP_502,
            503 => HTTP_503,
            504 => HTTP_504,
            403 => HTTP_403,
            404 => HTTP_404,
            429 => HTTP_429,
            _ => return None,
        })
    }

    /// What the client is told where no peer is left.
    pub(in crate::upstream) fn status_of(kind: u32) -> u16 {
        match kind {
            TIMEOUT | HTTP_504 => 504,
            HTTP_500 => 500,
            HTTP_503 => 503,
            HTTP_403 => 403,
            HTTP_404 => 404,
            HTTP_429 => 429,
            _ => 502,
        }
    }
}

/// Fields of an answer that are not obeyed, as bits (nginx: `proxy_ignore_headers`).
pub mod ignore {
    pub const X_ACCEL_REDIRECT: u32 = 1;
    pub const X_ACCEL_EXPIRES: u32 = 1 << 1;
    pub const X_ACCEL_LIMIT_RATE: u32 = 1 << 2;
    pub const X_ACCEL_BUFFERING: u32 = 1 << 3;
    pub const X_ACCEL_CHARSET: u32 = 1 << 4;
    pub const EXPIRES: u32 = 1 << 5;
    pub const CACHE_CONTROL: u32 = 1 << 6;
    pub const SET_COOKIE: u32 = 1 << 7;
    pub const VARY: u32 = 1 << 8;
}

/// What is spoken with an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wire {
    #[default]
    Http1,
    /// Requests share connections.
    Http2,
    FastCgi {
        /// The application is asked to let the connection go on (`fastcgi_keep_conn`).
        keep: bool,
        /// Texts that make an answer invalid where its application writes them to stderr before its head (`fastcgi_catch_stderr`).
        catch_stderr: Arc<[Box<[u8]>]>,
    },
}

/// What a `…_pass` module's directives say of the exchange. Times are milliseconds, sizes bytes.
#[derive(Clone, Default)]
pub struct Settings {
    pub connect_timeout: u64,
    pub send_timeout: u64,
    pub read_timeout: u64,
    /// Bits of [`next`].
    pub next_upstream: u32,
    /// 0 is no bound.
    pub next_upstream_tries: u64,
    /// 0 is no bound.
    pub next_upstream_timeout: u64,
    /// The request's body is read whole before a peer is asked.
    pub request_buffering: bool,
    /// What is spoken.
    pub wire: Wire,
    /// The upstream understands chunks, or needs none; else a body whose length nobody told is read whole all the same.
    pub chunks: bool,
    pub pass_request_body: bool,
    /// The largest head of a response.
    pub buffer_size: usize,
    /// Unless the upstream says otherwise, its answer is read ahead of the client; where it is not, it has no `limit_rate`.
    pub buffering: bool,
    pub buffers: Arc<Buffering>,
    pub ignore_client_abort: bool,
    /// Answers of 300 and above are replaced where an `error_page` says so.
    pub intercept_errors: bool,
    pub socket: ConnectOptions,
    /// The local address of connections, computed for each request; empty leaves it to the kernel.
    pub bind: Option<Arc<Template>>,
    /// Fields behind the body go on, but for these.
    pub pass_trailers: Option<Arc<Hidden>>,
    /// Fields of a 103 go on, but for these.
    pub pass_early_hints: Option<Arc<Hidden>>,
    /// Tells connections apart that were opened by different settings. A pool outlives them: after a reload they may be
    /// others.
    pub opened_by: u64,
    /// For targets with TLS.
    pub tls: Option<Arc<Tls>>,
    /// Bits of [`ignore`].
    pub ignore_headers: u32,
    /// Where answers are kept for others.
    pub cache: Option<Arc<Caching>>,
    /// Nothing is asked: the connection is the client's as soon as it is up, who is told so with this status (CONNECT).
    pub tunnels_with: Option<u16>,
    /// Where answers are files of their own.
    pub store: Option<Arc<Storing>>,
}

/// `…_store`
pub struct Storing {
    /// `None` is the file that the location has for the request.
    pub path: Option<Template>,
    pub access: u32,
}

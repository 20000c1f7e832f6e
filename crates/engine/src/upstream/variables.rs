//! `ngx_http_upstream_module`'s variables: of every attempt, joined as nginx joins them.

use std::io::Write;

use super::UpstreamState;
use crate::contract::{Family, Variable};
use crate::http::Exchange;
use crate::http::variables::seconds;
use crate::http1::date;

pub const VARIABLES: &[Variable] = &[
    Variable::new("upstream_addr", |x, out| {
        joined(x, out, |state, out| out.extend_from_slice(state.peer.as_deref().unwrap_or_default()))
    }),
    Variable::new("upstream_status", |x, out| {
        joined(x, out, |state, out| match state.status {
            0 => out.push(b'-'),
            // Writing to memory cannot fail.
            status => drop(write!(out, "{status}")),
        })
    }),
    Variable::new("upstream_connect_time", |x, out| {
        joined(x, out, |state, out| time(state.connect_time, out))
    }),
    Variable::new("upstream_header_time", |x, out| joined(x, out, |state, out| time(state.header_time, out))),
    Variable::new("upstream_response_time", |x, out| {
        joined(x, out, |state, out| time(state.response_time, out))
    }),
    Variable::new("upstream_response_length", |x, out| {
        joined(x, out, |state, out| count(state.response_length, out))
    }),
    Variable::new("upstream_bytes_received", |x, out| {
        joined(x, out, |state, out| count(state.bytes_received, out))
    }),
    Variable::new("upstream_cache_status", |x, out| {
        let status = x.cache.as_ref().and_then(|cache| cache.status);
        status.map(|status| out.extend_from_slice(status.name().as_bytes())).is_some()
    }),
    Variable::new("upstream_cache_last_modified", |x, out| {
        let time = x.cache_last_modified();
        time.map(|time| out.extend_from_slice(date::http(time).as_ref())).is_some()
    }),
    Variable::new("upstream_cache_etag", |x, out| {
        x.cache_etag().map(|etag| out.extend_from_slice(etag)).is_some()
    }),
    Variable::new("upstream_bytes_sent", |x, out| joined(x, out, |state, out| count(state.bytes_sent, out))),
];

pub const FAMILIES: &[Family] = &[
    Family {
        prefix: "upstream_http_",
        get: |x, name, out| crate::http::variables::upstream_http(x, name, out),
    },
    Family {
        prefix: "upstream_trailer_",
        get: |x, name, out| crate::http::variables::upstream_trailer(x, name, out),
    },
    Family {
        prefix: "upstream_cookie_",
        get: |x, name, out| crate::http::variables::upstream_cookie(x, name, out),
    },
];

/// Attempts are separated by commas, those before an internal redirect by colons.
fn joined(x: &Exchange, out: &mut Vec<u8>, each: impl Fn(&UpstreamState, &mut Vec<u8>)) -> bool {
    for (index, state) in x.upstream_states.iter().enumerate() {
        if index > 0 {
            let redirected = x.upstream_states[index - 1].redirected;
            out.extend_from_slice(if redirected { b" : " } else { b", " });
        }
        each(state, out);
    }
    !x.upstream_states.is_empty()
}

fn time(ms: Option<u64>, out: &mut Vec<u8>) {
    match ms {
        Some(ms) => drop(seconds(ms, out)),
        None => out.push(b'-'),
    }
}

fn count(n: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

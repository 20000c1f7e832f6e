//! The head of a request, from what hyper made of it to what the phases read.

use hyper::HeaderMap;
use hyper::ext::Protocol;
use hyper::header::COOKIE;
use hyper::http::request::Parts;

use super::send::Key;
use crate::http::{Exchange, base64_encode};
use crate::http1::Limits;
use crate::http1::request::{Assembled, Head, Reject};

/// What a stream asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Request,
    /// A WebSocket (RFC 8441).
    WebSocket,
}

/// Reads the head of what is asked for; `ends` is whether no body follows.
///
/// A WebSocket is an upgrade of HTTP/1.1 for all that follows, with a key of our own that the upstream has to answer.
pub(super) fn read(
    x: &mut Exchange,
    parts: &Parts,
    asked: Asked,
    ends: bool,
    limits: &Limits,
) -> Result<(), Reject> {
    if asked == Asked::Request {
        return assemble(&mut x.head, parts, &[], ends, limits);
    }
    let mut random = [0; 16];
    if aws_lc_rs::rand::fill(&mut random).is_err() {
        return Err(Reject::new(500, "no randomness for the key of an upgrade"));
    }
    let key = base64_encode(&random);
    let upgrade: [(&[u8], &[u8]); 3] =
        [(b"upgrade", b"websocket"), (b"connection", b"upgrade"), (b"sec-websocket-key", key.as_bytes())];
    let judged = assemble(&mut x.head, parts, &upgrade, true, limits);
    x.remember(Key(key));
    judged
}

/// Puts a head together, with further fields that make it an upgrade.
fn assemble(
    head: &mut Head,
    parts: &Parts,
    upgrade: &[(&[u8], &[u8])],
    ends: bool,
    limits: &Limits,
) -> Result<(), Reject> {
    let path = parts.uri.path_and_query().map(|path| path.as_str().as_bytes());
    let sizes = check_sizes(path.unwrap_or_default(), &parts.headers, limits);
    let cookies = parts.headers.get_all(COOKIE).iter().map(|value| value.as_bytes());
    let fields = parts.headers.iter().filter(|(name, _)| *name != COOKIE);
    let fields = fields.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    let ours = |name: &[u8]| upgrade.iter().any(|(own, _)| *own == name);
    let fields = fields.filter(|(name, _)| !ours(name)).chain(upgrade.iter().copied());
    let assembled = Assembled {
        method: if upgrade.is_empty() { parts.method.as_str().as_bytes() } else { b"GET" },
        path,
        authority: parts.uri.authority().map(|authority| authority.as_str().as_bytes()),
        cookie: cookies.collect::<Vec<_>>().join(&b"; "[..]),
        streams: !ends,
    };
    // The cookie and the host are not among those that were counted.
    let limits = Limits { max_headers: limits.max_headers.saturating_add(2), ..limits.clone() };
    // Of what is too large the log knows all the same what it was.
    let judged = head.assemble(&assembled, fields, &limits);
    sizes.and(judged)
}

/// As much as all buffers of `large_client_header_buffers` hold, in each field as much as one does, and of all fields but
/// cookies as many as `max_headers` says.
fn check_sizes(path: &[u8], fields: &HeaderMap, limits: &Limits) -> Result<(), Reject> {
    if fields.len() - fields.get_all(COOKIE).iter().count() > limits.max_headers {
        return Err(Reject::new(494, "client sent too many header lines"));
    }
    let mut left = limits.large_buffers.saturating_mul(limits.large_buffer);
    let fields = fields.iter().map(|(name, value)| (name.as_str().len(), value.len()));
    for (name, value) in fields.chain([(":path".len(), path.len())]) {
        if name.max(value) > limits.large_buffer {
            return Err(Reject::new(494, "client sent too large header field"));
        }
        left =
            left.checked_sub(name + value).ok_or_else(|| Reject::new(494, "client sent too large header"))?;
    }
    Ok(())
}

/// What is asked for, as far as it needs no head.
pub(super) fn asked(parts: &Parts) -> Asked {
    match parts.extensions.get::<Protocol>() {
        Some(protocol) if protocol.as_str().eq_ignore_ascii_case("websocket") => Asked::WebSocket,
        Some(_) | None => Asked::Request,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    #[track_caller]
    fn check(request: hyper::http::request::Builder, expected: &str) {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let mut head = Head::new();
        let got = match assemble(&mut head, &parts, &[], true, &Limits::default()) {
            Ok(()) => {
                let fields = head.fields().iter().map(|field| {
                    let text = |span| String::from_utf8_lossy(head.get(span)).into_owned();
                    format!("|{}={}", text(field.name), text(field.value))
                });
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                format!(
                    "{} {}?{}{}",
                    text(head.host()),
                    text(head.path()),
                    text(head.args()),
                    fields.collect::<String>()
                )
            }
            Err(reject) => format!("{} {}", reject.status, String::from_utf8_lossy(&reject.message)),
        };
        assert_eq!(got, expected);
    }

    fn get(uri: &str) -> hyper::http::request::Builder {
        Request::builder().uri(uri)
    }

    #[test]
    fn a_head_is_as_if_it_had_come_in_lines() {
        check(get("http://A.example:81/a/../b%20c?d=e"), "a.example /b c?d=e|host=A.example:81");
        check(
            get("http://a/").header("x", "1").header("cookie", "b=1").header("cookie", "c=2"),
            "a /?|x=1|cookie=b=1; c=2|host=a",
        );
        check(get("/").header("host", "b"), "b /?|host=b");
        check(get("http://a/").header("host", "a").header("y_z", "1").header("z", "  2 "), "a /?|host=a|z=2");
        check(get("/"), "400 client sent neither \":authority\" nor \"Host\" header");
        check(
            get("http://a/").header("host", "b"),
            "400 client sent \":authority\" and \"Host\" headers with different values",
        );
        check(
            get("http://a/").header("host", "a").header("host", "a"),
            "400 client sent duplicate host header: \"host: a\", previous value: \"host: a\"",
        );
        check(get("http://a..b/"), "400 client sent invalid \":authority\" header");
        check(get("http://a/%00"), "400 client sent invalid :path header: \"/%00\"");
        check(get("http://a/../.."), "400 client sent invalid :path header: \"/../..\"");
        check(get("http://a/").method("get"), "400 client sent invalid method: \"get\"");
        check(get("http://a/").method("TRACE"), "405 client sent TRACE method");
        check(get("a:443").method("CONNECT"), "400 client sent no :scheme header");
        check(
            get("http://a/").header("content-length", "1x"),
            "400 client sent invalid \"Content-Length\" header",
        );
        check(get("http://a/").header("x", "y".repeat(8193)), "494 client sent too large header field");
        check(get(&format!("http://a/{}", "p".repeat(8192))), "494 client sent too large header field");
        let long = (0..5).fold(get("http://a/"), |get, _| get.header("x", "y".repeat(8000)));
        check(long, "494 client sent too large header");
        let many = (0..1001).fold(get("http://a/"), |get, _| get.header("x", "y"));
        check(many, "494 client sent too many header lines");
    }
}

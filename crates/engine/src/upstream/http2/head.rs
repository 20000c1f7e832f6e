//! Heads of requests as h2 takes them, and of answers as all that follows reads them.

use std::fmt::Write;

use hyper::header::{CONNECTION, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use hyper::http::response::Parts;
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{HeaderMap, Method, Request, StatusCode, Uri, Version};
use weir_syntax::Level;

use crate::http::{Exchange, Headers};
use crate::http1::response::{Head, Parsed};
use crate::http1::status;

/// A request as a module puts it together.
pub struct RequestHead {
    method: Vec<u8>,
    path: Vec<u8>,
    authority: Vec<u8>,
    fields: HeaderMap,
}

impl RequestHead {
    pub fn new(method: Vec<u8>, path: Vec<u8>, authority: Vec<u8>) -> Self {
        Self { method, path, authority, fields: HeaderMap::new() }
    }

    /// Adds a field. What HTTP/2 has no place for stays behind: fields of the connection, which are for others than the
    /// peer, and other bytes than a field may have.
    pub fn push(&mut self, x: &Exchange, name: &[u8], value: &[u8]) {
        let parts = HeaderName::from_bytes(name).ok().zip(HeaderValue::from_bytes(value).ok());
        match parts {
            Some((name, value)) if is_of_connection(&name, &value) => {}
            Some((name, value)) => {
                self.fields.append(name, value);
            }
            None => {
                let name = String::from_utf8_lossy(name);
                x.log(Level::Warn, format_args!("header \"{name}\" cannot be sent over HTTP/2"));
            }
        }
    }

    /// Whether the answer has no body, whatever its head says.
    pub fn is_to_head(&self) -> bool {
        self.method.eq_ignore_ascii_case(b"HEAD")
    }

    /// Path and arguments.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// As h2 takes it; none where its method, authority or path have no place there.
    pub(in crate::upstream) fn build(self, tls: bool) -> Option<BuiltHead> {
        let fields = self.fields.iter().map(|(name, value)| name.as_str().len() + value.len());
        let size = self.method.len() + self.path.len() + self.authority.len() + fields.sum::<usize>();
        let mut uri = hyper::http::uri::Parts::default();
        uri.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
        uri.authority = Some(Authority::try_from(&self.authority[..]).ok()?);
        uri.path_and_query = Some(path(&self.path)?);
        let mut request = Request::new(());
        *request.method_mut() = Method::from_bytes(&self.method).ok()?;
        *request.uri_mut() = Uri::from_parts(uri).ok()?;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.fields;
        Some(BuiltHead { request, size: size as u64 })
    }
}

/// A request as h2 takes it.
#[derive(Clone)]
pub(in crate::upstream) struct BuiltHead {
    pub request: Request<()>,
    /// How long it reads.
    pub size: u64,
}

/// A path; bytes that have no place in one are written as such (RFC 3986 section 2.1).
fn path(path: &[u8]) -> Option<PathAndQuery> {
    // What is behind a `#` would be left out.
    if memchr::memchr(b'#', path).is_none()
        && let Ok(path) = PathAndQuery::try_from(path)
    {
        return Some(path);
    }
    let mut quoted = String::with_capacity(path.len() + 32);
    for &byte in path {
        match byte {
            b'!'..=b'~'
                if !matches!(byte, b'"' | b'#' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}') =>
            {
                quoted.push(char::from(byte));
            }
            _ => {
                let _ = write!(quoted, "%{byte:02X}");
            }
        }
    }
    PathAndQuery::try_from(quoted).ok()
}

/// Fields of a connection (RFC 9113 section 8.2.2), and the host that the authority is.
fn is_of_connection(name: &HeaderName, value: &HeaderValue) -> bool {
    match *name {
        CONNECTION | TRANSFER_ENCODING | UPGRADE | HOST => true,
        TE => value != "trailers",
        _ => matches!(name.as_str(), "keep-alive" | "proxy-connection"),
    }
}

/// Why an answer's head is none, as the log has it.
pub(in crate::upstream) type Invalid = String;

/// Reads the head of an answer as if it had come in lines.
pub(in crate::upstream) fn read(parts: &Parts, limit: usize, head: &mut Head) -> Result<(), Invalid> {
    let status = parts.status;
    if status < StatusCode::OK && status != StatusCode::EARLY_HINTS {
        return Err(format!("upstream sent unexpected :status \"{}\"", status.as_str()));
    }
    check_size(&parts.headers, limit, "header")?;
    let mut text = b"HTTP/2.0 ".to_vec();
    match status::line(status.as_u16()) {
        Some(line) => text.extend_from_slice(line.as_bytes()),
        None => text.extend_from_slice(format!("{} ", status.as_str()).as_bytes()),
    }
    text.extend_from_slice(b"\r\n");
    for (name, value) in &parts.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            text.extend_from_slice(part);
        }
    }
    text.extend_from_slice(b"\r\n");
    match head.parse(&text, usize::MAX) {
        Ok(Parsed::Complete(_)) => Ok(()),
        Ok(Parsed::Partial | Parsed::Headless) => Err("upstream sent invalid header".into()),
        Err(invalid) => Err(String::from_utf8_lossy(&invalid.message).into_owned()),
    }
}

fn check_size(fields: &HeaderMap, limit: usize, what: &str) -> Result<(), Invalid> {
    let size: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if size > limit { Err(format!("upstream sent too large http2 {what}")) } else { Ok(()) }
}

/// Reads fields behind a body, but for those that do not go on.
pub(in crate::upstream) fn check_trailers(fields: &HeaderMap, limit: usize) -> Result<Headers, Invalid> {
    check_size(fields, limit, "trailer")?;
    let mut all = Headers::default();
    for (name, value) in fields {
        all.push(name.as_str().as_bytes(), value.as_bytes());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Response;

    #[test]
    fn requests() {
        #[track_caller]
        fn check(method: &str, path: &str, authority: &str, expected: Option<&str>) {
            let head = RequestHead::new(method.into(), path.into(), authority.into());
            let built = head
                .build(true)
                .map(|BuiltHead { request, .. }| format!("{} {}", request.method(), request.uri()));
            assert_eq!(built.as_deref(), expected);
        }
        check("GET", "/a%20b?c=\u{e4}", "a:81", Some("GET https://a:81/a%20b?c=\u{e4}"));
        check("FOO", "/<a>?\"b\"", "a_b", Some("FOO https://a_b/%3Ca%3E?%22b%22"));
        check("GET", "/a#b", "a", Some("GET https://a/a%23b"));
        check("G T", "/", "a", None);
        check("GET", "/", "a b", None);
        check("GET", "/", "a%b", None);
        check("GET", "a", "a", None);
        check("GET", &format!("/{}", "a".repeat(1 << 16)), "a", None);
    }

    #[test]
    fn fields_of_the_connection_stay() {
        #[track_caller]
        fn check(name: &'static str, value: &'static str, stays: bool) {
            let name = HeaderName::from_static(name);
            assert_eq!(is_of_connection(&name, &HeaderValue::from_static(value)), stays, "{name}: {value}");
        }
        for name in ["connection", "upgrade", "keep-alive", "proxy-connection", "transfer-encoding", "host"] {
            check(name, "x", true);
        }
        check("te", "gzip", true);
        check("te", "trailers", false);
        check("x", "y", false);
    }

    #[test]
    fn answers() {
        #[track_caller]
        fn check(status: u16, fields: &[(&str, &str)], expected: Result<&str, &str>) {
            let response =
                fields.iter().fold(Response::builder().status(status), |r, (n, v)| r.header(*n, *v));
            let (parts, ()) = response.body(()).unwrap().into_parts();
            let mut head = Head::new();
            let read = read(&parts, 100, &mut head);
            let got = read.as_ref().map(|()| std::str::from_utf8(head.raw()).unwrap());
            assert_eq!(got.map_err(String::as_str), expected);
        }
        check(200, &[("a", "b"), ("c", "")], Ok("HTTP/2.0 200 OK\r\na: b\r\nc: \r\n\r\n"));
        check(299, &[], Ok("HTTP/2.0 299 \r\n\r\n"));
        check(103, &[("link", "</a>")], Ok("HTTP/2.0 103 \r\nlink: </a>\r\n\r\n"));
        check(101, &[], Err("upstream sent unexpected :status \"101\""));
        check(
            200,
            &[("a", &"b".repeat(99))],
            Ok(&format!("HTTP/2.0 200 OK\r\na: {}\r\n\r\n", "b".repeat(99))),
        );
        check(200, &[("a", &"b".repeat(100))], Err("upstream sent too large http2 header"));
        check(
            200,
            &[("content-length", "x")],
            Err("upstream sent invalid \"Content-Length\" header: \"content-length: x\""),
        );
    }
}

//! The core's variables: of the connection, the request and the response.

use std::cell::Cell;
use std::io::Write;

use weir_syntax::Level;

use crate::contract::{Family, Variable};
use crate::http::Exchange;
use crate::http::send::{completes, write_origin};
use crate::http1::{Known, date};
use crate::io::Address;
use crate::localtime;
use crate::proxy_protocol::Header;

/// Variables that need no declaration.
pub const VARIABLES: &[Variable] = &[
    Variable::new("args", args).with_set(|x, value| x.args = value.to_vec()),
    Variable::new("query_string", args),
    Variable::new("is_args", |x, out| {
        if !x.args.is_empty() {
            out.push(b'?');
        }
        true
    }),
    Variable::new("binary_remote_addr", binary_remote_addr),
    Variable::new("body_bytes_sent", |x, out| number(x.body_sent, out)),
    Variable::new("bytes_sent", |x, out| number(x.sent, out)),
    Variable::new("connection", |x, out| number(x.connection.number, out)),
    Variable::new("connection_requests", |x, out| number(x.connection.requests.get(), out)),
    Variable::new("connection_time", |x, out| {
        seconds(x.reactor.clock().now_ms() - x.connection.started, out)
    }),
    Variable::new("content_length", |x, out| {
        header(x, Known::ContentLength, out)
            || x.body.known_length().is_some_and(|length| number(length, out))
    }),
    Variable::new("content_type", |x, out| http(x, "content_type", out)),
    Variable::new("document_root", |x, out| {
        out.append(&mut x.root());
        true
    }),
    Variable::new("document_uri", uri),
    Variable::new("uri", uri),
    Variable::new("host", host),
    Variable::new("hostname", |_, out| {
        out.extend_from_slice(hostname().as_bytes());
        true
    }),
    Variable::new("https", |x, out| {
        if x.connection.tls.is_some() {
            out.extend_from_slice(b"on");
        }
        true
    }),
    Variable::new("limit_rate", |x, out| number(x.limit_rate.unwrap_or(0), out)).with_set(set_limit_rate),
    Variable::new("msec", |x, out| seconds(x.reactor.clock().unix_ms(), out)),
    Variable::new("nginx_version", |_, out| {
        out.extend_from_slice(crate::NGINX_VERSION.as_bytes());
        true
    }),
    Variable::new("pid", |_, out| number(u64::from(std::process::id()), out)),
    Variable::new("pipe", |x, out| {
        out.push(if x.pipelined { b'p' } else { b'.' });
        true
    }),
    Variable::new("proxy_protocol_addr", |x, out| told(x, |told| &told.source, out)),
    Variable::new("proxy_protocol_port", |x, out| told_port(x, |told| told.source_port, out)),
    Variable::new("proxy_protocol_server_addr", |x, out| told(x, |told| &told.server, out)),
    Variable::new("proxy_protocol_server_port", |x, out| told_port(x, |told| told.server_port, out)),
    Variable::new("realpath_root", |x, out| {
        use std::os::unix::ffi::{OsStrExt, OsStringExt};
        let root = x.root();
        let Ok(path) = std::fs::canonicalize(std::ffi::OsStr::from_bytes(&root)) else { return false };
        out.extend_from_slice(&path.into_os_string().into_vec());
        true
    }),
    Variable::new("remote_addr", |x, out| {
        out.extend_from_slice(x.peer().text());
        true
    }),
    Variable::new("remote_port", |x, out| match x.peer().port() {
        // A proxy that told an address without a port.
        Some(0) => true,
        Some(port) => number(u64::from(port), out),
        None => true,
    }),
    Variable::new("remote_user", remote_user),
    Variable::new("request", |x, out| {
        let line = x.head.request_line();
        out.extend_from_slice(line);
        !line.is_empty()
    }),
    Variable::new("request_body", |x, out| match x.body.stored() {
        Some(crate::http::request_body::Stored::Memory(bytes)) => {
            out.extend_from_slice(bytes);
            true
        }
        Some(crate::http::request_body::Stored::File { .. }) | None => false,
    }),
    Variable::new("request_body_file", |x, out| match x.body.stored() {
        Some(crate::http::request_body::Stored::File { file, .. }) => {
            out.extend_from_slice(file.name().as_bytes());
            true
        }
        Some(crate::http::request_body::Stored::Memory(_)) | None => false,
    }),
    Variable::new("request_completion", |x, out| {
        if x.complete {
            out.extend_from_slice(b"OK");
        }
        true
    }),
    Variable::new("request_filename", |x, out| {
        out.extend_from_slice(&x.file_path());
        true
    }),
    Variable::new("request_id", |x, out| {
        out.extend_from_slice(&x.request_id());
        true
    }),
    Variable::new("request_length", |x, out| number(x.request_length, out)),
    Variable::new("request_method", |x, out| {
        let name = x.main_method_name();
        out.extend_from_slice(name);
        !name.is_empty()
    }),
    Variable::new("request_port", |x, out| match x.head.port() {
        0 => true,
        port => number(u64::from(port), out),
    }),
    Variable::new("is_request_port", |x, out| {
        if x.head.port() != 0 {
            out.push(b':');
        }
        true
    }),
    Variable::new("request_time", |x, out| seconds(x.reactor.clock().now_ms() - x.started, out)),
    Variable::new("request_uri", |x, out| {
        let uri = x.head.unparsed_uri();
        out.extend_from_slice(uri);
        !uri.is_empty()
    }),
    Variable::new("scheme", |x, out| {
        out.extend_from_slice(x.scheme());
        true
    }),
    Variable::new("server_addr", |x, out| match &x.connection.local {
        Address::Ip(inet) => write!(out, "{}", inet.ip()).is_ok(),
        Address::Unix(path) => {
            out.extend_from_slice(b"unix:");
            out.extend_from_slice(path.as_bytes());
            true
        }
    }),
    Variable::new("server_name", |x, out| {
        out.extend_from_slice(&x.server().core.server_name);
        true
    }),
    Variable::new("server_port", |x, out| match &x.connection.local {
        Address::Ip(inet) => number(u64::from(inet.port()), out),
        Address::Unix(_) => true,
    }),
    Variable::new("server_protocol", |x, out| {
        let protocol = x.head.protocol();
        out.extend_from_slice(protocol.unwrap_or_default());
        protocol.is_some()
    }),
    Variable::new("status", |x, out| {
        status(x, out);
        true
    }),
    Variable::new("time_iso8601", |x, out| {
        out.extend_from_slice(stamps(x.reactor.clock().unix_secs()).iso8601.as_ref());
        true
    }),
    Variable::new("time_local", |x, out| {
        out.extend_from_slice(stamps(x.reactor.clock().unix_secs()).local.as_ref());
        true
    }),
    // These have a place of their own, so that they cost no search through the names of all fields.
    Variable::new("http_cookie", |x, out| joined(x.head.all(Known::Cookie), b"; ", out)),
    Variable::new("http_host", |x, out| header(x, Known::Host, out)),
    Variable::new("http_referer", |x, out| known(x, Known::Referer, out)),
    Variable::new("http_user_agent", |x, out| known(x, Known::UserAgent, out)),
    Variable::new("http_via", |x, out| known(x, Known::Via, out)),
    Variable::new("http_x_forwarded_for", |x, out| known(x, Known::XForwardedFor, out)),
];

/// Families of variables.
pub const FAMILIES: &[Family] = &[
    Family { prefix: "http_", get: http },
    Family { prefix: "sent_http_", get: sent_http },
    Family { prefix: "sent_trailer_", get: sent_trailer },
    Family { prefix: "cookie_", get: cookie },
    Family { prefix: "arg_", get: arg },
    Family { prefix: "proxy_protocol_tlv_", get: proxy_protocol_tlv },
];

fn told(x: &Exchange, value: fn(&Header) -> &[u8], out: &mut Vec<u8>) -> bool {
    let header = x.connection.proxy_protocol.as_deref();
    out.extend_from_slice(header.map(value).unwrap_or_default());
    header.is_some()
}

fn told_port(x: &Exchange, port: fn(&Header) -> u16, out: &mut Vec<u8>) -> bool {
    match x.connection.proxy_protocol.as_deref().map(port) {
        Some(0) => true,
        Some(port) => number(u64::from(port), out),
        None => false,
    }
}

fn proxy_protocol_tlv(x: &Exchange, name: &str, out: &mut Vec<u8>) -> bool {
    let Some(header) = x.connection.proxy_protocol.as_deref() else { return false };
    header.tlv(name, out).unwrap_or_else(|fault| {
        x.log(Level::Error, fault);
        false
    })
}

fn set_limit_rate(x: &mut Exchange, text: &[u8]) {
    match weir_ir::value::size(text) {
        Some(rate) => x.limit_rate = Some(rate),
        None => {
            let shown = String::from_utf8_lossy(text);
            x.log(Level::Error, format_args!("invalid $limit_rate \"{shown}\""));
        }
    }
}

/// A moment in the two forms that logs have.
#[derive(Clone, Copy)]
pub struct Stamps {
    second: u64,
    /// `$time_local`
    pub local: date::Stamp,
    /// `$time_iso8601`
    pub iso8601: date::Stamp,
}

/// Writes a second since the epoch out, once a second and thread.
pub fn stamps(second: u64) -> Stamps {
    thread_local! {
        static LAST: Cell<Option<Stamps>> = const { Cell::new(None) };
    }
    match LAST.get() {
        Some(stamps) if stamps.second == second => stamps,
        Some(_) | None => {
            let now = second as i64;
            let offset = (localtime::local(now).offset / 60) as i32;
            let stamps =
                Stamps { second, local: date::log(now, offset), iso8601: date::iso8601(now, offset) };
            LAST.set(Some(stamps));
            stamps
        }
    }
}

/// `$status`, three digits: of the response, or of the error page that it is.
pub fn status(x: &Exchange, out: &mut Vec<u8>) {
    let status = match (x.err_status, x.status) {
        (0, 0) if x.head.has_line() && x.head.version() < crate::http1::request::Version::HTTP_10 => 9,
        (0, status) | (status, _) => status,
    };
    out.extend_from_slice(&[
        b'0' + (status / 100 % 10) as u8,
        b'0' + (status / 10 % 10) as u8,
        b'0' + (status % 10) as u8,
    ]);
}

/// All fields of a name as one list.
pub(crate) fn known(x: &Exchange, known: Known, out: &mut Vec<u8>) -> bool {
    x.head.has(known) && joined(x.head.all(known), b", ", out)
}

/// Appends a number in decimal digits.
pub fn number(value: u64, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    true
}

/// Seconds with milliseconds, `1.234`.
pub fn seconds(ms: u64, out: &mut Vec<u8>) -> bool {
    number(ms / 1000, out);
    let rest = (ms % 1000) as u16;
    out.push(b'.');
    out.extend_from_slice(&[
        b'0' + (rest / 100) as u8,
        b'0' + (rest / 10 % 10) as u8,
        b'0' + (rest % 10) as u8,
    ]);
    true
}

fn args(x: &Exchange, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(&x.args);
    !x.args.is_empty()
}

fn uri(x: &Exchange, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(&x.uri);
    // It is there, and empty, where the client's was refused.
    !x.uri.is_empty() || x.head.has_line()
}

fn host(x: &Exchange, out: &mut Vec<u8>) -> bool {
    if x.host.is_empty() {
        out.extend_from_slice(&x.server().core.server_name);
    } else {
        out.extend_from_slice(&x.host);
    }
    true
}

fn hostname() -> &'static str {
    static NAME: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    NAME.get_or_init(|| {
        nix::sys::utsname::uname().map(|u| u.nodename().to_string_lossy().to_lowercase()).unwrap_or_default()
    })
}

fn header(x: &Exchange, known: Known, out: &mut Vec<u8>) -> bool {
    match x.header(known) {
        Some(value) => {
            out.extend_from_slice(value);
            true
        }
        None => false,
    }
}

fn binary_remote_addr(x: &Exchange, out: &mut Vec<u8>) -> bool {
    match &x.peer().address {
        Address::Ip(inet) => match inet.ip() {
            std::net::IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
            std::net::IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
        },
        Address::Unix(_) => out.extend_from_slice(b"unix:"),
    }
    true
}

/// The user of `Authorization: Basic`, whether or not the password is right.
fn remote_user(x: &Exchange, out: &mut Vec<u8>) -> bool {
    let Some(credentials) = x.header(Known::Authorization).and_then(crate::http::basic_credentials) else {
        return false;
    };
    match memchr::memchr(b':', &credentials) {
        None | Some(0) => false,
        Some(end) => {
            out.extend_from_slice(&credentials[..end]);
            true
        }
    }
}

/// Whether a header's name is the one that a variable's name means: lower case, `_` for `-`.
fn is_named(name: &[u8], variable: &str) -> bool {
    name.len() == variable.len()
        && name.iter().zip(variable.as_bytes()).all(|(n, v)| match n {
            b'-' => *v == b'_',
            _ => n.to_ascii_lowercase() == *v,
        })
}

/// Several fields of a name are joined as lists are.
fn joined<'a>(values: impl Iterator<Item = &'a [u8]>, separator: &[u8], out: &mut Vec<u8>) -> bool {
    let mut found = false;
    for value in values {
        if found {
            out.extend_from_slice(separator);
        }
        out.extend_from_slice(value);
        found = true;
    }
    found
}

fn http(x: &Exchange, name: &str, out: &mut Vec<u8>) -> bool {
    let values =
        x.head.fields().iter().filter(|f| is_named(x.head.get(f.name), name)).map(|f| x.head.get(f.value));
    joined(values, if name == "cookie" { b"; " } else { b", " }, out)
}

/// A header of the response as it was sent; the ones that have a place of their own included.
fn sent_http(x: &Exchange, name: &str, out: &mut Vec<u8>) -> bool {
    let Some(sent) = &x.response else { return false };
    let mut text = |value: &Option<crate::http::response::Text>| match value {
        Some(value) => {
            out.extend_from_slice(value);
            true
        }
        None => false,
    };
    match name {
        "content_type" => {
            let found = text(&sent.content_type);
            if let (true, Some(charset)) = (found, &sent.charset) {
                out.extend_from_slice(b"; charset=");
                out.extend_from_slice(charset);
            }
            found
        }
        "content_length" => sent.content_length.is_some_and(|length| number(length, out)),
        "location" => match &sent.location {
            Some(target) => {
                if completes(&x.location().core, sent) {
                    write_origin(x, out);
                }
                out.extend_from_slice(target);
                true
            }
            None => joined(sent.headers.all(b"Location"), b", ", out),
        },
        "last_modified" => match (sent.headers.first(Known::LastModified), sent.last_modified) {
            (Some(text), _) => {
                out.extend_from_slice(text);
                true
            }
            (None, Some(time)) => {
                out.extend_from_slice(date::http(time).as_ref());
                true
            }
            (None, None) => false,
        },
        "connection" => {
            let value: &[u8] = match (x.status, x.keepalive) {
                (101, _) => b"upgrade",
                (_, true) => b"keep-alive",
                (_, false) => b"close",
            };
            out.extend_from_slice(value);
            true
        }
        "keep_alive" => {
            let seconds = x.location().core.keepalive_header;
            if x.keepalive && seconds > 0 {
                out.extend_from_slice(b"timeout=");
                number(seconds, out);
            }
            x.keepalive && seconds > 0
        }
        "transfer_encoding" => {
            if x.chunked {
                out.extend_from_slice(b"chunked");
            }
            x.chunked
        }
        _ => joined(sent.headers.iter().filter(|(n, _)| is_named(n, name)).map(|(_, v)| v), b", ", out),
    }
}

/// A header of the upstream's response, whether or not it went on to the client.
pub(crate) fn upstream_http(x: &Exchange, name: &str, out: &mut Vec<u8>) -> bool {
    let Some(headers) = &x.upstream_headers else { return false };
    joined(headers.iter().filter(|(n, _)| is_named(n, name)).map(|(_, v)| v), b", ", out)
}

pub(crate) fn upstream_trailer(x: &Exchange, name: &str, out: &mut Vec<u8>) -> bool {
    let Some(fields) = &x.upstream_trailers else { return false };
    joined(fields.iter().filter(|(n, _)| is_named(n, name)).map(|(_, v)| v), b", ", out)
}

fn sent_trailer(x: &Exchange, name: &str, out: &mut Vec<u8>) -> bool {
    let trailers = x.trailers();
    let Some(fields) = &*trailers else { return false };
    joined(fields.iter().filter(|(n, _)| is_named(n, name)).map(|(_, v)| v), b", ", out)
}

/// A cookie that the upstream sets.
pub(crate) fn upstream_cookie(x: &Exchange, name: &str, out: &mut Vec<u8>) -> bool {
    let Some(headers) = &x.upstream_headers else { return false };
    for value in headers.all(b"Set-Cookie") {
        let pair = value.split(|b| *b == b';').next().unwrap_or_default();
        if let Some(value) = cookie_value(pair, name) {
            out.extend_from_slice(value);
            return true;
        }
    }
    false
}

/// The value of `name=value` where that is its name. Only spaces are passed over around the equals sign.
fn cookie_value<'c>(pair: &'c [u8], name: &str) -> Option<&'c [u8]> {
    let (start, rest) = pair.split_at_checked(name.len())?;
    let value = without_spaces(rest).strip_prefix(b"=")?;
    start.eq_ignore_ascii_case(name.as_bytes()).then(|| without_spaces(value))
}

fn without_spaces(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|b| *b != b' ').unwrap_or(text.len());
    &text[start..]
}

/// Appends a cookie of the client; false where it sent none of that name.
pub fn cookie(x: &Exchange, name: &str, out: &mut Vec<u8>) -> bool {
    for line in x.head.all(Known::Cookie) {
        for pair in line.split(|b| *b == b';') {
            if let Some(value) = cookie_value(without_spaces(pair), name) {
                out.extend_from_slice(value);
                return true;
            }
        }
    }
    false
}

/// Appends an argument of the request; false where it has none of that name.
pub fn arg(x: &Exchange, name: &str, out: &mut Vec<u8>) -> bool {
    for pair in x.args.split(|b| *b == b'&') {
        let Some(at) = memchr::memchr(b'=', pair) else { continue };
        if pair[..at].eq_ignore_ascii_case(name.as_bytes()) {
            out.extend_from_slice(&pair[at + 1..]);
            return true;
        }
    }
    false
}

//! The request as the upstream receives it.

use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Template};
use weir_engine::http1::uri::{Escape, escape, needs_escape};
use weir_engine::http1::{Field, Known, KnownSet, date, unbreak};
use weir_engine::upstream::Written;
use weir_engine::upstream::exchange::RequestLength;
use weir_syntax::Level;

use super::{HttpVersion, Passing};

/// How requests of a location are written.
pub(super) struct Rules {
    method: Option<Template>,
    version: &'static [u8],
    http10: bool,
    /// `proxy_set_header Host`; it stands first.
    pub(super) host: Option<Template>,
    /// Headers set by the configuration in its order with what is between name and value, `Host` not among them.
    pub(super) set: Vec<(Box<[u8]>, Template)>,
    /// The body's length or coding is told in nginx's way unless the configuration sets those headers itself.
    pub(super) own_length: bool,
    own_coding: bool,
    /// So are the conditions of what a cache renews.
    pub(super) own_modified_since: bool,
    pub(super) own_none_match: bool,
    /// Headers of the client that do not go on, known ones and by name in lower case.
    dropped: KnownSet,
    dropped_names: Vec<Box<[u8]>>,
    pub(super) pass_headers: bool,
    pub(super) body: Option<Template>,
}

/// Where one request goes.
#[derive(Clone, Copy)]
pub(super) struct Way<'w> {
    /// `$proxy_host`
    pub host: &'w [u8],
    /// The URI part of `proxy_pass`.
    pub uri: &'w [u8],
    /// It was computed, so it replaces the whole URI.
    pub computed: bool,
}

/// Headers that are between the client and us, or that are written anew.
const HOP: [Known; 9] = [
    Known::Host,
    Known::Connection,
    Known::ProxyConnection,
    Known::ContentLength,
    Known::TransferEncoding,
    Known::Te,
    Known::KeepAlive,
    Known::Expect,
    Known::Upgrade,
];

/// Headers by which a client asks for less than the whole, which a cache judges itself.
static CONDITIONS: KnownSet = KnownSet::of(&[
    Known::IfModifiedSince,
    Known::IfUnmodifiedSince,
    Known::IfNoneMatch,
    Known::IfMatch,
    Known::Range,
    Known::IfRange,
]);

impl Rules {
    pub(super) fn compile(passing: &Passing, plan: &Plan<'_, '_>) -> Self {
        let mut rules = Self {
            method: passing.method.get().map(|m| plan.template(m)),
            version: match passing.http_version.or(HttpVersion::Http11) {
                HttpVersion::Http10 => b" HTTP/1.0\r\n",
                HttpVersion::Http11 | HttpVersion::Http2 => b" HTTP/1.1\r\n",
            },
            http10: passing.http_version.or(HttpVersion::Http11) == HttpVersion::Http10,
            host: None,
            set: vec![],
            own_length: true,
            own_coding: true,
            own_modified_since: true,
            own_none_match: true,
            dropped: KnownSet::of(&HOP),
            dropped_names: vec![],
            pass_headers: passing.common.pass_request_headers.or(true),
            body: passing.set_body.get().map(|b| plan.template(b)),
        };
        for (name, value) in &passing.set_headers {
            let known = Known::of(name);
            match known {
                Known::Other => rules.dropped_names.push(name.to_ascii_lowercase().into()),
                _ => rules.dropped.insert(known),
            }
            match known {
                Known::ContentLength => rules.own_length = false,
                Known::TransferEncoding => rules.own_coding = false,
                Known::IfModifiedSince => rules.own_modified_since = false,
                Known::IfNoneMatch => rules.own_none_match = false,
                _ => {}
            }
            let template = plan.template(value);
            if known == Known::Host {
                rules.host = Some(template);
            } else if template.as_literal() != Some(b"") {
                rules.set.push(([name, &b": "[..]].concat().into(), template));
            }
        }
        rules
    }

    pub(super) fn replaces_body(&self) -> bool {
        self.body.is_some()
    }

    /// Appends head and replaced body.
    pub(super) fn write(
        &self,
        x: &Exchange,
        way: Way<'_>,
        length: RequestLength,
        out: &mut Vec<u8>,
    ) -> Result<Written, u16> {
        let method = out.len();
        self.write_method(x, out);
        let to_head = out[method..].eq_ignore_ascii_case(b"HEAD");
        out.push(b' ');
        let start = out.len();
        write_uri(x, way, out);
        let uri = start..out.len();
        if uri.is_empty() {
            x.log(Level::Error, "zero length URI to proxy");
            return Err(500);
        }
        out.extend_from_slice(self.version);
        self.write_host(x, way.host, out);
        for (name, value) in &self.set {
            let before = out.len();
            out.extend_from_slice(name);
            let empty = out.len();
            value.append(x, out);
            if out.len() == empty {
                // A header without a value is not sent at all.
                out.truncate(before);
            } else {
                unbreak(&mut out[empty..]);
                out.extend_from_slice(b"\r\n");
            }
        }
        let body = self.body.as_ref().map(|body| body.value(x));
        let length = match &body {
            Some(body) => RequestLength::Known(body.len() as u64),
            None => length,
        };
        match length {
            RequestLength::None => {}
            RequestLength::Known(length) if self.own_length => {
                out.extend_from_slice(b"Content-Length: ");
                out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
                out.extend_from_slice(b"\r\n");
            }
            RequestLength::Chunked if self.own_coding => {
                out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
            }
            RequestLength::Known(_) | RequestLength::Chunked => {}
        }
        if x.is_cacheable() {
            self.write_conditions(x, out);
        }
        if self.pass_headers {
            self.write_client_headers(x, out);
        }
        out.extend_from_slice(b"\r\n");
        if let Some(body) = &body {
            out.extend_from_slice(body);
        }
        Ok(Written { uri, to_head })
    }

    #[inline]
    pub(super) fn write_method(&self, x: &Exchange, out: &mut Vec<u8>) {
        match &self.method {
            _ if x.converts_head() => out.extend_from_slice(b"GET"),
            Some(method) => {
                let start = out.len();
                method.append(x, out);
                escape_breaks(start, out);
            }
            None => out.extend_from_slice(x.method_name()),
        }
    }

    fn write_host(&self, x: &Exchange, default: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(b"Host: ");
        let empty = out.len();
        match &self.host {
            Some(host) => {
                host.append(x, out);
                unbreak(&mut out[empty..]);
            }
            None => out.extend_from_slice(default),
        }
        if out.len() == empty {
            if self.http10 {
                out.truncate(empty - b"Host: ".len());
                return;
            }
            // HTTP/1.1 cannot do without.
            out.extend_from_slice(default);
        }
        out.extend_from_slice(b"\r\n");
    }

    /// What the cache has already need not be sent again.
    fn write_conditions(&self, x: &Exchange, out: &mut Vec<u8>) {
        if let Some(time) = x.cache_last_modified().filter(|_| self.own_modified_since) {
            out.extend_from_slice(b"If-Modified-Since: ");
            out.extend_from_slice(date::http(time).as_ref());
            out.extend_from_slice(b"\r\n");
        }
        if let Some(etag) = x.cache_etag().filter(|_| self.own_none_match) {
            out.extend_from_slice(b"If-None-Match: ");
            out.extend_from_slice(etag);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Whether a header of the client goes on.
    #[inline]
    pub(super) fn passes(&self, x: &Exchange, field: &Field) -> bool {
        let stays = self.dropped.has(field.known)
            || CONDITIONS.has(field.known) && x.is_cacheable()
            || field.known == Known::Other && {
                let name = x.head.get(field.name);
                self.dropped_names.iter().any(|dropped| dropped.eq_ignore_ascii_case(name))
            };
        !stays
    }

    fn write_client_headers(&self, x: &Exchange, out: &mut Vec<u8>) {
        for field in x.head.fields() {
            if !self.passes(x, field) {
                continue;
            }
            match x.head.line(field) {
                Some(line) => out.extend_from_slice(line),
                None => {
                    out.extend_from_slice(x.head.get(field.name));
                    out.extend_from_slice(b": ");
                    out.extend_from_slice(x.head.get(field.value));
                    out.extend_from_slice(b"\r\n");
                }
            }
        }
    }
}

/// The URI: as the client sent it where nothing was said of one and nothing was rewritten, else the location's prefix
/// replaced.
#[inline]
pub(super) fn write_uri(x: &Exchange, way: Way<'_>, out: &mut Vec<u8>) {
    if way.uri.is_empty() && !x.uri_changed && x.head.has_valid_unparsed_uri() {
        out.extend_from_slice(x.head.unparsed_uri());
        return;
    }
    let start = out.len();
    if way.computed && !way.uri.is_empty() {
        out.extend_from_slice(way.uri);
        escape_breaks(start, out);
        return;
    }
    let mut rest = &x.uri[..];
    if !way.uri.is_empty() && x.valid_location {
        out.extend_from_slice(way.uri);
        rest = x.uri.get(x.location().name().len().min(x.uri.len())..).unwrap_or_default();
    }
    if x.internal || x.head.is_quoted() {
        escape(rest, Escape::Uri, out);
    } else {
        out.extend_from_slice(rest);
    }
    if !x.args.is_empty() {
        out.push(b'?');
        out.extend_from_slice(&x.args);
    }
    if x.uri_changed {
        escape_breaks(start, out);
    }
}

/// Escapes what would end the request line, where variables have brought it.
fn escape_breaks(start: usize, out: &mut Vec<u8>) {
    if needs_escape(&out[start..], Escape::Line) {
        let broken = out.split_off(start);
        escape(&broken, Escape::Line, out);
    }
}

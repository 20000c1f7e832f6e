//! The head of a request, as nginx reads it.

use std::borrow::Cow;

use super::fields::{BadLine, Field, Fields, LONGEST, Line, PADDING, Rules, Scan, Span, accessors, ordinary};
use super::known::{Known, KnownSet};
use super::limits::Room;
use super::request_line::{BadRequestLine, RequestLine};
use super::{host, uri};

pub use super::limits::Limits;

/// A method that nginx tells from others; the name as sent is in the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Mkcol,
    Copy,
    Move,
    Options,
    Propfind,
    Proppatch,
    Lock,
    Unlock,
    Patch,
    Trace,
    Connect,
    #[default]
    Other,
}

impl Method {
    /// Methods are case-sensitive.
    pub fn of(name: &[u8]) -> Self {
        match name {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"MKCOL" => Self::Mkcol,
            b"COPY" => Self::Copy,
            b"MOVE" => Self::Move,
            b"OPTIONS" => Self::Options,
            b"PROPFIND" => Self::Propfind,
            b"PROPPATCH" => Self::Proppatch,
            b"LOCK" => Self::Lock,
            b"UNLOCK" => Self::Unlock,
            b"PATCH" => Self::Patch,
            b"TRACE" => Self::Trace,
            b"CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }
}

/// 1000 times the major plus the minor version, so that versions compare; nginx takes any HTTP/1.x up to 1.999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u16);

impl Version {
    /// A request line without a version, answered without a head.
    pub const HTTP_09: Self = Self(9);
    /// HTTP/1.0.
    pub const HTTP_10: Self = Self(1000);
    /// HTTP/1.1.
    pub const HTTP_11: Self = Self(1001);
    /// Its heads come by [`Head::assemble`].
    pub const HTTP_20: Self = Self(2000);
}

/// What the `Connection` headers ask for; the last one that says either decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Persistence {
    /// As the version has it.
    #[default]
    Unsaid,
    /// `close` was among it.
    Close,
    /// `keep-alive` was among it.
    KeepAlive,
}

/// A request that ends here: answer `status` and close the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// 400, 405, 414, 494, 501 or 505; 494 is shown to the client as 400.
    pub status: u16,
    /// nginx's line for the error log, level `info`, without the context that follows it.
    pub message: Cow<'static, [u8]>,
}

impl Reject {
    pub(crate) fn new(status: u16, message: &'static str) -> Self {
        Self { status, message: Cow::Borrowed(message.as_bytes()) }
    }

    pub(crate) fn quoting(status: u16, parts: &[&[u8]]) -> Self {
        Self { status, message: Cow::Owned(parts.concat()) }
    }
}

/// What comes without lines: the head of a request over HTTP/2.
pub(crate) struct Assembled<'a> {
    pub(crate) method: &'a [u8],
    /// Path and arguments.
    pub(crate) path: &'a [u8],
    pub(crate) authority: Option<&'a [u8]>,
    /// All cookies in one.
    pub(crate) cookie: Option<Vec<u8>>,
    /// A body follows, which tells itself where it ends.
    pub(crate) streams: bool,
}

/// How far a parse came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// All of the input is taken; more is needed.
    Partial,
    /// The head is complete; this many bytes of the input belonged to it, the rest is body or the next request.
    Complete(usize),
}

/// Headers that a request may have once, a second one being a 400, and `Connection`.
static JUDGED: KnownSet = KnownSet::of(&[
    Known::Connection,
    Known::Host,
    Known::IfModifiedSince,
    Known::IfUnmodifiedSince,
    Known::IfMatch,
    Known::IfNoneMatch,
    Known::ContentLength,
    Known::ContentRange,
    Known::IfRange,
    Known::TransferEncoding,
    Known::Expect,
    Known::Authorization,
    Known::ProxyAuthorization,
]);

/// Bytes that most heads without lines do not exceed.
const USUAL: usize = 512;

/// How many bytes are taken over at once: a head fits, and little of a body is copied in vain.
const GULP: usize = 4096;

/// The head of one request: what was received, and where in it everything is.
///
/// Made once a connection and reset between requests; it keeps its buffers.
/// After a `Reject` it holds what was understood until then, for the log.
#[derive(Clone, Debug, Default)]
pub struct Head {
    raw: Vec<u8>,
    /// What is not in `raw` as it is meant: a normalised path, a lower-cased host.
    own: Vec<u8>,
    fields: Fields,
    ignored: Vec<Span>,
    /// The host of an earlier request that needed no lower-casing, and what was found of it: clients repeat theirs.
    last_host: Vec<u8>,
    last_place: (usize, u16),
    now: Now,
}

/// What a reset clears.
#[derive(Clone, Copy, Debug)]
struct Now {
    line: RequestLine,
    scan: Scan,
    room: Room,
    line_done: bool,
    whole: bool,
    method: Method,
    version: Version,
    path: Span,
    args: Span,
    host: Span,
    port: u16,
    persistence: Persistence,
    content_length: Option<u64>,
    chunked: bool,
    streams: bool,
}

impl Default for Now {
    fn default() -> Self {
        Self {
            line: RequestLine::default(),
            scan: Scan::default(),
            room: Room::default(),
            line_done: false,
            whole: false,
            method: Method::Other,
            version: Version::HTTP_10,
            path: Span::default(),
            args: Span::default(),
            host: Span::default(),
            port: 0,
            persistence: Persistence::Unsaid,
            content_length: None,
            chunked: false,
            streams: false,
        }
    }
}

impl Head {
    /// Without any buffer yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the request; buffers of an ordinary size stay.
    pub fn reset(&mut self) {
        const KEPT: usize = 8192;
        self.now = Now::default();
        self.raw.clear();
        self.raw.shrink_to(KEPT);
        self.own.clear();
        self.own.shrink_to(KEPT);
        self.fields.clear();
        self.ignored.clear();
    }

    /// Takes what the connection gave. Bytes are looked at once, however they are cut; `limits` must stay the same until `reset`.
    ///
    /// # Errors
    /// `Reject` at the first byte that makes the request unacceptable; call `reset` before the next parse.
    pub fn parse(&mut self, input: &[u8], limits: &Limits) -> Result<Parsed, Reject> {
        let mut taken = 0;
        if self.raw.is_empty() {
            // Blank lines before a request line are passed over.
            taken = input.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(input.len());
            self.now.room.open(taken, limits);
        }
        loop {
            let rest = input.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(Parsed::Partial);
            }
            let gulp = rest.len().min(GULP);
            let before = self.raw.len();
            if before + gulp > LONGEST {
                return Err(Reject::new(494, "client sent too large request"));
            }
            self.raw.extend_from_slice(&rest[..gulp]);
            let received = self.raw.len();
            self.raw.extend_from_slice(&[0; PADDING]);
            let end = self.advance(received, limits);
            self.raw.truncate(if let Ok(Some(end)) = end { end } else { received });
            if let Some(end) = end? {
                return Ok(Parsed::Complete(taken + end - before));
            }
            taken += gulp;
        }
    }

    /// Takes a head that came in another form, as if it had come in lines.
    ///
    /// # Errors
    /// As of [`Head::parse`].
    pub(crate) fn assemble<'a>(
        &mut self,
        parts: &'a Assembled<'_>,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        limits: &Limits,
    ) -> Result<(), Reject> {
        self.raw.reserve(USUAL);
        for part in [parts.method, b" ", parts.path, b" HTTP/2.0\r\n"] {
            self.raw.extend_from_slice(part);
        }
        self.now.line = RequestLine::of_parts(parts.method.len(), parts.path.len());
        (self.now.line_done, self.now.version) = (true, Version::HTTP_20);
        self.now.method = Method::of(parts.method);
        if !parts.method.iter().all(|byte| byte.is_ascii_uppercase() || matches!(byte, b'_' | b'-')) {
            let message: [&[u8]; 3] = [b"client sent invalid method: \"", parts.method, b"\""];
            return Err(self.without_line(Reject::quoting(400, &message)));
        }
        if !self.now.line.scan_uri(&self.raw) || self.place_uri(limits).is_err() {
            let message: [&[u8]; 3] = [b"client sent invalid :path header: \"", parts.path, b"\""];
            return Err(self.without_line(Reject::quoting(400, &message)));
        }
        if !self.name_host(parts.authority) {
            return Err(self.without_line(Reject::new(400, "client sent invalid \":authority\" header")));
        }
        self.now.scan = Scan::at(self.raw.len());
        let mut wrong = None;
        let cookie = parts.cookie.as_deref().map(|cookie| (&b"cookie"[..], cookie));
        for (name, value) in fields.chain(cookie) {
            wrong = wrong.or(self.put(name, value, limits).err());
        }
        let host = self.first(Known::Host);
        if let (Some(host), Some(authority)) = (host, parts.authority)
            && host != authority
        {
            let message = "client sent \":authority\" and \"Host\" headers with different values";
            wrong = wrong.or(Some(Reject::new(400, message)));
        }
        if let (None, Some(authority)) = (host, parts.authority) {
            wrong = wrong.or(self.put(b"host", authority, limits).err());
        }
        self.raw.extend_from_slice(b"\r\n");
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        self.now.whole = true;
        self.judge()?;
        (self.now.streams, self.now.chunked) =
            (parts.streams, parts.streams && self.now.content_length.is_none());
        match self.now.content_length {
            Some(1..) if !parts.streams => Err(Reject::new(400, "client prematurely closed stream")),
            Some(_) | None => Ok(()),
        }
    }

    /// As [`Head::assemble`] where there is no line: only the host that was named, if any, is known.
    pub(crate) fn assemble_nothing(&mut self, authority: Option<&[u8]>) {
        self.now.version = Version::HTTP_20;
        self.name_host(authority);
    }

    /// Whether the host that a request names beside its fields, if it does, may be one; it is the request's then.
    fn name_host(&mut self, authority: Option<&[u8]>) -> bool {
        let Some(authority) = authority else { return true };
        let Ok(host) = host::validate_host(authority) else { return false };
        let from = self.own.len();
        self.own.extend(authority[..host.len].iter().map(u8::to_ascii_lowercase));
        (self.now.host, self.now.port) = (Span::own(from, self.own.len()), host.port);
        true
    }

    /// Whether a body comes in a stream of its own, which tells where it ends.
    pub(crate) fn streams(&self) -> bool {
        self.now.streams
    }

    /// A field as if it had come in a line, with the spaces around its value.
    fn put(&mut self, name: &[u8], value: &[u8], limits: &Limits) -> Result<(), Reject> {
        let start = self.raw.len();
        self.raw.reserve(name.len() + value.len() + 4);
        for part in [name, b": ", value, b"\r\n"] {
            self.raw.extend_from_slice(part);
        }
        let (name_end, value_end) = (start + name.len(), self.raw.len() - 2);
        let plain = |byte: &u8| {
            byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'_' && limits.underscores_in_headers
        };
        if limits.ignore_invalid_headers && !name.iter().all(plain) {
            self.ignored.push(Span::raw(start, value_end));
            return Ok(());
        }
        self.field(Field::of_line(start, name_end, value_end, Known::of(name)), limits)
    }

    /// As in nginx, there is no request line where something in its place was wrong.
    fn without_line(&mut self, reject: Reject) -> Reject {
        (self.now.line, self.now.line_done) = (RequestLine::default(), false);
        self.raw.clear();
        reject
    }

    /// The offset behind the head, once it is complete; `raw` holds what was received and padding behind it.
    fn advance(&mut self, received: usize, limits: &Limits) -> Result<Option<usize>, Reject> {
        if !self.now.line_done {
            let known_method = self.now.line.method_is_over();
            let done = self.now.line.run(self.raw.get(..received).unwrap_or_default());
            if !known_method && self.now.line.method_is_over() {
                self.now.method = Method::of(self.raw.get(..self.now.line.method_end).unwrap_or_default());
            }
            match done {
                Ok(done) => {
                    if self.now.line.pos == 0 {
                        return Ok(None);
                    }
                    if !self.now.room.take(self.now.line.pos, done, limits) {
                        return Err(self.too_long());
                    }
                    if !done {
                        return Ok(None);
                    }
                }
                Err(bad) => {
                    // What does not fit is never looked at.
                    let complete = bad == BadRequestLine::Http09Method;
                    if !self.now.room.take(self.now.line.pos, complete, limits) {
                        return Err(self.too_long());
                    }
                    return Err(self.bad_line(bad));
                }
            }
            self.now.line_done = true;
            self.now.version = Version(self.now.line.version());
            self.place_uri(limits)?;
            if self.now.version < Version::HTTP_10 {
                return Ok(Some(self.now.line.pos));
            }
            self.now.scan = Scan::at(self.now.line.pos);
        }
        let rules = Rules { underscores: limits.underscores_in_headers, skip_status_lines: false };
        loop {
            if self.now.scan.at_line() {
                while let Some((field, next)) = ordinary(&self.raw, self.now.scan.pos) {
                    if !self.now.room.take(next - self.now.scan.pos, true, limits) {
                        self.now.scan = Scan::at(self.now.scan.pos);
                        return Err(self.too_large());
                    }
                    self.now.scan.pos = next;
                    self.field(field, limits)?;
                }
                if self.now.scan.at_end(&self.raw) {
                    self.now.scan.pos += 2;
                    return self.end(2, limits).map(Some);
                }
            }
            let line = match self.now.scan.next(self.raw.get(..received).unwrap_or_default(), rules) {
                Ok(line) => line,
                Err(_) if !self.now.room.take(self.now.scan.pos - self.now.scan.line, false, limits) => {
                    return Err(self.too_large());
                }
                Err(bad) => return Err(self.bad_field(bad)),
            };
            match line {
                Line::Field { field, odd } => {
                    if !self.now.room.take(self.now.scan.pos - self.now.scan.line, true, limits) {
                        self.now.scan = Scan::at(self.now.scan.line);
                        return Err(self.too_large());
                    }
                    if odd && limits.ignore_invalid_headers {
                        self.ignored.push(Span::raw(self.now.scan.line, self.now.scan.value_end()));
                    } else {
                        self.field(field, limits)?;
                    }
                }
                Line::End => return self.end(self.now.scan.pos - self.now.scan.line, limits).map(Some),
                Line::Partial => {
                    if !self.now.room.take(self.now.scan.pos - self.now.scan.line, false, limits) {
                        return Err(self.too_large());
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// The head is complete with the empty line of that length: judges it, and tells where it ends.
    fn end(&mut self, line: usize, limits: &Limits) -> Result<usize, Reject> {
        if !self.now.room.take(line, true, limits) {
            return Err(self.too_large());
        }
        self.now.whole = true;
        self.judge()?;
        Ok(self.now.scan.pos)
    }

    fn place_uri(&mut self, limits: &Limits) -> Result<(), Reject> {
        let line = &self.now.line;
        let scan = line.uri;
        let path_end = scan.args.map_or(line.uri_end, |args| args - 1);
        if scan.needs_work() || line.empty_path {
            let written = self.raw.get(line.uri_start..line.uri_end).unwrap_or_default();
            if line.empty_path {
                self.own.push(b'/');
            }
            let normal = uri::normalize(written, limits.merge_slashes, &mut self.own)
                .map_err(|uri::BadUri| Reject::new(400, "client sent invalid request"))?;
            self.now.path = Span::own(0, normal.path_end);
            self.now.args = normal.args.map_or(Span::default(), |(start, end)| {
                Span::raw(line.uri_start + start, line.uri_start + end)
            });
        } else {
            self.now.path = Span::raw(line.uri_start, path_end);
            self.now.args = scan.args.map_or(Span::default(), |args| Span::raw(args, line.uri_end));
        }
        if let Some((start, end)) = line.host {
            (self.now.host, self.now.port) = host::place(&self.raw, start, end, &mut self.own)
                .map_err(|host::BadHost| Reject::new(400, "client sent invalid host in request line"))?;
        }
        Ok(())
    }

    #[inline(always)]
    fn field(&mut self, field: Field, limits: &Limits) -> Result<(), Reject> {
        if self.fields.list.len() >= limits.max_headers {
            return Err(Reject::new(494, "client sent too many header lines"));
        }
        let is_first = self.fields.push(field);
        if JUDGED.has(field.known) { self.judge_field(field, is_first) } else { Ok(()) }
    }

    #[inline(never)]
    fn judge_field(&mut self, field: Field, is_first: bool) -> Result<(), Reject> {
        if field.known == Known::Connection {
            self.connection_field(field.value);
        } else if !is_first {
            return Err(self.duplicate(field));
        } else if field.known == Known::Host {
            return self.host_field(field.value);
        }
        Ok(())
    }

    fn host_field(&mut self, value: Span) -> Result<(), Reject> {
        let start = value.start();
        let text = self.raw.get(start..start + value.len()).unwrap_or_default();
        let (host, port) = if !text.is_empty() && text == self.last_host {
            (Span::raw(start, start + self.last_place.0), self.last_place.1)
        } else {
            let (host, port) = host::place(&self.raw, start, start + value.len(), &mut self.own)
                .map_err(|host::BadHost| Reject::new(400, "client sent invalid host header"))?;
            self.last_host.clear();
            if !host.is_own() && text.len() <= 255 {
                self.last_host.extend_from_slice(text);
                self.last_place = (host.len(), port);
            }
            (host, port)
        };
        // The host of an absolute form wins (RFC 9112 section 3.2.2).
        if self.now.host.is_empty() {
            (self.now.host, self.now.port) = (host, port);
        }
        Ok(())
    }

    fn connection_field(&mut self, value: Span) {
        let value = self.get(value);
        if value.eq_ignore_ascii_case(b"keep-alive") {
            self.now.persistence = Persistence::KeepAlive;
        } else if holds(value, b"close") {
            self.now.persistence = Persistence::Close;
        } else if holds(value, b"keep-alive") {
            self.now.persistence = Persistence::KeepAlive;
        }
    }

    /// What can only be said of the head as a whole.
    fn judge(&mut self) -> Result<(), Reject> {
        if !self.fields.has(Known::Host) && self.now.version > Version::HTTP_10 {
            return Err(Reject::new(
                400,
                if self.now.version == Version::HTTP_20 {
                    "client sent neither \":authority\" nor \"Host\" header"
                } else {
                    "client sent HTTP/1.1 request without \"Host\" header"
                },
            ));
        }
        if let Some(length) = self.first(Known::ContentLength) {
            let length = decimal(length)
                .ok_or_else(|| Reject::new(400, "client sent invalid \"Content-Length\" header"))?;
            self.now.content_length = Some(length);
        }
        if let Some(coding) = self.first(Known::TransferEncoding) {
            if self.now.version < Version::HTTP_11 {
                return Err(Reject::new(
                    400,
                    "client sent HTTP/1.0 request with \"Transfer-Encoding\" header",
                ));
            }
            if !coding.eq_ignore_ascii_case(b"chunked") {
                let parts: [&[u8]; 3] = [b"client sent unknown \"Transfer-Encoding\": \"", coding, b"\""];
                return Err(Reject::quoting(501, &parts));
            }
            if self.now.content_length.is_some() {
                return Err(Reject::new(
                    400,
                    "client sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time",
                ));
            }
            self.now.chunked = true;
        }
        if self.now.method == Method::Trace {
            return Err(Reject::new(405, "client sent TRACE method"));
        }
        Ok(())
    }

    /// Whether it came to its empty line, be what stands before that wrong.
    pub fn is_whole(&self) -> bool {
        self.now.whole
    }

    /// What was done when the request came no further, as the log tells it.
    pub fn reading(&self) -> &'static str {
        // A line whose URI is none is done, but no header line is looked for behind it. HTTP/2 has no line.
        if self.now.scan.pos > 0 || self.now.version == Version::HTTP_20 {
            "reading client request headers"
        } else {
            "reading client request line"
        }
    }

    /// What is wrong with a CONNECT, which its server has to allow.
    ///
    /// # Errors
    /// It is not allowed, or has a body.
    pub fn judge_connect(&self, allowed: bool) -> Result<(), Reject> {
        if self.now.method != Method::Connect {
            return Ok(());
        }
        if self.now.version != Version::HTTP_11 || !allowed {
            return Err(Reject::new(405, "client sent CONNECT method"));
        }
        if self.now.content_length.is_some_and(|length| length > 0) || self.now.chunked {
            return Err(Reject::new(400, "client sent CONNECT request with body"));
        }
        Ok(())
    }

    #[cold]
    fn bad_line(&mut self, bad: BadRequestLine) -> Reject {
        match bad {
            BadRequestLine::Method => Reject::new(400, "client sent invalid method"),
            BadRequestLine::Request => Reject::new(400, "client sent invalid request"),
            BadRequestLine::Version => Reject::new(505, "client sent invalid version"),
            BadRequestLine::Http09Method => {
                // The answer goes out as the request came: without a head.
                self.now.version = Version::HTTP_09;
                Reject::new(400, "client sent invalid method in HTTP/0.9 request")
            }
        }
    }

    #[cold]
    fn bad_field(&self, bad: BadLine) -> Reject {
        let shown = self.raw.get(self.now.scan.line..bad.end).unwrap_or_default();
        let byte = format!("\\x{:02x}...\"", self.raw.get(bad.end).copied().unwrap_or_default());
        Reject::quoting(400, &[b"client sent invalid header line: \"", shown, byte.as_bytes()])
    }

    #[cold]
    fn duplicate(&self, field: Field) -> Reject {
        let previous = self.fields.first(field.known).copied().unwrap_or_default();
        let what: &[u8] = if field.known == Known::Host { b"host header" } else { b"header line" };
        Reject::quoting(
            400,
            &[
                b"client sent duplicate ",
                what,
                b": \"",
                self.get(field.name),
                b": ",
                self.get(field.value),
                b"\", previous value: \"",
                self.get(previous.name),
                b": ",
                self.get(previous.value),
                b"\"",
            ],
        )
    }

    /// Of a line that does not fit, what has filled the last buffer is all that is known.
    #[cold]
    fn too_long(&mut self) -> Reject {
        self.now.line = RequestLine::cut(self.now.room.left());
        Reject::new(414, "client sent too long URI")
    }

    #[cold]
    fn too_large(&self) -> Reject {
        /// What nginx's log line of 2048 bytes leaves for the quoted header.
        const SHOWN: usize = 2048 - 300;
        let line = self.raw.get(self.now.scan.line..).unwrap_or_default();
        let left = self.now.room.left();
        if left == 0 || line.is_empty() {
            Reject::new(494, "client sent too large request")
        } else {
            let shown = &line[..line.len().min(left).min(SHOWN)];
            Reject::quoting(494, &[b"client sent too long header line: \"", shown, b"...\""])
        }
    }

    /// The text of a span of this head.
    #[inline]
    pub fn get(&self, span: Span) -> &[u8] {
        span.of(&self.raw, &self.own)
    }

    /// How much of a body nginx would have read with it, into the buffer of its last line; nothing over HTTP/2.
    pub(crate) fn room_behind(&self) -> usize {
        if self.now.version == Version::HTTP_20 { 0 } else { self.now.room.left() }
    }

    /// The head as received, without blank lines before it.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Whether no byte of a request line has come yet, blank lines aside.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// Whether the request line is complete, so that path, arguments and version can be asked for.
    pub fn has_line(&self) -> bool {
        self.now.line_done
    }

    /// How much of it came in whole lines: what `$request_length` starts with.
    pub fn read_length(&self) -> usize {
        match (self.now.line_done, self.now.scan.pos) {
            (false, _) => 0,
            (true, 0) => self.now.line.pos,
            (true, _) => self.now.scan.done(),
        }
    }

    /// As sent; of an unfinished or refused request line, what came of it.
    pub fn request_line(&self) -> &[u8] {
        if self.now.line_done || self.now.line.end > 0 {
            return self.raw.get(..self.now.line.end.min(self.raw.len())).unwrap_or_default();
        }
        let end = memchr::memchr2(b'\r', b'\n', &self.raw).unwrap_or(self.raw.len());
        &self.raw[..end]
    }

    /// Which method.
    pub fn method(&self) -> Method {
        self.now.method
    }

    /// As sent; empty before the request line is complete.
    pub fn method_name(&self) -> &[u8] {
        let end = if self.now.line_done { self.now.line.method_end } else { 0 };
        self.raw.get(..end).unwrap_or_default()
    }

    /// 1.0 until the request line is complete.
    pub fn version(&self) -> Version {
        self.now.version
    }

    /// As sent (`$server_protocol`), empty before the request line is complete; `None` where it has none, as for HTTP/0.9.
    pub fn protocol(&self) -> Option<&[u8]> {
        if self.now.version == Version::HTTP_20 {
            return Some(b"HTTP/2.0");
        }
        let start = self.now.line.protocol?;
        let end = if self.now.line_done { self.now.line.end } else { start };
        self.raw.get(start..end)
    }

    /// Decoded and normalised (`$uri`); never empty once the request line is complete.
    pub fn path(&self) -> &[u8] {
        self.get(self.now.path)
    }

    /// Without `?`.
    pub fn args(&self) -> &[u8] {
        self.get(self.now.args)
    }

    /// As sent, arguments included (`$request_uri`); `/` for CONNECT and for an absolute form that ends with its host. Empty
    /// where there is no path.
    pub fn unparsed_uri(&self) -> &[u8] {
        if self.now.path.is_empty() {
            return &[];
        }
        self.raw.get(self.now.line.uri_start..self.now.line.uri_end).unwrap_or_default()
    }

    /// Whether `unparsed_uri` starts with a path, so that it may be sent on as it is.
    pub fn has_valid_unparsed_uri(&self) -> bool {
        !self.now.line.empty_path
    }

    /// Whether the path needed decoding or normalising, or holds a `+`: where it must be escaped again before it is sent on.
    pub fn is_quoted(&self) -> bool {
        self.now.line.uri.quoted || self.now.line.uri.complex || self.now.line.uri.plus
    }

    /// Whether the path was sent with `%XX` or `+` in it: only then are captures of a `rewrite` escaped.
    pub fn has_escapes(&self) -> bool {
        self.now.line.uri.quoted || self.now.line.uri.plus
    }

    /// What stands before `://` in an absolute form.
    pub fn scheme(&self) -> &[u8] {
        self.now.line.scheme.and_then(|(start, end)| self.raw.get(start..end)).unwrap_or_default()
    }

    /// The host asked for, by the request line or else by `Host`: lower case, without port and trailing dot; empty if there is none.
    pub fn host(&self) -> &[u8] {
        self.get(self.now.host)
    }

    /// The port behind that host, 0 if none.
    pub fn port(&self) -> u16 {
        self.now.port
    }

    /// Lines left out for their names, up to the end of their values; nginx logs each at level `info` as
    /// `client sent invalid header line: "…"`.
    pub fn ignored(&self) -> impl Iterator<Item = &[u8]> {
        self.ignored.iter().map(|span| self.get(*span))
    }

    /// The body has this many bytes, if it says so; never together with `is_chunked`.
    pub fn content_length(&self) -> Option<u64> {
        self.now.content_length
    }

    /// The body comes in chunks, or over HTTP/2 without its length being told.
    pub fn is_chunked(&self) -> bool {
        self.now.chunked
    }

    /// What `Connection` says.
    pub fn persistence(&self) -> Persistence {
        self.now.persistence
    }

    /// Whether the client expects the connection to stay open.
    pub fn keeps_alive(&self) -> bool {
        match self.now.persistence {
            Persistence::Unsaid => self.now.version > Version::HTTP_10,
            Persistence::Close => false,
            Persistence::KeepAlive => true,
        }
    }
}

accessors!(Head);

/// Digits only and below 2^63, as both nginx and RFC 9110 section 8.6 want a length.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, digit| {
        let digit = u64::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
        number.checked_mul(10)?.checked_add(digit).filter(|number| *number <= i64::MAX as u64)
    })
}

/// Whether a lower-case word is anywhere in `value`, in any case: how nginx looks into `Connection`.
pub(crate) fn holds(value: &[u8], word: &[u8]) -> bool {
    value.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word))
}

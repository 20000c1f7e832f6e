//! The head of a request, as nginx reads it.

use std::borrow::Cow;

use super::fields::{BadLine, Field, Fields, LONGEST, Line, Rules, Scan, Span};
use super::known::Known;
use super::request_line::{BadRequestLine, RequestLine};
use super::{host, uri};

/// What the directives of the server allow a head to be. nginx takes them from the default server of the address (or the one that
/// SNI chose), since they are needed before `Host` is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `client_header_buffer_size`, in bytes: what is read into first.
    pub header_buffer: usize,
    /// `large_client_header_buffers`: how many.
    pub large_buffers: usize,
    /// `large_client_header_buffers`: the size of each, in bytes; no line may be longer.
    pub large_buffer: usize,
    /// `max_headers`: header lines, ignored ones not counted.
    pub max_headers: usize,
    /// `merge_slashes`.
    pub merge_slashes: bool,
    /// `ignore_invalid_headers`: lines with odd names are left out rather than passed on.
    pub ignore_invalid_headers: bool,
    /// `underscores_in_headers`: `_` is no odd character.
    pub underscores_in_headers: bool,
    /// `allow_connect`: CONNECT over HTTP/1.1 is not answered with 405.
    pub allow_connect: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_buffer: 1024,
            large_buffers: 4,
            large_buffer: 8192,
            max_headers: 1000,
            merge_slashes: true,
            ignore_invalid_headers: true,
            underscores_in_headers: false,
            allow_connect: false,
        }
    }
}

/// A method that nginx tells from others; the name as sent is in the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
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
    /// HTTP/2, which never comes out of this codec but shares the type.
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
    /// Whether to read on for a while before closing, so that the client sees the answer: it may be in the midst of sending.
    pub linger: bool,
}

impl Reject {
    fn new(status: u16, message: &'static str) -> Self {
        Self { status, message: Cow::Borrowed(message.as_bytes()), linger: false }
    }

    fn quoting(status: u16, parts: &[&[u8]]) -> Self {
        Self { status, message: Cow::Owned(parts.concat()), linger: false }
    }
}

/// How far a parse came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// All of the input is taken; more is needed.
    Partial,
    /// The head is complete; this many bytes of the input belonged to it, the rest is body or the next request.
    Complete(usize),
}

/// Headers that a request may have once; a second one is a 400.
const UNIQUE: u128 = Known::Host.bit()
    | Known::IfModifiedSince.bit()
    | Known::IfUnmodifiedSince.bit()
    | Known::IfMatch.bit()
    | Known::IfNoneMatch.bit()
    | Known::ContentLength.bit()
    | Known::ContentRange.bit()
    | Known::IfRange.bit()
    | Known::TransferEncoding.bit()
    | Known::Expect.bit()
    | Known::Authorization.bit()
    | Known::ProxyAuthorization.bit();

/// How many bytes are taken over at once: a head fits, and little of a body is copied in vain.
const GULP: usize = 4096;

/// The head of one request: what was received, and where in it everything is.
///
/// Made once a connection and reset between requests; it keeps its buffers.
/// After a `Reject` it holds what was understood until then, for the log.
#[derive(Clone, Debug)]
pub struct Head {
    raw: Vec<u8>,
    own: Vec<u8>,
    line: RequestLine,
    scan: Scan,
    room: Room,
    line_done: bool,
    fields: Fields,
    ignored: Vec<Span>,
    counted: usize,
    method: Method,
    version: Version,
    path: Span,
    exten: Span,
    args: Span,
    host: Span,
    port: u16,
    persistence: Persistence,
    content_length: Option<u64>,
    chunked: bool,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            raw: Vec::new(),
            own: Vec::new(),
            line: RequestLine::default(),
            scan: Scan::default(),
            room: Room::default(),
            line_done: false,
            fields: Fields::default(),
            ignored: Vec::new(),
            counted: 0,
            method: Method::Other,
            version: Version::HTTP_10,
            path: Span::default(),
            exten: Span::default(),
            args: Span::default(),
            host: Span::default(),
            port: 0,
            persistence: Persistence::Unsaid,
            content_length: None,
            chunked: false,
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
        let Self { raw, own, fields, ignored, .. } = std::mem::take(self);
        (self.raw, self.own, self.fields, self.ignored) = (raw, own, fields, ignored);
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
            if let Some(end) = self.advance(limits)? {
                self.raw.truncate(end);
                return Ok(Parsed::Complete(taken + end - before));
            }
            taken += gulp;
        }
    }

    /// The offset behind the head, once it is complete.
    fn advance(&mut self, limits: &Limits) -> Result<Option<usize>, Reject> {
        if !self.line_done {
            let known_method = self.line.method_is_over();
            let done = self.line.run(&self.raw);
            if !known_method && self.line.method_is_over() {
                self.method = Method::of(self.raw.get(..self.line.method_end).unwrap_or_default());
            }
            match done {
                Ok(done) => {
                    if self.line.pos == 0 {
                        return Ok(None);
                    }
                    self.room.open(limits);
                    if !self.room.take(self.line.pos, done, limits) {
                        return Err(Reject::new(414, "client sent too long URI"));
                    }
                    if !done {
                        return Ok(None);
                    }
                }
                Err(bad) => return Err(self.bad_line(bad)),
            }
            self.line_done = true;
            self.version = Version(self.line.version());
            self.place_uri(limits)?;
            if self.version < Version::HTTP_10 {
                return Ok(Some(self.line.pos));
            }
            self.scan = Scan::at(self.line.pos);
        }
        let rules = Rules { underscores: limits.underscores_in_headers, skip_status_lines: false };
        loop {
            let line = match self.scan.next(&self.raw, rules) {
                Ok(line) => line,
                Err(bad) => return Err(self.bad_field(bad)),
            };
            match line {
                Line::Field { name, value, odd } => {
                    if !self.room.take(self.scan.pos - self.scan.line, true, limits) {
                        return Err(self.too_large());
                    }
                    self.field(name, value, odd, limits)?;
                }
                Line::End => {
                    if !self.room.take(self.scan.pos - self.scan.line, true, limits) {
                        return Err(self.too_large());
                    }
                    self.judge(limits)?;
                    return Ok(Some(self.scan.pos));
                }
                Line::Partial => {
                    if !self.room.take(self.scan.pos - self.scan.line, false, limits) {
                        return Err(self.too_large());
                    }
                    return Ok(None);
                }
            }
        }
    }

    fn place_uri(&mut self, limits: &Limits) -> Result<(), Reject> {
        let line = &self.line;
        let scan = line.uri;
        let path_end = scan.args.map_or(line.uri_end, |args| args - 1);
        if scan.needs_work() || line.empty_path {
            let written = self.raw.get(line.uri_start..line.uri_end).unwrap_or_default();
            if line.empty_path {
                self.own.push(b'/');
            }
            let normal = uri::normalize(written, limits.merge_slashes, &mut self.own)
                .map_err(|uri::BadUri| Reject::new(400, "client sent invalid request"))?;
            self.path = Span::own(0, normal.path_end);
            self.exten = normal.exten.map_or(Span::default(), |exten| Span::own(exten, normal.path_end));
            self.args = normal.args.map_or(Span::default(), |(start, end)| {
                Span::raw(line.uri_start + start, line.uri_start + end)
            });
        } else {
            self.path = Span::raw(line.uri_start, path_end);
            self.exten = scan.exten.map_or(Span::default(), |exten| Span::raw(exten, path_end));
            self.args = scan.args.map_or(Span::default(), |args| Span::raw(args, line.uri_end));
        }
        if let Some((start, end)) = line.host {
            (self.host, self.port) = host::place(&self.raw, start, end, &mut self.own)
                .map_err(|host::BadHost| Reject::new(400, "client sent invalid host in request line"))?;
        }
        Ok(())
    }

    #[inline]
    fn field(&mut self, name: Span, value: Span, odd: bool, limits: &Limits) -> Result<(), Reject> {
        if odd && limits.ignore_invalid_headers {
            self.ignored.push(Span::raw(self.scan.line, self.scan.value_end()));
            return Ok(());
        }
        if self.counted >= limits.max_headers {
            return Err(Reject { linger: true, ..Reject::new(494, "client sent too many header lines") });
        }
        self.counted += 1;
        let known = if odd { Known::Other } else { Known::of(self.get(name)) };
        let field = Field { name, value, known };
        if UNIQUE & known.bit() != 0
            && let Some(previous) = self.fields.first(known)
        {
            return Err(self.duplicate(field, *previous));
        }
        self.fields.push(field);
        match known {
            Known::Host => self.host_field(value),
            Known::Connection => {
                self.connection_field(value);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn host_field(&mut self, value: Span) -> Result<(), Reject> {
        let start = self.scan.value_start();
        let (host, port) = host::place(&self.raw, start, start + value.len(), &mut self.own)
            .map_err(|host::BadHost| Reject::new(400, "client sent invalid host header"))?;
        // The host of an absolute form wins (RFC 9112 section 3.2.2).
        if self.host.is_empty() {
            (self.host, self.port) = (host, port);
        }
        Ok(())
    }

    fn connection_field(&mut self, value: Span) {
        let value = self.get(value);
        if holds(value, b"close") {
            self.persistence = Persistence::Close;
        } else if holds(value, b"keep-alive") {
            self.persistence = Persistence::KeepAlive;
        }
    }

    /// What can only be said of the head as a whole.
    fn judge(&mut self, limits: &Limits) -> Result<(), Reject> {
        if !self.fields.has(Known::Host) && self.version > Version::HTTP_10 {
            return Err(Reject::new(400, "client sent HTTP/1.1 request without \"Host\" header"));
        }
        if let Some(length) = self.first(Known::ContentLength) {
            let length = decimal(length)
                .ok_or_else(|| Reject::new(400, "client sent invalid \"Content-Length\" header"))?;
            self.content_length = Some(length);
        }
        if let Some(coding) = self.first(Known::TransferEncoding) {
            if self.version < Version::HTTP_11 {
                return Err(Reject::new(
                    400,
                    "client sent HTTP/1.0 request with \"Transfer-Encoding\" header",
                ));
            }
            if !coding.eq_ignore_ascii_case(b"chunked") {
                let parts: [&[u8]; 3] = [b"client sent unknown \"Transfer-Encoding\": \"", coding, b"\""];
                return Err(Reject::quoting(501, &parts));
            }
            if self.content_length.is_some() {
                return Err(Reject::new(
                    400,
                    "client sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time",
                ));
            }
            self.chunked = true;
        }
        if self.method == Method::Connect {
            if self.version != Version::HTTP_11 || !limits.allow_connect {
                return Err(Reject::new(405, "client sent CONNECT method"));
            }
            if self.content_length.is_some_and(|length| length > 0) || self.chunked {
                return Err(Reject::new(400, "client sent CONNECT request with body"));
            }
        }
        if self.method == Method::Trace {
            return Err(Reject::new(405, "client sent TRACE method"));
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
                self.version = Version::HTTP_09;
                Reject::new(400, "client sent invalid method in HTTP/0.9 request")
            }
        }
    }

    #[cold]
    fn bad_field(&self, bad: BadLine) -> Reject {
        let shown = self.raw.get(self.scan.line..bad.end).unwrap_or_default();
        let byte = format!("\\x{:02x}...\"", self.raw.get(bad.end).copied().unwrap_or_default());
        Reject::quoting(400, &[b"client sent invalid header line: \"", shown, byte.as_bytes()])
    }

    #[cold]
    fn duplicate(&self, field: Field, previous: Field) -> Reject {
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

    #[cold]
    fn too_large(&self) -> Reject {
        /// What nginx's log line of 2048 bytes leaves for the quoted header.
        const SHOWN: usize = 2048 - 300;
        let line = self.raw.get(self.scan.line..).unwrap_or_default();
        let reject = if line.is_empty() {
            Reject::new(494, "client sent too large request")
        } else {
            let shown = &line[..line.len().min(self.room.buffer).min(SHOWN)];
            Reject::quoting(494, &[b"client sent too long header line: \"", shown, b"...\""])
        };
        Reject { linger: true, ..reject }
    }

    /// The text of a span of this head.
    #[inline]
    pub fn get(&self, span: Span) -> &[u8] {
        span.of(&self.raw, &self.own)
    }

    /// The head as received, without blank lines before it: its length is what `$request_length` starts with.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Whether no byte of a request line has come yet, blank lines aside.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// Whether the request line is complete, so that path, arguments and version can be asked for.
    pub fn has_line(&self) -> bool {
        self.line_done
    }

    /// As sent; of an unfinished or refused request line, what came of it.
    pub fn request_line(&self) -> &[u8] {
        if self.line_done || self.line.end > 0 {
            return self.raw.get(..self.line.end).unwrap_or_default();
        }
        let end = memchr::memchr2(b'\r', b'\n', &self.raw).unwrap_or(self.raw.len());
        &self.raw[..end]
    }

    /// Which method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// As sent.
    pub fn method_name(&self) -> &[u8] {
        self.raw.get(..self.line.method_end).unwrap_or_default()
    }

    /// 1.0 until the request line is complete.
    pub fn version(&self) -> Version {
        self.version
    }

    /// As sent (`$server_protocol`), empty for HTTP/0.9.
    pub fn protocol(&self) -> &[u8] {
        self.line.protocol.and_then(|start| self.raw.get(start..self.line.end)).unwrap_or_default()
    }

    /// Decoded and normalised (`$uri`); never empty once the request line is complete.
    pub fn path(&self) -> &[u8] {
        self.get(self.path)
    }

    /// What follows the last dot of the last segment of the path.
    pub fn exten(&self) -> &[u8] {
        self.get(self.exten)
    }

    /// Without `?`.
    pub fn args(&self) -> &[u8] {
        self.get(self.args)
    }

    /// As sent, arguments included (`$request_uri`); `/` for CONNECT and for an absolute form that ends with its host.
    pub fn unparsed_uri(&self) -> &[u8] {
        self.raw.get(self.line.uri_start..self.line.uri_end).unwrap_or_default()
    }

    /// Whether `unparsed_uri` starts with a path, so that it may be sent on as it is.
    pub fn has_valid_unparsed_uri(&self) -> bool {
        !self.line.empty_path
    }

    /// Whether the path needed decoding or normalising, or holds a `+`: where it must be escaped again before it is sent on.
    pub fn is_quoted(&self) -> bool {
        self.line.uri.quoted || self.line.uri.complex || self.line.uri.plus
    }

    /// Whether the path was sent with `%XX` or `+` in it: only then are captures of a `rewrite` escaped.
    pub fn has_escapes(&self) -> bool {
        self.line.uri.quoted || self.line.uri.plus
    }

    /// What stands before `://` in an absolute form.
    pub fn scheme(&self) -> &[u8] {
        self.line.scheme.and_then(|(start, end)| self.raw.get(start..end)).unwrap_or_default()
    }

    /// The host asked for, by the request line or else by `Host`: lower case, without port and trailing dot; empty if there is none.
    pub fn host(&self) -> &[u8] {
        self.get(self.host)
    }

    /// The port behind that host, 0 if none.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// In the order received, without ignored ones.
    pub fn fields(&self) -> &[Field] {
        &self.fields.list
    }

    /// Whether there is such a header.
    pub fn has(&self, known: Known) -> bool {
        self.fields.has(known)
    }

    /// The value of the first such header.
    pub fn first(&self, known: Known) -> Option<&[u8]> {
        self.fields.first(known).map(|field| self.get(field.value))
    }

    /// The values of all such headers.
    pub fn all(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        let fields = if self.has(known) { self.fields() } else { &[] };
        fields.iter().filter(move |field| field.known == known).map(|field| self.get(field.value))
    }

    /// The value of the first header of a name that need not be known, in any case.
    pub fn named<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.fields()
            .iter()
            .filter(|field| self.get(field.name).eq_ignore_ascii_case(name))
            .map(|field| self.get(field.value))
    }

    /// Lines left out for their names, up to the end of their values; nginx logs each at level `info` as
    /// `client sent invalid header line: "…"`.
    pub fn ignored(&self) -> impl Iterator<Item = &[u8]> {
        self.ignored.iter().map(|span| self.get(*span))
    }

    /// The body has this many bytes, if it says so; never together with `is_chunked`.
    pub fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    /// The body comes in chunks.
    pub fn is_chunked(&self) -> bool {
        self.chunked
    }

    /// Whether anything follows the head.
    pub fn has_body(&self) -> bool {
        self.chunked || self.content_length.is_some_and(|length| length > 0)
    }

    /// What `Connection` says.
    pub fn persistence(&self) -> Persistence {
        self.persistence
    }

    /// Whether the client expects the connection to stay open.
    pub fn keeps_alive(&self) -> bool {
        match self.persistence {
            Persistence::Unsaid => self.version > Version::HTTP_10,
            Persistence::Close => false,
            Persistence::KeepAlive => true,
        }
    }
}

/// The buffers nginx would have filled by now: a head is too large when its lines, none of them split over two
/// buffers, do not fit `client_header_buffer_size` and `large_client_header_buffers`.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    /// Size of the buffer in use; 0 before the first.
    buffer: usize,
    /// Where the line that is being read starts in it.
    used: usize,
    large: usize,
}

impl Room {
    fn open(&mut self, limits: &Limits) {
        if self.buffer == 0 {
            self.buffer = limits.header_buffer.max(1);
        }
    }

    /// Makes room for a line of `len` bytes so far; false if there is none.
    #[inline]
    fn take(&mut self, len: usize, complete: bool, limits: &Limits) -> bool {
        loop {
            let left = self.buffer - self.used;
            if len < left || (complete && len == left) {
                if complete {
                    self.used += len;
                }
                return true;
            }
            if (left > 0 && left >= limits.large_buffer) || self.large >= limits.large_buffers {
                return false;
            }
            self.large += 1;
            self.buffer = limits.large_buffer.max(1);
            self.used = 0;
        }
    }
}

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

/// Whether a connection starts with the preface of HTTP/2, which must be looked for before a head is parsed where `http2` is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preface {
    /// It is HTTP/2.
    Whole,
    /// It may become HTTP/2.
    Partial,
    /// It is not.
    None,
}

/// Looks for the connection preface of RFC 9113 section 3.4.
pub fn http2_preface(input: &[u8]) -> Preface {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let seen = input.len().min(PREFACE.len());
    match input[..seen] == PREFACE[..seen] {
        true if seen == PREFACE.len() => Preface::Whole,
        true => Preface::Partial,
        false => Preface::None,
    }
}

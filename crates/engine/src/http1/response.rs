//! The head of an upstream's answer, as nginx reads it, and the trailers behind a chunked body.

use std::borrow::Cow;

use super::fields::{BadLine, Field, Fields, LONGEST, Line, PADDING, Rules, Scan, Span, accessors, ordinary};
use super::known::{Known, KnownSet};
use super::request::{Version, decimal, holds};
use super::status;

/// An answer that is no answer: the next upstream is tried (`proxy_next_upstream invalid_header`), or else the client gets 502.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// nginx's line for the error log, level `error`.
    pub message: Cow<'static, [u8]>,
}

impl Invalid {
    fn new(message: &'static str) -> Self {
        Self { message: Cow::Borrowed(message.as_bytes()) }
    }

    pub(crate) fn quoting(parts: &[&[u8]]) -> Self {
        Self { message: Cow::Owned(parts.concat()) }
    }
}

/// How far a parse came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// All of the input is taken; more is needed.
    Partial,
    /// The head is complete; this many bytes of the input belonged to it.
    Complete(usize),
    /// There is no status line: nginx logs `upstream sent no valid HTTP/1.0 header` at level `error` and passes everything on as the body
    /// of an HTTP/0.9 answer. What was taken before this call is in `raw`; nothing of this call's input is taken.
    Headless,
}

/// Where the body of an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Behind its head.
    Empty,
    /// After this many bytes.
    Length(u64),
    /// With its last chunk.
    Chunked,
    /// With the connection.
    UntilClose,
    /// Never: the connection is a tunnel from here on.
    Tunnel,
}

/// Headers that frame the body or the connection.
static FRAMING: KnownSet = KnownSet::of(&[Known::ContentLength, Known::TransferEncoding, Known::Connection]);

/// Headers of which the first counts; later ones are left out.
static SINGLE: KnownSet = KnownSet::of(&[
    Known::Status,
    Known::ContentType,
    Known::Date,
    Known::LastModified,
    Known::ETag,
    Known::Server,
    Known::Location,
    Known::Refresh,
    Known::Expires,
    Known::XAccelRedirect,
    Known::XAccelExpires,
    Known::XAccelLimitRate,
]);

const GULP: usize = 4096;

const RULES: Rules = Rules { underscores: true, skip_status_lines: true };

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Start,
    /// This many bytes of `HTTP/` have been read.
    Protocol(u8),
    MajorStart,
    Major,
    MinorStart,
    Minor,
    /// This many digits of the status have been read.
    Status(u8),
    AfterStatus,
    Text,
    Lf,
    Fields,
}

/// The head of one answer: what was received, and where in it everything is. Reset and used again for the next.
#[derive(Clone, Debug, Default)]
pub struct Head {
    raw: Vec<u8>,
    fields: Fields,
    dropped: Vec<Field>,
    now: Now,
}

/// What a reset clears.
#[derive(Clone, Copy, Debug, Default)]
struct Now {
    stage: Stage,
    pos: usize,
    scan: Scan,
    major: u16,
    minor: u16,
    status: u16,
    status_start: usize,
    status_end: usize,
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
}

impl Head {
    /// Without any buffer yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the answer; buffers of an ordinary size stay.
    pub fn reset(&mut self) {
        const KEPT: usize = 8192;
        self.now = Now::default();
        self.raw.clear();
        self.raw.shrink_to(KEPT);
        self.fields.clear();
        self.dropped.clear();
    }

    /// Takes what the connection gave; `limit` is `proxy_buffer_size`, which the head must fit.
    ///
    /// # Errors
    /// `Invalid` as soon as the answer cannot be one; call `reset` before the next parse.
    pub fn parse(&mut self, input: &[u8], limit: usize) -> Result<Parsed, Invalid> {
        let limit = limit.clamp(1, LONGEST);
        let whole = self.raw.len();
        let mut taken = 0;
        loop {
            let rest = input.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(Parsed::Partial);
            }
            // What does not fit is never looked at.
            let gulp = rest.len().min(GULP).min(limit.saturating_sub(self.raw.len()));
            let before = self.raw.len();
            self.raw.extend_from_slice(&rest[..gulp]);
            if self.now.stage != Stage::Fields {
                match self.read_status_line() {
                    None => {
                        self.raw.truncate(whole);
                        return Ok(Parsed::Headless);
                    }
                    Some(false) => {}
                    Some(true) => self.open_fields()?,
                }
            }
            if self.now.stage == Stage::Fields {
                let received = self.raw.len();
                self.raw.extend_from_slice(&[0; PADDING]);
                let end = self.read_fields(received);
                self.raw.truncate(received);
                if let Some(end) = end? {
                    self.raw.truncate(end);
                    return Ok(Parsed::Complete(taken + end - before));
                }
            }
            if self.raw.len() >= limit {
                return Err(Invalid::new("upstream sent too big header"));
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
        status: u16,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<(), Invalid> {
        self.raw.extend_from_slice(b"HTTP/2.0 ");
        self.now.status_start = self.raw.len();
        match status::line(status) {
            Some(line) => self.raw.extend_from_slice(line.as_bytes()),
            None => self.raw.extend_from_slice(format!("{status} ").as_bytes()),
        }
        self.now.status_end = self.raw.len();
        self.raw.extend_from_slice(b"\r\n");
        (self.now.major, self.now.status, self.now.stage) = (2, status, Stage::Fields);
        for (name, value) in fields {
            let start = self.raw.len();
            if start + name.len() + value.len() > LONGEST - 8 {
                return Err(Invalid::new("upstream sent too big header"));
            }
            for part in [name, b": ", value, b"\r\n"] {
                self.raw.extend_from_slice(part);
            }
            let end = self.raw.len() - 2;
            self.field(Field::of_line(start, start + name.len(), end, Known::of(name)))?;
        }
        self.raw.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// True when the line is complete, `None` when it is no status line.
    fn read_status_line(&mut self) -> Option<bool> {
        self.skip_usual_start();
        if self.now.stage == Stage::Fields {
            return Some(true);
        }
        while let Some(&byte) = self.raw.get(self.now.pos) {
            match self.now.stage {
                Stage::Start | Stage::Protocol(_) => {
                    let read = if let Stage::Protocol(read) = self.now.stage { read } else { 0 };
                    if b"HTTP/".get(read as usize) != Some(&byte) {
                        return None;
                    }
                    self.now.stage = if byte == b'/' { Stage::MajorStart } else { Stage::Protocol(read + 1) };
                }
                Stage::MajorStart if !matches!(byte, b'1'..=b'9') => return None,
                Stage::Major if byte == b'.' => self.now.stage = Stage::MinorStart,
                Stage::Minor if byte == b' ' => self.now.stage = Stage::Status(0),
                Stage::MajorStart | Stage::Major => {
                    self.now.major = number(self.now.major, byte)?;
                    self.now.stage = Stage::Major;
                }
                Stage::MinorStart | Stage::Minor => {
                    self.now.minor = number(self.now.minor, byte)?;
                    self.now.stage = Stage::Minor;
                }
                Stage::Status(0) if byte == b' ' => {}
                Stage::Status(read) => {
                    self.now.status = number(self.now.status, byte)?;
                    if read == 0 {
                        self.now.status_start = self.now.pos;
                    }
                    self.now.stage = if read == 2 { Stage::AfterStatus } else { Stage::Status(read + 1) };
                }
                Stage::AfterStatus | Stage::Text => match byte {
                    b'\r' | b'\n' => {
                        self.now.status_end = self.now.pos;
                        self.now.stage = if byte == b'\r' { Stage::Lf } else { Stage::Fields };
                    }
                    b' ' | b'.' => self.now.stage = Stage::Text,
                    _ if self.now.stage == Stage::Text => {}
                    _ => return None,
                },
                Stage::Lf if byte == b'\n' => self.now.stage = Stage::Fields,
                Stage::Lf => return None,
                Stage::Fields => return Some(true),
            }
            self.now.pos += 1;
            if self.now.stage == Stage::Fields {
                return Some(true);
            }
        }
        Some(false)
    }

    /// Takes `HTTP/1.1 200 OK` and the end of the line at once, as nearly all answers begin.
    fn skip_usual_start(&mut self) {
        if let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor @ b'0'..=b'9', b' ', rest @ ..] =
            &self.raw[..]
            && let [a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b' ', ..] = rest
            && self.now.stage == Stage::Start
        {
            let digit = |byte: &u8| u16::from(byte - b'0');
            self.now.major = 1;
            self.now.minor = digit(minor);
            self.now.status = digit(a) * 100 + digit(b) * 10 + digit(c);
            self.now.status_start = 9;
            self.now.pos = 13;
            self.now.stage = Stage::Text;
            let reason = self.raw[13..].iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            self.now.pos += reason.unwrap_or(self.raw.len() - 13);
            if self.raw.get(self.now.pos..).and_then(<[u8]>::first_chunk) == Some(b"\r\n") {
                self.now.status_end = self.now.pos;
                self.now.pos += 2;
                self.now.stage = Stage::Fields;
            }
        }
    }

    fn open_fields(&mut self) -> Result<(), Invalid> {
        self.now.scan = Scan::at(self.now.pos);
        if self.version() < Version::HTTP_11 {
            if self.now.status == 103 {
                return Err(Invalid::new("upstream sent HTTP/1.0 response with early hints"));
            }
            self.now.close = true;
        }
        Ok(())
    }

    /// The offset behind the head, once it is complete; `raw` holds what was received and padding behind it.
    fn read_fields(&mut self, received: usize) -> Result<Option<usize>, Invalid> {
        loop {
            if self.now.scan.at_line() {
                while let Some((field, next)) = ordinary(&self.raw, self.now.scan.pos) {
                    self.now.scan.pos = next;
                    self.field(field)?;
                }
                if self.now.scan.at_end(&self.raw) {
                    return Ok(Some(self.now.scan.pos + 2));
                }
            }
            match self.now.scan.next(self.raw.get(..received).unwrap_or_default(), RULES) {
                Ok(Line::Field { field, .. }) => self.field(field)?,
                Ok(Line::End) => return Ok(Some(self.now.scan.pos)),
                Ok(Line::Partial) => return Ok(None),
                Err(bad) => return Err(bad_field("header", &self.raw, &self.now.scan, bad)),
            }
        }
    }

    #[inline(always)]
    fn field(&mut self, field: Field) -> Result<(), Invalid> {
        let early_hints = self.now.status == 103;
        if FRAMING.has(field.known) && !early_hints {
            self.framing_field(field)?;
        }
        if SINGLE.has(field.known) && self.fields.has(field.known) && !early_hints {
            self.dropped.push(field);
        } else {
            self.fields.push(field);
        }
        Ok(())
    }

    #[inline(never)]
    fn framing_field(&mut self, field: Field) -> Result<(), Invalid> {
        match field.known {
            Known::ContentLength => self.length_field(field),
            Known::TransferEncoding => self.coding_field(field),
            _ => {
                let value = self.get(field.value);
                self.now.close |= !value.eq_ignore_ascii_case(b"keep-alive") && holds(value, b"close");
                Ok(())
            }
        }
    }

    fn length_field(&mut self, field: Field) -> Result<(), Invalid> {
        self.check_framing(field, Known::TransferEncoding)?;
        let length = decimal(self.get(field.value)).ok_or_else(|| {
            let (name, value) = (self.get(field.name), self.get(field.value));
            Invalid::quoting(&[
                b"upstream sent invalid \"Content-Length\" header: \"",
                name,
                b": ",
                value,
                b"\"",
            ])
        })?;
        self.now.content_length = Some(length);
        Ok(())
    }

    fn coding_field(&mut self, field: Field) -> Result<(), Invalid> {
        self.check_framing(field, Known::ContentLength)?;
        let coding = self.get(field.value);
        if !coding.eq_ignore_ascii_case(b"chunked") {
            return Err(Invalid::quoting(&[
                b"upstream sent unknown \"Transfer-Encoding\": \"",
                coding,
                b"\"",
            ]));
        }
        self.now.chunked = true;
        Ok(())
    }

    /// Neither length nor coding may be said twice, nor one beside the other.
    fn check_framing(&self, field: Field, other: Known) -> Result<(), Invalid> {
        if let Some(previous) = self.fields.first(field.known) {
            return Err(Invalid { message: Cow::Owned(self.duplicate(field, *previous)) });
        }
        if self.fields.has(other) {
            return Err(Invalid::new(
                "upstream sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time",
            ));
        }
        Ok(())
    }

    #[cold]
    fn duplicate(&self, field: Field, previous: Field) -> Vec<u8> {
        [
            b"upstream sent duplicate header line: \"",
            self.get(field.name),
            b": ",
            self.get(field.value),
            b"\", previous value: \"",
            self.get(previous.name),
            b": ",
            self.get(previous.value),
            b"\"",
        ]
        .concat()
    }

    /// The text of a span of this head.
    #[inline]
    pub fn get(&self, span: Span) -> &[u8] {
        span.of(&self.raw, &[])
    }

    /// The head as received.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Three digits, as the upstream sent them: 0 to 999.
    pub fn status(&self) -> u16 {
        self.now.status
    }

    /// The status with the upstream's own reason, as it is passed on: `200 OK`.
    pub fn status_line(&self) -> &[u8] {
        self.raw.get(self.now.status_start..self.now.status_end).unwrap_or_default()
    }

    /// Any, as far as it has three digits at most.
    pub fn version(&self) -> Version {
        Version(self.now.major.saturating_mul(1000).saturating_add(self.now.minor))
    }

    /// Whether another head follows this one (RFC 9110 section 15.2). nginx knows only 103 as such.
    pub fn is_interim(&self) -> bool {
        matches!(self.now.status, 100..=199) && self.now.status != 101
    }

    /// nginx's lines, level `warn`, for repeated headers of which only the first is passed on.
    pub fn warnings(&self) -> impl Iterator<Item = Vec<u8>> {
        self.dropped.iter().filter_map(|field| {
            let mut line = self.duplicate(*field, *self.fields.first(field.known)?);
            line.extend_from_slice(b", ignored");
            Some(line)
        })
    }

    /// As said by the head; `framing` knows whether it counts.
    pub fn content_length(&self) -> Option<u64> {
        self.now.content_length
    }

    /// Whether the body comes in chunks.
    pub fn is_chunked(&self) -> bool {
        self.now.chunked
    }

    /// Where the body ends, given the request it answers (RFC 9112 section 6.3). A 101 to a request that asked for no upgrade
    /// is for the caller to tell apart.
    pub fn framing(&self, to_head: bool) -> Framing {
        match (self.now.status, self.now.content_length) {
            (101, _) => Framing::Tunnel,
            (100..=199 | 204 | 304, _) => Framing::Empty,
            _ if to_head => Framing::Empty,
            _ if self.now.chunked => Framing::Chunked,
            (_, Some(0)) => Framing::Empty,
            (_, Some(length)) => Framing::Length(length),
            (_, None) => Framing::UntilClose,
        }
    }

    /// Whether the connection may serve another request once the body, if any, is read to its end.
    pub fn keeps_alive(&self) -> bool {
        !self.now.close && self.now.status != 101
    }
}

accessors!(Head);

/// Appends a digit to a number that has at most two before it.
fn number(number: u16, byte: u8) -> Option<u16> {
    if number > 99 || !byte.is_ascii_digit() { None } else { Some(number * 10 + u16::from(byte - b'0')) }
}

#[cold]
fn bad_field(what: &str, raw: &[u8], scan: &Scan, bad: BadLine) -> Invalid {
    let shown = raw.get(scan.line..bad.end).unwrap_or_default();
    let byte = format!("\\x{:02x}...\"", raw.get(bad.end).copied().unwrap_or_default());
    Invalid::quoting(&[b"upstream sent invalid ", what.as_bytes(), b": \"", shown, byte.as_bytes()])
}

/// The trailer section behind the last chunk of an answer (`proxy_pass_trailers`).
#[derive(Clone, Debug, Default)]
pub struct Trailers {
    raw: Vec<u8>,
    scan: Scan,
    fields: Vec<Field>,
}

impl Trailers {
    /// Takes what came behind `body::Piece::Trailers`; `limit` is `proxy_buffer_size`, which all of it must fit.
    ///
    /// # Errors
    /// `Invalid` as soon as a line cannot be one; the answer is cut short.
    pub fn parse(&mut self, input: &[u8], limit: usize) -> Result<Parsed, Invalid> {
        let before = self.raw.len();
        let room = limit.min(LONGEST).saturating_sub(before);
        self.raw.extend_from_slice(&input[..input.len().min(room)]);
        loop {
            match self.scan.next(&self.raw, RULES) {
                Ok(Line::Field { field, .. }) => self.fields.push(field),
                Ok(Line::End) => {
                    self.raw.truncate(self.scan.pos);
                    return Ok(Parsed::Complete(self.scan.pos - before));
                }
                Ok(Line::Partial) if input.len() >= room => {
                    return Err(Invalid::new("upstream sent too big trailers"));
                }
                Ok(Line::Partial) => return Ok(Parsed::Partial),
                Err(bad) => return Err(bad_field("trailer", &self.raw, &self.scan, bad)),
            }
        }
    }

    /// In the order received.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The text of a span of these trailers.
    pub fn get(&self, span: Span) -> &[u8] {
        span.of(&self.raw, &[])
    }
}

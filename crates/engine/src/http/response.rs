//! A response on its way out: what nginx keeps in `headers_out`, and a body that is pulled.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::disk::Reader;
use crate::http::Exchange;
use crate::http1::{Field, Known, unbreak};
use crate::io::Buf;

use crate::http1::response::Head;

pub type Text = Cow<'static, [u8]>;

/// Header fields in order, their lines in one buffer.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    /// `name: value` and CRLF of each, also of those that were taken out.
    bytes: Vec<u8>,
    fields: Vec<HeaderField>,
    /// The lines are not what `fields` says in its order.
    scattered: bool,
}

/// Where a line starts, its name ends and its value ends.
#[derive(Clone, Copy, Debug)]
struct HeaderField {
    start: u32,
    name_end: u32,
    end: u32,
    known: Known,
}

impl Headers {
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.push_known(Known::of(name), name, value);
    }

    /// As [`Headers::push`] where it is known which header it is.
    pub fn push_known(&mut self, known: Known, name: &[u8], value: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(b": ");
        self.bytes.extend_from_slice(value);
        unbreak(&mut self.bytes[start + name.len()..]);
        self.bytes.extend_from_slice(b"\r\n");
        self.pushed(known, start, name.len());
    }

    /// Copies a field of an upstream's head.
    pub fn copy(&mut self, head: &Head, field: &Field) {
        match head.line(field) {
            Some(line) => {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(line);
                self.pushed(field.known, start, field.name.len());
            }
            None => self.push_known(field.known, head.get(field.name), head.get(field.value)),
        }
    }

    fn pushed(&mut self, known: Known, start: usize, name: usize) {
        // A response head is far below 4 GiB: buffers of the upstream bound it.
        self.fields.push(HeaderField {
            start: start as u32,
            name_end: (start + name) as u32,
            end: self.bytes.len() as u32 - 2,
            known,
        });
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|f| self.pair(f))
    }

    /// Appends the lines.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        if !self.scattered {
            out.extend_from_slice(&self.bytes);
            return;
        }
        for field in &self.fields {
            out.extend_from_slice(&self.bytes[field.start as usize..field.end as usize + 2]);
        }
    }

    fn pair(&self, f: &HeaderField) -> (&[u8], &[u8]) {
        let value = f.name_end as usize + 2..f.end as usize;
        (&self.bytes[f.start as usize..f.name_end as usize], &self.bytes[value])
    }

    /// The values of all fields of that name, in any case.
    pub fn all<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }

    pub fn first(&self, known: Known) -> Option<&[u8]> {
        self.fields.iter().find(|f| f.known == known).map(|f| self.pair(f).1)
    }

    /// Gives the first field of that name another value where it stands and takes the others out; without one, adds it.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        let same = |bytes: &[u8], f: &HeaderField| {
            bytes[f.start as usize..f.name_end as usize].eq_ignore_ascii_case(name)
        };
        let first = self.fields.iter().position(|f| same(&self.bytes, f));
        let Some(first) = first else {
            self.push(name, value);
            return;
        };
        self.push_known(self.fields[first].known, name, value);
        self.fields.swap_remove(first);
        self.scattered = true;
        let bytes = &self.bytes;
        let mut at = 0;
        self.fields.retain(|f| {
            at += 1;
            at <= first + 1 || !same(bytes, f)
        });
    }

    /// Takes all fields of that name out.
    pub fn remove(&mut self, name: &[u8]) {
        let (bytes, before) = (&self.bytes, self.fields.len());
        self.fields.retain(|f| !bytes[f.start as usize..f.name_end as usize].eq_ignore_ascii_case(name));
        self.scattered |= self.fields.len() != before;
    }

    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
        self.scattered = false;
    }
}

/// A body that is pulled by whoever sends it.
pub trait Source {
    /// Makes bytes ready for the exchange that answers with them. `Ok(true)`: [`Source::data`] has some; `Ok(false)`: the body is over.
    ///
    /// # Errors
    /// The body cannot be completed; what was sent is cut off and the connection closed.
    fn poll_ready(&mut self, x: &mut Exchange, cx: &mut Context<'_>) -> Poll<io::Result<bool>>;
    fn data(&self) -> &[u8];
    fn consume(&mut self, n: usize);
    /// Passes over bytes that nobody wants, before any were made ready; how many, where that is easier than to make them.
    fn skip(&mut self, n: u64) -> u64 {
        let _ = n;
        0
    }
    /// Whether [`Source::data`] is all that is left, and no trailers follow: saves a turn at the end.
    fn is_last(&self) -> bool {
        false
    }
    /// Whether the first few bytes wait for more: what comes is made here, in pieces, and may fail (`postpone_output`).
    fn postpones(&self) -> bool {
        false
    }
    /// Whether nobody else has a use for it once the client is gone, which is then looked at while nothing is ready.
    fn ends_with_client(&self) -> bool {
        false
    }
    /// The client takes nothing for now: what can be fetched meanwhile is. What was ready may be put aside for that, and has to be
    /// made ready again.
    fn read_ahead(&mut self, x: &mut Exchange, cx: &mut Context<'_>) {
        let _ = (x, cx);
    }
    /// Called once when the whole body was sent, or when sending was given up.
    fn finish(&mut self, x: &mut Exchange, complete: bool) {
        let _ = (x, complete);
    }
    /// The trailer fields, once the body is over.
    fn trailers(&self) -> Option<&Headers> {
        None
    }
}

/// A part of a file.
#[derive(Clone, Debug)]
pub struct FilePart {
    pub file: Arc<File>,
    pub offset: u64,
    pub length: u64,
}

/// Bytes of a file after which other connections have their turn (nginx: the default of `sendfile_max_chunk`).
pub(crate) const TURN: u64 = 2 << 20;

/// The body of a response.
#[derive(Default)]
pub enum Body {
    #[default]
    Empty,
    Bytes(Text),
    File(FilePart),
    Stream(Box<dyn Source>),
    /// The connection becomes a tunnel to the upstream after the head (status 101, or 200 to CONNECT).
    Tunnel(Box<crate::http::exchange::Tunnel>),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Empty => f.write_str("Empty"),
            Body::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Body::File(part) => part.fmt(f),
            Body::Stream(_) => f.write_str("Stream"),
            Body::Tunnel(_) => f.write_str("Tunnel"),
        }
    }
}

impl Body {
    /// The body to be pulled piece by piece. A tunnel has none.
    pub fn into_source(self) -> Box<dyn Source> {
        match self {
            Body::Empty | Body::Tunnel(_) => Box::new(Whole { bytes: Cow::Borrowed(b""), at: 0 }),
            Body::Bytes(bytes) => Box::new(Whole { bytes, at: 0 }),
            Body::File(part) => {
                Box::new(FileSource { part, piece: Buf::new(), reader: Reader::default(), turn: TURN })
            }
            Body::Stream(source) => source,
        }
    }
}

/// A body in memory.
struct Whole {
    bytes: Text,
    at: usize,
}

impl Source for Whole {
    fn poll_ready(&mut self, _: &mut Exchange, _: &mut Context<'_>) -> Poll<io::Result<bool>> {
        Poll::Ready(Ok(!self.data().is_empty()))
    }

    fn data(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }

    fn is_last(&self) -> bool {
        true
    }
}

/// Bytes that are read of a file at once.
const PIECE: usize = 64 * 1024;

/// A file that is read as it is sent.
struct FileSource {
    /// What is still to be read.
    part: FilePart,
    piece: Buf,
    reader: Reader,
    /// Bytes that may still be read before other connections have their turn.
    turn: u64,
}

impl Source for FileSource {
    fn poll_ready(&mut self, _: &mut Exchange, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if !self.piece.is_empty() {
            return Poll::Ready(Ok(true));
        }
        if self.part.length == 0 {
            return Poll::Ready(Ok(false));
        }
        if self.turn == 0 {
            self.turn = TURN;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let FilePart { file, offset, length } = &mut self.part;
        let room = PIECE.min(usize::try_from(*length).unwrap_or(PIECE));
        let n = ready!(self.reader.poll_fill(cx, file, &mut self.piece, room, *offset))? as u64;
        if n == 0 {
            // It was truncated meanwhile.
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        *offset += n;
        *length -= n;
        self.turn = self.turn.saturating_sub(n);
        Poll::Ready(Ok(true))
    }

    fn data(&self) -> &[u8] {
        &self.piece
    }

    fn consume(&mut self, n: usize) {
        self.piece.consume(n);
    }

    fn is_last(&self) -> bool {
        self.part.length == 0
    }
}

/// Fields that are known only when the body is over.
pub trait Trailers: Send + Sync {
    /// Adds them with [`Exchange::add_trailer`], one by one: a value may ask for what stands before it.
    fn append(&self, x: &Exchange);
}

impl fmt::Debug for dyn Trailers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trailers")
    }
}

/// A response: the fields that nginx writes at fixed places, the others in order, and the body.
#[derive(Debug, Default)]
pub struct Response {
    pub status: u16,
    /// `404 Not Found` where the upstream said it in its own words.
    pub status_line: Option<Text>,
    /// Goes out without a head, as an HTTP/0.9 answer.
    pub headless: bool,
    /// The headers have a `Server` or `Date` of the upstream's in place of our own.
    pub server_given: bool,
    pub date_given: bool,
    /// Whether the body is compressed depends on the client, and caches are told (`gzip_vary`).
    pub vary_encoding: bool,
    pub content_type: Option<Text>,
    /// The type is an upstream's `Content-Type` as it came, whose parameters may name a charset.
    pub upstream_type: bool,
    /// Memory of an earlier type, for [`Response::set_content_type`].
    pub spare: Vec<u8>,
    pub charset: Option<Text>,
    /// The charset that an upstream asks to recode the body to (`X-Accel-Charset`).
    pub override_charset: Option<Text>,
    /// Length of the body before any transfer coding; `None` is not known.
    pub content_length: Option<u64>,
    /// Seconds since the epoch. A `Last-Modified` among the headers is sent in its place.
    pub last_modified: Option<i64>,
    /// An absolute path is completed with scheme, host and port where `absolute_redirect` says so.
    pub location: Option<Text>,
    pub headers: Headers,
    pub body: Body,
    /// Whether byte ranges may be cut out of the body.
    pub allow_ranges: bool,
    /// And no more than one of them.
    pub single_range: bool,
    /// The connection is closed after this response, whatever the request asked for.
    pub close: bool,
    /// The request's conditions are not ours to judge (a response of an upstream that is not cached).
    pub disable_not_modified: bool,
    /// A filter gave this response up for the answer of a status (412, 416), which takes over what `headers` are left.
    pub replaced_by: Option<u16>,
    /// Nothing is sent and the connection is closed (`return 444`).
    pub unsent: bool,
    /// Fields to be sent behind the body, where the protocol can do that.
    pub trailers: Option<Arc<dyn Trailers>>,
}

impl Response {
    /// Makes it empty again; headers and type keep their memory.
    pub(crate) fn clear(&mut self) {
        self.headers.clear();
        if let Some(Cow::Owned(bytes)) = self.content_type.take() {
            self.spare = bytes;
        }
        self.status_line = None;
        self.headless = false;
        self.server_given = false;
        self.date_given = false;
        self.vary_encoding = false;
        self.upstream_type = false;
        self.charset = None;
        self.override_charset = None;
        self.content_length = None;
        self.last_modified = None;
        self.location = None;
        self.body = Body::Empty;
        self.allow_ranges = false;
        self.single_range = false;
        self.close = false;
        self.disable_not_modified = false;
        self.replaced_by = None;
        self.unsent = false;
        self.trailers = None;
    }

    /// Sets the type of the content from bytes that do not live as long.
    pub fn set_content_type(&mut self, content_type: &[u8]) {
        let mut bytes = std::mem::take(&mut self.spare);
        bytes.clear();
        bytes.extend_from_slice(content_type);
        self.content_type = Some(Cow::Owned(bytes));
    }

    pub fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// A response with a body in memory.
    pub fn with_body(status: u16, content_type: impl Into<Text>, body: impl Into<Text>) -> Self {
        let body = body.into();
        Self {
            status,
            content_type: Some(content_type.into()),
            content_length: Some(body.len() as u64),
            body: if body.is_empty() { Body::Empty } else { Body::Bytes(body) },
            ..Self::default()
        }
    }

    /// Tells filters that the body will differ from what the head says of it (`ngx_http_clear_content_length` and
    /// friends): no length, no ranges, and a strong `ETag` becomes weak.
    pub fn body_changes(&mut self) {
        self.content_length = None;
        self.allow_ranges = false;
        self.headers.remove(b"Accept-Ranges");
        self.weaken_etag();
    }

    /// What was known of the body's age does not hold for what is made of it (`ngx_http_clear_last_modified`,
    /// `ngx_http_clear_etag`).
    pub fn clear_validators(&mut self) {
        self.last_modified = None;
        self.headers.remove(b"Last-Modified");
        self.headers.remove(b"ETag");
    }

    /// The body is no longer the same byte by byte (`ngx_http_weak_etag`).
    pub fn weaken_etag(&mut self) {
        match self.headers.first(Known::ETag) {
            None | Some([b'W', b'/', _, ..]) => {}
            Some(strong @ [b'"', ..]) => {
                let weak = [b"W/", strong].concat();
                self.headers.set(b"ETag", &weak);
            }
            // Not a tag at all.
            Some(_) => self.headers.remove(b"ETag"),
        }
    }

    /// The type without a charset that an upstream named in its parameters, and that charset.
    pub fn media_type(&self) -> (&[u8], Option<&[u8]>) {
        let whole = self.content_type.as_deref().unwrap_or_default();
        if !self.upstream_type {
            return (whole, None);
        }
        split_charset(whole).map_or((whole, None), |(media, charset)| (media, Some(charset)))
    }
}

/// The type and the charset of a `Content-Type` that names one, as nginx reads an upstream's.
pub(crate) fn split_charset(whole: &[u8]) -> Option<(&[u8], &[u8])> {
    memchr::memchr_iter(b';', whole).find_map(|at| {
        let (name, charset) = whole[at + 1..].trim_ascii_start().split_at_checked(8)?;
        if !name.eq_ignore_ascii_case(b"charset=") {
            return None;
        }
        let charset = charset.strip_prefix(b"\"").unwrap_or(charset);
        Some((&whole[..at], charset.strip_suffix(b"\"").unwrap_or(charset)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charsets_in_types() {
        let check = |text: &'static str, upstream: bool, media: &str, charset: Option<&str>| {
            let content_type = Some(Cow::Borrowed(text.as_bytes()));
            let response = Response { content_type, upstream_type: upstream, ..Response::default() };
            assert_eq!(response.media_type(), (media.as_bytes(), charset.map(str::as_bytes)), "{text}");
        };
        check("text/html; charset=utf-8", false, "text/html; charset=utf-8", None);
        check("text/html; charset=utf-8", true, "text/html", Some("utf-8"));
        check("text/html;Charset=\"a b\"", true, "text/html", Some("a b"));
        check("text/html; version=1;  charset=x", true, "text/html; version=1", Some("x"));
        check("text/html; version=1", true, "text/html; version=1", None);
        check("", true, "", None);
    }

    #[test]
    fn entity_tags_of_other_bodies() {
        for (tag, expected) in
            [("\"a\"", Some("W/\"a\"")), ("W/\"a\"", Some("W/\"a\"")), ("a", None), ("", None), ("W/", None)]
        {
            let mut response =
                Response { content_length: Some(1), allow_ranges: true, ..Response::default() };
            response.headers.push(b"ETag", tag.as_bytes());
            response.headers.push(b"Accept-Ranges", b"bytes");
            response.body_changes();
            assert_eq!(response.headers.first(Known::ETag), expected.map(str::as_bytes), "{tag}");
            assert!(response.content_length.is_none() && !response.allow_ranges);
            assert!(response.headers.first(Known::AcceptRanges).is_none());
        }
    }
}

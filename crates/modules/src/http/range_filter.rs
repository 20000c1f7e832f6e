//! `ngx_http_range_filter_module`: byte ranges (RFC 9110 section 14), one or several.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use weir_engine::contract::{Filter, Install};
use weir_engine::generation::Plan;
use weir_engine::http::response::FilePart;
use weir_engine::http::{Body, Exchange, Response, Source};
use weir_engine::http1::request::Version;
use weir_engine::http1::{Known, date};
use weir_ir::contract::{Directive, Module};
use weir_syntax::Diagnostic;

use super::body::{Piece, Pieces};

/// `max_ranges` where it is not set; only then are many small ranges judged by what their framing costs.
const UNBOUNDED: u64 = i32::MAX as u64;

pub struct RangeFilter;

impl Module for RangeFilter {
    const NAME: &'static str = "http_range_filter";
    type Main = ();
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] = &[];
}

impl Install for RangeFilter {
    fn install((): &(), plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        plan.handlers.filters.push(Box::new(RangeFilter));
        Ok(())
    }
}

/// Bytes `start..end` of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
}

impl Range {
    fn len(self) -> u64 {
        self.end - self.start
    }
}

/// What a `Range` header asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Ranges(Vec<Range>),
    /// The whole body is the better answer.
    Whole,
    /// 416
    NotSatisfiable,
}

impl Filter for RangeFilter {
    fn filter(&self, x: &mut Exchange, response: &mut Response) {
        let Some(length) = response.content_length else { return };
        if x.is_subrequest()
            || x.head.version() < Version::HTTP_10
            || response.status != 200
            || !response.allow_ranges
        {
            return;
        }
        let mut most = x.location().core.max_ranges.unwrap_or(UNBOUNDED);
        if most == 0 {
            return;
        }
        if response.single_range {
            most = 1;
        }
        let asked = match asked_for(x, response) {
            Some(text) => match parse(text, length, most) {
                // A stream does not come twice.
                Asked::Ranges(ranges) if is_stream(response) && !ascend(&ranges) => Asked::Whole,
                asked => asked,
            },
            None => Asked::Whole,
        };
        match asked {
            Asked::Whole => response.headers.push(b"Accept-Ranges", b"bytes"),
            Asked::NotSatisfiable => {
                response.headers.remove(b"Content-Range");
                response.headers.push(b"Content-Range", format!("bytes */{length}").as_bytes());
                response.replaced_by = Some(416);
            }
            Asked::Ranges(ranges) => {
                response.status = 206;
                response.status_line = None;
                response.headers.remove(b"Content-Range");
                match ranges.as_slice() {
                    [range] => single(*range, length, response),
                    ranges => multipart(ranges, length, response),
                }
            }
        }
    }
}

fn is_stream(response: &Response) -> bool {
    matches!(response.body, Body::Stream(_))
}

/// Whether each range begins behind the one before it.
fn ascend(ranges: &[Range]) -> bool {
    ranges.windows(2).all(|pair| pair[0].end <= pair[1].start)
}

/// The list of ranges in a `Range` header that holds for this response.
fn asked_for<'x>(x: &'x Exchange, response: &Response) -> Option<&'x [u8]> {
    let (unit, list) = x.header(Known::Range)?.split_at_checked(6)?;
    if list.is_empty() || !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    let Some(if_range) = x.header(Known::IfRange) else { return Some(list) };
    let holds = if if_range.len() >= 2 && if_range.ends_with(b"\"") {
        response.headers.first(Known::ETag) == Some(if_range)
    } else {
        response.last_modified.is_some_and(|at| date::parse_http(if_range) == Some(at))
    };
    holds.then_some(list)
}

/// Reads the list after `bytes=` for a body of `length` bytes, of which at most `most` ranges are cut.
fn parse(list: &[u8], length: u64, most: u64) -> Asked {
    let mut ranges = vec![];
    let mut size = 0u64;
    for spec in list.split(|byte| *byte == b',') {
        let Some(range) = parse_one(spec, length) else { return Asked::NotSatisfiable };
        if range.start < range.end {
            let Some(sum) = size.checked_add(range.len()).filter(|sum| i64::try_from(*sum).is_ok()) else {
                return Asked::NotSatisfiable;
            };
            size = sum;
            ranges.push(range);
            if ranges.len() as u64 > most {
                return Asked::Whole;
            }
        } else if range.start == 0 {
            return Asked::Whole;
        }
    }
    match ranges.len() as u64 {
        0 => Asked::NotSatisfiable,
        1 => Asked::Ranges(ranges),
        _ if size > length => Asked::Whole,
        // A part's own head is about 256 bytes.
        count if most == UNBOUNDED && size + count * 256 > length + 4096 => Asked::Whole,
        _ => Asked::Ranges(ranges),
    }
}

/// One `first-last`, `first-` or `-suffix`; empty (`start >= end`) where none of it is in the body.
fn parse_one(spec: &[u8], length: u64) -> Option<Range> {
    let dash = memchr::memchr(b'-', spec)?;
    let (first, last) = (trim_start(&spec[..dash]), &spec[dash + 1..]);
    if first.is_empty() {
        let suffix = number(trim_end(last))?;
        return Some(Range { start: length.saturating_sub(suffix), end: length });
    }
    let start = number(trim_end(first))?;
    let last = trim_start(last);
    if last.is_empty() {
        return Some(Range { start, end: length });
    }
    let end = number(trim_end(last))?;
    Some(Range { start, end: if end >= length { length } else { end + 1 } })
}

fn trim_start(text: &[u8]) -> &[u8] {
    &text[text.iter().take_while(|byte| **byte == b' ').count()..]
}

fn trim_end(text: &[u8]) -> &[u8] {
    &text[..text.len() - text.iter().rev().take_while(|byte| **byte == b' ').count()]
}

fn number(text: &[u8]) -> Option<u64> {
    weir_ir::value::number(text)
}

fn single(range: Range, length: u64, response: &mut Response) {
    let value = format!("bytes {}-{}/{length}", range.start, range.end - 1);
    response.headers.push(b"Content-Range", value.as_bytes());
    response.content_length = Some(range.len());
    response.body = match std::mem::take(&mut response.body) {
        Body::Bytes(bytes) => Body::Bytes(slice(&bytes, range).to_vec().into()),
        Body::File(part) => Body::File(cut(&part, range)),
        Body::Stream(inner) => Body::Stream(Box::new(Parts::new(inner, vec![(vec![], range)], vec![]))),
        other @ (Body::Empty | Body::Tunnel(_)) => other,
    };
}

fn slice(bytes: &[u8], range: Range) -> &[u8] {
    bytes.get(range.start as usize..range.end as usize).unwrap_or_default()
}

fn cut(part: &FilePart, range: Range) -> FilePart {
    FilePart { file: Arc::clone(&part.file), offset: part.offset + range.start, length: range.len() }
}

/// A number that no other response of this process has in its boundary.
fn next_boundary() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

fn multipart(ranges: &[Range], length: u64, response: &mut Response) {
    let boundary = format!("{:020}", next_boundary());
    let mut opening = format!("\r\n--{boundary}\r\n").into_bytes();
    if let Some(content_type) = &response.content_type {
        opening.extend_from_slice(b"Content-Type: ");
        opening.extend_from_slice(content_type);
        if let Some(charset) = &response.charset {
            opening.extend_from_slice(b"; charset=");
            opening.extend_from_slice(charset);
        }
        opening.extend_from_slice(b"\r\n");
    }
    opening.extend_from_slice(b"Content-Range: bytes ");
    let mut pieces = Vec::with_capacity(ranges.len() + 1);
    let mut total = 0;
    for range in ranges {
        let mut head = opening.clone();
        head.extend_from_slice(format!("{}-{}/{length}\r\n\r\n", range.start, range.end - 1).as_bytes());
        total += head.len() as u64 + range.len();
        pieces.push((head, *range));
    }
    let closing = format!("\r\n--{boundary}--\r\n").into_bytes();
    total += closing.len() as u64;
    response.content_type = Some(format!("multipart/byteranges; boundary={boundary}").into_bytes().into());
    response.charset = None;
    response.content_length = Some(total);
    response.body = match std::mem::take(&mut response.body) {
        Body::Bytes(bytes) => {
            let mut body = Vec::with_capacity(total as usize);
            for (head, range) in &pieces {
                body.extend_from_slice(head);
                body.extend_from_slice(slice(&bytes, *range));
            }
            body.extend_from_slice(&closing);
            Body::Bytes(body.into())
        }
        Body::File(part) => {
            let mut parts = Vec::with_capacity(2 * pieces.len() + 1);
            for (head, range) in pieces {
                parts.push(Piece::Text(head.into()));
                parts.push(Piece::File(cut(&part, range)));
            }
            parts.push(Piece::Text(closing.into()));
            Body::Stream(Box::new(Pieces::new(parts)))
        }
        Body::Stream(inner) => Body::Stream(Box::new(Parts::new(inner, pieces, closing))),
        other @ (Body::Empty | Body::Tunnel(_)) => other,
    };
}

/// Ranges of a stream, in the order in which they come.
struct Parts {
    inner: Box<dyn Source>,
    /// What is sent before the bytes of the range.
    text: Vec<u8>,
    /// Where in it the bytes begin that were not taken yet.
    at: usize,
    /// Bytes before the range that are still to come.
    skip: u64,
    /// Bytes of the range that are still to be taken.
    left: u64,
    /// What follows, the next one last: a text, the bytes to pass over, the bytes to take.
    rest: Vec<(Vec<u8>, u64, u64)>,
}

impl Parts {
    /// Ranges that ascend, each with what stands before it, and what stands behind them all.
    fn new(mut inner: Box<dyn Source>, ranges: Vec<(Vec<u8>, Range)>, closing: Vec<u8>) -> Self {
        let first = ranges.first().map_or(0, |(_, range)| range.start);
        let mut position = inner.skip(first);
        let mut rest = Vec::with_capacity(ranges.len() + 1);
        for (text, range) in ranges {
            rest.push((text, range.start - position, range.len()));
            position = range.end;
        }
        if !closing.is_empty() {
            rest.push((closing, 0, 0));
        }
        rest.reverse();
        Self { inner, text: vec![], at: 0, skip: 0, left: 0, rest }
    }
}

impl Source for Parts {
    fn poll_ready(&mut self, x: &mut Exchange, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            if self.at < self.text.len() {
                return Poll::Ready(Ok(true));
            }
            if self.left == 0 {
                let Some((text, skip, left)) = self.rest.pop() else { return Poll::Ready(Ok(false)) };
                (self.text, self.at, self.skip, self.left) = (text, 0, skip, left);
                continue;
            }
            match self.inner.poll_ready(x, cx) {
                Poll::Ready(Ok(true)) => {}
                other => return other,
            }
            let drop = self.skip.min(self.inner.data().len() as u64);
            self.inner.consume(drop as usize);
            self.skip -= drop;
            if self.skip == 0 && !self.inner.data().is_empty() {
                return Poll::Ready(Ok(true));
            }
        }
    }

    fn data(&self) -> &[u8] {
        if self.at < self.text.len() {
            return &self.text[self.at..];
        }
        let data = self.inner.data();
        let length = usize::try_from(self.left).map_or(data.len(), |left| left.min(data.len()));
        &data[..length]
    }

    fn consume(&mut self, n: usize) {
        if self.at < self.text.len() {
            self.at += n;
        } else {
            self.inner.consume(n);
            self.left -= n as u64;
        }
    }

    fn is_last(&self) -> bool {
        self.rest.is_empty()
            && if self.at < self.text.len() {
                self.left == 0
            } else {
                self.left <= self.inner.data().len() as u64
            }
    }

    fn postpones(&self) -> bool {
        self.left > 0 && self.inner.postpones()
    }

    fn read_ahead(&mut self, x: &mut Exchange, cx: &mut Context<'_>) {
        self.inner.read_ahead(x, cx);
    }

    fn ends_with_client(&self) -> bool {
        self.inner.ends_with_client()
    }

    fn finish(&mut self, x: &mut Exchange, complete: bool) {
        self.inner.finish(x, complete);
    }
}

#[cfg(test)]
mod tests {
    use weir_testkit::Folder;

    use super::*;
    use crate::testing::Site;

    #[test]
    fn lists() {
        let check = |list: &str, most: u64, expected: Result<&[(u64, u64)], Asked>| {
            let expected = match expected {
                Ok(ranges) => Asked::Ranges(
                    ranges.iter().map(|(start, end)| Range { start: *start, end: *end }).collect(),
                ),
                Err(other) => other,
            };
            assert_eq!(parse(list.as_bytes(), 10, most), expected, "{list}");
        };
        check("0-3", UNBOUNDED, Ok(&[(0, 4)]));
        check(" 1 - 3 ", UNBOUNDED, Ok(&[(1, 4)]));
        check("5-", UNBOUNDED, Ok(&[(5, 10)]));
        check("5-100", UNBOUNDED, Ok(&[(5, 10)]));
        check("-3", UNBOUNDED, Ok(&[(7, 10)]));
        check("-100", UNBOUNDED, Ok(&[(0, 10)]));
        check("0-1,8-9", UNBOUNDED, Ok(&[(0, 2), (8, 10)]));
        check("0-1,20-", UNBOUNDED, Ok(&[(0, 2)]));
        check("10-", UNBOUNDED, Err(Asked::NotSatisfiable));
        check("3-2", UNBOUNDED, Err(Asked::NotSatisfiable));
        check("-0", UNBOUNDED, Err(Asked::NotSatisfiable));
        check("x", UNBOUNDED, Err(Asked::NotSatisfiable));
        check("1-2x", UNBOUNDED, Err(Asked::NotSatisfiable));
        check("1-2,", UNBOUNDED, Err(Asked::NotSatisfiable));
        check("99999999999999999999-", UNBOUNDED, Err(Asked::NotSatisfiable));
        check("0-9,0-9", UNBOUNDED, Err(Asked::Whole));
        check("0-1,2-3,4-5", 2, Err(Asked::Whole));
        check("0-1,2-3", 2, Ok(&[(0, 2), (2, 4)]));
        assert_eq!(parse(b"-5", 0, 9), Asked::Whole);
        assert_eq!(parse(b"0-", 0, 9), Asked::Whole);
    }

    #[test]
    fn responses() {
        let folder = Folder::new(&[("a.html", b"0123456789"), ("big", "z".repeat(200_000).as_bytes())]);
        folder.set_modified("a.html", 0x5000_0000);
        let site = Site::new(&format!(
            "server {{ root {0}; location /none/ {{ alias {0}/; max_ranges 0; }} }}",
            folder.path().display()
        ));
        let ask = |header: &str| site.ask("GET /a.html", &format!("{header}\r\n"));
        let head = "HTTP/1.1 206 Partial Content\nContent-Type: text/html\nContent-Length: 3\n\
                    Last-Modified: Fri, 13 Jul 2012 11:01:20 GMT\nETag: \"50000000-a\"\n\
                    Content-Range: bytes 2-4/10\n\n234";
        assert_eq!(ask("Range: bytes=2-4"), head);
        assert_eq!(ask("Range: bytes=2-4\r\nIf-Range: \"50000000-a\""), head);
        assert_eq!(ask("Range: bytes=2-4\r\nIf-Range: Fri, 13 Jul 2012 11:01:20 GMT"), head);
        assert!(ask("Range: bytes=2-4\r\nIf-Range: \"b\"").contains("Accept-Ranges: bytes\n\n0123456789"));
        assert!(ask("Range: lines=2-4").contains("Accept-Ranges: bytes\n"));
        let refused = ask("Range: bytes=10-");
        assert!(
            refused.starts_with("HTTP/1.1 416 Requested Range Not Satisfiable\nContent-Type: text/html\n")
        );
        assert!(refused.contains("\nContent-Range: bytes */10\n\n<html>"), "{refused}");
        assert!(!site.ask("GET /none/a.html", "Range: bytes=1-2\r\n").contains("Accept-Ranges"));
    }

    #[test]
    fn several() {
        let folder = Folder::new(&[("a.html", b"0123456789"), ("big", "z".repeat(200_000).as_bytes())]);
        let site = Site::new(&format!("server {{ root {}; }}", folder.path().display()));
        let answer = site.ask("GET /a.html", "Range: bytes=0-1,-2\r\n");
        let (head, body) = answer.split_once("\n\n").unwrap();
        let boundary = head.split_once("boundary=").unwrap().1.lines().next().unwrap();
        let part = |range: &str| {
            format!("\n--{boundary}\nContent-Type: text/html\nContent-Range: bytes {range}/10\n\n")
        };
        assert_eq!(body, format!("{}01{}89\n--{boundary}--\n", part("0-1"), part("8-9")));
        let length: usize =
            head.split_once("Content-Length: ").unwrap().1.lines().next().unwrap().parse().unwrap();
        assert_eq!(length, body.replace('\n', "\r\n").len());
        let large = site.ask("GET /big", "Range: bytes=0-99999,100000-199998\r\n");
        assert_eq!(large.bytes().filter(|b| *b == b'z').count(), 199_999);
    }

    /// A file that is recoded on its way is a stream.
    #[test]
    fn of_streams() {
        let folder = Folder::new(&[("a.html", b"X123456X89")]);
        let site = Site::new(&format!(
            "charset_map B A {{ 58 59; }} charset A; source_charset B; server {{ root {}; }}",
            folder.path().display()
        ));
        let ask = |ranges: &str| site.ask("GET /a.html", &format!("Range: bytes={ranges}\r\n"));
        assert!(ask("6-7").ends_with("Content-Range: bytes 6-7/10\n\n6Y"));
        let answer = ask("0-1,7-8");
        let (head, body) = answer.split_once("\n\n").unwrap();
        let boundary = head.split_once("boundary=").unwrap().1.lines().next().unwrap();
        let part = |range: &str| {
            let content_type = "Content-Type: text/html; charset=A";
            format!("\n--{boundary}\n{content_type}\nContent-Range: bytes {range}/10\n\n")
        };
        assert_eq!(body, format!("{}Y1{}Y8\n--{boundary}--\n", part("0-1"), part("7-8")));
        // What is to come twice or backwards would have to be kept.
        for ranges in ["0-1,1-2", "7-8,0-1"] {
            assert!(ask(ranges).ends_with("\n\nY123456Y89"), "{ranges}");
        }
    }
}

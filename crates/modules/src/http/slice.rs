//! `ngx_http_slice_filter_module`: asks for a long answer in slices (`proxy_set_header Range $slice_range`).

use std::cell::Cell;
use std::io;
use std::mem;
use std::task::{Context, Poll, ready};

use weir_engine::contract::{Check, Filter, Flow, Install, Step, Variable};
use weir_engine::generation::Plan;
use weir_engine::http::subrequest::Included;
use weir_engine::http::{Body, Exchange, Response, Source};
use weir_engine::http1::{Known, Method};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Fault, Merge, value};
use weir_syntax::{Diagnostic, Level};

pub struct Slice;

type D = Directive<Slice>;

impl Module for Slice {
    const NAME: &'static str = "http_slice_filter";
    type Main = ();
    type Scope = Settings;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[D::scope("slice", Contexts::SCOPES, Takes::ONE, |s, c| s.size.size(c))];
}

/// How long the slices of a level are; 0 asks for everything at once.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    size: Setting<u64>,
}

impl Conf for Settings {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.size.inherit(&outer.size);
        Ok(())
    }
}

impl Install for Slice {
    const VARIABLES: &'static [Variable] = &[Variable::new("slice_range", slice_range)];

    fn install(settings: &Settings, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let size = settings.size.or(0);
        if size > 0 {
            plan.handlers.attach(Size(size));
            plan.handlers.rewrite.push(Box::new(Begin));
            plan.handlers.filters.push(Box::new(Slicing { size }));
        }
        Ok(())
    }
}

/// The size of a level's slices, for the variable.
struct Size(u64);

/// What a request, or a piece of it, knows of its slice.
#[derive(Default)]
struct State {
    /// Where the slice begins and how long it is, once that was asked for: no answer is sliced before.
    asked: Cell<Option<(u64, u64)>>,
    /// The answer is none of slices.
    over: bool,
}

fn slice_range(x: &Exchange, out: &mut Vec<u8>) -> bool {
    let Some(state) = x.extension::<State>().filter(|state| !state.over) else { return false };
    let asked = state.asked.get().or_else(|| {
        // Behind the head of the answer nothing can be asked for any more.
        let Size(size) = x.location().attached().filter(|_| x.response.is_none())?;
        Some((start(x) / size * size, *size))
    });
    state.asked.set(asked);
    let Some((start, size)) = asked else { return false };
    let last = start.saturating_add(size - 1);
    out.extend_from_slice(format!("bytes={start}-{last}").as_bytes());
    true
}

/// Where the one range begins that the client asks for; else at the beginning.
fn start(x: &Exchange) -> u64 {
    if x.header(Known::IfRange).is_some() {
        return 0;
    }
    let list = x.header(Known::Range).and_then(|range| range.split_at_checked(6));
    let Some((_, list)) = list.filter(|(unit, _)| unit.eq_ignore_ascii_case(b"bytes=")) else { return 0 };
    if list.contains(&b',') {
        return 0;
    }
    let list = list.trim_ascii_start();
    let length = list.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(list.len());
    value::number(&list[..length]).unwrap_or(0)
}

/// Makes the place for the state, which asking for the variable cannot.
struct Begin;

impl Check for Begin {
    fn check<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        if !x.is_subrequest() {
            x.extension_mut::<State>();
        }
        Step::Now(Flow::Decline)
    }
}

struct Slicing {
    size: u64,
}

impl Filter for Slicing {
    fn filter(&self, x: &mut Exchange, response: &mut Response) {
        let Some((start, _)) = x.extension::<State>().and_then(|state| state.asked.get()) else { return };
        if response.status != 206 {
            x.extension_mut::<State>().over = true;
            return;
        }
        let length = match check(response, start, self.size, None) {
            Ok(length) => length,
            Err(message) => {
                x.log_while(Level::Error, None, message, DOING);
                if let Body::Stream(mut source) = mem::take(&mut response.body) {
                    source.finish(x, false);
                }
                response.unsent = true;
                return;
            }
        };
        response.status = 200;
        response.status_line = None;
        response.content_length = Some(length);
        response.headers.remove(b"Content-Range");
        response.headers.remove(b"Accept-Ranges");
        response.allow_ranges = true;
        response.single_range = true;
        if x.method != Method::Head {
            let first = mem::take(&mut response.body).into_source();
            response.body = Body::Stream(Box::new(Slices {
                first: Some((start, first)),
                present: None,
                size: self.size,
                length,
                etag: response.headers.first(Known::ETag).map(<[u8]>::to_vec),
                position: 0,
            }));
        }
    }
}

/// What is going on when a slice is judged.
const DOING: &str = "reading response header from upstream";

/// The length of the whole, of which a response is to be the slice that begins there.
fn check(response: &Response, start: u64, size: u64, etag: Option<&[u8]>) -> Result<u64, String> {
    if response.status != 206 {
        return Err(format!("unexpected status code {} in slice response", response.status));
    }
    if etag.is_some() && etag != response.headers.first(Known::ETag) {
        return Err("etag mismatch in slice response".into());
    }
    let range = response.headers.all(b"Content-Range").last();
    let Some((first, end, length)) = range.and_then(content_range) else {
        return Err("invalid range in slice response".into());
    };
    let Some(length) = length else { return Err("no complete length in slice response".into()) };
    let expected = first.saturating_add(size).min(length);
    if (first, end) != (start, expected) {
        return Err(format!(
            "unexpected range in slice response: {first}-{end}, expected: {start}-{expected}"
        ));
    }
    Ok(length)
}

/// `bytes first-last/length`: the first byte, the one behind the last, and the length of the whole unless that is `*`.
fn content_range(text: &[u8]) -> Option<(u64, u64, Option<u64>)> {
    let text = text.strip_prefix(b"bytes ")?;
    let slash = memchr::memchr(b'/', text)?;
    let dash = memchr::memchr(b'-', &text[..slash])?;
    let number =
        |text: &[u8]| value::number(text.trim_ascii()).filter(|number| i64::try_from(*number).is_ok());
    let (first, last) = (number(&text[..dash])?, number(&text[dash + 1..slash])?);
    let length = match text[slash + 1..].trim_ascii() {
        b"*" => None,
        length => Some(number(length)?),
    };
    Some((first, last + 1, length))
}

/// The whole, slice by slice, from wherever it is wanted.
struct Slices {
    /// Where the slice begins that is there already, and its body.
    first: Option<(u64, Box<dyn Source>)>,
    present: Option<Present>,
    size: u64,
    length: u64,
    etag: Option<Vec<u8>>,
    /// Where in the whole the next byte is.
    position: u64,
}

/// The slice that the next byte is in.
struct Present {
    start: u64,
    body: Part,
    /// Bytes of it before the next byte.
    skip: u64,
    /// Bytes of it from the next one on.
    left: u64,
}

enum Part {
    First(Box<dyn Source>),
    /// To be judged by its head.
    Asked(Included),
    Piece(Included),
}

impl Part {
    fn source(&self) -> &dyn Source {
        match self {
            Self::First(source) => &**source,
            Self::Asked(part) | Self::Piece(part) => part,
        }
    }

    fn source_mut(&mut self) -> &mut dyn Source {
        match self {
            Self::First(source) => &mut **source,
            Self::Asked(part) | Self::Piece(part) => part,
        }
    }
}

impl Slices {
    fn begin(&mut self, x: &mut Exchange) -> io::Result<Present> {
        let start = self.position / self.size * self.size;
        let end = start.saturating_add(self.size).min(self.length);
        let body = match self.first.take() {
            Some((first, source)) if first == start => Part::First(source),
            unwanted => {
                if let Some((_, mut source)) = unwanted {
                    source.finish(x, false);
                }
                let mut piece = x.piece().map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
                // The request itself asks for this one now, which its log may show.
                x.extension_mut::<State>().asked.set(Some((start, self.size)));
                piece.extension_mut::<State>().asked.set(Some((start, self.size)));
                Part::Asked(Included::new(piece))
            }
        };
        Ok(Present { start, body, skip: self.position - start, left: end - self.position })
    }
}

impl Source for Slices {
    fn poll_ready(&mut self, x: &mut Exchange, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while self.position < self.length {
            let mut present = match self.present.take() {
                Some(present) => present,
                None => self.begin(x)?,
            };
            let polled = present.poll(self.size, self.etag.as_deref(), x, cx);
            if let Poll::Ready(Ok(false)) = polled {
                continue;
            }
            self.present = Some(present);
            return polled;
        }
        Poll::Ready(Ok(false))
    }

    fn data(&self) -> &[u8] {
        let Some(present) = &self.present else { return &[] };
        let data = present.body.source().data();
        &data[..data.len().min(usize::try_from(present.left).unwrap_or(usize::MAX))]
    }

    fn consume(&mut self, n: usize) {
        if let Some(present) = &mut self.present {
            present.body.source_mut().consume(n);
            present.left -= n as u64;
            self.position += n as u64;
        }
    }

    fn skip(&mut self, n: u64) -> u64 {
        let skipped = if self.present.is_none() { n } else { 0 };
        self.position += skipped;
        skipped
    }

    fn postpones(&self) -> bool {
        self.position < self.length
    }

    fn read_ahead(&mut self, x: &mut Exchange, cx: &mut Context<'_>) {
        if let Some(present) = &mut self.present {
            present.body.source_mut().read_ahead(x, cx);
        }
    }

    fn ends_with_client(&self) -> bool {
        self.present.as_ref().is_some_and(|present| present.body.source().ends_with_client())
    }

    fn finish(&mut self, x: &mut Exchange, complete: bool) {
        if let Some((_, mut first)) = self.first.take() {
            first.finish(x, complete);
        }
        if let Some(mut present) = self.present.take() {
            present.body.source_mut().finish(x, complete);
        }
        x.extension_mut::<State>().over = complete;
    }
}

impl Present {
    /// Makes bytes of the slice ready; false once it is over.
    fn poll(
        &mut self,
        size: u64,
        etag: Option<&[u8]>,
        x: &mut Exchange,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<bool>> {
        if let Part::Asked(part) = &mut self.body {
            ready!(part.poll_head(x, cx))?;
            let answered = part.answered().and_then(|piece| Some((piece, piece.response.as_ref()?)));
            let Some((piece, response)) = answered else { return Poll::Ready(Err(cut_off())) };
            if let Err(message) = check(response, self.start, size, etag) {
                piece.log_while(Level::Error, None, message, DOING);
                return Poll::Ready(Err(cut_off()));
            }
            let judged = mem::replace(&mut self.body, Part::First(Body::Empty.into_source()));
            if let Part::Asked(part) = judged {
                self.body = Part::Piece(part);
            }
        }
        let source = self.body.source_mut();
        if self.left == 0 {
            source.finish(x, true);
            return Poll::Ready(Ok(false));
        }
        loop {
            if !ready!(source.poll_ready(x, cx))? {
                return Poll::Ready(Err(cut_off()));
            }
            if self.skip == 0 {
                return Poll::Ready(Ok(true));
            }
            let skipped = (source.data().len() as u64).min(self.skip);
            source.consume(skipped as usize);
            self.skip -= skipped;
        }
    }
}

/// A slice is not what it should be, so the whole ends here.
fn cut_off() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check_conf;

    #[test]
    fn messages() {
        check_conf("slice 1m; server { slice 0; location / { slice 2; } }", "");
        check_conf("slice 1; slice 1;", "\"slice\" directive is duplicate");
        check_conf("slice x;", "\"slice\" directive invalid value");
        check_conf(
            "server { location / { if ($uri) { slice 1; } } }",
            "\"slice\" directive is not allowed here",
        );
    }

    #[test]
    fn content_ranges() {
        for (text, expected) in [
            ("bytes 0-1/16", Some((0, 2, Some(16)))),
            ("bytes  0 - 1 / 16 ", Some((0, 2, Some(16)))),
            ("bytes 5-9/*", Some((5, 10, None))),
            ("bytes */16", None),
            ("bytes 0-1", None),
            ("bytes 0-/16", None),
            ("octets 0-1/16", None),
            ("bytes 0-9223372036854775808/16", None),
            ("bytes 0-1/16x", None),
        ] {
            assert_eq!(content_range(text.as_bytes()), expected, "{text}");
        }
    }
}

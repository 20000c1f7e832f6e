//! What filters of bodies share: any body as a stream, and a stream whose bytes are changed on their way.

use std::borrow::Cow;
use std::io;
use std::task::{Context, Poll, ready};

use weir_engine::disk::Reader;
use weir_engine::http::response::{FilePart, Text};
use weir_engine::http::{Body, Exchange, Headers, Response, Source};

/// Bytes of a file that are read at once.
const READ: usize = 64 * 1024;
/// Bytes that are made before they are sent.
const ROOM: usize = 16 * 1024;
/// Up to here a body in memory is changed in one go.
const SMALL: usize = 64 * 1024;
/// Bytes that are changed before other connections have their turn: with the best compression that is a tenth of a second.
const TURN: usize = 64 * 1024;

/// What becomes of the bytes of a body.
pub(super) trait Transform: 'static {
    /// Whether a small body becomes a small body, so that it can be changed in one go.
    const BOUNDED: bool = true;

    /// Takes bytes and appends what is made of them. It may take fewer once `out` has reached its capacity.
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<usize>;
    /// Nothing follows for the moment: appends what was taken and can go already.
    fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()>;
    /// Nothing follows any more: appends the rest. False where it needs more room first.
    fn end(&mut self, out: &mut Vec<u8>) -> io::Result<bool>;
    /// Called once, when the body was sent or given up.
    fn finish(&mut self, x: &mut Exchange) {
        let _ = x;
    }
}

/// Sends the body of a response through a transformation.
pub(super) fn transform<T: Transform>(change: T, x: &mut Exchange, response: &mut Response) {
    response.body = match std::mem::take(&mut response.body) {
        tunnel @ Body::Tunnel(_) => tunnel,
        Body::Empty => in_one_go(b"", change, x),
        Body::Bytes(bytes) if T::BOUNDED && bytes.len() <= SMALL => in_one_go(&bytes, change, x),
        Body::Bytes(bytes) => stream(Box::new(Pieces::new(vec![Piece::Text(bytes)])), change),
        Body::File(part) => stream(Box::new(Pieces::new(vec![Piece::File(part)])), change),
        Body::Stream(inner) => stream(inner, change),
    };

    fn stream(inner: Box<dyn Source>, change: impl Transform) -> Body {
        Body::Stream(Box::new(Transformed {
            inner,
            change,
            out: vec![],
            at: 0,
            turn: 0,
            stage: Stage::Running,
        }))
    }

    fn in_one_go(bytes: &[u8], mut change: impl Transform, x: &mut Exchange) -> Body {
        let body = match whole(bytes, &mut change) {
            Ok(out) if out.is_empty() => Body::Empty,
            Ok(out) => Body::Bytes(out.into()),
            Err(_) => Body::Stream(Box::new(Broken)),
        };
        change.finish(x);
        body
    }
}

fn whole(mut bytes: &[u8], change: &mut impl Transform) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len() / 2 + 64);
    while !bytes.is_empty() {
        let taken = change.push(bytes, &mut out)?;
        bytes = &bytes[taken..];
        if !bytes.is_empty() {
            out.reserve(out.capacity());
        }
    }
    while !change.end(&mut out)? {
        out.reserve(out.capacity());
    }
    Ok(out)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    /// The inner body is over, what was made of it not yet.
    Ending,
    Over,
}

/// A stream whose bytes are changed on their way.
struct Transformed<T> {
    inner: Box<dyn Source>,
    change: T,
    out: Vec<u8>,
    /// Where the bytes begin that were not taken yet.
    at: usize,
    /// Bytes changed since others had their turn.
    turn: usize,
    stage: Stage,
}

impl<T: Transform> Transformed<T> {
    fn fill(&mut self, x: &mut Exchange, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while self.stage != Stage::Over && self.out.len() < ROOM {
            if self.stage == Stage::Ending {
                if self.change.end(&mut self.out)? {
                    self.stage = Stage::Over;
                }
                continue;
            }
            if self.turn >= TURN {
                self.turn = 0;
                cx.waker().wake_by_ref();
                break;
            }
            match self.inner.poll_ready(x, cx) {
                Poll::Ready(Ok(true)) => {
                    let taken = self.change.push(self.inner.data(), &mut self.out)?;
                    self.inner.consume(taken);
                    self.turn += taken;
                }
                Poll::Ready(Ok(false)) => self.stage = Stage::Ending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.turn = 0;
                    self.change.flush(&mut self.out)?;
                    break;
                }
            }
        }
        match self.stage {
            _ if !self.out.is_empty() => Poll::Ready(Ok(true)),
            Stage::Over => Poll::Ready(Ok(false)),
            Stage::Running | Stage::Ending => Poll::Pending,
        }
    }
}

impl<T: Transform> Source for Transformed<T> {
    fn poll_ready(&mut self, x: &mut Exchange, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.at < self.out.len() {
            return Poll::Ready(Ok(true));
        }
        self.at = 0;
        self.out.clear();
        self.out.reserve(ROOM);
        self.fill(x, cx)
    }

    fn data(&self) -> &[u8] {
        &self.out[self.at..]
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }

    fn is_last(&self) -> bool {
        self.stage == Stage::Over && self.inner.trailers().is_none()
    }

    fn postpones(&self) -> bool {
        self.inner.postpones()
    }

    fn read_ahead(&mut self, x: &mut Exchange, cx: &mut Context<'_>) {
        self.inner.read_ahead(x, cx);
    }

    fn ends_with_client(&self) -> bool {
        self.inner.ends_with_client()
    }

    fn finish(&mut self, x: &mut Exchange, complete: bool) {
        self.inner.finish(x, complete);
        self.change.finish(x);
    }

    fn trailers(&self) -> Option<&Headers> {
        self.inner.trailers()
    }
}

/// A body put together of texts and parts of files.
pub(super) struct Pieces {
    /// What is still to be read, the next one last.
    parts: Vec<Piece>,
    reader: Reader,
    buffer: Vec<u8>,
    /// Where in the buffer the bytes begin that were not taken yet.
    at: usize,
}

pub(super) enum Piece {
    Text(Text),
    File(FilePart),
}

impl Pieces {
    pub(super) fn new(mut parts: Vec<Piece>) -> Self {
        parts.reverse();
        Self { parts, reader: Reader::default(), buffer: vec![], at: 0 }
    }

    /// Fills the empty buffer with the next pieces, up to one read of a file.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(piece) = self.parts.pop() {
            match piece {
                Piece::Text(Cow::Owned(text)) if self.buffer.is_empty() => self.buffer = text,
                Piece::Text(text) => self.buffer.extend_from_slice(&text),
                Piece::File(mut part) => {
                    let start = self.buffer.len();
                    let room = part.length.min(READ as u64);
                    self.buffer.resize(start + room as usize, 0);
                    let read = self.reader.poll_read(cx, &part.file, &mut self.buffer[start..], part.offset);
                    let n = if let Poll::Ready(Ok(n)) = &read { *n } else { 0 };
                    self.buffer.truncate(start + n);
                    part.offset += n as u64;
                    part.length -= n as u64;
                    let rest = part.length > 0;
                    if rest {
                        self.parts.push(Piece::File(part));
                    }
                    if rest && ready!(read)? == 0 {
                        // It was truncated meanwhile.
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    // The last text follows its range at once.
                    if rest || self.parts.len() > 1 {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Source for Pieces {
    fn poll_ready(&mut self, _: &mut Exchange, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
            if self.parts.is_empty() {
                return Poll::Ready(Ok(false));
            }
            ready!(self.poll_fill(cx))?;
        }
        Poll::Ready(Ok(true))
    }

    fn data(&self) -> &[u8] {
        &self.buffer[self.at..]
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }

    fn is_last(&self) -> bool {
        self.parts.is_empty()
    }
}

/// A body that cannot be made.
pub(super) struct Broken;

impl Source for Broken {
    fn poll_ready(&mut self, _: &mut Exchange, _: &mut Context<'_>) -> Poll<io::Result<bool>> {
        Poll::Ready(Err(io::ErrorKind::InvalidData.into()))
    }

    fn data(&self) -> &[u8] {
        b""
    }

    fn consume(&mut self, _: usize) {}
}

#[cfg(test)]
pub(super) mod tests {
    use std::task::Waker;

    use super::*;
    use crate::testing::with_exchange;

    /// What becomes of a body in one go.
    pub(in crate::http) fn pushed(body: &[u8], mut change: impl Transform) -> Vec<u8> {
        whole(body, &mut change).unwrap()
    }

    /// Comes in pieces of that size, with a pause before each and before the end.
    struct Paused<'b> {
        body: &'b [u8],
        size: usize,
        pause: bool,
    }

    impl Source for Paused<'_> {
        fn poll_ready(&mut self, _: &mut Exchange, _: &mut Context<'_>) -> Poll<io::Result<bool>> {
            self.pause = !self.pause;
            if self.pause { Poll::Pending } else { Poll::Ready(Ok(!self.body.is_empty())) }
        }

        fn data(&self) -> &[u8] {
            &self.body[..self.size.min(self.body.len())]
        }

        fn consume(&mut self, n: usize) {
            self.body = &self.body[n..];
        }
    }

    /// What becomes of a stream that pauses.
    pub(in crate::http) fn pulled(body: &[u8], size: usize, change: impl Transform) -> Vec<u8> {
        let inner = Paused { body: body.to_vec().leak(), size, pause: false };
        let mut source = Transformed {
            inner: Box::new(inner),
            change,
            out: vec![],
            at: 0,
            turn: 0,
            stage: Stage::Running,
        };
        with_exchange(move |x| {
            let mut all = vec![];
            loop {
                match source.poll_ready(x, &mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(Ok(true)) => {
                        // A client that takes half of it.
                        let taken = source.data().len().div_ceil(2);
                        all.extend_from_slice(&source.data()[..taken]);
                        source.consume(taken);
                    }
                    Poll::Ready(Ok(false)) => return all,
                    Poll::Ready(Err(error)) => panic!("{error}"),
                    Poll::Pending => {}
                }
            }
        })
    }
}

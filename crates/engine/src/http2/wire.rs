//! A connection's bytes as hyper takes them, counted, and what it has no frames for between its own.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::header::{HeaderName, HeaderValue};
use hyper::rt::{Read, ReadBufCursor, Write};

use super::frames::{Came, END_HEADERS, Frames, HEADERS, RST_STREAM, Sent};
use crate::io::{Buf, Io, scratch};

/// Bytes of frames between hyper's that may wait for the client.
const ROOM: usize = 16 * 1024;

pub(super) struct Wire {
    /// Shared with whoever ends the connection after hyper.
    pub(super) io: Rc<RefCell<Io>>,
    /// What was read before.
    pub(super) input: Buf,
    pub(super) traffic: Rc<Traffic>,
}

/// What has come and gone.
pub(super) struct Traffic {
    /// Bytes read and written.
    pub(super) moved: Cell<u64>,
    /// The client's.
    pub(super) frames: RefCell<Frames>,
    /// The client has ended its direction.
    pub(super) ended: Cell<bool>,
    /// There is more to write than it takes.
    pub(super) stuck: Cell<bool>,
    /// How often it took some of that.
    taken: Cell<u64>,
    /// Hyper's.
    sent: RefCell<Sent>,
    /// Frames that go between them.
    between: RefCell<Buf>,
    /// Frames for hyper that go between the client's.
    inward: RefCell<Buf>,
}

impl Traffic {
    pub(super) fn new() -> Self {
        Self {
            moved: Cell::new(0),
            frames: RefCell::new(Frames::new()),
            ended: Cell::new(false),
            stuck: Cell::new(false),
            taken: Cell::new(0),
            sent: RefCell::new(Sent::new()),
            between: RefCell::new(Buf::new()),
            inward: RefCell::new(Buf::new()),
        }
    }

    /// The head of the request that hyper hands over.
    pub(super) fn take_head(&self) -> Option<Came> {
        self.frames.borrow_mut().take_head()
    }

    /// Has a head sent ahead of that of a stream's answer, in one frame of fields that leave no trace in the table of fields. Says how
    /// long it is, or nothing if the client is not to have it: it takes little, or no fields of others than hyper.
    pub(super) fn hint<'a>(
        &self,
        stream: u32,
        status: u16,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Option<u64> {
        let mut between = self.between.borrow_mut();
        if !self.frames.borrow().takes_fields() {
            return None;
        }
        let mut block = vec![STATUS];
        string(&mut block, &status.to_string().into_bytes());
        for (name, value) in fields {
            let (Ok(name), Ok(_)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) else {
                continue;
            };
            if OF_HTTP1.contains(&name.as_str()) {
                continue;
            }
            block.push(UNINDEXED);
            string(&mut block, name.as_str().as_bytes());
            string(&mut block, value);
        }
        if between.len() + block.len() > ROOM {
            return None;
        }
        frame(&mut between, HEADERS, END_HEADERS, stream, &block);
        Some((HEADER + block.len()) as u64)
    }

    /// Resets a stream. Hyper cannot where the client has no room for what it sends, so to hyper it is the client that does.
    pub(super) fn reset(&self, stream: u32, code: u32) {
        self.frames.borrow_mut().end(stream);
        for buf in [&self.between, &self.inward] {
            frame(&mut buf.borrow_mut(), RST_STREAM, 0, stream, &code.to_be_bytes());
        }
    }

    /// Grows where the client takes answers, whatever else comes of it.
    pub(super) fn progress(&self) -> u64 {
        self.taken.get() + self.frames.borrow().windows()
    }
}

/// Fields of a connection, which HTTP/2 has not (RFC 9113 section 8.2.2).
const OF_HTTP1: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

/// Bytes of a frame's header.
const HEADER: usize = 9;
/// Fields that no table is to have (RFC 7541 section 6.2.2): `:status` by its place in the static one, and by name.
const STATUS: u8 = 8;
const UNINDEXED: u8 = 0;

/// Appends a frame.
fn frame(buf: &mut Buf, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    buf.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    buf.extend(&[kind, flags]);
    buf.extend(&stream.to_be_bytes());
    buf.extend(payload);
}

/// Appends a string as it is, behind its length (RFC 7541 sections 5.1 and 5.2).
fn string(block: &mut Vec<u8>, bytes: &[u8]) {
    match u8::try_from(bytes.len()) {
        Ok(length @ ..127) => block.push(length),
        Ok(_) | Err(_) => {
            block.push(127);
            let mut left = bytes.len() - 127;
            while left >= 128 {
                block.push(left as u8 | 128);
                left >>= 7;
            }
            block.push(left as u8);
        }
    }
    block.extend_from_slice(bytes);
}

impl Wire {
    fn count(&self, n: usize) {
        let moved = &self.traffic.moved;
        moved.set(moved.get() + n as u64);
    }

    /// Takes what a write came to.
    fn went(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let was_stuck = self.traffic.stuck.replace(written.is_pending());
        let n = ready!(written)?;
        self.count(n);
        let taken = &self.traffic.taken;
        taken.set(taken.get() + u64::from(was_stuck));
        Poll::Ready(Ok(n))
    }

    fn came(&self, bytes: &[u8]) {
        self.count(bytes.len());
        self.traffic.frames.borrow_mut().feed(bytes);
    }

    /// Sends what goes between hyper's frames, if this is such a place. Gives the bytes that hyper may write.
    fn poll_between(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut between = self.traffic.between.borrow_mut();
        if between.is_empty() {
            return Poll::Ready(Ok(usize::MAX));
        }
        let left = self.traffic.sent.borrow().left();
        if left > 0 {
            return Poll::Ready(Ok(left));
        }
        while !between.is_empty() {
            let written = self.io.borrow_mut().poll_write(cx, &between);
            let n = ready!(self.went(written))?;
            between.consume(n);
        }
        between.release();
        Poll::Ready(Ok(usize::MAX))
    }

    /// Writes pieces of hyper's.
    fn poll_pieces(&self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let room = ready!(self.poll_between(cx))?;
        let written = match pieces.iter().find(|piece| !piece.is_empty()) {
            Some(piece) if room < piece.len() => self.io.borrow_mut().poll_write(cx, &piece[..room]),
            Some(piece) if room < usize::MAX => self.io.borrow_mut().poll_write(cx, piece),
            Some(_) | None => self.io.borrow_mut().poll_write_vectored(cx, pieces),
        };
        let written = ready!(self.went(written))?;
        let mut sent = self.traffic.sent.borrow_mut();
        let mut frames = self.traffic.frames.borrow_mut();
        let mut left = written;
        for piece in pieces {
            let n = left.min(piece.len());
            sent.feed(&piece[..n], &mut frames);
            left -= n;
        }
        Poll::Ready(Ok(written))
    }
}

impl Read for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut most = into.remaining();
        let mut inward = this.traffic.inward.borrow_mut();
        if !inward.is_empty() {
            most = most.min(this.traffic.frames.borrow().left());
            if most == 0 {
                let n = inward.len().min(into.remaining());
                into.put_slice(&inward[..n]);
                inward.consume(n);
                return Poll::Ready(Ok(()));
            }
        }
        if !this.input.is_empty() {
            let n = this.input.len().min(most);
            into.put_slice(&this.input[..n]);
            this.came(&this.input[..n]);
            this.input.consume(n);
            if this.input.is_empty() {
                this.input.release();
            }
            return Poll::Ready(Ok(()));
        }
        scratch(|bytes| {
            let room = bytes.len().min(most);
            let n = ready!(this.io.borrow_mut().poll_read(cx, &mut bytes[..room]))?;
            into.put_slice(&bytes[..n]);
            this.came(&bytes[..n]);
            this.traffic.ended.set(n == 0 && room > 0);
            Poll::Ready(Ok(()))
        })
    }
}

impl Write for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_pieces(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_pieces(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_between(cx))?;
        self.io.borrow_mut().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.borrow_mut().poll_shutdown_write(cx)
    }
}

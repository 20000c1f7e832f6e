//! A connection's bytes as hyper takes them, counted.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::frames::Frames;
use crate::io::{Buf, Io, scratch};

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
}

impl Traffic {
    pub(super) fn new() -> Self {
        Self {
            moved: Cell::new(0),
            frames: RefCell::new(Frames::new()),
            ended: Cell::new(false),
            stuck: Cell::new(false),
            taken: Cell::new(0),
        }
    }

    /// Grows where the client takes answers, whatever else comes of it.
    pub(super) fn progress(&self) -> u64 {
        self.taken.get() + self.frames.borrow().windows()
    }
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
}

impl Read for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.input.is_empty() {
            let n = this.input.len().min(into.remaining());
            into.put_slice(&this.input[..n]);
            this.came(&this.input[..n]);
            this.input.consume(n);
            if this.input.is_empty() {
                this.input.release();
            }
            return Poll::Ready(Ok(()));
        }
        scratch(|bytes| {
            let room = bytes.len().min(into.remaining());
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
        let written = self.io.borrow_mut().poll_write(cx, bytes);
        self.went(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.io.borrow_mut().poll_write_vectored(cx, pieces);
        self.went(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.borrow_mut().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.borrow_mut().poll_shutdown_write(cx)
    }
}

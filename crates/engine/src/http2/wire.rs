//! A connection's bytes as hyper reads and writes them: what comes goes through [`Inward`], what it writes through [`Outward`].

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::frame::{FLOW_CONTROL_ERROR, Fault};
use super::hpack::Fields;
use super::inward::{Inward, Rules};
use super::outward::Outward;
use super::request::Came;
use super::seats::Seats;
use crate::io::{Buf, Io, scratch};

/// Bytes for the client at which hyper waits until some of them are gone.
const MOST: usize = 64 * 1024;
/// Those at which no more of its frames are read: what is said to them takes more than they do.
const TOO_MANY: usize = 4 * MOST;
/// Bytes at which it is worth to write before hyper has had its turn.
const ENOUGH: usize = 16 * 1024;
/// Reads before others have their turn.
const READS: usize = 8;

pub(super) struct Wire {
    /// What was read before.
    pub(super) input: Buf,
    pub(super) traffic: Rc<Traffic>,
}

/// What has come and gone.
pub(super) struct Traffic {
    io: RefCell<Io>,
    /// Bytes read and written.
    pub(super) moved: Cell<u64>,
    pub(super) inward: RefCell<Inward>,
    outward: RefCell<Outward>,
    pub(super) seats: RefCell<Seats>,
    /// What the client did for which the connection ends.
    fault: RefCell<Option<Fault>>,
    /// There is more to write than it takes.
    pub(super) stuck: Cell<bool>,
    /// How often it took some of that.
    taken: Cell<u64>,
    /// Some of what was written may wait below.
    unflushed: Cell<bool>,
}

impl Traffic {
    pub(super) fn new(io: Io, rules: Rules) -> Self {
        Self {
            io: RefCell::new(io),
            moved: Cell::new(0),
            inward: RefCell::new(Inward::new(rules)),
            outward: RefCell::new(Outward::new(rules.window)),
            seats: RefCell::new(Seats::new()),
            fault: RefCell::default(),
            stuck: Cell::new(false),
            taken: Cell::new(0),
            unflushed: Cell::new(false),
        }
    }

    /// For whoever ends the connection after hyper.
    pub(super) fn take_io(&self) -> Io {
        self.io.replace(Io::Absent)
    }

    /// The request that hyper hands over.
    pub(super) fn take(&self, stream: u32) -> Option<Box<Came>> {
        self.seats.borrow_mut().take(stream)
    }

    /// Has a head sent ahead of that of a stream's answer. Says about how long it is, or nothing if the client is not to have it.
    pub(super) fn hint(&self, stream: u32, status: u16, fields: Fields) -> Option<u64> {
        self.outward.borrow_mut().hint(stream, status, fields)
    }

    /// Lets the client send more of a request.
    pub(super) fn widen(&self, stream: u32, by: u32) {
        self.seats.borrow_mut().admit(stream, by);
        self.outward.borrow_mut().widen(stream, by);
    }

    /// Resets a stream, which hyper takes for the client's doing.
    pub(super) fn reset(&self, stream: u32, code: u32) {
        self.outward.borrow_mut().reset(stream, code);
        self.inward.borrow_mut().reset(stream, code);
        self.seats.borrow_mut().close(stream);
    }

    /// Tells the client that no more requests are served; what has come by now is.
    pub(super) fn part(&self) {
        let last = self.inward.borrow_mut().part();
        self.outward.borrow_mut().part(last, 0);
    }

    /// Tells it that the connection ends for what it did.
    pub(super) fn fail(&self, code: u32) {
        let last = self.inward.borrow().last();
        self.outward.borrow_mut().part(last, code);
    }

    /// Gives the head that has begun up; says whether there is one.
    pub(super) fn forgo(&self) -> bool {
        self.inward.borrow_mut().forgo(&mut self.outward.borrow_mut())
    }

    /// Resets streams of which more has come than may.
    pub(super) fn reset_exceeded(&self) {
        let exceeded = self.seats.borrow_mut().exceeded();
        for stream in exceeded {
            self.reset(stream, FLOW_CONTROL_ERROR);
        }
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault.borrow().clone()
    }

    /// Whether all answers are out.
    pub(super) fn rests(&self) -> bool {
        self.seats.borrow().rest() && self.outward.borrow().out.is_empty()
    }

    /// Bytes for the client that it has not taken.
    #[cfg(test)]
    pub(super) fn waits(&self) -> usize {
        self.outward.borrow().out.len()
    }

    /// Grows where the client takes answers, whatever else comes of it.
    pub(super) fn progress(&self) -> u64 {
        self.taken.get() + self.inward.borrow().windows()
    }

    fn count(&self, n: usize) {
        self.moved.set(self.moved.get() + n as u64);
    }

    /// Takes what has come.
    fn came(&self, bytes: &[u8]) {
        self.count(bytes.len());
        let (mut seats, mut outward) = (self.seats.borrow_mut(), self.outward.borrow_mut());
        if let Err(fault) = self.inward.borrow_mut().feed(bytes, &mut seats, &mut outward) {
            *self.fault.borrow_mut() = Some(fault);
        }
    }

    /// Writes until the client takes no more.
    ///
    /// # Errors
    /// Its connection is broken.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outward = self.outward.borrow_mut();
        outward.acknowledge(&self.seats.borrow());
        let out = &mut outward.out;
        let mut io = self.io.borrow_mut();
        while !out.is_empty() {
            let written = io.poll_write(cx, out);
            let was_stuck = self.stuck.replace(written.is_pending());
            let n = ready!(written)?;
            self.count(n);
            self.unflushed.set(true);
            self.taken.set(self.taken.get() + u64::from(was_stuck));
            out.consume(n);
        }
        if self.unflushed.get() {
            out.release();
            ready!(io.poll_flush(cx))?;
            self.unflushed.set(false);
        }
        Poll::Ready(Ok(()))
    }
}

impl Read for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let traffic = &this.traffic;
        for _ in 0..READS {
            {
                let out = &mut traffic.inward.borrow_mut().out;
                if !out.is_empty() {
                    let n = out.len().min(into.remaining());
                    into.put_slice(&out[..n]);
                    out.consume(n);
                    if out.is_empty() {
                        out.release();
                    }
                    return Poll::Ready(Ok(()));
                }
            }
            if traffic.fault.borrow().is_some() {
                return Poll::Pending;
            }
            if traffic.outward.borrow().out.len() >= TOO_MANY {
                let written = traffic.poll_write(cx)?;
                if written.is_pending() && traffic.outward.borrow().out.len() >= TOO_MANY {
                    return Poll::Pending;
                }
            }
            if !this.input.is_empty() {
                traffic.came(&this.input);
                this.input.clear();
                this.input.release();
                continue;
            }
            let n = ready!(scratch(|bytes| {
                let n = ready!(traffic.io.borrow_mut().poll_read(cx, bytes))?;
                traffic.came(&bytes[..n]);
                Poll::Ready(io::Result::Ok(n))
            }))?;
            if n == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        // Nothing of it was for hyper.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Write for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let traffic = &self.traffic;
        if traffic.outward.borrow().out.len() >= MOST {
            let written = traffic.poll_write(cx)?;
            if written.is_pending() && traffic.outward.borrow().out.len() >= MOST {
                return Poll::Pending;
            }
        }
        let (mut seats, mut outward) = (traffic.seats.borrow_mut(), traffic.outward.borrow_mut());
        for piece in pieces {
            outward.feed(piece, &mut seats);
        }
        Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The rest is written when hyper has had its turn, all of it at once.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.traffic.outward.borrow().out.len() >= ENOUGH {
            let _ = self.traffic.poll_write(cx)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.traffic.poll_write(cx))?;
        self.traffic.io.borrow_mut().poll_shutdown_write(cx)
    }
}

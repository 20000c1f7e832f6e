//! A connection's bytes as h2 reads and writes them: what comes goes through [`Inward`], what it writes through [`Outward`].

use std::cell::{Cell, OnceCell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::inward::Inward;
use super::outward::Outward;
use super::seats::Seats;
use crate::io::{Io, scratch};

/// Bytes that may come beside what was asked for; an eighth of all may always.
const SLACK: u64 = 1 << 20;

/// Bytes for the peer at which h2 waits until some of them are gone.
const MOST: usize = 64 * 1024;

/// Reads before others have their turn.
const READS: usize = 8;

/// What is known of a connection's streams, and how much of what they are for has gone through.
#[derive(Default)]
pub(super) struct Traffic {
    pub(super) seats: RefCell<Seats>,
    /// Bytes of requests and answers.
    pub(super) payload: Cell<u64>,
    /// What the peer did for which the connection has ended.
    pub(super) fault: OnceCell<String>,
}

/// A connection's bytes, as far as they are of use: a peer that sends no more than PING and the like is cut off, also while
/// nobody asks it for anything.
pub(super) struct Wire {
    io: Io,
    came: u64,
    traffic: Rc<Traffic>,
    inward: Inward,
    outward: Outward,
}

impl Wire {
    pub(super) fn new(io: Io, traffic: &Rc<Traffic>) -> Self {
        Self { io, came: 0, traffic: Rc::clone(traffic), inward: Inward::new(), outward: Outward::new() }
    }

    /// Takes what has come.
    fn came(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.came += bytes.len() as u64;
        if self.came / 8 > self.traffic.payload.get() + SLACK {
            return Err(io::Error::other("upstream sent too many frames that are no answers"));
        }
        self.inward.feed(bytes, &mut self.traffic.seats.borrow_mut(), &mut self.outward);
        Ok(())
    }

    /// Writes until the peer takes no more.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let out = &mut self.outward.out;
        while !out.is_empty() {
            let n = ready!(self.io.poll_write(cx, out))?;
            out.consume(n);
        }
        out.release();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        for _ in 0..READS {
            let out = &mut this.inward.out;
            if !out.is_empty() {
                let n = out.len().min(into.remaining());
                into.put_slice(&out[..n]);
                out.consume(n);
                if out.is_empty() {
                    out.release();
                }
                return Poll::Ready(Ok(()));
            }
            if let Some(fault) = &this.inward.fault {
                let fault = this.traffic.fault.get_or_init(|| fault.clone());
                return Poll::Ready(Err(io::Error::other(fault.as_str())));
            }
            let n = ready!(scratch(|bytes| {
                let n = ready!(this.io.poll_read(cx, bytes))?;
                this.came(&bytes[..n])?;
                Poll::Ready(io::Result::Ok(n))
            }))?;
            if n == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        // Nothing of it was for h2.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.outward.out.len() >= MOST {
            let written = this.poll_out(cx)?;
            if written.is_pending() && this.outward.out.len() >= MOST {
                return Poll::Pending;
            }
        }
        let mut seats = this.traffic.seats.borrow_mut();
        for piece in pieces {
            this.outward.feed(piece, &mut seats);
        }
        Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

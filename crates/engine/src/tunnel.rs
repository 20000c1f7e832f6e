//! A tunnel: bytes copied both ways between a client and an upstream (WebSocket and any other Upgrade, CONNECT, the
//! stream proxy) without a buffer while nothing is in flight.
//!
//! ```text
//! client ──read──▶ scratch of the thread ──write──▶ upstream      one read and one write a message
//!                        └─ what the upstream did not take ─▶ pending, at most 64 KiB; no more is read until it is out
//! ```
//! Who ends a tunnel, as nginx has it for upgraded connections (seen on the wire of nginx 1.31.5):
//! - An end or a reset on either side, once the bytes read from that side are delivered, closes both: nginx knows no
//!   half-closed upgraded connection, and what the other side would still have said is lost. Over HTTP/2, which nginx has no
//!   tunnels of, a browser ends its stream together with the Close frame of a WebSocket and waits for the other's, so there
//!   the upstream has its say after that.
//! - `proxy_read_timeout` runs while nothing waits to be delivered to the client, `proxy_send_timeout` while bytes
//!   for the upstream wait, `send_timeout` while bytes for the client wait. **Any** byte moved in **either** direction
//!   starts all of them anew, so a client that keeps sending keeps a silent upstream.
//! - The upstream not taking bytes does not stop the read timeout: with 2 s to read and 3 s to send, a stuck upstream
//!   is given up after 2 s, as "upstream timed out".

use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::io::{Buf, Io, scratch};
use crate::timer::{Timer, Timers};
use crate::upstream::Load;

/// Reads a direction may make before the other tasks of the thread have their turn.
const READS_A_TURN: u32 = 8;
/// Milliseconds that an upstream has to end what its client has ended.
const CLOSING: u64 = 30_000;
/// No drain asked for.
const NEVER: u64 = u64::MAX;

/// How a tunnel behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Longest silence, in milliseconds (nginx: `proxy_read_timeout`; `proxy_timeout` in a stream).
    pub read_timeout: u64,
    /// Longest time that bytes wait for the upstream, in milliseconds (nginx: `proxy_send_timeout`).
    pub send_timeout: u64,
    /// Longest time that bytes wait for the client, in milliseconds (nginx: `send_timeout`).
    pub client_send_timeout: u64,
    pub half_close: HalfClose,
}

/// Whether an end on one side leaves the other direction open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfClose {
    /// It closes both.
    Never,
    /// The client's is passed on, and the upstream has [`CLOSING`] for the rest.
    Client,
    /// Either does (nginx: `proxy_half_close` in a stream). The read timeout then also covers the client's direction.
    Both,
}

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that connected to us.
    Client,
    /// The one that we connected to.
    Upstream,
}

/// The system call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Reading; logged by nginx as `recv() failed`.
    Recv,
    /// Writing; logged by nginx as `send() failed`.
    Send,
}

/// Why a tunnel is closed.
#[derive(Debug)]
pub enum Reason {
    /// This side ended its stream (first, where both did).
    Eof(Side),
    /// This side was silent, or did not take bytes, for too long.
    Timeout(Side),
    /// This side's connection broke.
    Failed {
        /// Whose connection.
        side: Side,
        /// While reading or writing.
        call: Call,
        /// What the kernel or TLS said.
        error: io::Error,
    },
    /// [`Control::abort`] was called.
    Aborted,
    /// The time given by [`Control::drain`] was up.
    Drained,
    /// [`Control::finish`] was called.
    Finished,
}

impl Reason {
    /// What nginx calls complete (`$request_completion`): all but a client that did not take what was for it, and an end
    /// that neither side wanted.
    pub fn is_complete(&self) -> bool {
        match self {
            Self::Eof(_) | Self::Timeout(Side::Upstream) | Self::Failed { call: Call::Recv, .. } => true,
            Self::Timeout(Side::Client)
            | Self::Failed { call: Call::Send, .. }
            | Self::Aborted
            | Self::Drained
            | Self::Finished => false,
        }
    }
}

/// What is known of a closed tunnel, for the access log.
#[derive(Debug)]
pub struct Closed {
    /// Why.
    pub reason: Reason,
    /// Bytes written to the upstream.
    pub bytes_up: u64,
    /// Bytes written to the client.
    pub bytes_down: u64,
    /// When the tunnel was made, in milliseconds of the thread's clock.
    pub started: u64,
    /// When it ended, on the same clock.
    pub ended: u64,
}

/// A handle on a running tunnel, for whoever drains, aborts or watches it from the same thread.
pub struct Control {
    aborted: Cell<bool>,
    finishing: Cell<bool>,
    /// What is open to the upstream, this tunnel among it.
    peer: OnceCell<Arc<Load>>,
    drain_at: Cell<u64>,
    bytes_up: Cell<u64>,
    bytes_down: Cell<u64>,
    started: u64,
    active: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

impl Control {
    /// Ends the tunnel at once; what is pending is lost.
    pub fn abort(&self) {
        self.aborted.set(true);
        self.wake();
    }

    /// Ends the tunnel once what was read is delivered; no more is read.
    pub fn finish(&self) {
        self.finishing.set(true);
        self.wake();
    }

    pub(crate) fn set_peer(&self, load: &Arc<Load>) {
        // Said once, when the tunnel begins.
        let _ = self.peer.set(Arc::clone(load));
    }

    /// Whether its upstream is no longer to have tunnels.
    pub(crate) fn is_left_behind(&self) -> bool {
        self.peer.get().is_some_and(|load| load.is_gone())
    }

    /// Lets the tunnel run until `deadline_ms` of the thread's clock at most. An earlier deadline stays.
    pub fn drain(&self, deadline_ms: u64) {
        // Whoever says it again at each poll must not be polled for that.
        if deadline_ms < self.drain_at.replace(self.drain_at.get().min(deadline_ms)) {
            self.wake();
        }
    }

    /// Bytes written to the upstream so far.
    pub fn bytes_up(&self) -> u64 {
        self.bytes_up.get()
    }

    /// Bytes written to the client so far.
    pub fn bytes_down(&self) -> u64 {
        self.bytes_down.get()
    }

    fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Two ends and what is under way between them.
pub struct Tunnel {
    client: Io,
    upstream: Io,
    up: Flow,
    down: Flow,
    first_end: Option<Side>,
    options: Options,
    timer: Timer,
    timers: Timers,
    control: Rc<Control>,
    started: bool,
}

/// One direction.
#[derive(Default)]
struct Flow {
    /// Read, but not taken by the destination yet.
    pending: Buf,
    /// The destination's TLS session holds records that its socket did not take yet.
    unflushed: bool,
    /// The source has said all that it had to say.
    ended: bool,
    /// What went wrong when reading, reported when what was read before is delivered.
    broken: Option<Box<io::Error>>,
    /// The end was passed on to the destination.
    shut: bool,
    /// There was more to read when the turn was over.
    more: bool,
}

impl Flow {
    fn delivered(&self) -> bool {
        self.pending.is_empty() && !self.unflushed
    }

    /// Moves what can be moved from `from` to `to`; says whether anything was. The error is the destination's.
    fn pump(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &mut Io,
        written: &Cell<u64>,
        bytes: &mut [u8],
    ) -> io::Result<bool> {
        let mut moved = false;
        self.more = false;
        for turn in 0.. {
            while !self.pending.is_empty() {
                let Poll::Ready(n) = write(cx, to, &self.pending, written)? else {
                    return Ok(moved);
                };
                self.pending.consume(n);
                self.unflushed = to.is_tls();
                moved = true;
            }
            self.pending.release();
            if self.unflushed {
                match to.poll_flush(cx) {
                    Poll::Ready(flushed) => flushed?,
                    Poll::Pending => return Ok(moved),
                }
                self.unflushed = false;
            }
            if self.ended {
                return Ok(moved);
            }
            if turn == READS_A_TURN {
                self.more = true;
                return Ok(moved);
            }
            let got = match from.poll_read(cx, bytes) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(got)) => got,
                Poll::Ready(Err(error)) => {
                    self.broken = Some(Box::new(error));
                    0
                }
            };
            moved = true;
            self.ended = got == 0;
            let mut done = 0;
            while done < got {
                let Poll::Ready(n) = write(cx, to, &bytes[done..got], written)? else {
                    self.pending.extend(&bytes[done..got]);
                    break;
                };
                self.unflushed = to.is_tls();
                done += n;
            }
        }
        Ok(moved)
    }
}

fn write(cx: &mut Context<'_>, to: &mut Io, bytes: &[u8], written: &Cell<u64>) -> io::Result<Poll<usize>> {
    // A socket that is not full needs nobody to be woken.
    let polled = match to.try_write(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.poll_write(cx, bytes),
        taken => Poll::Ready(taken),
    };
    match polled {
        Poll::Pending => Ok(Poll::Pending),
        Poll::Ready(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
        Poll::Ready(Ok(n)) => {
            written.set(written.get() + n as u64);
            Ok(Poll::Ready(n))
        }
        Poll::Ready(Err(error)) => Err(error),
    }
}

impl Tunnel {
    /// A tunnel between two connected ends. `for_upstream` and `for_client` are bytes that were read behind the heads
    /// of the upgrade and go first.
    pub fn new(
        client: Io,
        upstream: Io,
        for_upstream: Buf,
        for_client: Buf,
        options: Options,
        timers: &Timers,
    ) -> Self {
        let now = timers.clock().refresh();
        let control = Rc::new(Control {
            aborted: Cell::new(false),
            finishing: Cell::new(false),
            peer: OnceCell::new(),
            drain_at: Cell::new(NEVER),
            bytes_up: Cell::new(0),
            bytes_down: Cell::new(0),
            started: now,
            active: Cell::new(now),
            waker: RefCell::default(),
        });
        Tunnel {
            client,
            upstream,
            up: Flow { pending: for_upstream, ..Flow::default() },
            down: Flow { pending: for_client, ..Flow::default() },
            first_end: None,
            options,
            timer: timers.register(),
            timers: timers.clone(),
            control,
            started: false,
        }
    }

    /// The handle to steer and watch the tunnel by.
    pub fn control(&self) -> Rc<Control> {
        self.control.clone()
    }

    /// Runs the tunnel to its end.
    pub async fn run(&mut self) -> Closed {
        poll_fn(|cx| self.poll_closed(cx)).await
    }

    /// One turn. Must not be called again once it was ready.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Closed> {
        self.poll_reason(cx).map(|reason| {
            match reason {
                Reason::Eof(_) | Reason::Aborted | Reason::Drained | Reason::Finished => {
                    self.client.farewell();
                    self.upstream.farewell();
                }
                // A peer that is stuck or gone is told nothing more, but for a stream, whose connection goes on.
                Reason::Timeout(Side::Client) => {
                    if let Io::Stream(stream) = &self.client {
                        stream.time_out();
                    }
                }
                Reason::Timeout(Side::Upstream) | Reason::Failed { .. } => {}
            }
            self.timer.clear();
            Closed {
                reason,
                bytes_up: self.control.bytes_up.get(),
                bytes_down: self.control.bytes_down.get(),
                started: self.control.started,
                ended: self.timers.clock().refresh(),
            }
        })
    }

    fn poll_reason(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        if self.control.aborted.get() {
            return Poll::Ready(Reason::Aborted);
        }
        if self.control.finishing.get() {
            (self.up.ended, self.down.ended) = (true, true);
        }
        let moved = match self.pump(cx) {
            Ok(moved) => moved,
            Err(reason) => return Poll::Ready(reason),
        };
        if moved || !self.started {
            self.started = true;
            self.control.active.set(self.timers.clock().now_ms());
        }
        self.timer.set(self.deadline().min(self.control.drain_at.get()));
        if self.timer.poll_expired(cx).is_ready() {
            let drained = self.control.drain_at.get() <= self.deadline();
            return Poll::Ready(if drained { Reason::Drained } else { Reason::Timeout(self.shortest().1) });
        }
        if self.up.more || self.down.more {
            cx.waker().wake_by_ref();
        }
        let mut waker = self.control.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Moves both directions on; says whether anything moved, or why the tunnel is over.
    fn pump(&mut self, cx: &mut Context<'_>) -> Result<bool, Reason> {
        let failed = |side| move |error| Reason::Failed { side, call: Call::Send, error };
        // The upstream's words first: when it has said its last and closed, they must not be lost to the failure of
        // sending it something more.
        let (client, upstream, control) = (&mut self.client, &mut self.upstream, &*self.control);
        let down = scratch(|bytes| self.down.pump(cx, upstream, client, &control.bytes_down, bytes))
            .map_err(failed(Side::Client))?;
        self.end(cx)?;
        let (client, upstream, control) = (&mut self.client, &mut self.upstream, &*self.control);
        let up = scratch(|bytes| self.up.pump(cx, client, upstream, &control.bytes_up, bytes))
            .map_err(failed(Side::Upstream))?;
        self.end(cx)?;
        Ok(up || down)
    }

    /// Whether the ends that were read close the tunnel, which is the error; with half-close, passes them on.
    fn end(&mut self, cx: &mut Context<'_>) -> Result<(), Reason> {
        if self.control.finishing.get() {
            let all = self.up.delivered() && self.down.delivered();
            return if all { Err(Reason::Finished) } else { Ok(()) };
        }
        let first = match (self.first_end, self.up.ended, self.down.ended) {
            (Some(first), _, _) => first,
            (None, true, _) => Side::Client,
            (None, false, true) => Side::Upstream,
            (None, false, false) => return Ok(()),
        };
        self.first_end = Some(first);
        for (side, flow) in [(Side::Client, &mut self.up), (Side::Upstream, &mut self.down)] {
            if flow.delivered()
                && let Some(error) = flow.broken.take()
            {
                return Err(Reason::Failed { side, call: Call::Recv, error: *error });
            }
        }
        let half_close = self.options.half_close;
        let over = if half_close == HalfClose::Both {
            for (flow, to) in [(&mut self.up, &mut self.upstream), (&mut self.down, &mut self.client)] {
                if flow.ended && flow.delivered() && !flow.shut {
                    // A destination that cannot be shut down is gone, and its own direction will say so.
                    flow.shut = to.poll_shutdown_write(cx).is_ready();
                }
            }
            self.up.shut && self.down.shut
        } else {
            let done = |flow: &Flow| flow.ended && flow.delivered();
            let asked = half_close == HalfClose::Client && done(&self.up);
            if asked && !self.up.shut {
                self.up.shut = self.upstream.poll_shutdown_write(cx).is_ready();
                self.control.drain(self.timers.clock().now_ms().saturating_add(CLOSING));
            }
            done(&self.up) && !asked || done(&self.down) || (self.up.ended && self.down.ended)
        };
        if over { Err(Reason::Eof(first)) } else { Ok(()) }
    }

    /// The timeout that runs out first, in milliseconds, and whose fault that is.
    fn shortest(&self) -> (u64, Side) {
        if self.up.delivered() && self.down.delivered() && self.options.half_close != HalfClose::Both {
            // As nearly always: nothing waits but for the upstream's next word.
            return (if self.down.ended { NEVER } else { self.options.read_timeout }, Side::Upstream);
        }
        let waits = |flow: &Flow| !flow.ended && flow.delivered();
        let silent = waits(&self.down) || self.options.half_close == HalfClose::Both && waits(&self.up);
        let blocked = |flow: &Flow| {
            !flow.delivered() || (self.options.half_close == HalfClose::Both && flow.ended && !flow.shut)
        };
        let candidates = [
            (silent, self.options.read_timeout, Side::Upstream),
            (blocked(&self.up), self.options.send_timeout, Side::Upstream),
            (blocked(&self.down), self.options.client_send_timeout, Side::Client),
        ];
        let running = candidates.into_iter().filter(|(runs, ..)| *runs);
        running.map(|(_, ms, side)| (ms, side)).min_by_key(|(ms, _)| *ms).unwrap_or((NEVER, Side::Upstream))
    }

    fn deadline(&self) -> u64 {
        self.control.active.get().saturating_add(self.shortest().0)
    }
}

#[cfg(test)]
mod tests;

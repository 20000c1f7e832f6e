//! A stream as the client's end of an exchange: what hyper reads of it, and what goes back, up to a bound.
//!
//! The exchange and hyper's task for the stream meet in an [`Answer`]: a head, and bytes that the one puts in while there
//! is room and the other takes out as flow control lets it. Whoever of them ends first is seen by the other.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::rt::{Read, ReadBuf, Write};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{HeaderMap, Response, StatusCode};

use super::connection::{Open, Running};
use super::frame::PROTOCOL_ERROR;
use super::hpack::Fields;
use super::send::carries;

/// Bytes of a body that wait for hyper; it holds one frame more.
const ROOM: usize = 32 * 1024;

/// The exchange's end of a stream.
pub struct Stream {
    number: u32,
    /// Bytes of the request's head as it came, compressed.
    head_length: usize,
    /// Bytes that the client may send once somebody reads them.
    more: u32,
    incoming: From,
    /// Of the last DATA frame, what was not read yet.
    rest: Bytes,
    answer: Rc<Answer>,
    running: Running,
}

/// Where the client's bytes come from.
enum From {
    Body(Incoming),
    /// An extended CONNECT, which gets a stream of bytes with its answer.
    Promised(OnUpgrade),
    /// That stream; it also takes the bytes for the client.
    Upgraded(Box<Upgraded>),
    /// Nobody reads it any more.
    Over,
}

impl Stream {
    /// A stream with its answer as hyper wants it; `more` bytes of a body may come once somebody reads them.
    pub(super) fn new(
        number: u32,
        head_length: usize,
        more: u32,
        body: Incoming,
        upgrade: Option<OnUpgrade>,
        open: Open,
        running: Running,
    ) -> (Self, Answering) {
        let state = RefCell::default();
        let answer = Rc::new(Answer { number, state, frame: Cell::new(usize::MAX), open });
        let answering = Answering(Some(Outgoing(Rc::clone(&answer))));
        let incoming = upgrade.map_or(From::Body(body), From::Promised);
        (Self { number, head_length, more, incoming, rest: Bytes::new(), answer, running }, answering)
    }

    /// Bytes of the request's head as it came, compressed.
    pub fn head_length(&self) -> usize {
        self.head_length
    }

    /// Sends a head ahead of that of the response; says about how many bytes that takes, 0 if the client is not to have it.
    pub fn hint<'a>(&self, status: u16, hinted: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> u64 {
        if self.answer.state.borrow().gone {
            return 0;
        }
        let mut fields = Fields::default();
        for (name, value) in hinted.filter(|(name, value)| carries(name, value)) {
            fields.push(name, value);
        }
        self.running.say(|traffic| traffic.hint(self.number, status, fields)).unwrap_or(0)
    }

    /// Whether the client has reset a stream that is to be a tunnel, which is no more than an end to hyper.
    fn was_reset(&self) -> bool {
        self.running.traffic().seats.borrow().was_reset(self.number)
    }

    /// Sends the head of the response, about so long, and its body in frames of at most that size.
    pub(super) fn respond(&self, status: u16, fields: Fields, length: u64, frame: usize) {
        self.running.count(length);
        self.running.traffic().seats.borrow_mut().answer(self.number, status, fields);
        self.answer.frame.set(frame.max(1));
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.answer.change(|state| state.status = Some(status));
    }

    /// Ends the response.
    pub(super) fn end(&self, trailers: Option<Fields>) {
        let trails = trailers.is_some();
        if let Some(fields) = trailers {
            self.running.traffic().seats.borrow_mut().trail(self.number, fields);
        }
        self.answer.change(|state| (state.trails, state.ended) = (trails, true));
    }

    /// Whether the client has said all of its request, and all of it was read.
    pub fn is_over(&self) -> bool {
        let ended = match &self.incoming {
            From::Body(body) => body.is_end_stream(),
            From::Promised(_) | From::Upgraded(_) | From::Over => false,
        };
        ended && self.rest.is_empty()
    }

    /// Waits until the client has room for what is left of the response.
    pub(super) fn poll_taken(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.answer.state.borrow_mut();
        let left = state.left();
        if left == 0 || left <= self.running.traffic().seats.borrow().room(self.number) {
            return Poll::Ready(Ok(()));
        }
        if state.gone {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        wait(&mut state.exchange, cx);
        Poll::Pending
    }

    /// Whether hyper has taken some of the response since this was asked last.
    pub fn has_taken(&self) -> bool {
        std::mem::take(&mut self.answer.state.borrow_mut().taken)
    }

    /// The client did not do in time what it was waited for: the stream is reset if it ends before its answer, or its tunnel, did.
    pub fn time_out(&self) {
        self.answer.state.borrow_mut().timed_out = true;
    }

    /// Whether the client gave the stream up, or its connection is gone.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.answer.state.borrow_mut();
        if state.gone {
            return Poll::Ready(());
        }
        wait(&mut state.exchange, cx);
        Poll::Pending
    }

    /// As much as has come, of as many frames as there are.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut read = 0;
        loop {
            let n = self.rest.len().min(into.len() - read);
            into[read..read + n].copy_from_slice(&self.rest.split_to(n));
            self.running.count(n as u64);
            read += n;
            if read == into.len() {
                return Poll::Ready(Ok(read));
            }
            match &mut self.incoming {
                From::Body(body) => {
                    if self.more > 0 && !body.is_end_stream() {
                        let more = std::mem::take(&mut self.more);
                        self.running.say(|traffic| traffic.widen(self.number, more));
                    }
                    match Pin::new(&mut *body).poll_frame(cx) {
                        // Trailers of requests go no further, as in nginx.
                        Poll::Ready(Some(Ok(frame))) => self.rest = frame.into_data().unwrap_or_default(),
                        // Both come again.
                        Poll::Ready(_) | Poll::Pending if read > 0 => return Poll::Ready(Ok(read)),
                        Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(broken(error))),
                        // A reset that tells of no error is an end to hyper, but the body is not whole.
                        Poll::Ready(None) if !body.is_end_stream() => {
                            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                        }
                        Poll::Ready(None) => return Poll::Ready(Ok(0)),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                From::Promised(_) => ready!(self.poll_upgraded(cx))?,
                From::Over => return Poll::Ready(Ok(0)),
                From::Upgraded(upgraded) => {
                    let mut read = ReadBuf::new(into);
                    ready!(Pin::new(&mut **upgraded).poll_read(cx, read.unfilled()))?;
                    let n = read.filled().len();
                    if n == 0 && self.was_reset() {
                        return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                    }
                    self.running.count(n as u64);
                    return Poll::Ready(Ok(n));
                }
            }
        }
    }

    /// Waits until the stream of bytes is there.
    fn poll_upgraded(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let From::Promised(promised) = &mut self.incoming {
            let upgraded = ready!(Pin::new(promised).poll(cx)).map_err(broken)?;
            self.incoming = From::Upgraded(Box::new(upgraded));
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the bytes for the client are a tunnel's: its head was sent.
    fn is_tunnel(&self) -> bool {
        !matches!(self.incoming, From::Body(_)) && self.answer.state.borrow().ended
    }

    /// How many bytes of a response are taken: one or more.
    pub fn poll_room(&self, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        let mut state = self.answer.state.borrow_mut();
        if state.gone {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let room = ROOM.saturating_sub(state.left());
        if room == 0 {
            wait(&mut state.exchange, cx);
            return Poll::Pending;
        }
        Poll::Ready(Ok(room))
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_tunnel() {
            ready!(self.poll_upgraded(cx))?;
        }
        if let From::Upgraded(upgraded) = &mut self.incoming {
            let n = ready!(Pin::new(&mut **upgraded).poll_write(cx, bytes))?;
            self.running.traffic().seats.borrow_mut().give(self.number, n);
            self.running.count(n as u64);
            return Poll::Ready(Ok(n));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let n = ready!(self.poll_room(cx))?.min(bytes.len());
        let mut state = self.answer.state.borrow_mut();
        state.bytes.extend_from_slice(&bytes[..n]);
        wake(&mut state.hyper);
        self.running.count(n as u64);
        Poll::Ready(Ok(n))
    }

    pub fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut written = 0;
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            match self.poll_write(cx, piece) {
                Poll::Ready(Ok(n)) => written += n,
                Poll::Ready(Err(error)) if written == 0 => return Poll::Ready(Err(error)),
                Poll::Pending if written == 0 => return Poll::Pending,
                Poll::Ready(Err(_)) | Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(written))
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.incoming {
            From::Upgraded(upgraded) => Pin::new(&mut **upgraded).poll_flush(cx),
            From::Body(_) | From::Promised(_) | From::Over => Poll::Ready(Ok(())),
        }
    }

    /// Ends the direction to the client.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.incoming {
            From::Upgraded(upgraded) => Pin::new(&mut **upgraded).poll_shutdown(cx),
            From::Body(_) | From::Promised(_) | From::Over => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let coming = self.answer.is_coming();
        self.running.traffic().seats.borrow_mut().leave(self.number);
        let incoming = std::mem::replace(&mut self.incoming, From::Over);
        let is_tunnel = !matches!(incoming, From::Body(_));
        let mut state = self.answer.state.borrow_mut();
        // What was not said to its end is reset.
        state.broken = !state.ended;
        let unsent = state.broken || state.left() > 0;
        if state.timed_out && (is_tunnel || unsent && !state.gone) {
            self.running.say(|traffic| traffic.reset(self.number, PROTOCOL_ERROR));
            state.reset = true;
        }
        wake(&mut state.hyper);
        if state.forsaken {
            self.answer.open.forsake(true);
        }
        match incoming {
            From::Body(body) if state.ended && !body.is_end_stream() => {
                if state.gone {
                    self.answer.open.let_go(Box::new(body), coming);
                } else {
                    state.unread = Some(Box::new(body));
                }
            }
            From::Upgraded(tunnel) if state.reset => self.answer.open.leave(tunnel),
            From::Upgraded(tunnel) => self.running.linger(tunnel),
            From::Body(_) | From::Promised(_) | From::Over => {}
        }
    }
}

fn broken(error: hyper::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

/// What is on its way between an exchange and hyper.
struct Answer {
    number: u32,
    state: RefCell<State>,
    /// Bytes of a DATA frame at most.
    frame: Cell<usize>,
    open: Open,
}

#[derive(Default)]
struct State {
    status: Option<StatusCode>,
    bytes: Vec<u8>,
    /// The bytes before those, which hyper is taking.
    frames: Bytes,
    /// There are fields behind the body.
    trails: bool,
    /// The exchange has said all it had to say.
    ended: bool,
    /// It ended without that.
    broken: bool,
    /// The client took too long.
    timed_out: bool,
    /// The stream was reset without hyper.
    reset: bool,
    /// What it left of the request's body, until hyper has all of the answer.
    unread: Option<Box<Incoming>>,
    /// Hyper had time to write what came before that.
    waited: bool,
    /// Hyper has taken some of the body.
    taken: bool,
    /// Hyper's end is gone.
    gone: bool,
    /// It was gone before the exchange was done.
    forsaken: bool,
    exchange: Option<Waker>,
    hyper: Option<Waker>,
}

impl State {
    /// Bytes that hyper has not taken.
    fn left(&self) -> usize {
        self.bytes.len() + self.frames.len()
    }
}

impl Answer {
    /// Whether the client is yet to say more of the request.
    fn is_coming(&self) -> bool {
        self.open.traffic().seats.borrow().is_coming(self.number)
    }

    /// Changes what hyper waits for.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.borrow_mut();
        change(&mut state);
        wake(&mut state.hyper);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn wait(slot: &mut Option<Waker>, cx: &Context<'_>) {
    if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
}

/// The exchange ended before its answer did; hyper resets the stream.
#[derive(Debug)]
pub(super) struct Unfinished;

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the response was not finished")
    }
}

impl std::error::Error for Unfinished {}

/// Hyper's wait for the head.
pub(super) struct Answering(Option<Outgoing>);

impl Answering {
    /// For a request that nobody knows.
    pub(super) fn none() -> Self {
        Self(None)
    }
}

impl Future for Answering {
    type Output = Result<Response<Outgoing>, Unfinished>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(outgoing) = self.0.take() else { return Poll::Ready(Err(Unfinished)) };
        let mut state = outgoing.0.state.borrow_mut();
        let status = match state.status.take() {
            Some(status) => status,
            None if state.broken && !state.reset => return Poll::Ready(Err(Unfinished)),
            None => {
                wait(&mut state.hyper, cx);
                drop(state);
                self.0 = Some(outgoing);
                return Poll::Pending;
            }
        };
        drop(state);
        let mut response = Response::new(outgoing);
        *response.status_mut() = status;
        Poll::Ready(Ok(response))
    }
}

/// The body of a response as hyper takes it.
pub(super) struct Outgoing(Rc<Answer>);

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Unfinished;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Unfinished>>> {
        let state = &mut *self.0.state.borrow_mut();
        if state.reset {
            return Poll::Pending;
        }
        if state.left() > 0 {
            let mut seats = self.0.open.traffic().seats.borrow_mut();
            let most = self.0.frame.get().min(seats.room(self.0.number));
            if most == 0 {
                seats.wait(self.0.number, cx);
                wait(&mut state.hyper, cx);
                return Poll::Pending;
            }
            if state.frames.is_empty() {
                state.frames = std::mem::take(&mut state.bytes).into();
            } else if state.frames.len() < most && !state.bytes.is_empty() {
                // Of what the client had no room for before.
                state.frames = [&state.frames[..], &std::mem::take(&mut state.bytes)].concat().into();
            }
            let n = state.frames.len().min(most);
            seats.give(self.0.number, n);
            state.taken = true;
            wake(&mut state.exchange);
            return Poll::Ready(Some(Ok(Frame::data(state.frames.split_to(n)))));
        }
        if state.broken && !state.waited {
            // A reset takes back what hyper has not written, so the connection has its turn first.
            state.waited = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if state.broken {
            return Poll::Ready(Some(Err(Unfinished)));
        }
        if state.ended {
            let trails = std::mem::take(&mut state.trails);
            return Poll::Ready(trails.then(|| Ok(Frame::trailers(HeaderMap::new()))));
        }
        wait(&mut state.hyper, cx);
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.state.borrow();
        state.ended && state.left() == 0 && !state.trails
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let mut state = self.0.state.borrow_mut();
        state.gone = true;
        if !state.ended && !state.broken {
            state.forsaken = true;
            self.0.open.forsake(false);
        }
        if let Some(body) = state.unread.take() {
            self.0.open.let_go(body, self.0.is_coming());
        }
        (state.bytes, state.frames) = (Vec::new(), Bytes::new());
        wake(&mut state.exchange);
    }
}

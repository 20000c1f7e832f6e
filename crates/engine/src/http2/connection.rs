//! A connection over HTTP/2: hyper drives it, its streams are tasks of their own, and this decides when it ends.

use std::any::Any;
use std::cell::{Cell, RefCell, RefMut};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use hyper::body::{Body, Incoming};
use hyper::rt::{Executor, Read, ReadBuf, Write};
use hyper::server::conn::http2::Builder;
use hyper::service::Service;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, Response};
use nix::errno::Errno;
use weir_syntax::Level;

use super::frames::{self, Frames};
use super::request::{self, Asked};
use super::stream::{Answering, Outgoing, Stream, Unfinished};
use super::wire::{Traffic, Wire};
use super::{Settings, bridges};
use crate::generation::Generation;
use crate::http::connection::{During, Streamed, connection_server, serve_stream};
use crate::http::exchange::Connection;
use crate::io::{Address, Buf, Io, scratch};
use crate::reactor::{Idle, Reactor};
use crate::settings::CoreSettings;

/// Milliseconds that a client is given to say that it knows of the connection's end.
const GRACE: u64 = 1_000;
/// Bytes that may come and go beside requests and answers; an eighth of all may always.
const SLACK: u64 = 1 << 20;
/// The largest window that there is.
const WINDOW: u32 = (1 << 31) - 1;
/// The smallest window of a stream. Hyper has one for all of a body, and gives it anew as the body is read.
const STREAM_WINDOW: u32 = 65_535;
/// Bytes of a response that hyper takes before the socket does.
const SEND_BUFFER: usize = 64 * 1024;
/// What a field counts in the size of a list beside its name and value (RFC 9113 section 6.5.2).
const FIELD: usize = 32;

/// What a connection and its streams have in common.
pub(super) struct Shared {
    reactor: Rc<Reactor>,
    /// The generation that the connection began with.
    generation: Arc<Generation>,
    listener: Arc<Address>,
    record: Connection,
    settings: Settings,
    /// Streams may become tunnels.
    bridges: bool,
    /// Streams whose answer is not all out yet.
    open: Cell<u64>,
    /// Exchanges and tunnels.
    running: Cell<u64>,
    /// Those among them whose client has given them up.
    forsaken: Cell<u64>,
    traffic: Rc<Traffic>,
    /// Bytes of requests and answers among what came and went, about.
    payload: Cell<u64>,
    /// What nobody has any more use for, and hyper is to think otherwise until it had its turn. To let go of a body resets its stream,
    /// and there are clients (curl 7.88) that lose an answer which they read together with that; to let go of a tunnel ends its
    /// stream, which is to be reset.
    left: RefCell<Vec<Box<dyn Any>>>,
    /// The task that drives the connection.
    waker: RefCell<Option<Waker>>,
}

/// A stream whose answer is not all out yet.
pub(super) struct Open(Rc<Shared>);

/// An exchange or a tunnel.
pub(super) struct Running(Rc<Shared>);

impl Open {
    fn new(shared: &Rc<Shared>) -> Self {
        shared.open.set(shared.open.get() + 1);
        Self(Rc::clone(shared))
    }
}

impl Open {
    /// Counts an exchange whose client has given it up, or one of those that has ended.
    pub(super) fn forsake(&self, ended: bool) {
        let forsaken = self.0.forsaken.get();
        self.0.forsaken.set(if ended { forsaken - 1 } else { forsaken + 1 });
        self.0.wake();
    }

    /// Lets go of it once what hyper has was written, and what is there for it read.
    pub(super) fn leave(&self, left: Box<dyn Any>) {
        self.0.left.borrow_mut().push(left);
        self.0.wake();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.wake();
    }
}

impl Running {
    fn new(shared: &Rc<Shared>) -> Self {
        shared.running.set(shared.running.get() + 1);
        Self(Rc::clone(shared))
    }

    /// Puts frames of our own on their way.
    pub(super) fn say<T>(&self, say: impl FnOnce(&Traffic) -> T) -> T {
        let said = say(&self.0.traffic);
        self.0.wake();
        said
    }

    /// Ends a tunnel, and lets go of it once its client has ended it too (nginx: `lingering_timeout`). To let go of it before that
    /// resets the stream, and there are browsers (Firefox) that lose what they read together with that: the WebSocket's Close.
    pub(super) fn linger(&self, mut tunnel: Box<Upgraded>) {
        let timer = self.0.reactor.timers().register();
        timer.set_in(self.0.core().lingering_timeout);
        let mut room = STREAM_WINDOW as usize;
        // What goes wrong is told to who reads.
        let _ = Pin::new(&mut *tunnel).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        self.0.reactor.spawn(poll_fn(move |cx| {
            while room > 0 && timer.poll_expired(cx).is_pending() {
                let read = scratch(|bytes| {
                    let mut read = ReadBuf::new(bytes);
                    ready!(Pin::new(&mut *tunnel).poll_read(cx, read.unfilled()))?;
                    Poll::Ready(io::Result::Ok(read.filled().len()))
                });
                match ready!(read) {
                    Ok(n @ 1..) => room = room.saturating_sub(n),
                    Ok(0) | Err(_) => break,
                }
            }
            Poll::Ready(())
        }));
    }

    /// What the client sends.
    pub(super) fn frames(&self) -> RefMut<'_, Frames> {
        self.0.traffic.frames.borrow_mut()
    }

    /// Counts what is what the connection is for.
    pub(super) fn count(&self, n: u64) {
        self.0.payload.set(self.0.payload.get() + n);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        self.0.wake();
    }
}

impl Shared {
    fn core(&self) -> &CoreSettings {
        &self.generation.location(connection_server(&self.generation, &self.record)).core
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    fn remember(&self, cx: &Context<'_>) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *slot = Some(cx.waker().clone());
        }
    }

    fn log(&self, errno: Option<Errno>, message: impl std::fmt::Display) {
        self.record.log.write_with(Level::Info, errno, message, |line| {
            line.bytes(b" while processing HTTP/2 connection");
            line.field("client", self.record.peer.text());
            line.field("server", self.record.local.to_string().as_bytes());
        });
    }

    /// Whether no more requests are to come over this connection.
    fn is_leaving(&self) -> bool {
        let (reactor, core, requests) = (&self.reactor, self.core(), self.record.requests.get());
        let age = reactor.clock().now_ms().saturating_sub(self.record.started);
        requests >= core.keepalive_requests
            || requests > 0 && age > core.keepalive_time
            || reactor.is_quitting()
            || !reactor.is_current(&self.generation)
    }

    /// The last stream, if there have been some and nothing is under way.
    fn rests_behind(&self) -> Option<u32> {
        let rests = self.running.get() == 0 && self.open.get() == 0 && !self.traffic.stuck.get();
        self.traffic.frames.borrow().last_of_whole().filter(|_| rests)
    }

    /// Whether the client makes more work than it has use for: frames that are no requests, requests that it gives up faster
    /// than they end, and such after it was told that there are no more.
    fn is_abused(&self) -> Option<&'static str> {
        let requests = self.record.requests.get();
        if self.traffic.moved.get() / 8 > self.payload.get() + SLACK {
            return Some("http2 flood detected");
        }
        let streams = u64::from(self.settings.max_concurrent_streams);
        let many = self.forsaken.get() > streams.max(100);
        let late = requests > 2 * self.core().keepalive_requests.max(100).saturating_add(streams);
        (many || late).then_some("client sent too many streams at once")
    }
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<Outgoing>;
    type Error = Unfinished;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        let shared = &self.0;
        shared.record.requests.set(shared.record.requests.get() + 1);
        let ends = request.body().is_end_stream();
        let (mut parts, body) = request.into_parts();
        let asked = if shared.bridges { request::asked(&parts) } else { Asked::Request };
        let upgrade = parts.extensions.remove::<OnUpgrade>().filter(|_| asked == Asked::WebSocket);
        let head = shared.traffic.take_head();
        let (stream, answering) = Stream::new(head, body, upgrade, Open::new(shared), Running::new(shared));
        let streamed = Streamed {
            reactor: Rc::clone(&shared.reactor),
            generation: Arc::clone(&shared.generation),
            listener: Arc::clone(&shared.listener),
            // Each with the number that it is.
            connection: Rc::new(shared.record.clone()),
            io: Io::Stream(Box::new(stream)),
        };
        let read = move |x: &mut _, limits: &_| request::read(x, &parts, asked, ends, limits);
        let counted = Rc::clone(shared);
        shared.reactor.spawn(serve_stream(streamed, move |x, limits| {
            let judged = read(x, limits);
            counted.payload.set(counted.payload.get() + x.head.raw().len() as u64);
            judged
        }));
        answering
    }
}

/// What hyper hands requests to.
struct Requests(Rc<Shared>);

/// Where hyper's tasks run: on this thread.
#[derive(Clone)]
struct Tasks(Rc<Reactor>);

impl<F: Future<Output = ()> + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// How a connection ended.
enum Over {
    /// As it was told to, or without a stream.
    Done,
    /// Between two requests, by us; the client is told behind which stream.
    Parted(u32),
    Failed(hyper::Error),
    /// The client went away from its streams.
    Left,
    /// A CONNECT was to have a body: hyper ends a connection for that, and tells nobody.
    Connect,
    /// The client was silent.
    Silent,
    Abused(&'static str),
    /// Its time was up with `worker_shutdown_timeout`.
    Drained,
}

/// Serves a connection whose client speaks HTTP/2, until it ends.
pub async fn serve(
    reactor: Rc<Reactor>,
    generation: Arc<Generation>,
    listener: Arc<Address>,
    record: Connection,
    io: Io,
) {
    let idle = reactor.register_idle();
    serve_from(reactor, generation, listener, record, io, Buf::new(), idle).await;
}

/// As [`serve`], for a connection that something was read of before.
pub(crate) async fn serve_from(
    reactor: Rc<Reactor>,
    generation: Arc<Generation>,
    listener: Arc<Address>,
    record: Connection,
    io: Io,
    input: Buf,
    idle: Rc<Idle>,
) {
    let settings = Settings::of(&generation, connection_server(&generation, &record));
    let bridges = bridges(&generation, record.address());
    let shared = Rc::new(Shared {
        settings,
        bridges,
        record,
        listener,
        generation,
        reactor: Rc::clone(&reactor),
        open: Cell::new(0),
        running: Cell::new(0),
        forsaken: Cell::new(0),
        traffic: Rc::new(Traffic::new()),
        payload: Cell::new(0),
        left: RefCell::default(),
        waker: RefCell::default(),
    });
    let core = shared.core();
    if let Some(socket) = io.socket().filter(|_| core.tcp_nodelay) {
        socket.set_nodelay();
    }
    let io = Rc::new(RefCell::new(io));
    let over = {
        let wire = Wire { io: Rc::clone(&io), input, traffic: Rc::clone(&shared.traffic) };
        drive(&shared, &idle, wire).await
    };
    let lingers = match over {
        Over::Drained | Over::Silent | Over::Done => false,
        Over::Parted(last) => {
            // A peer that is gone needs none, and nothing is before it.
            let cx = &mut Context::from_waker(Waker::noop());
            let _ = io.borrow_mut().poll_write(cx, &frames::goaway(last));
            true
        }
        Over::Left => {
            shared.log(None, "client prematurely closed connection");
            false
        }
        Over::Connect => {
            shared.log(None, "client sent CONNECT request with body");
            true
        }
        Over::Abused(what) => {
            shared.log(None, what);
            true
        }
        Over::Failed(error) => {
            let (errno, what) = words(&error);
            shared.log(errno, what);
            true
        }
    };
    let Some(io) = Rc::into_inner(io) else { return };
    let mut io = io.into_inner();
    if lingers {
        let timers = reactor.timers().clone();
        idle.bounded(pin!(io.linger(&timers, core.lingering_time, core.lingering_timeout))).await;
    } else {
        io.farewell();
    }
}

/// What is told of an error: the system's, or the client's against the protocol.
fn words(error: &hyper::Error) -> (Option<Errno>, String) {
    let cause = std::error::Error::source(error);
    let of_system = cause.and_then(|cause| cause.downcast_ref::<io::Error>());
    match (of_system.map(io::Error::raw_os_error), cause) {
        (Some(Some(errno)), _) => (Some(Errno::from_raw(errno)), "recv() failed".to_owned()),
        (Some(None), Some(cause)) => (None, format!("recv() failed ({cause})")),
        (_, Some(cause)) => (None, format!("client broke the rules of HTTP/2 ({cause})")),
        (_, None) => (None, format!("client broke the rules of HTTP/2 ({error})")),
    }
}

/// Runs the connection. Amid requests it is told to end by two GOAWAY, as RFC 9113 section 6.8 wants it, the second of them once
/// the client has seen the first. Between them one is enough, as in nginx: there are clients (httpx) that would ask once more behind
/// the first, and lose the answer.
async fn drive(shared: &Rc<Shared>, idle: &Idle, wire: Wire) -> Over {
    let (reactor, core) = (&shared.reactor, shared.core());
    let limits = &core.limits;
    let list = limits.large_buffers.saturating_mul(limits.large_buffer);
    let list = list.saturating_add(limits.max_headers.saturating_mul(FIELD));
    let streams = shared.settings.max_concurrent_streams;
    let window = shared.settings.body_preread_size.max(STREAM_WINDOW);
    let mut builder = Builder::new(Tasks(Rc::clone(reactor)));
    builder
        .auto_date_header(false)
        .max_concurrent_streams(streams)
        .initial_stream_window_size(window)
        // No more than all streams together have: what small frames may take of memory is measured by it.
        .initial_connection_window_size(window.saturating_mul(streams).clamp(STREAM_WINDOW, WINDOW))
        .max_header_list_size(u32::try_from(list).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER);
    if shared.bridges {
        builder.enable_connect_protocol();
    }
    // What hyper keeps of a connection is large.
    let mut connection = Box::pin(builder.serve_connection(wire, Requests(Rc::clone(shared))));
    let timer = reactor.timers().register();
    let began = reactor.clock().now_ms();
    let (mut told, mut seen, mut since, mut within) = (None, 0, began, (None, began));
    let (mut runs, mut sending, mut progress, mut took) = (false, false, 0, began);
    let (mut waiting, mut abuse, mut expired) = (None, None, false);
    poll_fn(move |cx| {
        shared.remember(cx);
        idle.waits(cx.waker());
        loop {
            if idle.is_ended() {
                return Poll::Ready(Over::Drained);
            }
            let left = shared.left.take();
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                let (ended, away) = (shared.traffic.ended.get(), shared.traffic.frames.borrow().away());
                return Poll::Ready(match result {
                    Err(error) => Over::Failed(error),
                    Ok(()) if told.is_some() || away => Over::Done,
                    Ok(()) if !ended => Over::Connect,
                    Ok(()) if shared.open.get() > 0 => Over::Left,
                    Ok(()) => Over::Done,
                });
            }
            if !left.is_empty() {
                drop(left);
                continue;
            }
            if let Some(what) = abuse.or_else(|| shared.is_abused()) {
                // One attempt to tell it.
                connection.as_mut().graceful_shutdown();
                let _ = connection.as_mut().poll(cx);
                return Poll::Ready(Over::Abused(what));
            }
            let now = reactor.clock().now_ms();
            if told.is_none() && (shared.is_leaving() || expired) {
                if let Some(last) = shared.rests_behind() {
                    return Poll::Ready(Over::Parted(last));
                }
                told = Some(now);
                connection.as_mut().graceful_shutdown();
                continue;
            }
            let (ran, running) = (std::mem::replace(&mut runs, shared.running.get() > 0), runs);
            let moved = shared.traffic.moved.get();
            // The last exchange has ended just now, and what it ended with is still to be sent.
            let busy = ran || running;
            if busy || seen != moved {
                (seen, since) = (moved, now);
            }
            // A head that has begun has its own time, however much else goes on.
            let number = shared.traffic.frames.borrow().within();
            if number != within.0 {
                within = (number, now);
            }
            let head = number.map_or(u64::MAX, |_| within.1 + core.client_header_timeout);
            if running == waiting.is_some() {
                waiting = (!running).then(|| During::new(&reactor.counts.waiting));
            }
            // Hyper may have of answers what nobody here knows of: a client that takes it has the time for that.
            let traffic = &shared.traffic;
            let sends = shared.open.get() > 0
                || traffic.stuck.get()
                || told.is_some() && traffic.frames.borrow().answered();
            if busy || !sends || !sending || progress != traffic.progress() {
                (sending, progress, took) = (sends, traffic.progress(), now);
            }
            let end = match told {
                _ if running => u64::MAX,
                None if shared.record.requests.get() == 0 => began + core.client_header_timeout,
                // Other frames of it, such as PING, win no time for what it does not take.
                _ if sends => took + core.send_timeout,
                Some(told) => since.clamp(told, told + core.send_timeout) + GRACE,
                None => since + core.keepalive_timeout,
            };
            let end = end.min(head);
            if end == u64::MAX {
                timer.clear();
                return Poll::Pending;
            }
            timer.set(end);
            if timer.poll_expired(cx).is_pending() {
                return Poll::Pending;
            }
            if head <= now || shared.record.requests.get() == 0 {
                abuse = Some("client timed out");
                continue;
            }
            if told.is_some() || sends {
                return Poll::Ready(Over::Silent);
            }
            expired = true;
        }
    })
    .await
}

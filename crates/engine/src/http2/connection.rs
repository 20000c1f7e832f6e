//! A connection over HTTP/2: hyper drives it, its streams are tasks of their own, and this decides when it ends.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use hyper::body::Incoming;
use hyper::rt::{Executor, Read, ReadBuf, Write};
use hyper::server::conn::http2::Builder;
use hyper::service::Service;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, Response};
use nix::errno::Errno;
use weir_syntax::Level;

use super::frame::{Fault, MAX_WINDOW, NO_ERROR, PROTOCOL_ERROR, USUAL_WINDOW};
use super::hpack::Limits;
use super::inward::Rules;
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

/// Bytes that may come and go beside requests and answers; an eighth of all may always.
const SLACK: u64 = 1 << 20;
/// Bytes of a body that may come beyond what a client may send before anybody reads it.
const READ_AHEAD: u32 = 64 * 1024;
/// Bytes of a response that hyper takes before the socket does.
const SEND_BUFFER: usize = 64 * 1024;
/// Milliseconds that a client which still sends its request has for the answer before the stream is reset.
const GRACE: u64 = 100;
/// What a connection and its streams have in common.
pub(super) struct Shared {
    reactor: Rc<Reactor>,
    /// The generation that the connection began with.
    generation: Arc<Generation>,
    listener: Arc<Address>,
    record: Connection,
    settings: Settings,
    /// Bytes of a body that hyper keeps until somebody reads them.
    window: u32,
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
    /// and there are clients (curl 7.88) that lose an answer which they read together with that, hence [`GRACE`]; to let go of a
    /// tunnel ends its stream, which is to be reset.
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

    /// Lets go of a body that nobody reads; where more of it is `coming`, not before the client had the time to read its answer.
    pub(super) fn let_go(&self, body: Box<Incoming>, coming: bool) {
        if !coming {
            return self.leave(body);
        }
        let shared = Rc::clone(&self.0);
        self.0.reactor.spawn(async move {
            shared.reactor.timers().sleep(GRACE).await;
            shared.leave(body);
        });
    }

    /// Lets go of it once what hyper has was written, and what is there for it read.
    pub(super) fn leave(&self, left: Box<dyn Any>) {
        self.0.leave(left);
    }
}

impl Open {
    pub(super) fn traffic(&self) -> &Traffic {
        &self.0.traffic
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
        let mut room = USUAL_WINDOW as usize;
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

    pub(super) fn traffic(&self) -> &Traffic {
        &self.0.traffic
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

    fn leave(&self, left: Box<dyn Any>) {
        self.left.borrow_mut().push(left);
        self.wake();
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
        self.reactor.is_quitting() || !self.reactor.is_current(&self.generation)
    }

    /// Tells the client, if it takes that at once, why the connection ends.
    fn end_for(&self, fault: Fault, cx: &mut Context<'_>) -> Over {
        self.traffic.fail(fault.code);
        // What goes wrong now nobody has to know.
        let _ = self.traffic.poll_write(cx);
        Over::Fault(fault)
    }

    /// Whether nothing is under way.
    fn rests(&self) -> bool {
        self.running.get() == 0 && self.open.get() == 0 && self.traffic.rests()
    }

    /// What the client does that makes more work than it has use for: frames that are no requests, and requests that it gives up
    /// faster than they end.
    fn abuse(&self) -> Option<Fault> {
        if self.traffic.moved.get() / 8 > self.payload.get() + SLACK {
            return Some(Fault::new(NO_ERROR, "http2 flood detected"));
        }
        let streams = u64::from(self.settings.max_concurrent_streams);
        let many = self.forsaken.get() > streams.max(100);
        many.then(|| Fault::new(NO_ERROR, "client sent too many streams at once"))
    }
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<Outgoing>;
    type Error = Unfinished;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        let shared = &self.0;
        shared.record.requests.set(shared.record.requests.get() + 1);
        let (mut parts, body) = request.into_parts();
        // Hyper hands over what it was told of, once.
        let number = request::stream(parts.uri.path()).unwrap_or_default();
        let Some(came) = shared.traffic.take(number) else { return Answering::none() };
        let upgrade = parts.extensions.remove::<OnUpgrade>().filter(|_| came.asked == Asked::WebSocket);
        let more = shared.window - shared.settings.body_preread_size;
        let (stream, answering) =
            Stream::new(number, came.length, more, body, upgrade, Open::new(shared), Running::new(shared));
        let streamed = Streamed {
            reactor: Rc::clone(&shared.reactor),
            generation: Arc::clone(&shared.generation),
            listener: Arc::clone(&shared.listener),
            // Each with the number that it is.
            connection: Rc::new(shared.record.clone()),
            io: Io::Stream(Box::new(stream)),
        };
        let counted = Rc::clone(shared);
        shared.reactor.spawn(serve_stream(streamed, move |x, limits| {
            let judged = request::read(x, &came, limits);
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
    Done,
    /// By us, with all that was asked for answered.
    Parted,
    Failed(Option<Errno>, String),
    /// The client went away from its streams.
    Left,
    /// The client was silent.
    Silent,
    /// For what the client did.
    Fault(Fault),
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
    let server = connection_server(&generation, &record);
    let settings = Settings::of(&generation, server);
    let core = &generation.location(server).core;
    if let Some(socket) = io.socket().filter(|_| core.tcp_nodelay) {
        socket.set_nodelay();
    }
    let rules = Rules {
        limits: Limits {
            field: core.limits.large_buffer,
            list: core.limits.large_buffers.saturating_mul(core.limits.large_buffer),
        },
        // Who keeps no connection tells so with the first request.
        requests: if core.keepalive_timeout == 0 { 1 } else { core.keepalive_requests },
        streams: settings.max_concurrent_streams,
        window: settings.body_preread_size,
        bridges: bridges(&generation, record.address()),
    };
    let shared = Rc::new(Shared {
        settings,
        window: settings.body_preread_size.max(USUAL_WINDOW).saturating_add(READ_AHEAD).min(MAX_WINDOW),
        record,
        listener,
        generation,
        reactor: Rc::clone(&reactor),
        open: Cell::new(0),
        running: Cell::new(0),
        forsaken: Cell::new(0),
        traffic: Rc::new(Traffic::new(io, rules)),
        payload: Cell::new(0),
        left: RefCell::default(),
        waker: RefCell::default(),
    });
    let core = shared.core();
    let over = drive(&shared, &idle, input, rules.bridges).await;
    let lingers = match over {
        Over::Drained | Over::Silent | Over::Done => false,
        Over::Parted => true,
        Over::Left => {
            shared.log(None, "client prematurely closed connection");
            false
        }
        Over::Fault(fault) => {
            shared.log(None, fault.message);
            true
        }
        Over::Failed(errno, what) => {
            shared.log(errno, what);
            true
        }
    };
    let mut io = shared.traffic.take_io();
    if lingers {
        let timers = reactor.timers().clone();
        idle.bounded(pin!(io.linger(&timers, core.lingering_time, core.lingering_timeout))).await;
    } else {
        io.farewell();
    }
}

/// What is told of an error: the system's, or the client's against the protocol.
fn words(error: &(dyn std::error::Error + 'static)) -> (Option<Errno>, String) {
    let cause = std::error::Error::source(error);
    let of_system = cause.unwrap_or(error).downcast_ref::<io::Error>();
    match (of_system.map(io::Error::raw_os_error), cause) {
        (Some(Some(errno)), _) => (Some(Errno::from_raw(errno)), "recv() failed".to_owned()),
        (Some(None), Some(cause)) => (None, format!("recv() failed ({cause})")),
        (_, Some(cause)) => (None, format!("client broke the rules of HTTP/2 ({cause})")),
        (_, None) => (None, format!("client broke the rules of HTTP/2 ({error})")),
    }
}

/// Runs the connection. It is told of its end by one GOAWAY with the last stream that is served, as in nginx: there are clients
/// (httpx) that would ask once more behind one that names no stream, and lose the answer.
async fn drive(shared: &Rc<Shared>, idle: &Idle, input: Buf, bridges: bool) -> Over {
    let (reactor, core, traffic) = (&shared.reactor, shared.core(), &shared.traffic);
    let streams = shared.settings.max_concurrent_streams;
    let (window, ahead) = (shared.window, shared.settings.body_preread_size.max(USUAL_WINDOW));
    let mut builder = Builder::new(Tasks(Rc::clone(reactor)));
    builder
        .auto_date_header(false)
        .max_concurrent_streams(streams)
        .initial_stream_window_size(window)
        // No more than may come of all streams before anybody reads: what small frames may take of memory is measured by it.
        .initial_connection_window_size(ahead.saturating_mul(streams).clamp(USUAL_WINDOW, MAX_WINDOW))
        .max_send_buf_size(SEND_BUFFER)
        // Who takes requests back is judged here.
        .max_pending_accept_reset_streams(usize::MAX);
    if bridges {
        builder.enable_connect_protocol();
    }
    let wire = Wire { input, traffic: Rc::clone(traffic) };
    // What hyper keeps of a connection is large.
    let mut connection = Box::pin(builder.serve_connection(wire, Requests(Rc::clone(shared))));
    let timer = reactor.timers().register();
    let began = reactor.clock().now_ms();
    let (mut parted, mut since, mut within) = (false, began, (None, began));
    let (mut runs, mut sending, mut progress, mut took) = (false, false, 0, began);
    let (mut waiting, mut fault, mut excess) = (None, None, false);
    poll_fn(move |cx| {
        shared.remember(cx);
        idle.waits(cx.waker());
        loop {
            if idle.is_ended() {
                return Poll::Ready(Over::Drained);
            }
            let now = reactor.clock().now_ms();
            if now.saturating_sub(shared.record.started) > core.keepalive_time {
                traffic.inward.borrow_mut().expect_the_last();
            }
            if std::mem::take(&mut excess) {
                traffic.reset_exceeded();
            }
            let left = shared.left.take();
            let polled = connection.as_mut().poll(cx);
            if let Some(fault) = fault.take().or_else(|| shared.abuse()) {
                return Poll::Ready(shared.end_for(fault, cx));
            }
            fault = traffic.fault();
            excess = traffic.seats.borrow().may_exceed();
            if fault.is_some() || excess {
                // What came before has its turn.
                cx.waker().wake_by_ref();
            }
            if let Poll::Ready(result) = polled {
                return Poll::Ready(match result {
                    Err(error) => {
                        let (errno, what) = words(&error);
                        Over::Failed(errno, what)
                    }
                    Ok(()) if !parted && shared.open.get() > 0 => Over::Left,
                    Ok(()) => Over::Done,
                });
            }
            if let Poll::Ready(Err(error)) = traffic.poll_write(cx) {
                return Poll::Ready(Over::Failed(
                    error.raw_os_error().map(Errno::from_raw),
                    "send() failed".into(),
                ));
            }
            if !left.is_empty() {
                drop(left);
                continue;
            }
            parted |= traffic.inward.borrow().has_parted();
            if !parted && shared.is_leaving() {
                parted = true;
                traffic.part();
                continue;
            }
            if parted && shared.rests() && !traffic.inward.borrow().awaits_head() {
                return Poll::Ready(Over::Parted);
            }
            let (ran, running) = (std::mem::replace(&mut runs, shared.running.get() > 0), runs);
            // The last exchange has ended just now, and what it ended with is still to be sent.
            let busy = ran || running;
            if busy {
                since = now;
            }
            // A head that has begun has its own time, however much else goes on.
            let number = traffic.inward.borrow().within();
            if number != within.0 {
                within = (number, now);
            }
            let head = number.map_or(u64::MAX, |_| within.1 + core.client_header_timeout);
            if running == waiting.is_some() {
                waiting = (!running).then(|| During::new(&reactor.counts.waiting));
            }
            // Hyper may have of answers what nobody here knows of: a client that takes it has the time for that.
            let sends = shared.open.get() > 0 || traffic.stuck.get();
            if busy || !sends || !sending || progress != traffic.progress() {
                (sending, progress, took) = (sends, traffic.progress(), now);
            }
            let streams = traffic.inward.borrow().last();
            let end = match streams {
                _ if running => u64::MAX,
                0 => began + core.client_header_timeout,
                // Other frames of it, such as PING, win no time for what it does not take.
                _ if sends => took + core.send_timeout,
                _ => since + core.keepalive_timeout,
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
            if head <= now && traffic.forgo() {
                continue;
            }
            if head <= now || streams == 0 {
                let code = if head <= now { PROTOCOL_ERROR } else { NO_ERROR };
                return Poll::Ready(shared.end_for(Fault::new(code, "client timed out"), cx));
            }
            if parted || sends {
                return Poll::Ready(Over::Silent);
            }
            parted = true;
            traffic.part();
        }
    })
    .await
}

//! A connection to a peer that several requests use at a time.

use std::cell::{Cell, RefCell, RefMut};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use h2::SendStream;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use hyper::body::Bytes;
use hyper::{Request, Uri};
use weir_ir::address::Address;

use super::head::RequestHead;
use super::seats::Seats;
use super::stream::Broken;
use super::wire::{Traffic, Wire};
use crate::io::Io;
use crate::reactor::Reactor;
use crate::timer::Timer;
use crate::upstream::body::Tag;
use crate::upstream::{PoolId, PoolSettings, Upstream};

/// Bytes of an answer that its upstream may send before anybody takes them. They are counted by stream: one whose client
/// is slow does not hold up the others.
const WINDOW: u32 = 256 * 1024;
const ALL: u32 = i32::MAX as u32;

/// Bytes of requests' bodies that wait for the socket, by stream.
const ROOM: usize = 64 * 1024;

/// Streams at a time, where the peer allows as many.
const STREAMS: usize = 128;

/// What h2 may spend on frames of less than 256 bytes that nobody takes; beyond that the connection ends.
const SMALL_FRAMES: usize = 16 * 1024 * 1024;

/// Streams that were given up and of which frames may still come. Those of others end the connection.
const FORGOTTEN: usize = 256;

/// Milliseconds in which a connection that is done with has to be closed.
const LINGERING: u64 = 5000;

pub(in crate::upstream) struct Session {
    send: RefCell<SendRequest<Bytes>>,
    pub peer: Arc<Address>,
    pub tag: Tag,
    pool_id: PoolId,
    /// As the request that came last has them: a reload may have brought others.
    rules: Cell<PoolSettings>,
    /// Milliseconds of the reactor's clock, as `since`.
    opened: u64,
    since: Cell<u64>,
    /// Those that it has carried.
    requests: Cell<u64>,
    active: Cell<usize>,
    traffic: Rc<Traffic>,
    /// It takes no more of them.
    retired: Cell<bool>,
}

impl Session {
    /// Begins to speak HTTP/2 on a connection that is up.
    pub async fn open(
        reactor: &Rc<Reactor>,
        io: Io,
        peer: Arc<Address>,
        tag: Tag,
        group: &Upstream,
    ) -> Result<Rc<Self>, h2::Error> {
        let traffic = Rc::<Traffic>::default();
        let wire = Wire::new(io, &traffic);
        let (send, connection) = Builder::new()
            .enable_push(false)
            .header_table_size(0)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(ALL)
            // Until the peer has told how many it takes.
            .initial_max_send_streams(1)
            .max_send_buffer_size(ROOM)
            .max_concurrent_reset_streams(FORGOTTEN)
            .data_frame_budget(SMALL_FRAMES)
            .handshake(wire)
            .await?;
        let now = reactor.clock().now_ms();
        let session = Rc::new(Self {
            send: RefCell::new(send),
            peer,
            tag,
            pool_id: group.pool_id,
            rules: Cell::new(group.pool),
            opened: now,
            since: Cell::new(now),
            requests: Cell::new(0),
            active: Cell::new(0),
            traffic,
            retired: Cell::new(false),
        });
        let lingering = reactor.timers().register();
        reactor.spawn(drive(connection, Rc::downgrade(&session), lingering));
        if group.pool.connections > 0 {
            reactor.pools.share(group.pool_id, Rc::clone(&session));
        }
        Ok(session)
    }

    /// Sends the head of a request, whose answer's may have so many bytes. H2 sees another, and says which stream it is.
    pub(super) fn request(
        &self,
        head: Rc<RequestHead>,
        limit: usize,
        ends: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        // A handle that waited for a stream to begin would make others wait too.
        let mut send = self.send.borrow().clone();
        let mut request = Request::new(());
        *request.uri_mut() = Uri::from_static("http://weir/");
        let begun = send.send_request(request, ends)?;
        self.seats().begin(begun.0.stream_id().as_u32(), head, limit);
        self.requests.set(self.requests.get() + 1);
        self.active.set(self.active.get() + 1);
        Ok(begun)
    }

    /// Why a stream broke off.
    pub(super) fn broken(&self, error: h2::Error) -> Broken {
        match self.traffic.fault.get().filter(|_| error.is_io()) {
            Some(fault) => Broken::of_connection(fault),
            None => Broken::of(error),
        }
    }

    /// What of the streams h2 does not see.
    pub(super) fn seats(&self) -> RefMut<'_, Seats> {
        self.traffic.seats.borrow_mut()
    }

    /// A stream is over.
    pub(super) fn release(self: &Rc<Self>, reactor: &Reactor) {
        self.active.set(self.active.get() - 1);
        if self.active.get() > 0 {
            return;
        }
        let now = reactor.clock().now_ms();
        self.since.set(now);
        let spent = self.is_spent(now) || reactor.is_quitting();
        reactor.pools.rest(self.pool_id, self, self.rules.get().connections, spent);
    }

    /// Goes on by these rules.
    pub fn obey(&self, rules: PoolSettings) {
        self.rules.set(rules);
    }

    /// Counts bytes of a request or an answer.
    pub(super) fn count(&self, n: usize) {
        let payload = &self.traffic.payload;
        payload.set(payload.get() + n as u64);
    }

    /// Takes no more requests.
    pub fn retire(&self) {
        self.retired.set(true);
    }

    pub fn is_idle(&self) -> bool {
        self.active.get() == 0
    }

    /// Whether it is idle for too long or for good, or is closed.
    pub fn is_stale(&self, now: u64) -> bool {
        let rested = now.saturating_sub(self.since.get());
        self.is_idle() && (rested >= self.rules.get().timeout || self.is_spent(now)) || self.is_closed()
    }

    /// Whether it has served long enough.
    fn is_spent(&self, now: u64) -> bool {
        let rules = self.rules.get();
        self.retired.get()
            || self.requests.get() >= rules.requests
            || now.saturating_sub(self.opened) >= rules.time
            || self.is_closed()
    }

    /// Whether another request may come.
    pub fn takes_another(&self, now: u64) -> bool {
        let most = self.send.borrow().current_max_send_streams().min(STREAMS);
        (self.is_idle() || self.active.get() < most) && !self.is_spent(now)
    }

    /// Whether the peer closed it, or said that it will.
    fn is_closed(&self) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        matches!(self.send.borrow_mut().poll_ready(cx), Poll::Ready(Err(_)))
    }
}

/// Reads and writes until the connection is closed, which it is when nobody has the session any more.
async fn drive(mut connection: Connection<Wire, Bytes>, session: Weak<Session>, lingering: Timer) {
    poll_fn(|cx| {
        if Pin::new(&mut connection).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if session.strong_count() > 0 {
            return Poll::Pending;
        }
        if lingering.deadline().is_none() {
            lingering.set_in(LINGERING);
        }
        lingering.poll_expired(cx)
    })
    .await;
}

/// What a peer did, as far as it closed the connection.
pub(super) fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof)
}

//! What belongs to one reactor thread: its clock and timers, its connections, the generation that it serves.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::generation::Generation;
use crate::http1::response;
use crate::io::Address;
use crate::timer::{Clock, Timers};
use crate::tls::Turns;
use crate::tunnel;
use crate::upstream::Pools;

/// A number that only the thread of its reactor changes, and any thread may read.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn up(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    pub fn down(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed);
    }
}

/// What a reactor counts: connections and requests so far, connections that there are. Alone in its cache lines, so that
/// no thread waits for another's.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counts {
    pub accepted: Count,
    pub handled: Count,
    pub requests: Count,
    pub active: Count,
    pub reading: Count,
    pub writing: Count,
    pub waiting: Count,
}

/// Counters of the whole worker.
#[derive(Debug, Default)]
pub struct Counters {
    reactors: Mutex<Vec<Arc<Counts>>>,
    numbers: AtomicU64,
    /// How often peers were gone that are not to have tunnels then.
    departures: AtomicU64,
    /// When the first reactor began.
    began: OnceLock<Instant>,
}

impl Counters {
    /// A reactor's own, which count from now on.
    fn join(&self) -> Arc<Counts> {
        let counts = Arc::default();
        self.reactors.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&counts));
        counts
    }

    /// A reactor's clock. What reactors share has times in it, so one that starts later goes on with the others'.
    fn clock(&self) -> Clock {
        Clock::since(*self.began.get_or_init(Instant::now))
    }

    /// One of the counts over all reactors.
    pub fn sum(&self, count: impl Fn(&Counts) -> &Count) -> u64 {
        let reactors = self.reactors.lock().unwrap_or_else(PoisonError::into_inner);
        reactors.iter().map(|counts| count(counts).0.load(Ordering::Relaxed)).sum()
    }

    /// Lets every thread look for tunnels of peers that are gone.
    pub fn depart(&self) {
        self.departures.fetch_add(1, Ordering::Relaxed);
    }

    /// The next `$connection`.
    pub fn next_connection(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// The state of one reactor thread.
pub struct Reactor {
    timers: Timers,
    current: RefCell<Arc<Generation>>,
    /// No new work is taken: the worker quits.
    quitting: Cell<bool>,
    /// When everything has to end that is open while the worker quits.
    end: Cell<Option<u64>>,
    idle: Rc<Places>,
    tunnels: RefCell<Vec<Weak<tunnel::Control>>>,
    /// The departures that were looked at.
    departures: Cell<u64>,
    tasks: Cell<usize>,
    all_done: RefCell<Option<Waker>>,
    pub counters: Arc<Counters>,
    pub counts: Arc<Counts>,
    /// What the present generation has done here.
    chores: RefCell<Vec<tokio::task::AbortHandle>>,
    pub pools: Pools,
    pub(crate) handshakes: Turns,
    /// Heads of upstream responses that wait for their next use; boxed, as they travel.
    #[expect(clippy::vec_box, reason = "a head is large and is handed from task to task")]
    heads: RefCell<Vec<Box<response::Head>>>,
}

/// Heads that a thread keeps.
const HEADS: usize = 64;

/// A connection's place in the list of those that have to be told of reloads and of the end.
#[derive(Default)]
pub struct Idle {
    /// The task of the connection, known once it waits for anything.
    waker: RefCell<Option<Waker>>,
    waits: Cell<bool>,
    /// Milliseconds of the thread's clock at which the connection ends, whatever it does.
    end: Cell<Option<u64>>,
    ended: Cell<bool>,
    _place: Option<Place>,
}

/// The list of those.
#[derive(Default)]
struct Places {
    entries: RefCell<Vec<Weak<Idle>>>,
    free: RefCell<Vec<usize>>,
}

/// Who leaves it has left nothing there, which streams do all the time.
struct Place {
    of: Rc<Places>,
    index: usize,
}

impl Places {
    fn add(self: &Rc<Self>, end: Option<u64>, ended: bool) -> Rc<Idle> {
        let index = self.free.borrow_mut().pop();
        let mut entries = self.entries.borrow_mut();
        let index = index.unwrap_or_else(|| {
            entries.push(Weak::new());
            entries.len() - 1
        });
        let idle = Rc::new(Idle {
            end: Cell::new(end),
            ended: Cell::new(ended),
            _place: Some(Place { of: Rc::clone(self), index }),
            ..Idle::default()
        });
        entries[index] = Rc::downgrade(&idle);
        idle
    }

    fn all(&self) -> Vec<Rc<Idle>> {
        self.entries.borrow().iter().filter_map(Weak::upgrade).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.entries.borrow_mut()[self.index] = Weak::new();
        self.of.free.borrow_mut().push(self.index);
    }
}

impl Idle {
    /// Remembers whom to wake; called by whoever waits for a request.
    pub fn waits(&self, waker: &Waker) {
        self.waits.set(true);
        self.remember(waker);
    }

    pub fn works(&self) {
        self.waits.set(false);
    }

    fn remember(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|w| w.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// When the connection has to end, where `worker_shutdown_timeout` says so.
    pub fn end(&self) -> Option<u64> {
        self.end.get()
    }

    /// Whether that time is over.
    pub fn is_ended(&self) -> bool {
        self.ended.get()
    }

    /// Runs a part of the connection's work; `None` where its time was over before that was done. The work is pinned
    /// by the caller, so that it need not be moved.
    pub async fn bounded<T>(&self, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        poll_fn(|cx| {
            if self.is_ended() {
                return Poll::Ready(None);
            }
            let poll = work.as_mut().poll(cx).map(Some);
            if poll.is_pending() {
                self.remember(cx.waker());
            }
            poll
        })
        .await
    }
}

impl Reactor {
    pub fn new(generation: Arc<Generation>, counters: Arc<Counters>) -> Rc<Self> {
        Rc::new(Self {
            timers: Timers::new(counters.clock()),
            current: RefCell::new(generation),
            quitting: Cell::new(false),
            end: Cell::new(None),
            idle: Rc::default(),
            tunnels: RefCell::default(),
            departures: Cell::new(0),
            tasks: Cell::new(0),
            all_done: RefCell::default(),
            counts: counters.join(),
            counters,
            chores: RefCell::default(),
            pools: Pools::default(),
            handshakes: Turns::new(),
            heads: RefCell::default(),
        })
    }

    pub fn clock(&self) -> &Clock {
        self.timers.clock()
    }

    /// A head to parse an upstream's answer with.
    pub(crate) fn take_head(&self) -> Box<response::Head> {
        self.heads.borrow_mut().pop().unwrap_or_default()
    }

    pub(crate) fn put_head(&self, mut head: Box<response::Head>) {
        let mut heads = self.heads.borrow_mut();
        if heads.len() < HEADS {
            head.reset();
            heads.push(head);
        }
    }

    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    pub fn current(&self) -> Arc<Generation> {
        Arc::clone(&self.current.borrow())
    }

    /// Whether that generation is the one that new requests are served by.
    pub fn is_current(&self, generation: &Arc<Generation>) -> bool {
        Arc::ptr_eq(&self.current.borrow(), generation)
    }

    pub fn is_quitting(&self) -> bool {
        self.quitting.get()
    }

    /// Serves new requests by another generation; idle connections of the old one are told.
    pub fn publish(self: &Rc<Self>, generation: Arc<Generation>) {
        let before = self.current.replace(generation);
        if !self.is_current(&before) {
            self.bound(before.shutdown_timeout);
            self.chores.borrow_mut().drain(..).for_each(|task| task.abort());
        }
        self.do_chores();
        self.look_for_departures();
        self.pools.retain(&self.current.borrow());
        self.wake_idle();
    }

    /// Ends the tunnels of peers that are gone, where any are gone since the last look.
    pub(crate) fn look_for_departures(&self) {
        let departures = self.counters.departures.load(Ordering::Relaxed);
        if self.departures.replace(departures) == departures {
            return;
        }
        // Those that end take themselves off no list meanwhile: they are only woken.
        for tunnel in self.tunnels.borrow().iter().filter_map(Weak::upgrade) {
            if tunnel.is_left_behind() {
                tunnel.finish();
            }
        }
    }

    /// Takes no new request; idle connections close, tunnels go on until they end or their time is up.
    pub fn quit(self: &Rc<Self>) {
        self.quitting.set(true);
        let timeout = self.current.borrow().shutdown_timeout;
        self.end.set(self.bound(timeout));
        self.chores.borrow_mut().drain(..).for_each(|task| task.abort());
        self.pools.clear();
        self.wake_idle();
    }

    /// Does what the generation has to be done, unless another thread does.
    fn do_chores(self: &Rc<Self>) {
        let generation = self.current();
        for work in generation.chores.iter().filter_map(|chore| chore.take(self, &generation)) {
            self.chores.borrow_mut().push(tokio::task::spawn_local(work).abort_handle());
        }
    }

    /// `worker_shutdown_timeout`: what is open now ends then; 0 leaves it alone.
    fn bound(self: &Rc<Self>, timeout: u64) -> Option<u64> {
        let mut tunnels = self.tunnels.borrow_mut();
        tunnels.retain(|t| t.strong_count() > 0);
        if timeout == 0 {
            return None;
        }
        let deadline = self.clock().refresh() + timeout;
        for tunnel in tunnels.iter().filter_map(Weak::upgrade) {
            tunnel.drain(deadline);
        }
        for entry in self.idle.all() {
            entry.end.set(Some(entry.end.get().map_or(deadline, |end| end.min(deadline))));
        }
        let (timers, reactor) = (self.timers.clone(), Rc::downgrade(self));
        tokio::task::spawn_local(async move {
            timers.until(deadline).await;
            let Some(reactor) = reactor.upgrade() else { return };
            for entry in reactor.idle.all() {
                if entry.end.get().is_some_and(|end| end <= deadline) {
                    entry.ended.set(true);
                    entry.wake();
                }
            }
        });
        Some(deadline)
    }

    fn wake_idle(&self) {
        self.idle.all().iter().filter(|entry| entry.waits.get()).for_each(|entry| entry.wake());
    }

    /// A place for a new connection, which ends with the others where the worker quits already.
    pub fn register_idle(&self) -> Rc<Idle> {
        let end = self.end.get();
        self.idle.add(end, end.is_some_and(|end| end <= self.clock().now_ms()))
    }

    /// Lets a running tunnel be bounded by `worker_shutdown_timeout`.
    pub fn register_tunnel(&self, control: &Rc<tunnel::Control>) {
        push_weak(&mut self.tunnels.borrow_mut(), Rc::downgrade(control));
    }

    /// Runs a task on this thread. A panic in it ends it alone; the panic hook has logged it.
    pub fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        self.tasks.set(self.tasks.get() + 1);
        tokio::task::spawn_local(Counted { task, _running: Running(Rc::clone(self)) });
    }

    /// How many spawned tasks there are: connections and tunnels.
    pub fn tasks(&self) -> usize {
        self.tasks.get()
    }

    /// Waits until every spawned task has ended.
    pub async fn drained(&self) {
        poll_fn(|cx| {
            if self.tasks.get() == 0 {
                return Poll::Ready(());
            }
            *self.all_done.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

pin_project! {
    /// A task that is counted for as long as it lives. An async block around it would hold it twice.
    struct Counted<F> {
        #[pin]
        task: F,
        _running: Running,
    }
}

impl<F: Future<Output = ()>> Future for Counted<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().task.poll(cx)
    }
}

struct Running(Rc<Reactor>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.tasks.set(self.0.tasks.get() - 1);
        if self.0.tasks.get() == 0
            && let Some(waker) = self.0.all_done.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

/// Appends, and drops dead entries whenever the list would have to grow.
fn push_weak<T>(list: &mut Vec<Weak<T>>, entry: Weak<T>) {
    if list.len() == list.capacity() {
        list.retain(|e| e.strong_count() > 0);
    }
    list.push(entry);
}

/// The other end of a client's connection, its text made once.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: Address,
    text: Arc<[u8]>,
}

impl Peer {
    pub fn new(address: Address) -> Self {
        let text = match &address {
            Address::Ip(inet) => match inet.ip().to_canonical() {
                IpAddr::V4(ip) if inet.is_ipv4() => ip.to_string(),
                IpAddr::V4(_) | IpAddr::V6(_) => inet.ip().to_string(),
            },
            Address::Unix(_) => "unix:".to_string(),
        };
        Self { address, text: text.into_bytes().into() }
    }

    /// In the place of a client where there is none.
    pub(crate) fn nobody() -> Self {
        Self { address: Address::Unix("".into()), text: Arc::default() }
    }

    /// `$remote_addr`.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// `$remote_port`; none on a unix socket.
    pub fn port(&self) -> Option<u16> {
        match &self.address {
            Address::Ip(inet) => Some(inet.port()),
            Address::Unix(_) => None,
        }
    }
}

/// Lets the tasks of the thread that are ready go first, once. Those that wait so go on in the order in which they came, which
/// tokio's own `yield_now` turns around.
pub async fn others_first() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::time::Duration;

    #[tokio::test]
    async fn who_lets_others_go_first_keeps_the_order() {
        let said = Rc::new(RefCell::new(vec![]));
        let local = tokio::task::LocalSet::new();
        for n in 0..3 {
            let said = Rc::clone(&said);
            local.spawn_local(async move {
                said.borrow_mut().push(n);
                others_first().await;
                said.borrow_mut().push(n + 10);
            });
        }
        local.await;
        assert_eq!(*said.borrow(), [0, 1, 2, 10, 11, 12]);
    }

    #[tokio::test(start_paused = true)]
    async fn reactors_have_one_time() {
        const HOURS: u64 = 36_000_000;
        let counters = Counters::default();
        let first = counters.clock();
        tokio::time::advance(Duration::from_millis(HOURS)).await;
        let second = counters.clock();
        assert_eq!([first.now_ms(), second.now_ms()], [HOURS; 2]);
        assert!(second.unix_ms().abs_diff(Clock::new().unix_ms()) < 5_000);
    }

    #[tokio::test]
    async fn work_ends_with_the_time_of_its_connection() {
        let idle = Rc::new(Idle::default());
        assert_eq!(idle.bounded(pin!(ready(1))).await, Some(1));
        let ending = Rc::clone(&idle);
        let end = async move {
            ending.ended.set(true);
            ending.wake();
        };
        let work = pin!(pending::<u8>());
        let (left, ()) = tokio::join!(idle.bounded(work), end);
        assert_eq!(left, None);
        assert_eq!(idle.bounded(pin!(ready(1))).await, None, "nothing begins after that");
    }
}

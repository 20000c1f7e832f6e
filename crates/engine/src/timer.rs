//! One clock and one set of lazy timers per reactor thread.
//!
//! **The clock** is cached: [`Clock::now_ms`] costs a load and a compare as long as the thread is busy with one batch of
//! events. The kernel's clock is read anew by the first `now_ms` after the reactor came back from waiting (the runtime
//! made by [`runtime`] says so), after every 32nd `now_ms` (a saturated reactor never waits), by the timers' driver and
//! by every [`Clock::refresh`]. The cached time is never ahead of the true one, and behind it by the age of the batch,
//! as nginx's `ngx_current_msec` is. Time comes from `tokio::time`, so a paused runtime pauses it.
//!
//! **A timer never fires early**: it fires when a freshly read clock has reached the stored deadline, and
//! [`Timer::set_in`] computes the deadline from a freshly read clock. (A deadline computed from a cached `now_ms` is
//! early by as much as the cache is old; that is the caller's choice.) It may be late: by up to 10 ms where it was
//! at most 10 s away, by up to one second where it was farther. Deadlines are rounded up to these steps so that many
//! connections share one wake-up.
//!
//! **Moving a deadline is a store.** Each timer has one place in a heap, at or before its deadline. Moving the deadline
//! later touches nothing; when the driver comes to the old place it puts the timer back at the new one. So a
//! connection that moves its deadline with each request costs the heap one step per timeout period, not per request.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::time::{Instant, Sleep};

use crate::http1::date::{self, Stamp};

/// A timer farther away than this, in milliseconds, may be up to [`COARSE`] late.
const LONG: u64 = 10_000;
/// Step in milliseconds of timers that are at least [``LONG`] away.
const COARSE: u64 = 1_000;
/// Step in milliseconds of nearer ones. Tokio adds up to one millisecond.
const FINE: u64 = 9;
/// No deadline.
const NEVER: u64 = u64::MAX;

/// Answers that one reading of the kernel's clock is good for.
const READS: u32 = 32;

thread_local! {
    /// Counts how often the thread's reactor came back from waiting.
    static BATCH: Cell<u32> = const { Cell::new(0) };
}

/// Which of the thread's batches of events this is; another one as soon as the thread has slept.
pub(crate) fn batch() -> u32 {
    BATCH.get()
}

/// A runtime for one reactor thread, which tells the thread's [`Clock`] of every batch of events.
///
/// # Errors
/// No descriptor left for the reactor.
pub fn runtime() -> io::Result<LocalRuntime> {
    Builder::new_current_thread()
        .enable_all()
        .on_thread_unpark(|| BATCH.set(BATCH.get().wrapping_add(1)))
        .build_local(LocalOptions::default())
}

/// The thread's clock.
pub struct Clock {
    base: Instant,
    now: Cell<u64>,
    /// The batch of events that `now` belongs to, and how many more answers it is good for.
    batch: Cell<u32>,
    reads_left: Cell<u32>,
    /// Milliseconds from the Unix epoch to `base`, as the wall clock last had it.
    wall: Cell<u64>,
    /// The second in which `wall` was last compared with the system's clock.
    compared: Cell<u64>,
    follows_system: bool,
    date: Cell<(u64, Stamp)>,
}

impl Clock {
    /// A clock that starts at 0 ms and follows the system's wall clock, which it asks once a second.
    pub fn new() -> Self {
        Self::since(Instant::now())
    }

    /// A clock that was at 0 ms then: all of one base tell each other's time.
    pub fn since(base: Instant) -> Self {
        Self::starting_at(base, system_ms().saturating_sub(base.elapsed().as_millis() as u64), true)
    }

    /// A clock for tests: the wall clock starts at `unix_ms` milliseconds after the epoch and moves with tokio's time
    /// alone.
    pub fn fixed(unix_ms: u64) -> Self {
        Self::starting_at(Instant::now(), unix_ms, false)
    }

    fn starting_at(base: Instant, wall: u64, follows_system: bool) -> Self {
        Clock {
            base,
            now: Cell::new(0),
            batch: Cell::new(BATCH.get()),
            reads_left: Cell::new(0),
            wall: Cell::new(wall),
            compared: Cell::new(0),
            follows_system,
            date: Cell::new((0, date::http(0))),
        }
    }

    /// Reads the kernel's clock and returns the milliseconds since its base.
    pub fn refresh(&self) -> u64 {
        self.read().0
    }

    /// Refreshes and returns the milliseconds rounded down and rounded up.
    fn read(&self) -> (u64, u64) {
        let micros = self.base.elapsed().as_micros() as u64;
        let now = micros / 1000;
        self.now.set(now);
        self.batch.set(BATCH.get());
        // A clock for tests is never stale.
        self.reads_left.set(if self.follows_system { READS } else { 0 });
        if self.follows_system && now / 1000 != self.compared.get() {
            self.compared.set(now / 1000);
            self.wall.set(system_ms().saturating_sub(now));
        }
        (now, micros.div_ceil(1000))
    }

    /// Milliseconds since its base, cached for the batch of events. Monotonic.
    pub fn now_ms(&self) -> u64 {
        let left = self.reads_left.get();
        if left == 0 || self.batch.get() != BATCH.get() {
            return self.refresh();
        }
        self.reads_left.set(left - 1);
        self.now.get()
    }

    /// Milliseconds since the Unix epoch, cached as [`Clock::now_ms`] is.
    pub fn unix_ms(&self) -> u64 {
        let now = self.now_ms();
        self.wall.get() + now
    }

    /// Seconds since the Unix epoch, cached as [`Clock::now_ms`] is.
    pub fn unix_secs(&self) -> u64 {
        self.unix_ms() / 1000
    }

    /// The current date in the fixed-length format of RFC 9110 section 5.6.7, formatted once a second.
    pub fn http_date(&self) -> Stamp {
        let secs = self.unix_secs();
        let (of, text) = self.date.get();
        if of == secs {
            return text;
        }
        let text = date::http(secs as i64);
        self.date.set((secs, text));
        text
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::disallowed_methods, reason = "this is where the clock takes it from")]
fn system_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// The thread's timers. Cloning gives another handle on the same.
#[derive(Clone)]
pub struct Timers(Rc<Inner>);

struct Inner {
    clock: Clock,
    entries: RefCell<Vec<Entry>>,
    free: RefCell<Vec<u32>>,
    /// Places: when to look, at which entry. A place counts only while the entry's `placed` says the same.
    places: RefCell<BinaryHeap<Reverse<(u64, u32)>>>,
    /// What the driver sleeps for, and how to wake it when something nearer comes.
    armed: Cell<u64>,
    driver: RefCell<Option<Waker>>,
}

#[derive(Default)]
struct Entry {
    deadline: Cell<u64>,
    placed: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

/// One task's timer: at most one deadline at a time. Dropping it frees its place.
pub struct Timer {
    timers: Rc<Inner>,
    index: u32,
}

impl Timers {
    /// An empty set around `clock`. [`Timers::drive`] must run on the same thread for anything to fire.
    pub fn new(clock: Clock) -> Self {
        Timers(Rc::new(Inner {
            clock,
            entries: RefCell::default(),
            free: RefCell::default(),
            places: RefCell::default(),
            armed: Cell::new(NEVER),
            driver: RefCell::default(),
        }))
    }

    /// The thread's clock.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// A new timer without a deadline.
    pub fn register(&self) -> Timer {
        let mut entries = self.0.entries.borrow_mut();
        let reused = self.0.free.borrow_mut().pop();
        let index = reused.unwrap_or_else(|| {
            entries.push(Entry::default());
            entries[entries.len() - 1].placed.set(NEVER);
            (entries.len() - 1) as u32
        });
        entries[index as usize].deadline.set(NEVER);
        Timer { timers: self.0.clone(), index }
    }

    /// Waits until `deadline_ms` of the clock, for code that waits for nothing else.
    pub async fn until(&self, deadline_ms: u64) {
        let timer = self.register();
        timer.set(deadline_ms);
        poll_fn(|cx| timer.poll_expired(cx)).await
    }

    /// Waits `ms` milliseconds.
    pub async fn sleep(&self, ms: u64) {
        let timer = self.register();
        timer.set_in(ms);
        poll_fn(|cx| timer.poll_expired(cx)).await
    }

    /// Fires timers; the reactor spawns this once on its thread. It holds the thread's only tokio timer and never
    /// ends.
    pub async fn drive(self) {
        let mut sleep: Pin<Box<Sleep>> = Box::pin(tokio::time::sleep_until(self.0.clock.base));
        poll_fn(|cx| self.0.turn(cx, sleep.as_mut())).await
    }
}

impl Inner {
    fn turn(&self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<()> {
        {
            let mut driver = self.driver.borrow_mut();
            if !driver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *driver = Some(cx.waker().clone());
            }
        }
        loop {
            self.fire(self.clock.refresh());
            let next = self.places.borrow().peek().map_or(NEVER, |Reverse((at, _))| *at);
            self.armed.set(next);
            if next == NEVER {
                return Poll::Pending;
            }
            sleep.as_mut().reset(self.clock.base + Duration::from_millis(next));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Looks at every place up to `now`: wakes whose deadline has come, puts back whose deadline has moved.
    fn fire(&self, now: u64) {
        let mut due = Vec::new();
        {
            let entries = self.entries.borrow();
            let mut places = self.places.borrow_mut();
            while let Some(Reverse((at, index))) = places.peek().copied() {
                if at > now {
                    break;
                }
                places.pop();
                let entry = &entries[index as usize];
                if entry.placed.get() != at {
                    continue;
                }
                entry.placed.set(NEVER);
                let deadline = entry.deadline.get();
                if deadline <= now {
                    due.extend(entry.waker.take());
                } else if deadline != NEVER {
                    let at = place(now, deadline);
                    entry.placed.set(at);
                    places.push(Reverse((at, index)));
                }
            }
        }
        // Outside of the borrows: what a waker does is not ours to know.
        due.into_iter().for_each(Waker::wake);
    }

    /// Adds a place; once there are far more than timers, those that do not count go.
    fn put(&self, at: u64, index: u32) {
        let (entries, mut places) = (self.entries.borrow(), self.places.borrow_mut());
        places.push(Reverse((at, index)));
        if places.len() > SPARE + 4 * entries.len() {
            // They would be there until they come up, which may take hours.
            let mut counting = std::mem::take(&mut *places).into_vec();
            counting.retain(|Reverse((at, index))| entries[*index as usize].placed.get() == *at);
            counting.sort_unstable();
            counting.dedup();
            *places = counting.into();
        }
    }

    /// Gives the entry a place that is not later than its (rounded) deadline.
    fn advance(&self, index: u32, entry: &Entry, deadline: u64) {
        let at = place(self.clock.now_ms(), deadline);
        if at >= entry.placed.get() {
            return;
        }
        entry.placed.set(at);
        self.put(at, index);
        if at < self.armed.get() {
            self.armed.set(at);
            let driver = self.driver.borrow();
            if let Some(waker) = &*driver {
                waker.wake_by_ref();
            }
        }
    }
}

/// Places that there may be however few timers there are.
const SPARE: usize = 1024;

/// When to look at a deadline: at its next step, so that neighbours share a wake-up.
fn place(now: u64, deadline: u64) -> u64 {
    let step = if deadline.saturating_sub(now) > LONG { COARSE } else { FINE };
    deadline.checked_next_multiple_of(step).unwrap_or(NEVER - 1)
}

impl Timer {
    /// Sets or moves the deadline, in milliseconds of the thread's clock.
    pub fn set(&self, deadline_ms: u64) {
        let entries = self.timers.entries.borrow();
        let entry = &entries[self.index as usize];
        entry.deadline.set(deadline_ms);
        if deadline_ms < entry.placed.get() {
            self.timers.advance(self.index, entry, deadline_ms);
        }
    }

    /// Sets or moves the deadline to `ms` milliseconds from now, by a freshly read clock.
    pub fn set_in(&self, ms: u64) {
        // Rounded up: the part of a millisecond that the clock does not show has passed already.
        self.set(self.timers.clock.read().1.saturating_add(ms));
    }

    /// As [`Timer::set_in`] by the cached clock, for timeouts of seconds: early by at most the age of the batch of events,
    /// as nginx's timers are.
    pub fn set_about(&self, ms: u64) {
        self.set(self.timers.clock.now_ms().saturating_add(ms));
    }

    /// Takes the deadline away.
    pub fn clear(&self) {
        self.timers.entries.borrow()[self.index as usize].deadline.set(NEVER);
    }

    /// The deadline, if there is one.
    pub fn deadline(&self) -> Option<u64> {
        let deadline = self.timers.entries.borrow()[self.index as usize].deadline.get();
        (deadline != NEVER).then_some(deadline)
    }

    /// Ready once the deadline has passed, until it is moved or cleared. Otherwise the task is woken then, also if the
    /// deadline is only set later.
    pub fn poll_expired(&self, cx: &mut Context<'_>) -> Poll<()> {
        let entries = self.timers.entries.borrow();
        let entry = &entries[self.index as usize];
        if entry.deadline.get() <= self.timers.clock.now.get() {
            return Poll::Ready(());
        }
        let mut waker = entry.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let waker = {
            let entries = self.timers.entries.borrow();
            let entry = &entries[self.index as usize];
            entry.deadline.set(NEVER);
            // Its place stays in the heap until it comes up; a new owner of the entry inherits it as its own.
            entry.waker.take()
        };
        drop(waker);
        self.timers.free.borrow_mut().push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `work` on a paused clock with driven timers.
    fn paused<F: Future<Output = ()>>(work: impl FnOnce(Timers) -> F) {
        let mut runtime = Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build_local(LocalOptions::default()).unwrap();
        runtime.block_on(async {
            let timers = Timers::new(Clock::fixed(0));
            let driver = tokio::task::spawn_local(timers.clone().drive());
            work(timers).await;
            driver.abort();
        });
    }

    #[test]
    fn places_that_do_not_count_are_given_up() {
        paused(|timers| async move {
            let others: Vec<_> = (0..100).map(|_| timers.register()).collect();
            others.iter().for_each(|other| other.set_in(3_600_000));
            let timer = timers.register();
            for _ in 0..10_000 {
                timer.set_in(10);
                poll_fn(|cx| timer.poll_expired(cx)).await;
                timer.set_in(3_600_000);
            }
            assert!(timers.0.places.borrow().len() <= SPARE + 4 * 101);
            let begun = timers.clock().refresh();
            poll_fn(|cx| others[99].poll_expired(cx)).await;
            assert!((3_400_000..3_600_000).contains(&(timers.clock().refresh() - begun)));
        });
    }

    /// Sets a timer `ms` away when the clock shows `start` microseconds and checks how late it fires.
    #[track_caller]
    fn check_lateness(start: u64, ms: u64, at_most: u64) {
        paused(|timers| async move {
            tokio::time::advance(Duration::from_micros(start)).await;
            let begun = Instant::now();
            timers.sleep(ms).await;
            let took = begun.elapsed();
            assert!(took >= Duration::from_millis(ms), "fired early: {took:?} < {ms} ms");
            assert!(
                took <= Duration::from_millis(ms + at_most),
                "fired late: {took:?} > {ms} + {at_most} ms"
            );
        });
    }

    #[test]
    fn fires_never_early_and_at_most_a_step_late() {
        for start in [0, 1_000, 7_000, 8_999, 999_500, 12_345_678] {
            for ms in [1, 2, 9, 10, 100, 500, 9_999] {
                check_lateness(start, ms, 10);
            }
            for ms in [10_000, 10_001, 60_000, 75_123, 3_600_000] {
                check_lateness(start, ms, 1_001);
            }
        }
    }

    #[test]
    fn a_started_millisecond_does_not_count() {
        paused(|timers| async move {
            tokio::time::advance(Duration::from_micros(8_999)).await;
            let timer = timers.register();
            timer.set_in(1);
            assert_eq!((timers.clock().now_ms(), timer.deadline()), (8, Some(10)));
        });
    }

    #[test]
    fn moving_a_deadline_later_leaves_the_heap_alone() {
        paused(|timers| async move {
            let timer = timers.register();
            for request in 0..10_000u64 {
                tokio::time::advance(Duration::from_millis(1)).await;
                timers.clock().refresh();
                timer.set(timers.clock().now_ms() + 60_000);
                assert_eq!(timers.0.places.borrow().len(), 1, "request {request}");
            }
            poll_fn(|cx| timer.poll_expired(cx)).await;
            let now = timers.clock().now_ms();
            assert!((70_000..=71_000).contains(&now), "{now}");
        });
    }

    #[test]
    fn a_nearer_deadline_wakes_the_driver() {
        paused(|timers| async move {
            let (far, near) = (timers.register(), timers.register());
            far.set(3_600_000);
            timers.sleep(50).await;
            near.set_in(20);
            poll_fn(|cx| near.poll_expired(cx)).await;
            assert!(timers.clock().now_ms() < 100);
            far.set_in(30);
            poll_fn(|cx| far.poll_expired(cx)).await;
            assert!(timers.clock().now_ms() < 150);
        });
    }

    #[test]
    fn a_cleared_timer_does_not_fire_and_can_be_set_again() {
        paused(|timers| async move {
            let timer = timers.register();
            timer.set_in(100);
            assert_eq!(timer.deadline(), Some(100));
            timer.clear();
            assert_eq!(timer.deadline(), None);
            timers.sleep(1_000).await;
            assert!(poll_fn(|cx| Poll::Ready(timer.poll_expired(cx))).await.is_pending());
            timer.set_in(100);
            poll_fn(|cx| timer.poll_expired(cx)).await;
            assert!((1_100..1_200).contains(&timers.clock().now_ms()));
        });
    }

    #[test]
    fn entries_are_reused_and_a_predecessors_place_does_no_harm() {
        paused(|timers| async move {
            for _ in 0..1_000 {
                let timer = timers.register();
                timer.set_in(500);
            }
            assert_eq!(timers.0.entries.borrow().len(), 1);
            assert_eq!(timers.0.places.borrow().len(), 1);
            let timer = timers.register();
            timer.set_in(60_000);
            poll_fn(|cx| timer.poll_expired(cx)).await;
            assert!(timers.clock().now_ms() >= 60_000);
        });
    }

    #[test]
    fn thousands_fire_in_order_of_their_deadlines() {
        paused(|timers| async move {
            let fired = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = (0..5_000u64)
                .map(|i| {
                    let (timers, fired) = (timers.clone(), fired.clone());
                    let deadline = (i * 7_919) % 5_000 + 1;
                    tokio::task::spawn_local(async move {
                        timers.until(deadline).await;
                        assert!(timers.clock().now_ms() >= deadline);
                        fired.borrow_mut().push(deadline);
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            let fired = fired.borrow();
            assert_eq!(fired.len(), 5_000);
            assert!(fired.windows(2).all(|pair| pair[0] <= pair[1] + FINE));
            assert_eq!(timers.0.places.borrow().len(), 0);
        });
    }

    #[test]
    fn the_wall_clock_moves_with_the_monotonic_one() {
        paused(|_| async {
            let clock = Clock::fixed(784_111_776_500);
            assert_eq!(clock.http_date().as_ref(), b"Sun, 06 Nov 1994 08:49:36 GMT");
            tokio::time::advance(Duration::from_millis(500)).await;
            assert_eq!((clock.now_ms(), clock.unix_secs()), (500, 784_111_777));
            assert_eq!(clock.http_date().as_ref(), b"Sun, 06 Nov 1994 08:49:37 GMT");
        });
    }

    #[test]
    fn the_time_is_cached_for_a_batch_and_a_bounded_number_of_reads() {
        Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
            let clock = Clock::new();
            assert_eq!(clock.now_ms(), 0);
            tokio::time::advance(Duration::from_millis(5)).await;
            assert_eq!(clock.now_ms(), 0, "cached");
            BATCH.set(BATCH.get() + 1);
            assert_eq!(clock.now_ms(), 5, "a new batch");
            tokio::time::advance(Duration::from_millis(5)).await;
            let times: Vec<u64> = (0..=READS).map(|_| clock.now_ms()).collect();
            assert_eq!((times[0], times[READS as usize]), (5, 10), "so many reads");
        });
    }

    #[test]
    fn a_runtime_counts_its_batches() {
        let before = BATCH.get();
        runtime().unwrap().block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
        assert_ne!(BATCH.get(), before);
    }

    #[test]
    fn the_real_clock_follows_the_system() {
        let clock = Clock::new();
        clock.refresh();
        assert!(clock.unix_ms().abs_diff(system_ms()) < 5_000);
    }
}

//! `queue`: requests wait for a peer where none can be picked at once.
//!
//! Whoever gives a connection's place back wakes the first that waits, and nobody else picks before it. A peer that is
//! there again for another reason is found by looking now and then.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::Notify;

use super::Upstream;
use super::balance::{Picked, Tried};
use super::exchange::{Settings, poll_client_gone};
use crate::http::Exchange;
use crate::timer::Timers;

/// Milliseconds between two looks.
const LOOK: u64 = 1_000;

/// Who waits for a group's peers, in whatever generations.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    count: AtomicUsize,
    freed: Notify,
}

impl Waiting {
    /// A place is free.
    pub(super) fn free(&self) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.freed.notify_one();
        }
    }
}

/// The rules of a group's queue.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub most: usize,
    /// Milliseconds.
    pub timeout: u64,
    pub waiting: Arc<Waiting>,
}

/// Why nobody was picked.
pub(super) enum Nobody {
    /// There is nobody left to wait for.
    Left,
    Full,
    TimedOut,
    ClientGone,
}

/// A place in the queue.
struct Place<'q>(&'q Waiting);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Queue {
    fn join(&self) -> Option<Place<'_>> {
        let joined = |count: usize| (count < self.most).then_some(count + 1);
        self.waiting.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, joined).ok()?;
        Some(Place(&self.waiting))
    }

    /// Picks a peer where nobody waits for one.
    pub(super) fn try_pick(
        &self,
        group: &Upstream,
        x: &mut Exchange,
        tried: &mut Tried,
        now: u64,
    ) -> Option<Picked> {
        if self.waiting.count.load(Ordering::Relaxed) > 0 {
            return None;
        }
        group.balance.pick(x, tried, now)
    }

    /// Waits until a peer can be picked: of `living` as it is then, where that is given.
    pub(super) async fn pick(
        &self,
        group: &mut Arc<Upstream>,
        living: Option<&Arc<Upstream>>,
        x: &mut Exchange,
        tried: &mut Tried,
        settings: &Settings,
    ) -> Result<Picked, Nobody> {
        if group.peers.iter().enumerate().all(|(index, peer)| peer.down || tried.contains(index)) {
            return Err(Nobody::Left);
        }
        let reactor = Rc::clone(&x.reactor);
        let pick = |x: &mut Exchange| {
            let now = living.map(|living| living.current());
            if let Some(now) = now.filter(|now| !Arc::ptr_eq(now, group)) {
                (*group, *tried) = (now, Tried::default());
            }
            group.balance.pick(x, tried, reactor.clock().now_ms())
        };
        let is_gone = |x: &mut Exchange, cx: &mut Context<'_>| poll_client_gone(x, cx, settings);
        self.wait(reactor.timers(), x, pick, is_gone).await
    }

    async fn wait<X, P>(
        &self,
        timers: &Timers,
        x: &mut X,
        mut pick: impl FnMut(&mut X) -> Option<P>,
        is_gone: impl Fn(&mut X, &mut Context<'_>) -> bool,
    ) -> Result<P, Nobody> {
        let Waiting { count, freed } = &*self.waiting;
        let now = || timers.clock().now_ms();
        let _place = self.join().ok_or(Nobody::Full)?;
        let deadline = now().saturating_add(self.timeout);
        let timer = timers.register();
        let mut has_passed_on = false;
        // Looking now and then costs nobody the place among those who wait; being woken does.
        let mut notified = pin!(freed.notified());
        loop {
            // From here on nothing that becomes free is missed.
            let is_woken = notified.as_mut().enable();
            let is_alone = count.load(Ordering::Relaxed) == 1;
            if (is_woken || is_alone)
                && let Some(picked) = pick(x)
            {
                return Ok(picked);
            }
            timer.set(deadline.min(now() + LOOK));
            let woken = poll_fn(|cx| {
                if notified.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Woken::Freed);
                }
                if timer.poll_expired(cx).is_ready() {
                    return Poll::Ready(Woken::Look);
                }
                if is_gone(x, cx) { Poll::Ready(Woken::ClientGone) } else { Poll::Pending }
            });
            let woken = woken.await;
            if let Woken::ClientGone = woken {
                return Err(Nobody::ClientGone);
            }
            if let Some(picked) = pick(x) {
                return Ok(picked);
            }
            if let Woken::Freed = woken {
                notified.set(freed.notified());
            }
            match woken {
                // Another one may have a use for what this request has none for, having been there. Once a look:
                // where nobody has, it would go round for ever.
                Woken::Freed if !has_passed_on && count.load(Ordering::Relaxed) > 1 => {
                    has_passed_on = true;
                    freed.notify_one();
                }
                Woken::Freed | Woken::ClientGone => {}
                Woken::Look => has_passed_on = false,
            }
            if now() >= deadline {
                return Err(Nobody::TimedOut);
            }
        }
    }
}

/// Why one who waits looks again.
enum Woken {
    /// A place is free.
    Freed,
    Look,
    ClientGone,
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

    use super::*;
    use crate::timer::Clock;

    /// A thread whose clock stands.
    fn paused() -> LocalRuntime {
        let mut builder = Builder::new_current_thread();
        builder.enable_time().start_paused(true).build_local(LocalOptions::default()).unwrap()
    }

    #[test]
    fn what_one_has_no_use_for_is_the_next_ones() {
        paused().block_on(async {
            let timers = Timers::new(Clock::fixed(0));
            tokio::task::spawn_local(timers.clone().drive());
            let queue = Queue { most: 9, timeout: 60_000, waiting: Arc::default() };
            let is_free = Cell::new(false);
            let mut x = ((), ());
            let nobody = queue.wait(&timers, &mut x.0, |()| None::<()>, |(), _| false);
            let patient = queue.wait(&timers, &mut x.1, |()| is_free.take().then_some(()), |(), _| false);
            let freed = async {
                // Both wait by now.
                tokio::time::advance(Duration::from_millis(100)).await;
                is_free.set(true);
                queue.waiting.free();
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                _ = nobody => unreachable!("it has been everywhere"),
                picked = patient => assert!(picked.is_ok()),
                () = freed => unreachable!("it waits"),
            }
            assert!(timers.clock().refresh() < LOOK, "{}", timers.clock().refresh());
        });
    }

    #[test]
    fn who_looks_keeps_the_place() {
        paused().block_on(async {
            let timers = Timers::new(Clock::fixed(0));
            tokio::task::spawn_local(timers.clone().drive());
            let queue = Queue { most: 9, timeout: 60_000, waiting: Arc::default() };
            let is_free = Cell::new(false);
            let pick = |(): &mut ()| is_free.take().then_some(());
            let pass = |ms| tokio::time::sleep(Duration::from_millis(ms));
            let mut x = ((), ());
            let first = queue.wait(&timers, &mut x.0, pick, |(), _| false);
            let second = async {
                pass(LOOK / 2).await;
                queue.wait(&timers, &mut x.1, pick, |(), _| false).await
            };
            let freed = async {
                // The first has looked, the second has not.
                pass(LOOK + LOOK / 4).await;
                is_free.set(true);
                queue.waiting.free();
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                picked = first => assert!(picked.is_ok()),
                _ = second => unreachable!("it is not its turn"),
                () = freed => unreachable!("it waits"),
            }
        });
    }
}

//! `queue`: requests wait for a peer where none can be picked at once.
//!
//! Whoever gives a connection's place back wakes the first that waits, and nobody else picks before it. A peer that is
//! there again for another reason is found by looking now and then.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use tokio::sync::Notify;

use super::Upstream;
use super::balance::{Picked, Tried};
use super::exchange::{Settings, poll_client_gone};
use crate::http::Exchange;

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

    /// Waits until a peer can be picked.
    pub(super) async fn pick(
        &self,
        group: &Upstream,
        x: &mut Exchange,
        tried: &mut Tried,
        settings: &Settings,
    ) -> Result<Picked, Nobody> {
        let reactor = Rc::clone(&x.reactor);
        let now = || reactor.clock().now_ms();
        if group.peers.iter().enumerate().all(|(index, peer)| peer.down || tried.contains(index)) {
            return Err(Nobody::Left);
        }
        let _place = self.join().ok_or(Nobody::Full)?;
        let deadline = now().saturating_add(self.timeout);
        let timer = reactor.timers().register();
        loop {
            let mut freed = pin!(self.waiting.freed.notified());
            // From here on nothing that becomes free is missed.
            let is_woken = freed.as_mut().enable();
            let is_alone = self.waiting.count.load(Ordering::Relaxed) == 1;
            if (is_woken || is_alone)
                && let Some(picked) = group.balance.pick(x, tried, now())
            {
                return Ok(picked);
            }
            timer.set(deadline.min(now() + LOOK));
            let woken = poll_fn(|cx| {
                if freed.as_mut().poll(cx).is_ready() || timer.poll_expired(cx).is_ready() {
                    return Poll::Ready(true);
                }
                if poll_client_gone(x, cx, settings) { Poll::Ready(false) } else { Poll::Pending }
            });
            if !woken.await {
                return Err(Nobody::ClientGone);
            }
            if let Some(picked) = group.balance.pick(x, tried, now()) {
                return Ok(picked);
            }
            if now() >= deadline {
                return Err(Nobody::TimedOut);
            }
        }
    }
}

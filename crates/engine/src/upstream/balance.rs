//! Who is asked next: the balancer's trait, and nginx's smooth weighted round robin.

use std::sync::{Arc, Mutex, PoisonError};

use super::Peer;
use crate::http::Exchange;

/// The peers that one request has tried, as bits.
#[derive(Debug, Default)]
pub struct Tried {
    /// The first 64 peers, which are nearly always all.
    first: u64,
    more: Vec<u64>,
}

impl Tried {
    fn word(&mut self, index: usize) -> &mut u64 {
        if index < 64 {
            return &mut self.first;
        }
        let at = index / 64 - 1;
        if self.more.len() <= at {
            self.more.resize(at + 1, 0);
        }
        &mut self.more[at]
    }

    pub fn contains(&self, index: usize) -> bool {
        let word = if index < 64 { Some(&self.first) } else { self.more.get(index / 64 - 1) };
        word.is_some_and(|word| word & (1 << (index % 64)) != 0)
    }

    pub fn insert(&mut self, index: usize) {
        *self.word(index) |= 1 << (index % 64);
    }

    pub fn remove(&mut self, index: usize) {
        *self.word(index) &= !(1 << (index % 64));
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The outcome of picking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Picked {
    /// The peer's position in the group.
    Peer(usize),
    /// `no live upstreams`.
    None,
}

/// How an attempt ended, for the balancer's book-keeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// Counts against `max_fails`.
    Failure,
}

/// Picks peers. One value serves all threads.
pub trait Balance: Send + Sync {
    /// Picks a peer that was not tried; `now` is milliseconds of any steady clock.
    fn pick(&self, x: &Exchange, tried: &mut Tried, now: u64) -> Picked;
    fn done(&self, peer: usize, outcome: Outcome, now: u64);
}

#[derive(Clone, Debug)]
struct State {
    current: i64,
    effective: i64,
    fails: u32,
    /// Milliseconds of the last failure, and of the last time that the peer was given a chance after it.
    accessed: u64,
    checked: u64,
}

/// Smooth weighted round robin with failure accounting, backups after the primaries (nginx: the default of
/// `upstream`).
pub struct RoundRobin {
    peers: Arc<[Peer]>,
    states: Mutex<Vec<State>>,
}

impl RoundRobin {
    pub fn new(peers: Arc<[Peer]>) -> Self {
        let state = |p: &Peer| State {
            current: 0,
            effective: i64::from(p.weight),
            fails: 0,
            accessed: 0,
            checked: 0,
        };
        let states = peers.iter().map(state).collect();
        Self { peers, states: Mutex::new(states) }
    }

    /// Picks among the primaries or the backups alone.
    fn pick_of(&self, backup: bool, tried: &mut Tried, now: u64) -> Option<usize> {
        // A panic while the lock was held would have been in arithmetic on plain numbers; they stay usable.
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        // A group of one is always asked: there is nothing to fall back on.
        let single = self.peers.len() == 1;
        let mut total = 0;
        let mut best: Option<usize> = None;
        for (index, peer) in self.peers.iter().enumerate() {
            if peer.backup != backup || peer.down || tried.contains(index) {
                continue;
            }
            let state = &mut states[index];
            let timeout = peer.fail_timeout * 1000;
            let failed = peer.max_fails > 0 && state.fails >= peer.max_fails;
            if !single && failed && now.saturating_sub(state.checked) <= timeout {
                continue;
            }
            let conns = peer.conns.load(std::sync::atomic::Ordering::Relaxed);
            if peer.max_conns > 0 && conns >= peer.max_conns {
                continue;
            }
            state.current += state.effective;
            total += state.effective;
            if state.effective < i64::from(peer.weight) {
                state.effective += 1;
            }
            if best.is_none_or(|b| states[index].current > states[b].current) {
                best = Some(index);
            }
        }
        let index = best?;
        let state = &mut states[index];
        state.current -= total;
        if now.saturating_sub(state.checked) > self.peers[index].fail_timeout * 1000 {
            state.checked = now;
        }
        tried.insert(index);
        Some(index)
    }
}

impl Balance for RoundRobin {
    fn pick(&self, _: &Exchange, tried: &mut Tried, now: u64) -> Picked {
        let found = self.pick_of(false, tried, now).or_else(|| self.pick_of(true, tried, now));
        found.map_or(Picked::None, Picked::Peer)
    }

    fn done(&self, index: usize, outcome: Outcome, now: u64) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, peer) = (&mut states[index], &self.peers[index]);
        match outcome {
            Outcome::Failure => {
                state.fails += 1;
                state.accessed = now;
                state.checked = now;
                if peer.max_fails > 0 {
                    state.effective -= i64::from(peer.weight) / i64::from(peer.max_fails);
                    state.effective = state.effective.max(0);
                }
            }
            Outcome::Success => {
                // A peer that was given its chance after a failure and used it is whole again.
                if state.accessed < state.checked {
                    state.fails = 0;
                }
            }
        }
    }
}

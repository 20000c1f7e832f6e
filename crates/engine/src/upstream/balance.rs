//! Who is asked next: the balancer's trait, and nginx's smooth weighted round robin.

use std::sync::atomic::{AtomicBool, Ordering};
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

    /// Whether a peer has failed so often that it is passed over for a while.
    fn is_disabled(&self, peer: usize) -> bool {
        let _ = peer;
        false
    }
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
    /// A peer has failed since the group was made: until then there is nothing that a success would mend.
    failed: AtomicBool,
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
        Self { peers, states: Mutex::new(states), failed: AtomicBool::new(false) }
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
            if peer.is_full() {
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
        if let [peer] = &*self.peers
            && !peer.down
            && !peer.is_full()
            && !tried.contains(0)
        {
            // Its turn needs no counting.
            tried.insert(0);
            return Picked::Peer(0);
        }
        let found = self.pick_of(false, tried, now).or_else(|| self.pick_of(true, tried, now));
        found.map_or(Picked::None, Picked::Peer)
    }

    fn done(&self, index: usize, outcome: Outcome, now: u64) {
        match outcome {
            Outcome::Failure => self.failed.store(true, Ordering::Relaxed),
            Outcome::Success if !self.failed.load(Ordering::Relaxed) => return,
            Outcome::Success => {}
        }
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

    fn is_disabled(&self, index: usize) -> bool {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let max_fails = self.peers[index].max_fails;
        self.peers.len() > 1 && max_fails > 0 && states[index].fails >= max_fails
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weir_ir::address::Address;

    use super::{Balance, Outcome, RoundRobin, Tried};
    use crate::upstream::Peer;

    /// A peer with nginx's defaults.
    fn peer(weight: u32) -> Peer {
        Peer {
            address: Arc::new(Address::Unix("peer".into())),
            text: Arc::from(&b"peer"[..]),
            weight,
            max_fails: 1,
            fail_timeout: 10,
            max_conns: 0,
            down: false,
            backup: false,
            conns: Arc::default(),
        }
    }

    fn group(peers: Vec<Peer>) -> RoundRobin {
        RoundRobin::new(peers.into())
    }

    /// The next peer of a new request, as a letter; `-` is none.
    fn next(group: &RoundRobin, now: u64) -> char {
        name(again(group, &mut Tried::default(), now))
    }

    fn again(group: &RoundRobin, tried: &mut Tried, now: u64) -> Option<usize> {
        group.pick_of(false, tried, now).or_else(|| group.pick_of(true, tried, now))
    }

    fn name(index: Option<usize>) -> char {
        index.map_or('-', |index| char::from(b'a' + index as u8))
    }

    /// Requests that all succeed.
    fn run(group: &RoundRobin, count: usize, now: u64) -> String {
        let one = || {
            let name = next(group, now);
            if name != '-' {
                group.done(name as usize - 'a' as usize, Outcome::Success, now);
            }
            name
        };
        (0..count).map(|_| one()).collect()
    }

    fn fail(group: &RoundRobin, peer: char, now: u64) {
        group.done(peer as usize - 'a' as usize, Outcome::Failure, now);
    }

    #[test]
    fn weights_give_the_sequence_that_nginx_gives() {
        // Recorded from nginx, twice the sum of the weights each.
        #[track_caller]
        fn check(weights: &[u32], expected: &str) {
            let group = group(weights.iter().map(|weight| peer(*weight)).collect());
            assert_eq!(run(&group, expected.len(), 0), expected, "{weights:?}");
        }
        check(&[1], "aa");
        check(&[1, 1, 1], "abcabc");
        check(&[3, 1], "aabaaaba");
        check(&[5, 1, 1], "aabacaaaabacaa");
        check(&[2, 3], "bababbabab");
        check(&[4, 2, 1], "abacabaabacaba");
        check(&[1, 2, 3, 4], "dcbdacdbcddcbdacdbcd");
        check(&[10, 1], "aaaaabaaaaaaaaaabaaaaa");
        check(&[6, 4, 3, 3], "abcdabacdabacdbaabcdabacdabacdba");
    }

    #[test]
    fn every_round_gives_each_peer_its_weight() {
        for seed in 1..200_u32 {
            let weights: Vec<u32> = (0..1 + seed % 6).map(|at| 1 + (seed * (at + 3) * 7919) % 13).collect();
            let group = group(weights.iter().map(|weight| peer(*weight)).collect());
            for _ in 0..3 {
                let round = run(&group, weights.iter().sum::<u32>() as usize, 0);
                for (at, weight) in weights.iter().enumerate() {
                    assert_eq!(
                        round.matches(name(Some(at))).count(),
                        *weight as usize,
                        "{weights:?} {round}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_request_asks_each_peer_once_and_backups_last() {
        let mut backup = peer(100);
        backup.backup = true;
        let mut down = peer(100);
        down.down = true;
        let group = group(vec![peer(1), backup, peer(1), down]);
        let mut tried = Tried::default();
        let asked: String = (0..4).map(|_| name(again(&group, &mut tried, 0))).collect();
        assert_eq!(asked, "acb-");
        // The second attempt was among fewer, so the peer that it went to is not behind yet.
        assert_eq!(run(&group, 4, 0), "caca");
    }

    #[test]
    fn a_failed_peer_rests_for_its_time() {
        let group = group(vec![peer(1), peer(1)]);
        assert_eq!(next(&group, 0), 'a');
        fail(&group, 'a', 1_000);
        assert!(group.is_disabled(0) && !group.is_disabled(1));
        assert_eq!(run(&group, 4, 11_000), "bbbb");
        // Its time is over; its weight, which the failure took, comes back with each look.
        let trial: String = (0..3).map(|_| next(&group, 11_001)).collect();
        assert_eq!(trial, "bba");
        // One request is the trial; until it is over nobody else comes.
        assert_eq!(run(&group, 4, 11_001), "bbbb");
        fail(&group, 'a', 11_002);
        assert_eq!(run(&group, 4, 21_002), "bbbb");
        assert!((0..4).any(|_| next(&group, 21_003) == 'a'));
        group.done(0, Outcome::Success, 21_003);
        assert!(!group.is_disabled(0));
        assert_eq!(run(&group, 8, 21_004).matches('a').count(), 4);
    }

    #[test]
    fn failures_are_counted_up_to_max_fails() {
        let mut patient = peer(1);
        patient.max_fails = 3;
        let group = group(vec![patient, peer(1)]);
        for _ in 0..2 {
            fail(&group, 'a', 0);
            assert!(!group.is_disabled(0));
        }
        assert!(run(&group, 8, 0).contains('a'));
        fail(&group, 'a', 0);
        assert_eq!(run(&group, 8, 0), "bbbbbbbb");
    }

    #[test]
    fn a_peer_without_max_fails_never_rests() {
        let mut tireless = peer(1);
        tireless.max_fails = 0;
        let group = group(vec![tireless, peer(1)]);
        for _ in 0..100 {
            fail(&group, 'a', 0);
        }
        assert_eq!(run(&group, 4, 0), "abab");
    }

    #[test]
    fn a_single_peer_is_always_asked() {
        let group = group(vec![peer(1)]);
        for _ in 0..3 {
            assert_eq!(next(&group, 0), 'a');
            fail(&group, 'a', 0);
        }
        assert!(!group.is_disabled(0));
    }

    #[test]
    fn a_weight_that_failures_took_comes_back_slowly() {
        let mut heavy = peer(4);
        heavy.max_fails = 2;
        let group = group(vec![heavy, peer(1)]);
        fail(&group, 'a', 0);
        // An effective weight of 2, 3, 4, 4: the sums of the round are 3, 4, 5, 5.
        assert_eq!(run(&group, 5, 0), "aabaa");
    }

    #[test]
    fn a_full_peer_is_passed_over() {
        let mut small = peer(1);
        small.max_conns = 1;
        let conns = Arc::clone(&small.conns);
        let group = group(vec![small, peer(1)]);
        conns.store(1, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(run(&group, 3, 0), "bbb");
        conns.store(0, std::sync::atomic::Ordering::Relaxed);
        assert!(run(&group, 2, 0).contains('a'));
    }
}

//! Who is asked next: the balancer's trait, what all balancers know of their peers, and nginx's smooth weighted round
//! robin.

use std::any::Any;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Peer, PeerGuard};
use crate::http::Exchange;

/// What balancing remembers of one request from attempt to attempt: the peers that it has tried, as bits, and more
/// where there is more.
#[derive(Debug, Default)]
pub struct Tried {
    /// The first 64 peers, which are nearly always all.
    first: u64,
    more: Option<Box<More>>,
}

/// What most requests have no need of.
#[derive(Debug, Default)]
pub struct More {
    /// Further peers.
    bits: Vec<u64>,
    /// The name of the peer that the request belongs to ([`Peer::sid`]).
    pub sid: Option<Box<[u8]>>,
    /// Where a hash has come to, in how many rounds, and how many of them led to nobody.
    pub hash: Option<u32>,
    pub rounds: u32,
    pub misses: u32,
    /// What the balancer measures of the present attempt.
    pub running: Option<Rc<dyn Any>>,
}

impl Tried {
    fn word(&mut self, index: usize) -> &mut u64 {
        if index < 64 {
            return &mut self.first;
        }
        let at = index / 64 - 1;
        let bits = &mut self.more_mut().bits;
        if bits.len() <= at {
            bits.resize(at + 1, 0);
        }
        &mut bits[at]
    }

    pub fn contains(&self, index: usize) -> bool {
        let word = match index {
            0..64 => Some(&self.first),
            _ => self.more().and_then(|more| more.bits.get(index / 64 - 1)),
        };
        word.is_some_and(|word| word & (1 << (index % 64)) != 0)
    }

    pub fn insert(&mut self, index: usize) {
        *self.word(index) |= 1 << (index % 64);
    }

    pub fn remove(&mut self, index: usize) {
        *self.word(index) &= !(1 << (index % 64));
    }

    pub fn more(&self) -> Option<&More> {
        self.more.as_deref()
    }

    pub fn more_mut(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    /// The name of the peer that the request belongs to.
    pub fn sid(&self) -> Option<&[u8]> {
        self.more()?.sid.as_deref()
    }

    /// How often a balancer came to nobody.
    pub fn misses(&self) -> u32 {
        self.more().map_or(0, |more| more.misses)
    }
}

/// A peer that was picked; one of its connections is the request's.
#[derive(Debug)]
pub struct Picked {
    /// The peer's position in the group.
    pub index: usize,
    pub guard: PeerGuard,
}

/// How an attempt ended, for the book-keeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// Counts against `max_fails`.
    Failure,
}

/// Picks peers. One value serves all threads.
pub trait Balance: Send + Sync {
    /// Picks a peer that was not tried; `now` is milliseconds of any steady clock. `None` is `no live upstreams`.
    fn pick(&self, x: &mut Exchange, tried: &mut Tried, now: u64) -> Option<Picked>;

    /// The head of an answer is there, and the request stays with it.
    fn answered(&self, x: &Exchange, tried: &Tried, index: usize) {
        let _ = (x, tried, index);
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
    /// Since when it is back, while that is for less than its `slow_start`.
    back: Option<u64>,
}

impl State {
    /// A peer is there again that was not.
    fn returns(&mut self, peer: &Peer, now: u64) {
        if peer.slow_start > 0 {
            self.back = Some(now);
        }
    }
}

/// The peers of a group with their failures and turns, which every balancer works on. By itself it is smooth weighted
/// round robin, backups after the primaries (nginx: the default of `upstream`).
pub struct RoundRobin {
    peers: Arc<[Peer]>,
    states: Mutex<Vec<State>>,
    /// A peer has failed since the group was made: until then there is nothing that a success would mend.
    failed: AtomicBool,
    /// Parts of a weight of one: a weight that recovers slowly does so in these.
    scale: i64,
}

/// Parts of a weight where one recovers slowly.
const PARTS: i64 = 100;

impl RoundRobin {
    pub fn new(peers: Arc<[Peer]>) -> Self {
        // One alone has nobody to leave requests to.
        let slowly = peers.len() > 1 && peers.iter().any(|peer| peer.slow_start > 0);
        let scale = if slowly { PARTS } else { 1 };
        let state = |p: &Peer| State {
            current: 0,
            effective: i64::from(p.weight) * scale,
            fails: 0,
            accessed: 0,
            checked: 0,
            back: None,
        };
        let states = peers.iter().map(state).collect();
        Self { peers, states: Mutex::new(states), failed: AtomicBool::new(false), scale }
    }

    /// The same with other peers: those that were there before keep their turns and failures.
    pub(super) fn with(&self, peers: Arc<[Peer]>) -> Self {
        let new = Self::new(peers);
        let known = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let mut states = new.states.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, peer) in new.peers.iter().enumerate() {
            let earlier = new.peers[..at].iter().filter(|p| p.address == peer.address).count();
            let mut same = self.peers.iter().enumerate().filter(|(_, p)| p.address == peer.address);
            if let Some((before, _)) = same.nth(earlier).filter(|(_, before)| before.is_as(peer)) {
                let known = known[before].clone();
                let scaled = |parts: i64| parts * new.scale / self.scale;
                let (current, effective) = (scaled(known.current), scaled(known.effective));
                states[at] = State { current, effective, ..known };
            }
        }
        drop(states);
        new.failed.store(self.failed.load(Ordering::Relaxed), Ordering::Relaxed);
        new
    }

    pub fn peers(&self) -> &Arc<[Peer]> {
        &self.peers
    }

    /// Looks for a peer for a request, while nobody else does.
    pub fn look(&self, now: u64) -> Look<'_> {
        // A panic while the lock was held would have been in arithmetic on plain numbers; they stay usable.
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        Look { peers: &self.peers, states, scale: self.scale, now }
    }

    /// Picks in turn, backups where no primary is left; also for balancers that have found nobody.
    pub fn next(&self, tried: &mut Tried, now: u64) -> Option<Picked> {
        if let [peer] = &*self.peers
            && tried.sid().is_none()
            && !peer.is_down()
            && !tried.contains(0)
        {
            // Its turn needs no counting.
            let guard = PeerGuard::of_free(peer)?;
            tried.insert(0);
            return Some(Picked { index: 0, guard });
        }
        let mut look = self.look(now);
        let index = look.in_turn(false, tried).or_else(|| look.in_turn(true, tried))?;
        Some(look.take(index, tried))
    }

    pub fn done(&self, index: usize, outcome: Outcome, now: u64) {
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
                    state.effective -= i64::from(peer.weight) * self.scale / i64::from(peer.max_fails);
                    state.effective = state.effective.max(0);
                }
            }
            Outcome::Success => {
                // A peer that was given its chance after a failure and used it is whole again.
                if state.accessed < state.checked {
                    if peer.max_fails > 0 && state.fails >= peer.max_fails {
                        state.returns(peer, now);
                    }
                    state.fails = 0;
                }
            }
        }
    }

    /// A peer that was found unhealthy is healthy again: what it failed before is forgotten.
    pub fn revive(&self, index: usize, now: u64) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states[index].fails = 0;
        states[index].returns(&self.peers[index], now);
    }

    /// Whether a peer has failed so often that it is passed over for a while.
    pub fn is_disabled(&self, index: usize) -> bool {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let max_fails = self.peers[index].max_fails;
        self.peers.len() > 1 && max_fails > 0 && states[index].fails >= max_fails
    }
}

impl Balance for RoundRobin {
    fn pick(&self, _: &mut Exchange, tried: &mut Tried, now: u64) -> Option<Picked> {
        self.next(tried, now)
    }
}

/// A look at the peers for one request.
pub struct Look<'a> {
    peers: &'a [Peer],
    states: MutexGuard<'a, Vec<State>>,
    scale: i64,
    now: u64,
}

impl Look<'_> {
    /// The primaries or the backups, in their order.
    pub fn group(&self, backup: bool) -> impl Iterator<Item = (usize, &Peer)> {
        self.peers.iter().enumerate().filter(move |(_, peer)| peer.backup == backup)
    }

    pub fn peer(&self, index: usize) -> &Peer {
        &self.peers[index]
    }

    /// What a peer's weight is now; only those of one look can be compared.
    pub fn weight(&self, index: usize) -> i64 {
        let (peer, state) = (&self.peers[index], &self.states[index]);
        let whole = i64::from(peer.weight) * self.scale;
        match state.back.map(|back| self.now.saturating_sub(back)) {
            Some(since) if since < peer.slow_start && self.scale > 1 => {
                let part = i128::from(whole) * i128::from(since) / i128::from(peer.slow_start);
                // Nothing at all could not be compared with what others have.
                i64::try_from(part).unwrap_or(whole).max(whole.min(1))
            }
            Some(_) | None => whole,
        }
    }

    /// Whether a peer may be asked.
    pub fn is_free(&self, index: usize, tried: &Tried) -> bool {
        !self.peers[index].is_down() && self.is_live(index, tried)
    }

    /// The same also for one that is drained.
    fn is_live(&self, index: usize, tried: &Tried) -> bool {
        let (peer, state) = (&self.peers[index], &self.states[index]);
        // A group of one is always asked: there is nothing to fall back on.
        let failed = self.peers.len() > 1 && peer.max_fails > 0 && state.fails >= peer.max_fails;
        let rests = failed && self.now.saturating_sub(state.checked) <= peer.fail_timeout * 1000;
        !(peer.down || rests || tried.contains(index) || peer.is_full() || !peer.is_healthy())
    }

    /// The peer that the request belongs to, where it may be asked.
    pub fn belonging(&self, backup: bool, tried: &Tried) -> Option<usize> {
        let sid = tried.sid()?;
        let (index, _) = self.group(backup).find(|(_, peer)| *peer.sid == *sid)?;
        self.is_live(index, tried).then_some(index)
    }

    /// How long ago a peer that has failed was given a chance, in milliseconds.
    pub fn since_checked(&self, index: usize) -> u64 {
        self.now.saturating_sub(self.states[index].checked)
    }

    /// Whose turn it is among those that may be asked: each goes on by its weight, and the first of those that are
    /// farthest goes back by all that was gone.
    pub fn weighted(&mut self, is_among: impl Fn(&Self, usize) -> bool) -> Option<usize> {
        let (best, total) = self.advance(is_among);
        self.states[best?].current -= total;
        best
    }

    fn advance(&mut self, is_among: impl Fn(&Self, usize) -> bool) -> (Option<usize>, i64) {
        let mut total = 0;
        let mut best: Option<usize> = None;
        for index in 0..self.peers.len() {
            if !is_among(self, index) {
                continue;
            }
            let recovered = if self.scale > 1 { self.weight(index) } else { i64::MAX };
            let state = &mut self.states[index];
            let effective = state.effective.min(recovered);
            state.current += effective;
            total += effective;
            if state.effective < i64::from(self.peers[index].weight) * self.scale {
                state.effective += self.scale;
            }
            if best.is_none_or(|b| self.states[index].current > self.states[b].current) {
                best = Some(index);
            }
        }
        (best, total)
    }

    fn in_turn(&mut self, backup: bool, tried: &Tried) -> Option<usize> {
        let belonging = self.belonging(backup, tried);
        if let Some(index) = belonging {
            let others = self.group(backup).filter(|(other, _)| *other != index);
            let others: i64 = others.map(|(_, peer)| i64::from(peer.weight) * self.scale).sum();
            // Who is asked by name all the time owes the others no more than one round.
            if self.states[index].current <= -others {
                return Some(index);
            }
        }
        let (best, total) =
            self.advance(|look, index| look.peers[index].backup == backup && look.is_free(index, tried));
        let best = belonging.or(best)?;
        self.states[best].current -= total;
        Some(best)
    }

    /// Gives the request that peer.
    pub fn take(mut self, index: usize, tried: &mut Tried) -> Picked {
        let (state, peer) = (&mut self.states[index], &self.peers[index]);
        if self.now.saturating_sub(state.checked) > peer.fail_timeout * 1000 {
            state.checked = self.now;
        }
        tried.insert(index);
        Picked { index, guard: PeerGuard::new(peer) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weir_ir::address::Address;

    use super::{Outcome, RoundRobin, Tried};
    use crate::upstream::health::{Health, State};
    use crate::upstream::{Peer, PeerGuard};

    /// A peer with nginx's defaults.
    fn peer(weight: u32) -> Peer {
        Peer {
            address: Arc::new(Address::Unix("peer".into())),
            text: Arc::from(&b"peer"[..]),
            weight,
            max_fails: 1,
            fail_timeout: 10,
            slow_start: 0,
            max_conns: 0,
            down: false,
            drain: false,
            closes: false,
            backup: false,
            server: "peer".into(),
            sid: [].into(),
            health: None,
            load: Arc::default(),
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
        group.next(tried, now).map(|picked| picked.index)
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
    fn a_weight_recovers_over_its_time() {
        let slow = Peer { slow_start: 1_000, ..peer(1) };
        let group = group(vec![slow, peer(1)]);
        assert_eq!(run(&group, 4, 0), "abab");
        fail(&group, 'a', 0);
        assert_eq!(run(&group, 2, 10_000), "bb");
        // Its trial, which it uses; from then on it has as much of its weight as of its time is over.
        assert!((0..4).any(|_| next(&group, 10_001) == 'a'));
        group.done(0, Outcome::Success, 10_001);
        let share = |now: u64| run(&group, 100, now).matches('a').count();
        assert!(share(10_001) <= 1, "{}", share(10_001));
        // A tenth of the weight is a part of eleven, half of it one of three.
        assert!((8..=10).contains(&share(10_101)));
        assert!((32..=34).contains(&share(10_501)));
        assert_eq!(share(11_001), 50);
    }

    #[test]
    fn one_that_was_found_healthy_again_recovers_slowly_too() {
        let slow = Peer { slow_start: 1_000, ..peer(1) };
        let group = group(vec![slow, peer(1)]);
        fail(&group, 'a', 0);
        group.revive(0, 100);
        assert!(!group.is_disabled(0));
        assert!(run(&group, 9, 100).matches('a').count() <= 1);
        assert_eq!(run(&group, 8, 1_200).matches('a').count(), 4);
        // Where all have just come back they take turns.
        let back = |peer| Peer { slow_start: 1_000, ..peer };
        let both = self::group(vec![back(peer(1)), back(peer(1))]);
        both.revive(0, 0);
        both.revive(1, 0);
        assert_eq!(run(&both, 4, 0), "abab");
        // Whoever is left is asked whatever its weight.
        group.revive(0, 2_000);
        fail(&group, 'b', 2_000);
        assert_eq!(run(&group, 3, 2_000), "aaa");
    }

    #[test]
    fn an_unhealthy_peer_is_passed_over() {
        let health = Arc::new(Health::default());
        let group = group(vec![Peer { health: Some(Arc::clone(&health)), ..peer(1) }, peer(1)]);
        assert_eq!(run(&group, 4, 0), "abab");
        health.set(1, State::Unhealthy);
        assert_eq!(run(&group, 3, 0), "bbb");
        // One check that finds it well does not make up for another.
        health.set(0, State::Healthy);
        assert_eq!(run(&group, 3, 0), "bbb");
        health.set(1, State::Healthy);
        assert!(run(&group, 2, 0).contains('a'));
        health.set(0, State::Checking);
        assert_eq!(run(&group, 3, 0), "bbb");
    }

    #[test]
    fn a_full_peer_is_passed_over() {
        let mut small = peer(1);
        small.max_conns = 1;
        let connection = PeerGuard::new(&small);
        let group = group(vec![small, peer(1)]);
        assert_eq!(run(&group, 3, 0), "bbb");
        drop(connection);
        assert!(run(&group, 2, 0).contains('a'));
    }

    fn belonging(sid: &[u8]) -> Tried {
        let mut tried = Tried::default();
        tried.more_mut().sid = Some(sid.into());
        tried
    }

    #[test]
    fn a_request_goes_where_it_belongs() {
        let named = |sid: &[u8], weight| Peer { sid: sid.into(), ..peer(weight) };
        let group = group(vec![named(b"a", 1), named(b"b", 1), Peer { drain: true, ..named(b"c", 1) }]);
        let of = |sid: &[u8]| {
            let mut tried = belonging(sid);
            [again(&group, &mut tried, 0), again(&group, &mut tried, 0), again(&group, &mut tried, 0)]
                .map(name)
        };
        // The second attempt is anybody's, but for the one that is drained.
        assert_eq!(of(b"b"), ['b', 'a', '-']);
        assert_eq!(of(b"c"), ['c', 'a', 'b']);
        assert_eq!(of(b"d"), ['a', 'b', '-']);
        for _ in 0..9 {
            let mut tried = belonging(b"a");
            assert_eq!(name(again(&group, &mut tried, 0)), 'a');
        }
        // However often it was asked for, it owes no more than a round.
        assert_eq!(run(&group, 6, 0), "bbbaba");
    }
}

//! What checks say of a peer: whoever picks one passes over those that any check finds unhealthy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use weir_ir::program::Check;

use super::{Peer, Upstream};

/// What one check knows of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Healthy,
    Unhealthy,
    /// Nothing so far, and nobody else is to ask it before.
    Checking,
}

/// What the checks of a group know of a peer, by their numbers. It lasts as long as its generation; the next one begins
/// with what was known.
#[derive(Debug, Default)]
pub struct Health {
    /// A bit for each check that finds it unhealthy, and in the upper half for each that has not looked yet.
    bits: AtomicU64,
}

/// Checks that a group may have.
pub const MOST: usize = 32;

impl Health {
    pub(super) fn is_good(&self) -> bool {
        self.bits.load(Ordering::Relaxed) == 0
    }

    /// Whether any check finds it unhealthy; one that has not looked yet finds nothing.
    pub(super) fn is_sick(&self) -> bool {
        self.bits.load(Ordering::Relaxed) & u64::from(u32::MAX) != 0
    }

    pub fn get(&self, check: usize) -> State {
        let bits = self.bits.load(Ordering::Relaxed) >> check;
        match (bits & 1, bits >> MOST & 1) {
            (0, 0) => State::Healthy,
            (0, _) => State::Checking,
            (_, _) => State::Unhealthy,
        }
    }

    /// Says what a check found; what it has said before.
    pub fn set(&self, check: usize, state: State) -> State {
        let before = self.get(check);
        let (unhealthy, checking) = (1 << check, 1 << (check + MOST));
        let own = match state {
            State::Healthy => 0,
            State::Unhealthy => unhealthy,
            State::Checking => checking,
        };
        let changed = |bits: u64| Some(bits & !(unhealthy | checking) | own);
        let _ = self.bits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed);
        before
    }
}

impl State {
    /// What a check begins with that has found this before a reload; nothing where it has not been there.
    fn next(before: Option<Self>, check: &Check) -> Self {
        match before {
            Some(Self::Unhealthy) => Self::Unhealthy,
            Some(Self::Healthy) if check.persistent => Self::Healthy,
            Some(_) | None if check.mandatory => Self::Checking,
            Some(_) | None => Self::Healthy,
        }
    }
}

/// The health of a peer as its group is made: the same one while the generation is, else what it begins with.
pub(super) fn of_peer(
    checks: &Arc<[Check]>,
    before: Option<&Upstream>,
    known: Option<&Peer>,
) -> Option<Arc<Health>> {
    if checks.is_empty() {
        return None;
    }
    let before_checks = before.map(|before| &before.checks);
    let health = known.and_then(|known| known.health.as_ref());
    if let (Some(health), Some(same)) = (health, before_checks)
        && Arc::ptr_eq(same, checks)
    {
        return Some(Arc::clone(health));
    }
    let new = Health::default();
    for (number, check) in checks.iter().enumerate() {
        let earlier = before_checks.and_then(|list| list.iter().position(|c| c.key == check.key));
        let found = earlier.zip(health).map(|(number, health)| health.get(number));
        new.set(number, State::next(found, check));
    }
    Some(Arc::new(new))
}

#[cfg(test)]
mod tests {
    use super::State::{Checking, Healthy, Unhealthy};
    use super::*;

    #[test]
    fn a_reload_goes_on_with_what_is_known() {
        #[track_caller]
        fn check(kind: (bool, bool), expected: [State; 4]) {
            let check = Check { key: "a".into(), mandatory: kind.0, persistent: kind.1 };
            let before = [None, Some(Healthy), Some(Unhealthy), Some(Checking)];
            assert_eq!(before.map(|before| State::next(before, &check)), expected, "{kind:?}");
        }
        check((false, false), [Healthy, Healthy, Unhealthy, Healthy]);
        check((true, false), [Checking, Checking, Unhealthy, Checking]);
        check((true, true), [Checking, Healthy, Unhealthy, Checking]);
    }

    #[test]
    fn checks_are_told_apart() {
        let health = Health::default();
        assert!(health.is_good());
        assert_eq!(health.set(MOST - 1, Unhealthy), Healthy);
        assert_eq!(health.set(0, Checking), Healthy);
        assert_eq!([0, 1, MOST - 1].map(|n| health.get(n)), [Checking, Healthy, Unhealthy]);
        assert!(!health.is_good() && health.is_sick());
        health.set(0, Healthy);
        assert!(!health.is_good() && health.is_sick());
        assert_eq!(health.set(MOST - 1, Healthy), Unhealthy);
        assert!(health.is_good() && !health.is_sick());
        health.set(MOST - 1, Checking);
        assert!(!health.is_good() && !health.is_sick());
    }
}

//! What is counted.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Connections that clients opened.
    Connected,
    Asked,
    /// Answers that were whole and right.
    Whole,
    /// Answers that were cut off as their upstreams were.
    Cut,
    /// Answers of 502 and 504 where the upstream went wrong.
    Refused,
    /// Faults of upstreams.
    Fault,
    /// Clients that left.
    Left,
    /// Requests of clients that are none.
    Nonsense,
    Message,
    /// Tunnels that were closed by their clients.
    Tunnel,
    /// Requests sent again, as they came on a connection that had been idle too long.
    Again,
    /// What failed while the machine stood still.
    Excused,
    Lost,
    MixedUp,
    WrongStatus,
}

/// Offences that are told in full.
const TOLD: usize = 20;

/// How late the main thread has to be for the machine to have stood still: longer than the time that idle connections have
/// left after a reload, and upstreams for their answers.
const STANDSTILL: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct Tally(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    counts: BTreeMap<Kind, u64>,
    told: Vec<String>,
    /// When the machine stood still last, and began to.
    standstill: Option<(Instant, Instant)>,
}

impl Tally {
    pub fn shared() -> Arc<Self> {
        Arc::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, kind: Kind) {
        *self.inner().counts.entry(kind).or_default() += 1;
    }

    pub fn count(&self, kind: Kind) -> u64 {
        self.inner().counts.get(&kind).copied().unwrap_or_default()
    }

    /// Says that the main thread slept from then until now, and how long it meant to.
    pub fn awoke(&self, asleep: Instant, meant: Duration) {
        if asleep.elapsed() > meant + STANDSTILL {
            self.inner().standstill = Some((asleep, Instant::now()));
        }
    }

    /// Counts something that went wrong with what began then. Where the machine stood still meanwhile, deadlines have passed on
    /// all sides, and only a mix-up is one.
    pub fn offence(&self, kind: Kind, began: Instant, what: impl fmt::Display) {
        // The main thread may notice later than this one.
        std::thread::sleep(Duration::from_millis(300));
        let inner = &mut *self.inner();
        let excused = kind != Kind::MixedUp && inner.standstill.is_some_and(|(_, end)| end >= began);
        *inner.counts.entry(if excused { Kind::Excused } else { kind }).or_default() += 1;
        if !excused && inner.told.len() < TOLD {
            inner.told.push(format!("{kind:?}: {what}"));
        }
    }

    /// What must not be.
    pub fn offences(&self) -> Vec<String> {
        self.inner().told.clone()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.inner().counts;
        let count = |kind| counts.get(&kind).copied().unwrap_or_default();
        for (name, kind) in [
            ("connections", Kind::Connected),
            ("requests", Kind::Asked),
            ("  answered whole", Kind::Whole),
            ("  answered in part, as the upstream did", Kind::Cut),
            ("  answered 502 or 504", Kind::Refused),
            ("  left by their clients", Kind::Left),
            ("  no requests at all", Kind::Nonsense),
            ("  sent again", Kind::Again),
            ("faults of upstreams", Kind::Fault),
            ("tunnels", Kind::Tunnel),
            ("messages", Kind::Message),
            ("excused by a standstill of the machine", Kind::Excused),
            ("lost", Kind::Lost),
            ("mixed up", Kind::MixedUp),
        ] {
            writeln!(f, "{:>10} {name}", count(kind))?;
        }
        write!(f, "{:>10} wrong statuses", count(Kind::WrongStatus))
    }
}

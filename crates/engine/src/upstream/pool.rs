//! Idle connections to peers, kept per thread (nginx: `keepalive`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use weir_ir::address::Address;

use super::Upstream;
use super::body::{Line, Tag};
use super::exchange::Identity;
use super::http2::Session;
use crate::generation::Generation;

/// The rules of an upstream's pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    /// Idle connections that a thread keeps for the group; 0 keeps none.
    pub connections: usize,
    /// Requests that one connection carries.
    pub requests: u64,
    /// Milliseconds that a connection may be used.
    pub time: u64,
    /// Milliseconds that it may be idle.
    pub timeout: u64,
    /// A connection serves only the location that it was opened for.
    pub local: bool,
}

impl Default for PoolSettings {
    /// As for an address without an upstream block: nothing is kept.
    fn default() -> Self {
        Self { connections: 0, requests: 1000, time: 3_600_000, timeout: 60_000, local: false }
    }
}

/// A group's place in the threads' pools, the same in every generation that has a group of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolId(u32);

impl PoolId {
    /// Of a group that keeps nothing.
    pub(crate) const NONE: Self = Self(u32::MAX);

    pub(crate) fn of(name: &str, port: u16) -> Self {
        type Ids = Mutex<HashMap<(Arc<str>, u16), u32>>;
        static IDS: OnceLock<Ids> = OnceLock::new();
        // The map is whole whenever the lock is free: an insert either happened or did not.
        let mut ids = IDS.get_or_init(Ids::default).lock().unwrap_or_else(PoisonError::into_inner);
        let next = ids.len() as u32;
        Self(*ids.entry((name.into(), port)).or_insert(next))
    }
}

impl Line {
    /// Says goodbye to a peer whose connection does not stay.
    fn stays(&mut self, stays: bool) -> bool {
        if !stays {
            self.io.farewell();
        }
        stays
    }
}

/// The idle connections of one thread, by group.
#[derive(Default)]
pub struct Pools {
    #[expect(clippy::vec_box, reason = "a connection is handed from request to request")]
    idle: RefCell<Vec<Vec<Box<Line>>>>,
    /// Those of HTTP/2, in use or not.
    shared: RefCell<Vec<Vec<Rc<Session>>>>,
    identities: RefCell<Identities>,
}

/// Numbers of identities, none of which is ever another's.
#[derive(Default)]
struct Identities {
    known: HashMap<Identity, u64>,
    last: u64,
}

/// Identities that are remembered at a time. One that was forgotten gets another number, and its connections no use.
const IDENTITIES: usize = 1024;

impl Pools {
    /// The number of what connections with TLS are opened with, from 1.
    pub(super) fn identify(&self, identity: Identity) -> u64 {
        let Identities { known, last } = &mut *self.identities.borrow_mut();
        if let Some(number) = known.get(&identity) {
            return *number;
        }
        if known.len() >= IDENTITIES {
            known.clear();
        }
        *last += 1;
        known.insert(identity, *last);
        *last
    }

    /// The connection to that peer that was used last and is still of use.
    pub(super) fn take(&self, id: PoolId, peer: &Address, tag: Tag, now: u64) -> Option<Box<Line>> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(id.0 as usize)?;
        let mut at = list.len();
        while at > 0 {
            at -= 1;
            let same = std::ptr::eq(&*list[at].peer, peer) || *list[at].peer == *peer;
            if !same || list[at].tag != tag {
                continue;
            }
            let mut connection = list.remove(at);
            if now < connection.until && !connection.io.is_stale() {
                return Some(connection);
            }
            connection.io.farewell();
        }
        None
    }

    /// A connection to that peer that another request may share. All of the group's obey its rules from here on.
    pub(super) fn join(&self, group: &Upstream, peer: &Address, tag: Tag, now: u64) -> Option<Rc<Session>> {
        let mut shared = self.shared.borrow_mut();
        let list = shared.get_mut(group.pool_id.0 as usize)?;
        list.retain(|session| {
            session.obey(group.pool);
            group.pool.connections > 0 && !session.is_stale(now)
        });
        let fits = |s: &&Rc<Session>| s.tag == tag && *s.peer == *peer && s.takes_another(now);
        // Of those that serve already, so that the others may end.
        list.iter().filter(fits).max_by_key(|session| !session.is_idle()).map(Rc::clone)
    }

    /// Lets others share a connection.
    pub(super) fn share(&self, id: PoolId, session: Rc<Session>) {
        let mut shared = self.shared.borrow_mut();
        let at = id.0 as usize;
        if shared.len() <= at {
            shared.resize_with(at + 1, Vec::new);
        }
        shared[at].push(session);
    }

    /// A shared connection is idle; it goes where it is spent, the group's oldest where there are too many.
    pub(super) fn rest(&self, id: PoolId, session: &Rc<Session>, most: usize, spent: bool) {
        let mut shared = self.shared.borrow_mut();
        let Some(list) = shared.get_mut(id.0 as usize) else { return };
        let Some(at) = list.iter().position(|other| Rc::ptr_eq(other, session)) else { return };
        let rested = list.remove(at);
        if !spent {
            list.push(rested);
        }
        let kept = self.idle.borrow().get(id.0 as usize).map_or(0, Vec::len);
        let idle = list.iter().filter(|session| session.is_idle()).count();
        if kept + idle > most
            && let Some(oldest) = list.iter().position(|session| session.is_idle())
        {
            list.remove(oldest);
        }
    }

    /// Keeps a connection; the group's oldest goes where there are too many.
    pub(super) fn put(&self, id: PoolId, connection: Box<Line>, settings: &PoolSettings) {
        let mut idle = self.idle.borrow_mut();
        let at = id.0 as usize;
        if idle.len() <= at {
            idle.resize_with(at + 1, Vec::new);
        }
        if idle[at].len() >= settings.connections {
            idle[at].remove(0).io.farewell();
        }
        idle[at].push(connection);
    }

    /// Drops what is too old or was closed by its peer; called once in a while.
    pub fn sweep(&self, now: u64) {
        for list in self.idle.borrow_mut().iter_mut() {
            list.retain_mut(|c| {
                let good = now < c.until && !c.io.is_stale();
                c.stays(good)
            });
        }
        for list in self.shared.borrow_mut().iter_mut() {
            list.retain(|session| !session.is_stale(now));
        }
    }

    /// Drops connections to peers that have left groups whose peers come and go.
    pub fn retain_live(&self, generation: &Generation) {
        let mut idle = self.idle.borrow_mut();
        for group in generation.upstreams.iter().filter(|group| group.is_live()) {
            let now = group.current();
            let Some(list) = idle.get_mut(group.pool_id.0 as usize) else { continue };
            list.retain_mut(|c| c.stays(now.peers.iter().any(|p| p.address == c.peer)));
        }
        let mut shared = self.shared.borrow_mut();
        for group in generation.upstreams.iter().filter(|group| group.is_live()) {
            let now = group.current();
            let Some(list) = shared.get_mut(group.pool_id.0 as usize) else { continue };
            list.retain(|session| now.peers.iter().any(|p| p.address == session.peer));
        }
    }

    /// Drops connections to groups and peers that a generation does not have.
    pub fn retain(&self, generation: &Generation) {
        let group = |index: usize| {
            let group = generation.upstreams.iter().find(|u| u.pool_id.0 as usize == index);
            group.map(|group| group.current())
        };
        let is_of = |group: &Option<Arc<Upstream>>, peer: &Arc<Address>| {
            group.as_ref().is_some_and(|u| u.peers.iter().any(|p| p.address == *peer))
        };
        for (index, list) in self.idle.borrow_mut().iter_mut().enumerate() {
            let group = group(index);
            list.retain_mut(|c| c.stays(is_of(&group, &c.peer)));
        }
        for (index, list) in self.shared.borrow_mut().iter_mut().enumerate() {
            let group = group(index);
            list.retain(|session| is_of(&group, &session.peer));
        }
    }

    pub fn clear(&self) {
        let mut idle = self.idle.borrow_mut();
        idle.iter_mut().flatten().for_each(|connection| connection.io.farewell());
        idle.clear();
        self.shared.borrow_mut().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Io, Socket};

    #[tokio::test]
    async fn each_connection_is_kept_for_its_own_time() {
        let settings = PoolSettings { connections: 9, ..PoolSettings::default() };
        let tag = Tag { settings: 0, identity: 0 };
        let (pools, mut others) = (Pools::default(), vec![]);
        let at = |n: u32| Address::Unix(n.to_string().into());
        for (n, until) in [(0, 1_000), (1, 3_600_000)] {
            let (own, other) = tokio::net::UnixStream::pair().unwrap();
            others.push(other);
            let line = Line {
                io: Io::Plain(Socket::from(own)),
                peer: Arc::new(at(n)),
                guard: None,
                group: None,
                tag,
                requests: 1,
                opened: 0,
                until,
                keep: true,
                nodelay: false,
            };
            pools.put(PoolId(n), Box::new(line), &settings);
        }
        let idle = || pools.idle.borrow().iter().map(Vec::len).collect::<Vec<_>>();
        pools.sweep(999);
        assert_eq!(idle(), [1, 1]);
        pools.sweep(1_000);
        assert_eq!(idle(), [0, 1]);
        assert!(pools.take(PoolId(1), &at(1), tag, 3_599_999).is_some());
    }

    #[test]
    fn identities_are_told_apart_for_ever() {
        let pools = Pools::default();
        let of = |name: &str| pools.identify(Identity { name: name.into(), ..Identity::default() });
        assert_eq!(["a", "b", "a"].map(of), [1, 2, 1]);
        for other in 0..IDENTITIES {
            of(&other.to_string());
        }
        assert!(of("a") > IDENTITIES as u64);
    }
}

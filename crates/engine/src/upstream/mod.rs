//! Upstreams: groups of peers, who picks one, and the connections that are kept to them.

use std::any::Any;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::oneshot;
use weir_ir::address::Address;
use weir_ir::program::{Check, Server};

use crate::http1::{Known, KnownSet};
use crate::md5::Md5;

pub mod balance;
mod body;
mod buffered;
pub mod caching;
pub mod exchange;
pub mod fastcgi;
pub mod health;
pub(crate) mod http2;
mod live;
pub mod pool;
pub mod probe;
mod queue;
mod spool;
mod store;
mod uplink;
pub mod variables;

pub use balance::{Balance, Look, Picked, RoundRobin, Tried};
pub use buffered::Buffering;
pub use caching::Caching;
pub use exchange::{Protocol, Settings, Storing, Target, Tls, Unresolved, Whom, Wire, Written, run};
pub use health::Health;
pub use http2::RequestHead;
pub use live::Edit;
pub(crate) use live::{Live, follow};
pub use pool::{PoolId, PoolSettings, Pools};
use queue::{Queue, Waiting};

/// A peer: one address of a server. Its state is shared by all threads, and carried over to the next generation.
#[derive(Debug)]
pub struct Peer {
    pub address: Arc<Address>,
    /// As `$upstream_addr` shows it.
    pub text: Arc<[u8]>,
    pub weight: u32,
    pub max_fails: u32,
    /// Seconds.
    pub fail_timeout: u64,
    /// Milliseconds in which its weight recovers after it was gone; 0 is at once.
    pub slow_start: u64,
    pub max_conns: u32,
    pub down: bool,
    /// Only requests that belong to it are still sent to it.
    pub drain: bool,
    pub backup: bool,
    /// The server that it is of, as written.
    pub server: Arc<str>,
    /// What sessions know it by: its route, or the digest of its address.
    pub sid: Box<[u8]>,
    /// What checks say of it, where the group has any.
    pub health: Option<Arc<Health>>,
    /// Its tunnels end when it is gone.
    pub closes: bool,
    /// What is open to it now.
    pub(crate) load: Arc<Load>,
}

/// What is open to a peer, in whatever generations it is.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Connections and tunnels.
    conns: AtomicU32,
    /// Its tunnels are to end.
    gone: AtomicBool,
    /// Who waits for one of them to end.
    waiting: OnceLock<Arc<Waiting>>,
}

impl Load {
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

impl Peer {
    /// Whether another generation's peer is this one with the same parameters.
    fn is_as(&self, other: &Peer) -> bool {
        let numbers = |p: &Peer| (p.weight, p.max_fails, p.fail_timeout, p.slow_start, p.max_conns);
        let kind = |p: &Peer| (p.down, p.drain, p.backup, p.closes);
        self.address == other.address
            && numbers(self) == numbers(other)
            && kind(self) == kind(other)
            && (&self.server, &self.sid) == (&other.server, &other.sid)
    }

    /// Whether requests that belong to nobody pass it over.
    pub(crate) fn is_down(&self) -> bool {
        self.down || self.drain || !self.is_healthy()
    }

    /// Whether no check says otherwise.
    pub fn is_healthy(&self) -> bool {
        self.health.as_ref().is_none_or(|health| health.is_good())
    }

    /// Whether a check says that it is not well; before the first has looked there is nothing to say.
    pub fn is_sick(&self) -> bool {
        self.health.as_ref().is_some_and(|health| health.is_sick())
    }

    /// Says whether it is there. The tunnels of one that is gone end, where it is so configured.
    pub fn set_gone(&self, gone: bool) {
        self.load.gone.store(gone && self.closes, Ordering::Relaxed);
    }

    /// Connections that are open to it now, tunnels among them.
    pub fn conns(&self) -> u32 {
        self.load.conns.load(Ordering::Relaxed)
    }

    /// Whether it has all the connections that `max_conns` allows.
    pub(crate) fn is_full(&self) -> bool {
        self.max_conns > 0 && self.conns() >= self.max_conns
    }
}

/// Counts a connection to a peer for as long as it lives.
#[derive(Debug)]
pub struct PeerGuard {
    load: Arc<Load>,
    /// What else is over with it.
    held: Option<Rc<dyn Any>>,
}

impl PeerGuard {
    pub fn new(peer: &Peer) -> Self {
        peer.load.conns.fetch_add(1, Ordering::Relaxed);
        Self { load: Arc::clone(&peer.load), held: None }
    }

    /// What the connection is a part of.
    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// Keeps something of a balancer for as long.
    pub fn keep(&mut self, held: Rc<dyn Any>) {
        self.held = Some(held);
    }

    /// Of a peer that has not all the connections that it may have; others may be after the last one, too.
    fn of_free(peer: &Peer) -> Option<Self> {
        if peer.max_conns == 0 {
            return Some(Self::new(peer));
        }
        let more = |conns: u32| (conns < peer.max_conns).then_some(conns + 1);
        peer.load.conns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self { load: Arc::clone(&peer.load), held: None })
    }
}

impl Drop for PeerGuard {
    fn drop(&mut self) {
        self.load.conns.fetch_sub(1, Ordering::Relaxed);
        if let Some(waiting) = self.load.waiting.get() {
            waiting.free();
        }
    }
}

/// A group of peers with its balancer and its pool's rules.
pub struct Upstream {
    pub name: Arc<str>,
    pub port: u16,
    pub explicit: bool,
    pub peers: Arc<[Peer]>,
    /// What looks after the health of its peers; the same list for as long as the generation is.
    pub(crate) checks: Arc<[Check]>,
    queue: Option<Queue>,
    /// Also where there is no queue any more: peers know it from when there was one.
    waiting: Option<Arc<Waiting>>,
    pub balance: Arc<dyn Balance>,
    /// The balancer that the group has of itself; others may wrap it or stand in its place.
    pub round_robin: Arc<RoundRobin>,
    pub pool: PoolSettings,
    pub pool_id: PoolId,
    /// Some of its names are resolved at run time: its peers are those of [`Upstream::current`].
    pub(crate) live: Option<Live>,
}

impl Upstream {
    /// Makes the group; peers that the generation before had too keep their counters. `live` is how it goes on where
    /// names are resolved at run time.
    pub(crate) fn open(
        upstream: &weir_ir::program::Upstream,
        live: Option<Live>,
        before: Option<&Upstream>,
    ) -> Self {
        let peers = peers_of(&upstream.servers, &upstream.checks, before);
        let waiting = before.and_then(|before| before.waiting.clone());
        let same = |b: &&Upstream| {
            b.peers.len() == peers.len() && b.peers.iter().zip(&peers).all(|(old, new)| old.is_as(new))
        };
        // A reload that leaves the group as it was leaves its turns and its failures too.
        let before = before.filter(same);
        let mut group =
            Self::of_peers(Arc::clone(&upstream.name), upstream.port, upstream.explicit, peers, before);
        group.pool_id = PoolId::of(&upstream.name, upstream.port);
        group.checks = Arc::clone(&upstream.checks);
        group.waiting = waiting.or_else(|| upstream.queue.as_ref().map(|_| Arc::default()));
        group.queue = upstream.queue.zip(group.waiting.clone()).map(|((most, timeout), waiting)| Queue {
            most,
            timeout,
            waiting,
        });
        group.tell_of_queue();
        group.live = live;
        group
    }

    /// A group that takes over what is known of those peers that were in the group before.
    fn of_peers(
        name: Arc<str>,
        port: u16,
        explicit: bool,
        peers: Vec<Peer>,
        before: Option<&Upstream>,
    ) -> Self {
        let peers: Arc<[Peer]> = peers.into();
        let round_robin = Arc::new(match before {
            Some(before) => before.round_robin.with(Arc::clone(&peers)),
            None => RoundRobin::new(Arc::clone(&peers)),
        });
        Self {
            name,
            port,
            explicit,
            balance: Arc::clone(&round_robin) as Arc<dyn Balance>,
            round_robin,
            peers,
            checks: Arc::default(),
            queue: None,
            waiting: None,
            pool: PoolSettings::default(),
            pool_id: PoolId::NONE,
            live: None,
        }
    }

    /// A group of these addresses, for a request that names them or what they were resolved from.
    pub fn of_addresses(name: &str, port: u16, addresses: impl IntoIterator<Item = Address>) -> Self {
        let peer = |address: Address| Peer {
            text: address.to_string().into_bytes().into(),
            address: Arc::new(address),
            weight: 1,
            max_fails: 1,
            fail_timeout: 10,
            slow_start: 0,
            max_conns: 0,
            down: false,
            drain: false,
            backup: false,
            server: name.into(),
            sid: Box::default(),
            health: None,
            closes: false,
            load: Arc::default(),
        };
        let peers = addresses.into_iter().map(peer).collect();
        Self::of_peers(name.into(), port, false, peers, None)
    }

    /// Lets those who wait hear of what becomes free.
    fn tell_of_queue(&self) {
        let Some(waiting) = &self.waiting else { return };
        for peer in self.peers.iter() {
            peer.load.waiting.get_or_init(|| Arc::clone(waiting));
        }
    }

    /// Whether this is the same group in an earlier generation.
    pub(crate) fn is_of(&self, upstream: &weir_ir::program::Upstream) -> bool {
        self.name == upstream.name && self.port == upstream.port
    }
}

/// The peers of servers.
fn peers_of<'s>(
    servers: impl IntoIterator<Item = &'s Server>,
    checks: &Arc<[Check]>,
    before: Option<&Upstream>,
) -> Vec<Peer> {
    let addresses = servers.into_iter().flat_map(|server| server.addresses.iter().map(move |a| (server, a)));
    let mut peers: Vec<Peer> = vec![];
    for (server, address) in addresses {
        // Of several of one address each has its own.
        let earlier = peers.iter().filter(|p| *p.address == *address).count();
        let known = before.and_then(|b| b.peers.iter().filter(|p| *p.address == *address).nth(earlier));
        let text = address.to_string().into_bytes();
        peers.push(Peer {
            address: known.map_or_else(|| Arc::new(address.clone()), |p| Arc::clone(&p.address)),
            server: Arc::clone(&server.name),
            sid: server.route.as_deref().map_or_else(|| digest(&text), Box::from),
            text: text.into(),
            weight: server.weight,
            max_fails: server.max_fails,
            fail_timeout: server.fail_timeout,
            slow_start: server.slow_start,
            max_conns: server.max_conns,
            down: server.down,
            drain: server.drain,
            backup: server.backup,
            health: health::of_peer(checks, before, known),
            closes: server.closes,
            load: known.map_or_else(Arc::default, |p| Arc::clone(&p.load)),
        });
    }
    peers
}

/// What a peer without a route is known by: the MD5 of its address, in hexadecimal.
fn digest(address: &[u8]) -> Box<[u8]> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digest = Md5::of(address);
    digest.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| DIGITS[usize::from(digit)]).collect()
}

/// Header fields that are between an upstream and us.
#[derive(Debug)]
pub struct Hidden {
    pub known: KnownSet,
    /// The others, in lower case.
    pub names: Vec<Box<[u8]>>,
}

impl Hidden {
    pub fn hides(&self, known: Known, name: &[u8]) -> bool {
        match known {
            Known::Other => self.names.iter().any(|hidden| hidden.eq_ignore_ascii_case(name)),
            known => self.known.has(known),
        }
    }
}

/// What is logged of one attempt (`$upstream_addr`, `$upstream_status`, …). Times are milliseconds.
#[derive(Debug, Default)]
pub struct UpstreamState {
    /// The peer, or the group's name where no peer was live; none where no connection could even be tried.
    pub peer: Option<Arc<[u8]>>,
    /// `http://`
    pub scheme: &'static str,
    pub status: u16,
    pub connect_time: Option<u64>,
    pub header_time: Option<u64>,
    pub response_time: Option<u64>,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub response_length: u64,
    /// What came after this attempt was asked for by an internal redirect.
    pub redirected: bool,
    /// The same once all of the answer is here, of which the client wanted no more.
    rest: Option<oneshot::Receiver<Self>>,
}

impl UpstreamState {
    /// The state for whoever fetches the rest of the answer, and where it goes back to.
    fn lend(&mut self) -> (Self, oneshot::Sender<Self>) {
        let (back, rest) = oneshot::channel();
        self.rest = Some(rest);
        (Self { peer: self.peer.clone(), rest: None, ..*self }, back)
    }

    /// Takes back what was lent, where that is over.
    pub(crate) fn settle(&mut self) {
        if let Some(Ok(settled)) = self.rest.take().map(|mut rest| rest.try_recv()) {
            *self = settled;
        }
    }

    /// `http://127.0.0.1:8080/uri`, for messages.
    pub fn url(&self, uri: &[u8]) -> Option<Vec<u8>> {
        let peer = self.peer.as_ref()?;
        let separator: &[u8] = if peer.starts_with(b"unix:") { b":" } else { b"" };
        Some([self.scheme.as_bytes(), peer, separator, uri].concat())
    }
}

/// Says which peers of groups are gone in those that take their places; one that stays may be down there.
pub(crate) fn succeed<'g>(before: &[Arc<Upstream>], after: impl Fn(&Upstream) -> Option<&'g Arc<Upstream>>) {
    for group in before {
        let successor = after(group).map(Upstream::current);
        for peer in group.current().peers.iter() {
            let same = |p: &&Peer| Arc::ptr_eq(&p.load, &peer.load);
            match successor.as_ref().and_then(|group| group.peers.iter().find(same)) {
                Some(peer) => peer.set_gone(peer.down || peer.is_sick()),
                None => peer.set_gone(true),
            }
        }
    }
}

//! `resolver`: asks name servers for addresses while requests wait, and keeps the answers for as long as they hold.
//!
//! One value serves all threads. A name is asked for once, however many requests of whatever threads wait for it: the
//! thread of the first one runs the task that asks, and the task ends with the last of them. Failures are not kept.

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;

use tokio::sync::watch;
use weir_ir::address::Address;

mod ask;
pub mod wire;

pub use self::wire::Service;
use self::wire::{Answer, Kind, Query};
use crate::errorlog::Log;
use crate::reactor::Reactor;

/// Names that a resolver keeps. Whoever asks for ever new ones gets them resolved all the same.
const NAMES: usize = 1024;
/// Seconds after which an answer that nobody asked for makes room for others.
const UNUSED: u64 = 30;
/// Aliases on the way to an address.
const ALIASES: usize = 50;

const HOST_NOT_FOUND: u8 = 3;

/// The name servers of one directive, and what they said.
pub struct Resolver {
    servers: Vec<Server>,
    /// Seconds that an answer holds, instead of what it says itself.
    valid: Option<u64>,
    kinds: Vec<Kind>,
    /// Whose turn it is.
    next: AtomicUsize,
    log: Log,
    names: Mutex<HashMap<Key, Name>>,
}

/// What is asked for: a name, and what of it.
type Key = (Of, Arc<[u8]>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Of {
    Addresses,
    Services,
}

struct Server {
    address: SocketAddr,
    text: Box<[u8]>,
}

enum Name {
    /// A task asks. When its thread ended there is none.
    Asked(Weak<Asked>),
    Known(Known),
}

/// Where a task says what it learned.
type Asked = watch::Sender<Option<Result<Known, Failure>>>;

#[derive(Clone)]
struct Known {
    means: Means,
    /// The last second of the wall clock at which it holds.
    until: u64,
    /// The second in which it was last of use.
    used: u64,
}

#[derive(Clone)]
enum Means {
    /// Those of IPv4 come first.
    Addresses(Arc<[IpAddr]>),
    /// By their priorities.
    Services(Arc<[Service]>),
    Alias(Arc<[u8]>),
}

/// What the records of a service lead to.
pub struct Served {
    /// Hosts that could not be resolved.
    pub failures: Vec<(Box<[u8]>, Failure)>,
    /// The places with their addresses, and the last second of the wall clock at which they hold.
    pub places: Result<(Vec<(Service, IpAddr)>, u64), Failure>,
}

/// The addresses of a name.
pub struct Resolved {
    /// In the order in which they are to be tried.
    pub addresses: Vec<IpAddr>,
    /// The last second of the wall clock at which they hold.
    pub until: u64,
}

/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// What the server said.
    Code(u8),
    TimedOut,
}

impl Failure {
    /// The servers know that there is no such name.
    pub(crate) fn is_certain(self) -> bool {
        self == Self::Code(HOST_NOT_FOUND)
    }
}

/// nginx's number for it, and what it means.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Code(code) => write!(f, "{code}: {}", wire::code_text(*code)),
            Failure::TimedOut => write!(f, "{}: Operation timed out", nix::libc::ETIMEDOUT),
        }
    }
}

/// A name as it is asked for: in lower case, without the dot that may end it.
pub fn name_of(host: &str) -> Arc<[u8]> {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase().into_bytes().into()
}

impl Resolver {
    pub(crate) fn open(resolver: &weir_ir::http::resolver::Resolver, log: Log) -> Self {
        let server = |address: &Address| match address {
            Address::Ip(address) => {
                Some(Server { address: *address, text: address.to_string().into_bytes().into() })
            }
            // The configuration admits none.
            Address::Unix(_) => None,
        };
        let kinds = [(resolver.ipv4, Kind::A), (resolver.ipv6, Kind::Aaaa)];
        Self {
            servers: resolver.servers.iter().filter_map(server).collect(),
            valid: resolver.valid,
            kinds: kinds.iter().filter(|(asked, _)| *asked).map(|(_, kind)| *kind).collect(),
            next: AtomicUsize::new(0),
            log,
            names: Mutex::default(),
        }
    }

    /// Seconds after which to ask again for a name that was not there.
    pub(crate) fn failures_hold(&self) -> u64 {
        self.valid.unwrap_or(10)
    }

    /// The addresses of a name (see [`name_of`]). It waits for as long as the servers say nothing.
    ///
    /// # Errors
    /// What the servers say instead.
    pub async fn resolve(
        self: &Arc<Self>,
        reactor: &Rc<Reactor>,
        name: &Arc<[u8]>,
    ) -> Result<Resolved, Failure> {
        let (known, kept) = self.follow(reactor, (Of::Addresses, Arc::clone(name))).await?;
        let Means::Addresses(addresses) = known.means else { return Err(Failure::Code(HOST_NOT_FOUND)) };
        // As the server ordered them for whoever waited for it.
        let addresses = if kept { turned(&addresses) } else { addresses.to_vec() };
        Ok(Resolved { addresses, until: known.until })
    }

    /// The places of a service of a name (nginx: `service`), and their addresses. It waits for as long as the servers
    /// say nothing.
    pub async fn resolve_service(
        self: &Arc<Self>,
        reactor: &Rc<Reactor>,
        service: &str,
        name: &[u8],
    ) -> Served {
        let mut whole = service.to_ascii_lowercase().into_bytes();
        if !whole.contains(&b'.') {
            whole = [b"_", &*whole, b"._tcp"].concat();
        }
        let whole: Arc<[u8]> = [&*whole, b".", name].concat().into();
        let (services, mut until) = match self.follow(reactor, (Of::Services, whole)).await {
            Ok((Known { means: Means::Services(services), until, .. }, _)) => (services, until),
            Ok(_) => return Served { failures: vec![], places: Err(Failure::Code(HOST_NOT_FOUND)) },
            Err(failure) => return Served { failures: vec![], places: Err(failure) },
        };
        let mut asking: Vec<_> = services
            .iter()
            .map(|service| {
                let target: Arc<[u8]> = service.target.clone().into();
                (Box::pin(async move { self.resolve(reactor, &target).await }), None)
            })
            .collect();
        together_all(&mut asking).await;
        let (mut failures, mut found) = (vec![], vec![]);
        for (service, told) in services.iter().zip(asking.into_iter().filter_map(|(_, told)| told)) {
            match told {
                Ok(resolved) => {
                    until = until.min(resolved.until);
                    found.push((service, resolved.addresses));
                }
                Err(failure) => failures.push((service.target.clone(), failure)),
            }
        }
        let certain = failures.iter().find(|(_, failure)| failure.is_certain());
        let places = match certain.or(failures.first()).filter(|_| found.is_empty()) {
            Some((_, failure)) => Err(*failure),
            None => Ok((in_order(&found), until)),
        };
        Served { failures, places }
    }

    /// What is known of a name, aliases followed, and whether that was kept from before.
    async fn follow(self: &Arc<Self>, reactor: &Rc<Reactor>, mut key: Key) -> Result<(Known, bool), Failure> {
        for _ in 0..=ALIASES {
            let (known, kept) = self.look_up(reactor, &key).await?;
            match known.means {
                Means::Alias(of) => key.1 = of,
                Means::Addresses(_) | Means::Services(_) => return Ok((known, kept)),
            }
        }
        Err(Failure::Code(HOST_NOT_FOUND))
    }

    /// What is known of a name, and whether that was kept from before.
    async fn look_up(self: &Arc<Self>, reactor: &Rc<Reactor>, key: &Key) -> Result<(Known, bool), Failure> {
        loop {
            let mut asked = match self.find(reactor, key)? {
                Found::Kept(known) => return Ok((known, true)),
                Found::Asked(asked) => asked,
            };
            if let Ok(told) = asked.wait_for(Option::is_some).await
                && let Some(told) = &*told
            {
                return told.clone().map(|known| (known, false));
            }
            // The thread that asked has ended.
        }
    }

    /// Finds what is known, or who asks, or begins to ask.
    fn find(self: &Arc<Self>, reactor: &Rc<Reactor>, key: &Key) -> Result<Found, Failure> {
        let now = reactor.clock().unix_secs();
        let mut names = self.names();
        match names.get_mut(key) {
            Some(Name::Known(known)) if known.until >= now => {
                known.used = now;
                return Ok(Found::Kept(known.clone()));
            }
            Some(Name::Asked(asked)) => {
                if let Some(asked) = asked.upgrade() {
                    return Ok(Found::Asked(asked.subscribe()));
                }
            }
            Some(Name::Known(_)) | None => {}
        }
        let (of, name) = key;
        let query = |kind: &Kind| Query::new(random() as u16, name, *kind);
        let queries: Option<Vec<Query>> = match of {
            Of::Addresses => self.kinds.iter().map(query).collect(),
            Of::Services => [Kind::Srv].iter().map(query).collect(),
        };
        let queries = queries.ok_or(Failure::Code(HOST_NOT_FOUND))?;
        let (asked, told) = watch::channel(None);
        let asked = Arc::new(asked);
        names.insert(key.clone(), Name::Asked(Arc::downgrade(&asked)));
        let (resolver, of, key) = (Arc::clone(self), Rc::clone(reactor), key.clone());
        reactor.spawn(async move { resolver.learn(&of, key, &queries, &asked).await });
        Ok(Found::Asked(told))
    }

    /// Asks for a name, tells those who wait for it, and keeps what can be kept.
    async fn learn(&self, reactor: &Reactor, key: Key, queries: &[Query], asked: &Asked) {
        let mut asking = pin!(self.ask(reactor, queries));
        let told = loop {
            let mut abandoned = pin!(asked.closed());
            let told = poll_fn(|cx| {
                if let Poll::Ready(told) = asking.as_mut().poll(cx) {
                    return Poll::Ready(Some(told));
                }
                abandoned.as_mut().poll(cx).map(|()| None)
            });
            if let Some(told) = told.await {
                break told;
            }
            let mut names = self.names();
            if asked.receiver_count() == 0 {
                names.remove(&key);
                return;
            }
            // Somebody else came in the meantime.
        };
        let mut names = self.names();
        names.remove(&key);
        if let Ok(known) = &told {
            let now = known.used;
            if names.len() >= NAMES {
                names.retain(|_, name| match name {
                    Name::Asked(asked) => asked.strong_count() > 0,
                    Name::Known(known) => known.until >= now && known.used + UNUSED >= now,
                });
            }
            if names.len() < NAMES {
                names.insert(key, Name::Known(known.clone()));
            }
        }
        drop(names);
        asked.send_replace(Some(told));
    }

    /// Asks all that is to be asked of a name, and puts the answers together.
    async fn ask(&self, reactor: &Reactor, queries: &[Query]) -> Result<Known, Failure> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut asking: Vec<_> =
            queries.iter().map(|query| (Box::pin(ask::ask(self, reactor, query, first)), None)).collect();
        together_all(&mut asking).await;
        let (means, ttl) = together(asking.into_iter().filter_map(|(_, answer)| answer))?;
        let now = reactor.clock().unix_secs();
        Ok(Known { means, until: now + self.valid.unwrap_or(u64::from(ttl)), used: now })
    }

    fn names(&self) -> MutexGuard<'_, HashMap<Key, Name>> {
        // Whole whenever the lock is free: each change is one call.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for all of them.
async fn together_all<F: Future>(asking: &mut [(Pin<Box<F>>, Option<F::Output>)]) {
    poll_fn(|cx| {
        for (asked, answer) in asking.iter_mut().filter(|(_, answer)| answer.is_none()) {
            if let Poll::Ready(told) = asked.as_mut().poll(cx) {
                *answer = Some(told);
            }
        }
        if asking.iter().all(|(_, answer)| answer.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// All addresses of places by their priorities, those of one priority beginning with one that is drawn by their weights.
fn in_order(found: &[(&Service, Vec<IpAddr>)]) -> Vec<(Service, IpAddr)> {
    let mut all = vec![];
    for equal in found.chunk_by(|(one, _), (other, _)| one.priority == other.priority) {
        let weight = |at: usize| equal[at].1.len() * usize::from(equal[at].0.weight);
        let total: usize = (0..equal.len()).map(weight).sum();
        let mut drawn = random().checked_rem(total).unwrap_or(0);
        let mut first = 0;
        while first + 1 < equal.len() && drawn >= weight(first) {
            drawn -= weight(first);
            first += 1;
        }
        let (before, from) = equal.split_at(first);
        for (service, addresses) in from.iter().chain(before) {
            all.extend(addresses.iter().map(|ip| ((*service).clone(), *ip)));
        }
    }
    all
}

enum Found {
    Kept(Known),
    Asked(watch::Receiver<Option<Result<Known, Failure>>>),
}

/// What the answers for the kinds of addresses mean together, and how many seconds they hold, all as in nginx: one that
/// fails fails them all, and the alias of the last one matters where there are no addresses.
fn together(answers: impl Iterator<Item = Answer>) -> Result<(Means, u32), Failure> {
    let (mut all, mut alias, mut least) = (vec![], None, u32::MAX);
    for answer in answers {
        match answer {
            Answer::Refused(code) => return Err(Failure::Code(code)),
            // Who has no addresses of the last kind at all has no alias either.
            Answer::Nothing => alias = None,
            // The whole was asked for in its place.
            Answer::Truncated => {}
            Answer::Addresses { addresses, ttl } => {
                all.extend(addresses);
                least = least.min(ttl);
            }
            Answer::Services { services, ttl } => return Ok((Means::Services(services.into()), ttl)),
            Answer::Alias { name, ttl } => {
                alias = Some(name);
                least = least.min(ttl);
            }
        }
    }
    match alias {
        _ if !all.is_empty() => Ok((Means::Addresses(all.into()), least)),
        Some(name) => Ok((Means::Alias(name.into()), least)),
        None => Err(Failure::Code(HOST_NOT_FOUND)),
    }
}

/// The addresses of both families, beginning anywhere, so that requests spread over them.
fn turned(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut addresses = addresses.to_vec();
    if addresses.len() > 1 {
        let at = addresses.iter().filter(|ip| ip.is_ipv4()).count();
        let (v4, v6) = addresses.split_at_mut(at);
        for family in [v4, v6].into_iter().filter(|family| !family.is_empty()) {
            family.rotate_left(random() % family.len());
        }
        let by = random() % addresses.len();
        addresses.rotate_left(by);
    }
    addresses
}

fn random() -> usize {
    let mut bits = [0; 8];
    // The generator fails only where the system has no randomness at all; TLS would not start there.
    let _ = aws_lc_rs::rand::fill(&mut bits);
    usize::from_ne_bytes(bits)
}

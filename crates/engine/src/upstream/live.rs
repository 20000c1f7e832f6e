//! `server NAME resolve`: groups whose peers come and go as the addresses of their names do.
//!
//! A group that was made never changes. What holds of such a group's peers is told by another one, made anew whenever
//! an answer brings other addresses; a request stays with the group that it began with. Peers that stay keep their
//! connections, failures and turns.

use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use weir_ir::address::Address;
use weir_ir::program::{Resolve, Server};
use weir_syntax::Level;

use super::{Peer, PoolId, Upstream, peers_of};
use crate::errorlog::Log;
use crate::reactor::Reactor;
use crate::resolver::{Failure, Resolver, Service, name_of};

/// How a module changes a group when it is made.
pub type Edit = Box<dyn Fn(&mut Upstream) + Send + Sync>;

/// What a group with such servers is made of.
pub struct Live {
    servers: Vec<Server>,
    resolver: Arc<Resolver>,
    /// Milliseconds; 0 is no bound.
    timeout: u64,
    pub(crate) edits: Vec<Edit>,
    state: Mutex<State>,
}

struct State {
    /// What each server's name stands for; nothing for those that are not resolved here.
    found: Vec<Vec<Found>>,
    /// The group of these addresses; none before the generation is whole.
    group: Option<Arc<Upstream>>,
}

/// An address that a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    ip: IpAddr,
    of: Option<Place>,
}

/// What the record of a service says of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    host: Arc<str>,
    port: u16,
    weight: u16,
    /// There are places of a lower priority.
    later: bool,
}

/// The addresses of the places of a service.
fn places(served: Vec<(Service, IpAddr)>) -> Vec<Found> {
    let first = served.iter().map(|(service, _)| service.priority).min();
    let found = served.into_iter().map(|(service, ip)| {
        let host = String::from_utf8_lossy(&service.target).into();
        let later = Some(service.priority) != first;
        Found { ip, of: Some(Place { host, port: service.port, weight: service.weight, later }) }
    });
    found.collect()
}

impl Found {
    /// The server that it makes of the one that has the name; none where a backup has no further backups.
    fn server(&self, named: &Server) -> Option<Server> {
        let port = named.resolve.as_ref().map_or(0, |resolve| resolve.port);
        let Some(place) = &self.of else {
            return Some(Server { addresses: vec![Address::Ip((self.ip, port).into())], ..named.clone() });
        };
        if named.backup && place.later {
            return None;
        }
        Some(Server {
            name: Arc::clone(&place.host),
            addresses: vec![Address::Ip((self.ip, place.port).into())],
            weight: if named.weight == 1 { u32::from(place.weight) } else { named.weight },
            backup: named.backup || place.later,
            ..named.clone()
        })
    }
}

/// What a name stands for from now on, where that is anything else; those that stay keep their places.
fn renew(known: &mut Vec<Found>, found: &[Found]) -> bool {
    let (mut found, before) = (found.to_vec(), known.len());
    known.retain(|one| {
        let stays = found.iter().position(|other| other == one);
        stays.map(|at| found.remove(at)).is_some()
    });
    let is_same = known.len() == before && found.is_empty();
    known.append(&mut found);
    !is_same
}

impl Live {
    /// For a group with names to resolve. Until their first answer they stand for what they stood for in the group
    /// before.
    pub(crate) fn open(
        upstream: &weir_ir::program::Upstream,
        resolver: Arc<Resolver>,
        before: Option<&Live>,
    ) -> Self {
        let known = |server: &Server| {
            let Resolve { host, service, .. } = server.resolve.as_ref()?;
            let before = before?;
            let same = |s: &Server| {
                s.resolve.as_ref().is_some_and(|known| known.host == *host && known.service == *service)
            };
            let at = before.servers.iter().position(same)?;
            Some(before.state().found[at].clone())
        };
        let found = upstream.servers.iter().map(|server| known(server).unwrap_or_default()).collect();
        Self {
            servers: upstream.servers.clone(),
            resolver,
            timeout: upstream.resolver_timeout.unwrap_or(30_000),
            edits: vec![],
            state: Mutex::new(State { found, group: None }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole whenever the lock is free: both parts are put in their places by assignments.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the group anew where the addresses of a server are others than before; whether any peer has left.
    fn update(&self, of: &Upstream, index: usize, found: &[Found]) -> bool {
        loop {
            let (mut all, before) = {
                let state = self.state();
                (state.found.clone(), state.group.clone())
            };
            if !renew(&mut all[index], found) {
                return false;
            }
            // This may take a while, and requests ask for the group meanwhile.
            let group = Arc::new(self.make(of, &all, before.as_deref()));
            {
                let mut state = self.state();
                if state.group.as_ref().map(Arc::as_ptr) != before.as_ref().map(Arc::as_ptr) {
                    // Another of its names was faster.
                    continue;
                }
                *state = State { found: all, group: Some(Arc::clone(&group)) };
            }
            let stays = |peer: &Peer| group.peers.iter().any(|p| Arc::ptr_eq(&p.load, &peer.load));
            let before = before.iter().flat_map(|before| before.peers.iter());
            let left = before.filter(|peer| !stays(peer)).inspect(|peer| peer.set_gone(true)).count();
            return left > 0;
        }
    }

    fn make(&self, of: &Upstream, found: &[Vec<Found>], before: Option<&Upstream>) -> Upstream {
        let named = self.servers.iter().zip(found);
        let resolved: Vec<Server> =
            named.flat_map(|(named, found)| found.iter().filter_map(|one| one.server(named))).collect();
        let peers = peers_of(self.servers.iter().chain(&resolved), &of.checks, before);
        let mut group = Upstream::of_peers(Arc::clone(&of.name), of.port, of.explicit, peers, before);
        group.pool_id = PoolId::of(&of.name, of.port);
        group.checks = Arc::clone(&of.checks);
        (group.queue, group.waiting) = (of.queue.clone(), of.waiting.clone());
        group.tell_of_queue();
        for edit in &self.edits {
            edit(&mut group);
        }
        group
    }
}

impl Upstream {
    /// Whether its peers come and go.
    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// The group with the peers that there are now.
    pub fn current(self: &Arc<Self>) -> Arc<Upstream> {
        let Some(live) = &self.live else { return Arc::clone(self) };
        live.state().group.as_ref().map_or_else(|| Arc::clone(self), Arc::clone)
    }

    /// Once all modules had their say.
    pub(crate) fn start_living(&self, before: Option<&Upstream>) {
        let Some(live) = &self.live else { return };
        let mut state = live.state();
        let group = live.make(self, &state.found, before);
        state.group = Some(Arc::new(group));
    }

    /// The servers whose names have to be asked for.
    pub(crate) fn to_follow(&self) -> Vec<usize> {
        let Some(live) = &self.live else { return vec![] };
        let is_resolved = |(index, server): (usize, &Server)| server.resolve.as_ref().map(|_| index);
        live.servers.iter().enumerate().filter_map(is_resolved).collect()
    }
}

/// Asks for the name of a server; a chore of its generation.
pub(crate) async fn follow(group: Arc<Upstream>, index: usize, reactor: Rc<Reactor>, log: Log) {
    let Some(live) = &group.live else { return };
    let Some(Resolve { host, service, .. }) = &live.servers[index].resolve else { return };
    let name = name_of(host);
    loop {
        let timer = reactor.timers().register();
        if live.timeout > 0 {
            timer.set_in(live.timeout);
        }
        let (failures, resolved) = {
            let mut asked = pin!(async {
                let Some(service) = service else {
                    let resolved = live.resolver.resolve(&reactor, &name).await;
                    let plain = |ip| Found { ip, of: None };
                    let found = resolved.map(|r| (r.addresses.into_iter().map(plain).collect(), r.until));
                    return (vec![], found);
                };
                let served = live.resolver.resolve_service(&reactor, service, &name).await;
                (served.failures, served.places.map(|(served, until)| (places(served), until)))
            });
            poll_fn(|cx| {
                if let Poll::Ready(resolved) = asked.as_mut().poll(cx) {
                    return Poll::Ready(resolved);
                }
                timer.poll_expired(cx).map(|()| (vec![], Err(Failure::TimedOut)))
            })
            .await
        };
        let shown = String::from_utf8_lossy(&name);
        let whole = service.as_ref().map(|service| format!("service {service} of {shown}"));
        for (target, failure) in failures {
            let (target, whole) = (String::from_utf8_lossy(&target), whole.as_deref().unwrap_or_default());
            let message = format_args!("{target} could not be resolved ({failure}) while resolving {whole}");
            log.write(Level::Error, message);
        }
        if let Err(failure) = &resolved {
            let whole = whole.as_deref().unwrap_or(&shown);
            log.write(Level::Error, format_args!("{whole} could not be resolved ({failure})"));
        }
        let (left, rest) = match resolved {
            Ok((found, until)) => {
                let left = live.update(&group, index, &found);
                let holds = until.saturating_sub(reactor.clock().unix_secs());
                (left, holds.saturating_add(u64::from(holds > 0)).max(1).saturating_mul(1000))
            }
            Err(failure) if failure.is_certain() => {
                (live.update(&group, index, &[]), (live.resolver.failures_hold() + 1) * 1000)
            }
            // What is known may still be true.
            Err(_) => (false, live.timeout.max(1000)),
        };
        if left {
            reactor.counters.depart();
        }
        reactor.timers().sleep(rest).await;
    }
}

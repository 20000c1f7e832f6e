//! `ngx_http_upstream_hash_module`: requests with the same key are sent to the same server; with `consistent` most keys
//! keep theirs when servers come and go.

use std::sync::Arc;

use crc32fast::Hasher;
use weir_engine::contract::Install;
use weir_engine::generation::{Build, Plan};
use weir_engine::http::{Exchange, Template};
use weir_engine::upstream::{Balance, Picked, RoundRobin, Tried};
use weir_ir::lowering::{Call, Fault, Merge};
use weir_ir::{Conf, Contexts, Directive, Module, Takes};
use weir_syntax::Diagnostic;

use super::{HASHED, MISSES, balance, by_weight, is_choice};

pub struct Hash;

impl Module for Hash {
    const NAME: &'static str = "http_upstream_hash";
    type Main = ();
    type Scope = Key;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[Directive::<Self>::scope("hash", Contexts::UPSTREAM, Takes::ONE_TWO, hash)];
}

/// What is hashed, and how.
#[derive(Clone, Debug, Default)]
pub struct Key {
    key: weir_ir::Template,
    consistent: bool,
}

impl Conf for Key {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

fn hash(key: &mut Key, call: &mut Call<'_>) -> Result<(), Fault> {
    key.key = call.template(0)?;
    call.balance(Hash::NAME, HASHED);
    key.consistent = match call.args().get(1).map(|word| &*word.value) {
        None => false,
        Some(b"consistent") => true,
        Some(_) => return Err(call.invalid_parameter(1)),
    };
    Ok(())
}

impl Install for Hash {
    fn prepare((): &(), build: &mut Build<'_>) -> Result<(), Diagnostic> {
        balance::<Self>(build, |conf, build| {
            let (key, consistent) = (build.template(&conf.key), conf.consistent);
            Box::new(move |peers| {
                let key = key.clone();
                if consistent {
                    return Arc::new(Consistent { key, points: points_of(&peers), peers });
                }
                Arc::new(ByKey { key, peers })
            })
        });
        Ok(())
    }

    fn install(_: &Key, _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

/// Compatible with Perl's `Cache::Memcached`, as nginx is.
struct ByKey {
    key: Template,
    peers: Arc<RoundRobin>,
}

impl Balance for ByKey {
    fn pick(&self, x: &mut Exchange, tried: &mut Tried, now: u64) -> Option<Picked> {
        let key = self.key.value(x);
        if tried.misses() > MISSES || key.is_empty() || !is_choice(&self.peers) {
            return self.peers.next(tried, now);
        }
        let look = self.peers.look(now);
        if let Some(index) = look.belonging(false, tried) {
            return Some(look.take(index, tried));
        }
        loop {
            let more = tried.more_mut();
            let mut hasher = Hasher::new();
            if more.rounds > 0 {
                hasher.update(more.rounds.to_string().as_bytes());
            }
            hasher.update(&key);
            let round = hasher.finalize() >> 16 & 0x7fff;
            let hash = more.hash.unwrap_or(0).wrapping_add(round);
            more.hash = Some(hash);
            more.rounds += 1;
            if let Some(index) =
                by_weight(&self.peers, hash.into()).filter(|index| look.is_free(*index, tried))
            {
                return Some(look.take(index, tried));
            }
            tried.more_mut().misses += 1;
            if tried.misses() > MISSES {
                drop(look);
                return self.peers.next(tried, now);
            }
        }
    }
}

/// A place on the circle of hashes, and the number of the first peer of the server whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    hash: u32,
    peer: u32,
}

/// Compatible with `Cache::Memcached::Fast` (Ketama), as nginx is.
struct Consistent {
    key: Template,
    /// By their hashes.
    points: Vec<Point>,
    peers: Arc<RoundRobin>,
}

/// Points that a server has for each of its weight.
const POINTS: u64 = 160;

/// Points that all servers have together, where their weights ask for more: those may come from a name server, whose
/// numbers are no reason to hash for seconds. Beyond that each has its part of them, and one at least.
const MOST: u64 = 4096 * POINTS;

fn points_of(peers: &RoundRobin) -> Vec<Point> {
    let primaries = peers.peers().iter().zip(0..).filter(|(peer, _)| !peer.backup);
    points(primaries.map(|(peer, number)| (number, &*peer.server, peer.weight)))
}

/// The circle of servers, by the numbers of their peers.
fn points<'s>(servers: impl Iterator<Item = (u32, &'s str, u32)> + Clone) -> Vec<Point> {
    let all: u64 = servers.clone().map(|(_, _, weight)| u64::from(weight) * POINTS).sum();
    let mut points = vec![];
    for (peer, server, weight) in servers {
        let wanted = u64::from(weight) * POINTS;
        let count = if all <= MOST { wanted } else { (wanted * MOST / all).max(1) };
        let (host, port) = host_and_port(server);
        let mut server = Hasher::new();
        server.update(host.as_bytes());
        server.update(&[0]);
        server.update(port.as_bytes());
        let mut before = 0_u32;
        for _ in 0..count {
            let mut hasher = server.clone();
            hasher.update(&before.to_le_bytes());
            before = hasher.finalize();
            points.push(Point { hash: before, peer });
        }
    }
    // Of several at one place the first server's stays.
    points.sort_unstable();
    points.dedup_by_key(|point| point.hash);
    points
}

/// A server's name as written, its port where it ends in one.
fn host_and_port(server: &str) -> (&str, &str) {
    if let Some(path) = server.get(..5).filter(|head| head.eq_ignore_ascii_case("unix:")) {
        return (&server[path.len()..], "");
    }
    match server.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (host, port),
        Some(_) | None => (server, ""),
    }
}

impl Balance for Consistent {
    fn pick(&self, x: &mut Exchange, tried: &mut Tried, now: u64) -> Option<Picked> {
        let key = self.key.value(x);
        let single = self.peers.peers().len() == 1;
        if tried.misses() > MISSES || key.is_empty() || single || self.points.is_empty() {
            return self.peers.next(tried, now);
        }
        let mut look = self.peers.look(now);
        if let Some(index) = look.belonging(false, tried) {
            return Some(look.take(index, tried));
        }
        let mut at = match tried.more().and_then(|more| more.hash) {
            Some(at) => at as usize,
            None => {
                let hash = crc32fast::hash(&key);
                self.points.partition_point(|point| point.hash < hash)
            }
        };
        while tried.misses() <= MISSES {
            let peers = self.peers.peers();
            let server = &peers[self.points[at % self.points.len()].peer as usize].server;
            let of_server = |look: &weir_engine::upstream::Look<'_>, index: usize| {
                let peer = &peers[index];
                !peer.backup && peer.server == *server && look.is_free(index, tried)
            };
            let found = look.weighted(of_server);
            tried.more_mut().hash = Some(at as u32);
            if let Some(index) = found {
                return Some(look.take(index, tried));
            }
            at += 1;
            let more = tried.more_mut();
            more.hash = Some(at as u32);
            more.misses += 1;
        }
        drop(look);
        self.peers.next(tried, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check_conf;

    #[test]
    fn parameters_that_have_no_meaning_here() {
        let refused = |block: &str, message: &str| {
            check_conf(&format!("upstream u {{ {block} server 127.0.0.2; }}"), message);
        };
        for method in ["hash $uri;", "ip_hash;", "random;"] {
            let not = "balancing method does not support parameter";
            refused(&format!("{method} server 127.0.0.1 backup;"), &format!("{not} \"backup\""));
            refused(&format!("{method} server 127.0.0.1 slow_start=5;"), &format!("{not} \"slow_start=5\""));
            refused(
                &format!("server 127.0.0.1 slow_start=5; {method}"),
                &format!("{not} \"slow_start\" in upstream \"u\" in /conf/nginx.conf:1"),
            );
        }
        for good in
            ["least_conn; server 127.0.0.1 slow_start=1m;", "server 127.0.0.1 slow_start=500ms backup;"]
        {
            refused(good, "");
        }
        refused("server 127.0.0.1 slow_start=x;", "invalid parameter \"slow_start=x\"");
        refused("server 127.0.0.1 slow_start;", "invalid parameter \"slow_start\"");
    }

    #[test]
    fn weights_are_points_up_to_a_bound() {
        #[track_caller]
        fn check(weights: &[u32], expected: &[u64]) {
            let names: Vec<String> = (0..weights.len()).map(|n| format!("{n}.example:80")).collect();
            let servers = (0..).zip(&names).zip(weights).map(|((n, name), weight)| (n, &**name, *weight));
            let points = points(servers);
            let of = |n: usize| points.iter().filter(|point| point.peer == n as u32).count() as u64;
            for (n, expected) in expected.iter().enumerate() {
                // Some of them are at the same place.
                assert!(
                    (expected - expected / 1000..=*expected).contains(&of(n)),
                    "{weights:?} {n} {}",
                    of(n)
                );
            }
        }
        check(&[1, 5, 0], &[160, 800, 0]);
        check(&[1000, 2000, 1], &[160_000, 320_000, 160]);
        check(&[65535, 65535, 65535, 1], &[MOST / 3, MOST / 3, MOST / 3, 3]);
        check(&[u32::MAX, 1], &[MOST - 1, 1]);
    }

    #[test]
    fn servers_with_and_without_ports() {
        #[track_caller]
        fn check(server: &str, expected: (&str, &str)) {
            assert_eq!(host_and_port(server), expected);
        }
        check("127.0.0.1:8080", ("127.0.0.1", "8080"));
        check("127.0.0.1", ("127.0.0.1", ""));
        check("a.example:", ("a.example", ""));
        check("a.example:80a", ("a.example:80a", ""));
        check("[::1]:8080", ("[::1]", "8080"));
        check("[::1]", ("[::1]", ""));
        check("unix:/run/a:80", ("/run/a:80", ""));
        check("UNIX:/a", ("/a", ""));
    }
}

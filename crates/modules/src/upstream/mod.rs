//! The modules of the `upstream` context: who is asked, and which connections are kept.

pub mod hash;
pub mod ip_hash;
pub mod keepalive;
pub mod least_conn;
pub mod least_time;
pub mod random;
#[cfg(test)]
mod resolved;
pub mod sticky;
pub mod zone;

use std::sync::Arc;

use weir_engine::generation::Build;
use weir_engine::upstream::{Balance, RoundRobin};
use weir_ir::Module;

pub use hash::Hash;
pub use ip_hash::IpHash;
pub use least_conn::LeastConn;
pub use least_time::LeastTime;
pub use random::Random;
pub use sticky::Sticky;
pub use zone::Zone;

/// Where a hash, or a die, leads to nobody that often, the peers take turns.
const MISSES: u32 = 20;

/// Parameters of servers that have no meaning where it is not their turns that decide.
const HASHED: &[&str] = &["backup", "slow_start"];

/// Makes a balancer of the peers that there are.
type Make = Box<dyn Fn(Arc<RoundRobin>) -> Arc<dyn Balance> + Send + Sync>;

/// Gives the upstream blocks that name a module their balancer, made of the module's conf there and the peers.
fn balance<M: Module>(build: &mut Build<'_>, make: impl Fn(&M::Scope, &Build<'_>) -> Make) {
    let Some(http) = &build.program.http else { return };
    for (index, upstream) in http.upstreams.iter().enumerate() {
        if upstream.balancers.contains(&M::NAME) {
            let make = make(&upstream.confs.get::<M>(), build);
            build.edit_upstream(index, move |group| group.balance = make(Arc::clone(&group.round_robin)));
        }
    }
}

/// The primary that a number falls to, each having as many numbers as its weight says.
fn by_weight(peers: &RoundRobin, number: u64) -> Option<usize> {
    let primaries = || peers.peers().iter().enumerate().filter(|(_, peer)| !peer.backup);
    let total: u64 = primaries().map(|(_, peer)| u64::from(peer.weight)).sum();
    let mut rest = number.checked_rem(total)?;
    for (index, peer) in primaries() {
        match rest.checked_sub(u64::from(peer.weight)) {
            Some(less) => rest = less,
            None => return Some(index),
        }
    }
    None
}

/// Whether there is anything to choose among the primaries.
fn is_choice(peers: &RoundRobin) -> bool {
    peers.peers().iter().filter(|peer| !peer.backup).nth(1).is_some()
}

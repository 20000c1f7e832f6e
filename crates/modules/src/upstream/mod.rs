//! The modules of the `upstream` context: who is asked, and which connections are kept.

pub mod hash;
pub mod ip_hash;
pub mod keepalive;
pub mod least_conn;
pub mod least_time;
pub mod random;
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

/// Gives the upstream blocks that name a module their balancer, made of the module's conf there and the peers.
fn balance<M: Module>(
    build: &mut Build<'_>,
    make: impl Fn(&M::Scope, Arc<RoundRobin>, &Build<'_>) -> Arc<dyn Balance>,
) {
    let Some(http) = &build.program.http else { return };
    for (index, upstream) in http.upstreams.iter().enumerate() {
        if upstream.balancers.contains(&M::NAME) {
            let peers = Arc::clone(&build.upstream(index).round_robin);
            let balancer = make(&upstream.confs.get::<M>(), peers, build);
            build.edit_upstream(index, |group| group.balance = balancer);
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

//! Idle connections to peers, kept per thread (nginx: `keepalive`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use weir_ir::address::Address;

use crate::generation::Generation;
use crate::io::Io;

/// The rules of an upstream's pool.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// Idle connections that a thread keeps for the group; 0 keeps none.
    pub connections: usize,
    /// Requests that one connection carries.
    pub requests: u64,
    /// Milliseconds that a connection may be used.
    pub time: u64,
    /// Milliseconds that it may be idle.
    pub timeout: u64,
}

impl Default for PoolSettings {
    /// As in nginx since 1.29.7, where upstreams are kept alive unless told otherwise.
    fn default() -> Self {
        Self { connections: 32, requests: 1000, time: 3_600_000, timeout: 60_000 }
    }
}

/// What a connection must agree in to be used again, besides its peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    pub upstream: Arc<str>,
    pub port: u16,
    pub address: Address,
    /// Identity of the TLS settings that it was made with; 0 is none.
    pub tls: usize,
}

/// A connection that may carry another request.
pub struct Idle {
    pub io: Io,
    /// Requests that it carried so far.
    pub requests: u64,
    /// Milliseconds of the reactor's clock.
    pub opened: u64,
    pub since: u64,
}

/// The idle connections of one thread.
#[derive(Default)]
pub struct Pools {
    idle: RefCell<HashMap<PoolKey, Vec<Idle>>>,
}

impl Pools {
    /// The connection that was used last and is still of use.
    pub fn take(&self, key: &PoolKey, settings: &PoolSettings, now: u64) -> Option<Idle> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(key)?;
        while let Some(mut connection) = list.pop() {
            if now.saturating_sub(connection.since) < settings.timeout && !connection.io.is_stale() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection; the group's oldest goes where there are too many.
    pub fn put(&self, key: PoolKey, connection: Idle, settings: &PoolSettings) {
        if settings.connections == 0 {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let list = idle.entry(key).or_default();
        if list.len() >= settings.connections {
            list.remove(0);
        }
        list.push(connection);
    }

    /// Drops what is too old; called once in a while.
    pub fn sweep(&self, now: u64, longest: u64) {
        self.idle.borrow_mut().retain(|_, list| {
            list.retain_mut(|c| now.saturating_sub(c.since) < longest && !c.io.is_stale());
            !list.is_empty()
        });
    }

    /// Drops connections to peers that a generation does not have.
    pub fn retain(&self, generation: &Generation) {
        self.idle.borrow_mut().retain(|key, _| {
            let mut groups =
                generation.upstreams.iter().filter(|u| u.name == key.upstream && u.port == key.port);
            groups.any(|u| u.peers.iter().any(|p| p.address == key.address))
        });
    }

    pub fn clear(&self) {
        self.idle.borrow_mut().clear();
    }
}

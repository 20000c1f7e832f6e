//! `ngx_http_upstream_ip_hash_module`: clients of one network are sent to the same server.

use std::net::IpAddr;
use std::sync::Arc;

use weir_engine::contract::Install;
use weir_engine::generation::{Build, Plan};
use weir_engine::http::Exchange;
use weir_engine::io::Address;
use weir_engine::upstream::{Balance, Picked, RoundRobin, Tried};
use weir_ir::{Contexts, Directive, Module, Takes};
use weir_syntax::Diagnostic;

use super::{HASHED, MISSES, balance, by_weight, is_choice};

pub struct IpHash;

impl Module for IpHash {
    const NAME: &'static str = "http_upstream_ip_hash";
    type Main = ();
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] =
        &[Directive::<Self>::scope("ip_hash", Contexts::UPSTREAM, Takes::NONE, |(), call| {
            call.balance(Self::NAME, HASHED);
            Ok(())
        })];
}

impl Install for IpHash {
    fn prepare((): &(), build: &mut Build<'_>) -> Result<(), Diagnostic> {
        balance::<Self>(build, |(), _| Box::new(|peers| Arc::new(ByAddress(peers))));
        Ok(())
    }

    fn install((): &(), _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

struct ByAddress(Arc<RoundRobin>);

/// What is hashed of an address: of IPv4 the first three bytes, of a unix socket as many zeros.
fn network(address: &Address) -> ([u8; 16], usize) {
    let mut bytes = [0; 16];
    match address {
        Address::Ip(address) => match address.ip() {
            IpAddr::V4(ip) => {
                bytes[..3].copy_from_slice(&ip.octets()[..3]);
                (bytes, 3)
            }
            IpAddr::V6(ip) => (ip.octets(), 16),
        },
        Address::Unix(_) => (bytes, 3),
    }
}

impl Balance for ByAddress {
    fn pick(&self, x: &mut Exchange, tried: &mut Tried, now: u64) -> Option<Picked> {
        if tried.misses() > MISSES || !is_choice(&self.0) {
            return self.0.next(tried, now);
        }
        let (bytes, length) = network(&x.peer().address);
        let look = self.0.look(now);
        if let Some(index) = look.belonging(false, tried) {
            return Some(look.take(index, tried));
        }
        let mut hash = tried.more().and_then(|more| more.hash).unwrap_or(89);
        loop {
            hash = bytes[..length].iter().fold(hash, |hash, byte| (hash * 113 + u32::from(*byte)) % 6271);
            if let Some(index) = by_weight(&self.0, hash.into()).filter(|index| look.is_free(*index, tried)) {
                tried.more_mut().hash = Some(hash);
                return Some(look.take(index, tried));
            }
            tried.more_mut().misses += 1;
            if tried.misses() > MISSES {
                drop(look);
                return self.0.next(tried, now);
            }
        }
    }
}

//! `ngx_http_upstream_least_conn_module`: the server with the fewest connections for its weight is next.
//!
//! Tunnels are connections for as long as they are open, also those that a configuration before opened.

use std::sync::Arc;

use weir_engine::contract::Install;
use weir_engine::generation::{Build, Plan};
use weir_engine::http::Exchange;
use weir_engine::upstream::{Balance, Look, Picked, RoundRobin, Tried};
use weir_ir::{Contexts, Directive, Module, Takes};
use weir_syntax::Diagnostic;

use super::balance;

pub struct LeastConn;

impl Module for LeastConn {
    const NAME: &'static str = "http_upstream_least_conn";
    type Main = ();
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] =
        &[Directive::<Self>::scope("least_conn", Contexts::UPSTREAM, Takes::NONE, |(), call| {
            call.balance(Self::NAME, &[]);
            Ok(())
        })];
}

impl Install for LeastConn {
    fn prepare((): &(), build: &mut Build<'_>) -> Result<(), Diagnostic> {
        balance::<Self>(build, |(), _| Box::new(|peers| Arc::new(Fewest(peers))));
        Ok(())
    }

    fn install((): &(), _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

struct Fewest(Arc<RoundRobin>);

/// The peer with the least of something for its weight; several with as little take turns.
pub(super) fn least(
    look: &mut Look<'_>,
    backup: bool,
    tried: &Tried,
    of: impl Fn(usize) -> u64,
) -> Option<usize> {
    if let Some(index) = look.belonging(backup, tried) {
        return Some(index);
    }
    let mut best: Option<(u64, i64)> = None;
    let mut many = false;
    let mut first = 0;
    let times = |count: u64, weight: i64| i128::from(count) * i128::from(weight);
    for (index, _) in look.group(backup) {
        if !look.is_free(index, tried) {
            continue;
        }
        let (own, own_weight) = (of(index), look.weight(index));
        let order = best.map(|(least, weight)| times(own, weight).cmp(&times(least, own_weight)));
        match order {
            None | Some(std::cmp::Ordering::Less) => {
                best = Some((own, own_weight));
                (many, first) = (false, index);
            }
            Some(std::cmp::Ordering::Equal) => many = true,
            Some(std::cmp::Ordering::Greater) => {}
        }
    }
    let (least, weight) = best?;
    if !many {
        return Some(first);
    }
    // Connections that end meanwhile may leave nobody as little as the least.
    let turn = look.weighted(|look, index| {
        let peer = look.peer(index);
        index >= first
            && peer.backup == backup
            && times(of(index), weight) == times(least, look.weight(index))
            && look.is_free(index, tried)
    });
    turn.or(Some(first))
}

impl Balance for Fewest {
    fn pick(&self, _: &mut Exchange, tried: &mut Tried, now: u64) -> Option<Picked> {
        let peers = self.0.peers();
        if peers.len() == 1 {
            return self.0.next(tried, now);
        }
        let mut look = self.0.look(now);
        let conns = |index: usize| u64::from(peers[index].conns());
        let found = least(&mut look, false, tried, conns).or_else(|| least(&mut look, true, tried, conns));
        found.map(|index| look.take(index, tried))
    }
}

//! `ngx_http_upstream_random_module`: a server drawn by weight; of two drawn, the one with fewer connections.

use std::sync::Arc;

use weir_engine::contract::Install;
use weir_engine::generation::{Build, Plan};
use weir_engine::http::Exchange;
use weir_engine::upstream::{Balance, Picked, RoundRobin, Tried};
use weir_ir::lowering::{Call, Fault, Merge};
use weir_ir::{Conf, Contexts, Directive, Module, Takes};
use weir_syntax::Diagnostic;

use super::{HASHED, MISSES, balance, by_weight, is_choice};

pub struct Random;

impl Module for Random {
    const NAME: &'static str = "http_upstream_random";
    type Main = ();
    type Scope = Draws;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[Directive::<Self>::scope("random", Contexts::UPSTREAM, Takes::of(0, 2), random)];
}

/// How many are drawn.
#[derive(Clone, Debug, Default)]
pub struct Draws {
    two: bool,
}

impl Conf for Draws {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

fn random(draws: &mut Draws, call: &mut Call<'_>) -> Result<(), Fault> {
    call.balance(Random::NAME, HASHED);
    // The method by which two are compared is the only one.
    for (index, word) in ["two", "least_conn"].into_iter().enumerate().take(call.args().len()) {
        if call.arg(index) != word.as_bytes() {
            return Err(call.invalid_parameter(index));
        }
        draws.two = true;
    }
    Ok(())
}

impl Install for Random {
    fn prepare((): &(), build: &mut Build<'_>) -> Result<(), Diagnostic> {
        balance::<Self>(build, |draws, _| {
            let two = draws.two;
            Box::new(move |peers| Arc::new(Drawn { two, peers }))
        });
        Ok(())
    }

    fn install(_: &Draws, _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

struct Drawn {
    two: bool,
    peers: Arc<RoundRobin>,
}

fn number() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness the first is as good as any.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

impl Balance for Drawn {
    fn pick(&self, _: &mut Exchange, tried: &mut Tried, now: u64) -> Option<Picked> {
        if tried.misses() > MISSES || !is_choice(&self.peers) {
            return self.peers.next(tried, now);
        }
        let look = self.peers.look(now);
        if let Some(index) = look.belonging(false, tried) {
            return Some(look.take(index, tried));
        }
        let mut before: Option<usize> = None;
        loop {
            let drawn = by_weight(&self.peers, number());
            let drawn = drawn.filter(|index| before != Some(*index) && look.is_free(*index, tried));
            match (drawn, before) {
                (Some(one), None) if self.two => before = Some(one),
                (Some(one), None) => return Some(look.take(one, tried)),
                (Some(other), Some(one)) => {
                    let conns = |index: usize| u64::from(look.peer(index).conns());
                    let weight = |index: usize| u64::from(look.peer(index).weight);
                    let more = conns(other) * weight(one) > conns(one) * weight(other);
                    return Some(look.take(if more { one } else { other }, tried));
                }
                (None, _) => {
                    tried.more_mut().misses += 1;
                    if tried.misses() > MISSES {
                        drop(look);
                        return self.peers.next(tried, now);
                    }
                }
            }
        }
    }
}

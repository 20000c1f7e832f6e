//! `ngx_http_upstream_keepalive_module`: idle connections to upstreams, kept for the next request.

use weir_engine::contract::Install;
use weir_engine::generation::{Build, Plan};
use weir_engine::upstream::PoolSettings;
use weir_ir::lowering::{Call, Fault, Merge};
use weir_ir::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_syntax::Diagnostic;

pub struct Keepalive;

type D = Directive<Keepalive>;

const UPSTREAM: Contexts = Contexts::UPSTREAM;

impl Module for Keepalive {
    const NAME: &'static str = "http_upstream_keepalive";
    type Main = ();
    type Scope = Pool;
    const DIRECTIVES: &'static [D] = &[
        D::scope("keepalive", UPSTREAM, Takes::ONE_TWO, keepalive),
        D::scope("keepalive_time", UPSTREAM, Takes::ONE, |s, c| s.time.msec(c)),
        D::scope("keepalive_timeout", UPSTREAM, Takes::ONE, |s, c| s.timeout.msec(c)),
        D::scope("keepalive_requests", UPSTREAM, Takes::ONE, |s, c| s.requests.number(c)),
    ];
}

/// The pool of one upstream block.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// Connections, and whether they belong to the location that opened them.
    connections: Setting<(u64, bool)>,
    time: Setting<u64>,
    timeout: Setting<u64>,
    requests: Setting<u64>,
}

impl Conf for Pool {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

fn keepalive(pool: &mut Pool, call: &mut Call<'_>) -> Result<(), Fault> {
    pool.connections.put_with(call, |call| {
        let Some(connections) = weir_ir::value::number(call.arg(0)) else {
            return Err(call.invalid_value(0));
        };
        match call.args().get(1).map(|word| &*word.value) {
            None => Ok((connections, false)),
            Some(b"local") => Ok((connections, true)),
            Some(_) => Err(call.invalid_parameter(1)),
        }
    })
}

/// Idle connections of an upstream block that says nothing of them.
const BY_DEFAULT: (u64, bool) = (32, true);

impl Install for Keepalive {
    fn prepare((): &(), build: &mut Build<'_>) -> Result<(), Diagnostic> {
        let Some(http) = &build.program.http else { return Ok(()) };
        for (index, upstream) in http.upstreams.iter().enumerate() {
            if !upstream.explicit {
                continue;
            }
            let pool = upstream.confs.get::<Keepalive>();
            let defaults = PoolSettings::default();
            let (connections, local) = pool.connections.or(BY_DEFAULT);
            let settings = PoolSettings {
                connections: connections as usize,
                requests: pool.requests.or(defaults.requests),
                time: pool.time.or(defaults.time),
                timeout: pool.timeout.or(defaults.timeout),
                local,
            };
            build.edit_upstream(index, move |group| group.pool = settings);
        }
        Ok(())
    }

    fn install(_: &Pool, _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

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
    connections: Setting<u64>,
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
    pool.connections.put_with(call, |call| match weir_ir::value::number(call.arg(0)) {
        Some(connections) => Ok(connections),
        None => Err(call.fail(format!("invalid value \"{}\" in \"keepalive\" directive", call.text(0)))),
    })?;
    match call.args().get(1).map(|word| &*word.value) {
        // Idle connections belong to a thread and to the upstream that they were opened for as it is.
        None | Some(b"local") => Ok(()),
        Some(_) => Err(call.invalid_parameter(1)),
    }
}

impl Install for Keepalive {
    fn prepare((): &(), build: &mut Build<'_>) -> Result<(), Diagnostic> {
        let Some(http) = &build.program.http else { return Ok(()) };
        for (index, upstream) in http.upstreams.iter().enumerate() {
            let pool = upstream.confs.get::<Keepalive>();
            let defaults = PoolSettings::default();
            let settings = PoolSettings {
                connections: pool.connections.get().map_or(defaults.connections, |n| *n as usize),
                requests: pool.requests.or(defaults.requests),
                time: pool.time.or(defaults.time),
                timeout: pool.timeout.or(defaults.timeout),
            };
            build.edit_upstream(index, |group| group.pool = settings);
        }
        Ok(())
    }

    fn install(_: &Pool, _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

//! `ngx_http_upstream_hc_module`, of nginx's commercial version: the servers of a group are asked now and then how they
//! are, and those that are not well are passed over.
//!
//! One thread asks all servers of a check for as long as its generation is served by. What was found stays with the
//! servers over reloads ([`weir_engine::upstream::health`]). `type=websocket` is weir's own: it opens a WebSocket and
//! wants an answer to a Ping.

mod check;
mod matching;
mod websocket;

use std::sync::Arc;

use weir_engine::contract::Install;
use weir_engine::generation::{Build, ContentHandler, Plan};
use weir_engine::upstream::health::MOST;
use weir_engine::upstream::probe::Probe;
use weir_ir::lowering::{Call, Fault, Merge};
use weir_ir::{Conf, Contexts, Directive, LocationId, Module, Takes, value};
use weir_syntax::Diagnostic;

use super::Proxy;
use check::Checker;
use matching::Match;

pub struct UpstreamHc;

type D = Directive<UpstreamHc>;

impl Module for UpstreamHc {
    const NAME: &'static str = "http_upstream_hc";
    type Main = Checks;
    type Scope = ();
    const DIRECTIVES: &'static [D] = &[
        D::main("health_check", Contexts::LOCATION, Takes::of(0, u8::MAX), Checks::add),
        D::main("match", Contexts::HTTP, Takes::ONE.with_block(), |checks, call| {
            let name = call.text(0);
            if checks.matches.iter().any(|known| *known.name == *name) {
                return Err(call.fail(format!("duplicate match \"{name}\"")));
            }
            let read = Match::read(&name, call)?;
            checks.matches.push(read);
            Ok(())
        }),
    ];

    fn init(checks: &mut Checks, merge: &mut Merge<'_>) -> Result<(), Fault> {
        checks.settle(merge)
    }
}

/// All checks of the configuration, and what they may look for.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    checks: Vec<Check>,
    matches: Vec<Match>,
}

impl Conf for Checks {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

/// A `health_check`. Times are milliseconds.
#[derive(Clone, Debug)]
struct Check {
    location: LocationId,
    /// Its number among those of its group.
    number: usize,
    interval: u64,
    jitter: u64,
    fails: u64,
    passes: u64,
    uri: Vec<u8>,
    mandatory: bool,
    persistent: bool,
    /// The name of the match, empty where there is none.
    of: String,
    found: Option<usize>,
    port: Option<u16>,
    websocket: bool,
    keep: Option<u64>,
}

impl Checks {
    fn add(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        let location = call.location();
        if self.checks.iter().any(|check| check.location == location) {
            return Err(call.duplicate());
        }
        let mut check = Check {
            location,
            number: 0,
            interval: 5_000,
            jitter: 0,
            fails: 1,
            passes: 1,
            uri: b"/".to_vec(),
            mandatory: false,
            persistent: false,
            of: String::new(),
            found: None,
            port: None,
            websocket: false,
            keep: None,
        };
        for index in 0..call.args().len() {
            let text = call.text(index);
            let (key, given) = text.split_once('=').map_or((&*text, None), |(key, given)| (key, Some(given)));
            let time = |text: &str| value::msec(text.as_bytes());
            let some = |text: &str| value::number(text.as_bytes()).filter(|number| *number > 0);
            let read = match (key, given) {
                ("interval", Some(v)) => time(v).filter(|ms| *ms > 0).map(|ms| check.interval = ms),
                ("jitter", Some(v)) => time(v).map(|ms| check.jitter = ms),
                ("fails", Some(v)) => some(v).map(|n| check.fails = n),
                ("passes", Some(v)) => some(v).map(|n| check.passes = n),
                ("uri", Some(v)) => is_uri(v).then(|| check.uri = v.into()),
                ("mandatory", None) => {
                    check.mandatory = true;
                    Some(())
                }
                ("persistent", None) if check.mandatory => {
                    check.persistent = true;
                    Some(())
                }
                ("match", Some(v)) if !v.is_empty() => {
                    check.of = v.into();
                    Some(())
                }
                ("port", Some(v)) => {
                    v.parse().ok().filter(|port| *port > 0).map(|port| check.port = Some(port))
                }
                ("type", Some("http")) => {
                    check.websocket = false;
                    Some(())
                }
                ("type", Some("websocket")) => {
                    check.websocket = true;
                    Some(())
                }
                ("type", Some("grpc")) => {
                    let message =
                        "\"health_check\" with \"type=grpc\" is known but not supported by weir yet";
                    return Err(call.under(call.fail(message), index));
                }
                ("keepalive_time", Some(v)) => time(v).map(|ms| check.keep = Some(ms).filter(|ms| *ms > 0)),
                _ => None,
            };
            if read.is_none() {
                return Err(call.invalid_parameter(index));
            }
        }
        if check.websocket && (!check.of.is_empty() || check.keep.is_some()) {
            return Err(call.refuse("with \"type=websocket\" takes neither \"match\" nor \"keepalive_time\""));
        }
        self.checks.push(check);
        Ok(())
    }

    /// Finds the groups and matches of the checks, once all of them are known.
    fn settle(&mut self, merge: &mut Merge<'_>) -> Result<(), Fault> {
        for check in &mut self.checks {
            let http = merge.http();
            let level = http.scope(check.location);
            let at = level.position.clone();
            let group = level.confs.get::<Proxy>().group();
            let Some(group) = group.filter(|group| http.upstreams[*group].explicit) else {
                let place = format!("location in {}:{}", at.file, at.line);
                let message =
                    format!("\"health_check\" requires \"proxy_pass\" to an upstream block in {place}");
                return Err(merge.fail_nowhere(message));
            };
            let upstream = &mut http.upstreams[group];
            let (name, at) = (&upstream.name, &upstream.position);
            if !upstream.shared {
                let message = format!(
                    "health checks require upstream \"{name}\" in {}:{} to be in shared memory",
                    at.file, at.line
                );
                return Err(merge.fail_nowhere(message));
            }
            check.number = upstream.checks.len();
            if check.number == MOST {
                let message =
                    format!("too many health checks of upstream \"{name}\" in {}:{}", at.file, at.line);
                return Err(merge.fail_nowhere(message));
            }
            let own = weir_ir::program::Check {
                key: check.key().into(),
                mandatory: check.mandatory,
                persistent: check.persistent,
            };
            upstream.checks = upstream.checks.iter().cloned().chain([own]).collect();
            if !check.of.is_empty() {
                check.found = self.matches.iter().position(|known| *known.name == *check.of);
                if check.found.is_none() {
                    return Err(merge.fail_nowhere(format!("match \"{}\" is not defined", check.of)));
                }
            }
        }
        Ok(())
    }
}

impl Check {
    /// What it is known by to the next configuration: what it asks, not how often.
    fn key(&self) -> String {
        let uri = String::from_utf8_lossy(&self.uri);
        format!("{uri} {} {} {}", self.of, self.port.unwrap_or(0), self.websocket)
    }
}

/// What can stand in a request line as it is.
fn is_uri(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// What was compiled of the checks, for their locations.
struct Compiled(Vec<(LocationId, Arc<Checker>)>);

impl Install for UpstreamHc {
    fn prepare(checks: &Checks, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        let compiled = checks.checks.iter().map(|check| {
            let of = check.found.map(|at| checks.matches[at].compile(build));
            (check.location, Arc::new(Checker::new(check, of.unwrap_or_default())))
        });
        let compiled = Arc::new(Compiled(compiled.collect()));
        build.keep("", compiled);
        Ok(())
    }

    fn install((): &(), plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let Some(compiled) = plan.build.kept::<Compiled>("") else { return Ok(()) };
        let Some((_, checker)) = compiled.0.iter().find(|(location, _)| *location == plan.id) else {
            return Ok(());
        };
        if let Some(ContentHandler::Upstream(protocol)) = &plan.handlers.handler
            && let Some(probe) =
                Probe::new(protocol, plan.id, &checker.name(), checker.keep(), checker.upgrade())
        {
            let (checker, probe) = (Arc::clone(checker), Arc::new(probe));
            plan.build.chore(move |reactor, generation| {
                let (checker, probe) = (Arc::clone(&checker), Arc::clone(&probe));
                Box::pin(check::run(checker, probe, reactor.clone(), Arc::clone(generation)))
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

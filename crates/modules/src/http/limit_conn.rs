//! `ngx_http_limit_conn_module`: limits how many requests of a key are served at the same time. A tunnel counts until
//! it ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use weir_engine::contract::{Check, Flow, Install, Step, Variable};
use weir_engine::generation::{Build, Plan};
use weir_engine::http::{Exchange, Template};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge, value};
use weir_syntax::{Diagnostic, Level};

use super::limit::{self, ZoneSpec};

pub struct LimitConn;

type D = Directive<LimitConn>;

impl Module for LimitConn {
    const NAME: &'static str = "http_limit_conn";
    type Main = Zones;
    type Scope = Limits;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::main("limit_conn_zone", Contexts::HTTP, Takes::TWO, Zones::add),
        D::scope("limit_conn", Contexts::SCOPES, Takes::TWO, Limits::add),
        D::scope("limit_conn_log_level", Contexts::SCOPES, Takes::ONE, |limits, call| {
            limits.level.one_of(call, &limit::LEVELS)
        }),
        D::scope("limit_conn_status", Contexts::SCOPES, Takes::ONE, |limits, call| {
            limit::status(&mut limits.status, call)
        }),
        D::scope("limit_conn_dry_run", Contexts::SCOPES, Takes::FLAG, |limits, call| {
            limits.dry_run.flag(call)
        }),
    ];
}

/// All `limit_conn_zone`.
#[derive(Clone, Debug, Default)]
pub struct Zones(Vec<ZoneSpec>);

impl Conf for Zones {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

impl Zones {
    fn add(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        let key = call.template(0)?;
        if !call.arg(1).starts_with(b"zone=") {
            return Err(call.invalid_parameter(1));
        }
        let zone = limit::zone_word(call, 1)?;
        let zone = limit::define(&self.0, Some(zone), key, LimitConn::NAME, call)?;
        self.0.push(zone);
        Ok(())
    }
}

/// The limits of one level.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    limits: Vec<(Box<str>, u32)>,
    level: Setting<Level>,
    status: Setting<u16>,
    dry_run: Setting<bool>,
}

impl Conf for Limits {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        if self.limits.is_empty() {
            self.limits.clone_from(&outer.limits);
        }
        self.level.inherit(&outer.level);
        self.status.inherit(&outer.status);
        self.dry_run.inherit(&outer.dry_run);
        Ok(())
    }
}

impl Limits {
    fn add(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        let name: Box<str> = call.text(0).into();
        call.zone(&name, 0, LimitConn::NAME)?;
        if self.limits.iter().any(|(known, _)| *known == name) {
            return Err(call.duplicate());
        }
        let most = match value::number(call.arg(1)) {
            None | Some(0) => {
                let message = format!("invalid number of connections \"{}\"", call.text(1));
                return Err(call.under(call.fail(message), 1));
            }
            Some(most @ 1..=65_535) => most as u32,
            Some(_) => return Err(call.under(call.fail("connection limit must be less 65536"), 1)),
        };
        self.limits.push((name, most));
        Ok(())
    }
}

/// How many connections each key has, shared by all threads and kept over reloads.
struct Zone {
    name: Box<str>,
    size: u64,
    key_text: Box<str>,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    of: HashMap<Box<[u8]>, u32>,
    /// Bytes that the states take.
    used: u64,
}

/// What a tree node and a count take beside the key.
const STATE: usize = 35;

/// Why a connection was not counted.
enum Full {
    Key,
    Zone,
}

impl Zone {
    fn enter(self: &Arc<Self>, key: &[u8], most: u32) -> Result<Guard, Full> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.of.get_mut(key) {
            Some(count) if *count >= most => return Err(Full::Key),
            Some(count) => *count += 1,
            None => {
                let used = counts.used + limit::footprint(STATE, key.len());
                if used > self.size {
                    return Err(Full::Zone);
                }
                counts.used = used;
                counts.of.insert(key.into(), 1);
            }
        }
        Ok(Guard { zone: Arc::clone(self), key: key.into() })
    }
}

/// One counted connection.
struct Guard {
    zone: Arc<Zone>,
    key: Box<[u8]>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut counts = self.zone.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.of.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.of.remove(&self.key);
                counts.used = counts.used.saturating_sub(limit::footprint(STATE, self.key.len()));
            }
        }
    }
}

/// A zone of this generation with its key ready.
struct Keyed {
    zone: Arc<Zone>,
    key: Template,
}

/// `$limit_conn_status`.
struct Status(&'static str);

impl Install for LimitConn {
    const VARIABLES: &'static [Variable] =
        &[Variable::new("limit_conn_status", |x, out| match x.remembered::<Status>() {
            Some(status) => {
                out.extend_from_slice(status.0.as_bytes());
                true
            }
            None => false,
        })];

    fn prepare(zones: &Zones, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        for spec in &zones.0 {
            let before = build.kept_before::<Zone>(&spec.name).filter(|z| z.size == spec.size);
            let zone = match before {
                Some(before) if before.key_text != spec.key_text => {
                    return Err(Diagnostic::emerg(format!(
                        "limit_conn_zone \"{}\" uses the \"{}\" key while previously it used the \"{}\" key",
                        spec.name, spec.key_text, before.key_text
                    )));
                }
                Some(before) => before,
                None => Arc::new(Zone {
                    name: spec.name.clone(),
                    size: spec.size,
                    key_text: spec.key_text.clone(),
                    counts: Mutex::default(),
                }),
            };
            build.keep(&spec.name, Arc::clone(&zone));
            let key = build.template(&spec.key);
            build.keep(&spec.name, Arc::new(Keyed { zone, key }));
        }
        Ok(())
    }

    fn install(limits: &Limits, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let mut ready = vec![];
        for (name, most) in &limits.limits {
            let Some(keyed) = plan.build.kept::<Keyed>(name) else {
                return Err(limit::undefined(name));
            };
            ready.push((keyed, *most));
        }
        if !ready.is_empty() {
            plan.handlers.preaccess.push(Box::new(Limiter {
                limits: ready,
                level: limits.level.or(Level::Error),
                status: limits.status.or(503),
                dry_run: limits.dry_run.or(false),
            }));
        }
        Ok(())
    }
}

struct Limiter {
    limits: Vec<(Arc<Keyed>, u32)>,
    level: Level,
    status: u16,
    dry_run: bool,
}

impl Check for Limiter {
    fn check<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        Step::Now(self.decide(x))
    }
}

impl Limiter {
    fn decide(&self, x: &mut Exchange) -> Flow {
        if x.remembered::<Status>().is_some() {
            return Flow::Decline;
        }
        let mut guards = vec![];
        for (keyed, most) in &self.limits {
            let key = keyed.key.value(x);
            if key.is_empty() {
                continue;
            }
            if key.len() > 255 {
                let (text, key) = (&keyed.zone.key_text, String::from_utf8_lossy(&key));
                let message = format!("the value of the \"{text}\" key is more than 255 bytes: \"{key}\"");
                x.log(Level::Error, message);
                continue;
            }
            match keyed.zone.enter(&key, *most) {
                Ok(guard) => guards.push(guard),
                Err(full) => {
                    if let Full::Key = full {
                        let dry = if self.dry_run { ", dry run," } else { "" };
                        let name = &keyed.zone.name;
                        x.log(self.level, format_args!("limiting connections{dry} by zone \"{name}\""));
                    }
                    // What was counted in other zones is given back right away.
                    drop(guards);
                    if self.dry_run {
                        x.remember(Status("REJECTED_DRY_RUN"));
                        return Flow::Decline;
                    }
                    x.remember(Status("REJECTED"));
                    return Flow::Answer(self.status);
                }
            }
        }
        if !guards.is_empty() {
            x.remember(Status("PASSED"));
            x.guards.extend(guards.into_iter().map(|guard| Box::new(guard) as Box<dyn std::any::Any>));
        }
        Flow::Decline
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Site, check_conf, code};

    #[test]
    fn messages() {
        let zone = "limit_conn_zone $uri zone=a:1m;";
        check_conf(&format!("{zone} limit_conn a 1; limit_conn_status 429; limit_conn_log_level warn;"), "");
        for (conf, message) in [
            ("limit_conn_zone $uri a:1m;", "invalid parameter \"a:1m\""),
            ("limit_conn_zone $uri zone=a;", "invalid zone size \"zone=a\""),
            ("limit_conn_zone $uri zone=a:1x;", "invalid zone size \"zone=a:1x\""),
            ("limit_conn_zone $uri zone=a:1k;", "zone \"zone=a:1k\" is too small"),
            ("limit_conn_zone $uri zone=:1m;", "\"limit_conn_zone\" must have \"zone\" parameter"),
            (
                "limit_conn_zone $uri zone=a:1m; limit_conn_zone $args zone=a:1m;",
                "limit_conn_zone \"a\" is already bound to key \"$uri\"",
            ),
            ("limit_conn a 0;", "invalid number of connections \"0\""),
            ("limit_conn a 65536;", "connection limit must be less 65536"),
            ("limit_conn a 1; limit_conn a 1;", "\"limit_conn\" directive is duplicate"),
            ("limit_conn_log_level debug;", "invalid value \"debug\""),
        ] {
            check_conf(conf, message);
        }
    }

    fn zone(size: u64) -> Arc<Zone> {
        Arc::new(Zone { name: "".into(), size, key_text: "".into(), counts: Mutex::default() })
    }

    #[test]
    fn counts() {
        let zone = zone(128);
        let first = zone.enter(b"a", 2).ok();
        let second = zone.enter(b"a", 2).ok();
        assert!(second.is_some() && matches!(zone.enter(b"a", 2), Err(Full::Key)));
        let other = zone.enter(b"b", 2).ok();
        assert!(other.is_some() && matches!(zone.enter(b"c", 2), Err(Full::Zone)));
        drop((first, second));
        assert!(zone.enter(b"c", 2).is_ok(), "room is given back");
    }

    #[test]
    fn requests() {
        let conf = |more: &str| {
            format!(
                "limit_conn_zone $arg_k zone=a:1m; log_format s $limit_conn_status; access_log logs/a.log s;
                 server {{ listen 80; location / {{ limit_conn a 1; {more} answer 200 a b; }} }}"
            )
        };
        let site = Site::new(&conf("limit_conn_status 429;"));
        let held = site.generation().kept::<Zone>("a").unwrap().enter(b"x", 1).ok();
        assert_eq!(code(&site.get("/?k=x", "")), "429");
        assert_eq!(code(&site.get("/?k=y", "")), "200");
        assert_eq!(code(&site.get("/", "")), "200");
        drop(held);
        assert_eq!(code(&site.get("/?k=x", "")), "200");
        assert_eq!(code(&site.get("/?k=x", "")), "200", "a request that ended does not count");
        assert_eq!(site.read("logs/a.log"), "REJECTED\nPASSED\n-\nPASSED\nPASSED\n");
        assert_eq!(site.log(), ["limiting connections by zone \"a\""]);
        let site = Site::new(&conf("limit_conn_dry_run on;"));
        let _held = site.generation().kept::<Zone>("a").unwrap().enter(b"x", 1).ok();
        assert_eq!(code(&site.get("/?k=x", "")), "200");
        assert_eq!(site.log(), ["limiting connections, dry run, by zone \"a\""]);
    }
}

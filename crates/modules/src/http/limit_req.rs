//! `ngx_http_limit_req_module`: limits requests per key with a leaky bucket.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use weir_engine::contract::{Check, Flow, Install, Step, Variable};
use weir_engine::generation::{Build, Plan};
use weir_engine::http::{Exchange, Template};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge, value};
use weir_syntax::{Diagnostic, Level};

use super::limit::{self, ZoneSpec};

pub struct LimitReq;

type D = Directive<LimitReq>;

impl Module for LimitReq {
    const NAME: &'static str = "http_limit_req";
    type Main = Zones;
    type Scope = Limits;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::main("limit_req_zone", Contexts::HTTP, Takes::THREE, Zones::add),
        D::scope("limit_req", Contexts::SCOPES, Takes::ONE_TO_THREE, Limits::add),
        D::scope("limit_req_log_level", Contexts::SCOPES, Takes::ONE, |limits, call| {
            limits.level.one_of(call, &limit::LEVELS)
        }),
        D::scope("limit_req_status", Contexts::SCOPES, Takes::ONE, |limits, call| {
            limit::status(&mut limits.status, call)
        }),
        D::scope("limit_req_dry_run", Contexts::SCOPES, Takes::FLAG, |limits, call| {
            limits.dry_run.flag(call)
        }),
    ];
}

/// All `limit_req_zone`, with their rates in thousandths of a request per second.
#[derive(Clone, Debug, Default)]
pub struct Zones {
    zones: Vec<ZoneSpec>,
    rates: Vec<u64>,
}

impl Conf for Zones {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

impl Zones {
    fn add(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        let key = call.template(0)?;
        let mut zone = None;
        let mut rate = 1000;
        for index in 1..call.args().len() {
            let text = call.arg(index);
            if text.starts_with(b"zone=") {
                zone = Some(limit::zone_word(call, index)?);
            } else if let Some(text) = text.strip_prefix(b"rate=") {
                let (number, scale) = match text {
                    [number @ .., b'r', b'/', b's'] => (number, 1),
                    [number @ .., b'r', b'/', b'm'] => (number, 60),
                    number => (number, 1),
                };
                // Beyond a billion a second nothing is limited anyway.
                let requests = value::number(number).filter(|n| *n > 0).map(|n| n.min(1_000_000_000));
                let Some(requests) = requests else {
                    let message = format!("invalid rate \"{}\"", call.text(index));
                    return Err(call.under(call.fail(message), index));
                };
                rate = requests * 1000 / scale;
            } else {
                return Err(call.invalid_parameter(index));
            }
        }
        let zone = limit::define(&self.zones, zone, key, LimitReq::NAME, call)?;
        self.zones.push(zone);
        self.rates.push(rate);
        Ok(())
    }
}

/// One `limit_req`; burst and delay in thousandths of a request.
#[derive(Clone, Debug)]
struct Limit {
    zone: Box<str>,
    burst: u64,
    delay: u64,
}

/// The limits of one level.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    limits: Vec<Limit>,
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
        let mut zone = None;
        let (mut burst, mut delay) = (0u64, 0u64);
        for index in 0..call.args().len() {
            let text = call.arg(index);
            let number = |name: &str| {
                let value = value::number(&text[name.len() + 1..]).filter(|n| *n > 0);
                let message = || format!("invalid {name} value \"{}\"", call.text(index));
                value.ok_or_else(|| call.under(call.fail(message()), index))
            };
            if let Some(name) = text.strip_prefix(b"zone=") {
                zone = Some(String::from_utf8_lossy(name).into_owned());
            } else if text.starts_with(b"burst=") {
                burst = number("burst")?;
            } else if text.starts_with(b"delay=") {
                delay = number("delay")?;
            } else if text == b"nodelay" {
                delay = u64::MAX / 1000;
            } else {
                return Err(call.invalid_parameter(index));
            }
        }
        let Some(zone) = zone else { return Err(limit::without_zone(call)) };
        call.zone(&zone, 0, LimitReq::NAME)?;
        if self.limits.iter().any(|l| *l.zone == *zone) {
            return Err(call.duplicate());
        }
        let (burst, delay) = (burst.saturating_mul(1000), delay.saturating_mul(1000));
        self.limits.push(Limit { zone: zone.into(), burst, delay });
        Ok(())
    }
}

/// The buckets of a zone, shared by all threads and kept over reloads.
struct Zone {
    name: Box<str>,
    size: u64,
    key_text: Box<str>,
    buckets: Mutex<Buckets>,
}

/// One key's bucket. Excess is in thousandths of a request, time in milliseconds since the epoch.
#[derive(Clone, Debug)]
struct Bucket {
    excess: i64,
    last: u64,
    /// Requests that wait for the verdict of other zones; they keep the bucket.
    count: u32,
    /// Its place in the order of use.
    used_at: u64,
}

/// Leaky buckets by key, the ones unused for longest forgotten first.
#[derive(Default)]
struct Buckets {
    by_key: HashMap<Arc<[u8]>, Bucket>,
    by_use: BTreeMap<u64, Arc<[u8]>>,
    uses: u64,
    /// Bytes that the states take.
    used: u64,
}

/// What a tree node and a bucket take beside the key.
const STATE: usize = 72;
/// A bucket that was used within this many milliseconds is only forgotten for want of room.
const RECENT: u64 = 60_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Over the burst, with this excess.
    Busy(i64),
    /// Counted, with this excess.
    Counted(i64),
    /// Not yet counted, which [`Buckets::account`] does.
    Pending,
    /// The zone has no room.
    Full,
}

/// Milliseconds gone by, as far as clocks that jump can tell.
fn since(last: u64, now: u64) -> u64 {
    let jumped_back = last.saturating_sub(now);
    if jumped_back > RECENT { 1 } else { now.saturating_sub(last) }
}

fn leaked(rate: u64, ms: u64) -> i64 {
    i64::try_from(u128::from(rate) * u128::from(ms) / 1000).unwrap_or(i64::MAX)
}

impl Buckets {
    /// Asks the bucket of a key for one more request; `account` counts it right away if there is room.
    fn ask(&mut self, key: &[u8], rate: u64, burst: u64, size: u64, now: u64, account: bool) -> Verdict {
        self.uses += 1;
        let uses = self.uses;
        if let Some(bucket) = self.by_key.get_mut(key) {
            if let Some(key) = self.by_use.remove(&bucket.used_at) {
                self.by_use.insert(uses, key);
            }
            bucket.used_at = uses;
            let ms = since(bucket.last, now);
            let excess = bucket.excess.saturating_sub(leaked(rate, ms)).saturating_add(1000).max(0);
            if excess as u64 > burst {
                return Verdict::Busy(excess);
            }
            if !account {
                bucket.count += 1;
                return Verdict::Pending;
            }
            bucket.excess = excess;
            if ms > 0 {
                bucket.last = now;
            }
            return Verdict::Counted(excess);
        }
        self.expire(rate, now, false);
        let needed = limit::footprint(STATE, key.len());
        if self.used + needed > size {
            self.expire(rate, now, true);
        }
        if self.used + needed > size {
            return Verdict::Full;
        }
        let (last, count, verdict) =
            if account { (now, 0, Verdict::Counted(0)) } else { (0, 1, Verdict::Pending) };
        let key: Arc<[u8]> = key.into();
        self.used += needed;
        self.by_use.insert(uses, Arc::clone(&key));
        self.by_key.insert(key, Bucket { excess: 0, last, count, used_at: uses });
        verdict
    }

    /// Counts a pending request; gives its excess.
    fn account(&mut self, key: &[u8], rate: u64, now: u64) -> i64 {
        let Some(bucket) = self.by_key.get_mut(key) else { return 0 };
        let ms = since(bucket.last, now);
        bucket.excess = bucket.excess.saturating_sub(leaked(rate, ms)).saturating_add(1000).max(0);
        if ms > 0 {
            bucket.last = now;
        }
        bucket.count = bucket.count.saturating_sub(1);
        bucket.excess
    }

    /// Lets go of a pending request without counting it.
    fn release(&mut self, key: &[u8]) {
        if let Some(bucket) = self.by_key.get_mut(key) {
            bucket.count = bucket.count.saturating_sub(1);
        }
    }

    /// Forgets up to two buckets that ran empty; `force` forgets the oldest one first whatever it holds.
    fn expire(&mut self, rate: u64, now: u64, force: bool) {
        for round in if force { 0..3 } else { 1..3 } {
            let Some((used_at, key)) = self.by_use.first_key_value() else { return };
            let (used_at, key) = (*used_at, Arc::clone(key));
            let Some(bucket) = self.by_key.get(&key) else { return };
            if bucket.count > 0 {
                return;
            }
            if round > 0 {
                let ms = now.abs_diff(bucket.last);
                if ms < RECENT || bucket.excess > leaked(rate, ms) {
                    return;
                }
            }
            self.by_use.remove(&used_at);
            self.by_key.remove(&key);
            self.used = self.used.saturating_sub(limit::footprint(STATE, key.len()));
        }
    }
}

/// A zone of this generation with its key and rate ready.
struct Keyed {
    zone: Arc<Zone>,
    key: Template,
    rate: u64,
}

/// `$limit_req_status`.
struct Status(&'static str);

impl Install for LimitReq {
    const VARIABLES: &'static [Variable] =
        &[Variable::new("limit_req_status", |x, out| match x.remembered::<Status>() {
            Some(status) => {
                out.extend_from_slice(status.0.as_bytes());
                true
            }
            None => false,
        })];

    fn prepare(zones: &Zones, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        for (spec, rate) in zones.zones.iter().zip(&zones.rates) {
            let before = build.kept_before::<Zone>(&spec.name).filter(|z| z.size == spec.size);
            let zone = match before {
                Some(before) if before.key_text != spec.key_text => {
                    return Err(Diagnostic::emerg(format!(
                        "limit_req \"{}\" uses the \"{}\" key while previously it used the \"{}\" key",
                        spec.name, spec.key_text, before.key_text
                    )));
                }
                Some(before) => before,
                None => Arc::new(Zone {
                    name: spec.name.clone(),
                    size: spec.size,
                    key_text: spec.key_text.clone(),
                    buckets: Mutex::default(),
                }),
            };
            build.keep(&spec.name, Arc::clone(&zone));
            let key = build.template(&spec.key);
            build.keep(&spec.name, Arc::new(Keyed { zone, key, rate: (*rate).max(1) }));
        }
        Ok(())
    }

    fn install(limits: &Limits, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let mut ready = vec![];
        for limit in &limits.limits {
            let Some(keyed) = plan.build.kept::<Keyed>(&limit.zone) else {
                return Err(limit::undefined(&limit.zone));
            };
            ready.push(ReadyLimit { keyed, burst: limit.burst, delay: limit.delay });
        }
        if !ready.is_empty() {
            let level = limits.level.or(Level::Error);
            plan.handlers.preaccess.push(Box::new(Limiter {
                limits: ready,
                level,
                // A delay is one level less important than a refusal.
                delay_level: match level {
                    Level::Error => Level::Warn,
                    Level::Warn => Level::Notice,
                    _ => Level::Info,
                },
                status: limits.status.or(503),
                dry_run: limits.dry_run.or(false),
            }));
        }
        Ok(())
    }
}

struct ReadyLimit {
    keyed: Arc<Keyed>,
    burst: u64,
    delay: u64,
}

impl ReadyLimit {
    fn buckets(&self) -> std::sync::MutexGuard<'_, Buckets> {
        self.keyed.zone.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds that a request with this excess waits.
    fn wait(&self, excess: i64) -> u64 {
        let over = u64::try_from(excess).unwrap_or(0).saturating_sub(self.delay);
        over.saturating_mul(1000) / self.keyed.rate
    }
}

struct Limiter {
    limits: Vec<ReadyLimit>,
    level: Level,
    delay_level: Level,
    status: u16,
    dry_run: bool,
}

impl Check for Limiter {
    fn check<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        match self.decide(x) {
            Ok(0) => Step::Now(Flow::Decline),
            Ok(wait) => Step::Later(Box::pin(async move {
                if x.delay(wait).await { Flow::Decline } else { Flow::Answer(499) }
            })),
            Err(flow) => Step::Now(flow),
        }
    }
}

impl Limiter {
    /// Milliseconds to wait, or how the request ends.
    fn decide(&self, x: &mut Exchange) -> Result<u64, Flow> {
        if x.remembered::<Status>().is_some() {
            return Ok(0);
        }
        // One clock for all threads.
        let now = x.reactor.clock().unix_ms();
        let mut pending: Vec<(&ReadyLimit, Vec<u8>)> = vec![];
        let mut counted: Option<(&ReadyLimit, i64)> = None;
        for (index, limit) in self.limits.iter().enumerate() {
            let key = limit.keyed.key.value(x);
            if key.is_empty() {
                continue;
            }
            if key.len() > 65_535 {
                let (text, key) = (&limit.keyed.zone.key_text, String::from_utf8_lossy(&key));
                let message = format!("the value of the \"{text}\" key is more than 65535 bytes: \"{key}\"");
                x.log(Level::Error, message);
                continue;
            }
            let last = index + 1 == self.limits.len();
            let (rate, size) = (limit.keyed.rate, limit.keyed.zone.size);
            let verdict = limit.buckets().ask(&key, rate, limit.burst, size, now, last);
            match verdict {
                Verdict::Pending => pending.push((limit, key)),
                Verdict::Counted(excess) => counted = Some((limit, excess)),
                Verdict::Busy(_) | Verdict::Full => {
                    pending.iter().for_each(|(limit, key)| limit.buckets().release(key));
                    return self.refuse(x, limit, verdict).map(|()| 0);
                }
            }
        }
        if counted.is_none() && pending.is_empty() {
            return Ok(0);
        }
        let mut worst = counted.map(|(limit, excess)| (limit.wait(excess), limit, excess));
        for (limit, key) in pending.iter().rev() {
            let excess = limit.buckets().account(key, limit.keyed.rate, now);
            let wait = limit.wait(excess);
            if worst.is_none_or(|(longest, ..)| wait > longest) {
                worst = Some((wait, *limit, excess));
            }
        }
        match worst.filter(|(wait, ..)| *wait > 0) {
            Some((wait, limit, excess)) => {
                let dry = if self.dry_run { ", dry run" } else { "" };
                let (name, whole, rest) = (&limit.keyed.zone.name, excess / 1000, excess % 1000);
                x.log(
                    self.delay_level,
                    format_args!("delaying request{dry}, excess: {whole}.{rest:03}, by zone \"{name}\""),
                );
                x.remember(Status(if self.dry_run { "DELAYED_DRY_RUN" } else { "DELAYED" }));
                Ok(if self.dry_run { 0 } else { wait })
            }
            None => {
                x.remember(Status("PASSED"));
                Ok(0)
            }
        }
    }

    fn refuse(&self, x: &mut Exchange, limit: &ReadyLimit, verdict: Verdict) -> Result<(), Flow> {
        let name = &limit.keyed.zone.name;
        if let Verdict::Busy(excess) = verdict {
            let dry = if self.dry_run { ", dry run" } else { "" };
            let (whole, rest) = (excess / 1000, excess % 1000);
            x.log(
                self.level,
                format_args!("limiting requests{dry}, excess: {whole}.{rest:03} by zone \"{name}\""),
            );
        } else {
            let message = format!("could not allocate node in limit_req zone \"{name}\"");
            x.log(Level::Alert, message);
        }
        x.remember(Status(if self.dry_run { "REJECTED_DRY_RUN" } else { "REJECTED" }));
        if self.dry_run { Ok(()) } else { Err(Flow::Answer(self.status)) }
    }
}

#[cfg(test)]
mod tests {
    use weir_testkit::Say;

    use super::*;
    use crate::testing::{Site, check_conf, code};

    #[test]
    fn messages() {
        let zone = "limit_req_zone $uri zone=a:1m rate=1r/s;";
        check_conf(&format!("{zone} limit_req zone=a burst=5 nodelay; limit_req_status 429;"), "");
        check_conf(&format!("{zone} limit_req zone=a burst=5 delay=3; limit_req_dry_run on;"), "");
        for (conf, message) in [
            ("limit_req_zone $uri zone=a:1m rate=0r/s;", "invalid rate \"rate=0r/s\""),
            ("limit_req_zone $uri zone=a:1m x;", "invalid parameter \"x\""),
            ("limit_req_zone $uri rate=1r/s rate=1r/s;", "\"limit_req_zone\" must have \"zone\" parameter"),
            ("limit_req burst=1;", "\"limit_req\" must have \"zone\" parameter"),
            ("limit_req zone=a burst=0;", "invalid burst value \"burst=0\""),
            ("limit_req zone=a delay=x;", "invalid delay value \"delay=x\""),
            ("limit_req zone=a y;", "invalid parameter \"y\""),
            ("limit_req zone=a; limit_req zone=a;", "\"limit_req\" directive is duplicate"),
            ("limit_req_status 200;", "value must be between 400 and 599"),
        ] {
            check_conf(conf, message);
        }
    }

    /// Asks one bucket of one request a second at these times.
    #[track_caller]
    fn check(burst: u64, times: &[u64], expected: &[Verdict]) {
        let mut buckets = Buckets::default();
        let start = 1_000_000;
        let ask = |at: &u64| buckets.ask(b"k", 1000, burst, 4096, start + at, true);
        assert_eq!(times.iter().map(ask).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn buckets() {
        use Verdict::{Busy, Counted};
        check(0, &[0, 0, 999, 1000], &[Counted(0), Busy(1000), Busy(1), Counted(0)]);
        check(
            2000,
            &[0, 0, 0, 0, 1500],
            &[Counted(0), Counted(1000), Counted(2000), Busy(3000), Counted(1500)],
        );
        check(0, &[100_000, 0, 99_000], &[Counted(0), Busy(999), Busy(1000)]);
    }

    #[test]
    fn the_oldest_bucket_makes_room() {
        let mut buckets = Buckets::default();
        let mut ask = |key: &[u8], now| buckets.ask(key, 1000, 0, 256, now, true);
        assert_eq!(ask(b"a", 1), Verdict::Counted(0));
        assert_eq!(ask(b"b", 1), Verdict::Counted(0));
        assert_eq!(ask(b"c", 1), Verdict::Counted(0), "a is forgotten");
        assert_eq!(ask(b"b", 1), Verdict::Busy(1000));
        assert_eq!(ask(b"a", 1), Verdict::Counted(0));
        let mut buckets = Buckets::default();
        assert_eq!(buckets.ask(b"a", 1000, 0, 128, 1, false), Verdict::Pending);
        assert_eq!(
            buckets.ask(b"b", 1000, 0, 128, 1, true),
            Verdict::Full,
            "a waiting request keeps its bucket"
        );
        assert_eq!(buckets.account(b"a", 1000, 1), 999, "the bucket was made at the epoch");
        assert_eq!(buckets.ask(b"b", 1000, 0, 128, 1, true), Verdict::Counted(0));
    }

    #[test]
    fn requests() {
        let conf = |more: &str| {
            format!(
                "limit_req_zone $arg_k zone=a:1m rate=1r/m; log_format s $limit_req_status; access_log logs/a.log s;
                 server {{ listen 80; location / {{ limit_req zone=a {more}; answer 200 a b; }} }}"
            )
        };
        let mut site = Site::new(&conf(""));
        assert_eq!(code(&site.get("/?k=x", "")), "200");
        assert_eq!(code(&site.get("/?k=x", "")), "503");
        assert_eq!(code(&site.get("/?k=y", "")), "200");
        assert_eq!(code(&site.get("/", "")), "200");
        site.reload(&conf("nodelay"));
        assert_eq!(code(&site.get("/?k=x", "")), "503", "buckets outlive a reload");
        assert_eq!(site.read("logs/a.log"), "PASSED\nREJECTED\nPASSED\n-\nREJECTED\n");
        let errors = site.log();
        assert!(
            errors[0].starts_with("limiting requests, excess: ") && errors[0].ends_with(" by zone \"a\"")
        );
        let site = Site::new(&conf("burst=5 nodelay"));
        assert_eq!(code(&site.get("/?k=x", "")), "200");
        assert_eq!(code(&site.get("/?k=x", "")), "200");
        assert_eq!(site.read("logs/a.log"), "PASSED\nPASSED\n");
    }

    #[test]
    fn delays() {
        let site = Site::new(
            "limit_req_zone $uri zone=a:1m rate=10r/m; log_format t '$limit_req_status $request_time';
             access_log logs/a.log t; server { location / { limit_req zone=a burst=1; answer 200 a here; } }",
        );
        let request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        site.talk(
            "unix:",
            &[
                Say::Send(request),
                Say::Expect("here"),
                Say::Send(request),
                Say::Pass(5_000),
                Say::Pass(1_100),
                Say::Expect("here"),
                Say::Finish,
            ],
        );
        let log = site.read("logs/a.log");
        assert!(log.starts_with("PASSED 0.") && log.contains("\nDELAYED 6."), "{log}");
        assert!(site.log()[0].starts_with("delaying request, excess: "), "{:?}", site.log());
    }
}

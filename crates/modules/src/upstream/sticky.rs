//! `ngx_http_upstream_sticky_module`: requests of a session go to the server that served its first.
//!
//! A server is known by its route or the digest of its address, so sessions go on over reloads, whatever else changed
//! in the block.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use weir_engine::contract::Install;
use weir_engine::generation::{Build, Plan};
use weir_engine::http::{Exchange, Template};
use weir_engine::http1::date;
use weir_engine::md5::Md5;
use weir_engine::upstream::{Balance, Picked, RoundRobin, Tried};
use weir_ir::lowering::{Call, Fault, Merge};
use weir_ir::{Conf, Contexts, Directive, Module, Takes, value};
use weir_syntax::Diagnostic;

pub struct Sticky;

impl Module for Sticky {
    const NAME: &'static str = "http_upstream_sticky";
    type Main = ();
    type Scope = Way;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[Directive::<Self>::scope("sticky", Contexts::UPSTREAM, Takes::TWO_MORE, sticky)];
}

/// How the server of a session is known.
#[derive(Clone, Debug, Default)]
pub struct Way {
    /// Where a request says which it belongs to: the first that is not empty.
    lookup: Vec<weir_ir::Template>,
    kind: Kind,
}

#[derive(Clone, Debug, Default)]
enum Kind {
    /// The client or the configuration says it.
    #[default]
    Route,
    Cookie(Box<Cookie>),
    Learn(Box<Learn>),
}

/// `sticky cookie`.
#[derive(Clone, Debug, Default)]
struct Cookie {
    name: Vec<u8>,
    domain: Option<weir_ir::Template>,
    path: Option<Vec<u8>>,
    expires: Option<Expires>,
    samesite: Option<weir_ir::Template>,
    httponly: bool,
    secure: bool,
}

#[derive(Clone, Copy, Debug)]
enum Expires {
    Max,
    /// Seconds.
    In(u64),
}

/// `sticky learn`.
#[derive(Clone, Debug)]
struct Learn {
    create: Vec<weir_ir::Template>,
    zone: String,
    size: u64,
    /// Milliseconds.
    timeout: u64,
}

impl Conf for Way {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

fn sticky(way: &mut Way, call: &mut Call<'_>) -> Result<(), Fault> {
    if call.upstream().balancers.contains(&Sticky::NAME) || !way.lookup.is_empty() {
        return Err(call.duplicate());
    }
    call.upstream().balancers.push(Sticky::NAME);
    match call.arg(0) {
        b"cookie" => cookie(way, call),
        b"route" => {
            for index in 1..call.args().len() {
                let name = call.variable_name(index)?;
                way.lookup.push(variable(&name, call));
            }
            Ok(())
        }
        b"learn" => learn(way, call),
        _ => Err(call.fail_at(0, "unknown parameter")),
    }
}

fn variable(name: &str, call: &mut Call<'_>) -> weir_ir::Template {
    weir_ir::Template { parts: vec![weir_ir::Part::Variable(call.variable(name))] }
}

fn cookie(way: &mut Way, call: &mut Call<'_>) -> Result<(), Fault> {
    let mut cookie = Cookie { name: call.arg(1).to_vec(), ..Cookie::default() };
    if cookie.name.is_empty() {
        return Err(call.refuse("empty cookie name"));
    }
    for index in 2..call.args().len() {
        let text = call.text(index);
        let (key, value) = text.split_once('=').map_or((text.as_str(), None), |(k, v)| (k, Some(v)));
        let duplicate = |is: bool, call: &Call<'_>| match is {
            true => Err(call.refuse(&format!("parameter \"{key}\" is duplicate"))),
            false => Ok(()),
        };
        let template = |value: &str, call: &mut Call<'_>| weir_ir::Template::parse(value.as_bytes(), call);
        let empty = |call: &Call<'_>| Err(call.refuse(&format!("no value for \"{key}\"")));
        match (key, value) {
            ("domain", Some(value)) => {
                duplicate(cookie.domain.is_some(), call)?;
                if value.is_empty() {
                    return empty(call);
                }
                cookie.domain = Some(template(value, call)?);
            }
            ("path", Some(value)) => {
                duplicate(cookie.path.is_some(), call)?;
                if value.is_empty() {
                    return empty(call);
                }
                cookie.path = Some(value.into());
            }
            ("expires", Some(value)) => {
                duplicate(cookie.expires.is_some(), call)?;
                let time = match value {
                    "max" => Some(Expires::Max),
                    time => value::sec(time.as_bytes()).map(Expires::In),
                };
                let invalid = || call.refuse("invalid \"expires\" parameter value");
                cookie.expires = Some(time.ok_or_else(invalid)?);
            }
            ("samesite", Some(value)) => {
                duplicate(cookie.samesite.is_some(), call)?;
                let value = template(value, call)?;
                if value.as_literal().is_some_and(|word| !is_samesite(word)) {
                    return Err(call.refuse("invalid \"samesite\" parameter value"));
                }
                cookie.samesite = Some(value);
            }
            ("httponly", None) => {
                duplicate(cookie.httponly, call)?;
                cookie.httponly = true;
            }
            ("secure", None) => {
                duplicate(cookie.secure, call)?;
                cookie.secure = true;
            }
            _ => return Err(call.fail_at(index, "unknown parameter")),
        }
    }
    let name = String::from_utf8_lossy(&cookie.name).to_ascii_lowercase();
    way.lookup.push(variable(&format!("cookie_{name}"), call));
    way.kind = Kind::Cookie(Box::new(cookie));
    Ok(())
}

fn is_samesite(word: &[u8]) -> bool {
    [&b"strict"[..], b"lax", b"none"].iter().any(|known| known.eq_ignore_ascii_case(word))
}

/// Eight pages.
const SMALLEST: u64 = 8 * 4096;

fn learn(way: &mut Way, call: &mut Call<'_>) -> Result<(), Fault> {
    let mut zone: Option<(String, u64)> = None;
    let mut timeout = None;
    let mut create = vec![];
    for index in 1..call.args().len() {
        let text = call.text(index);
        let (key, value) = text.split_once('=').map_or((text.as_str(), None), |(k, v)| (k, Some(v)));
        match (key, value) {
            ("zone", Some(_)) if zone.is_some() => return Err(call.refuse("duplicate zone")),
            ("zone", Some(value)) => {
                let Some((name, size)) = value.split_once(':') else {
                    return Err(call.refuse("zone size is not specified"));
                };
                if name.is_empty() {
                    return Err(call.refuse("zone name is not specified"));
                }
                let Some(size) = value::size(size.as_bytes()) else {
                    return Err(call.refuse("invalid zone size"));
                };
                if size < SMALLEST {
                    return Err(call.refuse("zone is too small"));
                }
                zone = Some((name.to_owned(), size));
            }
            ("timeout", Some(_)) if timeout.is_some() => return Err(call.refuse("duplicate timeout")),
            ("timeout", Some(value)) => match value::msec(value.as_bytes()) {
                Some(time) if time > 0 => timeout = Some(time),
                Some(_) | None => return Err(call.refuse("invalid timeout")),
            },
            ("create" | "lookup", Some(value)) => {
                let Some(name) = value.strip_prefix('$') else {
                    return Err(call.refuse(&format!("missing variable in the \"{key}\" parameter")));
                };
                let list = if key == "create" { &mut create } else { &mut way.lookup };
                list.push(variable(&name.to_ascii_lowercase(), call));
            }
            // Sessions are learnt from heads in any case: a tunnel's last byte may be hours away.
            ("header", None) => {}
            _ => return Err(call.fail_at(index, "unknown parameter")),
        }
    }
    let missing = |key: &str| Err(call.refuse(&format!("\"{key}\" parameter is not specified")));
    if way.lookup.is_empty() {
        return missing("lookup");
    }
    if create.is_empty() {
        return missing("create");
    }
    let Some((zone, size)) = zone else { return missing("zone") };
    // A zone is one block's: what it holds are names of that block's servers.
    let user = call.http().upstreams.iter().find(
        |upstream| matches!(&upstream.confs.get::<Sticky>().kind, Kind::Learn(learn) if learn.zone == zone),
    );
    if let Some(user) = user.map(|upstream| Arc::clone(&upstream.name)) {
        return Err(call.fail(format!("sticky zone \"{zone}\" is already used in upstream \"{user}\"")));
    }
    call.zone(&zone, size, Sticky::NAME)?;
    way.kind = Kind::Learn(Box::new(Learn { create, zone, size, timeout: timeout.unwrap_or(600_000) }));
    Ok(())
}

impl Install for Sticky {
    fn prepare((): &(), build: &mut Build<'_>) -> Result<(), Diagnostic> {
        let Some(http) = &build.program.http else { return Ok(()) };
        for (index, upstream) in http.upstreams.iter().enumerate() {
            if !upstream.balancers.contains(&Self::NAME) {
                continue;
            }
            let way = upstream.confs.get::<Self>();
            let templates = |list: &[weir_ir::Template], build: &Build<'_>| {
                list.iter().map(|t| build.template(t)).collect::<Vec<_>>()
            };
            let kind = match &way.kind {
                Kind::Route => Keeping::Route,
                Kind::Cookie(cookie) => Keeping::Cookie(SetCookie {
                    domain: cookie.domain.as_ref().map(|domain| build.template(domain)),
                    samesite: cookie.samesite.as_ref().map(|samesite| build.template(samesite)),
                    spec: (**cookie).clone(),
                }),
                Kind::Learn(learn) => Keeping::Learn {
                    create: templates(&learn.create, build),
                    sessions: sessions(learn, &upstream.name, build)?,
                },
            };
            let (lookup, kind): (Arc<[Template]>, _) = (templates(&way.lookup, build).into(), Arc::new(kind));
            build.edit_upstream(index, move |group| {
                group.balance = Arc::new(Sticking {
                    lookup: Arc::clone(&lookup),
                    kind: Arc::clone(&kind),
                    inner: Arc::clone(&group.balance),
                    peers: Arc::clone(&group.round_robin),
                });
            });
        }
        Ok(())
    }

    fn install(_: &Way, _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

/// The sessions of a zone, those that the generation before kept among them.
fn sessions(learn: &Learn, upstream: &Arc<str>, build: &mut Build<'_>) -> Result<Arc<Sessions>, Diagnostic> {
    let before = build.kept_before::<Sessions>(&learn.zone);
    if let Some(before) = before.as_ref().filter(|before| before.upstream != *upstream) {
        return Err(Diagnostic::emerg(format!(
            "sticky zone \"{}\" is used in upstream \"{upstream}\" while previously it was used in upstream \"{}\"",
            learn.zone, before.upstream
        )));
    }
    let sessions = Arc::new(Sessions {
        upstream: Arc::clone(upstream),
        most: usize::try_from(learn.size / SESSION).unwrap_or(usize::MAX),
        timeout: learn.timeout,
        known: before.map_or_else(Arc::default, |before| Arc::clone(&before.known)),
    });
    build.keep(&learn.zone, Arc::clone(&sessions));
    Ok(sessions)
}

/// Bytes of nginx's zone that a session takes: a megabyte holds about 8000.
const SESSION: u64 = 128;

type Id = [u8; 16];

/// Who serves which session.
struct Sessions {
    upstream: Arc<str>,
    most: usize,
    /// Milliseconds.
    timeout: u64,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    by_id: HashMap<Id, Session>,
    /// By their last use.
    by_use: BTreeMap<(u64, u64), Id>,
    uses: u64,
}

struct Session {
    sid: Box<[u8]>,
    used: (u64, u64),
}

impl Sessions {
    fn find(&self, id: &[u8], now: u64) -> Option<Box<[u8]>> {
        // Both tables change together, without anything between that could panic.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.expire(self.timeout, now);
        known.by_id.get(&Md5::of(id)).map(|session| session.sid.clone())
    }

    /// Keeps a session's server; one that is not there is only made where `create` says so.
    fn keep(&self, id: &[u8], sid: &[u8], create: bool, now: u64) {
        let id = Md5::of(id);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = &mut *known;
        known.expire(self.timeout, now);
        known.uses += 1;
        let used = (now, known.uses);
        match known.by_id.get_mut(&id) {
            Some(session) => {
                known.by_use.remove(&session.used);
                session.used = used;
                if *session.sid != *sid {
                    session.sid = sid.into();
                }
            }
            None if create => {
                while known.by_id.len() >= self.most.max(1) && known.forget_oldest() {}
                known.by_id.insert(id, Session { sid: sid.into(), used });
            }
            None => return,
        }
        known.by_use.insert(used, id);
    }
}

impl Known {
    fn expire(&mut self, timeout: u64, now: u64) {
        while self.by_use.first_key_value().is_some_and(|((last, _), _)| last.saturating_add(timeout) <= now)
        {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let oldest = self.by_use.pop_first();
        oldest.is_some_and(|(_, id)| self.by_id.remove(&id).is_some())
    }
}

/// A balancer that first asks where the request belongs.
struct Sticking {
    lookup: Arc<[Template]>,
    kind: Arc<Keeping>,
    inner: Arc<dyn Balance>,
    peers: Arc<RoundRobin>,
}

enum Keeping {
    Route,
    Cookie(SetCookie),
    Learn { create: Vec<Template>, sessions: Arc<Sessions> },
}

/// The cookie as it is set.
struct SetCookie {
    spec: Cookie,
    domain: Option<Template>,
    samesite: Option<Template>,
}

/// The first value that is not empty.
fn first(of: &[Template], x: &Exchange) -> Option<Vec<u8>> {
    of.iter().map(|template| template.value(x)).find(|value| !value.is_empty())
}

/// Of the wall clock, since sessions are carried from thread to thread.
fn now(x: &Exchange) -> u64 {
    x.reactor.clock().unix_ms()
}

impl Balance for Sticking {
    fn pick(&self, x: &mut Exchange, tried: &mut Tried, time: u64) -> Option<Picked> {
        if tried.sid().is_none() {
            let id = first(&self.lookup, x);
            tried.more_mut().sid = match &*self.kind {
                Keeping::Learn { sessions, .. } => id.and_then(|id| sessions.find(&id, now(x))),
                Keeping::Route | Keeping::Cookie(_) => id.map(Vec::into_boxed_slice),
            };
        }
        let picked = self.inner.pick(x, tried, time)?;
        if let Keeping::Cookie(cookie) = &*self.kind {
            let value = cookie.value(x, &self.peers.peers()[picked.index].sid);
            // Of several attempts the last one's counts.
            x.answer_headers.remove(b"Set-Cookie");
            x.answer_headers.push(b"Set-Cookie", &value);
        }
        Some(picked)
    }

    fn answered(&self, x: &Exchange, tried: &Tried, index: usize) {
        if let Keeping::Learn { create, sessions } = &*self.kind {
            let sid = &self.peers.peers()[index].sid;
            match (first(create, x), first(&self.lookup, x)) {
                (Some(id), _) => sessions.keep(&id, sid, true, now(x)),
                (None, Some(id)) => sessions.keep(&id, sid, false, now(x)),
                (None, None) => {}
            }
        }
        self.inner.answered(x, tried, index);
    }
}

impl SetCookie {
    fn value(&self, x: &Exchange, sid: &[u8]) -> Vec<u8> {
        let spec = &self.spec;
        let mut out = [&spec.name, &b"="[..], sid].concat();
        match spec.expires {
            Some(Expires::Max) => {
                out.extend_from_slice(b"; expires=Thu, 31-Dec-37 23:55:55 GMT; max-age=315360000");
            }
            Some(Expires::In(seconds)) => {
                let at = x.reactor.clock().unix_secs().saturating_add(seconds);
                out.extend_from_slice(b"; expires=");
                out.extend_from_slice(date::cookie(i64::try_from(at).unwrap_or(i64::MAX)).as_ref());
                out.extend_from_slice(format!("; max-age={seconds}").as_bytes());
            }
            None => {}
        }
        let mut part = |name: &[u8], value: &[u8]| {
            if !value.is_empty() {
                out.extend_from_slice(name);
                out.extend_from_slice(value);
            }
        };
        if let Some(domain) = &self.domain {
            part(b"; domain=", &domain.value(x));
        }
        if spec.httponly {
            part(b"; ", b"httponly");
        }
        if spec.secure {
            part(b"; ", b"secure");
        }
        if let Some(samesite) = &self.samesite {
            let value = samesite.value(x);
            let valid = value.is_empty() || is_samesite(&value);
            part(b"; samesite=", if valid { &value } else { b"strict" });
        }
        if let Some(path) = &spec.path {
            part(b"; path=", path);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions(most: usize, timeout: u64) -> Sessions {
        Sessions { upstream: "u".into(), most, timeout, known: Arc::default() }
    }

    #[test]
    fn sessions_last_as_long_as_they_are_used() {
        let sessions = sessions(9, 100);
        sessions.keep(b"id", b"a", false, 0);
        assert_eq!(sessions.find(b"id", 0), None);
        sessions.keep(b"id", b"a", true, 0);
        sessions.keep(b"id", b"b", false, 90);
        assert_eq!(sessions.find(b"id", 189).as_deref(), Some(&b"b"[..]));
        assert_eq!(sessions.find(b"id", 190), None);
        assert!(sessions.known.lock().unwrap().by_use.is_empty());
    }

    #[test]
    fn the_oldest_go_where_there_is_no_room() {
        let sessions = sessions(2, 1000);
        for (at, id) in [b"1", b"2", b"1", b"3"].into_iter().enumerate() {
            sessions.keep(id, b"a", true, at as u64);
        }
        let found = [b"1", b"2", b"3"].map(|id| sessions.find(id, 9).is_some());
        assert_eq!(found, [true, false, true]);
        let known = sessions.known.lock().unwrap();
        assert_eq!((known.by_id.len(), known.by_use.len()), (2, 2));
    }
}

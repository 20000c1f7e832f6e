//! What a cache has to do with an exchange: whether an answer is there already, may be used, and is kept for others.

mod judge;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::task::spawn_blocking;
use weir_ir::value;
use weir_syntax::Level;

use super::exchange::{Protocol, Settings, next};
use super::spool::{Place as Where, Spool};
use super::store::{Shelf, Store};
use crate::cache::{self, Header, Hold, Key, Known as KnownKey, Locked, Opened, Search, Unusable, Zone};
use crate::contract::Flow;
use crate::disk::Caller;
use crate::http::response::FilePart;
use crate::http::{Body, Exchange, Template};
use crate::http1::response::{Head, Parsed};
use crate::http1::{Known, Method};
use crate::md5::Md5;
use judge::{Judged, judge};

/// Milliseconds that are waited for an answer which only has to take its place, or for another request that looks for one.
const SETTLED_IN: u64 = 5_000;

/// `…_cache` and its like at one location. Times are milliseconds unless they say otherwise.
pub struct Caching {
    /// The protocol's name, for messages.
    pub module: &'static str,
    pub zone: Place,
    /// What answers are known by, where the protocol's own key is not.
    pub key: Option<Template>,
    /// Seconds by status; status 0 is any.
    pub valid: Box<[(u16, u64)]>,
    pub min_uses: u64,
    pub post: bool,
    pub bypass: Box<[Template]>,
    pub no_cache: Box<[Template]>,
    /// Requests of which any holds ask for nothing, but for an answer to be removed.
    pub purge: Box<[Template]>,
    /// Bits of [`next`].
    pub use_stale: u32,
    pub background_update: bool,
    pub revalidate: bool,
    pub lock: bool,
    pub lock_age: u64,
    pub lock_timeout: u64,
    pub convert_head: bool,
    pub max_range_offset: Option<u64>,
}

/// Which cache.
pub enum Place {
    Zone(Arc<Zone>),
    /// One of these, by name.
    Computed(Template, Box<[Arc<Zone>]>),
}

/// `$upstream_cache_status`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Miss,
    Bypass,
    Expired,
    Stale,
    Updating,
    Revalidated,
    Hit,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Self::Miss => "MISS",
            Self::Bypass => "BYPASS",
            Self::Expired => "EXPIRED",
            Self::Stale => "STALE",
            Self::Updating => "UPDATING",
            Self::Revalidated => "REVALIDATED",
            Self::Hit => "HIT",
        }
    }
}

/// What a request has to do with its cache.
pub struct Cached {
    rules: Arc<Caching>,
    pub(super) status: Option<Status>,
    /// The answer may be kept, as far as is known.
    cacheable: bool,
    /// The answer comes out of the cache.
    pub(super) cached: bool,
    zone: Arc<Zone>,
    hold: Option<Hold>,
    key: Vec<u8>,
    crc32: u32,
    /// Of the key alone; answers that vary have others.
    main: Key,
    /// The answer's file, where there is one.
    copy: Option<Copied>,
    judged: Judged,
}

/// A file of the cache.
struct Copied {
    opened: Arc<Opened>,
    /// That of the file, or of what is fetched in place of it.
    header: Header,
    path: Arc<str>,
    stale_error: bool,
}

impl Copied {
    /// The answer's head.
    fn head(&self) -> &[u8] {
        let Opened { header, start, .. } = &*self.opened;
        &start[usize::from(header.head_start)..usize::from(header.body_start)]
    }

    fn body(&self) -> Body {
        let Opened { file, length, header, start, .. } = &*self.opened;
        let offset = u64::from(header.body_start);
        if start.len() as u64 == *length {
            return Body::Bytes(start[usize::from(header.body_start)..].to_vec().into());
        }
        Body::File(FilePart { file: Arc::clone(file), offset, length: length - offset })
    }
}

/// What was found out before an upstream is asked.
enum Found {
    /// An answer that is fresh.
    Fresh,
    /// One that is not; whether another request is about to renew it, and whether it may be used meanwhile.
    Expired {
        updating: bool,
        usable: bool,
    },
    Nothing,
    /// Nothing, and nothing is to be kept.
    Scarce,
    Error(u16),
    Failed,
}

fn holds(predicates: &[Template], x: &Exchange) -> bool {
    predicates.iter().any(|predicate| !matches!(&*predicate.value(x), b"" | b"0"))
}

impl Caching {
    fn takes(&self, method: Method) -> bool {
        matches!(method, Method::Get | Method::Head) || self.post && method == Method::Post
    }

    /// The cache of a request; `None` where it has none.
    fn zone(&self, x: &Exchange) -> Result<Option<Arc<Zone>>, u16> {
        let (name, zones) = match &self.zone {
            Place::Zone(zone) => return Ok(Some(Arc::clone(zone))),
            Place::Computed(name, zones) => (name.value(x), zones),
        };
        if matches!(&*name, b"" | b"off") {
            return Ok(None);
        }
        let found = zones.iter().find(|zone| zone.spec.name.as_bytes() == &*name);
        if found.is_none() {
            let name = String::from_utf8_lossy(&name);
            x.log(Level::Error, format_args!("cache \"{name}\" not found"));
            return Err(500);
        }
        Ok(found.cloned())
    }

    fn valid(&self, status: u16) -> Option<u64> {
        let found = self.valid.iter().find(|(code, _)| *code == 0 || *code == status);
        found.map(|(_, seconds)| *seconds).filter(|seconds| *seconds > 0)
    }

    /// Whether a request for a part of the answer is worth fetching all of it.
    fn takes_range(&self, x: &Exchange) -> bool {
        let (Some(most), Some(range)) = (self.max_range_offset, x.header(Known::Range)) else { return true };
        if most == 0 {
            return false;
        }
        let Some((unit, rest)) = range.split_at_checked(6).filter(|(_, rest)| !rest.is_empty()) else {
            return true;
        };
        if !unit.eq_ignore_ascii_case(b"bytes=") {
            return true;
        }
        let rest = rest.trim_ascii_start();
        if rest.starts_with(b"-") {
            return false;
        }
        let digits = rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
        value::number(&rest[..digits]).is_none_or(|offset| offset < most)
    }
}

impl Exchange {
    /// Whether what the upstream answers may be kept for others, so that it is to be asked for all of it.
    pub fn is_cacheable(&self) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.cacheable)
    }

    /// Whether the upstream is asked for more than a head where the client asks for one, for the cache.
    pub fn converts_head(&self) -> bool {
        self.method == Method::Head && self.cache.as_ref().is_some_and(|cache| cache.rules.convert_head)
    }

    /// Whether the answer comes out of the cache.
    pub fn is_cached(&self) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.cached)
    }

    /// The copy to be renewed, where the upstream may say that it is still good.
    fn revalidated(&self) -> Option<&Header> {
        let cache = self.cache.as_ref()?;
        let asks = cache.rules.revalidate && cache.status == Some(Status::Expired);
        cache.copy.as_ref().filter(|_| asks).map(|copy| &copy.header)
    }

    /// `$upstream_cache_last_modified`
    pub fn cache_last_modified(&self) -> Option<i64> {
        self.revalidated().map(|header| header.last_modified).filter(|time| *time != -1)
    }

    /// `$upstream_cache_etag`
    pub fn cache_etag(&self) -> Option<&[u8]> {
        self.revalidated().map(|header| &*header.etag).filter(|etag| !etag.is_empty())
    }

    fn now(&self) -> i64 {
        self.reactor.clock().unix_secs() as i64
    }
}

/// Looks for the answer to a request in its cache. `None`: the upstream is to be asked.
pub(super) async fn look(
    x: &mut Exchange,
    protocol: &dyn Protocol,
    scheme: &'static str,
    rules: &Arc<Caching>,
) -> Option<Flow> {
    let purges = holds(&rules.purge, x);
    if !rules.takes(x.method) && !purges {
        return None;
    }
    let zone = match rules.zone(x) {
        Ok(zone) => zone?,
        Err(status) => return Some(Flow::Answer(status)),
    };
    let mut key = Vec::new();
    match &rules.key {
        Some(template) => template.append(x, &mut key),
        None => protocol.cache_key(x, scheme, &mut key),
    }
    if purges {
        return Some(purge(x, zone, key).await);
    }
    let needs = cache::head_start(key.len()) + 256;
    let size = protocol.settings().buffer_size;
    if needs > size {
        let (module, least) = (rules.module, needs.next_multiple_of(1024));
        x.log(
            Level::Error,
            format_args!(
                "{module}_buffer_size {size} is not enough for cache key, it should be increased to at least {least}"
            ),
        );
        return None;
    }
    let mut cache = Box::new(Cached {
        rules: Arc::clone(rules),
        status: Some(Status::Bypass),
        cacheable: true,
        cached: false,
        zone,
        hold: None,
        crc32: crc32fast::hash(&key),
        main: Md5::of(&key),
        key,
        copy: None,
        judged: Judged::default(),
    });
    if holds(&rules.bypass, x) {
        x.cache = Some(cache);
        return None;
    }
    cache.status = Some(Status::Miss);
    let found = cache.find(x).await;
    let background = x.is_background();
    let (status, usable) = match found {
        Found::Fresh => (Status::Hit, true),
        Found::Expired { updating: true, usable } if usable && !background => (Status::Updating, true),
        Found::Expired { updating: false, usable } if usable && !background && rules.background_update => {
            (Status::Stale, true)
        }
        Found::Expired { .. } => (Status::Expired, false),
        Found::Nothing => (Status::Miss, false),
        Found::Scarce => {
            cache.cacheable = false;
            (Status::Miss, false)
        }
        Found::Error(code) => {
            cache.status = Some(Status::Hit);
            x.cache = Some(cache);
            return Some(Flow::Answer(code));
        }
        Found::Failed => return Some(Flow::Answer(500)),
    };
    cache.status = Some(status);
    x.cache = Some(cache);
    if usable {
        if status == Status::Stale {
            renew(x);
        }
        if let Some(flow) = answer(x, protocol) {
            return Some(flow);
        }
        if let Some(cache) = &mut x.cache {
            cache.status = Some(Status::Miss);
        }
    }
    if !rules.takes_range(x)
        && let Some(cache) = &mut x.cache
    {
        cache.cacheable = false;
    }
    None
}

/// Removes the answer of a key, or all whose keys begin as one that ends in an asterisk.
async fn purge(x: &Exchange, zone: Arc<Zone>, key: Vec<u8>) -> Flow {
    let now = x.now();
    if let Some(start) = key.strip_suffix(b"*") {
        zone.purge_all(start, now);
        return Flow::Answer(204);
    }
    match spawn_blocking(move || zone.purge(&key, now)).await {
        Ok(true) => Flow::Answer(204),
        Ok(false) => Flow::Answer(404),
        Err(_) => Flow::Answer(500),
    }
}

/// Lets a request of its own fetch the answer anew, beside this one.
fn renew(x: &mut Exchange) {
    let Ok(mut part) = x.piece() else { return };
    part.set_background();
    // Others see it being renewed for as long as that takes.
    if let Some(hold) = x.cache.as_mut().and_then(|cache| cache.hold.take()) {
        part.guards.push(Box::new(hold));
    }
    x.spawn(part);
}

impl Cached {
    async fn find(&mut self, x: &Exchange) -> Found {
        let (mut waited_until, mut settled_by) = (None, None);
        let min_uses = self.rules.min_uses;
        // Without room in the index there is nothing to be found and nothing to be kept, but an upstream to be asked.
        let Some((mut hold, mut known)) = self.zone.hold(self.main, min_uses, x.now()) else {
            return Found::Scarce;
        };
        let mut timed_out = false;
        let mut secondary = false;
        loop {
            if known == KnownKey::Unsettled {
                let now = x.reactor.clock().unix_ms();
                let until = *settled_by.get_or_insert(now + SETTLED_IN);
                if wait(x, &hold, until, |hold, _| hold.is_unsettled().then_some(until)).await {
                    known = hold.look(x.now());
                    continue;
                }
            }
            let may_exist = match known {
                KnownKey::Scarce => return self.held(hold, Found::Scarce),
                KnownKey::Error(status) => return self.held(hold, Found::Error(status)),
                KnownKey::Worth { exists: true } | KnownKey::Unsettled => true,
                KnownKey::Worth { exists: false } | KnownKey::New => match hold.search() {
                    Search::Due => true,
                    Search::Begun => {
                        known = KnownKey::Unsettled;
                        continue;
                    }
                    Search::Over => false,
                },
            };
            let mut read = None;
            if may_exist {
                let path: Arc<str> = cache::path(&self.zone.spec.path, &hold.key).into();
                let opened = match known {
                    // One that is known to be there is mostly at hand, or open.
                    KnownKey::Worth { exists: true } => {
                        let kept = hold.kept.clone();
                        open(&self.zone, &hold.key, &path, &self.key, self.crc32, Caller::Reactor, kept)
                    }
                    _ => Err(Unusable::Waits),
                };
                let opened = match opened {
                    Err(Unusable::Waits) => {
                        let (zone, id, path) = (Arc::clone(&self.zone), hold.key, Arc::clone(&path));
                        let (key, crc32) = (self.key.clone(), self.crc32);
                        let open = move || open(&zone, &id, &path, &key, crc32, Caller::Pool, None);
                        spawn_blocking(open).await.unwrap_or(Err(Unusable::Waits))
                    }
                    opened => opened,
                };
                match opened {
                    Ok(opened) => read = Some((opened, path)),
                    Err(Unusable::Absent) => {}
                    Err(Unusable::Failed(error)) => {
                        x.log_error(Level::Crit, Some(&error), format_args!("open() \"{path}\" failed"));
                        return Found::Failed;
                    }
                    Err(Unusable::Foreign(reason)) => {
                        // Another one will take its place.
                        x.log(Level::Crit, format_args!("cache file \"{path}\" {reason}"));
                    }
                    // The thread that was to wait is gone.
                    Err(Unusable::Waits) => return Found::Failed,
                }
            }
            hold.searched(read.as_ref().map(|(opened, _)| &**opened));
            if let Some((opened, path)) = read {
                if !opened.header.vary.is_empty() {
                    let variant = variant(x, &self.main, &opened.header.vary);
                    if variant != opened.header.variant {
                        if secondary {
                            x.log(Level::Crit, format_args!("cache file \"{path}\" has incorrect vary hash"));
                            return self.held(hold, Found::Nothing);
                        }
                        secondary = true;
                        let Some(of_kind) = hold.of_kind(variant, x.now()) else {
                            return Found::Scarce;
                        };
                        (hold, known) = of_kind;
                        continue;
                    }
                }
                hold.found(&opened);
                let now = x.now();
                let until = |seconds: i64| opened.header.valid.saturating_add(seconds) >= now;
                let fresh = opened.header.valid >= now;
                let usable = self.rules.use_stale & next::UPDATING != 0 || until(opened.header.updating);
                let (stale_error, header) = (until(opened.header.error), opened.header.clone());
                self.copy = Some(Copied { opened, header, path, stale_error });
                if fresh {
                    return self.held(hold, Found::Fresh);
                }
                let updating = !hold.update();
                return self.held(hold, Found::Expired { updating, usable });
            }
            if matches!(known, KnownKey::New) && min_uses > 1 {
                return self.held(hold, Found::Scarce);
            }
            if !self.rules.lock {
                return self.held(hold, Found::Nothing);
            }
            let now = x.reactor.clock().unix_ms();
            let looked = matches!(known, KnownKey::Worth { exists: true } | KnownKey::Unsettled);
            match hold.lock(now, self.rules.lock_age, looked) {
                Locked::Mine => return self.held(hold, Found::Nothing),
                Locked::Until(_) => {}
                Locked::Stored => {
                    known = hold.look(x.now());
                    continue;
                }
            }
            if self.rules.lock_timeout == 0 || timed_out {
                return self.held(hold, Found::Scarce);
            }
            let until = *waited_until.get_or_insert(now + self.rules.lock_timeout);
            timed_out = !wait(x, &hold, until, Hold::locked).await;
            if timed_out {
                x.log(Level::Info, "cache lock timeout");
            }
            known = hold.look(x.now());
        }
    }

    fn held(&mut self, hold: Hold, found: Found) -> Found {
        self.hold = Some(hold);
        found
    }
}

/// Opens the file of a key, unless one that was kept open still serves or the key was purged meanwhile.
fn open(
    zone: &Zone,
    id: &Key,
    path: &str,
    key: &[u8],
    crc32: u32,
    caller: Caller,
    kept: Option<Arc<Opened>>,
) -> Result<Arc<Opened>, Unusable> {
    let opened = match kept.filter(|kept| kept.is_still(key, crc32)) {
        Some(kept) => kept,
        None => Arc::new(cache::open(path, key, crc32, caller)?),
    };
    if zone.is_gone(id, key, opened.header.date) { Err(Unusable::Absent) } else { Ok(opened) }
}

/// Waits until nobody else is at the key in this way; false where that takes too long.
async fn wait(x: &Exchange, hold: &Hold, until: u64, busy: impl Fn(&Hold, u64) -> Option<u64>) -> bool {
    loop {
        let mut released = pin!(hold.released());
        released.as_mut().enable();
        let now = x.reactor.clock().unix_ms();
        let Some(busy) = busy(hold, now) else { return true };
        if now >= until {
            return false;
        }
        let mut sleep = pin!(x.reactor.timers().sleep(busy.min(until) - now));
        poll_fn(|cx| {
            if released.as_mut().poll(cx).is_ready() || sleep.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }
}

/// What of a request an answer varies by, as a key.
fn variant(x: &Exchange, main: &Key, vary: &[u8]) -> Key {
    let mut digest = Md5::default().with(main);
    let separates = |byte: &u8| matches!(byte, b' ' | b',');
    for name in vary.split(separates).filter(|name| !name.is_empty()) {
        let name = name.to_ascii_lowercase();
        digest.add(&name);
        digest.add(b":");
        let in_lists = matches!(&*name, b"accept-charset" | b"accept-encoding" | b"accept-language");
        let mut multiple = false;
        for field in x.head.fields() {
            if !x.head.get(field.name).eq_ignore_ascii_case(&name) {
                continue;
            }
            let value = x.head.get(field.value);
            let words = value.split(|byte| in_lists && separates(byte));
            for word in words.filter(|word| !in_lists || !word.is_empty()) {
                if multiple {
                    digest.add(b",");
                }
                digest.add(word);
                multiple = true;
            }
        }
        digest.add(b"\r\n");
    }
    digest.finish()
}

/// Answers with the copy; `None` where that is none.
fn answer(x: &mut Exchange, protocol: &dyn Protocol) -> Option<Flow> {
    let copy = x.cache.as_ref()?.copy.as_ref()?;
    let mut head = x.reactor.take_head();
    let parsed = head.parse(copy.head(), copy.head().len().max(1));
    let length = copy.opened.length - u64::from(copy.opened.header.body_start);
    // Without `…_cache_convert_head` a head alone may be kept; who asks for the body then finds it missing.
    let missing = length == 0 && head.content_length().is_some_and(|told| told > 0);
    let whole = missing || head.content_length().is_none_or(|told| told == length);
    if parsed != Ok(Parsed::Complete(copy.head().len())) || !whole {
        x.log(Level::Crit, format_args!("cache file \"{}\" contains invalid header", copy.path));
        x.reactor.put_head(head);
        return None;
    }
    for warning in head.warnings() {
        x.log(Level::Warn, String::from_utf8_lossy(&warning));
    }
    let body = copy.body();
    if let Some(cache) = &mut x.cache {
        cache.cached = true;
        // A copy that is still good is renewed first.
        if cache.status != Some(Status::Revalidated) {
            cache.hold = None;
        }
    }
    x.keep_upstream_headers(&head);
    let flow = match super::exchange::redirect(x, protocol, &head) {
        Some(flow) => flow,
        None => {
            let ignored = protocol.settings().ignore_headers;
            super::exchange::obey_limit_rate(x, &head, ignored);
            let mut response = protocol.response(x, &head);
            response.body = body;
            response.close |= missing && x.method != Method::Head;
            Flow::Respond(response)
        }
    };
    x.reactor.put_head(head);
    Some(flow)
}

/// Answers with the copy where the upstream failed in this way.
pub(super) fn stale(x: &mut Exchange, protocol: &dyn Protocol, kind: u32, errors: bool) -> Option<Flow> {
    let cache = x.cache.as_mut()?;
    let copy = cache.copy.as_ref()?;
    let usable = cache.rules.use_stale & kind != 0 || errors && copy.stale_error;
    if cache.status != Some(Status::Expired) || !usable {
        return None;
    }
    cache.status = Some(Status::Stale);
    Some(answer(x, protocol).unwrap_or(Flow::Answer(500)))
}

/// The upstream says that the copy is still good.
pub(super) fn not_modified(x: &mut Exchange, protocol: &dyn Protocol, head: &Head) -> Option<Flow> {
    let now = x.now();
    let ignored = protocol.settings().ignore_headers;
    let cache = x.cache.as_mut()?;
    if cache.status != Some(Status::Expired) || !cache.rules.revalidate || cache.copy.is_none() {
        return None;
    }
    cache.status = Some(Status::Revalidated);
    let mut judged = judge(head, ignored, now);
    let Some(flow) = answer(x, protocol) else { return Some(Flow::Answer(500)) };
    let cache = x.cache.as_mut()?;
    let (copy, mut hold) = (cache.copy.as_ref()?, cache.hold.take());
    if judged.valid == 0 {
        let mut own = x.reactor.take_head();
        if own.parse(copy.head(), copy.head().len().max(1)).is_ok() {
            judged = judge(&own, ignored, now);
            if judged.valid == 0
                && let Some(seconds) = cache.rules.valid(own.status())
            {
                judged.valid = now.saturating_add_unsigned(seconds);
            }
        }
        x.reactor.put_head(own);
    }
    if judged.valid != 0 {
        let (updating, error) = (judged.updating, judged.error);
        let header = Header { valid: judged.valid, updating, error, date: now, ..copy.header.clone() };
        let (path, id, length) = (Arc::clone(&copy.path), copy.opened.id, copy.opened.length);
        let log = x.log_handle().clone();
        if let Some(hold) = &mut hold {
            hold.whole();
        }
        x.spawn_work(async move {
            let written = spawn_blocking({
                let path = Arc::clone(&path);
                move || cache::update(&path, id, length, &header)
            });
            if let Ok(Err(error)) = written.await {
                log.write_error(Level::Crit, &error, format_args!("updating \"{path}\" failed"));
            }
            drop(hold);
        });
    }
    Some(flow)
}

/// Judges what the upstream says of keeping its answer.
pub(super) fn judged(x: &mut Exchange, head: &Head, ignored: u32) {
    let now = x.now();
    let Some(cache) = &mut x.cache else { return };
    cache.judged = judge(head, ignored, now);
    cache.cacheable &= !cache.judged.forbidden;
}

/// The answer is replaced by the page of its status; for how long, the cache remembers.
pub(super) fn intercepted(x: &mut Exchange, status: u16) {
    let now = x.now();
    let Some(cache) = x.cache.as_mut().filter(|cache| cache.cacheable) else { return };
    let mut valid = cache.judged.valid;
    if valid == 0
        && let Some(seconds) = cache.rules.valid(status)
    {
        valid = now.saturating_add_unsigned(seconds);
    }
    if let Some(mut hold) = cache.hold.take()
        && valid != 0
    {
        hold.error = Some((status, valid));
    }
}

/// No answer is to be kept: the request came to its end in another way.
pub(super) fn over(x: &mut Exchange, flow: &Flow) {
    let now = x.now();
    let Some(cache) = &mut x.cache else { return };
    let Some(mut hold) = cache.hold.take() else { return };
    if let Flow::Answer(status @ (502 | 504)) = flow
        && cache.cacheable
        && !cache.cached
        && let Some(seconds) = cache.rules.valid(*status)
    {
        hold.error = Some((*status, now.saturating_add_unsigned(seconds)));
    }
}

/// Begins to keep an answer, where it is to be kept.
pub(super) fn keep(x: &mut Exchange, head: &Head, settings: &Settings) -> Option<Store> {
    let now = x.now();
    let mut cache = x.cache.take()?;
    let store = cache.keep(x, head, settings, now);
    if store.is_none() {
        cache.cacheable = false;
        cache.hold = None;
    }
    x.cache = Some(cache);
    store
}

impl Cached {
    fn keep(&mut self, x: &Exchange, head: &Head, settings: &Settings, now: i64) -> Option<Store> {
        if !self.cacheable || holds(&self.rules.no_cache, x) {
            return None;
        }
        if self.status == Some(Status::Bypass) {
            self.hold = self.zone.hold(self.main, 1, now).map(|(hold, _)| hold);
        }
        let mut hold = self.hold.take()?;
        if self.judged.valid == 0 {
            self.judged.valid = now.saturating_add_unsigned(self.rules.valid(head.status())?);
        }
        let has_validators = matches!(head.status(), 200 | 206);
        let last_modified = head.first(Known::LastModified).filter(|_| has_validators);
        let etag = head.first(Known::ETag).filter(|etag| has_validators && etag.len() <= cache::ROOM);
        let head_start = cache::head_start(self.key.len());
        let vary = std::mem::take(&mut self.judged.vary);
        let variant = if vary.is_empty() { Key::default() } else { variant(x, &self.main, &vary) };
        // Of several variants each has its own key, but for the first.
        if vary.is_empty() || variant != hold.key {
            hold = hold.into_main();
        }
        let header = Header {
            valid: self.judged.valid,
            updating: self.judged.updating,
            error: self.judged.error,
            last_modified: last_modified.and_then(crate::http1::date::parse_http).unwrap_or(-1),
            date: now,
            crc32: self.crc32,
            head_start: u16::try_from(head_start).ok()?,
            // What has no room in the layout is not kept.
            body_start: u16::try_from(head_start + head.raw().len()).ok()?,
            etag: etag.unwrap_or_default().to_vec(),
            vary,
            variant,
        };
        let start = header.write(&self.key, head.raw());
        if let Some(copy) = &mut self.copy {
            // Variables tell of the answer from now on.
            copy.header = header;
        }
        let path: Arc<str> = cache::path(&self.zone.spec.path, &hold.key).into();
        let buffers = &settings.buffers;
        let place = match self.zone.spec.use_temp_path {
            true => Where::Below(Arc::clone(&buffers.temp_path)),
            false => Where::Near(Arc::clone(&path)),
        };
        let spool = Spool::new(place, buffers.write_size, start);
        Some(Store::new(x, spool, Shelf::Cache { hold, path }))
    }
}

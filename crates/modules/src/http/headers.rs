//! `ngx_http_headers_filter_module`: fields that the configuration adds to responses, and their expiry.

use std::sync::Arc;

use weir_engine::contract::{Filter, Install};
use weir_engine::generation::Plan;
use weir_engine::http::response::Trailers as AddTrailers;
use weir_engine::http::{Exchange, Response, Template};
use weir_engine::http1::date;
use weir_engine::localtime::local;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge, value};
use weir_syntax::Diagnostic;

pub struct Headers;

type D = Directive<Headers>;

const SCOPES_IF: Contexts = Contexts::SCOPES.or(Contexts::LOCATION_IF);
const INHERIT: [(&str, Inherit); 3] = [("off", Inherit::Off), ("on", Inherit::On), ("merge", Inherit::Merge)];

impl Module for Headers {
    const NAME: &'static str = "http_headers_filter";
    type Main = ();
    type Scope = Added;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("expires", SCOPES_IF, Takes::ONE_TWO, |added, call| {
            added.expires.put_with(call, read_expires)
        }),
        D::scope("add_header", SCOPES_IF, Takes::TWO_THREE, |added, call| {
            added.headers.push(read_field(call)?);
            Ok(())
        }),
        D::scope("add_trailer", SCOPES_IF, Takes::TWO_THREE, |added, call| {
            added.trailers.push(read_field(call)?);
            Ok(())
        }),
        D::scope("add_header_inherit", SCOPES_IF, Takes::ONE, |added, call| {
            added.headers_inherit.one_of(call, &INHERIT)
        }),
        D::scope("add_trailer_inherit", SCOPES_IF, Takes::ONE, |added, call| {
            added.trailers_inherit.one_of(call, &INHERIT)
        }),
    ];
}

/// What becomes of the outer level's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inherit {
    Off,
    /// They hold where the inner level adds none.
    On,
    /// They follow those of the inner level.
    Merge,
}

/// When a response expires. Times are seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expiry {
    Off,
    Epoch,
    Max,
    /// After the present time.
    Access(i64),
    /// After the last modification.
    Modified(i64),
    /// At that time of the local day.
    Daily(i64),
}

#[derive(Clone, Debug)]
enum ExpiresSpec {
    Fixed(Expiry),
    Variable { modified: bool, value: weir_ir::Template },
}

#[derive(Clone, Debug)]
struct Field {
    name: Box<[u8]>,
    value: weir_ir::Template,
    always: bool,
}

/// What one level adds.
#[derive(Clone, Debug, Default)]
pub struct Added {
    expires: Setting<ExpiresSpec>,
    headers: Vec<Field>,
    trailers: Vec<Field>,
    headers_inherit: Setting<Inherit>,
    trailers_inherit: Setting<Inherit>,
}

impl Conf for Added {
    // `off` cuts a level off from the outer fields even where it adds none itself.
    const EVERY_LEVEL: bool = true;

    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.expires.inherit(&outer.expires);
        self.headers_inherit.inherit(&outer.headers_inherit);
        self.trailers_inherit.inherit(&outer.trailers_inherit);
        inherit_fields(&mut self.headers, &outer.headers, self.headers_inherit.or(Inherit::On));
        inherit_fields(&mut self.trailers, &outer.trailers, self.trailers_inherit.or(Inherit::On));
        Ok(())
    }
}

fn inherit_fields(own: &mut Vec<Field>, outer: &[Field], how: Inherit) {
    let takes = match how {
        Inherit::Off => false,
        Inherit::On => own.is_empty(),
        Inherit::Merge => true,
    };
    if takes {
        own.extend_from_slice(outer);
    }
}

fn read_field(call: &mut Call<'_>) -> Result<Field, Fault> {
    let value = call.template(1)?;
    let always = match call.arg(2) {
        _ if call.args().len() == 2 => false,
        b"always" => true,
        _ => return Err(call.invalid_parameter(2)),
    };
    Ok(Field { name: call.arg(0).into(), value, always })
}

fn read_expires(call: &mut Call<'_>) -> Result<ExpiresSpec, Fault> {
    let modified = call.args().len() == 2;
    if modified && call.arg(0) != b"modified" {
        return Err(call.under(call.refuse("invalid value"), 0));
    }
    let index = usize::from(modified);
    let value = call.template(index)?;
    match value.as_literal() {
        Some(text) => match parse_expiry(text, modified) {
            Ok(expiry) => Ok(ExpiresSpec::Fixed(expiry)),
            Err(message) => Err(call.under(call.refuse(message), index)),
        },
        None => Ok(ExpiresSpec::Variable { modified, value }),
    }
}

fn parse_expiry(text: &[u8], modified: bool) -> Result<Expiry, &'static str> {
    match text {
        b"epoch" if !modified => return Ok(Expiry::Epoch),
        b"max" if !modified => return Ok(Expiry::Max),
        b"off" if !modified => return Ok(Expiry::Off),
        [b'@', ..] if modified => return Err("daily time cannot be used with \"modified\" parameter"),
        _ => {}
    }
    let (sign, time) = match text {
        [sign @ (b'@' | b'+' | b'-'), time @ ..] => (*sign, time),
        time => (b'+', time),
    };
    let seconds = value::sec(time).and_then(|s| i64::try_from(s).ok()).ok_or("invalid value")?;
    match sign {
        b'@' if seconds > 24 * 60 * 60 => Err("daily time value must be less than 24 hours"),
        b'@' => Ok(Expiry::Daily(seconds)),
        sign => {
            let seconds = if sign == b'-' { -seconds } else { seconds };
            Ok(if modified { Expiry::Modified(seconds) } else { Expiry::Access(seconds) })
        }
    }
}

impl Install for Headers {
    fn install(added: &Added, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let expires = match added.expires.get() {
            None | Some(ExpiresSpec::Fixed(Expiry::Off)) => None,
            Some(ExpiresSpec::Fixed(expiry)) => Some(Expires::Fixed(*expiry)),
            Some(ExpiresSpec::Variable { modified, value }) => {
                Some(Expires::Variable { modified: *modified, value: plan.template(value) })
            }
        };
        let ready = |fields: &[Field]| -> Vec<ReadyField> {
            let field = |f: &Field| ReadyField {
                kind: Kind::of(&f.name),
                name: f.name.clone(),
                value: plan.template(&f.value),
                always: f.always,
            };
            fields.iter().map(field).collect()
        };
        let (headers, trailers) = (ready(&added.headers), ready(&added.trailers));
        if expires.is_none() && headers.is_empty() && trailers.is_empty() {
            return Ok(());
        }
        let safe: Arc<[ReadyField]> = trailers.into();
        let always: Arc<[ReadyField]> = safe.iter().filter(|f| f.always).cloned().collect();
        let trailers = [safe, always].map(|fields| (!fields.is_empty()).then(|| Arc::new(Trailers(fields))));
        plan.handlers.filters.push(Box::new(Adding { expires, headers, trailers }));
        Ok(())
    }
}

enum Expires {
    Fixed(Expiry),
    Variable { modified: bool, value: Template },
}

/// How a field is put among those that are there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Added to whatever stands there; nothing if empty.
    Add,
    /// Replaces the one that stands there; removes it if empty.
    Replace,
    /// The same, and it counts as the response's date.
    LastModified,
}

impl Kind {
    fn of(name: &[u8]) -> Self {
        if name.eq_ignore_ascii_case(b"Last-Modified") {
            Kind::LastModified
        } else if name.eq_ignore_ascii_case(b"ETag") {
            Kind::Replace
        } else {
            Kind::Add
        }
    }
}

#[derive(Clone)]
struct ReadyField {
    name: Box<[u8]>,
    value: Template,
    always: bool,
    kind: Kind,
}

struct Trailers(Arc<[ReadyField]>);

impl AddTrailers for Trailers {
    fn append(&self, x: &Exchange) {
        for field in &*self.0 {
            let value = field.value.value(x);
            if !value.is_empty() {
                x.add_trailer(&field.name, &value);
            }
        }
    }
}

struct Adding {
    expires: Option<Expires>,
    headers: Vec<ReadyField>,
    /// All of them, and those that any status has.
    trailers: [Option<Arc<Trailers>>; 2],
}

impl Filter for Adding {
    fn filter(&self, x: &mut Exchange, response: &mut Response) {
        if x.is_subrequest() {
            return;
        }
        let safe = matches!(response.status, 200 | 201 | 204 | 206 | 301 | 302 | 303 | 304 | 307 | 308);
        if let (Some(expires), true) = (&self.expires, safe) {
            expire(expires, x, response);
        }
        let mut scratch = Vec::new();
        for field in self.headers.iter().filter(|f| safe || f.always) {
            let value = match field.value.as_literal() {
                Some(text) => text,
                None => {
                    scratch.clear();
                    beside(x, response, |x| field.value.append(x, &mut scratch));
                    &scratch
                }
            };
            put(field, value, response);
        }
        if let Some(trailers) = &self.trailers[usize::from(!safe)] {
            let trailers: Arc<Trailers> = Arc::clone(trailers);
            response.trailers = Some(trailers);
        }
    }
}

/// Computes something that may ask for what stands in the response already (`$sent_http_…`).
fn beside<T>(x: &mut Exchange, response: &mut Response, compute: impl FnOnce(&Exchange) -> T) -> T {
    let before = x.response.replace(Box::new(std::mem::take(response)));
    let value = compute(x);
    if let Some(now) = std::mem::replace(&mut x.response, before) {
        *response = *now;
    }
    value
}

fn put(field: &ReadyField, value: &[u8], response: &mut Response) {
    match field.kind {
        Kind::Add if value.is_empty() => {}
        Kind::Add => response.headers.push(&field.name, value),
        Kind::Replace if value.is_empty() => response.headers.remove(&field.name),
        Kind::Replace => response.headers.set(&field.name, value),
        Kind::LastModified => {
            response.last_modified = date::parse_http(value);
            if value.is_empty() {
                response.headers.remove(&field.name);
            } else {
                response.headers.set(&field.name, value);
            }
        }
    }
}

/// Sets `Expires` and `Cache-Control` in place of what stands there.
fn expire(expires: &Expires, x: &mut Exchange, response: &mut Response) {
    let (expiry, fixed) = match expires {
        Expires::Fixed(expiry) => (*expiry, true),
        Expires::Variable { modified, value } => {
            match parse_expiry(&beside(x, response, |x| value.value(x)), *modified) {
                Ok(expiry) => (expiry, false),
                // A value that says nothing sets nothing.
                Err(_) => return,
            }
        }
    };
    let now = x.reactor.clock().unix_secs() as i64;
    let Some((at, cache_control)) = expiry.at(fixed, now, response.last_modified, next_local) else { return };
    response.headers.set(b"Expires", date::http(at).as_ref());
    response.headers.set(b"Cache-Control", &cache_control);
}

impl Expiry {
    /// The moment of expiry and the `Cache-Control` for it. `fixed`: the configuration says so itself, so that a time
    /// of the past is meant, however late the response was modified.
    fn at(
        self,
        fixed: bool,
        now: i64,
        last_modified: Option<i64>,
        next: impl Fn(i64, i64) -> i64,
    ) -> Option<(i64, Vec<u8>)> {
        let (at, max_age, seconds) = match self {
            Expiry::Off => return None,
            Expiry::Epoch => return Some((1, b"no-cache".to_vec())),
            Expiry::Max => return Some((2_145_916_555, b"max-age=315360000".to_vec())),
            Expiry::Access(0) | Expiry::Modified(0) => return Some((now, b"max-age=0".to_vec())),
            Expiry::Daily(seconds) => {
                let at = next(now, seconds);
                (at, at - now, seconds)
            }
            Expiry::Access(seconds) => (now.saturating_add(seconds), seconds, seconds),
            Expiry::Modified(seconds) => match last_modified {
                Some(time) => {
                    let at = time.saturating_add(seconds);
                    (at, at - now, seconds)
                }
                None => (now.saturating_add(seconds), seconds, seconds),
            },
        };
        if max_age < 0 || (fixed && seconds < 0) {
            return Some((at, b"no-cache".to_vec()));
        }
        Some((at, format!("max-age={max_age}").into_bytes()))
    }
}

/// The next moment after `now` at which the local day is that many seconds old by its clock.
fn next_local(now: i64, of_day: i64) -> i64 {
    let today = local(now);
    let passed = i64::from(today.hour) * 3600 + i64::from(today.minute) * 60 + i64::from(today.second);
    // Where clocks are put back or forward in between, the time by the clock is what counts.
    let corrected = |at: i64| at + today.offset - local(at).offset;
    let at = corrected(now - passed + of_day);
    if at > now { at } else { corrected(now - passed + of_day + 86_400) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Site, check_conf, header};

    #[test]
    fn messages() {
        for ok in [
            "expires 1h; add_header A $uri always; add_trailer B c;",
            "expires modified -5m;",
            "expires $uri;",
        ] {
            check_conf(ok, "");
        }
        for (conf, message) in [
            ("expires;", "invalid number of arguments in \"expires\" directive"),
            ("expires x;", "\"expires\" directive invalid value"),
            ("expires mod 1h;", "\"expires\" directive invalid value"),
            ("expires modified epoch;", "\"expires\" directive invalid value"),
            (
                "expires modified @1h;",
                "\"expires\" directive daily time cannot be used with \"modified\" parameter",
            ),
            ("expires @25h;", "\"expires\" directive daily time value must be less than 24 hours"),
            ("expires 1h; expires 1h;", "\"expires\" directive is duplicate"),
            ("add_header a b c;", "invalid parameter \"c\""),
            ("add_header_inherit x;", "invalid value \"x\""),
        ] {
            check_conf(conf, message);
        }
    }

    #[track_caller]
    fn check_expiry(text: &str, modified: bool, last_modified: Option<i64>, expected: Option<(i64, &str)>) {
        let expiry = parse_expiry(text.as_bytes(), modified).unwrap();
        let got = expiry.at(true, 10_000, last_modified, |now, of_day| now + of_day);
        let got = got.map(|(at, control)| (at, String::from_utf8(control).unwrap()));
        assert_eq!(got, expected.map(|(at, control)| (at, control.to_owned())), "{text}");
    }

    #[test]
    fn expiries() {
        check_expiry("off", false, None, None);
        check_expiry("epoch", false, None, Some((1, "no-cache")));
        check_expiry("max", false, None, Some((2_145_916_555, "max-age=315360000")));
        check_expiry("0", false, None, Some((10_000, "max-age=0")));
        check_expiry("1h", false, Some(5), Some((13_600, "max-age=3600")));
        check_expiry("+1m", false, None, Some((10_060, "max-age=60")));
        check_expiry("-1m", false, None, Some((9_940, "no-cache")));
        check_expiry("1h", true, Some(9_000), Some((12_600, "max-age=2600")));
        check_expiry("1m", true, Some(9_000), Some((9_060, "no-cache")));
        check_expiry("-1m", true, Some(20_000), Some((19_940, "no-cache")));
        check_expiry("1m", true, None, Some((10_060, "max-age=60")));
        check_expiry("@1m", false, None, Some((10_060, "max-age=60")));
    }

    #[test]
    fn the_next_time_of_day_is_within_a_day() {
        let now = 1_795_372_224;
        for of_day in [0, 1, 43_200, 86_399, 86_400] {
            let at = next_local(now, of_day);
            let clock = local(at);
            assert!(at > now && at - now <= 90_000);
            let seconds =
                i64::from(clock.hour) * 3600 + i64::from(clock.minute) * 60 + i64::from(clock.second);
            assert_eq!(seconds, of_day % 86_400);
        }
    }

    /// The fields of a response behind `Connection`, and what follows the head.
    #[track_caller]
    fn check(conf: &str, path: &str, expected: &str) {
        let site = Site::new(&format!("server {{ listen 80; {conf} }}"));
        let response = site.get(path, "");
        let (_, rest) = response.split_once("Connection: close\r\n").unwrap();
        assert_eq!(rest.replace("\r\n", "|"), expected, "{conf}");
    }

    #[test]
    fn headers() {
        let answer = |more: &str| format!("location / {{ {more} answer 200 text/plain ok; }}");
        check(&answer("add_header A b; add_header C $uri; add_header E $arg_none;"), "/x", "A: b|C: /x||ok");
        check(
            &answer("add_header Cache-Control a; add_header cache-control b;"),
            "/",
            "Cache-Control: a|cache-control: b||ok",
        );
        check(&answer("add_header ETag a; add_header ETag b;"), "/", "ETag: b||ok");
        check(
            &answer("add_header Cache-Control a; expires epoch;"),
            "/",
            "Expires: Thu, 01 Jan 1970 00:00:01 GMT|Cache-Control: no-cache|Cache-Control: a||ok",
        );
        check(&answer("add_header Last-Modified x;"), "/", "Last-Modified: x||ok");
        check("add_header A b; location / { answer 404 text/plain no; }", "/", "|no");
        check("add_header A b always; location / { answer 404 text/plain no; }", "/", "A: b||no");
        check(
            "add_header A a; add_header_inherit merge; location / { add_header B b; answer 200 text/plain ok; }",
            "/",
            "B: b|A: a||ok",
        );
        check("add_header A a; location / { add_header B b; answer 200 text/plain ok; }", "/", "B: b||ok");
        check("add_header A a; location / { add_header_inherit off; answer 200 text/plain ok; }", "/", "|ok");
    }

    #[test]
    fn an_empty_last_modified_takes_it_out() {
        let site = Site::new(
            "server { listen 80; location / { add_header Last-Modified ''; answer 200 a b; } location /x { answer 200 a b; } }",
        );
        assert_eq!(header(&site.get("/", ""), "Last-Modified"), None);
        assert_eq!(header(&site.get("/x", ""), "Last-Modified"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    }

    #[test]
    fn trailers() {
        let site = Site::new(
            "server { listen 80; location / { add_trailer A $uri; add_trailer B $arg_b; answer 200 text/plain ok; } }",
        );
        let response = site.get("/x", "");
        assert_eq!(header(&response, "Transfer-Encoding"), Some("chunked"));
        assert_eq!(header(&response, "Content-Length"), None);
        assert!(response.ends_with("\r\n\r\n2\r\nok\r\n0\r\nA: /x\r\n\r\n"), "{response}");
        let old = site.raw(b"GET / HTTP/1.0\r\n\r\n");
        assert_eq!(header(&old, "Content-Length"), Some("2"));
    }

    #[test]
    fn trailers_belong_to_one_request() {
        let site =
            Site::new("server { listen 80; location / { add_trailer A $uri; answer 200 text/plain ok; } }");
        let two = site.raw(
            b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        );
        assert_eq!(
            (two.matches("\r\nA: /1\r\n").count(), two.matches("\r\nA: /2\r\n").count()),
            (1, 1),
            "{two}"
        );
    }
}

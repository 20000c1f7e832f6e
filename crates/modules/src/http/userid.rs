//! `ngx_http_userid_filter_module`: a cookie by which a client is known again.

use std::cell::OnceCell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use weir_engine::contract::{Check, Filter, Flow, Install, Step, Variable};
use weir_engine::generation::Plan;
use weir_engine::http::template::Reference;
use weir_engine::http::{Exchange, Response, base64, base64_encode, variables};
use weir_engine::http1::{Known, date};
use weir_engine::io::Address;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge, VariableId, value};
use weir_syntax::{Diagnostic, Level};

pub struct UserId;

type D = Directive<UserId>;
const SCOPES: Contexts = Contexts::SCOPES;

impl Module for UserId {
    const NAME: &'static str = "http_userid_filter";
    type Main = ();
    type Scope = Cookie;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("userid", SCOPES, Takes::ONE, |cookie, call| {
            cookie.mode.one_of(
                call,
                &[("off", Mode::Off), ("log", Mode::Log), ("v1", Mode::V1), ("on", Mode::On)],
            )?;
            cookie.reset = Some(call.variable("uid_reset"));
            Ok(())
        }),
        D::scope("userid_service", SCOPES, Takes::ONE, |cookie, call| cookie.service.number(call)),
        D::scope("userid_name", SCOPES, Takes::ONE, |cookie, call| {
            cookie.name.put_with(call, |call| Ok(call.text(0).into()))
        }),
        D::scope("userid_domain", SCOPES, Takes::ONE, |cookie, call| {
            cookie.domain.put_with(call, |call| Ok(unless_none(call)))
        }),
        D::scope("userid_path", SCOPES, Takes::ONE, |cookie, call| {
            cookie.path.put_with(call, |call| Ok(call.arg(0).into()))
        }),
        D::scope("userid_expires", SCOPES, Takes::ONE, |cookie, call| cookie.expires.put_with(call, expires)),
        D::scope("userid_flags", SCOPES, Takes::ONE_TO_THREE, |cookie, call| {
            call.add_bits(&mut cookie.flags, &FLAGS)
        }),
        D::scope("userid_p3p", SCOPES, Takes::ONE, |cookie, call| {
            cookie.p3p.put_with(call, |call| Ok(unless_none(call)))
        }),
        D::scope("userid_mark", SCOPES, Takes::ONE, |cookie, call| cookie.mark.put_with(call, mark)),
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Off,
    /// Cookies are read for the log; none is set.
    Log,
    V1,
    On,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expires {
    Never,
    /// As late as a cookie's date of two digits can say.
    Max,
    /// Seconds from now.
    After(u64),
}

const SECURE: u32 = 1;
const HTTP_ONLY: u32 = 1 << 1;
/// What the three forms of it have in common, so that a second one is told to be a duplicate.
const SAME_SITE: u32 = 1 << 2;
const STRICT: u32 = 1 << 3;
const LAX: u32 = 1 << 4;
const NONE: u32 = 1 << 5;
const OFF: u32 = 1 << 6;
const FLAGS: [(&str, u32); 6] = [
    ("off", OFF),
    ("secure", SECURE),
    ("httponly", HTTP_ONLY),
    ("samesite=strict", SAME_SITE | STRICT),
    ("samesite=lax", SAME_SITE | LAX),
    ("samesite=none", SAME_SITE | NONE),
];

/// The cookie of one level.
#[derive(Clone, Debug, Default)]
pub struct Cookie {
    mode: Setting<Mode>,
    /// `$uid_reset`, where a level says something of the mode.
    reset: Option<VariableId>,
    service: Setting<u64>,
    name: Setting<Box<str>>,
    domain: Setting<Box<[u8]>>,
    path: Setting<Box<[u8]>>,
    expires: Setting<Expires>,
    flags: u32,
    p3p: Setting<Box<[u8]>>,
    /// The byte in place of the first `=` behind an identifier; `None` is `off`.
    mark: Setting<Option<u8>>,
}

impl Conf for Cookie {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.mode.inherit(&outer.mode);
        self.reset = self.reset.or(outer.reset);
        self.service.inherit(&outer.service);
        self.name.inherit(&outer.name);
        self.domain.inherit(&outer.domain);
        self.path.inherit(&outer.path);
        self.expires.inherit(&outer.expires);
        if self.flags == 0 {
            self.flags = outer.flags;
        }
        self.p3p.inherit(&outer.p3p);
        self.mark.inherit(&outer.mark);
        Ok(())
    }
}

fn unless_none(call: &Call<'_>) -> Box<[u8]> {
    if call.arg(0) == b"none" { Box::default() } else { call.arg(0).into() }
}

fn expires(call: &mut Call<'_>) -> Result<Expires, Fault> {
    match call.arg(0) {
        b"max" => Ok(Expires::Max),
        b"off" => Ok(Expires::Never),
        time => match value::sec(time) {
            Some(0) => Ok(Expires::Never),
            Some(seconds) => Ok(Expires::After(seconds)),
            None => Err(call.under(call.refuse("invalid value"), 0)),
        },
    }
}

fn mark(call: &mut Call<'_>) -> Result<Option<u8>, Fault> {
    match call.arg(0) {
        b"off" => Ok(None),
        [byte] if byte.is_ascii_alphanumeric() || *byte == b'=' => Ok(Some(*byte)),
        _ => Err(call.under(call.refuse("value must be \"off\" or a single letter, digit or \"=\""), 0)),
    }
}

impl Install for UserId {
    const VARIABLES: &'static [Variable] = &[
        Variable::new("uid_got", |x, out| {
            let ready = x.location().attached::<Ready>();
            ready.is_some_and(|ready| with_state(x, |state| ready.write_got(x, state, out)))
        }),
        Variable::new("uid_set", |x, out| {
            let ready = x.location().attached::<Ready>().filter(|ready| ready.mode != Mode::Log);
            ready.is_some_and(|ready| with_state(x, |state| ready.write_set(x, state, out)))
        }),
        Variable::new("uid_reset", |_, _| true).replaceable(),
    ];

    fn install(cookie: &Cookie, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let (mode, Some(reset)) = (cookie.mode.or(Mode::Off), cookie.reset) else { return Ok(()) };
        if mode == Mode::Off {
            return Ok(());
        }
        let mut attributes = Vec::new();
        if let Some(domain) = cookie.domain.get().filter(|domain| !domain.is_empty()) {
            attributes.extend_from_slice(b"; domain=");
            attributes.extend_from_slice(domain);
        }
        attributes.extend_from_slice(b"; path=");
        attributes.extend_from_slice(cookie.path.get().map_or(b"/", |path| path));
        for (bit, text) in [
            (SECURE, "; secure"),
            (HTTP_ONLY, "; httponly"),
            (STRICT, "; samesite=strict"),
            (LAX, "; samesite=lax"),
            (NONE, "; samesite=none"),
        ] {
            if cookie.flags & bit != 0 {
                attributes.extend_from_slice(text.as_bytes());
            }
        }
        plan.handlers.attach(Ready {
            mode,
            reset: plan.build.reference(reset),
            // Only 32 bits of it go into an identifier.
            service: cookie.service.get().map(|service| *service as u32),
            name: cookie.name.get().map_or_else(|| "uid".into(), Clone::clone),
            attributes: attributes.into(),
            expires: cookie.expires.or(Expires::Never),
            p3p: cookie.p3p.get().cloned().unwrap_or_default(),
            mark: cookie.mark.or(None),
        });
        // A variable cannot make the place where the request's identifiers are kept, and whatever asks comes later.
        plan.handlers.rewrite.insert(0, Box::new(UserId));
        if mode != Mode::Log {
            plan.handlers.filters.push(Box::new(UserId));
        }
        Ok(())
    }
}

/// The cookie of a level as requests use it.
struct Ready {
    mode: Mode,
    reset: Reference,
    service: Option<u32>,
    name: Box<str>,
    /// What follows the expiry.
    attributes: Box<[u8]>,
    expires: Expires,
    p3p: Box<[u8]>,
    mark: Option<u8>,
}

/// Four numbers in memory, as nginx writes them to the log; a cookie has their bytes.
type Uid = [u32; 4];

/// The identifiers of a request, once they are known.
#[derive(Default)]
struct State {
    got: OnceCell<Got>,
    set: OnceCell<Option<Set>>,
}

/// What the client sent.
#[derive(Default)]
struct Got {
    uid: Uid,
    cookie: Vec<u8>,
}

/// What the client is sent.
#[derive(Clone, Copy)]
struct Set {
    uid: Uid,
    /// It is the one that the client sent, only with another mark.
    marked: bool,
}

impl Check for UserId {
    fn check<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        x.extension_mut::<State>();
        Step::Now(Flow::Decline)
    }
}

fn with_state<T>(x: &Exchange, work: impl FnOnce(&State) -> T) -> T {
    match x.extension::<State>() {
        Some(state) => work(state),
        // Before any phase nothing can be kept.
        None => work(&State::default()),
    }
}

impl Ready {
    fn got<'s>(&self, x: &Exchange, state: &'s State) -> &'s Got {
        state.got.get_or_init(|| {
            let mut got = Got::default();
            if !variables::cookie(x, &self.name, &mut got.cookie) {
                return got;
            }
            let line = || String::from_utf8_lossy(x.header(Known::Cookie).unwrap_or_default()).into_owned();
            // Behind these stands a mark, or whatever somebody once sent.
            let Some(text) = got.cookie.get(..22) else {
                x.log(Level::Error, format_args!("client sent too short userid cookie \"{}\"", line()));
                return got;
            };
            match base64(text) {
                Some(bytes) => {
                    for (word, bytes) in got.uid.iter_mut().zip(bytes.chunks(4)) {
                        let mut whole = [0; 4];
                        whole[..bytes.len()].copy_from_slice(bytes);
                        *word = u32::from_ne_bytes(whole);
                    }
                }
                None => {
                    x.log(Level::Error, format_args!("client sent invalid userid cookie \"{}\"", line()));
                }
            }
            got
        })
    }

    fn set(&self, x: &Exchange, state: &State) -> Option<Set> {
        let got = self.got(x, state);
        *state.set.get_or_init(|| {
            if got.uid[3] == 0 || self.is_reset(x, &got.uid) {
                return Some(Set { uid: self.create(x), marked: false });
            }
            let mark = self.mark?;
            let has_mark = got.cookie.get(22..24) == Some(&[mark, b'=']);
            (!has_mark).then_some(Set { uid: got.uid, marked: true })
        })
    }

    fn is_reset(&self, x: &Exchange, uid: &Uid) -> bool {
        let mut reset = Vec::new();
        self.reset.append(x, &mut reset);
        if reset == b"log" {
            let mut text = Vec::new();
            self.write(uid, &mut text);
            let text = String::from_utf8_lossy(&text);
            x.log(Level::Notice, format_args!("userid cookie \"{text}\" was reset"));
        }
        !reset.is_empty() && reset != b"0"
    }

    /// A new identifier: the server, the time, the process and a counter.
    fn create(&self, x: &Exchange) -> Uid {
        static PROCESS: LazyLock<u32> = LazyLock::new(|| {
            let mut random = [0u8; 2];
            // The generator fails only where the system has no randomness at all; TLS would not start there.
            let _ = aws_lc_rs::rand::fill(&mut random);
            u32::from(u16::from_ne_bytes(random)) << 16 | std::process::id()
        });
        static COUNTER_V1: AtomicU32 = AtomicU32::new(1);
        static COUNTER: AtomicU32 = AtomicU32::new(0x0303_0302);
        let now = x.reactor.clock().unix_secs() as u32;
        if self.mode == Mode::V1 {
            let counter = COUNTER_V1.fetch_add(0x100, Ordering::Relaxed);
            return [self.service.unwrap_or(0), now, *PROCESS, counter];
        }
        let service = match (self.service, &x.connection.local) {
            (Some(service), _) => service.to_be(),
            (None, Address::Ip(ip)) => match ip.ip() {
                std::net::IpAddr::V4(ip) => u32::from_ne_bytes(ip.octets()),
                std::net::IpAddr::V6(ip) => {
                    let octets = ip.octets();
                    u32::from_ne_bytes([octets[12], octets[13], octets[14], octets[15]])
                }
            },
            (None, Address::Unix(_)) => 0,
        };
        let next = |n: u32| Some(n.wrapping_add(0x100).max(0x0303_0302));
        let counter = COUNTER.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_else(|n| n);
        [service, now.to_be(), PROCESS.to_be(), counter.to_be()]
    }

    fn write_got(&self, x: &Exchange, state: &State, out: &mut Vec<u8>) -> bool {
        let got = self.got(x, state);
        if got.uid[3] != 0 {
            self.write(&got.uid, out);
        }
        got.uid[3] != 0
    }

    fn write_set(&self, x: &Exchange, state: &State, out: &mut Vec<u8>) -> bool {
        let set = self.set(x, state);
        if let Some(set) = &set {
            self.write(&set.uid, out);
        }
        set.is_some()
    }

    fn write(&self, uid: &Uid, out: &mut Vec<u8>) {
        let [a, b, c, d] = uid;
        out.extend_from_slice(format!("{}={a:08X}{b:08X}{c:08X}{d:08X}", self.name).as_bytes());
    }

    /// The value of `Set-Cookie`.
    fn cookie(&self, set: &Set, got: &Got, now: i64) -> Vec<u8> {
        let mut out = [self.name.as_bytes(), b"="].concat();
        if set.marked {
            out.extend_from_slice(&got.cookie[..22]);
            out.extend_from_slice(b"==");
        } else {
            out.extend_from_slice(base64_encode(&set.uid.map(u32::to_ne_bytes).concat()).as_bytes());
        }
        if let Some(mark) = self.mark {
            let at = out.len() - 2;
            out[at] = mark;
        }
        match self.expires {
            Expires::Never => {}
            Expires::Max => out.extend_from_slice(b"; expires=Thu, 31-Dec-37 23:55:55 GMT"),
            Expires::After(seconds) => {
                out.extend_from_slice(b"; expires=");
                let at = now.saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX));
                out.extend_from_slice(date::cookie(at).as_ref());
            }
        }
        out.extend_from_slice(&self.attributes);
        out
    }
}

impl Filter for UserId {
    fn filter(&self, x: &mut Exchange, response: &mut Response) {
        if x.is_subrequest() {
            return;
        }
        // A request that no phase saw has no place yet.
        x.extension_mut::<State>();
        let Some(ready) = x.location().attached::<Ready>() else { return };
        with_state(x, |state| {
            let Some(set) = ready.set(x, state) else { return };
            let now = x.reactor.clock().unix_secs() as i64;
            response.headers.push(b"Set-Cookie", &ready.cookie(&set, ready.got(x, state), now));
            if !ready.p3p.is_empty() {
                response.headers.push(b"P3P", &ready.p3p);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use weir_engine::http::base64;

    use crate::testing::{Site, check_conf, header};

    #[test]
    fn messages() {
        check_conf("userid_flags secure x;", "invalid value \"x\"");
        check_conf("userid_flags secure; userid_flags secure;", "duplicate value \"secure\"");
        check_conf("userid_flags samesite=lax samesite=none;", "duplicate value \"samesite=none\"");
        check_conf(
            "userid_mark xx;",
            "\"userid_mark\" directive value must be \"off\" or a single letter, digit or \"=\"",
        );
        check_conf("userid_mark off; userid_mark a;", "\"userid_mark\" directive is duplicate");
        check_conf("userid_expires x;", "\"userid_expires\" directive invalid value");
        check_conf("userid_expires 1d; userid_expires off;", "\"userid_expires\" directive is duplicate");
        check_conf("userid x;", "invalid value \"x\"");
        check_conf("userid_service -5;", "\"userid_service\" directive invalid number");
        check_conf("userid on; userid off;", "\"userid\" directive is duplicate");
        check_conf("userid_p3p none; userid_p3p a;", "\"userid_p3p\" directive is duplicate");
        check_conf("map $args $uid_reset { default 0; }", "");
        check_conf("map $args $uid_got { default 0; }", "the duplicate \"uid_got\" variable");
    }

    const CONF: &str = "map $arg_reset $uid_reset { default 0; 1 1; log log; }
        add_header X-Got $uid_got; add_header X-Set $uid_set;
        server { userid on; location / { answer 200 text/plain ok; }
            location /log { userid log; answer 200 text/plain ok; }
            location /off { userid off; answer 200 text/plain ok; }
            location /mark { userid_mark t; answer 200 text/plain ok; }
            location /all { userid v1; userid_name id; userid_domain a.example; userid_path /p; userid_service 7;
                userid_flags secure httponly samesite=lax; userid_expires max; userid_p3p x=y;
                answer 200 text/plain ok; }
            location /time { userid_expires 100; answer 200 text/plain ok; }
        }";
    /// 7F000001, then three more words.
    const KNOWN: &str = "fwAAAWVhYmNkZWZnaGlqaw";

    #[test]
    fn a_new_client_is_given_an_identifier() {
        let site = Site::new(CONF);
        let answer = site.get("/", "");
        let cookie = header(&answer, "Set-Cookie").unwrap();
        let text = cookie.strip_prefix("uid=").and_then(|rest| rest.strip_suffix("; path=/")).unwrap();
        assert_eq!(text.len(), 24);
        let bytes = base64(text.as_bytes()).unwrap();
        assert_eq!(bytes[..4], [127, 0, 0, 1]);
        let words: String =
            bytes.chunks(4).map(|w| format!("{:08X}", u32::from_ne_bytes(w.try_into().unwrap()))).collect();
        assert_eq!(header(&answer, "X-Set"), Some(&*format!("uid={words}")), "the variable says the same");
        assert_eq!(header(&answer, "X-Got"), None);
        assert_ne!(header(&site.get("/", ""), "Set-Cookie"), Some(cookie), "another one gets another one");
        for path in ["/log", "/off"] {
            assert_eq!(header(&site.get(path, ""), "Set-Cookie"), None, "{path}");
        }
        assert!(header(&site.get("/mark", ""), "Set-Cookie").unwrap().ends_with("t=; path=/"));
    }

    #[test]
    fn attributes_in_order() {
        let site = Site::new(CONF);
        let answer = site.get("/all", "");
        let cookie = header(&answer, "Set-Cookie").unwrap();
        assert_eq!(
            &cookie[3 + 24..],
            "; expires=Thu, 31-Dec-37 23:55:55 GMT; domain=a.example; path=/p; secure; httponly; samesite=lax"
        );
        assert_eq!(header(&answer, "P3P"), Some("x=y"));
        assert!(header(&answer, "X-Set").unwrap().starts_with("id=00000007"));
        let answer = site.get("/time", "");
        let cookie = header(&answer, "Set-Cookie").unwrap();
        assert!(cookie[4 + 24..].starts_with("; expires=") && cookie.ends_with(" GMT; path=/"), "{cookie}");
    }

    #[track_caller]
    fn check(path: &str, cookie: &str, got: Option<&str>, set: Option<&str>, log: &[&str]) {
        let site = Site::new(CONF);
        let answer = site.get(path, &format!("Cookie: a=b; {cookie}\r\n"));
        assert_eq!(header(&answer, "X-Got"), got, "{path} {cookie}");
        let sent = header(&answer, "Set-Cookie").map(|sent| if set == Some("new") { "new" } else { sent });
        assert_eq!(sent, set, "{path} {cookie}");
        assert_eq!(site.log(), log);
    }

    #[test]
    fn a_known_client() {
        let uid = base64(KNOWN.as_bytes()).unwrap();
        let words: String =
            uid.chunks(4).map(|w| format!("{:08X}", u32::from_ne_bytes(w.try_into().unwrap()))).collect();
        let shown = format!("uid={words}");
        let got = Some(&*shown);
        check("/", &format!("uid={KNOWN}=="), got, None, &[]);
        check("/log", &format!("uid={KNOWN}=="), got, None, &[]);
        check("/off", &format!("uid={KNOWN}=="), None, None, &[]);
        check("/mark", &format!("uid={KNOWN}t="), got, None, &[]);
        let marked = format!("uid={KNOWN}t=; path=/");
        check("/mark", &format!("uid={KNOWN}=="), got, Some(&marked), &[]);
        check("/?reset=1", &format!("uid={KNOWN}=="), got, Some("new"), &[]);
        check(
            "/?reset=log",
            &format!("uid={KNOWN}=="),
            got,
            Some("new"),
            &[&format!("userid cookie \"{shown}\" was reset")],
        );
        check(
            "/",
            "uid=short",
            None,
            Some("new"),
            &["client sent too short userid cookie \"a=b; uid=short\""],
        );
        check(
            "/",
            "uid=!!!!!!!!!!!!!!!!!!!!!!!!",
            None,
            Some("new"),
            &["client sent invalid userid cookie \"a=b; uid=!!!!!!!!!!!!!!!!!!!!!!!!\""],
        );
    }
}

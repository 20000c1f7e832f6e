//! `websocket_origins`, weir's own: from which pages a WebSocket may be opened.
//!
//! A browser sends a site's cookies with a WebSocket whatever page opens it, and asks nobody first. All that tells a
//! backend where it came from is `Origin`, which few of them look at.

use weir_engine::contract::{Check, Flow, Install, Step};
use weir_engine::generation::Plan;
use weir_engine::http::Exchange;
use weir_engine::http1::{Known, validate_host};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge};
use weir_syntax::{Diagnostic, Level};

pub struct WebsocketOrigins;

type D = Directive<WebsocketOrigins>;

impl Module for WebsocketOrigins {
    const NAME: &'static str = "http_websocket_origins";
    type Main = ();
    type Scope = Settings;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[D::scope("websocket_origins", Contexts::SCOPES, Takes::ONE_MORE, Settings::add)];
}

/// What a level says of it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `None` is `off`.
    allowed: Setting<Option<Allowed>>,
}

impl Conf for Settings {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.allowed.inherit(&outer.allowed);
        Ok(())
    }
}

/// The origins of one level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Allowed {
    /// Clients that tell no origin, which no browser does.
    none: bool,
    /// The origin of the request itself.
    same: bool,
    exact: Vec<Origin>,
    /// The host is `.example.com` of `*.example.com`.
    below: Vec<Origin>,
}

/// A page's scheme, host and port, in lower case and with the port that the scheme implies.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: Box<[u8]>,
    host: Box<[u8]>,
    /// 0 where there is none and the scheme implies none.
    port: u16,
}

impl Origin {
    fn parse(text: &[u8]) -> Option<Self> {
        let (scheme, rest) = text.split_at(memchr::memmem::find(text, b"://")?);
        let rest = &rest[3..];
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        if !scheme.first()?.is_ascii_alphabetic() || !scheme.iter().all(is_name) {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        let host = validate_host(rest).ok()?;
        let port = if host.port == 0 { implied(&scheme) } else { host.port };
        Some(Self { scheme: scheme.into(), host: rest[..host.len].to_ascii_lowercase().into(), port })
    }

    fn is_below(&self, domain: &Self) -> bool {
        self.scheme == domain.scheme
            && self.port == domain.port
            && self.host.len() > domain.host.len()
            && self.host.ends_with(&domain.host)
    }

    /// Whether a page's host and port are those that the client asked; a port of 0 is none. Where TLS ends here, the page
    /// must have come over TLS as well; where it does not, it may have ended in front of us.
    fn is_of(&self, host: &[u8], port: u16, tls: bool) -> bool {
        let scheme_fits = match &*self.scheme {
            b"https" => true,
            b"http" => !tls,
            _ => false,
        };
        let port = if port == 0 { implied(&self.scheme) } else { port };
        scheme_fits && self.port == port && host.eq_ignore_ascii_case(&self.host)
    }
}

fn implied(scheme: &[u8]) -> u16 {
    match scheme {
        b"http" => 80,
        b"https" => 443,
        _ => 0,
    }
}

impl Settings {
    fn add(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        if call.args().len() == 1 && call.arg(0) == b"off" {
            return self.allowed.put(call, None);
        }
        let mut allowed = match self.allowed.get() {
            None => Allowed::default(),
            Some(Some(allowed)) => allowed.clone(),
            Some(None) => return Err(call.duplicate()),
        };
        for index in 0..call.args().len() {
            if !allowed.add(call.arg(index)).ok_or_else(|| call.fail_at(index, "invalid origin"))? {
                call.warn([b"duplicate value \"", call.arg(index), b"\""].concat());
            }
        }
        self.allowed.replace(Some(allowed));
        Ok(())
    }
}

impl Allowed {
    /// Adds what a word means; false where it is there already, nothing where the word means nothing.
    fn add(&mut self, word: &[u8]) -> Option<bool> {
        match word {
            b"none" => return Some(!std::mem::replace(&mut self.none, true)),
            b"same" => return Some(!std::mem::replace(&mut self.same, true)),
            _ => {}
        }
        let mut origin = Origin::parse(word)?;
        // The scheme is that of the page, not of the socket.
        if matches!(&*origin.scheme, b"ws" | b"wss") {
            return None;
        }
        let list = match &*origin.host {
            [b'*', rest @ ..] if rest.len() > 1 && rest[0] == b'.' => {
                origin.host = rest.into();
                &mut self.below
            }
            [b'.', ..] => return None,
            _ => &mut self.exact,
        };
        if origin.host.iter().any(|byte| matches!(byte, b'*' | b'$')) {
            return None;
        }
        let new = !list.contains(&origin);
        if new {
            list.push(origin);
        }
        Some(new)
    }

    /// Why a request must not open a WebSocket, if it must not.
    fn objection(&self, x: &Exchange) -> Option<String> {
        let mut told = x.head.all(Known::Origin);
        let Some(text) = told.next() else {
            return (!self.none).then(|| "there is no origin".into());
        };
        if told.next().is_some() {
            return Some("there is more than one origin".into());
        }
        let allowed = Origin::parse(text).is_some_and(|origin| {
            self.exact.contains(&origin)
                || self.below.iter().any(|domain| origin.is_below(domain))
                || (self.same && origin.is_of(x.head.host(), x.head.port(), x.connection.tls.is_some()))
        });
        (!allowed).then(|| format!("origin \"{}\" is not allowed", String::from_utf8_lossy(text)))
    }
}

impl Install for WebsocketOrigins {
    fn install(settings: &Settings, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if let Some(Some(allowed)) = settings.allowed.get() {
            // Not in the access phase, where `satisfy any` would let a known address or user open it from any page.
            plan.handlers.preaccess.push(Box::new(allowed.clone()));
        }
        Ok(())
    }
}

impl Check for Allowed {
    fn check<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        if x.is_subrequest() || !is_upgrade(x) {
            return Step::Now(Flow::Decline);
        }
        Step::Now(match self.objection(x) {
            None => Flow::Decline,
            Some(objection) => {
                x.log(
                    Level::Error,
                    format_args!("websocket forbidden by \"websocket_origins\": {objection}"),
                );
                Flow::Answer(403)
            }
        })
    }
}

/// Whether a request asks for a WebSocket. `Connection` is not looked at, since most configurations send their own to the
/// backend whatever the client's says.
fn is_upgrade(x: &Exchange) -> bool {
    let mut protocols = x.head.all(Known::Upgrade).flat_map(|line| line.split(|byte| *byte == b','));
    protocols.any(|protocol| protocol.trim_ascii().eq_ignore_ascii_case(b"websocket"))
}

#[cfg(test)]
mod tests {
    use super::Origin;
    use crate::testing::{Site, check_conf, code};

    #[test]
    fn messages() {
        check_conf(
            "websocket_origins none same https://a.example http://[::1]:8080 https://*.b.example app://x;
             websocket_origins https://c.example; server { websocket_origins off; }",
            "",
        );
        for (words, message) in [
            ("a.example", "invalid origin \"a.example\""),
            ("https://", "invalid origin \"https://\""),
            ("https://a.example/", "invalid origin \"https://a.example/\""),
            ("wss://a.example", "invalid origin \"wss://a.example\""),
            ("https://a:99999", "invalid origin \"https://a:99999\""),
            ("https://*", "invalid origin \"https://*\""),
            ("https://.a.example", "invalid origin \"https://.a.example\""),
            ("https://*.", "invalid origin \"https://*.\""),
            ("https://a.*.example", "invalid origin \"https://a.*.example\""),
            ("https://$host", "invalid origin \"https://$host\""),
            ("1://a", "invalid origin \"1://a\""),
            ("*", "invalid origin \"*\""),
            ("null", "invalid origin \"null\""),
            ("same off", "invalid origin \"off\""),
            ("same same", "duplicate value \"same\""),
            ("https://A.example https://a.example:443", "duplicate value \"https://a.example:443\""),
            ("off; websocket_origins off", "\"websocket_origins\" directive is duplicate"),
            ("off; websocket_origins same", "\"websocket_origins\" directive is duplicate"),
            ("same; websocket_origins off", "\"websocket_origins\" directive is duplicate"),
        ] {
            check_conf(&format!("websocket_origins {words};"), message);
        }
    }

    /// What becomes of a request with these header lines behind an upgrade.
    #[track_caller]
    fn check(words: &str, host: &str, headers: &str, expected: &str) {
        let site = Site::new(&format!(
            "server {{ listen 80; websocket_origins {words}; location / {{ answer 200 text/plain ok; }} }}"
        ));
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n{headers}\r\n"
        );
        assert_eq!(code(&site.raw(request.as_bytes())), expected, "{words} {host} {headers}");
    }

    #[test]
    fn origins() {
        let words = "https://a.example https://*.b.example:8443 http://[::1] app://x";
        for (origin, expected) in [
            ("https://a.example", "200"),
            ("HTTPS://A.EXAMPLE", "200"),
            ("https://a.example:443", "200"),
            ("https://a.example:444", "403"),
            ("http://a.example", "403"),
            ("http://a.example:443", "403"),
            ("https://a.example.evil", "403"),
            ("https://xa.example", "403"),
            ("https://sub.a.example", "403"),
            ("https://a.example@evil", "403"),
            ("https://evil/https://a.example", "403"),
            ("https://x.b.example:8443", "200"),
            ("https://x.y.b.example:8443", "200"),
            ("https://x.b.example", "403"),
            ("https://b.example:8443", "403"),
            ("https://.b.example:8443", "403"),
            ("https://xb.example:8443", "403"),
            ("http://[::1]", "200"),
            ("app://x", "200"),
            ("app://y", "403"),
            ("null", "403"),
            ("", "403"),
            ("a.example", "403"),
        ] {
            check(words, "a.example", &format!("Origin: {origin}\r\n"), expected);
        }
        let twice = "Origin: https://a.example\r\nOrigin: https://a.example\r\n";
        check(words, "a.example", twice, "403");
        check(words, "a.example", "", "403");
        check("none", "a.example", "", "200");
        check("none", "a.example", "Origin: https://a.example\r\n", "403");
    }

    #[test]
    fn same() {
        for (host, origin, expected) in [
            ("a.example", "http://a.example", "200"),
            ("A.example", "http://a.Example", "200"),
            // TLS may have ended in front.
            ("a.example", "https://a.example", "200"),
            ("a.example:8080", "http://a.example:8080", "200"),
            ("a.example:443", "https://a.example", "200"),
            ("a.example:443", "http://a.example", "403"),
            ("a.example:8080", "http://a.example", "403"),
            ("a.example", "http://a.example:8080", "403"),
            ("a.example", "http://b.example", "403"),
            ("a.example", "app://a.example", "403"),
            ("[::1]:81", "http://[::1]:81", "200"),
        ] {
            check("same", host, &format!("Origin: {origin}\r\n"), expected);
        }
        for (origin, tls, expected) in [
            ("https://a.example", true, true),
            ("http://a.example", true, false),
            ("http://a.example", false, true),
        ] {
            let parsed = Origin::parse(origin.as_bytes()).unwrap();
            assert_eq!(parsed.is_of(b"a.example", 0, tls), expected, "{origin} {tls}");
        }
    }

    #[test]
    fn what_is_checked() {
        let site = Site::new(
            "websocket_origins same; satisfy any; allow all; server { listen 80;
                location / { answer 200 text/plain ok; }
                location /open { websocket_origins off; answer 200 text/plain ok; }
                location /other { websocket_origins https://evil.example; answer 200 text/plain ok; }
             }",
        );
        let evil = "Origin: https://evil.example\r\n";
        let ask = |path: &str, upgrade: &str, origin: &str| {
            code(&site.get(path, &format!("{upgrade}{origin}"))).to_string()
        };
        assert_eq!(ask("/", "", evil), "200");
        assert_eq!(ask("/", "Upgrade: h2c\r\n", evil), "200");
        assert_eq!(ask("/", "Upgrade: WebSocket\r\n", evil), "403");
        assert_eq!(ask("/", "Upgrade: h2c , websocket\r\n", evil), "403");
        assert_eq!(ask("/", "Upgrade: h2c\r\nUpgrade: websocket\r\n", ""), "403");
        assert_eq!(ask("/open", "Upgrade: websocket\r\n", evil), "200");
        assert_eq!(ask("/other", "Upgrade: websocket\r\n", evil), "200");
        let said = "websocket forbidden by \"websocket_origins\": ";
        let not_allowed = format!("{said}origin \"https://evil.example\" is not allowed");
        let none = format!("{said}there is no origin");
        assert_eq!(site.log(), [not_allowed.clone(), not_allowed, none]);
    }
}

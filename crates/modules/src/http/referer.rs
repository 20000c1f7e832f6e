//! `ngx_http_referer_module`: whether a request comes from a page that may lead here, `$invalid_referer`.

use std::collections::HashMap;

use weir_engine::contract::{Install, Variable};
use weir_engine::generation::Plan;
use weir_engine::http::Exchange;
use weir_engine::http1::Known;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Once, Takes};
use weir_ir::http::HttpCore;
use weir_ir::http::server_name::ServerName;
use weir_ir::{Call, Fault, Merge, Regex};
use weir_syntax::Diagnostic;

pub struct Referer;

type D = Directive<Referer>;

const HERE: Contexts = Contexts::SERVER.or(Contexts::LOCATION);
const HASH: &str = "weir's tables size themselves";

impl Module for Referer {
    const NAME: &'static str = "http_referer";
    type Main = ();
    type Scope = Valid;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("valid_referers", HERE, Takes::ONE_MORE, valid_referers),
        D::scope("referer_hash_max_size", HERE, Takes::ONE, |s, c| s.once.number(c)).accepted(HASH),
        D::scope("referer_hash_bucket_size", HERE, Takes::ONE, |s, c| s.once.number(c)).accepted(HASH),
    ];
}

/// Where requests of one level may come from.
#[derive(Clone, Debug, Default)]
pub struct Valid {
    /// The level said something itself.
    said: bool,
    none: bool,
    blocked: bool,
    server_names: bool,
    once: Once,
    names: Names,
    regexes: Vec<Regex>,
}

impl Conf for Valid {
    fn inherit(&mut self, outer: &Self, merge: &mut Merge<'_>) -> Result<(), Fault> {
        if !self.said {
            *self = outer.clone();
            return Ok(());
        }
        if (self.none || self.blocked) && self.names.is_empty() && !self.server_names {
            return Err(merge.fail_nowhere(
                "the \"none\" or \"blocked\" referers are specified in the \"valid_referers\" directive \
                 without any valid referer",
            ));
        }
        if self.regexes.is_empty() {
            self.regexes.clone_from(&outer.regexes);
        }
        Ok(())
    }
}

/// The path that a referer from there must begin with; empty for any.
type Path = Box<[u8]>;

/// Host names, exact and with a wildcard at either end, in lower case.
#[derive(Clone, Debug, Default)]
struct Names {
    exact: HashMap<Box<[u8]>, Path>,
    /// `.example.com` of `*.example.com`.
    leading: HashMap<Box<[u8]>, Path>,
    /// `www.example.` of `www.example.*`.
    trailing: HashMap<Box<[u8]>, Path>,
}

/// Why a name cannot be taken.
enum Refused {
    Invalid,
    Conflict,
}

impl Names {
    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.leading.is_empty() && self.trailing.is_empty()
    }

    fn add(&mut self, name: &[u8], path: &[u8]) -> Result<(), Refused> {
        let name = name.to_ascii_lowercase();
        let stars = name.iter().filter(|b| **b == b'*').count();
        if stars > 1 || memchr::memmem::find(&name, b"..").is_some() {
            return Err(Refused::Invalid);
        }
        let mut put = |names: fn(&mut Names) -> &mut HashMap<Box<[u8]>, Path>, key: &[u8]| match names(self)
            .insert(key.into(), path.into())
        {
            None => Ok(()),
            Some(_) => Err(Refused::Conflict),
        };
        match name.as_slice() {
            [b'.', bare @ ..] if !bare.is_empty() && stars == 0 => {
                put(|n| &mut n.exact, bare)?;
                put(|n| &mut n.leading, &name)
            }
            [b'*', dotted @ ..] if dotted.len() > 1 && dotted[0] == b'.' => put(|n| &mut n.leading, dotted),
            [dotted @ .., b'*'] if dotted.len() > 1 && dotted.ends_with(b".") => {
                put(|n| &mut n.trailing, dotted)
            }
            _ if stars > 0 => Err(Refused::Invalid),
            exact => put(|n| &mut n.exact, exact),
        }
    }

    fn find(&self, host: &[u8]) -> Option<&Path> {
        let exact = self.exact.get(host);
        let leading = || {
            let mut dots = memchr::memchr_iter(b'.', host).filter(|at| *at > 0);
            dots.find_map(|at| self.leading.get(&host[at..]))
        };
        let trailing = || {
            let mut dots = memchr::memrchr_iter(b'.', host).filter(|at| at + 1 < host.len());
            dots.find_map(|at| self.trailing.get(&host[..=at]))
        };
        exact.or_else(leading).or_else(trailing)
    }
}

fn valid_referers(valid: &mut Valid, call: &mut Call<'_>) -> Result<(), Fault> {
    valid.said = true;
    for index in 0..call.args().len() {
        match call.arg(index) {
            b"" => return Err(call.under(call.fail("invalid referer \"\""), index)),
            b"none" => valid.none = true,
            b"blocked" => valid.blocked = true,
            b"server_names" => valid.server_names = true,
            b"~" => return Err(call.under(call.fail("empty regex in \"~\""), index)),
            [b'~', pattern @ ..] => valid.regexes.push(Regex::compile(pattern, true, call)?),
            text => {
                let (name, path) = text.split_at(memchr::memchr(b'/', text).unwrap_or(text.len()));
                let shown = String::from_utf8_lossy(name).into_owned();
                let message = match valid.names.add(name, path) {
                    Ok(()) => continue,
                    Err(Refused::Invalid) => format!("invalid hostname or wildcard \"{shown}\""),
                    Err(Refused::Conflict) => format!("conflicting parameter \"{shown}\""),
                };
                return Err(call.under(call.fail(message), index));
            }
        }
    }
    Ok(())
}

/// The rules of a level, ready.
struct Rules {
    none: bool,
    blocked: bool,
    names: Names,
    /// Of the server's names: they see the host alone.
    server_regexes: Vec<Regex>,
    /// They see all behind the scheme.
    regexes: Vec<Regex>,
}

impl Install for Referer {
    const VARIABLES: &'static [Variable] = &[Variable::new("invalid_referer", |x, out| {
        if is_invalid(x) {
            out.push(b'1');
        }
        true
    })];

    fn install(valid: &Valid, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let mut rules = Rules {
            none: valid.none,
            blocked: valid.blocked,
            names: valid.names.clone(),
            server_regexes: vec![],
            regexes: valid.regexes.clone(),
        };
        let http = plan.build.program.http.as_ref();
        if let (true, Some(http), Some(server)) = (valid.server_names, http, plan.scope().server) {
            for name in &http.scope(server).confs.get::<HttpCore>().server_names {
                let result = match name {
                    ServerName::Regex(regex) => {
                        rules.server_regexes.push(regex.clone());
                        Ok(())
                    }
                    ServerName::Exact(name) | ServerName::Dot(name) => rules.names.add(name.as_bytes(), b""),
                    ServerName::Leading(name) => rules.names.add(format!("*{name}").as_bytes(), b""),
                    ServerName::Trailing(name) => rules.names.add(format!("{name}*").as_bytes(), b""),
                };
                if let Err(Refused::Conflict) = result {
                    return Err(plan.fail(format!("conflicting parameter \"{}\"", name.shown())));
                }
            }
        }
        if !rules.names.is_empty() || !rules.regexes.is_empty() || !rules.server_regexes.is_empty() {
            plan.handlers.attach(rules);
        }
        Ok(())
    }
}

fn is_invalid(x: &Exchange) -> bool {
    let Some(rules) = x.location().attached::<Rules>() else { return false };
    match x.header(Known::Referer) {
        Some(referer) => !rules.admit(referer),
        None => !rules.none,
    }
}

impl Rules {
    fn admit(&self, referer: &[u8]) -> bool {
        let after = |scheme: &[u8]| {
            let (head, rest) = referer.split_at_checked(scheme.len())?;
            head.eq_ignore_ascii_case(scheme).then_some(rest)
        };
        // Shorter than the shortest thinkable address is as good as none.
        let rest = match referer.len() {
            0..11 => None,
            _ => after(b"http://").or_else(|| after(b"https://")),
        };
        let Some(rest) = rest else { return self.blocked };
        let end = rest.iter().position(|b| matches!(b, b'/' | b':')).unwrap_or(rest.len());
        if end > 256 {
            return false;
        }
        let host = rest[..end].to_ascii_lowercase();
        if let Some(path) = self.names.find(&host) {
            let at = memchr::memchr(b'/', &rest[end..]).map_or(rest.len(), |at| end + at);
            return rest[at..].starts_with(path);
        }
        self.server_regexes.iter().any(|regex| regex.is_match(&host))
            || self.regexes.iter().any(|regex| regex.is_match(rest))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Site, check_conf};

    #[test]
    fn messages() {
        let server = |text: &str| format!("server {{ {text} }}");
        check_conf(&server("valid_referers none blocked a.example *.b.example/x c.* .d.example ~e;"), "");
        for (conf, message) in [
            ("valid_referers '';", "invalid referer \"\""),
            ("valid_referers ~;", "empty regex in \"~\""),
            ("valid_referers a a/b;", "conflicting parameter \"a\""),
            ("valid_referers a*b;", "invalid hostname or wildcard \"a*b\""),
            ("valid_referers a..b;", "invalid hostname or wildcard \"a..b\""),
            (
                "valid_referers none ~a;",
                "the \"none\" or \"blocked\" referers are specified in the \"valid_referers\" directive without any valid referer",
            ),
        ] {
            check_conf(&server(conf), message);
        }
    }

    #[track_caller]
    fn check(conf: &str, referer: &str, expected: &str) {
        let site = Site::new(&format!(
            "server {{ listen 80; server_name own.example *.own.example ~^re; {conf}
                location / {{ answer 200 a [$invalid_referer]; }} }}"
        ));
        let header = if referer.is_empty() { "" } else { &format!("Referer: {referer}\r\n") };
        let response = site.get("/", header);
        assert_eq!(response.split_once("\r\n\r\n").unwrap().1, expected, "{conf} {referer}");
    }

    #[test]
    fn referers() {
        let conf = "valid_referers a.example *.b.example/x c.*;";
        check(conf, "http://A.example/y", "[]");
        check(conf, "https://a.example:8080", "[]");
        check(conf, "http://x.b.example/xy", "[]");
        check(conf, "http://x.b.example:1/y", "[1]");
        check(conf, "http://b.example/x", "[1]");
        check(conf, "http://c.example/", "[]");
        check(conf, "http://nix.example/", "[1]");
        check(conf, "a.example", "[1]");
        check(conf, "", "[1]");
        check("valid_referers none a;", "", "[]");
        check("valid_referers blocked a;", "hidden", "[]");
        check("valid_referers blocked a;", "http://hidden.example/", "[1]");
        check("valid_referers ~.example/path;", "http://x.example/Path", "[]");
        check("valid_referers ~.example/path;", "http://x.example/", "[1]");
        check("valid_referers server_names;", "http://own.example/", "[]");
        check("valid_referers server_names;", "http://x.own.example/", "[]");
        check("valid_referers server_names;", "http://re.example/", "[]");
        check("valid_referers server_names;", "http://other.example/", "[1]");
        check("", "http://x.example/", "[]");
    }
}

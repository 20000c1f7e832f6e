//! Whether a client takes gzip: what nginx's core has of compression, for the modules that compress or decompress.

use weir_engine::contract::{Filter, Install};
use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Response};
use weir_engine::http1::request::Version;
use weir_engine::http1::{Browser, Known, date};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge, Regex};
use weir_syntax::Diagnostic;

pub struct GzipOk;

type D = Directive<GzipOk>;

const SCOPES: Contexts = Contexts::SCOPES;

impl Module for GzipOk {
    const NAME: &'static str = "http_gzip_ok";
    type Main = ();
    type Scope = Conditions;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("gzip_vary", SCOPES, Takes::FLAG, |s, c| s.vary.flag(c)),
        D::scope("gzip_http_version", SCOPES, Takes::ONE, |s, c| {
            s.http_version.one_of(c, &[("1.0", Version::HTTP_10), ("1.1", Version::HTTP_11)])
        }),
        D::scope("gzip_proxied", SCOPES, Takes::ONE_MORE, |s, c| c.add_bits(&mut s.proxied, &PROXIED)),
        D::scope("gzip_disable", SCOPES, Takes::ONE_MORE, Conditions::disable),
    ];
}

const OFF: u32 = 1;
const EXPIRED: u32 = 1 << 1;
const NO_CACHE: u32 = 1 << 2;
const NO_STORE: u32 = 1 << 3;
const PRIVATE: u32 = 1 << 4;
const NO_LAST_MODIFIED: u32 = 1 << 5;
const NO_ETAG: u32 = 1 << 6;
const AUTH: u32 = 1 << 7;
const ANY: u32 = 1 << 8;
const PROXIED: [(&str, u32); 9] = [
    ("off", OFF),
    ("expired", EXPIRED),
    ("no-cache", NO_CACHE),
    ("no-store", NO_STORE),
    ("private", PRIVATE),
    ("no_last_modified", NO_LAST_MODIFIED),
    ("no_etag", NO_ETAG),
    ("auth", AUTH),
    ("any", ANY),
];

/// What a level says of it.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    vary: Setting<bool>,
    http_version: Setting<Version>,
    /// Bits; 0 is not set.
    proxied: u32,
    disable: Setting<Vec<Regex>>,
    msie6: Setting<bool>,
}

impl Conf for Conditions {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.vary.inherit(&outer.vary);
        self.http_version.inherit(&outer.http_version);
        if self.proxied == 0 {
            self.proxied = outer.proxied;
        }
        self.disable.inherit(&outer.disable);
        self.msie6.inherit(&outer.msie6);
        Ok(())
    }
}

impl Conditions {
    fn disable(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        let mut patterns = self.disable.or(vec![]);
        for index in 0..call.args().len() {
            match call.arg(index) {
                b"msie6" => self.msie6.replace(true),
                pattern => patterns.push(Regex::compile(pattern, true, call)?),
            }
        }
        self.disable.replace(patterns);
        Ok(())
    }
}

impl Install for GzipOk {
    fn install(conditions: &Conditions, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if conditions.vary.or(false) {
            plan.handlers.filters.push(Box::new(Vary));
        }
        Ok(())
    }
}

/// What became clear of a request.
#[derive(Default)]
struct State {
    takes: Option<bool>,
    varies: bool,
}

struct Vary;

impl Filter for Vary {
    fn filter(&self, x: &mut Exchange, response: &mut Response) {
        response.vary_encoding = x.extension::<State>().is_some_and(|state| state.varies);
    }
}

/// Notes that the answer to this request depends on whether the client takes gzip.
pub(super) fn varies(x: &mut Exchange) {
    x.extension_mut::<State>().varies = true;
}

/// Whether the level being compiled tells what answers depend on.
pub(super) fn vary(plan: &Plan<'_, '_>) -> bool {
    plan.scope().confs.get::<GzipOk>().vary.or(false)
}

/// The conditions of a level, ready.
pub(super) struct Acceptance {
    http_version: Version,
    proxied: u32,
    disable: Vec<Regex>,
    msie6: bool,
}

impl Acceptance {
    /// Those that hold at the level being compiled.
    pub(super) fn of(plan: &Plan<'_, '_>) -> Self {
        let conditions = plan.scope().confs.get::<GzipOk>();
        Self {
            http_version: conditions.http_version.or(Version::HTTP_11),
            proxied: if conditions.proxied == 0 { OFF } else { conditions.proxied },
            disable: conditions.disable.or(vec![]),
            msie6: conditions.msie6.or(false),
        }
    }

    /// Whether the client takes gzip, judged once a request: by the response as far as there is one then.
    pub(super) fn holds(&self, x: &mut Exchange, response: &Response) -> bool {
        if let Some(takes) = x.extension::<State>().and_then(|state| state.takes) {
            return takes;
        }
        let takes = self.judge(x, response);
        x.extension_mut::<State>().takes = Some(takes);
        takes
    }

    fn judge(&self, x: &Exchange, response: &Response) -> bool {
        // What becomes a part of another answer is compressed with that.
        if x.is_subrequest() {
            return false;
        }
        let agent = x.header(Known::UserAgent);
        x.header(Known::AcceptEncoding).is_some_and(accepts_gzip)
            && !(self.msie6 && agent.is_some_and(|agent| Browser::of(agent).msie6))
            && x.head.version() >= self.http_version
            && (x.header(Known::Via).is_none() || self.for_proxies(x, response))
            && !agent.is_some_and(|agent| self.disable.iter().any(|pattern| pattern.is_match(agent)))
    }

    /// Whether a request that came through a proxy may have it.
    fn for_proxies(&self, x: &Exchange, response: &Response) -> bool {
        let has = |bit| self.proxied & bit != 0;
        let headers = &response.headers;
        if has(OFF) {
            return false;
        }
        if has(ANY) || (has(AUTH) && x.header(Known::Authorization).is_some()) {
            return true;
        }
        if let Some(expires) = headers.first(Known::Expires) {
            let date = match headers.first(Known::Date) {
                Some(date) => date::parse_http(date),
                None => Some(x.reactor.clock().unix_secs() as i64),
            };
            return has(EXPIRED)
                && matches!((date::parse_http(expires), date), (Some(expires), Some(date)) if expires < date);
        }
        if headers.first(Known::CacheControl).is_some() {
            let says = |word: &[u8]| headers.all(b"Cache-Control").any(|value| lists(value, word));
            return [(NO_CACHE, &b"no-cache"[..]), (NO_STORE, b"no-store"), (PRIVATE, b"private")]
                .iter()
                .any(|(bit, word)| has(*bit) && says(word));
        }
        let differs = |bit, known| has(bit) && headers.first(known).is_some();
        !differs(NO_LAST_MODIFIED, Known::LastModified) && !differs(NO_ETAG, Known::ETag)
    }
}

/// Whether a word without a value is in a list.
fn lists(value: &[u8], word: &[u8]) -> bool {
    let mut items = value.split_inclusive(|byte| matches!(byte, b',' | b';'));
    items.any(|item| {
        let item = item.strip_suffix(b",").unwrap_or(item);
        item.trim_ascii().eq_ignore_ascii_case(word)
    })
}

/// Whether an `Accept-Encoding` names gzip with a weight that is not 0.
fn accepts_gzip(value: &[u8]) -> bool {
    let named = |at: &usize| {
        value[*at..*at + 4].eq_ignore_ascii_case(b"gzip")
            && (*at == 0 || matches!(value[*at - 1], b',' | b' '))
    };
    let Some(at) = (0..value.len().saturating_sub(3)).find(named) else { return false };
    let rest = trim(&value[at + 4..]);
    let weight = match rest {
        [] | [b',', ..] => return true,
        [b';', weight @ ..] => trim(weight),
        _ => return false,
    };
    match weight {
        [] => true,
        [b'q' | b'Q', b'=', weight @ ..] if !weight.is_empty() => is_weight(weight),
        _ => false,
    }
}

fn trim(text: &[u8]) -> &[u8] {
    &text[text.iter().take_while(|byte| **byte == b' ').count()..]
}

/// Whether a text begins with a weight above 0, and of three decimals at most.
fn is_weight(text: &[u8]) -> bool {
    let end = text.iter().position(|byte| matches!(byte, b',' | b' ')).unwrap_or(text.len());
    let decimals = match &text[..end] {
        [b'1'] => return true,
        [b'1', b'.', decimals @ ..] if decimals.iter().all(|digit| *digit == b'0') => {
            return decimals.len() <= 3;
        }
        [b'0', b'.', decimals @ ..] => decimals,
        _ => return false,
    };
    decimals.len() <= 3
        && decimals.iter().all(u8::is_ascii_digit)
        && decimals.iter().any(|digit| *digit != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Site, check_conf, header};

    #[test]
    fn messages() {
        check_conf("gzip_vary on; gzip_http_version 1.0; gzip_proxied any; gzip_disable msie6 a|b;", "");
        for (conf, message) in [
            ("gzip_vary on; gzip_vary on;", "\"gzip_vary\" directive is duplicate"),
            ("gzip_http_version 2;", "invalid value \"2\""),
            ("gzip_proxied off x;", "invalid value \"x\""),
            ("gzip_proxied off off;", "duplicate value \"off\""),
            ("gzip_disable (;", "pcre2_compile() failed: missing closing parenthesis in \"(\""),
        ] {
            check_conf(conf, message);
        }
    }

    #[test]
    fn encodings() {
        for (value, expected) in [
            ("gzip", true),
            ("GZip", true),
            ("gzip, deflate", true),
            ("deflate,gzip", true),
            ("xgzip", false),
            ("xgzip, gzip", true),
            ("gzipx", false),
            ("gzip ;q=1", true),
            ("gzip; q=0.001", true),
            ("gzip;q=0", false),
            ("gzip;q=0.000", false),
            ("gzip;q=0.0001", false),
            ("gzip;q=1.000, x", true),
            ("gzip;q=1.001", false),
            ("gzip;q=", false),
            ("gzip;x=1", false),
            ("gzip;", true),
            ("gz", false),
        ] {
            assert_eq!(accepts_gzip(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn proxies() {
        let site = Site::new(
            "gzip on; gzip_min_length 0; server {
                location /off { answer 200 text/html x; }
                location /any { gzip_proxied any; answer 200 text/html x; }
                location /auth { gzip_proxied auth expired; answer 200 text/html x; }
                location /expired { gzip_proxied expired; expires -1; answer 200 text/html x; }
                location /later { gzip_proxied expired; expires 1h; answer 200 text/html x; }
                location /cc { gzip_proxied no-store; add_header Cache-Control 'a, No-Store'; answer 200 text/html x; }
                location /cc2 { gzip_proxied no-cache; add_header Cache-Control no-store; answer 200 text/html x; }
                location /etag { gzip_proxied no_etag; add_header ETag x; answer 200 text/html x; }
            }",
        );
        for (uri, more, expected) in [
            ("/off", "", false),
            ("/any", "", true),
            ("/auth", "", true),
            ("/auth", "Authorization: x\r\n", true),
            ("/expired", "", true),
            ("/later", "", false),
            ("/cc", "", true),
            ("/cc2", "", false),
            ("/etag", "", false),
        ] {
            let answer = site.get(uri, &format!("Accept-Encoding: gzip\r\nVia: 1.1 p\r\n{more}"));
            assert_eq!(header(&answer, "Content-Encoding").is_some(), expected, "{uri}");
        }
    }

    #[test]
    fn clients() {
        let site = Site::new(
            "gzip on; gzip_min_length 0; gzip_vary on; gzip_disable msie6 'bot.*x';
             server { location / { answer 200 text/html x; } location /h { gzip_vary off; answer 200 text/html x; } }",
        );
        for (headers, expected) in [
            ("", false),
            ("Accept-Encoding: gzip\r\n", true),
            ("Accept-Encoding: gzip\r\nUser-Agent: a BOT with x\r\n", false),
            ("Accept-Encoding: gzip\r\nUser-Agent: Mozilla/4.0 (compatible; MSIE 6.0; Windows)\r\n", false),
        ] {
            let answer = site.get("/", headers);
            assert_eq!(header(&answer, "Content-Encoding").is_some(), expected, "{headers}");
            assert_eq!(header(&answer, "Vary"), Some("Accept-Encoding"), "{headers}");
        }
        assert_eq!(header(&site.get("/h", ""), "Vary"), None);
    }
}

//! `ngx_http_browser_module`: `$modern_browser`, `$ancient_browser` and `$msie`, judged by what the client calls itself.

use memchr::memmem::find;
use weir_engine::contract::{Install, Variable};
use weir_engine::generation::Plan;
use weir_engine::http::Exchange;
use weir_engine::http1::{Browser as Agent, Known};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge};
use weir_syntax::Diagnostic;

pub struct Browser;

type D = Directive<Browser>;

impl Module for Browser {
    const NAME: &'static str = "http_browser";
    type Main = ();
    type Scope = Browsers;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("modern_browser", Contexts::SCOPES, Takes::ONE_TWO, modern),
        D::scope("ancient_browser", Contexts::SCOPES, Takes::ONE_MORE, |browsers, call| {
            for index in 0..call.args().len() {
                match call.arg(index) {
                    b"netscape4" => browsers.netscape4 = true,
                    name => browsers.ancient.push(name.into()),
                }
            }
            Ok(())
        }),
        // The last one of a level counts; it is no duplicate.
        D::scope("modern_browser_value", Contexts::SCOPES, Takes::ONE, |browsers, call| {
            browsers.modern_value.replace(call.arg(0).into());
            Ok(())
        }),
        D::scope("ancient_browser_value", Contexts::SCOPES, Takes::ONE, |browsers, call| {
            browsers.ancient_value.replace(call.arg(0).into());
            Ok(())
        }),
    ];
}

/// A browser as it calls itself.
struct Mask {
    name: &'static str,
    /// So many bytes stand before the word at least.
    skip: usize,
    word: &'static [u8],
    /// So many bytes after the beginning of the word its version follows.
    version: usize,
}

impl Mask {
    const fn new(name: &'static str, skip: usize, word: &'static [u8], version: usize) -> Self {
        Self { name, skip, word, version }
    }
}

/// Opera comes first, since it may pass for another one. It puts a slash or a space behind its name.
const MASKS: [Mask; 5] = [
    Mask::new("opera", 0, b"Opera", 6),
    Mask::new("msie", 25, b"MSIE ", 5),
    Mask::new("gecko", 13, b"rv:", 3),
    Mask::new("safari", 13, b"Safari/", 7),
    Mask::new("konqueror", 25, b"Konqueror/", 10),
];

/// No Opera has it.
const UNREACHED: u64 = 4_001_000_000;

/// What holds at one level.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Browsers {
    /// Positions among the masks, and the least version that is modern.
    modern: Vec<(usize, u64)>,
    modern_unlisted: bool,
    ancient: Vec<Box<[u8]>>,
    netscape4: bool,
    modern_value: Setting<Box<[u8]>>,
    ancient_value: Setting<Box<[u8]>>,
}

impl Conf for Browsers {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        if self.modern.is_empty() && !self.modern_unlisted {
            self.modern.clone_from(&outer.modern);
            self.modern_unlisted = outer.modern_unlisted;
        }
        if self.ancient.is_empty() && !self.netscape4 {
            self.ancient.clone_from(&outer.ancient);
            self.netscape4 = outer.netscape4;
        }
        self.modern_value.inherit(&outer.modern_value);
        self.ancient_value.inherit(&outer.ancient_value);
        Ok(())
    }
}

fn modern(browsers: &mut Browsers, call: &mut Call<'_>) -> Result<(), Fault> {
    let name = call.arg(0);
    if call.args().len() == 1 {
        if name != b"unlisted" {
            return Err(call.invalid_parameter(0));
        }
        browsers.modern_unlisted = true;
        return Ok(());
    }
    let Some(mask) = MASKS.iter().position(|mask| mask.name.as_bytes().eq_ignore_ascii_case(name)) else {
        let message = format!("unknown browser name \"{}\"", call.text(0));
        return Err(call.under(call.fail(message), 0));
    };
    let text = call.arg(1);
    let (version, read) = version(text);
    if read < text.len() {
        let message = format!("invalid browser version \"{}\"", call.text(1));
        return Err(call.under(call.fail(message), 1));
    }
    browsers.modern.push((mask, version));
    Ok(())
}

/// Reads digits and dots: the first four parts of a version as one number, each of two digits but the first, and how many
/// bytes it has.
fn version(text: &[u8]) -> (u64, usize) {
    let end = text.iter().position(|b| !matches!(b, b'0'..=b'9' | b'.')).unwrap_or(text.len());
    let parts = text[..end].split(|b| *b == b'.');
    let number = |part: &[u8]| {
        part.iter().fold(0u64, |n, digit| n.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')))
    };
    let scales = [1_000_000, 10_000, 100, 1];
    let whole = parts
        .zip(scales)
        .fold(0u64, |whole, (part, scale)| whole.wrapping_add(number(part).wrapping_mul(scale)));
    (whole, end)
}

impl Browsers {
    fn is_modern(&self, agent: Option<&[u8]>) -> bool {
        let Some(agent) = agent else { return self.modern_unlisted };
        for (mask, least) in &self.modern {
            let mask = &MASKS[*mask];
            let Some(at) = agent.get(mask.skip..).and_then(|rest| find(rest, mask.word)) else { continue };
            let Some(text @ [_, ..]) = agent.get(mask.skip + at + mask.version..) else { continue };
            return version(text).0 >= *least;
        }
        if !self.modern.is_empty() && !self.modern_unlisted {
            return false;
        }
        let is_netscape4 = || {
            agent.len() > "Mozilla/4.72 ".len()
                && agent.strip_prefix(b"Mozilla/").is_some_and(|rest| matches!(rest[0], b'1'..=b'4'))
        };
        if self.netscape4 && is_netscape4() || self.ancient.iter().any(|word| find(agent, word).is_some()) {
            return false;
        }
        self.modern_unlisted
    }
}

impl Install for Browser {
    const VARIABLES: &'static [Variable] = &[
        Variable::new("msie", |x, out| {
            if x.header(Known::UserAgent).is_some_and(|agent| Agent::of(agent).msie) {
                out.push(b'1');
            }
            true
        })
        .replaceable(),
        Variable::new("modern_browser", |x, out| judged(x, true, out)).replaceable(),
        Variable::new("ancient_browser", |x, out| judged(x, false, out)).replaceable(),
    ];

    fn install(browsers: &Browsers, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if *browsers != Browsers::default() {
            let mut browsers = browsers.clone();
            // An Opera that passes for a listed browser is not taken for it.
            if !browsers.modern.is_empty() && browsers.modern.iter().all(|(mask, _)| *mask != 0) {
                browsers.modern.push((0, UNREACHED));
            }
            browsers.modern.sort_by_key(|(mask, _)| *mask);
            plan.handlers.attach(browsers);
        }
        Ok(())
    }
}

/// The value of `$modern_browser` or `$ancient_browser`: empty for a browser that is the other.
fn judged(x: &Exchange, modern: bool, out: &mut Vec<u8>) -> bool {
    let unconfigured = Browsers::default();
    let browsers = x.location().attached::<Browsers>().unwrap_or(&unconfigured);
    if browsers.is_modern(x.header(Known::UserAgent)) == modern {
        let value = if modern { &browsers.modern_value } else { &browsers.ancient_value };
        out.extend_from_slice(value.get().map_or(b"1", |value| value));
    }
    true
}

#[cfg(test)]
mod tests {
    use crate::testing::{Site, check_conf};

    #[test]
    fn messages() {
        check_conf("modern_browser msie 5.5; modern_browser MSIE 6; modern_browser unlisted;", "");
        check_conf("modern_browser lynx 1;", "unknown browser name \"lynx\"");
        check_conf("modern_browser msie 5x;", "invalid browser version \"5x\"");
    }

    #[track_caller]
    fn check(conf: &str, agent: &str, expected: &str) {
        let site = Site::new(&format!(
            "{conf} server {{ location / {{ answer 200 text/plain \
             '$modern_browser/$ancient_browser/$msie'; }} }}"
        ));
        let header = if agent.is_empty() { String::new() } else { format!("User-Agent: {agent}\r\n") };
        let answer = site.ask("GET /", &header);
        assert_eq!(answer.split_once("\n\n").map(|(_, body)| body), Some(expected), "{conf} {agent}");
    }

    #[test]
    fn judgements() {
        let msie = "Mozilla/4.0 (compatible; MSIE 6.0; Windows NT 5.1)";
        let opera = "Mozilla/4.0 (compatible; MSIE 6.0; X11; FreeBSD i386) Opera 7.50  [en]";
        let gecko = "Mozilla/5.0 (X11; U; Linux i686; en-US; rv:1.7.8) Gecko/20050511 Firefox/1.0.4";
        let listed = "modern_browser msie 5.5; modern_browser gecko 1.7.8;";
        check("", msie, "/1/1");
        check("", "", "/1/");
        check("modern_browser unlisted;", "", "1//");
        check("modern_browser unlisted;", "curl/8", "1//");
        check(listed, msie, "1//1");
        check(listed, gecko, "1//");
        check(listed, opera, "/1/");
        check(listed, "curl/8", "/1/");
        check("modern_browser gecko 1.7.9;", gecko, "/1/");
        check("modern_browser gecko 1.8;", gecko, "/1/");
        check("modern_browser opera 7.50;", opera, "1//");
        check(
            "modern_browser unlisted; ancient_browser netscape4 Links; modern_browser_value new; \
             ancient_browser_value old;",
            "Mozilla/4.72 [en] (X11)",
            "/old/",
        );
        check(
            "modern_browser unlisted; ancient_browser Links; ancient_browser_value old;",
            "Links (2.1)",
            "/old/",
        );
        check(
            "modern_browser unlisted; ancient_browser Links; modern_browser_value new;",
            "Mozilla/4.72 [en] (X11)",
            "new//",
        );
    }
}

//! `proxy_cookie_domain`, `proxy_cookie_path`, `proxy_cookie_flags`: cookies of upstreams, as the client may keep them.

use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Template};
use weir_ir::lowering::{Call, Fault};
use weir_ir::{Regex, Setting};

/// What a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    Domain,
    Path,
}

/// What the value of an attribute, or the name of a cookie, is compared with.
#[derive(Clone, Debug)]
pub enum Pattern<T> {
    Text(T),
    Regex(Regex),
}

/// One `proxy_cookie_domain` or `proxy_cookie_path`.
pub type Replace = (Pattern<weir_ir::Template>, weir_ir::Template);
/// One `proxy_cookie_flags`: the cookies and what their flags are to be.
pub type Flags = (Pattern<weir_ir::Template>, Vec<weir_ir::Template>);

/// `off` stands alone: it makes an empty list, which takes nothing more.
fn list<'s, T>(
    setting: &'s mut Setting<Vec<T>>,
    call: &Call<'_>,
) -> Result<Option<&'s mut Setting<Vec<T>>>, Fault> {
    if setting.get().is_some_and(Vec::is_empty) {
        return Err(call.duplicate());
    }
    if call.args().len() > 1 {
        return Ok(Some(setting));
    }
    match call.arg(0) {
        b"off" if setting.is_set() => Err(call.duplicate()),
        b"off" => {
            setting.replace(vec![]);
            Ok(None)
        }
        _ => Err(call.invalid_parameter(0)),
    }
}

fn push<T: Clone>(setting: &mut Setting<Vec<T>>, value: T) {
    let mut list = setting.get().cloned().unwrap_or_default();
    list.push(value);
    setting.replace(list);
}

fn template(text: &[u8], index: usize, call: &mut Call<'_>) -> Result<weir_ir::Template, Fault> {
    weir_ir::Template::parse(text, call).map_err(|fault| call.under(fault, index))
}

pub(super) fn read(
    attribute: Attribute,
    setting: &mut Setting<Vec<Replace>>,
    call: &mut Call<'_>,
) -> Result<(), Fault> {
    let Some(setting) = list(setting, call)? else { return Ok(()) };
    let (from, to) = (call.arg(0).to_vec(), call.arg(1).to_vec());
    let rule = match (attribute, &from[..]) {
        (Attribute::Domain, [b'~', pattern @ ..]) | (Attribute::Path, [b'~', b'*', pattern @ ..]) => {
            (Pattern::Regex(Regex::compile(pattern, true, call)?), template(&to, 1, call)?)
        }
        (Attribute::Path, [b'~', pattern @ ..]) => {
            (Pattern::Regex(Regex::compile(pattern, false, call)?), template(&to, 1, call)?)
        }
        (Attribute::Path, text) => (Pattern::Text(template(text, 0, call)?), template(&to, 1, call)?),
        (Attribute::Domain, text) => {
            // A dot in front says nothing more than none does.
            let bare = |text: &[u8]| text.strip_prefix(b".").unwrap_or(text).to_vec();
            (Pattern::Text(template(&bare(text), 0, call)?), template(&bare(&to), 1, call)?)
        }
    };
    push(setting, rule);
    Ok(())
}

pub(super) fn read_flags(setting: &mut Setting<Vec<Flags>>, call: &mut Call<'_>) -> Result<(), Fault> {
    let Some(setting) = list(setting, call)? else { return Ok(()) };
    let cookie = match call.arg(0) {
        [b'~', pattern @ ..] => Pattern::Regex(Regex::compile(pattern, true, call)?),
        _ => Pattern::Text(call.template(0)?),
    };
    let flags = (1..call.args().len()).map(|index| call.template(index)).collect::<Result<_, _>>()?;
    push(setting, (cookie, flags));
    Ok(())
}

/// The rules of a location, ready.
pub(super) struct Rules {
    domains: Vec<(Pattern<Template>, Template)>,
    paths: Vec<(Pattern<Template>, Template)>,
    flags: Vec<(Pattern<Template>, Vec<Template>)>,
}

fn compile(pattern: &Pattern<weir_ir::Template>, plan: &Plan<'_, '_>) -> Pattern<Template> {
    match pattern {
        Pattern::Text(text) => Pattern::Text(plan.template(text)),
        Pattern::Regex(regex) => Pattern::Regex(regex.clone()),
    }
}

impl Rules {
    /// `None` where there is nothing to do.
    pub(super) fn compile(
        domains: &Setting<Vec<Replace>>,
        paths: &Setting<Vec<Replace>>,
        flags: &Setting<Vec<Flags>>,
        plan: &Plan<'_, '_>,
    ) -> Option<Self> {
        let replaces = |setting: &Setting<Vec<Replace>>| {
            let rules = setting.get().into_iter().flatten();
            rules.map(|(from, to)| (compile(from, plan), plan.template(to))).collect::<Vec<_>>()
        };
        let of_flags = flags.get().into_iter().flatten().map(|(cookie, flags)| {
            (compile(cookie, plan), flags.iter().map(|flag| plan.template(flag)).collect())
        });
        let rules = Self { domains: replaces(domains), paths: replaces(paths), flags: of_flags.collect() };
        let any = !(rules.domains.is_empty() && rules.paths.is_empty() && rules.flags.is_empty());
        any.then_some(rules)
    }

    /// The value of a `Set-Cookie` where a rule changes it.
    pub(super) fn apply(&self, x: &Exchange, value: &[u8]) -> Option<Vec<u8>> {
        let mut cookie = Cookie::parse(value);
        // What has no value is no cookie.
        cookie.pairs[0].value.as_ref()?;
        let mut changed = false;
        for pair in &mut cookie.pairs[1..] {
            let Some(value) = &pair.value else { continue };
            let replaced = if pair.is(b"domain") {
                self.domains.iter().find_map(|(from, to)| domain(x, from, to, value))
            } else if pair.is(b"path") {
                self.paths.iter().find_map(|(from, to)| path(x, from, to, value))
            } else {
                None
            };
            if replaced.is_some() {
                pair.value = replaced;
                changed = true;
            }
        }
        let name = cookie.pairs[0].name.clone();
        let found = self.flags.iter().find(|(pattern, _)| match pattern {
            Pattern::Regex(regex) => x.matches(regex, &name),
            Pattern::Text(text) => text.value(x).eq_ignore_ascii_case(&name),
        });
        if let Some((_, flags)) = found {
            let words: Vec<_> = flags.iter().map(|flag| flag.value(x)).collect();
            changed |= cookie.set(&words);
        }
        changed.then(|| cookie.text())
    }
}

fn domain(x: &Exchange, from: &Pattern<Template>, to: &Template, value: &[u8]) -> Option<Vec<u8>> {
    match from {
        Pattern::Regex(regex) => x.matches(regex, value).then(|| to.value(x)),
        Pattern::Text(text) => {
            let (dot, bare) = value.split_at(usize::from(value.starts_with(b".")));
            text.value(x).eq_ignore_ascii_case(bare).then(|| [dot, &to.value(x)].concat())
        }
    }
}

fn path(x: &Exchange, from: &Pattern<Template>, to: &Template, value: &[u8]) -> Option<Vec<u8>> {
    match from {
        Pattern::Regex(regex) => x.matches(regex, value).then(|| to.value(x)),
        Pattern::Text(text) => {
            let rest = value.strip_prefix(&text.value(x)[..])?;
            Some([&to.value(x), rest].concat())
        }
    }
}

/// A `Set-Cookie` taken apart: name and value, then the attributes.
struct Cookie {
    pairs: Vec<Pair>,
}

struct Pair {
    name: Vec<u8>,
    value: Option<Vec<u8>>,
}

impl Pair {
    fn is(&self, name: &[u8]) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

fn without_spaces(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|b| *b != b' ').unwrap_or(text.len());
    let end = text.iter().rposition(|b| *b != b' ').map_or(start, |at| at + 1);
    &text[start..end]
}

impl Cookie {
    fn parse(text: &[u8]) -> Self {
        let pairs = text.split(|b| *b == b';').map(|part| match memchr::memchr(b'=', part) {
            Some(at) => Pair {
                name: without_spaces(&part[..at]).to_vec(),
                value: Some(without_spaces(&part[at + 1..]).to_vec()),
            },
            None => Pair { name: without_spaces(part).to_vec(), value: None },
        });
        Self { pairs: pairs.collect() }
    }

    /// Sets the flags that the words name. False where none of them is a flag.
    fn set(&mut self, words: &[Vec<u8>]) -> bool {
        let named = |name: &[u8]| words.iter().any(|word| word.eq_ignore_ascii_case(name));
        let mut known = false;
        for (flag, on, off) in [("Secure", "secure", "nosecure"), ("HttpOnly", "httponly", "nohttponly")] {
            if named(on.as_bytes()) {
                known = true;
                if !self.pairs[1..].iter().any(|pair| pair.is(on.as_bytes())) {
                    self.pairs.push(Pair { name: flag.into(), value: None });
                }
            } else if named(off.as_bytes()) {
                known = true;
                self.remove(on.as_bytes());
            }
        }
        let sites = [("Strict", "samesite=strict"), ("Lax", "samesite=lax"), ("None", "samesite=none")];
        if let Some((site, _)) = sites.iter().find(|(_, word)| named(word.as_bytes())) {
            known = true;
            let site = site.as_bytes();
            match self.pairs[1..].iter_mut().find(|pair| pair.is(b"samesite")) {
                Some(pair) if pair.value.as_ref().is_some_and(|v| v.eq_ignore_ascii_case(site)) => {}
                Some(pair) => *pair = Pair { name: b"SameSite".to_vec(), value: Some(site.to_vec()) },
                None => self.pairs.push(Pair { name: b"SameSite".to_vec(), value: Some(site.to_vec()) }),
            }
        } else if named(b"nosamesite") {
            known = true;
            self.remove(b"samesite");
        }
        known
    }

    fn remove(&mut self, attribute: &[u8]) {
        let mut first = true;
        // The cookie itself may be named so.
        self.pairs.retain(|pair| std::mem::take(&mut first) || !pair.is(attribute));
    }

    fn text(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, pair) in self.pairs.iter().enumerate() {
            if index > 0 {
                out.extend_from_slice(b"; ");
            }
            out.extend_from_slice(&pair.name);
            if let Some(value) = &pair.value {
                out.push(b'=');
                out.extend_from_slice(value);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(cookie: &str, words: &[&str], expected: Option<&str>) {
        let mut parsed = Cookie::parse(cookie.as_bytes());
        let words: Vec<_> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        let changed = parsed.set(&words).then(|| String::from_utf8(parsed.text()).unwrap());
        assert_eq!(changed.as_deref(), expected, "{cookie}");
    }

    #[test]
    fn flags() {
        check("a=b", &["secure", "httponly", "samesite=lax"], Some("a=b; Secure; HttpOnly; SameSite=Lax"));
        check("a=b ;secure; SameSite=lax", &["secure", "samesite=lax"], Some("a=b; secure; SameSite=lax"));
        check("a=b;samesite=lax;x", &["samesite=strict"], Some("a=b; SameSite=Strict; x"));
        check("secure=b; Secure; HTTPONLY", &["nosecure", "nohttponly"], Some("secure=b"));
        check("a=b; samesite", &["nosamesite"], Some("a=b"));
        check("a=b;", &["secure"], Some("a=b; ; Secure"));
        check("a=b", &["", "other"], None);
    }
}

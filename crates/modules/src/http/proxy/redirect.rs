//! `proxy_redirect`: `Location` and `Refresh` of upstreams, as the client may follow them.

use std::borrow::Cow;

use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Template};
use weir_engine::http1::Known;
use weir_ir::Regex;
use weir_ir::lowering::{Call, Fault};

use super::{Pass, Passing};

/// One `proxy_redirect`.
#[derive(Clone, Debug)]
pub enum Redirect {
    /// What `proxy_pass` names becomes the location's prefix.
    Default,
    Prefix(weir_ir::Template, weir_ir::Template),
    Pattern(Regex, weir_ir::Template),
}

pub(super) fn read(passing: &mut Passing, call: &mut Call<'_>) -> Result<(), Fault> {
    let mut redirects = passing.redirects.get().cloned().unwrap_or_default();
    // After `off`, which is an empty list, nothing more may come.
    if passing.redirects.is_set() && redirects.is_empty() {
        return Err(call.duplicate());
    }
    if call.args().len() == 1 {
        match (call.arg(0), &passing.pass) {
            (b"off", _) if redirects.is_empty() => {}
            (b"off", _) => return Err(call.duplicate()),
            (b"default", Some(Pass::Known { .. })) => redirects.push(Redirect::Default),
            (b"default", Some(Pass::Computed(_))) => {
                return Err(call.fail(
                    "\"proxy_redirect default\" cannot be used with \"proxy_pass\" directive with variables",
                ));
            }
            (b"default", None) => {
                return Err(call
                    .fail("\"proxy_redirect default\" should be placed after the \"proxy_pass\" directive"));
            }
            _ => return Err(call.invalid_parameter(0)),
        }
        passing.redirects.replace(redirects);
        return Ok(());
    }
    let replacement = call.template(1)?;
    redirects.push(match call.arg(0) {
        [b'~', b'*', pattern @ ..] => Redirect::Pattern(Regex::compile(pattern, true, call)?, replacement),
        [b'~', pattern @ ..] => Redirect::Pattern(Regex::compile(pattern, false, call)?, replacement),
        _ => Redirect::Prefix(call.template(0)?, replacement),
    });
    passing.redirects.replace(redirects);
    Ok(())
}

/// The rules of a location, ready.
pub(super) struct Rewrites {
    rules: Vec<Rule>,
}

enum Rule {
    Default { scheme: &'static str },
    Prefix(Template, Template),
    Pattern(Regex, Template),
}

impl Rewrites {
    pub(super) fn compile(passing: &Passing, plan: &Plan<'_, '_>) -> Self {
        let default = [Redirect::Default];
        let redirects = passing.redirects.get().map_or(&default[..], Vec::as_slice);
        let rules = redirects.iter().filter_map(|redirect| match (redirect, &passing.pass) {
            (Redirect::Default, Some(Pass::Known { scheme, .. })) => {
                Some(Rule::Default { scheme: scheme.text() })
            }
            // What is computed for each request has no prefix that could be given back.
            (Redirect::Default, Some(Pass::Computed(_)) | None) => None,
            (Redirect::Prefix(from, to), _) => Some(Rule::Prefix(plan.template(from), plan.template(to))),
            (Redirect::Pattern(regex, to), _) => Some(Rule::Pattern(regex.clone(), plan.template(to))),
        });
        Self { rules: rules.collect() }
    }

    /// The value of a header that names a place.
    pub(super) fn apply<'v>(
        &self,
        x: &Exchange,
        known: Known,
        value: &'v [u8],
        host: &[u8],
        uri: &[u8],
    ) -> Cow<'v, [u8]> {
        // `Refresh: 5; url=http://…` has its place behind `url=`.
        let start = match known {
            Known::Refresh => match find_url(value) {
                Some(at) => at,
                None => return Cow::Borrowed(value),
            },
            _ => 0,
        };
        let place = &value[start..];
        let rewritten = self.rules.iter().find_map(|rule| rule.apply(x, place, host, uri));
        match rewritten {
            Some(rewritten) => Cow::Owned([&value[..start], &rewritten].concat()),
            None => Cow::Borrowed(value),
        }
    }
}

fn find_url(value: &[u8]) -> Option<usize> {
    value.windows(4).position(|w| w.eq_ignore_ascii_case(b"url=")).map(|at| at + 4)
}

impl Rule {
    fn apply(&self, x: &Exchange, place: &[u8], host: &[u8], uri: &[u8]) -> Option<Vec<u8>> {
        match self {
            Rule::Default { scheme } => {
                let from = if uri.is_empty() {
                    [scheme.as_bytes(), host, b"/"].concat()
                } else {
                    [scheme.as_bytes(), host, uri].concat()
                };
                let rest = place.strip_prefix(&from[..])?;
                let to: &[u8] = if uri.is_empty() { b"/" } else { x.location().name() };
                Some([to, rest].concat())
            }
            Rule::Prefix(from, to) => {
                let from = from.value(x);
                let rest = place.strip_prefix(&from[..])?;
                Some([&to.value(x), rest].concat())
            }
            Rule::Pattern(regex, to) => x.matches(regex, place).then(|| to.value(x)),
        }
    }
}

//! `$fastcgi_script_name` and `$fastcgi_path_info`: the path, as `fastcgi_split_path_info` takes it apart.

use weir_engine::generation::Plan;
use weir_engine::http::Exchange;
use weir_ir::Regex;
use weir_ir::lowering::{Call, Fault};
use weir_syntax::Level;

use super::Passing;

/// What a level says of it.
struct Split {
    regex: Option<Regex>,
    index: Box<[u8]>,
}

pub(super) fn read(passing: &mut Passing, call: &mut Call<'_>) -> Result<(), Fault> {
    let regex = Regex::without_names(call.arg(0), call)?;
    if regex.groups() != 2 {
        return Err(call.fail([b"pattern \"", call.arg(0), b"\" must have 2 captures"].concat()));
    }
    // A second one takes the place of the first.
    passing.split.replace(regex);
    Ok(())
}

pub(super) fn attach(passing: &Passing, plan: &mut Plan<'_, '_>) {
    if passing.split.is_set() || passing.index.is_set() {
        let index = passing.index.or(Box::default());
        plan.handlers.attach(Split { regex: passing.split.get().cloned(), index });
    }
}

pub(super) fn script_name(x: &Exchange, out: &mut Vec<u8>) -> bool {
    let split = x.location().attached::<Split>();
    let Some((script, _)) = parts(x, split) else { return false };
    out.extend_from_slice(script);
    if let Some(split) = split.filter(|_| script.ends_with(b"/")) {
        out.extend_from_slice(&split.index);
    }
    true
}

pub(super) fn path_info(x: &Exchange, out: &mut Vec<u8>) -> bool {
    let parts = parts(x, x.location().attached());
    parts.map(|(_, rest)| out.extend_from_slice(rest)).is_some()
}

/// The script and the rest of the path; the script is all of it where the pattern does not match.
fn parts<'x>(x: &'x Exchange, split: Option<&Split>) -> Option<(&'x [u8], &'x [u8])> {
    let whole = &x.uri[..];
    let Some(regex) = split.and_then(|split| split.regex.as_ref()) else { return Some((whole, b"")) };
    match regex.captures(whole) {
        Ok(Some(groups)) => {
            let part = |n: usize| match groups.get(n).copied().flatten() {
                Some((start, end)) => &whole[start..end],
                None => b"",
            };
            Some((part(1), part(2)))
        }
        Ok(None) => Some((whole, b"")),
        Err(reason) => {
            let (path, pattern) = (String::from_utf8_lossy(whole), String::from_utf8_lossy(regex.source()));
            x.log(
                Level::Alert,
                format_args!("pcre2_match() failed: {reason} on \"{path}\" using \"{pattern}\""),
            );
            None
        }
    }
}

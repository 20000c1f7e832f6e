//! `glob(3)` for `include`: sorted, dot files only where the pattern says so.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// The paths that match a pattern of `*`, `?`, `[…]` and backslash escapes, in byte order.
///
/// # Errors
/// None yet: a folder that cannot be read has no matches, as with `glob(3)`.
pub fn paths(pattern: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let (mut found, rest) = match pattern.strip_prefix(b"/") {
        Some(rest) => (vec![b"/".to_vec()], rest),
        None => (vec![vec![]], pattern),
    };
    let components: Vec<&[u8]> = rest.split(|b| *b == b'/').filter(|c| !c.is_empty()).collect();
    for (index, component) in components.iter().enumerate() {
        let last = index + 1 == components.len();
        let mut next = vec![];
        for base in found {
            expand(&base, component, last, &mut next);
        }
        found = next;
    }
    found.sort();
    Ok(found)
}

fn join(base: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if base.is_empty() || base.ends_with(b"/") { b"" } else { b"/" };
    [base, slash, name].concat()
}

fn expand(base: &[u8], component: &[u8], last: bool, out: &mut Vec<Vec<u8>>) {
    if !component.iter().any(|b| matches!(b, b'*' | b'?' | b'[' | b'\\')) {
        let path = join(base, component);
        if fs::symlink_metadata(Path::new(OsStr::from_bytes(&path))).is_ok() {
            out.push(path);
        }
        return;
    }
    let folder = if base.is_empty() { b"." } else { base };
    let Ok(entries) = fs::read_dir(Path::new(OsStr::from_bytes(folder))) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().into_vec();
        let hidden = name.starts_with(b".") && !component.starts_with(b".");
        if !hidden && matches(component, &name) && (last || entry.path().is_dir()) {
            out.push(join(base, &name));
        }
    }
}

/// Whether a name matches a pattern without slashes (`fnmatch`).
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern {
        [] => name.is_empty(),
        [b'*', rest @ ..] => (0..=name.len()).any(|skip| matches(rest, &name[skip..])),
        [b'?', rest @ ..] => !name.is_empty() && matches(rest, &name[1..]),
        [b'[', rest @ ..] => match (name.split_first(), class(rest)) {
            (Some((byte, after)), Some((set, tail))) => set.contains(*byte) && matches(tail, after),
            (Some((byte, after)), None) => *byte == b'[' && matches(rest, after),
            (None, _) => false,
        },
        [b'\\', byte, rest @ ..] | [byte, rest @ ..] => {
            name.first() == Some(byte) && matches(rest, &name[1..])
        }
    }
}

/// What stands between brackets.
struct Class<'p> {
    negated: bool,
    body: &'p [u8],
}

impl Class<'_> {
    fn contains(&self, byte: u8) -> bool {
        let mut body = self.body;
        let mut found = false;
        while let Some((first, rest)) = body.split_first() {
            match rest {
                [b'-', last, tail @ ..] => {
                    found |= (*first..=*last).contains(&byte);
                    body = tail;
                }
                _ => {
                    found |= *first == byte;
                    body = rest;
                }
            }
        }
        found != self.negated
    }
}

fn class(pattern: &[u8]) -> Option<(Class<'_>, &[u8])> {
    let negated = matches!(pattern.first(), Some(b'!' | b'^'));
    let body = &pattern[usize::from(negated)..];
    // A bracket that comes first is one of the set.
    let end = body.iter().skip(1).position(|b| *b == b']')? + 1;
    Some((Class { negated, body: &body[..end] }, &body[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("*.conf", "a.conf", true),
            ("*.conf", "a.conf.bak", false),
            ("*", "", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]x", "]x", true),
            ("[ax", "[ax", true),
            ("\\*x", "*x", true),
            ("\\*x", "ax", false),
            ("a*b*c", "axxbyyc", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }
}

//! Shell patterns over paths, for the files in memory: a `*` does not cross a `/` nor match a leading dot.

/// Whether the whole of `path` matches `pattern`, component by component.
pub(crate) fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let (mut patterns, mut parts) = (pattern.split(|&c| c == b'/'), path.split(|&c| c == b'/'));
    loop {
        match (patterns.next(), parts.next()) {
            (None, None) => return true,
            (Some(pattern), Some(part)) if component(pattern, part) => {}
            (Some(_) | None, Some(_) | None) => return false,
        }
    }
}

fn component(pattern: &[u8], part: &[u8]) -> bool {
    if part.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    // The last star may take one byte more each time that what is behind it does not match.
    let (mut p, mut s) = (0, 0);
    let mut star = None;
    while s < part.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, s));
            p += 1;
        } else if let Some(used) = one(&pattern[p..], part[s]) {
            p += used;
            s += 1;
        } else if let Some((after, taken)) = star {
            (p, s) = (after, taken + 1);
            star = Some((after, taken + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// How many bytes of `pattern` matched `byte`.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', c, ..] => (*c == byte).then_some(2),
        [b'[', rest @ ..] => match set(rest, byte) {
            Some((true, used)) => Some(1 + used),
            Some((false, _)) => None,
            None => (byte == b'[').then_some(1),
        },
        [c, ..] => (*c == byte).then_some(1),
        [] => None,
    }
}

/// Whether `byte` is in the set that `pattern` begins with, and its length; `None` without a closing bracket.
fn set(pattern: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(pattern.first(), Some(b'!' | b'^'));
    let start = usize::from(negated);
    let mut at = start;
    let mut found = false;
    loop {
        match &pattern[at..] {
            [b']', ..] if at > start => return Some((found != negated, at + 1)),
            [lo, b'-', hi, ..] if *hi != b']' => {
                found |= (*lo..=*hi).contains(&byte);
                at += 3;
            }
            [c, ..] => {
                found |= *c == byte;
                at += 1;
            }
            [] => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[track_caller]
    fn check(pattern: &str, path: &str, expected: bool) {
        assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), expected, "{pattern} on {path}");
    }

    #[test]
    fn patterns() {
        check("/conf.d/*.conf", "/conf.d/a.conf", true);
        check("/conf.d/*.conf", "/conf.d/.conf", false);
        check("/conf.d/*.conf", "/conf.d/x/a.conf", false);
        check("/*/a", "/b/a", true);
        check("/*/a", "/b/c/a", false);
        check("/a?c", "/abc", true);
        check("/a?c", "/ac", false);
        check("/a[b-d]", "/ac", true);
        check("/a[!b-d]", "/ac", false);
        check("/a[]x]", "/a]", true);
        check("/a[", "/a[", true);
        check("/a*b*c", "/aXbYbZc", true);
        check("/a*b*c", "/aXbYbZ", false);
        check("/a\\*", "/a*", true);
        check("/a", "/a/b", false);
    }
}

//! The host of a request as `server_name` is matched against it.

use super::fields::Span;

/// A host that nginx answers with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHost;

/// A valid host: the part of the input that names it, and what came after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// How many leading bytes are the host: no port, no trailing dot; brackets of an IPv6 literal stay.
    pub len: usize,
    /// The port, 0 if none was given.
    pub port: u16,
    /// Whether it must be lower-cased before it is compared.
    pub upper: bool,
}

/// What a byte means in a host.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Class {
    Plain,
    Upper,
    Dot,
    Colon,
    Bracket,
    Percent,
    Bad,
}

const fn classes() -> [Class; 256] {
    let mut classes = [Class::Bad; 256];
    let mut at = 0;
    while at < 256 {
        classes[at] = match at as u8 {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => Class::Plain,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => Class::Plain,
            b'A'..=b'Z' => Class::Upper,
            b'.' => Class::Dot,
            b':' => Class::Colon,
            b']' => Class::Bracket,
            b'%' => Class::Percent,
            _ => Class::Bad,
        };
        at += 1;
    }
    classes
}

static CLASSES: [Class; 256] = classes();

/// Checks a host with its optional port: RFC 3986's `reg-name` or a bracketed literal, no empty labels inside.
pub fn validate_host(text: &[u8]) -> Result<Host, BadHost> {
    let literal = text.first() == Some(&b'[');
    let mut upper = false;
    let mut last_dot = None;
    let mut at = usize::from(literal);
    let end = loop {
        while text.get(at).is_some_and(|byte| CLASSES[*byte as usize] == Class::Plain) {
            at += 1;
        }
        let Some(&byte) = text.get(at) else {
            if literal {
                return Err(BadHost);
            }
            break at;
        };
        match CLASSES[byte as usize] {
            Class::Plain => {}
            Class::Upper => upper = true,
            Class::Dot => {
                if at > 0 && last_dot == Some(at - 1) {
                    return Err(BadHost);
                }
                last_dot = Some(at);
            }
            Class::Colon if !literal => break at,
            Class::Colon => {}
            Class::Bracket if literal => break at + 1,
            Class::Percent if !literal => {}
            Class::Bracket | Class::Percent | Class::Bad => return Err(BadHost),
        }
        at += 1;
    };
    let port = match text.get(end..) {
        None | Some([]) => 0,
        Some([b':', digits @ ..]) => port(digits)?,
        Some(_) => return Err(BadHost),
    };
    let len = if end > 0 && last_dot == Some(end - 1) { end - 1 } else { end };
    if len == 0 { Err(BadHost) } else { Ok(Host { len, port, upper }) }
}

/// At most 65535; a colon with nothing behind it is no port.
fn port(digits: &[u8]) -> Result<u16, BadHost> {
    digits.iter().try_fold(0u16, |port, digit| {
        if !digit.is_ascii_digit() {
            return Err(BadHost);
        }
        port.checked_mul(10).and_then(|port| port.checked_add(u16::from(digit - b'0'))).ok_or(BadHost)
    })
}

/// The host within `raw[start..end]`, lower-cased into `own` only where it needs to be.
pub(crate) fn place(raw: &[u8], start: usize, end: usize, own: &mut Vec<u8>) -> Result<(Span, u16), BadHost> {
    let text = raw.get(start..end).unwrap_or_default();
    let host = validate_host(text)?;
    if !host.upper {
        return Ok((Span::raw(start, start + host.len), host.port));
    }
    let from = own.len();
    own.extend(text[..host.len].iter().map(u8::to_ascii_lowercase));
    Ok((Span::own(from, own.len()), host.port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, u16)>) {
        let found = validate_host(text.as_bytes()).ok().map(|host| (&text[..host.len], host.port));
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn hosts() {
        check("a", Some(("a", 0)));
        check("A.example.", Some(("A.example", 0)));
        check("a.example.:8080", Some(("a.example", 8080)));
        check("a:", Some(("a", 0)));
        check("a:65535", Some(("a", 65535)));
        check("a:65536", None);
        check("a:99999999999", None);
        check("a:8x", None);
        check("a:80:80", None);
        check("[::1]", Some(("[::1]", 0)));
        check("[::1]:443", Some(("[::1]", 443)));
        check("[::1]x", None);
        check("[::1", None);
        check("[::%1]", None);
        check("a%41", Some(("a%41", 0)));
        check("a..b", None);
        check("..", None);
        check(".", None);
        check(".a", Some((".a", 0)));
        check("", None);
        check(":80", None);
        check("a/b", None);
        check("a b", None);
        check("a@b", None);
        check("a\tb", None);
        check("~!$&'()*+,;=_", Some(("~!$&'()*+,;=_", 0)));
        check("é", None);
    }
}

//! nginx's notations for sizes, times and numbers, as pure functions on bytes.

/// A plain decimal number.
pub fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = text.iter().try_fold(0u64, |n, d| n.checked_mul(10)?.checked_add(u64::from(d - b'0')))?;
    i64::try_from(value).is_ok().then_some(value)
}

/// A size: a number of bytes, or of `k` or `m`.
pub fn size(text: &[u8]) -> Option<u64> {
    scaled(text, &[(b'k', 10), (b'm', 20)])
}

/// An offset: as a size, and `g` too.
pub fn offset(text: &[u8]) -> Option<u64> {
    scaled(text, &[(b'k', 10), (b'm', 20), (b'g', 30)])
}

fn scaled(text: &[u8], units: &[(u8, u32)]) -> Option<u64> {
    let (last, head) = text.split_last()?;
    let value = match units.iter().find(|(unit, _)| *unit == last.to_ascii_lowercase()) {
        Some((_, shift)) => number(head)?.checked_mul(1 << shift)?,
        None => number(text)?,
    };
    i64::try_from(value).is_ok().then_some(value)
}

/// Milliseconds of a time such as `1h30m`, `500ms` or `5` (seconds).
pub fn msec(text: &[u8]) -> Option<u64> {
    time(text, true)
}

/// Seconds of a time such as `1d12h` or `60`; milliseconds are not taken.
pub fn sec(text: &[u8]) -> Option<u64> {
    time(text, false)
}

/// The units come in falling order, each at most once; a number without unit is seconds and ends the text.
fn time(text: &[u8], milliseconds: bool) -> Option<u64> {
    const YEAR: u64 = 365 * 86400;
    if text.is_empty() {
        return None;
    }
    let scale = if milliseconds { 1000 } else { 1 };
    let mut total = 0u64;
    // Rank of the last unit seen: years 0, months 1, weeks 2, days 3, hours 4, minutes 5, seconds 6, ms 7.
    let mut rank = -1i32;
    let mut rest = text;
    while !rest.is_empty() {
        if rest[0] == b' ' && rank >= 0 {
            rest = &rest[1..];
            continue;
        }
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        let value = number(&rest[..digits])?;
        rest = &rest[digits..];
        let (unit_rank, factor) = match rest {
            [b'm', b's', ..] if milliseconds => {
                rest = &rest[2..];
                (7, 1)
            }
            [unit, tail @ ..] => {
                let known = match unit {
                    b'y' => (0, YEAR * scale),
                    b'M' => (1, 30 * 86400 * scale),
                    b'w' => (2, 7 * 86400 * scale),
                    b'd' => (3, 86400 * scale),
                    b'h' => (4, 3600 * scale),
                    b'm' => (5, 60 * scale),
                    b's' => (6, scale),
                    b' ' => (8, scale),
                    _ => return None,
                };
                rest = tail;
                known
            }
            [] => (8, scale),
        };
        if unit_rank <= rank {
            return None;
        }
        rank = unit_rank;
        total = total.checked_add(value.checked_mul(factor)?)?;
    }
    i64::try_from(total).is_ok().then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("1", Some(1)),
            ("1k", Some(1024)),
            ("8K", Some(8192)),
            ("2m", Some(2 << 20)),
            ("1g", None),
            ("", None),
            ("k", None),
            ("1kk", None),
            ("-1", None),
            ("9223372036854775808", None),
        ] {
            assert_eq!(size(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(offset(b"1g"), Some(1 << 30));
    }

    #[test]
    fn times() {
        for (text, expected) in [
            ("5", Some(5000)),
            ("5s", Some(5000)),
            ("500ms", Some(500)),
            ("1h30m", Some(5_400_000)),
            ("1h 30m", Some(5_400_000)),
            ("30m1h", None),
            ("1m1m", None),
            ("1M", Some(2_592_000_000)),
            ("1x", None),
            ("", None),
            ("s", None),
        ] {
            assert_eq!(msec(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(sec(b"1m"), Some(60));
        assert_eq!(sec(b"500ms"), None);
    }
}

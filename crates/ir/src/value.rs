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

/// The units come in falling order, each at most once, with spaces behind them; a number without unit is seconds and
/// ends the text. Years and months are for seconds alone.
fn time(text: &[u8], milliseconds: bool) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut total = 0u64;
    let mut last = None;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        let value = number(&rest[..digits])?;
        let (unit, length) = unit(&rest[digits..], milliseconds)?;
        if last.is_some_and(|last| unit <= last) {
            return None;
        }
        last = Some(unit);
        total = total.checked_add(value.checked_mul(unit.factor(milliseconds))?)?;
        rest = rest[digits + length..].trim_ascii_start();
    }
    i64::try_from(total).is_ok().then_some(total)
}

/// From the longest to the shortest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Unit {
    Year,
    Month,
    Week,
    Day,
    Hour,
    Minute,
    Second,
    Millisecond,
    /// None written: seconds, after which nothing may follow.
    Bare,
}

impl Unit {
    fn factor(self, milliseconds: bool) -> u64 {
        let seconds = match self {
            Unit::Year => 365 * 86400,
            Unit::Month => 30 * 86400,
            Unit::Week => 7 * 86400,
            Unit::Day => 86400,
            Unit::Hour => 3600,
            Unit::Minute => 60,
            Unit::Second | Unit::Bare => 1,
            Unit::Millisecond => return 1,
        };
        if milliseconds { seconds * 1000 } else { seconds }
    }
}

/// The unit at the start of a text, and its length.
fn unit(text: &[u8], milliseconds: bool) -> Option<(Unit, usize)> {
    Some(match text {
        [] => (Unit::Bare, 0),
        [b' ', ..] => (Unit::Bare, 1),
        [b'm', b's', ..] if milliseconds => (Unit::Millisecond, 2),
        [b'y', ..] if !milliseconds => (Unit::Year, 1),
        [b'M', ..] if !milliseconds => (Unit::Month, 1),
        [b'w', ..] => (Unit::Week, 1),
        [b'd', ..] => (Unit::Day, 1),
        [b'h', ..] => (Unit::Hour, 1),
        [b'm', ..] => (Unit::Minute, 1),
        [b's', ..] => (Unit::Second, 1),
        _ => return None,
    })
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
            ("1w2d", Some(777_600_000)),
            ("1M", None),
            ("1y", None),
            ("1h ", Some(3_600_000)),
            ("5 1s", None),
            ("1s5", Some(6000)),
            ("1ms1s", None),
            ("9223372036854775807", None),
            ("1x", None),
            ("", None),
            ("s", None),
        ] {
            assert_eq!(msec(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(sec(b"1m"), Some(60));
        assert_eq!(sec(b"1y2M"), Some(365 * 86400 + 60 * 86400));
        assert_eq!(sec(b"9223372036854775807"), Some(i64::MAX as u64));
        assert_eq!(sec(b"500ms"), None);
    }
}

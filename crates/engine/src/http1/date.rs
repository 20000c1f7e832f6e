//! Points in time as HTTP, cookies and logs write them, from and to Unix seconds, without a clock and without allocation.

/// Everything but the clock that a time is written with; years end at 9999, and what lies before 1970 is written as 1970, as in nginx.
#[derive(Clone, Copy)]
struct Civil {
    year: u32,
    /// 0 is January.
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    /// 0 is Sunday.
    weekday: u32,
}

const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
pub(crate) const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
/// The last second of 9999.
const LAST: i64 = 253_402_300_799;

impl Civil {
    fn of(unix: i64) -> Self {
        let unix = unix.clamp(0, LAST) as u64;
        let days = (unix / 86400) as u32;
        let time = (unix % 86400) as u32;
        // Counted from March 1 of year 0, leap days end the years, and 400 years have 146097 days.
        let shifted = days + 719_468;
        let era_day = shifted % 146_097;
        let era_year = (era_day - era_day / 1460 + era_day / 36_524 - era_day / 146_096) / 365;
        let year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
        let march_month = (5 * year_day + 2) / 153;
        let month = (march_month + 2) % 12;
        Self {
            year: shifted / 146_097 * 400 + era_year + u32::from(month < 2),
            month,
            day: year_day - (153 * march_month + 2) / 5 + 1,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
            weekday: (days + 4) % 7,
        }
    }

    fn weekday(&self) -> &'static str {
        DAYS[self.weekday as usize % 7]
    }

    fn month(&self) -> &'static str {
        MONTHS[self.month as usize % 12]
    }
}

/// A time written out.
#[derive(Clone, Copy)]
pub struct Stamp {
    text: [u8; 32],
    len: usize,
}

impl Stamp {
    fn new() -> Self {
        Self { text: [0; 32], len: 0 }
    }

    fn text(mut self, text: &str) -> Self {
        for byte in text.bytes() {
            self = self.byte(byte);
        }
        self
    }

    fn byte(mut self, byte: u8) -> Self {
        if let Some(place) = self.text.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
        self
    }

    fn two(self, number: u32) -> Self {
        self.byte(b'0' + (number / 10 % 10) as u8).byte(b'0' + (number % 10) as u8)
    }

    fn four(self, number: u32) -> Self {
        self.two(number / 100).two(number % 100)
    }

    fn clock(self, time: &Civil) -> Self {
        self.two(time.hour).byte(b':').two(time.minute).byte(b':').two(time.second)
    }

    fn zone(self, offset: i32) -> Self {
        self.byte(if offset < 0 { b'-' } else { b'+' }).two(offset.unsigned_abs() / 60)
    }
}

impl AsRef<[u8]> for Stamp {
    fn as_ref(&self) -> &[u8] {
        &self.text[..self.len]
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7).
pub fn http(unix: i64) -> Stamp {
    let time = Civil::of(unix);
    let stamp = Stamp::new().text(time.weekday()).text(", ").two(time.day).byte(b' ').text(time.month());
    stamp.byte(b' ').four(time.year).byte(b' ').clock(&time).text(" GMT")
}

/// `Sun, 06-Nov-94 08:49:37 GMT`, with four digits for years after 2037, as browsers of old want them.
pub fn cookie(unix: i64) -> Stamp {
    let time = Civil::of(unix);
    let stamp = Stamp::new().text(time.weekday()).text(", ").two(time.day).byte(b'-').text(time.month());
    let stamp = stamp.byte(b'-');
    let stamp = if time.year > 2037 { stamp.four(time.year) } else { stamp.two(time.year % 100) };
    stamp.byte(b' ').clock(&time).text(" GMT")
}

/// `06/Nov/1994:08:49:37 +0000` (`$time_local`); `offset` is that of the local zone, in minutes east of UTC.
pub fn log(unix: i64, offset: i32) -> Stamp {
    let time = Civil::of(unix.saturating_add(i64::from(offset) * 60));
    let stamp = Stamp::new().two(time.day).byte(b'/').text(time.month()).byte(b'/').four(time.year);
    stamp.byte(b':').clock(&time).byte(b' ').zone(offset).two(offset.unsigned_abs() % 60)
}

/// `1994-11-06T08:49:37+00:00` (`$time_iso8601`); `offset` as in `log`.
pub fn iso8601(unix: i64, offset: i32) -> Stamp {
    let time = Civil::of(unix.saturating_add(i64::from(offset) * 60));
    let stamp = Stamp::new().four(time.year).byte(b'-').two(time.month + 1).byte(b'-').two(time.day);
    stamp.byte(b'T').clock(&time).zone(offset).byte(b':').two(offset.unsigned_abs() % 60)
}

/// `1994/11/06 08:49:37`, as lines of the error log start; `offset` as in `log`.
pub fn error_log(unix: i64, offset: i32) -> Stamp {
    let time = Civil::of(unix.saturating_add(i64::from(offset) * 60));
    let stamp = Stamp::new().four(time.year).byte(b'/').two(time.month + 1).byte(b'/').two(time.day);
    stamp.byte(b' ').clock(&time)
}

/// `Nov  6 08:49:37` (RFC 3164), as lines to syslog start; `offset` as in `log`.
pub fn syslog(unix: i64, offset: i32) -> Stamp {
    let time = Civil::of(unix.saturating_add(i64::from(offset) * 60));
    let stamp = Stamp::new().text(time.month()).byte(b' ');
    let stamp =
        if time.day < 10 { stamp.byte(b' ').byte(b'0' + time.day as u8) } else { stamp.two(time.day) };
    stamp.byte(b' ').clock(&time)
}

/// The layouts of RFC 9110 section 5.6.7, told apart by what stands behind the weekday and the day.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// `Sun, 06 Nov 1994 08:49:37 GMT`
    Rfc822,
    /// `Sunday, 06-Nov-94 08:49:37 GMT`
    Rfc850,
    /// `Sun Nov  6 08:49:37 1994`
    Asctime,
}

/// Reads a date of `If-Modified-Since` and its like, in any of the three layouts. As in nginx the weekday and the zone are not looked at, and of a
/// month only as many letters as tell it from others.
pub fn parse_http(text: &[u8]) -> Option<i64> {
    let comma = text.iter().position(|byte| matches!(byte, b',' | b' '))?;
    let mut layout = if text[comma] == b' ' { Some(Layout::Asctime) } else { None };
    let blanks = text[comma + 1..].iter().position(|byte| *byte != b' ')?;
    let mut rest = &text[comma + 1 + blanks..];
    if rest.len() < 18 {
        return None;
    }
    let mut day = 0;
    if layout.is_none() {
        day = digits(&mut rest, 2)?;
        layout = match rest.first()? {
            b' ' if rest.len() >= 18 => Some(Layout::Rfc822),
            b'-' => Some(Layout::Rfc850),
            _ => return None,
        };
        rest = &rest[1..];
    }
    let layout = layout?;
    let month = month(rest.get(..3)?)?;
    rest = &rest[3..];
    match (layout, rest.first()?) {
        (Layout::Asctime, _) | (Layout::Rfc822, b' ') | (Layout::Rfc850, b'-') => rest = &rest[1..],
        (Layout::Rfc822 | Layout::Rfc850, _) => return None,
    }
    let mut year = match layout {
        Layout::Rfc822 => digits(&mut rest, 4)?,
        Layout::Rfc850 => match digits(&mut rest, 2)? {
            year @ 0..70 => 2000 + year,
            year => 1900 + year,
        },
        Layout::Asctime => {
            rest = rest.strip_prefix(b" ").unwrap_or(rest);
            day = digits(&mut rest, 1)?;
            if rest.first()? != &b' ' {
                day = day * 10 + digits(&mut rest, 1)?;
            }
            0
        }
    };
    literal(&mut rest, b' ')?;
    let hour = digits(&mut rest, 2)?;
    literal(&mut rest, b':')?;
    let minute = digits(&mut rest, 2)?;
    literal(&mut rest, b':')?;
    let second = digits(&mut rest, 2)?;
    if layout == Layout::Asctime {
        literal(&mut rest, b' ')?;
        year = digits(&mut rest, 4)?;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        1 if leap => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    };
    if hour > 23 || minute > 59 || second > 59 || day > month_days {
        return None;
    }
    Some((days_before(year, month) + day - 1) * 86400 + hour * 3600 + minute * 60 + second)
}

/// Days from January 1, 1970 to the first of a month.
fn days_before(year: i64, month: i64) -> i64 {
    let (year, march_month) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    365 * year + leap_days + (153 * march_month + 2) / 5 - 719_468
}

fn month(name: &[u8]) -> Option<i64> {
    Some(match name {
        [b'J', b'a', _] => 0,
        [b'F', ..] => 1,
        [b'M', _, b'r'] => 2,
        [b'M', ..] => 4,
        [b'A', b'p', _] => 3,
        [b'A', ..] => 7,
        [b'J', _, b'n'] => 5,
        [b'J', ..] => 6,
        [b'S', ..] => 8,
        [b'O', ..] => 9,
        [b'N', ..] => 10,
        [b'D', ..] => 11,
        _ => return None,
    })
}

fn digits(rest: &mut &[u8], count: usize) -> Option<i64> {
    let (digits, behind) = rest.split_at_checked(count)?;
    *rest = behind;
    digits.iter().try_fold(0, |number, digit| {
        if digit.is_ascii_digit() { Some(number * 10 + i64::from(digit - b'0')) } else { None }
    })
}

fn literal(rest: &mut &[u8], byte: u8) -> Option<()> {
    *rest = rest.strip_prefix(&[byte])?;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(stamp: Stamp, expected: &str) {
        assert_eq!(String::from_utf8_lossy(stamp.as_ref()), expected);
    }

    #[test]
    fn stamps() {
        check(http(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        check(http(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        check(http(-5), "Thu, 01 Jan 1970 00:00:00 GMT");
        check(http(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
        check(http(4_107_542_399), "Sun, 28 Feb 2100 23:59:59 GMT");
        check(http(4_107_542_400), "Mon, 01 Mar 2100 00:00:00 GMT");
        check(http(i64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
        check(cookie(784_111_777), "Sun, 06-Nov-94 08:49:37 GMT");
        check(cookie(2_145_916_555), "Thu, 31-Dec-37 23:55:55 GMT");
        check(cookie(2_145_917_000 + 86400), "Sat, 02-Jan-2038 00:03:20 GMT");
        check(log(784_111_777, 0), "06/Nov/1994:08:49:37 +0000");
        check(log(784_111_777, 330), "06/Nov/1994:14:19:37 +0530");
        check(log(784_111_777, -210), "06/Nov/1994:05:19:37 -0330");
        check(iso8601(784_111_777, 60), "1994-11-06T09:49:37+01:00");
        check(iso8601(784_111_777, -30), "1994-11-06T08:19:37-00:30");
        check(error_log(784_111_777, 0), "1994/11/06 08:49:37");
        check(syslog(784_111_777, 0), "Nov  6 08:49:37");
        check(syslog(784_111_777 + 86400 * 10, 0), "Nov 16 08:49:37");
    }

    #[track_caller]
    fn check_parse(text: &str, expected: Option<i64>) {
        assert_eq!(parse_http(text.as_bytes()), expected, "{text}");
    }

    #[test]
    fn parsed() {
        check_parse("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777));
        check_parse("Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777));
        check_parse("Sun Nov  6 08:49:37 1994", Some(784_111_777));
        check_parse("Sun Nov 16 08:49:37 1994", Some(784_111_777 + 864_000));
        check_parse("x,06 Nov 1994 08:49:37", Some(784_111_777));
        check_parse("Sun, 06 Nov 1994 08:49:37 GMT; length=5", Some(784_111_777));
        check_parse("Tue, 29 Feb 2000 00:00:00 GMT", Some(951_782_400));
        check_parse("Tue, 29 Feb 2001 00:00:00 GMT", None);
        check_parse("Tue, 29 Feb 1900 00:00:00 GMT", None);
        check_parse("Tue, 31 Apr 2001 00:00:00 GMT", None);
        check_parse("Thu, 01 Jan 1970 00:00:00 GMT", Some(0));
        check_parse("Wed, 31 Dec 1969 23:59:59 GMT", Some(-1));
        check_parse("Sun, 06 Nov 1994 24:00:00 GMT", None);
        check_parse("Sun, 06 Nov 1994 08:60:37 GMT", None);
        check_parse("Sun, 06 Nov 1994 08:49:60 GMT", None);
        check_parse("Sun, 6 Nov 1994 08:49:37 GMT", None);
        check_parse("Sun, 06 Nov 94 08:49:37 GMT", None);
        check_parse("Sun, 06 Xov 1994 08:49:37 GMT", None);
        check_parse("784111777", None);
        check_parse("", None);
        check_parse(",", None);
        for cut in 0..24 {
            check_parse(&"Sun, 06 Nov 1994 08:49:37 GMT"[..cut], None);
            check_parse(&"Sun Nov  6 08:49:37 1994"[..cut], None);
        }
    }

    #[test]
    fn every_day_reads_back() {
        for day in (0..=LAST / 86400).step_by(13) {
            let unix = day * 86400 + day % 86400;
            assert_eq!(parse_http(http(unix).as_ref()), Some(unix));
        }
    }
}

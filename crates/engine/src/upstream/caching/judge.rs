//! What the head of an answer says of keeping it: `X-Accel-Expires`, `Cache-Control`, `Expires`, `Vary`, `Set-Cookie`, judged
//! in the order in which they stand, as nginx judges them.

use weir_ir::value;

use crate::cache::ROOM;
use crate::http1::response::Head;
use crate::http1::{Known, date};
use crate::upstream::exchange::ignore;

/// Times are seconds, `valid` since the epoch; 0 is nothing said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Judged {
    pub valid: i64,
    /// For how long it may be used after that while it is updated, or cannot be.
    pub updating: i64,
    pub error: i64,
    /// It is not to be kept.
    pub forbidden: bool,
    pub vary: Vec<u8>,
}

/// What was said so far.
#[derive(Default)]
struct Said {
    judged: Judged,
    no_cache: bool,
    expired: bool,
    /// By `X-Accel-Expires`, which counts more than the others.
    accel: bool,
}

pub(super) fn judge(head: &Head, ignored: u32, now: i64) -> Judged {
    let mut said = Said::default();
    for field in head.fields() {
        let value = head.get(field.value);
        match field.known {
            Known::SetCookie if ignored & ignore::SET_COOKIE == 0 => said.judged.forbidden = true,
            Known::XAccelExpires => {
                said.accel = true;
                if ignored & ignore::X_ACCEL_EXPIRES == 0 {
                    said.accel_expires(value, now);
                }
            }
            Known::CacheControl if ignored & ignore::CACHE_CONTROL == 0 => {
                if said.cache_control(value, now).is_none() {
                    said.judged.forbidden = true;
                }
            }
            Known::Expires if ignored & ignore::EXPIRES == 0 && said.judged.valid == 0 => {
                match date::parse_http(value) {
                    Some(time) if time >= now => said.judged.valid = time,
                    Some(_) | None => said.expired = true,
                }
            }
            Known::Vary if ignored & ignore::VARY == 0 => said.vary(value),
            _ => {}
        }
    }
    said.judged.forbidden |= said.no_cache || said.expired;
    said.judged
}

impl Said {
    fn accel_expires(&mut self, value: &[u8], now: i64) {
        let number = |text: &[u8]| value::number(text).map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        let valid = match value.strip_prefix(b"@") {
            Some(time) => number(time),
            None => match number(value) {
                Some(0) => {
                    self.judged.forbidden = true;
                    return;
                }
                seconds => seconds.map(|seconds| now.saturating_add(seconds)),
            },
        };
        if let Some(valid) = valid {
            self.judged.valid = valid;
            self.no_cache = false;
            self.expired = false;
        }
    }

    /// `None`: it has a number that is none.
    fn cache_control(&mut self, value: &[u8], now: i64) -> Option<()> {
        let value = value.to_ascii_lowercase();
        if self.judged.valid == 0 || !self.accel {
            if ["no-cache", "no-store", "private"].iter().any(|word| find(&value, word).is_some()) {
                self.no_cache = true;
                return Some(());
            }
            match find(&value, "s-maxage=").or_else(|| find(&value, "max-age=")).map(delta_seconds) {
                None => {}
                Some(Some(0)) => {
                    self.no_cache = true;
                    return Some(());
                }
                Some(seconds) => {
                    self.judged.valid = now.saturating_add(seconds?);
                    self.expired = false;
                }
            }
        }
        if let Some(seconds) = find(&value, "stale-while-revalidate=").map(delta_seconds) {
            self.judged.updating = seconds?;
            self.judged.error = seconds?;
        }
        if let Some(seconds) = find(&value, "stale-if-error=").map(delta_seconds) {
            self.judged.error = seconds?;
        }
        Some(())
    }

    fn vary(&mut self, value: &[u8]) {
        if self.judged.forbidden {
            return;
        }
        let vary = &mut self.judged.vary;
        if !vary.is_empty() {
            vary.extend_from_slice(b", ");
        }
        vary.extend_from_slice(value);
        self.judged.forbidden = value == b"*" || vary.len() > ROOM;
    }
}

/// What follows a word.
fn find<'v>(value: &'v [u8], word: &str) -> Option<&'v [u8]> {
    memchr::memmem::find(value, word.as_bytes()).map(|at| &value[at + word.len()..])
}

/// Digits up to the end of the directive; `None` where something else stands there.
fn delta_seconds(text: &[u8]) -> Option<i64> {
    let end = text.iter().position(|byte| matches!(byte, b',' | b';' | b' ')).unwrap_or(text.len());
    let digits = &text[..end];
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0i64, |n, digit| n.saturating_mul(10).saturating_add(i64::from(digit - b'0'))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 784_111_777;

    #[track_caller]
    fn check(fields: &str, ignored: u32, expected: Judged) {
        let mut head = Head::new();
        let text = format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", fields.replace('|', "\r\n"));
        head.parse(text.as_bytes(), 4096).unwrap();
        assert_eq!(judge(&head, ignored, NOW), expected, "{fields}");
    }

    fn valid(seconds: i64) -> Judged {
        Judged { valid: NOW + seconds, ..Judged::default() }
    }

    fn forbidden() -> Judged {
        Judged { forbidden: true, ..Judged::default() }
    }

    #[test]
    fn for_how_long_an_answer_is_valid() {
        check("A: b", 0, Judged::default());
        check("Cache-Control: max-age=10", 0, valid(10));
        check("Cache-Control: max-age=10, s-maxage=20", 0, valid(20));
        check("Cache-Control: public, MAX-AGE=10; x", 0, valid(10));
        check("Cache-Control: max-age=0", 0, forbidden());
        check("Cache-Control: max-age=x", 0, forbidden());
        check(
            "Cache-Control: max-age=99999999999999999999",
            0,
            Judged { valid: i64::MAX, ..Judged::default() },
        );
        check("Cache-Control: No-Store", 0, forbidden());
        check("Cache-Control: private", 0, forbidden());
        check("Expires: Sun, 06 Nov 1994 08:49:47 GMT", 0, valid(10));
        check("Expires: Sun, 06 Nov 1994 08:49:27 GMT", 0, forbidden());
        check("Expires: 0", 0, forbidden());
        check("X-Accel-Expires: 30", 0, valid(30));
        check("X-Accel-Expires: 0", 0, forbidden());
        check("X-Accel-Expires: @784111779", 0, valid(2));
        check("X-Accel-Expires: x", 0, Judged::default());
        check("Set-Cookie: a=b", 0, forbidden());
    }

    #[test]
    fn which_field_counts() {
        check("X-Accel-Expires: 30|Cache-Control: no-cache", 0, valid(30));
        check("Cache-Control: no-cache|X-Accel-Expires: 30", 0, valid(30));
        check("Expires: 0|Cache-Control: max-age=10", 0, valid(10));
        check("Cache-Control: max-age=10|Expires: 0", 0, valid(10));
        check("Expires: Sun, 06 Nov 1994 08:49:47 GMT|Cache-Control: max-age=20", 0, valid(20));
        check("Cache-Control: no-cache", ignore::CACHE_CONTROL, Judged::default());
        check("Expires: 0", ignore::EXPIRES, Judged::default());
        check("X-Accel-Expires: 0", ignore::X_ACCEL_EXPIRES, Judged::default());
        check("Set-Cookie: a=b", ignore::SET_COOKIE, Judged::default());
    }

    #[test]
    fn for_how_long_it_may_be_stale() {
        let said = "Cache-Control: max-age=10, stale-while-revalidate=5";
        check(said, 0, Judged { updating: 5, error: 5, ..valid(10) });
        let said = "Cache-Control: max-age=10, stale-while-revalidate=5, stale-if-error=7";
        check(said, 0, Judged { updating: 5, error: 7, ..valid(10) });
        let said = "X-Accel-Expires: 30|Cache-Control: max-age=10, stale-if-error=7";
        check(said, 0, Judged { error: 7, ..valid(30) });
        check("Cache-Control: stale-if-error=x", 0, forbidden());
    }

    #[test]
    fn what_it_varies_by() {
        let vary = |text: &str| Judged { vary: text.into(), ..Judged::default() };
        check("Vary: Accept|Vary: X", 0, vary("Accept, X"));
        check("Vary: *", 0, Judged { forbidden: true, ..vary("*") });
        check("Vary: *", ignore::VARY, Judged::default());
        let long = "x".repeat(129);
        check(&format!("Vary: {long}"), 0, Judged { forbidden: true, ..vary(&long) });
    }
}

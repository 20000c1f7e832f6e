//! Local time of day, and times in a page's own words: what the standard library does not know and the C library does.
#![allow(unsafe_code)]

use std::ffi::CStr;

use nix::libc;

/// A moment in local time, as the C library gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    pub year: i32,
    /// 1 to 12.
    pub month: i32,
    pub day: i32,
    pub hour: i32,
    pub minute: i32,
    pub second: i32,
    /// Seconds east of UTC.
    pub offset: i64,
}

/// `seconds` since the epoch in the zone of `TZ`, or of `/etc/localtime`, as it was at the first call.
pub fn local(seconds: i64) -> Local {
    let parts = broken_down(seconds, false);
    Local {
        year: parts.tm_year + 1900,
        month: parts.tm_mon + 1,
        day: parts.tm_mday,
        hour: parts.tm_hour,
        minute: parts.tm_min,
        second: parts.tm_sec,
        offset: parts.tm_gmtoff,
    }
}

fn broken_down(seconds: i64, gmt: bool) -> libc::tm {
    // SAFETY: `tm` is plain integers and a pointer, for all of which zero is a valid value.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    let time = seconds as libc::time_t;
    let convert = if gmt { libc::gmtime_r } else { libc::localtime_r };
    // SAFETY: both pointers are valid for the call and neither function keeps any. `localtime_r` reads the environment,
    // which nothing in weir changes after its start (`set_var` is unsafe and not called).
    unsafe { convert(&time, &mut parts) };
    parts
}

/// Appends `seconds` since the epoch as `strftime` writes them, of local time or of GMT. False where that is nothing, or
/// more than 2048 bytes.
pub fn format(seconds: i64, gmt: bool, form: &CStr, out: &mut Vec<u8>) -> bool {
    let parts = broken_down(seconds, gmt);
    let mut text = [0u8; 2048];
    // SAFETY: the buffer has that length, the form ends in a zero byte, and `parts` is what the C library filled in, with
    // the name of a zone that lives as long as the process.
    let length = unsafe { libc::strftime(text.as_mut_ptr().cast(), text.len(), form.as_ptr(), &parts) };
    out.extend_from_slice(&text[..length]);
    length > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_other_words() {
        let mut out = vec![];
        assert!(format(784_111_777, true, c"%A, %d-%b-%Y %H:%M:%S %Z", &mut out));
        assert_eq!(out, b"Sunday, 06-Nov-1994 08:49:37 GMT");
        assert!(!format(0, true, c"", &mut out));
        let long = std::ffi::CString::new("x".repeat(2048)).unwrap();
        assert!(!format(0, false, &long, &mut out));
    }

    #[test]
    fn local_time_is_utc_plus_its_offset() {
        let now = 1_795_372_224;
        let at = local(now);
        let of_day = i64::from(at.hour) * 3600 + i64::from(at.minute) * 60 + i64::from(at.second);
        assert_eq!((now + at.offset).rem_euclid(86_400), of_day);
        assert_eq!(at.year, 2026);
    }
}

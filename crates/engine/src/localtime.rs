//! Local time of day, which the standard library does not know: one call into the C library.
#![allow(unsafe_code)]

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
    // SAFETY: `tm` is plain integers and a pointer, for all of which zero is a valid value.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    let time = seconds as libc::time_t;
    // SAFETY: both pointers are valid for the call and `localtime_r` keeps neither. It reads the environment, which
    // nothing in weir changes after its start (`set_var` is unsafe and not called).
    unsafe { libc::localtime_r(&time, &mut parts) };
    Local {
        year: parts.tm_year + 1900,
        month: parts.tm_mon + 1,
        day: parts.tm_mday,
        hour: parts.tm_hour,
        minute: parts.tm_min,
        second: parts.tm_sec,
        offset: parts.tm_gmtoff as i64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_time_is_utc_plus_its_offset() {
        let now = 1_795_372_224;
        let at = local(now);
        let of_day = i64::from(at.hour) * 3600 + i64::from(at.minute) * 60 + i64::from(at.second);
        assert_eq!((now + at.offset).rem_euclid(86_400), of_day);
        assert_eq!(at.year, 2026);
    }
}

//! Header names that the engine or a module asks for by name, found without hashing a string at request time.

macro_rules! known {
    ($($variant:ident = $name:literal,)*) => {
        /// A header name the house knows; everything else is `Other`.
        ///
        /// One set serves requests and responses: a name means the same in both, and the presence bits of a head fit one `u128`.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Known {
            /// A name outside of this list, or one with characters no known name has.
            #[default]
            Other,
            $(#[doc = concat!("`", $name, "`")] $variant,)*
        }

        const VARIANTS: &[Known] = &[Known::Other, $(Known::$variant,)*];
        const NAMES: &[&str] = &["", $($name,)*];
    };
}

known! {
    Host = "host",
    Connection = "connection",
    ProxyConnection = "proxy-connection",
    IfModifiedSince = "if-modified-since",
    IfUnmodifiedSince = "if-unmodified-since",
    IfMatch = "if-match",
    IfNoneMatch = "if-none-match",
    UserAgent = "user-agent",
    Referer = "referer",
    ContentLength = "content-length",
    ContentRange = "content-range",
    ContentType = "content-type",
    Range = "range",
    IfRange = "if-range",
    TransferEncoding = "transfer-encoding",
    Te = "te",
    Expect = "expect",
    Upgrade = "upgrade",
    AcceptEncoding = "accept-encoding",
    Via = "via",
    Authorization = "authorization",
    ProxyAuthorization = "proxy-authorization",
    KeepAlive = "keep-alive",
    XForwardedFor = "x-forwarded-for",
    XRealIp = "x-real-ip",
    Accept = "accept",
    AcceptLanguage = "accept-language",
    Depth = "depth",
    Destination = "destination",
    Overwrite = "overwrite",
    Date = "date",
    Cookie = "cookie",
    XForwardedProto = "x-forwarded-proto",
    XForwardedHost = "x-forwarded-host",
    Origin = "origin",
    SecWebSocketKey = "sec-websocket-key",
    SecWebSocketVersion = "sec-websocket-version",
    SecWebSocketProtocol = "sec-websocket-protocol",
    SecWebSocketExtensions = "sec-websocket-extensions",
    SecWebSocketAccept = "sec-websocket-accept",
    Server = "server",
    Location = "location",
    Refresh = "refresh",
    SetCookie = "set-cookie",
    ContentEncoding = "content-encoding",
    LastModified = "last-modified",
    ETag = "etag",
    Expires = "expires",
    CacheControl = "cache-control",
    Vary = "vary",
    Trailer = "trailer",
    WwwAuthenticate = "www-authenticate",
    ProxyAuthenticate = "proxy-authenticate",
    Link = "link",
    AcceptRanges = "accept-ranges",
    Age = "age",
    XAccelRedirect = "x-accel-redirect",
    XAccelExpires = "x-accel-expires",
    XAccelLimitRate = "x-accel-limit-rate",
    XAccelBuffering = "x-accel-buffering",
    XAccelCharset = "x-accel-charset",
    Status = "status",
    ContentDisposition = "content-disposition",
    Pragma = "pragma",
    UpgradeInsecureRequests = "upgrade-insecure-requests",
    Http2Settings = "http2-settings",
    Forwarded = "forwarded",
    Priority = "priority",
    Timeout = "timeout",
    LockToken = "lock-token",
    If = "if",
    EarlyData = "early-data",
    AccessControlRequestMethod = "access-control-request-method",
    AccessControlRequestHeaders = "access-control-request-headers",
    XRequestedWith = "x-requested-with",
}

/// Where a name sits in `SLOTS`. The factors were searched for so that no two known names share a slot;
/// `slots` fails the build if a new name does.
const fn slot(name: &[u8]) -> usize {
    let len = name.len();
    (len * 209 + low(name[0]) * 103 + low(name[len - 1]) * 8 + low(name[len / 2]) * 56) & 255
}

const fn low(byte: u8) -> usize {
    (byte | 0x20) as usize
}

const fn slots() -> [u8; 256] {
    let mut slots = [0; 256];
    let mut at = 1;
    while at < NAMES.len() {
        let slot = slot(NAMES[at].as_bytes());
        assert!(slots[slot] == 0, "two known header names share a slot: search new factors");
        slots[slot] = at as u8;
        at += 1;
    }
    slots
}

static SLOTS: [u8; 256] = slots();

impl Known {
    /// How many there are, `Other` included.
    pub const COUNT: usize = NAMES.len();

    /// The known header of this name in any case.
    ///
    /// Exact for names made of letters, digits, `-` and `_`; a caller that lets other bytes pass does not ask.
    #[inline]
    pub fn of(name: &[u8]) -> Self {
        if name.is_empty() {
            return Self::Other;
        }
        let at = SLOTS[slot(name)] as usize;
        if same_name(name, NAMES[at].as_bytes()) { VARIANTS[at] } else { Self::Other }
    }

    /// The name in lower case, empty for `Other`.
    pub const fn name(self) -> &'static str {
        NAMES[self as usize]
    }

    pub(crate) const fn bit(self) -> u128 {
        1 << self as u8
    }
}

/// Compares eight bytes at a time with the case bit set: among bytes that a header name may hold, that bit tells
/// nothing but upper from lower case.
#[inline]
fn same_name(name: &[u8], lower: &[u8]) -> bool {
    const CASE: u64 = 0x2020_2020_2020_2020;
    if name.len() != lower.len() {
        return false;
    }
    let (words, tail) = name.as_chunks::<8>();
    let (lower_words, lower_tail) = lower.as_chunks::<8>();
    words.iter().zip(lower_words).all(|(a, b)| u64::from_le_bytes(*a) | CASE == u64::from_le_bytes(*b))
        && tail.iter().zip(lower_tail).all(|(a, b)| a | 0x20 == *b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_in_any_case() {
        for (at, name) in NAMES.iter().enumerate().skip(1) {
            assert_eq!(Known::of(name.as_bytes()), VARIANTS[at]);
            assert_eq!(Known::of(name.to_ascii_uppercase().as_bytes()), VARIANTS[at]);
            assert_eq!(VARIANTS[at].name(), *name);
            assert!(VARIANTS[at] as usize == at && at < 128);
        }
    }

    #[test]
    fn near_names_are_other() {
        for name in
            ["", "x", "hos", "hosts", "h0st", "content_length", "content-lengtH2", "x-real-iq", "_ost"]
        {
            assert_eq!(Known::of(name.as_bytes()), Known::Other, "{name}");
        }
    }
}

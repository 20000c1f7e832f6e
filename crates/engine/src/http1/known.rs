//! Header names that the engine or a module asks for by name, found without hashing a string at request time.

use wide::u8x16;

macro_rules! known {
    ($($variant:ident = $name:literal,)*) => {
        /// A header name the house knows; everything else is `Other`.
        ///
        /// One set serves requests and responses: a name means the same in both.
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
const fn slot(len: usize, first: u8, last: u8, middle: u8) -> usize {
    (len * 209 + low(first) * 103 + low(last) * 8 + low(middle) * 56) & 255
}

const fn low(byte: u8) -> usize {
    (byte | 0x20) as usize
}

const fn slots() -> [u8; 256] {
    let mut slots = [0; 256];
    let mut at = 1;
    while at < NAMES.len() {
        let name = NAMES[at].as_bytes();
        let slot = slot(name.len(), name[0], name[name.len() - 1], name[name.len() / 2]);
        assert!(slots[slot] == 0, "two known header names share a slot: search new factors");
        slots[slot] = at as u8;
        at += 1;
    }
    slots
}

static SLOTS: [u8; 256] = slots();

/// A name laid out for comparison sixteen bytes at a time.
struct Pattern {
    len: usize,
    /// In lower case, zero behind its end.
    text: [[u8; 16]; HALVES],
    /// What counts of each byte: all bits but the case of letters, nothing behind the end.
    masks: [[u8; 16]; HALVES],
}

/// Enough for the longest name.
const HALVES: usize = 2;

/// How many bytes a name can have.
const LONGEST: usize = 16 * HALVES;

const fn patterns() -> [Pattern; NAMES.len()] {
    let mut patterns =
        [const { Pattern { len: 0, text: [[0; 16]; HALVES], masks: [[0; 16]; HALVES] } }; NAMES.len()];
    let mut at = 0;
    while at < NAMES.len() {
        let name = NAMES[at].as_bytes();
        patterns[at].len = name.len();
        let mut byte = 0;
        while byte < name.len() {
            let mask = if name[byte].is_ascii_alphabetic() { !0x20 } else { 0xff };
            patterns[at].text[byte / 16][byte % 16] = name[byte] & mask;
            patterns[at].masks[byte / 16][byte % 16] = mask;
            byte += 1;
        }
        at += 1;
    }
    patterns
}

static PATTERNS: [Pattern; NAMES.len()] = patterns();

impl Known {
    /// How many there are, `Other` included.
    pub const COUNT: usize = NAMES.len();

    /// The known header of this name in any case.
    pub fn of(name: &[u8]) -> Self {
        let mut padded = [0; LONGEST];
        match padded.get_mut(..name.len()) {
            Some(place) => place.copy_from_slice(name),
            None => return Self::Other,
        }
        Self::within(&padded, name.len())
    }

    /// As `of` for the first `len` bytes of `text`, whatever stands behind them.
    #[inline(always)]
    pub(crate) fn within(text: &[u8; LONGEST], len: usize) -> Self {
        if len == 0 || len > text.len() {
            return Self::Other;
        }
        let at = SLOTS[slot(len, text[0], text[len - 1], text[len / 2])] as usize;
        let pattern = &PATTERNS[at];
        if pattern.len != len {
            return Self::Other;
        }
        let (halves, _) = text.as_chunks::<16>();
        let same = |half: usize| {
            (u8x16::new(halves[half]) & u8x16::new(pattern.masks[half]))
                .simd_eq(u8x16::new(pattern.text[half]))
        };
        if (same(0) & same(1)).all() { VARIANTS[at] } else { Self::Other }
    }

    /// The name in lower case, empty for `Other`.
    pub const fn name(self) -> &'static str {
        NAMES[self as usize]
    }
}

/// A set of known headers.
#[derive(Clone, Copy, Debug)]
pub struct KnownSet([bool; Known::COUNT]);

impl KnownSet {
    pub const fn of(names: &[Known]) -> Self {
        let mut set = Self([false; Known::COUNT]);
        let mut at = 0;
        while at < names.len() {
            set.insert(names[at]);
            at += 1;
        }
        set
    }

    pub const fn insert(&mut self, known: Known) {
        self.0[known as usize] = true;
    }

    #[inline]
    pub const fn has(&self, known: Known) -> bool {
        self.0[known as usize]
    }
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
            assert!(VARIANTS[at] as usize == at);
        }
    }

    #[test]
    fn near_names_are_other() {
        for name in [
            "",
            "x",
            "hos",
            "hosts",
            "h0st",
            "content_length",
            "content-lengtH2",
            "x-real-iq",
            "_ost",
            "content\rlength",
            "Content\rLength",
        ] {
            assert_eq!(Known::of(name.as_bytes()), Known::Other, "{name}");
        }
    }
}

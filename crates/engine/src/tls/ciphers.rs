//! OpenSSL's words for cipher suites and groups, and which of rustls's they mean.
//!
//! nginx hands `ssl_ciphers` and `ssl_ecdh_curve` to OpenSSL as they are, so this is OpenSSL's language
//! (ciphers(1)): rules that add, delete, kill or move suites, whose words may be joined by `+`.

use std::fmt;

use rustls::crypto::SupportedKxGroup;
use rustls::crypto::aws_lc_rs::{cipher_suite as suite, kx_group};
use rustls::{CipherSuite, NamedGroup, SupportedCipherSuite};

pub use super::schedule::TLS13;

/// The suites of TLS 1.2 with the words that OpenSSL finds each by, in OpenSSL's order of preference.
const TLS12: [(SupportedCipherSuite, &[&str]); 6] = [
    (
        suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        &["ECDHE-ECDSA-AES256-GCM-SHA384", "ECDSA", "aECDSA", "AES256", "AESGCM", "AES"],
    ),
    (
        suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        &["ECDHE-RSA-AES256-GCM-SHA384", "RSA", "aRSA", "AES256", "AESGCM", "AES"],
    ),
    (
        suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        &["ECDHE-ECDSA-CHACHA20-POLY1305", "ECDSA", "aECDSA", "CHACHA20"],
    ),
    (
        suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        &["ECDHE-RSA-CHACHA20-POLY1305", "RSA", "aRSA", "CHACHA20"],
    ),
    (
        suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        &["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDSA", "aECDSA", "AES128", "AESGCM", "AES"],
    ),
    (
        suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        &["ECDHE-RSA-AES128-GCM-SHA256", "RSA", "aRSA", "AES128", "AESGCM", "AES"],
    ),
];

/// Words that mean every suite of [`TLS12`]. `RSA` is none of them: it is the key exchange, which rustls has not.
const COMMON: [&str; 10] =
    ["ALL", "HIGH", "ECDH", "ECDHE", "EECDH", "kECDHE", "kEECDH", "TLSv1.2", "FIPS", "DEFAULT"];

/// Further words by which OpenSSL finds suites, none of [`TLS12`] among them.
const FOREIGN: [&str; 36] = [
    "COMPLEMENTOFALL",
    "COMPLEMENTOFDEFAULT",
    "eNULL",
    "NULL",
    "aNULL",
    "kRSA",
    "kDHE",
    "kEDH",
    "DHE",
    "EDH",
    "DH",
    "ADH",
    "AECDH",
    "aDSS",
    "DSS",
    "TLSv1.0",
    "TLSv1",
    "SSLv3",
    "AESCCM",
    "AESCCM8",
    "ARIA",
    "ARIA128",
    "ARIA256",
    "ARIAGCM",
    "CAMELLIA",
    "CAMELLIA128",
    "CAMELLIA256",
    "MD5",
    "SHA1",
    "SHA",
    "SHA256",
    "SHA384",
    "PSK",
    "kPSK",
    "aPSK",
    "SRP",
];

/// Why a list of ciphers cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadList {
    /// OpenSSL would not take it, for this reason in its words.
    Openssl(&'static str),
    /// OpenSSL would take it, but weir has none of its suites.
    Unavailable,
}

impl fmt::Display for BadList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Openssl(reason) => f.write_str(reason),
            Self::Unavailable => f.write_str("weir has none of the ciphers"),
        }
    }
}

const NO_MATCH: BadList = BadList::Openssl("error:0A0000B9:SSL routines::no cipher match");
const INVALID: BadList = BadList::Openssl("error:0A000118:SSL routines::invalid command");

/// The suites of TLS 1.2 that a list means, most preferred first (nginx: `ssl_ciphers`).
///
/// # Errors
/// The list is none, or leaves nothing that rustls has.
pub fn tls12(list: &str) -> Result<Vec<SupportedCipherSuite>, BadList> {
    // Positions in TLS12: chosen ones in order, and those that may never come back.
    let mut chosen: Vec<usize> = vec![];
    let mut killed = [false; TLS12.len()];
    let mut known = false;
    let mut rest = list.trim_start_matches(is_separator);
    while let Some(first) = rest.chars().next() {
        let rule = if matches!(first, '!' | '-' | '+' | '@') { Some(first) } else { None };
        let body = &rest[rule.map_or(0, char::len_utf8)..];
        let end = body.find(|c: char| !is_word(c) && c != '+').unwrap_or(body.len());
        let (words, after) = body.split_at(end);
        if words.is_empty() || words.ends_with('+') {
            return Err(INVALID);
        }
        rest = after.trim_start_matches(is_separator);
        let found: Vec<usize> =
            (0..TLS12.len()).filter(|at| words.split('+').all(|w| means(*at, w))).collect();
        match rule {
            // `@STRENGTH` keeps the order that the table has anyway, `@SECLEVEL` rules out nothing that is left.
            Some('@') => {
                if words == "STRENGTH" {
                    chosen.sort_unstable_by_key(|at| *at);
                } else if !matches!(words.strip_prefix("SECLEVEL=").map(str::as_bytes), Some([b'0'..=b'5'])) {
                    return Err(INVALID);
                }
            }
            Some('!') => {
                chosen.retain(|at| !found.contains(at));
                found.iter().for_each(|at| killed[*at] = true);
            }
            Some('-') => chosen.retain(|at| !found.contains(at)),
            Some('+') => {
                let (moved, kept): (Vec<_>, Vec<_>) = chosen.iter().partition(|at| found.contains(at));
                chosen = kept;
                chosen.extend(moved);
            }
            Some(_) | None => {
                known |= words.split('+').all(is_known);
                for at in found {
                    if !killed[at] && !chosen.contains(&at) {
                        chosen.push(at);
                    }
                }
            }
        }
    }
    match (chosen.is_empty(), known) {
        (false, _) => Ok(chosen.into_iter().map(|at| TLS12[at].0).collect()),
        // What was chosen and then killed by name is nothing in OpenSSL too, most of the time.
        (true, true) if killed.iter().all(|k| !k) => Err(BadList::Unavailable),
        (true, _) => Err(NO_MATCH),
    }
}

fn is_separator(c: char) -> bool {
    matches!(c, ':' | ',' | ';' | ' ')
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '=')
}

fn means(at: usize, word: &str) -> bool {
    let (suite, words) = &TLS12[at];
    // `RSA` alone is the key exchange; as the second name of authentication it is `aRSA`.
    (word != "RSA" && words.contains(&word))
        || COMMON.contains(&word)
        || suite.suite().as_str().is_some_and(|name| name == word)
}

fn is_known(word: &str) -> bool {
    word == "RSA"
        || COMMON.contains(&word)
        || FOREIGN.contains(&word)
        || TLS12.iter().any(|(_, words)| words.contains(&word))
        || NAMES.iter().any(|(number, name)| *number >> 8 != 0x13 && *name == word)
}

/// The suites of TLS 1.3 in a list of their names (`Ciphersuites` of OpenSSL's configuration). Names of none are passed over, as
/// there.
///
/// # Errors
/// No name is one of the three that OpenSSL and rustls share.
pub fn tls13(list: &str) -> Result<Vec<SupportedCipherSuite>, BadList> {
    /// Suites of OpenSSL's that rustls has not.
    const OTHERS: [&str; 2] = ["TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_8_SHA256"];
    let suite = |name| TLS13.iter().find(|s| openssl_name(u16::from(s.suite())) == Some(name)).copied();
    let suites: Vec<_> = list.split(':').filter_map(suite).collect();
    match suites.is_empty() {
        false => Ok(suites),
        true if list.split(':').any(|name| OTHERS.contains(&name)) => Err(BadList::Unavailable),
        true => Err(NO_MATCH),
    }
}

/// The groups that are offered where `ssl_ecdh_curve` says `auto`: hybrid post-quantum first.
pub const DEFAULT_GROUPS: [&'static dyn SupportedKxGroup; 4] =
    [kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];

/// Names of groups with what rustls has for them. `None`: OpenSSL knows it, rustls does not.
const GROUPS: [(&[&str], NamedGroup, Option<&'static dyn SupportedKxGroup>); 39] = [
    (&["X25519", "x25519"], NamedGroup::X25519, Some(kx_group::X25519)),
    (&["prime256v1", "P-256", "secp256r1"], NamedGroup::secp256r1, Some(kx_group::SECP256R1)),
    (&["secp384r1", "P-384"], NamedGroup::secp384r1, Some(kx_group::SECP384R1)),
    (&["secp521r1", "P-521"], NamedGroup::secp521r1, None),
    (&["X448", "x448"], NamedGroup::X448, None),
    (&["X25519MLKEM768"], NamedGroup::X25519MLKEM768, Some(kx_group::X25519MLKEM768)),
    (&["SecP256r1MLKEM768"], NamedGroup::secp256r1MLKEM768, Some(kx_group::SECP256R1MLKEM768)),
    (&["MLKEM768"], NamedGroup::MLKEM768, Some(kx_group::MLKEM768)),
    (&["MLKEM1024"], NamedGroup::MLKEM1024, Some(kx_group::MLKEM1024)),
    (&["ffdhe2048"], NamedGroup::FFDHE2048, None),
    (&["ffdhe3072"], NamedGroup::FFDHE3072, None),
    (&["ffdhe4096"], NamedGroup::FFDHE4096, None),
    (&["ffdhe6144"], NamedGroup::FFDHE6144, None),
    (&["ffdhe8192"], NamedGroup::FFDHE8192, None),
    (&["brainpoolP256r1"], NamedGroup::Unknown(26), None),
    (&["brainpoolP384r1"], NamedGroup::Unknown(27), None),
    (&["brainpoolP512r1"], NamedGroup::Unknown(28), None),
    // Those of RFC 4492 that RFC 8422 has deprecated: lists of before that name them still.
    (&["sect163k1", "K-163"], NamedGroup::Unknown(1), None),
    (&["sect163r1"], NamedGroup::Unknown(2), None),
    (&["sect163r2", "B-163"], NamedGroup::Unknown(3), None),
    (&["sect193r1"], NamedGroup::Unknown(4), None),
    (&["sect193r2"], NamedGroup::Unknown(5), None),
    (&["sect233k1", "K-233"], NamedGroup::Unknown(6), None),
    (&["sect233r1", "B-233"], NamedGroup::Unknown(7), None),
    (&["sect239k1"], NamedGroup::Unknown(8), None),
    (&["sect283k1", "K-283"], NamedGroup::Unknown(9), None),
    (&["sect283r1", "B-283"], NamedGroup::Unknown(10), None),
    (&["sect409k1", "K-409"], NamedGroup::Unknown(11), None),
    (&["sect409r1", "B-409"], NamedGroup::Unknown(12), None),
    (&["sect571k1", "K-571"], NamedGroup::Unknown(13), None),
    (&["sect571r1", "B-571"], NamedGroup::Unknown(14), None),
    (&["secp160k1"], NamedGroup::Unknown(15), None),
    (&["secp160r1"], NamedGroup::Unknown(16), None),
    (&["secp160r2"], NamedGroup::Unknown(17), None),
    (&["secp192k1"], NamedGroup::Unknown(18), None),
    (&["prime192v1", "P-192", "secp192r1"], NamedGroup::Unknown(19), None),
    (&["secp224k1"], NamedGroup::Unknown(20), None),
    (&["secp224r1", "P-224"], NamedGroup::Unknown(21), None),
    (&["secp256k1"], NamedGroup::Unknown(22), None),
];

/// Why a list of groups cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadGroups {
    /// OpenSSL has no group of this name.
    Unknown(String),
    /// A name is empty, or named twice.
    Malformed,
    /// OpenSSL has them, weir has none of them.
    Unavailable,
}

/// What OpenSSL says of it, which may be nothing.
impl fmt::Display for BadGroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => {
                write!(f, "error:0A080106:SSL routines::passed invalid argument:group '{name}' cannot be set")
            }
            Self::Malformed | Self::Unavailable => Ok(()),
        }
    }
}

/// The groups of a list, most preferred first (nginx: `ssl_ecdh_curve`, `auto` not among the names).
///
/// # Errors
/// A name is unknown, or no group of the list is one that rustls has.
pub fn groups(list: &str) -> Result<Vec<&'static dyn SupportedKxGroup>, BadGroups> {
    let (mut named, mut groups) = (vec![], vec![]);
    for name in list.split(':') {
        if name.is_empty() {
            return Err(BadGroups::Malformed);
        }
        let Some((_, number, group)) = GROUPS.iter().find(|(names, _, _)| names.contains(&name)) else {
            return Err(BadGroups::Unknown(name.to_owned()));
        };
        if named.contains(number) {
            return Err(BadGroups::Malformed);
        }
        named.push(*number);
        groups.extend(*group);
    }
    if groups.is_empty() { Err(BadGroups::Unavailable) } else { Ok(groups) }
}

/// OpenSSL's name of a group; unknown ones as nginx shows them.
pub fn group_name(group: u16) -> Option<&'static str> {
    GROUPS.iter().find(|(_, known, _)| u16::from(*known) == group).map(|(names, _, _)| names[0])
}

/// OpenSSL's name of a cipher suite.
pub fn openssl_name(suite: u16) -> Option<&'static str> {
    NAMES.iter().find(|(number, _)| *number == suite).map(|(_, name)| *name)
}

/// OpenSSL's name of the suite that a connection uses.
pub fn cipher_name(suite: CipherSuite) -> &'static str {
    openssl_name(u16::from(suite)).or(suite.as_str()).unwrap_or("unknown")
}

/// Suites that clients offer, by number and OpenSSL's name.
const NAMES: [(u16, &str); 160] = [
    // Markers, which OpenSSL lists among the suites.
    (0x00FF, "TLS_EMPTY_RENEGOTIATION_INFO_SCSV"),
    (0x5600, "TLS_FALLBACK_SCSV"),
    (0x1301, "TLS_AES_128_GCM_SHA256"),
    (0x1302, "TLS_AES_256_GCM_SHA384"),
    (0x1303, "TLS_CHACHA20_POLY1305_SHA256"),
    (0x0001, "NULL-MD5"),
    (0x0002, "NULL-SHA"),
    (0x002C, "PSK-NULL-SHA"),
    (0x002D, "DHE-PSK-NULL-SHA"),
    (0x002E, "RSA-PSK-NULL-SHA"),
    (0x002F, "AES128-SHA"),
    (0x0032, "DHE-DSS-AES128-SHA"),
    (0x0033, "DHE-RSA-AES128-SHA"),
    (0x0034, "ADH-AES128-SHA"),
    (0x0035, "AES256-SHA"),
    (0x0038, "DHE-DSS-AES256-SHA"),
    (0x0039, "DHE-RSA-AES256-SHA"),
    (0x003A, "ADH-AES256-SHA"),
    (0x003B, "NULL-SHA256"),
    (0x003C, "AES128-SHA256"),
    (0x003D, "AES256-SHA256"),
    (0x0040, "DHE-DSS-AES128-SHA256"),
    (0x0041, "CAMELLIA128-SHA"),
    (0x0044, "DHE-DSS-CAMELLIA128-SHA"),
    (0x0045, "DHE-RSA-CAMELLIA128-SHA"),
    (0x0046, "ADH-CAMELLIA128-SHA"),
    (0x0067, "DHE-RSA-AES128-SHA256"),
    (0x006A, "DHE-DSS-AES256-SHA256"),
    (0x006B, "DHE-RSA-AES256-SHA256"),
    (0x006C, "ADH-AES128-SHA256"),
    (0x006D, "ADH-AES256-SHA256"),
    (0x0084, "CAMELLIA256-SHA"),
    (0x0087, "DHE-DSS-CAMELLIA256-SHA"),
    (0x0088, "DHE-RSA-CAMELLIA256-SHA"),
    (0x0089, "ADH-CAMELLIA256-SHA"),
    (0x008C, "PSK-AES128-CBC-SHA"),
    (0x008D, "PSK-AES256-CBC-SHA"),
    (0x0090, "DHE-PSK-AES128-CBC-SHA"),
    (0x0091, "DHE-PSK-AES256-CBC-SHA"),
    (0x0094, "RSA-PSK-AES128-CBC-SHA"),
    (0x0095, "RSA-PSK-AES256-CBC-SHA"),
    (0x009C, "AES128-GCM-SHA256"),
    (0x009D, "AES256-GCM-SHA384"),
    (0x009E, "DHE-RSA-AES128-GCM-SHA256"),
    (0x009F, "DHE-RSA-AES256-GCM-SHA384"),
    (0x00A2, "DHE-DSS-AES128-GCM-SHA256"),
    (0x00A3, "DHE-DSS-AES256-GCM-SHA384"),
    (0x00A6, "ADH-AES128-GCM-SHA256"),
    (0x00A7, "ADH-AES256-GCM-SHA384"),
    (0x00A8, "PSK-AES128-GCM-SHA256"),
    (0x00A9, "PSK-AES256-GCM-SHA384"),
    (0x00AA, "DHE-PSK-AES128-GCM-SHA256"),
    (0x00AB, "DHE-PSK-AES256-GCM-SHA384"),
    (0x00AC, "RSA-PSK-AES128-GCM-SHA256"),
    (0x00AD, "RSA-PSK-AES256-GCM-SHA384"),
    (0x00AE, "PSK-AES128-CBC-SHA256"),
    (0x00AF, "PSK-AES256-CBC-SHA384"),
    (0x00B0, "PSK-NULL-SHA256"),
    (0x00B1, "PSK-NULL-SHA384"),
    (0x00B2, "DHE-PSK-AES128-CBC-SHA256"),
    (0x00B3, "DHE-PSK-AES256-CBC-SHA384"),
    (0x00B4, "DHE-PSK-NULL-SHA256"),
    (0x00B5, "DHE-PSK-NULL-SHA384"),
    (0x00B6, "RSA-PSK-AES128-CBC-SHA256"),
    (0x00B7, "RSA-PSK-AES256-CBC-SHA384"),
    (0x00B8, "RSA-PSK-NULL-SHA256"),
    (0x00B9, "RSA-PSK-NULL-SHA384"),
    (0x00BA, "CAMELLIA128-SHA256"),
    (0x00BD, "DHE-DSS-CAMELLIA128-SHA256"),
    (0x00BE, "DHE-RSA-CAMELLIA128-SHA256"),
    (0x00BF, "ADH-CAMELLIA128-SHA256"),
    (0x00C0, "CAMELLIA256-SHA256"),
    (0x00C3, "DHE-DSS-CAMELLIA256-SHA256"),
    (0x00C4, "DHE-RSA-CAMELLIA256-SHA256"),
    (0x00C5, "ADH-CAMELLIA256-SHA256"),
    (0xC006, "ECDHE-ECDSA-NULL-SHA"),
    (0xC009, "ECDHE-ECDSA-AES128-SHA"),
    (0xC00A, "ECDHE-ECDSA-AES256-SHA"),
    (0xC010, "ECDHE-RSA-NULL-SHA"),
    (0xC013, "ECDHE-RSA-AES128-SHA"),
    (0xC014, "ECDHE-RSA-AES256-SHA"),
    (0xC015, "AECDH-NULL-SHA"),
    (0xC018, "AECDH-AES128-SHA"),
    (0xC019, "AECDH-AES256-SHA"),
    (0xC01D, "SRP-AES-128-CBC-SHA"),
    (0xC01E, "SRP-RSA-AES-128-CBC-SHA"),
    (0xC01F, "SRP-DSS-AES-128-CBC-SHA"),
    (0xC020, "SRP-AES-256-CBC-SHA"),
    (0xC021, "SRP-RSA-AES-256-CBC-SHA"),
    (0xC022, "SRP-DSS-AES-256-CBC-SHA"),
    (0xC023, "ECDHE-ECDSA-AES128-SHA256"),
    (0xC024, "ECDHE-ECDSA-AES256-SHA384"),
    (0xC027, "ECDHE-RSA-AES128-SHA256"),
    (0xC028, "ECDHE-RSA-AES256-SHA384"),
    (0xC02B, "ECDHE-ECDSA-AES128-GCM-SHA256"),
    (0xC02C, "ECDHE-ECDSA-AES256-GCM-SHA384"),
    (0xC02F, "ECDHE-RSA-AES128-GCM-SHA256"),
    (0xC030, "ECDHE-RSA-AES256-GCM-SHA384"),
    (0xC035, "ECDHE-PSK-AES128-CBC-SHA"),
    (0xC036, "ECDHE-PSK-AES256-CBC-SHA"),
    (0xC037, "ECDHE-PSK-AES128-CBC-SHA256"),
    (0xC038, "ECDHE-PSK-AES256-CBC-SHA384"),
    (0xC039, "ECDHE-PSK-NULL-SHA"),
    (0xC03A, "ECDHE-PSK-NULL-SHA256"),
    (0xC03B, "ECDHE-PSK-NULL-SHA384"),
    (0xC050, "ARIA128-GCM-SHA256"),
    (0xC051, "ARIA256-GCM-SHA384"),
    (0xC052, "DHE-RSA-ARIA128-GCM-SHA256"),
    (0xC053, "DHE-RSA-ARIA256-GCM-SHA384"),
    (0xC056, "DHE-DSS-ARIA128-GCM-SHA256"),
    (0xC057, "DHE-DSS-ARIA256-GCM-SHA384"),
    (0xC05C, "ECDHE-ECDSA-ARIA128-GCM-SHA256"),
    (0xC05D, "ECDHE-ECDSA-ARIA256-GCM-SHA384"),
    (0xC060, "ECDHE-ARIA128-GCM-SHA256"),
    (0xC061, "ECDHE-ARIA256-GCM-SHA384"),
    (0xC06A, "PSK-ARIA128-GCM-SHA256"),
    (0xC06B, "PSK-ARIA256-GCM-SHA384"),
    (0xC06C, "DHE-PSK-ARIA128-GCM-SHA256"),
    (0xC06D, "DHE-PSK-ARIA256-GCM-SHA384"),
    (0xC06E, "RSA-PSK-ARIA128-GCM-SHA256"),
    (0xC06F, "RSA-PSK-ARIA256-GCM-SHA384"),
    (0xC072, "ECDHE-ECDSA-CAMELLIA128-SHA256"),
    (0xC073, "ECDHE-ECDSA-CAMELLIA256-SHA384"),
    (0xC076, "ECDHE-RSA-CAMELLIA128-SHA256"),
    (0xC077, "ECDHE-RSA-CAMELLIA256-SHA384"),
    (0xC094, "PSK-CAMELLIA128-SHA256"),
    (0xC095, "PSK-CAMELLIA256-SHA384"),
    (0xC096, "DHE-PSK-CAMELLIA128-SHA256"),
    (0xC097, "DHE-PSK-CAMELLIA256-SHA384"),
    (0xC098, "RSA-PSK-CAMELLIA128-SHA256"),
    (0xC099, "RSA-PSK-CAMELLIA256-SHA384"),
    (0xC09A, "ECDHE-PSK-CAMELLIA128-SHA256"),
    (0xC09B, "ECDHE-PSK-CAMELLIA256-SHA384"),
    (0xC09C, "AES128-CCM"),
    (0xC09D, "AES256-CCM"),
    (0xC09E, "DHE-RSA-AES128-CCM"),
    (0xC09F, "DHE-RSA-AES256-CCM"),
    (0xC0A0, "AES128-CCM8"),
    (0xC0A1, "AES256-CCM8"),
    (0xC0A2, "DHE-RSA-AES128-CCM8"),
    (0xC0A3, "DHE-RSA-AES256-CCM8"),
    (0xC0A4, "PSK-AES128-CCM"),
    (0xC0A5, "PSK-AES256-CCM"),
    (0xC0A6, "DHE-PSK-AES128-CCM"),
    (0xC0A7, "DHE-PSK-AES256-CCM"),
    (0xC0A8, "PSK-AES128-CCM8"),
    (0xC0A9, "PSK-AES256-CCM8"),
    (0xC0AA, "DHE-PSK-AES128-CCM8"),
    (0xC0AB, "DHE-PSK-AES256-CCM8"),
    (0xC0AC, "ECDHE-ECDSA-AES128-CCM"),
    (0xC0AD, "ECDHE-ECDSA-AES256-CCM"),
    (0xC0AE, "ECDHE-ECDSA-AES128-CCM8"),
    (0xC0AF, "ECDHE-ECDSA-AES256-CCM8"),
    (0xCCA8, "ECDHE-RSA-CHACHA20-POLY1305"),
    (0xCCA9, "ECDHE-ECDSA-CHACHA20-POLY1305"),
    (0xCCAA, "DHE-RSA-CHACHA20-POLY1305"),
    (0xCCAB, "PSK-CHACHA20-POLY1305"),
    (0xCCAC, "ECDHE-PSK-CHACHA20-POLY1305"),
    (0xCCAD, "DHE-PSK-CHACHA20-POLY1305"),
    (0xCCAE, "RSA-PSK-CHACHA20-POLY1305"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(list: &str, expected: &[&str]) {
        let suites = tls12(list).unwrap_or_else(|bad| panic!("{list}: {bad}"));
        let names: Vec<_> = suites.iter().map(|s| cipher_name(s.suite())).collect();
        assert_eq!(names, expected, "{list}");
    }

    #[track_caller]
    fn check_bad(list: &str, expected: BadList) {
        assert_eq!(tls12(list).err(), Some(expected), "{list}");
    }

    const ALL: [&str; 6] = [
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
    ];

    #[test]
    fn lists_mean_what_openssl_takes_them_for() {
        check("HIGH:!aNULL:!MD5", &ALL);
        check("ALL:!ADH:!EXPORT56:RC4+RSA:+HIGH:+MEDIUM:+LOW:+SSLv2:+EXP", &ALL);
        check("DEFAULT", &ALL);
        check("HIGH:FOO", &ALL);
        check("ECDHE-RSA-AES128-GCM-SHA256", &[ALL[5]]);
        check(
            "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES128-GCM-SHA256:DHE-RSA-AES128-SHA",
            &[ALL[5], ALL[4]],
        );
        check("EECDH+CHACHA20:EECDH+AES", &[ALL[2], ALL[3], ALL[0], ALL[1], ALL[4], ALL[5]]);
        check("EECDH+AESGCM:EDH+AESGCM", &[ALL[0], ALL[1], ALL[4], ALL[5]]);
        check("ECDH+aRSA+AESGCM:ECDH+aRSA+SHA384:ECDH:!ECDSA:+AES256", &[ALL[5], ALL[3], ALL[1]]);
        check("HIGH:!AES256:!CHACHA20 -ECDSA,ECDHE-ECDSA-AES128-GCM-SHA256", &[ALL[5], ALL[4]]);
        check("ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384:@STRENGTH", &[ALL[1], ALL[5]]);
        check("ALL:@SECLEVEL=0", &ALL);
        check("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", &[ALL[5]]);
    }

    #[test]
    fn lists_that_leave_nothing() {
        let no_match = BadList::Openssl("error:0A0000B9:SSL routines::no cipher match");
        let invalid = BadList::Openssl("error:0A000118:SSL routines::invalid command");
        check_bad("FOO", no_match);
        check_bad("", no_match);
        check_bad("!ALL", no_match);
        check_bad("TLS_AES_128_GCM_SHA256", no_match);
        check_bad("HIGH!!", invalid);
        check_bad("HIGH:@FOO", invalid);
        check_bad("HIGH:@SECLEVEL=6", invalid);
        check_bad("ECDHE+", invalid);
        // OpenSSL has nothing of them any more.
        check_bad("RC4:3DES", no_match);
        check_bad("AES128-SHA", BadList::Unavailable);
        check_bad("kRSA", BadList::Unavailable);
        check_bad("DHE-RSA-AES256-GCM-SHA384:AES256-SHA", BadList::Unavailable);
    }

    #[test]
    fn suites_of_tls13() {
        let names = |list| tls13(list).map(|s| s.iter().map(|s| cipher_name(s.suite())).collect::<Vec<_>>());
        let two = vec!["TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"];
        assert_eq!(names("TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256"), Ok(two.clone()));
        assert_eq!(names("TLS_AES_128_CCM_SHA256:foo:TLS_AES_128_GCM_SHA256"), Ok(vec![two[1]]));
        assert_eq!(names("TLS_AES_128_CCM_SHA256"), Err(BadList::Unavailable));
        assert_eq!(names("foo"), Err(NO_MATCH));
        assert_eq!(names(""), Err(NO_MATCH));
    }

    #[test]
    fn lists_of_groups() {
        let names = |list| {
            groups(list)
                .map(|g| g.iter().map(|g| group_name(u16::from(g.name())).unwrap_or("?")).collect::<Vec<_>>())
        };
        assert_eq!(names("X25519:prime256v1:secp384r1"), Ok(vec!["X25519", "prime256v1", "secp384r1"]));
        assert_eq!(names("P-384:secp521r1"), Ok(vec!["secp384r1"]));
        assert_eq!(
            names("secp521r1:secp384r1:sect571r1:B-283:prime256v1"),
            Ok(vec!["secp384r1", "prime256v1"])
        );
        for malformed in ["", "P-384:secp384r1", "P-384:B-571:sect571r1", "X25519::P-256", "P-256:"] {
            assert_eq!(names(malformed), Err(BadGroups::Malformed));
        }
        assert_eq!(names("secp521r1"), Err(BadGroups::Unavailable));
        assert_eq!(names("X25519:foo"), Err(BadGroups::Unknown("foo".to_owned())));
    }
}

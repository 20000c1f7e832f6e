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

/// Further words that OpenSSL knows and that mean none of [`TLS12`].
const FOREIGN: [&str; 58] = [
    "COMPLEMENTOFALL",
    "COMPLEMENTOFDEFAULT",
    "MEDIUM",
    "LOW",
    "EXP",
    "EXPORT",
    "EXPORT40",
    "EXPORT56",
    "eNULL",
    "NULL",
    "aNULL",
    "kRSA",
    "kDHE",
    "kEDH",
    "DHE",
    "EDH",
    "DH",
    "kDH",
    "kDHr",
    "kDHd",
    "ADH",
    "AECDH",
    "aDSS",
    "DSS",
    "aDH",
    "aECDH",
    "kECDH",
    "kECDHr",
    "kECDHe",
    "TLSv1.0",
    "TLSv1",
    "SSLv3",
    "SSLv2",
    "AESCCM",
    "AESCCM8",
    "ARIA",
    "ARIA128",
    "ARIA256",
    "ARIAGCM",
    "CAMELLIA",
    "CAMELLIA128",
    "CAMELLIA256",
    "3DES",
    "DES",
    "RC4",
    "RC2",
    "IDEA",
    "SEED",
    "MD5",
    "SHA1",
    "SHA",
    "SHA256",
    "SHA384",
    "PSK",
    "kPSK",
    "aPSK",
    "SRP",
    "GOST94",
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
        if words.is_empty() {
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
                } else if !words.starts_with("SECLEVEL=") {
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

/// The suites of TLS 1.3 in a list of their names (`Ciphersuites` of OpenSSL's configuration).
///
/// # Errors
/// A name is not one of the three that OpenSSL and rustls share.
pub fn tls13(list: &str) -> Result<Vec<SupportedCipherSuite>, BadList> {
    let mut suites = vec![];
    for name in list.split(':').filter(|name| !name.is_empty()) {
        let found = TLS13.iter().find(|s| openssl_name(u16::from(s.suite())) == Some(name));
        suites.push(*found.ok_or(NO_MATCH)?);
    }
    if suites.is_empty() { Err(NO_MATCH) } else { Ok(suites) }
}

/// The groups that are offered where `ssl_ecdh_curve` says `auto`: hybrid post-quantum first.
pub const DEFAULT_GROUPS: [&'static dyn SupportedKxGroup; 4] =
    [kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];

/// Names of groups with what rustls has for them. `None`: OpenSSL knows it, rustls does not.
const GROUPS: [(&[&str], NamedGroup, Option<&'static dyn SupportedKxGroup>); 17] = [
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
];

/// Why a list of groups cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadGroups {
    /// OpenSSL has no group of this name.
    Unknown(String),
    /// No group is named at all.
    Empty,
    /// OpenSSL has them, weir has none of them.
    Unavailable,
}

/// The groups of a list, most preferred first (nginx: `ssl_ecdh_curve`, `auto` not among the names).
///
/// # Errors
/// A name is unknown, or no group of the list is one that rustls has.
pub fn groups(list: &str) -> Result<Vec<&'static dyn SupportedKxGroup>, BadGroups> {
    if list.is_empty() {
        return Err(BadGroups::Empty);
    }
    let mut groups: Vec<&'static dyn SupportedKxGroup> = vec![];
    for name in list.split(':') {
        let Some((_, _, group)) = GROUPS.iter().find(|(names, _, _)| names.contains(&name)) else {
            return Err(BadGroups::Unknown(name.to_owned()));
        };
        if let Some(group) = group.filter(|group| groups.iter().all(|g| g.name() != group.name())) {
            groups.push(group);
        }
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
const NAMES: [(u16, &str); 64] = [
    // Markers, which OpenSSL lists among the suites.
    (0x00FF, "TLS_EMPTY_RENEGOTIATION_INFO_SCSV"),
    (0x5600, "TLS_FALLBACK_SCSV"),
    (0x1301, "TLS_AES_128_GCM_SHA256"),
    (0x1302, "TLS_AES_256_GCM_SHA384"),
    (0x1303, "TLS_CHACHA20_POLY1305_SHA256"),
    (0x0004, "RC4-MD5"),
    (0x0005, "RC4-SHA"),
    (0x000A, "DES-CBC3-SHA"),
    (0x0016, "DHE-RSA-DES-CBC3-SHA"),
    (0x002F, "AES128-SHA"),
    (0x0033, "DHE-RSA-AES128-SHA"),
    (0x0035, "AES256-SHA"),
    (0x0039, "DHE-RSA-AES256-SHA"),
    (0x003C, "AES128-SHA256"),
    (0x003D, "AES256-SHA256"),
    (0x0041, "CAMELLIA128-SHA"),
    (0x0045, "DHE-RSA-CAMELLIA128-SHA"),
    (0x0067, "DHE-RSA-AES128-SHA256"),
    (0x006B, "DHE-RSA-AES256-SHA256"),
    (0x0084, "CAMELLIA256-SHA"),
    (0x0088, "DHE-RSA-CAMELLIA256-SHA"),
    (0x009C, "AES128-GCM-SHA256"),
    (0x009D, "AES256-GCM-SHA384"),
    (0x009E, "DHE-RSA-AES128-GCM-SHA256"),
    (0x009F, "DHE-RSA-AES256-GCM-SHA384"),
    (0x00BA, "CAMELLIA128-SHA256"),
    (0x00BE, "DHE-RSA-CAMELLIA128-SHA256"),
    (0x00C0, "CAMELLIA256-SHA256"),
    (0x00C4, "DHE-RSA-CAMELLIA256-SHA256"),
    (0xC007, "ECDHE-ECDSA-RC4-SHA"),
    (0xC008, "ECDHE-ECDSA-DES-CBC3-SHA"),
    (0xC009, "ECDHE-ECDSA-AES128-SHA"),
    (0xC00A, "ECDHE-ECDSA-AES256-SHA"),
    (0xC011, "ECDHE-RSA-RC4-SHA"),
    (0xC012, "ECDHE-RSA-DES-CBC3-SHA"),
    (0xC013, "ECDHE-RSA-AES128-SHA"),
    (0xC014, "ECDHE-RSA-AES256-SHA"),
    (0xC023, "ECDHE-ECDSA-AES128-SHA256"),
    (0xC024, "ECDHE-ECDSA-AES256-SHA384"),
    (0xC027, "ECDHE-RSA-AES128-SHA256"),
    (0xC028, "ECDHE-RSA-AES256-SHA384"),
    (0xC02B, "ECDHE-ECDSA-AES128-GCM-SHA256"),
    (0xC02C, "ECDHE-ECDSA-AES256-GCM-SHA384"),
    (0xC02F, "ECDHE-RSA-AES128-GCM-SHA256"),
    (0xC030, "ECDHE-RSA-AES256-GCM-SHA384"),
    (0xC072, "ECDHE-ECDSA-CAMELLIA128-SHA256"),
    (0xC073, "ECDHE-ECDSA-CAMELLIA256-SHA384"),
    (0xC076, "ECDHE-RSA-CAMELLIA128-SHA256"),
    (0xC077, "ECDHE-RSA-CAMELLIA256-SHA384"),
    (0xC09C, "AES128-CCM"),
    (0xC09D, "AES256-CCM"),
    (0xC09E, "DHE-RSA-AES128-CCM"),
    (0xC09F, "DHE-RSA-AES256-CCM"),
    (0xC0A0, "AES128-CCM8"),
    (0xC0A1, "AES256-CCM8"),
    (0xC0A2, "DHE-RSA-AES128-CCM8"),
    (0xC0A3, "DHE-RSA-AES256-CCM8"),
    (0xC0AC, "ECDHE-ECDSA-AES128-CCM"),
    (0xC0AD, "ECDHE-ECDSA-AES256-CCM"),
    (0xC0AE, "ECDHE-ECDSA-AES128-CCM8"),
    (0xC0AF, "ECDHE-ECDSA-AES256-CCM8"),
    (0xCCA8, "ECDHE-RSA-CHACHA20-POLY1305"),
    (0xCCA9, "ECDHE-ECDSA-CHACHA20-POLY1305"),
    (0xCCAA, "DHE-RSA-CHACHA20-POLY1305"),
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
        check_bad("AES128-SHA", BadList::Unavailable);
        check_bad("kRSA", BadList::Unavailable);
        check_bad("DHE-RSA-AES256-GCM-SHA384:AES256-SHA", BadList::Unavailable);
    }

    #[test]
    fn suites_of_tls13() {
        let names = |list| tls13(list).map(|s| s.iter().map(|s| cipher_name(s.suite())).collect::<Vec<_>>());
        let two = vec!["TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"];
        assert_eq!(names("TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256"), Ok(two));
        assert_eq!(names("TLS_AES_128_CCM_SHA256"), Err(NO_MATCH));
        assert_eq!(names(""), Err(NO_MATCH));
    }

    #[test]
    fn lists_of_groups() {
        let names = |list| {
            groups(list)
                .map(|g| g.iter().map(|g| group_name(u16::from(g.name())).unwrap_or("?")).collect::<Vec<_>>())
        };
        assert_eq!(names("X25519:prime256v1:secp384r1"), Ok(vec!["X25519", "prime256v1", "secp384r1"]));
        assert_eq!(names("P-384:secp384r1:secp521r1"), Ok(vec!["secp384r1"]));
        assert_eq!(names("secp521r1"), Err(BadGroups::Unavailable));
        assert_eq!(names("X25519:foo"), Err(BadGroups::Unknown("foo".to_owned())));
        assert_eq!(names(""), Err(BadGroups::Empty));
    }
}

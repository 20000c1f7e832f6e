//! The few fields of an X.509 certificate that are shown, compared or judged, out of its DER (RFC 5280 section 4.1), and what else
//! is read of DER.

use std::cmp::Ordering;

use super::signature;
use crate::http1::date::{self, MONTHS};

/// What an authority signed: a certificate, a list of revoked ones, an answer of an OCSP responder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signed<'a> {
    /// What is signed, its header included.
    message: &'a [u8],
    /// The content of the message.
    pub content: &'a [u8],
    /// The content of the `AlgorithmIdentifier`.
    pub algorithm: &'a [u8],
    signature: &'a [u8],
    /// What comes behind the signature.
    pub rest: &'a [u8],
}

impl<'a> Signed<'a> {
    pub(super) fn of(der: &'a [u8]) -> Option<Self> {
        let (whole, _) = element(der, SEQUENCE)?;
        let (content, rest) = element(whole, SEQUENCE)?;
        let message = &whole[..whole.len() - rest.len()];
        let (algorithm, rest) = element(rest, SEQUENCE)?;
        let (signature, rest) = element(rest, BIT_STRING)?;
        // The bits are whole bytes.
        Some(Self { message, content, algorithm, signature: signature.strip_prefix(&[0])?, rest })
    }

    /// Whether the key, a whole `SubjectPublicKeyInfo`, made the signature.
    pub(super) fn is_by(&self, key: &[u8]) -> bool {
        signature::is_by(key, self.algorithm, self.message, self.signature)
    }
}

/// Views into a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields<'a> {
    /// The bytes of the integer, a leading zero for the sign included.
    pub serial: &'a [u8],
    /// The content of the name, its header not included.
    pub issuer: &'a [u8],
    /// As `issuer`.
    pub subject: &'a [u8],
    /// The content of the two times.
    validity: &'a [u8],
    /// The whole `SubjectPublicKeyInfo`, its header included.
    pub public_key: &'a [u8],
    /// What comes after the key: extensions, mostly.
    rest: &'a [u8],
    /// The content of the version, of which 2 is the third; the first is not told.
    version: &'a [u8],
}

pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const INTEGER: u8 = 0x02;
/// `[0] EXPLICIT`, the version.
const VERSION: u8 = 0xa0;
pub(super) const SET: u8 = 0x31;
pub(super) const OID: u8 = 0x06;
const BOOLEAN: u8 = 0x01;
pub(super) const OCTETS: u8 = 0x04;
pub(super) const BIT_STRING: u8 = 0x03;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[3] EXPLICIT`, the extensions.
const EXTENSIONS: u8 = 0xa3;
/// `[2] IMPLICIT IA5String` of a `GeneralName`.
const DNS_NAME: u8 = 0x82;
/// `[6] IMPLICIT IA5String` of a `GeneralName`.
const URI: u8 = 0x86;

/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// 2.5.29.19
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
/// 2.5.29.37
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
/// 2.5.29.37.0
const ANY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
/// 1.3.6.1.5.5.7.1.1
const AUTHORITY_ACCESS: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x01\x01";
/// 1.3.6.1.5.5.7.48.1
const OCSP: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x30\x01";
/// 2.5.29.15
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
/// 2.5.29.30
const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
/// 2.5.29.31
const LIST_POINTS: &[u8] = &[0x55, 0x1d, 0x1f];
/// 2.5.29.17
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

impl<'a> Fields<'a> {
    /// `None` where it is no certificate.
    pub fn of(certificate: &'a [u8]) -> Option<Self> {
        let (certificate, _) = element(certificate, SEQUENCE)?;
        let (mut rest, _) = element(certificate, SEQUENCE)?;
        let mut version = &[][..];
        if let Some((explicit, after)) = element(rest, VERSION) {
            (version, rest) = (element(explicit, INTEGER)?.0, after);
        }
        let (serial, rest) = element(rest, INTEGER)?;
        let (_, rest) = element(rest, SEQUENCE)?;
        let (issuer, rest) = element(rest, SEQUENCE)?;
        let (validity, rest) = element(rest, SEQUENCE)?;
        let (subject, rest) = element(rest, SEQUENCE)?;
        let (_, after) = element(rest, SEQUENCE)?;
        let public_key = &rest[..rest.len() - after.len()];
        Some(Self { serial, issuer, subject, validity, public_key, rest: after, version })
    }

    /// Whether subject and issuer are the same, as of a root.
    pub fn is_self_issued(&self) -> bool {
        self.issuer == self.subject
    }

    /// Whether a time (Unix seconds) is before, within or after those that the certificate is valid at.
    pub fn time_at(&self, unix: i64) -> Option<Ordering> {
        let now = digits_of(unix);
        let [begin, end] = self.times()?;
        Some(match now {
            now if now < begin => Ordering::Less,
            now if now > end => Ordering::Greater,
            _ => Ordering::Equal,
        })
    }

    /// When it begins and ends to be valid, each as 14 digits.
    pub(super) fn times(&self) -> Option<[Vec<u8>; 2]> {
        let (begin, rest) = time(self.validity)?;
        Some([begin, time(rest)?.0])
    }

    /// Whether it is for a host of this name, as OpenSSL's `X509_check_host` finds: by its alternative names, by its
    /// common names only where there is none.
    pub fn is_for(&self, host: &[u8]) -> bool {
        let mut any = false;
        let mut found = self.dns_names().inspect(|_| any = true);
        found.any(|name| matches(name, host)) || !any && self.common_names().any(|name| matches(name, host))
    }

    /// The value of an extension.
    fn extension(&self, wanted: &[u8]) -> Option<&'a [u8]> {
        extension(skip_to(self.rest, EXTENSIONS)?, wanted)
    }

    pub(super) fn is_version_3(&self) -> bool {
        self.version == [2]
    }

    /// Whether it is an authority's, and how many others of authorities may stand below it.
    pub(super) fn authority(&self) -> Option<u64> {
        let (constraints, _) = element(self.extension(BASIC_CONSTRAINTS)?, SEQUENCE)?;
        let (is_one, rest) = element(constraints, BOOLEAN)?;
        let bound = element(rest, INTEGER)
            .map_or(u64::MAX, |(n, _)| n.iter().take(8).fold(0, |all, byte| all << 8 | u64::from(*byte)));
        (is_one != [0]).then_some(bound)
    }

    /// Whether the key may be used for this bit of `KeyUsage`; one that says nothing of its use may be used for anything.
    pub(super) fn may(&self, bit: u8) -> bool {
        let usage = self.extension(KEY_USAGE).map(|value| element(value, BIT_STRING));
        // The first byte counts the bits that are none.
        usage.is_none_or(|bits| matches!(bits, Some(([_, first, ..], _)) if first & 0x80 >> bit != 0))
    }

    /// Where its issuer's responder is asked.
    pub fn ocsp_responder(&self) -> Option<&'a [u8]> {
        let (all, _) = element(self.extension(AUTHORITY_ACCESS)?, SEQUENCE)?;
        elements(all).find_map(|(_, description)| {
            let (method, place) = element(description, OID)?;
            element(place, URI).filter(|_| method == OCSP).map(|(uri, _)| uri)
        })
    }

    /// Where the list is which it would be on, as it says: each place with the tag of its `GeneralName`.
    pub(super) fn list_points(&self) -> impl Iterator<Item = (u8, &'a [u8])> {
        let points = self.extension(LIST_POINTS).and_then(|value| element(value, SEQUENCE));
        elements(points.map_or(&[], |(points, _)| points)).flat_map(|(_, point)| {
            // One of several for different reasons, or another issuer's, stands for nothing here.
            let names = element(point, 0xa0).filter(|(_, rest)| rest.is_empty());
            let names = names.and_then(|(name, _)| element(name, 0xa0));
            elements(names.map_or(&[], |(names, _)| names))
        })
    }

    /// Whether it says that it is meant for that purpose.
    pub(super) fn has_purpose(&self, purpose: &[u8]) -> bool {
        self.extension(EXTENDED_KEY_USAGE).is_some() && self.is_meant_for(purpose)
    }

    /// Whether it is meant for that purpose (an object identifier); one that says nothing is for all.
    pub(super) fn is_meant_for(&self, purpose: &[u8]) -> bool {
        let purposes = self.extension(EXTENDED_KEY_USAGE).map(|value| element(value, SEQUENCE));
        purposes.is_none_or(|all| {
            let all = all.map_or(&[][..], |(all, _)| all);
            elements(all).any(|(_, oid)| oid == purpose || oid == ANY_USAGE)
        })
    }

    /// Whether it permits only some names below it.
    pub(super) fn constrains_names(&self) -> bool {
        self.extension(NAME_CONSTRAINTS).is_some()
    }

    /// Whether nothing is demanded of who judges it that is not judged here.
    pub(super) fn is_plain(&self) -> bool {
        const JUDGED: [&[u8]; 4] = [BASIC_CONSTRAINTS, KEY_USAGE, EXTENDED_KEY_USAGE, SUBJECT_ALT_NAME];
        let extensions = skip_to(self.rest, EXTENSIONS).unwrap_or_default();
        critical(extensions).all(|oid| JUDGED.contains(&oid))
    }

    fn dns_names(&self) -> impl Iterator<Item = &'a [u8]> {
        let names = self.extension(SUBJECT_ALT_NAME).and_then(|value| element(value, SEQUENCE));
        elements(names.map_or(&[], |(names, _)| names))
            .filter(|(tag, _)| *tag == DNS_NAME)
            .map(|(_, name)| name)
    }

    fn common_names(&self) -> impl Iterator<Item = &'a [u8]> {
        let attributes =
            elements(self.subject).filter(|(tag, _)| *tag == SET).flat_map(|(_, set)| elements(set));
        attributes.filter_map(|(_, attribute)| {
            let (oid, rest) = element(attribute, OID)?;
            elements(rest).next().filter(|_| oid == COMMON_NAME).map(|(_, name)| name)
        })
    }
}

/// A time (Unix seconds) as 14 digits.
pub(super) fn digits_of(unix: i64) -> Vec<u8> {
    date::iso8601(unix, 0).as_ref().iter().filter(|b| b.is_ascii_digit()).take(14).copied().collect()
}

/// What 14 digits are as a time (Unix seconds).
pub(super) fn unix_of(digits: &[u8]) -> Option<i64> {
    let part = |range: std::ops::Range<usize>| std::str::from_utf8(digits.get(range)?).ok();
    let month = MONTHS[(part(4..6)?.parse::<usize>().ok()? + 11) % 12];
    let (day, year) = (part(6..8)?, part(0..4)?);
    let (hour, minute, second) = (part(8..10)?, part(10..12)?, part(12..14)?);
    date::parse_http(format!("-, {day} {month} {year} {hour}:{minute}:{second} GMT").as_bytes())
}

/// The value of an extension among others.
pub(super) fn extension<'a>(extensions: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    let (all, _) = element(extensions, SEQUENCE)?;
    elements(all).find_map(|(_, extension)| {
        let (oid, rest) = element(extension, OID)?;
        let value = element(rest, BOOLEAN).map_or(rest, |(_, rest)| rest);
        element(value, OCTETS).filter(|_| oid == wanted).map(|(value, _)| value)
    })
}

/// The identifiers of those extensions that must not be passed over by who does not know them.
pub(super) fn critical(extensions: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (all, _) = element(extensions, SEQUENCE).unwrap_or_default();
    elements(all).filter_map(|(_, extension)| {
        let (oid, rest) = element(extension, OID)?;
        element(rest, BOOLEAN).filter(|(value, _)| *value != [0]).map(|_| oid)
    })
}

/// A time as 14 digits, and what comes after it. Of a year of two digits those before 50 are of this century.
pub(super) fn time(der: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (digits, rest) = match element(der, UTC_TIME) {
        Some((short, rest)) => ([if short < &b"5"[..] { &b"20"[..] } else { b"19" }, short].concat(), rest),
        None => element(der, GENERALIZED_TIME).map(|(long, rest)| (long.to_vec(), rest))?,
    };
    (digits.len() == 15 && digits.ends_with(b"Z")).then(|| (digits[..14].to_vec(), rest))
}

/// Whether a host has the name, whose first label may be `*` where two more follow.
fn matches(name: &[u8], host: &[u8]) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(domain) = name.strip_prefix(b"*").filter(|d| d.starts_with(b".") && d[1..].contains(&b'.'))
    else {
        return false;
    };
    let label = host.len().checked_sub(domain.len()).filter(|length| *length > 0);
    label.is_some_and(|length| host[length..].eq_ignore_ascii_case(domain) && !host[..length].contains(&b'.'))
}

/// The elements of a content, each with its tag, up to the first that is none.
pub(super) fn elements(mut der: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let tag = *der.first()?;
        let (content, rest) = element(der, tag)?;
        der = rest;
        Some((tag, content))
    })
}

/// The elements of a content, each with its header, up to the first that is none.
pub(super) fn items(mut der: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (_, rest) = element(der, *der.first()?)?;
        let (item, rest) = der.split_at(der.len() - rest.len());
        der = rest;
        Some(item)
    })
}

/// The content of the first element of this tag.
fn skip_to(der: &[u8], tag: u8) -> Option<&[u8]> {
    elements(der).find(|(found, _)| *found == tag).map(|(_, content)| content)
}

/// The content of the first element, which must have this tag, and what comes after it.
pub(super) fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    if *found != tag {
        return None;
    }
    let (length, rest) = match usize::from(*first) {
        short @ 0..=0x7f => (short, rest),
        // Four bytes of length are more than any certificate has.
        long @ 0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(long - 0x80)?;
            (length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_certificates() {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let der = made.cert.der();
        let fields = Fields::of(der).unwrap();
        assert!(fields.is_self_issued());
        assert!(!fields.serial.is_empty() && !fields.subject.is_empty());
        assert_eq!(fields.public_key, rcgen::PublicKeyData::subject_public_key_info(&made.signing_key));
        assert_eq!(fields.time_at(0), Some(Ordering::Less));
        assert_eq!(fields.time_at(1_800_000_000), Some(Ordering::Equal));
        assert_eq!(fields.time_at(253_402_300_799), Some(Ordering::Greater));
        assert!(fields.is_for(b"a.example") && fields.is_for(b"A.EXAMPLE"));
        assert!(!fields.is_for(b"b.example") && !fields.is_for(b"rcgen self signed cert"));
        for at in 0..100 {
            assert_eq!(Fields::of(&der[..at]), None, "cut at {at}");
        }
        assert_eq!(Fields::of(b"\x30\x84\xff\xff\xff\xff"), None);
    }

    #[test]
    fn names_with_a_star() {
        #[track_caller]
        fn check(name: &str, host: &str, expected: bool) {
            assert_eq!(matches(name.as_bytes(), host.as_bytes()), expected, "{name} {host}");
        }
        check("*.a.example", "b.a.example", true);
        check("*.A.example", "B.a.EXAMPLE", true);
        check("*.a.example", "a.example", false);
        check("*.a.example", ".a.example", false);
        check("*.a.example", "c.b.a.example", false);
        check("*.example", "a.example", false);
        check("b*.a.example", "bc.a.example", false);
        check("*", "a", false);
    }

    #[test]
    fn the_common_name_counts_where_no_other_is() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "cn.example");
        let der = params.self_signed(&key).unwrap().der().clone();
        assert!(Fields::of(&der).unwrap().is_for(b"cn.example"));
        params.subject_alt_names = vec![rcgen::SanType::DnsName("a.example".try_into().unwrap())];
        let der = params.self_signed(&key).unwrap().der().clone();
        assert!(!Fields::of(&der).unwrap().is_for(b"cn.example"));
        assert!(Fields::of(&der).unwrap().is_for(b"a.example"));
    }
}

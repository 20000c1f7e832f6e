//! Distinguished names as OpenSSL writes them: as RFC 2253 wants, and in the way it had before.

use std::fmt::Write;

use super::der::{OID, SET, elements};

/// Types of attributes by the content of their identifiers, with OpenSSL's short names.
const TYPES: [(&[u8], &str); 25] = [
    (&[0x55, 4, 3], "CN"),
    (&[0x55, 4, 4], "SN"),
    (&[0x55, 4, 5], "serialNumber"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 9], "street"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x55, 4, 12], "title"),
    (&[0x55, 4, 13], "description"),
    (&[0x55, 4, 15], "businessCategory"),
    (&[0x55, 4, 17], "postalCode"),
    (&[0x55, 4, 41], "name"),
    (&[0x55, 4, 42], "GN"),
    (&[0x55, 4, 43], "initials"),
    (&[0x55, 4, 44], "generationQualifier"),
    (&[0x55, 4, 46], "dnQualifier"),
    (&[0x55, 4, 65], "pseudonym"),
    (&[0x55, 4, 97], "organizationIdentifier"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1], "emailAddress"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 2], "unstructuredName"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], "DC"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], "UID"),
    (&[0x2b, 6, 1, 4, 1, 0x82, 0x37, 60, 2, 1, 3], "jurisdictionC"),
];

/// `type=value` of a name.
struct Attribute<'a> {
    oid: &'a [u8],
    tag: u8,
    value: &'a [u8],
    /// It belongs to the same part of the name as the one before.
    joined: bool,
}

fn attributes(name: &[u8]) -> Vec<Attribute<'_>> {
    let parts = elements(name).filter(|(tag, _)| *tag == SET);
    let each = parts.flat_map(|(_, part)| elements(part).enumerate());
    let read = each.filter_map(|(at, (_, attribute))| {
        let mut inner = elements(attribute);
        let (_, oid) = inner.next().filter(|(tag, _)| *tag == OID)?;
        let (tag, value) = inner.next()?;
        Some(Attribute { oid, tag, value, joined: at > 0 })
    });
    read.collect()
}

/// `CN=a,O=b`, the last attribute first (RFC 2253).
pub(super) fn rfc2253(name: &[u8]) -> String {
    let mut text = String::new();
    let attributes = attributes(name);
    for (at, attribute) in attributes.iter().enumerate().rev() {
        if let Some(before) = attributes.get(at + 1) {
            text.push(if before.joined { '+' } else { ',' });
        }
        let value = string(attribute.tag, attribute.value);
        match (short(attribute.oid), value) {
            (Some(short), Some(value)) => {
                text.push_str(short);
                text.push('=');
                escape(&value, &mut text);
            }
            (short, _) => {
                text.push_str(&short.map_or_else(|| dotted(attribute.oid), str::to_owned));
                text.push_str("=#");
                for byte in [&[attribute.tag][..], &length(attribute.value.len()), attribute.value].concat() {
                    push_hex(byte, &mut text);
                }
            }
        }
    }
    text
}

/// `/O=b/CN=a`, in the order of the name.
pub(super) fn one_line(name: &[u8]) -> String {
    attributes(name).iter().fold(String::new(), |mut text, attribute| {
        text.push(if attribute.joined { '+' } else { '/' });
        text.push_str(&short(attribute.oid).map_or_else(|| dotted(attribute.oid), str::to_owned));
        text.push('=');
        for byte in attribute.value {
            match byte {
                // What would begin another part of the name.
                b'/' | b'+' => text.extend(['\\', char::from(*byte)]),
                b' '..=b'~' => text.push(char::from(*byte)),
                byte => {
                    text.push_str("\\x");
                    push_hex(*byte, &mut text);
                }
            }
        }
        text
    })
}

fn short(oid: &[u8]) -> Option<&'static str> {
    TYPES.iter().find(|(known, _)| *known == oid).map(|(_, short)| *short)
}

fn push_hex(byte: u8, text: &mut String) {
    // A String takes everything.
    let _ = write!(text, "{byte:02X}");
}

/// `1.2.3`
fn dotted(oid: &[u8]) -> String {
    let mut numbers = vec![];
    let mut number = 0_u64;
    for byte in oid {
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            if numbers.is_empty() {
                // The first two are one.
                let first = (number / 40).min(2);
                numbers.push(first);
                number -= first * 40;
            }
            numbers.push(number);
            number = 0;
        }
    }
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(".")
}

/// A length as DER writes it.
fn length(length: usize) -> Vec<u8> {
    if length < 0x80 {
        return vec![length as u8];
    }
    let bytes = length.to_be_bytes();
    let significant = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    [&[0x80 | significant.len() as u8][..], significant].concat()
}

/// The text of a string of any of the types that names have.
fn string(tag: u8, value: &[u8]) -> Option<String> {
    const UTF8: u8 = 0x0c;
    const NUMERIC: u8 = 0x12;
    const PRINTABLE: u8 = 0x13;
    const T61: u8 = 0x14;
    const IA5: u8 = 0x16;
    const VISIBLE: u8 = 0x1a;
    const BMP: u8 = 0x1e;
    match tag {
        UTF8 => String::from_utf8(value.to_vec()).ok(),
        NUMERIC | PRINTABLE | T61 | IA5 | VISIBLE => {
            Some(value.iter().map(|byte| char::from(*byte)).collect())
        }
        BMP => {
            let (units, rest) = value.as_chunks::<2>();
            let units: Vec<u16> = units.iter().map(|unit| u16::from_be_bytes(*unit)).collect();
            String::from_utf16(&units).ok().filter(|_| rest.is_empty())
        }
        _ => None,
    }
}

fn escape(value: &str, text: &mut String) {
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b'#' | b' ' if at == 0 => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b' ' if at + 1 == value.len() => text.push_str("\\ "),
            b' '..=b'~' => text.push(char::from(byte)),
            byte => {
                text.push('\\');
                push_hex(byte, text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::der::{SEQUENCE, element};

    /// A name of parts that are lists of attributes: the identifier's content, the tag and the value.
    fn name(parts: &[&[(&[u8], u8, &[u8])]]) -> Vec<u8> {
        let wrap = |tag: u8, content: &[u8]| [&[tag][..], &length(content.len()), content].concat();
        let part = |attributes: &[(&[u8], u8, &[u8])]| {
            let each = attributes
                .iter()
                .map(|(oid, tag, value)| wrap(SEQUENCE, &[wrap(OID, oid), wrap(*tag, value)].concat()));
            wrap(SET, &each.collect::<Vec<_>>().concat())
        };
        parts.iter().map(|attributes| part(attributes)).collect::<Vec<_>>().concat()
    }

    const CN: &[u8] = &[0x55, 4, 3];
    const O: &[u8] = &[0x55, 4, 10];
    const UTF8: u8 = 0x0c;

    #[test]
    fn names_as_openssl_writes_them() {
        #[track_caller]
        fn check(parts: &[&[(&[u8], u8, &[u8])]], expected: &str, expected_old: &str) {
            let name = name(parts);
            assert_eq!((rfc2253(&name).as_str(), one_line(&name).as_str()), (expected, expected_old));
        }
        check(&[&[(CN, UTF8, b"a.example")]], "CN=a.example", "/CN=a.example");
        check(&[&[(O, 0x13, b"Org")], &[(CN, UTF8, b"a")]], "CN=a,O=Org", "/O=Org/CN=a");
        check(&[&[(O, UTF8, b"o"), (CN, UTF8, b"a")]], "CN=a+O=o", "/O=o+CN=a");
        check(
            &[&[(CN, UTF8, b" a,b+\"c\"<d>;\\ ")]],
            "CN=\\ a\\,b\\+\\\"c\\\"\\<d\\>\\;\\\\\\ ",
            "/CN= a,b\\+\"c\"<d>;\\ ",
        );
        check(&[&[(CN, UTF8, b"a/b")]], "CN=a/b", "/CN=a\\/b");
        check(&[&[(CN, UTF8, b"#1")]], "CN=\\#1", "/CN=#1");
        check(&[&[(CN, UTF8, "ü\n".as_bytes())]], "CN=\\C3\\BC\\0A", "/CN=\\xC3\\xBC\\x0A");
        check(&[&[(CN, 0x1e, &[0, b'a', 0, 0xfc])]], "CN=a\\C3\\BC", "/CN=\\x00a\\x00\\xFC");
        check(&[&[(&[0x2a, 3, 4], UTF8, b"x")]], "1.2.3.4=#0C0178", "/1.2.3.4=x");
        check(&[], "", "");
    }

    #[test]
    fn lengths_read_back() {
        for size in [0, 1, 127, 128, 255, 256, 70_000] {
            let der = [&[OID][..], &length(size), &vec![1; size]].concat();
            assert_eq!(
                element(&der, OID).map(|(content, rest)| (content.len(), rest.len())),
                Some((size, 0))
            );
        }
    }
}

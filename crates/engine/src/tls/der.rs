//! The few fields of an X.509 certificate that are shown or compared, out of its DER (RFC 5280 section 4.1).

/// Views into a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields<'a> {
    /// The bytes of the integer, a leading zero for the sign included.
    pub serial: &'a [u8],
    /// The content of the name, its header not included.
    pub issuer: &'a [u8],
    /// As `issuer`.
    pub subject: &'a [u8],
    /// The whole `SubjectPublicKeyInfo`, its header included.
    pub public_key: &'a [u8],
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
/// `[0] EXPLICIT`, the version.
const VERSION: u8 = 0xa0;

impl<'a> Fields<'a> {
    /// `None` where it is no certificate.
    pub fn of(certificate: &'a [u8]) -> Option<Self> {
        let (certificate, _) = element(certificate, SEQUENCE)?;
        let (mut rest, _) = element(certificate, SEQUENCE)?;
        if let Some((_, after)) = element(rest, VERSION) {
            rest = after;
        }
        let (serial, rest) = element(rest, INTEGER)?;
        let (_, rest) = element(rest, SEQUENCE)?;
        let (issuer, rest) = element(rest, SEQUENCE)?;
        let (_, rest) = element(rest, SEQUENCE)?;
        let (subject, rest) = element(rest, SEQUENCE)?;
        let (_, after) = element(rest, SEQUENCE)?;
        let public_key = &rest[..rest.len() - after.len()];
        Some(Self { serial, issuer, subject, public_key })
    }

    /// Whether subject and issuer are the same, as of a root.
    pub fn is_self_issued(&self) -> bool {
        self.issuer == self.subject
    }
}

/// The content of the first element, which must have this tag, and what comes after it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
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
        for at in 0..100 {
            assert_eq!(Fields::of(&der[..at]), None, "cut at {at}");
        }
        assert_eq!(Fields::of(b"\x30\x84\xff\xff\xff\xff"), None);
    }
}

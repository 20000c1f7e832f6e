//! The words of OCSP (RFC 6960): what is asked about a certificate, and what a responder says of it.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY as SHA1, digest};
use rustls::pki_types::{CertificateDer, UnixTime};

use super::der::{self, Fields, INTEGER, OCTETS, OID, SEQUENCE, Signed};
use super::path::Known;

const ENUMERATED: u8 = 0x0a;
/// `[0] EXPLICIT`, `[1] EXPLICIT`, `[2] EXPLICIT`.
pub(super) const TAGGED: [u8; 3] = [0xa0, 0xa1, 0xa2];
/// `good` of a `CertStatus`, `[0] IMPLICIT NULL`.
const GOOD: u8 = 0x80;
/// `revoked`, `[1] IMPLICIT`.
const REVOKED: u8 = 0xa1;

/// 1.3.14.3.2.26 with its NULL: SHA-1, in which certificates are named here as OpenSSL names them.
const SHA1_IDENTIFIER: &[u8] = b"\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00";
/// 1.3.6.1.5.5.7.48.1.1
pub(super) const BASIC: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x30\x01\x01";
/// 1.3.6.1.5.5.7.3.9
const OCSP_SIGNING: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x03\x09";

/// Seconds by which the clocks of responders may differ.
const SKEW: i64 = 300;

/// How a certificate is named to a responder (`CertID`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CertificateId {
    /// Of the issuer's name.
    name: Vec<u8>,
    /// Of the issuer's key.
    key: Vec<u8>,
    serial: Vec<u8>,
}

impl CertificateId {
    /// `None` where one of the two is no certificate.
    pub(super) fn of(certificate: &[u8], issuer: &[u8]) -> Option<Self> {
        let (certificate, issuer) = Fields::of(certificate).zip(Fields::of(issuer))?;
        Some(Self {
            name: digest(&SHA1, &element(SEQUENCE, &[issuer.subject])).as_ref().to_vec(),
            key: key_hash(&issuer)?,
            serial: certificate.serial.to_vec(),
        })
    }

    /// An `OCSPRequest` for it.
    pub(super) fn request(&self) -> Vec<u8> {
        let algorithm = element(SEQUENCE, &[SHA1_IDENTIFIER]);
        let (name, key) = (element(OCTETS, &[&self.name]), element(OCTETS, &[&self.key]));
        let id = element(SEQUENCE, &[&algorithm, &name, &key, &element(INTEGER, &[&self.serial])]);
        // The request, the list of them, what is signed of it, the whole.
        (0..4).fold(id, |inner, _| element(SEQUENCE, &[&inner]))
    }

    /// Whether the content of a `CertID` names it.
    fn is(&self, id: &[u8]) -> bool {
        let read = || {
            let (algorithm, rest) = der::element(id, SEQUENCE)?;
            let (oid, _) = der::element(algorithm, OID)?;
            let (name, rest) = der::element(rest, OCTETS)?;
            let (key, rest) = der::element(rest, OCTETS)?;
            let (serial, _) = der::element(rest, INTEGER)?;
            Some(
                *oid == SHA1_IDENTIFIER[2..7] && (name, key, serial) == (&self.name, &self.key, &self.serial),
            )
        };
        read().unwrap_or(false)
    }
}

/// The SHA-1 of a public key, the bits alone.
fn key_hash(fields: &Fields<'_>) -> Option<Vec<u8>> {
    let (_algorithm, rest) = der::element(der::element(fields.public_key, SEQUENCE)?.0, SEQUENCE)?;
    let (bits, _) = der::element(rest, der::BIT_STRING)?;
    Some(digest(&SHA1, bits.get(1..)?).as_ref().to_vec())
}

/// An element in DER.
fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = (content.len() as u32).to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut out = vec![tag];
    if content.len() >= 0x80 {
        out.push(0x80 | significant.len() as u8);
        out.extend_from_slice(significant);
    } else {
        out.push(content.len() as u8);
    }
    out.extend_from_slice(&content);
    out
}

/// What a responder knows of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Good,
    Revoked,
    Unknown,
}

impl Status {
    /// As OpenSSL calls it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Revoked => "revoked",
            Self::Unknown => "unknown",
        }
    }
}

/// And until when that is valid (Unix seconds).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: Status,
    pub until: Option<i64>,
}

/// Who is to be believed.
pub(super) struct Believed<'t> {
    pub issuer: &'t CertificateDer<'static>,
    /// What is shown with the certificate.
    pub chain: &'t [CertificateDer<'static>],
    /// Whoever is in the chain may sign.
    pub trusts_chain: bool,
    /// Whether the signer has to be somebody whom the issuer or these allow to; else its signature is enough.
    pub verify: Option<Known<'t>>,
}

/// Reads what a response says of a certificate.
///
/// # Errors
/// What is wrong with the response, in nginx's words.
pub(super) fn read(
    response: &[u8],
    id: &CertificateId,
    believed: &Believed<'_>,
    now: UnixTime,
) -> Result<Answer, String> {
    let (whole, rest) = der::element(response, SEQUENCE).ok_or("d2i_OCSP_RESPONSE() failed")?;
    let (status, bytes) = der::element(whole, ENUMERATED).ok_or("d2i_OCSP_RESPONSE() failed")?;
    if !rest.is_empty() {
        return Err("d2i_OCSP_RESPONSE() failed".into());
    }
    let [0] = status else {
        let code = status.first().copied().unwrap_or_default();
        let word = match code {
            1 => "malformedrequest",
            2 => "internalerror",
            3 => "trylater",
            5 => "sigrequired",
            6 => "unauthorized",
            _ => "(UNKNOWN)",
        };
        return Err(format!("OCSP response not successful ({code}: {word})"));
    };
    let basic = basic(bytes).ok_or("OCSP_response_get1_basic() failed")?;
    let signed = Signed::of(basic).ok_or("OCSP_response_get1_basic() failed")?;
    let said = Said::of(&signed).ok_or("OCSP_response_get1_basic() failed")?;
    said.verify(&signed, believed, now).map_err(|reason| failed("OCSP_basic_verify()", reason))?;
    let (status, this, next) = said.about(id).ok_or("certificate status not found in the OCSP response")?;
    let now = now.as_secs() as i64;
    let from = der::unix_of(&this).ok_or("OCSP_check_validity() failed")?;
    if from > now + SKEW {
        return Err(failed("OCSP_check_validity()", (126, "status not yet valid")));
    }
    let until = match next {
        Some(next) => Some(der::unix_of(&next).ok_or("invalid nextUpdate time in certificate status")?),
        None => None,
    };
    if until.is_some_and(|until| until < now - SKEW || until < from) {
        return Err(failed("OCSP_check_validity()", (125, "status expired")));
    }
    let status = match status {
        GOOD => Status::Good,
        REVOKED => Status::Revoked,
        _ => Status::Unknown,
    };
    Ok(Answer { status, until })
}

/// A failure by OpenSSL's number and words.
fn failed(call: &str, (code, words): (u8, &str)) -> String {
    format!("{call} failed (SSL: error:138000{code:02X}:OCSP routines::{words})")
}

/// The `BasicOCSPResponse` in the `responseBytes`.
fn basic(bytes: &[u8]) -> Option<&[u8]> {
    let (bytes, _) = der::element(der::element(bytes, TAGGED[0])?.0, SEQUENCE)?;
    let (kind, rest) = der::element(bytes, OID)?;
    der::element(rest, OCTETS).filter(|_| kind == BASIC).map(|(basic, _)| basic)
}

/// The `ResponseData`.
struct Said<'a> {
    /// By which of the two the responder names itself, and what.
    responder: (u8, &'a [u8]),
    responses: &'a [u8],
}

impl<'a> Said<'a> {
    fn of(signed: &Signed<'a>) -> Option<Self> {
        let data = signed.content;
        let data = der::element(data, TAGGED[0]).map_or(data, |(_version, data)| data);
        let tag = *data.first()?;
        let (responder, data) = der::element(data, tag)?;
        let (_produced, data) = der::time(data)?;
        let (responses, _) = der::element(data, SEQUENCE)?;
        Some(Self { responder: (tag, responder), responses })
    }

    /// Whether the responder named itself by this certificate.
    fn is_by(&self, certificate: &[u8]) -> bool {
        let Some(fields) = Fields::of(certificate) else { return false };
        match self.responder {
            (tag, name) if tag == TAGGED[1] => {
                der::element(name, SEQUENCE).is_some_and(|(name, _)| name == fields.subject)
            }
            (tag, key) if tag == TAGGED[2] => {
                der::element(key, OCTETS).zip(key_hash(&fields)).is_some_and(|((key, _), hash)| key == hash)
            }
            _ => false,
        }
    }

    fn verify(
        &self,
        signed: &Signed<'_>,
        believed: &Believed<'_>,
        now: UnixTime,
    ) -> Result<(), (u8, &'static str)> {
        let known = believed.chain.iter().chain([believed.issuer]).find(|c| self.is_by(c));
        let sent = der::element(signed.rest, TAGGED[0]).and_then(|(certs, _)| der::element(certs, SEQUENCE));
        let mut sent = der::items(sent.map_or(&[], |(certificates, _)| certificates));
        let signer = known.map(|c| &**c).or_else(|| sent.find(|c| self.is_by(c)));
        let signer = signer.ok_or((118, "signer certificate not found"))?;
        let fields = Fields::of(signer).ok_or((118, "signer certificate not found"))?;
        if !signed.is_by(fields.public_key) {
            return Err((117, "signature failure"));
        }
        let Some(trusted) = &believed.verify else { return Ok(()) };
        if known.is_some() && believed.trusts_chain || *signer == **believed.issuer {
            return Ok(());
        }
        if !super::path::issued(believed.issuer, signer) {
            return Err((112, "root ca not trusted"));
        }
        if !fields.has_purpose(OCSP_SIGNING) {
            return Err((103, "missing ocspsigning usage"));
        }
        trusted.path(signer, None, now).map(drop).map_err(|_| (101, "certificate verify error"))
    }

    /// What is said of a certificate: its status, since when and until when that is known.
    fn about(&self, id: &CertificateId) -> Option<(u8, Vec<u8>, Option<Vec<u8>>)> {
        der::elements(self.responses).find_map(|(_, single)| {
            let (named, rest) = der::element(single, SEQUENCE)?;
            if !id.is(named) {
                return None;
            }
            let status = *rest.first()?;
            let (_, rest) = der::element(rest, status)?;
            let (this, rest) = der::time(rest)?;
            let next = der::element(rest, TAGGED[0]).and_then(|(next, _)| der::time(next));
            Some((status, this, next.map(|(time, _)| time)))
        })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::ExtendedKeyUsagePurpose;

    use super::*;
    use crate::http::base64_encode;
    use crate::tls::testing::{Authority, response, tagged};

    const THIS: &[u8] = b"20200101000000Z";
    /// 2020-01-01, and a day later.
    const NOW: u64 = 1_577_836_800;
    const NEXT: &[u8] = b"20200102000000Z";

    fn time(time: &[u8]) -> Vec<u8> {
        tagged(0x18, &[time])
    }

    struct Case {
        root: Authority,
        shown: Authority,
        other: Authority,
    }

    impl Case {
        fn new() -> Self {
            let root = Authority::root(&[]);
            let (shown, other) = (root.end(1), root.end(2));
            Self { root, shown, other }
        }

        /// What a signer says of a certificate.
        fn response(
            &self,
            signer: &Authority,
            about: &Authority,
            status: &[u8],
            times: [&[u8]; 2],
        ) -> Vec<u8> {
            response(signer, &about.certificate, &self.root.certificate, status, times)
        }

        fn read(&self, response: &[u8], verify: bool) -> Result<Answer, String> {
            let id = CertificateId::of(&self.shown.certificate, &self.root.certificate).unwrap();
            let roots = [self.root.certificate.clone()];
            let known = Known { roots: &roots, between: &[], depth: 9 };
            let believed = Believed {
                issuer: &self.root.certificate,
                chain: &[],
                trusts_chain: false,
                verify: verify.then_some(known),
            };
            read(response, &id, &believed, UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW)))
        }

        #[track_caller]
        fn check(&self, status: &[u8], times: [&[u8]; 2], expected: Result<Answer, &str>) {
            let response = self.response(&self.root, &self.shown, status, times);
            assert_eq!(self.read(&response, true), expected.map_err(str::to_owned));
        }
    }

    #[test]
    fn what_is_said() {
        let case = Case::new();
        let tomorrow = Some(NOW as i64 + 86_400);
        let said = |status, until| Ok(Answer { status, until });
        case.check(b"\x80\x00", [THIS, NEXT], said(Status::Good, tomorrow));
        case.check(b"\x80\x00", [THIS, b""], said(Status::Good, None));
        let revoked = tagged(REVOKED, &[&time(THIS)]);
        case.check(&revoked, [THIS, NEXT], said(Status::Revoked, tomorrow));
        case.check(b"\x82\x00", [THIS, NEXT], said(Status::Unknown, tomorrow));
        let (early, late) = ("7E:OCSP routines::status not yet valid", "7D:OCSP routines::status expired");
        let invalid = |why: &str| format!("OCSP_check_validity() failed (SSL: error:138000{why})");
        case.check(b"\x80\x00", [NEXT, b"20200103000000Z"], Err(&invalid(early)));
        case.check(b"\x80\x00", [b"20191201000000Z", b"20191202000000Z"], Err(&invalid(late)));
        // Clocks differ a little.
        case.check(b"\x80\x00", [b"20200101000459Z", NEXT], said(Status::Good, tomorrow));
        let other = case.response(&case.root, &case.other, b"\x80\x00", [THIS, NEXT]);
        let missing = "certificate status not found in the OCSP response";
        assert_eq!(case.read(&other, true), Err(missing.to_owned()));
        let refused = case.read(b"\x30\x03\x0a\x01\x06", true);
        assert_eq!(refused, Err("OCSP response not successful (6: unauthorized)".to_owned()));
    }

    #[test]
    fn who_says_it() {
        let case = Case::new();
        let by = |signer: &Authority, verify| {
            let read = case.read(&case.response(signer, &case.shown, b"\x80\x00", [THIS, b""]), verify);
            read.err().unwrap_or_default()
        };
        let stranger = Authority::root(&[]).end(3);
        let trouble = |why: &str| format!("OCSP_basic_verify() failed (SSL: error:138000{why})");
        assert_eq!(
            (by(&stranger, false), by(&stranger, true)),
            (String::new(), trouble("70:OCSP routines::root ca not trusted"))
        );
        assert_eq!(by(&case.other, true), trouble("67:OCSP routines::missing ocspsigning usage"));
        // Certificates made here begin in 1975.
        let delegate = case.root.end_for(4, ExtendedKeyUsagePurpose::OcspSigning);
        assert_eq!(by(&delegate, true), "");
        // One that has the issuer's name is not the issuer.
        assert_eq!(by(&Authority::root(&[]), true), trouble("75:OCSP routines::signature failure"));
        let response = case.response(&case.root, &case.shown, b"\x80\x00", [THIS, b""]);
        for at in 0..response.len() {
            assert!(case.read(&response[..at], true).is_err(), "cut at {at}");
        }
        for at in 0..response.len() {
            let mut changed = response.clone();
            changed[at] ^= 1;
            // Whatever it means then, it does not panic.
            let _ = case.read(&changed, true);
        }
    }

    #[test]
    fn a_request_names_the_certificate() {
        let case = Case::new();
        let id = CertificateId::of(&case.shown.certificate, &case.root.certificate).unwrap();
        let request = id.request();
        // Version and extensions are left out, as OpenSSL leaves them out.
        assert!(base64_encode(&request).starts_with("MEIwQDA+MDwwOjAJBgUrDgMCGgUABB"));
        assert!(memchr::memmem::find(&request, &id.name).is_some());
        assert!(memchr::memmem::find(&request, &[INTEGER, 1, 1]).is_some());
    }
}

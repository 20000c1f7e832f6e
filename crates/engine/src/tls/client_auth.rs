//! Certificates of clients: asked for in the handshake, judged after it.
//!
//! As nginx does, a handshake goes through with whatever certificate the client can sign for; what is wrong with it is
//! answered to the request (495, 496), so that `error_page` may say it in words.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use webpki::KeyUsage;

use super::der::{self, Fields};
use super::names;
use super::signature;
use super::trust::{Reason, Trust};
use crate::http1::date::MONTHS;

/// `ssl_verify_client`, where it is not off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    On,
    Optional,
    /// A certificate is taken whoever issued it.
    OptionalNoCa,
}

/// What is asked of clients and how it is judged.
#[derive(Debug)]
pub struct ClientAuth {
    pub demand: Demand,
    trust: Trust,
    hints: Arc<[DistinguishedName]>,
}

/// Of which a certificate names two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Subject,
    Issuer,
}

/// What a client showed.
#[derive(Debug)]
pub struct ClientCertificate {
    pub der: CertificateDer<'static>,
    /// What is wrong with it.
    pub fault: Option<Reason>,
    /// What its responder has against it, in nginx's words (`ssl_ocsp`).
    pub status: Option<&'static str>,
}

impl ClientCertificate {
    /// The certificate in PEM, with a newline at its end.
    pub fn pem(&self) -> String {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
        // 48 bytes make a line of 64 letters.
        for line in self.der.chunks(48) {
            for group in line.chunks(3) {
                let bits = group.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte))
                    << (8 * (3 - group.len()));
                for at in 0..4 {
                    let letter = ALPHABET[bits >> (18 - 6 * at) & 63];
                    pem.push(if at <= group.len() { char::from(letter) } else { '=' });
                }
            }
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
        pem
    }

    /// Its SHA-1 in hexadecimal.
    pub fn fingerprint(&self) -> String {
        hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &self.der).as_ref())
    }

    /// Its own name or its issuer's, as RFC 2253 has them.
    pub fn name(&self, of: Whose) -> String {
        self.of(of).map(names::rfc2253).unwrap_or_default()
    }

    /// The same as OpenSSL wrote names before.
    pub fn legacy_name(&self, of: Whose) -> String {
        self.of(of).map(names::one_line).unwrap_or_default()
    }

    fn of(&self, of: Whose) -> Option<&[u8]> {
        let fields = Fields::of(&self.der)?;
        Some(match of {
            Whose::Subject => fields.subject,
            Whose::Issuer => fields.issuer,
        })
    }

    /// When it begins and ends to be valid: `Nov  6 08:49:37 2026 GMT`.
    pub fn times(&self) -> Option<[String; 2]> {
        Some(Fields::of(&self.der)?.times()?.map(|digits| {
            let part = |range: std::ops::Range<usize>| String::from_utf8_lossy(&digits[range]).into_owned();
            let number = |range| part(range).parse::<usize>().unwrap_or(0);
            let month = MONTHS[(number(4..6) + 11) % 12];
            let (hour, minute, second) = (part(8..10), part(10..12), part(12..14));
            format!("{month} {:2} {hour}:{minute}:{second} {} GMT", number(6..8), part(0..4))
        }))
    }

    /// The last second (Unix) that it is valid at.
    pub fn end(&self) -> Option<i64> {
        let [_, end] = Fields::of(&self.der)?.times()?;
        der::unix_of(&end)
    }

    /// Its serial number in hexadecimal, as OpenSSL prints it.
    pub fn serial(&self) -> String {
        Fields::of(&self.der).map(|fields| number(fields.serial)).unwrap_or_default()
    }
}

/// An integer of DER in hexadecimal; a negative one with its sign before what it is without.
fn number(integer: &[u8]) -> String {
    let mut bytes = integer.to_vec();
    let is_negative = bytes.first().is_some_and(|first| *first >= 0x80);
    if is_negative {
        // Two's complement: each bit turned, and one more.
        let mut carry = true;
        for byte in bytes.iter_mut().rev() {
            (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
        }
    }
    let significant = match &bytes[..] {
        [0, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    };
    let sign = if is_negative { "-" } else { "" };
    format!("{sign}{}", hex(significant).to_ascii_uppercase())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // A String takes everything.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Why a request cannot be served, with nginx's internal code for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unauthorized {
    /// 496
    NoCertificate,
    /// 495
    BadCertificate(Reason),
    /// 495
    BadStatus(&'static str),
}

impl ClientAuth {
    /// Clients are told of the certificates that are `named` (`ssl_client_certificate`).
    ///
    /// # Errors
    /// A certificate that is none.
    pub fn new(demand: Demand, named: &[CertificateDer<'static>], trust: Trust) -> Result<Self, Error> {
        let mut hints = RootCertStore::empty();
        for certificate in named {
            hints.add(certificate.clone())?;
        }
        Ok(Self { demand, trust, hints: hints.subjects().into() })
    }

    /// What clients showed is judged by others.
    pub(super) fn blind(demand: Demand) -> Self {
        Self { demand, trust: Trust::default(), hints: [].into() }
    }

    /// The part that takes place within the handshake.
    pub(super) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::new(Ask { hints: Arc::clone(&self.hints) })
    }

    /// Judges what a client showed; with it goes its path to a root, where nothing is wrong with that.
    pub(super) fn judge(
        &self,
        chain: &[CertificateDer<'static>],
    ) -> Option<(ClientCertificate, Option<Vec<CertificateDer<'static>>>)> {
        let der = chain.first()?.clone();
        let judged = self.trust.verify(chain, KeyUsage::client_auth());
        let fault = judged.as_ref().err().copied();
        Some((ClientCertificate { der, fault, status: None }, judged.ok()))
    }

    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Whether a request to a server with this demand may be served over a connection.
    ///
    /// # Errors
    /// The certificate is missing or bad.
    pub fn admit(&self, shown: Option<&ClientCertificate>) -> Result<(), Unauthorized> {
        if let Some(status) = shown.and_then(|certificate| certificate.status) {
            return Err(Unauthorized::BadStatus(status));
        }
        match shown.map(|certificate| certificate.fault) {
            Some(Some(reason)) if self.demand != Demand::OptionalNoCa || !reason.is_about_issuer() => {
                Err(Unauthorized::BadCertificate(reason))
            }
            None if self.demand == Demand::On => Err(Unauthorized::NoCertificate),
            Some(_) | None => Ok(()),
        }
    }

    /// What distinguishes it from others, for the mark of sessions.
    pub(super) fn identify(&self, mut add: impl FnMut(&[u8])) {
        let demand: u8 = match self.demand {
            Demand::On => 1,
            Demand::Optional => 2,
            Demand::OptionalNoCa => 3,
        };
        add(&[demand]);
        add(self.trust.mark());
        self.hints.iter().for_each(|hint| add(hint.as_ref()));
    }
}

/// Asks for a certificate and holds the client to its signature; the rest is judged later.
#[derive(Debug)]
struct Ask {
    hints: Arc<[DistinguishedName]>,
}

impl ClientCertVerifier for Ask {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::tls12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::tls13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signature::ALGORITHMS.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn a_certificate_is_shown_in_pem() {
        for name in ["a.example", "ab.example", "abc.example"] {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            let der = CertificateDer::from(made.cert.der().to_vec());
            let shown = ClientCertificate { der: der.clone(), fault: None, status: None };
            assert_eq!(CertificateDer::from_pem_slice(shown.pem().as_bytes()).unwrap(), der);
            assert_eq!(shown.fingerprint().len(), 40);
            assert!(!shown.serial().is_empty());
        }
    }

    #[test]
    fn serial_numbers() {
        for (der, text) in [
            (&[0][..], "00"),
            (&[0x10], "10"),
            (&[0, 0x80], "80"),
            (&[0, 0xff, 0], "FF00"),
            (&[0xfb], "-05"),
            (&[0x80], "-80"),
            (&[0xff, 0], "-0100"),
            (&[0xff, 0x7f], "-81"),
        ] {
            assert_eq!(number(der), text, "{der:?}");
        }
    }
}

//! Certificates of clients: asked for in the handshake, judged after it.
//!
//! As nginx does, a handshake goes through with whatever certificate the client can sign for; what is wrong with it is
//! answered to the request (495, 496), so that `error_page` may say it in words.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};

use super::der::Fields;

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
    /// Certificates between the client's own and a root, at most (`ssl_verify_depth`).
    depth: usize,
    /// `None` where nothing is trusted.
    roots: Option<Arc<dyn ClientCertVerifier>>,
    /// Further certificates to build chains from.
    between: Vec<CertificateDer<'static>>,
    hints: Arc<[DistinguishedName]>,
}

/// Why a certificate is not accepted: OpenSSL's number and words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    pub code: u8,
    pub text: &'static str,
}

impl Reason {
    const UNSPECIFIED: Self = Self { code: 1, text: "unspecified certificate verification error" };
    const NOT_YET_VALID: Self = Self { code: 9, text: "certificate is not yet valid" };
    const EXPIRED: Self = Self { code: 10, text: "certificate has expired" };
    const BAD_SIGNATURE: Self = Self { code: 7, text: "certificate signature failure" };
    const SELF_SIGNED: Self = Self { code: 18, text: "self-signed certificate" };
    const UNKNOWN_ISSUER: Self = Self { code: 21, text: "unable to verify the first certificate" };
    const REVOKED: Self = Self { code: 23, text: "certificate revoked" };
    const NO_CRL: Self = Self { code: 3, text: "unable to get certificate CRL" };
    const CRL_EXPIRED: Self = Self { code: 12, text: "CRL has expired" };
    const PURPOSE: Self = Self { code: 26, text: "unsuitable certificate purpose" };

    fn of(error: &Error, certificate: &[u8]) -> Self {
        let Error::InvalidCertificate(error) = error else { return Self::UNSPECIFIED };
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::EXPIRED,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NOT_YET_VALID
            }
            CertificateError::Revoked => Self::REVOKED,
            CertificateError::UnknownRevocationStatus => Self::NO_CRL,
            CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => Self::CRL_EXPIRED,
            CertificateError::BadSignature => Self::BAD_SIGNATURE,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::PURPOSE
            }
            CertificateError::UnknownIssuer => {
                let own = Fields::of(certificate).is_some_and(|fields| fields.is_self_issued());
                if own { Self::SELF_SIGNED } else { Self::UNKNOWN_ISSUER }
            }
            _ => Self::UNSPECIFIED,
        }
    }

    /// It says only that nobody here knows the issuer.
    fn is_about_issuer(self) -> bool {
        self == Self::SELF_SIGNED || self == Self::UNKNOWN_ISSUER
    }
}

/// What a client showed.
#[derive(Debug)]
pub struct ClientCertificate {
    pub der: CertificateDer<'static>,
    /// What is wrong with it.
    pub fault: Option<Reason>,
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

    /// Its serial number in hexadecimal, as OpenSSL prints it.
    pub fn serial(&self) -> String {
        let serial = Fields::of(&self.der).map_or(&[][..], |fields| fields.serial);
        let significant = match serial {
            [0, rest @ ..] if !rest.is_empty() => rest,
            all => all,
        };
        hex(significant).to_ascii_uppercase()
    }
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
}

impl ClientAuth {
    /// `named` are the certificates that clients are told of (`ssl_client_certificate`), `trusted` those that they are
    /// not told of. As in OpenSSL only self-issued ones end a chain.
    ///
    /// # Errors
    /// A certificate or a revocation list that is none.
    pub fn new(
        demand: Demand,
        depth: usize,
        named: &[CertificateDer<'static>],
        trusted: &[CertificateDer<'static>],
        revoked: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Self, Error> {
        let bad = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
        let mut hints = RootCertStore::empty();
        for certificate in named {
            hints.add(certificate.clone())?;
        }
        let own = |c: &&CertificateDer<'static>| Fields::of(c).is_some_and(|fields| fields.is_self_issued());
        let (ends, between): (Vec<_>, Vec<_>) = named.iter().chain(trusted).partition(own);
        let mut roots = RootCertStore::empty();
        for root in &ends {
            roots.add((*root).clone())?;
        }
        let roots: Option<Arc<dyn ClientCertVerifier>> = if roots.is_empty() {
            None
        } else {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .with_crls(revoked)
                .enforce_revocation_expiration();
            Some(verifier.build().map_err(bad)?)
        };
        let between = between.into_iter().cloned().collect();
        Ok(Self { demand, depth, roots, between, hints: hints.subjects().into() })
    }

    /// The part that takes place within the handshake.
    pub(super) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        Arc::new(Ask { hints: Arc::clone(&self.hints), algorithms })
    }

    /// Judges what a client showed.
    pub(super) fn judge(&self, chain: &[CertificateDer<'static>]) -> Option<ClientCertificate> {
        let (der, sent) = chain.split_first()?;
        let Some(roots) = &self.roots else {
            let own = Fields::of(der).is_some_and(|fields| fields.is_self_issued());
            let fault = if own { Reason::SELF_SIGNED } else { Reason::UNKNOWN_ISSUER };
            return Some(ClientCertificate { der: der.clone(), fault: Some(fault) });
        };
        // A path cannot be longer than what there is to build it from. A root among them does not count.
        let is_root =
            |c: &&CertificateDer<'static>| Fields::of(c).is_some_and(|fields| fields.is_self_issued());
        let between = sent.iter().chain(&self.between).filter(|c| !is_root(c)).take(self.depth);
        let between: Vec<_> = between.cloned().collect();
        let verdict = roots.verify_client_cert(der, &between, UnixTime::now());
        let fault = verdict.err().map(|error| Reason::of(&error, der));
        Some(ClientCertificate { der: der.clone(), fault })
    }

    /// Whether a request to a server with this demand may be served over a connection.
    ///
    /// # Errors
    /// The certificate is missing or bad.
    pub fn admit(&self, shown: Option<&ClientCertificate>) -> Result<(), Unauthorized> {
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
        add(&self.depth.to_be_bytes());
        self.hints.iter().for_each(|hint| add(hint.as_ref()));
    }
}

/// Asks for a certificate and holds the client to its signature; the rest is judged later.
#[derive(Debug)]
struct Ask {
    hints: Arc<[DistinguishedName]>,
    algorithms: WebPkiSupportedAlgorithms,
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
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
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
            let shown = ClientCertificate { der: der.clone(), fault: None };
            assert_eq!(CertificateDer::from_pem_slice(shown.pem().as_bytes()).unwrap(), der);
            assert_eq!(shown.fingerprint().len(), 40);
            assert!(!shown.serial().is_empty());
        }
    }
}

//! The signature in a handshake, which proves that the other side has the key of its certificate, and signatures of what an
//! authority says.
//!
//! Of a handshake only the key is taken from the certificate, so that one that is not judged may be of any version, as with OpenSSL.

use std::sync::LazyLock;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved};
use webpki::RawPublicKeyEntity;

use super::der::Fields;

/// What signatures may be made with.
pub(super) static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> =
    LazyLock::new(|| rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms);

pub(super) fn tls12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let key = key(certificate)?;
    let key = RawPublicKeyEntity::try_from(&key).map_err(|_| BAD)?;
    let made_with = ALGORITHMS.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
    let Some((_, algorithms)) = made_with else {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    };
    // A scheme of TLS 1.2 leaves the curve open.
    let valid = algorithms
        .iter()
        .any(|algorithm| key.verify_signature(*algorithm, message, signed.signature()).is_ok());
    if valid { Ok(HandshakeSignatureValid::assertion()) } else { Err(CertificateError::BadSignature.into()) }
}

pub(super) fn tls13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature_with_raw_key(message, &key(certificate)?, signed, &ALGORITHMS)
}

/// Whether a message was signed with a key (a whole `SubjectPublicKeyInfo`), by an algorithm (the content of its
/// `AlgorithmIdentifier`).
pub(super) fn is_by(key: &[u8], algorithm: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let key = SubjectPublicKeyInfoDer::from(key);
    let Ok(key) = RawPublicKeyEntity::try_from(&key) else { return false };
    let mut named = ALGORITHMS.all.iter().filter(|known| known.signature_alg_id().as_ref() == algorithm);
    // A name leaves the curve open.
    named.any(|algorithm| key.verify_signature(*algorithm, message, signature).is_ok())
}

const BAD: Error = Error::InvalidCertificate(CertificateError::BadEncoding);

fn key<'c>(certificate: &'c CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'c>, Error> {
    Ok(Fields::of(certificate).ok_or(BAD)?.public_key.into())
}

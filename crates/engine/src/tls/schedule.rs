//! The suites of TLS 1.3 with HKDF over keys that are set up once. rustls's own sets a secret's key up again for each
//! that is derived from it, which is half the work of a derivation, and derivations are a good part of a handshake.
//! The secret that each begins with, where no session is resumed, is the same for all, and no secret.

use std::sync::{LazyLock, OnceLock};

use aws_lc_rs::hmac;
use rustls::crypto::aws_lc_rs::cipher_suite as suite;
use rustls::crypto::hmac::Tag;
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock, OutputLengthError};
use rustls::{CipherSuiteCommon, SupportedCipherSuite, Tls13CipherSuite};

/// In OpenSSL's order of preference.
pub static TLS13: LazyLock<[SupportedCipherSuite; 3]> = LazyLock::new(|| {
    static AES_256: Suite = LazyLock::new(|| with(suite::TLS13_AES_256_GCM_SHA384, &SHA384));
    static CHACHA20: Suite = LazyLock::new(|| with(suite::TLS13_CHACHA20_POLY1305_SHA256, &SHA256));
    static AES_128: Suite = LazyLock::new(|| with(suite::TLS13_AES_128_GCM_SHA256, &SHA256));
    [&AES_256, &CHACHA20, &AES_128].map(|suite| SupportedCipherSuite::Tls13(suite))
});

type Suite = LazyLock<Tls13CipherSuite>;

static SHA256: Derivation = Derivation { hash: hmac::HMAC_SHA256, empty: OnceLock::new() };
static SHA384: Derivation = Derivation { hash: hmac::HMAC_SHA384, empty: OnceLock::new() };

fn with(suite: SupportedCipherSuite, hkdf_provider: &'static dyn Hkdf) -> Tls13CipherSuite {
    let SupportedCipherSuite::Tls13(known) = suite else { unreachable!("{suite:?} is of TLS 1.3") };
    let CipherSuiteCommon { suite, hash_provider, confidentiality_limit } = known.common;
    Tls13CipherSuite {
        common: CipherSuiteCommon { suite, hash_provider, confidentiality_limit },
        hkdf_provider,
        aead_alg: known.aead_alg,
        quic: None,
    }
}

/// HKDF (RFC 5869) over the HMAC of a hash.
struct Derivation {
    hash: hmac::Algorithm,
    /// What is extracted of nothing, with no salt.
    empty: OnceLock<hmac::Key>,
}

/// As many as a hash has at most.
const ZEROES: [u8; OkmBlock::MAX_LEN] = [0; OkmBlock::MAX_LEN];

impl Derivation {
    fn zeroes(&self) -> &'static [u8] {
        &ZEROES[..self.hash.tag_len()]
    }

    fn extract(&self, salt: Option<&[u8]>, secret: &[u8]) -> hmac::Key {
        let salt = hmac::Key::new(self.hash, salt.unwrap_or_else(|| self.zeroes()));
        hmac::Key::new(self.hash, hmac::sign(&salt, secret).as_ref())
    }
}

impl Hkdf for Derivation {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        let extract = || self.extract(salt, self.zeroes());
        Box::new(Secret(match salt {
            None => self.empty.get_or_init(extract).clone(),
            Some(_) => extract(),
        }))
    }

    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        Box::new(Secret(self.extract(salt, secret)))
    }

    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        Box::new(Secret(hmac::Key::new(self.hash, okm.as_ref())))
    }

    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> Tag {
        Tag::new(hmac::sign(&hmac::Key::new(self.hash, key.as_ref()), message).as_ref())
    }
}

/// What others are derived from.
struct Secret(hmac::Key);

impl Secret {
    /// One block of the output: the one `before` it and its number go in too.
    fn block(&self, before: &[u8], info: &[&[u8]], number: u8) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(before);
        info.iter().for_each(|part| context.update(part));
        context.update(&[number]);
        context.sign()
    }
}

impl HkdfExpander for Secret {
    fn expand_slice(&self, info: &[&[u8]], output: &mut [u8]) -> Result<(), OutputLengthError> {
        let mut before: Option<hmac::Tag> = None;
        for (index, chunk) in output.chunks_mut(self.hash_len()).enumerate() {
            let number = u8::try_from(index + 1).map_err(|_| OutputLengthError)?;
            let block = self.block(before.as_ref().map_or(&[], AsRef::as_ref), info, number);
            chunk.copy_from_slice(&block.as_ref()[..chunk.len()]);
            before = Some(block);
        }
        Ok(())
    }

    fn expand_block(&self, info: &[&[u8]]) -> OkmBlock {
        OkmBlock::new(self.block(&[], info, 1).as_ref())
    }

    fn hash_len(&self) -> usize {
        self.0.algorithm().tag_len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_derived_is_what_rustls_derives() {
        let known = [
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS13_AES_128_GCM_SHA256,
        ];
        for (ours, known) in TLS13.iter().zip(known) {
            assert_eq!(ours.suite(), known.suite());
            let derived = [ours, &known].map(|suite| {
                let hkdf = suite.tls13().unwrap().hkdf_provider;
                let length = suite.tls13().unwrap().common.hash_provider.output_len();
                let mut derived = vec![];
                for expander in [
                    hkdf.extract_from_zero_ikm(None),
                    hkdf.extract_from_zero_ikm(Some(b"salt")),
                    hkdf.extract_from_secret(None, b"secret"),
                    hkdf.extract_from_secret(Some(b"salt"), &[7; 200]),
                    hkdf.expander_for_okm(&OkmBlock::new(&[9; 64][..length])),
                ] {
                    for size in [12, 32, length, 2 * length + 1] {
                        let mut secret = vec![0; size];
                        expander.expand_slice(&[b"a ", b"", b"label"], &mut secret).unwrap();
                        derived.push(secret);
                    }
                    derived.push(expander.expand_block(&[b"label"]).as_ref().to_vec());
                    assert!(expander.expand_slice(&[], &mut vec![0; 255 * length + 1]).is_err());
                    assert_eq!(expander.hash_len(), length);
                }
                let key = OkmBlock::new(&[3; 64][..length]);
                derived.push(hkdf.hmac_sign(&key, b"message").as_ref().to_vec());
                derived
            });
            assert_eq!(derived[0], derived[1]);
        }
    }
}

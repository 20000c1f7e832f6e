//! The suites of TLS 1.3 with HKDF over keys that are set up once. rustls's own sets a secret's key up again for each
//! that is derived from it, which is half the work of a derivation, and derivations are a good part of a handshake.

use std::sync::LazyLock;

use aws_lc_rs::hmac;
use rustls::crypto::aws_lc_rs::cipher_suite as suite;
use rustls::crypto::hmac::{Hmac, Key, Tag};
use rustls::crypto::tls13::{Hkdf, HkdfUsingHmac};
use rustls::{CipherSuiteCommon, SupportedCipherSuite, Tls13CipherSuite};

/// In OpenSSL's order of preference.
pub static TLS13: LazyLock<[SupportedCipherSuite; 3]> = LazyLock::new(|| {
    static AES_256: Suite = LazyLock::new(|| with(suite::TLS13_AES_256_GCM_SHA384, &SHA384));
    static CHACHA20: Suite = LazyLock::new(|| with(suite::TLS13_CHACHA20_POLY1305_SHA256, &SHA256));
    static AES_128: Suite = LazyLock::new(|| with(suite::TLS13_AES_128_GCM_SHA256, &SHA256));
    [&AES_256, &CHACHA20, &AES_128].map(|suite| SupportedCipherSuite::Tls13(suite))
});

type Suite = LazyLock<Tls13CipherSuite>;

static SHA256: HkdfUsingHmac<'_> = HkdfUsingHmac(&Hash(hmac::HMAC_SHA256));
static SHA384: HkdfUsingHmac<'_> = HkdfUsingHmac(&Hash(hmac::HMAC_SHA384));

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

struct Hash(hmac::Algorithm);

impl Hmac for Hash {
    fn with_key(&self, key: &[u8]) -> Box<dyn Key> {
        Box::new(Keyed(hmac::Key::new(self.0, key)))
    }

    fn hash_output_len(&self) -> usize {
        self.0.digest_algorithm().output_len()
    }
}

struct Keyed(hmac::Key);

impl Key for Keyed {
    fn sign_concat(&self, first: &[u8], middle: &[&[u8]], last: &[u8]) -> Tag {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(first);
        middle.iter().for_each(|part| context.update(part));
        context.update(last);
        Tag::new(context.sign().as_ref())
    }

    fn tag_len(&self) -> usize {
        self.0.algorithm().digest_algorithm().output_len()
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::tls13::OkmBlock;

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

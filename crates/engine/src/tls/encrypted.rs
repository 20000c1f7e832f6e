//! Private keys that are encrypted with a password: PBES2 in PKCS #8 (RFC 8018), which is what OpenSSL writes.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, Algorithm, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::pbkdf2;

use super::der::{INTEGER, OCTETS, OID, SEQUENCE, element};

/// 1.2.840.113549.1.5.13
const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
/// 1.2.840.113549.1.5.12
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];
/// 1.2.840.113549.2, below which are the functions that keys are derived with.
const HMAC: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02];
/// 2.16.840.1.101.3.4.1, below which are the modes of AES.
const AES: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01];

/// How a key is encrypted.
struct Scheme<'a> {
    function: pbkdf2::Algorithm,
    salt: &'a [u8],
    iterations: NonZeroU32,
    /// With the length of its keys.
    cipher: (&'static Algorithm, usize),
    iv: [u8; 16],
    data: &'a [u8],
}

/// Why there is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Locked {
    /// It is encrypted in another way.
    Unsupported,
    BadPassword,
}

/// The PKCS #8 key in an `EncryptedPrivateKeyInfo`.
pub(super) fn decrypt(der: &[u8], password: &[u8]) -> Result<Vec<u8>, Locked> {
    let scheme = Scheme::read(der).ok_or(Locked::Unsupported)?;
    let mut key = vec![0; scheme.cipher.1];
    pbkdf2::derive(scheme.function, scheme.iterations, scheme.salt, password, &mut key);
    let key = UnboundCipherKey::new(scheme.cipher.0, &key).map_err(|_| Locked::Unsupported)?;
    let key = PaddedBlockDecryptingKey::cbc_pkcs7(key).map_err(|_| Locked::Unsupported)?;
    let mut data = scheme.data.to_vec();
    let iv = DecryptionContext::Iv128(FixedLength::from(&scheme.iv));
    let plain = key.decrypt(&mut data, iv).map_err(|_| Locked::BadPassword)?;
    // A wrong password may leave a sound padding, but hardly a sequence of the right length.
    match element(plain, SEQUENCE) {
        Some((_, [])) => Ok(plain.to_vec()),
        _ => Err(Locked::BadPassword),
    }
}

impl<'a> Scheme<'a> {
    fn read(der: &'a [u8]) -> Option<Self> {
        let (info, _) = element(der, SEQUENCE)?;
        let (algorithm, rest) = element(info, SEQUENCE)?;
        let (data, _) = element(rest, OCTETS)?;
        let parameters = of(algorithm, |oid| (oid == PBES2).then_some(()))?.1;
        let (parameters, _) = element(parameters, SEQUENCE)?;
        let (derivation, rest) = element(parameters, SEQUENCE)?;
        let (encryption, _) = element(rest, SEQUENCE)?;

        let derivation = of(derivation, |oid| (oid == PBKDF2).then_some(()))?.1;
        let (derivation, _) = element(derivation, SEQUENCE)?;
        let (salt, rest) = element(derivation, OCTETS)?;
        let (iterations, rest) = element(rest, INTEGER)?;
        // The length of the key, which the cipher tells too.
        let rest = element(rest, INTEGER).map_or(rest, |(_, rest)| rest);
        let function = match element(rest, SEQUENCE) {
            None => pbkdf2::PBKDF2_HMAC_SHA1,
            Some((function, _)) => {
                of(function, |oid| match oid.strip_prefix(HMAC)? {
                    [7] => Some(pbkdf2::PBKDF2_HMAC_SHA1),
                    [9] => Some(pbkdf2::PBKDF2_HMAC_SHA256),
                    [10] => Some(pbkdf2::PBKDF2_HMAC_SHA384),
                    [11] => Some(pbkdf2::PBKDF2_HMAC_SHA512),
                    _ => None,
                })?
                .0
            }
        };
        let (cipher, iv) = of(encryption, |oid| match oid.strip_prefix(AES)? {
            [2] => Some((&AES_128, 16)),
            [22] => Some((&AES_192, 24)),
            [42] => Some((&AES_256, 32)),
            _ => None,
        })?;
        let (iv, _) = element(iv, OCTETS)?;
        if iterations.len() > 5 {
            return None;
        }
        let iterations = iterations.iter().fold(0, |n: u64, byte| n << 8 | u64::from(*byte));
        Some(Self {
            function,
            salt,
            iterations: NonZeroU32::new(u32::try_from(iterations).ok()?)?,
            cipher,
            iv: iv.try_into().ok()?,
            data,
        })
    }
}

/// What an `AlgorithmIdentifier` names, and its parameters.
fn of<T>(algorithm: &[u8], known: impl Fn(&[u8]) -> Option<T>) -> Option<(T, &[u8])> {
    let (oid, parameters) = element(algorithm, OID)?;
    Some((known(oid)?, parameters))
}

#[cfg(test)]
mod tests {
    use crate::tls::pem;

    /// `openssl pkey -aes128 -passout pass:open` and `-aes-256-cbc`, `-v2prf hmacWithSHA512`.
    const KEYS: [&str; 3] = [
        include_str!("testdata/aes128.key"),
        include_str!("testdata/aes256.key"),
        include_str!("testdata/sha512.key"),
    ];

    #[test]
    fn keys_are_opened_with_their_password() {
        let password = |word: &str| vec![Box::from(word.as_bytes())];
        let plain = pem::private_key(include_bytes!("testdata/plain.key"), &[]).unwrap();
        for key in KEYS {
            let open = |words: &[Box<[u8]>]| pem::private_key(key.as_bytes(), words);
            assert_eq!(open(&[password("shut"), password("open")].concat()).as_ref(), Ok(&plain));
            let fault = open(&password("shut")).unwrap_err();
            assert!(fault.reasons.contains("bad decrypt"), "{fault}");
            let fault = open(&[]).unwrap_err();
            assert!(fault.reasons.contains("bad password read"), "{fault}");
        }
    }
}

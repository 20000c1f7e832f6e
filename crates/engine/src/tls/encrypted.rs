//! Private keys that are encrypted with a password: PBES2 in PKCS #8 (RFC 8018), which is what OpenSSL writes, and what it wrote
//! before: keys whose PEM says how (`DEK-Info`), and the one scheme of PKCS #12 (RFC 7292) that it still reads.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, Algorithm, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey,
};
#[expect(deprecated, reason = "it is for the keys that there are")]
use aws_lc_rs::cipher::{DES_EDE_FOR_LEGACY_USE_ONLY, DES_EDE3_FOR_LEGACY_USE_ONLY};
use aws_lc_rs::digest::{self, SHA1_FOR_LEGACY_USE_ONLY};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::pbkdf2;

use super::der::{INTEGER, OCTETS, OID, SEQUENCE, element};
use crate::md5::Md5;

/// 1.2.840.113549.1.5.13
const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
/// 1.2.840.113549.1.5.12
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];
/// 1.2.840.113549.1.12.1, below which are the schemes of PKCS #12.
const PKCS12: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x01];
/// 1.2.840.113549.2, below which are the functions that keys are derived with.
const HMAC: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02];
/// 1.2.840.113549.3.7
const DES_EDE3_CBC: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x03, 0x07];
/// 2.16.840.1.101.3.4.1, below which are the modes of AES.
const AES: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01];

/// Of CBC, with the length of its keys.
type Cipher = (&'static Algorithm, usize);

const AES_128_CBC: Cipher = (&AES_128, 16);
const AES_192_CBC: Cipher = (&AES_192, 24);
const AES_256_CBC: Cipher = (&AES_256, 32);
#[expect(deprecated, reason = "it is for the keys that there are")]
const DES_EDE: Cipher = (&DES_EDE_FOR_LEGACY_USE_ONLY, 16);
#[expect(deprecated, reason = "it is for the keys that there are")]
const DES_EDE3: Cipher = (&DES_EDE3_FOR_LEGACY_USE_ONLY, 24);

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
    let (size, Kdf { salt, iterations, .. }) = (scheme.cipher.1, scheme.kdf);
    let mut key = vec![0; size];
    let iv = match scheme.kdf.function {
        Function::Pbkdf2 { algorithm, iv } => {
            pbkdf2::derive(algorithm, iterations, salt, password, &mut key);
            iv.to_vec()
        }
        Function::Pkcs12 => {
            key = pkcs12(1, salt, iterations, password, size);
            pkcs12(2, salt, iterations, password, scheme.cipher.0.block_len())
        }
    };
    open(scheme.cipher, &key, &iv, scheme.data)
}

/// A key whose PEM says that it is encrypted: `AES-128-CBC,0102…`, as behind `DEK-Info:`.
pub(super) fn decrypt_old(info: &str, der: &[u8], password: &[u8]) -> Result<Vec<u8>, Locked> {
    let (name, iv) = info.split_once(',').ok_or(Locked::Unsupported)?;
    let cipher = match name.trim() {
        "AES-128-CBC" => AES_128_CBC,
        "AES-192-CBC" => AES_192_CBC,
        "AES-256-CBC" => AES_256_CBC,
        "DES-EDE3-CBC" => DES_EDE3,
        _ => return Err(Locked::Unsupported),
    };
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let iv = iv.trim().as_bytes().chunks(2).map(byte).collect::<Option<Vec<_>>>();
    let iv = iv.filter(|iv| iv.len() >= SALT).ok_or(Locked::Unsupported)?;
    // EVP_BytesToKey(3), once around.
    let mut key = vec![];
    while key.len() < cipher.1 {
        let last = key.len().saturating_sub(16);
        let part = Md5::default().with(&key[last..]).with(password).with(&iv[..SALT]).finish();
        key.extend_from_slice(&part);
    }
    key.truncate(cipher.1);
    open(cipher, &key, &iv, der)
}

/// Bytes of an initialization vector that are the salt, too.
const SALT: usize = 8;

fn open(cipher: Cipher, key: &[u8], iv: &[u8], data: &[u8]) -> Result<Vec<u8>, Locked> {
    let key = UnboundCipherKey::new(cipher.0, key).map_err(|_| Locked::Unsupported)?;
    // Of DES, parts that are alike are refused; no password gives them.
    let key = PaddedBlockDecryptingKey::cbc_pkcs7(key).map_err(|_| Locked::BadPassword)?;
    let iv = match (iv.first_chunk(), iv.first_chunk(), iv.len()) {
        (Some(iv), _, 16) => DecryptionContext::Iv128(FixedLength::<16>::from(iv)),
        (_, Some(iv), 8) => DecryptionContext::Iv64(FixedLength::<8>::from(iv)),
        _ => return Err(Locked::Unsupported),
    };
    let mut data = data.to_vec();
    let plain = key.decrypt(&mut data, iv).map_err(|_| Locked::BadPassword)?;
    // A wrong password may leave a sound padding, but hardly a sequence of the right length.
    match element(plain, SEQUENCE) {
        Some((_, [])) => Ok(plain.to_vec()),
        _ => Err(Locked::BadPassword),
    }
}

/// What a password makes for a purpose (RFC 7292 appendix B): 1 is a key, 2 an initialization vector.
fn pkcs12(purpose: u8, salt: &[u8], iterations: NonZeroU32, password: &[u8], size: usize) -> Vec<u8> {
    const BLOCK: usize = 64;
    let password: Vec<u16> = match std::str::from_utf8(password) {
        Ok(text) => text.encode_utf16().chain([0]).collect(),
        Err(_) => password.iter().map(|byte| u16::from(*byte)).chain([0]).collect(),
    };
    let password: Vec<u8> = password.into_iter().flat_map(u16::to_be_bytes).collect();
    let whole = |part: &[u8]| {
        let size = part.len().next_multiple_of(BLOCK);
        part.iter().copied().cycle().take(size).collect::<Vec<_>>()
    };
    let mut input = [whole(salt), whole(&password)].concat();
    let mut made = vec![];
    while made.len() < size {
        let mut hash = digest::digest(&SHA1_FOR_LEGACY_USE_ONLY, &[&[purpose; BLOCK], &input[..]].concat());
        for _ in 1..iterations.get() {
            hash = digest::digest(&SHA1_FOR_LEGACY_USE_ONLY, hash.as_ref());
        }
        made.extend_from_slice(hash.as_ref());
        // Each block of the input grows by the hash and one, as a number.
        for block in input.chunks_mut(BLOCK) {
            let addend = hash.as_ref().iter().cycle().take(BLOCK).collect::<Vec<_>>();
            let mut carry = 1;
            for (byte, addend) in block.iter_mut().zip(addend).rev() {
                let sum = u16::from(*byte) + u16::from(*addend) + carry;
                (*byte, carry) = (sum.to_be_bytes()[1], sum >> 8);
            }
        }
    }
    made.truncate(size);
    made
}

/// How a key is encrypted.
struct Scheme<'a> {
    kdf: Kdf<'a>,
    cipher: Cipher,
    data: &'a [u8],
}

/// What makes a key of a password.
#[derive(Clone, Copy)]
struct Kdf<'a> {
    function: Function<'a>,
    salt: &'a [u8],
    iterations: NonZeroU32,
}

#[derive(Clone, Copy)]
enum Function<'a> {
    Pbkdf2 {
        algorithm: pbkdf2::Algorithm,
        iv: &'a [u8],
    },
    /// It makes the initialization vector, too.
    Pkcs12,
}

impl<'a> Scheme<'a> {
    fn read(der: &'a [u8]) -> Option<Self> {
        let (info, _) = element(der, SEQUENCE)?;
        let (algorithm, rest) = element(info, SEQUENCE)?;
        let (data, _) = element(rest, OCTETS)?;
        let (scheme, parameters) = element(algorithm, OID)?;
        let (parameters, _) = element(parameters, SEQUENCE)?;
        let cipher = match scheme.strip_prefix(PKCS12) {
            Some([3]) => DES_EDE3,
            Some([4]) => DES_EDE,
            _ => return (scheme == PBES2).then(|| Self::pbes2(parameters, data))?,
        };
        let (salt, rest) = element(parameters, OCTETS)?;
        let (iterations, _) = count(rest)?;
        Some(Self { kdf: Kdf { function: Function::Pkcs12, salt, iterations }, cipher, data })
    }

    fn pbes2(parameters: &'a [u8], data: &'a [u8]) -> Option<Self> {
        let (derivation, rest) = element(parameters, SEQUENCE)?;
        let (encryption, _) = element(rest, SEQUENCE)?;

        let derivation = of(derivation, |oid| (oid == PBKDF2).then_some(()))?.1;
        let (derivation, _) = element(derivation, SEQUENCE)?;
        let (salt, rest) = element(derivation, OCTETS)?;
        let (iterations, rest) = count(rest)?;
        // The length of the key, which the cipher tells too.
        let rest = element(rest, INTEGER).map_or(rest, |(_, rest)| rest);
        let algorithm = match element(rest, SEQUENCE) {
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
        let (cipher, iv) = of(encryption, |oid| match oid.strip_prefix(AES) {
            Some([2]) => Some(AES_128_CBC),
            Some([22]) => Some(AES_192_CBC),
            Some([42]) => Some(AES_256_CBC),
            _ => (oid == DES_EDE3_CBC).then_some(DES_EDE3),
        })?;
        let (iv, _) = element(iv, OCTETS)?;
        let kdf = Kdf { function: Function::Pbkdf2 { algorithm, iv }, salt, iterations };
        Some(Self { kdf, cipher, data })
    }
}

/// A number of iterations, and what is behind it.
fn count(der: &[u8]) -> Option<(NonZeroU32, &[u8])> {
    let (number, rest) = element(der, INTEGER)?;
    let number = Some(number).filter(|number| number.len() <= 5)?;
    let number = number.iter().fold(0, |n: u64, byte| n << 8 | u64::from(*byte));
    Some((NonZeroU32::new(u32::try_from(number).ok()?)?, rest))
}

/// What an `AlgorithmIdentifier` names, and its parameters.
fn of<T>(algorithm: &[u8], known: impl Fn(&[u8]) -> Option<T>) -> Option<(T, &[u8])> {
    let (oid, parameters) = element(algorithm, OID)?;
    Some((known(oid)?, parameters))
}

#[cfg(test)]
mod tests {
    use crate::tls::pem;

    /// `openssl pkey -aes128 -passout pass:open`, `-aes-256-cbc`, `-v2prf hmacWithSHA512` and `-des3`; `openssl pkcs8 -v1` of the two
    /// schemes; `openssl ec -aes192` and `-des3`.
    const KEYS: [&str; 8] = [
        include_str!("testdata/aes128.key"),
        include_str!("testdata/aes256.key"),
        include_str!("testdata/sha512.key"),
        include_str!("testdata/des3.key"),
        include_str!("testdata/pbes1.key"),
        include_str!("testdata/pbes1_two.key"),
        include_str!("testdata/old_aes192.key"),
        include_str!("testdata/old_des3.key"),
    ];

    fn password(word: &str) -> Vec<Box<[u8]>> {
        vec![Box::from(word.as_bytes())]
    }

    #[test]
    fn keys_are_opened_with_their_password() {
        let public = |key| {
            let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
            key.public_key().unwrap().to_vec()
        };
        let plain = public(pem::private_key(include_bytes!("testdata/plain.key"), &[]).unwrap());
        for key in KEYS {
            let open = |words: &[Box<[u8]>]| pem::private_key(key.as_bytes(), words);
            assert_eq!(public(open(&[password("shut"), password("open")].concat()).unwrap()), plain);
            // Where editors of Windows were at it.
            let windows = key.replace('\n', "\r\n");
            assert_eq!(public(pem::private_key(windows.as_bytes(), &password("open")).unwrap()), plain);
            let fault = open(&password("shut")).unwrap_err();
            assert!(fault.reasons.contains("bad decrypt"), "{fault}");
            let fault = open(&[]).unwrap_err();
            assert!(fault.reasons.contains("bad password read"), "{fault}");
            assert!(pem::is_encrypted(key.as_bytes()));
        }
    }

    #[test]
    fn what_is_wrong_is_told_in_openssls_words() {
        let reasons =
            |key: &str, word: &str| pem::private_key(key.as_bytes(), &password(word)).unwrap_err().reasons;
        let final_error = |what: &str| {
            let one = format!(
                "error:1C800064:Provider routines::bad decrypt \
                 error:11800074:PKCS12 routines::pkcs12 cipherfinal error:{what}"
            );
            format!("{one} {one}")
        };
        assert_eq!(reasons(KEYS[0], "shut"), final_error("maybe wrong password"));
        assert_eq!(reasons(KEYS[4], ""), final_error("empty password"));
        assert_eq!(
            reasons(KEYS[7], "shut"),
            "error:1C800064:Provider routines::bad decrypt error:04800065:PEM routines::bad decrypt"
        );
        let camellia = include_str!("testdata/old_camellia.key");
        assert_eq!(reasons(camellia, "open"), "weir has not the cipher of the encrypted key");
    }
}

//! Certificates and keys out of PEM files, with the words that nginx's OpenSSL has for what is wrong with them.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::der::Fields;
use super::encrypted::{self, Locked};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

/// What is wrong with a file, as nginx shows it after the file's name: the function of OpenSSL that failed and its
/// queue of errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub call: &'static str,
    pub reasons: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}() failed (SSL: {})", self.call, self.reasons)
    }
}

impl Fault {
    /// The file could not be opened.
    pub fn open(path: &str, error: &io::Error) -> Self {
        let number = error.raw_os_error().unwrap_or(nix::libc::EIO);
        let text = weir_syntax::render::strerror(number);
        let second = match number {
            nix::libc::ENOENT => "error:10000080:BIO routines::no such file",
            _ => "error:10080002:BIO routines::system lib",
        };
        let reasons = format!(
            "error:{:08X}:system library::{text}:calling fopen({path}, r) {second}",
            0x8000_0000 | number.unsigned_abs()
        );
        Self { call: "BIO_new_file", reasons }
    }

    fn pem(call: &'static str, error: &PemError, expecting: &str) -> Self {
        let reasons = match error {
            PemError::MissingSectionEnd { .. } => "error:04800066:PEM routines::bad end line".to_owned(),
            PemError::Base64Decode(_) => "error:04800064:PEM routines::bad base64 decode".to_owned(),
            // The rest is files without the section that is looked for. The errors are OpenSSL's own and may grow.
            _ => format!("error:0480006C:PEM routines::no start line:Expecting: {expecting}"),
        };
        Self { call, reasons }
    }
}

/// The certificates of a file, in its order.
///
/// # Errors
/// The file has none, or one that is not base64.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    const CALL: &str = "PEM_read_bio_X509_AUX";
    let fault = |error: &PemError| Fault::pem(CALL, error, "TRUSTED CERTIFICATE");
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| fault(&error))?;
    if certificates.is_empty() {
        return Err(fault(&PemError::NoItemsFound));
    }
    for certificate in &certificates {
        // Certificates of version 1 are served, too, so this asks for less than a verifier would.
        if Fields::of(certificate).is_none() {
            let reasons = "error:0688010A:asn1 encoding routines::nested asn1 error".to_owned();
            return Err(Fault { call: CALL, reasons });
        }
    }
    Ok(certificates)
}

/// The revocation lists of a file.
///
/// # Errors
/// As of [`certificates`].
pub fn revocations(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Fault> {
    let fault = |error: &PemError| Fault::pem("PEM_read_bio_X509_CRL", error, "X509 CRL");
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| fault(&error))?;
    if lists.is_empty() { Err(fault(&PemError::NoItemsFound)) } else { Ok(lists) }
}

/// Words that may open encrypted keys, of a file with one a line (nginx: `ssl_password_file`).
pub type Passwords = [Box<[u8]>];

/// The first private key of a file: PKCS #8, PKCS #1 or SEC 1; of the first also encrypted.
///
/// # Errors
/// The file has none that can be read, or none of the passwords opens it.
pub fn private_key(pem: &[u8], passwords: &Passwords) -> Result<PrivateKeyDer<'static>, Fault> {
    const CALL: &str = "PEM_read_bio_PrivateKey";
    let fault = |reasons: &str| Fault { call: CALL, reasons: reasons.to_owned() };
    let unreadable = |_| {
        fault("error:1E08010C:DECODER routines::unsupported:No supported data to decode. Input type: PEM")
    };
    if memchr::memmem::find(pem, b"Proc-Type: 4,ENCRYPTED").is_some() {
        return Err(fault("weir reads encrypted keys only in PKCS #8 (openssl pkcs8 -topk8)"));
    }
    const ENCRYPTED: &[u8] = b" ENCRYPTED PRIVATE KEY-----";
    if memchr::memmem::find(pem, ENCRYPTED).is_none() {
        return PrivateKeyDer::from_pem_slice(pem).map_err(unreadable);
    }
    // By another name the section is read like any other.
    let renamed: Vec<u8> =
        String::from_utf8_lossy(pem).replace("ENCRYPTED PRIVATE KEY", "PRIVATE KEY").into();
    let locked = PrivatePkcs8KeyDer::from_pem_slice(&renamed).map_err(unreadable)?;
    let mut last = fault("error:04800068:PEM routines::bad password read");
    for password in passwords {
        match encrypted::decrypt(locked.secret_pkcs8_der(), password) {
            Ok(der) => return Ok(PrivatePkcs8KeyDer::from(der).into()),
            Err(Locked::Unsupported) => return Err(fault("weir has not the cipher of the encrypted key")),
            Err(Locked::BadPassword) => {
                last = fault(
                    "error:1C800064:Provider routines::bad decrypt \
                     error:11800074:PKCS12 routines::pkcs12 cipherfinal error:maybe wrong password",
                );
            }
        }
    }
    Err(last)
}

/// Why a certificate and a key are no pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPair {
    /// The algorithm or the size is one that is not supported.
    Unsupported,
    /// The key is another one's.
    Mismatch,
}

/// A chain and its key, ready for handshakes.
///
/// # Errors
/// They do not belong together, or the key is of a kind that is not supported.
pub fn pair(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    staple: Option<Vec<u8>>,
) -> Result<Arc<CertifiedKey>, NoPair> {
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|_| NoPair::Unsupported)?;
    let own = key.public_key();
    let certified = chain.first().and_then(|certificate| Fields::of(certificate));
    if own.zip(certified).is_none_or(|(own, certified)| *own != *certified.public_key) {
        return Err(NoPair::Mismatch);
    }
    let mut pair = CertifiedKey::new(chain, key);
    pair.ocsp = staple;
    Ok(Arc::new(pair))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_pair_is_a_pair() {
        let (one, one_key) = made("a");
        let (two, two_key) = made("b");
        let pair_of = |cert: &str, key: &str| {
            pair(certificates(cert.as_bytes()).unwrap(), private_key(key.as_bytes(), &[]).unwrap(), None)
                .map(|p| p.cert.len())
        };
        assert_eq!(pair_of(&one, &one_key), Ok(1));
        assert_eq!(pair_of(&format!("{two}{one}"), &two_key), Ok(2));
        assert_eq!(pair_of(&one, &two_key), Err(NoPair::Mismatch));
    }

    /// Of version 1, as `openssl req -x509` makes it where its configuration names no extensions.
    const VERSION_1: &str = "\
-----BEGIN CERTIFICATE-----
MIIBFDCBuwIUPL6TB7CbrJxpHgWZCd5UaJk+0/cwCgYIKoZIzj0EAwIwDDEKMAgG
A1UEAwwBYTAgFw0yNjExMjIyMDMxMzBaGA8yMTI2MTAyOTIwMzEzMFowDDEKMAgG
A1UEAwwBYTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABJ6tveQOkqSnI9311cW0
nwObSZpxc10XTZahX0LpyAjIG1zsdwELgmK10ucX5HhloWfiSwiqgWQckFrsH6j/
afIwCgYIKoZIzj0EAwIDSAAwRQIgWE8vnCdXN7MGkXq8cbJRkMkBpAfJl1Wj+2i6
5Qse5/wCIQD1/Y4FWoJiRNstUI2TfFJSjtbDCSoKnQW2tkQMxVD18g==
-----END CERTIFICATE-----
";
    const VERSION_1_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgv97CZ2KBsQ+DCqGG
Gy1uZFzIC4ogwJ+9wmo11szSlg2hRANCAASerb3kDpKkpyPd9dXFtJ8Dm0macXNd
F02WoV9C6cgIyBtc7HcBC4JitdLnF+R4ZaFn4ksIqoFkHJBa7B+o/2ny
-----END PRIVATE KEY-----
";

    #[test]
    fn certificates_of_version_1_are_served() {
        let chain = certificates(VERSION_1.as_bytes()).unwrap();
        let paired = pair(chain.clone(), private_key(VERSION_1_KEY.as_bytes(), &[]).unwrap(), None);
        assert_eq!(paired.map(|p| p.cert.len()), Ok(1));
        let (_, other) = made("a");
        assert_eq!(
            pair(chain, private_key(other.as_bytes(), &[]).unwrap(), None).map(|p| p.cert.len()),
            Err(NoPair::Mismatch)
        );
    }

    #[test]
    fn faults_in_openssls_words() {
        let (cert, key) = made("a");
        let no_start = "error:0480006C:PEM routines::no start line:Expecting: TRUSTED CERTIFICATE";
        for junk in ["", "junk\n", &key] {
            assert_eq!(certificates(junk.as_bytes()).unwrap_err().reasons, no_start, "{junk}");
        }
        let spoiled = cert.replacen("\nMII", "\n!II", 1);
        let reasons = certificates(spoiled.as_bytes()).unwrap_err().reasons;
        assert_eq!(reasons, "error:04800064:PEM routines::bad base64 decode");
        let fault = private_key(cert.as_bytes(), &[]).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "PEM_read_bio_PrivateKey() failed (SSL: error:1E08010C:DECODER routines::unsupported:\
             No supported data to decode. Input type: PEM)"
        );
        let fault = Fault::open("/x", &io::Error::from_raw_os_error(2));
        assert_eq!(
            fault.to_string(),
            "BIO_new_file() failed (SSL: error:80000002:system library::No such file or directory:\
             calling fopen(/x, r) error:10000080:BIO routines::no such file)"
        );
    }
}

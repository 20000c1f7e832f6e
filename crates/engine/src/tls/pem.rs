//! Certificates and keys out of PEM files, with the words that nginx's OpenSSL has for what is wrong with them.

use std::fmt;
use std::io;
use std::slice;
use std::sync::Arc;

use super::der::{self, BIT_STRING, Fields, INTEGER, OID, SEQUENCE};
use super::encrypted::{self, Locked};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer,
    PrivateSec1KeyDer, SubjectPublicKeyInfoDer,
};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};

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

    /// A store that is none, or has no such file.
    fn store(uri: &str, path: &str, error: &io::Error) -> Self {
        let number = error.raw_os_error().unwrap_or(nix::libc::EIO);
        let text = weir_syntax::render::strerror(number);
        let mut reasons = "error:16000069:STORE routines::unregistered scheme:scheme=file".to_owned();
        for asked in [Some(uri), (uri != path).then_some(path)].into_iter().flatten() {
            let number = 0x8000_0000 | number.unsigned_abs();
            reasons.push_str(&format!(" error:{number:08X}:system library::{text}:calling stat({asked})"));
        }
        Self { call: "OSSL_STORE_open", reasons }
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

/// What OpenSSL takes and the reader of PEM does not: a mark of the byte order at its start, certificates under their
/// two other names. And what it refuses: more on the line at the end of a section, which is where the next begins if two
/// files were put together of which the first has no newline at its end.
fn prepared(pem: &[u8]) -> Result<Vec<u8>, PemError> {
    const DASHES: &[u8] = b"-----";
    let mut prepared = Vec::with_capacity(pem.len());
    for line in pem.strip_prefix(b"\xef\xbb\xbf").unwrap_or(pem).split_inclusive(|byte| *byte == b'\n') {
        if let Some(label) = line.strip_prefix(b"-----END ") {
            let end =
                memchr::memmem::find(label, DASHES).map(|at| label[at + DASHES.len()..].trim_ascii_end());
            if end.is_some_and(|end| !end.is_empty()) {
                return Err(PemError::MissingSectionEnd { end_marker: line.to_vec() });
            }
        }
        let named =
            [&b"TRUSTED CERTIFICATE-----"[..], b"X509 CERTIFICATE-----"].into_iter().find_map(|name| {
                let at = memchr::memmem::find(line, name).filter(|_| line.starts_with(DASHES))?;
                Some((&line[..at], &line[at + name.len()..]))
            });
        match named {
            Some((before, behind)) => {
                prepared.extend_from_slice(before);
                prepared.extend_from_slice(b"CERTIFICATE-----");
                prepared.extend_from_slice(behind);
            }
            None => prepared.extend_from_slice(line),
        }
    }
    Ok(prepared)
}

/// For what a certificate of a file may be trusted: id-kp-serverAuth, id-kp-clientAuth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Servers,
    Clients,
}

impl Purpose {
    fn oid(self) -> &'static [u8] {
        match self {
            Self::Servers => &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01],
            Self::Clients => &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02],
        }
    }

    /// Whether what OpenSSL wrote behind a certificate (`openssl x509 -trustout`) lets it be trusted for this.
    ///
    /// ```text
    /// SEQUENCE { SEQUENCE OF OID trusted for, [0] OF OID rejected for, ... }, each only where it is said
    /// ```
    fn is_allowed(self, auxiliary: &[u8]) -> bool {
        /// anyExtendedKeyUsage
        const ANY: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
        let names =
            |list| der::elements(list).any(|(tag, oid)| tag == OID && [self.oid(), ANY].contains(&oid));
        let (trusted, rest) = der::element(auxiliary, SEQUENCE)
            .map_or((None, auxiliary), |(trusted, rest)| (Some(trusted), rest));
        let rejected = der::element(rest, 0xa0).is_some_and(|(rejected, _)| names(rejected));
        !rejected && trusted.is_none_or(names)
    }
}

/// A certificate as it stands in a file: its DER, and the content of what OpenSSL wrote behind it.
fn split(mut certificate: CertificateDer<'static>) -> Option<(CertificateDer<'static>, Vec<u8>)> {
    // Certificates of version 1 are served, too, so this asks for less than a verifier would.
    Fields::of(&certificate)?;
    let (_, behind) = der::element(&certificate, SEQUENCE)?;
    if behind.is_empty() {
        return Some((certificate, vec![]));
    }
    let auxiliary = der::element(behind, SEQUENCE)?.0.to_vec();
    certificate = certificate[..certificate.len() - behind.len()].to_vec().into();
    Some((certificate, auxiliary))
}

/// The certificates of a file with what is said of them, in its order. `others` is who reads those behind the first.
fn read(pem: &[u8], others: &'static str) -> Result<Vec<(CertificateDer<'static>, Vec<u8>)>, Fault> {
    const FIRST: &str = "PEM_read_bio_X509_AUX";
    let fault = |call, error: &PemError| Fault::pem(call, error, "TRUSTED CERTIFICATE");
    let prepared = prepared(pem).map_err(|error| fault(FIRST, &error))?;
    let mut certificates = vec![];
    for certificate in CertificateDer::pem_slice_iter(&prepared) {
        let call = if certificates.is_empty() { FIRST } else { others };
        let certificate = certificate.map_err(|error| fault(call, &error))?;
        certificates.push(split(certificate).ok_or_else(|| {
            let reasons = "error:0688010A:asn1 encoding routines::nested asn1 error".to_owned();
            Fault { call, reasons }
        })?);
    }
    if certificates.is_empty() {
        return Err(fault(FIRST, &PemError::NoItemsFound));
    }
    Ok(certificates)
}

/// The certificate of a file and what comes behind it, to be shown.
///
/// # Errors
/// The file has none, or one that is not base64.
pub fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    Ok(read(pem, "PEM_read_bio_X509")?.into_iter().map(|(certificate, _)| certificate).collect())
}

/// The certificates of a file that may be trusted for a purpose.
///
/// # Errors
/// As of [`chain`].
pub fn trusted(pem: &[u8], purpose: Purpose) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let mut certificates = read(pem, "PEM_read_bio_X509_AUX")?;
    certificates.retain(|(_, auxiliary)| auxiliary.is_empty() || purpose.is_allowed(auxiliary));
    Ok(certificates.into_iter().map(|(certificate, _)| certificate).collect())
}

/// The revocation lists of a file.
///
/// # Errors
/// As of [`chain`].
pub fn revocations(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Fault> {
    let fault = |error: &PemError| Fault::pem("PEM_read_bio_X509_CRL", error, "X509 CRL");
    let lists = prepared(pem).and_then(|pem| CertificateRevocationListDer::pem_slice_iter(&pem).collect());
    let lists: Vec<_> = lists.map_err(|error| fault(&error))?;
    if lists.is_empty() { Err(fault(&PemError::NoItemsFound)) } else { Ok(lists) }
}

/// The content of a key that no path names: `store:…`, of which OpenSSL by itself has files, and `engine:…`, of which there
/// are none here. `None` for any other name.
pub fn elsewhere<T>(name: &str, read: impl FnOnce(&str) -> Result<T, io::Error>) -> Option<Result<T, Fault>> {
    if let Some(engine) = name.strip_prefix("engine:") {
        let id = engine.split_once(':').map_or(engine, |(id, _)| id);
        let reasons = format!("error:13000074:engine routines::no such engine:id={id}");
        return Some(Err(Fault { call: "ENGINE_by_id", reasons }));
    }
    let uri = name.strip_prefix("store:")?;
    let path = uri.strip_prefix("file:").unwrap_or(uri);
    // RFC 8089: a host, which is this one, may stand before the path.
    let local = path.strip_prefix("//localhost").or_else(|| path.strip_prefix("//"));
    let path = local.filter(|path| path.starts_with('/')).unwrap_or(path);
    Some(read(path).map_err(|error| Fault::store(uri, path, &error)))
}

/// Words that may open encrypted keys, of a file with one a line (nginx: `ssl_password_file`).
pub type Passwords = [Box<[u8]>];

/// Whether a file has a private key that wants a password.
pub(super) fn is_encrypted(pem: &[u8]) -> bool {
    [&b" ENCRYPTED PRIVATE KEY-----"[..], OLD].iter().any(|mark| memchr::memmem::find(pem, mark).is_some())
}

/// In the head of a section whose content is encrypted (RFC 1421 section 4.6.1.1).
const OLD: &[u8] = b"Proc-Type: 4,ENCRYPTED";

/// The first private key of a file: PKCS #8, PKCS #1 or SEC 1, each also encrypted.
///
/// # Errors
/// The file has none that can be read, or none of the passwords opens it.
pub fn private_key(pem: &[u8], passwords: &Passwords) -> Result<PrivateKeyDer<'static>, Fault> {
    let unreadable = |_| {
        bad_key("error:1E08010C:DECODER routines::unsupported:No supported data to decode. Input type: PEM")
    };
    let pem = pem.strip_prefix(b"\xef\xbb\xbf").unwrap_or(pem);
    if memchr::memmem::find(pem, OLD).is_some() {
        let (info, plain) = without_head(&String::from_utf8_lossy(pem));
        let locked = PrivateKeyDer::from_pem_slice(plain.as_bytes()).map_err(unreadable)?;
        let der = opened(passwords, false, |word| encrypted::decrypt_old(&info, locked.secret_der(), word))?;
        return Ok(match locked {
            PrivateKeyDer::Pkcs1(_) => PrivatePkcs1KeyDer::from(der).into(),
            PrivateKeyDer::Sec1(_) => PrivateSec1KeyDer::from(der).into(),
            _ => PrivatePkcs8KeyDer::from(der).into(),
        });
    }
    if !is_encrypted(pem) {
        return PrivateKeyDer::from_pem_slice(pem).map_err(unreadable);
    }
    // By another name the section is read like any other.
    let renamed: Vec<u8> =
        String::from_utf8_lossy(pem).replace("ENCRYPTED PRIVATE KEY", "PRIVATE KEY").into();
    let locked = PrivatePkcs8KeyDer::from_pem_slice(&renamed).map_err(unreadable)?;
    let der = opened(passwords, true, |word| encrypted::decrypt(locked.secret_pkcs8_der(), word))?;
    Ok(PrivatePkcs8KeyDer::from(der).into())
}

fn bad_key(reasons: &str) -> Fault {
    Fault { call: "PEM_read_bio_PrivateKey", reasons: reasons.to_owned() }
}

/// What `DEK-Info` says in the head of a section, and the file without such heads.
fn without_head(pem: &str) -> (String, String) {
    let info = pem.lines().find_map(|line| line.strip_prefix("DEK-Info:"));
    let is_head = |line: &&str| line.starts_with("Proc-Type:") || line.starts_with("DEK-Info:");
    let rest = pem.split_inclusive('\n').filter(|line| !is_head(line)).collect();
    (info.unwrap_or_default().to_owned(), rest)
}

/// The content of a key that one of the passwords opens, or what OpenSSL says of the last of them.
fn opened(
    passwords: &Passwords,
    pkcs8: bool,
    open: impl Fn(&[u8]) -> Result<Vec<u8>, Locked>,
) -> Result<Vec<u8>, Fault> {
    let mut last = bad_key("error:04800068:PEM routines::bad password read");
    for password in passwords {
        match open(password) {
            Ok(der) => return Ok(der),
            Err(Locked::Unsupported) => return Err(bad_key("weir has not the cipher of the encrypted key")),
            Err(Locked::BadPassword) if pkcs8 => {
                let what = if password.is_empty() { "empty password" } else { "maybe wrong password" };
                let one = format!(
                    "error:1C800064:Provider routines::bad decrypt \
                     error:11800074:PKCS12 routines::pkcs12 cipherfinal error:{what}"
                );
                // OpenSSL tries twice.
                last = bad_key(&format!("{one} {one}"));
            }
            Err(Locked::BadPassword) => {
                last = bad_key(
                    "error:1C800064:Provider routines::bad decrypt error:04800065:PEM routines::bad decrypt",
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
    /// As above, and OpenSSL does not take it either: RSA of less than 2048 bits.
    TooSmall,
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
    let certified = chain.first().and_then(|certificate| Fields::of(certificate));
    let refused = || match certified.and_then(|certified| rsa_bytes(certified.public_key)) {
        Some(..256) => NoPair::TooSmall,
        Some(_) | None => NoPair::Unsupported,
    };
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|_| refused())?;
    let own = key.public_key();
    if own.zip(certified).is_none_or(|(own, certified)| *own != *certified.public_key) {
        return Err(NoPair::Mismatch);
    }
    let mut pair = CertifiedKey::new(chain, Arc::new(Obliging(key)));
    pair.ocsp = staple;
    Ok(Arc::new(pair))
}

/// A key that signs by the first scheme it can of those that are offered, as OpenSSL has it; rustls has an order of its own.
#[derive(Debug)]
struct Obliging(Arc<dyn SigningKey>);

impl SigningKey for Obliging {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.iter().find_map(|scheme| self.0.choose_scheme(slice::from_ref(scheme)))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.0.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

/// How long the modulus of an RSA key, a whole `SubjectPublicKeyInfo`, is.
fn rsa_bytes(key: &[u8]) -> Option<usize> {
    /// 1.2.840.113549.1.1.1
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    let (info, _) = der::element(key, SEQUENCE)?;
    let (algorithm, key) = der::element(info, SEQUENCE)?;
    der::element(algorithm, OID).filter(|(oid, _)| *oid == RSA)?;
    let (key, _) = der::element(key, BIT_STRING)?;
    let (key, _) = der::element(key.strip_prefix(&[0])?, SEQUENCE)?;
    let (modulus, _) = der::element(key, INTEGER)?;
    Some(modulus.strip_prefix(&[0]).unwrap_or(modulus).len())
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
            pair(chain(cert.as_bytes()).unwrap(), private_key(key.as_bytes(), &[]).unwrap(), None)
                .map(|p| p.cert.len())
        };
        assert_eq!(pair_of(&one, &one_key), Ok(1));
        assert_eq!(pair_of(&format!("{two}{one}"), &two_key), Ok(2));
        assert_eq!(pair_of(&one, &two_key), Err(NoPair::Mismatch));
    }

    #[test]
    fn the_first_scheme_that_is_offered_signs() {
        use SignatureScheme::{ECDSA_NISTP256_SHA256, RSA_PKCS1_SHA384, RSA_PSS_SHA256, RSA_PSS_SHA512};
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        let certificate =
            rcgen::CertificateParams::new(["a".to_owned()]).and_then(|p| p.self_signed(&key)).unwrap();
        let key = private_key(key.serialize_pem().as_bytes(), &[]).unwrap();
        let pair = pair(vec![certificate.der().clone()], key, None).unwrap();
        let signs = |offered: &[_]| pair.key.choose_scheme(offered).map(|signer| signer.scheme());
        for first in [RSA_PSS_SHA256, RSA_PSS_SHA512, RSA_PKCS1_SHA384] {
            assert_eq!(signs(&[ECDSA_NISTP256_SHA256, first, RSA_PSS_SHA512]), Some(first));
        }
        assert_eq!(signs(&[ECDSA_NISTP256_SHA256]), None);
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
        let chain = chain(VERSION_1.as_bytes()).unwrap();
        let paired = pair(chain.clone(), private_key(VERSION_1_KEY.as_bytes(), &[]).unwrap(), None);
        assert_eq!(paired.map(|p| p.cert.len()), Ok(1));
        let (_, other) = made("a");
        assert_eq!(
            pair(chain, private_key(other.as_bytes(), &[]).unwrap(), None).map(|p| p.cert.len()),
            Err(NoPair::Mismatch)
        );
    }

    /// A certificate with what OpenSSL writes behind it.
    fn with_trust(cert: &str, auxiliary: &[u8]) -> String {
        let mut der = chain(cert.as_bytes()).unwrap()[0].to_vec();
        der.extend_from_slice(auxiliary);
        let made = crate::tls::ClientCertificate { der: der.into(), fault: None, status: None };
        made.pem().replace(" CERTIFICATE", " TRUSTED CERTIFICATE")
    }

    #[test]
    fn certificates_with_trust() {
        let (plain, key) = made("a");
        let (other, _) = made("b");
        let alias = with_trust(&plain, b"\x30\x04\x0c\x02hi");
        let own = chain(plain.as_bytes()).unwrap();
        for pem in [&alias, &plain.replace(" CERTIFICATE", " X509 CERTIFICATE")] {
            assert_eq!(chain(pem.as_bytes()).unwrap(), own, "{pem}");
        }
        let read = chain(format!("{alias}{other}").as_bytes()).unwrap();
        assert_eq!(pair(read, private_key(key.as_bytes(), &[]).unwrap(), None).map(|p| p.cert.len()), Ok(2));
        let usage = |last: u8| [b"\x06\x08\x2b\x06\x01\x05\x05\x07\x03", &[last][..]].concat();
        let any = b"\x06\x04\x55\x1d\x25\x00";
        let tagged =
            |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).unwrap()], content].concat();
        let trust = |content: &[u8]| tagged(SEQUENCE, &tagged(SEQUENCE, content));
        let reject = |content: &[u8]| tagged(SEQUENCE, &tagged(0xa0, content));
        for (auxiliary, servers, clients) in [
            (trust(&usage(1)), true, false),
            (trust(&usage(2)), false, true),
            (trust(any), true, true),
            (reject(&usage(2)), true, false),
            (reject(any), false, false),
            (tagged(SEQUENCE, b""), true, true),
        ] {
            let pem = with_trust(&plain, &auxiliary);
            let is_trusted = |purpose| !trusted(pem.as_bytes(), purpose).unwrap().is_empty();
            assert_eq!(
                [is_trusted(Purpose::Servers), is_trusted(Purpose::Clients)],
                [servers, clients],
                "{auxiliary:?}"
            );
        }
        assert!(chain(with_trust(&plain, b"\x05\x00").as_bytes()).is_err());
    }

    #[test]
    fn keys_that_no_path_names() {
        for (name, path) in [
            ("store:file:/a/b", "/a/b"),
            ("store:/a/b", "/a/b"),
            ("store:file:///a", "/a"),
            ("store:file://localhost/a", "/a"),
            ("store:file:a", "a"),
        ] {
            let read = elsewhere(name, |path| Ok(path.to_owned())).unwrap();
            assert_eq!(read.as_deref(), Ok(path), "{name}");
        }
        assert!(elsewhere("/a/store:b", |_| Ok(())).is_none());
        assert_eq!(elsewhere("engine:a:b", |_| Ok(())).unwrap().unwrap_err().call, "ENGINE_by_id");
    }

    #[test]
    fn what_editors_and_cat_make_of_files() {
        let ((cert, key), (other, _)) = (made("a"), made("b"));
        let marked = |text: &str| format!("\u{feff}{text}");
        let dos = |text: &str| text.replace('\n', "\r\n");
        for (cert, key) in [(marked(&cert), marked(&key)), (dos(&cert), dos(&key))] {
            let key = private_key(key.as_bytes(), &[]).unwrap();
            assert_eq!(pair(chain(cert.as_bytes()).unwrap(), key, None).map(|p| p.cert.len()), Ok(1));
        }
        // The second would be lost.
        let glued = format!("{}{other}", cert.trim_end());
        assert_eq!(chain(glued.as_bytes()).unwrap_err().reasons, "error:04800066:PEM routines::bad end line");
        let spoiled = format!("{cert}{}", other.replacen("\nMII", "\n!II", 1));
        assert_eq!(chain(spoiled.as_bytes()).unwrap_err().call, "PEM_read_bio_X509");
        assert_eq!(trusted(spoiled.as_bytes(), Purpose::Clients).unwrap_err().call, "PEM_read_bio_X509_AUX");
    }

    #[test]
    fn faults_in_openssls_words() {
        let (cert, key) = made("a");
        let no_start = "error:0480006C:PEM routines::no start line:Expecting: TRUSTED CERTIFICATE";
        for junk in ["", "junk\n", &key] {
            assert_eq!(chain(junk.as_bytes()).unwrap_err().reasons, no_start, "{junk}");
        }
        let spoiled = cert.replacen("\nMII", "\n!II", 1);
        let reasons = chain(spoiled.as_bytes()).unwrap_err().reasons;
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

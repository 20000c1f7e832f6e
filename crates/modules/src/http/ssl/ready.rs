//! What a server's words mean: files read, lists understood, everything checked that nginx checks at load.

use std::fmt::Display;
use std::sync::Arc;

use rustls::SupportedCipherSuite;
use rustls::crypto::SupportedKxGroup;
use rustls::sign::CertifiedKey;
use weir_engine::tls::ciphers::{self, BadGroups, BadList};
use weir_engine::tls::pem::{self, NoPair};
use weir_engine::tls::{ClientAuth, Demand, Protocols, SessionCache, TicketKey, Trust};
use weir_ir::{Fault, Merge};

use super::{OwnCache, PROTOCOLS, SESSION, Server};

/// What a server's words mean.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) pairs: Vec<Arc<CertifiedKey>>,
    pub(super) protocols: Protocols,
    pub(super) ciphers: Vec<SupportedCipherSuite>,
    pub(super) groups: Vec<&'static dyn SupportedKxGroup>,
    pub(super) ticket_keys: Vec<Arc<TicketKey>>,
    pub(super) client_auth: Option<Arc<ClientAuth>>,
}

impl Server {
    /// Checks all that nginx checks of a server that speaks TLS, in its order.
    pub(super) fn prepare(&self, merge: &mut Merge<'_>) -> Result<Option<Ready>, Fault> {
        match self.certificates.last() {
            Some(last) if self.certificate_keys.len() < self.certificates.len() => {
                return Err(merge.fail_nowhere(format!(
                    "no \"ssl_certificate_key\" is defined for certificate \"{last}\""
                )));
            }
            None if !self.reject_handshake.or(false) => return Ok(None),
            Some(_) | None => {}
        }
        let on = |name| {
            PROTOCOLS.iter().position(|(n, _)| *n == name).is_some_and(|at| self.protocols & 1 << at != 0)
        };
        let mut protocols = match self.protocols {
            0 => Protocols { tls12: true, tls13: true },
            _ => Protocols { tls12: on("TLSv1.2"), tls13: on("TLSv1.3") },
        };
        if protocols == (Protocols { tls12: false, tls13: false }) {
            return Err(merge.fail_nowhere("\"ssl_protocols\" leaves no protocol that is supported by weir"));
        }
        let mut suites = self.suites(&mut protocols, merge)?;
        let pairs = self.pairs(merge)?;
        if self.certificate_compression.or(false) && !pairs.is_empty() {
            merge.warn_nowhere("\"ssl_certificate_compression\" is not supported on this platform, ignored");
        }
        let client_auth = self.client_auth(merge)?.map(Arc::new);
        self.check_dhparam(merge)?;
        if self.ech_file {
            merge.warn_nowhere("\"ssl_ech_file\" is not supported on this platform, ignored");
        }
        let mut groups = groups(self.ecdh_curve.get().map_or("auto", |list| list), merge)?;
        let ticket_keys = self.ticket_keys(merge)?;
        if self.stapling.or(false) && !self.stapling_file.is_set() && !pairs.is_empty() {
            merge.warn_nowhere("\"ssl_stapling\" ignored, weir asks no OCSP responder");
        }
        self.run_commands(&mut protocols, &mut suites, &mut groups, merge)?;
        let mut ciphers = if protocols.tls13 { suites.tls13 } else { vec![] };
        ciphers.extend(suites.tls12.into_iter().filter(|_| protocols.tls12));
        Ok(Some(Ready { pairs, protocols, ciphers, groups, ticket_keys, client_auth }))
    }

    fn suites(&self, protocols: &mut Protocols, merge: &mut Merge<'_>) -> Result<Suites, Fault> {
        let list = self.ciphers.get().map_or("HIGH:!aNULL:!MD5", |list| list);
        let tls13 = ciphers::TLS13.to_vec();
        match ciphers::tls12(list) {
            Ok(tls12) => Ok(Suites { tls12, tls13 }),
            Err(BadList::Unavailable) if protocols.tls13 => {
                if protocols.tls12 {
                    merge.warn_nowhere(format!(
                        "weir has none of the ciphers \"{list}\", so there is no TLSv1.2, only TLSv1.3"
                    ));
                }
                protocols.tls12 = false;
                Ok(Suites { tls12: vec![], tls13 })
            }
            Err(bad @ BadList::Unavailable) => Err(merge.fail_nowhere(format!("{bad} \"{list}\""))),
            Err(bad @ BadList::Openssl(_)) => {
                Err(merge.fail_nowhere(format!("SSL_CTX_set_cipher_list(\"{list}\") failed (SSL: {bad})")))
            }
        }
    }

    fn pairs(&self, merge: &Merge<'_>) -> Result<Vec<Arc<CertifiedKey>>, Fault> {
        let staple = match self.stapling_file.get() {
            Some(path) if self.stapling.or(false) => Some(staple(path, merge)?),
            Some(_) | None => None,
        };
        let mut pairs = vec![];
        for (certificate, key) in self.certificates.iter().zip(&self.certificate_keys) {
            if certificate.contains('$') || key.contains('$') {
                return Err(merge.fail_nowhere(
                    "variables in \"ssl_certificate\" and \"ssl_certificate_key\" directives are known but not \
                     supported by weir yet",
                ));
            }
            let (shown, content) = source(certificate, merge);
            let chain = content.and_then(|c| pem::certificates(&c));
            let chain = chain.map_err(|fault| cannot_load(merge, "certificate", &shown, &fault))?;
            let (shown, content) = source(key, merge);
            let key = content.and_then(|c| pem::private_key(&c));
            let key = key.map_err(|fault| cannot_load(merge, "certificate key", &shown, &fault))?;
            let pair = pem::pair(chain, key, staple.clone()).map_err(|no_pair| {
                let reason = match no_pair {
                    NoPair::Mismatch => "error:05800074:x509 certificate routines::key values mismatch",
                    NoPair::Unsupported => "the kind of the key is not supported by weir",
                };
                merge.fail_nowhere(format!("SSL_CTX_use_PrivateKey(\"{shown}\") failed (SSL: {reason})"))
            })?;
            pairs.push(pair);
        }
        Ok(pairs)
    }

    fn client_auth(&self, merge: &Merge<'_>) -> Result<Option<ClientAuth>, Fault> {
        let certificates = |path: Option<&Arc<str>>| {
            let Some(path) = path else { return Ok(vec![]) };
            let content = read(merge, path).and_then(|content| pem::certificates(&content));
            content.map_err(|fault| cannot_load(merge, "certificate", path, &fault))
        };
        let demand = self.verify_client.or(None);
        let mut named = vec![];
        if let Some(demand) = demand {
            let nothing = !self.client_certificate.is_set() && !self.trusted_certificate.is_set();
            if demand != Demand::OptionalNoCa && nothing {
                return Err(merge.fail_nowhere(
                    "no ssl_client_certificate or ssl_trusted_certificate for ssl_verify_client",
                ));
            }
            named = certificates(self.client_certificate.get())?;
        }
        let trusted = certificates(self.trusted_certificate.get())?;
        let revoked = match self.crl.get() {
            Some(path) => read(merge, path)
                .and_then(|content| pem::revocations(&content))
                .map_err(|fault| cannot_load(merge, "CRL", path, &fault))?,
            None => vec![],
        };
        let Some(demand) = demand else { return Ok(None) };
        let depth = usize::try_from(self.verify_depth.or(1)).unwrap_or(usize::MAX);
        let failed =
            |error: &dyn Display| merge.fail_nowhere(format!("\"ssl_verify_client\" failed ({error})"));
        let trust = Trust::new(depth, named.iter().chain(&trusted), &revoked).map_err(|e| failed(&e))?;
        ClientAuth::new(demand, &named, trust).map(Some).map_err(|e| failed(&e))
    }

    /// The parameters are never used, but a wrong path is told as nginx tells it.
    fn check_dhparam(&self, merge: &Merge<'_>) -> Result<(), Fault> {
        let Some(path) = self.dhparam.get() else { return Ok(()) };
        let content = read(merge, path).map_err(|fault| {
            merge.fail_nowhere(format!("BIO_new_file(\"{path}\") failed (SSL: {})", fault.reasons))
        })?;
        let found = memchr::memmem::find(&content, b"-----BEGIN DH PARAMETERS-----")
            .or_else(|| memchr::memmem::find(&content, b"-----BEGIN X9.42 DH PARAMETERS-----"));
        if found.is_none() {
            return Err(merge.fail_nowhere(format!(
                "PEM_read_bio_DHparams(\"{path}\") failed (SSL: error:0480006C:PEM routines::no start line:\
                 Expecting: DH PARAMETERS)"
            )));
        }
        Ok(())
    }

    fn ticket_keys(&self, merge: &Merge<'_>) -> Result<Vec<Arc<TicketKey>>, Fault> {
        let read = |path: &Arc<str>| {
            let content = merge
                .world()
                .content(path.as_bytes())
                .map_err(|error| merge.fail_os(format!("open() \"{path}\" failed"), &error))?;
            let key = TicketKey::read(&content);
            key.map(Arc::new).ok_or_else(|| merge.fail(format!("\"{path}\" must be 48 or 80 bytes")))
        };
        self.session_ticket_keys.iter().map(read).collect()
    }

    /// What `ssl_conf_command` changes (SSL_CONF_cmd(3)).
    fn run_commands(
        &self,
        protocols: &mut Protocols,
        suites: &mut Suites,
        kx: &mut Vec<&'static dyn SupportedKxGroup>,
        merge: &mut Merge<'_>,
    ) -> Result<(), Fault> {
        for (name, value) in &self.conf_commands {
            let failed = |reason: &str| {
                merge.fail_nowhere(format!("SSL_CONF_cmd(\"{name}\", \"{value}\") failed (SSL: {reason})"))
            };
            let unsupported = || {
                let message =
                    format!("\"ssl_conf_command {name} {value}\" is known but not supported by weir yet");
                Err(merge.fail_nowhere(message))
            };
            match name.to_ascii_lowercase().as_str() {
                "ciphersuites" => {
                    suites.tls13 = ciphers::tls13(value).map_err(|bad| failed(&bad.to_string()))?;
                }
                "cipherstring" => {
                    suites.tls12 = ciphers::tls12(value).map_err(|bad| failed(&bad.to_string()))?;
                }
                "groups" | "curves" => *kx = groups(value, merge)?,
                "minprotocol" => match value.as_str() {
                    "TLSv1.3" => protocols.tls12 = false,
                    "None" | "SSLv3" | "TLSv1" | "TLSv1.1" | "TLSv1.2" => {}
                    _ => return Err(failed("error:0A000180:SSL routines::bad value")),
                },
                "maxprotocol" => match value.as_str() {
                    "TLSv1.2" => protocols.tls13 = false,
                    "None" | "TLSv1.3" => {}
                    _ => return unsupported(),
                },
                "options" => {
                    // Options that rustls has no other way of, or whose lack changes no security.
                    const HARMLESS: [&str; 9] = [
                        "KTLS",
                        "-KTLS",
                        "PrioritizeChaCha",
                        "NoRenegotiation",
                        "-UnsafeLegacyRenegotiation",
                        "-Compression",
                        "MiddleboxCompat",
                        "Bugs",
                        "ECDHSingle",
                    ];
                    if !value.split(',').all(|option| HARMLESS.contains(&option)) {
                        return unsupported();
                    }
                }
                "signaturealgorithms"
                | "clientsignaturealgorithms"
                | "protocol"
                | "numtickets"
                | "recordpadding"
                | "dhparameters"
                | "verifymode"
                | "ecdhparameters" => return unsupported(),
                _ => {
                    return Err(failed(&format!("error:0A000182:SSL routines::unknown cmd name:cmd={name}")));
                }
            }
        }
        if protocols.tls12 || protocols.tls13 {
            Ok(())
        } else {
            Err(merge.fail_nowhere("\"ssl_conf_command\" leaves no protocol"))
        }
    }

    pub(super) fn cache(&self) -> Option<SessionCache> {
        let sessions = |n: u64| usize::try_from(n.max(1)).unwrap_or(usize::MAX);
        match (self.own_cache.or(OwnCache::None), self.shared_cache.get()) {
            (OwnCache::Off | OwnCache::None, _) => None,
            (OwnCache::Shared | OwnCache::Builtin(_), Some((name, size))) => {
                Some(SessionCache { name: Some(Arc::clone(name)), sessions: sessions(size / SESSION) })
            }
            (OwnCache::Builtin(n), None) => Some(SessionCache { name: None, sessions: sessions(n) }),
            (OwnCache::Shared, None) => None,
        }
    }
}

struct Suites {
    tls12: Vec<SupportedCipherSuite>,
    tls13: Vec<SupportedCipherSuite>,
}

fn groups(list: &str, merge: &Merge<'_>) -> Result<Vec<&'static dyn SupportedKxGroup>, Fault> {
    if list == "auto" {
        return Ok(ciphers::DEFAULT_GROUPS.to_vec());
    }
    ciphers::groups(list).map_err(|bad| {
        let failed = format!("SSL_CTX_set1_curves_list(\"{list}\") failed");
        merge.fail_nowhere(match bad {
            BadGroups::Empty => failed,
            BadGroups::Unknown(name) => format!(
                "{failed} (SSL: error:0A080106:SSL routines::passed invalid argument:group '{name}' cannot be set)"
            ),
            BadGroups::Unavailable => format!("{failed}: weir has none of these groups"),
        })
    })
}

/// The name that nginx shows for a certificate or key, and its content: of a file, or of `data:` itself.
fn source(text: &str, merge: &Merge<'_>) -> (String, Result<Arc<[u8]>, pem::Fault>) {
    if let Some(data) = text.strip_prefix("data:") {
        return (text.to_owned(), Ok(data.as_bytes().into()));
    }
    let path =
        if text.starts_with('/') { text.to_owned() } else { format!("{}{text}", merge.prefixes().conf) };
    let content = read(merge, &path);
    (path, content)
}

fn read(merge: &Merge<'_>, path: &str) -> Result<Arc<[u8]>, pem::Fault> {
    match merge.world().content(path.as_bytes()) {
        Ok(content) => Ok(content),
        // OpenSSL opens a directory and finds nothing in it.
        Err(error) if error.kind() == std::io::ErrorKind::IsADirectory => Ok(Arc::default()),
        Err(error) => Err(pem::Fault::open(path, &error)),
    }
}

fn cannot_load(merge: &Merge<'_>, what: &str, path: &str, fault: &pem::Fault) -> Fault {
    merge.fail_nowhere(format!("cannot load {what} \"{path}\": {fault}"))
}

/// An OCSP response in DER, as `openssl ocsp` writes it.
fn staple(path: &str, merge: &Merge<'_>) -> Result<Vec<u8>, Fault> {
    let content = read(merge, path).map_err(|fault| {
        let reasons = fault.reasons.replacen(", r)", ", rb)", 1);
        merge.fail_nowhere(format!("BIO_new_file(\"{path}\") failed (SSL: {reasons})"))
    })?;
    // A DER sequence; what is in it is the client's to judge.
    if content.first() != Some(&0x30) {
        return Err(merge.fail_nowhere(format!(
            "d2i_OCSP_RESPONSE_bio(\"{path}\") failed (SSL: error:068000A8:asn1 encoding routines::wrong tag)"
        )));
    }
    Ok(content.to_vec())
}

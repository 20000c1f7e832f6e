//! What the directives of TLS towards clients and of TLS towards upstreams have in common: OpenSSL's words, and files
//! read as OpenSSL reads them.

use std::io;
use std::sync::Arc;

use rustls::SupportedCipherSuite;
use rustls::crypto::SupportedKxGroup;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::sign::CertifiedKey;
use weir_engine::tls::ciphers::{self, BadGroups, BadList};
use weir_engine::tls::pem::{self, NoPair, Passwords, Purpose};
use weir_engine::tls::{PairCache, Pairs, Protocols};
use weir_ir::value;
use weir_ir::{Call, Fault, Merge, Template};

/// The versions by name, with whether rustls has them.
const PROTOCOLS: [(&str, bool); 6] = [
    ("SSLv2", false),
    ("SSLv3", false),
    ("TLSv1", false),
    ("TLSv1.1", false),
    ("TLSv1.2", true),
    ("TLSv1.3", true),
];

/// `ssl_protocols` and its like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Versions {
    /// In the order of [`PROTOCOLS`]; none where nothing was said.
    bits: u8,
}

impl Versions {
    pub(super) fn add(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        for index in 0..call.args().len() {
            let text = call.text(index);
            let found = PROTOCOLS.iter().position(|(name, _)| name.eq_ignore_ascii_case(&text));
            let Some(found) = found else {
                return Err(call.fail(format!("invalid value \"{text}\"")));
            };
            if self.bits & 1 << found != 0 {
                call.warn(format!("duplicate value \"{text}\""));
                continue;
            }
            self.bits |= 1 << found;
            if !PROTOCOLS[found].1 {
                call.warn(format!("\"{}\" is not supported by weir, ignored", PROTOCOLS[found].0));
            }
        }
        Ok(())
    }

    pub(super) fn is_set(self) -> bool {
        self.bits != 0
    }

    pub(super) fn inherit(&mut self, outer: Self) {
        if !self.is_set() {
            *self = outer;
        }
    }

    /// Those of them that rustls has.
    fn protocols(self, directive: &str, merge: &Merge<'_>) -> Result<Protocols, Fault> {
        if !self.is_set() {
            return Ok(Protocols { tls12: true, tls13: true });
        }
        let on =
            |name| PROTOCOLS.iter().position(|(n, _)| *n == name).is_some_and(|at| self.bits & 1 << at != 0);
        match (on("TLSv1.2"), on("TLSv1.3")) {
            (false, false) => {
                Err(merge
                    .fail_nowhere(format!("\"{directive}\" leaves no protocol that is supported by weir")))
            }
            (tls12, tls13) => Ok(Protocols { tls12, tls13 }),
        }
    }
}

/// What handshakes may agree on.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) protocols: Protocols,
    tls12: Vec<SupportedCipherSuite>,
    tls13: Vec<SupportedCipherSuite>,
    pub(super) groups: Vec<&'static dyn SupportedKxGroup>,
    /// What a command says in place of `ssl_session_tickets`.
    pub(super) tickets: Option<bool>,
    /// In place of `ssl_prefer_server_ciphers`.
    pub(super) prefer_server_ciphers: Option<bool>,
    /// Tickets after a handshake of TLS 1.3.
    pub(super) ticket_count: Option<usize>,
}

/// Why a command is not run.
enum Refused {
    Unsupported,
    /// OpenSSL would not, for this reason in its words.
    Openssl(String),
}

/// Words of `Options` of which rustls knows but one side: the other is of renegotiation, of ciphers that it has not, of early data, or
/// less strict than it is.
const MOOT: [&str; 16] = [
    "AllowNoDHEKEX",
    "AntiReplay",
    "Bugs",
    "Compression",
    "DHSingle",
    "ECDHSingle",
    "EmptyFragments",
    "EncryptThenMac",
    "ExtendedMasterSecret",
    "KTLS",
    "MiddleboxCompat",
    "NoRenegotiation",
    "NoResumptionOnRenegotiation",
    "PrioritizeChaCha",
    "UnsafeLegacyRenegotiation",
    "UnsafeLegacyServerConnect",
];

/// Words in lower case with whether they are to be on: `A,-B, +C`.
fn switches(list: &str) -> impl Iterator<Item = (String, bool)> {
    list.split(',').map(str::trim).map(|word| match word.strip_prefix('-') {
        Some(word) => (word.to_ascii_lowercase(), false),
        None => (word.strip_prefix('+').unwrap_or(word).to_ascii_lowercase(), true),
    })
}

impl Terms {
    /// Of the directive of that name, and of a list of ciphers.
    pub(super) fn new(
        (directive, versions): (&str, Versions),
        list: &str,
        merge: &mut Merge<'_>,
    ) -> Result<Self, Fault> {
        let mut protocols = versions.protocols(directive, merge)?;
        let tls13 = ciphers::TLS13.to_vec();
        let groups = ciphers::DEFAULT_GROUPS.to_vec();
        let tls12 = match ciphers::tls12(list) {
            Ok(tls12) => tls12,
            Err(BadList::Unavailable) if protocols.tls13 => {
                if protocols.tls12 {
                    merge.warn_nowhere(format!(
                        "weir has none of the ciphers \"{list}\", so there is no TLSv1.2, only TLSv1.3"
                    ));
                }
                protocols.tls12 = false;
                vec![]
            }
            Err(bad @ BadList::Unavailable) => {
                return Err(merge.fail_nowhere(format!("{bad} \"{list}\"")));
            }
            Err(bad @ BadList::Openssl(_)) => {
                let message = format!("SSL_CTX_set_cipher_list(\"{list}\") failed (SSL: {bad})");
                return Err(merge.fail_nowhere(message));
            }
        };
        Ok(Self {
            protocols,
            tls12,
            tls13,
            groups,
            tickets: None,
            prefer_server_ciphers: None,
            ticket_count: None,
        })
    }

    /// `ssl_ecdh_curve`
    pub(super) fn set_groups(&mut self, list: &str, merge: &Merge<'_>) -> Result<(), Fault> {
        if list == "auto" {
            self.groups = ciphers::DEFAULT_GROUPS.to_vec();
            return Ok(());
        }
        self.groups = ciphers::groups(list).map_err(|bad| {
            let failed = format!("SSL_CTX_set1_curves_list(\"{list}\") failed");
            merge.fail_nowhere(match bad {
                BadGroups::Unavailable => format!("{failed}: weir has none of these groups"),
                bad => match bad.to_string() {
                    reason if reason.is_empty() => failed,
                    reason => format!("{failed} (SSL: {reason})"),
                },
            })
        })?;
        Ok(())
    }

    /// What `ssl_conf_command` and its like change (SSL_CONF_cmd(3)).
    pub(super) fn run(
        &mut self,
        directive: &str,
        commands: &[(String, String)],
        merge: &mut Merge<'_>,
    ) -> Result<(), Fault> {
        for (name, value) in commands {
            match self.command(name, value) {
                Ok(None) => {}
                Ok(Some(ignored)) => {
                    merge.warn_nowhere(format!("\"{ignored}\" is not supported by weir, ignored"));
                }
                Err(Refused::Unsupported) => {
                    let message =
                        format!("\"{directive} {name} {value}\" is known but not supported by weir yet");
                    return Err(merge.fail_nowhere(message));
                }
                Err(Refused::Openssl(reason)) => {
                    let message = format!("SSL_CONF_cmd(\"{name}\", \"{value}\") failed (SSL: {reason})");
                    return Err(merge.fail_nowhere(message));
                }
            }
        }
        if self.protocols.tls12 || self.protocols.tls13 {
            Ok(())
        } else {
            Err(merge.fail_nowhere(format!("\"{directive}\" leaves no protocol")))
        }
    }

    /// One command; what of it is passed over.
    fn command(&mut self, name: &str, value: &str) -> Result<Option<String>, Refused> {
        // Behind what else OpenSSL has to say.
        let bad = |reason: &str| {
            let space = if reason.is_empty() { "" } else { " " };
            Refused::Openssl(format!(
                "{reason}{space}error:0A000180:SSL routines::bad value:cmd={name}, value={value}"
            ))
        };
        let bad_list = |list: BadList| match list {
            BadList::Unavailable => Refused::Unsupported,
            BadList::Openssl(reason) => bad(reason),
        };
        let groups = || {
            ciphers::groups(value).map_err(|groups| match groups {
                BadGroups::Unavailable => Refused::Unsupported,
                groups => bad(&groups.to_string()),
            })
        };
        match name.to_ascii_lowercase().as_str() {
            "ciphersuites" => self.tls13 = ciphers::tls13(value).map_err(bad_list)?,
            "cipherstring" => self.tls12 = ciphers::tls12(value).map_err(bad_list)?,
            "groups" | "curves" => self.groups = groups()?,
            "ecdhparameters" => match value.trim_start_matches('+') {
                auto if auto.eq_ignore_ascii_case("automatic") => {}
                one if one.contains(':') => return Err(bad("")),
                _ => self.groups = groups()?,
            },
            "minprotocol" => match value {
                "TLSv1.3" => self.protocols.tls12 = false,
                "None" | "SSLv3" | "TLSv1" | "TLSv1.1" | "TLSv1.2" => {}
                _ => return Err(bad("")),
            },
            "maxprotocol" => match value {
                "TLSv1.2" => self.protocols.tls13 = false,
                "None" | "TLSv1.3" => {}
                "SSLv3" | "TLSv1" | "TLSv1.1" | "DTLSv1" | "DTLSv1.2" => return Err(Refused::Unsupported),
                _ => return Err(bad("")),
            },
            "protocol" => {
                let mut ignored = None;
                for (word, on) in switches(value) {
                    match word.as_str() {
                        "all" => self.protocols = Protocols { tls12: on, tls13: on },
                        "tlsv1.2" => self.protocols.tls12 = on,
                        "tlsv1.3" => self.protocols.tls13 = on,
                        "sslv2" | "sslv3" | "tlsv1" | "tlsv1.1" if on => ignored = Some(word),
                        "sslv2" | "sslv3" | "tlsv1" | "tlsv1.1" | "dtlsv1" | "dtlsv1.2" => {}
                        _ => return Err(bad("")),
                    }
                }
                return Ok(ignored);
            }
            "options" => {
                for (word, on) in switches(value) {
                    match word.as_str() {
                        "sessionticket" => self.tickets = Some(on),
                        "serverpreference" => self.prefer_server_ciphers = Some(on),
                        "canames" if !on => return Err(Refused::Unsupported),
                        "canames" => {}
                        moot if MOOT.iter().any(|known| known.eq_ignore_ascii_case(moot)) => {}
                        _ => return Err(bad("")),
                    }
                }
            }
            "numtickets" => {
                let number = value.trim().parse::<i64>().unwrap_or(0);
                self.ticket_count = Some(usize::try_from(number).map_err(|_| bad(""))?);
            }
            "signaturealgorithms"
            | "clientsignaturealgorithms"
            | "recordpadding"
            | "dhparameters"
            | "verifymode"
            | "certificate"
            | "privatekey"
            | "serverinfofile"
            | "chaincafile"
            | "chaincapath"
            | "verifycafile"
            | "verifycapath"
            | "requestcafile"
            | "requestcapath"
            | "clientcafile"
            | "clientcapath"
            | "chaincastore"
            | "verifycastore"
            | "requestcastore" => {
                return Err(Refused::Unsupported);
            }
            _ => {
                let reason = format!("error:0A000182:SSL routines::unknown cmd name:cmd={name}");
                return Err(Refused::Openssl(reason));
            }
        }
        Ok(None)
    }

    /// The suites of all versions, most preferred first.
    pub(super) fn ciphers(&self) -> Vec<SupportedCipherSuite> {
        let (tls13, tls12) = (self.protocols.tls13, self.protocols.tls12);
        let of = |on: bool, suites: &[SupportedCipherSuite]| if on { suites.to_vec() } else { vec![] };
        [of(tls13, &self.tls13), of(tls12, &self.tls12)].concat()
    }
}

/// `ssl_certificate_cache` and its like; `None` is `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CertificateCache {
    pub(super) max: u64,
    /// Seconds.
    pub(super) inactive: u64,
    pub(super) valid: u64,
}

impl CertificateCache {
    pub(super) fn read(call: &mut Call<'_>) -> Result<Option<Self>, Fault> {
        let mut cache = Self { max: 0, inactive: 10, valid: 60 };
        let mut off = false;
        for index in 0..call.args().len() {
            let text = call.text(index);
            let parsed = match text.split_once('=') {
                Some(("max", n)) => value::number(n.as_bytes()).filter(|n| *n > 0).map(|n| cache.max = n),
                Some(("inactive", time)) => value::sec(time.as_bytes()).map(|time| cache.inactive = time),
                Some(("valid", time)) => value::sec(time.as_bytes()).map(|time| cache.valid = time),
                _ => (text == "off").then(|| off = true),
            };
            if parsed.is_none() {
                return Err(call.invalid_parameter(index));
            }
        }
        if off {
            return Ok(None);
        }
        if cache.max == 0 {
            let name = String::from_utf8_lossy(call.name());
            return Err(call.fail(format!("\"{name}\" must have the \"max\" parameter")));
        }
        Ok(Some(cache))
    }
}

/// Where certificates come from that a request names.
pub(super) fn computed_pairs(
    cache: Option<CertificateCache>,
    passwords: Arc<Passwords>,
    merge: &Merge<'_>,
) -> Pairs {
    let cache = cache.map(|cache| PairCache {
        max: usize::try_from(cache.max).unwrap_or(usize::MAX),
        inactive: cache.inactive.saturating_mul(1000),
        valid: cache.valid.saturating_mul(1000),
    });
    Pairs::new(Arc::clone(&merge.prefixes().conf), cache, passwords)
}

/// The name of a file, or what it would hold (`data:…`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) text: String,
    pub(super) value: Template,
}

impl File {
    pub(super) fn read(call: &mut Call<'_>) -> Result<Self, Fault> {
        Ok(Self { text: call.text(0), value: call.template(0)? })
    }

    pub(super) fn is_computed(&self) -> bool {
        self.value.as_literal().is_none()
    }
}

/// The name of a file; the empty one is none, also where an outer level names one.
pub(super) fn path(call: &Call<'_>) -> Option<Arc<str>> {
    if call.arg(0).is_empty() { None } else { Some(call.conf_path(0)) }
}

/// The words of `ssl_password_file` and its like; an empty file has the empty one.
pub(super) fn passwords(call: &mut Call<'_>) -> Result<Arc<Passwords>, Fault> {
    const LONGEST: usize = 4096;
    let path = call.conf_path(0);
    let content = call.world().content(path.as_bytes());
    let content = content.map_err(|error| call.fail_os(format!("open() \"{path}\" failed"), &error))?;
    let lines = content.split(|byte| *byte == b'\n');
    if lines.clone().any(|line| line.len() >= LONGEST) {
        return Err(call.fail(format!("too long line in \"{path}\"")));
    }
    let words = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line)).filter(|word| !word.is_empty());
    let words: Vec<Box<[u8]>> = words.map(Box::from).collect();
    Ok(if words.is_empty() { [Box::default()].into() } else { words.into() })
}

/// A chain and its key, each of a file or of `data:` itself.
pub(super) fn pair(
    certificate: &str,
    key: &str,
    staple: Option<Vec<u8>>,
    passwords: &Passwords,
    merge: &Merge<'_>,
) -> Result<Arc<CertifiedKey>, Fault> {
    let (shown, content) = source(certificate, merge);
    let chain = content.and_then(|c| pem::chain(&c));
    let chain = chain.map_err(|fault| cannot_load(merge, "certificate", &shown, &fault))?;
    let certificate = shown;
    let elsewhere = pem::elsewhere(key, |path| merge.world().content(path.as_bytes()));
    let (shown, content) = elsewhere.map_or_else(|| source(key, merge), |content| (key.to_owned(), content));
    let key = content.and_then(|c| pem::private_key(&c, passwords));
    let key = key.map_err(|fault| cannot_load(merge, "certificate key", &shown, &fault))?;
    pem::pair(chain, key, staple).map_err(|no_pair| {
        let reason = match no_pair {
            NoPair::Mismatch => "error:05800074:x509 certificate routines::key values mismatch",
            NoPair::TooSmall => {
                let reason = "error:0A00018F:SSL routines::ee key too small";
                let message = format!("SSL_CTX_use_certificate(\"{certificate}\") failed (SSL: {reason})");
                return merge.fail_nowhere(message);
            }
            NoPair::Unsupported => "the kind of the key is not supported by weir",
        };
        merge.fail_nowhere(format!("SSL_CTX_use_PrivateKey(\"{shown}\") failed (SSL: {reason})"))
    })
}

/// The certificates of a file that may be trusted for a purpose.
pub(super) fn trusted(
    path: &str,
    purpose: Purpose,
    merge: &Merge<'_>,
) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let read = read(merge, path).and_then(|content| pem::trusted(&content, purpose));
    read.map_err(|fault| cannot_load(merge, "certificate", path, &fault))
}

/// The revocation lists of a file.
pub(super) fn revocations(
    path: &str,
    merge: &Merge<'_>,
) -> Result<Vec<CertificateRevocationListDer<'static>>, Fault> {
    let read = read(merge, path).and_then(|content| pem::revocations(&content));
    read.map_err(|fault| cannot_load(merge, "CRL", path, &fault))
}

/// The name that nginx shows for a certificate or key, and its content.
fn source(text: &str, merge: &Merge<'_>) -> (String, Result<Arc<[u8]>, pem::Fault>) {
    if let Some(data) = text.strip_prefix("data:") {
        return (text.to_owned(), Ok(data.as_bytes().into()));
    }
    let path = shown(text, merge);
    let content = read(merge, &path);
    (path, content)
}

/// The name that nginx shows for a certificate or key.
pub(super) fn shown(text: &str, merge: &Merge<'_>) -> String {
    let whole = text.starts_with('/') || text.starts_with("data:");
    if whole { text.to_owned() } else { format!("{}{text}", merge.prefixes().conf) }
}

pub(super) fn read(merge: &Merge<'_>, path: &str) -> Result<Arc<[u8]>, pem::Fault> {
    match merge.world().content(path.as_bytes()) {
        Ok(content) => Ok(content),
        // OpenSSL opens a directory and finds nothing in it.
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => Ok(Arc::default()),
        Err(error) => Err(pem::Fault::open(path, &error)),
    }
}

fn cannot_load(merge: &Merge<'_>, what: &str, path: &str, fault: &pem::Fault) -> Fault {
    merge.fail_nowhere(format!("cannot load {what} \"{path}\": {fault}"))
}

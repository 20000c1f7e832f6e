//! `ngx_http_ssl_module`: TLS towards clients.
//!
//! The words are read as OpenSSL reads them and mean what rustls has for it. Files are read while levels inherit, by
//! the master; what rustls has not is refused or warned of, never silently left out.

use std::sync::Arc;

use rustls::SupportedCipherSuite;
use rustls::crypto::SupportedKxGroup;
use rustls::sign::CertifiedKey;
use weir_engine::contract::{Install, Variable};
use weir_engine::generation::{Build, Plan};
use weir_engine::http::Exchange;
use weir_engine::tls::ciphers::{self, BadGroups, BadList};
use weir_engine::tls::pem::{self, NoPair};
use weir_engine::tls::{
    ClientAuth, ClientCertificate, Demand, Lifetime, Protocols, ServerTls, Session, SessionCache, Settings,
    TicketKey,
};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::program::{Http, ScopeKind};
use weir_ir::value;
use weir_ir::{Call, Fault, Merge};
use weir_syntax::{Diagnostic, Level};

const HTTP_SERVER: Contexts = Contexts::HTTP_SERVER;
const NO_OCSP: &str = "weir staples what ssl_stapling_file holds and asks no responder";

pub struct Ssl;

type D = Directive<Ssl>;

impl Module for Ssl {
    const NAME: &'static str = "http_ssl";
    type Main = ();
    type Scope = Server;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("ssl_certificate", HTTP_SERVER, Takes::ONE, |s, c| {
            s.certificates.push(c.text(0));
            Ok(())
        }),
        D::scope("ssl_certificate_key", HTTP_SERVER, Takes::ONE, |s, c| {
            s.certificate_keys.push(c.text(0));
            Ok(())
        }),
        D::scope("ssl_certificate_cache", HTTP_SERVER, Takes::ONE_TO_THREE, certificate_cache)
            .accepted("certificates are read once, at load"),
        D::scope("ssl_certificate_compression", HTTP_SERVER, Takes::FLAG, |s, c| {
            s.certificate_compression.flag(c)
        }),
        D::scope("ssl_ech_file", HTTP_SERVER, Takes::ONE, |s, _| {
            s.ech_file = true;
            Ok(())
        }),
        D::scope("ssl_dhparam", HTTP_SERVER, Takes::ONE, |s, c| s.dhparam.put(c, c.conf_path(0)))
            .accepted("finite-field Diffie-Hellman is never agreed on"),
        D::scope("ssl_ecdh_curve", HTTP_SERVER, Takes::ONE, |s, c| s.ecdh_curve.put(c, c.text(0).into())),
        D::scope("ssl_protocols", HTTP_SERVER, Takes::ONE_MORE, protocols),
        D::scope("ssl_ciphers", HTTP_SERVER, Takes::ONE, |s, c| s.ciphers.put(c, c.text(0).into())),
        D::scope("ssl_buffer_size", HTTP_SERVER, Takes::ONE, |s, c| s.buffer_size.size(c))
            .accepted("a record holds what is ready to be sent"),
        D::scope("ssl_verify_client", HTTP_SERVER, Takes::ONE, |s, c| {
            let words = [
                ("off", None),
                ("on", Some(Demand::On)),
                ("optional", Some(Demand::Optional)),
                ("optional_no_ca", Some(Demand::OptionalNoCa)),
            ];
            s.verify_client.one_of(c, &words)
        }),
        D::scope("ssl_verify_depth", HTTP_SERVER, Takes::ONE, |s, c| s.verify_depth.number(c)),
        D::scope("ssl_client_certificate", HTTP_SERVER, Takes::ONE, |s, c| {
            s.client_certificate.put(c, c.conf_path(0))
        }),
        D::scope("ssl_crl", HTTP_SERVER, Takes::ONE, |s, c| s.crl.put(c, c.conf_path(0))),
        D::scope("ssl_trusted_certificate", HTTP_SERVER, Takes::ONE, |s, c| {
            s.trusted_certificate.put(c, c.conf_path(0))
        }),
        D::scope("ssl_prefer_server_ciphers", HTTP_SERVER, Takes::FLAG, |s, c| {
            s.prefer_server_ciphers.flag(c)
        }),
        D::scope("ssl_session_cache", HTTP_SERVER, Takes::ONE_TWO, session_cache),
        D::scope("ssl_session_tickets", HTTP_SERVER, Takes::FLAG, |s, c| s.session_tickets.flag(c)),
        D::scope("ssl_session_ticket_key", HTTP_SERVER, Takes::ONE, |s, c| {
            s.session_ticket_keys.push(c.conf_path(0));
            Ok(())
        }),
        D::scope("ssl_session_timeout", HTTP_SERVER, Takes::ONE, |s, c| s.session_timeout.sec(c)),
        D::scope("ssl_stapling", HTTP_SERVER, Takes::FLAG, |s, c| s.stapling.flag(c)),
        D::scope("ssl_stapling_file", HTTP_SERVER, Takes::ONE, |s, c| s.stapling_file.put(c, c.conf_path(0))),
        D::scope("ssl_stapling_responder", HTTP_SERVER, Takes::ONE, |s, c| {
            s.stapling_responder.put(c, c.text(0).into())
        })
        .accepted(NO_OCSP),
        D::scope("ssl_stapling_verify", HTTP_SERVER, Takes::FLAG, |s, c| s.stapling_verify.flag(c))
            .accepted(NO_OCSP),
        D::scope("ssl_early_data", HTTP_SERVER, Takes::FLAG, |s, c| s.early_data.flag(c))
            .accepted("early data is declined, which costs the client one round trip"),
        D::scope("ssl_conf_command", HTTP_SERVER, Takes::TWO, |s, c| {
            s.conf_commands.push((c.text(0), c.text(1)));
            Ok(())
        }),
        D::scope("ssl_reject_handshake", HTTP_SERVER, Takes::FLAG, |s, c| s.reject_handshake.flag(c)),
    ];
}

/// The versions by name, with whether rustls has them.
const PROTOCOLS: [(&str, bool); 6] = [
    ("SSLv2", false),
    ("SSLv3", false),
    ("TLSv1", false),
    ("TLSv1.1", false),
    ("TLSv1.2", true),
    ("TLSv1.3", true),
];

/// The settings of a server, or of all of them at the `http` level.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// As written; nginx lets an inner list replace an outer one.
    certificates: Vec<String>,
    certificate_keys: Vec<String>,
    certificate_cache: Setting<()>,
    certificate_compression: Setting<bool>,
    ech_file: bool,
    dhparam: Setting<Arc<str>>,
    ecdh_curve: Setting<Box<str>>,
    /// Bits in the order of [`PROTOCOLS`].
    protocols: u8,
    ciphers: Setting<Box<str>>,
    buffer_size: Setting<u64>,
    verify_client: Setting<Option<Demand>>,
    verify_depth: Setting<u64>,
    client_certificate: Setting<Arc<str>>,
    crl: Setting<Arc<str>>,
    trusted_certificate: Setting<Arc<str>>,
    prefer_server_ciphers: Setting<bool>,
    own_cache: Setting<OwnCache>,
    shared_cache: Setting<(Arc<str>, u64)>,
    session_tickets: Setting<bool>,
    session_ticket_keys: Vec<Arc<str>>,
    /// Seconds.
    session_timeout: Setting<u64>,
    stapling: Setting<bool>,
    stapling_file: Setting<Arc<str>>,
    stapling_responder: Setting<Box<str>>,
    stapling_verify: Setting<bool>,
    early_data: Setting<bool>,
    conf_commands: Vec<(String, String)>,
    reject_handshake: Setting<bool>,
    /// Of a server that takes or refuses handshakes: what the words above mean.
    ready: Option<Arc<Ready>>,
}

/// The part of `ssl_session_cache` that nginx keeps within a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OwnCache {
    Off,
    None,
    /// Only a shared one was named.
    Shared,
    /// Sessions.
    Builtin(u64),
}

/// nginx's `builtin` without a size: OpenSSL's default.
const BUILTIN: u64 = 20 * 1024;

/// Bytes of nginx's shared cache that a session takes: a megabyte holds about 4000.
const SESSION: u64 = 256;

/// What a server's words mean.
#[derive(Debug)]
struct Ready {
    pairs: Vec<Arc<CertifiedKey>>,
    protocols: Protocols,
    ciphers: Vec<SupportedCipherSuite>,
    groups: Vec<&'static dyn SupportedKxGroup>,
    ticket_keys: Vec<Arc<TicketKey>>,
    client_auth: Option<Arc<ClientAuth>>,
}

fn protocols(server: &mut Server, call: &mut Call<'_>) -> Result<(), Fault> {
    for index in 0..call.args().len() {
        let text = call.text(index);
        let found = PROTOCOLS.iter().position(|(name, _)| name.eq_ignore_ascii_case(&text));
        let Some(found) = found else {
            return Err(call.fail(format!("invalid value \"{text}\"")));
        };
        if server.protocols & 1 << found != 0 {
            call.warn(format!("duplicate value \"{text}\""));
            continue;
        }
        server.protocols |= 1 << found;
        if !PROTOCOLS[found].1 {
            call.warn(format!("\"{}\" is not supported by weir, ignored", PROTOCOLS[found].0));
        }
    }
    Ok(())
}

fn certificate_cache(server: &mut Server, call: &mut Call<'_>) -> Result<(), Fault> {
    server.certificate_cache.put(call, ())?;
    let (mut max, mut off) = (false, false);
    for index in 0..call.args().len() {
        let text = call.text(index);
        let time = |v: &str| value::sec(v.as_bytes()).is_some();
        let good = match text.split_once('=') {
            Some(("max", v)) => {
                max = true;
                value::number(v.as_bytes()).is_some_and(|n| n > 0)
            }
            Some(("inactive" | "valid", v)) => time(v),
            _ => {
                off = text == "off";
                off
            }
        };
        if !good {
            return Err(call.invalid_parameter(index));
        }
    }
    if !off && !max {
        return Err(call.fail("\"ssl_certificate_cache\" must have the \"max\" parameter"));
    }
    Ok(())
}

fn session_cache(server: &mut Server, call: &mut Call<'_>) -> Result<(), Fault> {
    for index in 0..call.args().len() {
        let text = call.text(index);
        let invalid = || Err(call.fail(format!("invalid session cache \"{text}\"")));
        match text.split_once(':') {
            None => match text.as_str() {
                "off" => server.own_cache.replace(OwnCache::Off),
                "none" => server.own_cache.replace(OwnCache::None),
                "builtin" => server.own_cache.replace(OwnCache::Builtin(BUILTIN)),
                _ => return invalid(),
            },
            Some(("builtin", size)) => match value::number(size.as_bytes()) {
                Some(sessions) => server.own_cache.replace(OwnCache::Builtin(sessions)),
                None => return invalid(),
            },
            Some(("shared", rest)) => {
                let Some((name, size)) = rest.split_once(':').filter(|(name, _)| !name.is_empty()) else {
                    return invalid();
                };
                let Some(size) = value::size(size.as_bytes()) else { return invalid() };
                // Eight pages.
                if size < 8 * 4096 {
                    return Err(call.fail(format!("session cache \"{text}\" is too small")));
                }
                call.zone(name, size, Ssl::NAME)?;
                server.shared_cache.replace((name.into(), size));
            }
            Some(_) => return invalid(),
        }
    }
    if server.shared_cache.is_set() && !server.own_cache.is_set() {
        server.own_cache.replace(OwnCache::Shared);
    }
    Ok(())
}

impl Conf for Server {
    const EVERY_LEVEL: bool = true;

    fn inherit(&mut self, outer: &Self, merge: &mut Merge<'_>) -> Result<(), Fault> {
        // Nothing of this is read below a server.
        if !matches!(merge.kind(), ScopeKind::Server) {
            return Ok(());
        }
        macro_rules! settings {
            ($($field:ident),* $(,)?) => { $(self.$field.inherit(&outer.$field);)* };
        }
        settings!(
            certificate_compression,
            dhparam,
            ecdh_curve,
            ciphers,
            verify_client,
            verify_depth,
            client_certificate,
            crl,
            trusted_certificate,
            prefer_server_ciphers,
            own_cache,
            shared_cache,
            session_tickets,
            session_timeout,
            stapling,
            stapling_file,
            reject_handshake,
        );
        macro_rules! lists {
            ($($field:ident),* $(,)?) => {
                $(if self.$field.is_empty() { self.$field.clone_from(&outer.$field); })*
            };
        }
        lists!(certificates, certificate_keys, session_ticket_keys, conf_commands);
        if self.protocols == 0 {
            self.protocols = outer.protocols;
        }
        self.ech_file |= outer.ech_file;
        self.ready = self.prepare(merge)?.map(Arc::new);
        Ok(())
    }
}

impl Server {
    /// Checks all that nginx checks of a server that speaks TLS, in its order.
    fn prepare(&self, merge: &mut Merge<'_>) -> Result<Option<Ready>, Fault> {
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
        let auth = ClientAuth::new(demand, depth, &named, &trusted, revoked);
        auth.map(Some).map_err(|error| merge.fail_nowhere(format!("\"ssl_verify_client\" failed ({error})")))
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

    fn cache(&self) -> Option<SessionCache> {
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
    merge.world().content(path.as_bytes()).map_err(|error| pem::Fault::open(path, &error))
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

impl Install for Ssl {
    const VARIABLES: &'static [Variable] = &[
        Variable::new("ssl_protocol", |x, out| text(x, out, |tls| tls.protocol_name())),
        Variable::new("ssl_cipher", |x, out| text(x, out, |tls| ciphers::cipher_name(tls.cipher))),
        Variable::new("ssl_ciphers", |x, out| {
            list(x, out, |tls| tls.offer.ciphers(), |number| ciphers::openssl_name(number))
        }),
        Variable::new("ssl_curve", |x, out| {
            text(x, out, |tls| {
                tls.group.and_then(|group| ciphers::group_name(u16::from(group))).unwrap_or_default()
            })
        }),
        Variable::new("ssl_curves", |x, out| {
            list(x, out, |tls| tls.offer.groups(), |number| ciphers::group_name(number))
        }),
        // rustls keeps the id of a session to itself.
        Variable::new("ssl_session_id", |_, _| false),
        Variable::new("ssl_session_reused", |x, out| text(x, out, |tls| if tls.resumed { "r" } else { "." })),
        // Early data is never taken.
        Variable::new("ssl_early_data", |_, _| false),
        Variable::new("ssl_server_name", |x, out| {
            text(x, out, |tls| tls.server_name.as_deref().unwrap_or_default())
        }),
        Variable::new("ssl_alpn_protocol", |x, out| {
            let Some(alpn) = x.connection.tls.as_ref().and_then(|tls| tls.alpn.as_deref()) else {
                return false;
            };
            out.extend_from_slice(alpn);
            true
        }),
        Variable::new("ssl_client_verify", |x, out| {
            let Some(tls) = &x.connection.tls else { return false };
            match tls.client.as_ref().map(|client| client.fault) {
                None => out.extend_from_slice(b"NONE"),
                Some(None) => out.extend_from_slice(b"SUCCESS"),
                Some(Some(reason)) => {
                    out.extend_from_slice(b"FAILED:");
                    out.extend_from_slice(reason.text.as_bytes());
                }
            }
            true
        }),
        Variable::new("ssl_client_raw_cert", |x, out| client(x, out, |c| c.pem().trim_end().to_owned())),
        // For headers: every line but the first begins with a tab.
        Variable::new("ssl_client_cert", |x, out| {
            client(x, out, |c| c.pem().trim_end().replace('\n', "\n\t"))
        }),
        Variable::new("ssl_client_escaped_cert", |x, out| {
            client(x, out, |c| {
                let escape = |byte: char| match byte {
                    '0'..='9' | 'A'..='Z' | 'a'..='z' | '-' | '.' | '_' | '~' => byte.to_string(),
                    other => format!("%{:02X}", u32::from(other)),
                };
                c.pem().chars().map(escape).collect()
            })
        }),
        Variable::new("ssl_client_serial", |x, out| client(x, out, ClientCertificate::serial)),
        Variable::new("ssl_client_fingerprint", |x, out| client(x, out, ClientCertificate::fingerprint)),
    ];

    /// Every address with `ssl` must have a certificate to show.
    fn prepare((): &(), build: &mut Build<'_>) -> Result<(), Diagnostic> {
        let Some(http) = &build.program.http else { return Ok(()) };
        for bound in http.bound.iter().filter(|bound| bound.protocols.ssl) {
            let conf = |server| http.scope(server).confs.get::<Ssl>();
            let default = conf(bound.default_server);
            if !default.certificates.is_empty() {
                continue;
            }
            if !default.reject_handshake.or(false) {
                return Err(no_certificate(http, bound.default_server));
            }
            // Names that the default server does not refuse need a certificate of their own.
            for server in &bound.servers {
                let conf = conf(*server);
                if conf.certificates.is_empty() && !conf.reject_handshake.or(false) {
                    return Err(no_certificate(http, *server));
                }
            }
        }
        Ok(())
    }

    fn install(server: &Server, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let (ScopeKind::Server, Some(ready)) = (plan.kind(), &server.ready) else { return Ok(()) };
        let settings = Settings {
            pairs: &ready.pairs,
            protocols: ready.protocols,
            ciphers: ready.ciphers.clone(),
            groups: ready.groups.clone(),
            prefer_server_ciphers: server.prefer_server_ciphers.or(false),
            session_cache: server.cache(),
            session_lifetime: Lifetime(server.session_timeout.or(300)),
            tickets: server.session_tickets.or(true),
            ticket_keys: &ready.ticket_keys,
            reject_handshake: server.reject_handshake.or(false),
            client_auth: ready.client_auth.clone(),
        };
        let tls =
            ServerTls::new(settings).map_err(|error| plan.fail(format!("SSL_CTX_new() failed ({error})")))?;
        plan.tls = Some(Arc::new(tls));
        Ok(())
    }
}

fn no_certificate(http: &Http, server: weir_ir::LocationId) -> Diagnostic {
    let position = &http.scope(server).position;
    Diagnostic::new(
        Level::Emerg,
        format!(
            "no \"ssl_certificate\" is defined for the \"listen ... ssl\" directive in {}:{}",
            position.file, position.line
        ),
    )
}

/// Appends what a TLS connection has to say; an empty text is no value.
fn text(x: &Exchange, out: &mut Vec<u8>, of: impl FnOnce(&Session) -> &str) -> bool {
    let Some(tls) = &x.connection.tls else { return false };
    let text = of(tls);
    out.extend_from_slice(text.as_bytes());
    !text.is_empty()
}

/// Appends a text about the client's certificate.
fn client(x: &Exchange, out: &mut Vec<u8>, of: impl FnOnce(&ClientCertificate) -> String) -> bool {
    let Some(client) = x.connection.tls.as_ref().and_then(|tls| tls.client.as_deref()) else { return false };
    out.extend_from_slice(of(client).as_bytes());
    true
}

/// Appends names joined by colons; numbers without a name are shown as nginx shows them.
fn list(
    x: &Exchange,
    out: &mut Vec<u8>,
    of: impl FnOnce(&Session) -> &[u16],
    name: impl Fn(u16) -> Option<&'static str>,
) -> bool {
    let Some(tls) = &x.connection.tls else { return false };
    // Fallback and renegotiation markers, and GREASE (RFC 8701), are shown as numbers too.
    let names = of(tls).iter().map(|number| name(*number).map_or(format!("0x{number:04x}"), str::to_owned));
    let names: Vec<_> = names.collect();
    out.extend_from_slice(names.join(":").as_bytes());
    !names.is_empty()
}

#[cfg(test)]
mod tests;

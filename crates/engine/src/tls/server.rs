//! What a server presents in handshakes: its settings made into rustls's configuration.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ServerConfig, SignatureAlgorithm, SupportedCipherSuite, SupportedProtocolVersion};

use super::resume::{self, Lifetime, Mark, TicketKey};
use super::{ClientAuth, Demand, Staple, Statuses};
use crate::http::{Exchange, Template};

/// Tickets after a full handshake of TLS 1.3, as OpenSSL sends.
const TICKETS: usize = 2;

/// The versions of `ssl_protocols` that rustls has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    pub tls12: bool,
    pub tls13: bool,
}

impl Protocols {
    pub(super) fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static ALL: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        &ALL[usize::from(!self.tls13)..1 + usize::from(self.tls12)]
    }
}

/// Where sessions are kept, `ssl_session_cache`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionCache {
    /// Of a cache shared with other servers.
    pub name: Option<Arc<str>>,
    /// Sessions at most.
    pub sessions: usize,
}

/// What a server's handshakes follow.
pub struct Settings<'a> {
    /// Chains with their keys; of several of a kind the last counts.
    pub pairs: &'a [Arc<CertifiedKey>],
    /// Of which answers of OCSP responders are fetched, by their places among the pairs.
    pub staples: Vec<(usize, Arc<Staple>)>,
    /// Instead of them, those that a handshake names.
    pub computed: Option<Computed>,
    pub protocols: Protocols,
    /// Most preferred first, of all versions.
    pub ciphers: Vec<SupportedCipherSuite>,
    /// Most preferred first.
    pub groups: Vec<&'static dyn SupportedKxGroup>,
    pub prefer_server_ciphers: bool,
    pub session_cache: Option<SessionCache>,
    pub session_lifetime: Lifetime,
    pub tickets: bool,
    /// Empty for the process's own.
    pub ticket_keys: &'a [Arc<TicketKey>],
    pub reject_handshake: bool,
    /// What clients have to show.
    pub client_auth: Option<Arc<ClientAuth>>,
    /// Who is asked about it.
    pub statuses: Option<Statuses>,
}

/// Certificates and keys that a handshake names (variables in `ssl_certificate`).
pub struct Computed {
    pub names: Vec<(Template, Template)>,
    /// As written.
    pub text: String,
    pub pairs: Arc<super::Pairs>,
}

/// A server with `listen … ssl`, ready for handshakes.
pub struct ServerTls {
    /// A server without certificates has none: it only refuses.
    pub config: Option<Arc<ServerConfig>>,
    /// What is fetched once handshakes ask for it.
    pub(super) staples: Vec<Arc<Staple>>,
    /// The same with HTTP/2 among the protocols.
    pub with_http2: Option<Arc<ServerConfig>>,
    /// Names the certificates that `config` lacks.
    pub(super) computed: Option<Computed>,
    /// Handshakes that are meant for this server are refused (`ssl_reject_handshake`).
    pub reject_handshake: bool,
    pub client_auth: Option<Arc<ClientAuth>>,
    /// Who is asked about what clients show.
    pub(super) statuses: Option<Statuses>,
}

impl ServerTls {
    /// # Errors
    /// rustls refuses the combination, or the system gives no randomness.
    pub fn new(mut settings: Settings<'_>) -> Result<Self, rustls::Error> {
        let reject_handshake = settings.reject_handshake;
        let client_auth = settings.client_auth.clone();
        let statuses = settings.statuses.take();
        let computed = settings.computed.take();
        let staples = settings.staples.iter().map(|(_, staple)| Arc::clone(staple)).collect();
        let names = computed.as_ref().map(|computed| computed.text.as_str());
        let shows = names.is_some() || !settings.pairs.is_empty();
        let config = if shows { Some(config(settings, names)?) } else { None };
        let with_http2 = config.clone().map(|mut config| {
            config.alpn_protocols.insert(0, b"h2".to_vec());
            Arc::new(config)
        });
        let config = config.map(Arc::new);
        Ok(Self { config, with_http2, staples, computed, reject_handshake, client_auth, statuses })
    }

    /// A server without certificates, whose handshakes are those of the default server: its own demand is made of its requests.
    pub fn demanding(demand: Demand) -> Self {
        Self {
            config: None,
            staples: vec![],
            with_http2: None,
            computed: None,
            reject_handshake: false,
            client_auth: Some(Arc::new(ClientAuth::blind(demand))),
            statuses: None,
        }
    }
}

impl Computed {
    /// What a handshake follows, with the certificates that are named by what is known of it.
    ///
    /// # Errors
    /// What the log says of it.
    pub(super) async fn config(
        &self,
        base: &ServerConfig,
        x: &Exchange,
    ) -> Result<Arc<ServerConfig>, String> {
        let now = x.reactor.clock().now_ms();
        let mut pairs = vec![];
        for (certificate, key) in &self.names {
            pairs.push(self.pairs.get(&certificate.value(x), &key.value(x), now).await?);
        }
        let mut config = base.clone();
        config.cert_resolver = Arc::new(Pairs::new(&pairs, &[]));
        Ok(Arc::new(config))
    }
}

fn config(settings: Settings<'_>, names: Option<&str>) -> Result<ServerConfig, rustls::Error> {
    let provider = CryptoProvider {
        cipher_suites: settings.ciphers,
        kx_groups: settings.groups,
        ..rustls::crypto::aws_lc_rs::default_provider()
    };
    let mark = mark(settings.pairs, names, settings.client_auth.as_deref());
    let verifier = match &settings.client_auth {
        Some(client_auth) => client_auth.verifier(),
        None => WebPkiClientVerifier::no_client_auth(),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(settings.protocols.versions())?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Pairs::new(settings.pairs, &settings.staples)));
    config.alpn_protocols = [&b"http/1.1"[..], b"http/1.0", b"http/0.9"].map(<[u8]>::to_vec).into();
    config.ignore_client_order = settings.prefer_server_ciphers;
    config.send_tls13_tickets = TICKETS;
    config.session_storage = match &settings.session_cache {
        Some(SessionCache { name, sessions }) => {
            resume::cache(name.as_deref(), *sessions, mark, settings.session_lifetime)
        }
        None => Arc::new(NoServerSessionStorage {}),
    };
    if settings.tickets {
        config.ticketer = resume::tickets(settings.ticket_keys, mark, settings.session_lifetime)?;
    } else if settings.session_cache.is_none() {
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

/// What sessions of servers with these certificates and demands have in common.
///
/// As in nginx, certificates that are computed are the same where their names are written alike.
fn mark(pairs: &[Arc<CertifiedKey>], names: Option<&str>, client_auth: Option<&ClientAuth>) -> Mark {
    let mut hash = digest::Context::new(&digest::SHA256);
    for pair in pairs {
        for certificate in &pair.cert {
            hash.update(&certificate.len().to_be_bytes());
            hash.update(certificate);
        }
    }
    if let Some(names) = names {
        hash.update(names.as_bytes());
    }
    if let Some(client_auth) = client_auth {
        client_auth.identify(|part| hash.update(part));
    }
    let mut mark = [0; 16];
    mark.copy_from_slice(&hash.finish().as_ref()[..16]);
    Mark(mark)
}

/// Chooses among certificates of different kinds by what the client can check.
struct Pairs(Vec<Pair>);

struct Pair {
    kind: SignatureAlgorithm,
    pair: Arc<CertifiedKey>,
    staple: Option<Arc<Staple>>,
}

impl Pair {
    fn show(&self) -> Arc<CertifiedKey> {
        self.staple.as_ref().map_or_else(|| Arc::clone(&self.pair), |staple| staple.show())
    }
}

impl fmt::Debug for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pairs")
    }
}

impl Pairs {
    fn new(pairs: &[Arc<CertifiedKey>], staples: &[(usize, Arc<Staple>)]) -> Self {
        let mut kept: Vec<Pair> = vec![];
        for (index, pair) in pairs.iter().enumerate() {
            let kind = pair.key.algorithm();
            kept.retain(|other| other.kind != kind);
            let staple = staples.iter().find(|(of, _)| *of == index).map(|(_, staple)| Arc::clone(staple));
            kept.push(Pair { kind, pair: Arc::clone(pair), staple });
        }
        // Clients name their curves before RSA, and it is the cheaper signature.
        kept.sort_by_key(|pair| pair.kind == SignatureAlgorithm::RSA);
        Self(kept)
    }
}

impl ResolvesServerCert for Pairs {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offers =
            |kind: SignatureAlgorithm| hello.cipher_suites().iter().any(|suite| carries(*suite, kind));
        let usable = self.0.iter().find(|Pair { kind, pair, .. }| {
            pair.key.choose_scheme(hello.signature_schemes()).is_some() && offers(*kind)
        });
        usable.or(self.0.first()).map(Pair::show)
    }
}

/// Whether a suite goes with certificates of a kind: those of TLS 1.3 with all.
fn carries(suite: CipherSuite, kind: SignatureAlgorithm) -> bool {
    let rsa = kind == SignatureAlgorithm::RSA;
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => true,
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => rsa,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => !rsa,
        _ => false,
    }
}

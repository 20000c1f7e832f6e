//! What a server presents in handshakes: its settings made into rustls's configuration.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    CipherSuite, ServerConfig, SignatureAlgorithm, SignatureScheme, SupportedCipherSuite,
    SupportedProtocolVersion,
};

use super::resume::{self, Lifetime, Mark, TicketKey};
use super::{ClientAuth, Demand, Staple, Statuses};
use crate::http::{Exchange, Template};

/// Tickets after a handshake of TLS 1.3, as many as OpenSSL sends after a full one.
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
    /// Tickets after a handshake of TLS 1.3, where that is told.
    pub ticket_count: Option<usize>,
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
        let suites = &base.crypto_provider().cipher_suites;
        config.cert_resolver = Arc::new(Pairs::new(&pairs, &[], suites, base.ignore_client_order));
        Ok(Arc::new(config))
    }
}

fn config(settings: Settings<'_>, names: Option<&str>) -> Result<ServerConfig, rustls::Error> {
    let resolver =
        Pairs::new(settings.pairs, &settings.staples, &settings.ciphers, settings.prefer_server_ciphers);
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
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = [&b"http/1.1"[..], b"http/1.0", b"http/0.9"].map(<[u8]>::to_vec).into();
    config.ignore_client_order = settings.prefer_server_ciphers;
    config.send_tls13_tickets = settings.ticket_count.unwrap_or(TICKETS);
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

/// Chooses among certificates of different kinds, as OpenSSL does: by what comes first of what both sides have.
struct Pairs {
    pairs: Vec<Pair>,
    /// Most preferred first.
    suites: Vec<CipherSuite>,
    /// Whose order counts (`ssl_prefer_server_ciphers`).
    own_order: bool,
}

struct Pair {
    kind: SignatureAlgorithm,
    pair: Arc<CertifiedKey>,
    staple: Option<Arc<Staple>>,
}

impl Pair {
    fn show(&self) -> Arc<CertifiedKey> {
        self.staple.as_ref().map_or_else(|| Arc::clone(&self.pair), |staple| staple.show())
    }

    fn signs(&self, schemes: &[SignatureScheme]) -> bool {
        self.pair.key.choose_scheme(schemes).is_some()
    }
}

impl fmt::Debug for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pairs")
    }
}

impl Pairs {
    fn new(
        pairs: &[Arc<CertifiedKey>],
        staples: &[(usize, Arc<Staple>)],
        suites: &[SupportedCipherSuite],
        own_order: bool,
    ) -> Self {
        let mut kept: Vec<Pair> = vec![];
        for (index, pair) in pairs.iter().enumerate() {
            let kind = pair.key.algorithm();
            kept.retain(|other| other.kind != kind);
            let staple = staples.iter().find(|(of, _)| *of == index).map(|(_, staple)| Arc::clone(staple));
            kept.push(Pair { kind, pair: Arc::clone(pair), staple });
        }
        // In our own order curves come before RSA, which is the dearer signature.
        kept.sort_by_key(|pair| pair.kind == SignatureAlgorithm::RSA);
        Self { pairs: kept, suites: suites.iter().map(SupportedCipherSuite::suite).collect(), own_order }
    }

    /// The one for a client that offers these suites and can check these signatures.
    fn choose(&self, offered: &[CipherSuite], schemes: &[SignatureScheme]) -> Option<&Pair> {
        let (first, second) =
            if self.own_order { (&self.suites[..], offered) } else { (offered, &self.suites[..]) };
        let mut shared = first.iter().filter(|suite| second.contains(suite)).peekable();
        // The suites of TLS 1.3, which come before all others, say nothing of signatures.
        if !shared.peek().is_some_and(|suite| is_of_tls13(**suite)) {
            return shared.find_map(|suite| {
                self.pairs.iter().find(|pair| carries(*suite, pair.kind) && pair.signs(schemes))
            });
        }
        if self.own_order {
            return self.pairs.iter().find(|pair| pair.signs(schemes));
        }
        let schemes = schemes.iter().filter(|scheme| is_for_tls13(**scheme));
        schemes.into_iter().find_map(|scheme| self.pairs.iter().find(|pair| pair.signs(&[*scheme])))
    }
}

impl ResolvesServerCert for Pairs {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let chosen = match &self.pairs[..] {
            [only] => Some(only),
            _ => self.choose(hello.cipher_suites(), hello.signature_schemes()),
        };
        chosen.or(self.pairs.first()).map(Pair::show)
    }
}

fn is_of_tls13(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS13_AES_256_GCM_SHA384
            | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
    )
}

fn is_for_tls13(scheme: SignatureScheme) -> bool {
    !matches!(
        scheme,
        SignatureScheme::RSA_PKCS1_SHA1
            | SignatureScheme::RSA_PKCS1_SHA256
            | SignatureScheme::RSA_PKCS1_SHA384
            | SignatureScheme::RSA_PKCS1_SHA512
    )
}

/// Whether a suite of TLS 1.2 goes with certificates of a kind.
fn carries(suite: CipherSuite, kind: SignatureAlgorithm) -> bool {
    let rsa = kind == SignatureAlgorithm::RSA;
    match suite {
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => rsa,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => !rsa,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use CipherSuite as C;
    use SignatureScheme as S;
    use rustls::crypto::aws_lc_rs::cipher_suite as suite;

    use super::*;
    use crate::tls::pem;

    #[test]
    fn certificates_are_chosen_in_the_order_that_counts() {
        let pair = |algorithm| {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let certificate =
                rcgen::CertificateParams::new(["a".to_owned()]).unwrap().self_signed(&key).unwrap();
            let key = pem::private_key(key.serialize_pem().as_bytes(), &[]).unwrap();
            pem::pair(vec![certificate.der().clone()], key, None).unwrap()
        };
        let (rsa, ec) = (pair(&rcgen::PKCS_RSA_SHA256), pair(&rcgen::PKCS_ECDSA_P256_SHA256));
        let suites = [
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ];
        let check = |own_order, offered: &[C], schemes: &[S], expected: Option<SignatureAlgorithm>| {
            let pairs = Pairs::new(&[Arc::clone(&rsa), Arc::clone(&ec)], &[], &suites, own_order);
            assert_eq!(
                pairs.choose(offered, schemes).map(|pair| pair.kind),
                expected,
                "{offered:?} {schemes:?}"
            );
        };
        let (rsa, ec) = (Some(SignatureAlgorithm::RSA), Some(SignatureAlgorithm::ECDSA));
        let all = [S::RSA_PKCS1_SHA256, S::RSA_PSS_SHA256, S::ECDSA_NISTP256_SHA256];
        let new = [C::TLS13_AES_256_GCM_SHA384, C::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384];
        check(false, &new, &all, rsa);
        check(true, &new, &all, ec);
        check(false, &new, &[S::RSA_PKCS1_SHA256, S::ECDSA_NISTP256_SHA256], ec);
        check(false, &new, &[S::ED25519], None);
        let old = [
            // Not among ours.
            C::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            C::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            C::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        ];
        check(false, &old, &all, rsa);
        check(true, &old, &all, ec);
        check(false, &old, &all[2..], ec);
        check(false, &old[..1], &all, None);
    }
}

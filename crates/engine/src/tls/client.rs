//! What weir says to upstreams in handshakes: its settings made into rustls's configuration.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{DigitallySignedStruct, Error, SignatureScheme, SupportedCipherSuite};
use webpki::KeyUsage;
use weir_ir::address::Address;

use super::der::Fields;
use super::{Pairs, Protocols, Reason, Trust, signature};

/// Names of one peer that sessions are kept for.
const NAMES: usize = 8;
/// Peers that sessions are kept for; a configuration with variables may reach any number of them.
const PEERS: usize = 1024;

/// What handshakes with upstreams follow.
pub struct ClientSettings {
    pub protocols: Protocols,
    /// Most preferred first, of all versions.
    pub ciphers: Vec<SupportedCipherSuite>,
    /// Most preferred first.
    pub groups: Vec<&'static dyn SupportedKxGroup>,
    /// What is shown to whoever asks.
    pub pair: Option<Arc<CertifiedKey>>,
    /// The pairs that requests name, in its stead.
    pub pairs: Option<Pairs>,
    /// Whom to believe; `None` is everybody.
    pub trust: Option<Trust>,
    /// The name is told in the handshake (SNI).
    pub server_name: bool,
    pub session_reuse: bool,
}

/// A side of an upstream that speaks TLS, ready for handshakes.
#[derive(Debug)]
pub struct ClientTls {
    /// Without sessions.
    config: ClientConfig,
    pub pairs: Option<Pairs>,
    trust: Option<Trust>,
    session_reuse: bool,
    /// The configuration with the sessions of each peer, for HTTP/2 another.
    peers: Mutex<HashMap<(Address, bool), Arc<ClientConfig>>>,
    identity: u64,
}

/// Why a handshake's result is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Distrust {
    Chain(Reason),
    Name,
}

impl ClientTls {
    /// # Errors
    /// rustls refuses the combination.
    pub fn new(settings: ClientSettings) -> Result<Self, Error> {
        let identity = identity(&settings);
        let provider = CryptoProvider {
            cipher_suites: settings.ciphers,
            kx_groups: settings.groups,
            ..rustls::crypto::aws_lc_rs::default_provider()
        };
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(settings.protocols.versions())?
            .dangerous()
            // Chains and names are judged behind the handshake, as nginx does.
            .with_custom_certificate_verifier(Arc::new(Signatures));
        let mut config = match settings.pair {
            Some(pair) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair))),
            None => config.with_no_client_auth(),
        };
        config.enable_sni = settings.server_name;
        config.resumption = Resumption::disabled();
        Ok(Self {
            config,
            pairs: settings.pairs,
            trust: settings.trust,
            session_reuse: settings.session_reuse,
            peers: Mutex::default(),
            identity,
        })
    }

    /// Tells connections apart that were opened by different settings, in any generation.
    pub fn identity(&self) -> u64 {
        self.identity
    }

    /// Whether it matters by which name a peer is asked.
    pub(crate) fn needs_name(&self) -> bool {
        self.config.enable_sni || self.trust.is_some()
    }

    /// The name is told to the peer.
    pub(crate) fn tells_name(&self) -> bool {
        self.config.enable_sni
    }

    /// The configuration for a peer, with its sessions.
    pub(crate) fn of_peer(&self, peer: &Address, http2: bool) -> Arc<ClientConfig> {
        let fresh = || {
            let mut config = self.speaking(http2);
            if self.session_reuse {
                config.resumption = Resumption::in_memory_sessions(NAMES);
            }
            Arc::new(config)
        };
        // Sessions are never half written: the map holds whole configurations.
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (peer.clone(), http2);
        if let Some(known) = peers.get(&key) {
            return Arc::clone(known);
        }
        if peers.len() >= PEERS {
            peers.clear();
        }
        Arc::clone(peers.entry(key).or_insert_with(fresh))
    }

    /// The configuration without sessions. Only HTTP/2 is told of (ALPN).
    fn speaking(&self, http2: bool) -> ClientConfig {
        let mut config = self.config.clone();
        if http2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        config
    }

    /// The configuration that shows another pair. It keeps no sessions, since those are of whoever showed himself.
    pub(crate) fn with_pair(&self, pair: Arc<CertifiedKey>, http2: bool) -> Arc<ClientConfig> {
        let mut config = self.speaking(http2);
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(pair));
        Arc::new(config)
    }

    /// Judges what a peer showed that was asked by a name.
    pub(crate) fn judge(&self, chain: &[CertificateDer<'_>], name: &[u8]) -> Result<(), Distrust> {
        let Some(trust) = &self.trust else { return Ok(()) };
        if let Some(reason) = trust.judge(chain, KeyUsage::server_auth()) {
            return Err(Distrust::Chain(reason));
        }
        let fields = chain.first().and_then(|certificate| Fields::of(certificate));
        if fields.is_some_and(|fields| fields.is_for(name)) { Ok(()) } else { Err(Distrust::Name) }
    }
}

fn identity(settings: &ClientSettings) -> u64 {
    let mut hash = DefaultHasher::new();
    let Protocols { tls12, tls13 } = settings.protocols;
    (tls12, tls13, settings.server_name, settings.session_reuse).hash(&mut hash);
    settings.ciphers.iter().for_each(|suite| u16::from(suite.suite()).hash(&mut hash));
    settings.groups.iter().for_each(|group| u16::from(group.name()).hash(&mut hash));
    if let Some(pair) = &settings.pair {
        pair.cert.iter().for_each(|certificate| certificate.hash(&mut hash));
    }
    settings.trust.as_ref().map(Trust::mark).hash(&mut hash);
    hash.finish()
}

/// Holds peers to their signatures; the rest is judged later.
#[derive(Debug)]
struct Signatures;

impl ServerCertVerifier for Signatures {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::tls12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::tls13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signature::ALGORITHMS.supported_schemes()
    }
}

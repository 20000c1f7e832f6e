//! Clients that show certificates, and what is made of these.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::*;

/// An authority, the text of its certificate, and clients that it or nobody vouches for.
pub(super) struct Clients {
    pub(super) authority: String,
    pub(super) known: Vec<CertificateDer<'static>>,
    pub(super) known_key: PrivateKeyDer<'static>,
    stranger: Vec<CertificateDer<'static>>,
    stranger_key: PrivateKeyDer<'static>,
}

impl Clients {
    /// `links` authorities stand between the root and the known client.
    pub(super) fn new(links: usize) -> Self {
        let authority = |name: &str| {
            let mut parameters = CertificateParams::new([]).unwrap();
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            parameters.distinguished_name.push(DnType::CommonName, name);
            (parameters, KeyPair::generate().unwrap())
        };
        let (parameters, key) = authority("root");
        let root = parameters.self_signed(&key).unwrap();
        let mut issuer = Issuer::new(parameters, key);
        let mut chain = vec![];
        for at in 0..links {
            let (parameters, key) = authority(&format!("link {at}"));
            chain
                .insert(0, CertificateDer::from(parameters.signed_by(&key, &issuer).unwrap().der().to_vec()));
            issuer = Issuer::new(parameters, key);
        }
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(["client".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        chain.insert(0, CertificateDer::from(leaf.der().to_vec()));
        let stranger = rcgen::generate_simple_self_signed(["stranger".to_owned()]).unwrap();
        Self {
            authority: root.pem(),
            known: chain,
            known_key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            stranger: vec![CertificateDer::from(stranger.cert.der().to_vec())],
            stranger_key: PrivateKeyDer::try_from(stranger.signing_key.serialize_der()).unwrap(),
        }
    }

    pub(super) fn with(
        made: &Made,
        chain: &[CertificateDer<'static>],
        key: &PrivateKeyDer<'static>,
    ) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(made.roots.clone())
            .with_client_auth_cert(chain.to_vec(), key.clone_key())
            .unwrap();
        Arc::new(config)
    }
}

/// What clients with a known, an unknown and no certificate get from a server with these words, each twice so that the
/// second time resumes.
#[track_caller]
fn check_clients(links: usize, words: &str, expected: [&str; 3]) {
    let made = Made::new(&["a", "b"]);
    let clients = Clients::new(links);
    let configs = [
        Clients::with(&made, &clients.known, &clients.known_key),
        Clients::with(&made, &clients.stranger, &clients.stranger_key),
        made.client(&[&TLS13]),
    ];
    on_a_thread(async {
        let (listener, port) = listener().await;
        let conf = format!(
            "server {{ listen 127.0.0.1:{port} ssl; server_name a.example; ssl_certificate a.crt;
                ssl_certificate_key a.key; ssl_client_certificate ca.crt; {words}
                error_page 495 496 @refused; location @refused {{ return 200 \"refused $ssl_client_verify\"; }}
                location / {{ return 200 $ssl_client_verify; }} }}
             server {{ listen 127.0.0.1:{port} ssl; server_name b.example; ssl_certificate b.crt;
                ssl_certificate_key b.key; return 200 b; }}"
        );
        let mut files = made.files();
        files.push(("/conf/ca.crt", &clients.authority));
        let site = Site::with_files(&conf, &files);
        let running = Running::new(&site, listener);
        for (config, expected) in configs.iter().zip(expected) {
            for _ in 0..2 {
                assert_eq!(running.ask(config, "a.example", "a.example").await.unwrap(), expected, "{words}");
            }
            // A certificate is asked for by the server that the handshake is for, so no other may be asked through it.
            let through = running.ask(config, "b.example", "a.example").await.unwrap();
            assert!(through.contains("<title>421 Misdirected Request</title>"), "{through}");
        }
    });
}

#[test]
fn clients_show_certificates() {
    let unknown = "refused FAILED:self-signed certificate";
    check_clients(0, "ssl_verify_client on;", ["SUCCESS", unknown, "refused NONE"]);
    check_clients(0, "ssl_verify_client optional;", ["SUCCESS", unknown, "NONE"]);
    check_clients(
        0,
        "ssl_verify_client optional_no_ca;",
        ["SUCCESS", "FAILED:self-signed certificate", "NONE"],
    );
    check_clients(1, "ssl_verify_client on;", ["SUCCESS", unknown, "refused NONE"]);
    let too_deep = "refused FAILED:unable to get local issuer certificate";
    check_clients(2, "ssl_verify_client on;", [too_deep, unknown, "refused NONE"]);
    check_clients(2, "ssl_verify_client on; ssl_verify_depth 2;", ["SUCCESS", unknown, "refused NONE"]);
}

//! Words and messages as tables; handshakes over loopback against servers of one configuration.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rcgen::CertifiedKey;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;
use weir_engine::http::accept::serve_accepted;
use weir_engine::io::{Address, Socket};
use weir_engine::reactor::Reactor;
use weir_testkit::http2::{self, Frame};

use self::clients::Clients;
use crate::testing::{Site, told};

mod clients;
mod records;

/// Certificates that do not differ from test to test: making keys takes its time.
pub(crate) struct Made {
    files: Vec<(String, String)>,
    roots: RootCertStore,
}

impl Made {
    /// A certificate and a key for each name, at `/conf/NAME.crt` and `/conf/NAME.key`, valid for `NAME.example` and
    /// `shared.example`.
    pub(crate) fn new(names: &[&str]) -> Self {
        let mut made = Self { files: vec![], roots: RootCertStore::empty() };
        for name in names {
            let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([
                format!("{name}.example"),
                "shared.example".to_owned(),
                "unknown.example".to_owned(),
            ])
            .unwrap();
            made.roots.add(CertificateDer::from(cert.der().to_vec())).unwrap();
            made.files.push((format!("/conf/{name}.crt"), cert.pem()));
            made.files.push((format!("/conf/{name}.key"), signing_key.serialize_pem()));
        }
        made
    }

    pub(crate) fn files(&self) -> Vec<(&str, &str)> {
        self.files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect()
    }

    fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        Arc::new(config)
    }
}

/// A reactor for one listening socket.
pub(crate) struct Running {
    reactor: Rc<Reactor>,
    listener: TcpListener,
    address: Arc<Address>,
}

pub(crate) async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

impl Running {
    pub(crate) fn new(site: &Site, listener: TcpListener) -> Self {
        let reactor = Reactor::new(Arc::clone(site.generation()), Arc::default());
        tokio::task::spawn_local(reactor.timers().clone().drive());
        let address = Arc::new(Address::Ip(listener.local_addr().unwrap()));
        Self { reactor, listener, address }
    }

    /// A client's socket, the other end of which is being served.
    async fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).await.unwrap();
        self.serve_one().await;
        client
    }

    async fn serve_one(&self) {
        let (socket, peer) = self.listener.accept().await.unwrap();
        let served = serve_accepted(
            Rc::clone(&self.reactor),
            Arc::clone(&self.address),
            Socket::from(socket),
            Address::Ip(peer),
        );
        self.reactor.spawn(served);
    }

    /// Serves whoever comes.
    pub(crate) async fn serve(self) {
        loop {
            self.serve_one().await;
        }
    }

    /// The body of the answer to a request for `host` on a connection that named `sni`.
    async fn ask(&self, config: &Arc<ClientConfig>, sni: &str, host: &str) -> io::Result<String> {
        let socket = self.connect().await;
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        let mut tls = TlsConnector::from(Arc::clone(config)).connect(name, socket).await?;
        tls.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut answer = String::new();
        tls.read_to_string(&mut answer).await?;
        Ok(answer.split_once("\r\n\r\n").map_or(answer.as_str(), |(_, body)| body).to_owned())
    }
}

/// Runs a test on a reactor's own kind of thread.
pub(crate) fn on_a_thread(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn the_server_is_chosen_by_name() {
    let made = Made::new(&["a", "b"]);
    on_a_thread(async {
        let (listener, port) = listener().await;
        let conf = format!(
            "server {{ listen 127.0.0.1:{port} ssl; server_name a.example; ssl_certificate a.crt;
                ssl_certificate_key a.key; return 200 \"a $ssl_server_name $https\"; }}
             server {{ listen 127.0.0.1:{port} ssl; server_name b.example; ssl_certificate b.crt;
                ssl_certificate_key b.key; return 200 \"b $ssl_server_name $scheme\"; }}
             server {{ listen 127.0.0.1:{port} ssl; server_name c.example; return 200 c; }}"
        );
        let site = Site::with_files(&conf, &made.files());
        let running = Running::new(&site, listener);
        let client = made.client(&[&TLS13]);
        for (sni, host, expected) in [
            ("a.example", "a.example", "a a.example on"),
            ("b.example", "b.example", "b b.example https"),
            // The request decides among servers, and the default one is asked where it names none.
            ("a.example", "b.example", "b a.example https"),
            ("b.example", "nobody.example", "a b.example on"),
            ("unknown.example", "nobody.example", "a unknown.example on"),
        ] {
            assert_eq!(running.ask(&client, sni, host).await.unwrap(), expected, "{sni} {host}");
        }
        // The certificate of another server is not shown; without one of its own it is the default server's.
        let error = running.ask(&client, "c.example", "c.example").await.unwrap_err();
        assert!(error.to_string().contains("not valid for name \"c.example\""), "{error}");
    });
}

#[test]
fn a_handshake_names_its_certificate() {
    let made = Made::new(&["a", "b"]);
    on_a_thread(async {
        let (listener, port) = listener().await;
        let pem = |file: &str| made.files.iter().find(|(path, _)| path.ends_with(file)).unwrap().1.clone();
        let conf = format!(
            "map $ssl_server_name $file {{ default none; a.example a; b.example b; shared.example mixed; }}
             map $host$request_uri$args$uri$status$request_id$ssl_protocol$ssl_cipher$remote_addr $same {{ default a; }}
             ssl_session_cache shared:SSL:1m;
             server {{ listen 127.0.0.1:{port} ssl; ssl_certificate %DIR%/$file.crt;
                ssl_certificate_key %DIR%/$file.key; return 200 \"$ssl_server_name $ssl_session_reused\"; }}
             server {{ listen 127.0.0.1:{port} ssl; server_name unknown.example; ssl_certificate %DIR%/$same.crt;
                ssl_certificate_key %DIR%/a.key; return 200 \"same\"; }}"
        );
        let site = Site::new(&conf);
        for file in ["a.crt", "a.key", "b.crt", "b.key"] {
            std::fs::write(site.path(file), pem(file)).unwrap();
        }
        std::fs::write(site.path("mixed.crt"), pem("a.crt")).unwrap();
        std::fs::write(site.path("mixed.key"), pem("b.key")).unwrap();
        let running = Running::new(&site, listener);
        let client = made.client(&[&TLS13]);
        assert_eq!(running.ask(&client, "a.example", "a").await.unwrap(), "a.example .");
        assert_eq!(running.ask(&client, "b.example", "a").await.unwrap(), "b.example .");
        assert_eq!(running.ask(&client, "a.example", "a").await.unwrap(), "a.example r");
        assert_eq!(running.ask(&client, "unknown.example", "unknown.example").await.unwrap(), "same");
        for name in ["shared.example", "nobody.example"] {
            let error = running.ask(&client, name, "a").await.unwrap_err();
            assert!(error.to_string().contains("InternalError"), "{error}");
        }
        let directory = site.path("");
        let directory = directory.to_str().unwrap();
        let doing = " while SSL handshaking";
        let callback =
            format!("SSL_do_handshake() failed (SSL: error:0A000179:SSL routines::cert cb error){doing}");
        let expected = [
            format!(
                "SSL_use_PrivateKey(\"{directory}mixed.key\") failed (SSL: error:05800074:x509 certificate \
                 routines::key values mismatch){doing}"
            ),
            callback.clone(),
            format!(
                "cannot load certificate \"{directory}none.crt\": BIO_new_file() failed (SSL: error:80000002:system \
                 library::No such file or directory:calling fopen({directory}none.crt, r) error:10000080:BIO \
                 routines::no such file){doing}"
            ),
            callback,
        ];
        assert_eq!(site.log(), expected);
    });
}

#[test]
fn what_was_agreed_on_is_told() {
    let made = Made::new(&["a"]);
    on_a_thread(async {
        let (listener, port) = listener().await;
        let conf = format!(
            "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate a.crt; ssl_certificate_key a.key;
                ssl_ciphers ECDHE-ECDSA-AES128-GCM-SHA256; ssl_ecdh_curve prime256v1;
                return 200 \"$ssl_protocol $ssl_cipher $ssl_curve $ssl_session_reused $ssl_alpn_protocol;$ssl_curves|$ssl_sigalgs|$ssl_ciphers\"; }}"
        );
        let site = Site::with_files(&conf, &made.files());
        let running = Running::new(&site, listener);
        for (version, expected) in [
            (&TLS12, "TLSv1.2 ECDHE-ECDSA-AES128-GCM-SHA256 prime256v1 . ;"),
            (&TLS13, "TLSv1.3 TLS_AES_256_GCM_SHA384 prime256v1 . ;"),
        ] {
            let told = running.ask(&made.client(&[version]), "a.example", "a").await.unwrap();
            let (told, curves) = told.split_at(expected.len());
            assert_eq!(told, expected);
            assert!(curves.contains("X25519:prime256v1:secp384r1"), "{curves}");
            assert!(curves.contains("|0x0503:0x0403:"), "{curves}");
            let marked = curves.contains(":TLS_EMPTY_RENEGOTIATION_INFO_SCSV");
            assert_eq!(marked, version.version == TLS12.version, "{curves}");
        }
        let mut client = ClientConfig::clone(&made.client(&[&TLS13]));
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        let told = running.ask(&Arc::new(client.clone()), "a.example", "a").await.unwrap();
        assert!(told.contains(" http/1.1;"), "{told}");
        client.alpn_protocols = vec![b"imap".to_vec()];
        let error = running.ask(&Arc::new(client), "a.example", "a").await.unwrap_err();
        assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
        assert_eq!(
            site.log(),
            ["SSL_do_handshake() failed (SSL: error:0A0000EB:SSL routines::no application protocol) \
              while SSL handshaking"]
        );
    });
}

#[test]
fn whose_order_of_ciphers_counts() {
    const OURS: &str = "ECDHE-ECDSA-AES128-GCM-SHA256";
    const THEIRS: &str = "ECDHE-ECDSA-AES256-GCM-SHA384";
    let made = Made::new(&["a"]);
    on_a_thread(async {
        for (words, expected) in [
            ("", THEIRS),
            ("ssl_prefer_server_ciphers on;", OURS),
            ("ssl_prefer_server_ciphers on; ssl_conf_command Options -ServerPreference;", THEIRS),
            ("ssl_conf_command Options ServerPreference;", OURS),
        ] {
            let (listener, port) = listener().await;
            let conf = format!(
                "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate a.crt; ssl_certificate_key a.key;
                    ssl_ciphers {OURS}:{THEIRS}; {words} return 200 $ssl_cipher; }}"
            );
            let running = Running::new(&Site::with_files(&conf, &made.files()), listener);
            assert_eq!(
                running.ask(&made.client(&[&TLS12]), "a.example", "a").await.unwrap(),
                expected,
                "{words}"
            );
        }
    });
}

#[test]
fn http2_is_agreed_on_where_the_server_speaks_it() {
    let made = Made::new(&["a", "b"]);
    on_a_thread(async {
        let (listener, port) = listener().await;
        let server = |name: &str, more: &str| {
            format!(
                "server {{ listen 127.0.0.1:{port} ssl; server_name {name}.example; ssl_certificate {name}.crt;
                    ssl_certificate_key {name}.key; {more} return 200 \"$http2 $ssl_alpn_protocol $scheme\"; }}"
            )
        };
        let conf = server("a", "http2 on;") + &server("b", "");
        let site = Site::with_files(&conf, &made.files());
        let running = Running::new(&site, listener);
        let mut client = ClientConfig::clone(&made.client(&[&TLS13]));
        client.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
        let client = Arc::new(client);
        assert_eq!(running.ask(&client, "b.example", "b.example").await.unwrap(), " http/1.1 https");
        let socket = running.connect().await;
        let name = ServerName::try_from("a.example").unwrap();
        let mut tls = TlsConnector::from(Arc::clone(&client)).connect(name, socket).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        tls.write_all(&http2::script(&[Frame::get(1, "/")])).await.unwrap();
        let mut received = vec![];
        while http2::told(&received).len() < 2 {
            assert!(tls.read_buf(&mut received).await.unwrap() > 0);
        }
        assert_eq!(http2::told(&received)[..2], ["HEADERS 1 200", "DATA 1 h2 h2 https end"]);
    });
}

/// A client that reads both at once may lose the answer.
#[test]
fn a_stream_whose_body_nobody_reads_is_reset_behind_its_answer() {
    let made = Made::new(&["a"]);
    on_a_thread(async {
        let (listener, port) = listener().await;
        let conf = format!(
            "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate a.crt; ssl_certificate_key a.key; http2 on; return 200 x; }}"
        );
        let site = Site::with_files(&conf, &made.files());
        let running = Running::new(&site, listener);
        let mut client = ClientConfig::clone(&made.client(&[&TLS13]));
        client.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from("a.example").unwrap();
        let socket = running.connect().await;
        let mut tls = TlsConnector::from(Arc::new(client)).connect(name, socket).await.unwrap();
        let frames = [Frame::post(1, "/"), Frame::data(1, 0, b"not all")];
        tls.write_all(&http2::script(&frames)).await.unwrap();
        let (mut socket, mut tls) = tls.into_inner();
        let mut records = vec![];
        while records.last().is_none_or(|frames: &Vec<String>| frames != &["RST_STREAM 1 code 0"]) {
            let mut record = vec![0; 5];
            socket.read_exact(&mut record).await.unwrap();
            let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
            record.resize(5 + length, 0);
            socket.read_exact(&mut record[5..]).await.unwrap();
            tls.read_tls(&mut &record[..]).unwrap();
            let plain = tls.process_new_packets().unwrap().plaintext_bytes_to_read();
            let mut frames = vec![0; plain];
            io::Read::read_exact(&mut tls.reader(), &mut frames).unwrap();
            records.push(http2::told(&frames));
            assert!(
                !records.concat().contains(&"RST_STREAM 1 code 0".to_owned())
                    || records.last().unwrap().len() == 1,
                "{records:?}"
            );
        }
        assert!(
            records.concat().starts_with(&["HEADERS 1 200".to_owned(), "DATA 1 x end".to_owned()]),
            "{records:?}"
        );
    });
}

/// Whether the second of two connections resumes the first's session, each served by a generation and a thread of its
/// own. `settings` are those of both servers unless there is another for the second.
#[track_caller]
fn check_resumed(versions: &'static SupportedProtocolVersion, settings: [&str; 2], expected: [&str; 2]) {
    let made = Made::new(&["a", "b"]);
    let client = made.client(&[versions]);
    // A generation outlives the making of the next, and with it the caches that both name.
    let mut before = vec![];
    for (settings, expected) in settings.into_iter().zip(expected) {
        let (made, client) = (&made, &client);
        let (told, site) = std::thread::scope(|threads| {
            let thread = threads.spawn(move || {
                let mut told = (None, None);
                on_a_thread(async {
                    let (listener, port) = listener().await;
                    let conf = format!(
                        "server {{ listen 127.0.0.1:{port} ssl; {settings} return 200 $ssl_session_reused; }}"
                    );
                    let site = Site::with_files(&conf, &made.files());
                    let running = Running::new(&site, listener);
                    told.0 = running.ask(client, "shared.example", "a").await.ok();
                    told.1 = Some(site);
                });
                told
            });
            thread.join().unwrap()
        });
        before.push(site);
        assert_eq!(told.as_deref(), Some(expected), "{settings}");
    }
}

#[test]
fn sessions_go_on_over_threads_and_generations() {
    const A: &str = "ssl_certificate a.crt; ssl_certificate_key a.key;";
    const B: &str = "ssl_certificate b.crt; ssl_certificate_key b.key;";
    let off = format!("{A} ssl_session_tickets off;");
    for version in [&TLS12, &TLS13] {
        check_resumed(version, [A, A], [".", "r"]);
        check_resumed(version, [&off, &off], [".", "."]);
        // A command has the last word.
        let command = |settings: &str, option: &str| format!("{settings} ssl_conf_command Options {option};");
        let [on, off_again] = [command(&off, "SessionTicket"), command(A, "KTLS,-SessionTicket")];
        check_resumed(version, [&on, &on], [".", "r"]);
        check_resumed(version, [&off_again, &off_again], [".", "."]);
        let cached = format!("{off} ssl_session_cache shared:{:?}:1m;", version.version);
        check_resumed(version, [&cached, &cached], [".", "r"]);
        // Another certificate is another server, whatever its name.
        check_resumed(version, [A, B], [".", "."]);
        let timeout = format!("{A} ssl_session_timeout 1d;");
        check_resumed(version, [A, &timeout], [".", "r"]);
    }
}

#[test]
fn handshakes_for_a_rejecting_server_are_refused() {
    let made = Made::new(&["a"]);
    on_a_thread(async {
        let (listener, port) = listener().await;
        let conf = format!(
            "server {{ listen 127.0.0.1:{port} ssl; ssl_reject_handshake on; }}
             server {{ listen 127.0.0.1:{port} ssl; server_name a.example; ssl_certificate a.crt;
                ssl_certificate_key a.key; return 200 a; }}"
        );
        let site = Site::with_files(&conf, &made.files());
        let running = Running::new(&site, listener);
        let client = made.client(&[&TLS13]);
        assert_eq!(running.ask(&client, "a.example", "a.example").await.unwrap(), "a");
        let error = running.ask(&client, "shared.example", "a.example").await.unwrap_err();
        assert!(error.to_string().contains("UnrecognisedName"), "{error}");
        assert_eq!(site.log(), ["handshake rejected while SSL handshaking"]);
    });
}

#[test]
fn a_server_without_a_certificate_has_demands_of_its_own() {
    let made = Made::new(&["a"]);
    let clients = Clients::new(0);
    let known = Clients::with(&made, &clients.known, &clients.known_key);
    let nobody = made.client(&[&TLS13]);
    on_a_thread(async {
        for (of_default, of_named, expected) in [
            ("", "on", ["NONE 496", "NONE 496"]),
            ("", "optional", ["NONE 200", "NONE 200"]),
            ("ssl_verify_client optional;", "on", ["NONE 496", "SUCCESS 200"]),
            ("ssl_verify_client optional_no_ca; ssl_verify_depth 0;", "off", ["NONE 200", "SUCCESS 200"]),
        ] {
            let (listener, port) = listener().await;
            let conf = format!(
                "ssl_client_certificate ca.crt;
                 server {{ listen 127.0.0.1:{port} ssl; server_name a.example; ssl_certificate a.crt;
                    ssl_certificate_key a.key; {of_default} }}
                 server {{ listen 127.0.0.1:{port} ssl; server_name unknown.example; ssl_verify_client {of_named};
                    error_page 496 @refused; location @refused {{ return 200 \"$ssl_client_verify 496\"; }}
                    location / {{ return 200 \"$ssl_client_verify 200\"; }} }}"
            );
            let mut files = made.files();
            files.push(("/conf/ca.crt", &clients.authority));
            let site = Site::with_files(&conf, &files);
            let running = Running::new(&site, listener);
            for (client, expected) in [&nobody, &known].into_iter().zip(expected) {
                let told = running.ask(client, "unknown.example", "unknown.example").await.unwrap();
                assert_eq!(told, expected, "{of_default} {of_named}");
            }
            let other = running.ask(&nobody, "a.example", "unknown.example").await.unwrap();
            let refused = other.contains("<title>421 Misdirected Request</title>");
            assert_eq!(refused, of_named != "off", "{other}");
        }
    });
}

#[test]
fn plain_requests_are_told_that_this_is_a_tls_port() {
    let made = Made::new(&["a"]);
    on_a_thread(async {
        for (error_page, status, part) in [
            ("", "400 Bad Request", "The plain HTTP request was sent to HTTPS port"),
            ("error_page 497 https://$host/;", "302 Moved Temporarily", "Location: https://a.example/"),
        ] {
            let (listener, port) = listener().await;
            let conf = format!(
                "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate a.crt; ssl_certificate_key a.key;
                    {error_page} }}"
            );
            let site = Site::with_files(&conf, &made.files());
            let running = Running::new(&site, listener);
            let mut socket = running.connect().await;
            socket.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
            assert!(answer.contains(part), "{answer}");
            assert_eq!(
                site.log(),
                ["client sent plain HTTP request to HTTPS port while reading client request headers"]
            );
        }
    });
}

/// What is logged of a client that sends `bytes` and then waits, or ends its direction.
fn check_failed(bytes: &'static [u8], ends: bool, expected: &str) {
    let made = Made::new(&["a"]);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let (listener, port) = listener().await;
        let conf = format!(
            "client_header_timeout 5s;
             server {{ listen 127.0.0.1:{port} ssl; ssl_certificate a.crt; ssl_certificate_key a.key; }}"
        );
        let site = Site::with_files(&conf, &made.files());
        let running = Running::new(&site, listener);
        let mut socket = running.connect().await;
        socket.write_all(bytes).await.unwrap();
        if ends {
            socket.shutdown().await.unwrap();
        }
        running.reactor.drained().await;
        assert_eq!(site.log(), [format!("{expected} while SSL handshaking")]);
    });
}

#[test]
fn clients_that_do_not_finish_their_handshake() {
    check_failed(b"", false, "client timed out (110: Connection timed out)");
    check_failed(b"\x16\x03\x01\x02\x00\x01\x00", false, "client timed out (110: Connection timed out)");
    check_failed(b"", true, "client closed connection");
    check_failed(b"\x16\x03\x01\x02\x00\x01\x00", true, "peer closed connection in SSL handshake");
    check_failed(
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10",
        false,
        "SSL_do_handshake() failed (SSL: error:0A00010B:SSL routines::wrong version number)",
    );
}

#[test]
fn clients_that_say_goodbye_in_their_handshake() {
    let made = Made::new(&["a"]);
    on_a_thread(async {
        let (listener, port) = listener().await;
        let conf = format!(
            "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate a.crt; ssl_certificate_key a.key; }}"
        );
        let site = Site::with_files(&conf, &made.files());
        let running = Running::new(&site, listener);
        let mut socket = running.connect().await;
        let name = ServerName::try_from("a").unwrap();
        let mut client = rustls::ClientConnection::new(made.client(&[&TLS13]), name).unwrap();
        let records = |client: &mut rustls::ClientConnection| {
            let mut bytes = vec![];
            client.write_tls(&mut bytes).unwrap();
            bytes
        };
        socket.write_all(&records(&mut client)).await.unwrap();
        socket.read_u8().await.unwrap();
        client.send_close_notify();
        socket.write_all(&records(&mut client)).await.unwrap();
        running.reactor.drained().await;
        assert_eq!(site.log(), ["peer closed connection in SSL handshake while SSL handshaking"]);
    });
}

#[test]
fn a_responder_that_says_nothing_has_the_time_of_the_handshake() {
    let made = Made::new(&["a"]);
    let clients = Clients::new(0);
    let client = Clients::with(&made, &clients.known, &clients.known_key);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let (listener, port) = listener().await;
        let responder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = responder.local_addr().unwrap();
        let conf = format!(
            "client_header_timeout 5s;
             server {{ listen 127.0.0.1:{port} ssl; ssl_certificate a.crt; ssl_certificate_key a.key;
                ssl_client_certificate ca.crt; ssl_verify_client on; ssl_ocsp on; ssl_ocsp_responder http://{silent}; }}"
        );
        let mut files = made.files();
        files.push(("/conf/ca.crt", &clients.authority));
        let site = Site::with_files(&conf, &files);
        let running = Running::new(&site, listener);
        assert!(running.ask(&client, "a.example", "a.example").await.is_err());
        assert_eq!(site.log(), ["client timed out (110: Connection timed out) while SSL handshaking"]);
    });
}

/// What is told of a server with TLS, a certificate and these words.
#[track_caller]
fn check(words: &str, expected: &str) {
    let made = Made::new(&["a"]);
    let mut files = made.files();
    files.push(("/conf/junk", "junk"));
    let http = format!(
        "server {{ listen 127.0.0.1:8443 ssl; ssl_certificate a.crt; ssl_certificate_key a.key; {words} }}"
    );
    let told = told(&http, &files).into_iter().next().unwrap_or_default();
    assert_eq!(told, expected, "{words}");
}

#[test]
fn words_are_checked_as_nginx_checks_them() {
    for (words, expected) in [
        ("ssl_protocols TLSv1.2 TLSv1.2;", "duplicate value \"TLSv1.2\""),
        ("ssl_protocols TLSv1.4;", "invalid value \"TLSv1.4\""),
        ("ssl_protocols tlsv1.2;", ""),
        ("ssl_protocols TLSv1.1 TLSv1.2;", "\"TLSv1.1\" is not supported by weir, ignored"),
        (
            "ssl_ciphers FOO;",
            "SSL_CTX_set_cipher_list(\"FOO\") failed (SSL: error:0A0000B9:SSL routines::no cipher match)",
        ),
        ("ssl_ciphers HIGH:!aNULL:!MD5;", ""),
        (
            "ssl_ciphers AES128-SHA;",
            "weir has none of the ciphers \"AES128-SHA\", so there is no TLSv1.2, only TLSv1.3",
        ),
        ("ssl_protocols TLSv1.2; ssl_ciphers AES128-SHA;", "weir has none of the ciphers \"AES128-SHA\""),
        ("ssl_session_cache foo;", "invalid session cache \"foo\""),
        ("ssl_session_cache shared:a:1k;", "session cache \"shared:a:1k\" is too small"),
        ("ssl_session_cache shared:a:x;", "invalid session cache \"shared:a:x\""),
        ("ssl_session_cache shared:a;", "invalid session cache \"shared:a\""),
        ("ssl_session_cache shared::10m;", "invalid session cache \"shared::10m\""),
        ("ssl_session_cache builtin:x;", "invalid session cache \"builtin:x\""),
        ("ssl_session_cache builtin:10 shared:SSL:10m;", ""),
        ("ssl_session_cache off; ssl_session_cache none;", ""),
        ("ssl_session_ticket_key junk;", "\"/conf/junk\" must be 48 or 80 bytes"),
        ("ssl_session_ticket_key no;", "open() \"/conf/no\" failed"),
        ("ssl_ecdh_curve auto;", ""),
        ("ssl_ecdh_curve X25519:prime256v1;", ""),
        ("ssl_ecdh_curve \"\";", "SSL_CTX_set1_curves_list(\"\") failed"),
        (
            "ssl_ecdh_curve foo;",
            "SSL_CTX_set1_curves_list(\"foo\") failed (SSL: error:0A080106:SSL routines::passed invalid argument:group 'foo' cannot be set)",
        ),
        (
            "ssl_dhparam junk;",
            "PEM_read_bio_DHparams(\"/conf/junk\") failed (SSL: error:0480006C:PEM routines::no start line:Expecting: DH PARAMETERS)",
        ),
        (
            "ssl_dhparam no;",
            "BIO_new_file(\"/conf/no\") failed (SSL: error:80000002:system library::No such file or directory:calling fopen(/conf/no, r) error:10000080:BIO routines::no such file)",
        ),
        (
            "ssl_trusted_certificate junk;",
            "cannot load certificate \"/conf/junk\": PEM_read_bio_X509_AUX() failed (SSL: error:0480006C:PEM routines::no start line:Expecting: TRUSTED CERTIFICATE)",
        ),
        (
            "ssl_verify_client on;",
            "no ssl_client_certificate or ssl_trusted_certificate for ssl_verify_client",
        ),
        ("ssl_verify_client foo;", "invalid value \"foo\""),
        ("ssl_verify_client optional_no_ca;", ""),
        ("ssl_verify_client on; ssl_client_certificate a.crt;", ""),
        (
            "ssl_verify_client on; ssl_client_certificate junk;",
            "cannot load certificate \"/conf/junk\": PEM_read_bio_X509_AUX() failed (SSL: error:0480006C:PEM routines::no start line:Expecting: TRUSTED CERTIFICATE)",
        ),
        ("ssl_client_certificate no;", ""),
        ("ssl_verify_depth x;", "\"ssl_verify_depth\" directive invalid number"),
        (
            "ssl_crl junk;",
            "cannot load CRL \"/conf/junk\": PEM_read_bio_X509_CRL() failed (SSL: error:0480006C:PEM routines::no start line:Expecting: X509 CRL)",
        ),
        ("ssl_ocsp maybe;", "invalid value \"maybe\""),
        ("ssl_ocsp leaf; ssl_ocsp_cache shared:a:64k; ssl_ocsp_responder http://127.0.0.1;", ""),
        (
            "ssl_ocsp on; ssl_ocsp_responder https://127.0.0.1;",
            "invalid URL prefix in OCSP responder \"https://127.0.0.1\" in \"ssl_ocsp_responder\"",
        ),
        (
            "ssl_ocsp on; ssl_ocsp_responder http://127.0.0.1:0/a;",
            "invalid port in OCSP responder \"127.0.0.1:0/a\" in \"ssl_ocsp_responder\"",
        ),
        (
            "ssl_ocsp on; ssl_verify_client optional_no_ca;",
            "\"ssl_ocsp\" is incompatible with \"ssl_verify_client optional_no_ca\"",
        ),
        ("ssl_ocsp_cache shared;", "invalid OCSP cache \"shared\""),
        ("ssl_ocsp_cache shared:a;", "invalid OCSP cache \"shared:a\""),
        ("ssl_ocsp_cache shared:a:1k;", "OCSP cache \"shared:a:1k\" is too small"),
        ("ssl_ocsp_cache off; ssl_ocsp_cache off;", "\"ssl_ocsp_cache\" directive is duplicate"),
        (
            "ssl_stapling on;",
            "\"ssl_stapling\" ignored, issuer certificate not found for certificate \"/conf/a.crt\"",
        ),
        (
            "ssl_stapling on; ssl_trusted_certificate a.crt;",
            "\"ssl_stapling\" ignored, no OCSP responder URL in the certificate \"/conf/a.crt\"",
        ),
        (
            "ssl_stapling on; ssl_trusted_certificate a.crt; ssl_stapling_responder http://;",
            "\"ssl_stapling\" ignored, invalid URL prefix in OCSP responder \"http://\" in the certificate \"/conf/a.crt\"",
        ),
        (
            "ssl_stapling on; ssl_trusted_certificate a.crt; ssl_stapling_responder http://127.0.0.1:x;",
            "\"ssl_stapling\" ignored, invalid port in OCSP responder \"127.0.0.1:x\" in the certificate \"/conf/a.crt\"",
        ),
        ("ssl_stapling on; ssl_trusted_certificate a.crt; ssl_stapling_responder http://127.0.0.1;", ""),
        (
            "ssl_stapling on; ssl_stapling_verify on; ssl_stapling_responder http://a.invalid; ssl_stapling off;",
            "\"ssl_stapling\" directive is duplicate",
        ),
        ("ssl_stapling off;", ""),
        (
            "ssl_conf_command foo bar;",
            "SSL_CONF_cmd(\"foo\", \"bar\") failed (SSL: error:0A000182:SSL routines::unknown cmd name:cmd=foo)",
        ),
        ("ssl_conf_command Options KTLS;", ""),
        ("ssl_conf_command Options KTLS,-SessionTicket,ServerPreference,-ServerPreference;", ""),
        ("ssl_conf_command Options \"serverpreference , -SessionTicket, -Bugs, AntiReplay\";", ""),
        (
            "ssl_conf_command Options Foo;",
            "SSL_CONF_cmd(\"Options\", \"Foo\") failed (SSL: error:0A000180:SSL routines::bad value:cmd=Options, value=Foo)",
        ),
        (
            "ssl_conf_command Options -CANames;",
            "\"ssl_conf_command Options -CANames\" is known but not supported by weir yet",
        ),
        ("ssl_conf_command NumTickets 1;", ""),
        (
            "ssl_conf_command NumTickets -1;",
            "SSL_CONF_cmd(\"NumTickets\", \"-1\") failed (SSL: error:0A000180:SSL routines::bad value:cmd=NumTickets, value=-1)",
        ),
        ("ssl_conf_command Protocol \"ALL, -TLSv1\";", ""),
        ("ssl_conf_command Protocol TLSv1;", "\"tlsv1\" is not supported by weir, ignored"),
        ("ssl_conf_command Protocol -TLSv1.2,-TLSv1.3;", "\"ssl_conf_command\" leaves no protocol"),
        (
            "ssl_conf_command Groups foo;",
            "SSL_CONF_cmd(\"Groups\", \"foo\") failed (SSL: error:0A080106:SSL routines::passed invalid argument:group 'foo' cannot be set error:0A000180:SSL routines::bad value:cmd=Groups, value=foo)",
        ),
        ("ssl_conf_command ECDHParameters P-256;", ""),
        (
            "ssl_conf_command MaxProtocol foo;",
            "SSL_CONF_cmd(\"MaxProtocol\", \"foo\") failed (SSL: error:0A000180:SSL routines::bad value:cmd=MaxProtocol, value=foo)",
        ),
        (
            "ssl_conf_command Ciphersuites foo;",
            "SSL_CONF_cmd(\"Ciphersuites\", \"foo\") failed (SSL: error:0A0000B9:SSL routines::no cipher match error:0A000180:SSL routines::bad value:cmd=Ciphersuites, value=foo)",
        ),
        (
            "ssl_conf_command VerifyCAFile junk;",
            "\"ssl_conf_command VerifyCAFile junk\" is known but not supported by weir yet",
        ),
        ("ssl_crl \"\"; ssl_dhparam \"\"; ssl_trusted_certificate \"\"; ssl_stapling_file \"\";", ""),
        (
            "ssl_verify_client on; ssl_client_certificate \"\";",
            "no ssl_client_certificate or ssl_trusted_certificate for ssl_verify_client",
        ),
        ("ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;", ""),
        ("ssl_conf_command MinProtocol TLSv1.3;", ""),
        (
            "ssl_conf_command SignatureAlgorithms RSA+SHA256;",
            "\"ssl_conf_command SignatureAlgorithms RSA+SHA256\" is known but not supported by weir yet",
        ),
        ("ssl_certificate_cache max=10 valid=1m;", ""),
        ("ssl_certificate_cache foo;", "invalid parameter \"foo\""),
        ("ssl_certificate_cache valid=1m;", "\"ssl_certificate_cache\" must have the \"max\" parameter"),
        (
            "ssl_certificate_compression on;",
            "\"ssl_certificate_compression\" is not supported on this platform, ignored",
        ),
        ("ssl_ech_file x;", "\"ssl_ech_file\" is not supported on this platform, ignored"),
        ("ssl_certificate b.crt;", "no \"ssl_certificate_key\" is defined for certificate \"b.crt\""),
    ] {
        check(words, expected);
    }
}

#[test]
fn addresses_with_tls_need_certificates() {
    let made = Made::new(&["a", "b"]);
    let check = |http: &str, expected: &str| {
        let told = told(http, &made.files()).into_iter().next().unwrap_or_default();
        assert_eq!(told, expected, "{http}");
    };
    let missing =
        "no \"ssl_certificate\" is defined for the \"listen ... ssl\" directive in /conf/nginx.conf:1";
    check("server { listen 8443 ssl; }", missing);
    check("server { listen 8443 ssl; ssl_certificate_key a.key; }", missing);
    check("server { listen 8443 ssl; ssl_reject_handshake on; }", "");
    check(
        "server { listen 8443 ssl; ssl_reject_handshake on; } server { listen 8443; server_name x; }",
        missing,
    );
    check("ssl_certificate a.crt; ssl_certificate_key a.key; server { listen 8443 ssl; }", "");
    check(
        "server { listen 8443 ssl; ssl_certificate no.crt; ssl_certificate_key a.key; }",
        "cannot load certificate \"/conf/no.crt\": BIO_new_file() failed (SSL: error:80000002:system library::\
         No such file or directory:calling fopen(/conf/no.crt, r) error:10000080:BIO routines::no such file)",
    );
    check(
        "server { listen 8443 ssl; ssl_certificate a.crt; ssl_certificate_key store:file:/conf/a.key; }",
        "",
    );
    check(
        "server { listen 8443 ssl; ssl_certificate a.crt; ssl_certificate_key store:file:/no; }",
        "cannot load certificate key \"store:file:/no\": OSSL_STORE_open() failed (SSL: error:16000069:STORE routines::\
         unregistered scheme:scheme=file error:80000002:system library::No such file or directory:calling stat(file:/no) \
         error:80000002:system library::No such file or directory:calling stat(/no))",
    );
    check(
        "server { listen 8443 ssl; ssl_certificate a.crt; ssl_certificate_key b.key; }",
        "SSL_CTX_use_PrivateKey(\"/conf/b.key\") failed (SSL: error:05800074:x509 certificate routines::\
         key values mismatch)",
    );
}

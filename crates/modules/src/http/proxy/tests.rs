//! TLS to upstreams: a site that passes requests on to a server of its own.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::http::ssl::tests::{Made, Running, listener, on_a_thread};
use crate::testing::{Site, check_conf};

/// Asks for each path in turn, each on a connection of its own, of a server with these words; `%UP%` is a server with
/// TLS that has the certificate `a` and shows its clients `b`'s. Gives status and body, and what was logged.
#[track_caller]
fn ask(made: &Made, words: &str, paths: &[&str]) -> (Vec<String>, Vec<String>) {
    let mut result = (vec![], vec![]);
    on_a_thread(async {
        let ((front, port), (back, up)) = (listener().await, listener().await);
        let words = words.replace("%UP%", &format!("127.0.0.1:{up}"));
        let conf = format!(
            "server {{ listen 127.0.0.1:{port}; {words} }}
             server {{ listen 127.0.0.1:{up} ssl; ssl_certificate a.crt; ssl_certificate_key a.key;
                ssl_client_certificate b.crt; ssl_verify_client optional_no_ca;
                return 200 \"$ssl_server_name $ssl_protocol $ssl_session_reused $ssl_client_verify $connection_requests\"; }}"
        );
        let site = Site::with_files(&conf, &made.files());
        let address = front.local_addr().unwrap();
        for listener in [front, back] {
            tokio::task::spawn_local(Running::new(&site, listener).serve());
        }
        for path in paths {
            let mut client = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            let code = &answer[9..12];
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            result.0.push(if code == "200" { body.to_owned() } else { code.to_owned() });
        }
        // The server behind tells that its client went away, at some time.
        result.1 = site.log().into_iter().filter(|line| !line.starts_with("client ")).collect();
    });
    result
}

#[track_caller]
fn check(made: &Made, words: &str, expected: &[(&str, &str)]) {
    let paths: Vec<_> = expected.iter().map(|(path, _)| *path).collect();
    let answers: Vec<_> = expected.iter().map(|(_, answer)| *answer).collect();
    assert_eq!(ask(made, words, &paths).0, answers, "{words}");
}

#[test]
fn names_are_told_where_the_configuration_says_so() {
    let made = Made::new(&["a", "b"]);
    check(
        &made,
        "proxy_ssl_session_reuse off;
         location /none { proxy_pass https://%UP%; proxy_ssl_name a.example; }
         location /address { proxy_pass https://%UP%; proxy_ssl_server_name on; }
         location /name { proxy_pass https://%UP%; proxy_ssl_server_name on; proxy_ssl_name a.example:1; }
         location /arg { proxy_pass https://%UP%; proxy_ssl_server_name on; proxy_ssl_name $arg_name; }
         location /computed { proxy_pass $arg_to://%UP%; }",
        &[
            ("/none", " TLSv1.3 . NONE 1"),
            ("/address", " TLSv1.3 . NONE 1"),
            ("/name", "a.example TLSv1.3 . NONE 1"),
            ("/arg?name=b.example", "b.example TLSv1.3 . NONE 1"),
            ("/arg?name=b%20example", "500"),
            ("/computed?to=https", " TLSv1.3 . NONE 1"),
            ("/computed?to=http", "400"),
        ],
    );
}

#[test]
fn sessions_are_reused() {
    let made = Made::new(&["a", "b"]);
    for version in ["TLSv1.2", "TLSv1.3"] {
        let words = format!(
            "proxy_ssl_protocols {version};
             location / {{ proxy_pass https://%UP%; }}
             location /off {{ proxy_pass https://%UP%; proxy_ssl_session_reuse off; }}"
        );
        let [first, again] = [".", "r"].map(|reused| format!(" {version} {reused} NONE 1"));
        check(&made, &words, &[("/1", &first), ("/2", &again), ("/off", &first), ("/off", &first)]);
    }
}

#[test]
fn connections_are_kept_for_requests_by_the_same_name_alone() {
    let made = Made::new(&["a", "b"]);
    let words = "
        location /name { proxy_pass https://u; proxy_ssl_server_name on; proxy_ssl_name $arg_name; }
        location /other { proxy_pass https://u; proxy_ssl_server_name on; proxy_ssl_name $arg_name;
            proxy_ssl_certificate b.crt; proxy_ssl_certificate_key b.key; }
        location /plain { proxy_pass $arg_to://u; }
    } upstream u { server %UP%; keepalive 9;";
    check(
        &made,
        words,
        &[
            ("/name?name=a", "a TLSv1.3 . NONE 1"),
            ("/name?name=a", "a TLSv1.3 . NONE 2"),
            ("/name?name=b", "b TLSv1.3 . NONE 1"),
            ("/other?name=b", "b TLSv1.3 . SUCCESS 1"),
            ("/other?name=b", "b TLSv1.3 . SUCCESS 2"),
            ("/name?name=a", "a TLSv1.3 . NONE 3"),
            ("/plain?to=http", "400"),
        ],
    );
}

#[test]
fn certificates_are_judged() {
    let made = Made::new(&["a", "b"]);
    let (answers, log) = ask(
        &made,
        "proxy_ssl_verify on; proxy_ssl_trusted_certificate a.crt;
         location /good { proxy_pass https://%UP%; proxy_ssl_name a.example; }
         location /name { proxy_pass https://%UP%; proxy_ssl_name b.example; }
         location /resumed { proxy_pass https://%UP%; proxy_ssl_name b.example; }
         location /issuer { proxy_pass https://%UP%; proxy_ssl_trusted_certificate b.crt; }",
        &["/good", "/name", "/resumed", "/issuer"],
    );
    assert_eq!(answers, [" TLSv1.3 . NONE 1", "502", "502", "502"]);
    let mismatch = "upstream SSL certificate does not match \"b.example\" while SSL handshaking to upstream";
    assert_eq!(
        log,
        [
            mismatch,
            mismatch,
            "upstream SSL certificate verify error: (18:self-signed certificate) while SSL handshaking to upstream"
        ]
    );
}

#[test]
fn certificates_of_the_request_are_read_when_they_are_needed() {
    let made = Made::new(&["a", "b"]);
    let folder = weir_testkit::Folder::new(&[]);
    for (path, text) in made.files() {
        folder.write(path.trim_start_matches("/conf/"), text);
    }
    let folder = folder.path().display();
    let words = format!(
        "proxy_ssl_certificate_cache max=1;
         location / {{ proxy_pass https://%UP%; proxy_ssl_certificate $arg_pair;
            proxy_ssl_certificate_key {folder}/b.key; }}"
    );
    let good = format!("/?pair={folder}/b.crt");
    let (answers, log) =
        ask(&made, &words, &[&good, &good, &format!("/?pair={folder}/a.crt"), "/?pair=/nix", "/"]);
    let shown = " TLSv1.3 . SUCCESS 1";
    assert_eq!(answers, [shown, shown, "500", "500", " TLSv1.3 . NONE 1"], "{log:?}");
    assert!(log[0].contains("key values mismatch"), "{log:?}");
    assert!(log[1].starts_with("cannot load certificate \"/nix\": BIO_new_file() failed"), "{log:?}");
}

#[test]
fn a_handshake_that_fails_is_for_the_next_upstream() {
    let made = Made::new(&["a", "b"]);
    let (answers, log) = ask(
        &made,
        "location /next { proxy_pass https://two; proxy_ssl_verify on; proxy_ssl_trusted_certificate a.crt;
            proxy_ssl_name a.example; add_header X $upstream_addr; }
         location /old { proxy_pass https://%UP%; proxy_ssl_protocols TLSv1.2;
            proxy_ssl_ciphers ECDHE-RSA-AES128-GCM-SHA256; }
        } upstream two { server %OTHER%; server %UP%;"
            .replace("%OTHER%", "127.0.0.1:1")
            .as_str(),
        &["/next", "/old"],
    );
    assert_eq!(answers, [" TLSv1.3 . NONE 1", "502"]);
    assert!(log.iter().any(|line| line.contains("connect() failed")), "{log:?}");
    assert!(
        log.iter().any(|line| line.contains(
            "SSL_do_handshake() failed (SSL: error:0A000410:SSL routines::sslv3 alert handshake failure:\
             SSL alert number 40) while SSL handshaking to upstream"
        )),
        "{log:?}"
    );
}

/// A server that takes any client and shows a certificate of its own.
fn acceptor() -> TlsAcceptor {
    let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[test]
fn an_upstream_that_takes_no_more_is_not_waited_for() {
    #[track_caller]
    fn check(answer: &'static [u8], words: &str, expected: &str) {
        on_a_thread(async {
            let ((front, port), back) = (listener().await, TcpSocket::new_v4().unwrap());
            // As large as the kernel may make it, it would hold all of the body.
            back.set_recv_buffer_size(64 * 1024).unwrap();
            back.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let back = back.listen(1).unwrap();
            let up = back.local_addr().unwrap().port();
            let site = Site::new(&format!(
                "server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass https://127.0.0.1:{up}; {words}
                    client_max_body_size 0; client_body_buffer_size 4m; proxy_socket_sndbuf 16k; }} }}"
            ));
            let address = front.local_addr().unwrap();
            tokio::task::spawn_local(Running::new(&site, front).serve());
            tokio::task::spawn_local(async move {
                let (socket, _) = back.accept().await.unwrap();
                let mut socket = acceptor().accept(socket).await.unwrap();
                socket.read_u8().await.unwrap();
                socket.write_all(answer).await.unwrap();
                std::future::pending::<()>().await;
            });
            let mut client = TcpStream::connect(address).await.unwrap();
            let body = vec![b'x'; 4 << 20];
            let head = format!("POST / HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
            client.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
            let mut start = [0; 12];
            let answered = tokio::time::timeout(Duration::from_secs(20), client.read_exact(&mut start));
            answered.await.expect("an answer").unwrap();
            assert_eq!(&start[9..], expected.as_bytes(), "{words}");
        });
    }
    check(b"", "proxy_send_timeout 100ms;", "504");
    check(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n", "", "413");
}

#[test]
fn words_are_checked_as_nginx_checks_them() {
    #[track_caller]
    fn check(words: &str, expected: &str) {
        let conf = format!("server {{ location / {{ proxy_pass https://127.0.0.1; {words} }} }}");
        check_conf(&conf, expected);
    }
    check("", "");
    check("proxy_ssl_certificate \"\";", "");
    check("proxy_ssl_ciphers DEFAULT; proxy_ssl_protocols TLSv1.2 TLSv1.3; proxy_ssl_verify_depth 2;", "");
    check(
        "proxy_ssl_certificate a.crt;",
        "no \"proxy_ssl_certificate_key\" is defined for certificate \"a.crt\"",
    );
    check("proxy_ssl_verify on;", "no proxy_ssl_trusted_certificate for proxy_ssl_verify");
    check(
        "proxy_ssl_certificate_cache valid=1s;",
        "\"proxy_ssl_certificate_cache\" must have the \"max\" parameter",
    );
    check("proxy_ssl_certificate_cache max=x;", "invalid parameter \"max=x\"");
    check(
        "proxy_ssl_conf_command Nix 1;",
        "SSL_CONF_cmd(\"Nix\", \"1\") failed (SSL: error:0A000182:SSL routines::unknown cmd name:cmd=Nix)",
    );
    check("proxy_ssl_name a; proxy_ssl_name b;", "\"proxy_ssl_name\" directive is duplicate");
    // Without an upstream that needs them they are not looked at.
    check_conf("proxy_ssl_verify on; server { location / { proxy_pass http://127.0.0.1; } }", "");
    check_conf(
        "proxy_ssl_verify on; server { location / { proxy_pass $scheme://127.0.0.1; } }",
        "no proxy_ssl_trusted_certificate for proxy_ssl_verify",
    );
}

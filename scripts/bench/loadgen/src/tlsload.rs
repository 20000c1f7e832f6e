//! TLS load with rustls (blocking, several threads).
//!   --mode full|resume : one handshake + one request per connection ("Connection: close"), --count handshakes
//!   --mode bulk        : keepalive GETs of --path, --count requests, --conns connections
//! --tls 1.3|1.2, --suite aes128|aes256|chacha, key exchange X25519 only (so that all servers do the same work).
use crate::{cli::Opts, hist::Hist, sys};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, SignatureScheme};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Instant;

#[derive(Debug)]
struct NoVerify;
impl ServerCertVerifier for NoVerify {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::RSA_PSS_SHA256,
            SignatureScheme::RSA_PKCS1_SHA256,
            SignatureScheme::ED25519,
        ]
    }
}

pub fn config(v12: bool, suite: &str, resume: bool) -> ClientConfig {
    use rustls::crypto::ring as p;
    let mut prov = p::default_provider();
    // TLS 1.2 servers with a P-256 certificate want secp256r1 among the client's groups
    prov.kx_groups =
        if v12 { vec![p::kx_group::X25519, p::kx_group::SECP256R1] } else { vec![p::kx_group::X25519] };
    prov.cipher_suites = match (suite, v12) {
        ("aes128", false) => vec![p::cipher_suite::TLS13_AES_128_GCM_SHA256],
        ("chacha", false) => vec![p::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256],
        (_, false) => vec![p::cipher_suite::TLS13_AES_256_GCM_SHA384],
        ("aes128", true) => vec![
            p::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            p::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ],
        (_, true) => vec![
            p::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            p::cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ],
    };
    let vers: &[&rustls::SupportedProtocolVersion] =
        if v12 { &[&rustls::version::TLS12] } else { &[&rustls::version::TLS13] };
    let mut cfg = ClientConfig::builder_with_provider(Arc::new(prov))
        .with_protocol_versions(vers)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NoVerify))
        .with_no_client_auth();
    if !resume {
        cfg.resumption = Resumption::disabled();
    }
    cfg
}

pub fn run(o: &Opts) {
    let addr = o.str("addr", "127.0.0.1:8443");
    let mode = o.str("mode", "full");
    let count = o.num("count", 1000);
    let conns = o.num("conns", 8);
    let path = o.str("path", "/s");
    let host = o.str("host", "bench.test");
    let v12 = o.str("tls", "1.3") == "1.2";
    let cfg0 = config(v12, &o.str("suite", "aes256"), mode != "full");
    let cfg = cfg0;
    let bulk = mode == "bulk";
    let left = Arc::new(AtomicI64::new(count as i64));
    let errs = Arc::new(AtomicU64::new(0));
    let bytes = Arc::new(AtomicU64::new(0));
    let resumed = Arc::new(AtomicU64::new(0));
    let t_start = Instant::now();
    let mut hs = vec![];
    for _ in 0..conns {
        // a session store of its own for each thread: a resuming client always has a ticket
        let mut c = cfg.clone();
        if mode != "full" {
            c.resumption = Resumption::in_memory_sessions(32);
        }
        let c = Arc::new(c);
        let (left, errs, bytes, resumed, addr, path, host) = (
            left.clone(),
            errs.clone(),
            bytes.clone(),
            resumed.clone(),
            addr.clone(),
            path.clone(),
            host.clone(),
        );
        hs.push(std::thread::spawn(move || {
            let mut h = Hist::new();
            let mut done = 0u64;
            let a = sys::v4(&addr);
            let mut buf = vec![0u8; 1 << 17];
            'outer: while left.load(Ordering::Relaxed) > 0 {
                let r = (|| -> Result<bool, String> {
                    let mut t0 = Instant::now();
                    let fd = sys::connect(&a, None).map_err(|e| format!("connect {e}"))?;
                    sys::set_timeout(fd, 10);
                    use std::os::fd::FromRawFd;
                    let mut sock = unsafe { std::net::TcpStream::from_raw_fd(fd) };
                    let mut conn =
                        ClientConnection::new(c.clone(), ServerName::try_from(host.clone()).unwrap())
                            .map_err(|e| e.to_string())?;
                    let req = format!(
                        "GET {path} HTTP/1.1\r\nHost: {host}\r\n{}\r\n",
                        if bulk { "" } else { "Connection: close\r\n" }
                    );
                    loop {
                        if left.fetch_sub(1, Ordering::Relaxed) <= 0 {
                            return Ok(false);
                        }
                        let mut s = rustls::Stream::new(&mut conn, &mut sock);
                        s.write_all(req.as_bytes()).map_err(|e| format!("write {e}"))?;
                        let mut head = Vec::new();
                        let mut body_left = None;
                        loop {
                            let n = match s.read(&mut buf) {
                                Ok(n) => n,
                                Err(e)
                                    if e.kind() == std::io::ErrorKind::UnexpectedEof
                                        && !bulk
                                        && body_left == Some(0) =>
                                {
                                    0
                                }
                                Err(e) => return Err(format!("read {e}")),
                            };
                            if n == 0 {
                                if body_left == Some(0) {
                                    break;
                                }
                                return Err("eof".into());
                            }
                            bytes.fetch_add(n as u64, Ordering::Relaxed);
                            match &mut body_left {
                                None => {
                                    head.extend_from_slice(&buf[..n]);
                                    if let Some(p) = sys::find(&head, b"\r\n\r\n") {
                                        if !head.starts_with(b"HTTP/1.1 200") {
                                            return Err(String::from_utf8_lossy(&head[..head.len().min(40)])
                                                .into_owned());
                                        }
                                        let cl: usize = sys::header(&head[..p + 2], "content-length")
                                            .and_then(|v| std::str::from_utf8(v).ok())
                                            .and_then(|v| v.parse().ok())
                                            .ok_or("no content-length")?;
                                        body_left =
                                            Some(cl.checked_sub(head.len() - p - 4).ok_or("body too long")?);
                                    }
                                }
                                Some(l) => *l = l.checked_sub(n).ok_or("body too long")?,
                            }
                            if bulk && body_left == Some(0) {
                                break;
                            }
                        }
                        done += 1;
                        h.add(t0.elapsed().as_nanos() as u64);
                        t0 = Instant::now();
                        if !bulk {
                            if s.conn.handshake_kind() == Some(HandshakeKind::Resumed) {
                                resumed.fetch_add(1, Ordering::Relaxed);
                            }
                            s.conn.send_close_notify();
                            let _ = s.flush();
                            return Ok(true);
                        }
                    }
                })();
                match r {
                    Ok(true) => {}
                    Ok(false) => break 'outer,
                    Err(e) => {
                        if errs.fetch_add(1, Ordering::Relaxed) == 0 {
                            eprintln!("first error: {e}");
                        }
                        if errs.load(Ordering::Relaxed) > 100 {
                            break 'outer;
                        }
                    }
                }
            }
            (h, done)
        }));
    }
    let mut h = Hist::new();
    let mut done = 0;
    for t in hs {
        let (hh, d) = t.join().unwrap();
        h.merge(&hh);
        done += d;
    }
    let el = t_start.elapsed().as_secs_f64();
    println!(
        "{{\"kind\":\"tls\",\"mode\":\"{mode}\",\"done\":{done},\"errors\":{},\"resumed\":{},\"bytes\":{},\"elapsed_s\":{el:.4},\"per_s\":{:.1},{},\"first_error\":\"\"}}",
        errs.load(Ordering::Relaxed),
        resumed.load(Ordering::Relaxed),
        bytes.load(Ordering::Relaxed),
        done as f64 / el,
        h.json()
    );
}

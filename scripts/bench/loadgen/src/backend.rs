//! Minimal epoll HTTP/1.1 + WebSocket backend.
//!   /s            200-byte body           /b/N     N-byte body, Content-Length
//!   /c/N          N-byte body, chunked    /echo    WebSocket echo (on Upgrade)
//!   /hold/N       like /s, but only once N requests wait
//!   /sink/N       WebSocket: counts N payload bytes, then sends one 1-byte message
//!   /flood/N/SZ   WebSocket: sends N messages of SZ bytes
//! Request bodies with Content-Length are read and dropped.
//! With --tls-listen ADDRESS --cert FILE --key FILE the same over TLS.
use crate::{cli::Opts, sys, wsproto};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::rc::Rc;
use std::sync::Arc;

enum Mode {
    Http,
    Echo,
    Sink { left: u64 },
    Flood { left: u64, frame: Rc<Vec<u8>> },
}

struct Conn {
    fd: i32,
    buf: Vec<u8>,
    out: Vec<u8>,
    big: Option<(Rc<Vec<u8>>, usize)>,
    skip: usize,
    close: bool,
    mode: Mode,
    want_out: bool,
    /// How many have to wait before this is answered.
    hold: usize,
    tls: Option<Box<ServerConnection>>,
    /// Records that are to be sent.
    sealed: Vec<u8>,
}

/// The tokens of listeners; those of connections are their slots.
const PLAIN: u64 = u64::MAX;
const TLS: u64 = u64::MAX - 1;

fn tls_config(cert: &str, key: &str) -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(cert).expect("--cert").map(|c| c.expect("--cert")).collect();
    let key = PrivateKeyDer::from_pem_file(key).expect("--key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_no_client_auth().with_single_cert(chain, key).expect("a certificate and its key"))
}

/// What came, opened.
fn open(tls: &mut ServerConnection, mut sealed: &[u8]) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    while !sealed.is_empty() {
        tls.read_tls(&mut sealed).ok()?;
        tls.process_new_packets().ok()?;
        match tls.reader().read_to_end(&mut data) {
            Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => return None,
            _ => {}
        }
    }
    Some(data)
}

/// Seals all that is to be sent.
fn seal(c: &mut Conn) {
    let Some(tls) = &mut c.tls else { return };
    // The buffers of rustls have no limit here.
    tls.writer().write_all(&c.out).unwrap();
    c.out.clear();
    if let Some((big, off)) = c.big.take() {
        tls.writer().write_all(&big[off..]).unwrap();
    }
    while tls.wants_write() {
        tls.write_tls(&mut c.sealed).unwrap();
    }
}

fn make_response(path: &str, close: bool) -> Vec<u8> {
    let conn = if close { "Connection: close\r\n" } else { "" };
    let mut it = path.split('?').next().unwrap().split('/').skip(1);
    let kind = it.next().unwrap_or("");
    let n: usize = it.next().and_then(|v| v.parse().ok()).unwrap_or(200).min(256 << 20);
    let fill =
        |n: usize| -> Vec<u8> { (0..n).map(|i| b"abcdefghijklmnopqrstuvwxyz012345\n"[i % 33]).collect() };
    let common =
        "Server: pbench\r\nContent-Type: text/plain\r\nCache-Control: no-store\r\nX-Request-Class: bench\r\n";
    if kind == "c" {
        let mut o =
            format!("HTTP/1.1 200 OK\r\n{common}Transfer-Encoding: chunked\r\n{conn}\r\n").into_bytes();
        for c in fill(n).chunks(16384) {
            o.extend_from_slice(format!("{:x}\r\n", c.len()).as_bytes());
            o.extend_from_slice(c);
            o.extend_from_slice(b"\r\n");
        }
        o.extend_from_slice(b"0\r\n\r\n");
        return o;
    }
    let n = if kind == "b" { n } else { 200 };
    let mut o = format!("HTTP/1.1 200 OK\r\n{common}Content-Length: {n}\r\n{conn}\r\n").into_bytes();
    o.extend_from_slice(&fill(n));
    o
}

pub fn run(o: &Opts) {
    let addr = o.str("listen", "127.0.0.1:9000");
    let threads = o.num("threads", 1);
    let mut hs = vec![];
    let tls_addr = o.str("tls-listen", "");
    let config = (!tls_addr.is_empty()).then(|| tls_config(&o.str("cert", ""), &o.str("key", "")));
    let lfds: Vec<_> =
        (0..threads).map(|_| (sys::listen(&addr), config.as_ref().map(|_| sys::listen(&tls_addr)))).collect();
    eprintln!("backend on {addr}, {threads} thread(s)");
    for (plain, tls) in lfds {
        let config = config.clone();
        hs.push(std::thread::spawn(move || serve(plain, tls.zip(config))));
    }
    for h in hs {
        let _ = h.join();
    }
}

fn serve(plain: i32, tls: Option<(i32, Arc<ServerConfig>)>) {
    let mut ep = sys::Epoll::new();
    ep.add(plain, PLAIN, sys::IN);
    if let Some((lfd, _)) = &tls {
        ep.add(*lfd, TLS, sys::IN);
    }
    let mut waiting: Vec<usize> = Vec::new();
    let mut conns: Vec<Option<Box<Conn>>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut cache: HashMap<(String, bool), Rc<Vec<u8>>> = HashMap::new();
    let mut tmp = vec![0u8; 1 << 18];
    loop {
        let n = ep.wait(-1);
        for i in 0..n {
            let (tok, evs) = (ep.evs[i].u64, ep.evs[i].events);
            if tok == PLAIN || tok == TLS {
                let secure = tls.as_ref().filter(|_| tok == TLS);
                let lfd = secure.map_or(plain, |(lfd, _)| *lfd);
                for _ in 0..64 {
                    let fd = unsafe {
                        libc::accept4(
                            lfd,
                            std::ptr::null_mut(),
                            std::ptr::null_mut(),
                            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                        )
                    };
                    if fd < 0 {
                        break;
                    }
                    sys::nodelay(fd);
                    let c = Box::new(Conn {
                        fd,
                        buf: Vec::new(),
                        out: Vec::new(),
                        big: None,
                        skip: 0,
                        close: false,
                        mode: Mode::Http,
                        want_out: false,
                        hold: 0,
                        tls: secure.map(|(_, config)| {
                            let mut tls = ServerConnection::new(config.clone()).unwrap();
                            tls.set_buffer_limit(None);
                            Box::new(tls)
                        }),
                        sealed: Vec::new(),
                    });
                    let slot = free.pop().unwrap_or_else(|| {
                        conns.push(None);
                        conns.len() - 1
                    });
                    conns[slot] = Some(c);
                    ep.add(fd, slot as u64, sys::IN);
                }
                continue;
            }
            let slot = tok as usize;
            let Some(c) = conns[slot].as_mut() else { continue };
            let mut ok = true;
            if evs & sys::IN != 0 || evs & (libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0 {
                let r = sys::recv(c.fd, &mut tmp);
                if r > 0 {
                    let got = &mut tmp[..r as usize];
                    ok = match c.tls.as_mut().map(|tls| open(tls, got)) {
                        None => feed(c, got, &mut cache),
                        Some(None) => false,
                        Some(Some(mut data)) => feed(c, &mut data, &mut cache),
                    };
                } else if r == 0 || !sys::would_block() {
                    ok = false;
                }
            }
            if ok {
                ok = flush(c, &ep, tok);
            }
            if !ok {
                sys::close(c.fd);
                conns[slot] = None;
                free.push(slot);
                waiting.retain(|s| *s != slot);
                continue;
            }
            if c.hold > 0 && !waiting.contains(&slot) {
                waiting.push(slot);
                if waiting.len() >= c.hold {
                    for slot in waiting.drain(..) {
                        let Some(c) = conns[slot].as_mut() else { continue };
                        c.hold = 0;
                        c.out.extend_from_slice(&make_response("/s", false));
                        // One that is gone is seen when it is read.
                        flush(c, &ep, slot as u64);
                    }
                }
            }
        }
    }
}

fn flush(c: &mut Conn, ep: &sys::Epoll, tok: u64) -> bool {
    loop {
        let mut blocked = false;
        seal(c);
        let out = if c.tls.is_some() { &mut c.sealed } else { &mut c.out };
        if !out.is_empty() {
            let n = sys::send(c.fd, out);
            if n < 0 {
                if !sys::would_block() {
                    return false;
                }
                blocked = true;
            } else if n as usize == out.len() {
                out.clear();
                if out.capacity() > 65536 {
                    *out = Vec::new();
                }
            } else {
                out.drain(..n as usize);
                blocked = true;
            }
        }
        if !blocked {
            if let Some((b, off)) = &mut c.big {
                let n = sys::send(c.fd, &b[*off..]);
                if n < 0 {
                    if !sys::would_block() {
                        return false;
                    }
                    blocked = true;
                } else {
                    *off += n as usize;
                    if *off == b.len() {
                        c.big = None;
                    }
                }
                if !blocked {
                    continue;
                }
            } else if let Mode::Flood { left, frame } = &mut c.mode {
                if *left > 0 {
                    let per = (65536 / frame.len()).max(1) as u64;
                    for _ in 0..per.min(*left) {
                        c.out.extend_from_slice(frame);
                        *left -= 1;
                    }
                    continue;
                }
            }
        }
        if blocked {
            if !c.want_out {
                c.want_out = true;
                ep.modify(c.fd, tok, sys::IN | sys::OUT);
            }
            return true;
        }
        if c.want_out {
            c.want_out = false;
            ep.modify(c.fd, tok, sys::IN);
        }
        return !c.close;
    }
}

fn feed(c: &mut Conn, data: &mut [u8], cache: &mut HashMap<(String, bool), Rc<Vec<u8>>>) -> bool {
    let mut owned;
    let mut rest: &mut [u8] = if c.buf.is_empty() {
        data
    } else {
        owned = std::mem::take(&mut c.buf);
        owned.extend_from_slice(data);
        &mut owned
    };
    loop {
        if rest.is_empty() {
            return true;
        }
        match &mut c.mode {
            Mode::Http => {
                if c.skip > 0 {
                    let k = c.skip.min(rest.len());
                    c.skip -= k;
                    rest = &mut rest[k..];
                    continue;
                }
                let Some(p) = sys::find(rest, b"\r\n\r\n") else {
                    c.buf.extend_from_slice(rest);
                    return c.buf.len() < 65536;
                };
                let (head, r2) = rest.split_at_mut(p + 4);
                let head = &head[..];
                let line = &head[..head.iter().position(|&b| b == b'\r').unwrap()];
                let mut parts = line.split(|&b| b == b' ');
                let (_m, path, ver) =
                    (parts.next(), parts.next().unwrap_or(b"/"), parts.next().unwrap_or(b""));
                let path = String::from_utf8_lossy(path).into_owned();
                let conn = sys::header(head, "connection").unwrap_or(b"");
                let close = conn.eq_ignore_ascii_case(b"close")
                    || (ver == b"HTTP/1.0" && !conn.eq_ignore_ascii_case(b"keep-alive"));
                if let Some(k) = sys::header(head, "sec-websocket-key") {
                    if sys::header(head, "upgrade").is_none() {
                        c.out.extend_from_slice(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
                        rest = r2;
                        continue;
                    }
                    c.out.extend_from_slice(
                        format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n", wsproto::accept_key(k)).as_bytes(),
                    );
                    let seg: Vec<&str> = path.split('/').skip(1).collect();
                    let num = |i: usize| seg.get(i).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
                    c.mode = match seg.first().copied().unwrap_or("") {
                        "sink" => Mode::Sink { left: num(1) },
                        "flood" => {
                            let mut f = Vec::new();
                            let sz = num(2) as usize;
                            wsproto::header(&mut f, 2, sz, None);
                            f.resize(f.len() + sz, b'x');
                            Mode::Flood { left: num(1), frame: Rc::new(f) }
                        }
                        _ => Mode::Echo,
                    };
                    rest = r2;
                    continue;
                }
                if let Some(l) = sys::header(head, "content-length") {
                    c.skip = std::str::from_utf8(l).ok().and_then(|v| v.parse().ok()).unwrap_or(0);
                }
                c.close = close;
                if let Some(n) = path.strip_prefix("/hold/") {
                    c.hold = n.parse().unwrap_or(1);
                    rest = r2;
                    continue;
                }
                let resp = cache
                    .entry((path, close))
                    .or_insert_with_key(|k| Rc::new(make_response(&k.0, k.1)))
                    .clone();
                if resp.len() <= 4096 {
                    c.out.extend_from_slice(&resp);
                } else {
                    c.big = Some((resp, 0));
                }
                rest = r2;
            }
            Mode::Echo => {
                let Some((h, l, k, op)) = wsproto::parse(rest) else {
                    c.buf.extend_from_slice(rest);
                    return true;
                };
                if rest.len() < h + l {
                    c.buf.extend_from_slice(rest);
                    return true;
                }
                let (f, r2) = rest.split_at_mut(h + l);
                let p = &mut f[h..];
                if let Some(k) = k {
                    wsproto::xor(p, k);
                }
                match op {
                    8 => {
                        wsproto::header(&mut c.out, 8, l, None);
                        c.out.extend_from_slice(p);
                        c.close = true;
                    }
                    9 => {
                        wsproto::header(&mut c.out, 10, l, None);
                        c.out.extend_from_slice(p);
                    }
                    _ => {
                        wsproto::header(&mut c.out, op, l, None);
                        c.out.extend_from_slice(p);
                    }
                }
                rest = r2;
            }
            Mode::Sink { left } => {
                // counts raw bytes
                let k = (*left).min(rest.len() as u64);
                if k > 0 {
                    *left -= k;
                    if *left == 0 {
                        wsproto::header(&mut c.out, 2, 1, None);
                        c.out.push(b'D');
                    }
                }
                return true;
            }
            Mode::Flood { .. } => return true,
        }
    }
}

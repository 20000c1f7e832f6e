//! HTTP/1.1 load: N connections, fixed request count (or --duration seconds), single thread, epoll.
use crate::{cli::Opts, hist::Hist, sys};
use std::net::SocketAddrV4;
use std::time::Instant;

struct C {
    fd: i32,
    /// Bytes of the request that are sent.
    sent: usize,
    head: Vec<u8>,
    in_head: bool,
    left: u64,
    chunked: bool,
    tail: Vec<u8>,
    t0: Instant,
    closing: bool,
    until_eof: bool,
}

pub fn headers(kind: &str, host: &str) -> String {
    match kind {
        "browser" => format!(
            "Host: {host}\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\nAccept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nReferer: http://{host}/index.html\r\nCookie: session=4f0c8e2a9d7b41c6a1e3; theme=dark; _ga=GA1.2.1234567890.1234567890\r\nUpgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: same-origin\r\nCache-Control: max-age=0\r\n"
        ),
        "gzip" => headers("min", host) + "Accept-Encoding: gzip\r\n",
        _ => format!("Host: {host}\r\nUser-Agent: pbench/1.0\r\nAccept: */*\r\n"),
    }
}

pub fn run(o: &Opts) {
    let addr = sys::v4(&o.str("addr", "127.0.0.1:8080"));
    let conns = o.num("conns", 64) as usize;
    let total = o.num("requests", 100000);
    let dur = o.num("duration", 0);
    let close = o.flag("close");
    let path = o.str("path", "/s");
    let host = o.str("host", "bench.test");
    let expect = o.num("expect-body", u64::MAX);
    let body = o.num("body", 0) as usize;
    let method = if body > 0 { "POST" } else { "GET" };
    let mut req = format!("{method} {path} HTTP/1.1\r\n{}", headers(&o.str("headers", "min"), &host));
    if body > 0 {
        req.push_str(&format!("Content-Length: {body}\r\n"));
    }
    if close {
        req.push_str("Connection: close\r\n");
    }
    req.push_str("\r\n");
    let mut req = req.into_bytes();
    req.resize(req.len() + body, b'b');
    let timeout_s = o.num("stall-timeout", 15);

    let mut ep = sys::Epoll::new();
    let mut cs: Vec<C> = Vec::new();
    let (mut started, mut done, mut errors, mut bytes, mut reconnects) = (0u64, 0u64, 0u64, 0u64, 0u64);
    let mut first_error = String::new();
    let mut h = Hist::new();
    let t_start = Instant::now();
    let more = |started: u64| if dur > 0 { t_start.elapsed().as_secs() < dur } else { started < total };
    for i in 0..conns {
        if !more(started) {
            break;
        }
        match open(&addr) {
            Ok(fd) => {
                ep.add(fd, i as u64, sys::IN);
                let mut c = C {
                    fd,
                    sent: 0,
                    head: Vec::new(),
                    in_head: true,
                    left: 0,
                    chunked: false,
                    tail: vec![],
                    t0: Instant::now(),
                    closing: false,
                    until_eof: false,
                };
                started += 1;
                if !push(&mut c, &req, &ep, i as u64) {
                    errors += 1;
                }
                cs.push(c);
            }
            Err(e) => {
                errors += 1;
                first_error = format!("connect: {e}");
            }
        }
    }
    let mut live = cs.len();
    let mut buf = vec![0u8; 1 << 18];
    let mut last = Instant::now();
    while live > 0 {
        let n = ep.wait(1000);
        let now = Instant::now();
        if n == 0 {
            if last.elapsed().as_secs() >= timeout_s {
                errors += live as u64;
                if first_error.is_empty() {
                    first_error = "stalled".into();
                }
                break;
            }
            continue;
        }
        last = now;
        for i in 0..n {
            let tok = ep.evs[i].u64 as usize;
            let c = &mut cs[tok];
            if c.fd < 0 {
                continue;
            }
            if ep.evs[i].events & sys::OUT != 0 && c.sent < req.len() && !push(c, &req, &ep, tok as u64) {
                // What is wrong is seen in what comes.
                c.sent = req.len();
            }
            let r = sys::recv(c.fd, &mut buf);
            if r < 0 && sys::would_block() {
                continue;
            }
            // state after this read: 0 = in progress, 1 = finished ok, 2 = failed
            let mut st = 0;
            if r <= 0 {
                if c.until_eof && r == 0 {
                    st = 1;
                    c.closing = true;
                } else if c.closing {
                    st = 3; // closed after a complete response
                } else {
                    st = 2;
                    if first_error.is_empty() {
                        first_error =
                            format!("recv {r} with {} head bytes, {} body bytes left", c.head.len(), c.left);
                    }
                }
            } else {
                let mut d = &buf[..r as usize];
                bytes += r as u64;
                if c.in_head {
                    let (p, from_head) = if c.head.is_empty() {
                        (sys::find(d, b"\r\n\r\n"), false)
                    } else {
                        c.head.extend_from_slice(d);
                        (sys::find(&c.head, b"\r\n\r\n"), true)
                    };
                    match p {
                        None => {
                            if !from_head {
                                c.head.extend_from_slice(d);
                            }
                            continue;
                        }
                        Some(p) => {
                            let hd = std::mem::take(&mut c.head);
                            let block: &[u8] = if from_head { &hd[..p + 2] } else { &d[..p + 2] };
                            let status_ok = block.len() > 12 && &block[9..12] == b"200";
                            if !status_ok && first_error.is_empty() {
                                first_error =
                                    String::from_utf8_lossy(&block[..block.len().min(40)]).into_owned();
                            }
                            c.chunked = sys::header(block, "transfer-encoding")
                                .map(|v| v.eq_ignore_ascii_case(b"chunked"))
                                .unwrap_or(false);
                            c.closing = sys::header(block, "connection")
                                .map(|v| v.eq_ignore_ascii_case(b"close"))
                                .unwrap_or(false);
                            c.until_eof = false;
                            c.left = 0;
                            if !c.chunked {
                                match sys::header(block, "content-length") {
                                    Some(v) => {
                                        c.left = std::str::from_utf8(v).unwrap_or("0").parse().unwrap_or(0)
                                    }
                                    None => c.until_eof = true,
                                }
                            }
                            if !status_ok
                                || (expect != u64::MAX && !c.chunked && !c.until_eof && c.left != expect)
                            {
                                st = 2;
                            }
                            c.in_head = false;
                            if from_head {
                                let body = hd[p + 4..].to_vec();
                                if st == 0 {
                                    st = body_feed(c, &body);
                                }
                                d = &[];
                            } else {
                                d = &d[p + 4..];
                            }
                        }
                    }
                    if st == 0 {
                        st = body_feed(c, d);
                    }
                } else {
                    st = body_feed(c, d);
                }
            }
            if st == 0 {
                continue;
            }
            if st == 1 || st == 2 {
                if st == 1 {
                    done += 1;
                    h.add((now - c.t0).as_nanos() as u64);
                } else {
                    errors += 1;
                }
            }
            // next
            if !more(started) {
                sys::close(c.fd);
                c.fd = -1;
                live -= 1;
                continue;
            }
            started += 1;
            if st != 1 || close || c.closing {
                if !close {
                    reconnects += 1;
                }
                sys::close(c.fd);
                match open(&addr) {
                    Ok(fd) => {
                        c.fd = fd;
                        ep.add(fd, tok as u64, sys::IN);
                    }
                    Err(e) => {
                        errors += 1;
                        if first_error.is_empty() {
                            first_error = format!("connect: {e}");
                        }
                        c.fd = -1;
                        live -= 1;
                        continue;
                    }
                }
            }
            c.in_head = true;
            c.closing = false;
            c.until_eof = false;
            c.head.clear();
            c.tail.clear();
            c.t0 = Instant::now();
            c.sent = 0;
            if !push(c, &req, &ep, tok as u64) {
                // the peer closed an idle keepalive connection: count as a reset, retry on a new one
                errors += 1;
                if first_error.is_empty() {
                    first_error = format!("send: {}", std::io::Error::last_os_error());
                }
            }
        }
    }
    let el = t_start.elapsed().as_secs_f64();
    let uploaded = done * body as u64;
    println!(
        "{{\"kind\":\"http\",\"done\":{done},\"errors\":{errors},\"reconnects\":{reconnects},\"bytes\":{bytes},\"uploaded\":{uploaded},\"elapsed_s\":{el:.4},\"per_s\":{:.1},{},\"first_error\":{:?}}}",
        done as f64 / el,
        h.json(),
        first_error
    );
}

/// Sends what the server takes of the request; the rest when it takes more. Whether the connection is fine.
fn push(c: &mut C, req: &[u8], ep: &sys::Epoll, tok: u64) -> bool {
    let waited = c.sent > 0;
    while c.sent < req.len() {
        let n = sys::send(c.fd, &req[c.sent..]);
        if n < 0 {
            if !sys::would_block() {
                return false;
            }
            if !waited {
                ep.modify(c.fd, tok, sys::IN | sys::OUT);
            }
            return true;
        }
        c.sent += n as usize;
    }
    if waited {
        ep.modify(c.fd, tok, sys::IN);
    }
    true
}

fn open(addr: &SocketAddrV4) -> std::io::Result<i32> {
    let fd = sys::connect(addr, None)?;
    sys::set_nonblock(fd);
    Ok(fd)
}

fn body_feed(c: &mut C, d: &[u8]) -> i32 {
    if c.until_eof {
        return 0;
    }
    if c.chunked {
        let t = &mut c.tail;
        if d.len() >= 5 {
            t.clear();
            t.extend_from_slice(&d[d.len() - 5..]);
        } else {
            t.extend_from_slice(d);
            let k = t.len().saturating_sub(5);
            t.drain(..k);
        }
        return if t.ends_with(b"0\r\n\r\n") { 1 } else { 0 };
    }
    if d.len() as u64 > c.left {
        return 2;
    }
    c.left -= d.len() as u64;
    if c.left == 0 {
        1
    } else {
        0
    }
}

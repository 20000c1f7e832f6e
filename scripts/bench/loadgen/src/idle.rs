//! Opens N WebSocket tunnels (--tls: over TLS 1.3), does one echo on each, prints READY, waits for a line on
//! stdin (the driver reads the proxy's memory meanwhile), echoes once more on each, closes, prints JSON.
use crate::{cli::Opts, sys, tlsload, wsload, wsproto};
use std::io::{Read, Write};
use std::os::fd::FromRawFd;

trait Io: Read + Write {}
impl<T: Read + Write> Io for T {}

fn echo(s: &mut dyn Io, f: &[u8], size: usize, buf: &mut [u8]) -> Result<(), String> {
    s.write_all(f).map_err(|e| e.to_string())?;
    let need = size
        + if size < 126 {
            2
        } else if size < 65536 {
            4
        } else {
            10
        };
    let mut got = 0;
    while got < need {
        let r = s.read(buf).map_err(|e| format!("echo: {e}"))?;
        if r == 0 {
            return Err("echo: closed".into());
        }
        got += r;
    }
    Ok(())
}

pub fn run(o: &Opts) {
    let addr = sys::v4(&o.str("addr", "127.0.0.1:8080"));
    let n = o.num("conns", 1000);
    let size = o.num("size", 125) as usize;
    let host = o.str("host", "bench.test");
    let tls =
        if o.flag("tls") { Some(std::sync::Arc::new(tlsload::config(false, "aes256", true))) } else { None };
    let srcs: Vec<String> =
        o.str("src", "").split(',').filter(|s| !s.is_empty()).map(|s| s.to_string()).collect();
    let f = wsload::frame(size, 7);
    let mut buf = vec![0u8; 1 << 17];
    let mut conns: Vec<Box<dyn Io>> = vec![];
    let mut errors = 0u64;
    let mut first_error = String::new();
    for i in 0..n {
        let src = if srcs.is_empty() { None } else { Some(srcs[i as usize % srcs.len()].as_str()) };
        let r = sys::connect(&addr, src).map_err(|e| format!("connect: {e}")).and_then(|fd| {
            sys::set_timeout(fd, 20);
            let sock = unsafe { std::net::TcpStream::from_raw_fd(fd) };
            let mut s: Box<dyn Io> = match &tls {
                None => Box::new(sock),
                Some(c) => {
                    let name = rustls::pki_types::ServerName::try_from(host.clone()).unwrap();
                    let c = rustls::ClientConnection::new(c.clone(), name).map_err(|e| e.to_string())?;
                    Box::new(rustls::StreamOwned::new(c, sock))
                }
            };
            wsproto::open_io(&mut s, &host, "/echo", i + 1)?;
            echo(&mut s, &f, size, &mut buf)?;
            Ok(s)
        });
        match r {
            Ok(s) => conns.push(s),
            Err(e) => {
                errors += 1;
                if first_error.is_empty() {
                    first_error = format!("at {i}: {e}");
                }
                if errors > 50 {
                    break;
                }
            }
        }
    }
    println!("READY {}", conns.len());
    let mut s = String::new();
    let _ = std::io::stdin().read_line(&mut s);
    let mut broken = 0u64;
    for c in conns.iter_mut() {
        if let Err(e) = echo(c, &f, size, &mut buf) {
            broken += 1;
            if first_error.is_empty() {
                first_error = e;
            }
        }
    }
    let k = conns.len();
    drop(conns);
    println!(
        "{{\"kind\":\"idle\",\"done\":{k},\"errors\":{errors},\"broken\":{broken},\"first_error\":{:?}}}",
        first_error
    );
}

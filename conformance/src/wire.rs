//! Raw connections and just enough HTTP/1 framing to know where a message ends: what arrives is
//! kept byte for byte, so that order, spelling and framing can be compared.

use crate::Result;
use crate::clock::Deadline;
use crate::steps::Tls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Response,
    /// A response to HEAD: no body, whatever the head says.
    ResponseHead,
    Request,
}

/// How the body of a message ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Framing {
    Nothing,
    Length(usize),
    Chunked,
    UntilClose,
}

/// The length of a head with its empty line, once that has arrived.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

/// The value of the first header of that name.
pub fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    std::str::from_utf8(head).ok()?.split("\r\n").skip(1).find_map(|line| {
        let (n, value) = line.split_once(':')?;
        n.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// RFC 9112 section 6.3, for messages that are well formed.
pub fn framing(head: &[u8], kind: Kind) -> Framing {
    if kind == Kind::ResponseHead {
        return Framing::Nothing;
    }
    if kind == Kind::Response {
        let status = head.get(9..12).unwrap_or_default();
        if status.starts_with(b"1") || status == b"204" || status == b"304" {
            return Framing::Nothing;
        }
    }
    if header(head, "transfer-encoding").is_some_and(|v| v.to_ascii_lowercase().ends_with("chunked")) {
        return Framing::Chunked;
    }
    match header(head, "content-length").and_then(|v| v.parse().ok()) {
        Some(n) => Framing::Length(n),
        None if kind == Kind::Request => Framing::Nothing,
        None => Framing::UntilClose,
    }
}

/// The payload of a chunked body and its length on the wire; `None` while it is not whole or if it is malformed.
pub fn unchunk(mut bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let whole = bytes.len();
    let mut out = Vec::new();
    loop {
        let line = bytes.windows(2).position(|w| w == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[..line]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        bytes = &bytes[line + 2..];
        if size == 0 {
            // Trailers end like a head: with an empty line.
            let end = if bytes.starts_with(b"\r\n") { 2 } else { head_end(bytes)? };
            out.extend_from_slice(&bytes[..end - 2]);
            return Some((out, whole - bytes.len() + end));
        }
        let data = bytes.get(..size)?;
        out.extend_from_slice(data);
        bytes = bytes.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

/// The length of the first message in `bytes`, if it is whole.
pub fn message_end(bytes: &[u8], kind: Kind) -> Option<usize> {
    let head = head_end(bytes)?;
    match framing(&bytes[..head], kind) {
        Framing::Nothing => Some(head),
        Framing::Length(n) => (bytes.len() >= head + n).then_some(head + n),
        Framing::Chunked => unchunk(&bytes[head..]).map(|(_, used)| head + used),
        Framing::UntilClose => None,
    }
}

/// Why reading stopped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    /// What was asked for is here, the connection is still open.
    Open,
    Closed,
    Reset,
    Timeout,
}

impl End {
    pub fn mark(self) -> &'static str {
        match self {
            Self::Open => "",
            Self::Closed => "[closed]",
            Self::Reset => "[reset]",
            Self::Timeout => "[timeout]",
        }
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
}

/// A connection and what it has received but nobody asked for yet.
pub struct Wire {
    stream: Stream,
    buffer: Vec<u8>,
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream: Stream::Plain(stream), buffer: Vec::new() }
    }

    pub fn connect(port: u16) -> Result<Self> {
        let stream =
            TcpStream::connect(("127.0.0.1", port)).map_err(|e| format!("connect to {port}: {e}"))?;
        stream.set_nodelay(true)?;
        Ok(Self::new(stream))
    }

    /// TLS to a server whose own certificate is the one trusted.
    pub fn connect_tls(port: u16, tls: &Tls, certificate: &Path) -> Result<Self> {
        let Stream::Plain(mut stream) = Self::connect(port)?.stream else {
            unreachable!("a new wire is plain")
        };
        stream.write_all(&tls.before)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificate)?)?;
        let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let client =
            rustls::ClientConnection::new(Arc::new(config), ServerName::try_from(tls.host.clone())?)?;
        let stream = Stream::Tls(Box::new(rustls::StreamOwned::new(client, stream)));
        Ok(Self { stream, buffer: Vec::new() })
    }

    fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(s) => s,
            Stream::Tls(s) => &s.sock,
        }
    }

    /// A peer that has closed already is no error here: what it answered is what counts.
    pub fn send(&mut self, bytes: &[u8], deadline: Deadline) -> Result<()> {
        self.tcp().set_write_timeout(Some(deadline.left()))?;
        let sent = match &mut self.stream {
            Stream::Plain(s) => s.write_all(bytes),
            Stream::Tls(s) => s.write_all(bytes).and_then(|()| s.flush()),
        };
        match sent {
            Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(()),
            other => Ok(other?),
        }
    }

    pub fn shut(&mut self) -> Result<()> {
        if let Stream::Tls(s) = &mut self.stream {
            s.conn.send_close_notify();
            s.flush()?;
        }
        Ok(self.tcp().shutdown(Shutdown::Write)?)
    }

    fn read(&mut self, deadline: Deadline) -> io::Result<End> {
        self.tcp().set_read_timeout(Some(deadline.left()))?;
        let mut chunk = [0; 65536];
        let got = match &mut self.stream {
            Stream::Plain(s) => s.read(&mut chunk),
            Stream::Tls(s) => s.read(&mut chunk),
        };
        match got {
            Ok(0) => Ok(End::Closed),
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                Ok(End::Open)
            }
            Err(e) => match e.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(End::Timeout),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Ok(End::Reset),
                // A TLS peer that leaves without close_notify.
                ErrorKind::UnexpectedEof => Ok(End::Closed),
                ErrorKind::Interrupted => Ok(End::Open),
                _ => Err(e),
            },
        }
    }

    /// Reads until `enough` finds the end of what is wanted, or nothing more comes.
    pub fn take(
        &mut self,
        deadline: Deadline,
        enough: impl Fn(&[u8]) -> Option<usize>,
    ) -> Result<(Vec<u8>, End)> {
        loop {
            if let Some(n) = enough(&self.buffer) {
                return Ok((self.buffer.drain(..n).collect(), End::Open));
            }
            let end = if deadline.is_over() { End::Timeout } else { self.read(deadline)? };
            if end != End::Open {
                return Ok((std::mem::take(&mut self.buffer), end));
            }
        }
    }

    /// One message; the head alone decides where it ends.
    pub fn message(&mut self, deadline: Deadline, kind: Kind) -> Result<(Vec<u8>, End)> {
        self.take(deadline, |b| message_end(b, kind))
    }

    /// Makes the close that follows a RST.
    pub fn reset(self) -> Result<()> {
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        Ok(nix::sys::socket::setsockopt(self.tcp(), nix::sys::socket::sockopt::Linger, &linger)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &str, kind: Kind, end: Option<usize>) {
        assert_eq!(message_end(bytes.as_bytes(), kind), end);
    }

    #[test]
    fn a_message_ends_where_its_head_says() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP", Kind::Response, Some(40));
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", Kind::Response, None);
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", Kind::ResponseHead, Some(38));
        check("HTTP/1.1 204 No Content\r\n\r\nrest", Kind::Response, Some(27));
        check("HTTP/1.1 100 Continue\r\n\r\n", Kind::Response, Some(25));
        check("HTTP/1.0 200 OK\r\n\r\nrest", Kind::Response, None);
        check("GET / HTTP/1.1\r\n\r\nrest", Kind::Request, Some(18));
        check(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nx",
            Kind::Request,
            Some(59),
        );
    }

    #[test]
    fn chunks_give_their_payload_and_trailers() {
        assert_eq!(unchunk(b"2;a=b\r\nok\r\n0\r\n\r\nrest"), Some((b"ok".to_vec(), 16)));
        assert_eq!(unchunk(b"0\r\nA: b\r\n\r\n"), Some((b"A: b\r\n".to_vec(), 11)));
        assert_eq!(unchunk(b"2\r\nok"), None);
        assert_eq!(unchunk(b"x\r\n\r\n"), None);
    }
}

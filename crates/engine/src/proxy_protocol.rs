//! The PROXY protocol: what a proxy in front tells of its client, before anything else on the connection.
//!
//! As in nginx a header has to come in one piece: its sender knows all of it at once, and nothing is kept for one that
//! does not. It is looked at where it lies and only then taken off the socket, so what follows it is read as on any
//! other connection.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use memchr::{memchr, memchr2, memmem};
use nix::errno::Errno;
use weir_ir::value;
use weir_syntax::Level;

use crate::generation::Generation;
use crate::http::exchange::Connection;
use crate::io::{Address, Socket, scratch};
use crate::reactor::Reactor;
use crate::timer::Timer;

/// The most that is looked at before TLS; elsewhere it is `client_header_buffer_size`.
const BEFORE_TLS: usize = 4097;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Length of what precedes the addresses in version 2.
const FIXED: usize = 16;

const TLV_SSL: usize = 0x20;
const TLVS: &[(&str, usize)] =
    &[("alpn", 0x01), ("authority", 0x02), ("unique_id", 0x05), ("ssl", TLV_SSL), ("netns", 0x30)];
const SSL_TLVS: &[(&str, usize)] =
    &[("version", 0x21), ("cn", 0x22), ("cipher", 0x23), ("sig_alg", 0x24), ("key_alg", 0x25)];

/// What a header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// `$proxy_protocol_addr`, as it was written in version 1.
    pub source: Box<[u8]>,
    pub source_port: u16,
    /// `$proxy_protocol_server_addr`
    pub server: Box<[u8]>,
    pub server_port: u16,
    /// What else there is in version 2, as it came.
    tlvs: Box<[u8]>,
}

/// Why a header is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken<'b> {
    /// The line is neither of version 1 nor the beginning of version 2.
    Line(&'b [u8]),
    Version(u8),
    /// It did not come in one piece, or is larger than what is looked at.
    TooLarge,
    /// No room for the addresses; nginx says nothing of it.
    NoAddresses,
}

impl Broken<'_> {
    fn message(&self) -> Option<String> {
        match self {
            Self::Line(line) => Some(format!("broken header: \"{}\"", String::from_utf8_lossy(line))),
            Self::Version(version) => Some(format!("unknown PROXY protocol version: {version}")),
            Self::TooLarge => Some("header is too large".into()),
            Self::NoAddresses => None,
        }
    }
}

/// Reads a header of either version: its length, and what it tells. Of a connection that the proxy made for itself, or
/// of one that is not TCP, it tells nothing.
///
/// # Errors
/// What is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<(usize, Option<Header>), Broken<'_>> {
    if bytes.len() >= FIXED && bytes.starts_with(SIGNATURE) {
        return version2(bytes);
    }
    version1(bytes).ok_or_else(|| {
        let end = memchr2(b'\r', b'\n', bytes).unwrap_or(bytes.len());
        Broken::Line(&bytes[..end])
    })
}

fn version1(bytes: &[u8]) -> Option<(usize, Option<Header>)> {
    let line = bytes.strip_prefix(b"PROXY ")?;
    if let Some(rest) = line.strip_prefix(b"UNKNOWN") {
        let end = memmem::find(rest, b"\r\n")?;
        return Some((bytes.len() - rest.len() + end + 2, None));
    }
    let rest = line.strip_prefix(b"TCP4 ").or_else(|| line.strip_prefix(b"TCP6 "))?;
    let (source, rest) = address(rest)?;
    let (server, rest) = address(rest)?;
    let (source_port, rest) = port(rest, b' ')?;
    let (server_port, rest) = port(rest, b'\r')?;
    let rest = rest.strip_prefix(b"\n")?;
    let header = Header {
        source: source.into(),
        source_port,
        server: server.into(),
        server_port,
        tlvs: Box::default(),
    };
    Some((bytes.len() - rest.len(), Some(header)))
}

/// What looks like an address, up to a space.
fn address(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (address, rest) = bytes.split_at(memchr(b' ', bytes)?);
    let fits = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
    address.iter().all(fits).then_some((address, &rest[1..]))
}

fn port(bytes: &[u8], end: u8) -> Option<(u16, &[u8])> {
    let (digits, rest) = bytes.split_at(memchr(end, bytes)?);
    Some((u16::try_from(value::number(digits)?).ok()?, &rest[1..]))
}

fn version2(bytes: &[u8]) -> Result<(usize, Option<Header>), Broken<'_>> {
    let (fixed, rest) = bytes.split_at(FIXED);
    let (version, command) = (fixed[12] >> 4, fixed[12] & 15);
    let (family, transport) = (fixed[13] >> 4, fixed[13] & 15);
    if version != 2 {
        return Err(Broken::Version(version));
    }
    let len = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let body = rest.get(..len).ok_or(Broken::TooLarge)?;
    let told = match (command, transport, family) {
        (1, 1, 1) => addresses::<4>(body, |ip| Ipv4Addr::from(ip).to_string()),
        (1, 1, 2) => addresses::<16>(body, |ip| Ipv6Addr::from(ip).to_string()),
        // LOCAL, datagrams, unix sockets.
        _ => return Ok((FIXED + len, None)),
    };
    let header = told.ok_or(Broken::NoAddresses)?;
    Ok((FIXED + len, Some(header)))
}

/// Two addresses of `N` bytes, two ports, and what follows them.
fn addresses<const N: usize>(body: &[u8], text: fn([u8; N]) -> String) -> Option<Header> {
    let (source, rest) = body.split_first_chunk::<N>()?;
    let (server, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk()?;
    let (server_port, tlvs) = rest.split_first_chunk()?;
    Some(Header {
        source: text(*source).into_bytes().into(),
        source_port: u16::from_be_bytes(*source_port),
        server: text(*server).into_bytes().into(),
        server_port: u16::from_be_bytes(*server_port),
        tlvs: tlvs.into(),
    })
}

/// What is wrong with a value that was asked for; nginx tells it in the error log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlvFault<'n> {
    /// A number that is none.
    Invalid(&'n str),
    Unknown(&'n str),
    /// The client's bytes make no sense.
    Broken,
}

impl fmt::Display for TlvFault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(name) => write!(f, "invalid PROXY protocol TLV \"{name}\""),
            Self::Unknown(name) => write!(f, "unknown PROXY protocol TLV \"{name}\""),
            Self::Broken => f.write_str("broken PROXY protocol TLV"),
        }
    }
}

impl Header {
    /// Appends `$proxy_protocol_tlv_NAME`; false where the header has none. A name is one of the known ones or `0x` and
    /// a number; those that begin with `ssl_` are inside of `ssl`.
    ///
    /// # Errors
    /// What is wrong with the name, or with the header.
    pub fn tlv<'n>(&self, name: &'n str, out: &mut Vec<u8>) -> Result<bool, TlvFault<'n>> {
        let (known, tlvs, key) = match name.strip_prefix("ssl_") {
            None => (TLVS, &*self.tlvs, name),
            Some(key) => {
                let Some(ssl) = find(&self.tlvs, TLV_SSL)? else { return Ok(false) };
                // A byte of flags and the result of the verification come first.
                let Some(([_, verify @ ..], tlvs)) = ssl.split_first_chunk::<5>() else { return Ok(false) };
                if key == "verify" {
                    out.extend_from_slice(u32::from_be_bytes(*verify).to_string().as_bytes());
                    return Ok(true);
                }
                (SSL_TLVS, tlvs, key)
            }
        };
        let kind = match key.strip_prefix("0x") {
            Some(digits) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
                usize::from_str_radix(digits, 16)
            }
            Some(_) => return Err(TlvFault::Invalid(name)),
            None => match known.iter().find(|(known, _)| *known == key) {
                Some((_, kind)) => Ok(*kind),
                None => return Err(TlvFault::Unknown(name)),
            },
        };
        let kind = kind.map_err(|_| TlvFault::Invalid(name))?;
        let found = find(tlvs, kind)?;
        out.extend_from_slice(found.unwrap_or_default());
        Ok(found.is_some())
    }
}

/// The first value of a kind; only what precedes it has to be whole.
fn find(mut tlvs: &[u8], kind: usize) -> Result<Option<&[u8]>, TlvFault<'static>> {
    while !tlvs.is_empty() {
        let ([of, high, low], rest) = tlvs.split_first_chunk::<3>().ok_or(TlvFault::Broken)?;
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, rest) = rest.split_at_checked(len).ok_or(TlvFault::Broken)?;
        if usize::from(*of) == kind {
            return Ok(Some(value));
        }
        tlvs = rest;
    }
    Ok(None)
}

/// Why a connection is not served.
enum Failure {
    Closed,
    Late,
    Read(io::Error),
    /// With what there is to say of it.
    Broken(Option<String>),
}

/// Takes the header off a connection to the address at `connection.address`, within the `client_header_timeout` of its
/// default server. False where there is none, which is logged.
pub async fn accept(
    reactor: &Reactor,
    generation: &Generation,
    listener: &Address,
    connection: &mut Connection,
    socket: &Socket,
) -> bool {
    let address = &generation.addresses[connection.address()];
    let core = &generation.location(address.default_server).core;
    let limit = if address.protocols.ssl { BEFORE_TLS } else { core.limits.header_buffer };
    let timer = reactor.timers().register();
    timer.set_in(core.client_header_timeout);
    match read(socket, limit, &timer).await {
        Ok(header) => {
            connection.proxy_protocol = header.map(Rc::new);
            true
        }
        Err(failure) => {
            log(connection, listener, failure);
            false
        }
    }
}

async fn read(socket: &Socket, limit: usize, timer: &Timer) -> Result<Option<Header>, Failure> {
    poll_fn(|cx| match scratch(|bytes| take(cx, socket, bytes, limit)) {
        Poll::Pending => timer.poll_expired(cx).map(|()| Err(Failure::Late)),
        taken => taken,
    })
    .await
}

/// Looks at what is there, up to `limit` bytes, and takes the header off it.
fn take(
    cx: &mut Context<'_>,
    socket: &Socket,
    bytes: &mut [u8],
    limit: usize,
) -> Poll<Result<Option<Header>, Failure>> {
    let limit = limit.min(bytes.len());
    let seen = match ready!(socket.poll_peek(cx, &mut bytes[..limit])) {
        Ok(0) => return Poll::Ready(Err(Failure::Closed)),
        Ok(seen) => seen,
        Err(error) => return Poll::Ready(Err(Failure::Read(error))),
    };
    let (len, header) = match parse(&bytes[..seen]) {
        Ok((len, header)) => (len, Ok(header)),
        // Taken as well: what is left unread would make the close a reset.
        Err(broken) => (seen, Err(Failure::Broken(broken.message()))),
    };
    let taken = ready!(socket.poll_read(cx, &mut bytes[..len])).map_err(Failure::Read);
    Poll::Ready(taken.and_then(|n| if n == len { header } else { Err(Failure::Closed) }))
}

fn log(connection: &Connection, listener: &Address, failure: Failure) {
    let (level, message, errno) = match failure {
        Failure::Closed => (Level::Info, "client closed connection".into(), None),
        Failure::Late => (Level::Info, "client timed out".into(), Some(Errno::ETIMEDOUT)),
        Failure::Read(error) => {
            (Level::Info, "recv() failed".into(), error.raw_os_error().map(Errno::from_raw))
        }
        Failure::Broken(Some(message)) => (Level::Error, message, None),
        Failure::Broken(None) => return,
    };
    connection.log.write_with(level, errno, message, |line| {
        line.bytes(b" while reading PROXY protocol");
        line.field("client", connection.peer.text());
        line.field("server", listener.to_string().as_bytes());
    });
}

#[cfg(test)]
mod tests;

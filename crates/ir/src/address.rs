//! Addresses as nginx writes them: `host:port`, `[::1]:80`, `*:80`, `unix:/path`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::value;

/// A socket address of any family that weir listens on or connects to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    Ip(SocketAddr),
    /// A path; empty for a socket without a name, as clients of a unix socket are.
    Unix(Arc<str>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(ip) => ip.fmt(f),
            Address::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Address::Ip(address)
    }
}

impl Address {
    pub fn port(&self) -> Option<u16> {
        match self {
            Address::Ip(ip) => Some(ip.port()),
            Address::Unix(_) => None,
        }
    }
}

/// The host of an address as written, before any name is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// `*` or only a port.
    Any,
    Ip(IpAddr),
    Name(Box<str>),
    Unix(Arc<str>),
}

/// `host[:port][/uri]`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    pub host: Host,
    /// As written; `None` where the default port holds.
    pub port: Option<u16>,
    /// The end of a range of ports to listen on, which `port` begins.
    pub last_port: Option<u16>,
    /// From the first `/` on.
    pub uri: Box<[u8]>,
    /// The host as written, brackets included, for messages and the `Host` header.
    pub host_text: Box<str>,
}

/// What may be left out or stand there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Form {
    /// A listening address: `*`, a port alone.
    pub listen: bool,
    /// A `/uri` may follow.
    pub uri: bool,
}

/// Takes an address apart.
///
/// # Errors
/// nginx's words: `no host`, `invalid host`, `no port`, `invalid port`, `no path in the unix domain socket`,
/// `too long path in the unix domain socket`, `invalid IPv6 address`, `host not found`.
pub fn parse(text: &[u8], form: Form) -> Result<Authority, &'static str> {
    let Ok(whole) = std::str::from_utf8(text) else { return Err("invalid host") };
    if let Some(path) = strip_unix(whole) {
        return unix(path, form);
    }
    if whole.starts_with('[') {
        return ipv6(whole, form);
    }
    inet(whole, form)
}

fn strip_unix(text: &str) -> Option<&str> {
    let head = text.get(..5)?;
    head.eq_ignore_ascii_case("unix:").then(|| &text[5..])
}

fn unix(path: &str, form: Form) -> Result<Authority, &'static str> {
    let (path, uri) = match path.split_once(':') {
        Some((path, uri)) if form.uri => (path, uri),
        _ => (path, ""),
    };
    if path.is_empty() {
        return Err("no path in the unix domain socket");
    }
    // sun_path holds 108 bytes with the final NUL.
    if path.len() > 107 {
        return Err("too long path in the unix domain socket");
    }
    Ok(Authority {
        host: Host::Unix(path.into()),
        port: None,
        last_port: None,
        uri: uri.as_bytes().into(),
        host_text: format!("unix:{path}").into(),
    })
}

fn port(text: &str) -> Result<u16, &'static str> {
    match value::number(text.as_bytes()).and_then(|n| u16::try_from(n).ok()) {
        Some(port @ 1..) => Ok(port),
        Some(0) | None => Err("invalid port"),
    }
}

/// A port, or where it is to be listened on a range of them, `8000-8010`.
fn ports(text: &str, form: Form) -> Result<(u16, Option<u16>), &'static str> {
    let Some((first, last)) = text.split_once('-').filter(|_| form.listen) else {
        return Ok((port(text)?, None));
    };
    let last = port(last)?;
    let first = port(first)?;
    if first > last { Err("invalid port range") } else { Ok((first, Some(last))) }
}

fn split_uri<'t>(text: &'t str, starts: &[char], form: Form) -> Result<(&'t str, &'t str), &'static str> {
    match text.find(starts) {
        Some(at) if form.uri => Ok(text.split_at(at)),
        Some(_) => Err("invalid host"),
        None => Ok((text, "")),
    }
}

fn ipv6(whole: &str, form: Form) -> Result<Authority, &'static str> {
    let Some(close) = whole.find(']') else { return Err("invalid host") };
    let (address, rest) = (&whole[1..close], &whole[close + 1..]);
    let (rest, uri) = split_uri(rest, &['/'], form)?;
    let (port, last_port) = match rest.strip_prefix(':') {
        Some(text) => ports(text, form).map(|(port, last)| (Some(port), last))?,
        None if rest.is_empty() => (None, None),
        None => return Err("invalid host"),
    };
    if address.is_empty() {
        return Err("no host");
    }
    let ip: Ipv6Addr = address.parse().map_err(|_| "invalid IPv6 address")?;
    Ok(Authority {
        host: Host::Ip(IpAddr::V6(ip)),
        port,
        last_port,
        uri: uri.as_bytes().into(),
        host_text: whole[..=close].into(),
    })
}

fn inet(whole: &str, form: Form) -> Result<Authority, &'static str> {
    let (authority, uri) = split_uri(whole, &['/', '?'], form)?;
    let uri: Box<[u8]> = uri.as_bytes().into();
    let (host, port_text) = match authority.split_once(':') {
        Some((host, text)) => (host, Some(text)),
        None => (authority, None),
    };
    if port_text.is_none() && form.listen {
        // What is no number is a name, though one with a dash in it.
        let (first, last) = host.split_once('-').map_or((host, None), |(first, last)| (first, Some(last)));
        let is_number = |text: &str| value::number(text.as_bytes()).is_some();
        if is_number(first) && last.is_none_or(is_number) {
            let (port, last_port) = ports(host, form)?;
            return Ok(Authority { host: Host::Any, port: Some(port), last_port, uri, host_text: "".into() });
        }
    }
    let (port, last_port) = match port_text {
        Some(text) => ports(text, form).map(|(port, last)| (Some(port), last))?,
        None => (None, None),
    };
    if host.is_empty() {
        return Err("no host");
    }
    let host_text: Box<str> = host.into();
    let host = match ipv4(host) {
        _ if host == "*" && form.listen => Host::Any,
        Some(ip) => Host::Ip(IpAddr::V4(ip)),
        None => Host::Name(host_text.clone()),
    };
    Ok(Authority { host, port, last_port, uri, host_text })
}

/// Four decimal numbers; leading zeros are no octal notation. The broadcast address is left to the resolver.
fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        *octet = if part.is_empty() { 0 } else { u8::try_from(value::number(part.as_bytes())?).ok()? };
    }
    (parts.next().is_none() && octets != [255; 4]).then_some(Ipv4Addr::from(octets))
}

/// A local address, `127.0.0.1`, `[::1]:80`; without a port it is 0. `None` for what is no address.
pub fn local(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    text.parse().ok().or_else(|| Some(SocketAddr::new(bare.parse().ok()?, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, form: Form, expected: Result<(Host, Option<u16>, &str), &str>) {
        let got = parse(text.as_bytes(), form);
        let got = got.as_ref().map(|a| {
            (a.host.clone(), a.port, std::str::from_utf8(&a.uri).expect("the tests' addresses are ASCII"))
        });
        assert_eq!(got.map_err(|e| *e), expected, "{text}");
    }

    #[test]
    fn local_addresses() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(local(text.as_bytes()).map(|a| a.to_string()).as_deref(), expected, "{text}");
        };
        check("127.0.0.2", Some("127.0.0.2:0"));
        check("127.0.0.2:80", Some("127.0.0.2:80"));
        check("::1", Some("[::1]:0"));
        check("[::1]", Some("[::1]:0"));
        check("[::1]:80", Some("[::1]:80"));
        check("localhost", None);
        check("127.0.0.1:x", None);
    }

    #[test]
    fn ranges_of_ports() {
        let listen = Form { listen: true, uri: false };
        for text in ["8000-8002", "*:8000-8002", "[::]:8000-8002"] {
            let authority = parse(text.as_bytes(), listen).expect("a range");
            assert_eq!((authority.port, authority.last_port), (Some(8000), Some(8002)), "{text}");
        }
    }

    #[test]
    fn addresses() {
        let listen = Form { listen: true, uri: false };
        let pass = Form { listen: false, uri: true };
        let v4 = |s: &str| Host::Ip(s.parse().expect("an address"));
        check("80", listen, Ok((Host::Any, Some(80), "")));
        check("*:80", listen, Ok((Host::Any, Some(80), "")));
        check("127.0.0.1", listen, Ok((v4("127.0.0.1"), None, "")));
        check("[::1]:443", listen, Ok((v4("::1"), Some(443), "")));
        check("80-81", listen, Ok((Host::Any, Some(80), "")));
        check("[::1]:80-81", listen, Ok((Host::Ip(IpAddr::V6(Ipv6Addr::LOCALHOST)), Some(80), "")));
        check("127.0.0.1:81-80", listen, Err("invalid port range"));
        check("127.0.0.1:80-x", listen, Err("invalid port"));
        check("127.0.0.1:80-81", Form::default(), Err("invalid port"));
        check("70000", listen, Err("invalid port"));
        check("a:b", listen, Err("invalid port"));
        check(":80", listen, Err("no host"));
        check("::1:80", listen, Err("invalid port"));
        check("99999999999999999999", listen, Ok((Host::Name("99999999999999999999".into()), None, "")));
        check("8-a", listen, Ok((Host::Name("8-a".into()), None, "")));
        check("8-70000", listen, Err("invalid port"));
        check("9-8", listen, Err("invalid port range"));
        check("*:9-8", listen, Err("invalid port range"));
        check("a:8-9", pass, Err("invalid port"));
        check("a?b", listen, Err("invalid host"));
        check("a/b", listen, Err("invalid host"));
        check("[]:80", listen, Err("no host"));
        check("[::1]x", listen, Err("invalid host"));
        check("[x]", listen, Err("invalid IPv6 address"));
        check("1.2.3", listen, Ok((Host::Name("1.2.3".into()), None, "")));
        check("010.0.0.1", listen, Ok((v4("10.0.0.1"), None, "")));
        check("256.0.0.1", listen, Ok((Host::Name("256.0.0.1".into()), None, "")));
        check("unix:/run/x", listen, Ok((Host::Unix("/run/x".into()), None, "")));
        check("unix:", listen, Err("no path in the unix domain socket"));
        check("backend:8080/x?y", pass, Ok((Host::Name("backend".into()), Some(8080), "/x?y")));
        check("unix:/run/x:/y", pass, Ok((Host::Unix("/run/x".into()), None, "/y")));
    }
}

//! Addresses as nginx writes them: `host:port`, `[::1]:80`, `*:80`, `unix:/path`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

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
    /// The end of a range of ports, which only a listening address may have.
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
    match text.parse::<u16>() {
        Ok(port) if port > 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err("invalid port"),
    }
}

/// A port, or a range of them where that may stand; with the end of the range.
fn ports(text: Option<&str>, form: Form) -> Result<(Option<u16>, Option<u16>), &'static str> {
    match (text, text.and_then(|text| text.split_once('-')).filter(|_| form.listen)) {
        (None, _) => Ok((None, None)),
        (Some(text), None) => Ok((Some(port(text)?), None)),
        (Some(_), Some((first, last))) => {
            let last = port(last)?;
            let first = port(first)?;
            if first > last { Err("invalid port range") } else { Ok((Some(first), Some(last))) }
        }
    }
}

fn split_uri(text: &str, form: Form) -> Result<(&str, &str), &'static str> {
    match text.find(['/', '?']) {
        Some(at) if form.uri => Ok(text.split_at(at)),
        Some(_) if text.contains('/') => Err("invalid host"),
        _ => Ok((text, "")),
    }
}

fn ipv6(whole: &str, form: Form) -> Result<Authority, &'static str> {
    let Some(close) = whole.find(']') else { return Err("invalid host") };
    let (address, rest) = (&whole[1..close], &whole[close + 1..]);
    let (rest, uri) = split_uri(rest, form)?;
    let ip: Ipv6Addr = address.parse().map_err(|_| "invalid IPv6 address")?;
    let (port, last_port) = match rest.strip_prefix(':') {
        None if !rest.is_empty() => return Err("invalid host"),
        text => ports(text, form)?,
    };
    Ok(Authority {
        host: Host::Ip(IpAddr::V6(ip)),
        port,
        last_port,
        uri: uri.as_bytes().into(),
        host_text: whole[..=close].into(),
    })
}

fn inet(whole: &str, form: Form) -> Result<Authority, &'static str> {
    let (authority, uri) = split_uri(whole, form)?;
    let uri: Box<[u8]> = uri.as_bytes().into();
    let (host, port_text) = match authority.split_once(':') {
        Some((host, text)) => (host, Some(text)),
        None => (authority, None),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let alone = digits(host) || host.split_once('-').is_some_and(|(a, b)| digits(a) && digits(b));
    if port_text.is_none() && form.listen && alone {
        let (port, last_port) = ports(Some(host), form)?;
        return Ok(Authority { host: Host::Any, port, last_port, uri, host_text: "".into() });
    }
    if host.is_empty() {
        return Err("no host");
    }
    let (port, last_port) = ports(port_text, form)?;
    let host_text: Box<str> = host.into();
    if host == "*" && form.listen {
        return Ok(Authority { host: Host::Any, port, last_port, uri, host_text });
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(Authority { host: Host::Ip(IpAddr::V4(ip)), port, last_port, uri, host_text });
    }
    Ok(Authority { host: Host::Name(host_text.clone()), port, last_port, uri, host_text })
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
        check("unix:/run/x", listen, Ok((Host::Unix("/run/x".into()), None, "")));
        check("unix:", listen, Err("no path in the unix domain socket"));
        check("backend:8080/x?y", pass, Ok((Host::Name("backend".into()), Some(8080), "/x?y")));
        check("unix:/run/x:/y", pass, Ok((Host::Unix("/run/x".into()), None, "/y")));
    }
}

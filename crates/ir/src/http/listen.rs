//! `listen`: the addresses of servers, and which sockets they need.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::address::{self, Address, Form, Host};
use crate::http::core::{Core, HttpCore};
use crate::http::server_name::ServerName;
use crate::lowering::{Call, Fault, Merge};
use crate::program::{Http, LocationId};
use crate::value;

/// Options of a socket, as far as any `listen` of its address set them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// An option that belongs to the socket was given, so it is bound for itself.
    pub bind: bool,
    pub backlog: Option<i32>,
    pub rcvbuf: Option<u64>,
    pub sndbuf: Option<u64>,
    /// IPv6 sockets take IPv6 only unless told otherwise.
    pub ipv6only: Option<bool>,
    pub deferred: bool,
    pub reuseport: bool,
    /// Length of the TCP Fast Open queue.
    pub fastopen: Option<i32>,
    pub keepalive: Option<Keepalive>,
}

/// `so_keepalive`; `None` inside leaves the system's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keepalive {
    Off,
    On { idle: Option<u32>, interval: Option<u32>, count: Option<u32> },
}

/// How connections of an address are spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protocols {
    pub ssl: bool,
    pub http2: bool,
    pub proxy_protocol: bool,
}

/// One address that a server is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub address: Address,
    pub protocols: Protocols,
}

/// An address with everything that all servers on it said.
#[derive(Clone, Debug)]
pub struct Bound {
    pub address: Address,
    pub protocols: Protocols,
    pub options: SocketOptions,
    options_set: bool,
    /// The server for names that no other has; the first one unless another is marked.
    pub default_server: LocationId,
    default_marked: bool,
    pub servers: Vec<LocationId>,
}

/// A listening socket and the addresses that it serves: its own, and others that its wildcard covers.
#[derive(Clone, Debug)]
pub struct Socket {
    pub address: Address,
    pub options: SocketOptions,
    /// Positions in [`Http::bound`]; the socket's own address is the first.
    pub serves: Vec<usize>,
}

pub(crate) fn read(core: &mut Core, call: &mut Call<'_>) -> Result<(), Fault> {
    let authority = match address::parse(call.arg(0), Form { listen: true, uri: false }) {
        Ok(authority) => authority,
        Err(reason) => {
            let fault = call.fail(format!("{reason} in \"{}\" of the \"listen\" directive", call.text(0)));
            return Err(call.under(fault, 0));
        }
    };
    let addresses = call.addresses(&authority, 80).map_err(|reason| {
        let fault = call.fail(format!("{reason} in \"{}\" of the \"listen\" directive", call.text(0)));
        call.under(fault, 0)
    })?;
    let mut options = SocketOptions::default();
    let mut protocols = Protocols::default();
    let mut options_set = false;
    let mut default_marked = false;
    let unix = matches!(authority.host, Host::Unix(_));
    let v6 = matches!(authority.host, Host::Ip(IpAddr::V6(_)));
    for index in 1..call.args().len() {
        let text = call.text(index);
        let (key, val) = text.split_once('=').map_or((text.as_str(), None), |(k, v)| (k, Some(v)));
        let bad = |what: &str| {
            let fault = call.fail(format!("invalid {what} \"{}\"", val.unwrap_or("")));
            Err(call.under(fault, index))
        };
        let count = |v: Option<&str>| v.and_then(|v| value::number(v.as_bytes())).filter(|n| *n > 0);
        let mut socket = true;
        match (key, val) {
            ("default_server" | "default", None) => {
                default_marked = true;
                socket = false;
            }
            ("bind", None) => {}
            ("setfib", Some(_)) => {
                let fault = call.fail("\"setfib\" is not supported on this platform, ignored");
                return Err(call.under(fault, index));
            }
            ("fastopen", Some(_)) => match count(val) {
                Some(n) => options.fastopen = Some(n as i32),
                None => return bad("fastopen"),
            },
            ("backlog", Some(_)) => match count(val) {
                Some(n) => options.backlog = Some(n as i32),
                None => return bad("backlog"),
            },
            ("rcvbuf", Some(v)) => match value::size(v.as_bytes()) {
                Some(n) => options.rcvbuf = Some(n),
                None => return bad("rcvbuf"),
            },
            ("sndbuf", Some(v)) => match value::size(v.as_bytes()) {
                Some(n) => options.sndbuf = Some(n),
                None => return bad("sndbuf"),
            },
            ("accept_filter", Some(_)) => {
                let message =
                    format!("accept filters \"{text}\" are not supported on this platform, ignored");
                call.warn(message);
                socket = false;
            }
            ("deferred", None) => options.deferred = true,
            ("ipv6only", Some(v)) => {
                if !v6 {
                    let shown = addresses.first().map(ToString::to_string).unwrap_or_default();
                    return Err(call.fail(format!("ipv6only is not supported on addr \"{shown}\"")));
                }
                options.ipv6only = Some(match v {
                    "on" => true,
                    "off" => false,
                    _ => {
                        let fault = call.fail(format!("invalid ipv6only flags \"{v}\""));
                        return Err(call.under(fault, index));
                    }
                });
            }
            ("reuseport", None) => options.reuseport = true,
            ("ssl", None) => {
                protocols.ssl = true;
                socket = false;
            }
            ("http2", None) => {
                let message =
                    "the \"listen ... http2\" directive is deprecated, use the \"http2\" directive instead";
                call.warn(message);
                protocols.http2 = true;
                socket = false;
            }
            ("spdy", None) => {
                call.warn(
                    "invalid parameter \"spdy\": ngx_http_spdy_module was superseded by ngx_http_v2_module",
                );
                socket = false;
            }
            ("so_keepalive", Some(v)) => match keepalive(v) {
                Some(keepalive) => options.keepalive = Some(keepalive),
                None => {
                    let fault = call.fail(format!("invalid so_keepalive value: \"{v}\""));
                    return Err(call.under(fault, index));
                }
            },
            ("proxy_protocol", None) => {
                protocols.proxy_protocol = true;
                socket = false;
            }
            ("quic" | "multipath", None) => {
                let fault = call.fail(format!(
                    "the \"{key}\" parameter of \"listen\" is known but not supported by weir yet"
                ));
                return Err(call.under(fault, index));
            }
            _ => return Err(call.invalid_parameter(index)),
        }
        if socket {
            options_set = true;
            options.bind = true;
        }
    }
    if unix && options.reuseport {
        options.reuseport = false;
    }
    let server = call.location();
    let mut seen = vec![];
    let ranges = addresses.into_iter().flat_map(|address| {
        let last = authority.last_port;
        let ports = address.port().map_or(0..=0, |port| port..=last.unwrap_or(port));
        ports.map(move |port| match &address {
            Address::Ip(ip) => Address::Ip(SocketAddr::new(ip.ip(), port)),
            Address::Unix(_) => address.clone(),
        })
    });
    for address in ranges.collect::<Vec<_>>() {
        if seen.contains(&address) {
            continue;
        }
        seen.push(address.clone());
        let listen = Listen { address, protocols };
        add(call, server, &listen, &options, options_set, default_marked)?;
        core.listens.push(listen);
    }
    Ok(())
}

fn keepalive(text: &str) -> Option<Keepalive> {
    match text {
        "on" => return Some(Keepalive::On { idle: None, interval: None, count: None }),
        "off" => return Some(Keepalive::Off),
        _ => {}
    }
    let mut parts = text.split(':');
    let mut seconds = || match parts.next() {
        None | Some("") => Some(None),
        Some(part) => {
            value::sec(part.as_bytes()).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).map(Some)
        }
    };
    let (idle, interval) = (seconds()?, seconds()?);
    let count = match parts.next() {
        None | Some("") => None,
        Some(part) => {
            Some(value::number(part.as_bytes()).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0)?)
        }
    };
    if parts.next().is_some() || (idle.is_none() && interval.is_none() && count.is_none()) {
        return None;
    }
    Some(Keepalive::On { idle, interval, count })
}

/// Puts a server without `listen` on nginx's default address: port 80, or 8000 without privileges.
pub(crate) fn add_default(core: &mut Core, server: LocationId, call: &mut Call<'_>) -> Result<(), Fault> {
    let port = if call.world().privileged() { 80 } else { 8000 };
    let address = Address::Ip(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
    let listen = Listen { address, protocols: Protocols::default() };
    add(call, server, &listen, &SocketOptions::default(), false, false)?;
    core.listens.push(listen);
    Ok(())
}

fn add(
    call: &mut Call<'_>,
    server: LocationId,
    listen: &Listen,
    options: &SocketOptions,
    options_set: bool,
    default_marked: bool,
) -> Result<(), Fault> {
    let shown = listen.address.to_string();
    let http = call.http();
    let Some(at) = http.bound.iter().position(|b| b.address == listen.address) else {
        http.bound.push(Bound {
            address: listen.address.clone(),
            protocols: listen.protocols,
            options: options.clone(),
            options_set,
            default_server: server,
            default_marked,
            servers: vec![server],
        });
        return Ok(());
    };
    let bound = &mut http.bound[at];
    if bound.servers.contains(&server) {
        return Err(call.fail(format!("a duplicate listen {shown}")));
    }
    bound.servers.push(server);
    if options_set {
        if bound.options_set {
            return Err(call.fail(format!("duplicate listen options for {shown}")));
        }
        bound.options = options.clone();
        bound.options_set = true;
    }
    let differs = |a: bool, b: bool| a != b;
    let conflict = differs(bound.protocols.ssl, listen.protocols.ssl)
        || differs(bound.protocols.http2, listen.protocols.http2)
        || differs(bound.protocols.proxy_protocol, listen.protocols.proxy_protocol);
    // A server that says nothing of the protocol takes what others said of the address.
    let silent = listen.protocols == Protocols::default() && !options_set;
    bound.protocols.ssl |= listen.protocols.ssl;
    bound.protocols.http2 |= listen.protocols.http2;
    bound.protocols.proxy_protocol |= listen.protocols.proxy_protocol;
    if default_marked {
        if bound.default_marked {
            return Err(call.fail(format!("a duplicate default server for {shown}")));
        }
        bound.default_marked = true;
        bound.default_server = server;
    }
    if conflict && !silent {
        call.warn(format!("protocol options redefined for {shown}"));
    }
    Ok(())
}

/// Names that two servers of one address claim: the first keeps them.
pub(crate) fn check(merge: &mut Merge<'_>) {
    let http = merge.http();
    let mut warnings = vec![];
    for bound in &http.bound {
        let mut seen = HashMap::new();
        for server in &bound.servers {
            for name in &http.scope(*server).confs.get::<HttpCore>().server_names {
                if matches!(name, ServerName::Regex(_)) {
                    continue;
                }
                let key = name.shown();
                if seen.insert(key.clone(), *server).is_some() {
                    warnings.push(format!("conflicting server name \"{key}\" on {}, ignored", bound.address));
                }
            }
        }
    }
    for warning in warnings {
        merge.warn_nowhere(warning);
    }
}

/// The sockets that the addresses need: an address under a wildcard of its port has none of its own unless it
/// asks for one with `bind` or an option that implies it.
pub fn sockets(http: &Http) -> Vec<Socket> {
    let mut sockets: Vec<Socket> = vec![];
    let wildcard = |a: &Address| matches!(a, Address::Ip(ip) if ip.ip().is_unspecified());
    let covers = |wide: &Address, narrow: &Address| match (wide, narrow) {
        (Address::Ip(wide), Address::Ip(narrow)) => {
            wide.port() == narrow.port()
                && match wide.ip() {
                    IpAddr::V4(ip) => ip == Ipv4Addr::UNSPECIFIED && narrow.is_ipv4(),
                    IpAddr::V6(ip) => ip == Ipv6Addr::UNSPECIFIED && narrow.is_ipv6(),
                }
        }
        (Address::Unix(_), _) | (_, Address::Unix(_)) => false,
    };
    for (at, bound) in http.bound.iter().enumerate() {
        let covered = !wildcard(&bound.address)
            && !bound.options.bind
            && http.bound.iter().any(|other| covers(&other.address, &bound.address));
        if !covered {
            sockets.push(Socket {
                address: bound.address.clone(),
                options: bound.options.clone(),
                serves: vec![at],
            });
        }
    }
    for (at, bound) in http.bound.iter().enumerate() {
        let own = sockets.iter().any(|s| s.serves[0] == at);
        if !own {
            if let Some(socket) = sockets.iter_mut().find(|s| covers(&s.address, &bound.address)) {
                socket.serves.push(at);
            }
        }
    }
    sockets
}

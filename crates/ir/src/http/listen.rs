//! `listen`: the addresses of servers, and which sockets they need.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use weir_syntax::Diagnostic;

use crate::address::{self, Address, Form, Host};
use crate::http::core::{Core, HttpCore};
use crate::http::server_name::{Claimed, ServerName, Unclaimed};
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
    redefined: Redefined,
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
            return Err(bad_address(reason, call));
        }
    };
    let addresses = call.addresses(&authority, 80).map_err(|reason| bad_address(reason, call))?;
    let mut options = SocketOptions::default();
    let mut protocols = Protocols::default();
    let mut options_set = false;
    let mut default_marked = false;
    let unix = matches!(authority.host, Host::Unix(_));
    for index in 1..call.args().len() {
        let text = call.text(index);
        let (key, val) = text.split_once('=').map_or((text.as_str(), None), |(k, v)| (k, Some(v)));
        let bad = || Err(call.fail_at(index, &format!("invalid {key}")));
        let count = |v: Option<&str>| {
            v.and_then(|v| value::number(v.as_bytes())).map(|n| i32::try_from(n).unwrap_or(i32::MAX))
        };
        let mut socket = true;
        match (key, val) {
            ("default_server" | "default", None) => {
                default_marked = true;
                socket = false;
            }
            ("bind", None) => {}
            ("fastopen", Some(_)) => match count(val) {
                Some(n) => options.fastopen = Some(n),
                None => return bad(),
            },
            ("backlog", Some(_)) => match count(val) {
                Some(n @ 1..) => options.backlog = Some(n),
                _ => return bad(),
            },
            ("rcvbuf", Some(v)) => match value::size(v.as_bytes()) {
                Some(n) => options.rcvbuf = Some(n),
                None => return bad(),
            },
            ("sndbuf", Some(v)) => match value::size(v.as_bytes()) {
                Some(n) => options.sndbuf = Some(n),
                None => return bad(),
            },
            ("accept_filter", Some(_)) => {
                let message =
                    format!("accept filters \"{text}\" are not supported on this platform, ignored");
                call.warn(message);
                socket = false;
            }
            ("deferred", None) => options.deferred = true,
            // Of addresses that are not IPv6 it says nothing.
            ("ipv6only", Some("on")) => options.ipv6only = Some(true),
            ("ipv6only", Some("off")) => options.ipv6only = Some(false),
            ("ipv6only", Some(v)) if v.starts_with('o') => {
                let fault = call.fail(format!("invalid ipv6only flags \"{v}\""));
                return Err(call.under(fault, index));
            }
            ("reuseport", None) => options.reuseport = true,
            ("ssl", None) => {
                protocols.ssl = true;
                socket = false;
            }
            ("proxy_protocol", None) => {
                protocols.proxy_protocol = true;
                socket = false;
            }
            ("http2", None) => {
                let message =
                    "the \"listen ... http2\" directive is deprecated, use the \"http2\" directive instead";
                call.warn(message);
                protocols.http2 = true;
                socket = false;
            }
            ("so_keepalive", Some(v)) => match keepalive(v) {
                Some(keepalive) => options.keepalive = Some(keepalive),
                None => {
                    let fault = call.fail(format!("invalid so_keepalive value: \"{v}\""));
                    return Err(call.under(fault, index));
                }
            },
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
    // A name may have an address twice.
    let mut seen = HashSet::new();
    for address in addresses {
        if !seen.insert(address.clone()) {
            continue;
        }
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
    let mut parts = text.splitn(3, ':').map(str::as_bytes);
    let mut next = |read: fn(&[u8]) -> Option<u64>| match parts.next() {
        None | Some(b"") => Some(None),
        // 0 leaves the system's value, too.
        Some(part) => read(part).map(|n| Some(u32::try_from(n).unwrap_or(u32::MAX)).filter(|n| *n > 0)),
    };
    let (idle, interval, count) = (next(value::sec)?, next(value::sec)?, next(value::number)?);
    (idle.is_some() || interval.is_some() || count.is_some()).then_some(Keepalive::On {
        idle,
        interval,
        count,
    })
}

fn bad_address(reason: &str, call: &Call<'_>) -> Fault {
    let message = [reason.as_bytes(), b" in \"", call.arg(0), b"\" of the \"listen\" directive"].concat();
    call.under(call.fail(message), 0)
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
    let Some(&at) = http.places.get(&listen.address) else {
        http.places.insert(listen.address.clone(), http.bound.len());
        http.bound.push(Bound {
            address: listen.address.clone(),
            protocols: listen.protocols,
            options: options.clone(),
            options_set,
            redefined: Redefined::default(),
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
    let before = bound.protocols;
    if default_marked {
        if bound.default_marked {
            return Err(call.fail(format!("a duplicate default server for {shown}")));
        }
        bound.default_marked = true;
        bound.default_server = server;
    }
    bound.protocols = before.or(listen.protocols);
    if bound.redefined.by(before, listen.protocols, options_set, bound.options_set) {
        call.warn(format!("protocol options redefined for {shown}"));
    }
    Ok(())
}

impl Protocols {
    fn or(self, other: Self) -> Self {
        Self {
            ssl: self.ssl || other.ssl,
            http2: self.http2 || other.http2,
            proxy_protocol: self.proxy_protocol || other.proxy_protocol,
        }
    }
}

/// What further servers of an address made of its protocols: nginx warns where they are hard to make sense of.
#[derive(Clone, Copy, Debug, Default)]
struct Redefined {
    /// What the servers agreed on so far, once a second one was heard.
    agreed: Option<Protocols>,
    changed: bool,
}

impl Redefined {
    /// Hears another server and says whether to warn. `set` are options of the socket, of this server and of any.
    fn by(&mut self, before: Protocols, now: Protocols, set: bool, any_set: bool) -> bool {
        let both = before.or(now);
        let disagrees = self.agreed.is_some_and(|agreed| agreed != now);
        if both != before {
            let warn = (any_set && !set) || self.changed || both != now;
            *self = Self { agreed: Some(before), changed: true };
            warn
        } else if both != now {
            *self = Self { agreed: Some(now), changed: true };
            set || disagrees
        } else {
            let warn = (set && self.changed) || disagrees;
            self.agreed = Some(now);
            warn
        }
    }
}

/// Names that two servers of one address claim: the first keeps them.
pub(crate) fn check(merge: &mut Merge<'_>) {
    let http = merge.http();
    let mut told = vec![];
    for bound in in_order(&http.bound) {
        let cores: Vec<_> = bound.servers.iter().map(|id| http.scope(*id).confs.get::<HttpCore>()).collect();
        let default = http.scope(bound.default_server).confs.get::<HttpCore>();
        let is_captures = |name: &ServerName| matches!(name, ServerName::Regex(regex) if regex.groups() > 0);
        if cores.len() < 2 && !default.server_names.iter().any(is_captures) {
            continue;
        }
        let mut claimed = Claimed::default();
        for name in cores.iter().flat_map(|core| &core.server_names) {
            let (shown, address) = (name.shown(), &bound.address);
            told.extend(match claimed.claim(name) {
                Ok(()) => None,
                Err(Unclaimed::Invalid) => Some(Diagnostic::emerg(format!(
                    "invalid server name or wildcard \"{shown}\" on {address}"
                ))),
                Err(Unclaimed::Conflict) => Some(Diagnostic::warn(format!(
                    "conflicting server name \"{shown}\" on {address}, ignored"
                ))),
            });
        }
    }
    merge.state.diagnostics.append(&mut told);
}

/// The addresses in the order in which nginx looks at them: by port as first named, those with a socket of their own
/// first and wildcards last.
fn in_order(bound: &[Bound]) -> Vec<&Bound> {
    let port = |b: &Bound| match &b.address {
        Address::Ip(ip) => (Some(ip.is_ipv4()), ip.port()),
        Address::Unix(_) => (None, 0),
    };
    let rank = |b: &Bound| match &b.address {
        Address::Ip(ip) if ip.ip().is_unspecified() => 2,
        Address::Ip(_) | Address::Unix(_) => u8::from(!b.options.bind),
    };
    let mut first = HashMap::new();
    for (at, b) in bound.iter().enumerate() {
        first.entry(port(b)).or_insert(at);
    }
    let mut order: Vec<&Bound> = bound.iter().collect();
    order.sort_by_key(|b| (first.get(&port(b)), rank(b)));
    order
}

/// The sockets that the addresses need: an address under a wildcard of its port has none of its own unless it
/// asks for one with `bind` or an option that implies it.
pub fn sockets(http: &Http) -> Vec<Socket> {
    let wildcard = |address: &Address| match address {
        Address::Ip(ip) if ip.is_ipv4() => Some((Ipv4Addr::UNSPECIFIED, ip.port()).into()),
        Address::Ip(ip) => Some((Ipv6Addr::UNSPECIFIED, ip.port()).into()),
        Address::Unix(_) => None,
    };
    let wildcard = |address: &Address| wildcard(address).map(Address::Ip).filter(|wide| wide != address);
    let mut sockets: Vec<Socket> = vec![];
    let mut of = HashMap::new();
    let mut covered = vec![];
    for (at, bound) in http.bound.iter().enumerate() {
        match wildcard(&bound.address).filter(|wide| http.places.contains_key(wide)) {
            Some(wide) if !bound.options.bind => covered.push((at, wide)),
            _ => {
                of.insert(&bound.address, sockets.len());
                sockets.push(Socket {
                    address: bound.address.clone(),
                    options: bound.options.clone(),
                    serves: vec![at],
                });
            }
        }
    }
    for (at, wide) in covered {
        if let Some(socket) = of.get(&wide) {
            sockets[*socket].serves.push(at);
        }
    }
    sockets
}

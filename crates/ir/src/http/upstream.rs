//! `ngx_http_upstream_module`: groups of servers.

use std::sync::Arc;

use crate::address::{self, Authority, Form, Host};
use crate::contract::{Confs, Contexts, Directive, Module, Takes};
use crate::http::HttpCore;
use crate::lowering::{At, Call, Fault, Merge};
use crate::program::{Resolve, Server, Upstream};
use crate::value;

pub struct HttpUpstream;

type D = Directive<HttpUpstream>;

impl Module for HttpUpstream {
    const NAME: &'static str = "http_upstream";
    type Main = ();
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("upstream", Contexts::HTTP, Takes::ONE.with_block(), upstream),
        D::scope("server", Contexts::UPSTREAM, Takes::ONE_MORE, server),
        D::scope("queue", Contexts::UPSTREAM, Takes::ONE_TWO, queue),
        D::scope("resolver", Contexts::UPSTREAM, Takes::ONE_MORE, resolver),
        D::scope("resolver_timeout", Contexts::UPSTREAM, Takes::ONE, resolver_timeout),
    ];

    fn init((): &mut (), merge: &mut Merge<'_>) -> Result<(), Fault> {
        resolve(merge)
    }
}

fn upstream((): &mut (), call: &mut Call<'_>) -> Result<(), Fault> {
    let name = call.text(0);
    let position = call.position();
    let upstreams = &mut call.http().upstreams;
    let index = match upstreams.iter().position(|u| u.name.eq_ignore_ascii_case(&name)) {
        Some(index) if upstreams[index].explicit => {
            return Err(call.fail(format!("duplicate upstream \"{name}\"")));
        }
        // A `proxy_pass` further up named it already.
        Some(index) if upstreams[index].port == 0 => {
            upstreams[index].explicit = true;
            upstreams[index].position = position;
            index
        }
        Some(index) => {
            let before = &upstreams[index];
            let message = format!(
                "upstream \"{name}\" may not have port {} in {}:{}",
                before.port, before.position.file, before.position.line
            );
            return Err(call.fail_nowhere(message));
        }
        None => {
            upstreams.push(Upstream {
                name: name.as_str().into(),
                port: 0,
                default_port: 0,
                authority: None,
                explicit: true,
                servers: vec![],
                balancers: vec![],
                unsupported: &[],
                shared: false,
                resolver: None,
                resolver_timeout: None,
                checks: Arc::default(),
                queue: None,
                confs: Confs::default(),
                position,
            });
            upstreams.len() - 1
        }
    };
    call.read_block(Contexts::UPSTREAM, At::Upstream(index));
    if call.http().upstreams[index].servers.is_empty() {
        return Err(call.fail_at_end("no servers are inside upstream"));
    }
    Ok(())
}

fn server((): &mut (), call: &mut Call<'_>) -> Result<(), Fault> {
    let bad = |reason: &str, call: &Call<'_>| {
        let message = [reason.as_bytes(), b" in upstream \"", call.arg(0), b"\""].concat();
        call.under(call.fail(message), 0)
    };
    let authority = address::parse(call.arg(0), Form::default()).map_err(|reason| bad(reason, call))?;
    let mut server = Server::new(call.text(0).into(), vec![]);
    let (mut resolves, mut service) = (false, None);
    for index in 1..call.args().len() {
        let text = call.text(index);
        let (key, val) = text.split_once('=').map_or((text.as_str(), None), |(k, v)| (k, Some(v)));
        let number = |v: &str| value::number(v.as_bytes()).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let parsed = match (key, val) {
            ("weight", Some(v)) => number(v).filter(|n| *n > 0).map(|n| server.weight = n),
            ("max_conns", Some(v)) => number(v).map(|n| server.max_conns = n),
            ("max_fails", Some(v)) => number(v).map(|n| server.max_fails = n),
            ("fail_timeout", Some(v)) => value::sec(v.as_bytes()).map(|n| server.fail_timeout = n),
            ("backup" | "slow_start", _) if call.upstream().unsupported.contains(&key) => {
                let message = format!("balancing method does not support parameter \"{text}\"");
                return Err(call.under(call.fail(message), index));
            }
            ("slow_start", Some(v)) => value::msec(v.as_bytes()).map(|n| server.slow_start = n),
            ("backup", None) => {
                server.backup = true;
                Some(())
            }
            ("down", None) => {
                (server.down, server.drain) = (true, false);
                Some(())
            }
            ("drain", None) => {
                (server.down, server.drain) = (false, true);
                Some(())
            }
            ("down_action", Some(action @ ("keep" | "close"))) => {
                server.closes = action == "close";
                Some(())
            }
            ("route", Some(route)) => {
                server.route = Some(self::route(route, call)?);
                Some(())
            }
            ("resolve", None) => {
                resolves = true;
                Some(())
            }
            ("service", Some("")) => return Err(call.under(call.fail("service is empty"), index)),
            ("service", Some(name)) => {
                service = Some(name.into());
                Some(())
            }
            _ => None,
        };
        if parsed.is_none() {
            return Err(call.invalid_parameter(index));
        }
    }
    let refused = |reason: &str| {
        let message = [b"service upstream \"", call.arg(0), b"\" ", reason.as_bytes()].concat();
        Err(call.under(call.fail(message), 0))
    };
    match (&service, &authority.host) {
        (Some(_), _) if !resolves => return refused("requires \"resolve\" parameter"),
        // A path counts as one.
        (Some(_), Host::Unix(_)) => return refused("may not have port"),
        (Some(_), _) if authority.port.is_some() => return refused("may not have port"),
        (Some(_), Host::Any | Host::Ip(_)) => return refused("requires domain name"),
        // An address needs no resolving.
        (_, Host::Name(host)) if resolves => {
            let port = authority.port.unwrap_or(80);
            server.resolve = Some(Resolve { host: (&**host).into(), port, service });
        }
        _ => {}
    }
    if server.resolve.is_none() {
        server.addresses = call.addresses(&authority, 80).map_err(|reason| bad(reason, call))?;
    }
    call.upstream().servers.push(server);
    Ok(())
}

fn route(text: &str, call: &Call<'_>) -> Result<Arc<[u8]>, Fault> {
    const LONGEST: usize = 32;
    match text.len() {
        0 => Err(call.fail("route is empty")),
        length if length > LONGEST => Err(call.fail(format!("route is longer than {LONGEST}"))),
        _ => Ok(text.as_bytes().into()),
    }
}

impl Call<'_> {
    /// Makes a module the balancer of the upstream block that the directive stands in. Some have no use for some
    /// parameters of the servers that follow.
    pub fn balance(&mut self, module: &'static str, unsupported: &'static [&'static str]) {
        if !self.upstream().balancers.is_empty() {
            self.warn("load balancing method redefined");
        }
        let upstream = self.upstream();
        upstream.balancers = vec![module];
        upstream.unsupported = unsupported;
    }

    /// The upstream that an address of a `…_pass` directive names: a block of that name, now or further down,
    /// or an implicit group of the addresses that the name resolves to.
    ///
    /// # Errors
    /// An upstream block of that name cannot be asked at a port.
    pub fn upstream_of(&mut self, authority: &Authority, default_port: u16) -> Result<usize, Fault> {
        let name: Arc<str> = match &authority.host {
            Host::Unix(path) => format!("unix:{path}").into(),
            Host::Any | Host::Ip(_) | Host::Name(_) => (&*authority.host_text).into(),
        };
        let port = match authority.host {
            Host::Unix(_) => 0,
            Host::Any | Host::Ip(_) | Host::Name(_) => authority.port.unwrap_or(0),
        };
        let position = self.position();
        let upstreams = &mut self.http().upstreams;
        let asked = if port == 0 && !matches!(authority.host, Host::Unix(_)) { default_port } else { port };
        for (index, upstream) in upstreams.iter().enumerate() {
            if !upstream.name.eq_ignore_ascii_case(&name) {
                continue;
            }
            if upstream.explicit && port != 0 {
                return Err(self.fail(format!("upstream \"{name}\" may not have port {port}")));
            }
            // A port that is left out is the scheme's.
            let own = if upstream.port == 0 { upstream.default_port } else { upstream.port };
            if upstream.explicit || own == 0 || asked == 0 || own == asked {
                return Ok(index);
            }
        }
        upstreams.push(Upstream {
            name,
            port,
            default_port,
            authority: Some(authority.clone()),
            explicit: false,
            servers: vec![],
            balancers: vec![],
            unsupported: &[],
            shared: false,
            resolver: None,
            resolver_timeout: None,
            checks: Arc::default(),
            queue: None,
            confs: Confs::default(),
            position,
        });
        Ok(upstreams.len() - 1)
    }
}

fn resolver((): &mut (), call: &mut Call<'_>) -> Result<(), Fault> {
    if call.upstream().resolver.is_some() {
        return Err(call.duplicate());
    }
    let resolver = crate::http::resolver::read(call)?;
    call.upstream().resolver = Some(Arc::new(resolver));
    Ok(())
}

fn resolver_timeout((): &mut (), call: &mut Call<'_>) -> Result<(), Fault> {
    if call.upstream().resolver_timeout.is_some() {
        return Err(call.duplicate());
    }
    call.upstream().resolver_timeout = Some(call.msec()?);
    Ok(())
}

fn queue((): &mut (), call: &mut Call<'_>) -> Result<(), Fault> {
    if call.upstream().queue.is_some() {
        return Err(call.duplicate());
    }
    let most = value::number(call.arg(0)).filter(|most| *most > 0);
    let most = most.ok_or_else(|| call.invalid_value(0))?;
    let timeout = match call.args().get(1).map(|word| word.value.strip_prefix(b"timeout=")) {
        None => Some(60_000),
        Some(text) => text.and_then(value::msec).filter(|timeout| *timeout > 0),
    };
    let timeout = timeout.ok_or_else(|| call.invalid_parameter(1))?;
    call.upstream().queue = Some((usize::try_from(most).unwrap_or(usize::MAX), timeout));
    Ok(())
}

/// Who resolves names at run time asks its own resolver or that of `http`, and has to be shared.
fn resolve_later(merge: &mut Merge<'_>, index: usize) -> Result<(), Fault> {
    let core = merge.http().scopes[0].confs.get::<HttpCore>();
    let (resolver, timeout) = (core.resolver.get().cloned(), core.resolver_timeout.get().copied());
    drop(core);
    let upstream = &mut merge.http().upstreams[index];
    if upstream.servers.iter().all(|server| server.resolve.is_none()) {
        return Ok(());
    }
    upstream.resolver = upstream.resolver.take().or(resolver);
    upstream.resolver_timeout = upstream.resolver_timeout.or(timeout);
    let (name, at) = (&upstream.name, &upstream.position);
    if !upstream.shared {
        let message = format!(
            "resolving names at run time requires upstream \"{name}\" in {}:{} to be in shared memory",
            at.file, at.line
        );
        return Err(merge.fail_nowhere(message));
    }
    if upstream.resolver.is_none() {
        let message = format!(
            "no resolver defined to resolve names at run time in upstream \"{name}\" in {}:{}",
            at.file, at.line
        );
        return Err(merge.fail_nowhere(message));
    }
    Ok(())
}

/// Gives implicit upstreams their addresses, now that it is known which names are blocks.
fn resolve(merge: &mut Merge<'_>) -> Result<(), Fault> {
    for index in 0..merge.http().upstreams.len() {
        let upstream = &merge.http().upstreams[index];
        if upstream.explicit && upstream.servers.iter().all(|server| server.backup) {
            let (name, at) = (upstream.name.clone(), upstream.position.clone());
            return Err(
                merge.fail_nowhere(format!("no servers in upstream \"{name}\" in {}:{}", at.file, at.line))
            );
        }
        // The method may have been named behind the servers.
        let slowly = upstream.servers.iter().any(|server| server.slow_start > 0);
        if slowly && upstream.unsupported.contains(&"slow_start") {
            let (name, at) = (&upstream.name, &upstream.position);
            let message = format!(
                "balancing method does not support parameter \"slow_start\" in upstream \"{name}\" in {}:{}",
                at.file, at.line
            );
            return Err(merge.fail_nowhere(message));
        }
        resolve_later(merge, index)?;
        let upstream = &merge.http().upstreams[index];
        let (false, Some(authority)) = (upstream.explicit, upstream.authority.clone()) else { continue };
        let default_port = upstream.default_port;
        if upstream.port == 0 && default_port == 0 && !matches!(authority.host, Host::Unix(_)) {
            let (name, at) = (upstream.name.clone(), upstream.position.clone());
            return Err(
                merge.fail_nowhere(format!("no port in upstream \"{name}\" in {}:{}", at.file, at.line))
            );
        }
        let addresses = crate::lowering::addresses(merge.world(), &authority, default_port);
        let addresses = addresses.map_err(|reason| {
            let upstream = &merge.http().upstreams[index];
            let (name, at) = (upstream.name.clone(), upstream.position.clone());
            merge.fail_nowhere(format!("{reason} in upstream \"{name}\" in {}:{}", at.file, at.line))
        })?;
        let upstream = &mut merge.http().upstreams[index];
        let port = authority.port.unwrap_or(default_port);
        let name = match &authority.host {
            Host::Unix(_) => Arc::clone(&upstream.name),
            Host::Any | Host::Ip(_) | Host::Name(_) => format!("{}:{port}", upstream.name).into(),
        };
        upstream.servers.push(Server::new(name, addresses));
    }
    Ok(())
}

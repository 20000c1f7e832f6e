//! How a peer is asked, and when the next one is: what `proxy_…` and `tunnel_…` have in common as well.

use std::sync::Arc;

use weir_engine::generation::Plan;
use weir_engine::http::Exchange;
use weir_engine::io::ConnectOptions;
use weir_engine::upstream::exchange::next;
use weir_engine::upstream::{Settings, Target, Unresolved, Upstream, Whom};
use weir_ir::Setting;
use weir_ir::address::{self, Authority, Host};
use weir_ir::lowering::{Call, Fault};
use weir_syntax::Level;

/// The settings of one level.
#[derive(Clone, Debug, Default)]
pub struct Attempts {
    /// `None` is `off`.
    bind: Setting<Option<Bind>>,
    pub(crate) socket_keepalive: Setting<bool>,
    pub(crate) socket_rcvbuf: Setting<u64>,
    pub(crate) socket_sndbuf: Setting<u64>,
    pub(crate) connect_timeout: Setting<u64>,
    pub(crate) send_timeout: Setting<u64>,
    pub(crate) read_timeout: Setting<u64>,
    next_upstream: Setting<u32>,
    pub(crate) next_tries: Setting<u64>,
    pub(crate) next_timeout: Setting<u64>,
}

/// `…_bind`, where it is not `off`.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Bind {
    from: weir_ir::Template,
    /// The address need not be the machine's own.
    transparent: bool,
}

impl Attempts {
    /// `…_bind`
    pub(crate) fn bind(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        self.bind.put_with(call, |call| {
            if call.args().len() == 1 && call.arg(0) == b"off" {
                return Ok(None);
            }
            let from = call.template(0)?;
            if from.as_literal().is_some_and(|text| address::local(text).is_none()) {
                let fault = call.fail(format!("invalid address \"{}\"", call.text(0)));
                return Err(call.under(fault, 0));
            }
            let transparent = call.args().len() > 1;
            if transparent {
                if call.arg(1) != b"transparent" {
                    return Err(call.invalid_parameter(1));
                }
                call.needs_transparent();
            }
            Ok(Some(Bind { from, transparent }))
        })
    }

    /// `…_next_upstream`, of these words.
    pub(crate) fn add_next_upstream(
        &mut self,
        words: &[(&str, u32)],
        call: &mut Call<'_>,
    ) -> Result<(), Fault> {
        // A second directive of a level adds to the first.
        let mut bits = self.next_upstream.or(0);
        call.add_bits(&mut bits, words)?;
        self.next_upstream.replace(bits);
        Ok(())
    }

    /// Takes over what the level leaves open.
    pub(crate) fn inherit(&mut self, outer: &Self) {
        macro_rules! settings {
            ($($field:ident),* $(,)?) => { $(self.$field.inherit(&outer.$field);)* };
        }
        settings!(
            bind,
            socket_keepalive,
            socket_rcvbuf,
            socket_sndbuf,
            connect_timeout,
            send_timeout,
            read_timeout,
            next_upstream,
            next_tries,
            next_timeout,
        );
    }

    pub(super) fn bound(&self) -> Option<&Bind> {
        self.bind.get().and_then(Option::as_ref)
    }

    /// What the engine goes by, with nothing of what is sent.
    pub(crate) fn settings(&self, plan: &Plan<'_, '_>) -> Settings {
        let bind = self.bound();
        Settings {
            connect_timeout: self.connect_timeout.or(60_000),
            send_timeout: self.send_timeout.or(60_000),
            read_timeout: self.read_timeout.or(60_000),
            next_upstream: match self.next_upstream.or(next::ERROR | next::TIMEOUT) {
                bits if bits & next::OFF != 0 => next::OFF,
                bits => bits & !next::UPDATING,
            },
            next_upstream_tries: self.next_tries.or(0),
            next_upstream_timeout: self.next_timeout.or(0),
            socket: ConnectOptions {
                keepalive: self.socket_keepalive.or(false),
                receive_buffer: self.socket_rcvbuf.get().map(|n| *n as usize),
                send_buffer: self.socket_sndbuf.get().map(|n| *n as usize),
                transparent: bind.is_some_and(|bind| bind.transparent),
                ..ConnectOptions::default()
            },
            bind: bind.map(|bind| Arc::new(plan.template(&bind.from))),
            ..Settings::default()
        }
    }
}

/// A group of the configuration by that name, or a group of the one address; none for any other name.
pub(crate) fn group(x: &Exchange, authority: &Authority, default_port: u16) -> Option<Arc<Upstream>> {
    let port = authority.port.unwrap_or(default_port);
    let named = |u: &&Arc<Upstream>| {
        u.name.eq_ignore_ascii_case(&authority.host_text)
            && (u.explicit && authority.port.is_none() || u.port == port)
    };
    if let Some(group) = x.generation.upstreams.iter().find(named) {
        return Some(Arc::clone(group));
    }
    let address = match &authority.host {
        Host::Ip(ip) => address::Address::Ip((*ip, port).into()),
        Host::Unix(path) => address::Address::Unix(Arc::clone(path)),
        Host::Any | Host::Name(_) => return None,
    };
    Some(Arc::new(Upstream::of_addresses(&authority.host_text, port, [address])))
}

/// Whom a computed authority names where its protocol has no port of its own.
///
/// # Errors
/// The status to answer with, where no port is given; that was logged.
pub(crate) fn whom(x: &Exchange, authority: Authority, scheme: &'static str) -> Result<Whom, u16> {
    if let Some(group) = group(x, &authority, 0) {
        let own_port = group.explicit || matches!(authority.host, Host::Unix(_));
        if own_port || authority.port.is_some() {
            return Ok(Whom::Known(Target { group, scheme, tls: false }));
        }
    }
    let host = authority.host_text;
    let Some(port) = authority.port else {
        x.log(Level::Error, format_args!("no port in upstream \"{host}\""));
        return Err(500);
    };
    Ok(Whom::Unresolved(Box::new(Unresolved { host, port, scheme, tls: false })))
}

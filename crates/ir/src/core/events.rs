//! `ngx_event_core_module` and `ngx_epoll_module`: the `events` block.

use crate::cidr::Cidr;
use crate::contract::{Conf, Contexts, Directive, Module, Once, Setting, Takes};
use crate::core::main;
use crate::http::listen::sockets;
use crate::lowering::{Call, Fault, Merge};
use crate::value;

pub struct Events;

type D = Directive<Events>;

const EVENTS: Contexts = Contexts::EVENTS;

impl Module for Events {
    const NAME: &'static str = "event";
    type Main = Conn;
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::main("events", Contexts::MAIN, Takes::BLOCK, events),
        D::main("worker_connections", EVENTS, Takes::ONE, |s, c| {
            s.worker_connections
                .put_with(c, |c| value::number(c.arg(0)).ok_or_else(|| c.fail_at(0, "invalid number")))
        }),
        D::main("use", EVENTS, Takes::ONE, use_method).accepted("weir uses epoll"),
        D::main("multi_accept", EVENTS, Takes::FLAG, |s, c| s.once.flag(c))
            .accepted("each thread accepts what is there, up to a bound"),
        D::main("accept_mutex", EVENTS, Takes::FLAG, |s, c| s.once.flag(c))
            .accepted("each thread has a listening socket of its own"),
        D::main("accept_mutex_delay", EVENTS, Takes::ONE, |s, c| s.once.msec(c))
            .accepted("each thread has a listening socket of its own"),
        D::main("epoll_events", EVENTS, Takes::ONE, |s, c| s.once.number(c))
            .accepted("the event queue sizes itself"),
        D::main("worker_aio_requests", EVENTS, Takes::ONE, |s, c| s.once.number(c))
            .accepted("weir reads files without kernel aio"),
        D::main("debug_connection", EVENTS, Takes::ONE, debug_connection),
    ];

    fn init(conf: &mut Conn, merge: &mut Merge<'_>) -> Result<(), Fault> {
        if !conf.seen {
            // nginx refuses such a file; its defaults serve as well.
            merge.warn_nowhere("no \"events\" section in configuration, its defaults are used");
        }
        let connections = conf.worker_connections.or(512);
        let sockets = merge.state.program.http.as_ref().map_or(0, |http| sockets(http).len());
        // One more is for the channel to the master.
        if connections < sockets as u64 + 1 {
            return Err(merge.fail_nowhere(format!(
                "{connections} worker_connections are not enough for {sockets} listening sockets"
            )));
        }
        Ok(())
    }
}

/// The `events` block.
#[derive(Clone, Debug, Default)]
pub struct Conn {
    seen: bool,
    /// Connections at once, per reactor thread as nginx counts per worker.
    pub worker_connections: Setting<u64>,
    /// `debug_connection`: clients of whose connections all is logged.
    pub debugged: Vec<Cidr>,
    once: Once,
}

impl Conf for Conn {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

fn debug_connection(conf: &mut Conn, call: &mut Call<'_>) -> Result<(), Fault> {
    if call.arg(0) == b"unix:" {
        conf.debugged.push(Cidr::Unix);
        return Ok(());
    }
    if let Some((range, low_bits)) = Cidr::parse(call.arg(0)) {
        if low_bits {
            call.warn(format!("low address bits of {} are meaningless", call.text(0)));
        }
        conf.debugged.push(range);
        return Ok(());
    }
    match call.world().resolve(&call.text(0)) {
        Ok(found) if !found.is_empty() => {
            conf.debugged.extend(found.into_iter().map(Cidr::of));
            Ok(())
        }
        Ok(_) | Err(_) => {
            let message = format!("host not found in debug_connection \"{}\"", call.text(0));
            Err(call.under(call.fail(message), 0))
        }
    }
}

fn events(conf: &mut Conn, call: &mut Call<'_>) -> Result<(), Fault> {
    if conf.seen {
        return Err(call.duplicate());
    }
    conf.seen = true;
    main::nested(conf, call, EVENTS);
    Ok(())
}

fn use_method(conf: &mut Conn, call: &mut Call<'_>) -> Result<(), Fault> {
    // nginx on Linux has no other unless it is built for it.
    conf.once.read(call, |call| match call.arg(0) {
        b"epoll" => Ok(()),
        _ => Err(call.fail_at(0, "invalid event type")),
    })
}

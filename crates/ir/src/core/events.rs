//! `ngx_event_core_module` and `ngx_epoll_module`: the `events` block.

use crate::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use crate::core::main;
use crate::lowering::{Call, Fault, Merge};

pub struct Events;

type D = Directive<Events>;

const EVENTS: Contexts = Contexts::EVENTS;

impl Module for Events {
    const NAME: &'static str = "event";
    type Main = Conn;
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::main("events", Contexts::MAIN, Takes::BLOCK, events),
        D::main("worker_connections", EVENTS, Takes::ONE, |s, c| s.worker_connections.number(c)),
        D::main("use", EVENTS, Takes::ONE, use_method).accepted("weir uses epoll"),
        D::main("multi_accept", EVENTS, Takes::FLAG, |_, c| c.flag().map(drop))
            .accepted("each thread accepts what is there, up to a bound"),
        D::main("accept_mutex", EVENTS, Takes::FLAG, |_, c| c.flag().map(drop))
            .accepted("each thread has a listening socket of its own"),
        D::main("accept_mutex_delay", EVENTS, Takes::ONE, |_, c| c.msec().map(drop))
            .accepted("each thread has a listening socket of its own"),
        D::main("epoll_events", EVENTS, Takes::ONE, |_, c| c.number().map(drop))
            .accepted("the event queue sizes itself"),
        D::main("worker_aio_requests", EVENTS, Takes::ONE, |_, c| c.number().map(drop))
            .accepted("weir reads files without kernel aio"),
    ];

    fn init(conf: &mut Conn, merge: &mut Merge<'_>) -> Result<(), Fault> {
        if !conf.seen {
            merge.warn_nowhere("no \"events\" section in configuration, using its defaults");
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
}

impl Conf for Conn {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
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

fn use_method(_: &mut Conn, call: &mut Call<'_>) -> Result<(), Fault> {
    match call.arg(0) {
        b"epoll" | b"poll" | b"select" => Ok(()),
        _ => {
            let fault = call.fail(format!("invalid event type \"{}\"", call.text(0)));
            Err(call.under(fault, 0))
        }
    }
}

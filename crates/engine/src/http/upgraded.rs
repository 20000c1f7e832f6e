//! A connection that goes on as a tunnel: what it leaves behind, what it keeps, and its lines in the logs when it ends.

use std::any::Any;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use weir_syntax::Level;

use crate::contract::{TunnelFacts, TunnelLog};
use crate::errorlog::{self, Log};
use crate::http::exchange::Tunnel;
use crate::http::{Client, Exchange};
use crate::reactor::{Count, Reactor};
use crate::tunnel::{self, Call, Side};
use crate::upstream::PeerGuard;

/// Carries a connection on as a tunnel, which keeps nothing of the exchange but what its log lines need. `end` is when
/// the connection has to end, in milliseconds of the thread's clock.
pub(crate) fn start_tunnel(mut x: Exchange, tunnel: Tunnel, end: Option<u64>) {
    let reactor = Rc::clone(&x.reactor);
    let handlers = &x.location().handlers.log;
    let logs = handlers.iter().filter_map(|handler| handler.detach(&x)).collect();
    let log = x.log_handle().of_connection(&x.connection.log);
    let context = log.takes(Level::Error).then(|| errorlog::context(|line| x.write_context(line)));
    let last = x.upstream_states.last();
    let before = Before {
        sent: x.sent,
        received: x.request_length,
        started: x.started,
        upstream_sent: last.map_or(0, |state| state.bytes_sent),
        upstream_received: last.map_or(0, |state| state.bytes_received),
    };
    let Tunnel { upstream, from_upstream, options, peer } = tunnel;
    let guards = std::mem::take(&mut x.guards);
    x.end();
    let Client { io, input, .. } = {
        let x = x;
        x.client
    };
    // Copied, now that the exchange is gone: what stays with the tunnel would keep the memory around it from its next use.
    let failures = context.map(|context| Failures { log, context: context.clone() });
    let running = tunnel::Tunnel::new(io, upstream, input, from_upstream, options, reactor.timers());
    let control = running.control();
    if let Some(end) = end {
        control.drain(end);
    }
    if let Some(peer) = &peer {
        control.set_peer(peer.load());
    }
    reactor.register_tunnel(&control);
    if control.is_left_behind() {
        control.finish();
    }
    let task = RunningTunnel {
        reactor: Rc::clone(&reactor),
        tunnel: running,
        held: (peer, guards),
        before,
        logs,
        failures,
    };
    for count in task.counts() {
        count.up();
    }
    reactor.spawn(task);
}

/// What was counted of the connection before it became a tunnel.
struct Before {
    sent: u64,
    received: u64,
    started: u64,
    upstream_sent: u64,
    upstream_received: u64,
}

/// A tunnel on its way, with what is still to be told of it. Written out, since an async function would hold its
/// arguments twice, and an idle tunnel is little else.
struct RunningTunnel {
    reactor: Rc<Reactor>,
    tunnel: tunnel::Tunnel,
    /// What is given back at the end: the peer's place, and what modules hold.
    held: (Option<PeerGuard>, Vec<Box<dyn Any>>),
    before: Before,
    logs: Box<[Box<dyn TunnelLog>]>,
    failures: Option<Failures>,
}

/// Where it is told what broke a tunnel, and the request that it came of, which is gone by then. Kept only where the
/// error log would take it.
struct Failures {
    log: Log,
    context: Box<[u8]>,
}

impl Failures {
    /// A client that goes away is its own affair; as in nginx, so is an upstream that is silent.
    fn tell(&self, reason: &tunnel::Reason) {
        let timed_out = io::Error::from_raw_os_error(nix::libc::ETIMEDOUT);
        let (level, message, error) = match reason {
            tunnel::Reason::Eof(_)
            | tunnel::Reason::Aborted
            | tunnel::Reason::Drained
            | tunnel::Reason::Finished => return,
            tunnel::Reason::Timeout(Side::Client) => (Level::Info, "client timed out", &timed_out),
            tunnel::Reason::Timeout(Side::Upstream) => (Level::Info, "upstream timed out", &timed_out),
            tunnel::Reason::Failed { side, call, error } => {
                let level = if *side == Side::Client { Level::Info } else { Level::Error };
                let message = match call {
                    Call::Recv => "recv() failed",
                    Call::Send => "send() failed",
                };
                (level, message, error)
            }
        };
        let errno = error.raw_os_error().map(nix::errno::Errno::from_raw);
        // TLS has no numbers for what goes wrong.
        let words = if errno.is_none() { format!(" ({error})") } else { String::new() };
        self.log.write_with(level, errno, format_args!("{message}{words}"), |line| {
            line.bytes(b" while proxying upgraded connection");
            line.bytes(&self.context);
        });
    }
}

impl RunningTunnel {
    /// What a tunnel is to be counted as.
    fn counts(&self) -> [&Count; 2] {
        let counts = &self.reactor.counts;
        [&counts.active, &counts.writing]
    }
}

impl Future for RunningTunnel {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let closed = ready!(this.tunnel.poll_closed(cx));
        this.held = (None, vec![]);
        if let Some(failures) = &this.failures {
            failures.tell(&closed.reason);
        }
        let before = &this.before;
        let facts = TunnelFacts {
            bytes_sent: before.sent + closed.bytes_down,
            body_bytes_sent: closed.bytes_down,
            request_length: before.received + closed.bytes_up,
            request_time: closed.ended.saturating_sub(before.started),
            upstream_response_time: closed.ended.saturating_sub(before.started),
            upstream_bytes_sent: before.upstream_sent + closed.bytes_up,
            upstream_bytes_received: before.upstream_received + closed.bytes_down,
            unix_ms: this.reactor.clock().unix_ms(),
            complete: closed.reason.is_complete(),
        };
        for log in &this.logs {
            log.log(&facts, this.reactor.timers());
        }
        Poll::Ready(())
    }
}

impl Drop for RunningTunnel {
    fn drop(&mut self) {
        for count in self.counts() {
            count.down();
        }
    }
}

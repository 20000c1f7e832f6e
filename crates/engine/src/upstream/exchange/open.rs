//! A connection for a request: one that was kept, or a new one.

use std::future::poll_fn;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use weir_syntax::Level;

use super::{Asking, Attempt, Failure, client_gone, log_timeout, next, poll_client_gone};
use crate::http::{Exchange, Template};
use crate::io::{ConnectCall, ConnectOptions, Io, connect};
use crate::reactor::others_first;
use crate::upstream::balance::Picked;
use crate::upstream::body::{Line, Tag};

impl Asking<'_> {
    /// Takes a kept connection or opens one, and sends on it what it takes at once.
    pub(super) async fn open(
        &mut self,
        x: &mut Exchange,
        picked: Picked,
        now: u64,
    ) -> Result<Attempt, Failure> {
        let group = &self.target.group;
        let peer = &group.peers[picked.index];
        let tag = self.tag(x);
        if let Some(mut line) = x.reactor.pools.take(group.pool_id, &peer.address, tag, now) {
            line.guard = Some(picked.guard);
            line.group = Some(Arc::clone(group));
            line.requests += 1;
            if let Some(state) = x.upstream_states.last_mut() {
                state.connect_time = Some(0);
            }
            return Ok(Attempt::new(picked.index, line, true, now));
        }
        self.connect(x, picked, tag, now).await
    }

    /// What connections of this request are known by.
    pub(super) fn tag(&self, x: &Exchange) -> Tag {
        let local = self.target.group.pool.local;
        let of_location = if local { u64::from(x.location.0) + 1 } else { 0 };
        let settings = self.protocol.settings();
        let mut opened_by = settings.opened_by.wrapping_add(of_location);
        if let Some(bind) = settings.bind.as_ref().filter(|bind| bind.as_literal().is_none()) {
            let mut hash = DefaultHasher::new();
            (opened_by, bind.value(x)).hash(&mut hash);
            opened_by = hash.finish();
        }
        Tag { settings: opened_by, identity: self.identity }
    }

    /// Opens a connection.
    pub(super) async fn connect(
        &self,
        x: &mut Exchange,
        picked: Picked,
        tag: Tag,
        now: u64,
    ) -> Result<Attempt, Failure> {
        let group = &self.target.group;
        let Picked { index, guard } = picked;
        let peer = &group.peers[index];
        let settings = self.protocol.settings();
        let bind = settings.bind.as_ref().and_then(|bind| local_address(x, bind));
        let socket = ConnectOptions { bind, ..settings.socket.clone() };
        let mut connecting = match connect(&peer.address, &socket) {
            Ok(connecting) => connecting,
            Err(failed) => {
                let message = match (failed.call, &settings.bind) {
                    (ConnectCall::Connect, _) => {
                        format!("connect() to {} failed", String::from_utf8_lossy(&peer.text))
                    }
                    (ConnectCall::Bind, Some(bind)) => {
                        format!("bind({}) failed", String::from_utf8_lossy(&bind.value(x)))
                    }
                    _ => failed.to_string(),
                };
                x.log_while(failed.level(), Some(&failed.error), message, self.doing);
                if failed.call == ConnectCall::Connect {
                    return Err(Failure::of(next::ERROR, false));
                }
                // The fault is ours, and no other peer makes it good.
                if let Some(state) = x.upstream_states.last_mut() {
                    state.peer = None;
                }
                return Err(Failure::end(500));
            }
        };
        let mut sent = 0;
        if self.identity == 0 && self.http2.is_none() {
            // A peer that sleeps is woken by what it is sent, which costs the sender: the others of this turn connect first,
            // and then all that there is to send goes out at once.
            others_first().await;
            // The request is offered before the connection is known to be up: to a near peer it is.
            match connecting.try_send(&self.request) {
                Ok(n) => sent = n,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => {}
                Err(error) => return Err(connect_failed(x, &error)),
            }
        }
        if !connecting.is_connected() {
            self.timer.set_in(settings.connect_timeout);
            let timer = &self.timer;
            let connected = poll_fn(|cx| {
                if let Poll::Ready(result) = connecting.poll_connected(cx) {
                    return Poll::Ready(Waited::Done(result));
                }
                if poll_client_gone(x, cx, settings) {
                    return Poll::Ready(Waited::ClientGone);
                }
                timer.poll_expired(cx).map(|()| Waited::Timeout)
            });
            match connected.await {
                Waited::Done(Ok(())) => {}
                Waited::Done(Err(error)) => return Err(connect_failed(x, &error)),
                Waited::Timeout => {
                    log_timeout(x, "connecting to upstream");
                    return Err(Failure::of(next::TIMEOUT, false));
                }
                Waited::ClientGone => return Err(client_gone(x, "connecting to upstream")),
            }
            if self.identity == 0 {
                self.timer.clear();
            }
        }
        x.debug(|| format!("connect to {}", peer.address));
        let connected = x.reactor.clock().now_ms();
        if let Some(state) = x.upstream_states.last_mut() {
            state.connect_time = Some(connected.saturating_sub(now));
            state.bytes_sent = sent as u64;
        }
        let line = Line {
            io: Io::Plain(connecting.into_socket()),
            peer: Arc::clone(&peer.address),
            guard: Some(guard),
            group: Some(Arc::clone(group)),
            tag,
            requests: 1,
            opened: connected,
            until: connected,
            keep: false,
            nodelay: false,
        };
        Ok(Attempt::new(index, Box::new(line), false, now))
    }
}

/// The address that a connection comes from; what is none is told and left to the kernel.
fn local_address(x: &Exchange, bind: &Template) -> Option<SocketAddr> {
    let text = bind.value(x);
    if text.is_empty() {
        return None;
    }
    let found = weir_ir::address::local(&text);
    if found.is_none() {
        let shown = String::from_utf8_lossy(&text);
        x.log(Level::Error, format_args!("invalid local address \"{shown}\""));
    }
    found
}

/// How waiting for a connection ended.
pub(super) enum Waited<T> {
    Done(io::Result<T>),
    Timeout,
    ClientGone,
}

fn connect_failed(x: &Exchange, error: &io::Error) -> Failure {
    x.log_while(Level::Error, Some(error), "connect() failed", "connecting to upstream");
    Failure::of(next::ERROR, false)
}

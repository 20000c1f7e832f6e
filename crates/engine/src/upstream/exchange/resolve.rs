//! A request whose upstream is a name that only the resolver knows.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use weir_ir::address::Address;
use weir_syntax::Level;

use super::{Settings, Target, Unresolved, Upstream, poll_client_gone};
use crate::http::Exchange;
use crate::resolver::{Failure, name_of};

/// Waits for the addresses of a host and makes a group of them.
///
/// # Errors
/// The status to answer with; the reason was logged.
pub(super) async fn resolve(
    x: &mut Exchange,
    unresolved: Unresolved,
    settings: &Settings,
) -> Result<Target, u16> {
    let Unresolved { host, port, scheme, tls } = unresolved;
    let core = &x.location().core;
    let (resolver, timeout) = (core.resolver.clone(), core.resolver_timeout);
    let Some(resolver) = resolver else {
        x.log(Level::Error, format_args!("no resolver defined to resolve {host}"));
        return Err(502);
    };
    let (reactor, name) = (Rc::clone(&x.reactor), name_of(&host));
    let timer = reactor.timers().register();
    if timeout > 0 {
        timer.set_in(timeout);
    }
    let mut asked = pin!(resolver.resolve(&reactor, &name));
    let resolved = poll_fn(|cx| {
        if let Poll::Ready(resolved) = asked.as_mut().poll(cx) {
            return Poll::Ready(Some(resolved));
        }
        if poll_client_gone(x, cx, settings) {
            return Poll::Ready(None);
        }
        timer.poll_expired(cx).map(|()| Some(Err(Failure::TimedOut)))
    });
    match resolved.await {
        Some(Ok(resolved)) => {
            let addresses = resolved.addresses.into_iter().map(|ip| Address::Ip((ip, port).into()));
            Ok(Target { group: Arc::new(Upstream::of_addresses(&host, port, addresses)), scheme, tls })
        }
        Some(Err(failure)) => {
            let name = String::from_utf8_lossy(&name);
            x.log(Level::Error, format_args!("{name} could not be resolved ({failure})"));
            Err(502)
        }
        None => {
            x.log(Level::Info, "epoll_wait() reported that client prematurely closed connection");
            Err(499)
        }
    }
}

//! TLS to upstreams: what a request adds to the settings, and the handshake before it is sent.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use weir_syntax::Level;

use super::{Asking, Attempt, Failure, Waited, Wire, client_gone, log_timeout, next, poll_client_gone};
use crate::http::{Exchange, Template};
use crate::io::{Io, Records};
use crate::tls::{ClientTls, Distrust, failed};

/// What a `…_pass` module's directives say of TLS.
pub struct Tls {
    pub client: Arc<ClientTls>,
    /// The name of the peer, where it is not the group's (nginx: `proxy_ssl_name`).
    pub name: Option<Template>,
    /// Certificate and key, where they are of the request.
    pub pair: Option<(Template, Template)>,
}

/// What a connection was opened with that is of the request: another request may use it only if all of it is the same.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::upstream) struct Identity {
    pub name: Vec<u8>,
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

impl Tls {
    pub(super) fn identity(&self, x: &Exchange, group: &str) -> Identity {
        let mut identity = Identity::default();
        if self.client.needs_name() {
            identity.name =
                self.name.as_ref().map_or_else(|| group.as_bytes().to_vec(), |name| name.value(x));
            let end = port_of(&identity.name);
            identity.name.truncate(end);
        }
        if let Some((certificate, key)) = &self.pair {
            identity.certificate = certificate.value(x);
            if !identity.certificate.is_empty() {
                identity.key = key.value(x);
            }
        }
        identity
    }
}

/// Where a port begins in a name, which may be of `$proxy_host` or `$http_host`.
fn port_of(name: &[u8]) -> usize {
    let host = match name.first() {
        Some(b'[') => memchr::memchr(b']', name).unwrap_or(0),
        Some(_) | None => 0,
    };
    memchr::memchr(b':', &name[host..]).map_or(name.len(), |at| host + at)
}

/// The name as it is told; none of an address.
fn told(name: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(name).ok()?;
    (!name.is_empty() && !name.starts_with('[') && name.parse::<Ipv4Addr>().is_err()).then_some(name)
}

impl Asking<'_> {
    /// Does the handshake on a connection that is up; it has the time that is left of connecting.
    pub(super) async fn shake_hands(&self, x: &mut Exchange, attempt: &mut Attempt) -> Result<(), Failure> {
        const DOING: &str = "SSL handshaking to upstream";
        let settings = self.protocol.settings();
        let Some(tls) = &settings.tls else { return Ok(()) };
        let identity = tls.identity(x, &self.target.group.name);
        if x.location().core.tcp_nodelay {
            attempt.line.set_nodelay();
        }
        let socket = match std::mem::replace(&mut attempt.line.io, Io::Absent) {
            Io::Plain(socket) => socket,
            other => {
                attempt.line.io = other;
                return Ok(());
            }
        };
        let http2 = settings.wire == Wire::Http2;
        let mut config = tls.client.of_peer(&attempt.line.peer, http2);
        if let Some(pairs) = tls.client.pairs.as_ref().filter(|_| !identity.certificate.is_empty()) {
            let now = x.reactor.clock().now_ms();
            match pairs.get(&identity.certificate, &identity.key, now).await {
                Ok(pair) => config = tls.client.with_pair(pair, http2),
                Err(fault) => {
                    x.log_while(Level::Error, None, fault, "connecting to upstream");
                    return Err(Failure::end(500));
                }
            }
        }
        // Without a name that is told, any will do: it only finds sessions, and those are of this peer.
        let mut name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
        if let Some(told) = told(&identity.name).filter(|_| tls.client.tells_name()) {
            let Ok(valid) = ServerName::try_from(told.to_owned()) else {
                let message = format!("SSL_set_tlsext_host_name(\"{told}\") failed");
                x.log_while(Level::Error, None, message, "connecting to upstream");
                return Err(Failure::end(500));
            };
            name = valid;
        }
        let timer = &self.timer;
        if timer.deadline().is_none() {
            timer.set_in(settings.connect_timeout);
        }
        let connect = TlsConnector::from(config).connect(name, Records::new(socket));
        let mut connect = connect.into_fallible();
        let shaken = poll_fn(|cx| {
            if let Poll::Ready(result) = Pin::new(&mut connect).poll(cx) {
                return Poll::Ready(Waited::Done(result.map_err(Records::give_up)));
            }
            if poll_client_gone(x, cx, settings) {
                return Poll::Ready(Waited::ClientGone);
            }
            timer.poll_expired(cx).map(|()| Waited::Timeout)
        });
        let stream = match shaken.await {
            Waited::Done(Ok(stream)) => stream,
            Waited::Done(Err(error)) => {
                let (message, error) = failed(error);
                x.log_while(Level::Error, error.as_ref(), message, DOING);
                return Err(Failure::of(next::ERROR, false));
            }
            Waited::Timeout => {
                log_timeout(x, DOING);
                return Err(Failure::of(next::TIMEOUT, false));
            }
            Waited::ClientGone => return Err(client_gone(x, DOING)),
        };
        timer.clear();
        let connected = x.reactor.clock().now_ms();
        attempt.line.opened = connected;
        if let Some(state) = x.upstream_states.last_mut() {
            state.connect_time = Some(connected.saturating_sub(attempt.started));
        }
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let message = match tls.client.judge(shown, &identity.name) {
            Ok(()) => {
                attempt.line.tag.identity = x.reactor.pools.identify(identity);
                attempt.line.io = Io::from(stream);
                return Ok(());
            }
            Err(Distrust::Chain(reason)) => {
                format!("upstream SSL certificate verify error: ({}:{})", reason.code, reason.text)
            }
            Err(Distrust::Name) => {
                let name = String::from_utf8_lossy(&identity.name);
                format!("upstream SSL certificate does not match \"{name}\"")
            }
        };
        // The handshake was in order, and the peer is not to take it for broken.
        stream.into_inner().0.try_send();
        x.log_while(Level::Error, None, message, DOING);
        Err(Failure::of(next::ERROR, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_ports() {
        #[track_caller]
        fn check(name: &str, expected: &str, expected_told: Option<&str>) {
            let bare = &name.as_bytes()[..port_of(name.as_bytes())];
            assert_eq!(bare, expected.as_bytes());
            assert_eq!(told(bare), expected_told);
        }
        check("a.example", "a.example", Some("a.example"));
        check("a.example:443", "a.example", Some("a.example"));
        check("127.0.0.1:443", "127.0.0.1", None);
        check("[::1]:443", "[::1]", None);
        check("[::1]", "[::1]", None);
        check("[::1", "[", None);
        check("unix:/a", "unix", Some("unix"));
        check("", "", None);
    }
}

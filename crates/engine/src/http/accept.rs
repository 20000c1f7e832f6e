//! From an accepted socket to a served connection: its address in the configuration, what a proxy in front tells, TLS,
//! then HTTP.

use std::rc::Rc;
use std::sync::Arc;

use crate::http::connection::{self, Start};
use crate::http2;
use crate::io::{Address, Io, Socket};
use crate::proxy_protocol;
use crate::reactor::{Counts, Reactor};
use crate::tls::{self, Accepted};

/// Counts a connection as active while it lives.
struct Active(Arc<Counts>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.down();
    }
}

/// Serves a connection that a listener took, until it ends.
///
/// `listener` is the address of the listening socket, as it is among the generation's sockets.
pub async fn serve_accepted(reactor: Rc<Reactor>, listener: Arc<Address>, socket: Socket, peer: Address) {
    reactor.counts.active.up();
    let _active = Active(Arc::clone(&reactor.counts));
    let generation = reactor.current();
    let local = match &*listener {
        // As in nginx, only where there are several is the socket asked which one it is.
        Address::Ip(ip) if ip.ip().is_unspecified() => match socket.local_addr() {
            Ok(local) => local,
            // One that is gone already has no address any more, and nobody to be told.
            Err(_) => return,
        },
        one => one.clone(),
    };
    let Some(address) = generation.address_of(&listener, &local) else { return };
    // From here on, so that a handshake too ends with `worker_shutdown_timeout`.
    let idle = reactor.register_idle();
    let mut record = connection::accepted(&reactor, &generation, peer, local, address);
    let protocols = generation.addresses[address].protocols;
    // All boxed, so that what they take is given back before the connection waits for requests.
    if protocols.proxy_protocol {
        let mut told =
            Box::pin(proxy_protocol::accept(&reactor, &generation, &listener, &mut record, &socket));
        if idle.bounded(told.as_mut()).await != Some(true) {
            return;
        }
    }
    let (io, start) = if protocols.ssl {
        let accepted = {
            let mut handshake = Box::pin(tls::accept(&reactor, &generation, &listener, &mut record, socket));
            idle.bounded(handshake.as_mut()).await.flatten()
        };
        match accepted {
            None => return,
            Some(Accepted::Tls { io, session }) => {
                let http2 = session.alpn.as_deref() == Some(b"h2");
                record.tls = Some(session);
                (io, Start { http2, ..Start::default() })
            }
            Some(Accepted::Plain { io, input }) => (io, Start { input, plain_on_tls: true, http2: false }),
        }
    } else if http2::is_spoken(&generation, address, generation.addresses[address].default_server) {
        let begins = {
            let mut begins = Box::pin(http2::begins(&reactor, &generation, &record, socket));
            idle.bounded(begins.as_mut()).await.flatten()
        };
        match begins {
            None => return,
            Some(begins) => begins,
        }
    } else {
        (Io::Plain(socket), Start::default())
    };
    if start.http2 {
        // Boxed too: a connection of HTTP/1 is not to be larger for it.
        let served = http2::serve_from(reactor, generation, listener, record, io, start.input, idle);
        return Box::pin(served).await;
    }
    connection::serve_from(reactor, generation, listener, record, io, start, idle).await;
}

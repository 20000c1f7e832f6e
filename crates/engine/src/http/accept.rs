//! A connection from its accept to its first request.

use std::rc::Rc;
use std::sync::Arc;

use crate::http::connection;
use crate::io::{Address, Io, Socket};
use crate::reactor::Reactor;

/// Serves a connection that a listener took, until it ends.
pub async fn serve_accepted(reactor: Rc<Reactor>, listener: Arc<Address>, socket: Socket, peer: Address) {
    let generation = reactor.current();
    let Ok(local) = socket.local_addr() else { return };
    let Some(address) = generation.address_of(&listener, &local) else { return };
    let connection = connection::accepted(&reactor, &generation, peer, local, address);
    connection::serve(reactor, generation, listener, connection, Io::Plain(socket)).await;
}

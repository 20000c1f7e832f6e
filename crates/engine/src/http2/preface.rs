//! What a client without TLS begins with: the preface of HTTP/2, or a request of HTTP/1.

use std::future::poll_fn;
use std::task::{Poll, ready};

use weir_syntax::Level;

use crate::generation::Generation;
use crate::http::connection::Start;
use crate::http::exchange::Connection;
use crate::io::{Buf, Io, Socket, scratch};
use crate::reactor::Reactor;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads as far as it takes to know how a connection begins. `None` where the client says nothing in time, or is gone.
pub(crate) async fn begins(
    reactor: &Reactor,
    generation: &Generation,
    connection: &Connection,
    socket: Socket,
) -> Option<(Io, Start)> {
    let server = generation.addresses[connection.address()].default_server;
    let timer = reactor.timers().register();
    timer.set_in(generation.location(server).core.client_header_timeout);
    let mut input = Buf::new();
    let http2 = poll_fn(|cx| {
        loop {
            let read = scratch(|bytes| {
                let n = ready!(socket.poll_read(cx, bytes))?;
                input.extend(&bytes[..n]);
                Poll::Ready(Ok::<usize, std::io::Error>(n))
            });
            match read {
                Poll::Pending => {
                    return timer.poll_expired(cx).map(|()| {
                        log(connection, "client timed out");
                        None
                    });
                }
                Poll::Ready(Ok(1..)) if PREFACE.starts_with(&input) && input.len() < PREFACE.len() => {}
                Poll::Ready(Ok(1..)) if input.starts_with(PREFACE) => {
                    return Poll::Ready(Some(true));
                }
                // An end in the middle is for HTTP/1 to tell of.
                Poll::Ready(Ok(n)) if n > 0 || !input.is_empty() => {
                    return Poll::Ready(Some(false));
                }
                Poll::Ready(_) => return Poll::Ready(None),
            }
        }
    })
    .await?;
    Some((Io::Plain(socket), Start { input, http2, ..Start::default() }))
}

fn log(connection: &Connection, message: &str) {
    connection.log.write_with(Level::Info, None, message, |line| {
        line.field("client", connection.peer.text());
        line.field("server", connection.local.to_string().as_bytes());
    });
}

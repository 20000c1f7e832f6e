//! A connection's bytes: plain or TLS, over TCP or a unix socket, behind one enum without trait objects.
//!
//! All of it lives on one reactor thread. Poll functions keep the task's waker registered with the reactor when they
//! answer `Pending`; a message costs one read and one write, because a read that returns less than was asked for
//! clears the readiness and the next poll makes no system call.

pub mod buf;
mod connect;
#[cfg(test)]
pub(crate) mod pair;
mod records;
mod sendfile;
mod socket;
mod sockets;

pub use buf::{Block, Buf, given_back, scratch};
pub use connect::{ConnectCall, ConnectError, ConnectOptions, Connecting, connect};
pub use records::Records;
pub use socket::{Address, Socket};
pub use sockets::{Listener, Severity, accept_loop};

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use rustls::Writer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{client, server};

use crate::http2::Stream;
use crate::timer::Timers;
use crate::upstream::{fastcgi, http2};

/// One end of a connection.
pub enum Io {
    /// No TLS.
    Plain(Socket),
    /// We accepted the connection. Boxed: a session takes several KiB.
    TlsServer(Box<server::TlsStream<Records>>),
    /// We opened the connection.
    TlsClient(Box<client::TlsStream<Records>>),
    /// A stream of a connection that hyper has: HTTP/2 from a client.
    Stream(Box<Stream>),
    /// A stream of a connection to an upstream, which others share: HTTP/2 with h2.
    Request(Box<http2::Stream>),
    /// A connection to an upstream that speaks FastCGI: its output is read, and records are written.
    FastCgi(Box<fastcgi::Application>),
    /// Nobody is there: nothing is ever read, and nothing can be written.
    Absent,
}

fn absent<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

impl Io {
    /// The socket below, with or without TLS on it.
    pub fn socket(&self) -> Option<&Socket> {
        match self {
            Io::Plain(socket) => Some(socket),
            Io::TlsServer(tls) => Some(tls.get_ref().0.socket()),
            Io::TlsClient(tls) => Some(tls.get_ref().0.socket()),
            Io::FastCgi(application) => application.io().socket(),
            Io::Stream(_) | Io::Request(_) | Io::Absent => None,
        }
    }

    /// Whether TLS is spoken.
    pub fn is_tls(&self) -> bool {
        matches!(self, Io::TlsServer(_) | Io::TlsClient(_))
    }

    /// Reads what is there, up to `into.len()` bytes; 0 is the end of the stream.
    ///
    /// A TLS peer that closes the socket without a close_notify counts as an end, not as an error: clients do that
    /// all the time, and what HTTP frames is checked by HTTP (nginx: `SSL_OP_IGNORE_UNEXPECTED_EOF`).
    #[inline]
    pub fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Io::Plain(socket) = self {
            return socket.poll_read(cx, into);
        }
        let mut read = ReadBuf::new(into);
        let polled = match self {
            Io::TlsServer(tls) => Pin::new(&mut **tls).poll_read(cx, &mut read),
            Io::TlsClient(tls) => Pin::new(&mut **tls).poll_read(cx, &mut read),
            Io::Stream(stream) => return stream.poll_read(cx, into),
            Io::Request(stream) => return stream.poll_read(cx, into),
            Io::FastCgi(application) => return application.poll_read(cx, into),
            Io::Plain(_) | Io::Absent => return Poll::Pending,
        };
        if polled.is_pending() && self.owes_records() {
            // The peer may be waiting too. A failure shows in whatever is done next.
            let _ = self.poll_flush(cx);
        }
        polled.map(|result| match result {
            Ok(()) => Ok(read.filled().len()),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            Err(e) => Err(e),
        })
    }

    /// Whether the peer has taken some of the session's records, or of a stream's response, since this was asked last. Of a plain
    /// socket each write tells.
    pub fn has_taken(&mut self) -> bool {
        match self {
            Io::Plain(_) | Io::Request(_) | Io::FastCgi(_) | Io::Absent => false,
            Io::Stream(stream) => stream.has_taken(),
            Io::TlsServer(tls) => tls.get_mut().0.has_taken(),
            Io::TlsClient(tls) => tls.get_mut().0.has_taken(),
        }
    }

    /// Whether there are records that were not sent yet: bytes of ours, or the session's own word to the peer (tickets, no
    /// renegotiation).
    pub(crate) fn owes_records(&self) -> bool {
        match self {
            Io::Plain(_) | Io::Stream(_) | Io::Request(_) | Io::FastCgi(_) | Io::Absent => false,
            Io::TlsServer(tls) => tls.get_ref().1.wants_write() || tls.get_ref().0.holds(),
            Io::TlsClient(tls) => tls.get_ref().1.wants_write() || tls.get_ref().0.holds(),
        }
    }

    /// Writes as much as the peer takes now. With TLS, written means taken by the session, which sends nothing while it
    /// has room: ask [`Io::poll_flush`] before waiting for anything else.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Io::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Io::TlsServer(_) | Io::TlsClient(_) if bytes.is_empty() => Poll::Ready(Ok(0)),
            Io::TlsServer(_) | Io::TlsClient(_) => self.poll_seal(cx, |session| session.write(bytes)),
            Io::Stream(stream) => stream.poll_write(cx, bytes),
            Io::FastCgi(application) => application.io_mut().poll_write(cx, bytes),
            Io::Request(_) | Io::Absent => absent(),
        }
    }

    /// Gives the session what it has room for.
    fn poll_seal(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&mut Writer<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let taken = match self {
                Io::TlsServer(tls) => write(&mut tls.get_mut().1.writer())?,
                Io::TlsClient(tls) => write(&mut tls.get_mut().1.writer())?,
                Io::Plain(_) | Io::Stream(_) | Io::Request(_) | Io::FastCgi(_) | Io::Absent => {
                    return absent();
                }
            };
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
            if !self.owes_records() {
                // It has room, and seals no more with its key.
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            ready!(self.poll_flush(cx))?;
        }
    }

    /// Writes what a plain socket takes now, for whoever can do with less than waiting: `WouldBlock` where it takes
    /// nothing, and with TLS always.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Io::Plain(socket) => socket.try_write(bytes),
            Io::FastCgi(application) => application.io().try_write(bytes),
            Io::TlsServer(_) | Io::TlsClient(_) | Io::Stream(_) | Io::Request(_) | Io::Absent => {
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
    }

    /// As [`Io::poll_write`] for several pieces: one `writev`, or one run of TLS records.
    pub fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Io::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, pieces),
            Io::TlsServer(_) | Io::TlsClient(_) if pieces.iter().all(|piece| piece.is_empty()) => {
                Poll::Ready(Ok(0))
            }
            Io::TlsServer(_) | Io::TlsClient(_) => {
                self.poll_seal(cx, |session| session.write_vectored(pieces))
            }
            Io::Stream(stream) => stream.poll_write_vectored(cx, pieces),
            Io::FastCgi(application) => application.io_mut().poll_write_vectored(cx, pieces),
            Io::Request(_) | Io::Absent => absent(),
        }
    }

    /// As [`Io::poll_write`], saying that more follows at once: on a plain socket the kernel may wait for it to fill
    /// the segment (`MSG_MORE`; nginx: `tcp_nopush`). For the head before a [`Io::poll_sendfile`].
    pub fn poll_write_more(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Io::Plain(socket) => sendfile::poll_send_more(socket, cx, &[IoSlice::new(bytes)]),
            _ => self.poll_write(cx, bytes),
        }
    }

    /// Sends the TLS records that were not sent yet; nothing to do on a plain socket.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Io::Plain(_) | Io::Request(_) | Io::FastCgi(_) | Io::Absent => Poll::Ready(Ok(())),
            Io::Stream(stream) => stream.poll_flush(cx),
            Io::TlsServer(tls) => Pin::new(&mut **tls).poll_flush(cx),
            Io::TlsClient(tls) => Pin::new(&mut **tls).poll_flush(cx),
        }
    }

    /// Ends our direction: close_notify with TLS, then FIN. Reading goes on.
    pub fn poll_shutdown_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Io::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Io::TlsServer(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
            Io::TlsClient(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
            Io::Stream(stream) => stream.poll_shutdown(cx),
            Io::FastCgi(application) => application.io_mut().poll_shutdown_write(cx),
            Io::Request(_) | Io::Absent => Poll::Ready(Ok(())),
        }
    }

    /// Whether a read would find something: what the session holds, bytes, an end or an error on the socket.
    /// With TLS this may be an incomplete record, so a read after it may still wait.
    #[inline]
    pub fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.session_is_readable() {
            return Poll::Ready(Ok(()));
        }
        if let Io::FastCgi(application) = self {
            return application.poll_read_ready(cx);
        }
        self.socket().map_or(Poll::Pending, |socket| socket.poll_read_ready(cx))
    }

    /// Whether the socket takes bytes. Readiness is a hint: only a write that waits clears it.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().map_or(Poll::Pending, |socket| socket.poll_write_ready(cx))
    }

    /// Whether the TLS session holds decrypted bytes, or the peer's word that it has said all, which no readiness of the
    /// socket will announce.
    fn session_is_readable(&self) -> bool {
        // All that came was processed by the read that took it. What rustls wants no more for is one of the two.
        match self {
            Io::Plain(_) | Io::Stream(_) | Io::Request(_) | Io::FastCgi(_) | Io::Absent => false,
            Io::TlsServer(tls) => !tls.get_ref().1.wants_read(),
            Io::TlsClient(tls) => !tls.get_ref().1.wants_read(),
        }
    }

    /// Waits until an idle connection is of no more use: closed, broken, or sent something that nobody asked for.
    /// TLS housekeeping (session tickets) is taken in silently.
    pub fn poll_stale(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut byte = [0u8; 1];
        self.poll_read(cx, &mut byte).map(|_| ())
    }

    /// Whether a pooled connection must not be used again. No system call while nothing has arrived. Whoever waits in
    /// [`Io::poll_stale`] must poll again afterwards to be woken.
    pub fn is_stale(&mut self) -> bool {
        match self {
            Io::Plain(socket) => {
                let mut byte = [0u8; 1];
                socket.read(&mut byte).is_some()
            }
            Io::TlsServer(_)
            | Io::TlsClient(_)
            | Io::Stream(_)
            | Io::Request(_)
            | Io::FastCgi(_)
            | Io::Absent => self.poll_stale(&mut Context::from_waker(Waker::noop())).is_ready(),
        }
    }

    /// Says that nothing follows what was written. With TLS the close_notify leaves with it, where it is flushed only
    /// then.
    pub fn end(&mut self) {
        match self {
            Io::Plain(_) | Io::Stream(_) | Io::Request(_) | Io::FastCgi(_) | Io::Absent => {}
            Io::TlsServer(tls) => tls.get_mut().1.send_close_notify(),
            Io::TlsClient(tls) => tls.get_mut().1.send_close_notify(),
        }
    }

    /// Says that the connection is closed as soon as what is written is taken ([`Socket::closes`]), by [`Io::farewell`] or
    /// [`Io::linger`].
    pub fn closes(&self) {
        if let Some(socket) = self.socket() {
            socket.closes();
        }
    }

    /// One attempt, without waiting, to tell a TLS peer that we are done (close_notify), before the connection is
    /// dropped. A plain connection needs nothing: dropping it sends the FIN, but for one that waits for it.
    pub fn farewell(&mut self) {
        let cx = &mut Context::from_waker(Waker::noop());
        let _ = match self {
            Io::Plain(_) | Io::Request(_) | Io::FastCgi(_) | Io::Absent => Poll::Ready(Ok(())),
            Io::Stream(stream) => stream.poll_shutdown(cx),
            Io::TlsServer(_) | Io::TlsClient(_) => {
                self.end();
                self.poll_flush(cx)
            }
        };
        if let Some(socket) = self.socket() {
            socket.close();
        }
    }

    /// Closes with a reset instead of a FIN (nginx: `reset_timedout_connection`, code 444).
    pub fn reset(self) {
        if let Some(socket) = self.socket() {
            socket.linger_zero();
        }
    }

    /// nginx's lingering close: ends our direction, then reads and forgets what the client still sends, so that no
    /// reset destroys a response on its way. Ends at the client's end, after `idle_ms` without data
    /// (`lingering_timeout`) and after `total_ms` at the latest (`lingering_time`).
    pub async fn linger(mut self, timers: &Timers, total_ms: u64, idle_ms: u64) {
        let timer = timers.register();
        let end = timers.clock().refresh().saturating_add(total_ms);
        timer.set(end.min(timers.clock().now_ms().saturating_add(idle_ms)));
        let mut ended = false;
        std::future::poll_fn(|cx| {
            if timer.poll_expired(cx).is_ready() {
                return Poll::Ready(());
            }
            if !ended {
                match self.poll_shutdown_write(cx) {
                    Poll::Ready(Ok(())) => ended = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            // Below TLS: what comes is not looked at, so it need not be decrypted.
            let Some(socket) = self.socket() else { return Poll::Ready(()) };
            scratch(|bytes| {
                loop {
                    match socket.poll_read(cx, bytes) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Ok(1..)) => {
                            timer.set(end.min(timers.clock().refresh().saturating_add(idle_ms)));
                        }
                        Poll::Ready(_) => return Poll::Ready(()),
                    }
                }
            })
        })
        .await;
    }
}

impl From<Socket> for Io {
    fn from(socket: Socket) -> Self {
        Io::Plain(socket)
    }
}

impl From<server::TlsStream<Records>> for Io {
    fn from(mut tls: server::TlsStream<Records>) -> Self {
        tls.get_mut().0.shaken();
        Io::TlsServer(Box::new(tls))
    }
}

impl From<client::TlsStream<Records>> for Io {
    fn from(mut tls: client::TlsStream<Records>) -> Self {
        tls.get_mut().0.shaken();
        Io::TlsClient(Box::new(tls))
    }
}

/// For the libraries that want tokio's traits (TLS inside TLS).
impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = ready!(self.get_mut().poll_read(cx, buf.initialize_unfilled()))?;
        buf.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write(cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_shutdown_write(cx)
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_vectored(cx, pieces)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;

//! A socket as a TLS session below has it. What ends a handshake waits for what follows it: TLS 1.3's tickets for the
//! answer, a client's Finished for its request. Each write of its own wakes the peer, which costs more than what is in it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Buf, Socket};

/// A socket for records. While the handshake goes on, what is written leaves when a read finds nothing, for then the peer
/// is waited for. Later it leaves at once, with what the handshake left; it is [`Io::poll_read`](super::Io::poll_read)
/// that flushes then, since a session that reads on behind what it has got does not mean to wait.
pub struct Records {
    socket: Socket,
    /// Until the handshake is over and sent. Boxed: most of its time a connection has none.
    held: Option<Box<Held>>,
    /// The peer has taken some of what was written since somebody asked.
    taken: bool,
}

struct Held {
    /// Written, not sent.
    bytes: Buf,
    /// The handshake goes on.
    shaking: bool,
}

/// Pieces that one write takes beside what was held.
const PIECES: usize = 15;

impl Records {
    /// For a handshake that is to come.
    pub fn new(socket: Socket) -> Self {
        let held = Held { bytes: Buf::new(), shaking: true };
        Self { socket, held: Some(Box::new(held)), taken: false }
    }

    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The handshake is over: what it has left leaves with the next write, or flush.
    pub(super) fn shaken(&mut self) {
        if let Some(held) = &mut self.held {
            held.shaking = false;
        }
        if !self.holds() {
            self.held = None;
        }
    }

    /// Whether there is something that was not sent.
    pub(super) fn holds(&self) -> bool {
        self.held.as_ref().is_some_and(|held| !held.bytes.is_empty())
    }

    /// Whether the peer has taken some since this was asked last.
    pub(super) fn has_taken(&mut self) -> bool {
        std::mem::take(&mut self.taken)
    }

    fn is_shaking(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.shaking)
    }

    /// Sends what was held.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(held) = self.held.as_ref().filter(|held| !held.bytes.is_empty()) {
            let n = ready!(Pin::new(&mut self.socket).poll_write(cx, &held.bytes))?;
            self.sent(n)?;
        }
        Poll::Ready(Ok(()))
    }

    /// One attempt at that, for who does not wait.
    pub fn try_send(&mut self) {
        let _ = self.poll_send(&mut Context::from_waker(Waker::noop()));
    }

    /// A handshake failed: the peer is told why.
    pub fn give_up((error, mut records): (io::Error, Self)) -> io::Error {
        records.try_send();
        error
    }

    /// Counts what a write came to; how much of that was not held.
    fn sent(&mut self, n: usize) -> io::Result<usize> {
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.taken = true;
        let Some(held) = &mut self.held else { return Ok(n) };
        let of_held = n.min(held.bytes.len());
        held.bytes.consume(of_held);
        if held.bytes.is_empty() {
            held.bytes.release();
            if !held.shaking {
                self.held = None;
            }
        }
        Ok(n - of_held)
    }
}

impl AsyncRead for Records {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let records = self.get_mut();
        let polled = Pin::new(&mut records.socket).poll_read(cx, into);
        if polled.is_pending() && records.is_shaking() {
            ready!(records.poll_send(cx))?;
        }
        polled
    }
}

impl AsyncWrite for Records {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let records = self.get_mut();
        while let Some(held) = &mut records.held {
            if held.shaking {
                pieces.iter().for_each(|piece| held.bytes.extend(piece));
                return Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()));
            }
            let mut all = [IoSlice::new(&held.bytes); 1 + PIECES];
            let end = 1 + pieces.len().min(PIECES);
            all[1..end].copy_from_slice(&pieces[..end - 1]);
            let n = ready!(Pin::new(&mut records.socket).poll_write_vectored(cx, &all[..end]))?;
            let of_pieces = records.sent(n)?;
            if of_pieces > 0 {
                return Poll::Ready(Ok(of_pieces));
            }
        }
        let socket = Pin::new(&mut records.socket);
        let polled = match pieces {
            // Costs the kernel less.
            [piece] => socket.poll_write(cx, piece),
            pieces => socket.poll_write_vectored(cx, pieces),
        };
        records.taken |= polled.is_ready();
        polled
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_shaking() { Poll::Ready(Ok(())) } else { self.get_mut().poll_send(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let records = self.get_mut();
        ready!(records.poll_send(cx))?;
        Pin::new(&mut records.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};
    use std::os::fd::{AsFd, AsRawFd};

    use nix::sys::socket::{MsgFlags, recv};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::Accept;

    use super::super::Io;
    use super::super::pair::{Kind, handshake, noise, reactor, read, sockets};
    use super::*;

    async fn now<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        poll_fn(|cx| Poll::Ready(poll(cx))).await
    }

    /// Types of records, as who cannot open them sees them.
    const CHANGE_CIPHER_SPEC: u8 = 20;
    const SEALED: u8 = 23;

    /// The types of the records that have come to a socket, which stays as it is.
    fn come(socket: &Socket) -> Vec<u8> {
        let mut bytes = [0; 16 * 1024];
        let peeked = recv(socket.as_fd().as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK);
        let (mut types, mut rest) = (vec![], &bytes[..peeked.unwrap_or(0)]);
        while let [kind, _, _, high, low, behind @ ..] = rest {
            types.push(*kind);
            rest = &behind[usize::from(*high) << 8 | usize::from(*low)..];
        }
        types
    }

    /// A handshake that is over for the client, whose Finished the server has not got.
    async fn half_secured(kind: Kind) -> (Pin<Box<Accept<Records>>>, Io) {
        let (accepted, connected) = sockets(kind == Kind::Tls).await;
        let (accept, connect) = handshake(accepted, connected);
        let (mut accept, mut connect) = (Box::pin(accept), Box::pin(connect));
        let connected = poll_fn(|cx| {
            assert!(accept.as_mut().poll(cx).is_pending());
            connect.as_mut().poll(cx)
        });
        let client = connected.await.unwrap();
        (accept, client.into())
    }

    /// Both sides of a handshake, right when it is over for them.
    async fn secured(kind: Kind) -> (Io, Io) {
        let (mut accept, mut client) = half_secured(kind).await;
        // Without the Finished there is no end for the server.
        assert!(now(|cx| accept.as_mut().poll(cx)).await.is_pending());
        assert!(now(|cx| client.poll_write(cx, b"question")).await.is_ready());
        poll_fn(|cx| client.poll_flush(cx)).await.unwrap();
        (accept.await.unwrap().into(), client)
    }

    #[test]
    fn the_end_of_a_handshake_leaves_with_what_follows_it() {
        reactor(|_| async {
            for kind in [Kind::Tls, Kind::TlsUnix] {
                let (accept, mut client) = half_secured(kind).await;
                let server_has = || come(accept.get_ref().unwrap().socket());
                assert_eq!(server_has(), [], "{kind:?}: the client's Finished waits for its question");
                assert!(now(|cx| client.poll_write(cx, b"question")).await.is_ready());
                poll_fn(|cx| client.poll_flush(cx)).await.unwrap();
                assert_eq!(server_has(), [CHANGE_CIPHER_SPEC, SEALED, SEALED], "{kind:?}");

                let mut server = Io::from(accept.await.unwrap());
                let client_has = || come(client.socket().unwrap());
                assert_eq!(read(&mut server, 8).await.unwrap(), b"question");
                assert_eq!(client_has(), [], "{kind:?}: the tickets wait for the answer");
                assert!(now(|cx| server.poll_write(cx, b"answer")).await.is_ready());
                assert_eq!(client_has(), [], "{kind:?}: which waits for what may follow");
                server.end();
                assert!(now(|cx| server.poll_flush(cx)).await.is_ready());
                assert_eq!(client_has(), [SEALED; 3], "{kind:?}: tickets, answer, close_notify");
                assert_eq!(read(&mut client, 99).await.unwrap(), b"answer", "{kind:?}");
            }
        });
    }

    #[test]
    fn who_waits_for_the_peer_holds_nothing_back() {
        reactor(|_| async {
            let (mut server, client) = secured(Kind::Tls).await;
            let client_has = || come(client.socket().unwrap());
            assert_eq!(read(&mut server, 8).await.unwrap(), b"question");
            assert!(now(|cx| server.poll_read_ready(cx)).await.is_pending());
            assert_eq!(client_has(), [], "it is only looked for");
            assert!(now(|cx| server.poll_read(cx, &mut [0])).await.is_pending());
            assert_eq!(client_has(), [SEALED], "tickets");
            assert!(now(|cx| server.poll_write(cx, b"a")).await.is_ready());
            assert!(now(|cx| server.poll_read(cx, &mut [0])).await.is_pending());
            assert_eq!(client_has(), [SEALED; 2]);
            // For those that know tokio's traits only.
            assert!(now(|cx| server.poll_write(cx, b"b")).await.is_ready());
            assert!(
                now(|cx| AsyncRead::poll_read(Pin::new(&mut server), cx, &mut ReadBuf::new(&mut [0])))
                    .await
                    .is_pending()
            );
            assert_eq!(client_has(), [SEALED; 3]);

            for end in [
                |io: &mut Io| io.farewell(),
                |io: &mut Io| {
                    let cx = &mut Context::from_waker(Waker::noop());
                    assert!(io.poll_shutdown_write(cx).is_ready());
                },
            ] {
                let (mut server, client) = secured(Kind::Tls).await;
                end(&mut server);
                assert_eq!(come(client.socket().unwrap()), [SEALED; 2], "tickets and close_notify");
            }
        });
    }

    #[test]
    fn what_is_held_comes_before_what_follows_it_however_little_is_taken() {
        reactor(|_| async {
            let (socket, peer) = sockets(false).await;
            socket.options().set_send_buffer_size(1).unwrap();
            let mut records = Records::new(socket);
            let sent = noise(600_000);
            let (held, rest) = sent.split_at(300_000);
            for piece in held.chunks(100_000) {
                assert_eq!(records.write(piece).await.unwrap(), 100_000, "all of a flight");
            }
            let mut taken = vec![];
            while taken.len() < 100_000 {
                let mut piece = [0; 10_000];
                let both = poll_fn(|cx| {
                    let read = Pin::new(&mut records).poll_read(cx, &mut ReadBuf::new(&mut [0]));
                    assert!(read.is_pending());
                    peer.poll_read(cx, &mut piece)
                });
                let n = both.await.unwrap();
                taken.extend_from_slice(&piece[..n]);
            }
            assert!(records.holds());
            records.shaken();
            let writes = async {
                let mut done = 0;
                while done < rest.len() {
                    // More pieces than one write takes.
                    let pieces: Vec<_> = rest[done..].chunks(1000).take(40).map(IoSlice::new).collect();
                    done +=
                        poll_fn(|cx| Pin::new(&mut records).poll_write_vectored(cx, &pieces)).await.unwrap();
                }
                assert!(records.held.is_none(), "its memory is given back");
                records.shutdown().await.unwrap();
            };
            let reads = async {
                let mut piece = [0; 10_000];
                loop {
                    match poll_fn(|cx| peer.poll_read(cx, &mut piece)).await.unwrap() {
                        0 => break,
                        n => taken.extend_from_slice(&piece[..n]),
                    }
                }
            };
            tokio::join!(writes, reads);
            assert!(taken == sent, "{} of {}", taken.len(), sent.len());
        });
    }

    #[test]
    fn that_a_peer_has_taken_some_is_told_once() {
        reactor(|_| async {
            let (socket, peer) = sockets(false).await;
            socket.options().set_send_buffer_size(1).unwrap();
            let mut records = Records::new(socket);
            records.shaken();
            assert!(!records.has_taken());
            let bytes = noise(100_000);
            while now(|cx| Pin::new(&mut records).poll_write(cx, &bytes)).await.is_ready() {}
            assert!(records.has_taken() && !records.has_taken());
            assert!(now(|cx| Pin::new(&mut records).poll_write(cx, &bytes)).await.is_pending());
            assert!(!records.has_taken());
            let mut piece = vec![0; 1_000_000];
            while now(|cx| Pin::new(&mut records).poll_write(cx, &bytes)).await.is_pending() {
                assert!(!records.has_taken());
                let _ = now(|cx| peer.poll_read(cx, &mut piece)).await;
                tokio::task::yield_now().await;
            }
            assert!(records.has_taken());
        });
    }

    #[test]
    fn who_waits_is_woken_when_the_peer_takes_some() {
        reactor(|_| async {
            let (socket, peer) = sockets(false).await;
            socket.options().set_send_buffer_size(1).unwrap();
            let mut records = Records::new(socket);
            records.write_all(&noise(100_000)).await.unwrap();
            records.flush().await.unwrap();
            let mut polls = 0;
            let waiting = tokio::task::spawn_local(async move {
                let mut answer = [0];
                let mut into = ReadBuf::new(&mut answer);
                poll_fn(|cx| {
                    polls += 1;
                    Pin::new(&mut records).poll_read(cx, &mut into)
                })
                .await
                .unwrap();
                polls
            });
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            let mut peer = Records::new(peer);
            peer.shaken();
            let mut all = vec![0; 100_000];
            peer.read_exact(&mut all).await.unwrap();
            peer.write_all(b"x").await.unwrap();
            assert!(all == noise(100_000));
            let polls = waiting.await.unwrap();
            assert!((2..90).contains(&polls), "it slept while nothing was taken: {polls}");
        });
    }

    #[test]
    fn a_peer_that_is_gone_is_told_of_by_whoever_waits() {
        reactor(|_| async {
            for waits in [true, false] {
                let (socket, peer) = sockets(false).await;
                let mut records = Records::new(socket);
                records.write_all(b"a flight").await.unwrap();
                records.flush().await.unwrap();
                if !waits {
                    records.shaken();
                }
                // Its other direction stays open, so that only the write can tell.
                peer.options().shutdown(std::net::Shutdown::Read).unwrap();
                let failed = match waits {
                    true => records.read(&mut [0]).await,
                    false => records.write(b"more").await,
                };
                assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            }
        });
    }

    #[test]
    fn a_handshake_that_fails_says_why() {
        reactor(|_| async {
            const ALERT: u8 = 21;
            let (accepted, connected) = sockets(true).await;
            let (accept, _) = handshake(accepted, sockets(true).await.1);
            let mut peer = Records::new(connected);
            peer.shaken();
            // A record of the handshake with a message that nobody sends first.
            peer.write_all(&[22, 3, 1, 0, 4, 14, 0, 0, 0]).await.unwrap();
            let failed = poll_fn({
                let mut accept = accept.into_fallible();
                move |cx| Pin::new(&mut accept).poll(cx)
            });
            let (error, records) = failed.await.err().unwrap();
            assert_eq!(come(peer.socket()), []);
            assert_eq!(Records::give_up((error, records)).kind(), io::ErrorKind::InvalidData);
            assert_eq!(come(peer.socket()), [ALERT]);
        });
    }
}

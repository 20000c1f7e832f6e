//! The body of a request on its way to an upstream, which may go on while the answer comes.

use std::io;
use std::mem;
use std::task::{Context, Poll, ready};

use bytes::Buf as _;
use hyper::body::Bytes;
use weir_syntax::Level;

use super::fastcgi::append_stdin;
use crate::http::Exchange;
use crate::http::request_body::RequestBody;
use crate::http1::body::{ChunkHead, LAST_CHUNK};
use crate::io::{Block, Io};

/// Where the part of a request's body is that does not go with its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    Nothing,
    /// In the exchange, from there on.
    Stored(u64),
    /// At the client, from which it goes on as it comes.
    Streams,
}

pub(super) struct Uplink {
    /// As it is framed on the connection, but for a stream's frames.
    piece: Bytes,
    /// Where the next one is.
    rest: Rest,
    /// The peer has not taken what is here.
    waits: bool,
    /// Bytes that it has taken and that were not counted yet.
    sent: u64,
}

/// Why a body did not get there.
pub(super) enum Stopped {
    /// What to answer with; the reason was logged.
    Client(u16),
    /// The connection failed; what became of a stream its answer tells.
    Upstream(Option<io::Error>),
}

impl Uplink {
    /// What begins with these bytes. `None` is nothing to send.
    pub fn new(first: &[u8], rest: Rest) -> Option<Self> {
        if first.is_empty() && rest == Rest::Nothing {
            return None;
        }
        Some(Self { piece: Bytes::copy_from_slice(first), rest, waits: false, sent: 0 })
    }

    /// Whether it comes from the client as it goes.
    pub fn streams(&self) -> bool {
        self.rest == Rest::Streams
    }

    /// Whether it waits for the peer to take what is here.
    pub fn waits_for_peer(&self) -> bool {
        self.waits
    }

    /// Sends it; ready when all of it was taken. What was is counted for the attempt with this index; true with it where
    /// that was something.
    pub fn poll(
        &mut self,
        x: &mut Exchange,
        io: &mut Io,
        attempt: usize,
        cx: &mut Context<'_>,
    ) -> (bool, Poll<Result<(), Stopped>>) {
        let polled = self.poll_all(x, io, cx);
        let Some(state) = x.upstream_states.get_mut(attempt) else { return (false, polled) };
        let before = state.bytes_sent;
        state.bytes_sent = match io {
            Io::Request(stream) => stream.sent(),
            _ => before + mem::take(&mut self.sent),
        };
        (state.bytes_sent != before, polled)
    }

    fn poll_all(&mut self, x: &mut Exchange, io: &mut Io, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        loop {
            let last = match self.rest {
                Rest::Nothing => true,
                Rest::Streams => x.body.is_over(),
                Rest::Stored(from) => x.body.stored().is_none_or(|stored| from >= stored.len()),
            };
            let sent = self.poll_piece(io, last, cx);
            self.waits = sent.is_pending();
            ready!(sent)?;
            if last {
                return Poll::Ready(Ok(()));
            }
            match &mut self.rest {
                Rest::Nothing => {}
                Rest::Streams => {
                    let mut piece = Vec::new();
                    ready!(x.poll_body_piece(cx, &mut piece)).map_err(|error| Stopped::Client(error.0))?;
                    let last = x.body.is_over();
                    self.piece = match io {
                        Io::Request(_) => piece,
                        Io::FastCgi(_) => records(&piece, last),
                        _ => framed(piece, &x.body),
                    }
                    .into();
                }
                Rest::Stored(from) => {
                    let mut block = Block::small();
                    let n = match x.body.stored().map_or(Ok(0), |stored| stored.read_at(*from, &mut block)) {
                        Ok(n @ 1..) => n,
                        Ok(0) => return Poll::Ready(Err(Stopped::Client(500))),
                        Err(error) => {
                            x.log_error(Level::Crit, Some(&error), "reading the request body failed");
                            return Poll::Ready(Err(Stopped::Client(500)));
                        }
                    };
                    *from += n as u64;
                    let last = x.body.stored().is_none_or(|stored| *from >= stored.len());
                    self.piece = match io {
                        Io::FastCgi(_) => records(&block[..n], last).into(),
                        _ => Bytes::from_owner(block).slice(..n),
                    };
                }
            }
        }
    }

    fn poll_piece(&mut self, io: &mut Io, last: bool, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        if let Io::Request(stream) = io {
            return stream.poll_send(cx, &mut self.piece, last).map_err(|_| Stopped::Upstream(None));
        }
        let failed = |error| Stopped::Upstream(Some(error));
        while !self.piece.is_empty() {
            let n = ready!(io.poll_write(cx, &self.piece)).map_err(failed)?;
            self.piece.advance(n);
            self.sent += n as u64;
        }
        // What the session holds of it is not sent yet.
        io.poll_flush(cx).map_err(failed)
    }
}

/// The same for an application.
fn records(piece: &[u8], last: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(piece.len() + 64);
    append_stdin(piece, last, &mut out);
    out
}

/// A part of a request's body as it is framed for the upstream, the end behind the last one.
pub(super) fn framed(piece: Vec<u8>, body: &RequestBody) -> Vec<u8> {
    if !body.is_chunked() {
        return piece;
    }
    let mut out = Vec::with_capacity(piece.len() + 32);
    if !piece.is_empty() {
        out.extend_from_slice(ChunkHead::new(piece.len() as u64).as_ref());
        out.extend_from_slice(&piece);
        out.extend_from_slice(b"\r\n");
    }
    if body.is_over() {
        out.extend_from_slice(LAST_CHUNK);
    }
    out
}

//! The body of a request on its way to a stream, which goes on while the answer comes.

use std::task::{Context, Poll, ready};

use hyper::body::Bytes;
use weir_syntax::Level;

use super::stream::Stream;
use crate::http::Exchange;
use crate::io::Block;

pub(in crate::upstream) struct Uplink {
    piece: Bytes,
    /// Nothing follows the piece.
    last: bool,
    /// Where the next one is.
    rest: Rest,
}

#[derive(Clone, Copy)]
enum Rest {
    /// In the exchange, from there on.
    Stored(u64),
    /// At the client.
    Streams,
}

/// Why a body did not get there.
pub(in crate::upstream) enum Stopped {
    /// What to answer with; the reason was logged.
    Client(u16),
    /// What became of the stream its answer tells.
    Upstream,
}

impl Uplink {
    /// A body that begins with these bytes; the rest is stored, or comes from the client. `None` is no body.
    pub fn new(x: &Exchange, first: &[u8], streams: bool, passes: bool) -> Option<Self> {
        let stored = x.body.stored().filter(|_| passes).map_or(0, |stored| stored.len());
        if !streams && first.is_empty() && stored == 0 {
            return None;
        }
        let last = if streams { x.body.is_over() } else { stored == 0 };
        let rest = if streams { Rest::Streams } else { Rest::Stored(0) };
        Some(Self { piece: Bytes::copy_from_slice(first), last, rest })
    }

    /// Whether it comes from the client as it goes.
    pub fn streams(&self) -> bool {
        matches!(self.rest, Rest::Streams)
    }

    /// Whether it waits for the peer to take what is here.
    pub fn waits_for_peer(&self) -> bool {
        !self.piece.is_empty()
    }

    /// Sends it; ready when all of it was taken.
    pub fn poll(
        &mut self,
        x: &mut Exchange,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Stopped>> {
        loop {
            ready!(stream.poll_send(cx, &mut self.piece, self.last)).map_err(|_| Stopped::Upstream)?;
            if self.last {
                return Poll::Ready(Ok(()));
            }
            match &mut self.rest {
                Rest::Streams => {
                    let mut piece = Vec::new();
                    ready!(x.poll_body_piece(cx, &mut piece)).map_err(|error| Stopped::Client(error.0))?;
                    self.last = x.body.is_over();
                    self.piece = piece.into();
                }
                Rest::Stored(from) => {
                    let mut block = Block::small();
                    let stored =
                        x.body.stored().map(|stored| (stored.len(), stored.read_at(*from, &mut block)));
                    let (length, n) = match stored {
                        Some((length, Ok(n @ 1..))) => (length, n),
                        Some((_, Err(error))) => {
                            x.log_error(Level::Crit, Some(&error), "reading the request body failed");
                            return Poll::Ready(Err(Stopped::Client(500)));
                        }
                        Some((_, Ok(0))) | None => return Poll::Ready(Err(Stopped::Client(500))),
                    };
                    *from += n as u64;
                    self.last = *from >= length;
                    self.piece = Bytes::copy_from_slice(&block[..n]);
                }
            }
        }
    }
}

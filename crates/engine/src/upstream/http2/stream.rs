//! A request's stream of a connection.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use hyper::body::Bytes;
use nix::libc;
use weir_syntax::Level;

use super::head::RequestHead;
use super::session::{Session, is_end};
use crate::http::Exchange;
use crate::http2::hpack::Fields;
use crate::reactor::Reactor;

/// A stream, given up when it is dropped before both sides have ended it.
pub struct Stream {
    session: Rc<Session>,
    id: u32,
    reactor: Rc<Reactor>,
    send: SendStream<Bytes>,
    receive: Receive,
    /// Of the last DATA frame, what was not read yet.
    rest: Bytes,
    /// Bytes that the body lacks of the length that was told.
    lacks: Option<u64>,
    /// Fields behind the body.
    trailers: Option<Fields>,
    /// Bytes of the request that h2 has taken, its head as it reads.
    sent: u64,
}

enum Receive {
    Head(ResponseFuture),
    Body(RecvStream),
    /// All of it was read.
    Over,
}

/// A head from the peer.
pub(in crate::upstream) enum Message {
    /// Another follows.
    Interim(u16, Fields),
    Answer(u16, Fields),
}

impl Stream {
    /// Sends the head of a request, whose answer's may have so many bytes.
    pub(in crate::upstream) fn open(
        session: Rc<Session>,
        reactor: &Rc<Reactor>,
        head: Rc<RequestHead>,
        limit: usize,
        ends: bool,
    ) -> Result<Self, Broken> {
        let size = head.size();
        session.count(size);
        let (response, send) = session.request(head, limit, ends).map_err(|error| session.broken(error))?;
        Ok(Self {
            session,
            id: response.stream_id().as_u32(),
            reactor: Rc::clone(reactor),
            send,
            receive: Receive::Head(response),
            rest: Bytes::new(),
            lacks: None,
            trailers: None,
            sent: size as u64,
        })
    }

    /// The next head.
    pub(in crate::upstream) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, Broken>> {
        let Receive::Head(response) = &mut self.receive else { return Poll::Pending };
        let mut seats = self.session.seats();
        if let Some((status, fields)) = seats.take_interim(self.id) {
            return Poll::Ready(Ok(Message::Interim(status, fields)));
        }
        if let Some(fault) = seats.fault(self.id) {
            return Poll::Ready(Err(fault));
        }
        seats.wait(self.id, cx);
        drop(seats);
        let body =
            ready!(Pin::new(response).poll(cx)).map_err(|error| self.session.broken(error))?.into_body();
        let answer = self.session.seats().take_answer(self.id);
        let (status, fields) = answer.ok_or_else(Broken::closed)?;
        self.session.count(fields.iter().map(|(name, value)| name.len() + value.len()).sum());
        self.receive = if body.is_end_stream() { Receive::Over } else { Receive::Body(body) };
        Poll::Ready(Ok(Message::Answer(status, fields)))
    }

    /// The body has so many bytes, as the head of the answer tells.
    pub(in crate::upstream) fn expect(&mut self, length: Option<u64>) {
        self.lacks = length;
    }

    /// As much of the body as has come; 0 is its end.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Some(fault) = self.session.seats().fault(self.id) {
            return Poll::Ready(Err(fault.into()));
        }
        let mut read = 0;
        loop {
            let n = self.rest.len().min(into.len() - read);
            into[read..read + n].copy_from_slice(&self.rest.split_to(n));
            read += n;
            self.session.count(n);
            let Receive::Body(body) = &mut self.receive else {
                return Poll::Ready(if read > 0 || self.lacks.is_none_or(|lacks| lacks == 0) {
                    Ok(read)
                } else {
                    Err(Broken::invalid("upstream prematurely closed stream").into())
                });
            };
            if n > 0 {
                // It fails only where the stream is over.
                let _ = body.flow_control().release_capacity(n);
            }
            if read == into.len() {
                return Poll::Ready(Ok(read));
            }
            match body.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => {
                    let lacks = self.lacks.map(|lacks| lacks.checked_sub(data.len() as u64));
                    if lacks == Some(None) {
                        let larger = "upstream sent response body larger than indicated content length";
                        self.session.seats().spoil(self.id, Broken::invalid(larger));
                        return if read > 0 { Poll::Ready(Ok(read)) } else { self.poll_read(cx, into) };
                    }
                    (self.lacks, self.rest) = (lacks.flatten(), data);
                }
                // They come again.
                Poll::Ready(Some(Err(_))) | Poll::Pending if read > 0 => return Poll::Ready(Ok(read)),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(self.end(error)),
                Poll::Pending => {
                    self.session.seats().wait(self.id, cx);
                    return Poll::Pending;
                }
                Poll::Ready(None) => match body.poll_trailers(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.trailers = self.session.seats().take_trailers(self.id);
                        self.receive = Receive::Over;
                    }
                    Poll::Ready(Err(_)) | Poll::Pending if read > 0 => return Poll::Ready(Ok(read)),
                    Poll::Ready(Err(error)) => return Poll::Ready(self.end(error)),
                    Poll::Pending => {
                        self.session.seats().wait(self.id, cx);
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    /// No more comes. To a body that is as long as was told the end of the connection does nothing; that its stream ended
    /// before is forgotten where the request had not.
    fn end(&mut self, error: h2::Error) -> io::Result<usize> {
        let broken = self.session.broken(error);
        if broken.kind != Kind::Closed || self.lacks != Some(0) {
            return Err(broken.into());
        }
        self.receive = Receive::Over;
        Ok(0)
    }

    /// Sends of the body what the peer takes now; ready when that is all of it. `last` is whether no more follows.
    pub(in crate::upstream) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        piece: &mut Bytes,
        last: bool,
    ) -> Poll<Result<(), Broken>> {
        while !piece.is_empty() {
            if self.send.capacity() == 0 {
                self.send.reserve_capacity(piece.len());
            }
            if self.send.capacity() == 0 {
                match ready!(self.send.poll_capacity(cx)) {
                    Some(Ok(_)) => continue,
                    Some(Err(error)) => return Poll::Ready(Err(self.session.broken(error))),
                    None => return Poll::Ready(Err(Broken::closed())),
                }
            }
            let data = piece.split_to(self.send.capacity().min(piece.len()));
            self.sent += data.len() as u64;
            self.session.count(data.len());
            self.send
                .send_data(data, last && piece.is_empty())
                .map_err(|error| self.session.broken(error))?;
            if last && piece.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        if last {
            self.send.send_data(Bytes::new(), true).map_err(|error| self.session.broken(error))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether all of the answer was read, and as much as was told.
    pub fn is_over(&self) -> bool {
        self.rest.is_empty()
            && self.lacks.is_none_or(|lacks| lacks == 0)
            && match &self.receive {
                Receive::Head(_) => false,
                Receive::Body(body) => body.is_end_stream(),
                Receive::Over => true,
            }
    }

    /// Whether as much of the body was read as was told.
    pub(in crate::upstream) fn is_whole(&self) -> bool {
        self.rest.is_empty() && self.lacks == Some(0)
    }

    pub(in crate::upstream) fn sent(&self) -> u64 {
        self.sent
    }

    pub(in crate::upstream) fn take_trailers(&mut self) -> Option<Fields> {
        self.trailers.take()
    }

    /// Its connection takes no more requests: nothing comes on it, or it gave this one back.
    pub(in crate::upstream) fn retire(&self) {
        self.session.retire();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.session.seats().leave(self.id);
        self.session.release(&self.reactor);
    }
}

/// Why a stream broke off.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct Broken {
    /// For the error log.
    pub message: String,
    /// What follows it there.
    pub then: Option<&'static str>,
    /// The error of the system behind it.
    pub system: Option<i32>,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Kind {
    /// The connection is no more.
    Closed,
    /// The peer has not looked at the request, and says so.
    Unprocessed,
    /// The peer did something to the connection that it must not, maybe for another's stream.
    Connection,
    /// The same to the stream, or it gave that up.
    Invalid,
    /// The same, by what it sent of a head.
    Malformed,
}

impl Broken {
    pub(in crate::upstream) fn of(error: h2::Error) -> Self {
        let reason = error.reason().unwrap_or(Reason::NO_ERROR);
        let code = u32::from(reason);
        let (message, kind) = match (error.get_io(), error.is_remote()) {
            (Some(io), _) if is_end(io) => return Self::closed(),
            (Some(io), _) => {
                // h2 keeps the kind and the text of what the system said.
                let system = (io.kind() == io::ErrorKind::ConnectionReset).then_some(libc::ECONNRESET);
                let message =
                    if system.is_some() { "recv() failed".into() } else { format!("recv() failed: {io}") };
                return Self { message, then: None, system, kind: Kind::Closed };
            }
            (None, true) if error.is_go_away() => {
                (format!("upstream sent goaway with error {code}"), Kind::Unprocessed)
            }
            (None, true) => {
                let refused = reason == Reason::REFUSED_STREAM;
                let kind = if refused { Kind::Unprocessed } else { Kind::Invalid };
                (format!("upstream rejected request with error {code}"), kind)
            }
            (None, false) => {
                let kind = if error.is_go_away() { Kind::Connection } else { Kind::Invalid };
                (format!("upstream violated HTTP/2: {error}"), kind)
            }
        };
        Self { message, then: None, system: None, kind }
    }

    fn closed() -> Self {
        let message = "upstream prematurely closed connection".into();
        Self { message, then: None, system: None, kind: Kind::Closed }
    }

    fn invalid(message: &str) -> Self {
        Self { message: message.into(), then: None, system: None, kind: Kind::Invalid }
    }

    pub(super) fn of_connection(message: &str) -> Self {
        Self { message: message.into(), then: None, system: None, kind: Kind::Connection }
    }

    /// Of a frame that has no place where it is.
    pub(super) fn malformed(message: String) -> Self {
        Self { message, then: None, system: None, kind: Kind::Malformed }
    }

    /// Tells the error log.
    pub fn tell(&self, x: &Exchange, doing: &str) {
        let system = self.system.map(io::Error::from_raw_os_error);
        x.log_while(Level::Error, system.as_ref(), &self.message, doing);
        if let Some(then) = self.then {
            x.log_while(Level::Error, None, then, doing);
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Broken {}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        Self::other(broken)
    }
}

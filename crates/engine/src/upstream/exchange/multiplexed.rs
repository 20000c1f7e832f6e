//! Asks over HTTP/2: a stream of a connection that others use too.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use weir_syntax::Level;

use super::{Asking, Attempt, Failure, READING_HEAD, client_gone, log_timeout, next, poll_client_gone};
use crate::contract::Flow;
use crate::http::Exchange;
use crate::http1::response::{Framing, Head, Invalid};
use crate::io::Io;
use crate::upstream::balance::Picked;
use crate::upstream::body::Line;
use crate::upstream::http2::{Broken, Kind, Message, RequestHead, Session, Stream};
use crate::upstream::uplink::{Rest, Stopped, Uplink};

const SENDING: &str = "sending request to upstream";

/// How asking ended.
enum Asked {
    Answered(Box<Head>),
    Broken(Broken),
    Invalid(Invalid),
    /// The client's body could not be had.
    Client(u16),
    Timeout,
    ClientGone,
}

impl Asking<'_> {
    pub(super) async fn multiplexed(
        &mut self,
        x: &mut Exchange,
        head: Rc<RequestHead>,
        picked: Picked,
        now: u64,
    ) -> Result<Flow, Failure> {
        let (mut attempt, session) = self.session(x, picked, now).await?;
        self.alone = attempt.cached;
        self.refused = false;
        self.doing = SENDING;
        if self.rest == Rest::Streams
            && let Err(error) = x.send_continue().await
        {
            return Err(Failure::end(error.0));
        }
        let uplink = Uplink::new(&self.request, self.rest);
        let limit = self.protocol.settings().buffer_size;
        let stream = match Stream::open(session, &x.reactor, head, limit, uplink.is_none()) {
            Ok(stream) => stream,
            Err(broken) => return Err(fail(x, &attempt, &broken, SENDING)),
        };
        attempt.uplink = uplink.map(Box::new);
        attempt.line.io = Io::Request(Box::new(stream));
        let asked = self.ask(x, &mut attempt).await;
        self.timer.clear();
        let now = x.reactor.clock().now_ms();
        if let Some(state) = x.upstream_states.last_mut() {
            state.bytes_received = attempt.received;
        }
        self.doing = if attempt.sent { READING_HEAD } else { SENDING };
        let head = match asked {
            Asked::Answered(head) => head,
            Asked::Broken(broken) => {
                if broken.kind == Kind::Unprocessed {
                    retire(&attempt);
                    // One that had the connection alone is judged as nginx does.
                    self.refused = attempt.cached && self.rest != Rest::Streams;
                }
                return Err(fail(x, &attempt, &broken, self.doing));
            }
            Asked::Invalid(invalid) => {
                let message = String::from_utf8_lossy(&invalid.message);
                x.log_while(Level::Error, None, message, READING_HEAD);
                return Err(Failure::of(next::INVALID_HEADER, attempt.cached));
            }
            Asked::Client(status) => return Err(Failure::end(status)),
            Asked::Timeout => {
                log_timeout(x, self.doing);
                retire(&attempt);
                return Err(Failure::of(next::TIMEOUT, attempt.cached));
            }
            Asked::ClientGone => return Err(client_gone(x, self.doing)),
        };
        self.doing = READING_HEAD;
        if let Some(state) = x.upstream_states.last_mut() {
            state.header_time = Some(now.saturating_sub(attempt.started));
            state.status = head.status();
        }
        x.keep_upstream_headers(&head);
        let flow = self.answer(x, attempt, &head, None, 0..0);
        x.reactor.put_head(head);
        flow
    }

    /// A connection that is shared, or a new one.
    async fn session(
        &mut self,
        x: &mut Exchange,
        picked: Picked,
        now: u64,
    ) -> Result<(Attempt, Rc<Session>), Failure> {
        let group = Arc::clone(&self.target.group);
        let (tag, peer) = (self.tag(x), &group.peers[picked.index].address);
        let pools = &x.reactor.pools;
        let shared = if self.alone { None } else { pools.join(&group, peer, tag, now) };
        if let Some(session) = shared {
            let line = Line {
                io: Io::Absent,
                peer: Arc::clone(peer),
                guard: Some(picked.guard),
                group: None,
                tag,
                requests: 1,
                opened: now,
                until: now,
                keep: false,
                nodelay: true,
            };
            if let Some(state) = x.upstream_states.last_mut() {
                state.connect_time = Some(0);
            }
            return Ok((Attempt::new(picked.index, Box::new(line), true, now), session));
        }
        let mut attempt = self.connect(x, picked, tag, now).await?;
        if self.identity != 0 {
            self.doing = "SSL handshaking to upstream";
            self.shake_hands(x, &mut attempt).await?;
        }
        // Several requests have bytes on their way.
        attempt.line.set_nodelay();
        attempt.line.group = None;
        let io = std::mem::replace(&mut attempt.line.io, Io::Absent);
        // Nothing is waited for but room for the first bytes of the connection.
        match Session::open(&x.reactor, io, Arc::clone(peer), attempt.line.tag, &group).await {
            Ok(session) => Ok((attempt, session)),
            Err(error) => Err(fail(x, &attempt, &Broken::of(error), SENDING)),
        }
    }

    /// Sends the request's body until the head of the answer is there, which may be before its end.
    async fn ask(&self, x: &mut Exchange, attempt: &mut Attempt) -> Asked {
        let settings = self.protocol.settings();
        let timer = &self.timer;
        if let (Some(state), Io::Request(stream)) = (x.upstream_states.last_mut(), &attempt.line.io) {
            state.bytes_sent = stream.sent();
        }
        attempt.sent = attempt.uplink.is_none();
        poll_fn(|cx| {
            if let Some(uplink) = &mut attempt.uplink {
                let last = x.upstream_states.len().saturating_sub(1);
                let (moved, polled) = uplink.poll(x, &mut attempt.line.io, last, cx);
                if polled.is_ready() || moved {
                    timer.clear();
                }
                match polled {
                    Poll::Ready(Ok(())) => (attempt.uplink, attempt.sent) = (None, true),
                    Poll::Ready(Err(Stopped::Client(status))) => return Poll::Ready(Asked::Client(status)),
                    Poll::Ready(Err(Stopped::Upstream(_))) => attempt.uplink = None,
                    Poll::Pending => {}
                }
            }
            if let Poll::Ready(asked) = self.poll_answer(cx, x, attempt) {
                return Poll::Ready(asked);
            }
            if !x.early_hints.is_empty() {
                x.poll_hints(cx);
            }
            match &attempt.uplink {
                Some(uplink) if !uplink.waits_for_peer() => {
                    timer.clear();
                    return Poll::Pending;
                }
                Some(_) if timer.deadline().is_none() => timer.set_about(settings.send_timeout),
                None if timer.deadline().is_none() => timer.set_about(settings.read_timeout),
                Some(_) | None => {}
            }
            if poll_client_gone(x, cx, settings) {
                return Poll::Ready(Asked::ClientGone);
            }
            timer.poll_expired(cx).map(|()| Asked::Timeout)
        })
        .await
    }

    fn poll_answer(&self, cx: &mut Context<'_>, x: &mut Exchange, attempt: &mut Attempt) -> Poll<Asked> {
        let settings = self.protocol.settings();
        let Io::Request(stream) = &mut attempt.line.io else { return Poll::Pending };
        while let Poll::Ready(message) = stream.poll_head(cx) {
            let (status, fields, interim) = match message {
                Ok(Message::Interim(status, fields)) => (status, fields, true),
                Ok(Message::Answer(status, fields)) => (status, fields, false),
                Err(broken) => return Poll::Ready(Asked::Broken(broken)),
            };
            let mut head = x.reactor.take_head();
            let read = head.assemble(status, fields.iter());
            attempt.received += head.raw().len() as u64;
            for warning in head.warnings() {
                x.log_while(Level::Warn, None, String::from_utf8_lossy(&warning), READING_HEAD);
            }
            if let Err(invalid) = read {
                return Poll::Ready(Asked::Invalid(invalid));
            }
            if !interim {
                stream.expect(match head.framing(self.to_head) {
                    Framing::Empty => Some(0),
                    _ => head.content_length(),
                });
                return Poll::Ready(Asked::Answered(head));
            }
            attempt.hinted += head.raw().len();
            x.hint(&head, attempt.hinted, settings);
            x.reactor.put_head(head);
        }
        Poll::Pending
    }
}

/// Its connection takes no more requests.
fn retire(attempt: &Attempt) {
    if let Io::Request(stream) = &attempt.line.io {
        stream.retire();
    }
}

/// What becomes of a request whose stream broke off.
fn fail(x: &Exchange, attempt: &Attempt, broken: &Broken, doing: &str) -> Failure {
    broken.tell(x, if broken.kind == Kind::Malformed { READING_HEAD } else { doing });
    match broken.kind {
        Kind::Closed => Failure::of(next::ERROR, attempt.cached && attempt.received == 0),
        // It may be the fault of others who have the connection; on one of its own it is judged as nginx does.
        Kind::Unprocessed | Kind::Connection if attempt.cached => Failure::of(next::ERROR, true),
        Kind::Unprocessed | Kind::Connection | Kind::Invalid | Kind::Malformed => {
            Failure::of(next::INVALID_HEADER, attempt.cached)
        }
    }
}

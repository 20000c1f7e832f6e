//! The body of an upstream's response, pulled by whoever sends it to the client.

use std::io;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use weir_syntax::Level;

use super::fastcgi::{self, log_stderr};
use super::http2::{self, Broken};
use super::uplink::{Stopped, Uplink};
use super::{Hidden, PeerGuard, Upstream, UpstreamState};
use crate::http::response::Source;
use crate::http::{Exchange, Headers};
use crate::http1::Known;
use crate::http1::body::{Decoder, Piece};
use crate::http1::response::{Invalid, Parsed, Trailers};
use crate::io::{Address, Block, Io};
use crate::reactor::Reactor;
use crate::timer::Timer;

/// Bodies that are at least this long are read in large blocks.
const LONG: u64 = 128 * 1024;

/// What is said of an upstream whose answer is longer than its head has it.
pub(super) const MORE_THAN_TOLD: &str = "upstream sent more data than specified in \"Content-Length\" header";

/// How much of the body is still to come.
pub(super) enum Left {
    Length(u64),
    Chunked(Box<Decoder>),
    /// Until the upstream closes.
    Close,
    /// Until the upstream ends the stream.
    Frames,
    /// Until the application ends its output; of the length that it told this is left.
    Output(Option<u64>),
    Nothing,
}

/// What a connection was opened by; only requests of which all of it is true may use it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// The settings, what the request made of them, and the location where connections belong to one.
    pub(super) settings: u64,
    /// With TLS, what [`Pools::identify`](super::Pools::identify) calls the name and what else is of the request; 0 without.
    pub(super) identity: u64,
}

/// A connection to a peer. Boxed, as it goes from request to body to pool and back.
pub(super) struct Line {
    pub io: Io,
    pub peer: Arc<Address>,
    /// While it is in use: it counts for the peer, and goes back to the pool of the group.
    pub guard: Option<PeerGuard>,
    pub group: Option<Arc<Upstream>>,
    pub tag: Tag,
    /// Requests that it has carried, the present one included.
    pub requests: u64,
    /// Milliseconds of the reactor's clock, as `until`.
    pub opened: u64,
    /// Until when it may be idle, in the pool.
    pub until: u64,
    /// The upstream lets it carry another request.
    pub keep: bool,
    /// What is written goes out at once (`tcp_nodelay`).
    pub nodelay: bool,
}

impl Line {
    pub fn set_nodelay(&mut self) {
        if !self.nodelay {
            self.nodelay = true;
            if let Some(socket) = self.io.socket() {
                socket.set_nodelay();
            }
        }
    }
}

pub(super) struct UpstreamBody {
    pub reactor: Rc<Reactor>,
    pub line: Option<Box<Line>>,
    /// What of the request's body is yet to be sent.
    pub uplink: Option<Box<Uplink>>,
    pub timer: Timer,
    pub read_timeout: u64,
    pub ignore_client_abort: bool,
    /// It is read ahead of the client. nginx has another call for that, which its messages name.
    pub buffered: bool,
    pub left: Left,
    /// Bytes that came with the head, or with the last read.
    pub block: Option<Block>,
    /// Bytes of the block that were not looked at yet.
    pub raw: std::ops::Range<usize>,
    /// Bytes of the block that are body and wait to be sent.
    pub ready: std::ops::Range<usize>,
    pub long: bool,
    pub received: u64,
    pub failure: Option<Failure>,
    /// Where they go on (`proxy_pass_trailers`).
    pub trailers: Option<Box<PassedTrailers>>,
    /// How fast it is read (`proxy_limit_rate`).
    pub pace: Option<Box<Pace>>,
    /// When the request began, for the time that the response took.
    pub asked: u64,
    /// The index of the attempt in the exchange's states.
    pub state: usize,
}

/// How many bytes of an upstream's answer are read by when.
pub(super) struct Pace {
    rate: u64,
    /// As much is read at once as nginx has a buffer for, so that it comes evenly.
    piece: u64,
    /// Seconds of the wall clock.
    began: u64,
    /// Milliseconds of the reactor's clock.
    until: u64,
}

impl Pace {
    /// `read` bytes are here already.
    pub fn new(reactor: &Reactor, rate: u64, piece: u64, read: u64) -> Self {
        let mut pace = Self { rate, piece, began: reactor.clock().unix_secs(), until: 0 };
        pace.read(reactor, read);
        pace
    }

    /// Pauses for as long as so many bytes take at the rate.
    fn read(&mut self, reactor: &Reactor, n: u64) {
        self.until = reactor.clock().now_ms().saturating_add(n.saturating_mul(1000) / self.rate);
    }

    /// How many bytes may be read now, where so many were, or until when none.
    fn allowed(&self, reactor: &Reactor, received: u64) -> Result<u64, u64> {
        let now = reactor.clock().now_ms();
        if self.until > now {
            return Err(self.until);
        }
        let seconds = reactor.clock().unix_secs().saturating_sub(self.began) + 1;
        match self.rate.saturating_mul(seconds).checked_sub(received) {
            Some(left @ 1..) => Ok(left.min(self.piece)),
            Some(0) | None => {
                let beyond = received - self.rate.saturating_mul(seconds);
                Err(now.saturating_add(beyond.saturating_mul(1000) / self.rate + 1))
            }
        }
    }
}

/// The fields behind a body, on their way to the client.
pub(super) struct PassedTrailers {
    section: Trailers,
    limit: usize,
    hidden: Arc<Hidden>,
    /// Those that go on, once they are here.
    fields: Option<Headers>,
    /// All of them, for the exchange.
    all: Option<Box<Headers>>,
}

impl PassedTrailers {
    pub fn new(hidden: &Arc<Hidden>, limit: usize) -> Self {
        Self { section: Trailers::default(), limit, hidden: Arc::clone(hidden), fields: None, all: None }
    }

    /// How many of these bytes are of the section.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, Invalid> {
        let Parsed::Complete(taken) = self.section.parse(bytes, self.limit)? else { return Ok(bytes.len()) };
        let mut all = Headers::default();
        for field in self.section.fields() {
            let (name, value) = (self.section.get(field.name), self.section.get(field.value));
            all.push_known(field.known, name, value);
        }
        self.here(all);
        Ok(taken)
    }

    fn here(&mut self, all: Headers) {
        let mut fields = Headers::default();
        for (name, value) in all.iter() {
            let known = Known::of(name);
            if !self.hidden.hides(known, name) {
                fields.push_known(known, name, value);
            }
        }
        self.fields = Some(fields);
        self.all = Some(Box::new(all));
    }
}

/// Why the body broke off.
#[derive(Debug)]
pub(super) enum Failure {
    Trailers(Invalid),
    Closed,
    Timeout,
    /// A call, and what it said.
    Io(&'static str, io::Error),
    /// As the log has it.
    Said(String),
    Http2(Broken),
    Invalid,
    /// The rest of the request's body could not be had; the reason was logged.
    Request,
}

impl Failure {
    fn of(call: &'static str, error: io::Error) -> Self {
        match error.downcast::<Broken>() {
            Ok(broken) => match broken.system {
                Some(code) => Self::Io(call, io::Error::from_raw_os_error(code)),
                None => Self::Http2(broken),
            },
            Err(error) => match error.downcast::<fastcgi::Fault>() {
                Ok(fault) => Self::Said(fault.to_string()),
                Err(error) => Self::Io(call, error),
            },
        }
    }
}

impl UpstreamBody {
    /// Sends what is left of the request's body while the answer comes.
    pub fn goes_on_with(&mut self, uplink: Option<Box<Uplink>>, x: &mut Exchange) {
        if uplink.is_some() {
            x.body.go_on();
        }
        self.uplink = uplink;
    }

    /// Whether reads should be large from the start.
    pub(super) fn is_long(left: &Left) -> bool {
        matches!(left, Left::Length(length) if *length >= LONG)
    }

    /// The same body, for somebody else to pull. What the client is yet to send of the request's body stays with the client.
    pub(super) fn take(&mut self) -> Self {
        if self.uplink.take_if(|uplink| uplink.streams()).is_some()
            && let Some(line) = &mut self.line
        {
            line.keep = false;
        }
        let ranges = (mem::take(&mut self.raw), mem::take(&mut self.ready));
        Self {
            reactor: Rc::clone(&self.reactor),
            timer: self.reactor.timers().register(),
            line: self.line.take(),
            uplink: self.uplink.take(),
            left: mem::replace(&mut self.left, Left::Nothing),
            block: self.block.take(),
            raw: ranges.0,
            ready: ranges.1,
            failure: self.failure.take(),
            trailers: self.trailers.take(),
            pace: self.pace.take(),
            ..*self
        }
    }

    /// The bytes that are ready, where they are all that the block has.
    pub(super) fn take_block(&mut self) -> Option<(Block, std::ops::Range<usize>)> {
        let block = self.block.take_if(|_| self.raw.is_empty() && !self.ready.is_empty())?;
        Some((block, mem::take(&mut self.ready)))
    }

    /// Whether nothing more is to be read, so that the upstream can be let go though not all was taken yet.
    pub(super) fn is_here(&mut self) -> bool {
        if self.trailers.is_none() && !self.is_over() && self.is_last() {
            // What is left is framing.
            match &self.left {
                Left::Frames | Left::Output(_) => self.left = Left::Nothing,
                _ => _ = self.advance(),
            }
        }
        self.is_over()
    }

    /// Whether all bytes of the body are here, so that the client may know that it has all. A stream may end later, or break.
    pub(super) fn is_whole(&mut self) -> bool {
        let told = match self.line.as_ref().map(|line| &line.io) {
            Some(Io::Request(stream)) => self.raw.is_empty() && stream.is_whole(),
            Some(Io::FastCgi(_)) => self.raw.is_empty() && matches!(self.left, Left::Output(Some(0))),
            Some(_) | None => false,
        };
        told || self.is_here()
    }

    /// Adds what was read so far to what is known of the attempt.
    #[inline]
    pub(super) fn account(&self, state: &mut UpstreamState) {
        let now = self.reactor.clock().now_ms();
        state.response_time = Some(now.saturating_sub(self.asked));
        state.bytes_received += self.received;
        state.response_length = self.received;
    }

    /// Whether it broke off.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    fn is_over(&self) -> bool {
        match &self.left {
            Left::Length(left) => *left == 0,
            Left::Chunked(decoder) => {
                decoder.is_over() && self.trailers.as_ref().is_none_or(|t| t.fields.is_some())
            }
            Left::Close | Left::Frames | Left::Output(_) => false,
            Left::Nothing => true,
        }
    }

    /// Finds the next piece of body among the raw bytes. False where more has to be read.
    fn advance(&mut self) -> Result<bool, Failure> {
        let Some(block) = &self.block else { return Ok(false) };
        while !self.raw.is_empty() {
            match &mut self.left {
                Left::Length(left) => {
                    let n = (self.raw.len() as u64).min(*left) as usize;
                    if n == 0 {
                        return Ok(false);
                    }
                    *left -= n as u64;
                    self.ready = self.raw.start..self.raw.start + n;
                    self.raw.start += n;
                    return Ok(true);
                }
                Left::Output(Some(left)) => {
                    let n = (self.raw.len() as u64).min(*left) as usize;
                    if n == 0 {
                        // More than was told ends it.
                        self.left = Left::Nothing;
                        return Ok(false);
                    }
                    *left -= n as u64;
                    self.ready = self.raw.start..self.raw.start + n;
                    self.raw.start += n;
                    return Ok(true);
                }
                Left::Close | Left::Frames | Left::Output(None) => {
                    self.ready = self.raw.clone();
                    self.raw.start = self.raw.end;
                    return Ok(true);
                }
                Left::Chunked(decoder) => {
                    if decoder.is_over() {
                        let Some(trailers) = self.trailers.as_mut().filter(|t| t.fields.is_none()) else {
                            return Ok(false);
                        };
                        self.raw.start +=
                            trailers.take(&block[self.raw.clone()]).map_err(Failure::Trailers)?;
                        continue;
                    }
                    let Ok((taken, piece)) = decoder.next(&block[self.raw.clone()]) else {
                        return Err(Failure::Invalid);
                    };
                    let start = self.raw.start;
                    self.raw.start += taken;
                    if let Piece::Data(range) = piece {
                        self.ready = start + range.start..start + range.end;
                        return Ok(true);
                    }
                }
                Left::Nothing => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Goes on with the request's body. Why an upstream takes no more of it its answer tells.
    #[cold]
    fn push(&mut self, x: &mut Exchange, cx: &mut Context<'_>) -> Result<(), Failure> {
        let (Some(uplink), Some(line)) = (&mut self.uplink, &mut self.line) else { return Ok(()) };
        let (_, polled) = uplink.poll(x, &mut line.io, self.state, cx);
        let Poll::Ready(sent) = polled else { return Ok(()) };
        self.uplink = None;
        line.keep &= sent.is_ok();
        match sent {
            Err(Stopped::Client(_)) => Err(Failure::Request),
            Err(Stopped::Upstream(_)) | Ok(()) => Ok(()),
        }
    }

    /// Whether all of a stream was read, and nothing is behind the body.
    fn is_stream_over(&self) -> bool {
        match self.line.as_ref().map(|line| &line.io) {
            Some(Io::Request(stream)) => stream.is_over() && self.trailers.is_none(),
            Some(_) | None => false,
        }
    }

    /// Whether an application has no more to say to this, nor to its connection.
    fn is_output_over(&self, left: Option<u64>) -> bool {
        match self.line.as_ref().map(|line| &line.io) {
            Some(Io::FastCgi(application)) => match left {
                None => application.is_over() && application.fault_of_end(false).is_none(),
                Some(0) => application.is_over() || !application.keeps(),
                Some(_) => false,
            },
            Some(_) | None => false,
        }
    }

    /// The application has ended its output.
    fn end_output(&mut self, left: Option<u64>) -> Result<(), Failure> {
        if let Some(Io::FastCgi(application)) = self.line.as_ref().map(|line| &line.io)
            && let Some(fault) = application.fault_of_end(left.is_some_and(|left| left > 0))
        {
            return Err(Failure::Said(fault.to_string()));
        }
        self.left = Left::Nothing;
        self.block = None;
        Ok(())
    }

    /// Takes what is behind the body of a stream.
    fn take_trailers(&mut self) {
        if let Some(Io::Request(stream)) = self.line.as_mut().map(|line| &mut line.io)
            && let Some(fields) = stream.take_trailers()
            && let Some(passed) = &mut self.trailers
        {
            passed.here(http2::trailers(&fields));
        }
    }

    /// Variables know them from now on.
    fn tell_trailers(&mut self, x: &mut Exchange) {
        if let Some(trailers) = &mut self.trailers
            && let Some(all) = trailers.all.take()
        {
            x.upstream_trailers = Some(all);
        }
    }

    /// Logs what an application says of itself.
    fn heed(&mut self, x: &Exchange) {
        if let Some(Io::FastCgi(application)) = self.line.as_mut().map(|line| &mut line.io)
            && let Some(said) = application.take_stderr()
        {
            log_stderr(x, &said, "reading upstream");
        }
    }

    fn fail(&mut self, failure: Failure) -> Poll<io::Result<bool>> {
        self.failure = Some(failure);
        self.line = None;
        self.block = None;
        Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Failure>> {
        let Some(line) = &mut self.line else {
            return Poll::Ready(Err(self.failure.take().unwrap_or(Failure::Closed)));
        };
        let mut most = usize::MAX;
        if let Some(pace) = &self.pace {
            most = loop {
                match pace.allowed(&self.reactor, self.received) {
                    Ok(allowed) => break usize::try_from(allowed).unwrap_or(usize::MAX),
                    Err(until) => self.timer.set(until),
                }
                ready!(self.timer.poll_expired(cx));
                self.timer.clear();
            };
        }
        let mut block =
            self.block.take().unwrap_or_else(|| if self.long { Block::large() } else { Block::small() });
        most = most.min(block.len());
        match line.io.poll_read(cx, &mut block[..most]) {
            Poll::Ready(Ok(n)) => {
                self.timer.clear();
                if let Some(pace) = &mut self.pace {
                    pace.read(&self.reactor, n as u64);
                }
                self.received += n as u64;
                self.raw = 0..n;
                if n == block.len() {
                    self.long = true;
                }
                self.block = Some(block);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(error)) => {
                let vectored = self.buffered && matches!(line.io, Io::Plain(_) | Io::FastCgi(_));
                let call = if vectored { "readv() failed" } else { "recv() failed" };
                Poll::Ready(Err(Failure::of(call, error)))
            }
            Poll::Pending => {
                if self.timer.deadline().is_none() {
                    self.timer.set_about(self.read_timeout);
                }
                if self.timer.poll_expired(cx).is_ready() {
                    if let Io::Request(stream) = &line.io {
                        stream.retire();
                    }
                    return Poll::Ready(Err(Failure::Timeout));
                }
                Poll::Pending
            }
        }
    }
}

impl Source for UpstreamBody {
    #[inline]
    fn poll_ready(&mut self, x: &mut Exchange, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            if !self.ready.is_empty() {
                return Poll::Ready(Ok(true));
            }
            match self.advance() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(failure) => return self.fail(failure),
            }
            if self.is_over() {
                self.tell_trailers(x);
                return Poll::Ready(Ok(false));
            }
            if self.uplink.is_some()
                && let Err(failure) = self.push(x, cx)
            {
                return self.fail(failure);
            }
            let filled = self.poll_fill(cx);
            self.heed(x);
            match ready!(filled) {
                Ok(0) if matches!(self.left, Left::Close) => {
                    self.left = Left::Nothing;
                    self.block = None;
                    return Poll::Ready(Ok(false));
                }
                Ok(0) if matches!(self.left, Left::Frames) => {
                    self.take_trailers();
                    self.tell_trailers(x);
                    self.left = Left::Nothing;
                    self.block = None;
                    return Poll::Ready(Ok(false));
                }
                Ok(0) if let Left::Output(left) = self.left => {
                    if let Err(failure) = self.end_output(left) {
                        return self.fail(failure);
                    }
                    return Poll::Ready(Ok(false));
                }
                Ok(0) => return self.fail(Failure::Closed),
                Ok(_) => {}
                Err(failure) => return self.fail(failure),
            }
        }
    }

    #[inline]
    fn data(&self) -> &[u8] {
        self.block.as_ref().map_or(&[], |block| &block[self.ready.clone()])
    }

    #[inline]
    fn consume(&mut self, n: usize) {
        self.ready.start += n;
        if self.ready.is_empty() && self.raw.is_empty() {
            self.block = None;
        }
    }

    #[inline]
    fn is_last(&self) -> bool {
        match &self.left {
            Left::Length(left) => *left == 0,
            Left::Chunked(decoder) => {
                let Some(block) = &self.block else { return false };
                // A look ahead on a copy: the last chunk is often in the same read.
                let mut ahead = **decoder;
                ahead.is_over() || matches!(ahead.next(&block[self.raw.clone()]), Ok((_, Piece::End)))
            }
            Left::Close => false,
            Left::Frames => self.raw.is_empty() && self.is_stream_over(),
            Left::Output(left) => self.raw.is_empty() && self.is_output_over(*left),
            Left::Nothing => true,
        }
    }

    fn read_ahead(&mut self, x: &mut Exchange, cx: &mut Context<'_>) {
        if self.uplink.is_some()
            && self.failure.is_none()
            && let Err(failure) = self.push(x, cx)
        {
            // What is here goes to the client all the same.
            self.failure = Some(failure);
            self.line = None;
        }
    }

    fn trailers(&self) -> Option<&Headers> {
        self.trailers.as_ref().and_then(|trailers| trailers.fields.as_ref())
    }

    fn ends_with_client(&self) -> bool {
        !self.ignore_client_abort
    }

    fn finish(&mut self, x: &mut Exchange, complete: bool) {
        let now = self.reactor.clock().now_ms();
        let failure = self.failure.take();
        if let Some(state) = x.upstream_states.get_mut(self.state) {
            self.account(state);
        }
        match failure {
            Some(Failure::Closed) => {
                x.log_while(Level::Error, None, "upstream prematurely closed connection", "reading upstream");
            }
            Some(Failure::Timeout) => x.log_while(
                Level::Error,
                Some(&io::Error::from_raw_os_error(nix::libc::ETIMEDOUT)),
                "upstream timed out",
                "reading upstream",
            ),
            Some(Failure::Io(call, error)) => {
                x.log_while(Level::Error, Some(&error), call, "reading upstream");
            }
            Some(Failure::Said(message)) => x.log_while(Level::Error, None, message, "reading upstream"),
            Some(Failure::Http2(broken)) => broken.tell(x, "reading upstream"),
            Some(Failure::Trailers(invalid)) => {
                x.log_while(
                    Level::Error,
                    None,
                    String::from_utf8_lossy(&invalid.message),
                    "reading upstream",
                );
            }
            Some(Failure::Invalid) => {
                x.log_while(Level::Error, None, "upstream sent invalid chunked response", "reading upstream");
            }
            Some(Failure::Request) | None => {}
        }
        // What the last read brought of the framing is taken before the connection is judged.
        if complete && self.ready.is_empty() && !self.is_over() {
            let _ = self.advance();
        }
        if matches!(self.left, Left::Output(_)) && self.is_last() {
            self.left = Left::Nothing;
        }
        let clean = self.is_over() && self.raw.is_empty();
        if self.is_over() && !clean {
            let message = match &self.left {
                Left::Chunked(_) => "upstream sent data after final chunk",
                Left::Length(_) | Left::Close | Left::Frames | Left::Output(_) | Left::Nothing => {
                    MORE_THAN_TOLD
                }
            };
            x.log_while(Level::Warn, None, message, "reading upstream");
        }
        match self.line.take() {
            Some(line) if line.keep && clean && self.uplink.is_none() => keep(&self.reactor, line, now),
            Some(mut line) => line.io.farewell(),
            None => {}
        }
    }
}

/// Gives a connection back to the pool, unless it served long enough.
pub(super) fn keep(reactor: &Reactor, mut line: Box<Line>, now: u64) {
    let Some(group) = line.group.take() else { return };
    line.io = match mem::replace(&mut line.io, Io::Absent) {
        Io::FastCgi(application) => match application.into_idle() {
            Some(io) => io,
            None => return,
        },
        io => io,
    };
    let settings = &group.pool;
    let spent = line.requests >= settings.requests || now.saturating_sub(line.opened) >= settings.time;
    if spent || reactor.is_quitting() || settings.connections == 0 {
        line.io.farewell();
        return;
    }
    line.guard = None;
    line.until = now.saturating_add(settings.timeout);
    reactor.pools.put(group.pool_id, line, settings);
}

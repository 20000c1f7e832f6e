//! A request to an upstream: a peer is picked, connected, asked, and left for the next where it fails.
//!
//! Client and upstream of a request live in the same task: nothing is handed over a channel. What is specific to a
//! protocol (the bytes of the request, what of the response's head goes on) is behind [`Protocol`].

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use weir_syntax::Level;

use super::balance::{Outcome, Picked, Tried};
use super::body::{Left, Line, UpstreamBody, keep};
use super::{PeerGuard, Upstream, UpstreamState};
use crate::contract::Flow;
use crate::http::exchange::Tunnel;
use crate::http::request_body::RequestBody;
use crate::http::{Body, Exchange, Headers, Response, Template, special};
use crate::http1::body::{ChunkHead, Decoder, LAST_CHUNK};
use crate::http1::response::{Framing, Head, Parsed};
use crate::http1::{Known, Method};
use crate::io::{Block, Buf, ConnectCall, ConnectOptions, Io, connect, scratch};
use crate::timer::Timer;
use crate::tunnel;

/// Kinds of failure that another peer may make good, as bits (nginx: `proxy_next_upstream`).
pub mod next {
    pub const ERROR: u32 = 1 << 1;
    pub const TIMEOUT: u32 = 1 << 2;
    pub const INVALID_HEADER: u32 = 1 << 3;
    pub const HTTP_500: u32 = 1 << 4;
    pub const HTTP_502: u32 = 1 << 5;
    pub const HTTP_503: u32 = 1 << 6;
    pub const HTTP_504: u32 = 1 << 7;
    pub const HTTP_403: u32 = 1 << 8;
    pub const HTTP_404: u32 = 1 << 9;
    pub const HTTP_429: u32 = 1 << 10;
    pub const NON_IDEMPOTENT: u32 = 1 << 14;
    pub const OFF: u32 = 1 << 31;

    pub(super) fn of_status(status: u16) -> Option<u32> {
        Some(match status {
            500 => HTTP_500,
            502 => HTTP_502,
            503 => HTTP_503,
            504 => HTTP_504,
            403 => HTTP_403,
            404 => HTTP_404,
            429 => HTTP_429,
            _ => return None,
        })
    }

    /// What the client is told where no peer is left.
    pub(super) fn status_of(kind: u32) -> u16 {
        match kind {
            TIMEOUT | HTTP_504 => 504,
            HTTP_500 => 500,
            HTTP_503 => 503,
            HTTP_403 => 403,
            HTTP_404 => 404,
            HTTP_429 => 429,
            _ => 502,
        }
    }
}

/// What a `…_pass` module's directives say of the exchange. Times are milliseconds, sizes bytes.
#[derive(Clone)]
pub struct Settings {
    pub connect_timeout: u64,
    pub send_timeout: u64,
    pub read_timeout: u64,
    /// Bits of [`next`].
    pub next_upstream: u32,
    /// 0 is no bound.
    pub next_upstream_tries: u64,
    /// 0 is no bound.
    pub next_upstream_timeout: u64,
    /// The request's body is read whole before a peer is asked.
    pub request_buffering: bool,
    pub pass_request_body: bool,
    /// The largest head of a response.
    pub buffer_size: usize,
    pub ignore_client_abort: bool,
    /// Answers of 300 and above are replaced where an `error_page` says so.
    pub intercept_errors: bool,
    pub socket: ConnectOptions,
    /// The local address of connections, computed for each request; empty leaves it to the kernel.
    pub bind: Option<Arc<Template>>,
}

/// Where a request goes.
#[derive(Clone)]
pub struct Target {
    pub group: Arc<Upstream>,
    /// `http://`
    pub scheme: &'static str,
}

/// How the request's body goes to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestLength {
    None,
    Known(u64),
    Chunked,
}

/// What of an exchange is the protocol's.
pub trait Protocol: Send + Sync {
    fn settings(&self) -> &Settings;

    /// Appends the request's head. Gives back the range of the URI in it, for messages.
    ///
    /// # Errors
    /// The status to answer with; the reason was logged.
    fn request(
        &self,
        x: &mut Exchange,
        length: RequestLength,
        out: &mut Vec<u8>,
    ) -> Result<std::ops::Range<usize>, u16>;

    /// Makes the client's response of the upstream's head; the body is put in afterwards.
    fn response(&self, x: &mut Exchange, head: &Head) -> Box<Response>;

    /// Where the upstream sends the request on within the server (`X-Accel-Redirect`); what goes along was put aside.
    fn redirect(&self, x: &mut Exchange, head: &Head) -> Option<Vec<u8>> {
        let _ = (x, head);
        None
    }

    /// A body that replaces the client's, appended by [`Protocol::request`] itself.
    fn replaces_body(&self) -> bool {
        false
    }
}

/// Why an attempt failed.
struct Failure {
    kind: u32,
    /// The connection came from the pool and may simply have been closed meanwhile.
    cached: bool,
    /// Not another peer: the client gets this.
    status: Option<u16>,
}

impl Failure {
    fn of(kind: u32, cached: bool) -> Self {
        Self { kind, cached, status: None }
    }

    fn end(status: u16) -> Self {
        Self { kind: 0, cached: false, status: Some(status) }
    }
}

/// Asks an upstream and gives its response.
pub async fn run(x: &mut Exchange, target: Target, protocol: &dyn Protocol) -> Flow {
    let settings = protocol.settings();
    let streams = !settings.request_buffering
        && settings.pass_request_body
        && !protocol.replaces_body()
        && x.body.exists()
        && x.body.stored().is_none();
    if let Err(error) = x.send_continue().await {
        return Flow::Answer(error.0);
    }
    if !streams && x.body.exists() {
        if let Err(error) = x.read_body().await {
            return Flow::Answer(error.0);
        }
    }
    // What is here of the body already may be all of it, whose length can then be told.
    let streams = streams && !x.take_ready_body();
    let length = if protocol.replaces_body() || !settings.pass_request_body {
        RequestLength::None
    } else {
        match (x.body.stored(), x.body.is_chunked()) {
            (Some(stored), _) => RequestLength::Known(stored.len()),
            (None, true) => RequestLength::Chunked,
            (None, false) => x.head.content_length().map_or(RequestLength::None, RequestLength::Known),
        }
    };
    let mut request = Buf::with_capacity(1024);
    match protocol.request(x, length, request.tail()) {
        Ok(range) => {
            x.upstream_uri.clear();
            x.upstream_uri.extend_from_slice(&request[range]);
        }
        Err(status) => return Flow::Answer(status),
    }
    if streams {
        // What is here of the body goes in one piece with the head.
        let mut piece = Vec::new();
        if let Err(error) = x.take_body_input(&mut piece) {
            return Flow::Answer(error.0);
        }
        append_piece(&piece, &x.body, request.tail());
    }
    let mut asking = Asking {
        timer: x.reactor.timers().register(),
        started: x.reactor.clock().now_ms(),
        tried: Tried::default(),
        tries: tries(&target.group, settings),
        request,
        streams,
        doing: "",
        target,
        protocol,
    };
    asking.run(x).await
}

fn tries(group: &Upstream, settings: &Settings) -> u64 {
    let peers = group.peers.iter().filter(|p| !p.down).count().max(1) as u64;
    match settings.next_upstream_tries {
        0 => peers,
        bound => peers.min(bound),
    }
}

/// The state of asking, over all attempts.
struct Asking<'p> {
    target: Target,
    protocol: &'p dyn Protocol,
    request: Buf,
    timer: Timer,
    started: u64,
    tried: Tried,
    tries: u64,
    /// The client's body goes on as it comes.
    streams: bool,
    /// The part of the present attempt, as the log tells it.
    doing: &'static str,
}

/// An attempt on its way.
struct Attempt {
    peer: usize,
    line: Line,
    cached: bool,
    /// The whole request went out.
    sent: bool,
    started: u64,
}

impl Asking<'_> {
    async fn run(&mut self, x: &mut Exchange) -> Flow {
        loop {
            let now = x.reactor.clock().now_ms();
            let Picked::Peer(peer) = self.target.group.balance.pick(x, &mut self.tried, now) else {
                return self.no_live_upstreams(x);
            };
            self.tries = self.tries.saturating_sub(1);
            x.upstream_headers = None;
            x.upstream_states.push(UpstreamState {
                peer: Some(Arc::clone(&self.target.group.peers[peer].text)),
                scheme: self.target.scheme,
                ..UpstreamState::default()
            });
            let failure = match self.attempt(x, peer, now).await {
                Ok(flow) => return flow,
                Err(failure) => failure,
            };
            self.timer.clear();
            let ended = x.reactor.clock().now_ms();
            if let Some(state) = x.upstream_states.last_mut() {
                state.response_time = Some(ended.saturating_sub(now));
            }
            if let Some(status) = failure.status {
                return Flow::Answer(status);
            }
            // A kept connection that was closed meanwhile says nothing about the peer.
            let stale = failure.cached && failure.kind == next::ERROR;
            if stale {
                self.tries += 1;
                self.tried.remove(peer);
            } else if !matches!(failure.kind, next::HTTP_403 | next::HTTP_404) {
                let balance = &self.target.group.balance;
                balance.done(peer, Outcome::Failure, ended);
                if balance.is_disabled(peer) {
                    x.log_while(Level::Warn, None, "upstream server temporarily disabled", self.doing);
                }
            }
            let status = next::status_of(failure.kind);
            if let Some(state) = x.upstream_states.last_mut() {
                state.status = status;
            }
            if !self.may_go_on(x, failure.kind, ended) {
                return Flow::Answer(status);
            }
        }
    }

    fn no_live_upstreams(&self, x: &mut Exchange) -> Flow {
        x.upstream_states.push(UpstreamState {
            peer: Some(self.target.group.name.as_bytes().into()),
            scheme: self.target.scheme,
            status: 502,
            response_time: Some(0),
            ..UpstreamState::default()
        });
        x.log(Level::Error, "no live upstreams while connecting to upstream");
        Flow::Answer(502)
    }

    /// Whether another peer may be asked after a failure of this kind.
    fn may_go_on(&self, x: &Exchange, kind: u32, now: u64) -> bool {
        let settings = self.protocol.settings();
        let mut needed = kind;
        if self.request_left(x) && matches!(x.method, Method::Post | Method::Lock | Method::Patch) {
            needed |= next::NON_IDEMPOTENT;
        }
        let timeout = settings.next_upstream_timeout;
        self.tries > 0
            && settings.next_upstream & needed == needed
            // A body that goes on as it comes goes on only once.
            && !(self.streams && self.request_left(x))
            && (timeout == 0 || now.saturating_sub(self.started) < timeout)
    }

    /// Whether any byte of the request reached a peer in the last attempt.
    fn request_left(&self, x: &Exchange) -> bool {
        x.upstream_states.last().is_some_and(|state| state.bytes_sent > 0)
    }

    async fn attempt(&mut self, x: &mut Exchange, peer: usize, now: u64) -> Result<Flow, Failure> {
        self.doing = "connecting to upstream";
        let mut attempt = self.open(x, peer, now).await?;
        self.doing = "sending request to upstream";
        self.send(x, &mut attempt).await?;
        self.doing = "reading response header from upstream";
        let answered = self.head(x, &mut attempt).await?;
        if answered.headless {
            return Ok(self.headless(x, attempt, answered));
        }
        let Answered { head, block, raw, .. } = answered;
        let flow = self.answer(x, attempt, &head, block, raw);
        x.reactor.put_head(head);
        flow
    }

    /// Takes a kept connection or opens one, and sends on it what it takes at once.
    async fn open(&mut self, x: &mut Exchange, index: usize, now: u64) -> Result<Attempt, Failure> {
        let group = &self.target.group;
        let peer = &group.peers[index];
        let guard = Some(PeerGuard::new(peer));
        let tag = if group.pool.local { u64::from(x.location.0) + 1 } else { 0 };
        if let Some(idle) = x.reactor.pools.take(group.pool_id, &peer.address, tag, &group.pool, now) {
            let line = Line {
                io: idle.io,
                peer: idle.peer,
                guard,
                group: Arc::clone(group),
                tag,
                requests: idle.requests + 1,
                opened: idle.opened,
                keep: true,
            };
            if let Some(state) = x.upstream_states.last_mut() {
                state.connect_time = Some(0);
            }
            return Ok(Attempt { peer: index, line, cached: true, sent: false, started: now });
        }
        let settings = self.protocol.settings();
        let socket = match &settings.bind {
            Some(bind) => ConnectOptions { bind: local_address(x, bind), ..settings.socket.clone() },
            None => settings.socket.clone(),
        };
        let mut connecting = match connect(&peer.address, &socket) {
            Ok(connecting) => connecting,
            Err(failed) => {
                let level = if failed.call == ConnectCall::Connect { Level::Error } else { Level::Alert };
                x.log_error(
                    level,
                    Some(&failed.error),
                    format_args!("{failed} while connecting to upstream"),
                );
                return Err(match failed.call {
                    ConnectCall::Connect | ConnectCall::Bind => Failure::of(next::ERROR, false),
                    ConnectCall::Socket | ConnectCall::Setsockopt => Failure::end(500),
                });
            }
        };
        // The request is offered before the handshake is known to be over: on a near peer it is.
        let offered = connecting.try_send(&[io::IoSlice::new(&self.request)]);
        let mut sent = 0;
        match offered {
            Ok(n) => sent = n,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => {
            }
            Err(error) => return Err(connect_failed(x, &error)),
        }
        if !connecting.is_connected() {
            self.timer.set_in(settings.connect_timeout);
            let timer = &self.timer;
            let connected = poll_fn(|cx| {
                if let Poll::Ready(result) = connecting.poll_connected(cx) {
                    return Poll::Ready(Waited::Done(result));
                }
                if poll_client_gone(x, cx, settings) {
                    return Poll::Ready(Waited::ClientGone);
                }
                timer.poll_expired(cx).map(|()| Waited::Timeout)
            });
            match connected.await {
                Waited::Done(Ok(())) => {}
                Waited::Done(Err(error)) => return Err(connect_failed(x, &error)),
                Waited::Timeout => {
                    log_timeout(x, "connecting to upstream");
                    return Err(Failure::of(next::TIMEOUT, false));
                }
                Waited::ClientGone => return Err(client_gone(x, "connecting to upstream")),
            }
            self.timer.clear();
        }
        let connected = x.reactor.clock().now_ms();
        if let Some(state) = x.upstream_states.last_mut() {
            state.connect_time = Some(connected.saturating_sub(now));
            state.bytes_sent = sent as u64;
        }
        let line = Line {
            io: Io::Plain(connecting.into_socket()),
            peer: Arc::clone(&peer.address),
            guard,
            group: Arc::clone(group),
            tag,
            requests: 1,
            opened: connected,
            keep: true,
        };
        Ok(Attempt { peer: index, line, cached: false, sent: false, started: now })
    }

    /// Sends the request. An upstream that answers before it has all of it is listened to.
    async fn send(&mut self, x: &mut Exchange, attempt: &mut Attempt) -> Result<(), Failure> {
        let already = x.upstream_states.last().map_or(0, |s| s.bytes_sent) as usize;
        let mut rest = &self.request[already..];
        if !rest.is_empty() && !self.write(x, attempt, &mut rest).await? {
            return Ok(());
        }
        if self.streams {
            if !self.send_streaming(x, attempt).await? {
                return Ok(());
            }
        } else if self.protocol.settings().pass_request_body && !self.protocol.replaces_body() {
            if !self.send_stored(x, attempt).await? {
                return Ok(());
            }
        }
        attempt.sent = true;
        Ok(())
    }

    /// Writes all of `bytes`; false where the upstream began to answer meanwhile.
    async fn write(
        &self,
        x: &mut Exchange,
        attempt: &mut Attempt,
        bytes: &mut &[u8],
    ) -> Result<bool, Failure> {
        let settings = self.protocol.settings();
        let (timer, io) = (&self.timer, &mut attempt.line.io);
        let mut written = 0;
        let result = poll_fn(|cx| {
            while !bytes.is_empty() {
                match io.poll_write(cx, bytes) {
                    Poll::Ready(Ok(n)) => {
                        *bytes = &bytes[n..];
                        written += n as u64;
                        timer.clear();
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Sent::Failed(error)),
                    Poll::Pending => {
                        if timer.deadline().is_none() {
                            timer.set_in(settings.send_timeout);
                        }
                        if io.poll_read_ready(cx).is_ready() {
                            return Poll::Ready(Sent::Answered);
                        }
                        if poll_client_gone(x, cx, settings) {
                            return Poll::Ready(Sent::ClientGone);
                        }
                        return timer.poll_expired(cx).map(|()| Sent::Timeout);
                    }
                }
            }
            io.poll_flush(cx).map(|result| result.map_or_else(Sent::Failed, |()| Sent::All))
        })
        .await;
        timer.clear();
        if let Some(state) = x.upstream_states.last_mut() {
            state.bytes_sent += written;
        }
        match result {
            Sent::All => Ok(true),
            Sent::Answered => Ok(false),
            Sent::ClientGone => Err(client_gone(x, "sending request to upstream")),
            Sent::Timeout => {
                log_timeout(x, "sending request to upstream");
                Err(Failure::of(next::TIMEOUT, attempt.cached))
            }
            Sent::Failed(error) => {
                x.log_while(Level::Error, Some(&error), "send() failed", "sending request to upstream");
                Err(Failure::of(next::ERROR, attempt.cached))
            }
        }
    }

    async fn send_stored(&self, x: &mut Exchange, attempt: &mut Attempt) -> Result<bool, Failure> {
        let Some(length) = x.body.stored().map(|stored| stored.len()) else { return Ok(true) };
        let mut offset = 0;
        while offset < length {
            let mut block = Block::small();
            let got = x.body.stored().map_or(Ok(0), |stored| stored.read_at(offset, &mut block));
            let n = match got {
                Ok(n) if n > 0 => n,
                Ok(_) => return Err(Failure::end(500)),
                Err(error) => {
                    x.log_error(Level::Crit, Some(&error), "reading the request body failed");
                    return Err(Failure::end(500));
                }
            };
            offset += n as u64;
            let mut bytes = &block[..n];
            if !self.write(x, attempt, &mut bytes).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn send_streaming(&mut self, x: &mut Exchange, attempt: &mut Attempt) -> Result<bool, Failure> {
        if let Err(error) = x.send_continue().await {
            return Err(Failure::end(error.0));
        }
        let mut piece = Vec::new();
        let mut framed = Vec::new();
        while !x.body.is_over() {
            piece.clear();
            let io = &mut attempt.line.io;
            let event = poll_fn(|cx| {
                if let Poll::Ready(result) = x.poll_body_piece(cx, &mut piece) {
                    return Poll::Ready(Some(result));
                }
                io.poll_read_ready(cx).map(|_| None)
            });
            match event.await {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(Failure::end(error.0)),
                None => return Ok(false),
            }
            framed.clear();
            append_piece(&piece, &x.body, &mut framed);
            let mut bytes: &[u8] = &framed;
            if !self.write(x, attempt, &mut bytes).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads the head of the answer; with it comes what was read behind it.
    async fn head(&self, x: &mut Exchange, attempt: &mut Attempt) -> Result<Answered, Failure> {
        let settings = self.protocol.settings();
        // Taken when there is something to put in it: many requests may wait at a time.
        let mut head: Option<Box<Head>> = None;
        let (timer, io) = (&self.timer, &mut attempt.line.io);
        let mut received = 0u64;
        let result = poll_fn(|cx| {
            loop {
                let mut block = Block::small();
                match io.poll_read(cx, &mut block) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Read::Closed),
                    Poll::Ready(Ok(n)) => {
                        received += n as u64;
                        let head = head.get_or_insert_with(|| x.reactor.take_head());
                        if let Some(read) = parse(head, x, block, n, settings) {
                            return Poll::Ready(read);
                        }
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Read::Failed(error)),
                    Poll::Pending => {
                        drop(block);
                        if timer.deadline().is_none() {
                            timer.set_in(settings.read_timeout);
                        }
                        if poll_client_gone(x, cx, settings) {
                            return Poll::Ready(Read::ClientGone);
                        }
                        return timer.poll_expired(cx).map(|()| Read::Timeout);
                    }
                }
            }
        })
        .await;
        timer.clear();
        let now = x.reactor.clock().now_ms();
        if let Some(state) = x.upstream_states.last_mut() {
            state.bytes_received = received;
        }
        let head = head.unwrap_or_default();
        const READING: &str = "reading response header from upstream";
        match result {
            Read::Head(block, raw) => {
                if let Some(state) = x.upstream_states.last_mut() {
                    state.header_time = Some(now.saturating_sub(attempt.started));
                    state.status = head.status();
                    state.bytes_received -= raw.len() as u64;
                }
                if x.generation.keeps_upstream_headers {
                    let mut headers = Headers::default();
                    for field in head.fields() {
                        headers.push_known(field.known, head.get(field.name), head.get(field.value));
                    }
                    x.upstream_headers = Some(headers);
                }
                Ok(Answered { head, block, raw, headless: false })
            }
            Read::Headless(mut block, raw) => {
                // What the head took in before it was known to be none goes first.
                let taken = head.raw().len();
                block.copy_within(raw.clone(), taken);
                block[..taken].copy_from_slice(head.raw());
                if let Some(state) = x.upstream_states.last_mut() {
                    state.status = 200;
                }
                Ok(Answered { head, block: Some(block), raw: 0..taken + raw.len(), headless: true })
            }
            Read::Closed => {
                x.log_while(Level::Error, None, "upstream prematurely closed connection", READING);
                Err(Failure::of(next::ERROR, attempt.cached && received == 0))
            }
            Read::Failed(error) => {
                x.log_while(Level::Error, Some(&error), "recv() failed", READING);
                Err(Failure::of(next::ERROR, attempt.cached && received == 0))
            }
            Read::Timeout => {
                log_timeout(x, READING);
                Err(Failure::of(next::TIMEOUT, attempt.cached))
            }
            Read::Invalid => Err(Failure::of(next::INVALID_HEADER, attempt.cached)),
            Read::ClientGone => Err(client_gone(x, READING)),
        }
    }

    /// Decides between the next peer, an intercepted error, a tunnel and a response.
    fn answer(
        &self,
        x: &mut Exchange,
        attempt: Attempt,
        head: &Head,
        block: Option<Block>,
        raw: std::ops::Range<usize>,
    ) -> Result<Flow, Failure> {
        let settings = self.protocol.settings();
        let now = x.reactor.clock().now_ms();
        let status = head.status();
        if status >= 300 {
            if let Some(kind) = next::of_status(status) {
                if self.may_go_on(x, kind, now) {
                    return Err(Failure::of(kind, attempt.cached));
                }
            }
            if settings.intercept_errors && x.location().core.error_pages.iter().any(|p| p.code == status) {
                if status == 401 {
                    // The page may be ours, but how to get in is the upstream's to say.
                    for field in head.fields().iter().filter(|f| f.known == Known::WwwAuthenticate) {
                        x.answer_headers.push(head.get(field.name), head.get(field.value));
                    }
                }
                self.target.group.balance.done(attempt.peer, Outcome::Success, now);
                return Ok(Flow::Answer(status));
            }
        }
        self.target.group.balance.done(attempt.peer, Outcome::Success, now);
        if let Some(to) = self.protocol.redirect(x, head) {
            return Ok(internal_redirect(x, &to));
        }
        let mut response = self.protocol.response(x, head);
        let to_head = x.method == Method::Head;
        let framing = head.framing(to_head);
        if framing == Framing::Tunnel && x.header(Known::Upgrade).is_none() {
            // Nobody asked for another protocol, so nobody speaks it: the connections end with this head.
            response.close = true;
            return Ok(Flow::Respond(response));
        }
        if framing == Framing::Tunnel {
            let read = block.as_ref().map_or(&[][..], |b| &b[raw]);
            let tunnel = Tunnel {
                upstream: attempt.line.io,
                from_upstream: Buf::copy_of(read),
                options: tunnel::Options {
                    read_timeout: settings.read_timeout,
                    send_timeout: settings.send_timeout,
                    client_send_timeout: x.location().core.send_timeout,
                    half_close: false,
                },
                peer: attempt.line.guard,
            };
            response.body = Body::Tunnel(Box::new(tunnel));
            return Ok(Flow::Respond(response));
        }
        let mut line = attempt.line;
        line.keep = attempt.sent && head.keeps_alive();
        let left = match framing {
            Framing::Empty => Left::Nothing,
            Framing::Length(0) => Left::Nothing,
            Framing::Length(length) => Left::Length(length),
            Framing::Chunked => Left::Chunked(Box::new(Decoder::new())),
            Framing::UntilClose => Left::Close,
            Framing::Tunnel => unreachable!("handled above"),
        };
        if matches!(left, Left::Nothing) {
            let clean = raw.is_empty();
            drop(block);
            if let Some(state) = x.upstream_states.last_mut() {
                state.response_time = Some(now.saturating_sub(attempt.started));
            }
            if line.keep && clean {
                keep(&x.reactor, line, now);
            }
            return Ok(Flow::Respond(response));
        }
        response.body = self.body(x, line, left, block, raw, attempt.started);
        Ok(Flow::Respond(response))
    }

    fn body(
        &self,
        x: &Exchange,
        line: Line,
        left: Left,
        block: Option<Block>,
        raw: std::ops::Range<usize>,
        asked: u64,
    ) -> Body {
        Body::Stream(Box::new(UpstreamBody {
            reactor: Rc::clone(&x.reactor),
            timer: x.reactor.timers().register(),
            read_timeout: self.protocol.settings().read_timeout,
            long: UpstreamBody::is_long(&left),
            received: raw.len() as u64,
            left,
            block,
            raw,
            ready: 0..0,
            line: Some(line),
            failure: None,
            trailers: None,
            asked,
            state: x.upstream_states.len().saturating_sub(1),
        }))
    }

    /// An answer without a head goes to the client as it came.
    fn headless(&self, x: &mut Exchange, attempt: Attempt, answered: Answered) -> Flow {
        let now = x.reactor.clock().now_ms();
        self.target.group.balance.done(attempt.peer, Outcome::Success, now);
        let Answered { head, block, raw, .. } = answered;
        x.reactor.put_head(head);
        let mut response = x.new_response(200);
        response.headless = true;
        let line = Line { keep: false, ..attempt.line };
        response.body = self.body(x, line, Left::Close, block, raw, attempt.started);
        Flow::Respond(response)
    }
}

/// The head of an answer, and what was read behind it.
struct Answered {
    head: Box<Head>,
    block: Option<Block>,
    raw: std::ops::Range<usize>,
    headless: bool,
}

/// Appends a part of a request's body as it is framed for the upstream, the end behind the last one.
fn append_piece(piece: &[u8], body: &RequestBody, out: &mut Vec<u8>) {
    if !body.is_chunked() {
        out.extend_from_slice(piece);
        return;
    }
    if !piece.is_empty() {
        out.extend_from_slice(ChunkHead::new(piece.len() as u64).as_ref());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    if body.is_over() {
        out.extend_from_slice(LAST_CHUNK);
    }
}

/// The address that a connection comes from; what is none is told and left to the kernel.
fn local_address(x: &Exchange, bind: &Template) -> Option<SocketAddr> {
    let text = bind.value(x);
    if text.is_empty() {
        return None;
    }
    let found = weir_ir::address::local(&text);
    if found.is_none() {
        let shown = String::from_utf8_lossy(&text);
        x.log(Level::Error, format_args!("invalid local address \"{shown}\""));
    }
    found
}

/// How waiting for a connection ended.
enum Waited {
    Done(io::Result<()>),
    Timeout,
    ClientGone,
}

enum Sent {
    All,
    Answered,
    Timeout,
    ClientGone,
    Failed(io::Error),
}

enum Read {
    Head(Option<Block>, std::ops::Range<usize>),
    /// An HTTP/0.9 answer: everything is body.
    Headless(Block, std::ops::Range<usize>),
    Closed,
    Failed(io::Error),
    Timeout,
    Invalid,
    ClientGone,
}

/// Takes what was read for the head; `None` where more is needed.
fn parse(head: &mut Head, x: &Exchange, block: Block, n: usize, settings: &Settings) -> Option<Read> {
    let mut from = 0;
    loop {
        match head.parse(&block[from..n], settings.buffer_size) {
            Ok(Parsed::Partial) => return None,
            Ok(Parsed::Complete(taken)) => {
                from += taken;
                for warning in head.warnings() {
                    x.log(Level::Warn, String::from_utf8_lossy(&warning));
                }
                if head.is_interim() {
                    // 100 and its like are between the upstream and us.
                    head.reset();
                    continue;
                }
                let block = (from < n).then_some(block);
                return Some(Read::Head(block, from..n));
            }
            Ok(Parsed::Headless) => {
                let doing = "reading response header from upstream";
                x.log_while(Level::Error, None, "upstream sent no valid HTTP/1.0 header", doing);
                return Some(Read::Headless(block, from..n));
            }
            Err(invalid) => {
                let message = String::from_utf8_lossy(&invalid.message);
                x.log_while(Level::Error, None, message, "reading response header from upstream");
                return Some(Read::Invalid);
            }
        }
    }
}

/// Sends the request on to another location, as a GET unless it asked for the head alone.
fn internal_redirect(x: &mut Exchange, to: &[u8]) -> Flow {
    if let Some(state) = x.upstream_states.last_mut() {
        state.redirected = true;
    }
    if to.first() == Some(&b'@') {
        let Some(id) = special::named(x, to) else {
            let name = String::from_utf8_lossy(to).into_owned();
            x.log(Level::Error, format_args!("could not find named location \"{name}\""));
            return Flow::Answer(500);
        };
        if !x.take_redirect() {
            return Flow::Answer(500);
        }
        x.redirect_named(id);
        return Flow::Redirect;
    }
    let mut path = Vec::new();
    let decoded = crate::http1::uri::decode_unsafe(to, &mut path).map(|args| args.map(<[u8]>::to_vec));
    let Ok(args) = decoded else { return Flow::Answer(404) };
    if x.method != Method::Head {
        x.method = Method::Get;
        x.method_name = Some(b"GET");
    }
    if !x.take_redirect() {
        return Flow::Answer(500);
    }
    x.redirect(path, args);
    Flow::Redirect
}

fn connect_failed(x: &Exchange, error: &io::Error) -> Failure {
    x.log_while(Level::Error, Some(error), "connect() failed", "connecting to upstream");
    Failure::of(next::ERROR, false)
}

fn log_timeout(x: &Exchange, doing: &str) {
    let error = io::Error::from_raw_os_error(nix::libc::ETIMEDOUT);
    x.log_while(Level::Error, Some(&error), "upstream timed out", doing);
}

fn client_gone(x: &Exchange, doing: &str) -> Failure {
    x.log(
        Level::Info,
        format_args!(
            "client prematurely closed connection, so upstream connection is closed too while {doing}"
        ),
    );
    Failure::end(499)
}

/// Whether the client went away while an upstream is waited for. What it sends ahead is kept, up to a bound.
fn poll_client_gone(x: &mut Exchange, cx: &mut Context<'_>, settings: &Settings) -> bool {
    const AHEAD: usize = 4096;
    if settings.ignore_client_abort || !x.body.is_over() || x.client.input.len() >= AHEAD {
        return false;
    }
    let (io, input) = (&mut x.client.io, &mut x.client.input);
    scratch(|bytes| {
        loop {
            let room = AHEAD - input.len().min(AHEAD);
            if room == 0 {
                return false;
            }
            match io.poll_read(cx, &mut bytes[..room]) {
                Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => return true,
                Poll::Ready(Ok(n)) => input.extend(&bytes[..n]),
                Poll::Pending => return false,
            }
        }
    })
}

//! An HTTP/1 connection of a client: its requests one after the other, and how it ends. And a request from its head to its
//! line in the log, also that of a stream of HTTP/2.

use std::cell::Cell;
use std::fmt::Display;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use weir_ir::LocationId;
use weir_ir::http::core::LingeringClose;
use weir_syntax::Level;

use crate::generation::Generation;
use crate::http::exchange::{Connection, Tunnel};
use crate::http::upgraded::start_tunnel;
use crate::http::{Client, Exchange, phases, router, send};
use crate::http1::request::{Head, Parsed, Reject};
use crate::http1::{Browser, Known, Limits, Method};
use crate::http2;
use crate::io::{Address, Buf, Io, scratch};
use crate::reactor::{Count, Idle, Peer, Reactor};
use crate::tls::Unauthorized;
use crate::upstream::UpstreamState;

/// Milliseconds that an idle connection of a replaced generation is given to send one more request.
const RELOAD_GRACE: u64 = 1_000;
/// Milliseconds that an idle connection keeps the memory of its last request for the next one.
const KEEPS_MEMORY: u64 = 2_000;

/// Serves a connection whose transport is ready, until it ends.
pub async fn serve(
    reactor: Rc<Reactor>,
    generation: Arc<Generation>,
    listener: Arc<Address>,
    connection: Connection,
    io: Io,
) {
    let idle = reactor.register_idle();
    serve_from(reactor, generation, listener, connection, io, Start::default(), idle).await;
}

/// How a connection begins for HTTP.
#[derive(Default)]
pub struct Start {
    /// What was read of it already.
    pub input: Buf,
    /// Plain HTTP came to a port where TLS is spoken: every request is answered with 497.
    pub plain_on_tls: bool,
    /// HTTP/2 is spoken.
    pub http2: bool,
}

/// As [`serve`], for a connection that something was learned of before.
pub async fn serve_from(
    reactor: Rc<Reactor>,
    generation: Arc<Generation>,
    listener: Arc<Address>,
    connection: Connection,
    io: Io,
    start: Start,
    idle: Rc<Idle>,
) {
    let timer = reactor.timers().register();
    let client = Client { io, input: start.input, timer, look: None, nodelay: false };
    let mut state = Serving {
        idle,
        server: connection_server(&generation, &connection),
        served: generation,
        connection: Rc::new(connection),
        plain_on_tls: start.plain_on_tls,
        listener,
        reactor,
        stage: Stage::Waiting,
    };
    let mut x = state.exchange_with(client);
    let idle = Rc::clone(&state.idle);
    loop {
        let ended = idle.bounded(pin!(state.request(&mut x))).await;
        match ended.unwrap_or_else(|| state.cut_off(&x)) {
            Ended::KeepAlive => x.end(),
            ended => return state.close(x, ended).await,
        }
    }
}

/// A stream with what is known of its connection, to be served as a request of its own.
pub(crate) struct Streamed {
    pub(crate) reactor: Rc<Reactor>,
    pub(crate) generation: Arc<Generation>,
    pub(crate) listener: Arc<Address>,
    pub(crate) connection: Rc<Connection>,
    pub(crate) io: Io,
}

/// Serves the request of a stream. `read` reads its head by the limits of its connection's server, and says more of the
/// request than a head can.
pub(crate) async fn serve_stream(
    stream: Streamed,
    read: impl FnOnce(&mut Exchange, &Limits) -> Result<(), Reject>,
) {
    let Streamed { reactor, generation, listener, connection, io } = stream;
    let mut state = Serving {
        idle: reactor.register_idle(),
        server: connection_server(&generation, &connection),
        served: generation,
        connection,
        plain_on_tls: false,
        listener,
        reactor,
        stage: Stage::Waiting,
    };
    state.adopt();
    let timer = state.reactor.timers().register();
    let client = Client { io, input: Buf::new(), timer, look: None, nodelay: true };
    let mut x = state.exchange_with(client);
    let limits = Arc::clone(&state.settings().limits);
    let judged = read(&mut x, &limits);
    let idle = Rc::clone(&state.idle);
    let ended = idle.bounded(pin!(state.stream(&mut x, judged))).await;
    match ended.unwrap_or_else(|| state.cut_off(&x)) {
        Ended::Tunnel(tunnel) => start_tunnel(*x, *tunnel, state.idle.end()),
        // What was not sent is reset with the exchange.
        Ended::KeepAlive | Ended::Linger | Ended::Farewell | Ended::Reset | Ended::Over => x.end(),
    }
}

/// Counts a connection as in one state for as long as it is.
pub(crate) struct During<'c>(&'c Count);

impl<'c> During<'c> {
    pub(crate) fn new(count: &'c Count) -> Self {
        count.up();
        Self(count)
    }
}

impl Drop for During<'_> {
    fn drop(&mut self) {
        self.0.down();
    }
}

struct Serving {
    reactor: Rc<Reactor>,
    /// The generation of the last request.
    served: Arc<Generation>,
    /// The server before a request names one: the one of the TLS handshake, or the default.
    server: LocationId,
    listener: Arc<Address>,
    connection: Rc<Connection>,
    plain_on_tls: bool,
    idle: Rc<Idle>,
    stage: Stage,
}

/// How far the present request is.
#[derive(Clone, Copy)]
enum Stage {
    Waiting,
    /// It is there and the log does not tell of it yet.
    Answering,
    Logged,
}

/// How waiting for a request ended.
enum Arrival {
    Complete,
    Rejected(Reject),
    /// By the client.
    Closed,
    /// Nothing has come for as long as an idle connection is kept.
    Idle,
    Broken(io::Error),
    /// No head within `client_header_timeout`, though a part of it came.
    Late,
}

/// What becomes of a request that no phase sees.
enum Refusal {
    Answer(Reject),
    /// Only the log hears of it, and of what happened.
    Silence(u16, &'static str, Option<io::Error>),
}

impl Serving {
    /// What requests of that client are answered with.
    fn exchange_with(&self, client: Client) -> Box<Exchange> {
        Box::new(Exchange::new(
            Rc::clone(&self.reactor),
            Arc::clone(&self.served),
            Rc::clone(&self.connection),
            client,
            self.server,
        ))
    }

    /// Serves one request; what then becomes of the connection.
    async fn request(&mut self, x: &mut Exchange) -> Ended {
        let first = self.connection.requests.get() == 0;
        let pipelined = !first && !x.client.input.is_empty();
        let started = Cell::new(None);
        let reactor = Rc::clone(&self.reactor);
        let mut counted = During::new(&reactor.counts.waiting);
        self.stage = Stage::Waiting;
        let reads = || counted = During::new(&reactor.counts.reading);
        let arrival = self.head(x, first, &started, reads).await;
        drop(counted);
        let _writing = During::new(&reactor.counts.writing);
        self.idle.works();
        x.client.timer.clear();
        let refused = match arrival {
            Arrival::Complete => None,
            Arrival::Rejected(reject) => Some(Refusal::Answer(reject)),
            Arrival::Idle => return Ended::Farewell,
            Arrival::Closed if x.head.is_empty() => {
                self.log_closed(x, first, None);
                return Ended::Farewell;
            }
            // Of a request that began a line is logged, though nobody is there to be answered.
            Arrival::Closed => Some(Refusal::Silence(400, "client prematurely closed connection", None)),
            Arrival::Broken(error) if x.head.is_empty() => {
                // Some close idle connections that way.
                if !first && error.kind() == io::ErrorKind::ConnectionReset {
                    self.log_closed(x, first, Some(&error));
                } else {
                    let doing = if first { "waiting for request" } else { "keepalive" };
                    self.log_waiting("recv() failed", Some(&error), doing);
                }
                return Ended::Farewell;
            }
            Arrival::Broken(error) => Some(Refusal::Silence(400, "recv() failed", Some(error))),
            Arrival::Late => {
                let error = io::Error::from_raw_os_error(nix::libc::ETIMEDOUT);
                if x.head.is_empty() {
                    self.log_waiting("client timed out", Some(&error), "waiting for request");
                    return self.give_up();
                }
                Some(Refusal::Silence(408, "client timed out", Some(error)))
            }
        };
        let outlived = self.adopt();
        self.connection.requests.set(self.connection.requests.get() + 1);
        reactor.counts.requests.up();
        let server = self.settle(x, refused.is_some());
        for line in x.head.ignored() {
            let line = String::from_utf8_lossy(line);
            let message = format_args!("client sent invalid header line: \"{line}\"");
            x.log_while(Level::Info, None, message, x.head.reading());
        }
        let refused = refused.or_else(|| self.refuse_connect(x, server));
        // The client is to come back on a connection of the present generation.
        x.keepalive &= !outlived;
        x.pipelined = pipelined;
        if pipelined {
            // This answer follows another that is not acknowledged yet.
            x.set_nodelay();
        }
        if let Some(started) = started.get() {
            x.started = started;
        }
        self.exchange(x, refused).await
    }

    /// Begins with the request whose head was read at the server that it is for, which is returned.
    #[inline]
    fn settle(&mut self, x: &mut Exchange, refused: bool) -> LocationId {
        // Whom a request is for that names nobody is asked only where its head was whole.
        let asked = !refused || x.head.is_whole() || !x.head.host().is_empty();
        let found =
            asked.then(|| router::find(&self.served, self.connection.address(), x.head.host())).flatten();
        let (server, regex) = found.unwrap_or_else(|| {
            // A head that says nothing is the handshake's server's; one that names nobody, as in nginx, is not.
            let default = self.served.addresses[self.connection.address()].default_server;
            (if refused { self.server } else { default }, None)
        });
        x.begin(&self.served, server);
        self.stage = Stage::Answering;
        if let Some(regex) = regex {
            let host = std::mem::take(&mut x.host);
            x.matches(regex, &host);
            x.host = host;
        }
        server
    }

    /// Whether a server has a place for CONNECT is known only with the server.
    #[inline]
    fn refuse_connect(&self, x: &Exchange, server: LocationId) -> Option<Refusal> {
        if x.head.method() != Method::Connect {
            return None;
        }
        let allowed = self.served.location(server).allows_connect;
        x.head.judge_connect(allowed).err().map(Refusal::Answer)
    }

    /// Serves the request of a stream of an HTTP/2 connection; `judged` says what is wrong with its head.
    async fn stream(&mut self, x: &mut Exchange, judged: Result<(), Reject>) -> Ended {
        let reactor = Rc::clone(&self.reactor);
        let _writing = During::new(&reactor.counts.writing);
        reactor.counts.requests.up();
        let server = self.settle(x, judged.is_err());
        // Whether the connection goes on is not for its streams to say.
        x.keepalive = false;
        let spoken = http2::is_spoken(&self.served, self.connection.address(), server);
        let refused = match judged {
            Err(reject) => Some(Refusal::Answer(reject)),
            Ok(()) if !spoken => Some(Refusal::Answer(Reject::new(
                421,
                "client attempted to request the server name for which the negotiated protocol is disabled",
            ))),
            Ok(()) => self.refuse_connect(x, server),
        };
        self.exchange(x, refused).await
    }

    /// What becomes of a connection that outlived its generation, now that its time is up.
    fn cut_off(&self, x: &Exchange) -> Ended {
        match self.stage {
            Stage::Waiting => Ended::Farewell,
            Stage::Answering => {
                log(x);
                Ended::Over
            }
            Stage::Logged => Ended::Over,
        }
    }

    /// Ends the connection.
    async fn close(&mut self, mut x: Box<Exchange>, ended: Ended) {
        x.debug(|| "close http connection".to_owned());
        let core = &x.generation.location(x.location).core;
        let (time, timeout) = (core.lingering_time, core.lingering_timeout);
        match ended {
            Ended::Tunnel(tunnel) => start_tunnel(*x, *tunnel, self.idle.end()),
            Ended::Linger => {
                x.end();
                let timers = self.reactor.timers().clone();
                let idle = Rc::clone(&self.idle);
                idle.bounded(pin!(x.client.io.linger(&timers, time, timeout))).await;
            }
            Ended::Farewell => {
                x.client.io.farewell();
                x.end();
            }
            Ended::Reset => {
                x.end();
                x.client.io.reset();
            }
            Ended::Over | Ended::KeepAlive => x.end(),
        }
    }

    async fn exchange(&mut self, x: &mut Exchange, refused: Option<Refusal>) -> Ended {
        if x.debugs {
            x.debug_head();
        }
        // Whoever is refused for a head may still be sending it, and has to see the answer.
        let linger = matches!(refused, Some(Refusal::Answer(_)));
        let response = match refused {
            Some(Refusal::Silence(status, message, error)) => {
                x.log_while(Level::Info, error.as_ref(), message, x.head.reading());
                x.status = status;
                log(x);
                return self.give_up();
            }
            Some(Refusal::Answer(reject)) => {
                let message = String::from_utf8_lossy(&reject.message);
                x.log_while(Level::Info, None, message, x.head.reading());
                x.keepalive = false;
                phases::refuse(x, &self.served, reject.status).await
            }
            None if self.plain_on_tls => {
                let message = "client sent plain HTTP request to HTTPS port";
                x.log_while(Level::Info, None, message, x.head.reading());
                phases::refuse(x, &self.served, 497).await
            }
            None if let Some(code) = self.unauthorized(x) => phases::refuse(x, &self.served, code).await,
            None => phases::run(x, &self.served).await,
        };
        if response.unsent {
            x.status = response.status;
            // Who closes the connection (444) wants no more of it.
            if x.status != 444 {
                self.post_actions(x).await;
            } else if let Io::Stream(stream) = &x.client.io {
                stream.time_out();
            }
            self.accompany(x).await;
            log(x);
            return Ended::Over;
        }
        // The client is told that its connection ends with this response where its generation was replaced.
        if !self.reactor.is_current(&self.served) || self.reactor.is_quitting() {
            x.keepalive = false;
        }
        x.keepalive = x.keepalive && self.persists(x);
        // Whether the body is all here decides what the client is told of the connection.
        if x.keepalive
            && !x.body.goes_on()
            && !x.discard_body_input()
            && (x.body.is_broken() || x.body.is_awaited())
        {
            x.keepalive = false;
        }
        let sent = send::send(x, response).await;
        x.complete = sent.is_ok();
        // A tunnel has log lines of its own; one that does not come about has the request's.
        if let Some(tunnel) = x.upgraded.take()
            && sent.is_ok()
        {
            return Ended::Tunnel(tunnel);
        }
        if x.location().core.post_action.is_some() || !x.background.is_empty() {
            // The end of the response waits for none of this.
            x.client.io.socket().inspect(|socket| socket.close());
            self.post_actions(x).await;
            self.accompany(x).await;
        }
        log(x);
        self.stage = Stage::Logged;
        match sent {
            Ok(()) => self.finish(x, linger).await,
            Err(send::SendError::Timeout) if x.location().core.reset_timedout_connection => Ended::Reset,
            Err(_) => Ended::Over,
        }
    }

    /// Does what is to be done after the request, which is not over before.
    async fn post_actions(&self, x: &mut Exchange) {
        if x.location().core.post_action.is_some() {
            phases::post_actions(x, &self.served).await;
        }
    }

    /// Waits for what runs beside the request: a client cannot start more of it than it may have requests.
    async fn accompany(&self, x: &mut Exchange) {
        for over in std::mem::take(&mut x.background) {
            // A task that ended in a panic is over too.
            let _ = over.await;
        }
        x.upstream_states.iter_mut().for_each(UpstreamState::settle);
    }

    /// Gets rid of what is left of the request's body and decides whether the connection goes on.
    async fn finish(&mut self, x: &mut Exchange, linger: bool) -> Ended {
        if x.keepalive && (x.body.is_over() || x.discard_body().await) {
            x.debug(|| "set http keepalive handler".to_owned());
            return Ended::KeepAlive;
        }
        let pending = linger || !x.body.is_over() || !x.client.input.is_empty();
        let lingers = match x.location().core.lingering_close {
            LingeringClose::Off => false,
            LingeringClose::On => pending,
            LingeringClose::Always => true,
        };
        if lingers { Ended::Linger } else { Ended::Farewell }
    }

    /// The code that a request is refused with for what its TLS connection lacks.
    fn unauthorized(&self, x: &Exchange) -> Option<u16> {
        let auth = x.server().tls.as_ref()?.client_auth.as_ref()?;
        let tls = self.connection.tls.as_ref()?;
        let tell = |message: &dyn Display| x.log_while(Level::Info, None, message, x.head.reading());
        // Another server's certificate was asked for by another server's rules (RFC 9110 section 15.5.20).
        let named = tls
            .server_name
            .as_deref()
            .filter(|name| crate::tls::by_name(&x.generation, self.connection.address(), name).is_some());
        if named.is_some_and(|name| !name.as_bytes().eq_ignore_ascii_case(&x.host)) {
            tell(&"client attempted to request the server name different from the one that was negotiated");
            return Some(421);
        }
        match auth.admit(tls.client.as_deref()) {
            Ok(()) => None,
            Err(Unauthorized::NoCertificate) => {
                tell(&"client sent no required SSL certificate");
                Some(496)
            }
            Err(Unauthorized::BadStatus(status)) => {
                tell(&format_args!("client SSL certificate verify error: {status}"));
                Some(495)
            }
            Err(Unauthorized::BadCertificate(reason)) => {
                let (code, text) = (reason.code, reason.text);
                tell(&format_args!("client SSL certificate verify error: ({code}:{text})"));
                Some(495)
            }
        }
    }

    /// How a connection ends whose client was too slow.
    fn give_up(&self) -> Ended {
        if self.settings().reset_timedout_connection { Ended::Reset } else { Ended::Over }
    }

    fn settings(&self) -> &crate::settings::CoreSettings {
        &self.served.location(self.server).core
    }

    /// Whether the location that answers lets a connection go on.
    fn persists(&self, x: &Exchange) -> bool {
        let core = &x.location().core;
        let age = self.reactor.clock().now_ms().saturating_sub(self.connection.started);
        self.connection.requests.get() < core.keepalive_requests
            && core.keepalive_timeout > 0
            && age <= core.keepalive_time
            && !self.is_disabled(x)
    }

    fn is_disabled(&self, x: &Exchange) -> bool {
        let disable = x.location().core.keepalive_disable;
        // The one browser lost the connection after a POST, the other for good; most requests need no search.
        if !(disable.msie6 && x.method == Method::Post || disable.safari) {
            return false;
        }
        let Some(agent) = x.header(Known::UserAgent) else { return false };
        let browser = Browser::of(agent);
        browser.msie6 && disable.msie6 && x.method == Method::Post || browser.safari && disable.safari
    }

    /// Takes over the present generation where it still has the address that the connection came to; whether the
    /// generation that the connection was on is past.
    fn adopt(&mut self) -> bool {
        if self.reactor.is_current(&self.served) {
            return false;
        }
        let current = self.reactor.current();
        if let Some(address) = current.address_of(&self.listener, &self.connection.local) {
            self.connection.set_address(address);
            self.served = current;
            self.server = connection_server(&self.served, &self.connection);
        }
        true
    }

    /// Waits for a request's head; `reads` is called where only a part of it has come.
    async fn head(
        &self,
        x: &mut Exchange,
        first: bool,
        started: &Cell<Option<u64>>,
        reads: impl FnOnce(),
    ) -> Arrival {
        let core = self.settings();
        let (header_timeout, keepalive_timeout, min_timeout) =
            (core.client_header_timeout, core.keepalive_timeout, core.keepalive_min_timeout);
        let limits = &*core.limits;
        let clock_ms = self.reactor.clock().now_ms();
        let mut end = clock_ms + if first { header_timeout } else { keepalive_timeout };
        // A connection that stays idle gives its memory up first.
        let mut released = first || keepalive_timeout <= KEEPS_MEMORY;
        x.client.timer.set(if released { end } else { clock_ms + KEEPS_MEMORY });
        let idle_since = clock_ms;
        let mut quit_seen = false;
        let mut reads = Some(reads);
        poll_fn(|cx| {
            let Exchange { client, head, .. } = &mut *x;
            loop {
                if !client.input.is_empty() {
                    let begins = started.get().is_none();
                    if begins {
                        started.set(Some(self.reactor.clock().now_ms()));
                    }
                    match head.parse(&client.input, limits) {
                        Ok(Parsed::Complete(n)) => {
                            client.input.consume(n);
                            release_if_empty(&mut client.input);
                            return Poll::Ready(Arrival::Complete);
                        }
                        Ok(Parsed::Partial) => {
                            client.input.clear();
                            client.input.release();
                            if begins {
                                client.timer.set_in(header_timeout);
                            }
                        }
                        Err(reject) => return Poll::Ready(Arrival::Rejected(reject)),
                    }
                }
                match self.poll_input(cx, client, head, limits, started, header_timeout) {
                    Poll::Ready(Some(arrival)) => return Poll::Ready(arrival),
                    Poll::Ready(None) => {}
                    Poll::Pending => break,
                }
            }
            let waiting = started.get().is_none();
            if !waiting && let Some(reads) = reads.take() {
                reads();
            }
            let mut expired = client.timer.poll_expired(cx).is_ready();
            if expired && waiting && !released {
                released = true;
                x.release();
                x.client.timer.set(end);
                expired = x.client.timer.poll_expired(cx).is_ready();
            }
            if expired {
                return Poll::Ready(if waiting && !first { Arrival::Idle } else { Arrival::Late });
            }
            let client = &x.client;
            if waiting && !first {
                // An idle connection is told of reloads and of the end.
                self.idle.waits(cx.waker());
                let quitting = self.reactor.is_quitting();
                let stale = quitting || !self.reactor.is_current(&self.served);
                if stale && !quit_seen {
                    quit_seen = true;
                    let now = self.reactor.clock().now_ms();
                    let grace = if quitting { min_timeout } else { min_timeout.max(RELOAD_GRACE) };
                    let until = if quitting && min_timeout > 0 { idle_since + grace } else { now + grace };
                    if until <= now {
                        return Poll::Ready(Arrival::Idle);
                    }
                    end = end.min(until);
                    released = true;
                    client.timer.set(end);
                    if client.timer.poll_expired(cx).is_ready() {
                        return Poll::Ready(Arrival::Idle);
                    }
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Reads once, into the thread's scratch, and parses from there; what is left over is kept.
    fn poll_input(
        &self,
        cx: &mut Context<'_>,
        client: &mut Client,
        head: &mut Head,
        limits: &Limits,
        started: &Cell<Option<u64>>,
        header_timeout: u64,
    ) -> Poll<Option<Arrival>> {
        let Client { io, input, timer, .. } = client;
        let clock = self.reactor.clock();
        let read = scratch(|bytes| {
            let n = match io.poll_read(cx, bytes) {
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            if n == 0 {
                return Poll::Ready(Ok(None));
            }
            let begins = started.get().is_none();
            if begins {
                started.set(Some(clock.now_ms()));
            }
            let parsed = head.parse(&bytes[..n], limits);
            match parsed {
                Ok(Parsed::Complete(taken)) => input.extend(&bytes[taken..n]),
                Ok(Parsed::Partial) if begins => timer.set_in(header_timeout),
                Ok(Parsed::Partial) | Err(_) => {}
            }
            Poll::Ready(Ok(Some(parsed)))
        });
        match read {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(None)) => Poll::Ready(Some(Arrival::Closed)),
            Poll::Ready(Err(error)) => Poll::Ready(Some(Arrival::Broken(error))),
            Poll::Ready(Ok(Some(Ok(Parsed::Complete(_))))) => Poll::Ready(Some(Arrival::Complete)),
            Poll::Ready(Ok(Some(Ok(Parsed::Partial)))) => Poll::Ready(None),
            Poll::Ready(Ok(Some(Err(reject)))) => Poll::Ready(Some(Arrival::Rejected(reject))),
        }
    }

    /// The client went away between two requests, or without any.
    fn log_closed(&self, x: &Exchange, first: bool, error: Option<&io::Error>) {
        if first {
            self.log_waiting("client closed connection", None, "waiting for request");
        } else if x.log_handle().takes(Level::Info) || x.debugs {
            let client = String::from_utf8_lossy(self.connection.peer.text());
            let log = x.log_handle().of_connection(&self.connection.log);
            let errno = error.and_then(io::Error::raw_os_error).map(nix::errno::Errno::from_raw);
            log.write_with(
                Level::Info,
                errno,
                format_args!("client {client} closed keepalive connection"),
                |_| {},
            );
        }
    }

    fn log_waiting(&self, message: &str, error: Option<&io::Error>, doing: &str) {
        let errno = error.and_then(io::Error::raw_os_error).map(nix::errno::Errno::from_raw);
        self.connection.log.write_with(Level::Info, errno, message, |line| {
            line.bytes(b" while ");
            line.bytes(doing.as_bytes());
            line.field("client", self.connection.peer.text());
            line.field("server", self.connection.local.to_string().as_bytes());
        });
    }
}

/// The server that a connection is for before any request: the one named in the TLS handshake, else the default.
pub(crate) fn connection_server(generation: &Generation, connection: &Connection) -> LocationId {
    let address = connection.address();
    let name = connection.tls.as_ref().and_then(|tls| tls.server_name.as_deref());
    let named = name.and_then(|name| crate::tls::by_name(generation, address, name));
    named.unwrap_or(generation.addresses[address].default_server)
}

fn release_if_empty(input: &mut Buf) {
    if input.is_empty() {
        input.release();
    }
}

/// What becomes of a connection after an exchange.
enum Ended {
    KeepAlive,
    /// Closed once the client had time to read the answer.
    Linger,
    /// Closed, TLS told.
    Farewell,
    Reset,
    Over,
    Tunnel(Box<Tunnel>),
}

/// Runs the log phase.
pub(crate) fn log(x: &Exchange) {
    for handler in &x.location().handlers.log {
        handler.log(x);
    }
}

impl Connection {
    pub(crate) fn address(&self) -> usize {
        self.address.get()
    }

    pub(crate) fn set_address(&self, address: usize) {
        self.address.set(address);
    }
}

/// Makes the record of a new connection.
pub fn accepted(
    reactor: &Reactor,
    generation: &Generation,
    peer: Address,
    local: Address,
    address: usize,
) -> Connection {
    let number = reactor.counters.next_connection();
    let server = generation.addresses[address].default_server;
    let log = generation.log_of(server, number, &peer);
    log.write(Level::Debug, format_args!("accept: {peer}"));
    Connection {
        number,
        peer: Peer::new(peer),
        local,
        started: reactor.clock().now_ms(),
        requests: Cell::new(0),
        address: Cell::new(address),
        tls: None,
        proxy_protocol: None,
        log,
    }
}

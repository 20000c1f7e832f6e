//! A request to an upstream: a peer is picked, connected, asked, and left for the next where it fails.
//!
//! Client and upstream of a request live in the same task: nothing is handed over a channel. What is specific to a
//! protocol (the bytes of the request, what of the response's head goes on) is behind [`Protocol`]. Over HTTP/2 the
//! task has a stream, and the connection one of its own: see [`super::http2`].

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;

use weir_syntax::Level;

mod answer;
mod head;
mod hints;
mod multiplexed;
mod open;
mod resolve;
mod secure;
mod send;
mod settings;

pub(super) use self::answer::{obey_limit_rate, redirect};
use self::head::{Answered, Read};
use self::open::Waited;
pub(super) use self::secure::Identity;
pub use self::secure::Tls;
pub use self::settings::{Settings, Storing, Wire, ignore, next};
use super::balance::{Outcome, Picked, Tried};
use super::body::Line;
use super::fastcgi::{Application, append_stdin};
use super::http2::RequestHead;
use super::queue::{Nobody, Queue};
use super::uplink::{Rest, Uplink, framed};
use super::{Upstream, UpstreamState, caching};
use crate::contract::Flow;
use crate::http::request_body::Stored;
use crate::http::{Exchange, Headers, Response};
use crate::http1::Method;
use crate::http1::response::Head;
use crate::io::{Buf, Io};
use crate::reactor::others_first;
use crate::timer::Timer;

/// Where a request goes.
#[derive(Clone)]
pub struct Target {
    pub group: Arc<Upstream>,
    /// `http://`
    pub scheme: &'static str,
    pub tls: bool,
}

/// A host that is no group of the configuration.
pub struct Unresolved {
    pub host: Box<str>,
    pub port: u16,
    /// `http://`
    pub scheme: &'static str,
    pub tls: bool,
}

/// Whom a request is to ask.
pub enum Whom {
    Known(Target),
    /// The request waits until the location's resolver knows.
    Unresolved(Box<Unresolved>),
}

impl Whom {
    fn scheme(&self) -> &'static str {
        match self {
            Self::Known(target) => target.scheme,
            Self::Unresolved(host) => host.scheme,
        }
    }

    fn is_tls(&self) -> bool {
        match self {
            Self::Known(target) => target.tls,
            Self::Unresolved(host) => host.tls,
        }
    }
}

/// How the request's body goes to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestLength {
    None,
    Known(u64),
    Chunked,
}

/// What a request turned out to be when it was written.
pub struct Written {
    /// The URI in it, for messages.
    pub uri: std::ops::Range<usize>,
    /// It asks for a head alone, whatever the client asked for (nginx: `proxy_method`).
    pub to_head: bool,
}

/// What of an exchange is the protocol's.
pub trait Protocol: Send + Sync {
    fn settings(&self) -> &Settings;

    /// Whom to ask; what else was computed with it stays with the exchange.
    ///
    /// # Errors
    /// The status to answer with; the reason was logged.
    fn target(&self, x: &mut Exchange) -> Result<Whom, u16>;

    /// Where all requests go, where that is known before them.
    fn known(&self) -> Option<&Target> {
        None
    }

    /// Appends the request's head; of FastCGI that is all records before the body's.
    ///
    /// # Errors
    /// The status to answer with; the reason was logged.
    fn request(&self, x: &mut Exchange, length: RequestLength, out: &mut Vec<u8>) -> Result<Written, u16>;

    /// The same of a request over HTTP/2, asked for where the settings have that; what replaces the body is appended.
    ///
    /// # Errors
    /// The status to answer with; the reason was logged.
    fn request_head(
        &self,
        x: &mut Exchange,
        length: RequestLength,
        body: &mut Vec<u8>,
    ) -> Result<RequestHead, u16> {
        let _ = (x, length, body);
        Err(500)
    }

    /// Appends what answers are known by in a cache where the configuration does not say.
    fn cache_key(&self, x: &mut Exchange, scheme: &'static str, out: &mut Vec<u8>);

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

/// A body that is in memory and no longer than this goes in one piece with its head.
const SHORT: usize = 8 * 1024;

/// What is done while an answer's head has not come, as messages say it.
pub(super) const READING_HEAD: &str = "reading response header from upstream";

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
pub async fn run(x: &mut Exchange, protocol: &dyn Protocol) -> Flow {
    let whom = match protocol.target(x) {
        Ok(whom) => whom,
        Err(status) => return Flow::Answer(status),
    };
    x.debug(|| format!("http init upstream, \"{}\"", x.shown_uri()));
    let settings = protocol.settings();
    let passes_body = settings.pass_request_body && !protocol.replaces_body();
    if let Err(error) = x.forgo_rest(passes_body) {
        return Flow::Answer(error.0);
    }
    let streams = !settings.request_buffering
        && passes_body
        && x.body.exists()
        && x.body.stored().is_none()
        && (settings.chunks || !x.body.is_chunked());
    if x.body.is_awaited()
        && let Err(error) = x.send_continue().await
    {
        return Flow::Answer(error.0);
    }
    if !streams
        && x.body.exists()
        && let Err(error) = x.read_body().await
    {
        return Flow::Answer(error.0);
    }
    x.cache = None;
    if let Some(cache) = &settings.cache
        && let Some(flow) = Box::pin(caching::look(x, protocol, whom.scheme(), cache)).await
    {
        return flow;
    }
    // What is here of the body already may be all of it, whose length can then be told.
    let streams = streams && !x.take_ready_body();
    let length = if !passes_body {
        RequestLength::None
    } else {
        match (x.body.stored(), x.body.is_chunked()) {
            (Some(stored), _) => RequestLength::Known(stored.len()),
            (None, _) if x.body.is_discarded() => RequestLength::Known(0),
            (None, true) => RequestLength::Chunked,
            (None, false) => x.head.content_length().map_or(RequestLength::None, RequestLength::Known),
        }
    };
    let mut request = x.take_buf();
    let mut http2 = None;
    let written = if settings.wire == Wire::Http2 {
        protocol.request_head(x, length, request.tail()).and_then(|head| {
            x.upstream_uri.clear();
            x.upstream_uri.extend_from_slice(head.path());
            let to_head = head.is_to_head();
            let built = head.build(whom.is_tls()).map_err(|message| {
                x.log(Level::Error, message);
                500u16
            })?;
            http2 = Some(Rc::new(built));
            Ok(to_head)
        })
    } else {
        protocol.request(x, length, request.tail()).map(|Written { uri, to_head }| {
            x.upstream_uri.clear();
            x.upstream_uri.extend_from_slice(&request[uri]);
            to_head
        })
    };
    let to_head = match written {
        Ok(to_head) => to_head,
        Err(status) => return given_up(x, status),
    };
    // What is here of the body goes in one piece with the head.
    let rest = if streams {
        x.body.begin();
        let mut piece = Vec::new();
        if let Err(error) = x.take_body_input(&mut piece) {
            return given_up(x, error.0);
        }
        match settings.wire {
            Wire::Http1 => request.extend(&framed(piece, &x.body)),
            Wire::Http2 => request.extend(&piece),
            Wire::FastCgi { .. } => append_stdin(&piece, x.body.is_over(), request.tail()),
        }
        Rest::Streams
    } else {
        let short = match x.body.stored().filter(|_| passes_body) {
            None => Some(&[][..]),
            Some(Stored::Memory(bytes)) if bytes.len() <= SHORT => Some(&bytes[..]),
            Some(_) => None,
        };
        match (short, &settings.wire) {
            (None, _) => Rest::Stored(0),
            (Some(bytes), Wire::FastCgi { .. }) => {
                append_stdin(bytes, true, request.tail());
                Rest::Nothing
            }
            (Some(bytes), _) => {
                request.extend(bytes);
                Rest::Nothing
            }
        }
    };
    let mut target = match whom {
        Whom::Known(target) => target,
        // Boxed, since few requests need the room.
        Whom::Unresolved(host) => match Box::pin(resolve::resolve(x, *host, settings)).await {
            Ok(target) => target,
            Err(status) => return given_up(x, status),
        },
    };
    let living = target.group.is_live().then(|| Arc::clone(&target.group));
    if let Some(living) = &living {
        target.group = living.current();
    }
    let identity = match &settings.tls {
        Some(tls) if target.tls => x.reactor.pools.identify(tls.identity(x, &target.group.name)),
        Some(_) | None => 0,
    };
    let mut asking = Asking {
        timer: x.spare_timer.take().unwrap_or_else(|| x.reactor.timers().register()),
        started: x.reactor.clock().now_ms(),
        tried: Tried::default(),
        asked: 0,
        request,
        http2,
        alone: false,
        refused: false,
        to_head,
        rest,
        doing: "",
        identity,
        target,
        living,
        protocol,
    };
    // Whatever upstream answered before sent the request on to here.
    if let Some(before) = x.upstream_states.last_mut() {
        before.redirected = true;
    }
    x.set_asks(true);
    let flow = asking.run(x).await;
    x.set_asks(false);
    if x.cache.is_some() {
        caching::over(x, &flow);
    }
    asking.timer.clear();
    x.spare_timer = Some(asking.timer);
    x.keep_buf(asking.request);
    flow
}

/// No peer was asked: others need not wait until this client has its answer.
fn given_up(x: &mut Exchange, status: u16) -> Flow {
    let flow = Flow::Answer(status);
    caching::over(x, &flow);
    flow
}

fn tries(group: &Upstream, settings: &Settings) -> u64 {
    let peers = group.peers.iter().filter(|p| !p.is_down()).count().max(1) as u64;
    match settings.next_upstream_tries {
        0 => peers,
        bound => peers.min(bound),
    }
}

/// The state of asking, over all attempts.
struct Asking<'p> {
    target: Target,
    /// What the group is of, where its peers come and go.
    living: Option<Arc<Upstream>>,
    protocol: &'p dyn Protocol,
    /// The request as it is sent, with the beginning of its body; over HTTP/2 its head is apart.
    request: Buf,
    http2: Option<Rc<RequestHead>>,
    /// A connection that others had was tried; the next has to be new.
    alone: bool,
    /// The peer of the last attempt says that it did nothing with the request, which is there to be sent again.
    refused: bool,
    /// The answer has no body, whatever its head says.
    to_head: bool,
    /// With TLS, see [`Tag`].
    identity: u64,
    timer: Timer,
    started: u64,
    tried: Tried,
    /// How often a peer was asked; connections that had been closed meanwhile do not count.
    asked: u64,
    /// What of its body does not go with it.
    rest: Rest,
    /// The part of the present attempt, as the log tells it.
    doing: &'static str,
}

/// An attempt on its way.
struct Attempt {
    peer: usize,
    line: Box<Line>,
    cached: bool,
    /// The whole request went out.
    sent: bool,
    started: u64,
    /// The head of the answer, as far as it has come. Taken when there is something to put in it: many requests may
    /// wait at a time.
    head: Option<Box<Head>>,
    received: u64,
    /// Bytes of heads that another follows.
    hinted: usize,
    /// The answer came before the whole request was sent.
    early: Option<Read>,
    /// What of the request's body goes on while the answer comes.
    uplink: Option<Box<Uplink>>,
}

impl Attempt {
    fn new(peer: usize, line: Box<Line>, cached: bool, started: u64) -> Self {
        Self {
            peer,
            line,
            cached,
            sent: false,
            started,
            head: None,
            received: 0,
            hinted: 0,
            early: None,
            uplink: None,
        }
    }
}

impl Asking<'_> {
    async fn run(&mut self, x: &mut Exchange) -> Flow {
        loop {
            let mut now = x.reactor.clock().now_ms();
            let picked = match &self.target.group.queue {
                None => self.target.group.balance.pick(x, &mut self.tried, now).ok_or(Nobody::Left),
                Some(queue) => match queue.try_pick(&self.target.group, x, &mut self.tried, now) {
                    Some(picked) => Ok(picked),
                    None => {
                        let picked = Box::pin(self.wait(queue.clone(), x)).await;
                        now = x.reactor.clock().now_ms();
                        picked
                    }
                },
            };
            let picked = match picked {
                Ok(picked) => picked,
                Err(Nobody::ClientGone) => {
                    x.log(Level::Info, "client prematurely closed connection while waiting for upstream");
                    return Flow::Answer(499);
                }
                Err(nobody) => return self.nobody(x, nobody),
            };
            let peer = picked.index;
            self.asked += 1;
            x.upstream_headers = None;
            x.upstream_trailers = None;
            x.upstream_states.push(UpstreamState {
                peer: Some(Arc::clone(&self.target.group.peers[peer].text)),
                scheme: self.target.scheme,
                ..UpstreamState::default()
            });
            let failure = match self.attempt(x, picked, now).await {
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
                self.asked -= 1;
                self.tried.remove(peer);
            } else if !matches!(failure.kind, next::HTTP_403 | next::HTTP_404) {
                let peers = &self.target.group.round_robin;
                peers.done(peer, Outcome::Failure, ended);
                if peers.is_disabled(peer) {
                    x.log_while(Level::Warn, None, "upstream server temporarily disabled", self.doing);
                }
            }
            let status = next::status_of(failure.kind);
            if let Some(state) = x.upstream_states.last_mut() {
                state.status = status;
            }
            if !self.may_go_on(x, failure.kind, ended) {
                return caching::stale(x, self.protocol, failure.kind, true).unwrap_or(Flow::Answer(status));
            }
        }
    }

    /// Waits for a peer. Who has asked one stays with the group that it is of.
    async fn wait(&mut self, queue: Queue, x: &mut Exchange) -> Result<Picked, Nobody> {
        let living = self.living.as_ref().filter(|_| self.asked == 0);
        queue.pick(&mut self.target.group, living, x, &mut self.tried, self.protocol.settings()).await
    }

    fn nobody(&self, x: &mut Exchange, why: Nobody) -> Flow {
        x.upstream_states.push(UpstreamState {
            peer: Some(self.target.group.name.as_bytes().into()),
            scheme: self.target.scheme,
            status: 502,
            response_time: Some(0),
            ..UpstreamState::default()
        });
        let message = match why {
            Nobody::Full => "upstream queue is full",
            Nobody::TimedOut => "upstream queue timed out",
            Nobody::Left | Nobody::ClientGone => "no live upstreams",
        };
        x.log_while(Level::Error, None, message, "connecting to upstream");
        caching::stale(x, self.protocol, next::ERROR, true).unwrap_or(Flow::Answer(502))
    }

    /// Whether another peer may be asked after a failure of this kind.
    fn may_go_on(&self, x: &Exchange, kind: u32, now: u64) -> bool {
        let settings = self.protocol.settings();
        let mut needed = kind;
        if self.request_left(x) && matches!(x.method, Method::Post | Method::Lock | Method::Patch) {
            needed |= next::NON_IDEMPOTENT;
        }
        let timeout = settings.next_upstream_timeout;
        self.asked < tries(&self.target.group, settings)
            && settings.next_upstream & needed == needed
            // A body that goes on as it comes goes on only once.
            && !(self.rest == Rest::Streams && self.request_left(x))
            && (timeout == 0 || now.saturating_sub(self.started) < timeout)
    }

    /// Whether any byte of the request reached a peer in the last attempt, who may have done something with it.
    fn request_left(&self, x: &Exchange) -> bool {
        !self.refused && x.upstream_states.last().is_some_and(|state| state.bytes_sent > 0)
    }

    async fn attempt(&mut self, x: &mut Exchange, picked: Picked, now: u64) -> Result<Flow, Failure> {
        self.doing = "connecting to upstream";
        if let Some(head) = &self.http2 {
            let head = Rc::clone(head);
            return Box::pin(self.multiplexed(x, head, picked, now)).await;
        }
        let mut attempt = self.open(x, picked, now).await?;
        if self.identity != 0 && !attempt.cached {
            self.doing = "SSL handshaking to upstream";
            Box::pin(self.shake_hands(x, &mut attempt)).await?;
        }
        if let Some(status) = self.protocol.settings().tunnels_with {
            return self.connected(x, attempt, status);
        }
        if let Wire::FastCgi { keep, .. } = self.protocol.settings().wire {
            let io = std::mem::replace(&mut attempt.line.io, Io::Absent);
            attempt.line.io = Io::FastCgi(Box::new(Application::new(io, keep)));
        }
        self.doing = "sending request to upstream";
        if x.body.exists() && x.location().core.tcp_nodelay {
            // What goes out in more than one write must not wait for acknowledgements.
            attempt.line.set_nodelay();
        }
        self.send(x, &mut attempt).await?;
        self.doing = READING_HEAD;
        let answered = self.head(x, &mut attempt).await?;
        if answered.headless {
            return Ok(self.headless(x, attempt, answered));
        }
        let Answered { head, block, raw, .. } = answered;
        let fresh = !attempt.cached;
        let flow = self.answer(x, attempt, &head, block, raw);
        x.reactor.put_head(head);
        if fresh {
            // To its client too: opening and closing connections between two answers is time to fall asleep in.
            others_first().await;
        }
        flow
    }
}

impl Exchange {
    /// Keeps the fields of an upstream's answer where they are asked for.
    pub(super) fn keep_upstream_headers(&mut self, head: &Head) {
        // What a subrequest hides of them may be of use to whoever asked.
        if self.generation.keeps_upstream_headers || self.is_subrequest() {
            let mut headers = Headers::default();
            for field in head.fields() {
                headers.copy(head, field);
            }
            self.upstream_headers = Some(headers);
        }
    }
}

fn log_timeout(x: &Exchange, doing: &str) {
    let error = io::Error::from_raw_os_error(nix::libc::ETIMEDOUT);
    x.log_while(Level::Error, Some(&error), "upstream timed out", doing);
}

fn client_gone(x: &Exchange, doing: &str) -> Failure {
    x.log_client_gone(doing);
    Failure::end(499)
}

/// Whether the client went away and the upstream is to hear of it; others may want what a cache keeps.
pub(super) fn poll_client_gone(x: &mut Exchange, cx: &mut Context<'_>, settings: &Settings) -> bool {
    x.poll_left(cx);
    let keeps = settings.store.is_some() || x.is_cacheable();
    !settings.ignore_client_abort && !x.post_action && !keeps && x.poll_client_gone(cx)
}

//! An exchange: one request and everything that is known of it until its line is logged.

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;
use weir_ir::program::ScopeKind;
use weir_ir::{LocationId, Regex, VariableId};
use weir_syntax::Level;

use crate::errorlog::{Line, Log};
use crate::generation::{Generation, Location, Slot};
use crate::http::phases::Restart;
use crate::http::request_body::RequestBody;
use crate::http::response::{Headers, Response, Text};
use crate::http::subrequest::Within;
use crate::http1::request::Head;
use crate::http1::{Known, Method};
use crate::io::{Buf, Io, Socket, scratch};
use crate::reactor::{Peer, Reactor};
use crate::timer::Timer;
use crate::tunnel;
use crate::upstream::UpstreamState;
use crate::upstream::caching::Cached;

/// The client's side of an exchange.
pub struct Client {
    pub io: Io,
    /// Bytes that were read and belong to nobody yet: the body's start, or the next request.
    pub input: Buf,
    /// One timer for whatever the client is waited for.
    pub timer: Timer,
    /// When to look whether a client is gone that sent more ahead than is read, or has to get what its handshake left.
    pub(crate) look: Option<Timer>,
    /// What is written goes out at once (`tcp_nodelay`).
    pub nodelay: bool,
}

/// What a response with [`crate::http::Body::Tunnel`] leaves to the connection.
pub struct Tunnel {
    pub upstream: Io,
    /// Bytes of the upstream after its head.
    pub from_upstream: Buf,
    pub options: tunnel::Options,
    /// Where the tunnel's traffic is accounted.
    pub peer: Option<crate::upstream::PeerGuard>,
}

/// What is known of the connection that the request came over.
#[derive(Clone)]
pub struct Connection {
    /// `$connection`: counted over the process.
    pub number: u64,
    pub peer: Peer,
    pub local: crate::io::Address,
    /// Milliseconds of the reactor's clock at accept.
    pub started: u64,
    /// `$connection_requests`: this request included.
    pub requests: Cell<u64>,
    /// The address in the configuration that the connection arrived at.
    pub address: Cell<usize>,
    pub tls: Option<Rc<crate::tls::Session>>,
    /// What a proxy in front told of its client.
    pub proxy_protocol: Option<Rc<crate::proxy_protocol::Header>>,
    /// Where messages about the connection go before a server is chosen.
    pub log: Log,
}

/// A value kept for the length of a request.
#[derive(Clone, Debug, Default)]
pub(crate) enum Value {
    #[default]
    Unknown,
    Missing,
    Known(Vec<u8>),
}

/// What is the same for a request and its subrequests.
#[derive(Default)]
pub(crate) struct Shared {
    values: RefCell<Vec<Value>>,
    request_id: Cell<Option<[u8; 32]>>,
    /// What modules remember.
    remembered: RefCell<Vec<(TypeId, Rc<dyn Any>)>>,
}

/// Groups of the last regular expression that matched.
#[derive(Clone, Debug, Default)]
pub struct Captures {
    subject: Vec<u8>,
    groups: Vec<Option<(usize, usize)>>,
}

/// One request on its way through the phases.
pub struct Exchange {
    pub reactor: Rc<Reactor>,
    pub generation: Arc<Generation>,
    pub connection: Rc<Connection>,
    pub client: Client,
    pub head: Head,
    pub body: RequestBody,
    /// The level whose settings hold now: a server at first, then a location.
    pub location: LocationId,
    pub server: LocationId,
    /// An `if` with a handler that the request was in before another one of its location.
    pub(crate) left_if: Option<LocationId>,
    /// The present path, decoded; differs from the head's after a rewrite or an internal redirect.
    pub uri: Vec<u8>,
    pub args: Vec<u8>,
    /// The path was rewritten, or was never as the client sent it.
    pub uri_changed: bool,
    /// The location was found for the present path: false once `rewrite … break` changed the path within it, where
    /// neither `alias` nor the URI of a `proxy_pass` can take the place of the location's prefix.
    pub valid_location: bool,
    /// `try_files` found a file for a regex location with `alias`: the path follows the alias.
    pub uri_below_alias: bool,
    /// The `Location` of an answer with a redirect's status; it stays with the request over an `error_page`.
    pub redirect_target: Option<Text>,
    /// Came about by an internal redirect, so that `internal` locations are open to it.
    pub internal: bool,
    /// `error_page` may make a GET out of any method.
    pub method: Method,
    pub method_name: Option<&'static [u8]>,
    /// The host without port, lower case; of the request line or of `Host`.
    pub host: Vec<u8>,
    /// Redirects and rewrites that are left, the one that is too many included; after that no error page is followed.
    pub redirects_left: u8,
    /// Where the phases start again after a [`crate::contract::Flow::Redirect`].
    pub(crate) restart: Restart,
    /// The status that an error page was asked for; it replaces the status of what answers. 0 replaces nothing.
    pub err_status: u16,
    /// No further `error_page` is followed.
    pub error_page: bool,
    /// It was answered; this is what is done after that, and nobody sees what comes of it.
    pub(crate) post_action: bool,
    /// Heads before that of the answer, as far as the client did not take them.
    pub(crate) early_hints: Buf,
    pub keepalive: bool,
    /// Some log may take debugging messages of the request.
    pub(crate) debugs: bool,
    /// Milliseconds of the reactor's clock at the first byte of the request.
    pub started: u64,
    /// Bytes of head and body received.
    pub request_length: u64,
    /// The status sent, or to be logged; 0 while there is none.
    pub status: u16,
    /// Bytes sent to the client, head and framing included; without those of TLS.
    pub sent: u64,
    /// Bytes sent behind the head: the body and its chunk framing.
    pub body_sent: u64,
    pub complete: bool,
    /// The head of the response as it was sent, for `$sent_http_…`.
    pub response: Option<Box<Response>>,
    /// The response goes out in chunks.
    pub chunked: bool,
    /// The request came behind another one in the same read.
    pub pipelined: bool,
    /// The tunnel that the connection becomes after this response.
    pub(crate) upgraded: Option<Box<Tunnel>>,
    pub upstream_states: Vec<UpstreamState>,
    /// The URI that upstreams are asked for, for messages.
    pub upstream_uri: Vec<u8>,
    /// The headers of the last upstream response, where the configuration asks for any (`$upstream_http_…`).
    pub upstream_headers: Option<Headers>,
    /// The fields behind its body, where they are read at all.
    pub(crate) upstream_trailers: Option<Box<Headers>>,
    /// What the answer has to do with a cache of its upstream's.
    pub(crate) cache: Option<Box<Cached>>,
    /// The client's address as a trusted proxy told it, in place of the connection's own.
    real_peer: Option<Box<Peer>>,
    /// Fields that whatever answers will have (`WWW-Authenticate`).
    pub answer_headers: Headers,
    /// The type of the answer's content, whatever its maker says (`X-Accel-Redirect` after a `Content-Type`).
    pub answer_type: Option<Text>,
    /// The answer may be cut, once only where that is true, as an upstream said that sent the request on.
    pub answer_ranges: Option<bool>,
    /// The charset that the answer is to have, as an upstream said that sent the request on.
    pub accel_charset: Option<Text>,
    /// Bytes per second to the client, where it is settled; 0 is no bound.
    pub limit_rate: Option<u64>,
    /// Bytes that go to the client before the rate counts, where it is settled.
    pub(crate) limit_rate_after: Option<u64>,
    /// When the next bytes may be sent at that rate, in milliseconds of the reactor's clock.
    pub(crate) paused_until: Option<u64>,
    /// Fields behind the body, as far as they were made.
    trailers: RefCell<Option<Box<Headers>>>,
    captures: RefCell<Captures>,
    shared: Rc<Shared>,
    extensions: Vec<(TypeId, Box<dyn Any>)>,
    /// The request that this one is a part of.
    pub(crate) within: Option<Within>,
    /// Subrequests that run beside this request, which does not end before them.
    pub(crate) background: Vec<oneshot::Receiver<()>>,
    /// An emptied response, for whoever makes one.
    spare_response: Option<Box<Response>>,
    /// A timer without a deadline for the next request to an upstream.
    pub(crate) spare_timer: Option<Timer>,
    /// Memory for the next head that is written, to an upstream or to the client.
    spare_buf: Buf,
    /// What is given back when the request ends, or the tunnel that it becomes.
    pub guards: Vec<Box<dyn Any>>,
}

/// Bytes for a head that is written.
const HEAD: usize = 4096;

impl Exchange {
    /// The place of a connection's requests; nothing of it means anything before [`Exchange::begin`].
    pub(crate) fn new(
        reactor: Rc<Reactor>,
        generation: Arc<Generation>,
        connection: Rc<Connection>,
        client: Client,
        server: LocationId,
    ) -> Self {
        Self {
            body: RequestBody::none(),
            method: Method::Get,
            uri: Vec::new(),
            args: Vec::new(),
            host: Vec::new(),
            spare_response: None,
            spare_timer: None,
            spare_buf: Buf::new(),
            keepalive: false,
            debugs: false,
            request_length: 0,
            location: server,
            server,
            left_if: None,
            uri_changed: false,
            valid_location: true,
            uri_below_alias: false,
            redirect_target: None,
            internal: false,
            method_name: None,
            redirects_left: 11,
            restart: Restart::ServerRewrite,
            err_status: 0,
            error_page: false,
            post_action: false,
            early_hints: Buf::new(),
            started: 0,
            status: 0,
            sent: 0,
            body_sent: 0,
            complete: false,
            response: None,
            chunked: false,
            pipelined: false,
            trailers: RefCell::default(),
            upgraded: None,
            upstream_states: Vec::new(),
            upstream_uri: Vec::new(),
            upstream_headers: None,
            upstream_trailers: None,
            cache: None,
            real_peer: None,
            answer_headers: Headers::default(),
            answer_type: None,
            answer_ranges: None,
            accel_charset: None,
            limit_rate: None,
            limit_rate_after: None,
            paused_until: None,
            captures: RefCell::default(),
            shared: Rc::default(),
            within: None,
            background: Vec::new(),
            extensions: Vec::new(),
            guards: Vec::new(),
            head: Head::new(),
            reactor,
            generation,
            connection,
            client,
        }
    }

    /// Goes on in an `if` of the present location. One without a handler leaves it to that of an `if` before it.
    pub fn enter(&mut self, level: LocationId) {
        let left = self.location();
        if matches!(left.kind, ScopeKind::If) && left.handlers.handler.is_some() {
            self.left_if = Some(self.location);
        }
        self.location = level;
    }

    /// Begins with the request whose head was read, at a server of a generation.
    pub(crate) fn begin(&mut self, generation: &Arc<Generation>, server: LocationId) {
        if !Arc::ptr_eq(generation, &self.generation) {
            self.generation = Arc::clone(generation);
        }
        self.uri.extend_from_slice(self.head.path());
        self.args.extend_from_slice(self.head.args());
        self.host.extend_from_slice(self.head.host());
        self.body = RequestBody::of(&self.head);
        self.method = self.head.method();
        self.method_name = None;
        self.keepalive = self.head.keeps_alive();
        self.debugs = self.generation.debugs || self.connection.log.debugs();
        self.request_length = match &self.client.io {
            Io::Stream(stream) => stream.head_length(),
            _ => self.head.read_length(),
        } as u64;
        self.location = server;
        self.server = server;
        self.uri_changed = false;
        self.valid_location = true;
        self.uri_below_alias = false;
        self.internal = false;
        self.redirects_left = 11;
        self.restart = Restart::ServerRewrite;
        self.err_status = 0;
        self.error_page = false;
        self.post_action = false;
        self.early_hints.clear();
        self.started = self.reactor.clock().now_ms();
        self.status = 0;
        self.sent = 0;
        self.body_sent = 0;
        self.complete = false;
        self.chunked = false;
        self.limit_rate = None;
        self.limit_rate_after = None;
        self.paused_until = None;
    }

    /// Lets go of all that belongs to the request. The memory stays for the next one.
    pub(crate) fn end(&mut self) {
        self.head.reset();
        self.client.look = None;
        self.body = RequestBody::none();
        self.redirect_target = None;
        self.upstream_headers = None;
        self.upstream_trailers = None;
        self.cache = None;
        self.real_peer = None;
        self.answer_type = None;
        self.answer_ranges = None;
        self.accel_charset = None;
        self.extensions.clear();
        self.guards.clear();
        self.uri.clear();
        self.args.clear();
        self.host.clear();
        self.upstream_states.clear();
        self.upstream_uri.clear();
        self.answer_headers.clear();
        self.captures.get_mut().groups.clear();
        self.background.clear();
        match Rc::get_mut(&mut self.shared) {
            Some(shared) => {
                // Nearly always there will be as many again.
                shared.values.get_mut().fill_with(Value::default);
                shared.request_id.set(None);
                shared.remembered.get_mut().clear();
            }
            // A subrequest outlives this one.
            None => self.shared = Rc::default(),
        }
        *self.trailers.get_mut() = None;
        if let Some(mut response) = self.response.take() {
            response.clear();
            self.spare_response = Some(response);
        }
    }

    /// An exchange of its own for another path of the same request.
    pub(crate) fn part(&self, within: Within) -> Self {
        let client = Client {
            io: Io::Absent,
            input: Buf::new(),
            timer: self.reactor.timers().register(),
            look: None,
            nodelay: true,
        };
        let (reactor, generation) = (Rc::clone(&self.reactor), Arc::clone(&self.generation));
        let connection = Rc::clone(&self.connection);
        Self {
            head: self.head.clone(),
            body: self.body.shared(),
            host: self.host.clone(),
            real_peer: self.real_peer.clone(),
            shared: Rc::clone(&self.shared),
            method_name: Some(b"GET"),
            uri_changed: true,
            internal: true,
            started: self.reactor.clock().now_ms(),
            request_length: self.request_length,
            debugs: self.debugs,
            within: Some(within),
            ..Self::new(reactor, generation, connection, client, self.server)
        }
    }

    /// Is where another exchange of the same path is already, right before its content.
    pub(crate) fn goes_on_from(&mut self, other: &Self) {
        self.location = other.location;
        self.left_if = other.left_if;
        self.uri_changed = other.uri_changed;
        self.valid_location = other.valid_location;
        self.uri_below_alias = other.uri_below_alias;
        self.captures.clone_from(&other.captures);
        self.restart = Restart::Content;
    }

    /// Gives up the memory of the request before, where the next one is a while away.
    pub(crate) fn release(&mut self) {
        self.head = Head::new();
        self.uri = Vec::new();
        self.args = Vec::new();
        self.host = Vec::new();
        self.upstream_states = Vec::new();
        self.upstream_uri = Vec::new();
        self.answer_headers = Headers::default();
        self.captures = RefCell::default();
        self.shared = Rc::default();
        self.spare_response = None;
        self.spare_timer = None;
        self.spare_buf.release();
    }

    /// An empty buffer with room for a head.
    #[inline]
    pub(crate) fn take_buf(&mut self) -> Buf {
        let mut buf = std::mem::take(&mut self.spare_buf);
        buf.reserve(HEAD);
        buf
    }

    /// Keeps a buffer for the next head, unless it has grown beyond that. A stream has none: of many at a time each would keep
    /// one that the next could use.
    #[inline]
    pub(crate) fn keep_buf(&mut self, mut buf: Buf) {
        if buf.capacity() <= HEAD && !matches!(self.client.io, Io::Stream(_)) {
            buf.clear();
            self.spare_buf = buf;
        }
    }

    /// An empty response of that status, in the memory of an earlier one where there is some.
    pub fn new_response(&mut self, status: u16) -> Box<Response> {
        let mut response = self.spare_response.take().unwrap_or_default();
        response.status = status;
        response
    }

    /// Whether the client went away while an upstream is waited for. What it sends ahead is kept, up to a bound.
    pub(crate) fn poll_client_gone(&mut self, cx: &mut Context<'_>) -> bool {
        const AHEAD: usize = 4096;
        /// Milliseconds between two looks at a client from which no more is read.
        const LOOK: u64 = 1_000;
        let Client { io, input, look, .. } = &mut self.client;
        if let Io::Stream(stream) = io {
            return stream.poll_gone(cx).is_ready();
        }
        if !self.body.is_over() {
            return false;
        }
        while input.len() < AHEAD {
            if io.poll_read_ready(cx).is_pending() {
                return false;
            }
            let read = scratch(|bytes| {
                let n = ready!(io.poll_read(cx, &mut bytes[..AHEAD - input.len()]))?;
                input.extend(&bytes[..n]);
                Poll::Ready(Ok::<usize, io::Error>(n))
            });
            match read {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return true,
                Poll::Pending => return false,
            }
        }
        // The bytes that were not read keep the socket readable, so that its end wakes nobody.
        let look = look.get_or_insert_with(|| self.reactor.timers().register());
        while look.deadline().is_none() || look.poll_expired(cx).is_ready() {
            look.set_in(LOOK);
        }
        io.socket().is_some_and(Socket::is_read_closed)
    }

    /// What the client's handshake left (tickets) waits for the answer, unless that takes its time: then it leaves alone.
    pub(crate) fn poll_left(&mut self, cx: &mut Context<'_>) {
        /// Milliseconds.
        const WAITS: u64 = 100;
        let Client { io, look, .. } = &mut self.client;
        if !io.owes_records() {
            return;
        }
        let look = look.get_or_insert_with(|| self.reactor.timers().register());
        if look.deadline().is_none() {
            look.set_in(WAITS);
        }
        if look.poll_expired(cx).is_ready() {
            look.clear();
            // Its failure shows when the answer is sent.
            let _ = io.poll_flush(cx);
        }
    }

    /// Waits; false where the client goes away meanwhile.
    pub async fn delay(&mut self, ms: u64) -> bool {
        let timers = self.reactor.timers().clone();
        let mut sleep = pin!(timers.sleep(ms));
        let waited = poll_fn(|cx| match sleep.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending if self.poll_client_gone(cx) => Poll::Ready(false),
            Poll::Pending => {
                self.poll_left(cx);
                Poll::Pending
            }
        });
        let waited = waited.await;
        if !waited {
            self.log(Level::Info, "client prematurely closed connection");
        }
        waited
    }

    /// Logs that the client's end is that of the upstream's connection too.
    pub(crate) fn log_client_gone(&self, doing: &str) {
        let message = "epoll_wait() reported that client prematurely closed connection, so upstream connection is closed too";
        self.log_while(Level::Info, None, message, doing);
    }

    /// The level whose settings hold now.
    pub fn location(&self) -> &Location {
        self.generation.location(self.location)
    }

    pub fn server(&self) -> &Location {
        self.generation.location(self.server)
    }

    /// The client: the connection's other end, or whom a trusted proxy named.
    pub fn peer(&self) -> &Peer {
        self.real_peer.as_deref().unwrap_or(&self.connection.peer)
    }

    /// Whether [`Exchange::set_peer`] was called.
    pub fn has_real_peer(&self) -> bool {
        self.real_peer.is_some()
    }

    /// Takes another address for the client's, for the rest of the request.
    pub fn set_peer(&mut self, peer: Peer) {
        self.real_peer = Some(Box::new(peer));
    }

    /// The method as sent, or as an error page made it.
    pub fn method_name(&self) -> &[u8] {
        self.method_name.unwrap_or_else(|| self.head.method_name())
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static [u8] {
        if self.connection.tls.is_some() { b"https" } else { b"http" }
    }

    /// `$request_id`: 128 random bits in hexadecimal, the same for the whole request.
    pub fn request_id(&self) -> [u8; 32] {
        self.shared.request_id.get().unwrap_or_else(|| {
            let mut bits = [0u8; 16];
            // The generator fails only where the system has no randomness at all; TLS would not start there.
            let _ = aws_lc_rs::rand::fill(&mut bits);
            let mut text = [0u8; 32];
            for (pair, byte) in text.chunks_exact_mut(2).zip(bits) {
                pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
                pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
            }
            self.shared.request_id.set(Some(text));
            text
        })
    }

    /// Adds a field behind the body.
    pub fn add_trailer(&self, name: &[u8], value: &[u8]) {
        self.trailers.borrow_mut().get_or_insert_default().push(name, value);
    }

    pub(crate) fn trailers(&self) -> std::cell::Ref<'_, Option<Box<Headers>>> {
        self.trailers.borrow()
    }

    /// Lets what is written to the client from now on go out at once, unless `tcp_nodelay` is off.
    pub(crate) fn set_nodelay(&mut self) {
        if !self.client.nodelay && self.location().core.tcp_nodelay {
            self.client.nodelay = true;
            if let Some(socket) = self.client.io.socket() {
                socket.set_nodelay();
            }
        }
    }

    pub fn header(&self, known: Known) -> Option<&[u8]> {
        self.head.first(known)
    }

    /// The extension of the present path, after the last dot of its last segment.
    pub fn exten(&self) -> &[u8] {
        let name = memchr::memrchr(b'/', &self.uri).map_or(&self.uri[..], |at| &self.uri[at + 1..]);
        memchr::memrchr(b'.', name).map_or(b"", |at| &name[at + 1..])
    }

    /// What the extension of the present path says of its content, or `default_type`; `None` where that is empty.
    pub fn content_type(&self) -> Option<Text> {
        let core = &self.location().core;
        let exten = self.exten();
        let known = if exten.is_empty() {
            None
        } else if exten.iter().any(u8::is_ascii_uppercase) {
            core.types.get(exten.to_ascii_lowercase().as_slice())
        } else {
            core.types.get(exten)
        };
        let found = known.unwrap_or(&core.default_type);
        (!found.is_empty()).then(|| Text::Owned(found.to_vec()))
    }

    /// Sets another path, as `rewrite`, `try_files` and redirects do.
    pub fn set_uri(&mut self, uri: Vec<u8>) {
        self.uri = uri;
        self.uri_changed = true;
    }

    /// Looks for the location of another path, without the server's own rewriting (`rewrite … last`). The caller
    /// returns [`crate::contract::Flow::Redirect`].
    pub fn relocate(&mut self) {
        self.uri_changed = true;
        self.restart = Restart::FindLocation;
    }

    /// Appends the value of a declared variable; false where it has none.
    pub fn variable(&self, id: VariableId, out: &mut Vec<u8>) -> bool {
        let index = id.0 as usize;
        match self.shared.values.borrow().get(index) {
            Some(Value::Known(value)) => {
                out.extend_from_slice(value);
                return true;
            }
            Some(Value::Missing) => return false,
            Some(Value::Unknown) | None => {}
        }
        match &self.generation.slots[index] {
            Slot::Stored | Slot::Builtin => false,
            Slot::Computed { evaluate, volatile: true } => evaluate.evaluate(self, out),
            Slot::Computed { evaluate, volatile: false } => {
                let mut value = Vec::new();
                let found = evaluate.evaluate(self, &mut value);
                if found {
                    out.extend_from_slice(&value);
                }
                self.keep(id, if found { Value::Known(value) } else { Value::Missing });
                found
            }
        }
    }

    /// Gives a declared variable its value for the rest of the request.
    pub fn set_variable(&self, id: VariableId, value: Vec<u8>) {
        self.keep(id, Value::Known(value));
    }

    fn keep(&self, id: VariableId, value: Value) {
        let mut values = self.shared.values.borrow_mut();
        let index = id.0 as usize;
        if values.len() <= index {
            values.resize_with(self.generation.slots.len().max(index + 1), Value::default);
        }
        values[index] = value;
    }

    /// Matches `subject`; on success the groups are at hand as `$1` to `$9` and as the named variables.
    pub fn matches(&self, regex: &Regex, subject: &[u8]) -> bool {
        if regex.groups() == 0 {
            let matched = regex.is_match(subject);
            if matched {
                self.clear_captures();
            }
            return matched;
        }
        match regex.captures(subject) {
            Ok(Some(groups)) => {
                for (index, id) in regex.named() {
                    match groups.get(*index).copied().flatten() {
                        Some((start, end)) => self.keep(*id, Value::Known(subject[start..end].to_vec())),
                        None => self.keep(*id, Value::Missing),
                    }
                }
                *self.captures.borrow_mut() = Captures { subject: subject.to_vec(), groups };
                true
            }
            Ok(None) => false,
            Err(reason) => {
                let pattern = String::from_utf8_lossy(regex.source()).into_owned();
                self.log(Level::Alert, format_args!("pcre2_match() failed: {reason} on \"{pattern}\""));
                false
            }
        }
    }

    /// Forgets `$1` to `$9`.
    pub fn clear_captures(&self) {
        self.captures.borrow_mut().groups.clear();
    }

    /// Appends a group of the last match; false where it did not take part.
    pub fn capture(&self, n: u8, out: &mut Vec<u8>) -> bool {
        let captures = self.captures.borrow();
        match captures.groups.get(usize::from(n)).copied().flatten() {
            Some((start, end)) => {
                out.extend_from_slice(&captures.subject[start..end]);
                true
            }
            None => false,
        }
    }

    /// What a module keeps of this request until the next internal redirect.
    pub fn extension<T: 'static>(&self) -> Option<&T> {
        let id = TypeId::of::<T>();
        self.extensions.iter().find(|(t, _)| *t == id).and_then(|(_, v)| v.downcast_ref())
    }

    pub fn extension_mut<T: 'static + Default>(&mut self) -> &mut T {
        let id = TypeId::of::<T>();
        let at = match self.extensions.iter().position(|(t, _)| *t == id) {
            Some(at) => at,
            None => {
                self.extensions.push((id, Box::new(T::default())));
                self.extensions.len() - 1
            }
        };
        self.extensions[at].1.downcast_mut().expect("the entry was found by its type")
    }

    /// Remembers something for the whole request, over internal redirects and in its subrequests, unless something of its
    /// type is remembered.
    pub fn remember<T: 'static>(&self, value: T) {
        if self.remembered::<T>().is_none() {
            self.shared.remembered.borrow_mut().push((TypeId::of::<T>(), Rc::new(value)));
        }
    }

    pub fn remembered<T: 'static>(&self) -> Option<Rc<T>> {
        let id = TypeId::of::<T>();
        let remembered = self.shared.remembered.borrow();
        let (_, value) = remembered.iter().find(|(t, _)| *t == id)?;
        Rc::clone(value).downcast().ok()
    }

    pub(crate) fn clear_extensions(&mut self) {
        self.extensions.clear();
    }

    pub fn log_handle(&self) -> &Log {
        &self.location().log
    }

    /// Writes to the error log of the present location, with the request's context after the message.
    pub fn log(&self, level: Level, message: impl std::fmt::Display) {
        self.log_error(level, None, message);
    }

    /// As [`Exchange::log`], with the error of the operating system that it is about.
    pub fn log_error(&self, level: Level, error: Option<&io::Error>, message: impl std::fmt::Display) {
        self.log_while(level, error, message, "");
    }

    /// As [`Exchange::log_error`], with what was being done: `message (error) while doing, client: …`.
    pub fn log_while(
        &self,
        level: Level,
        error: Option<&io::Error>,
        message: impl std::fmt::Display,
        doing: &str,
    ) {
        let log = &self.location().log;
        if !log.takes(level) && !self.debugs {
            return;
        }
        let errno = error.and_then(io::Error::raw_os_error).map(nix::errno::Errno::from_raw);
        let log = log.of_connection(&self.connection.log);
        log.write_with(level, errno, message, |line| {
            if !doing.is_empty() {
                line.bytes(b" while ");
                line.bytes(doing.as_bytes());
            }
            self.write_context(line);
        });
    }

    /// Writes to the debug log, which costs a look at a flag where nobody has one.
    #[inline]
    pub fn debug(&self, message: impl FnOnce() -> String) {
        if self.debugs {
            self.log(Level::Debug, message());
        }
    }

    /// Whether that writes anything, for those whose messages have another level then.
    pub fn is_debugged(&self) -> bool {
        self.debugs && self.location().log.of_connection(&self.connection.log).takes(Level::Debug)
    }

    /// Writes the request down as it was read.
    #[cold]
    pub(crate) fn debug_head(&self) {
        let text = String::from_utf8_lossy;
        self.debug(|| format!("http request line: \"{}\"", text(self.head.request_line())));
        if self.head.has_line() {
            self.debug(|| format!("http uri: \"{}\"", text(&self.uri)));
            self.debug(|| format!("http args: \"{}\"", text(&self.args)));
            self.debug(|| format!("http exten: \"{}\"", text(self.exten())));
        }
        for field in self.head.fields() {
            let (name, value) = (self.head.get(field.name), self.head.get(field.value));
            self.debug(|| format!("http header: \"{}: {}\"", text(name), text(value)));
        }
        if self.head.is_whole() {
            self.debug(|| "http header done".to_owned());
        }
    }

    /// The present path with its arguments, as debugging messages show it.
    pub(crate) fn shown_uri(&self) -> String {
        format!("{}?{}", String::from_utf8_lossy(&self.uri), String::from_utf8_lossy(&self.args))
    }

    /// What a message of the error log says of the request that it is about.
    pub(crate) fn write_context(&self, line: &mut Line) {
        if let Some(probe) = self.probe() {
            line.bytes(b", ");
            line.bytes(probe.as_bytes());
            return;
        }
        line.field("client", self.peer().text());
        line.field("server", &self.server().core.server_name);
        if !self.head.request_line().is_empty() {
            line.quoted("request", self.head.request_line());
        }
        // What is left of a request has no path of its own.
        if self.is_subrequest() && !self.uri.is_empty() {
            line.quoted("subrequest", &self.uri);
        }
        if let Some(upstream) = self.upstream_states.last().and_then(|state| state.url(&self.upstream_uri)) {
            line.quoted("upstream", &upstream);
        }
        if let Some(host) = self.header(Known::Host) {
            line.quoted("host", host);
        }
        if let Some(referer) = self.header(Known::Referer) {
            line.quoted("referrer", referer);
        }
    }
}

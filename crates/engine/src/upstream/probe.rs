//! What is asked of one peer without any client, by the settings of a location.
//!
//! It is an exchange like any other, of a request that nobody sent, to a group of that peer alone. Its messages tell what
//! it is for instead of a client.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;

use weir_ir::LocationId;

use super::exchange::{READING_HEAD, RequestLength, Settings, Wire, next};
use super::{PoolId, PoolSettings, Protocol, RequestHead, Target, Upstream, Whom, Written, run};
use crate::contract::Flow;
use crate::generation::Generation;
use crate::http::exchange::{Client, Connection, Tunnel};
use crate::http::subrequest::Within;
use crate::http::{Body, Exchange, Headers, Response};
use crate::http1::Limits;
use crate::http1::request::Head;
use crate::http1::response;
use crate::io::{Address, Buf, Io};
use crate::reactor::{Peer, Reactor};

/// How peers of a group are asked.
pub struct Probe {
    protocol: Arc<dyn Protocol>,
    target: Target,
    settings: Settings,
    upgrade: Option<&'static str>,
    location: LocationId,
    pool: PoolSettings,
    pool_id: PoolId,
}

/// What one is asked.
pub struct Question<'q> {
    pub uri: &'q [u8],
    /// Header lines that end in CRLF.
    pub fields: &'q str,
    /// What messages say it is for.
    pub label: &'q str,
}

/// What one answered.
pub struct Asked {
    pub x: Box<Exchange>,
    /// None where it failed before there was any.
    pub status: Option<u16>,
    /// What it failed at.
    pub doing: &'static str,
    body: Body,
}

impl Probe {
    /// `None` where the location's requests go nowhere that is known before them. `keep` is for how many milliseconds a
    /// connection is asked on; `upgrade` is another protocol that is asked for, whatever the location makes of such requests.
    pub fn new(
        protocol: &Arc<dyn Protocol>,
        location: LocationId,
        name: &str,
        keep: Option<u64>,
        upgrade: Option<&'static str>,
    ) -> Option<Self> {
        let target = protocol.known()?.clone();
        let settings = Settings {
            wire: match protocol.settings().wire.clone() {
                // Which only HTTP/1.1 can.
                Wire::Http2 if upgrade.is_some() => Wire::Http1,
                wire => wire,
            },
            // There is no next one; it lets a kept connection that was closed meanwhile be made good by a new one.
            next_upstream: next::ERROR,
            ignore_client_abort: true,
            intercept_errors: false,
            ignore_headers: u32::MAX,
            pass_early_hints: None,
            pass_trailers: None,
            // What it says is for nobody, neither now nor later.
            buffering: false,
            cache: None,
            store: None,
            ..protocol.settings().clone()
        };
        let (mut pool, mut pool_id) = (PoolSettings::default(), PoolId::NONE);
        if let Some(time) = keep {
            // One for each peer, and as long as that.
            pool = PoolSettings { connections: 1024, requests: u64::MAX, time, timeout: time, local: false };
            pool_id = PoolId::of(&format!("{} {name}", target.group.name), u16::MAX);
        }
        Some(Self { protocol: Arc::clone(protocol), target, settings, upgrade, location, pool, pool_id })
    }

    pub fn group(&self) -> &Arc<Upstream> {
        &self.target.group
    }

    /// Milliseconds that each step of a conversation may take.
    pub fn timeout(&self) -> u64 {
        self.settings.read_timeout
    }

    /// Asks a peer.
    pub async fn ask(
        &self,
        reactor: &Rc<Reactor>,
        generation: &Arc<Generation>,
        peer: Address,
        question: &Question<'_>,
    ) -> Asked {
        let mut x = self.exchange(reactor, generation, question);
        let name = &self.target.group.name;
        let mut group = Upstream::of_addresses(name, self.target.group.port, [peer]);
        group.pool = self.pool;
        group.pool_id = self.pool_id;
        let target = Target { group: Arc::new(group), ..self.target };
        let asking = Asking { probe: self, target };
        let flow = Box::pin(run(&mut x, &asking)).await;
        let state = x.upstream_states.last();
        let doing = match state {
            Some(state) if state.connect_time.is_none() => "connecting to upstream",
            Some(state) if state.bytes_sent == 0 && self.target.tls => "SSL handshaking to upstream",
            Some(_) | None => READING_HEAD,
        };
        let (status, body) = match flow {
            Flow::Respond(mut response) => (Some(response.status), mem::take(&mut response.body)),
            Flow::Answer(_) | Flow::Decline | Flow::Pass | Flow::Redirect => (None, Body::Empty),
        };
        Asked { x, status, doing, body }
    }

    /// The request that nobody sent.
    fn exchange(
        &self,
        reactor: &Rc<Reactor>,
        generation: &Arc<Generation>,
        question: &Question<'_>,
    ) -> Box<Exchange> {
        let level = generation.location(self.location);
        let nobody = || Address::Unix("".into());
        let connection = Connection {
            number: 0,
            peer: Peer::nobody(),
            local: nobody(),
            started: reactor.clock().now_ms(),
            requests: Cell::new(1),
            address: Cell::new(0),
            tls: None,
            proxy_protocol: None,
            log: level.log.clone(),
        };
        let client = Client {
            io: Io::Absent,
            input: Buf::new(),
            timer: reactor.timers().register(),
            look: None,
            nodelay: true,
        };
        let (reactor, generation) = (Rc::clone(reactor), Arc::clone(generation));
        let mut x =
            Exchange::new(reactor, Arc::clone(&generation), Rc::new(connection), client, level.server);
        let head = [b"GET ", question.uri, b" HTTP/1.0\r\n", question.fields.as_bytes(), b"\r\n"].concat();
        let mut parsed = Head::new();
        // What the configuration asks for was looked at there, and bounds are those of clients.
        let limits = Limits { large_buffer: head.len(), header_buffer: head.len(), ..Limits::default() };
        if parsed.parse(&head, &limits).is_ok() {
            x.head = parsed;
        }
        x.begin(&generation, level.server);
        x.location = self.location;
        // The location is not asked for by its name.
        x.valid_location = false;
        x.internal = true;
        x.within = Some(Within::probing(question.label));
        Box::new(x)
    }
}

/// A request that asks one peer.
struct Asking<'p> {
    probe: &'p Probe,
    target: Target,
}

impl Protocol for Asking<'_> {
    fn settings(&self) -> &Settings {
        &self.probe.settings
    }

    fn target(&self, _: &mut Exchange) -> Result<Whom, u16> {
        Ok(Whom::Known(self.target.clone()))
    }

    fn request(&self, x: &mut Exchange, length: RequestLength, out: &mut Vec<u8>) -> Result<Written, u16> {
        let written = self.probe.protocol.request(x, length, out)?;
        if let Some(upgrade) = self.probe.upgrade {
            ask_for(upgrade, written.uri.end, out);
        }
        Ok(written)
    }

    fn request_head(
        &self,
        x: &mut Exchange,
        length: RequestLength,
        body: &mut Vec<u8>,
    ) -> Result<RequestHead, u16> {
        self.probe.protocol.request_head(x, length, body)
    }

    fn cache_key(&self, _: &mut Exchange, _: &'static str, _: &mut Vec<u8>) {}

    fn response(&self, x: &mut Exchange, head: &response::Head) -> Box<Response> {
        x.new_response(head.status())
    }

    fn replaces_body(&self) -> bool {
        self.probe.protocol.replaces_body()
    }
}

/// Has the fields of a head that begin behind `from` ask for a protocol.
fn ask_for(upgrade: &str, from: usize, head: &mut Vec<u8>) {
    let Some(first) = memchr::memmem::find(&head[from..], b"\r\n").map(|at| from + at + 2) else { return };
    let Some(end) = memchr::memmem::find(&head[first - 2..], b"\r\n\r\n").map(|at| first + at) else {
        return;
    };
    let mut fields = format!("Upgrade: {upgrade}\r\nConnection: Upgrade\r\n").into_bytes();
    let is_own = |line: &[u8]| {
        let starts = |name: &[u8]| line.get(..name.len()).is_some_and(|l| l.eq_ignore_ascii_case(name));
        starts(b"Upgrade:") || starts(b"Connection:")
    };
    for line in head[first..end].split_inclusive(|byte| *byte == b'\n').filter(|line| !is_own(line)) {
        fields.extend_from_slice(line);
    }
    head.splice(first..end, fields);
}

impl Asked {
    /// The header of the answer.
    pub fn headers(&self) -> Option<&Headers> {
        self.x.upstream_headers.as_ref()
    }

    /// The body, as far as it has that many bytes.
    ///
    /// # Errors
    /// It broke off before.
    pub async fn read(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let mut source = mem::take(&mut self.body).into_source();
        let mut read = vec![];
        let result = loop {
            match poll_fn(|cx| source.poll_ready(&mut self.x, cx)).await {
                Ok(true) if read.len() < most => {
                    let bytes = source.data();
                    let n = bytes.len().min(most - read.len());
                    read.extend_from_slice(&bytes[..n]);
                    source.consume(n);
                }
                Ok(more) => break Ok(!more),
                Err(error) => break Err(error),
            }
        };
        source.finish(&mut self.x, matches!(result, Ok(true)));
        result.map(|_| read)
    }

    /// What the connection became.
    pub fn into_tunnel(self) -> Option<Tunnel> {
        if let Body::Tunnel(tunnel) = self.body { Some(*tunnel) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_asks_for_another_protocol() {
        #[track_caller]
        fn check(fields: &str, expected: &str) {
            let mut head = format!("GET /a HTTP/1.1\r\n{fields}\r\n").into_bytes();
            ask_for("websocket", 6, &mut head);
            let asks = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
            let expected = format!("GET /a HTTP/1.1\r\n{asks}{expected}\r\n");
            assert_eq!(String::from_utf8(head).unwrap(), expected);
        }
        check("", "");
        check("Host: a\r\nX: y\r\n", "Host: a\r\nX: y\r\n");
        check("Host: a\r\nconnection: close\r\nX: y\r\nUpgrade: h2c\r\n", "Host: a\r\nX: y\r\n");
    }
}

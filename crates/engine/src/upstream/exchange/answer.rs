//! What becomes of a request whose upstream has answered: the next peer, a page, a redirect, a tunnel or a response.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use weir_ir::value;
use weir_syntax::Level;

use super::{Answered, Asking, Attempt, Failure, Protocol, READING_HEAD, Settings, Storing, ignore, next};
use crate::contract::Flow;
use crate::files::Moving;
use crate::http::exchange::Tunnel;
use crate::http::{Body, Exchange, special};
use crate::http1::body::Decoder;
use crate::http1::response::{Framing, Head};
use crate::http1::{Known, Method, date};
use crate::io::{Block, Buf, Io};
use crate::tunnel::{self, HalfClose};
use crate::upstream::balance::Outcome;
use crate::upstream::body::{Left, Line, MORE_THAN_TOLD, Pace, PassedTrailers, UpstreamBody, keep};
use crate::upstream::buffered::Buffered;
use crate::upstream::caching;
use crate::upstream::spool::{Place, Spool};
use crate::upstream::store::{Shelf, Store};

/// A body up to this long that came with its head is taken out of the block at once, and its connection is free again.
const SHORT: u64 = 4096;

impl Asking<'_> {
    /// Decides between the next peer, an intercepted error, a tunnel and a response.
    pub(super) fn answer(
        &self,
        x: &mut Exchange,
        mut attempt: Attempt,
        head: &Head,
        block: Option<Block>,
        raw: std::ops::Range<usize>,
    ) -> Result<Flow, Failure> {
        let settings = self.protocol.settings();
        let now = x.reactor.clock().now_ms();
        let ignored = settings.ignore_headers;
        obey_limit_rate(x, head, ignored);
        if x.cache.is_some() {
            caching::judged(x, head, ignored);
        }
        let status = head.status();
        if status >= 300 {
            if let Some(kind) = next::of_status(status)
                && self.may_go_on(x, kind, now)
            {
                self.unread(x, raw.len());
                return Err(Failure::of(kind, attempt.cached));
            }
            if let Some(kind) = next::of_status(status)
                && let Some(flow) = caching::stale(x, self.protocol, kind, false)
            {
                self.sufficed(x, &attempt, raw.len(), now);
                return Ok(flow);
            }
            if status == 304
                && let Some(flow) = caching::not_modified(x, self.protocol, head)
            {
                self.sufficed(x, &attempt, raw.len(), now);
                if attempt.sent && head.keeps_alive() && raw.is_empty() {
                    keep(&x.reactor, attempt.line, now);
                } else {
                    attempt.line.io.farewell();
                }
                return Ok(flow);
            }
            if settings.intercept_errors && x.location().core.error_pages.iter().any(|p| p.code == status) {
                if status == 401 {
                    // The page may be ours, but how to get in is the upstream's to say.
                    for field in head.fields().iter().filter(|f| f.known == Known::WwwAuthenticate) {
                        x.answer_headers.push(head.get(field.name), head.get(field.value));
                    }
                }
                caching::intercepted(x, status);
                self.sufficed(x, &attempt, raw.len(), now);
                return Ok(Flow::Answer(status));
            }
        }
        self.succeeded(x, &attempt, now);
        if let Some(flow) = redirect(x, self.protocol, head) {
            self.unread(x, raw.len());
            timed(x, attempt.started, now);
            return Ok(flow);
        }
        let obeyed = ignored & ignore::X_ACCEL_BUFFERING == 0;
        let buffering = match head.first(Known::XAccelBuffering).filter(|_| obeyed) {
            Some(word) if word.eq_ignore_ascii_case(b"no") => false,
            Some(word) if word.eq_ignore_ascii_case(b"yes") => true,
            Some(_) | None => settings.buffering,
        };
        if !buffering {
            x.limit_rate = Some(0);
        }
        let mut response = self.protocol.response(x, head);
        let framing = match &mut attempt.line.io {
            Io::FastCgi(application) => {
                application.begin_body();
                match head.framing(self.to_head) {
                    Framing::Empty => Framing::Empty,
                    // It is what its records say.
                    _ => Framing::UntilClose,
                }
            }
            _ => head.framing(self.to_head),
        };
        if framing == Framing::Tunnel && x.is_subrequest() && !x.is_probe() {
            return Err(upgrade_in_subrequest(x));
        }
        if framing == Framing::Tunnel && x.header(Known::Upgrade).is_none() {
            // Nobody asked for another protocol, so nobody speaks it: the connections end with this head.
            response.close = true;
            self.unread(x, raw.len());
            timed(x, attempt.started, now);
            return Ok(Flow::Respond(response));
        }
        if framing == Framing::Tunnel {
            let read = block.as_ref().map_or(&[][..], |b| &b[raw]);
            response.body = tunnel(x, *attempt.line, read, settings);
            return Ok(Flow::Respond(response));
        }
        let uplink = attempt.uplink.take();
        let mut line = attempt.line;
        line.keep = head.keeps_alive() && (attempt.sent || uplink.is_some());
        let left = match framing {
            Framing::Empty => Left::Nothing,
            // Where it ends its stream says.
            _ if let Io::Request(stream) = &line.io => match stream.is_over() {
                true => Left::Nothing,
                false => Left::Frames,
            },
            // To HEAD an application may send less than it tells, or all the same.
            _ if matches!(line.io, Io::FastCgi(_)) => {
                Left::Output(head.content_length().filter(|_| x.method != Method::Head))
            }
            Framing::Length(0) => Left::Nothing,
            Framing::Length(length) => Left::Length(length),
            Framing::Chunked => Left::Chunked(Box::new(match settings.pass_trailers {
                Some(_) => Decoder::keeping_trailers(),
                None => Decoder::new(),
            })),
            Framing::UntilClose => Left::Close,
            Framing::Tunnel => unreachable!("handled above"),
        };
        let store = match buffering {
            true if x.cache.is_some() => caching::keep(x, head, settings),
            true => settings.store.as_deref().and_then(|storing| self.store(x, head, storing)),
            false => None,
        };
        let here = block.as_ref().map_or(&[][..], |b| &b[raw.clone()]);
        let whole = match left {
            Left::Nothing => true,
            Left::Length(length) => length <= SHORT && length == here.len() as u64,
            Left::Output(Some(length)) if let Io::FastCgi(application) = &line.io => {
                length <= SHORT && length == here.len() as u64 && application.is_over()
            }
            Left::Chunked(_) | Left::Close | Left::Output(_) | Left::Frames => false,
        };
        if whole {
            timed(x, attempt.started, now);
            let has_body = matches!(left, Left::Length(_) | Left::Output(_));
            let clean = has_body || here.is_empty();
            if has_body {
                if let Some(state) = x.upstream_states.last_mut() {
                    state.bytes_received += here.len() as u64;
                    // A client that asked for the head alone lets nobody else read it.
                    if x.method != Method::Head || store.is_some() {
                        state.response_length = here.len() as u64;
                    }
                }
                response.body = Body::Bytes(Cow::Owned(here.to_vec()));
            } else {
                self.unread(x, here.len());
                // Nobody looks behind a head that was all that was asked for.
                if !clean && !self.to_head && x.method != Method::Head {
                    if let Some(state) = x.upstream_states.last_mut() {
                        state.response_length = here.len() as u64;
                    }
                    x.log_while(Level::Warn, None, MORE_THAN_TOLD, "reading upstream");
                }
            }
            if let Some(store) = store {
                let body = if has_body { here } else { b"" };
                x.store(store, body);
            }
            if line.keep && clean && uplink.is_none() {
                keep(&x.reactor, line, now);
            } else {
                line.io.farewell();
            }
            return Ok(Flow::Respond(response));
        }
        let mut body = self.body(x, line, left, block, raw, attempt.started);
        body.goes_on_with(uplink, x);
        response.body = self.stream(x, body, buffering, store);
        Ok(Flow::Respond(response))
    }

    /// The client has its connection.
    pub(super) fn connected(&self, x: &mut Exchange, attempt: Attempt, status: u16) -> Result<Flow, Failure> {
        if x.is_subrequest() {
            return Err(upgrade_in_subrequest(x));
        }
        self.succeeded(x, &attempt, x.reactor.clock().now_ms());
        x.keepalive = false;
        let mut response = x.new_response(status);
        response.body = tunnel(x, *attempt.line, &[], self.protocol.settings());
        Ok(Flow::Respond(response))
    }

    /// The answer as it goes to the client.
    #[inline]
    fn stream(&self, x: &Exchange, mut body: UpstreamBody, buffering: bool, store: Option<Store>) -> Body {
        if !buffering {
            return Body::Stream(Box::new(body));
        }
        body.buffered = true;
        let buffers = &self.protocol.settings().buffers;
        let rate = x.size(buffers.rate.as_ref());
        if rate > 0 {
            body.pace = Some(Box::new(Pace::new(&x.reactor, rate, buffers.piece, body.received)));
        }
        Body::Stream(Box::new(Buffered::new(body, Arc::clone(buffers), store)))
    }

    /// Begins to make a file of an answer that is to be one.
    fn store(&self, x: &Exchange, head: &Head, storing: &Storing) -> Option<Store> {
        if head.status() != 200 || self.to_head {
            return None;
        }
        let to = match &storing.path {
            Some(path) => path.value(x),
            None => x.file()?.path.to_vec(),
        };
        if to.is_empty() {
            return None;
        }
        let buffers = &self.protocol.settings().buffers;
        let spool = Spool::new(Place::Below(Arc::clone(&buffers.temp_path)), buffers.write_size, vec![]);
        let moving = Moving {
            from: PathBuf::new(),
            to: OsString::from_vec(to).into(),
            access: Some(storing.access),
            modified: head.first(Known::LastModified).and_then(date::parse_http),
            create_path: Some(storing.access),
        };
        Some(Store::new(x, spool, Shelf::File(moving)))
    }

    /// The request stays with this answer.
    fn succeeded(&self, x: &Exchange, attempt: &Attempt, now: u64) {
        let group = &self.target.group;
        group.round_robin.done(attempt.peer, Outcome::Success, now);
        group.balance.answered(x, &self.tried, attempt.peer);
    }

    /// Of this answer the head is all that is wanted.
    fn sufficed(&self, x: &mut Exchange, attempt: &Attempt, behind: usize, now: u64) {
        self.unread(x, behind);
        self.succeeded(x, attempt, now);
        timed(x, attempt.started, now);
    }

    /// So many bytes came behind a head whose body nobody reads; they count, as far as nginx has room for them with the head.
    fn unread(&self, x: &mut Exchange, behind: usize) {
        if let Some(state) = x.upstream_states.last_mut() {
            let room = (self.protocol.settings().buffer_size as u64).saturating_sub(state.bytes_received);
            state.bytes_received += room.min(behind as u64);
        }
    }

    #[inline]
    fn body(
        &self,
        x: &Exchange,
        line: Box<Line>,
        left: Left,
        block: Option<Block>,
        raw: std::ops::Range<usize>,
        asked: u64,
    ) -> UpstreamBody {
        let settings = self.protocol.settings();
        let passed =
            settings.pass_trailers.as_ref().filter(|_| matches!(left, Left::Chunked(_) | Left::Frames));
        UpstreamBody {
            reactor: Rc::clone(&x.reactor),
            timer: x.reactor.timers().register(),
            read_timeout: settings.read_timeout,
            ignore_client_abort: settings.ignore_client_abort,
            buffered: false,
            long: UpstreamBody::is_long(&left),
            received: raw.len() as u64,
            left,
            block,
            raw,
            ready: 0..0,
            line: Some(line),
            uplink: None,
            failure: None,
            pace: None,
            trailers: passed.map(|hidden| Box::new(PassedTrailers::new(hidden, settings.buffer_size))),
            asked,
            state: x.upstream_states.len().saturating_sub(1),
        }
    }

    /// An answer without a head goes to the client as it came.
    pub(super) fn headless(&self, x: &mut Exchange, attempt: Attempt, answered: Answered) -> Flow {
        let now = x.reactor.clock().now_ms();
        self.succeeded(x, &attempt, now);
        let Answered { head, block, raw, .. } = answered;
        x.reactor.put_head(head);
        let mut response = x.new_response(200);
        response.headless = true;
        let mut line = attempt.line;
        line.keep = false;
        let mut body = self.body(x, line, Left::Close, block, raw, attempt.started);
        body.goes_on_with(attempt.uplink, x);
        response.body = self.stream(x, body, self.protocol.settings().buffering, None);
        Flow::Respond(response)
    }
}

/// All that is wanted of the answer is here.
fn timed(x: &mut Exchange, asked: u64, now: u64) {
    if let Some(state) = x.upstream_states.last_mut() {
        state.response_time = Some(now.saturating_sub(asked));
    }
}

fn upgrade_in_subrequest(x: &Exchange) -> Failure {
    x.log_while(Level::Error, None, "connection upgrade in subrequest", READING_HEAD);
    Failure::end(444)
}

/// A connection that goes on as a tunnel, with what was read of it.
fn tunnel(x: &mut Exchange, mut line: Line, read: &[u8], settings: &Settings) -> Body {
    let core = &x.location().core;
    let options = tunnel::Options {
        read_timeout: settings.read_timeout,
        send_timeout: settings.send_timeout,
        client_send_timeout: core.send_timeout,
        half_close: match x.client.io {
            Io::Stream(_) => HalfClose::Client,
            _ => HalfClose::Never,
        },
    };
    if core.tcp_nodelay {
        line.set_nodelay();
        x.set_nodelay();
    }
    let from_upstream = Buf::copy_of(read);
    Body::Tunnel(Box::new(Tunnel { upstream: line.io, from_upstream, options, peer: line.guard }))
}

/// The upstream says how fast its answer goes to the client.
pub(in crate::upstream) fn obey_limit_rate(x: &mut Exchange, head: &Head, ignored: u32) {
    if ignored & ignore::X_ACCEL_LIMIT_RATE == 0
        && let Some(rate) = head.first(Known::XAccelLimitRate).and_then(value::number)
    {
        x.limit_rate = Some(rate);
    }
}

/// Sends the request on where an answer's head says so, be it a copy's.
pub(in crate::upstream) fn redirect(x: &mut Exchange, protocol: &dyn Protocol, head: &Head) -> Option<Flow> {
    if protocol.settings().ignore_headers & ignore::X_ACCEL_REDIRECT != 0 {
        return None;
    }
    protocol.redirect(x, head).map(|to| internal_redirect(x, &to))
}

/// Sends the request on to another location, as a GET unless it asked for the head alone.
fn internal_redirect(x: &mut Exchange, to: &[u8]) -> Flow {
    if to.first() == Some(&b'@') {
        return x.named_redirect(to);
    }
    let mut path = Vec::new();
    let decoded = crate::http1::uri::decode_unsafe(to, &mut path).map(|args| args.map(<[u8]>::to_vec));
    let Ok(args) = decoded else {
        let message = format!("unsafe URI \"{}\" was detected", String::from_utf8_lossy(to));
        x.log_while(Level::Error, None, message, READING_HEAD);
        return Flow::Answer(404);
    };
    special::become_get(x);
    x.internal_redirect(path, args.unwrap_or_default())
}

//! Subrequests: what one request asks of its own server on its way (nginx: `ngx_http_subrequest`).
//!
//! A subrequest is an exchange of its own with the head, the peer and the variables of the request that it is a part
//! of, and of that request's body what was read already. It begins with the server's rewriting, is internal and passes no
//! access phase. Its answer is captured ([`Exchange::ask`]), becomes a piece of a body ([`Included`]) or is thrown away
//! ([`Exchange::spawn`]).

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;
use weir_syntax::Level;

use crate::http::connection::log;
use crate::http::response::{Source, Text};
use crate::http::{Body, Exchange, Headers, Response, phases};

/// How deep subrequests may make subrequests.
const DEPTH: u8 = 50;

/// What a subrequest knows of those around it.
#[derive(Debug, Default)]
pub(crate) struct Within {
    depth: u8,
    /// The method of the outermost, where it is another than the head's.
    method_name: Option<&'static [u8]>,
    /// The charset that the outermost answers in, where the head of its answer is made.
    charset: Option<Text>,
    /// Its answer is kept in memory, and has no parts of its own.
    in_memory: bool,
    /// It is the outermost once more, for another piece of its answer.
    piece: bool,
    /// It renews what the cache has of its answer, and nobody waits for that.
    background: bool,
    /// No request is around it: a peer is asked for something, and this is what messages say of it.
    probe: Option<Box<str>>,
    /// What it answers with where it fails, or has no bytes.
    stub: Option<Box<Response>>,
    /// It, or a part of it, waits for an upstream, which ends with the client; a wait for a disk does not.
    asks: Rc<Cell<bool>>,
}

impl Within {
    /// For what is asked of a peer without any client.
    pub(crate) fn probing(label: &str) -> Self {
        Self { probe: Some(label.into()), ..Self::default() }
    }
}

/// A subrequest that was answered. The head of the answer is in its exchange.
pub struct Answer {
    pub x: Box<Exchange>,
    body: Body,
    unsent: bool,
}

impl Answer {
    /// The status, also one that closes the connection (444).
    pub fn status(&self) -> u16 {
        self.x.status
    }

    /// Whether no answer is to be given at all.
    pub fn is_unsent(&self) -> bool {
        self.unsent
    }

    /// Ends the subrequest, of whose body nobody wants the rest. What runs beside it is still to be waited for.
    fn end(&mut self) -> Vec<oneshot::Receiver<()>> {
        if let Body::Stream(source) = &mut self.body {
            source.finish(&mut self.x, false);
        }
        logged(&self.x);
        mem::take(&mut self.x.background)
    }
}

fn logged(x: &Exchange) {
    if x.location().core.log_subrequest {
        log(x);
    }
}

impl Exchange {
    pub fn is_subrequest(&self) -> bool {
        self.within.is_some()
    }

    pub(crate) fn is_probe(&self) -> bool {
        self.probe().is_some()
    }

    /// An upstream is asked, or is no longer.
    pub(crate) fn set_asks(&self, asks: bool) {
        if let Some(within) = &self.within {
            within.asks.set(asks);
        }
    }

    /// What is asked of a peer without any client, as messages tell it.
    pub(crate) fn probe(&self) -> Option<&str> {
        self.within.as_ref()?.probe.as_deref()
    }

    /// `$request_method`: subrequests have that of the request that they are a part of.
    pub(crate) fn main_method_name(&self) -> &[u8] {
        let name = self.within.as_ref().map_or(self.method_name, |within| within.method_name);
        name.unwrap_or_else(|| self.head.method_name())
    }

    /// The charset that the outermost request answers in, as far as that is settled.
    pub fn main_charset(&self) -> Option<&[u8]> {
        self.within.as_ref()?.charset.as_deref()
    }

    fn answer_charset(&self) -> Option<Text> {
        let response = self.response.as_ref()?;
        let in_type = || response.media_type().1.map(|charset| Text::Owned(charset.to_vec()));
        response.charset.clone().or_else(in_type)
    }

    /// A GET of another path of this server, which is still to be run.
    ///
    /// # Errors
    /// 500 where subrequests make subrequests without end, which is logged.
    pub fn subrequest(&self, uri: &[u8], args: &[u8]) -> Result<Box<Exchange>, u16> {
        let (depth, method_name, charset, asks) = match &self.within {
            Some(within) => {
                let asks = Rc::clone(&within.asks);
                (within.depth + 1, within.method_name, within.charset.clone(), asks)
            }
            None => (0, self.method_name, self.answer_charset(), Rc::default()),
        };
        if depth > DEPTH {
            let uri = String::from_utf8_lossy(uri);
            self.log(Level::Error, format_args!("subrequests cycle while processing \"{uri}\""));
            return Err(500);
        }
        if self.within.as_ref().is_some_and(|within| within.in_memory) {
            let uri = String::from_utf8_lossy(uri);
            let message = format_args!("nested in-memory subrequest \"{uri}\"");
            self.log_while(Level::Error, None, message, "sending response to client");
            return Err(500);
        }
        let within = Within { depth, method_name, charset, asks, ..Within::default() };
        let mut part = Box::new(self.part(within));
        part.uri.extend_from_slice(uri);
        part.args.extend_from_slice(args);
        self.debug(|| format!("http subrequest \"{}\"", part.shown_uri()));
        Ok(part)
    }

    /// The same request once more from the content phase on, for another piece of its answer, which no filter changes before
    /// it is a part of the whole (nginx: `NGX_HTTP_SUBREQUEST_CLONE`).
    ///
    /// # Errors
    /// As for [`Exchange::subrequest`].
    pub fn piece(&self) -> Result<Box<Exchange>, u16> {
        let mut part = self.subrequest(&self.uri, &self.args)?;
        part.goes_on_from(self);
        part.with_method_of(self);
        if let Some(within) = &mut part.within {
            within.piece = true;
        }
        Ok(part)
    }

    /// What is left of the request when the client has all that it wanted, to end what others have a use for.
    pub(crate) fn remainder(&self) -> Self {
        self.part(Within { method_name: self.method_name, ..Within::default() })
    }

    /// Lets a piece renew what the cache has.
    pub(crate) fn set_background(&mut self) {
        if let Some(within) = &mut self.within {
            within.background = true;
        }
    }

    pub(crate) fn is_background(&self) -> bool {
        self.within.as_ref().is_some_and(|within| within.background)
    }

    pub(crate) fn is_piece(&self) -> bool {
        self.within.as_ref().is_some_and(|within| within.piece)
    }

    /// Lets a subrequest ask with the method of the request that it is a part of.
    pub fn with_method_of(&mut self, other: &Exchange) {
        self.method = other.method;
        self.method_name = other.method_name;
    }

    /// Lets a subrequest have nothing of the request's body.
    pub fn without_body(&mut self) {
        self.body.forget();
    }

    /// Lets a subrequest answer with this where it fails, or with its body where it has no bytes.
    pub fn set_stub(&mut self, stub: Box<Response>) {
        if let Some(within) = &mut self.within {
            within.stub = Some(stub);
        }
    }

    /// What it answers with instead of the page of a status.
    pub(crate) fn take_stub(&mut self) -> Option<Box<Response>> {
        self.within.as_mut()?.stub.take()
    }

    /// Runs a subrequest to the head of its answer, of which `use_it` takes what it needs. Meanwhile the subrequest has the
    /// client, to see it leave.
    pub async fn ask<T>(
        &mut self,
        mut part: Box<Exchange>,
        use_it: impl FnOnce(&mut Exchange, &Answer) -> T,
    ) -> T {
        mem::swap(&mut self.client, &mut part.client);
        let mut answer = run(part).await;
        mem::swap(&mut self.client, &mut answer.x.client);
        let used = use_it(self, &answer);
        self.background.append(&mut answer.end());
        used
    }

    /// Runs a subrequest beside this request, which does not end before it. Nobody sees its answer.
    pub fn spawn(&mut self, part: Box<Exchange>) {
        let (over, ended) = oneshot::channel();
        let idle = self.reactor.register_idle();
        let running = Rc::clone(&self.reactor);
        self.background.push(ended);
        running.spawn(async move {
            let whole = pin!(async {
                let mut answer = run(part).await;
                // What the subrequest holds it holds until all of it is over.
                for over in answer.end() {
                    // A task that ended in a panic is over too.
                    let _ = over.await;
                }
            });
            idle.bounded(whole).await;
            // Whoever waits for it may be gone.
            let _ = over.send(());
        });
    }
}

async fn run(mut part: Box<Exchange>) -> Answer {
    let generation = Arc::clone(&part.generation);
    let mut response = phases::run_part(&mut part, &generation).await;
    let (body, unsent) = (mem::take(&mut response.body), response.unsent);
    part.status = response.status;
    part.response = Some(response);
    Answer { x: part, body, unsent }
}

/// The answer to a subrequest as a piece of a body; it is asked for when it is its turn.
pub struct Included(State);

enum State {
    /// To be asked for by its path.
    Named(Box<[u8]>),
    Waits(Box<Exchange>),
    /// And whether it waits for an upstream.
    Runs(Pin<Box<dyn Future<Output = Answer>>>, Rc<Cell<bool>>),
    Comes(Box<Exchange>, Box<dyn Source>),
    Over,
}

impl Included {
    pub fn new(part: Box<Exchange>) -> Self {
        Self(State::Waits(part))
    }

    /// Its answer goes no further than to who asks for it here.
    pub fn in_memory(mut part: Box<Exchange>) -> Self {
        if let Some(within) = &mut part.within {
            within.in_memory = true;
        }
        Self::new(part)
    }

    /// Of a path, for a request whose own answer is still to be made.
    pub fn later(uri: &[u8]) -> Self {
        Self(State::Named(uri.into()))
    }
}

impl Included {
    /// Runs it as far as the head of its answer, which is all that it does before it is its turn.
    pub fn poll_head(&mut self, x: &Exchange, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.0 = match mem::replace(&mut self.0, State::Over) {
                State::Named(uri) => match x.subrequest(&uri, b"") {
                    Ok(part) => State::Waits(part),
                    Err(_) => return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
                },
                State::Waits(part) => {
                    let asks = part.within.as_ref().map(|within| Rc::clone(&within.asks)).unwrap_or_default();
                    State::Runs(Box::pin(run(part)), asks)
                }
                State::Runs(mut running, asks) => match running.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.0 = State::Runs(running, asks);
                        return Poll::Pending;
                    }
                    Poll::Ready(mut answer) if answer.unsent => {
                        drop(answer.end());
                        return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                    }
                    Poll::Ready(Answer { x, body, .. }) => State::Comes(x, body.into_source()),
                },
                there @ (State::Comes(..) | State::Over) => {
                    self.0 = there;
                    return Poll::Ready(Ok(()));
                }
            };
        }
    }

    /// Whether some of its answer is sent, and more has to be waited for.
    pub fn is_streaming(&self) -> bool {
        matches!(&self.0, State::Comes(part, source) if part.body_sent > 0 && !source.is_last())
    }

    /// The subrequest, while its answer comes.
    pub fn answered(&self) -> Option<&Exchange> {
        if let State::Comes(part, _) = &self.0 { Some(part) } else { None }
    }
}

impl Source for Included {
    fn poll_ready(&mut self, x: &mut Exchange, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        ready!(self.poll_head(x, cx))?;
        let State::Comes(part, source) = &mut self.0 else { return Poll::Ready(Ok(false)) };
        let complete = match source.poll_ready(part, cx) {
            going @ (Poll::Ready(Ok(true)) | Poll::Pending) => return going,
            ended => matches!(ended, Poll::Ready(Ok(false))),
        };
        // As in nginx the whole goes on behind a piece that was cut off.
        self.finish(x, complete);
        Poll::Ready(Ok(false))
    }

    fn data(&self) -> &[u8] {
        if let State::Comes(_, source) = &self.0 { source.data() } else { &[] }
    }

    fn consume(&mut self, n: usize) {
        if let State::Comes(part, source) = &mut self.0 {
            part.body_sent += n as u64;
            source.consume(n);
        }
    }

    fn read_ahead(&mut self, _: &mut Exchange, cx: &mut Context<'_>) {
        if let State::Comes(part, source) = &mut self.0 {
            source.read_ahead(part, cx);
        }
    }

    fn ends_with_client(&self) -> bool {
        match &self.0 {
            State::Runs(_, asks) => asks.get(),
            State::Comes(_, source) => source.ends_with_client(),
            State::Named(_) | State::Waits(_) | State::Over => false,
        }
    }

    fn finish(&mut self, x: &mut Exchange, complete: bool) {
        if let State::Comes(part, source) = &mut self.0 {
            source.finish(part, complete);
            logged(part);
            x.background.append(&mut part.background);
        }
        self.0 = State::Over;
    }
}

/// A body, or another one where that has no bytes.
pub(crate) fn or(body: Body, other: Body) -> Body {
    match body {
        Body::Empty => other,
        Body::Bytes(bytes) if bytes.is_empty() => other,
        Body::File(part) if part.length == 0 => other,
        Body::Stream(source) => {
            Body::Stream(Box::new(Either { source, other: Some(other.into_source()), begun: false }))
        }
        body => body,
    }
}

/// A stream of which it is still to be seen whether it has any bytes.
struct Either {
    source: Box<dyn Source>,
    other: Option<Box<dyn Source>>,
    begun: bool,
}

impl Source for Either {
    fn poll_ready(&mut self, x: &mut Exchange, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if ready!(self.source.poll_ready(x, cx))? {
            self.begun = true;
            return Poll::Ready(Ok(true));
        }
        match self.other.take_if(|_| !self.begun) {
            None => Poll::Ready(Ok(false)),
            Some(other) => {
                mem::replace(&mut self.source, other).finish(x, true);
                self.source.poll_ready(x, cx)
            }
        }
    }

    fn data(&self) -> &[u8] {
        self.source.data()
    }

    fn consume(&mut self, n: usize) {
        self.source.consume(n);
    }

    fn is_last(&self) -> bool {
        self.begun && self.source.is_last()
    }

    fn read_ahead(&mut self, x: &mut Exchange, cx: &mut Context<'_>) {
        self.source.read_ahead(x, cx);
    }

    fn ends_with_client(&self) -> bool {
        self.source.ends_with_client()
    }

    fn finish(&mut self, x: &mut Exchange, complete: bool) {
        self.source.finish(x, complete);
    }

    fn trailers(&self) -> Option<&Headers> {
        self.source.trailers()
    }
}

/// Bodies one after the other, of which the trailers of one are the trailers of all.
pub struct Chain {
    parts: Vec<Box<dyn Source>>,
    at: usize,
}

impl Chain {
    pub fn new(parts: Vec<Box<dyn Source>>) -> Self {
        Self { parts, at: 0 }
    }
}

impl Source for Chain {
    fn poll_ready(&mut self, x: &mut Exchange, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while let Some(part) = self.parts.get_mut(self.at) {
            if ready!(part.poll_ready(x, cx))? {
                return Poll::Ready(Ok(true));
            }
            self.at += 1;
        }
        Poll::Ready(Ok(false))
    }

    fn data(&self) -> &[u8] {
        self.parts.get(self.at).map_or(&[], |part| part.data())
    }

    fn consume(&mut self, n: usize) {
        if let Some(part) = self.parts.get_mut(self.at) {
            part.consume(n);
        }
    }

    fn is_last(&self) -> bool {
        match self.parts.get(self.at..) {
            Some([part]) => part.is_last() && self.trailers().is_none(),
            Some(_) | None => false,
        }
    }

    fn read_ahead(&mut self, x: &mut Exchange, cx: &mut Context<'_>) {
        if let Some(part) = self.parts.get_mut(self.at) {
            part.read_ahead(x, cx);
        }
    }

    fn ends_with_client(&self) -> bool {
        self.parts.get(self.at).is_some_and(|part| part.ends_with_client())
    }

    fn finish(&mut self, x: &mut Exchange, complete: bool) {
        for (at, part) in self.parts.iter_mut().enumerate() {
            part.finish(x, complete || at < self.at);
        }
    }

    fn trailers(&self) -> Option<&Headers> {
        self.parts.iter().find_map(|part| part.trailers())
    }
}

//! An answer that is read ahead of a client that does not take it: the upstream's connection is free as soon as all of it
//! was read, and what is kept of it for others is kept as fast as it comes.

use std::future::poll_fn;
use std::io;
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;
use weir_ir::program::PathSpec;
use weir_syntax::Level;

use super::UpstreamState;
use super::body::UpstreamBody;
use super::spool::{Place, Spool};
use super::store::Store;
use crate::files::Failed;
use crate::http::response::Source;
use crate::http::{Exchange, Headers, Template};
use crate::io::{Block, Buf};
use crate::timer::Timer;

/// Milliseconds that a client may be behind before a file is begun for its sake.
const PATIENCE: u64 = 100;
/// Those after which what would have room in memory is in the file too.
const LONGER: u64 = 1_000;

/// `proxy_buffers` and what belongs to it. Sizes are bytes.
#[derive(Default)]
pub struct Buffering {
    pub memory: usize,
    pub temp_path: Arc<PathSpec>,
    /// 0 is no file.
    pub max_file: u64,
    pub write_size: usize,
    /// Bytes that are read of the upstream in a second,
    pub rate: Option<Template>,
    /// and those that are then read at once.
    pub piece: u64,
}

/// What the client is yet to get, in its order.
struct Ahead {
    since: u64,
    patience: Option<Timer>,
    /// What was being sent when the client took no more,
    front: Option<(Block, Range<usize>)>,
    /// what came next, and what was read of the file,
    memory: Buf,
    /// and the part of the file that comes then.
    file: Range<u64>,
}

impl Ahead {
    fn data(&self) -> &[u8] {
        self.front.as_ref().map_or(&self.memory, |(block, range)| &block[range.clone()])
    }

    fn is_empty(&self) -> bool {
        self.front.is_none() && self.memory.is_empty() && self.file.is_empty()
    }

    /// Bytes of it in memory.
    fn in_memory(&self) -> usize {
        self.front.as_ref().map_or(0, |(_, range)| range.len()) + self.memory.len()
    }

    fn append(&mut self, range: Range<u64>) {
        if self.file.is_empty() {
            self.file.start = range.start;
        }
        self.file.end = range.end;
    }

    /// The file that is for this client alone. What waits in memory is the first of it, unless that is little, or too much for a file.
    fn file<'s>(&mut self, spool: &'s mut Option<Spool>, rules: &Buffering) -> &'s mut Spool {
        let below = || Place::Nameless(Arc::clone(&rules.temp_path));
        let spool = spool.get_or_insert_with(|| Spool::new(below(), rules.write_size, vec![]));
        if self.file.is_empty() {
            spool.rewind();
            let start = spool.len();
            let n = self.in_memory();
            if n > rules.memory && start + n as u64 <= rules.max_file {
                if let Some((block, range)) = self.front.take() {
                    spool.push(&block[range]);
                }
                spool.push(&self.memory);
                self.memory.release();
                self.append(start..spool.len());
            }
        }
        spool
    }

    /// Whether the client has been behind for so long that a file is worth it.
    fn poll_patience(&mut self, ms: u64, x: &Exchange, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.patience.get_or_insert_with(|| x.reactor.timers().register());
        timer.set(self.since + ms);
        timer.poll_expired(cx)
    }
}

pub(super) struct Buffered {
    body: UpstreamBody,
    rules: Arc<Buffering>,
    /// Only where the client was once behind, or something is kept.
    more: Option<Box<More>>,
}

#[derive(Default)]
struct More {
    /// Where all of it is kept.
    store: Option<Store>,
    /// Of the bytes that the body has ready: how many the store has.
    stored: usize,
    ahead: Option<Ahead>,
    /// The file for what the client is yet to get, where nothing is kept or all of it is.
    spool: Option<Spool>,
    /// That file has all of the answer.
    whole: bool,
    /// The log says that there is one, or need not.
    announced: bool,
    /// The body is over.
    over: bool,
    /// The upstream has nothing to do with it any more.
    ended: bool,
}

impl More {
    /// Lets the body make bytes ready, which the store has before the client.
    fn poll_fetch(
        &mut self,
        body: &mut UpstreamBody,
        x: &mut Exchange,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<bool>> {
        if let Some(store) = &mut self.store
            && let Err(failed) = ready!(store.spool.poll_room(cx))
        {
            store.fail(&failed);
            self.store = None;
            // A client that keeps up gets it all the same.
            if self.ahead.as_ref().is_some_and(|ahead| !ahead.file.is_empty()) {
                return Poll::Ready(Err(failed.error));
            }
        }
        let more = ready!(body.poll_ready(x, cx))?;
        self.over = !more;
        if let Some(store) = &mut self.store {
            let data = body.data();
            store.spool.push(&data[self.stored..]);
            self.stored = data.len();
            if !more || body.is_whole() {
                store.whole();
            }
        }
        Poll::Ready(Ok(more))
    }

    fn consume(&mut self, body: &mut UpstreamBody, n: usize) {
        self.stored = self.stored.saturating_sub(n);
        body.consume(n);
    }

    /// Makes bytes ready that were read ahead; false where there are none.
    fn poll_ahead(&mut self, x: &Exchange, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Some(ahead) = &mut self.ahead else { return Poll::Ready(Ok(false)) };
        if !ahead.data().is_empty() {
            return Poll::Ready(Ok(true));
        }
        if ahead.file.is_empty() {
            self.ahead = None;
            return Poll::Ready(Ok(false));
        }
        let spool = self.store.as_mut().map(|store| &mut store.spool).or(self.spool.as_mut());
        let Some(spool) = spool else { return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())) };
        if let Err(failed) = ready!(spool.poll_read(cx, &ahead.file, &mut ahead.memory)) {
            log(x, &failed);
            // A file that lacks something is of no use to anybody.
            (self.store, self.spool) = (None, None);
            return Poll::Ready(Err(failed.error));
        }
        ahead.file.start += ahead.memory.len() as u64;
        Poll::Ready(Ok(true))
    }

    /// Puts what the body has ready behind what the client is yet to get; waits for room.
    fn poll_put_aside(
        &mut self,
        body: &mut UpstreamBody,
        rules: &Buffering,
        x: &Exchange,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failed>> {
        let ahead = self.ahead.get_or_insert_with(|| Ahead {
            since: x.reactor.clock().now_ms(),
            patience: None,
            front: None,
            memory: Buf::new(),
            file: 0..0,
        });
        if self.ended {
            // The upstream does not wait for it.
            ready!(ahead.poll_patience(LONGER, x, cx));
        }
        let first = ahead.is_empty();
        if first && let Some(front) = body.take_block() {
            ahead.front = Some(front);
            self.stored = 0;
            return Poll::Ready(Ok(()));
        }
        let data = body.data();
        let mut n = data.len();
        if ahead.file.is_empty() && !first {
            n = n.min(rules.memory.saturating_sub(ahead.memory.len()));
        }
        if ahead.file.is_empty() && n > 0 {
            ahead.memory.extend(&data[..n]);
        } else if let Some(spool) = kept(&self.store, &self.spool, self.whole) {
            let end = spool.len();
            n = data.len();
            ahead.append(end - n as u64..end);
        } else {
            if rules.max_file == 0 {
                return Poll::Pending;
            }
            ready!(ahead.poll_patience(PATIENCE, x, cx));
            let spool = ahead.file(&mut self.spool, rules);
            let start = spool.len();
            let room = rules.max_file.saturating_sub(start);
            if room == 0 {
                return Poll::Pending;
            }
            ready!(spool.poll_room(cx))?;
            n = usize::try_from(room).map_or(data.len(), |room| room.min(data.len()));
            spool.push(&data[..n]);
            ahead.append(start..spool.len());
        }
        self.consume(body, n);
        Poll::Ready(Ok(()))
    }

    /// Fetches what there is room for.
    fn read_ahead(
        &mut self,
        body: &mut UpstreamBody,
        rules: &Buffering,
        x: &mut Exchange,
        cx: &mut Context<'_>,
    ) {
        body.read_ahead(x, cx);
        loop {
            if !self.ended && body.is_here() {
                self.end(body, x, true);
            }
            if !body.data().is_empty() {
                match self.poll_put_aside(body, rules, x, cx) {
                    Poll::Ready(Ok(())) => continue,
                    Poll::Ready(Err(failed)) => self.fail(body, x, &failed),
                    Poll::Pending => {}
                }
                break;
            }
            if self.ended {
                break;
            }
            match self.poll_fetch(body, x, cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => self.end(body, x, false),
                Poll::Pending => break,
            }
        }
        if let Poll::Ready(Err(failed)) = self.poll_spare(body, rules, x, cx) {
            self.fail(body, x, &failed);
        }
        if !self.announced
            && let Some(spool) = &mut self.spool
        {
            let made = spool.poll_idle(cx);
            if let Some(file) = spool.file() {
                self.announced = true;
                let message = "an upstream response is buffered to a temporary file";
                let message = format_args!("{message} {}", file.name());
                x.log_while(Level::Warn, None, message, "reading upstream");
            }
            if let Poll::Ready(Err(failed)) = made {
                self.fail(body, x, &failed);
            }
        }
        if self.ended {
            // Whether it is there yet is asked again whenever the client takes something.
            let _ = self.poll_place(x, cx);
        }
    }

    /// Gives up memory of what the client is yet to get, where a file has that or can have it.
    fn poll_spare(
        &mut self,
        body: &UpstreamBody,
        rules: &Buffering,
        x: &Exchange,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failed>> {
        let settled = self.ended || self.store.is_some();
        if settled
            && body.data().is_empty()
            && let Some(ahead) = self.ahead.as_mut().filter(|ahead| ahead.in_memory() > rules.memory)
        {
            ready!(ahead.poll_patience(LONGER, x, cx));
            if let Some(spool) = kept(&self.store, &self.spool, self.whole) {
                if ahead.file.is_empty() {
                    let end = spool.len() - self.stored as u64;
                    ahead.file = end..end;
                }
                ahead.file.start -= ahead.in_memory() as u64;
                ahead.front = None;
                ahead.memory.release();
            } else if ahead.file.is_empty() && rules.max_file > 0 {
                ahead.file(&mut self.spool, rules);
            }
        }
        match &mut self.spool {
            Some(spool) if self.ended => spool.poll_flush(cx),
            Some(_) | None => Poll::Ready(Ok(())),
        }
    }

    /// The upstream is let go.
    fn end(&mut self, body: &mut UpstreamBody, x: &mut Exchange, complete: bool) {
        self.ended = true;
        self.over = complete;
        body.finish(x, complete);
        if !complete && let Some(store) = self.store.take() {
            // It is no use to others, but to this client.
            self.spool = Some(store.split().0);
            (self.whole, self.announced) = (true, true);
        }
    }

    /// The file for the client cannot be written.
    fn fail(&mut self, body: &mut UpstreamBody, x: &mut Exchange, failed: &Failed) {
        log(x, failed);
        self.spool = None;
        if !self.ended {
            self.end(body, x, false);
        }
    }

    /// Lets others have what is kept, where that is all of it.
    fn poll_place(&mut self, x: &mut Exchange, cx: &mut Context<'_>) -> Poll<()> {
        let Some(store) = &mut self.store else { return Poll::Ready(()) };
        let written = ready!(store.spool.poll_written(cx));
        if let Some(store) = self.store.take() {
            match written {
                Err(failed) => store.fail(&failed),
                Ok(file) => {
                    let (spool, placing) = store.split();
                    self.spool = Some(spool);
                    (self.whole, self.announced) = (true, true);
                    x.spawn_work(placing.run(file));
                }
            }
        }
        Poll::Ready(())
    }
}

/// The file that has all of the answer as far as it is here.
fn kept<'s>(store: &'s Option<Store>, spool: &'s Option<Spool>, whole: bool) -> Option<&'s Spool> {
    store.as_ref().map(|store| &store.spool).or(spool.as_ref().filter(|_| whole))
}

fn log(x: &Exchange, failed: &Failed) {
    x.log_while(Level::Crit, Some(&failed.error), failed, "reading upstream");
}

impl Buffered {
    #[inline]
    pub fn new(body: UpstreamBody, rules: Arc<Buffering>, store: Option<Store>) -> Self {
        let more = store.map(|store| Box::new(More { store: Some(store), ..More::default() }));
        Self { body, rules, more }
    }
}

/// Fetches the rest of an answer for its store alone, which has so many of the bytes that are ready.
async fn drain(
    mut body: UpstreamBody,
    store: Store,
    stored: usize,
    mut part: Exchange,
    back: Option<oneshot::Sender<UpstreamState>>,
) {
    let mut more = More { store: Some(store), stored, ..More::default() };
    let whole = poll_fn(|cx| {
        loop {
            match ready!(more.poll_fetch(&mut body, &mut part, cx)) {
                Ok(true) if more.store.is_some() => {
                    let n = more.stored;
                    more.consume(&mut body, n);
                }
                Ok(false) => return Poll::Ready(true),
                Ok(true) | Err(_) => return Poll::Ready(false),
            }
        }
    });
    let whole = whole.await;
    body.finish(&mut part, whole);
    if let (Some(back), Some(state)) = (back, part.upstream_states.pop()) {
        // Who asked for it may be gone.
        let _ = back.send(state);
    }
    if let Some(store) = more.store.take().filter(|_| whole) {
        store.commit().await;
    }
}

impl Source for Buffered {
    fn poll_ready(&mut self, x: &mut Exchange, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Some(more) = &mut self.more else { return self.body.poll_ready(x, cx) };
        if ready!(more.poll_ahead(x, cx))? {
            return Poll::Ready(Ok(true));
        }
        if more.ended {
            return self.body.poll_ready(x, cx);
        }
        let fetched = ready!(more.poll_fetch(&mut self.body, x, cx))?;
        if more.store.is_some() && (!fetched || self.body.is_here()) {
            more.end(&mut self.body, x, true);
            // Others wait for its file from now on, and this response may go on with something else for long.
            if let Some(store) = more.store.take() {
                x.spawn_work(store.commit());
            }
        }
        Poll::Ready(Ok(fetched))
    }

    fn read_ahead(&mut self, x: &mut Exchange, cx: &mut Context<'_>) {
        self.more.get_or_insert_default().read_ahead(&mut self.body, &self.rules, x, cx);
    }

    fn data(&self) -> &[u8] {
        match self.more.as_ref().and_then(|more| more.ahead.as_ref()) {
            Some(ahead) if !ahead.data().is_empty() => ahead.data(),
            Some(_) | None => self.body.data(),
        }
    }

    fn consume(&mut self, n: usize) {
        let Some(more) = &mut self.more else { return self.body.consume(n) };
        match &mut more.ahead {
            Some(Ahead { front: front @ Some(_), .. }) => {
                *front = front.take().and_then(|(block, range)| {
                    (n < range.len()).then_some((block, range.start + n..range.end))
                });
            }
            Some(ahead) if !ahead.memory.is_empty() => ahead.memory.consume(n),
            Some(_) | None => more.consume(&mut self.body, n),
        }
    }

    fn is_last(&self) -> bool {
        match self.more.as_deref() {
            Some(More { ahead: Some(ahead), ended, over, .. }) => {
                *ended
                    && *over
                    && ahead.file.is_empty()
                    && (ahead.front.is_none() || ahead.memory.is_empty())
                    && self.body.data().is_empty()
                    && self.body.trailers().is_none()
            }
            Some(_) | None => self.body.is_last(),
        }
    }

    fn ends_with_client(&self) -> bool {
        // What is kept the next one may want.
        let kept = self.more.as_ref().is_some_and(|more| more.store.is_some());
        !kept && self.body.ends_with_client()
    }

    fn trailers(&self) -> Option<&Headers> {
        self.body.trailers()
    }

    fn finish(&mut self, x: &mut Exchange, complete: bool) {
        let Some(more) = &mut self.more else { return self.body.finish(x, complete) };
        more.ahead = None;
        match more.store.take() {
            Some(store) if more.over => {
                if !more.ended {
                    self.body.finish(x, true);
                }
                x.spawn_work(store.commit());
            }
            Some(store) if !self.body.has_failed() => {
                let (mut part, mut body) = (x.remainder(), self.body.take());
                part.upstream_uri.clone_from(&x.upstream_uri);
                let back = x.upstream_states.get_mut(mem::take(&mut body.state)).map(|state| {
                    let (lent, back) = state.lend();
                    part.upstream_states.push(lent);
                    // For who does not wait for the rest.
                    body.account(state);
                    back
                });
                x.spawn_work(drain(body, store, more.stored, part, back));
            }
            Some(_) | None if !more.ended => self.body.finish(x, complete),
            Some(_) | None => {}
        }
    }
}

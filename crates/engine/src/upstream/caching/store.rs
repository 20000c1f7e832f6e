//! An answer on its way into the cache, while it goes to the client: files are written off the reactor, and a client that
//! leaves does not keep the rest from being fetched.

use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use weir_ir::program::PathSpec;
use weir_syntax::Level;

use crate::cache::{Hold, Writing};
use crate::errorlog::Log;
use crate::http::{Exchange, Headers, Source};
use crate::upstream::body::UpstreamBody;

/// Bytes that are written at once, and that may wait for it.
const PIECE: usize = 64 * 1024;
const MOST: usize = 4 * PIECE;

/// The file of an answer in the making.
pub(in crate::upstream) struct Store {
    hold: Hold,
    path: Arc<str>,
    temp: Option<Arc<PathSpec>>,
    pending: Vec<u8>,
    state: State,
    log: Log,
}

enum State {
    /// Not made yet.
    None,
    Open(Writing),
    Busy(JoinHandle<io::Result<Writing>>),
    Failed,
}

impl Store {
    /// What stands before the body comes first.
    pub fn new(hold: Hold, path: Arc<str>, temp: Option<Arc<PathSpec>>, start: Vec<u8>, log: Log) -> Self {
        Self { hold, path, temp, pending: start, state: State::None, log }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        if !matches!(self.state, State::Failed) {
            self.pending.extend_from_slice(bytes);
        }
    }

    fn fail(&mut self, error: &io::Error) {
        let message = format_args!("writing the cache file \"{}\" failed", self.path);
        self.log.write_error(Level::Crit, error, message);
        self.state = State::Failed;
        self.pending = Vec::new();
    }

    /// Waits until more may be pushed.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let State::Busy(write) = &mut self.state {
                match Pin::new(write).poll(cx) {
                    Poll::Pending if self.pending.len() < MOST => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(Ok(writing))) => self.state = State::Open(writing),
                    Poll::Ready(Ok(Err(error))) => self.fail(&error),
                    Poll::Ready(Err(error)) => self.fail(&error.into()),
                }
            }
            if matches!(self.state, State::Failed) || self.pending.len() < PIECE {
                return Poll::Ready(());
            }
            self.write();
        }
    }

    /// Writes what is pending, on a thread that may block.
    fn write(&mut self) {
        let bytes = mem::take(&mut self.pending);
        let (path, temp) = (Arc::clone(&self.path), self.temp.clone());
        let writing = match mem::replace(&mut self.state, State::Failed) {
            State::Open(writing) => Some(writing),
            State::None | State::Busy(_) | State::Failed => None,
        };
        self.state = State::Busy(spawn_blocking(move || {
            let mut writing = writing.map_or_else(|| Writing::create(temp.as_deref(), &path), Ok)?;
            writing.write(&bytes)?;
            Ok(writing)
        }));
    }

    /// All of the answer was pushed: the file takes its place.
    async fn commit(mut self) {
        poll_fn(|cx| self.poll_room(cx)).await;
        if let State::None | State::Open(_) = self.state {
            self.write();
        }
        // What was pushed while something was written is written then.
        let written = loop {
            let State::Busy(write) = &mut self.state else { return };
            match write.await {
                Ok(Ok(writing)) if self.pending.is_empty() => break writing,
                Ok(Ok(writing)) => {
                    self.state = State::Open(writing);
                    self.write();
                }
                Ok(Err(error)) => return self.fail(&error),
                Err(error) => return self.fail(&error.into()),
            }
        };
        let path = Arc::clone(&self.path);
        match spawn_blocking(move || written.place(&path)).await {
            Ok(Ok(stored)) => self.hold.stored(stored),
            Ok(Err(error)) => self.fail(&error),
            Err(error) => self.fail(&error.into()),
        }
    }
}

/// A body that goes to the client and into a file.
pub(in crate::upstream) struct Fill {
    body: UpstreamBody,
    store: Option<Store>,
    /// Of the bytes that are ready: how many the file has.
    stored: usize,
    over: bool,
}

impl Fill {
    pub fn new(body: UpstreamBody, store: Store) -> Self {
        Self { body, store: Some(store), stored: 0, over: false }
    }
}

impl Source for Fill {
    fn poll_ready(&mut self, x: &mut Exchange, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if let Some(store) = &mut self.store {
            ready!(store.poll_room(cx));
        }
        let more = ready!(self.body.poll_ready(x, cx))?;
        self.over = !more;
        let data = self.body.data();
        if let Some(store) = self.store.as_mut().filter(|_| self.stored < data.len()) {
            store.push(&data[self.stored..]);
            self.stored = data.len();
        }
        Poll::Ready(Ok(more))
    }

    fn data(&self) -> &[u8] {
        self.body.data()
    }

    fn consume(&mut self, n: usize) {
        self.stored -= n;
        self.body.consume(n);
    }

    fn is_last(&self) -> bool {
        self.body.is_last()
    }

    fn ends_with_client(&self) -> bool {
        // The next one may want it.
        false
    }

    fn trailers(&self) -> Option<&Headers> {
        self.body.trailers()
    }

    fn finish(&mut self, x: &mut Exchange, complete: bool) {
        let Some(store) = self.store.take() else { return };
        if self.body.has_failed() {
            self.body.finish(x, complete);
            return;
        }
        if self.over {
            self.body.finish(x, true);
            x.spawn_work(store.commit());
            return;
        }
        let (body, stored, over) = (self.body.take(), self.stored, false);
        let rest = Fill { body, store: Some(store), stored, over };
        let part = x.remainder();
        x.spawn_work(rest.drain(part));
    }
}

impl Fill {
    /// Fetches the rest for the file alone.
    async fn drain(mut self, mut part: Exchange) {
        let whole = poll_fn(|cx| {
            loop {
                match ready!(self.poll_ready(&mut part, cx)) {
                    Ok(true) => self.consume(self.data().len()),
                    Ok(false) => return Poll::Ready(true),
                    Err(_) => return Poll::Ready(false),
                }
            }
        });
        let whole = whole.await;
        self.body.finish(&mut part, whole);
        if let Some(store) = self.store.take().filter(|_| whole) {
            store.commit().await;
        }
    }
}

impl Exchange {
    /// Runs something beside this request, which does not end before it.
    pub(in crate::upstream) fn spawn_work(&mut self, work: impl Future<Output = ()> + 'static) {
        let (over, ended) = oneshot::channel();
        let idle = self.reactor.register_idle();
        self.background.push(ended);
        self.reactor.spawn(async move {
            idle.bounded(pin!(work)).await;
            // Whoever waits for it may be gone.
            let _ = over.send(());
        });
    }

    /// An answer that is all there takes its place in the cache.
    pub(in crate::upstream) fn store(&mut self, mut store: Store, body: &[u8]) {
        store.push(body);
        self.spawn_work(store.commit());
    }
}

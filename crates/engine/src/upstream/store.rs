//! Answers that are kept while they go to the client: in a cache, or as a file of their own (`…_store`).

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;

use nix::errno::Errno;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use weir_syntax::Level;

use super::spool::Spool;
use crate::cache::{self, Hold};
use crate::errorlog::{self, Log};
use crate::files::{Failed, Moving};
use crate::http::Exchange;
use crate::temp_file::TempFile;

/// An answer on its way into its file.
pub(super) struct Store {
    pub spool: Spool,
    placing: Placing,
}

/// Where a file goes that is whole.
pub(super) enum Shelf {
    Cache {
        hold: Hold,
        path: Arc<str>,
    },
    /// From where is not known yet.
    File(Moving),
}

/// What becomes of the file once it is whole.
pub(super) struct Placing {
    shelf: Shelf,
    voice: Voice,
}

/// Tells what went wrong when the request may be gone.
struct Voice {
    log: Log,
    /// Of the request.
    context: Box<[u8]>,
}

impl Voice {
    fn tell(&self, failed: &Failed) {
        let errno = failed.error.raw_os_error().map(Errno::from_raw);
        self.log.write_with(Level::Crit, errno, failed, |line| {
            line.bytes(b" while reading upstream");
            line.bytes(&self.context);
        });
    }
}

impl Store {
    pub fn new(x: &Exchange, spool: Spool, shelf: Shelf) -> Self {
        let log = x.log_handle().of_connection(&x.connection.log);
        let context = errorlog::context(|line| x.write_context(line));
        Self { spool, placing: Placing { shelf, voice: Voice { log, context } } }
    }

    /// Tells why it will not be kept.
    pub fn fail(&self, failed: &Failed) {
        self.placing.voice.tell(failed);
    }

    /// All of the answer is here, and is told so before any client can have all of it.
    pub fn whole(&mut self) {
        if let Shelf::Cache { hold, .. } = &mut self.placing.shelf {
            hold.whole();
        }
    }

    pub fn split(self) -> (Spool, Placing) {
        (self.spool, self.placing)
    }

    /// All of the answer was pushed: the file takes its place.
    pub async fn commit(mut self) {
        match poll_fn(|cx| self.spool.poll_written(cx)).await {
            Ok(file) => self.placing.run(file).await,
            Err(failed) => self.fail(&failed),
        }
    }
}

impl Placing {
    pub async fn run(self, file: Arc<TempFile>) {
        let placed = match self.shelf {
            Shelf::Cache { hold, path } => {
                let placed = spawn_blocking(move || cache::place(&file, &path)).await;
                placed.map(|placed| placed.map(|stored| hold.stored(stored)))
            }
            Shelf::File(moving) => spawn_blocking(move || file.place(moving)).await,
        };
        // A thread that died has said why.
        if let Ok(Err(failed)) = placed {
            self.voice.tell(&failed);
        }
    }
}

impl Exchange {
    /// Runs something beside this request, which does not end before it.
    pub(super) fn spawn_work(&mut self, work: impl Future<Output = ()> + 'static) {
        let (over, ended) = oneshot::channel();
        let idle = self.reactor.register_idle();
        self.background.push(ended);
        self.reactor.spawn(async move {
            idle.bounded(pin!(work)).await;
            // Whoever waits for it may be gone.
            let _ = over.send(());
        });
    }

    /// An answer that is all there takes its place.
    pub(super) fn store(&mut self, mut store: Store, body: &[u8]) {
        store.spool.push(body);
        store.whole();
        self.spawn_work(store.commit());
    }
}

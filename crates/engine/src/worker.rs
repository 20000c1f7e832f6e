//! The threads of a worker: each a reactor with its own listening sockets, all on the same generation.
//!
//! The first reactor is on the thread that asks for it, so that a worker with one has no other thread: the kernel then
//! spares every system call a reference count on the descriptor's file.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

use crate::errorlog::Level;
use crate::generation::Generation;
use crate::http::accept;
use crate::io::{Address, Listener, Severity, accept_loop, given_back};
use crate::memory::{self, Ebb};
use crate::reactor::{Counters, Reactor};
use crate::timer;
use crate::upstream::{self, Upstream};

/// Milliseconds that a listener rests when no descriptor is left (nginx: `accept_mutex_delay`).
const ACCEPT_PAUSE: u64 = 500;
/// Milliseconds between two looks at the idle upstream connections, and at what memory is to spare.
const SWEEP: u64 = 1_000;

/// A listening socket and the address that it was bound to. Several sockets of one address keep their order over
/// all generations.
#[derive(Clone, Debug)]
pub struct ListeningSocket {
    pub address: Address,
    pub fd: Arc<OwnedFd>,
}

/// What a thread is told.
enum Command {
    Publish { generation: Arc<Generation>, listeners: Vec<(Key, Arc<OwnedFd>)>, done: oneshot::Sender<()> },
    Quit,
}

/// A socket among those of its address.
type Key = (Address, usize);

/// The threads, steered from the worker's main thread.
pub struct Worker {
    threads: Vec<Thread>,
    generation: Option<Arc<Generation>>,
    counters: Arc<Counters>,
}

struct Thread {
    commands: mpsc::UnboundedSender<Command>,
    runs: Runs,
}

/// Where a reactor is.
enum Runs {
    Here(tokio::task::JoinHandle<()>),
    Elsewhere(std::thread::JoinHandle<()>),
}

impl Default for Worker {
    fn default() -> Self {
        Self::new()
    }
}

impl Worker {
    /// A worker without threads, which serves nothing yet.
    pub fn new() -> Self {
        Self { threads: vec![], generation: None, counters: Arc::default() }
    }

    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Serves by this generation on these sockets, with `threads` threads at least; returns when every thread does.
    /// Threads beyond that number keep their connections and take no new ones.
    ///
    /// To be called on a [`timer::runtime`], which has the first reactor from then on.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub async fn publish(
        &mut self,
        generation: &Arc<Generation>,
        sockets: &[ListeningSocket],
        threads: usize,
    ) -> io::Result<()> {
        let threads = threads.max(1);
        while self.threads.len() < threads {
            self.threads.push(start(self.threads.len(), Arc::clone(generation), Arc::clone(&self.counters))?);
        }
        let mut shares: Vec<Vec<(Key, Arc<OwnedFd>)>> = vec![vec![]; self.threads.len()];
        let mut counted: HashMap<&Address, usize> = HashMap::new();
        for socket in sockets {
            let place = counted.entry(&socket.address).or_default();
            shares[*place % threads].push(((socket.address.clone(), *place), Arc::clone(&socket.fd)));
            *place += 1;
        }
        if let Some(before) = self.generation.replace(Arc::clone(generation)) {
            let same =
                |u: &Upstream| generation.upstreams.iter().find(|g| g.name == u.name && g.port == u.port);
            upstream::succeed(&before.upstreams, same);
            self.counters.depart();
        }
        let mut waiting = vec![];
        for (thread, listeners) in self.threads.iter().zip(shares) {
            let (done, told) = oneshot::channel();
            let command = Command::Publish { generation: Arc::clone(generation), listeners, done };
            if thread.commands.send(command).is_ok() {
                waiting.push(told);
            }
        }
        for zone in &generation.caches {
            zone.publish();
        }
        for told in waiting {
            // A thread that ended has nothing to serve any more.
            let _ = told.await;
        }
        Ok(())
    }

    /// Takes no new connection or request and waits until all that is open has ended.
    pub async fn quit(self) {
        for thread in &self.threads {
            let _ = thread.commands.send(Command::Quit);
        }
        let mut elsewhere = vec![];
        for thread in self.threads {
            match thread.runs {
                // A reactor that broke has nothing to wait for.
                Runs::Here(task) => drop(task.await),
                Runs::Elsewhere(handle) => elsewhere.push(handle),
            }
        }
        if elsewhere.is_empty() {
            return;
        }
        let (done, all) = oneshot::channel();
        // Joining blocks, so it has a thread of its own.
        let joined = std::thread::Builder::new().name("join".into()).spawn(move || {
            for handle in elsewhere {
                let _ = handle.join();
            }
            let _ = done.send(());
        });
        if joined.is_ok() {
            let _ = all.await;
        }
    }
}

fn start(index: usize, generation: Arc<Generation>, counters: Arc<Counters>) -> io::Result<Thread> {
    let (commands, received) = mpsc::unbounded_channel();
    let runs = if index == 0 {
        Runs::Here(tokio::task::spawn_local(react(generation, counters, received)))
    } else {
        let name = format!("reactor {index}");
        // A runtime cannot leave its thread, so its descriptors are asked for there.
        let (told, made) = std::sync::mpsc::channel();
        let handle = std::thread::Builder::new().name(name).spawn(move || match timer::runtime() {
            Ok(runtime) => {
                let _ = told.send(Ok(()));
                runtime.block_on(react(generation, counters, received));
            }
            Err(error) => drop(told.send(Err(error))),
        })?;
        made.recv().map_err(io::Error::other)??;
        Runs::Elsewhere(handle)
    };
    Ok(Thread { commands, runs })
}

/// The life of a reactor.
async fn react(
    generation: Arc<Generation>,
    counters: Arc<Counters>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let reactor = Reactor::new(generation, counters);
    let driver = tokio::task::spawn_local(reactor.timers().clone().drive());
    let sweep = tokio::task::spawn_local(sweep(Rc::clone(&reactor)));
    let mut listeners = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Publish { generation, listeners: sockets, done } => {
                reactor.publish(generation);
                listen(&reactor, &mut listeners, sockets);
                let _ = done.send(());
            }
            Command::Quit => {
                listeners.clear();
                reactor.quit();
                break;
            }
        }
    }
    reactor.drained().await;
    sweep.abort();
    driver.abort();
}

/// A listener's task, ended when it is dropped.
struct Listening(tokio::task::JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Goes on with the listeners that stay, starts new ones, ends the others.
fn listen(reactor: &Rc<Reactor>, listeners: &mut HashMap<Key, Listening>, sockets: Vec<(Key, Arc<OwnedFd>)>) {
    listeners.retain(|key, _| sockets.iter().any(|(k, _)| k == key));
    for (key, fd) in sockets {
        if listeners.contains_key(&key) {
            continue;
        }
        let listener = match open(&key.0, &fd) {
            Ok(listener) => listener,
            Err(error) => {
                let log = &reactor.current().log;
                log.write_error(Level::Alert, &error, format_args!("listening on {} failed", key.0));
                continue;
            }
        };
        let task = tokio::task::spawn_local(accept_all(Rc::clone(reactor), key.0.clone(), listener));
        listeners.insert(key, Listening(task));
    }
}

fn open(address: &Address, fd: &OwnedFd) -> io::Result<Listener> {
    let fd = fd.try_clone()?;
    match address {
        Address::Ip(_) => Listener::tcp(TcpListener::from(fd)),
        Address::Unix(_) => Listener::unix(UnixListener::from(fd)),
    }
}

async fn accept_all(reactor: Rc<Reactor>, address: Address, listener: Listener) {
    let address = Arc::new(address);
    let timers = reactor.timers().clone();
    accept_loop(
        &listener,
        &timers,
        ACCEPT_PAUSE,
        |socket, peer| {
            reactor.counts.accepted.up();
            let generation = reactor.current();
            if reactor.tasks() as u64 >= generation.worker_connections {
                let limit = generation.worker_connections;
                generation.log.write(Level::Alert, format_args!("{limit} worker_connections are not enough"));
                return;
            }
            reactor.counts.handled.up();
            reactor.spawn(accept::serve_accepted(Rc::clone(&reactor), Arc::clone(&address), socket, peer));
        },
        |severity, error| {
            let level = match severity {
                Severity::Err => Level::Error,
                Severity::Crit => Level::Crit,
                Severity::Alert => Level::Alert,
            };
            reactor.current().log.write_error(level, error, "accept4() failed");
        },
    )
    .await;
}

async fn sweep(reactor: Rc<Reactor>) {
    let mut ebb = Ebb::default();
    loop {
        reactor.timers().sleep(SWEEP).await;
        let generation = reactor.current();
        reactor.pools.sweep(reactor.clock().now_ms());
        reactor.pools.retain_live(&generation);
        reactor.look_for_departures();
        if ebb.is_due(given_back()) {
            spawn_blocking(memory::trim);
        }
    }
}

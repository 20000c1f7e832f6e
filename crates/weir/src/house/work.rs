//! The life of a worker: it builds generations of what it is sent and serves by the newest.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::LocalRuntime;
use weir_engine::errorlog::{Level, Log, LogFile, Output, Target, open_for_append};
use weir_engine::generation::{Generation, Resources};
use weir_engine::timer;
use weir_engine::worker::{ListeningSocket, Worker};
use weir_ir::core::Main;
use weir_syntax::render;

use super::site::{Configuration, stderr_log, threads};
use super::snapshot::Snapshot;
use super::world::Observed;
use super::{installed, read};
use crate::master::{Prepared, Site};
use crate::message::{FromWorker, PassedLog, PassedSocket};
use crate::privileges::FATAL_EXIT;
use crate::sockets::{Address, Listeners, described};
use crate::worker::{self, Answers, Order, Orders};
use crate::{daemon, pidfile, spawn, title};

/// A worker with a master; gives back the exit code.
pub fn work(program: &str) -> i32 {
    let log = Log::new(program, vec![Output { level: Level::Warn, target: Target::Stderr }]);
    let Some(runtime) = runtime(&log) else { return 1 };
    runtime.block_on(async {
        let attached = match spawn::take_channel() {
            Ok(channel) => worker::attach(channel, log.clone()).await,
            Err(error) => Err(error),
        };
        let (identity, orders, answers) = match attached {
            Ok(attached) => attached,
            Err(error) => {
                log.write_error(Level::Alert, &error, "no master to work for");
                return FATAL_EXIT;
            }
        };
        if identity.assume(&log).is_err() {
            return FATAL_EXIT;
        }
        let mut serving = Serving::new(program, log);
        serving.obey(orders, Some(answers), None).await
    })
}

/// `master_process off`: the same without a master; gives back the exit code.
pub fn alone(prepared: Prepared, site: Configuration, program: &str) -> i32 {
    let log = prepared.log.clone();
    let Some(runtime) = runtime(&log) else { return 1 };
    runtime.block_on(async {
        let mut orders = match Orders::without_master(log.clone()) {
            Ok(orders) => orders,
            Err(error) => {
                log.write_error(Level::Emerg, &error, "signals cannot be caught");
                return 1;
            }
        };
        let mut serving = Serving::new(program, log);
        let (sockets, logs) = (prepared.passed_sockets(), prepared.passed_logs());
        if let Err(reason) = serving.load(1, &prepared.plan.snapshot, sockets, logs).await {
            serving.log.write(Level::Emerg, String::from_utf8_lossy(&reason));
            return 1;
        }
        orders.log_to(serving.log.clone());
        let mut own = Own { site: Arc::new(site), current: prepared, generation: 1 };
        let code = serving.obey(orders, None, Some(&mut own)).await;
        own.close_listeners();
        pidfile::remove(&own.current.plan.pid, &serving.log);
        code
    })
}

fn runtime(log: &Log) -> Option<LocalRuntime> {
    match timer::runtime() {
        Ok(runtime) => Some(runtime),
        Err(error) => {
            log.write_error(Level::Emerg, &error, "the reactor cannot be made");
            None
        }
    }
}

/// What a worker without a master needs to be its own.
struct Own {
    site: Arc<Configuration>,
    current: Prepared,
    generation: u64,
}

impl Own {
    /// Nobody else holds the listening sockets: now nothing connects any more.
    fn close_listeners(&mut self) {
        let listeners = std::mem::take(&mut self.current.listeners);
        listeners.unlink_except(&Listeners::default(), &self.current.log);
    }
}

struct Serving {
    program: String,
    worker: Worker,
    current: Option<Arc<Generation>>,
    /// Open logs by path; a path keeps its `LogFile`, with what is held back for it, over generations.
    files: HashMap<Arc<str>, Arc<LogFile>>,
    /// The one of them that standard error goes to.
    stderr_log: Option<Arc<LogFile>>,
    log: Log,
    /// Where the panic hook finds the log.
    panics: Arc<Mutex<Log>>,
}

impl Serving {
    fn new(program: &str, log: Log) -> Self {
        let panics = Arc::new(Mutex::new(log.clone()));
        let hook = Arc::clone(&panics);
        std::panic::set_hook(Box::new(move |panic| {
            // A connection's task ends by itself; this tells why.
            let log = hook.lock().unwrap_or_else(PoisonError::into_inner).clone();
            log.write(Level::Alert, format_args!("{panic}"));
        }));
        Self {
            program: program.into(),
            worker: Worker::new(),
            current: None,
            files: HashMap::new(),
            stderr_log: None,
            log,
            panics,
        }
    }

    /// Follows orders to the end, which loses no line that a log holds back.
    async fn obey(&mut self, orders: Orders, answers: Option<Answers>, own: Option<&mut Own>) -> i32 {
        self.follow(orders, answers, own).await;
        self.files.values().for_each(|file| file.flush());
        0
    }

    async fn follow(&mut self, mut orders: Orders, mut answers: Option<Answers>, mut own: Option<&mut Own>) {
        loop {
            match orders.next().await {
                Order::Load { generation, snapshot, sockets, logs } => {
                    let answer = match self.load(generation, &snapshot, sockets, logs).await {
                        Ok(()) => FromWorker::Ready { generation },
                        Err(diagnostics) => FromWorker::Refused { generation, diagnostics },
                    };
                    orders.log_to(self.log.clone());
                    if let Some(answers) = &mut answers {
                        answers.say(answer).await;
                    }
                }
                Order::Reload => {
                    if let Some(own) = &mut own {
                        self.reload(own).await;
                        orders.log_to(self.log.clone());
                    }
                }
                Order::Reopen(logs) => self.reopen(logs, own.as_deref()),
                Order::Quit => {
                    if let Some(own) = &mut own {
                        own.close_listeners();
                    }
                    return self.quit(orders, own.as_deref()).await;
                }
                Order::Terminate => {
                    self.log.write(Level::Notice, "exit");
                    return;
                }
            }
        }
    }

    /// Builds a generation and serves by it.
    async fn load(
        &mut self,
        number: u64,
        snapshot: &Arc<[u8]>,
        sockets: Vec<PassedSocket>,
        logs: Vec<PassedLog>,
    ) -> Result<(), Vec<u8>> {
        let mut files = HashMap::new();
        let mut again = vec![];
        for passed in logs {
            let path: Arc<str> = passed.path.to_string_lossy().into();
            let opened = passed.fd.try_clone().map(File::from);
            let opened = opened.map_err(|error| format!("dup() of a log failed ({error})").into_bytes())?;
            let file = if let Some(file) = self.files.get(&path) {
                again.push((Arc::clone(file), opened));
                Arc::clone(file)
            } else {
                Arc::new(LogFile::new(passed.path, opened))
            };
            files.insert(path, file);
        }
        let resources =
            Resources { files: files.clone(), log: self.log.clone(), before: self.current.clone() };
        let snapshot = Arc::clone(snapshot);
        let Built { generation, threads, stderr_log } = if self.current.is_none() {
            // Nobody waits yet, and a process that never had another thread is spared what libc does for them.
            build(number, &snapshot, resources)?
        } else {
            // The first reactor is on this thread, and its connections are not to wait for a large configuration.
            let built = tokio::task::spawn_blocking(move || build(number, &snapshot, resources)).await;
            built.map_err(|_| b"building the configuration failed unexpectedly".to_vec())??
        };
        let sockets: Vec<_> = sockets.into_iter().filter_map(listening).collect();
        let published = self.worker.publish(&generation, &sockets, threads).await;
        published.map_err(|error| format!("a thread cannot be started ({error})").into_bytes())?;
        // What was under these names before may have been moved away or removed.
        again.into_iter().for_each(|(file, opened)| file.replace(opened));
        self.files = files;
        self.log = generation.log.clone();
        self.stderr_log = stderr_log.and_then(|path| self.files.get(&path).cloned());
        self.redirect_stderr();
        *self.panics.lock().unwrap_or_else(PoisonError::into_inner) = self.log.clone();
        self.current = Some(generation);
        Ok(())
    }

    /// Lets go of the file that standard error was before.
    fn redirect_stderr(&self) {
        if let Some(file) = &self.stderr_log {
            // It was logged if it failed.
            let _ = daemon::redirect_stderr(file, &self.log);
        }
    }

    /// Reads the configuration again without a master's help; what is wrong leaves the present one in place.
    async fn reload(&mut self, own: &mut Own) {
        let log = self.log.clone();
        let site = Arc::clone(&own.site);
        let running = own.current.clone();
        // Reading and compiling would hold up the signals.
        let prepared = tokio::task::spawn_blocking(move || {
            let plan = site.plan(&log, &|| {}).ok()?;
            running.next(plan, &log, None).ok()
        });
        let Ok(Some(prepared)) = prepared.await else { return };
        own.generation += 1;
        let loaded = self
            .load(own.generation, &prepared.plan.snapshot, prepared.passed_sockets(), prepared.passed_logs())
            .await;
        match loaded {
            Ok(()) => {
                let old = std::mem::replace(&mut own.current, prepared);
                old.give_way_to(&own.current);
            }
            Err(reason) => {
                self.log.write(Level::Emerg, String::from_utf8_lossy(&reason));
                prepared.give_way_to(&own.current);
            }
        }
    }

    fn reopen(&self, logs: Option<Vec<PassedLog>>, own: Option<&Own>) {
        self.log.write(Level::Notice, "reopening logs");
        let logs = logs.or_else(|| {
            let own = own?;
            own.current.reopen();
            Some(own.current.passed_logs())
        });
        match logs {
            Some(logs) => {
                for passed in logs {
                    let path = passed.path.to_string_lossy();
                    if let (Some(file), Ok(fd)) = (self.files.get(&*path), passed.fd.try_clone()) {
                        file.replace(File::from(fd));
                    }
                }
            }
            None => {
                for (path, file) in &self.files {
                    match open_for_append(&PathBuf::from(&**path)) {
                        Ok(new) => file.replace(new),
                        Err(error) => {
                            self.log.write_error(
                                Level::Emerg,
                                &error,
                                format_args!("open() \"{path}\" failed"),
                            );
                        }
                    }
                }
            }
        }
        self.redirect_stderr();
    }

    /// Finishes what is open. Being told to stop at once ends that too.
    async fn quit(&mut self, mut orders: Orders, own: Option<&Own>) {
        self.log.write(Level::Notice, "gracefully shutting down");
        title::set(format!("{}: worker process is shutting down", self.program).as_bytes());
        let worker = std::mem::take(&mut self.worker);
        let mut quit = std::pin::pin!(worker.quit());
        loop {
            tokio::select! {
                () = &mut quit => break,
                order = orders.next() => match order {
                    Order::Terminate => break,
                    Order::Reopen(logs) => self.reopen(logs, own),
                    Order::Load { .. } | Order::Reload | Order::Quit => {}
                }
            }
        }
        self.log.write(Level::Notice, "exiting");
        self.log.write(Level::Notice, "exit");
    }
}

/// A generation, and what it wants of the process.
struct Built {
    generation: Arc<Generation>,
    threads: usize,
    stderr_log: Option<Arc<str>>,
}

/// Makes a generation of what the worker was sent.
fn build(number: u64, snapshot: &[u8], resources: Resources) -> Result<Built, Vec<u8>> {
    let snapshot = Snapshot::decode(snapshot).map_err(|_| b"malformed configuration snapshot".to_vec())?;
    let observed =
        Observed::replay(&snapshot.recording).map_err(|_| b"malformed configuration recording".to_vec())?;
    let (ast, program, diagnostics) = read(&snapshot.reading, &observed);
    if let Some(error) = diagnostics.iter().find(|d| d.level <= Level::Error) {
        return Err(render::message(error, &ast.sources));
    }
    let generation = Generation::compile(number, &program, &installed(), resources)
        .map_err(|faults| faults.first().map(|f| f.message.clone()).unwrap_or_default())?;
    Ok(Built {
        generation: Arc::new(generation),
        threads: threads(&program.main.main::<Main>()),
        stderr_log: stderr_log(&program),
    })
}

fn listening(passed: PassedSocket) -> Option<ListeningSocket> {
    let address = match described(&passed.description)? {
        Address::Ip(ip) => weir_ir::address::Address::Ip(ip),
        Address::Unix(path) => weir_ir::address::Address::Unix(path.to_string_lossy().into()),
    };
    Some(ListeningSocket { address, fd: passed.fd })
}

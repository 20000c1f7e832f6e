//! Does what the [`Machine`] decides: signals and channels on a single-threaded runtime, and nothing that the network
//! could reach.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::signal::{Signal as Number, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook_tokio::SignalsInfo;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until};
use weir_engine::errorlog::{Level, Output, Sink, Target};

use super::machine::{Action, Event, Exit, Machine, Signal};
use super::prepared::{Collected, Plan, Prepared, Refused, Site};
use crate::channel;
use crate::message::{FromWorker, ToWorker};
use crate::sockets::Listeners;
use crate::spawn::{self, Variables};
use crate::verdict::Verdicts;
use crate::{pidfile, signals, title};

/// What a master needs to know about how it was started.
pub struct Start<S> {
    pub site: Arc<S>,
    /// The first generation, open.
    pub first: Prepared,
    /// The program's name as it was called.
    pub program: String,
    /// The whole command line, for the next executable.
    pub arguments: Vec<Vec<u8>>,
    /// The environment at start.
    pub variables: Variables,
    /// In the background, or started by an upgrade.
    pub daemonized: bool,
    /// The process that started this one, before it went into the background.
    pub parent: i32,
    /// Started by an upgrade, with sockets of the master before.
    pub inherited: bool,
}

/// Runs until a signal ends it; the pid file is gone by then, and the process should exit with 0.
///
/// The pid file is written by the caller, who can still say on the terminal that it failed, and who should let signals
/// wait before with [`signals::hold`].
///
/// # Errors
/// If there is no runtime or signals cannot be caught.
pub fn run<S: Site>(start: Start<S>) -> io::Result<()> {
    title::set(&title::master(&start.program, &start.arguments));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async move {
        let signals = signals::catch()?;
        let (send, events) = unbounded_channel();
        let mut master = Master {
            machine: Machine::new(start.daemonized),
            current: start.first,
            pending: None,
            workers: HashMap::new(),
            verdicts: None,
            alarm: None,
            listening: true,
            send,
            site: start.site,
            program: start.program,
            arguments: start.arguments,
            variables: start.variables,
            parent: start.parent,
            inherited: start.inherited,
        };
        match Verdicts::listen() {
            Ok(verdicts) => master.verdicts = Some(verdicts),
            Err(error) => {
                master.current.log.write_error(Level::Info, &error, "no verdicts for -s reload");
            }
        }
        master.current.log.started();
        master.serve(signals, events).await;
        Ok(())
    });
    // A configuration that is still being read, perhaps waiting for a name server, must not hold up the end.
    runtime.shutdown_background();
    result
}

/// What reaches the master from its own tasks.
enum News {
    Event(Event),
    Planned { generation: u64, result: Result<Box<Prepared>, Vec<u8>> },
}

struct Master<S> {
    machine: Machine,
    /// What new workers get.
    current: Prepared,
    /// What a reload is about to make current.
    pending: Option<(u64, Prepared)>,
    workers: HashMap<i32, UnboundedSender<ToWorker>>,
    verdicts: Option<Verdicts>,
    alarm: Option<Instant>,
    /// Whether the listening sockets are still this master's.
    listening: bool,
    send: UnboundedSender<News>,
    site: Arc<S>,
    program: String,
    arguments: Vec<Vec<u8>>,
    variables: Variables,
    parent: i32,
    inherited: bool,
}

/// The master has nothing left to do.
struct Done;

impl<S: Site> Master<S> {
    async fn serve(&mut self, mut signals: SignalsInfo<WithOrigin>, mut news: UnboundedReceiver<News>) {
        let first = self.machine.start();
        let Err(Done) = self.story(first, &mut signals, &mut news).await;
    }

    async fn story(
        &mut self,
        first: Vec<Action>,
        signals: &mut SignalsInfo<WithOrigin>,
        news: &mut UnboundedReceiver<News>,
    ) -> Result<Infallible, Done> {
        self.act(first)?;
        loop {
            let event = tokio::select! {
                signal = signals::next(signals) => match self.signalled(signal) {
                    Some(event) => event,
                    None => continue,
                },
                // The sender is in `self`, so there is always a next one.
                Some(news) = news.recv() => self.told(news),
                () = expired(self.alarm) => {
                    self.alarm = None;
                    Event::Tick
                }
            };
            let actions = self.machine.step(event);
            self.act(actions)?;
        }
    }

    fn signalled(&mut self, origin: signal_hook::low_level::siginfo::Origin) -> Option<Event> {
        let signal = Signal::of_number(origin.signal)?;
        let sender = origin.process.map(|process| process.pid).filter(|&pid| pid != 0);
        if signal == Signal::Reload
            && !self.machine.is_reloading()
            && let Some(verdicts) = &mut self.verdicts
        {
            verdicts.gather();
        }
        let parent_alive = getppid().as_raw() == self.parent;
        Some(Event::Signal { signal, sender, parent_alive })
    }

    fn told(&mut self, news: News) -> Event {
        match news {
            News::Event(event) => {
                if let Event::Deaf { pid } = event {
                    self.workers.remove(&pid);
                }
                if let Event::Refused { diagnostics, .. } = &event {
                    for line in String::from_utf8_lossy(diagnostics).lines() {
                        self.current.log.write(Level::Emerg, line);
                    }
                }
                event
            }
            News::Planned { generation, result: Err(diagnostics) } => {
                Event::PlanFailed { generation, diagnostics }
            }
            News::Planned { generation, result: Ok(prepared) } => {
                let replace = !prepared.same_process(&self.current);
                self.pending = Some((generation, *prepared));
                Event::Planned { generation, replace }
            }
        }
    }

    /// Does all, and all that follows at once from it.
    fn act(&mut self, actions: Vec<Action>) -> Result<(), Done> {
        let mut queue = std::collections::VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            if let Some(event) = self.act_once(action)? {
                let next = self.machine.step(event);
                next.into_iter().rev().for_each(|action| queue.push_front(action));
            }
        }
        Ok(())
    }

    fn act_once(&mut self, action: Action) -> Result<Option<Event>, Done> {
        match action {
            Action::Log(level, text) => self.current.log.write(level, text),
            Action::Plan { generation } => self.plan(generation),
            Action::Load { pid, generation } => {
                if let Some(load) = self.prepared(generation).map(|prepared| load(generation, prepared)) {
                    self.tell(pid, load);
                }
            }
            Action::Spawn { generation } => return Ok(Some(self.spawn(generation))),
            Action::Quit { pid } => {
                if !self.tell(pid, ToWorker::Quit) {
                    self.kill(pid, Number::SIGQUIT);
                }
            }
            Action::Terminate { pid } => {
                if !self.tell(pid, ToWorker::Terminate) {
                    self.kill(pid, Number::SIGTERM);
                }
            }
            Action::Kill { pid } => self.kill(pid, Number::SIGKILL),
            Action::Reap => self.reap(),
            Action::CloseListeners => self.close_listeners(),
            Action::Commit { generation } => self.commit(generation),
            Action::Discard { generation } => self.discard(generation),
            Action::Verdict(verdict) => {
                if let Some(verdicts) = &mut self.verdicts {
                    verdicts.deliver(&verdict);
                }
            }
            Action::Reopen => {
                self.current.reopen();
                let logs = self.current.passed_logs();
                for worker in self.workers.values() {
                    // A worker that is gone is noticed by its exit.
                    let _ = worker.send(ToWorker::Reopen { logs: logs.clone() });
                }
            }
            Action::Upgrade => return Ok(Some(self.upgrade())),
            Action::RestorePidFile => self.restore_pid_file("after the new binary process", "exited"),
            Action::Arm(wait) => self.alarm = Some(Instant::now() + wait),
            Action::Exit => {
                pidfile::remove(&self.current.pid_file(self.machine.upgrading()), &self.current.log);
                self.current.log.write(Level::Notice, "exit");
                self.close_listeners();
                return Err(Done);
            }
        }
        Ok(None)
    }

    fn prepared(&self, generation: u64) -> Option<&Prepared> {
        match &self.pending {
            Some((pending, prepared)) if *pending == generation => Some(prepared),
            // Whatever is not on its way is the one that is served; there is no third.
            _ => Some(&self.current),
        }
    }

    /// Reads the configuration on another thread, since names may have to be resolved and addresses waited for.
    fn plan(&mut self, generation: u64) {
        if let Some(verdicts) = &mut self.verdicts {
            verdicts.gather();
        }
        let collected = Arc::new(Collected::new(&self.program));
        let mut outputs = self.current.log.outputs().to_vec();
        outputs.push(Output { level: Level::Warn, target: Target::Sink(collected.clone()) });
        let log = self.current.log.with_outputs(outputs);
        let (site, send) = (self.site.clone(), self.send.clone());
        let current = self.current.clone();
        tokio::task::spawn_blocking(move || {
            let open = |plan: Plan| {
                let watch = Some(collected.clone() as Arc<dyn Sink>);
                current.next(plan, &log, watch).map_err(|_| Refused::default())
            };
            let result = site.plan(&log, &|| {}).and_then(open).map(Box::new);
            let result = result.map_err(|refused| [collected.take(), refused.explanation].concat());
            // Nobody listens only when the master is gone.
            let _ = send.send(News::Planned { generation, result });
        });
    }

    fn spawn(&mut self, generation: u64) -> Event {
        let failed = Event::SpawnFailed { generation };
        let Some(prepared) = self.prepared(generation) else { return failed };
        let identity = prepared.plan.identity.clone();
        let load = load(generation, prepared);
        let variables = spawn::environment(&prepared.plan.env, &self.variables);
        let (ours, theirs) = match channel::pair() {
            Ok(pair) => pair,
            Err(error) => {
                let text = "socketpair() failed while spawning \"worker process\"";
                self.current.log.write_error(Level::Alert, &error, text);
                return failed;
            }
        };
        let spawned = spawn::worker(&self.program, &variables, theirs)
            .and_then(|pid| channel::open(ours).map(|halves| (pid, halves)));
        let (pid, (sender, receiver)) = match spawned {
            Ok(spawned) => spawned,
            Err(error) => {
                let text = "fork() failed while spawning \"worker process\"";
                self.current.log.write_error(Level::Alert, &error, text);
                return failed;
            }
        };
        let (orders, queue) = unbounded_channel();
        tokio::spawn(dictate(sender, queue));
        tokio::spawn(listen(pid, receiver, self.send.clone()));
        self.workers.insert(pid, orders);
        self.tell(pid, ToWorker::Start(identity));
        self.tell(pid, load);
        Event::Spawned { pid, generation }
    }

    /// Whether the worker still listens.
    fn tell(&self, pid: i32, message: ToWorker) -> bool {
        self.workers.get(&pid).is_some_and(|worker| worker.send(message).is_ok())
    }

    fn kill(&self, pid: i32, signal: Number) {
        if let Err(error) = kill(Pid::from_raw(pid), signal) {
            let text = format!("kill({pid}, {}) failed", signal as i32);
            self.current.log.write_errno(Level::Alert, error, text);
        }
    }

    fn reap(&mut self) {
        loop {
            let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, core_dumped)) => {
                    (pid, Exit::Signal { number: signal as i32, core_dumped })
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => {
                    self.current.log.write_errno(Level::Alert, error, "waitpid() failed");
                    return;
                }
            };
            let pid = pid.as_raw();
            self.workers.remove(&pid);
            // The sender is in `self`.
            let _ = self.send.send(News::Event(Event::Exited { pid, how }));
        }
    }

    fn commit(&mut self, generation: u64) {
        let Some((_, next)) = self.pending.take_if(|(pending, _)| *pending == generation) else { return };
        let old = std::mem::replace(&mut self.current, next);
        old.give_way_to(&self.current);
        // It was logged if it failed.
        let _ = self.current.stderr_to_log();
        // nginx's sign of a reload that went well is a new worker; here there is none.
        self.current.log.write(Level::Notice, "reconfigured");
    }

    fn discard(&mut self, generation: u64) {
        let Some((_, dropped)) = self.pending.take_if(|(pending, _)| *pending == generation) else { return };
        dropped.give_way_to(&self.current);
    }

    /// Closes the sockets here; the files of unix sockets go too, unless another master listens on them.
    fn close_listeners(&mut self) {
        if !std::mem::take(&mut self.listening) {
            return;
        }
        let shared = self.machine.upgrading() || self.inherited && getppid().as_raw() == self.parent;
        if !shared {
            self.current.listeners.unlink_except(&Listeners::default(), &self.current.log);
        }
        self.current.listeners = Listeners::default();
    }

    fn upgrade(&mut self) -> Event {
        let (name, old) = (self.current.plan.pid.clone(), pidfile::old_name(&self.current.plan.pid));
        let program = String::from_utf8_lossy(self.arguments.first().map_or(b"", Vec::as_slice)).into_owned();
        if let Err(error) = pidfile::rename(&name, &old) {
            let (name, old) = (name.display(), old.display());
            let text =
                format!("rename() {name} to {old} failed before executing new binary process \"{program}\"");
            self.current.log.write_errno(Level::Alert, error, text);
            return Event::UpgradeFailed;
        }
        let variables = spawn::environment(&self.current.plan.env, &self.variables);
        let sockets = self.current.listeners.sockets().cloned();
        let path = self.variables.iter().find(|(name, _)| name == "PATH");
        let path = path.map(|(_, path)| path.clone()).unwrap_or_default();
        match spawn::new_binary(&self.arguments, &variables, &path, sockets) {
            Ok(pid) => Event::Upgraded { pid },
            Err(error) => {
                let text = format!("execve() failed while executing new binary process \"{program}\"");
                self.current.log.write_error(Level::Alert, &error, text);
                self.restore_pid_file("after an attempt to execute new binary process", "");
                Event::UpgradeFailed
            }
        }
    }

    fn restore_pid_file(&self, when: &str, then: &str) {
        let (name, old) = (&self.current.plan.pid, pidfile::old_name(&self.current.plan.pid));
        if let Err(error) = pidfile::rename(&old, name) {
            let program = String::from_utf8_lossy(self.arguments.first().map_or(b"", Vec::as_slice));
            let text = format!(
                "rename() {} back to {} failed {when} \"{program}\" {then}",
                old.display(),
                name.display()
            );
            self.current.log.write_errno(Level::Alert, error, text.trim_end());
        }
    }
}

fn load(generation: u64, prepared: &Prepared) -> ToWorker {
    ToWorker::Load {
        generation,
        snapshot: prepared.plan.snapshot.clone(),
        sockets: prepared.passed_sockets(),
        logs: prepared.passed_logs(),
    }
}

/// Sends in order; a worker that does not hear is noticed by [`listen`].
async fn dictate(mut sender: channel::Sender, mut queue: UnboundedReceiver<ToWorker>) {
    while let Some(message) = queue.recv().await {
        if sender.send(&message).await.is_err() {
            return;
        }
    }
}

async fn listen(pid: i32, mut receiver: channel::Receiver, send: UnboundedSender<News>) {
    // A worker that talks nonsense is not listened to any more.
    while let Ok(Some(message)) = receiver.receive().await {
        let event = match message {
            FromWorker::Ready { generation } => Event::Ready { pid, generation },
            FromWorker::Refused { generation, diagnostics } => {
                Event::Refused { pid, generation, diagnostics }
            }
        };
        if send.send(News::Event(event)).is_err() {
            return;
        }
    }
    // Nobody takes it only when the master is gone.
    let _ = send.send(News::Event(Event::Deaf { pid }));
}

async fn expired(alarm: Option<Instant>) {
    match alarm {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

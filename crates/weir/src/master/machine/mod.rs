//! What the master does on a signal, an exit or an answer: a state machine without processes, clocks or files.
//!
//! [`Machine::step`] takes an [`Event`] and says in order what to do; [`super::run`] does it. Messages and their levels
//! are nginx's. Where nginx starts new workers on a reload, the worker here loads the new generation and answers; only
//! what a running process cannot change (its user, limits, environment) still needs another worker.

use std::time::Duration;

use weir_engine::errorlog::Level;

/// The signals that mean something to a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Reload,
    Reopen,
    Upgrade,
    StopAccepting,
    Quit,
    Terminate,
    Interrupt,
    Child,
}

impl Signal {
    pub const ALL: [Signal; 8] = [
        Signal::Reload,
        Signal::Reopen,
        Signal::Upgrade,
        Signal::StopAccepting,
        Signal::Quit,
        Signal::Terminate,
        Signal::Interrupt,
        Signal::Child,
    ];

    pub fn number(self) -> i32 {
        self.number_and_name().0
    }

    pub fn of_number(number: i32) -> Option<Signal> {
        Signal::ALL.into_iter().find(|signal| signal.number() == number)
    }

    fn number_and_name(self) -> (i32, &'static str) {
        use nix::libc;
        match self {
            Signal::Reload => (libc::SIGHUP, "SIGHUP"),
            Signal::Reopen => (libc::SIGUSR1, "SIGUSR1"),
            Signal::Upgrade => (libc::SIGUSR2, "SIGUSR2"),
            Signal::StopAccepting => (libc::SIGWINCH, "SIGWINCH"),
            Signal::Quit => (libc::SIGQUIT, "SIGQUIT"),
            Signal::Terminate => (libc::SIGTERM, "SIGTERM"),
            Signal::Interrupt => (libc::SIGINT, "SIGINT"),
            Signal::Child => (libc::SIGCHLD, "SIGCHLD"),
        }
    }

    /// nginx's line on receiving it; `consequence` starts with a comma or is empty.
    pub fn received(self, sender: Option<i32>, consequence: &str) -> String {
        let (number, name) = self.number_and_name();
        match sender {
            Some(pid) => format!("signal {number} ({name}) received from {pid}{consequence}"),
            None => format!("signal {number} ({name}) received{consequence}"),
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal { number: i32, core_dumped: bool },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `parent_alive`: whether the process that started this master is still its parent, for the upgrade only.
    Signal {
        signal: Signal,
        sender: Option<i32>,
        parent_alive: bool,
    },
    Exited {
        pid: i32,
        how: Exit,
    },
    /// The configuration of a generation was read, and its sockets and logs are open. `replace`: a running worker
    /// cannot become what it asks for.
    Planned {
        generation: u64,
        replace: bool,
    },
    /// It was refused by the master; logged already.
    PlanFailed {
        generation: u64,
        diagnostics: Vec<u8>,
    },
    Spawned {
        pid: i32,
        generation: u64,
    },
    SpawnFailed {
        generation: u64,
    },
    /// A worker serves a generation.
    Ready {
        pid: i32,
        generation: u64,
    },
    /// A worker could not build it.
    Refused {
        pid: i32,
        generation: u64,
        diagnostics: Vec<u8>,
    },
    /// A worker closed its channel: it is about to exit, or it lost its way in it and hears only signals from now on.
    Deaf {
        pid: i32,
    },
    Upgraded {
        pid: i32,
    },
    UpgradeFailed,
    /// The time of [`Action::Arm`] has passed.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Log(Level, String),
    /// Read the configuration; answer with [`Event::Planned`] or [`Event::PlanFailed`].
    Plan {
        generation: u64,
    },
    /// Send a planned generation to a running worker.
    Load {
        pid: i32,
        generation: u64,
    },
    /// Start a worker with a generation; answer with [`Event::Spawned`] or [`Event::SpawnFailed`].
    Spawn {
        generation: u64,
    },
    /// Ask a worker to finish.
    Quit {
        pid: i32,
    },
    /// Ask a worker to stop at once.
    Terminate {
        pid: i32,
    },
    /// Do not ask.
    Kill {
        pid: i32,
    },
    /// Collect the children that ended, as [`Event::Exited`] each.
    Reap,
    /// Close the listening sockets of the master, which keeps them for the next worker only.
    CloseListeners,
    /// The generation is served: forget the one before it.
    Commit {
        generation: u64,
    },
    /// The generation will not be served: forget it.
    Discard {
        generation: u64,
    },
    /// Tell whoever waits for it how the reload ended.
    Verdict(Result<(), Vec<u8>>),
    /// Reopen all log files, here and in the workers.
    Reopen,
    /// Rename the pid file and start the executable anew; answer with [`Event::Upgraded`] or [`Event::UpgradeFailed`].
    Upgrade,
    /// Rename the pid file back.
    RestorePidFile,
    /// Wake up after this time; replaces an earlier one.
    Arm(Duration),
    /// Remove the pid file and exit with 0.
    Exit,
}

/// How long to wait before the next worker when one died before it could serve, so that a worker that cannot start
/// does not occupy a processor.
const RESPAWN_PAUSE: Duration = Duration::from_secs(1);
/// The first of the doubling waits between requests to terminate, and when to stop asking.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LAST_WAIT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    Quitting,
    Terminating { wait: Duration },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Worker {
    pid: i32,
    /// Serves, or has served, a generation.
    ready: bool,
    /// Was asked to end.
    exiting: bool,
    /// Cannot be sent a configuration any more.
    deaf: bool,
    /// Whether another takes its place when it dies.
    respawn: bool,
}

/// A reload on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Loading {
    generation: u64,
    /// Who has it; `None` while it is read and while its worker is started.
    worker: Option<i32>,
}

/// The verdict on a reload whose worker does not answer any more.
const LOST: &[u8] = b"the worker process was lost while loading the configuration\n";

fn shutting_down() -> Action {
    Action::Verdict(Err(b"the server is shutting down\n".to_vec()))
}

/// The master's state.
#[derive(Clone, Debug)]
pub struct Machine {
    stage: Stage,
    workers: Vec<Worker>,
    /// What a new worker gets.
    generation: u64,
    /// The last number given.
    newest: u64,
    loading: Option<Loading>,
    /// Another reload was asked for in the meantime.
    reload_again: bool,
    respawn_later: bool,
    /// WINCH is for daemons only: a terminal sends it for each change of its size.
    daemonized: bool,
    new_binary: Option<i32>,
    /// The workers were told to go, and come back if the new executable fails.
    no_accept: bool,
}

impl Machine {
    /// A master that has planned generation 1.
    pub fn new(daemonized: bool) -> Machine {
        Machine {
            stage: Stage::Running,
            workers: Vec::new(),
            generation: 1,
            newest: 1,
            loading: None,
            reload_again: false,
            respawn_later: false,
            daemonized,
            new_binary: None,
            no_accept: false,
        }
    }

    /// The first things to do.
    pub fn start(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        self.start_worker(&mut actions);
        actions
    }

    /// Whether the pid file has its `.oldbin` name.
    pub fn upgrading(&self) -> bool {
        self.new_binary.is_some()
    }

    /// Whether a reload is on its way.
    pub fn is_reloading(&self) -> bool {
        self.loading.is_some()
    }

    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let then = &mut actions;
        match event {
            Event::Signal { signal, sender, parent_alive } => self.signal(signal, sender, parent_alive, then),
            Event::Exited { pid, how } => self.exited(pid, how, then),
            Event::Planned { generation, replace } => self.planned(generation, replace, then),
            Event::PlanFailed { generation, diagnostics } => {
                if self.is_loading(generation) {
                    self.loaded(Err(diagnostics), then);
                }
            }
            Event::Spawned { pid, generation } => self.spawned(pid, generation, then),
            Event::SpawnFailed { generation } => self.spawn_failed(generation, then),
            Event::Ready { pid, generation } => self.ready(pid, generation, then),
            Event::Refused { pid, generation, diagnostics } => {
                self.refused(pid, generation, diagnostics, then)
            }
            Event::Deaf { pid } => self.deaf(pid, then),
            Event::Upgraded { pid } => {
                then.push(Action::Log(Level::Notice, format!("start new binary process {pid}")));
                self.new_binary = Some(pid);
            }
            Event::UpgradeFailed => {}
            Event::Tick => self.tick(then),
        }
        actions
    }

    fn signal(&mut self, signal: Signal, sender: Option<i32>, parent_alive: bool, then: &mut Vec<Action>) {
        let ignore = signal == Signal::Upgrade && (parent_alive || self.new_binary.is_some());
        let consequence = match signal {
            Signal::Reload => ", reconfiguring",
            Signal::Reopen => ", reopening logs",
            Signal::Upgrade if ignore => ", ignoring",
            Signal::Upgrade => ", changing binary",
            Signal::StopAccepting if self.daemonized => ", stop accepting connections",
            Signal::StopAccepting | Signal::Child => "",
            Signal::Quit => ", shutting down",
            Signal::Terminate | Signal::Interrupt => ", exiting",
        };
        then.push(Action::Log(Level::Notice, signal.received(sender, consequence)));
        match signal {
            Signal::Child => then.push(Action::Reap),
            Signal::Terminate | Signal::Interrupt => self.terminate(then),
            Signal::Quit => self.quit(then),
            Signal::Reopen => {
                if !matches!(self.stage, Stage::Terminating { .. }) {
                    then.push(Action::Log(Level::Notice, "reopening logs".into()));
                    then.push(Action::Reopen);
                }
            }
            Signal::Upgrade if ignore => then.push(Action::Log(
                Level::Crit,
                "the changing binary signal is ignored: you should shutdown or terminate before either old or new \
                 binary's process"
                    .into(),
            )),
            Signal::Reload if self.stage != Stage::Running => then.push(shutting_down()),
            Signal::Upgrade | Signal::StopAccepting if self.stage != Stage::Running => {}
            Signal::Reload => self.reload(then),
            Signal::Upgrade => {
                then.push(Action::Log(Level::Notice, "changing binary".into()));
                then.push(Action::Upgrade);
            }
            Signal::StopAccepting => {
                if self.daemonized {
                    self.no_accept = true;
                    self.quit_workers(|_| true, then);
                }
            }
        }
    }

    fn terminate(&mut self, then: &mut Vec<Action>) {
        if matches!(self.stage, Stage::Terminating { .. }) {
            return;
        }
        self.stage = Stage::Terminating { wait: FIRST_WAIT };
        for worker in &mut self.workers {
            worker.exiting = true;
            then.push(Action::Terminate { pid: worker.pid });
        }
        then.push(Action::Arm(FIRST_WAIT));
        self.exit_if_alone(then);
    }

    fn quit(&mut self, then: &mut Vec<Action>) {
        if self.stage != Stage::Running {
            return;
        }
        self.stage = Stage::Quitting;
        self.quit_workers(|_| true, then);
        then.push(Action::CloseListeners);
        self.exit_if_alone(then);
    }

    fn quit_workers(&mut self, which: impl Fn(i32) -> bool, then: &mut Vec<Action>) {
        for worker in self.workers.iter_mut().filter(|worker| !worker.exiting && which(worker.pid)) {
            worker.exiting = true;
            then.push(Action::Quit { pid: worker.pid });
        }
    }

    fn exit_if_alone(&mut self, then: &mut Vec<Action>) {
        if self.stage != Stage::Running && self.workers.is_empty() {
            let waiting = std::mem::take(&mut self.reload_again);
            if self.loading.take().is_some() || waiting {
                then.push(shutting_down());
            }
            then.push(Action::Exit);
        }
    }

    fn tick(&mut self, then: &mut Vec<Action>) {
        match &mut self.stage {
            Stage::Terminating { wait } => {
                *wait *= 2;
                let kill = *wait > LAST_WAIT;
                let wait = *wait;
                then.extend(self.workers.iter().map(|&Worker { pid, .. }| {
                    if kill { Action::Kill { pid } } else { Action::Terminate { pid } }
                }));
                then.push(Action::Arm(wait));
            }
            Stage::Running if self.respawn_later => {
                self.respawn_later = false;
                then.push(Action::Spawn { generation: self.generation });
            }
            Stage::Running | Stage::Quitting => {}
        }
    }

    fn reload(&mut self, then: &mut Vec<Action>) {
        if self.new_binary.is_some() {
            // The new executable has the configuration; this one is asked to serve beside it again.
            self.no_accept = false;
            then.push(Action::Verdict(Ok(())));
            if self.workers.iter().all(|worker| worker.exiting) {
                self.start_worker(then);
            }
            return;
        }
        // A worker that is still on its way to serving takes the next configuration when it does: another in its place
        // would cost those who are connected to it.
        if self.loading.is_some() || self.is_starting() {
            self.reload_again = true;
            return;
        }
        self.newest += 1;
        self.loading = Some(Loading { generation: self.newest, worker: None });
        then.push(Action::Log(Level::Notice, "reconfiguring".into()));
        then.push(Action::Plan { generation: self.newest });
    }

    /// Whether a worker has not said yet that it serves.
    fn is_starting(&self) -> bool {
        self.workers.iter().any(|worker| !worker.ready && !worker.exiting && !worker.deaf)
    }

    /// Begins the reload that had to wait, where nothing is in its way any more.
    fn reload_if_waiting(&mut self, then: &mut Vec<Action>) {
        if self.reload_again && self.loading.is_none() && !self.is_starting() && self.stage == Stage::Running
        {
            self.reload_again = false;
            self.reload(then);
        }
    }

    fn is_loading(&self, generation: u64) -> bool {
        self.loading.is_some_and(|loading| loading.generation == generation)
    }

    fn planned(&mut self, generation: u64, replace: bool, then: &mut Vec<Action>) {
        if !self.is_loading(generation) || self.stage != Stage::Running {
            then.push(Action::Discard { generation });
            if self.is_loading(generation) {
                self.loading = None;
                then.push(shutting_down());
            }
            return;
        }
        let current = self.workers.iter().find(|worker| worker.ready && !worker.exiting && !worker.deaf);
        match current.filter(|_| !replace) {
            Some(worker) => {
                self.loading = Some(Loading { generation, worker: Some(worker.pid) });
                then.push(Action::Load { pid: worker.pid, generation });
            }
            None => {
                self.respawn_later = false;
                then.push(Action::Log(Level::Notice, "start worker processes".into()));
                then.push(Action::Spawn { generation });
            }
        }
    }

    fn start_worker(&mut self, then: &mut Vec<Action>) {
        then.push(Action::Log(Level::Notice, "start worker processes".into()));
        then.push(Action::Spawn { generation: self.generation });
    }

    fn spawned(&mut self, pid: i32, generation: u64, then: &mut Vec<Action>) {
        then.push(Action::Log(Level::Notice, format!("start worker process {pid}")));
        self.workers.push(Worker { pid, ready: false, exiting: false, deaf: false, respawn: true });
        if self.is_loading(generation) {
            self.loading = Some(Loading { generation, worker: Some(pid) });
        }
    }

    fn spawn_failed(&mut self, generation: u64, then: &mut Vec<Action>) {
        if self.is_loading(generation) {
            then.push(Action::Discard { generation });
            self.loaded(Err(b"could not start a worker process\n".to_vec()), then);
        } else if self.stage == Stage::Running {
            then.push(Action::Log(Level::Alert, "could not respawn worker process".into()));
            self.respawn_later = true;
            then.push(Action::Arm(RESPAWN_PAUSE));
        }
    }

    fn ready(&mut self, pid: i32, generation: u64, then: &mut Vec<Action>) {
        if let Some(worker) = self.workers.iter_mut().find(|worker| worker.pid == pid) {
            worker.ready = true;
        }
        if self.loading == Some(Loading { generation, worker: Some(pid) }) {
            self.generation = generation;
            // The one that serves now is all that was missing.
            self.respawn_later = false;
            self.no_accept = false;
            then.push(Action::Commit { generation });
            self.quit_workers(|other| other != pid, then);
            self.loaded(Ok(()), then);
        }
        self.reload_if_waiting(then);
    }

    fn refused(&mut self, pid: i32, generation: u64, diagnostics: Vec<u8>, then: &mut Vec<Action>) {
        let loading = self.loading == Some(Loading { generation, worker: Some(pid) });
        if loading {
            then.push(Action::Discard { generation });
        }
        let starting = |worker: &&mut Worker| worker.pid == pid && !worker.ready && !worker.exiting;
        // A worker started for this generation has nothing else to serve.
        if let Some(worker) = self.workers.iter_mut().find(starting) {
            worker.exiting = true;
            then.push(Action::Terminate { pid });
            if self.workers.iter().all(|worker| worker.exiting) && !self.no_accept {
                self.respawn_later = true;
                then.push(Action::Arm(RESPAWN_PAUSE));
            }
        }
        if loading {
            self.loaded(Err(diagnostics), then);
        } else {
            self.reload_if_waiting(then);
        }
    }

    fn loaded(&mut self, result: Result<(), Vec<u8>>, then: &mut Vec<Action>) {
        self.loading = None;
        then.push(Action::Verdict(result));
        self.reload_if_waiting(then);
    }

    fn exited(&mut self, pid: i32, how: Exit, then: &mut Vec<Action>) {
        let found = self.workers.iter().position(|worker| worker.pid == pid);
        let name = match found {
            Some(_) => "worker process",
            None if self.new_binary == Some(pid) => "new binary process",
            None => "unknown process",
        };
        then.push(match how {
            Exit::Signal { number, core_dumped } => {
                let dumped = if core_dumped { " (core dumped)" } else { "" };
                Action::Log(Level::Alert, format!("{name} {pid} exited on signal {number}{dumped}"))
            }
            Exit::Code(code) => Action::Log(Level::Notice, format!("{name} {pid} exited with code {code}")),
        });
        if let Some(at) = found {
            let mut worker = self.workers.remove(at);
            if how == Exit::Code(crate::privileges::FATAL_EXIT) && worker.respawn {
                let text = format!("{name} {pid} exited with fatal code 2 and cannot be respawned");
                then.push(Action::Log(Level::Alert, text));
                worker.respawn = false;
            }
            self.worker_gone(worker, then);
            self.reload_if_waiting(then);
        } else if self.new_binary == Some(pid) {
            self.new_binary = None;
            then.push(Action::RestorePidFile);
            if std::mem::take(&mut self.no_accept) && self.stage == Stage::Running {
                self.start_worker(then);
            }
        }
        self.exit_if_alone(then);
    }

    fn deaf(&mut self, pid: i32, then: &mut Vec<Action>) {
        let others = self.workers.iter().any(|worker| worker.pid != pid && !worker.exiting);
        let Some(worker) = self.workers.iter_mut().find(|worker| worker.pid == pid) else { return };
        worker.deaf = true;
        if let Some(Loading { generation, worker: Some(loading) }) = self.loading
            && loading == pid
        {
            // One that was started beside the others for this generation alone has no place to be filled.
            worker.respawn &= worker.ready || !others;
            then.push(Action::Discard { generation });
            self.loaded(Err(LOST.to_vec()), then);
        }
        self.reload_if_waiting(then);
    }

    fn worker_gone(&mut self, worker: Worker, then: &mut Vec<Action>) {
        let mut replacement = false;
        if let Some(Loading { generation, worker: Some(pid) }) = self.loading
            && pid == worker.pid
        {
            // A worker that never served was started for this generation alone, beside or after the others.
            replacement = !worker.ready && self.workers.iter().any(|other| !other.exiting);
            then.push(Action::Discard { generation });
            self.loaded(Err(LOST.to_vec()), then);
        }
        if replacement || worker.exiting || !worker.respawn || self.stage != Stage::Running {
            return;
        }
        if worker.ready {
            then.push(Action::Spawn { generation: self.generation });
        } else {
            self.respawn_later = true;
            then.push(Action::Arm(RESPAWN_PAUSE));
        }
    }
}

#[cfg(test)]
mod tests;

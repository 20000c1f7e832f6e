//! A generation as the master holds it: its plan, and the sockets and log files that are open for it.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use weir_engine::errorlog::{Level, Log, LogFile, Output, Sink, Target, open_for_append};

use crate::message::{PassedLog, PassedSocket};
use crate::privileges::Identity;
use crate::sockets::{ListenSpec, Listeners, Mode, PAUSE};
use crate::{daemon, pidfile};

/// Where the configuration comes from; the master knows nothing about directives.
pub trait Site: Send + Sync + 'static {
    /// Reads the configuration as it stands now. What is wrong is logged to `log`, whose lines also reach whoever asked
    /// for the reload. Runs on a thread of its own.
    ///
    /// `syntax_is_ok` is called once when every file was read and every directive is known to be right in itself;
    /// nginx's `-t` says so before it goes on.
    ///
    /// # Errors
    /// The configuration is refused.
    fn plan(&self, log: &Log, syntax_is_ok: &dyn Fn()) -> Result<Plan, Refused>;

    /// [`Plan::pid`] alone, for who sends a signal: nothing else of a plan is made, so nothing else can fail.
    ///
    /// # Errors
    /// The configuration is refused.
    fn pid(&self, log: &Log) -> Result<PathBuf, Refused>;
}

/// A refused configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// What to show beside the lines that were logged, such as source lines.
    pub explanation: Vec<u8>,
}

/// What a configuration asks of the processes.
#[derive(Clone)]
pub struct Plan {
    /// All that the worker needs to build the same program.
    pub snapshot: Arc<[u8]>,
    pub listens: Vec<ListenSpec>,
    /// Every log file, of requests and of errors, absolute.
    pub logs: Vec<PathBuf>,
    /// The `error_log` directives of the main context, which the master writes to.
    pub error_logs: Vec<(Level, ErrorLog)>,
    /// The one of [`Plan::logs`] that standard error goes to; none where it is a log itself.
    pub stderr_log: Option<PathBuf>,
    /// `pid`, absolute.
    pub pid: PathBuf,
    /// What workers become.
    pub identity: Identity,
    /// The `env` directives.
    pub env: Vec<Vec<u8>>,
    /// `daemon`; looked at only at start, as the next one.
    pub daemon: bool,
    /// `master_process`
    pub master_process: bool,
    /// Every file that was read, for `-T`: name and content.
    pub files: Vec<(PathBuf, Vec<u8>)>,
}

/// One place that errors are written to.
#[derive(Clone)]
pub enum ErrorLog {
    Stderr,
    /// One of [`Plan::logs`].
    File(PathBuf),
    Sink(Arc<dyn Sink>),
}

/// Already logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// A plan with all that it names open.
#[derive(Clone)]
pub struct Prepared {
    pub plan: Plan,
    pub listeners: Listeners,
    pub files: BTreeMap<PathBuf, Arc<LogFile>>,
    /// Writes to the error logs of the main context.
    pub log: Log,
}

impl Prepared {
    /// Opens what the plan names; sockets that `listeners` has are kept.
    ///
    /// `log` is told which log cannot be opened; what then fails goes to the new logs and to `watch`, as in nginx.
    ///
    /// In a test everything is opened as well, since nginx's `-t` finds missing folders and rights that way.
    ///
    /// # Errors
    /// If a log or an address cannot be opened. Nothing of it stays open then.
    pub fn open(
        plan: Plan,
        listeners: &Listeners,
        mode: Mode,
        log: &Log,
        watch: Option<Arc<dyn Sink>>,
    ) -> Result<Prepared, Failed> {
        let mut files = BTreeMap::new();
        for path in &plan.logs {
            let file = LogFile::open(path).map_err(|error| {
                log.write_error(Level::Emerg, &error, format_args!("open() \"{}\" failed", path.display()));
                Failed
            })?;
            files.insert(path.clone(), Arc::new(file));
        }
        let outputs = plan.error_logs.iter().filter_map(|(level, place)| {
            let target = match place {
                ErrorLog::Stderr => Target::Stderr,
                ErrorLog::File(path) => Target::File(files.get(path)?.clone()),
                ErrorLog::Sink(sink) => Target::Sink(sink.clone()),
            };
            Some(Output { level: *level, target })
        });
        let outputs: Vec<Output> = outputs.collect();
        let watch = watch.map(|sink| Output { level: Level::Warn, target: Target::Sink(sink) });
        let watched = log.with_outputs(outputs.iter().cloned().chain(watch).collect());
        let log = log.with_outputs(outputs);
        let mut listeners = listeners
            .open(&plan.listens, mode, &watched, || std::thread::sleep(PAUSE))
            .map_err(|_| Failed)?;
        if mode == Mode::Run {
            listeners.configure(&plan.listens, &watched);
        }
        Ok(Prepared { plan, listeners, files, log })
    }

    /// [`Prepared::open`] for a server that runs by `self`: with its sockets, and with another pid file where the plan
    /// names one.
    ///
    /// # Errors
    /// As of [`Prepared::open`].
    pub fn next(&self, plan: Plan, log: &Log, watch: Option<Arc<dyn Sink>>) -> Result<Prepared, Failed> {
        let moved = (plan.pid != self.plan.pid).then(|| plan.pid.clone());
        if let Some(pid) = &moved {
            pidfile::create(pid, false, log).map_err(|_| Failed)?;
        }
        let opened = Prepared::open(plan, &self.listeners, Mode::Run, log, watch);
        if let (Err(Failed), Some(pid)) = (&opened, &moved) {
            pidfile::remove(pid, log);
        }
        opened
    }

    /// Removes what `self` has in the file system and `other`, which goes on, has not.
    pub fn give_way_to(&self, other: &Prepared) {
        if self.plan.pid != other.plan.pid {
            pidfile::remove(&self.plan.pid, &other.log);
        }
        self.listeners.unlink_except(&other.listeners, &other.log);
    }

    /// Sends what is printed to standard error where the plan has it.
    ///
    /// # Errors
    /// If a descriptor cannot be duplicated; logged.
    pub fn stderr_to_log(&self) -> Result<(), daemon::Failed> {
        let file = self.plan.stderr_log.as_ref().and_then(|path| self.files.get(path));
        file.map_or(Ok(()), |file| daemon::redirect_stderr(file, &self.log))
    }

    /// Whether a worker of `other` can load this without being started anew.
    pub fn same_process(&self, other: &Prepared) -> bool {
        self.plan.identity == other.plan.identity && self.plan.env == other.plan.env
    }

    /// The sockets as they are passed to a worker.
    pub fn passed_sockets(&self) -> Vec<PassedSocket> {
        let groups = self.listeners.groups.iter();
        groups
            .flat_map(|group| {
                let description = group.description();
                let sockets = group.sockets.iter().cloned();
                sockets.map(move |fd| PassedSocket { description: description.clone(), fd })
            })
            .collect()
    }

    /// The log files as they are passed to a worker. One that cannot be duplicated is left out, with a message.
    pub fn passed_logs(&self) -> Vec<PassedLog> {
        let mut passed = Vec::new();
        for (path, file) in &self.files {
            match file.duplicate() {
                Ok(fd) => passed.push(PassedLog { path: path.clone(), fd: Arc::new(fd.into()) }),
                Err(error) => {
                    let text = format!("fcntl(F_DUPFD_CLOEXEC) \"{}\" failed", path.display());
                    self.log.write_error(Level::Alert, &error, text);
                }
            }
        }
        passed
    }

    /// Opens every log file again under its name; one that cannot be opened goes on as it was. As in nginx a master gives them
    /// to the worker's user.
    pub fn reopen(&self) {
        let account = self.plan.identity.account.as_ref().filter(|_| self.plan.master_process);
        for (path, file) in &self.files {
            let failed = |call: String, error: io::Error| {
                self.log.write_error(Level::Emerg, &error, format_args!("{call} failed"));
            };
            let shown = path.display();
            let new = match open_for_append(path) {
                Ok(new) => new,
                Err(error) => {
                    failed(format!("open() \"{shown}\""), error);
                    continue;
                }
            };
            if let Some(account) = account
                && let Err(error) = give(&new, path, account.uid)
            {
                failed(format!("chown(\"{shown}\", {})", account.uid), error);
                continue;
            }
            file.replace(new);
        }
        // It was logged if it failed.
        let _ = self.stderr_to_log();
    }

    /// The pid file as it is named now.
    pub fn pid_file(&self, upgrading: bool) -> PathBuf {
        if upgrading { pidfile::old_name(&self.plan.pid) } else { self.plan.pid.clone() }
    }
}

/// Makes an open log file that user's, to be read and written by. What its name only links to stays whose it is: whoever may
/// write into the folder could name any file.
fn give(file: &File, path: &Path, uid: u32) -> io::Result<()> {
    const OWN: u32 = 0o600;
    let metadata = file.metadata()?;
    if !path.symlink_metadata().is_ok_and(|named| named.is_file() && named.ino() == metadata.ino()) {
        return Ok(());
    }
    if metadata.uid() != uid {
        std::os::unix::fs::fchown(file, Some(uid), None)?;
    }
    let mode = metadata.mode();
    if mode & OWN != OWN { file.set_permissions(Permissions::from_mode(mode | OWN)) } else { Ok(()) }
}

/// Collects what is logged on a reload, for the one who asked for it.
#[derive(Default)]
pub struct Collected {
    program: String,
    lines: Mutex<Vec<u8>>,
}

impl Collected {
    pub fn new(program: &str) -> Collected {
        Collected { program: program.to_owned(), lines: Mutex::default() }
    }

    /// All lines so far, as a program that starts prints them.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sink for Collected {
    fn write(&self, level: Level, line: &[u8]) {
        if level > Level::Warn {
            return;
        }
        // The message starts behind the process, as in `…] 12#12: message`.
        let start = line.windows(2).position(|two| two == b": ").map_or(0, |at| at + 2);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.extend_from_slice(format!("{}: [{}] ", self.program, level.as_str()).as_bytes());
        lines.extend_from_slice(&line[start..]);
        lines.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privileges::Account;
    use crate::testing::{Folder, memory};

    fn plan(folder: &Folder) -> Plan {
        let path = folder.path("error.log");
        Plan {
            snapshot: Arc::from(&b""[..]),
            listens: Vec::new(),
            logs: vec![folder.path("access.log"), path.clone()],
            error_logs: vec![(Level::Notice, ErrorLog::File(path))],
            stderr_log: None,
            pid: folder.path("pid"),
            identity: Identity::default(),
            env: Vec::new(),
            daemon: true,
            master_process: true,
            files: Vec::new(),
        }
    }

    #[test]
    fn logs_are_opened_and_reopened_by_name() {
        let folder = Folder::new();
        let (log, lines) = memory(Level::Info);
        let prepared =
            Prepared::open(plan(&folder), &Listeners::default(), Mode::Run, &log, None).ok().unwrap();
        let logs: Vec<PathBuf> = prepared.passed_logs().into_iter().map(|log| log.path).collect();
        assert_eq!(logs, [folder.path("access.log"), folder.path("error.log")]);
        prepared.log.write(Level::Notice, "one");
        std::fs::rename(folder.path("error.log"), folder.path("error.log.1")).unwrap();
        prepared.files[&folder.path("error.log")]
            .replace(open_for_append(&folder.path("error.log")).unwrap());
        prepared.log.write(Level::Notice, "two");
        assert!(std::fs::read_to_string(folder.path("error.log.1")).unwrap().ends_with(": one\n"));
        assert!(std::fs::read_to_string(folder.path("error.log")).unwrap().ends_with(": two\n"));
        assert_eq!(lines.take(), [""; 0]);
    }

    /// Only who is root may give a file away; nobody else has a worker of another user either.
    #[test]
    fn reopened_logs_are_the_workers() {
        if !crate::privileges::privileged() {
            return;
        }
        let (folder, elsewhere) = (Folder::new(), Folder::new());
        let (log, lines) = memory(Level::Info);
        let mut plan = plan(&folder);
        plan.identity.account = Some(Account { name: "worker".into(), uid: 4321, gid: 4321 });
        let prepared = Prepared::open(plan, &Listeners::default(), Mode::Run, &log, None).ok().unwrap();
        let (named, linked) = (folder.path("access.log"), folder.path("error.log"));
        std::fs::set_permissions(&named, Permissions::from_mode(0o444)).unwrap();
        std::fs::remove_file(&linked).unwrap();
        std::fs::write(elsewhere.path("mine"), "").unwrap();
        std::os::unix::fs::symlink(elsewhere.path("mine"), &linked).unwrap();
        prepared.reopen();
        let owned = |path: &Path| {
            let metadata = std::fs::metadata(path).unwrap();
            (metadata.uid(), metadata.mode() & 0o777)
        };
        assert_eq!(owned(&named), (4321, 0o644));
        assert_eq!(owned(&elsewhere.path("mine")).0, 0);
        assert_eq!(lines.take(), [""; 0]);
    }

    #[test]
    fn a_log_that_cannot_be_opened_refuses_the_plan() {
        let folder = Folder::new();
        let (log, lines) = memory(Level::Info);
        let path = folder.path("no/access.log");
        let plan = Plan { logs: vec![path.clone()], ..plan(&folder) };
        assert!(Prepared::open(plan, &Listeners::default(), Mode::Test, &log, None).is_err());
        let text = format!("[emerg] open() \"{}\" failed (2: No such file or directory)", path.display());
        assert_eq!(lines.take(), [text]);
    }

    #[test]
    fn what_is_collected_reads_as_on_a_terminal() {
        let collected = Arc::new(Collected::new("nginx"));
        let outputs = vec![Output { level: Level::Debug, target: Target::Sink(collected.clone()) }];
        let log = Log::new("nginx", outputs);
        log.write(Level::Emerg, "unknown directive \"x\" in /n.conf:1");
        log.write(Level::Notice, "reconfiguring");
        assert_eq!(collected.take(), b"nginx: [emerg] unknown directive \"x\" in /n.conf:1\n");
    }
}

//! The configuration as the master reads it: program, plan, and what is wrong.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weir_engine::errorlog::{Level, Log, LogFile};
use weir_engine::generation::{Generation, Resources};
use weir_engine::syslog::Peer;
use weir_ir::Prefixes;
use weir_ir::Program;
use weir_ir::core::Main;
use weir_ir::core::error_log::Target;
use weir_ir::core::main::{Process, Workers};
use weir_ir::http::HttpCore;
use weir_ir::http::listen::{Keepalive, Socket, sockets};
use weir_syntax::{Ast, Diagnostic, FileId, render};

use super::snapshot::Snapshot;
use super::world::{Machine, Observed};
use super::{Reading, installed, text};
use crate::args::Options;
use crate::master::{ErrorLog, Plan, Refused, Site};
use crate::message::bytes_path;
use crate::paths::{self, Paths};
use crate::privileges::{Account, Identity, default_account, privileged};
use crate::sockets::{Address, KeepAlive, ListenSpec};

/// Where the configuration is, and how to tell of its errors.
pub struct Configuration {
    reading: Reading,
    /// Without the `pid` directive.
    pid: PathBuf,
    explain: bool,
}

impl Configuration {
    pub fn new(paths: &Paths, options: &Options) -> Self {
        let error_log = match &paths.error_log {
            paths::ErrorLog::Stderr => text(b""),
            paths::ErrorLog::File(path) => text(path),
        };
        Self {
            reading: Reading {
                conf_file: paths.conf_file.clone(),
                prefixes: Prefixes {
                    prefix: text(&paths.prefix),
                    conf: text(&paths.conf_prefix),
                    error_log,
                    access_log: text(&paths.access_log),
                    state: text(&paths.state),
                },
                globals: options.directives.clone(),
            },
            pid: bytes_path(&paths.pid),
            explain: options.explain_errors || io::stderr().is_terminal(),
        }
    }

    fn pid_of(&self, process: &Process) -> PathBuf {
        match process.pid.get() {
            Some(path) if !path.is_empty() => PathBuf::from(&**path),
            Some(_) | None => self.pid.clone(),
        }
    }

    /// Writes the findings up to the first error, as nginx does, and explains all of them where that was asked for.
    fn tell(&self, diagnostics: &[Diagnostic], ast: &Ast, log: &Log) -> Result<(), Refused> {
        for diagnostic in diagnostics {
            let message = render::message(diagnostic, &ast.sources);
            log.write_with(diagnostic.level, None, "", |line| line.bytes(&message));
            if diagnostic.level <= Level::Error {
                let explanation = if self.explain {
                    let explained =
                        diagnostics.iter().map(|d| render::explained(log.program(), d, &ast.sources));
                    explained.collect::<Vec<_>>().concat().into_bytes()
                } else {
                    vec![]
                };
                return Err(Refused { explanation });
            }
        }
        Ok(())
    }
}

impl Site for Configuration {
    fn pid(&self, log: &Log) -> Result<PathBuf, Refused> {
        let (ast, program, diagnostics) = super::read(&self.reading, &Observed::machine(&Machine));
        self.tell(&diagnostics, &ast, log)?;
        self.tell(&program.told_late, &ast, log)?;
        Ok(self.pid_of(&program.main.main::<Main>()))
    }

    fn plan(&self, log: &Log, syntax_is_ok: &dyn Fn()) -> Result<Plan, Refused> {
        let machine = Machine;
        let observed = Observed::machine(&machine);
        let (ast, program, diagnostics) = super::read(&self.reading, &observed);
        self.tell(&diagnostics, &ast, log)?;
        try_compile(&program, log)?;
        syntax_is_ok();
        self.tell(&program.told_late, &ast, log)?;
        let process = program.main.main::<Main>();
        let identity = identity(&process, log)?;
        make_folders(&program, identity.account.as_ref(), log)?;
        let snapshot = Snapshot { reading: self.reading.clone(), recording: observed.to_bytes() };
        Ok(Plan {
            snapshot: snapshot.encode(),
            listens: listens(&program, threads(&process)),
            logs: program.open_files.iter().map(|f| PathBuf::from(&*f.path)).collect(),
            error_logs: error_logs(&process, log),
            pid: self.pid_of(&process),
            stderr_log: stderr_log(&program).map(|path| PathBuf::from(&*path)),
            identity,
            env: process.env.iter().map(|e| e.as_bytes().to_vec()).collect(),
            daemon: process.daemon.or(true),
            master_process: process.master_process.or(true),
            files: ast
                .sources
                .files()
                .filter(|id| *id != FileId::COMMAND_LINE)
                .map(|id| (bytes_path(ast.sources.path(id)), ast.sources.text(id).to_vec()))
                .collect(),
        })
    }
}

/// nginx's bound on the number of its processes.
const MOST_THREADS: u32 = 1024;

/// The number of reactor threads.
pub(super) fn threads(process: &Process) -> usize {
    match process.worker_processes.or(Workers::Count(1)) {
        Workers::Count(count) => count.clamp(1, MOST_THREADS) as usize,
        Workers::Auto => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

fn error_logs(process: &Process, log: &Log) -> Vec<(Level, ErrorLog)> {
    let log = log.without_sinks();
    let place = |l: &weir_ir::core::error_log::ErrorLog| {
        let place = match &l.target {
            Target::Stderr => ErrorLog::Stderr,
            Target::File(path) => ErrorLog::File(PathBuf::from(&**path)),
            Target::Syslog(spec) => ErrorLog::Sink(Arc::new(Peer::new(Arc::clone(spec), log.clone()))),
        };
        (l.level, place)
    };
    process.error_logs.iter().map(place).collect()
}

/// The first error log of the main context that is a file, unless a log of any level is standard error.
pub(super) fn stderr_log(program: &Program) -> Option<Arc<str>> {
    let process = program.main.main::<Main>();
    let scopes = program.http.iter().flat_map(|http| &http.scopes);
    let of_scopes = scopes.flat_map(|scope| scope.confs.get::<HttpCore>().error_logs.clone());
    if process.error_logs.iter().cloned().chain(of_scopes).any(|log| log.target == Target::Stderr) {
        return None;
    }
    process.error_logs.iter().find_map(|log| match &log.target {
        Target::File(path) => Some(Arc::clone(path)),
        Target::Stderr | Target::Syslog(_) => None,
    })
}

/// Compiles for the sake of the errors that only compiling finds; the worker compiles again for use.
fn try_compile(program: &Program, log: &Log) -> Result<(), Refused> {
    let null = match LogFile::open("/dev/null") {
        Ok(file) => Arc::new(file),
        Err(error) => {
            log.write_error(Level::Emerg, &error, "open() \"/dev/null\" failed");
            return Err(Refused::default());
        }
    };
    let files: HashMap<_, _> =
        program.open_files.iter().map(|f| (Arc::clone(&f.path), Arc::clone(&null))).collect();
    let resources = Resources { files, log: log.clone(), before: None };
    match Generation::compile(0, program, &installed(), resources) {
        Ok(_) => Ok(()),
        Err(faults) => {
            for fault in faults.iter().take(1) {
                log.write(fault.level, String::from_utf8_lossy(&fault.message));
            }
            Err(Refused::default())
        }
    }
}

fn identity(process: &Process, log: &Log) -> Result<Identity, Refused> {
    let account = match (process.user.get(), privileged()) {
        (_, false) => None,
        (Some(user), true) => Some(Account { name: user.name.to_string(), uid: user.uid, gid: user.gid }),
        (None, true) => match default_account() {
            Ok(account) => Some(account),
            Err((message, errno)) => {
                match errno {
                    Some(errno) => log.write_errno(Level::Emerg, errno, message),
                    None => log.write(Level::Emerg, message),
                }
                return Err(Refused::default());
            }
        },
    };
    Ok(Identity {
        account,
        transparent: process.transparent,
        priority: process.worker_priority.or(0),
        nofile: process.worker_rlimit_nofile.get().copied(),
        core: process.worker_rlimit_core.get().copied(),
        working_directory: process.working_directory.get().map(|d| PathBuf::from(&**d)),
    })
}

/// Makes the folders for temporary files and gives them to the worker's user (nginx: `ngx_create_paths`).
fn make_folders(program: &Program, account: Option<&Account>, log: &Log) -> Result<(), Refused> {
    for spec in &program.paths {
        let path = Path::new(&*spec.path);
        let made = std::fs::DirBuilder::new().mode(0o700).create(path);
        if let Err(error) = made.or_else(|e| if path.is_dir() { Ok(()) } else { Err(e) }) {
            log.write_error(Level::Emerg, &error, format_args!("mkdir() \"{}\" failed", spec.path));
            return Err(Refused::default());
        }
        if let Some(account) = account
            && let Err((call, error)) = give(path, account.uid)
        {
            log.write_error(Level::Emerg, &error, format_args!("{call} failed"));
            return Err(Refused::default());
        }
    }
    Ok(())
}

/// Has a folder belong to a user, who may do all in it. Its group and what others may do stay as they are. The error tells
/// the call that failed.
fn give(path: &Path, uid: u32) -> Result<(), (String, io::Error)> {
    let shown = path.display();
    let found = path.metadata().map_err(|error| (format!("stat() \"{shown}\""), error))?;
    if found.uid() != uid {
        let given = std::os::unix::fs::chown(path, Some(uid), None);
        given.map_err(|error| (format!("chown(\"{shown}\", {uid})"), error))?;
    }
    let mut permissions = found.permissions();
    if permissions.mode() & 0o700 != 0o700 {
        permissions.set_mode(permissions.mode() | 0o700);
        let set = std::fs::set_permissions(path, permissions);
        set.map_err(|error| (format!("chmod() \"{shown}\""), error))?;
    }
    Ok(())
}

fn listens(program: &Program, threads: usize) -> Vec<ListenSpec> {
    let sockets = program.http.as_ref().map(sockets).unwrap_or_default();
    sockets.iter().map(|socket| listen(socket, threads)).collect()
}

fn listen(socket: &Socket, threads: usize) -> ListenSpec {
    let address = match &socket.address {
        weir_ir::address::Address::Ip(ip) => Address::Ip(*ip),
        weir_ir::address::Address::Unix(path) => Address::Unix(PathBuf::from(&**path)),
    };
    let options = &socket.options;
    let seconds = |value: Option<u32>| value.map_or(0, |v| i32::try_from(v).unwrap_or(i32::MAX));
    ListenSpec {
        sockets: threads,
        backlog: options.backlog.unwrap_or(511),
        receive_buffer: options.rcvbuf.map(|n| n as usize),
        send_buffer: options.sndbuf.map(|n| n as usize),
        ipv6_only: options.ipv6only.unwrap_or(true),
        deferred: options.deferred,
        fast_open: options.fastopen,
        keep_alive: options.keepalive.map(|k| match k {
            Keepalive::Off => KeepAlive { on: false, idle: 0, interval: 0, count: 0 },
            Keepalive::On { idle, interval, count } => KeepAlive {
                on: true,
                idle: seconds(idle),
                interval: seconds(interval),
                count: seconds(count),
            },
        }),
        ..ListenSpec::new(address)
    }
}

//! From the command line to a running master, in the order in which nginx does it and with what it prints.
//!
//! ```text
//! options -> version -> first log -> inherited sockets -> configuration -> logs, sockets -> test ends here
//!         -> signal ends here -> background -> pid file -> master
//! ```
//! What the server is made of is behind [`House`], so all of this is tested around a stand-in.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, rlim_t};
use nix::sys::utsname::uname;
use nix::unistd::getppid;
use weir_engine::errorlog::{Level, Log, LogFile, Output, Target};

use crate::args::{self, Command, Options};
use crate::master::{self, Plan, Prepared, Refused, Site, Start};
use crate::message::bytes_path;
use crate::paths::{ErrorLog, Paths};
use crate::sockets::{INHERITED, Listeners, Mode};
use crate::spawn::Variables;
use crate::{daemon, pidfile, privileges, signaller, signals, spawn};

/// The floors below, as far as the processes need them.
pub trait House {
    type Site: Site;

    /// The `--with-…` and `--without-…` options that `-V` names.
    fn built_in(&self) -> Vec<&'static str>;

    /// The configuration that the command line names.
    fn site(&self, paths: &Paths, options: &Options) -> Self::Site;

    /// The table of directives.
    fn directives(&self) -> String;

    /// `demo`; gives back the exit code.
    fn demo(&self, print_config: bool) -> i32;

    /// The life of a worker; gives back the exit code. `program` is the name it was called by.
    fn work(&self, program: &str) -> i32;

    /// `master_process off`: serves in this process; gives back the exit code.
    fn alone(&self, prepared: Prepared, site: Self::Site, program: &str) -> i32;
}

/// Runs until the end and gives back the exit code. `arguments` begin with the program's name.
///
/// Nothing may have started a thread before.
pub fn run(house: &impl House, arguments: Vec<Vec<u8>>, variables: Variables) -> i32 {
    if let Some(program) = spawn::worker_program(&arguments) {
        return house.work(&program);
    }
    let (arg0, words) = arguments.split_first().map_or((&b""[..], &[][..]), |(first, rest)| (first, rest));
    let program = args::program_name(arg0);
    match args::parse(words) {
        Err(refusal) => {
            say(&[program.as_bytes(), b": ", refusal.text(), b"\n"].concat());
            1
        }
        Ok(Command::Directives) => {
            let written = io::stdout().write_all(house.directives().as_bytes());
            i32::from(written.is_err())
        }
        Ok(Command::Demo { print_config }) => house.demo(print_config),
        Ok(Command::Run(options)) => {
            if options.version {
                say(args::version_text(&options, &program, &house.built_in()).as_bytes());
                if !options.test {
                    return 0;
                }
            }
            serve(house, &options, program, arguments, variables)
        }
    }
}

fn serve(
    house: &impl House,
    options: &Options,
    program: String,
    arguments: Vec<Vec<u8>>,
    variables: Variables,
) -> i32 {
    let paths = Paths::of(options);
    if options.prefix.is_none() && privileges::privileged() {
        Paths::make_default_folders();
    }
    let log = first_log(&program, &paths, options.test);
    let inherited = variables.iter().find(|(name, _)| name == INHERITED).map(|(_, list)| list.clone());
    let listeners = match &inherited {
        Some(list) => Listeners::inherit(list.as_encoded_bytes(), &log),
        None => Listeners::default(),
    };
    let site = house.site(&paths, options);
    if options.test {
        return test(&site, &listeners, &paths, options, &program, &log);
    }
    let told = |refused: Refused| say(&refused.explanation);
    if let Some(signal) = options.signal {
        return match site.pid(&log).map_err(told) {
            Ok(pid) => signaller::send(signal, &pid, &log, &mut io::stderr()),
            Err(()) => 1,
        };
    }
    let Ok(plan) = site.plan(&log, &|| {}).map_err(told) else { return 1 };
    // A descriptor for each address and thread, in the worker too, is more than the soft limit was made for.
    let limits = getrlimit(Resource::RLIMIT_NOFILE);
    privileges::limit(&log, Resource::RLIMIT_NOFILE, "RLIMIT_NOFILE", limits.ok().map(|(_, hard)| hard));
    let Ok(first) = Prepared::open(plan, &listeners, Mode::Run, &log, None) else { return 1 };
    // What was inherited and is not configured any more is closed by the last of its owners.
    drop((listeners, log));
    let log = first.log.clone();
    status(&log, limits);
    let mut parent = getppid().as_raw();
    if inherited.is_none() && first.plan.daemon {
        parent = std::process::id() as i32;
        if daemon::detach(&log).is_err() {
            return 1;
        }
    }
    if let Err(error) = signals::hold() {
        log.write_errno(Level::Alert, error, "sigprocmask() failed");
    }
    if pidfile::create(&first.plan.pid, false, &log).is_err() || first.stderr_to_log().is_err() {
        return 1;
    }
    if !first.plan.master_process {
        log.started();
        return house.alone(first, site, &program);
    }
    let daemonized = inherited.is_some() || first.plan.daemon;
    let inherited = inherited.is_some();
    let site = Arc::new(site);
    match master::run(Start { site, first, program, arguments, variables, daemonized, parent, inherited }) {
        Ok(()) => 0,
        Err(error) => {
            log.write_error(Level::Emerg, &error, "master process failed");
            1
        }
    }
}

/// The log until the configuration names others; standard error if it cannot be opened.
fn first_log(program: &str, paths: &Paths, test: bool) -> Log {
    let level = if test { Level::Info } else { Level::Notice };
    let target = match &paths.error_log {
        ErrorLog::Stderr => Target::Stderr,
        ErrorLog::File(name) => {
            let path = bytes_path(name);
            match LogFile::open(&path) {
                Ok(file) => Target::File(Arc::new(file)),
                Err(error) => {
                    complain(program, &path, &error);
                    Target::Stderr
                }
            }
        }
    };
    Log::starting(program, vec![Output { level, target }])
}

fn complain(program: &str, path: &std::path::Path, error: &io::Error) {
    let code = error.raw_os_error().unwrap_or_default();
    let text = weir_syntax::render::strerror(code);
    let path = path.display();
    say(format!(
        "{program}: [alert] could not open error log file: open() \"{path}\" failed ({code}: {text})\n"
    )
    .as_bytes());
}

/// `-t` and `-T`: all that a start would do, short of listening.
fn test(
    site: &impl Site,
    listeners: &Listeners,
    paths: &Paths,
    options: &Options,
    program: &str,
    log: &Log,
) -> i32 {
    let name = |before: &str, after: &str| {
        say(&[program.as_bytes(), before.as_bytes(), &paths.conf_file, after.as_bytes(), b"\n"].concat());
    };
    let result = site.plan(log, &|| {
        if !options.quiet {
            name(": the configuration file ", " syntax is ok");
        }
    });
    let opened = result.map_err(|refused| say(&refused.explanation)).and_then(|mut plan: Plan| {
        let files = std::mem::take(&mut plan.files);
        pidfile::create(&plan.pid, true, log).map_err(|_| ())?;
        Prepared::open(plan, listeners, Mode::Test, log, None).map_err(|_| ())?;
        Ok(files)
    });
    let Ok(files) = opened else {
        name(": configuration file ", " test failed");
        return 1;
    };
    if !options.quiet {
        name(": configuration file ", " test is successful");
    }
    if options.dump { dump(files) } else { 0 }
}

fn dump(files: Vec<(PathBuf, Vec<u8>)>) -> i32 {
    let mut stdout = io::stdout().lock();
    for (path, content) in files {
        let head = [b"# configuration file ", crate::message::path_bytes(&path), b":\n"].concat();
        if [&head, &content, &b"\n"[..]].iter().try_for_each(|part| stdout.write_all(part)).is_err() {
            return 1;
        }
    }
    i32::from(stdout.flush().is_err())
}

/// What stands at the head of a log of nginx, too.
fn status(log: &Log, limits: nix::Result<(rlim_t, rlim_t)>) {
    log.write(Level::Notice, concat!("weir/", env!("CARGO_PKG_VERSION")));
    if let Ok(system) = uname() {
        let (name, release) = (system.sysname().to_string_lossy(), system.release().to_string_lossy());
        log.write(Level::Notice, format_args!("OS: {name} {release}"));
    }
    match limits {
        Ok((soft, hard)) => {
            log.write(Level::Notice, format_args!("getrlimit(RLIMIT_NOFILE): {soft}:{hard}"));
        }
        Err(error) => log.write_errno(Level::Alert, error, "getrlimit(RLIMIT_NOFILE) failed"),
    }
}

/// On standard error; there is nowhere to say that it is closed.
fn say(text: &[u8]) {
    let _ = io::stderr().write_all(text);
}

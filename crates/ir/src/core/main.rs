//! `ngx_core_module`: the process, its user, its files, its limits.

use std::sync::Arc;

use crate::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_syntax::Level;

use crate::core::error_log::{self, ErrorLog, Target};
use crate::core::events::{Conn, Events};
use crate::lowering::{At, Call, Fault, Merge};
use crate::value;

pub struct Main;

type D = Directive<Main>;

const MAIN: Contexts = Contexts::MAIN;

impl Module for Main {
    const NAME: &'static str = "nginx";
    type Main = Process;
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::main("daemon", MAIN, Takes::FLAG, |s, c| s.daemon.flag(c)),
        D::main("master_process", MAIN, Takes::FLAG, |s, c| s.master_process.flag(c)),
        D::main("timer_resolution", MAIN, Takes::ONE, |_, c| c.msec().map(drop))
            .accepted("time is read once per turn of a reactor"),
        D::main("pid", MAIN, Takes::ONE, |s, c| s.pid.put_with(c, |c| Ok(c.path(0)))),
        D::main("lock_file", MAIN, Takes::ONE, |_, _| Ok(())).accepted("weir needs no lock file"),
        D::main("worker_processes", MAIN, Takes::ONE, worker_processes),
        D::main("user", MAIN, Takes::ONE_TWO, user),
        D::main("worker_priority", MAIN, Takes::ONE, worker_priority),
        D::main("worker_cpu_affinity", MAIN, Takes::ONE_MORE, cpu_affinity)
            .accepted("the threads of the worker are placed by the kernel"),
        D::main("worker_rlimit_nofile", MAIN, Takes::ONE, |s, c| s.worker_rlimit_nofile.number(c)),
        D::main("worker_rlimit_core", MAIN, Takes::ONE, |s, c| s.worker_rlimit_core.offset(c)),
        D::main("worker_shutdown_timeout", MAIN, Takes::ONE, |s, c| s.worker_shutdown_timeout.msec(c)),
        D::main("working_directory", MAIN, Takes::ONE, |s, c| {
            s.working_directory.put_with(c, |c| Ok(c.text(0).into()))
        }),
        D::main("env", MAIN, Takes::ONE, env),
        D::main("load_module", MAIN, Takes::ONE, load_module),
        D::main("error_log", MAIN, Takes::ONE_MORE, |s, c| {
            let log = error_log::read(c)?;
            s.error_logs.push(log);
            Ok(())
        }),
        D::main("pcre_jit", MAIN, Takes::FLAG, |_, c| c.flag().map(drop))
            .accepted("regular expressions are always compiled where the machine can"),
        D::main("thread_pool", MAIN, Takes::TWO_THREE, thread_pool)
            .accepted("file work has a pool of its own"),
        D::main("http", MAIN, Takes::BLOCK, |_, c| c.http_block()),
    ];

    fn init(process: &mut Process, merge: &mut Merge<'_>) -> Result<(), Fault> {
        if process.error_logs.is_empty() {
            let path = Arc::clone(&merge.prefixes().error_log);
            let target = if path.is_empty() { Target::Stderr } else { Target::File(merge.open_file(path)) };
            process.error_logs.push(ErrorLog { target, level: Level::Error });
        }
        Ok(())
    }
}

/// `worker_processes`: the number of reactor threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    Count(u32),
    /// As many as the machine has CPUs.
    Auto,
}

/// `user`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: Arc<str>,
    pub uid: u32,
    pub gid: u32,
}

/// The `main` context.
#[derive(Clone, Debug, Default)]
pub struct Process {
    pub daemon: Setting<bool>,
    pub master_process: Setting<bool>,
    /// Absolute path.
    pub pid: Setting<Arc<str>>,
    pub worker_processes: Setting<Workers>,
    pub user: Setting<User>,
    pub worker_priority: Setting<i32>,
    pub worker_rlimit_nofile: Setting<u64>,
    /// Bytes.
    pub worker_rlimit_core: Setting<u64>,
    /// Milliseconds; 0 is no bound.
    pub worker_shutdown_timeout: Setting<u64>,
    pub working_directory: Setting<Arc<str>>,
    /// `NAME` is kept from the environment, `NAME=value` is set.
    pub env: Vec<Box<str>>,
    pub error_logs: Vec<ErrorLog>,
}

impl Conf for Process {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

/// Reads the `events` block while its conf is out of its slot: the block's directives write to the slot.
pub(crate) fn nested(conf: &mut Conn, call: &mut Call<'_>, context: Contexts) {
    *call.main_of::<Events>() = std::mem::take(conf);
    call.read_block(context, At::Main);
    *conf = std::mem::take(call.main_of::<Events>());
}

fn worker_processes(process: &mut Process, call: &mut Call<'_>) -> Result<(), Fault> {
    process.worker_processes.put_with(call, |call| {
        if call.arg(0) == b"auto" {
            return Ok(Workers::Auto);
        }
        match value::number(call.arg(0)).and_then(|n| u32::try_from(n).ok()) {
            Some(count @ 1..) => Ok(Workers::Count(count)),
            _ => Err(call.under(call.refuse("invalid value"), 0)),
        }
    })
}

fn user(process: &mut Process, call: &mut Call<'_>) -> Result<(), Fault> {
    if process.user.is_set() {
        return Err(call.duplicate());
    }
    if !call.world().privileged() {
        call.warn(
            "the \"user\" directive makes sense only if the master process runs with super-user privileges, ignored",
        );
        return Ok(());
    }
    let name = call.text(0);
    let group = if call.args().len() == 2 { call.text(1) } else { name.clone() };
    let (uid, _) = call.world().user(&name).map_err(|_| call.fail(format!("getpwnam(\"{name}\") failed")))?;
    let gid = call.world().group(&group).map_err(|_| call.fail(format!("getgrnam(\"{group}\") failed")))?;
    process.user.replace(User { name: name.into(), uid, gid });
    Ok(())
}

fn worker_priority(process: &mut Process, call: &mut Call<'_>) -> Result<(), Fault> {
    process.worker_priority.put_with(call, |call| {
        let (sign, digits) = match call.arg(0) {
            [b'-', digits @ ..] => (-1, digits),
            [b'+', digits @ ..] => (1, digits),
            digits => (1, digits),
        };
        let number = value::number(digits).and_then(|n| i32::try_from(n).ok());
        number.map(|n| sign * n).ok_or_else(|| call.refuse("invalid number"))
    })
}

fn cpu_affinity(_: &mut Process, call: &mut Call<'_>) -> Result<(), Fault> {
    let masks = if call.arg(0) == b"auto" { &call.args()[1..] } else { call.args() };
    for mask in masks {
        if let Some(bad) = mask.value.iter().find(|b| !matches!(b, b'0' | b'1' | b' ')) {
            return Err(
                call.fail(format!("invalid character \"{}\" in \"worker_cpu_affinity\"", *bad as char))
            );
        }
    }
    Ok(())
}

fn env(process: &mut Process, call: &mut Call<'_>) -> Result<(), Fault> {
    process.env.push(call.text(0).into());
    Ok(())
}

fn load_module(_: &mut Process, call: &mut Call<'_>) -> Result<(), Fault> {
    let path = call.path(0);
    let mut fault = call.fail(format!("dlopen() \"{path}\" failed ({path}: weir loads no binary modules)"));
    fault.0.help = Some("what weir supports of the module is built in; remove the line".into());
    Err(call.under(fault, 0))
}

fn thread_pool(_: &mut Process, call: &mut Call<'_>) -> Result<(), Fault> {
    let mut threads = false;
    for index in 1..call.args().len() {
        let text = call.arg(index);
        let number = |prefix: &[u8]| text.strip_prefix(prefix).map(value::number);
        match (number(b"threads="), number(b"max_queue=")) {
            (Some(Some(1..)), _) => threads = true,
            (Some(_), _) => {
                let fault = call.fail(format!("invalid threads value \"{}\"", call.text(index)));
                return Err(call.under(fault, index));
            }
            (None, Some(Some(_))) => {}
            (None, Some(None)) => {
                let fault = call.fail(format!("invalid max_queue value \"{}\"", call.text(index)));
                return Err(call.under(fault, index));
            }
            (None, None) => return Err(call.invalid_parameter(index)),
        }
    }
    if !threads {
        return Err(call.fail("\"thread_pool\" directive requires \"threads\" parameter"));
    }
    Ok(())
}

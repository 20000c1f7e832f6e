//! `ngx_core_module`: the process, its user, its files, its limits.

use std::sync::Arc;

use crate::contract::{Conf, Contexts, Directive, Module, Once, Setting, Takes};
use weir_syntax::Level;

use crate::core::error_log::{self, ErrorLog, Target};
use crate::core::events::{Conn, Events};
use crate::lowering::{At, Call, Fault, Merge, ThreadPool};
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
        D::main("timer_resolution", MAIN, Takes::ONE, |s, c| s.once.msec(c))
            .accepted("time is read once per turn of a reactor"),
        D::main("pid", MAIN, Takes::ONE, |s, c| {
            s.pid.put_with(c, |c| Ok(if c.arg(0).is_empty() { "".into() } else { c.path(0) }))
        }),
        D::main("lock_file", MAIN, Takes::ONE, |s, c| s.once.read(c, |_| Ok(())))
            .accepted("weir needs no lock file"),
        D::main("worker_processes", MAIN, Takes::ONE, worker_processes),
        D::main("debug_points", MAIN, Takes::ONE, |s, c| {
            s.once.read(c, |c| c.one_of(&[("stop", ()), ("abort", ())]))
        })
        .accepted("weir has no points where it would stop to be debugged"),
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
        D::main("error_log", MAIN, Takes::ONE_MORE, |s, c| {
            let log = error_log::read(c)?;
            s.error_logs.push(log);
            Ok(())
        }),
        D::main("pcre_jit", MAIN, Takes::FLAG, |s, c| s.once.flag(c))
            .accepted("regular expressions are always compiled where the machine can"),
        D::main("thread_pool", MAIN, Takes::TWO_THREE, thread_pool)
            .accepted("file work has a pool of its own"),
        D::main("ssl_object_cache_inheritable", MAIN, Takes::FLAG, |s, c| s.once.flag(c)).accepted(
            "a reload reads certificates, keys and revocation lists anew, and what is unchanged is the same",
        ),
        D::main("http", MAIN, Takes::BLOCK, |_, c| c.http_block()),
    ];

    fn init(process: &mut Process, merge: &mut Merge<'_>) -> Result<(), Fault> {
        if process.error_logs.is_empty() {
            let path = Arc::clone(&merge.prefixes().error_log);
            let target = if path.is_empty() { Target::Stderr } else { Target::File(merge.open_file(path)) };
            process.error_logs.push(ErrorLog { target, level: Level::Error });
        }
        process.transparent = merge.state.transparent;
        let workers = match process.worker_processes.or(Workers::Count(1)) {
            Workers::Count(count) => Some(count as usize),
            Workers::Auto => None,
        };
        if process.cpu_masks > 1 && workers.is_some_and(|workers| workers != process.cpu_masks) {
            merge.warn_nowhere(
                "the number of \"worker_processes\" is not equal to the number of \"worker_cpu_affinity\" masks, \
                 using last mask for remaining worker processes",
            );
        }
        let unknown = merge.state.thread_pools.iter().find(|pool| !pool.defined && &*pool.name != b"default");
        if let Some(ThreadPool { name, position, .. }) = unknown {
            let place = format!("\" in {}:{}", position.file, position.line);
            return Err(merge.fail_nowhere([&b"unknown thread pool \""[..], name, place.as_bytes()].concat()));
        }
        Ok(())
    }
}

/// `worker_processes`: the number of reactor threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// 0 is one as well: there are no workers without threads.
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
    /// Absolute path; an empty one is the default.
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
    /// Connections come from addresses of others (`proxy_bind … transparent`).
    pub transparent: bool,
    /// The number of masks, where they are written out.
    cpu_masks: usize,
    once: Once,
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
        match value::number(call.arg(0)) {
            Some(count) => Ok(Workers::Count(u32::try_from(count).unwrap_or(u32::MAX))),
            None => Err(call.under(call.refuse("invalid value"), 0)),
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
    // To nginx 0 is a priority not set.
    if process.worker_priority.get().is_some_and(|priority| *priority != 0) {
        return Err(call.duplicate());
    }
    let (sign, digits) = match call.arg(0) {
        [b'-', digits @ ..] => (-1, digits),
        [b'+', digits @ ..] => (1, digits),
        digits => (1, digits),
    };
    let number = value::number(digits).map(|n| i32::try_from(n).unwrap_or(i32::MAX));
    process.worker_priority.replace(sign * number.ok_or_else(|| call.refuse("invalid number"))?);
    Ok(())
}

fn cpu_affinity(process: &mut Process, call: &mut Call<'_>) -> Result<(), Fault> {
    const MOST: usize = 1024;
    let masks = process.once.read(call, |call| {
        let masks = match call.arg(0) {
            b"auto" if call.args().len() > 2 => return Err(call.invalid_arguments()),
            b"auto" => &call.args()[1..],
            _ => call.args(),
        };
        for mask in masks {
            if mask.value.len() > MOST {
                return Err(call.fail(format!("\"worker_cpu_affinity\" supports up to {MOST} CPUs only")));
            }
            // The CPUs are numbered from the right, where nginx begins to read.
            if let Some(bad) = mask.value.iter().rev().find(|b| !matches!(b, b'0' | b'1' | b' ')) {
                let message =
                    [&b"invalid character \""[..], &[*bad], b"\" in \"worker_cpu_affinity\""].concat();
                return Err(call.fail(message));
            }
        }
        Ok(())
    });
    if call.arg(0) != b"auto" {
        process.cpu_masks = call.args().len();
    }
    masks
}

fn env(process: &mut Process, call: &mut Call<'_>) -> Result<(), Fault> {
    process.env.push(call.text(0).into());
    Ok(())
}

fn thread_pool(_: &mut Process, call: &mut Call<'_>) -> Result<(), Fault> {
    call.thread_pool(call.arg(0), true)?;
    let mut threads = false;
    for index in 1..call.args().len() {
        let text = call.arg(index);
        let number = |prefix: &[u8]| text.strip_prefix(prefix).map(value::number);
        match (number(b"threads="), number(b"max_queue=")) {
            (Some(Some(1..)), _) => threads = true,
            (Some(_), _) => return Err(call.fail_at(index, "invalid threads value")),
            (None, Some(None)) => return Err(call.fail_at(index, "invalid max_queue value")),
            // nginx passes over what it does not know.
            (None, Some(Some(_)) | None) => {}
        }
    }
    if !threads {
        return Err(call.fail("\"thread_pool\" must have \"threads\" parameter"));
    }
    Ok(())
}

//! A configuration and an engine that are just enough to see what the processes do.
//!
//! The configuration is the file `conf`: lines `listen ADDRESS`, `env NAME=VALUE`, and for trouble `refuse TEXT` (the
//! master does), `refuse-late TEXT` (the worker does) and `fatal` (the worker exits with 2). A worker answers each
//! connection with a line: its pid, the generation, and its variable `WHO`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use weir::daemon;
use weir::master::{self, ErrorLog, Plan, Prepared, Site, Start};
use weir::message::FromWorker;
use weir::pidfile;
use weir::privileges::{FATAL_EXIT, Identity};
use weir::sockets::{Address, INHERITED, ListenSpec, Listeners, Mode, described};
use weir::spawn;
use weir::worker::{self, Order};
use weir_engine::errorlog::{Level, Log, Output, Target};

struct Folder(PathBuf);

impl Site for Folder {
    fn plan(&self, log: &Log) -> Result<Plan, Vec<u8>> {
        let text = std::fs::read_to_string(self.0.join("conf")).map_err(|_| Vec::new())?;
        let path = self.0.join("error.log");
        let mut plan = Plan {
            snapshot: text.as_bytes().into(),
            listens: Vec::new(),
            logs: vec![path.clone()],
            error_logs: vec![(Level::Notice, ErrorLog::File(path))],
            pid: self.0.join("pid"),
            identity: Identity::default(),
            env: Vec::new(),
        };
        for line in text.lines() {
            match line.split_once(' ') {
                Some(("listen", address)) => {
                    let address = match address.strip_prefix("unix:") {
                        Some(path) => Address::Unix(path.into()),
                        None => Address::Ip(address.parse().unwrap()),
                    };
                    plan.listens.push(ListenSpec { sockets: 2, ..ListenSpec::new(address) });
                }
                Some(("env", directive)) => plan.env.push(directive.as_bytes().to_vec()),
                Some(("refuse", text)) => {
                    log.write(Level::Emerg, text);
                    return Err(b"explained\n".to_vec());
                }
                _ => {}
            }
        }
        Ok(plan)
    }
}

pub fn master(folder: &str, arguments: Vec<Vec<u8>>) -> ExitCode {
    let site = Arc::new(Folder(folder.into()));
    let stderr = vec![Output { level: Level::Notice, target: Target::Stderr }];
    let log = Log::starting("it", stderr);
    let inherited = std::env::var(INHERITED).ok();
    let listeners = match &inherited {
        Some(list) => Listeners::inherit(list.as_bytes(), &log),
        None => Listeners::default(),
    };
    let plan = site.plan(&log).unwrap();
    let Ok(first) = Prepared::open(plan, &listeners, Mode::Run, &log) else { return ExitCode::FAILURE };
    drop(listeners);
    let parent = match inherited {
        Some(_) => nix::unistd::getppid().as_raw(),
        None => {
            let launcher = std::process::id() as i32;
            daemon::detach(&log).unwrap();
            launcher
        }
    };
    pidfile::create(&first.plan.pid, false, &log).unwrap();
    let start = Start {
        site,
        first,
        program: "it".into(),
        arguments,
        variables: std::env::vars_os().collect(),
        daemonized: true,
        parent,
        inherited: inherited.is_some(),
    };
    master::run(start).unwrap();
    ExitCode::SUCCESS
}

pub fn worker(program: &str) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let log = Log::new(program, vec![Output { level: Level::Warn, target: Target::Stderr }]);
    runtime.block_on(async {
        let channel = spawn::take_channel().unwrap();
        let (identity, mut orders, mut answers) = worker::attach(channel, log.clone()).await.unwrap();
        identity.assume(&log).unwrap();
        let mut serving: Vec<tokio::task::JoinHandle<()>> = Vec::new();
        loop {
            match orders.next().await {
                Order::Load { generation, snapshot, sockets, logs } => {
                    let text = String::from_utf8(snapshot.to_vec()).unwrap();
                    if text.contains("fatal") {
                        return ExitCode::from(FATAL_EXIT as u8);
                    }
                    if let Some((_, text)) = text.split_once("refuse-late ") {
                        let diagnostics = text.as_bytes().to_vec();
                        answers.say(FromWorker::Refused { generation, diagnostics }).await;
                        continue;
                    }
                    assert!(logs.iter().all(|log| log.path.ends_with("error.log")));
                    serving.drain(..).for_each(|task| task.abort());
                    for socket in sockets {
                        let (_, address) = described(&socket.description).unwrap();
                        let fd = Arc::into_inner(socket.fd).unwrap();
                        serving.push(tokio::spawn(serve(address, fd, generation)));
                    }
                    answers.say(FromWorker::Ready { generation }).await;
                }
                Order::Reopen(logs) => {
                    for log in logs.unwrap_or_default() {
                        let mut file = std::fs::File::from(Arc::into_inner(log.fd).unwrap());
                        writeln!(file, "worker reopened").unwrap();
                    }
                }
                Order::Quit | Order::Terminate => return ExitCode::SUCCESS,
            }
        }
    })
}

async fn serve(address: Address, fd: std::os::fd::OwnedFd, generation: u64) {
    let who = std::env::var("WHO").unwrap_or_default();
    let line = format!("{} {generation} {who}\n", std::process::id());
    match address {
        Address::Ip(_) => {
            let listener = tokio::net::TcpListener::from_std(fd.into()).unwrap();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.write_all(line.as_bytes()).await;
            }
        }
        Address::Unix(_) => {
            let listener = tokio::net::UnixListener::from_std(fd.into()).unwrap();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.write_all(line.as_bytes()).await;
            }
        }
    }
}

/// The names under which a master keeps its files.
pub fn pid_file(folder: &Path) -> PathBuf {
    folder.join("pid")
}

//! A configuration and an engine that are just enough to see what the processes do.
//!
//! The configuration is the file `conf`: lines `listen ADDRESS`, `env NAME=VALUE`, and for trouble `refuse TEXT` (the
//! master does), `limits` (a worker with few rights), `refuse-late TEXT` (the worker does) and `fatal` (the worker exits with 2). A worker answers each
//! connection with a line: its pid, the generation, and its variable `WHO`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use weir::args::Options;
use weir::master::{ErrorLog, Plan, Prepared, Refused, Site};
use weir::message::{FromWorker, bytes_path};
use weir::paths::Paths;
use weir::privileges::{FATAL_EXIT, Identity, default_account, privileged};
use weir::sockets::{Address, ListenSpec, described};
use weir::spawn;
use weir::startup::House;
use weir::worker::{self, Order};
use weir_engine::errorlog::{Level, Log, Output, Target};

pub struct Folder(PathBuf);

impl Site for Folder {
    fn plan(&self, log: &Log, syntax_is_ok: &dyn Fn()) -> Result<Plan, Refused> {
        let text = std::fs::read_to_string(self.0.join("conf")).map_err(|_| Refused::default())?;
        let path = self.0.join("error.log");
        let mut plan = Plan {
            snapshot: text.as_bytes().into(),
            listens: Vec::new(),
            logs: vec![path.clone()],
            error_logs: vec![(Level::Notice, ErrorLog::File(path.clone()))],
            stderr_log: Some(path),
            pid: self.0.join("pid"),
            identity: Identity::default(),
            env: Vec::new(),
            daemon: true,
            master_process: true,
            files: vec![("conf".into(), text.clone().into_bytes())],
        };
        for line in text.lines() {
            if line == "limits" {
                plan.identity = Identity {
                    account: privileged().then(|| default_account().unwrap()),
                    nofile: Some(99),
                    working_directory: Some("/".into()),
                    ..Identity::default()
                };
            }
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
                    return Err(Refused { explanation: b"explained\n".to_vec() });
                }
                _ => {}
            }
        }
        syntax_is_ok();
        Ok(plan)
    }

    fn pid(&self, log: &Log) -> Result<PathBuf, Refused> {
        self.plan(log, &|| {}).map(|plan| plan.pid)
    }
}

/// The house that a test executable is.
pub struct StandIn;

impl House for StandIn {
    type Site = Folder;

    fn built_in(&self) -> Vec<&'static str> {
        vec!["--with-nothing"]
    }

    fn site(&self, paths: &Paths, _: &Options) -> Folder {
        Folder(bytes_path(&paths.prefix))
    }

    fn directives(&self) -> String {
        "none\n".into()
    }

    fn demo(&self, _: bool) -> i32 {
        0
    }

    fn work(&self, program: &str) -> i32 {
        worker(program)
    }

    fn alone(&self, _: Prepared, _: Folder, _: &str) -> i32 {
        0
    }
}

fn worker(program: &str) -> i32 {
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
                        return FATAL_EXIT;
                    }
                    if let Some((_, text)) = text.split_once("refuse-late ") {
                        let diagnostics = text.as_bytes().to_vec();
                        answers.say(FromWorker::Refused { generation, diagnostics }).await;
                        continue;
                    }
                    assert!(logs.iter().all(|log| log.path.ends_with("error.log")));
                    serving.drain(..).for_each(|task| task.abort());
                    for socket in sockets {
                        let address = described(&socket.description).unwrap();
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
                Order::Reload => unreachable!("this worker has a master"),
                Order::Quit | Order::Terminate => return 0,
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

//! For tests: a configuration lowered in memory, and a site that answers over a socket pair.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use weir_engine::errorlog::{Log, Output, Sink, Target};
use weir_engine::generation::{Generation, Resources};
use weir_engine::http::connection::serve;
use weir_engine::http::exchange::Connection;
use weir_engine::io::{Address, Io, Socket};
use weir_engine::reactor::{Peer, Reactor};

use weir_ir::{AnyModule, Dialect, Prefixes, Program, World};
use weir_syntax::{Diagnostic, Files, Level, Memory};

use crate::HTTP;

struct Machine(Memory);

impl Files for Machine {
    fn read(&self, path: &[u8]) -> io::Result<Arc<[u8]>> {
        self.0.read(path)
    }

    fn glob(&self, pattern: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.0.glob(pattern)
    }
}

impl World for Machine {
    fn resolve(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn hostname(&self) -> String {
        "machine".into()
    }

    fn user(&self, _: &str) -> io::Result<(u32, u32)> {
        Ok((1, 1))
    }

    fn group(&self, _: &str) -> io::Result<u32> {
        Ok(1)
    }

    fn privileged(&self) -> bool {
        false
    }
}

/// Lowers an `http` block's text, with other files by path, and gives what was told as nginx prints it.
fn lower(http: &str, files: &[(&str, &str)]) -> (Program, Vec<String>) {
    let conf = format!("events {{}} http {{ access_log off; {http} }}");
    let memory = files.iter().fold(Memory::new(), |m, (path, text)| m.with(*path, text));
    let machine = Machine(memory.with("/conf/nginx.conf", conf));
    let ast = weir_syntax::parse(&machine, b"/conf/nginx.conf", b"/conf/", None);
    let mut modules: Vec<&dyn AnyModule> = vec![&weir_ir::http::HttpCore, &weir_ir::http::HttpUpstream];
    modules.extend(HTTP.iter().map(|m| *m as &dyn AnyModule));
    let builtin = |name: &str| weir_engine::generation::builtin(HTTP, name);
    let dialect = Dialect { core: weir_ir::core::MODULES, http: &modules, upstream: &[], builtin: &builtin };
    let prefixes = Prefixes {
        prefix: "/".into(),
        conf: "/conf/".into(),
        access_log: "/access.log".into(),
        ..Prefixes::default()
    };
    let (mut program, told) = weir_ir::lower(&ast, &prefixes, &dialect, &machine);
    // What is logged goes to the test's own log.
    program.main.main_mut::<weir_ir::core::Main>().error_logs.clear();
    (program, told.iter().map(told_text).collect())
}

fn told_text(diagnostic: &Diagnostic) -> String {
    String::from_utf8_lossy(&diagnostic.message).into_owned()
}

/// What is told of an `http` block.
pub(crate) fn told(http: &str) -> Vec<String> {
    lower(http, &[]).1
}

/// What is told of an `http` block, with other files by path: while reading it, else while compiling it.
pub(crate) fn told_with(http: &str, files: &[(&str, &str)]) -> Vec<String> {
    let (program, told) = lower(http, files);
    if !told.is_empty() {
        return told;
    }
    let resources = Resources { files: HashMap::new(), log: Log::new("weir", vec![]), before: None };
    match Generation::compile(1, &program, HTTP, resources) {
        Ok(_) => vec![],
        Err(faults) => faults.iter().map(told_text).collect(),
    }
}

/// The first thing told of an `http` block, empty where it is good.
pub(crate) fn first_told(http: &str) -> String {
    told(http).into_iter().next().unwrap_or_default()
}

#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl Sink for Lines {
    fn write(&self, _: Level, line: &[u8]) {
        self.0.lock().unwrap().push(String::from_utf8_lossy(line).into_owned());
    }
}

/// A site that is asked one connection after the other.
pub(crate) struct Site {
    generation: Arc<Generation>,
    lines: Arc<Lines>,
}

impl Site {
    /// A site of one `http` block.
    #[track_caller]
    pub(crate) fn new(http: &str) -> Self {
        Self::with_files(http, &[])
    }

    /// The same with other configuration files.
    #[track_caller]
    pub(crate) fn with_files(http: &str, files: &[(&str, &str)]) -> Self {
        let (program, told) = lower(http, files);
        assert_eq!(told, Vec::<String>::new());
        let lines = Arc::new(Lines::default());
        let target = Target::Sink(Arc::clone(&lines) as Arc<dyn Sink>);
        let log = Log::new("weir", vec![Output { level: Level::Debug, target }]);
        let resources = Resources { files: HashMap::new(), log, before: None };
        let generation = Generation::compile(1, &program, HTTP, resources).unwrap();
        Self { generation: Arc::new(generation), lines }
    }

    /// For tests that bring their own connections.
    pub(crate) fn generation(&self) -> Arc<Generation> {
        Arc::clone(&self.generation)
    }

    /// Sends bytes and gives all that comes back, without the lines that are the same everywhere.
    pub(crate) fn raw(&self, request: &str) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        let answer = local.block_on(&runtime, async {
            let (mut client, server) = UnixStream::pair().unwrap();
            let reactor = Reactor::new(Arc::clone(&self.generation), Arc::default());
            let address = Address::Ip(([127, 0, 0, 1], 80).into());
            let connection = Connection {
                number: 1,
                peer: Peer::new(Address::Ip(([127, 0, 0, 1], 40000).into())),
                local: address.clone(),
                started: 0,
                requests: Cell::new(0),
                address: Cell::new(0),
                tls: None,
                log: self.generation.log.clone(),
            };
            let io = Io::Plain(Socket::Unix(server));
            let served =
                serve(Rc::clone(&reactor), Arc::clone(&self.generation), Arc::new(address), connection, io);
            let served = tokio::task::spawn_local(served);
            client.write_all(request.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            served.await.unwrap();
            answer
        });
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let same = |line: &str| line.starts_with("Server: ") || line.starts_with("Date: ");
        answer.split_inclusive('\n').filter(|line| !same(line)).collect()
    }

    /// The answer to `METHOD URI` with header lines, head and body.
    pub(crate) fn ask(&self, line: &str, headers: &str) -> String {
        self.raw(&format!("{line} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n{headers}\r\n"))
            .replace("Connection: close\r\n", "")
            .replace('\r', "")
    }

    /// The answer to a GET in short: the status, the target of a redirect, and a body that is no plain page.
    pub(crate) fn get(&self, uri: &str) -> String {
        let answer = self.ask(&format!("GET {uri}"), "");
        let (head, body) = answer.split_once("\n\n").unwrap_or((&answer, ""));
        let mut short = head.get(9..12).unwrap_or_default().to_string();
        if let Some(location) = head.lines().find(|l| l.starts_with("Location: ")) {
            short = format!("{short} {}", &location[10..]);
        }
        if !body.is_empty() && !body.starts_with("<html>") {
            short = format!("{short} {body}");
        }
        short
    }

    /// The messages logged so far, without time and context.
    pub(crate) fn log(&self) -> Vec<String> {
        let lines = self.lines.0.lock().unwrap();
        let message = |line: &String| {
            let message =
                line.split_once(": *").and_then(|(_, m)| m.split_once(' ')).map_or(line.as_str(), |(_, m)| m);
            message.split(", client: ").next().unwrap_or_default().trim_end().to_string()
        };
        lines.iter().map(message).collect()
    }
}

/// A folder of files that is removed in the end.
pub(crate) struct Folder(std::path::PathBuf);

impl Folder {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("weir-modules-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (name, content) in files {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        Self(folder)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// Sets when a file was modified, in seconds since the epoch.
    pub(crate) fn set_modified(&self, name: &str, unix: u64) {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix);
        std::fs::File::options().write(true).open(self.0.join(name)).unwrap().set_modified(time).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

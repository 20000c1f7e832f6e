//! An engine in this process: a configuration, the caller's modules, and reactor threads on loopback.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};
use weir_engine::contract::AnyInstall;
use weir_engine::errorlog::{Log, LogFile};
use weir_engine::generation::{Generation, Resources, builtin};
use weir_engine::io::Address;
use weir_engine::worker::{ListeningSocket, Worker};
use weir_ir::http::{HttpCore, HttpUpstream};
use weir_ir::{AnyModule, Dialect, Prefixes, Program, World};
use weir_syntax::{Diagnostic, Files, Memory};

use crate::memory::{Say, Talk};
use crate::{Folder, filled, free_address};

/// The modules of a site, in their order.
#[derive(Clone, Copy, Default)]
pub struct Modules {
    pub http: &'static [&'static dyn AnyInstall],
    pub upstream: &'static [&'static dyn AnyInstall],
}

impl Modules {
    /// What there is to install, in its order.
    fn installed(self) -> Vec<&'static dyn AnyInstall> {
        self.upstream.iter().chain(self.http).copied().collect()
    }

    /// Lowers `/conf/nginx.conf`, with paths of logs and documents below `prefix`. Also gives what was told, without its
    /// places.
    pub fn lower(self, prefix: &str, files: Memory) -> (Program, Vec<String>) {
        let machine = Machine(files);
        let ast = weir_syntax::parse(&machine, b"/conf/nginx.conf", b"/conf/", None);
        let mut http: Vec<&dyn AnyModule> = vec![&HttpCore, &HttpUpstream];
        http.extend(self.http.iter().map(|m| *m as &dyn AnyModule));
        let upstream: Vec<_> = self.upstream.iter().map(|m| *m as &dyn AnyModule).collect();
        let installed = self.installed();
        let builtin = |name: &str| builtin(&installed, name);
        let dialect =
            Dialect { core: weir_ir::core::MODULES, http: &http, upstream: &upstream, builtin: &builtin };
        let prefixes = Prefixes {
            prefix: prefix.into(),
            conf: "/conf/".into(),
            access_log: format!("{prefix}logs/access.log").into(),
            ..Prefixes::default()
        };
        let (program, told) = weir_ir::lower(&ast, &prefixes, &dialect, &machine);
        (program, texts(&told))
    }

    /// Compiles a program.
    ///
    /// # Errors
    /// What the modules object to.
    pub fn compile(
        self,
        number: u64,
        program: &Program,
        resources: Resources,
    ) -> Result<Arc<Generation>, Vec<String>> {
        let compiled = Generation::compile(number, program, &self.installed(), resources);
        compiled.map(Arc::new).map_err(|faults| texts(&faults))
    }
}

fn texts(told: &[Diagnostic]) -> Vec<String> {
    told.iter().map(|d| String::from_utf8_lossy(&d.message).into_owned()).collect()
}

/// A running site. Dropped, it takes no new connection.
pub struct Site {
    address: SocketAddr,
    modules: Modules,
    worker: Running,
    sockets: Vec<ListeningSocket>,
    generation: Arc<Generation>,
    folder: Folder,
}

impl Site {
    /// Serves an `http` block's text, in which `{listen}` is the address of its one listening socket, and the other
    /// names are the caller's.
    ///
    /// # Panics
    /// If the configuration is refused or warned about.
    #[track_caller]
    pub fn start(modules: Modules, http: &str, names: &[(&str, String)]) -> Self {
        let address = free_address();
        let folder = Folder::new(&[("error.log", b"")]);
        let generation = compile(modules, 1, &text(http, names, address, &folder), None);
        let listener = TcpListener::bind(address).expect("a free address");
        listener.set_nonblocking(true).expect("a socket option");
        let socket = ListeningSocket { address: Address::Ip(address), fd: Arc::new(listener.into()) };
        let mut site =
            Self { address, modules, worker: Running::start(), sockets: vec![socket], generation, folder };
        site.publish();
        site
    }

    fn publish(&mut self) {
        self.worker.publish(&self.generation, &self.sockets);
    }

    /// Serves by another configuration from now on, as after a reload.
    ///
    /// # Panics
    /// If the configuration is refused or warned about.
    #[track_caller]
    pub fn reload(&mut self, http: &str, names: &[(&str, String)]) {
        let before = Arc::clone(&self.generation);
        let text = text(http, names, self.address, &self.folder);
        let number = before.number + 1;
        self.generation = compile(self.modules, number, &text, Some(before));
        self.publish();
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The messages logged so far, without time, connection and context.
    pub fn log(&self) -> Vec<String> {
        messages(&self.folder.read("error.log"))
    }

    /// Plays a conversation over a socket pair on a thread of its own reactor, with a clock that the script moves.
    /// Gives back all that was received.
    ///
    /// # Panics
    /// If something that the script expects does not come.
    #[track_caller]
    pub fn talk(&self, script: &[Say<'_>]) -> String {
        let peer = Address::Ip(([127, 0, 0, 1], 40000).into());
        Talk::over(&self.generation, &Arc::default(), peer, script)
    }

    /// Stops as a worker does that is told to quit: waits until all connections have ended.
    pub fn quit(self) {
        drop(self.worker.commands);
        self.worker.thread.join().expect("a worker that does not panic");
    }
}

/// A worker with one reactor, on a thread of its own. It quits when nobody can tell it anything any more.
struct Running {
    commands: mpsc::UnboundedSender<Publish>,
    thread: JoinHandle<()>,
}

struct Publish {
    generation: Arc<Generation>,
    sockets: Vec<ListeningSocket>,
    done: oneshot::Sender<io::Result<()>>,
}

impl Running {
    fn start() -> Self {
        let (commands, mut told) = mpsc::unbounded_channel::<Publish>();
        let thread = std::thread::spawn(move || {
            weir_engine::timer::runtime().expect("a runtime").block_on(async {
                let mut worker = Worker::new();
                while let Some(publish) = told.recv().await {
                    let published = worker.publish(&publish.generation, &publish.sockets, 1).await;
                    let _ = publish.done.send(published);
                }
                worker.quit().await;
            });
        });
        Self { commands, thread }
    }

    fn publish(&self, generation: &Arc<Generation>, sockets: &[ListeningSocket]) {
        let (done, published) = oneshot::channel();
        let (generation, sockets) = (Arc::clone(generation), sockets.to_vec());
        let told = self.commands.send(Publish { generation, sockets, done });
        assert!(told.is_ok(), "the worker is there until it quits");
        published.blocking_recv().expect("an answer").expect("a reactor thread");
    }
}

fn text(http: &str, names: &[(&str, String)], address: SocketAddr, folder: &Folder) -> String {
    let log = folder.path().join("error.log");
    let http = filled(http, names);
    let http = filled(&http, &[("listen", address.to_string())]);
    format!("error_log {} info; events {{}} http {{ {http} }}", log.display())
}

/// The messages of an error log's text, without time, connection and context.
pub fn messages(log: &str) -> Vec<String> {
    let message = |line: &str| {
        let said = line.split_once(": ").map_or(line, |(_, said)| said);
        let message = said.strip_prefix('*').and_then(|rest| rest.split_once(' ')).map_or(said, |(_, m)| m);
        message.split(", client: ").next().unwrap_or_default().trim_end().to_owned()
    };
    log.lines().map(message).collect()
}

#[track_caller]
fn compile(modules: Modules, number: u64, text: &str, before: Option<Arc<Generation>>) -> Arc<Generation> {
    let (program, told) = modules.lower("/", Memory::new().with("/conf/nginx.conf", text));
    assert_eq!(told, Vec::<String>::new(), "{text}");
    // The error log is there; access logs go nowhere.
    let open = |path: &Arc<str>| {
        let path = if path.ends_with("/error.log") { path } else { "/dev/null" };
        Arc::new(LogFile::open(path).expect("a log"))
    };
    let files = program.open_files.iter().map(|f| (Arc::clone(&f.path), open(&f.path))).collect();
    let resources = Resources { files, log: Log::new("weir", vec![]), before };
    modules.compile(number, &program, resources).unwrap_or_else(|told| panic!("{told:?}"))
}

/// A machine that answers from memory, on which only `localhost` has an address.
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
    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        match host {
            "localhost" => Ok(vec![IpAddr::from([127, 0, 0, 1])]),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
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
        true
    }
}

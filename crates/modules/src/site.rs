//! For tests: a configuration in memory, served to one client over a socket pair.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use weir_engine::contract::{AnyInstall, Content, Flow, Install, Step};
use weir_engine::errorlog::{self, Log, LogFile};
use weir_engine::generation::{Generation, Plan, Resources, find_builtin, find_family};
use weir_engine::http::{Exchange, Response, Template, connection};
use weir_engine::io::{Address, Io};
use weir_engine::reactor::{Counters, Reactor};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Takes};

use weir_ir::{AnyModule, Builtin, Dialect, Fault, Merge, Prefixes, Program, World};
use weir_syntax::{Files, Level, Memory};

/// `answer CODE TYPE TEXT`: content for tests.
struct Answer;

#[derive(Clone, Debug, Default)]
struct Answers(Option<(u16, Vec<u8>, weir_ir::Template)>);

impl Conf for Answers {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

impl Module for Answer {
    const NAME: &'static str = "test_answer";
    type Main = ();
    type Scope = Answers;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[Directive::<Answer>::scope("answer", Contexts::LOCATION, Takes::THREE, |answers, call| {
            let code = call.text(0).parse().map_err(|_| call.invalid_value(0))?;
            answers.0 = Some((code, call.arg(1).to_vec(), call.template(2)?));
            Ok(())
        })];
}

impl Install for Answer {
    fn install(answers: &Answers, plan: &mut Plan<'_, '_>) -> Result<(), weir_syntax::Diagnostic> {
        if let Some((code, content_type, text)) = &answers.0 {
            let handler = Answering(*code, content_type.clone(), plan.template(text));
            plan.handlers.handler = Some(Arc::new(handler));
        }
        Ok(())
    }
}

struct Answering(u16, Vec<u8>, Template);

impl Content for Answering {
    fn respond<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        let mut response = Response::with_body(self.0, self.1.clone(), self.2.value(x));
        response.last_modified = Some(784_111_777);
        Step::Now(Flow::Respond(Box::new(response)))
    }
}

struct TestWorld(Memory);

impl Files for TestWorld {
    fn read(&self, path: &[u8]) -> io::Result<Arc<[u8]>> {
        self.0.read(path)
    }

    fn glob(&self, pattern: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.0.glob(pattern)
    }
}

impl World for TestWorld {
    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        match host {
            "known.example" => Ok(vec![IpAddr::from([192, 0, 2, 7])]),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn hostname(&self) -> String {
        "test".into()
    }

    fn user(&self, _: &str) -> io::Result<(u32, u32)> {
        Ok((0, 0))
    }

    fn group(&self, _: &str) -> io::Result<u32> {
        Ok(0)
    }

    fn privileged(&self) -> bool {
        false
    }
}

fn modules() -> Vec<&'static dyn AnyInstall> {
    let mut modules: Vec<&'static dyn AnyInstall> = vec![&Answer];
    modules.extend(crate::HTTP);
    modules
}

/// Lowers the inside of an `http` block; gives the first error as nginx prints it, without its place.
pub(crate) fn lower(http: &str, prefix: &str) -> Result<Program, String> {
    let conf = format!("{prefix}conf/nginx.conf");
    let world = TestWorld(Memory::new().with(conf.clone(), format!("events {{}} http {{ {http} }}")));
    let ast = weir_syntax::parse(&world, conf.as_bytes(), prefix.as_bytes(), None);
    let installs = modules();
    let mut http_modules: Vec<&dyn AnyModule> = vec![&weir_ir::http::HttpCore];
    http_modules.extend(installs.iter().map(|m| *m as &dyn AnyModule));
    let upstream: Vec<&dyn AnyModule> = vec![];
    let builtin = |name: &str| {
        let changeable = find_builtin(&installs, name).map(|v| v.set.is_some());
        let changeable = changeable.or(find_family(&installs, name).map(|_| false));
        changeable.map(|changeable| Builtin { changeable })
    };
    let dialect =
        Dialect { core: weir_ir::core::MODULES, http: &http_modules, upstream: &upstream, builtin: &builtin };
    let prefixes = Prefixes {
        prefix: prefix.into(),
        conf: format!("{prefix}conf/").into(),
        error_log: format!("{prefix}logs/error.log").into(),
        access_log: format!("{prefix}logs/access.log").into(),
        ..Prefixes::default()
    };
    let (program, diagnostics) = weir_ir::lower(&ast, &prefixes, &dialect, &world);
    match diagnostics.iter().find(|d| d.level <= Level::Error) {
        Some(first) => Err(String::from_utf8_lossy(&first.message).into_owned()),
        None => Ok(program),
    }
}

/// Checks what `-t` says of the inside of an `http` block; nothing is success.
#[track_caller]
pub(crate) fn check_conf(http: &str, expected: &str) {
    let got = lower(http, "/prefix/").map_or_else(|message| message, |_| String::new());
    assert_eq!(got, expected, "{http}");
}

/// A folder of its own that goes away with the test.
pub(crate) struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A configuration and what it writes to.
pub(crate) struct Site {
    folder: Folder,
    generation: Arc<Generation>,
    counters: Arc<Counters>,
}

impl Site {
    /// A site of the inside of an `http` block; its server listens on port 80. `%DIR%` is the site's folder.
    #[track_caller]
    pub(crate) fn new(http: &str) -> Site {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("weir-modules-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = Folder(std::env::temp_dir().join(name));
        std::fs::create_dir_all(folder.0.join("logs")).unwrap();
        let site = Site::compile(&folder, http, None);
        Site { folder, generation: site, counters: Arc::default() }
    }

    #[track_caller]
    fn compile(folder: &Folder, http: &str, before: Option<Arc<Generation>>) -> Arc<Generation> {
        let prefix = format!("{}/", folder.0.display());
        let http = http.replace("%DIR%", prefix.trim_end_matches('/'));
        let program = lower(&http, &prefix).unwrap();
        let mut files: HashMap<_, _> = before.as_ref().map(|g| g.files().clone()).unwrap_or_default();
        for file in &program.open_files {
            let path = Arc::clone(&file.path);
            files.entry(path).or_insert_with(|| Arc::new(LogFile::open(&*file.path).unwrap()));
        }
        let error_log = LogFile::open(format!("{prefix}logs/error.log")).unwrap();
        let target = errorlog::Target::File(Arc::new(error_log));
        let log = Log::new("weir", vec![errorlog::Output { level: Level::Info, target }]);
        let resources = Resources { files, log, before };
        match Generation::compile(1, &program, &modules(), resources) {
            Ok(generation) => Arc::new(generation),
            Err(faults) => panic!("{}", String::from_utf8_lossy(&faults[0].message)),
        }
    }

    /// Goes on with another configuration.
    #[track_caller]
    pub(crate) fn reload(&mut self, http: &str) {
        self.generation = Site::compile(&self.folder, http, Some(Arc::clone(&self.generation)));
    }

    /// Puts a file into the site's folder.
    pub(crate) fn with(self, name: &str, text: &str) -> Site {
        std::fs::write(self.folder.0.join(name), text).unwrap();
        self
    }

    /// Sends bytes on a connection from 192.0.2.1 and gives all that comes back.
    pub(crate) fn talk(&self, bytes: &[u8]) -> String {
        self.talk_from("192.0.2.1:1234", bytes)
    }

    pub(crate) fn talk_from(&self, peer: &str, bytes: &[u8]) -> String {
        let peer = match peer {
            "unix:" => Address::Unix("".into()),
            peer => Address::Ip(peer.parse().unwrap()),
        };
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        client.write_all(bytes).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let runtime = weir_engine::timer::runtime().unwrap();
        let serving = async {
            let reactor = Reactor::new(Arc::clone(&self.generation), Arc::clone(&self.counters));
            let driver = tokio::task::spawn_local(reactor.timers().clone().drive());
            let io = Io::Plain(tokio::net::UnixStream::from_std(server).unwrap().into());
            let local = Address::Ip("127.0.0.1:80".parse().unwrap());
            let listener = Arc::new(Address::Ip("0.0.0.0:80".parse().unwrap()));
            for counter in [&self.counters.accepted, &self.counters.handled, &self.counters.active] {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            let connection = connection::accepted(&reactor, &self.generation, peer, local, 0);
            connection::serve(Rc::clone(&reactor), Arc::clone(&self.generation), listener, connection, io)
                .await;
            driver.abort();
            self.counters.active.fetch_sub(1, Ordering::Relaxed);
        };
        runtime.block_on(serving);
        let mut answer = vec![];
        client.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Asks for a path, with more header lines that end in CRLF.
    pub(crate) fn get(&self, path: &str, headers: &str) -> String {
        self.get_from("192.0.2.1:1234", path, headers)
    }

    pub(crate) fn get_from(&self, peer: &str, path: &str, headers: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
        self.talk_from(peer, request.as_bytes())
    }

    /// What the site's generation keeps under a type and a name.
    #[track_caller]
    pub(crate) fn kept<T: std::any::Any + Send + Sync>(&self, name: &str) -> Arc<T> {
        self.generation.kept(name).unwrap()
    }

    /// The text of a file of the site's folder.
    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.0.join(name)).unwrap_or_default()
    }

    /// The messages of the error log from level `[error]` on, times and contexts cut off.
    pub(crate) fn errors(&self) -> Vec<String> {
        let log = self.read("logs/error.log");
        let lines = log.lines().filter(|line| !line.contains("[info]"));
        lines.map(|line| line.split_once(": *").map_or(line, |(_, rest)| rest)).map(cut).collect()
    }
}

fn cut(line: &str) -> String {
    let (_, message) = line.split_once(' ').unwrap_or((line, line));
    message.split(", client: ").next().unwrap_or_default().to_owned()
}

/// The value of a header of a response.
pub(crate) fn header<'r>(response: &'r str, name: &str) -> Option<&'r str> {
    let head = response.split("\r\n\r\n").next()?;
    head.lines().skip(1).find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// The code of a response.
pub(crate) fn code(response: &str) -> &str {
    response.split(' ').nth(1).unwrap_or("")
}

//! For tests: a site of all modules, asked in memory over a socket pair.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use weir_engine::contract::{AnyInstall, Content, Flow, Install, Step};
use weir_engine::errorlog::{Log, LogFile};
use weir_engine::generation::{ContentHandler, Generation, Plan, Resources};
use weir_engine::http::{Exchange, Response, Template};
use weir_engine::io::Address;
use weir_engine::reactor::Counters;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Takes};
use weir_ir::{Fault, Merge};
use weir_syntax::{Diagnostic, Memory};
use weir_testkit::{Folder, Modules, Say, Talk, http2, messages};

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
    fn install(answers: &Answers, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if let Some((code, content_type, text)) = &answers.0 {
            let handler = Answering(*code, content_type.clone(), plan.template(text));
            plan.handlers.handler = Some(ContentHandler::Content(Arc::new(handler)));
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

thread_local! {
    /// What the next request of this thread is for.
    static RUN: RefCell<Option<Box<dyn FnOnce(&mut Exchange)>>> = const { RefCell::new(None) };
}

/// Content for [`with_exchange`].
struct Run;

impl Module for Run {
    const NAME: &'static str = "test_run";
    type Main = ();
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] = &[];
}

impl Install for Run {
    fn install((): &(), plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        plan.handlers.content.push(Box::new(Run));
        Ok(())
    }
}

impl Content for Run {
    fn respond<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        let Some(run) = RUN.take() else { return Step::Now(Flow::Decline) };
        run(x);
        Step::Now(Flow::Answer(204))
    }
}

/// Does something that needs an exchange with one.
#[track_caller]
pub(crate) fn with_exchange<T: 'static>(run: impl FnOnce(&mut Exchange) -> T + 'static) -> T {
    let made = Rc::new(Cell::new(None));
    let kept = Rc::clone(&made);
    RUN.set(Some(Box::new(move |x| kept.set(Some(run(x))))));
    Site::new("server { location / { } }").get("/", "");
    made.take().expect("it was run")
}

fn modules() -> Modules {
    static HTTP: LazyLock<Vec<&dyn AnyInstall>> =
        LazyLock::new(|| [&[&Answer as &dyn AnyInstall, &Run], crate::HTTP].concat());
    Modules { http: &HTTP, upstream: crate::UPSTREAM }
}

/// Compiles the inside of an `http` block, with other files by path, into what goes on from `before`; or gives what was
/// told of it. Logs are written below the folder, or not at all.
fn compile(
    http: &str,
    files: &[(&str, &str)],
    folder: Option<&Folder>,
    before: Option<Arc<Generation>>,
) -> Result<Arc<Generation>, Vec<String>> {
    let folder_path = folder.map_or("".into(), |folder| folder.path().to_string_lossy());
    let http = http.replace("%DIR%", &folder_path);
    let conf = format!("error_log logs/error.log info; events {{}} http {{ {http} }}");
    let memory = files.iter().fold(Memory::new(), |m, (path, text)| m.with(*path, text));
    let (program, told) = modules().lower(&format!("{folder_path}/"), memory.with("/conf/nginx.conf", conf));
    if !told.is_empty() {
        return Err(told);
    }
    let mut files: HashMap<_, _> = before.as_ref().map(|g| g.files().clone()).unwrap_or_default();
    for file in &program.open_files {
        let path = if folder.is_some() { &*file.path } else { "/dev/null" };
        files.entry(Arc::clone(&file.path)).or_insert_with(|| Arc::new(LogFile::open(path).unwrap()));
    }
    modules().compile(1, &program, Resources { files, log: Log::new("weir", vec![]), before })
}

/// What is told of the inside of an `http` block, with other files by path: while reading it, else while compiling it.
pub(crate) fn told(http: &str, files: &[(&str, &str)]) -> Vec<String> {
    compile(http, files, None, None).err().unwrap_or_default()
}

/// Checks the first thing told of the inside of an `http` block; nothing is success.
#[track_caller]
pub(crate) fn check_conf(http: &str, expected: &str) {
    assert_eq!(told(http, &[]).into_iter().next().unwrap_or_default(), expected, "{http}");
}

/// Where requests come from unless a test says otherwise.
const PEER: &str = "127.0.0.1:40000";

/// A configuration and what it writes to.
pub(crate) struct Site {
    folder: Folder,
    generation: Arc<Generation>,
    counters: Arc<Counters>,
}

impl Site {
    /// A site of the inside of an `http` block, of which the first address is asked. `%DIR%` is the site's folder.
    #[track_caller]
    pub(crate) fn new(http: &str) -> Self {
        Self::with_files(http, &[])
    }

    /// The same with other configuration files by path.
    #[track_caller]
    pub(crate) fn with_files(http: &str, files: &[(&str, &str)]) -> Self {
        let folder = Folder::new(&[("logs/.keep", b"")]);
        let generation = compile(http, files, Some(&folder), None).unwrap();
        Self { folder, generation, counters: Arc::default() }
    }

    /// Goes on with another configuration.
    #[track_caller]
    pub(crate) fn reload(&mut self, http: &str) {
        let before = Arc::clone(&self.generation);
        self.generation = compile(http, &[], Some(&self.folder), Some(before)).unwrap();
    }

    /// Puts a file into the site's folder.
    pub(crate) fn with(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        self.folder.write(name, text);
        self
    }

    /// Where a file of the site's folder is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn generation(&self) -> &Arc<Generation> {
        &self.generation
    }

    /// The text of a file of the site's folder.
    pub(crate) fn read(&self, name: &str) -> String {
        self.folder.read(name)
    }

    /// The messages logged so far, without time and context.
    pub(crate) fn log(&self) -> Vec<String> {
        messages(&self.read("logs/error.log"))
    }

    /// Plays a conversation on a connection from an address, and gives all that comes back.
    #[track_caller]
    pub(crate) fn talk(&self, peer: &str, script: &[Say<'_>]) -> String {
        let peer = match peer {
            "unix:" => Address::Unix("".into()),
            peer => Address::Ip(peer.parse().unwrap()),
        };
        Talk::over(&self.generation, &self.counters, peer, script)
    }

    /// Plays a conversation over HTTP/2, and gives what comes back in short.
    #[track_caller]
    pub(crate) fn frames(&self, script: &[Say<'_>]) -> Vec<String> {
        let peer = Address::Ip(PEER.parse().unwrap());
        http2::told(&Talk::bytes_over(&self.generation, &self.counters, peer, script))
    }

    /// Sends bytes on a connection from 127.0.0.1 and gives all that comes back.
    #[track_caller]
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        self.talk(PEER, &[Say::Send(bytes), Say::Finish])
    }

    /// Asks for a path, with more header lines that end in CRLF.
    #[track_caller]
    pub(crate) fn get(&self, path: &str, headers: &str) -> String {
        self.get_from(PEER, path, headers)
    }

    #[track_caller]
    pub(crate) fn get_from(&self, peer: &str, path: &str, headers: &str) -> String {
        self.request(peer, &format!("GET {path}"), headers)
    }

    #[track_caller]
    fn request(&self, peer: &str, line: &str, headers: &str) -> String {
        let request = format!("{line} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n{headers}\r\n");
        self.talk(peer, &[Say::Send(request.as_bytes()), Say::Finish])
    }

    /// The answer to `METHOD URI` with header lines, without CRs and the header lines that are the same everywhere.
    #[track_caller]
    pub(crate) fn ask(&self, line: &str, headers: &str) -> String {
        let answer = self.request(PEER, line, headers).replace('\r', "");
        let same =
            |line: &&str| ["Server: ", "Date: ", "Connection: close\n"].iter().any(|s| line.starts_with(s));
        answer.split_inclusive('\n').filter(|line| !same(line)).collect()
    }

    /// The answer to a GET in short: the status, the target of a redirect, and a body that is no plain page.
    #[track_caller]
    pub(crate) fn short(&self, uri: &str) -> String {
        let answer = self.get(uri, "");
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let body = Some(body).filter(|body| !body.is_empty() && !body.starts_with("<html>"));
        let parts = [Some(code(&answer)), header(&answer, "Location"), body];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
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

//! A generation: one configuration, compiled for execution and shared by all threads.
//!
//! It never changes once it is published. A reload publishes another; requests finish on the one that they
//! began with.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use weir_ir::cidr::Cidr;
use weir_ir::core::error_log::{ErrorLog, Target};
use weir_ir::core::syslog::Syslog;
use weir_ir::core::{Events, Main};
use weir_ir::http::HttpCore;
use weir_ir::http::core::OpenFileCache;
use weir_ir::http::listen::{Protocols, Socket};
use weir_ir::program::{Http, LocationMatch, Origin, Program, ScopeKind};
use weir_ir::{LocationId, VariableId};
use weir_syntax::{Diagnostic, Level};

use crate::cache::{Spec, Zone};
use crate::contract::{
    AnyInstall, BoxFuture, Check, Content, Evaluate, Family, Filter, LogHandler, Variable,
};
use crate::errorlog::{self, Log, LogFile};
use crate::http::Exchange;
use crate::http::early_body::EarlyBody;
use crate::http::router::{Locations, ServerNames};
use crate::http::template::{Assign, Piece, Reference};
use crate::http::{Template, variables};
use crate::http1::Known;
use crate::open_files;
use crate::reactor::Reactor;
use crate::resolver::Resolver;
use crate::settings::CoreSettings;
use crate::syslog::{Peer, Peers};
use crate::tls::ServerTls;
use crate::upstream::{self, Live, Protocol, Upstream};

/// What compiling takes from the process: files that it holds open, state that outlives generations.
pub struct Resources {
    /// Logs by absolute path; every path that the program names is there.
    pub files: HashMap<Arc<str>, Arc<LogFile>>,
    /// The log before any configuration says otherwise.
    pub log: Log,
    /// The generation before, whose peers and sessions are carried over.
    pub before: Option<Arc<Generation>>,
}

/// One configuration, ready to be executed.
pub struct Generation {
    /// Counted from 1 by the master.
    pub number: u64,
    pub locations: Vec<Location>,
    /// In the order of the program's addresses.
    pub addresses: Vec<Address>,
    pub sockets: Vec<Socket>,
    pub upstreams: Vec<Arc<Upstream>>,
    pub(crate) caches: Vec<Arc<Zone>>,
    pub(crate) chores: Vec<Chore>,
    pub(crate) slots: Vec<Slot>,
    pub log: Log,
    /// Some log takes debugging messages.
    pub(crate) debugs: bool,
    /// `debug_connection`: clients of whose connections all is written.
    debugged: Vec<Cidr>,
    /// Connections that a thread holds at most, clients and upstreams together.
    pub worker_connections: u64,
    /// Some `$upstream_http_…` or `$upstream_cookie_…` is used: the headers of upstreams are kept for it.
    pub(crate) keeps_upstream_headers: bool,
    /// Milliseconds that connections of this generation live on after it was replaced; 0 is no bound.
    pub shutdown_timeout: u64,
    pub(crate) files: HashMap<Arc<str>, Arc<LogFile>>,
    kept: Kept,
}

/// What modules keep for the life of a generation.
type Kept = HashMap<(TypeId, Box<str>), Arc<dyn Any + Send + Sync>>;

/// An address and the servers on it.
pub struct Address {
    pub address: weir_ir::address::Address,
    pub protocols: Protocols,
    pub names: ServerNames,
    pub default_server: LocationId,
    pub servers: Vec<LocationId>,
}

/// Work that goes on for as long as a generation is served by, on one thread for all of them.
pub(crate) struct Chore {
    taken: AtomicBool,
    begin: Box<Begin>,
}

type Begin = dyn Fn(&Rc<Reactor>, &Arc<Generation>) -> BoxFuture<'static, ()> + Send + Sync;

impl Chore {
    /// The work, for the first thread that asks; whoever runs it ends it.
    pub(crate) fn take(
        &self,
        reactor: &Rc<Reactor>,
        generation: &Arc<Generation>,
    ) -> Option<BoxFuture<'static, ()>> {
        let taken = self.taken.swap(true, Ordering::Relaxed);
        (!taken).then(|| (self.begin)(reactor, generation))
    }
}

/// Where a declared variable has its value from.
pub(crate) enum Slot {
    /// Written by handlers (`set`, captures).
    Stored,
    /// Computed when asked for, then kept for the request unless it is volatile.
    Computed { evaluate: Box<dyn Evaluate>, volatile: bool },
    /// One of weir's own, asked by name at compile time.
    Builtin,
}

/// What a level of the tree does, compiled.
pub struct Location {
    pub kind: ScopeKind,
    /// The name of the location as written; blocks inside a location (`if`) have that location's.
    name: Box<[u8]>,
    regex: bool,
    pub core: CoreSettings,
    pub server: LocationId,
    /// Of a server: CONNECT is not refused.
    pub(crate) allows_connect: bool,
    pub log: Log,
    pub children: Locations,
    pub handlers: Handlers,
    pub tls: Option<Arc<ServerTls>>,
}

/// What makes the response of a location that has a handler of its own.
#[derive(Clone)]
pub enum ContentHandler {
    Content(Arc<dyn Content>),
    /// An upstream is asked.
    Upstream(Arc<dyn Protocol>),
}

/// The handlers of a level, in the order of nginx's phases.
#[derive(Default)]
pub struct Handlers {
    /// After the head was read, before any rewriting: of the server.
    pub post_read: Vec<Box<dyn Check>>,
    /// The rewrite phase; of a server level it is the server-rewrite phase.
    pub rewrite: Vec<Box<dyn Check>>,
    pub preaccess: Vec<Box<dyn Check>>,
    pub access: Vec<Box<dyn Check>>,
    pub precontent: Vec<Box<dyn Check>>,
    /// The handler of the location (`proxy_pass`, …), which stands alone.
    pub handler: Option<ContentHandler>,
    /// The handler ends in a slash and a request without it is sent there (`auto_redirect`).
    pub auto_redirect: bool,
    /// Handlers of any location, asked in order until one has content (index, static).
    pub content: Vec<Box<dyn Content>>,
    pub filters: Vec<Box<dyn Filter>>,
    pub log: Vec<Box<dyn LogHandler>>,
    /// What modules want to find again from the location of a request, by type.
    attached: Vec<Box<dyn Any + Send + Sync>>,
}

impl Handlers {
    /// Leaves something of a module with the level, for variables whose value depends on where the request is.
    pub fn attach<T: Any + Send + Sync>(&mut self, value: T) {
        self.attached.push(Box::new(value));
    }
}

impl Location {
    /// The name as written, for prefix replacement by `alias` and `proxy_pass`.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// How the debug log tells that it was chosen.
    pub(crate) fn debug_text(&self) -> String {
        let exact = matches!(self.kind, ScopeKind::Location(LocationMatch::Exact(_)));
        let sign = if exact { "=" } else { "" };
        format!("using configuration \"{sign}{}\"", String::from_utf8_lossy(&self.name))
    }

    pub fn is_regex(&self) -> bool {
        self.regex
    }

    /// What a module left with the level.
    pub fn attached<T: Any>(&self) -> Option<&T> {
        self.handlers.attached.iter().find_map(|value| value.downcast_ref())
    }
}

impl Generation {
    pub fn location(&self, id: LocationId) -> &Location {
        &self.locations[id.0 as usize]
    }

    /// The address in the configuration of a connection that a listener took: the most specific one of those that
    /// the listener serves. `None` where this generation does not listen there.
    pub fn address_of(&self, listener: &crate::io::Address, local: &crate::io::Address) -> Option<usize> {
        let socket = self.sockets.iter().find(|s| s.address == *listener)?;
        let exact = socket.serves.iter().skip(1).find(|at| self.addresses[**at].address == *local);
        exact.or(socket.serves.first()).copied()
    }

    /// Compiles a program.
    ///
    /// # Errors
    /// Everything that the modules object to, in nginx's words.
    pub fn compile(
        number: u64,
        program: &Program,
        modules: &[&dyn AnyInstall],
        resources: Resources,
    ) -> Result<Self, Vec<Diagnostic>> {
        let process = program.main.main::<Main>();
        let events = program.main.main::<Events>();
        let Resources { files, log, before } = resources;
        // What goes wrong with syslog is told to the other logs.
        let mut peers = Peers::new(log.without_sinks());
        peers = Peers::new(with_logs(&log, &process.error_logs, &files, &mut peers).without_sinks());
        let log = with_logs(&log, &process.error_logs, &files, &mut peers);
        let mut faults = vec![];
        let mut build = Build::new(program, modules, files, peers, before, log.clone());
        let mut locations = vec![];
        let mut addresses = vec![];
        let mut sockets = vec![];
        if let Some(http) = &program.http {
            build.open_upstreams();
            for module in modules {
                if let Err(fault) = module.prepare(&http.main, &mut build) {
                    faults.push(fault);
                }
            }
            build.start_upstreams(http);
            for index in 0..http.scopes.len() {
                match compile_location(LocationId(index as u32), &mut build, modules) {
                    Ok(mut location) => {
                        // An `if` goes on with the handler of the location around it, unless it has its own.
                        let parent =
                            http.scopes[index].parent.filter(|_| matches!(location.kind, ScopeKind::If));
                        if let (None, Some(parent)) = (&location.handlers.handler, parent) {
                            let outer = locations.get(parent.0 as usize).map(|l: &Location| &l.handlers);
                            location.handlers.handler = outer.and_then(|h| h.handler.clone());
                        }
                        locations.push(location);
                    }
                    Err(fault) => faults.push(fault),
                }
            }
            for bound in &http.bound {
                addresses.push(Address {
                    address: bound.address.clone(),
                    protocols: bound.protocols,
                    names: ServerNames::new(http, &bound.servers),
                    default_server: bound.default_server,
                    servers: bound.servers.clone(),
                });
            }
            sockets = weir_ir::http::listen::sockets(http);
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let debugs = locations.iter().any(|location: &Location| location.log.takes(Level::Debug));
        let Build { slots, upstreams, caches, chores, files, kept, keeps_upstream_headers, .. } = build;
        Ok(Self {
            number,
            locations,
            addresses,
            sockets,
            upstreams,
            caches,
            chores,
            slots,
            log,
            debugs,
            debugged: events.debugged.clone(),
            worker_connections: events.worker_connections.or(512),
            keeps_upstream_headers,
            shutdown_timeout: process.worker_shutdown_timeout.or(0),
            files,
            kept,
        })
    }

    /// The log of a new connection at that server.
    pub(crate) fn log_of(&self, server: LocationId, number: u64, peer: &crate::io::Address) -> Log {
        let log = self.location(server).log.with_connection(number);
        if self.debugged.iter().any(|range| range.contains(peer)) { log.debugging() } else { log }
    }

    /// What a module keeps under that type and name.
    pub fn kept<T: Any + Send + Sync>(&self, name: &str) -> Option<Arc<T>> {
        find_kept(&self.kept, name)
    }

    /// The logs that this generation writes to, by path.
    pub fn files(&self) -> &HashMap<Arc<str>, Arc<LogFile>> {
        &self.files
    }
}

fn uses_upstream_headers(http: &Http) -> bool {
    let ids = (0..http.variables.entries.len()).map(|index| VariableId(index as u32));
    ids.map(|id| http.variables.name(id))
        .any(|name| name.starts_with("upstream_http_") || name.starts_with("upstream_cookie_"))
}

fn with_logs(
    log: &Log,
    logs: &[ErrorLog],
    files: &HashMap<Arc<str>, Arc<LogFile>>,
    peers: &mut Peers,
) -> Log {
    if logs.is_empty() {
        return log.clone();
    }
    let outputs = logs.iter().filter_map(|l| {
        let target = match &l.target {
            Target::Stderr => errorlog::Target::Stderr,
            Target::File(path) => errorlog::Target::File(Arc::clone(files.get(path)?)),
            Target::Syslog(spec) => errorlog::Target::Sink(peers.get(spec)),
        };
        Some(errorlog::Output { level: l.level, target })
    });
    log.with_outputs(outputs.collect())
}

fn compile_location(
    id: LocationId,
    build: &mut Build<'_>,
    modules: &[&dyn AnyInstall],
) -> Result<Location, Diagnostic> {
    let program = build.program;
    let http = program.http.as_ref().expect("levels exist only in an http block");
    let scope = http.scope(id);
    let core_conf = scope.confs.get::<HttpCore>();
    let core = CoreSettings::compile(&core_conf, build);
    let log = with_logs(&build.log, &core_conf.error_logs, &build.files, &mut build.peers);
    let early: Vec<_> = core_conf.early_read.iter().map(|value| build.template(value)).collect();
    let mut plan = Plan { build, id, handlers: Handlers::default(), tls: None };
    if !early.is_empty() {
        plan.handlers.post_read.push(Box::new(EarlyBody(early)));
    }
    for module in modules {
        module.install(&scope.confs, &mut plan)?;
    }
    let Plan { handlers, tls, .. } = plan;
    let mut named = scope;
    while let (ScopeKind::If | ScopeKind::LimitExcept, Some(parent)) = (&named.kind, named.parent) {
        named = http.scope(parent);
    }
    let (name, regex) = match &named.kind {
        ScopeKind::Location(pattern) => (pattern.name(), matches!(pattern, LocationMatch::Regex(_))),
        ScopeKind::Http | ScopeKind::Server | ScopeKind::If | ScopeKind::LimitExcept => (&b""[..], false),
    };
    Ok(Location {
        kind: scope.kind.clone(),
        name: name.into(),
        regex,
        core,
        server: scope.server.unwrap_or(id),
        allows_connect: scope.allows_connect,
        log,
        children: Locations::new(http, id),
        handlers,
        tls,
    })
}

/// Compiling: what a module's `prepare` may look at and register with.
pub struct Build<'p> {
    pub program: &'p Program,
    modules: &'p [&'p dyn AnyInstall],
    pub(crate) slots: Vec<Slot>,
    pub(crate) upstreams: Vec<Arc<Upstream>>,
    caches: Vec<Arc<Zone>>,
    chores: Vec<Chore>,
    files: HashMap<Arc<str>, Arc<LogFile>>,
    peers: Peers,
    kept: Kept,
    keeps_upstream_headers: bool,
    /// By the directives that they are of.
    resolvers: Vec<(Arc<weir_ir::http::resolver::Resolver>, Arc<Resolver>)>,
    open_files: Vec<(Arc<OpenFileCache>, Arc<open_files::Cache>)>,
    pub before: Option<Arc<Generation>>,
    pub log: Log,
}

impl<'p> Build<'p> {
    fn new(
        program: &'p Program,
        modules: &'p [&'p dyn AnyInstall],
        files: HashMap<Arc<str>, Arc<LogFile>>,
        peers: Peers,
        before: Option<Arc<Generation>>,
        log: Log,
    ) -> Self {
        let entries = program.http.as_ref().map_or(&[][..], |h| &h.variables.entries);
        let slots = entries.iter().map(|entry| match entry.origin {
            Origin::Builtin => Slot::Builtin,
            Origin::Declared | Origin::Unknown => Slot::Stored,
        });
        let (slots, kept) = (slots.collect(), Kept::new());
        let (upstreams, caches) = (vec![], vec![]);
        let keeps_upstream_headers = program.http.as_ref().is_some_and(uses_upstream_headers);
        Self {
            program,
            modules,
            slots,
            upstreams,
            caches,
            chores: vec![],
            files,
            peers,
            kept,
            keeps_upstream_headers,
            resolvers: vec![],
            open_files: vec![],
            before,
            log,
        }
    }

    fn open_upstreams(&mut self) {
        let http = self.program.http.as_ref().expect("called for an http block");
        for upstream in &http.upstreams {
            let before = self.before_upstream(upstream);
            let living = upstream.servers.iter().any(|server| server.resolve.is_some());
            let resolver = upstream.resolver.as_ref().filter(|_| living).map(|of| self.resolver(of));
            let live = resolver.map(|resolver| {
                Live::open(upstream, resolver, before.as_ref().and_then(|before| before.live.as_ref()))
            });
            self.upstreams.push(Arc::new(Upstream::open(upstream, live, before.as_deref())));
        }
    }

    /// The group of the generation before.
    fn before_upstream(&self, upstream: &weir_ir::program::Upstream) -> Option<Arc<Upstream>> {
        self.before.as_ref()?.upstreams.iter().find(|u| u.is_of(upstream)).cloned()
    }

    /// Once all modules have edited the groups: those whose peers come and go are made for the first time.
    fn start_upstreams(&mut self, http: &Http) {
        for (index, upstream) in http.upstreams.iter().enumerate() {
            let group = self.upstream(index);
            let before = self.before_upstream(upstream).map(|before| before.current());
            group.start_living(before.as_deref());
            for server in group.to_follow() {
                let group = Arc::clone(&group);
                self.chore(move |reactor, generation| {
                    let (group, reactor) = (Arc::clone(&group), Rc::clone(reactor));
                    Box::pin(upstream::follow(group, server, reactor, generation.log.clone()))
                });
            }
        }
    }

    /// Has something done for as long as the generation is served by, on one of the threads. It ends wherever it waits.
    pub fn chore(
        &mut self,
        begin: impl Fn(&Rc<Reactor>, &Arc<Generation>) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) {
        self.chores.push(Chore { taken: AtomicBool::new(false), begin: Box::new(begin) });
    }

    /// Opens a cache, which goes on from the generation before where that had it.
    ///
    /// # Errors
    /// It was somewhere else there.
    pub fn open_cache(&mut self, spec: &Arc<Spec>) -> Result<(), Diagnostic> {
        let same = |zone: &&Arc<Zone>| zone.spec.name == spec.name;
        let before = self.before.as_ref().and_then(|g| g.caches.iter().find(same));
        let zone = Zone::open(spec, before.map(|zone| &**zone), &self.log)
            .map_err(|message| Diagnostic::new(Level::Emerg, message))?;
        self.caches.push(Arc::new(zone));
        Ok(())
    }

    /// The caches that are open.
    pub fn caches(&self) -> &[Arc<Zone>] {
        &self.caches
    }

    /// Gives a declared variable its evaluation. `volatile` values are computed each time anew.
    pub fn define(&mut self, id: VariableId, evaluate: Box<dyn Evaluate>, volatile: bool) {
        self.slots[id.0 as usize] = Slot::Computed { evaluate, volatile };
    }

    /// The open log of a path that the configuration named.
    pub fn file(&self, path: &str) -> Option<Arc<LogFile>> {
        self.files.get(path).cloned()
    }

    /// The syslog server that the configuration named.
    pub fn syslog(&mut self, spec: &Arc<Syslog>) -> Arc<Peer> {
        self.peers.get(spec)
    }

    /// The resolver of a directive, the same for all levels that share it.
    pub fn resolver(&mut self, of: &Arc<weir_ir::http::resolver::Resolver>) -> Arc<Resolver> {
        if let Some((_, resolver)) = self.resolvers.iter().find(|(known, _)| Arc::ptr_eq(known, of)) {
            return Arc::clone(resolver);
        }
        let resolver = Arc::new(Resolver::open(of, self.log.clone()));
        self.resolvers.push((Arc::clone(of), Arc::clone(&resolver)));
        resolver
    }

    /// The cache of a directive, the same for all levels that share it.
    pub(crate) fn open_files(&mut self, of: &Arc<OpenFileCache>) -> Arc<open_files::Cache> {
        if let Some((_, cache)) = self.open_files.iter().find(|(known, _)| Arc::ptr_eq(known, of)) {
            return Arc::clone(cache);
        }
        let max = usize::try_from(of.max).unwrap_or(usize::MAX);
        let cache = Arc::new(open_files::Cache::new(max, of.inactive.saturating_mul(1000)));
        self.open_files.push((Arc::clone(of), Arc::clone(&cache)));
        cache
    }

    pub fn upstream(&self, index: usize) -> Arc<Upstream> {
        Arc::clone(&self.upstreams[index])
    }

    /// Lets a module of the `upstream` context change a group: its balancer, its pool's rules. It is asked for
    /// each group that is made where peers come and go.
    pub fn edit_upstream(&mut self, index: usize, edit: impl Fn(&mut Upstream) + Send + Sync + 'static) {
        if let Some(group) = Arc::get_mut(&mut self.upstreams[index]) {
            match &mut group.live {
                Some(live) => live.edits.push(Box::new(edit)),
                None => edit(group),
            }
        }
    }

    /// A variable's own function where weir has one: spine first, then the modules.
    pub fn builtin(&self, name: &str) -> Option<Variable> {
        find_builtin(self.modules, name)
    }

    /// The family that a variable of that name belongs to (`http_…`), and the rest of the name.
    pub fn family<'n>(&self, name: &'n str) -> Option<(Family, &'n str)> {
        find_family(self.modules, name)
    }

    pub fn template(&self, template: &weir_ir::Template) -> Template {
        let pieces = template.parts.iter().map(|part| match part {
            weir_ir::Part::Literal(text) => Piece::Literal(text.clone()),
            weir_ir::Part::Capture(n) => Piece::Capture(*n),
            weir_ir::Part::Variable(id) => self.reference(*id).piece,
        });
        Template { pieces: pieces.collect() }
    }

    /// The way to give a variable a value.
    pub fn assign(&self, id: VariableId) -> Assign {
        let http = self.program.http.as_ref();
        let name = http.expect("variables are of the http block").variables.name(id);
        let own = self.builtin(name).and_then(|variable| variable.set);
        own.map_or(Assign::Slot(id), Assign::Own)
    }

    /// Every variable by name, for pages that name them. The headers of upstreams are kept for these too.
    pub fn names(&mut self) -> Names {
        self.keeps_upstream_headers = true;
        let http = self.program.http.as_ref().expect("variables are of the http block");
        let own = variables::VARIABLES.iter().chain(upstream::variables::VARIABLES);
        let own = own.chain(self.modules.iter().flat_map(|m| m.variables()));
        let mut pieces: HashMap<Box<str>, Piece> =
            own.map(|own| (own.name.into(), Piece::Get(own.get))).collect();
        for index in 0..http.variables.entries.len() {
            let id = VariableId(index as u32);
            pieces.insert(http.variables.name(id).into(), self.reference(id).piece);
        }
        let families = variables::FAMILIES.iter().chain(upstream::variables::FAMILIES);
        let families = families.chain(self.modules.iter().flat_map(|m| m.families()));
        Names { pieces, families: families.copied().collect() }
    }

    /// A variable by itself.
    pub fn reference(&self, id: VariableId) -> Reference {
        let http = self.program.http.as_ref();
        let variables = &http.expect("variables are of the http block").variables;
        // A declared variable shadows a changeable one of weir's own only in its slot.
        let piece = if variables.entries[id.0 as usize].origin == Origin::Declared {
            match self.builtin(variables.name(id)) {
                Some(own) if !own.replaceable => Piece::Get(own.get),
                Some(_) => Piece::SlotOr(id, self.piece(variables.name(id), id).into()),
                None => match self.piece(variables.name(id), id) {
                    slot @ Piece::Slot(_) => slot,
                    own => Piece::SlotOr(id, own.into()),
                },
            }
        } else {
            self.piece(variables.name(id), id)
        };
        Reference { piece }
    }

    /// Keeps something of a module for the life of the generation, under its type and a name: what `prepare` made
    /// for `install`, and zones, which the next generation may take over.
    pub fn keep<T: Any + Send + Sync>(&mut self, name: &str, value: Arc<T>) {
        self.kept.insert((TypeId::of::<T>(), name.into()), value);
    }

    /// What this generation keeps under that type and name.
    pub fn kept<T: Any + Send + Sync>(&self, name: &str) -> Option<Arc<T>> {
        find_kept(&self.kept, name)
    }

    /// What the generation before kept under that type and name.
    pub fn kept_before<T: Any + Send + Sync>(&self, name: &str) -> Option<Arc<T>> {
        self.before.as_ref()?.kept(name)
    }

    fn piece(&self, name: &str, id: VariableId) -> Piece {
        if let Some(variable) = self.builtin(name) {
            return Piece::Get(variable.get);
        }
        // Headers that heads know by number need no search by name; cookies are joined in another way.
        let header = name.strip_prefix("http_").map(|rest| Known::of(rest.replace('_', "-").as_bytes()));
        if let Some(known) = header.filter(|known| !matches!(known, Known::Other | Known::Cookie)) {
            return Piece::Header(known);
        }
        match find_family(self.modules, name) {
            Some((family, rest)) => Piece::GetOf(family.get, rest.into()),
            None => Piece::Slot(id),
        }
    }
}

/// Variables by name, for names that only a request brings (`<!--#echo var="…" -->`).
pub struct Names {
    pieces: HashMap<Box<str>, Piece>,
    families: Vec<Family>,
}

impl Names {
    /// Appends the value of the variable of that name in lower case; false where there is none, or it has no value.
    pub fn append(&self, name: &str, x: &Exchange, out: &mut Vec<u8>) -> bool {
        if let Some(piece) = self.pieces.get(name) {
            return piece.append(x, out);
        }
        let found = self.families.iter().find_map(|f| name.strip_prefix(f.prefix).map(|rest| (f.get, rest)));
        found.is_some_and(|(get, rest)| get(x, rest, out))
    }
}

fn find_kept<T: Any + Send + Sync>(kept: &Kept, name: &str) -> Option<Arc<T>> {
    let found = kept.get(&(TypeId::of::<T>(), Box::from(name)))?;
    Arc::clone(found).downcast().ok()
}

/// Finds a variable of weir's own by name.
fn find_builtin(modules: &[&dyn AnyInstall], name: &str) -> Option<Variable> {
    let own = variables::VARIABLES.iter().chain(upstream::variables::VARIABLES);
    own.chain(modules.iter().flat_map(|m| m.variables())).find(|v| v.name == name).copied()
}

/// Variables that nginx has by their whole names though they are like those of a family: they cannot be `set`.
const FIXED: [&str; 15] = [
    "http_host",
    "http_user_agent",
    "http_referer",
    "http_via",
    "http_x_forwarded_for",
    "http_cookie",
    "sent_http_content_type",
    "sent_http_content_length",
    "sent_http_location",
    "sent_http_last_modified",
    "sent_http_connection",
    "sent_http_keep_alive",
    "sent_http_transfer_encoding",
    "sent_http_cache_control",
    "sent_http_link",
];

/// What a dialect answers for a variable that needs no declaration.
pub fn builtin(modules: &[&dyn AnyInstall], name: &str) -> Option<weir_ir::Builtin> {
    if let Some(own) = find_builtin(modules, name) {
        return Some(weir_ir::Builtin { changeable: own.set.is_some() || own.replaceable });
    }
    find_family(modules, name).map(|_| weir_ir::Builtin { changeable: !FIXED.contains(&name) })
}

/// Finds the family that a variable's name belongs to, and the rest of the name.
fn find_family<'n>(modules: &[&dyn AnyInstall], name: &'n str) -> Option<(Family, &'n str)> {
    let own = variables::FAMILIES.iter().chain(upstream::variables::FAMILIES);
    let mut families = own.chain(modules.iter().flat_map(|m| m.families()));
    families.find_map(|f| name.strip_prefix(f.prefix).map(|rest| (*f, rest)))
}

/// Compiling one level: what a module's `install` adds its handlers to.
pub struct Plan<'b, 'p> {
    pub build: &'b mut Build<'p>,
    pub id: LocationId,
    pub handlers: Handlers,
    pub tls: Option<Arc<ServerTls>>,
}

impl Plan<'_, '_> {
    pub fn kind(&self) -> &ScopeKind {
        &self.scope().kind
    }

    pub fn scope(&self) -> &weir_ir::Scope {
        self.build.program.http.as_ref().expect("levels exist only in an http block").scope(self.id)
    }

    pub fn template(&self, template: &weir_ir::Template) -> Template {
        self.build.template(template)
    }

    /// A fault of the configuration that shows only now.
    pub fn fail(&self, message: impl Into<Vec<u8>>) -> Diagnostic {
        Diagnostic::new(Level::Emerg, message)
    }
}

//! The program: what a configuration means, ready to be executed.

use std::collections::HashMap;
use std::sync::Arc;

use weir_syntax::Diagnostic;

use crate::address::Address;
use crate::contract::{Confs, Contexts};
use crate::http::resolver::Resolver;
use crate::regex::Regex;

/// A variable of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VariableId(pub u32);

/// A level of the `http` tree: the `http` block itself, a server, a location, an `if`, a `limit_except`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocationId(pub u32);

/// Where something stands in the configuration, for messages.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Position {
    pub file: Arc<str>,
    pub line: u32,
}

impl Position {
    /// `file:line`, or that it is nowhere.
    pub fn shown(position: Option<&Position>) -> String {
        position.map_or_else(|| "the defaults".into(), |p| format!("{}:{}", p.file, p.line))
    }
}

/// Everything that one configuration means.
#[derive(Debug, Default)]
pub struct Program {
    /// The confs of the `main` and `events` contexts.
    pub main: Confs,
    pub http: Option<Http>,
    /// Files that stay open for writing (logs), in the order in which they were named.
    pub open_files: Vec<OpenFile>,
    /// Directories that the server creates and gives to its user.
    pub paths: Vec<PathSpec>,
    pub zones: Vec<Zone>,
    /// What nginx finds wrong with the `main` and `events` contexts only after it has called the syntax ok.
    pub told_late: Vec<Diagnostic>,
}

/// A file opened for appending before the server runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OpenFile {
    /// Absolute path; empty is standard error.
    pub path: Arc<str>,
}

/// A directory for temporary or cached files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathSpec {
    pub path: Arc<str>,
    /// Lengths of the names of each level of subdirectories, 0 where there is none.
    pub levels: [u8; 3],
    /// Where it is named; none where it is a default.
    pub position: Option<Position>,
}

/// A named memory zone shared by all threads and kept over reloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    pub name: Arc<str>,
    /// Bytes; 0 where the zone is only referred to so far.
    pub size: u64,
    /// The module that it belongs to: a name serves one module only.
    pub module: &'static str,
    pub position: Position,
}

/// The `http` block.
#[derive(Debug, Default)]
pub struct Http {
    /// What the modules keep once.
    pub main: Confs,
    /// All levels; the first is the `http` block itself.
    pub scopes: Vec<Scope>,
    /// The servers in the order of the file.
    pub servers: Vec<LocationId>,
    /// The addresses of all servers, in the order in which they were named.
    pub bound: Vec<crate::http::listen::Bound>,
    /// Where each address is in [`Http::bound`].
    pub(crate) places: HashMap<Address, usize>,
    pub upstreams: Vec<Upstream>,
    pub variables: Variables,
}

impl Http {
    pub const ROOT: LocationId = LocationId(0);

    pub fn scope(&self, id: LocationId) -> &Scope {
        &self.scopes[id.0 as usize]
    }

    pub fn scope_mut(&mut self, id: LocationId) -> &mut Scope {
        &mut self.scopes[id.0 as usize]
    }
}

/// One level of the `http` tree.
#[derive(Debug)]
pub struct Scope {
    pub kind: ScopeKind,
    pub parent: Option<LocationId>,
    /// The levels inside, in the order of the file.
    pub children: Vec<LocationId>,
    /// The server that the level is part of; the `http` level has none.
    pub server: Option<LocationId>,
    /// Of a server: CONNECT is not refused.
    pub allows_connect: bool,
    pub confs: Confs,
    pub position: Position,
}

#[derive(Clone, Debug)]
pub enum ScopeKind {
    Http,
    Server,
    Location(LocationMatch),
    If,
    LimitExcept,
}

impl ScopeKind {
    /// The context that directives inside such a block stand in.
    pub fn context(&self, parent: Option<&ScopeKind>) -> Contexts {
        match self {
            ScopeKind::Http => Contexts::HTTP,
            ScopeKind::Server => Contexts::SERVER,
            ScopeKind::Location(_) => Contexts::LOCATION,
            ScopeKind::If => match parent {
                Some(ScopeKind::Server) => Contexts::SERVER_IF,
                _ => Contexts::LOCATION_IF,
            },
            ScopeKind::LimitExcept => Contexts::LIMIT_EXCEPT,
        }
    }
}

/// What a location matches.
#[derive(Clone, Debug)]
pub enum LocationMatch {
    /// `location = /uri`
    Exact(Vec<u8>),
    /// `location /uri`
    Prefix(Vec<u8>),
    /// `location ^~ /uri`: a prefix after which no regex is tried.
    PrefixFinal(Vec<u8>),
    /// `location ~ regex`
    Regex(Regex),
    /// `location @name`
    Named(Vec<u8>),
}

impl LocationMatch {
    /// The name as nginx prints it.
    pub fn name(&self) -> &[u8] {
        match self {
            Self::Exact(n) | Self::Prefix(n) | Self::PrefixFinal(n) | Self::Named(n) => n,
            Self::Regex(r) => r.source(),
        }
    }
}

/// An `upstream` block, or the implicit one of an address given to a `…_pass` directive.
#[derive(Clone, Debug)]
pub struct Upstream {
    pub name: Arc<str>,
    /// The port of an implicit upstream; 0 for a block.
    pub port: u16,
    /// The port of the scheme that an implicit upstream was named with.
    pub default_port: u16,
    /// What an implicit upstream was named by.
    pub authority: Option<crate::address::Authority>,
    /// Written as a block, not implied by an address.
    pub explicit: bool,
    pub servers: Vec<Server>,
    /// The modules that say who is asked, by name; what comes later wraps what was there before.
    pub balancers: Vec<&'static str>,
    /// Parameters of servers that the method that was named last has no use for.
    pub unsupported: &'static [&'static str],
    /// Its peers are known to all who serve it (`zone`), so that they can come and go.
    pub shared: bool,
    /// Whom to ask for the names that are to be resolved at run time, its own or that of `http`.
    pub resolver: Option<Arc<Resolver>>,
    /// Milliseconds.
    pub resolver_timeout: Option<u64>,
    /// What looks after the health of its servers.
    pub checks: Arc<[Check]>,
    /// How many requests wait for a server, and for how many milliseconds.
    pub queue: Option<(usize, u64)>,
    /// The confs of the modules of the `upstream` context.
    pub confs: Confs,
    pub position: Position,
}

/// A check of the servers of an upstream, as far as their state depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What another configuration knows the same check by.
    pub key: Box<str>,
    /// A server is asked by nobody else before its first check.
    pub mandatory: bool,
    /// One that was healthy before a reload needs no such first check.
    pub persistent: bool,
}

/// A `server` of an upstream.
#[derive(Clone, Debug)]
pub struct Server {
    /// As written, which is also how logs and variables name a server without addresses.
    pub name: Arc<str>,
    /// Every address that the name stands for at load; each is a peer.
    pub addresses: Vec<Address>,
    /// The name is resolved at run time instead, again and again.
    pub resolve: Option<Resolve>,
    pub weight: u32,
    pub max_conns: u32,
    pub max_fails: u32,
    /// Seconds.
    pub fail_timeout: u64,
    /// Milliseconds in which its weight recovers after it was gone.
    pub slow_start: u64,
    pub down: bool,
    /// Only requests that belong to it are still sent to it.
    pub drain: bool,
    /// Its tunnels end when it is gone: removed, marked down or found unhealthy.
    pub closes: bool,
    pub backup: bool,
    /// What sessions that belong to it are known by, where it is not the address's digest.
    pub route: Option<Arc<[u8]>>,
}

/// A name that is resolved at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolve {
    pub host: Arc<str>,
    pub port: u16,
    /// Its records of this service say which hosts and ports to ask.
    pub service: Option<Arc<str>>,
}

impl Server {
    /// A server with nginx's defaults.
    pub fn new(name: Arc<str>, addresses: Vec<Address>) -> Self {
        Self {
            name,
            addresses,
            resolve: None,
            weight: 1,
            max_conns: 0,
            max_fails: 1,
            fail_timeout: 10,
            slow_start: 0,
            down: false,
            drain: false,
            closes: false,
            backup: false,
            route: None,
        }
    }
}

/// Who gives a variable its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Only mentioned so far; an error if it stays so.
    Unknown,
    /// One of the program's own, found by name.
    Builtin,
    /// Declared by a directive (`set`, `map`, `geo`, …) or a regex capture.
    Declared,
}

#[derive(Clone, Debug)]
pub struct VariableEntry {
    pub name: Arc<str>,
    pub origin: Origin,
    /// May be declared again (`set` twice, `set` after `map`).
    pub changeable: bool,
}

/// The names of all variables that the configuration mentions.
#[derive(Clone, Debug, Default)]
pub struct Variables {
    pub entries: Vec<VariableEntry>,
    by_name: HashMap<Arc<str>, VariableId>,
}

impl Variables {
    pub fn find(&self, name: &str) -> Option<VariableId> {
        self.by_name.get(name).copied()
    }

    pub fn name(&self, id: VariableId) -> &str {
        &self.entries[id.0 as usize].name
    }

    /// The id of a name, given when it is mentioned for the first time.
    pub fn intern(&mut self, name: &str) -> VariableId {
        if let Some(id) = self.find(name) {
            return id;
        }
        let name: Arc<str> = name.into();
        let id = VariableId(u32::try_from(self.entries.len()).expect("fewer variables than 2^32"));
        self.entries.push(VariableEntry {
            name: Arc::clone(&name),
            origin: Origin::Unknown,
            changeable: true,
        });
        self.by_name.insert(name, id);
        id
    }
}

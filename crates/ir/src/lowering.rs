//! What a setter sees of lowering: its directive's words, its level, and the registries of the program.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use weir_syntax::{self as syntax, Diagnostic, FileId, Item, Level, Place, Sources, Word};

use crate::address::{Address, Authority, Host};
use crate::contract::{AnyModule, Confs, Contexts, Declared, Module};
use crate::program::{
    Http, LocationId, OpenFile, Origin, PathSpec, Position, Program, Scope, ScopeKind, Upstream, VariableId,
    Zone,
};
use crate::template::Template;
use crate::value;
use crate::world::World;

/// An error of a setter; the driver knows the rest of the sentence.
#[derive(Clone, Debug)]
pub struct Fault(pub Box<Diagnostic>);

/// The program's own variables, by name.
#[derive(Clone, Copy, Debug)]
pub struct Builtin {
    /// May be set by the configuration (`$args`, `$limit_rate`).
    pub changeable: bool,
}

/// What the language consists of besides its spine: the modules, in the order in which they are asked.
pub struct Dialect<'d> {
    /// Modules of the `main` and `events` contexts.
    pub core: &'d [&'d dyn AnyModule],
    pub http: &'d [&'d dyn AnyModule],
    pub upstream: &'d [&'d dyn AnyModule],
    /// Finds a variable that needs no declaration, with its prefix if it is of a family (`http_…`).
    pub builtin: &'d dyn Fn(&str) -> Option<Builtin>,
}

/// Paths that relative names start from; both end with `/`.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    /// `-p`.
    pub prefix: Arc<str>,
    /// The folder of the configuration file.
    pub conf: Arc<str>,
    /// The error log in force where the configuration names none (`-e`, or the compiled default); empty is standard
    /// error.
    pub error_log: Arc<str>,
    /// The log of requests where no `access_log` names one.
    pub access_log: Arc<str>,
    /// Start of the folders for temporary files.
    pub state: Arc<str>,
}

/// The level that a directive stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Main,
    Scope(LocationId),
    Upstream(usize),
}

/// Names that the modules declare, with who declares what.
pub(crate) type Index = HashMap<&'static str, Vec<Entry>>;

#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub family: Family,
    pub module: usize,
    pub directive: usize,
    pub declared: Declared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Core,
    Http,
    Upstream,
}

/// What lowering reads: it does not change.
pub(crate) struct Input<'a> {
    pub dialect: &'a Dialect<'a>,
    pub world: &'a dyn World,
    pub sources: &'a Sources,
    pub prefixes: &'a Prefixes,
    pub index: Index,
}

impl Input<'_> {
    pub(crate) fn position(&self, file: FileId, line: u32) -> Position {
        Position { file: String::from_utf8_lossy(self.sources.path(file)).into(), line }
    }
}

/// What lowering makes.
#[derive(Default)]
pub(crate) struct State {
    pub program: Program,
    pub diagnostics: Vec<Diagnostic>,
    /// Pools by the names that were mentioned.
    pub thread_pools: Vec<ThreadPool>,
    /// Connections are to come from addresses of others.
    pub transparent: bool,
}

/// A pool of threads that `thread_pool` defines or `aio` asks for.
pub(crate) struct ThreadPool {
    pub name: Box<[u8]>,
    pub defined: bool,
    /// Of the first mention.
    pub position: Position,
}

impl State {
    pub(crate) fn http(&mut self) -> &mut Http {
        self.program.http.get_or_insert_with(Http::default)
    }

    /// The confs of the outermost level of the family that `at` belongs to.
    pub(crate) fn main_confs(&mut self, at: At) -> &mut Confs {
        match at {
            At::Main => &mut self.program.main,
            At::Scope(_) | At::Upstream(_) => &mut self.http().main,
        }
    }

    pub(crate) fn scope_confs(&mut self, at: At) -> &mut Confs {
        match at {
            At::Main => &mut self.program.main,
            At::Scope(id) => &mut self.http().scope_mut(id).confs,
            At::Upstream(index) => &mut self.http().upstreams[index].confs,
        }
    }
}

/// One directive being read: what its setter may look at and register with.
pub struct Call<'a> {
    pub(crate) input: &'a Input<'a>,
    pub(crate) state: &'a mut State,
    pub(crate) directive: &'a syntax::Directive,
    pub(crate) context: Contexts,
    pub(crate) at: At,
}

impl<'a> Call<'a> {
    /// The directive's name.
    pub fn name(&self) -> &'a [u8] {
        &self.directive.words[0].value
    }

    /// The arguments, the name not among them.
    pub fn args(&self) -> &'a [Word] {
        &self.directive.words[1..]
    }

    /// The bytes of the argument at `index`, counted from 0; empty where there is none.
    pub fn arg(&self, index: usize) -> &'a [u8] {
        self.args().get(index).map_or(b"", |w| &w.value)
    }

    /// The argument at `index` as text for messages and keys; bytes that are not UTF-8 are replaced.
    pub fn text(&self, index: usize) -> String {
        String::from_utf8_lossy(self.arg(index)).into_owned()
    }

    /// The block of a block directive, empty for others.
    pub fn items(&self) -> &'a [Item] {
        self.directive.block.as_ref().map_or(&[], |b| &b.items)
    }

    pub fn context(&self) -> Contexts {
        self.context
    }

    pub fn position(&self) -> Position {
        self.input.position(self.directive.file, self.directive.line)
    }

    /// The level that the directive stands in.
    ///
    /// # Panics
    /// Outside of the `http` tree, where no HTTP module's directive can stand.
    pub fn location(&self) -> LocationId {
        match self.at {
            At::Scope(id) => id,
            At::Main | At::Upstream(_) => unreachable!("HTTP directives stand in the http tree"),
        }
    }

    /// The upstream block that the directive stands in.
    ///
    /// # Panics
    /// Outside of an upstream block, where no upstream module's directive can stand.
    pub fn upstream(&mut self) -> &mut Upstream {
        match self.at {
            At::Upstream(index) => &mut self.state.http().upstreams[index],
            At::Main | At::Scope(_) => unreachable!("upstream directives stand in an upstream block"),
        }
    }

    /// The program being made.
    /// Lets the server that the directive stands in take CONNECT.
    pub fn allow_connect(&mut self) {
        let location = self.location();
        let http = self.http();
        if let Some(server) = http.scope(location).server {
            http.scope_mut(server).allows_connect = true;
        }
    }

    pub fn program(&mut self) -> &mut Program {
        &mut self.state.program
    }

    pub fn http(&mut self) -> &mut Http {
        self.state.http()
    }

    pub(crate) fn main_confs(&mut self) -> &mut Confs {
        self.state.main_confs(self.at)
    }

    pub(crate) fn scope_confs(&mut self) -> &mut Confs {
        self.state.scope_confs(self.at)
    }

    /// The main conf of a module, out of a setter of one of its scopes.
    pub fn main_of<M: Module>(&mut self) -> &mut M::Main {
        self.main_confs().main_mut::<M>()
    }

    /// Connections are to come from addresses of others, for which the process needs a right.
    pub fn needs_transparent(&mut self) {
        self.state.transparent = true;
    }

    /// Reads the block of this directive as a level of the `http` tree inside the present one.
    pub fn descend(&mut self, kind: ScopeKind) -> LocationId {
        let parent = self.location();
        let position = self.position();
        let http = self.state.http();
        let context = kind.context(Some(&http.scope(parent).kind));
        let id = LocationId(u32::try_from(http.scopes.len()).expect("fewer levels than 2^32"));
        let server = match kind {
            ScopeKind::Server => Some(id),
            _ => http.scope(parent).server,
        };
        http.scopes.push(Scope {
            kind,
            parent: Some(parent),
            children: vec![],
            server,
            allows_connect: false,
            confs: Confs::default(),
            position,
        });
        http.scope_mut(parent).children.push(id);
        self.read_block(context, At::Scope(id));
        id
    }

    /// Reads the block of this directive in another context.
    pub(crate) fn read_block(&mut self, context: Contexts, at: At) {
        crate::lower::block(self.input, self.state, self.items(), context, at);
    }

    /// Walks the words of a block whose entries are no directives (`types`, `map`), includes opened.
    pub fn entries(&mut self, mut each: impl FnMut(&mut Call<'_>) -> Result<(), Fault>) -> Result<(), Fault> {
        fn walk(
            call: &mut Call<'_>,
            items: &[Item],
            each: &mut dyn FnMut(&mut Call<'_>) -> Result<(), Fault>,
        ) -> Result<(), Fault> {
            for item in items {
                match item {
                    Item::Directive(directive) => {
                        let mut inner = Call {
                            input: call.input,
                            state: call.state,
                            directive,
                            context: call.context,
                            at: call.at,
                        };
                        if directive.block.is_some() {
                            return Err(inner.fail("unexpected \"{\""));
                        }
                        each(&mut inner)?;
                    }
                    Item::Include(include) => walk(call, &include.items, each)?,
                    Item::Error(diagnostic) => return Err(Fault(Box::new(diagnostic.clone()))),
                }
            }
            Ok(())
        }
        let items = self.items();
        walk(self, items, &mut each)
    }

    /// A fault whose whole sentence is given.
    pub fn fail(&self, message: impl Into<Vec<u8>>) -> Fault {
        self.fault(Level::Emerg, message.into(), None)
    }

    /// A fault of the block as a whole, which nginx tells at its closing brace.
    pub fn fail_at_end(&self, message: impl Into<Vec<u8>>) -> Fault {
        let mut fault = self.fail(message);
        if let Some(block) = &self.directive.block {
            fault.0.place = Place::of(self.directive.file, block.close_line);
        }
        fault
    }

    /// A fault whose message carries an error of the operating system: `open() "x" failed (2: …)`.
    pub fn fail_os(&self, message: impl Into<Vec<u8>>, error: &std::io::Error) -> Fault {
        self.fault(Level::Emerg, message.into(), Some(error.raw_os_error().unwrap_or(0)))
    }

    fn fault(&self, level: Level, message: Vec<u8>, errno: Option<i32>) -> Fault {
        Fault(Box::new(Diagnostic {
            level,
            message,
            errno,
            place: self.directive.place(),
            span: Some(self.directive.words[0].span),
            help: None,
        }))
    }

    /// `"name" directive TEXT`.
    pub fn refuse(&self, text: &str) -> Fault {
        self.fail([b"\"", self.name(), b"\" directive ", text.as_bytes()].concat())
    }

    /// `"name" directive is duplicate`.
    pub fn duplicate(&self) -> Fault {
        self.refuse("is duplicate")
    }

    /// `TEXT "x"`, with the bytes of the argument at `index`.
    pub fn fail_at(&self, index: usize, text: &str) -> Fault {
        let fault = self.fail([text.as_bytes(), b" \"", self.arg(index), b"\""].concat());
        self.under(fault, index)
    }

    /// `invalid value "x" in "name" directive`.
    pub fn invalid_value(&self, index: usize) -> Fault {
        let message =
            [&b"invalid value \""[..], self.arg(index), b"\" in \"", self.name(), b"\" directive"].concat();
        self.under(self.fail(message), index)
    }

    /// `invalid parameter "x"`.
    pub fn invalid_parameter(&self, index: usize) -> Fault {
        self.fail_at(index, "invalid parameter")
    }

    /// `invalid number of arguments in "name" directive`.
    pub fn invalid_arguments(&self) -> Fault {
        self.fail([&b"invalid number of arguments in \""[..], self.name(), b"\" directive"].concat())
    }

    /// A fault whose sentence says itself where it stands, or stands nowhere.
    pub fn fail_nowhere(&self, message: impl Into<Vec<u8>>) -> Fault {
        let mut fault = self.fail(message);
        fault.0.place = Place::None;
        fault
    }

    /// Points the fault at the argument at `index`.
    pub fn under(&self, mut fault: Fault, index: usize) -> Fault {
        if let Some(word) = self.args().get(index) {
            fault.0.span = Some(word.span);
        }
        fault
    }

    /// Tells something that does not stop the configuration from being used.
    pub fn warn(&mut self, message: impl Into<Vec<u8>>) {
        let fault = self.fault(Level::Warn, message.into(), None);
        self.state.diagnostics.push(*fault.0);
    }

    /// The first argument as `on` or `off`.
    pub fn flag(&self) -> Result<bool, Fault> {
        self.flag_at(0)
    }

    pub fn flag_at(&self, index: usize) -> Result<bool, Fault> {
        let value = self.arg(index);
        if value.eq_ignore_ascii_case(b"on") {
            Ok(true)
        } else if value.eq_ignore_ascii_case(b"off") {
            Ok(false)
        } else {
            let mut fault = self.invalid_value(index);
            fault.0.message.extend_from_slice(b", it must be \"on\" or \"off\"");
            Err(fault)
        }
    }

    /// The first argument as a plain number.
    pub fn number(&self) -> Result<u64, Fault> {
        value::number(self.arg(0)).ok_or_else(|| self.under(self.refuse("invalid number"), 0))
    }

    /// The first argument as a size in bytes.
    pub fn size(&self) -> Result<u64, Fault> {
        value::size(self.arg(0)).ok_or_else(|| self.under(self.refuse("invalid value"), 0))
    }

    /// The first argument as an offset in bytes.
    pub fn offset(&self) -> Result<u64, Fault> {
        value::offset(self.arg(0)).ok_or_else(|| self.under(self.refuse("invalid value"), 0))
    }

    /// The first argument in milliseconds.
    pub fn msec(&self) -> Result<u64, Fault> {
        value::msec(self.arg(0)).ok_or_else(|| self.under(self.refuse("invalid value"), 0))
    }

    /// The first argument in seconds.
    pub fn sec(&self) -> Result<u64, Fault> {
        value::sec(self.arg(0)).ok_or_else(|| self.under(self.refuse("invalid value"), 0))
    }

    /// The first argument as one of a list of words, in any case.
    pub fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Fault> {
        let value = self.arg(0);
        let found = words.iter().find(|(word, _)| word.as_bytes().eq_ignore_ascii_case(value));
        let Some((_, found)) = found else {
            let mut fault = self.fail_at(0, "invalid value");
            let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            fault.0.help = Some(format!("one of: {}", names.join(", ")));
            return Err(fault);
        };
        Ok(*found)
    }

    /// All arguments as words of a list, each with its bits; a word that is there already is warned of.
    pub fn add_bits(&mut self, bits: &mut u32, words: &[(&str, u32)]) -> Result<(), Fault> {
        for index in 0..self.args().len() {
            let value = self.arg(index);
            let Some((_, bit)) = words.iter().find(|(word, _)| word.as_bytes().eq_ignore_ascii_case(value))
            else {
                let mut fault = self.fail_at(index, "invalid value");
                let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                fault.0.help = Some(format!("any of: {}", names.join(", ")));
                return Err(fault);
            };
            if *bits & bit != 0 {
                self.warn([b"duplicate value \"", value, b"\""].concat());
            }
            *bits |= bit;
        }
        Ok(())
    }

    /// `number size`, as of `proxy_buffers`.
    pub fn buffers(&self) -> Result<(u64, u64), Fault> {
        let number = value::number(self.arg(0)).filter(|n| *n > 0);
        let size = value::size(self.arg(1)).filter(|n| *n > 0);
        match (number, size) {
            (Some(number), Some(size)) => Ok((number, size)),
            (None, _) | (_, None) => Err(self.refuse("invalid value")),
        }
    }

    /// The argument at `index` as a value with variables.
    pub fn template(&mut self, index: usize) -> Result<Template, Fault> {
        Template::parse(self.arg(index), self).map_err(|fault| self.under(fault, index))
    }

    /// The id of a variable that is mentioned here, in any case.
    pub fn variable(&mut self, name: &str) -> VariableId {
        self.state.http().variables.intern(&name.to_ascii_lowercase())
    }

    /// The argument at `index` as the name of a variable, `$` before it; as written.
    ///
    /// # Errors
    /// `invalid variable name "x"`.
    pub fn variable_name(&self, index: usize) -> Result<String, Fault> {
        match self.arg(index) {
            [b'$', name @ ..] if !name.is_empty() => Ok(String::from_utf8_lossy(name).into_owned()),
            _ => Err(self.fail_at(index, "invalid variable name")),
        }
    }

    /// Declares a variable that a directive or a capture gives its value; its name may be in any case.
    ///
    /// # Errors
    /// `the duplicate "x" variable` where it is the program's own, or declared before as unchangeable.
    pub fn declare(&mut self, name: &str, changeable: bool) -> Result<VariableId, Fault> {
        let id = self.variable(name);
        let builtin = (self.input.dialect.builtin)(&name.to_ascii_lowercase());
        let entry = &mut self.state.http().variables.entries[id.0 as usize];
        let taken = match (&entry.origin, builtin) {
            (Origin::Declared, _) => !entry.changeable,
            (Origin::Unknown | Origin::Builtin, Some(builtin)) => !builtin.changeable,
            (Origin::Unknown | Origin::Builtin, None) => false,
        };
        if taken {
            return Err(self.fail(format!("the duplicate \"{name}\" variable")));
        }
        entry.origin = Origin::Declared;
        entry.changeable = changeable;
        Ok(id)
    }

    /// A path as nginx completes it: from the prefix unless it is absolute.
    pub fn path(&self, index: usize) -> Arc<str> {
        absolute(&self.text(index), &self.input.prefixes.prefix)
    }

    /// A path from the folder of the configuration file.
    pub fn conf_path(&self, index: usize) -> Arc<str> {
        absolute(&self.text(index), &self.input.prefixes.conf)
    }

    pub fn prefixes(&self) -> &'a Prefixes {
        self.input.prefixes
    }

    pub fn world(&self) -> &'a dyn World {
        self.input.world
    }

    /// Registers a file that stays open for appending; the same path is opened once.
    pub fn open_file(&mut self, path: Arc<str>) -> Arc<str> {
        register_file(&mut self.state.program, &path);
        path
    }

    /// Registers a directory that the server makes for itself.
    ///
    /// # Errors
    /// `the same path name "x" in … has the different levels than`.
    pub fn directory(&mut self, spec: PathSpec) -> Result<(), Fault> {
        let known = self.state.program.paths.iter().find(|p| p.path == spec.path);
        let Some(known) = known else {
            self.state.program.paths.push(spec);
            return Ok(());
        };
        if known.levels == spec.levels {
            return Ok(());
        }
        Err(self.fail(format!(
            "the same path name \"{}\" in {} has the different levels than",
            spec.path,
            Position::shown(known.position.as_ref())
        )))
    }

    /// Mentions a pool of threads, to define it or to use it.
    ///
    /// # Errors
    /// `duplicate thread pool "x"`.
    pub(crate) fn thread_pool(&mut self, name: &[u8], defines: bool) -> Result<(), Fault> {
        let position = self.position();
        match self.state.thread_pools.iter_mut().find(|pool| *pool.name == *name) {
            Some(pool) if defines && pool.defined => {
                return Err(self.fail([b"duplicate thread pool \"", name, b"\""].concat()));
            }
            Some(pool) => pool.defined |= defines,
            None => {
                self.state.thread_pools.push(ThreadPool { name: name.into(), defined: defines, position })
            }
        }
        Ok(())
    }

    /// Registers a zone, or a mention of one (`size` 0).
    ///
    /// # Errors
    /// The zone belongs to another module or was given another size.
    pub fn zone(&mut self, name: &str, size: u64, module: &'static str) -> Result<(), Fault> {
        let position = self.position();
        let known = self.state.program.zones.iter_mut().find(|z| &*z.name == name);
        let Some(known) = known else {
            self.state.program.zones.push(Zone { name: name.into(), size, module, position });
            return Ok(());
        };
        if known.module != module {
            return Err(self
                .fail(format!("the shared memory zone \"{name}\" is already declared for a different use")));
        }
        if size != 0 && known.size != 0 && known.size != size {
            let message = format!(
                "the size {size} of shared memory zone \"{name}\" conflicts with already declared size {}",
                known.size
            );
            return Err(self.fail(message));
        }
        if size != 0 {
            known.size = size;
        }
        Ok(())
    }

    /// The socket addresses of an authority; names are resolved.
    ///
    /// # Errors
    /// `host not found`.
    pub fn addresses(&self, authority: &Authority, default_port: u16) -> Result<Vec<Address>, &'static str> {
        addresses(self.input.world, authority, default_port)
    }
}

pub(crate) fn addresses(
    world: &dyn World,
    authority: &Authority,
    default_port: u16,
) -> Result<Vec<Address>, &'static str> {
    let ips = match &authority.host {
        Host::Unix(path) => return Ok(vec![Address::Unix(Arc::clone(path))]),
        Host::Any => vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
        Host::Ip(ip) => vec![*ip],
        Host::Name(name) => world.resolve(name).map_err(|_| "host not found")?,
    };
    if ips.is_empty() {
        return Err("host not found");
    }
    let first = authority.port.unwrap_or(default_port);
    let ports = first..=authority.last_port.unwrap_or(first);
    let of_ip = |ip: IpAddr| ports.clone().map(move |port| Address::Ip(SocketAddr::new(ip, port)));
    Ok(ips.into_iter().flat_map(of_ip).collect())
}

pub(crate) fn absolute(path: &str, base: &str) -> Arc<str> {
    if path.starts_with('/') { path.into() } else { format!("{base}{path}").into() }
}

fn register_file(program: &mut Program, path: &Arc<str>) {
    let file = OpenFile { path: Arc::clone(path) };
    if !program.open_files.contains(&file) {
        program.open_files.push(file);
    }
}

/// The checks after a block was read: defaults, inheritance, what spans several directives.
pub struct Merge<'a> {
    pub(crate) input: &'a Input<'a>,
    pub(crate) state: &'a mut State,
    pub(crate) at: At,
    /// The level being completed.
    pub(crate) level: Option<LocationId>,
    /// The closing brace of the block, where nginx says that such errors stand.
    pub(crate) place: Place,
}

impl<'a> Merge<'a> {
    pub(crate) fn main_confs(&mut self) -> &mut Confs {
        self.state.main_confs(self.at)
    }

    pub fn main_of<M: Module>(&mut self) -> &mut M::Main {
        self.main_confs().main_mut::<M>()
    }

    /// What kind of level is being completed.
    pub fn kind(&mut self) -> ScopeKind {
        match self.level {
            Some(id) => self.state.http().scope(id).kind.clone(),
            None => ScopeKind::Http,
        }
    }

    /// The level being completed; `None` before the first.
    pub fn level(&self) -> Option<LocationId> {
        self.level
    }

    pub fn http(&mut self) -> &mut Http {
        self.state.http()
    }

    pub fn world(&self) -> &'a dyn World {
        self.input.world
    }

    pub fn prefixes(&self) -> &'a Prefixes {
        self.input.prefixes
    }

    pub fn open_file(&mut self, path: Arc<str>) -> Arc<str> {
        register_file(&mut self.state.program, &path);
        path
    }

    /// Registers a default directory.
    ///
    /// # Errors
    /// `the path name "x" in … has the same name as default path, but the different levels`.
    pub fn directory(&mut self, spec: PathSpec) -> Result<(), Fault> {
        let Some(known) = self.state.program.paths.iter().find(|p| p.path == spec.path) else {
            self.state.program.paths.push(spec);
            return Ok(());
        };
        if known.levels == spec.levels {
            return Ok(());
        }
        Err(self.fail_nowhere(format!(
            "the path name \"{}\" in {} has the same name as default path, but the different levels, you need to define \
             default path in http section",
            spec.path,
            Position::shown(known.position.as_ref())
        )))
    }

    fn diagnostic(&self, level: Level, message: Vec<u8>, place: Place) -> Diagnostic {
        Diagnostic { level, message, errno: None, place, span: None, help: None }
    }

    /// The socket addresses of an authority; names are resolved.
    ///
    /// # Errors
    /// `host not found`.
    pub fn addresses(&self, authority: &Authority, default_port: u16) -> Result<Vec<Address>, &'static str> {
        addresses(self.input.world, authority, default_port)
    }

    /// A fault at the end of the block.
    pub fn fail(&self, message: impl Into<Vec<u8>>) -> Fault {
        Fault(Box::new(self.diagnostic(Level::Emerg, message.into(), self.place)))
    }

    pub fn fail_os(&self, message: impl Into<Vec<u8>>, error: &std::io::Error) -> Fault {
        let mut fault = self.fail(message);
        fault.0.errno = Some(error.raw_os_error().unwrap_or(0));
        fault
    }

    /// A fault whose sentence says itself where it stands, or stands nowhere.
    pub fn fail_nowhere(&self, message: impl Into<Vec<u8>>) -> Fault {
        Fault(Box::new(self.diagnostic(Level::Emerg, message.into(), Place::None)))
    }

    pub fn warn(&mut self, message: impl Into<Vec<u8>>) {
        let diagnostic = self.diagnostic(Level::Warn, message.into(), self.place);
        self.state.diagnostics.push(diagnostic);
    }

    pub fn warn_nowhere(&mut self, message: impl Into<Vec<u8>>) {
        let diagnostic = self.diagnostic(Level::Warn, message.into(), Place::None);
        self.state.diagnostics.push(diagnostic);
    }
}

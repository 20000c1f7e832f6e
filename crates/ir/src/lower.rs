//! The driver: it walks the tree, finds who declares a directive, and holds contexts and arity.
//!
//! Errors do not stop it: the first is nginx's own, the rest help whoever mends the file.

use weir_syntax::{Ast, Diagnostic, Directive, Item, Place};

use crate::contract::{AnyModule, Contexts};
use crate::lowering::{At, Call, Dialect, Entry, Family, Fault, Index, Input, Merge, Prefixes, State};
use crate::program::{Http, LocationId, Origin, Program};
use crate::table;
use crate::world::World;

/// Lowers a configuration to the program that it means.
///
/// The program is whole only where no diagnostic is an error; warnings leave it so.
pub fn lower(
    ast: &Ast,
    prefixes: &Prefixes,
    dialect: &Dialect<'_>,
    world: &dyn World,
) -> (Program, Vec<Diagnostic>) {
    let input = Input { dialect, world, sources: &ast.sources, prefixes, index: index(dialect) };
    let mut state = State::default();
    block(&input, &mut state, &ast.globals, Contexts::MAIN, At::Main);
    block(&input, &mut state, &ast.items, Contexts::MAIN, At::Main);
    let mut told = std::mem::take(&mut state.diagnostics);
    let mut merge = Merge { input: &input, state: &mut state, at: At::Main, level: None, place: Place::None };
    for module in dialect.core {
        init(*module, &mut merge);
    }
    std::mem::swap(&mut state.diagnostics, &mut told);
    state.program.told_late = told;
    (state.program, state.diagnostics)
}

fn index(dialect: &Dialect<'_>) -> Index {
    let mut index = Index::new();
    let families =
        [(Family::Core, dialect.core), (Family::Http, dialect.http), (Family::Upstream, dialect.upstream)];
    for (family, modules) in families {
        for (module, declared) in modules.iter().enumerate() {
            for (directive, declared) in declared.directives().into_iter().enumerate() {
                index.entry(declared.name).or_default().push(Entry { family, module, directive, declared });
            }
        }
    }
    index
}

/// Reads the items of a block in order; a bad directive is told and passed over.
pub(crate) fn block(input: &Input<'_>, state: &mut State, items: &[Item], context: Contexts, at: At) {
    for item in items {
        match item {
            Item::Directive(directive) => {
                if let Err(fault) = dispatch(input, state, directive, context, at) {
                    state.diagnostics.push(*fault.0);
                }
            }
            Item::Include(include) => block(input, state, &include.items, context, at),
            Item::Error(diagnostic) => state.diagnostics.push(diagnostic.clone()),
        }
    }
}

fn dispatch(
    input: &Input<'_>,
    state: &mut State,
    directive: &Directive,
    context: Contexts,
    at: At,
) -> Result<(), Fault> {
    let mut call = Call { input, state, directive, context, at };
    let name = String::from_utf8_lossy(call.name()).into_owned();
    let entries = input.index.get(name.as_str()).map_or(&[][..], Vec::as_slice);
    let Some(entry) = entries.iter().find(|e| e.declared.contexts.meets(context)) else {
        return Err(missing(&call, &name, !entries.is_empty()));
    };
    check_form(&call, entry)?;
    let modules: &[&dyn AnyModule] = match entry.family {
        Family::Core => input.dialect.core,
        Family::Http => input.dialect.http,
        Family::Upstream => input.dialect.upstream,
    };
    modules[entry.module].set(entry.directive, &mut call)
}

fn check_form(call: &Call<'_>, entry: &Entry) -> Result<(), Fault> {
    let takes = entry.declared.takes;
    let name = entry.declared.name;
    match (takes.block, call.directive.block.is_some()) {
        (false, true) => return Err(call.fail(format!("directive \"{name}\" is not terminated by \";\""))),
        (true, false) => return Err(call.fail(format!("directive \"{name}\" has no opening \"{{\""))),
        (true, true) | (false, false) => {}
    }
    if takes.admits(call.args().len()) { Ok(()) } else { Err(call.invalid_arguments()) }
}

/// Says why no module takes the directive here.
fn missing(call: &Call<'_>, name: &str, declared_elsewhere: bool) -> Fault {
    let known: Vec<_> = table::find(name).collect();
    let here = known.iter().find(|row| row.contexts().meets(call.context()));
    if let (Some(row), false) = (here, declared_elsewhere) {
        let mut fault = call.fail(format!("directive \"{name}\" is known but not supported by weir yet"));
        fault.0.help = Some(format!("nginx has it in ngx_{}_module", row.module));
        return fault;
    }
    if declared_elsewhere || !known.is_empty() {
        return call.fail(format!("\"{name}\" directive is not allowed here"));
    }
    let mut fault = call.fail([&b"unknown directive \""[..], call.name(), b"\""].concat());
    let names = call
        .input
        .index
        .iter()
        .filter(|(_, entries)| entries.iter().any(|e| e.declared.contexts.meets(call.context())));
    let names: Vec<&str> = names.map(|(name, _)| *name).collect();
    let near = weir_syntax::suggest(name.as_bytes(), names.iter().copied());
    fault.0.help = near.map(|near| format!("did you mean \"{near}\"?"));
    fault
}

impl Call<'_> {
    /// Reads the `http` block: its directives, then what can be judged only when all are known.
    ///
    /// # Errors
    /// `"http" directive is duplicate`, and the first fault of a module's `init` or `inherit`; others are told.
    pub(crate) fn http_block(&mut self) -> Result<(), Fault> {
        if self.state.program.http.is_some() {
            return Err(self.duplicate());
        }
        let position = self.position();
        let http = self.state.http();
        http.scopes.push(crate::program::Scope {
            kind: crate::program::ScopeKind::Http,
            parent: None,
            children: vec![],
            allows_connect: false,
            server: None,
            confs: crate::contract::Confs::default(),
            position,
        });
        let at = At::Scope(Http::ROOT);
        self.read_block(Contexts::HTTP, at);
        let close = self.directive.block.as_ref().map_or(self.directive.line, |b| b.close_line);
        let place = Place::of(self.directive.file, close);
        let input = self.input;
        let mut merge = Merge { input, state: self.state, at, level: None, place };
        for module in input.dialect.http {
            init(*module, &mut merge);
            inherit(*module, Http::ROOT, &mut merge);
        }
        for module in input.dialect.upstream {
            init(*module, &mut merge);
        }
        crate::http::tree::check(&mut merge);
        check_variables(&mut merge);
        crate::http::listen::check(&mut merge);
        Ok(())
    }
}

fn init(module: &dyn AnyModule, merge: &mut Merge<'_>) {
    merge.level = None;
    if let Err(fault) = module.init(merge) {
        merge.state.diagnostics.push(*fault.0);
    }
}

/// Completes the levels below `outer` for one module, outer levels first.
fn inherit(module: &dyn AnyModule, outer: LocationId, merge: &mut Merge<'_>) {
    let scope = merge.state.http().scope_mut(outer);
    let outer_confs = std::mem::take(&mut scope.confs);
    for child in scope.children.clone() {
        let mut confs = std::mem::take(&mut merge.state.http().scope_mut(child).confs);
        merge.level = Some(child);
        let result = module.inherit(&mut confs, &outer_confs, merge);
        merge.state.http().scope_mut(child).confs = confs;
        if let Err(fault) = result {
            merge.state.diagnostics.push(*fault.0);
        }
        inherit(module, child, merge);
    }
    merge.state.http().scope_mut(outer).confs = outer_confs;
}

/// Every variable that is mentioned must be somebody's.
fn check_variables(merge: &mut Merge<'_>) {
    let builtin = merge.input.dialect.builtin;
    let mut unknown = vec![];
    for entry in &mut merge.state.http().variables.entries {
        if entry.origin == Origin::Unknown {
            if builtin(&entry.name).is_some() {
                entry.origin = Origin::Builtin;
            } else {
                unknown.push(entry.name.clone());
            }
        }
    }
    for name in unknown {
        merge.state.diagnostics.push(Diagnostic::emerg(format!("unknown \"{name}\" variable")));
    }
}

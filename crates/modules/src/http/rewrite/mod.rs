//! `ngx_http_rewrite_module`: `rewrite`, `return`, `set`, `if` and `break`, run in order as one program a level.
//!
//! Reading (here) makes a tree of steps; `program` compiles and runs it, once for the server and once for
//! the location found. A block of `if` in a location is a level of its own, which the request enters when the
//! condition holds; its steps belong to the program around it.

mod condition;
mod program;

use std::sync::Arc;

use weir_engine::contract::{Evaluate, Family, GetOf, Install};
use weir_engine::generation::{Build, Plan};
use weir_engine::http::Exchange;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, LocationId, Merge, Regex, ScopeKind, Template, VariableId, value};
use weir_syntax::{Diagnostic, Level};

use condition::Condition;

const STEPS: Contexts =
    Contexts::SERVER.or(Contexts::SERVER_IF).or(Contexts::LOCATION).or(Contexts::LOCATION_IF);
const SETTINGS: Contexts = STEPS.or(Contexts::HTTP);

pub struct Rewrite;

type D = Directive<Rewrite>;

impl Module for Rewrite {
    const NAME: &'static str = "http_rewrite";
    type Main = Declared;
    type Scope = Steps;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("rewrite", STEPS, Takes::TWO_THREE, rewrite),
        D::scope("return", STEPS, Takes::ONE_TWO, answer),
        D::scope("break", STEPS, Takes::NONE, |s, _| {
            s.steps.push(Step::Break);
            Ok(())
        }),
        D::scope("if", Contexts::SERVER.or(Contexts::LOCATION), Takes::ONE_MORE.with_block(), branch),
        D::scope("set", STEPS, Takes::TWO, set),
        D::scope("rewrite_log", SETTINGS, Takes::FLAG, |s, c| s.log.flag(c)),
        D::scope("uninitialized_variable_warn", SETTINGS, Takes::FLAG, |s, c| s.warn.flag(c)),
    ];
}

/// The variables that `set` declares.
#[derive(Clone, Debug, Default)]
pub struct Declared(Vec<VariableId>);

impl Conf for Declared {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

/// The program of a level, as written.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    /// Not inherited.
    steps: Vec<Step>,
    log: Setting<bool>,
    warn: Setting<bool>,
}

impl Conf for Steps {
    // A level without steps must not run those of the level around it.
    const EVERY_LEVEL: bool = true;

    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.log.inherit(&outer.log);
        self.warn.inherit(&outer.warn);
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Rewrite(Box<Replace>),
    Return(Return),
    Break,
    Set(VariableId, Template),
    If(Box<If>),
}

/// `if`, with what is inside.
#[derive(Clone, Debug)]
struct If {
    condition: Condition,
    /// The level that a request enters; none in a server, where the block holds steps alone.
    level: Option<LocationId>,
    steps: Vec<Step>,
}

/// `rewrite`.
#[derive(Clone, Debug)]
struct Replace {
    regex: Regex,
    /// Up to the first `?`; with `redirect`, all of it.
    path: Template,
    /// What follows the first `?`.
    args: Option<Template>,
    /// The request's own arguments are added: the replacement does not end with `?`.
    keep_args: bool,
    /// The status of a redirect.
    redirect: Option<u16>,
    /// Where a redirect has a `?`, the request's arguments go on with `&`.
    has_args: bool,
    after: After,
}

/// What a `rewrite` that matched does with the rest of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// No flag: the next step follows.
    Next,
    /// `last`, and every redirect.
    Last,
    /// `break`: the request stays in its location.
    Break,
}

/// `return`.
#[derive(Clone, Debug)]
struct Return {
    status: u16,
    /// Of a redirect the target, of others the body.
    text: Template,
}

/// Beginnings by which a target is known to be absolute.
const ABSOLUTE: [&[u8]; 3] = [b"http://", b"https://", b"$scheme"];

fn is_absolute(target: &[u8]) -> bool {
    ABSOLUTE.iter().any(|start| target.starts_with(start))
}

fn rewrite(conf: &mut Steps, call: &mut Call<'_>) -> Result<(), Fault> {
    if call.arg(1).is_empty() {
        return Err(call.under(call.fail("empty replacement"), 1));
    }
    let regex = Regex::compile(call.arg(0), false, call)?;
    let replacement = call.arg(1);
    let (text, keep_args) = match replacement.strip_suffix(b"?") {
        Some(text) => (text, false),
        None => (replacement, true),
    };
    let mut redirect = is_absolute(replacement).then_some(302);
    let mut after = if redirect.is_some() { After::Last } else { After::Next };
    match call.args().get(2).map(|word| &*word.value) {
        None => {}
        Some(b"last") => after = After::Last,
        Some(b"break") => after = After::Break,
        Some(b"redirect") => (redirect, after) = (Some(302), After::Last),
        Some(b"permanent") => (redirect, after) = (Some(301), After::Last),
        Some(_) => return Err(call.invalid_parameter(2)),
    }
    let question = memchr::memchr(b'?', text);
    let (path, args) = match question.filter(|_| redirect.is_none()) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let path = Template::parse(path, call).map_err(|fault| call.under(fault, 1))?;
    let args = match args {
        Some(args) => Some(Template::parse(args, call).map_err(|fault| call.under(fault, 1))?),
        None => None,
    };
    conf.steps.push(Step::Rewrite(Box::new(Replace {
        regex,
        path,
        args,
        keep_args,
        redirect,
        has_args: question.is_some(),
        after,
    })));
    Ok(())
}

fn answer(conf: &mut Steps, call: &mut Call<'_>) -> Result<(), Fault> {
    let first = call.arg(0);
    let (status, text) = match value::number(first) {
        Some(status) if status <= 999 => (status as u16, 1),
        None if call.args().len() == 1 && is_absolute(first) => (302, 0),
        Some(_) | None => {
            let fault = call.fail(format!("invalid return code \"{}\"", call.text(0)));
            return Err(call.under(fault, 0));
        }
    };
    let text = if text < call.args().len() { call.template(text)? } else { Template::default() };
    conf.steps.push(Step::Return(Return { status, text }));
    Ok(())
}

fn set(conf: &mut Steps, call: &mut Call<'_>) -> Result<(), Fault> {
    let name = call.variable_name(0)?;
    let id = call.declare(&name, true)?;
    let value = call.template(1)?;
    let declared = &mut call.main_of::<Rewrite>().0;
    if !declared.contains(&id) {
        declared.push(id);
    }
    conf.steps.push(Step::Set(id, value));
    Ok(())
}

fn branch(conf: &mut Steps, call: &mut Call<'_>) -> Result<(), Fault> {
    let condition = Condition::read(call)?;
    let in_server = call.context().meets(Contexts::SERVER);
    let level = call.descend(ScopeKind::If);
    let inner = call.http().scope_mut(level).confs.get_mut::<Rewrite>();
    let steps = std::mem::take(&mut inner.steps);
    conf.steps.push(Step::If(Box::new(If { condition, level: (!in_server).then_some(level), steps })));
    Ok(())
}

impl Install for Rewrite {
    fn prepare(declared: &Declared, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        let Some(http) = build.program.http.as_ref() else { return Ok(()) };
        let warned = http.scopes.iter().map(|scope| scope.confs.get::<Rewrite>().warn.or(true));
        let warned: Arc<[bool]> = warned.collect();
        for id in &declared.0 {
            let name = http.variables.name(*id);
            if build.builtin(name).is_some() {
                continue;
            }
            let otherwise: Box<dyn Evaluate> = match build.family(name) {
                Some((Family { get, .. }, rest)) => Box::new(OfFamily { get, rest: rest.into() }),
                None => Box::new(Uninitialized { name: name.into(), warned: warned.clone() }),
            };
            build.define(*id, otherwise, false);
        }
        Ok(())
    }

    fn install(conf: &Steps, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if let Some(program) = program::Program::compile(conf, plan) {
            plan.handlers.rewrite.push(Box::new(program));
        }
        Ok(())
    }
}

/// A variable that is asked for before any `set` of it ran: empty, and told unless `uninitialized_variable_warn` is off.
struct Uninitialized {
    name: Box<str>,
    /// By level.
    warned: Arc<[bool]>,
}

impl Evaluate for Uninitialized {
    fn evaluate(&self, x: &Exchange, _: &mut Vec<u8>) -> bool {
        if self.warned.get(x.location.0 as usize) != Some(&false) {
            x.log(Level::Warn, format_args!("using uninitialized \"{}\" variable", self.name));
        }
        true
    }
}

/// `set $http_name …`: until then the variable is the request's own.
struct OfFamily {
    get: GetOf,
    rest: Box<str>,
}

impl Evaluate for OfFamily {
    fn evaluate(&self, x: &Exchange, out: &mut Vec<u8>) -> bool {
        (self.get)(x, &self.rest, out)
    }
}

#[cfg(test)]
mod tests;

//! The program of a level, compiled, and how a request runs it.

use std::os::unix::fs::PermissionsExt;

use weir_engine::contract::{Check, Flow, Step};
use weir_engine::generation::Plan;
use weir_engine::http::template::Assign;
use weir_engine::http::{Exchange, Response, Template};
use weir_engine::http1::uri::{Escape, Unescape, escape, unescape};
use weir_ir::{LocationId, Regex, VariableId};
use weir_syntax::Level;

use super::super::files;
use super::condition::{Condition, FileTest};
use super::{After, Steps};

/// The steps of a level.
pub(super) struct Program {
    steps: Vec<Op>,
    /// `rewrite_log`: tells at level `notice` what matched.
    log: bool,
}

enum Op {
    Rewrite(Rewrite),
    Return { status: u16, text: Option<Template> },
    Break,
    Set(Assign, Template),
    If { test: Test, level: Option<LocationId>, steps: Vec<Op> },
}

struct Rewrite {
    regex: Regex,
    path: Template,
    args: Option<Template>,
    keep_args: bool,
    redirect: Option<u16>,
    has_args: bool,
    after: After,
}

enum Test {
    True(Template),
    Equals(Template, Template, bool),
    Matches(Template, Regex, bool),
    File(Template, FileTest, bool),
}

impl Program {
    /// Compiles the steps of a level; `None` where it has none.
    pub(super) fn compile(conf: &Steps, plan: &Plan<'_, '_>) -> Option<Self> {
        if conf.steps.is_empty() {
            return None;
        }
        Some(Self { steps: compile(&conf.steps, plan), log: conf.log.or(false) })
    }
}

fn compile(steps: &[super::Step], plan: &Plan<'_, '_>) -> Vec<Op> {
    steps.iter().map(|step| compile_step(step, plan)).collect()
}

fn compile_step(step: &super::Step, plan: &Plan<'_, '_>) -> Op {
    match step {
        super::Step::Rewrite(r) => Op::Rewrite(Rewrite {
            regex: r.regex.clone(),
            path: plan.template(&r.path),
            args: r.args.as_ref().map(|args| plan.template(args)),
            keep_args: r.keep_args,
            redirect: r.redirect,
            has_args: r.has_args,
            after: r.after,
        }),
        super::Step::Return(r) => {
            Op::Return { status: r.status, text: (!r.text.is_empty()).then(|| plan.template(&r.text)) }
        }
        super::Step::Break => Op::Break,
        super::Step::Set(id, value) => Op::Set(plan.build.assign(*id), plan.template(value)),
        super::Step::If(branch) => Op::If {
            test: compile_test(&branch.condition, plan),
            level: branch.level,
            steps: compile(&branch.steps, plan),
        },
    }
}

fn compile_test(condition: &Condition, plan: &Plan<'_, '_>) -> Test {
    let value =
        |id: &VariableId| plan.template(&weir_ir::Template { parts: vec![weir_ir::Part::Variable(*id)] });
    match condition {
        Condition::True(variable) => Test::True(value(variable)),
        Condition::Equals { variable, value: text, negated } => {
            Test::Equals(value(variable), plan.template(text), *negated)
        }
        Condition::Matches { variable, regex, negated } => {
            Test::Matches(value(variable), regex.clone(), *negated)
        }
        Condition::File { path, test, negated } => Test::File(plan.template(path), *test, *negated),
    }
}

impl Check for Program {
    fn check<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        let mut run = Run { log: self.log || x.is_debugged(), changed: false, escapes: true };
        let ended = run.steps(&self.steps, x);
        Step::Now(match ended {
            Some(End::Flow(flow)) => flow,
            Some(End::Answer(flow)) if x.body.is_awaited() => {
                let forgone =
                    async { x.forgo_body().await.map_or_else(|error| Flow::Answer(error.0), |()| flow) };
                return Step::Later(Box::pin(forgone));
            }
            Some(End::Answer(flow)) => flow,
            Some(End::Over) | None if run.changed => {
                x.relocate();
                Flow::Redirect
            }
            Some(End::Over) | None => Flow::Decline,
        })
    }
}

/// A program being run.
struct Run {
    log: bool,
    /// The path was changed, so that a location has to be found for it.
    changed: bool,
    /// Captures are escaped in values. nginx sets this out and drops it with the first `rewrite` that matched.
    escapes: bool,
}

/// Why no step follows.
enum End {
    /// `last` or `break`.
    Over,
    Flow(Flow),
    /// A `return` with more to say than the page of an error has.
    Answer(Flow),
}

impl Run {
    fn steps(&mut self, steps: &[Op], x: &mut Exchange) -> Option<End> {
        steps.iter().find_map(|step| self.step(step, x))
    }

    fn step(&mut self, step: &Op, x: &mut Exchange) -> Option<End> {
        match step {
            Op::Rewrite(rewrite) => self.rewrite(rewrite, x),
            Op::Return { status: status @ 400.., text: None } => Some(End::Flow(Flow::Answer(*status))),
            Op::Return { status, text } => Some(End::Answer(answer(*status, text.as_ref(), x))),
            Op::Break => {
                if self.changed {
                    self.changed = false;
                    x.valid_location = false;
                }
                Some(End::Over)
            }
            Op::Set(target, value) => {
                let value = self.value(value, x);
                target.set(x, value);
                None
            }
            Op::If { test, level, steps } => {
                if !self.test(test, x) {
                    return None;
                }
                if let Some(level) = level {
                    x.enter(*level);
                }
                self.steps(steps, x)
            }
        }
    }

    fn value(&self, template: &Template, x: &Exchange) -> Vec<u8> {
        expand(template, self.escapes && x.head.has_escapes(), x)
    }

    fn test(&self, test: &Test, x: &mut Exchange) -> bool {
        match test {
            Test::True(value) => value.is_true(x),
            Test::Equals(left, right, negated) => (left.value(x) == self.value(right, x)) != *negated,
            Test::Matches(value, regex, negated) => self.matches(regex, &value.value(x), x) != *negated,
            Test::File(path, test, negated) => file_is(&self.value(path, x), *test, x) != *negated,
        }
    }

    fn matches(&self, regex: &Regex, subject: &[u8], x: &Exchange) -> bool {
        let matched = x.matches(regex, subject);
        if !matched {
            x.clear_captures();
        }
        if self.log {
            let verb = if matched { "matches" } else { "does not match" };
            x.log(
                Level::Notice,
                format_args!(
                    "\"{}\" {verb} \"{}\"",
                    String::from_utf8_lossy(regex.source()),
                    String::from_utf8_lossy(subject)
                ),
            );
        }
        matched
    }

    fn rewrite(&mut self, rewrite: &Rewrite, x: &mut Exchange) -> Option<End> {
        let uri = std::mem::take(&mut x.uri);
        let matched = self.matches(&rewrite.regex, &uri, x);
        x.uri = uri;
        if !matched {
            return None;
        }
        self.escapes = false;
        x.internal = true;
        x.uri_changed = true;
        if let Some(status) = rewrite.redirect {
            let target = redirect_target(rewrite, x);
            if self.log {
                let shown = String::from_utf8_lossy(&target);
                x.log(Level::Notice, format_args!("rewritten redirect: \"{shown}\""));
            }
            x.redirect_target = Some(target.into());
            return Some(End::Flow(Flow::Answer(status)));
        }
        let path = expand(&rewrite.path, false, x);
        match &rewrite.args {
            Some(args) => {
                let mut args = expand(args, x.head.has_escapes(), x);
                if rewrite.keep_args && !x.args.is_empty() {
                    args.push(b'&');
                    args.extend_from_slice(&x.args);
                }
                x.args = args;
            }
            None if rewrite.keep_args => {}
            None => x.args.clear(),
        }
        if self.log {
            let (path, args) = (String::from_utf8_lossy(&path), String::from_utf8_lossy(&x.args));
            x.log(Level::Notice, format_args!("rewritten data: \"{path}\", args: \"{args}\""));
        }
        x.uri = path;
        if x.uri.is_empty() {
            x.log(Level::Error, "the rewritten URI has a zero length");
            return Some(End::Flow(Flow::Answer(500)));
        }
        match rewrite.after {
            After::Break => {
                self.changed = false;
                x.valid_location = false;
                Some(End::Over)
            }
            After::Last => {
                self.changed = true;
                Some(End::Over)
            }
            After::Next => {
                self.changed = true;
                None
            }
        }
    }
}

/// The value of a template, its captures escaped as arguments where that is asked for.
fn expand(template: &Template, escaped: bool, x: &Exchange) -> Vec<u8> {
    if !escaped {
        return template.value(x);
    }
    let mut out = Vec::new();
    template.append_with(x, &mut out, |capture, out| escape(capture, Escape::Args, out));
    out
}

/// Where a client is sent by `redirect`, `permanent` or an absolute replacement.
fn redirect_target(rewrite: &Rewrite, x: &Exchange) -> Vec<u8> {
    let expanded = expand(&rewrite.path, x.head.has_escapes(), x);
    let mut target = Vec::with_capacity(expanded.len());
    let read = unescape(&expanded, Unescape::Redirect, &mut target);
    target.extend_from_slice(&expanded[read..]);
    if rewrite.keep_args && !x.args.is_empty() {
        target.push(if rewrite.has_args { b'&' } else { b'?' });
        target.extend_from_slice(&x.args);
    }
    target
}

/// What `return` answers: a redirect, or its text.
fn answer(status: u16, text: Option<&Template>, x: &mut Exchange) -> Flow {
    // As in nginx the body is let go and the status stands before the text is made, which may ask for either.
    // One that an error page takes the place of may be let go, and known to be broken, already.
    if !x.body.is_broken() && !x.discard_body_input() && x.body.is_broken() {
        return Flow::Answer(400);
    }
    x.status = status;
    let text = text.map(|text| text.value(x)).unwrap_or_default();
    if matches!(status, 301 | 302 | 303 | 307 | 308) {
        x.redirect_target = Some(text.into());
        return Flow::Answer(status);
    }
    let content_type = x.content_type();
    let response = Response { content_type, ..Response::with_body(status, &b""[..], text) };
    Flow::Respond(Box::new(response))
}

/// Asks the file system; what cannot be asked is not there.
fn file_is(path: &[u8], test: FileTest, x: &Exchange) -> bool {
    let Some(metadata) = files::stat(path, x) else { return false };
    match test {
        FileTest::Plain => metadata.is_file(),
        FileTest::Directory => metadata.is_dir(),
        FileTest::Exists => metadata.is_file() || metadata.is_dir(),
        FileTest::Executable => metadata.permissions().mode() & 0o100 != 0,
    }
}

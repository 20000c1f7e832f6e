//! What a module does: how its confs become handlers of a location's plan, and its variables.
//!
//! `prepare` runs once a generation, `install` once a level of the `http` tree. Whatever a module does not
//! install costs a request nothing.

use std::future::Future;
use std::pin::Pin;

use weir_ir::contract::Confs;
use weir_ir::{AnyModule, Module};
use weir_syntax::Diagnostic;

use crate::generation::{Build, Plan};
use crate::http::{Exchange, Response};
use crate::timer::Timers;

/// How a handler leaves a phase: nginx's return codes with names.
#[derive(Debug)]
pub enum Flow {
    /// Nothing to say; the next handler goes on (`NGX_DECLINED`).
    Decline,
    /// The request passes; what that means is the phase's (`NGX_OK`).
    Pass,
    /// The request ends with this status: its error page, or the plain page of the code.
    Answer(u16),
    /// The request ends with this response.
    Respond(Box<Response>),
    /// The exchange was given another URI or location; the phases start again there.
    Redirect,
}

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// A handler either knows at once, or has to wait: only the latter pays for a boxed future.
pub enum Step<'a> {
    Now(Flow),
    Later(BoxFuture<'a, Flow>),
}

/// A handler of one of the phases before the content.
pub trait Check: Send + Sync {
    fn check<'a>(&'a self, x: &'a mut Exchange) -> Step<'a>;
}

/// A handler that makes the response.
pub trait Content: Send + Sync {
    fn respond<'a>(&'a self, x: &'a mut Exchange) -> Step<'a>;
}

/// A handler that changes a response on its way out: its head, and its body by wrapping it.
pub trait Filter: Send + Sync {
    fn filter(&self, x: &mut Exchange, response: &mut Response);
}

/// A handler of the log phase, after the response was sent.
pub trait LogHandler: Send + Sync {
    fn log(&self, x: &Exchange);

    /// The same for a connection that goes on as a tunnel: what will be logged when it ends, with all that is known
    /// now already in it, so that the tunnel keeps neither request nor generation.
    fn detach(&self, x: &Exchange) -> Option<Box<dyn TunnelLog>>;
}

/// A log line that waits for the end of its tunnel.
pub trait TunnelLog {
    /// The thread's timers are for a line that may wait.
    fn log(&self, facts: &TunnelFacts, timers: &Timers);
}

/// What only the end of a tunnel tells. Times are milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct TunnelFacts {
    /// Head and tunnel together, to the client.
    pub bytes_sent: u64,
    /// The tunnel alone, to the client.
    pub body_bytes_sent: u64,
    /// Head and tunnel together, from the client.
    pub request_length: u64,
    pub request_time: u64,
    pub upstream_response_time: u64,
    pub upstream_bytes_sent: u64,
    pub upstream_bytes_received: u64,
    /// Of the wall clock, since the epoch.
    pub unix_ms: u64,
    /// Ended by either side's end of stream rather than by an error.
    pub complete: bool,
}

/// Appends a variable's value; false where the variable has none.
pub type Get = fn(&Exchange, &mut Vec<u8>) -> bool;
/// As [`Get`], with what follows the prefix in the name (`host` of `http_host`).
pub type GetOf = fn(&Exchange, &str, &mut Vec<u8>) -> bool;

/// A variable that needs no declaration.
#[derive(Clone, Copy)]
pub struct Variable {
    pub name: &'static str,
    pub get: Get,
    /// Writes it, where the configuration may (`set $args …`).
    pub set: Option<fn(&mut Exchange, &[u8])>,
    /// The configuration may declare another one of its name, which is asked first.
    pub replaceable: bool,
}

impl Variable {
    pub const fn new(name: &'static str, get: Get) -> Self {
        Self { name, get, set: None, replaceable: false }
    }

    #[must_use]
    pub const fn with_set(self, set: fn(&mut Exchange, &[u8])) -> Self {
        Self { set: Some(set), ..self }
    }

    #[must_use]
    pub const fn replaceable(self) -> Self {
        Self { replaceable: true, ..self }
    }
}

/// A family of variables, `http_…`.
#[derive(Clone, Copy)]
pub struct Family {
    pub prefix: &'static str,
    pub get: GetOf,
}

/// A declared variable whose value is computed when it is asked for (`map`, `geo`).
pub trait Evaluate: Send + Sync {
    /// Appends the value; false where there is none.
    fn evaluate(&self, x: &Exchange, out: &mut Vec<u8>) -> bool;
}

/// What a module does with its confs.
pub trait Install: Module {
    const VARIABLES: &'static [Variable] = &[];
    const FAMILIES: &'static [Family] = &[];

    /// Once a generation, with what stands at the `http` level: variables, zones, tables.
    fn prepare(main: &Self::Main, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        let _ = (main, build);
        Ok(())
    }

    /// Once a level, with the settings that hold there: handlers of the plan, or nothing.
    fn install(scope: &Self::Scope, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic>;
}

/// What compiling needs of a module, its types erased.
pub trait AnyInstall: AnyModule {
    fn variables(&self) -> &'static [Variable];
    fn families(&self) -> &'static [Family];
    fn prepare(&self, main: &Confs, build: &mut Build<'_>) -> Result<(), Diagnostic>;
    fn install(&self, scope: &Confs, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic>;
}

impl<M: Install> AnyInstall for M {
    fn variables(&self) -> &'static [Variable] {
        M::VARIABLES
    }

    fn families(&self) -> &'static [Family] {
        M::FAMILIES
    }

    fn prepare(&self, main: &Confs, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        M::prepare(&main.main::<M>(), build)
    }

    fn install(&self, scope: &Confs, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        M::install(&scope.get::<M>(), plan)
    }
}

//! The house around the processes: configurations are read by `syntax` and `ir`, served by `engine`, with `modules`.

mod directives;
mod options;
mod site;
mod snapshot;
mod work;
mod world;

use std::sync::Arc;

use weir_engine::contract::AnyInstall;
use weir_engine::generation::builtin;
use weir_ir::http::{HttpCore, HttpUpstream};
use weir_ir::{AnyModule, Dialect, Prefixes, Program, World, lower};
use weir_syntax::{Ast, Diagnostic};

pub use site::Configuration;

use crate::args::Options;
use crate::master::Prepared;
use crate::paths::Paths;
use crate::startup;

/// weir itself.
pub struct House;

impl startup::House for House {
    type Site = Configuration;

    fn built_in(&self) -> Vec<&'static str> {
        let modules = http_modules().into_iter().chain(upstream_modules());
        let names = modules.flat_map(|module| module.directives()).map(|directive| directive.name);
        options::of(&names.collect())
    }

    fn site(&self, paths: &Paths, options: &Options) -> Configuration {
        Configuration::new(paths, options)
    }

    fn directives(&self) -> String {
        directives::table()
    }

    fn demo(&self, print_config: bool) -> i32 {
        crate::demo::run(print_config)
    }

    fn work(&self, program: &str) -> i32 {
        work::work(program)
    }

    fn alone(&self, prepared: Prepared, site: Configuration, program: &str) -> i32 {
        work::alone(prepared, site, program)
    }
}

/// Everything that a configuration is read from, besides what it asks of the outside.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub conf_file: Vec<u8>,
    pub prefixes: Prefixes,
    /// `-g`
    pub globals: Option<Vec<u8>>,
}

/// The modules whose directives the language has, spine first.
pub(crate) fn http_modules() -> Vec<&'static dyn AnyModule> {
    let spine: [&'static dyn AnyModule; 2] = [&HttpCore, &HttpUpstream];
    spine.into_iter().chain(weir_modules::HTTP.iter().map(|m| *m as &dyn AnyModule)).collect()
}

pub(crate) fn upstream_modules() -> Vec<&'static dyn AnyModule> {
    weir_modules::UPSTREAM.iter().map(|m| *m as &dyn AnyModule).collect()
}

/// All modules that have something to install, in the order in which they are asked.
pub(crate) fn installed() -> Vec<&'static dyn AnyInstall> {
    weir_modules::UPSTREAM.iter().chain(weir_modules::HTTP).copied().collect()
}

/// Parses and lowers a configuration.
pub(crate) fn read(reading: &Reading, world: &dyn World) -> (Ast, Program, Vec<Diagnostic>) {
    let conf = reading.prefixes.conf.as_bytes();
    let ast = weir_syntax::parse(world, &reading.conf_file, conf, reading.globals.as_deref());
    let (http, upstream, modules) = (http_modules(), upstream_modules(), installed());
    let builtin = |name: &str| builtin(&modules, name);
    let dialect =
        Dialect { core: weir_ir::core::MODULES, http: &http, upstream: &upstream, builtin: &builtin };
    let (program, diagnostics) = lower(&ast, &reading.prefixes, &dialect, world);
    (ast, program, diagnostics)
}

fn text(bytes: &[u8]) -> Arc<str> {
    String::from_utf8_lossy(bytes).into()
}

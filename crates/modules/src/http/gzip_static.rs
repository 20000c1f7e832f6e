//! `ngx_http_gzip_static_module`: files that lie beside the asked one compressed, `x.gz` for `x`.

use weir_engine::contract::Install;
use weir_engine::generation::Plan;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Fault, Merge};
use weir_syntax::Diagnostic;

use super::precompressed::{self, When};

pub struct GzipStatic;

type D = Directive<GzipStatic>;

impl Module for GzipStatic {
    const NAME: &'static str = "http_gzip_static";
    type Main = ();
    type Scope = Settings;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[D::scope("gzip_static", Contexts::SCOPES, Takes::ONE, |s, c| {
            s.files.one_of(c, precompressed::WORDS)
        })];
}

/// What a level says of it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    files: Setting<When>,
}

impl Conf for Settings {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.files.inherit(&outer.files);
        Ok(())
    }
}

impl Install for GzipStatic {
    fn install(_: &Settings, _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

/// Whether the level being compiled sends them.
pub(super) fn files(plan: &Plan<'_, '_>) -> When {
    plan.scope().confs.get::<GzipStatic>().files.or(When::Off)
}

//! `ngx_http_v3_module`: HTTP/3 is not spoken, and its directives are refused. Logs and headers of many sites ask for its variable.

use weir_engine::contract::{Install, Variable};
use weir_engine::generation::Plan;
use weir_ir::contract::{Directive, Module};
use weir_syntax::Diagnostic;

/// The module.
pub struct V3;

impl Module for V3 {
    const NAME: &'static str = "http_v3";
    type Main = ();
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] = &[];
}

impl Install for V3 {
    /// Empty, as nginx has it for requests that came otherwise.
    const VARIABLES: &'static [Variable] = &[Variable::new("http3", |_, _| true)];

    fn install((): &(), _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

//! `ngx_http_v2_module`: so far only the directive that most configurations have, which says what it does not do.

use weir_engine::contract::Install;
use weir_engine::generation::Plan;
use weir_ir::http::listen::HTTP2_LATER;
use weir_ir::{Call, Conf, Contexts, Directive, Fault, Merge, Module, Setting, Takes};
use weir_syntax::Diagnostic;

pub struct V2;

type D = Directive<V2>;

impl Module for V2 {
    const NAME: &'static str = "http_v2";
    type Main = ();
    type Scope = Enabled;
    const DIRECTIVES: &'static [D] = &[D::scope("http2", Contexts::HTTP_SERVER, Takes::FLAG, http2)
        .accepted("clients that offer HTTP/2 are served over HTTP/1.1, with a warning")];
}

/// `http2`.
#[derive(Clone, Debug, Default)]
pub struct Enabled {
    on: Setting<bool>,
}

impl Conf for Enabled {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.on.inherit(&outer.on);
        Ok(())
    }
}

fn http2(enabled: &mut Enabled, call: &mut Call<'_>) -> Result<(), Fault> {
    enabled.on.flag(call)?;
    if enabled.on.or(false) {
        call.warn(HTTP2_LATER);
    }
    Ok(())
}

impl Install for V2 {
    fn install(_: &Enabled, _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

//! The folders for temporary files of protocols that weir does not speak yet: configurations name them all together.
//!
//! Each goes into its own module's file when that module is written.

use weir_engine::contract::Install;
use weir_engine::generation::Plan;
use weir_ir::{Contexts, Directive, Module, Once, Takes};
use weir_syntax::Diagnostic;

macro_rules! temp_path {
    ($module:ident, $name:literal, $directive:literal) => {
        pub struct $module;

        impl Module for $module {
            const NAME: &'static str = $name;
            type Main = ();
            type Scope = Once;
            const DIRECTIVES: &'static [Directive<Self>] = &[Directive::<Self>::scope(
                $directive,
                Contexts::SCOPES,
                Takes::ONE_TO_FOUR,
                |once, call| once.read(call, weir_ir::http::core::temp_path),
            )
            .accepted("nothing is written there while the protocol is not spoken")];
        }

        impl Install for $module {
            fn install(_: &Once, _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
                Ok(())
            }
        }
    };
}

temp_path!(Uwsgi, "http_uwsgi", "uwsgi_temp_path");
temp_path!(Scgi, "http_scgi", "scgi_temp_path");

//! The configuration language of nginx: bytes to a tree with spans and diagnostics.
//!
//! It knows no directive name but `include`, does no IO (see [`Files`]) and never stops at the first error, though
//! the first error is always the one that nginx reports, to the letter.

mod ast;
mod diagnostic;
mod files;
mod glob;
mod parse;
mod recorded;
pub mod render;
mod source;
mod suggest;
mod token;

pub use ast::{Ast, Block, Directive, FileId, Include, Item, Quote, Span, Word};
pub use diagnostic::{Diagnostic, Level, Place};
pub use files::{Files, Memory};
pub use parse::parse;
pub use recorded::{Malformed, Recorded};
pub use source::Sources;
pub use suggest::suggest;

//! The meaning of a configuration: lowers the tree of `weir-syntax` to a typed [`Program`].
//!
//! It knows how blocks nest, which contexts and arities a directive has, how values are written and how an
//! inner block takes over what the outer one says. It knows no directive by name but those of the spine
//! (`core`), has no IO (what it needs of the outside comes through [`World`]) and no tokio.

pub mod address;
pub mod cidr;
pub mod contract;
pub mod core;
pub mod http;
mod lower;
pub mod lowering;
pub mod program;
pub mod regex;
pub mod table;
pub mod template;
pub mod value;
pub mod world;

pub use contract::{AnyModule, Args, Conf, Confs, Contexts, Directive, Module, Once, Setting, Takes};
pub use lower::lower;
pub use lowering::{Builtin, Call, Dialect, Fault, Merge, Prefixes};
pub use program::{LocationId, Program, Scope, ScopeKind, VariableId};
pub use regex::Regex;
pub use template::{Part, Template};
pub use world::World;

//! Every nginx module, one file or folder each.

use weir_engine::contract::AnyInstall;

pub mod http;

/// The modules of the `http` context, in the order in which their handlers run within a phase.
pub const HTTP: &[&dyn AnyInstall] = &[
    // After everything: it runs in the log phase.
    &http::log::Log,
];

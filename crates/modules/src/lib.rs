//! Every nginx module, one file or folder each.

pub mod http;

use weir_engine::contract::AnyInstall;

/// The modules of the `http` block, in the order in which their handlers stand in a phase.
pub const HTTP: &[&dyn AnyInstall] = &[
    // Has no handlers: its place only decides whose certificates are missed first.
    &http::ssl::Ssl,
];

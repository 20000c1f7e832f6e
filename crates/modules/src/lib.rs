//! Every nginx module, one file or folder each.

use weir_engine::contract::AnyInstall;

pub mod http;
pub mod upstream;

/// The modules of the `http` context, in the order in which their handlers run within a phase.
pub const HTTP: &[&dyn AnyInstall] = &[
    // Has no handlers; as in nginx a missing certificate is told before what later modules find.
    &http::ssl::Ssl,
    // Takes its location whole, so its place among the content handlers does not matter.
    &http::proxy::Proxy,
];

/// The modules of the `upstream` context: balancers first, then what wraps them.
pub const UPSTREAM: &[&dyn AnyInstall] = &[
    // After every balancer: it keeps the connections to whatever peer they picked.
    &upstream::keepalive::Keepalive,
];

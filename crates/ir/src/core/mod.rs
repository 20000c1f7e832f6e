//! The `main` and `events` contexts: processes, files, limits, and the blocks that open the rest.

pub mod error_log;
pub mod events;
pub mod main;
pub mod syslog;

pub use events::Events;
pub use main::Main;

use crate::contract::AnyModule;

/// The modules of these contexts, in nginx's order.
pub const MODULES: &[&dyn AnyModule] = &[&Main, &Events];

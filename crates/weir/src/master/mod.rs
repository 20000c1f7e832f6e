//! The master process: a [`machine`] that decides, and [`run`] that does as it says.

pub mod machine;
mod prepared;
mod run;

pub use prepared::{Collected, ErrorLog, Failed, Plan, Prepared, Refused, Site};
pub use run::{Start, run};

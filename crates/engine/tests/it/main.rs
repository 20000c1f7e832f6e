//! The engine with modules that only tests have.

mod bodies;
mod panics;
mod subrequests;

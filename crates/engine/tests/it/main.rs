//! The engine with modules that only tests have.

mod panics;

//! To come.

pub mod http1;

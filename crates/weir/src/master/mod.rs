//! The master process: a [`machine`] that decides, and what does as it says.

pub mod machine;

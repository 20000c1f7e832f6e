//! What holds for the whole workspace and no single crate can test.

mod cases;
mod tidy;

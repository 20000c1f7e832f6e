//! To come.
pub fn run(_: bool) -> i32 {
    1
}

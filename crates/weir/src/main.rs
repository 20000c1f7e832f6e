//! `weir`: see the library beside this file.

use std::os::unix::ffi::OsStringExt;

use weir::house::House;

fn main() {
    let arguments = std::env::args_os().map(OsStringExt::into_vec).collect();
    std::process::exit(weir::startup::run(&House, arguments, std::env::vars_os().collect()));
}

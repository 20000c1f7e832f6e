//! Any bytes as a configuration and, behind the first NUL, as a file that it may include.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_syntax::{Memory, parse, render};

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |&byte| byte == 0);
    let (main, included) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let files = Memory::new().with("/nginx.conf", main).with("/a", included);
    let ast = parse(&files, b"/nginx.conf", b"/", Some(included));
    for error in ast.errors() {
        render::explained("weir", error, &ast.sources);
    }
});

//! What the parser answers, as tables. The first errors are those of a real nginx.

mod errors;
mod never_panics;
mod recovery;
mod rendering;
mod tree;

use weir_syntax::{Ast, Memory, parse, render};

/// Parses `/nginx.conf` of `files`, with `-g` text if given.
fn parsed(files: &Memory, globals: Option<&str>) -> Ast {
    parse(files, b"/nginx.conf", b"/", globals.map(str::as_bytes))
}

fn conf(text: impl AsRef<[u8]>) -> Memory {
    Memory::new().with("/nginx.conf", text)
}

/// Every error as nginx would print it, without the program's name and with other bytes than UTF-8 replaced.
fn lines(ast: &Ast) -> Vec<String> {
    let line = |error: &&_| String::from_utf8_lossy(&render::line("", error, &ast.sources)).into_owned();
    ast.errors().iter().map(line).map(|line| line.trim_start_matches(": ").to_string()).collect()
}

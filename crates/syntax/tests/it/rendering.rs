//! The explained form of a finding.

use super::{conf, parsed};
use weir_syntax::{Memory, render};

#[track_caller]
fn check(files: &Memory, expected: &str) {
    let ast = parsed(files, None);
    let error = ast.errors()[0].clone();
    assert_eq!(render::explained("nginx", &error, &ast.sources), expected);
}

#[test]
fn source_and_help() {
    check(
        &conf("http {\n    server {\n\tlisten 80\n    }\n}\n"),
        "nginx: [emerg] unexpected \"}\" in /nginx.conf:4\n  \
           3 |  listen 80\n    \
             |         ^^\n    \
             = help: is a \";\" missing after 80?\n",
    );
    check(
        &conf("\n\na {\n  b 'c;\n}\n"),
        "nginx: [emerg] unexpected end of file, expecting \";\" or \"}\" in /nginx.conf:6\n  \
           4 |   b 'c;\n    \
             |     ^\n    \
             = help: the quote opened on line 4 is not closed\n",
    );
    check(
        &conf("include a\nuser b;"),
        "nginx: [emerg] invalid number of arguments in \"include\" directive in /nginx.conf:2\n  \
           1 | include a\n    \
             | ^^^^^^^^^\n    \
             = help: is a \";\" missing after \"a\" on line 1?\n",
    );
    check(&Memory::new(), "nginx: [emerg] open() \"/nginx.conf\" failed (2: No such file or directory)\n");
}

/// Neither control characters nor other encodings reach a terminal.
#[test]
fn odd_bytes_are_shown_escaped() {
    check(
        &conf(b"a \xff\x1b[2J \"b\"\x07; # \xe2\x80\xae\r\n"),
        "nginx: [emerg] unexpected \"\\u{7}\" in /nginx.conf:1\n  \
           1 | a \\xff\\u{1b}[2J \"b\"\\u{7}; # \\u{202e}\n    \
             |                    ^^^^^\n    \
             = help: a space or \";\" is missing after \"b\"\n",
    );
}

#[test]
fn long_lines_are_clipped_around_the_mark() {
    let ast = parsed(&conf(format!("{}\"x\"y;{}", "a ".repeat(1000), "b ".repeat(1000))), None);
    let shown = render::explained("nginx", ast.errors()[0], &ast.sources);
    let lines: Vec<_> = shown.lines().collect();
    let caret = lines[2].find('^').expect("a caret");
    assert_eq!(&lines[1][caret..=caret], "y");
    assert!(lines[1].len() < 200 && lines[1].ends_with("..."), "{}", lines[1]);
}

//! Which errors are found behind the first one.

use super::{conf, lines, parsed};

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let found = lines(&parsed(&conf(text), None));
    let found: Vec<_> =
        found.iter().map(|line| line.trim_start_matches("[emerg] ").replace(" in /nginx.conf", "")).collect();
    assert_eq!(found, expected);
}

#[test]
fn goes_on_behind_the_error() {
    check("; a; ;\n;", &["unexpected \";\":1", "unexpected \";\":1", "unexpected \";\":2"]);
    check("a \"b\"c; d \"e\"f;\n;", &["unexpected \"c\":1", "unexpected \"f\":1", "unexpected \";\":2"]);
    check("a { b }\nc { d }\n", &["unexpected \"}\":1", "unexpected \"}\":2"]);
    check("a }\nb;\n;", &["unexpected \"}\":1", "unexpected \";\":3"]);
    check("{ a; ; }\n;", &["unexpected \"{\":1", "unexpected \";\":1", "unexpected \";\":2"]);
    check("a \"b\"c { d; ; }\n;", &["unexpected \"c\":1", "unexpected \";\":1", "unexpected \";\":2"]);
    check(
        "include;include a b;",
        &[
            "invalid number of arguments in \"include\" directive:1",
            "invalid number of arguments in \"include\" directive:1",
        ],
    );
}

#[test]
fn the_end_is_missed_once() {
    check("a { b { c {", &["unexpected end of file, expecting \"}\":1"]);
    check("a { b { c d", &["unexpected end of file, expecting \";\" or \"}\":1"]);
    check(
        "a {\n b \"c;\n ;\n}\n",
        &["unexpected end of file, expecting \";\" or \"}\":5", "unexpected \";\":3"],
    );
}

#[test]
fn long_words_are_stepped_over() {
    let long = "a".repeat(5000);
    let started = "too long parameter \"aaaaaaaaaa...\" started:1";
    check(&format!("{long};\n;"), &[started, "unexpected \";\":2"]);
    check(
        &format!("x '{long}\n;"),
        &["too long parameter, probably missing terminating \"'\" character:1", "unexpected \";\":2"],
    );
}

#[test]
fn there_is_an_end_to_it() {
    assert_eq!(lines(&parsed(&conf(";".repeat(10_000)), None)).len(), 100);
    let deep = lines(&parsed(&conf("a{".repeat(10_000)), None));
    assert_eq!(deep, ["[emerg] more than 128 blocks are nested in /nginx.conf:1"]);
    let mut files = conf("include /1;");
    for n in 1..60 {
        files = files.with(format!("/{n}"), format!("include /{};include /{};", n + 1, n + 1));
    }
    let many = parsed(&files.with("/60", ""), None);
    assert_eq!(many.errors().len(), 1);
    assert_eq!(many.errors()[0].help.as_deref(), Some("too many files are included"));
}

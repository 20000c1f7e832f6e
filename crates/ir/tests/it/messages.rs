//! What is told of configurations, to the letter.

use weir_syntax::{Level, render};

use crate::lower;

/// What is told up to the first error, as on standard error but without the program's name.
fn told(conf: &str) -> Vec<String> {
    let (ast, program, told) = lower(conf);
    let mut lines = vec![];
    for diagnostic in told.iter().chain(&program.told_late) {
        let line = render::line("", diagnostic, &ast.sources);
        let line = String::from_utf8(line).unwrap();
        lines.push(line.trim_start_matches(": ").replace("P/C:", "C:").trim_end().to_string());
        if diagnostic.level <= Level::Error {
            break;
        }
    }
    lines
}

/// Puts a piece of configuration where it belongs.
fn whole(context: &str, piece: &str) -> String {
    let http = |piece: &str| format!("events {{}} http {{ {piece} }}");
    let server = |piece: &str| http(&format!("server {{ listen 8099; {piece} }}"));
    match context {
        "whole" => piece.into(),
        "main" => format!("{piece} events {{}}"),
        "http" => http(piece),
        "httpserver" => http(&format!("{piece} server {{ listen 8099; location / {{ }} }}")),
        "server" => http(&format!("server {{ {piece} }}")),
        "listening" => server(piece),
        "location" => server(&format!("location / {{ {piece} }}")),
        "upstream" => http(&format!("upstream u {{ {piece} }}")),
        other => panic!("no context {other}"),
    }
}

#[test]
fn pieces_are_told_of_as_by_nginx() {
    let mut cases: Vec<(&str, Vec<&str>)> = vec![];
    for line in include_str!("messages.txt").lines() {
        match (line.strip_prefix("    "), cases.last_mut()) {
            (Some(expected), Some((_, lines))) => lines.push(expected),
            _ if line.is_empty() || line.starts_with('#') => {}
            _ => cases.push((line, vec![])),
        }
    }
    assert!(cases.len() > 250, "{}", cases.len());
    let mut wrong = vec![];
    for (case, expected) in cases {
        let (context, piece) = case.split_once(": ").unwrap_or((case.trim_end_matches(':'), ""));
        let told = told(&whole(context, piece));
        if told != expected {
            wrong.push(format!("{case}\n    nginx: {expected:?}\n    weir:  {told:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[track_caller]
fn check(conf: &str, expected: &[&str]) {
    assert_eq!(told(conf), expected, "{conf}");
}

#[test]
fn messages_stand_at_the_line_that_nginx_was_reading() {
    let conf = "events {}\nhttp {\n server {\n  listen 8099\n   what;\n }\n}\n";
    check(conf, &["[emerg] invalid parameter \"what\" in C:5"]);
    // Levels are completed when the brace of `http` was read.
    let conf = "events {}\nhttp {\n server {\n  large_client_header_buffers 4 100;\n }\n}\n";
    let message =
        "the \"large_client_header_buffers\" size must be equal to or greater than \"connection_pool_size\"";
    check(conf, &[&format!("[emerg] {message} in C:6")]);
    let conf = "events {}\nhttp {\n server {\n  location /a {}\n  location /a {\n  }\n }\n}\n";
    check(conf, &["[emerg] duplicate location \"/a\" in C:5"]);
    let conf = "events {}\nhttp {\n upstream u {\n  server localhost;\n }\n upstream u {\n }\n}\n";
    check(conf, &["[emerg] duplicate upstream \"u\" in C:6"]);
    let conf = "events {}\nhttp {\n upstream u {\n }\n}\n";
    check(conf, &["[emerg] no servers are inside upstream in C:4"]);
}

#[test]
fn bytes_are_told_as_they_stand() {
    let (ast, _, told) = lower(b"events {} http { server { location \xe9 /x { } } }");
    let message = render::message(&told[0], &ast.sources);
    assert_eq!(message, b"invalid location modifier \"\xe9\" in P/C:1");
}

#[test]
fn what_is_unknown_has_a_suggestion() {
    let help = |conf: &str| lower(conf).2[0].help.clone();
    assert_eq!(help("worker_proceses 1; events {}").as_deref(), Some("did you mean \"worker_processes\"?"));
    assert_eq!(help("something_else 1; events {}"), None);
    assert_eq!(help("stream {} events {}").as_deref(), Some("nginx has it in ngx_stream_module"));
}

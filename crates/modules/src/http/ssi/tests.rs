use super::parse::{Found, Parser};
use super::*;
use crate::testing::{Site, check_conf, header};

#[test]
fn messages() {
    check_conf(
        "ssi on; ssi_silent_errors on; ssi_ignore_recycled_buffers on; ssi_min_file_chunk 1k; ssi_value_length 9; \
         ssi_types a/b; ssi_last_modified on; server { location / { if ($uri) { ssi off; } } }",
        "",
    );
    for (conf, message) in [
        ("ssi on; ssi off;", "\"ssi\" directive is duplicate"),
        ("ssi 1;", "invalid value \"1\" in \"ssi\" directive, it must be \"on\" or \"off\""),
        ("ssi_value_length x;", "\"ssi_value_length\" directive invalid value"),
        ("ssi_min_file_chunk 1; ssi_min_file_chunk 1;", "\"ssi_min_file_chunk\" directive is duplicate"),
        ("ssi_types text/html;", "duplicate MIME type \"text/html\""),
        (
            "server { location / { if ($uri) { ssi_types a/b; } } }",
            "\"ssi_types\" directive is not allowed here",
        ),
    ] {
        check_conf(conf, message);
    }
}

/// What a parser finds, in pieces of any size: text, then commands as their names and parameters.
#[track_caller]
fn check_parsed(page: &str, expected: &str) {
    for size in [1, 2, 3, 7, 1000] {
        let mut parser = Parser::new(8);
        let mut out = vec![];
        let mut told = String::new();
        for mut piece in page.as_bytes().chunks(size) {
            while !piece.is_empty() {
                let complain = &mut |message| told = String::from_utf8(message).unwrap();
                let (taken, found) = parser.parse(piece, &mut out, complain);
                piece = &piece[taken..];
                let shown = match found {
                    Found::More => continue,
                    Found::Error => format!("{{{told}}}"),
                    Found::Command => {
                        let pairs = parser.parameters.iter().map(|(key, value)| {
                            format!(" {}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(value))
                        });
                        format!("({}{})", String::from_utf8_lossy(&parser.name), pairs.collect::<String>())
                    }
                };
                out.extend_from_slice(shown.as_bytes());
            }
        }
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{page} in pieces of {size}");
    }
}

#[test]
fn commands_in_pieces() {
    check_parsed("a<!--#b-->c", "a(b)c");
    check_parsed("<!--# b c = 'd' e=\"f\\\"g\" -->", "(b c=d e=f\\\"g)");
    check_parsed("<<!<!-<!--<!--#b-->", "<<!<!-<!--(b)");
    check_parsed("<!--x<!-- #b--><!---#b-->-->", "<!--x<!-- #b--><!---#b-->-->");
    check_parsed("a<!", "a");
    check_parsed("<!--#b c=\"d", "");
    check_parsed(
        "<!--#b c='123456789' -->d",
        "{too long \"123456789...\" value of \"c\" parameter in \"b\" SSI command}d",
    );
    check_parsed(
        "<!--#b c='1' d-e->-- -->f",
        "{unexpected \"-\" symbol after \"d\" parameter in \"b\" SSI command}f",
    );
}

#[test]
fn bodies() {
    let page = "<!--#echo var=\"arg_a\" -->";
    let site = Site::new(&format!(
        "ssi on; server {{ location / {{ add_header ETag '\"x\"'; answer 200 text/html '{page}'; }}
            location /kept {{ ssi_last_modified on; add_header ETag '\"x\"'; answer 200 text/html '{page}'; }}
            location /plain {{ answer 200 text/plain '{page}'; }} location /off {{ ssi off; answer 200 text/html '{page}'; }} }}"
    ));
    for (uri, expected) in
        [("/?a=1", "1\r\n1\r\n0\r\n\r\n"), ("/kept?a=", "0\r\n\r\n"), ("/plain", page), ("/off", page)]
    {
        let answer = site.get(uri, "");
        assert!(answer.ends_with(&format!("\r\n\r\n{expected}")), "{answer}");
    }
    let gone = site.get("/", "");
    assert!(header(&gone, "Last-Modified").is_none() && header(&gone, "ETag").is_none());
    let kept = site.get("/kept", "");
    assert_eq!(header(&kept, "ETag"), Some("W/\"x\""));
    assert!(header(&kept, "Last-Modified").is_some());
    let head = site.ask("HEAD /", "");
    assert!(head.starts_with("HTTP/1.1 200 OK\n") && head.ends_with("\n\n"), "{head}");
}

/// The body of the page with that text.
#[track_caller]
fn page(text: &str) -> String {
    let site = Site::new(
        "ssi on; default_type text/html; server { root %DIR%; location /many { return 200 '<!--#echo var=\"args\" -->'; } \
         location /self { answer 200 text/html '<!--#include virtual=\"/self\" -->.'; } }",
    )
    .with("page", text)
    .with("big", "x".repeat(300_000));
    site.raw(b"GET /page HTTP/1.0\r\n\r\n")
        .split_once("\r\n\r\n")
        .map_or(String::new(), |(_, body)| body.to_owned())
}

#[test]
fn more_parts_than_run_at_once() {
    let parts: String = (0..100).map(|n| format!("<!--#include virtual=\"/many?{n},\" -->")).collect();
    let expected: String = (0..100).map(|n| format!("{n},")).collect();
    assert_eq!(page(&parts), expected);
    let big = page(&"<!--#include virtual=\"/big\" -->-".repeat(3));
    assert!(big == format!("{}-", "x".repeat(300_000)).repeat(3));
}

#[test]
fn pages_in_pages_have_a_bound() {
    let nested = page("<!--#include virtual=\"/self\" -->");
    assert_eq!(nested, format!("[an error occurred while processing the directive]{}", ".".repeat(51)));
}

#[test]
fn what_pages_keep_has_a_bound() {
    // Each doubles the last.
    let doubled = "<!--#set var=\"a\" value=\"$a$a\" -->".repeat(30);
    let cut = page(&format!("before<!--#set var=\"a\" value=\"ab\" -->{doubled}behind"));
    assert_eq!(cut, "");
    let block = format!("<!--#block name=\"a\" -->{}<!--#endblock -->behind", "x".repeat(KEPT + 1));
    assert_eq!(page(&block), "");
    let kept = format!("<!--#block name=\"a\" -->{}<!--#endblock -->behind", "x".repeat(KEPT / 2));
    assert_eq!(page(&kept), "behind");
}

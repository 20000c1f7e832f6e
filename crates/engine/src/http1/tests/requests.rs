use crate::http1::request::{Head, Limits, Method, Parsed};

/// What a request came to, as text: method, path, arguments, extension and host, or status and message.
fn outcome(head: &Head, parsed: Result<Parsed, crate::http1::Reject>) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match parsed {
        Ok(Parsed::Partial) => "partial".into(),
        Ok(Parsed::Complete(_)) => format!(
            "{:?} {} {}|{}|{}|{}",
            head.method(),
            head.version().0,
            text(head.path()),
            text(head.args()),
            text(head.exten()),
            text(head.host()),
        ),
        Err(reject) => format!("{} {}", reject.status, text(&reject.message)),
    }
}

fn whole(wire: &[u8], limits: &Limits) -> (Head, String) {
    let mut head = Head::new();
    let parsed = head.parse(wire, limits);
    let outcome = outcome(&head, parsed);
    (head, outcome)
}

#[track_caller]
fn check_with(wire: &str, limits: &Limits, expected: &str) {
    let (_, found) = whole(wire.as_bytes(), limits);
    assert_eq!(found, expected, "{wire:?}");
}

#[track_caller]
fn check(wire: &str, expected: &str) {
    check_with(wire, &Limits::default(), expected);
}

/// A request for a target, with a host.
#[track_caller]
fn check_target(target: &str, expected: &str) {
    check(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"), expected);
}

#[test]
fn methods() {
    check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "Get 1001 /|||a");
    check("FOO / HTTP/1.1\r\nHost: a\r\n\r\n", "Other 1001 /|||a");
    assert_eq!(Method::of(b"get"), Method::Other);
}

#[test]
fn targets() {
    check_target("/a/b.c?d=e", "Get 1001 /a/b.c|d=e|c|h");
    check_target("/a/../b", "Get 1001 /b|||h");
    check_target("http://B.example:81", "Get 1001 /|||b.example");
}

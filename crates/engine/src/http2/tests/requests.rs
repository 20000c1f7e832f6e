//! Fields, and the request or the line in the log that nginx makes of them.

use super::text;
use crate::http1::Limits;
use crate::http1::request::Head;
use crate::http2::hpack::Fields;
use crate::http2::request::{Asked, Came, asked, assemble, of_hyper, stream};

type Field<'f> = (&'f str, &'f [u8]);

const METHOD: Field<'_> = (":method", b"GET");
const SCHEME: Field<'_> = (":scheme", b"http");
const PATH: Field<'_> = (":path", b"/");
const AUTHORITY: Field<'_> = (":authority", b"a.example");

fn came(fields: &[Field<'_>], ends: bool, bridges: bool) -> Came {
    let mut list = Fields::default();
    for (name, value) in fields {
        list.push(name.as_bytes(), value);
    }
    let asked = if bridges { asked(&list) } else { Asked::Request };
    Came { stream: 1, length: 0, fields: list, asked, ends }
}

/// The request that is made of fields, or the status and what is logged.
fn made(came: &Came, limits: &Limits) -> String {
    let mut head = Head::new();
    let key = (came.asked == Asked::WebSocket).then_some("KEY");
    if let Err(reject) = assemble(&mut head, came, key, limits) {
        return format!("{} {}", reject.status, text(&reject.message));
    }
    let fields = head
        .fields()
        .iter()
        .map(|field| format!("|{}={}", text(head.get(field.name)), text(head.get(field.value))));
    let of_line = [head.method_name(), head.host(), head.path(), head.args()].map(text);
    let [method, host, path, args] = of_line;
    format!("{method} {host} {path}?{args}{}", fields.collect::<String>())
}

#[track_caller]
fn check(fields: &[Field<'_>], expected: &str) {
    assert_eq!(made(&came(fields, true, false), &Limits::default()), expected);
}

/// Checks what comes of fields behind those that every request has.
#[track_caller]
fn check_more(more: &[Field<'_>], expected: &str) {
    check(&[&[METHOD, SCHEME, PATH, AUTHORITY], more].concat(), expected);
}

#[test]
fn paths_are_those_of_nginx() {
    for (path, expected) in [
        (&b"/"[..], "/?"),
        (b"/a/../b%20c?d=e", "/b c?d=e"),
        (b"/<?\"<>`", "/<?\"<>`"),
        (b"/\x80?\xff", r"/\x80?\xff"),
        (b"/a#b", "/a?"),
        (b"/a b", ""),
        (b"/a?\tb", ""),
        (b"/a\x7f", ""),
        (b"/%00", ""),
        (b"/%zz", ""),
        (b"/../..", ""),
        (b"*", ""),
        (b"a", ""),
        (b"http://a.example/", ""),
    ] {
        let expected = match expected {
            "" => format!("400 client sent invalid :path header: \"{}\"", text(path)),
            _ => format!("GET a.example {expected}|host=a.example"),
        };
        check(&[METHOD, SCHEME, (":path", path), AUTHORITY], &expected);
    }
}

#[test]
fn methods_and_schemes_are_those_of_nginx() {
    for (method, expected) in [
        (&b"POST"[..], "POST a.example /?|host=a.example"),
        (b"M-SEARCH", "M-SEARCH a.example /?|host=a.example"),
        (b"get", "400 client sent invalid method: \"get\""),
        (b"GET /x", "400 client sent invalid method: \"GET /x\""),
        (b"G1", "400 client sent invalid method: \"G1\""),
        (b"TRACE", "405 client sent TRACE method"),
    ] {
        check(&[(":method", method), SCHEME, PATH, AUTHORITY], expected);
    }
    for (scheme, is_right) in [
        (&b"https"[..], true),
        (b"x+Y-1.z", true),
        (b"ht tp", false),
        (b"1http", false),
        (b"http:", false),
        (b"http\x80", false),
    ] {
        let expected = match is_right {
            true => "GET a.example /?|host=a.example".to_owned(),
            false => format!("400 client sent invalid :scheme header: \"{}\"", text(scheme)),
        };
        check(&[METHOD, (":scheme", scheme), PATH, AUTHORITY], &expected);
    }
}

#[test]
fn fields_that_make_a_request() {
    for (fields, expected) in [
        (&[SCHEME, PATH, AUTHORITY][..], "400 client sent no :method header"),
        (&[METHOD, PATH, AUTHORITY], "400 client sent no :scheme header"),
        (&[METHOD, SCHEME, AUTHORITY], "400 client sent no :path header"),
        (&[], "400 client sent no :method header"),
        // In any order.
        (&[AUTHORITY, PATH, SCHEME, METHOD], "GET a.example /?|host=a.example"),
        (&[METHOD, METHOD, SCHEME, PATH], "400 client sent duplicate :method header"),
        (&[METHOD, SCHEME, SCHEME, PATH], "400 client sent duplicate :scheme header"),
        (&[METHOD, SCHEME, PATH, PATH], "400 client sent duplicate :path header"),
        (&[METHOD, SCHEME, PATH, AUTHORITY, AUTHORITY], "400 client sent duplicate \":authority\" header"),
        (&[(":method", b""), SCHEME, PATH], "400 client sent empty :method header"),
        (&[METHOD, (":scheme", b""), PATH], "400 client sent empty :scheme header"),
        (&[METHOD, SCHEME, (":path", b"")], "400 client sent empty :path header"),
        (&[METHOD, SCHEME, PATH, (":authority", b"")], "400 client sent invalid \":authority\" header"),
        (&[METHOD, SCHEME, PATH, (":authority", b"a..b")], "400 client sent invalid \":authority\" header"),
        (&[METHOD, SCHEME, PATH, (":status", b"200")], "400 client sent unknown pseudo-header \":status\""),
        (&[METHOD, SCHEME, PATH, (":", b"")], "400 client sent unknown pseudo-header \":\""),
        (&[METHOD, SCHEME, ("x", b"y"), PATH], "400 client sent no :path header"),
        (&[METHOD, SCHEME, PATH, ("x", b"y"), AUTHORITY], "400 client sent out of order pseudo-headers"),
        // What comes first decides, but a line that is none before any field.
        (
            &[METHOD, SCHEME, (":path", b"*"), AUTHORITY, ("x", b"y"), ("te", b"x")],
            "400 client sent invalid :path header: \"*\"",
        ),
        (&[METHOD, METHOD, (":x", b"")], "400 client sent duplicate :method header"),
        (&[(":method", b"CONNECT"), (":authority", b"a:1")], "400 client sent no :scheme header"),
        (
            &[(":method", b"CONNECT"), (":protocol", b"websocket"), SCHEME, PATH, AUTHORITY],
            "400 client sent unknown pseudo-header \":protocol\"",
        ),
    ] {
        check(fields, expected);
    }
}

#[test]
fn names_and_values_of_fields() {
    for name in ["X", "xY", "x y", " x", "x\t", "x\x7f", "x\0", "x:", "x\r\n"] {
        let shown = text(name.as_bytes());
        check_more(&[(name, b"1")], &format!("400 client sent invalid header name: \"{shown}\""));
    }
    for name in [":Path", ":pa:th", ": "] {
        let expected = format!("400 client sent invalid header name: \"{name}\"");
        check(&[METHOD, SCHEME, (name, b"/"), AUTHORITY], &expected);
    }
    for value in [&b"a\0"[..], b"\r", b"a\nb", b"\r\nx: y"] {
        let shown = text(value);
        check_more(&[("x", value)], &format!("400 client sent header \"x\" with invalid value: \"{shown}\""));
        let expected = format!("400 client sent header \":path\" with invalid value: \"{shown}\"");
        check(&[METHOD, SCHEME, (":path", value), AUTHORITY], &expected);
    }
    check_more(&[("x", b" \t2 "), ("y", b"")], "GET a.example /?|x= \\t2 |y=|host=a.example");
    check_more(&[("x", b"\x01\x80\xff")], "GET a.example /?|x=\\x01\\x80\\xff|host=a.example");
}

#[test]
fn fields_of_connections_have_no_place() {
    for (name, shown) in [
        ("connection", "Connection"),
        ("proxy-connection", "Proxy-Connection"),
        ("keep-alive", "Keep-Alive"),
        ("transfer-encoding", "Transfer-Encoding"),
        ("upgrade", "Upgrade"),
    ] {
        for value in [&b""[..], b"close", b"chunked"] {
            check_more(&[(name, value)], &format!("400 client sent \"{shown}\" header"));
        }
    }
    check_more(&[("te", b"trailers")], "GET a.example /?|te=trailers|host=a.example");
    check_more(&[("te", b"Trailers")], "GET a.example /?|te=Trailers|host=a.example");
    for fields in [
        &[("te", &b"gzip"[..])][..],
        &[("te", b"")],
        &[("te", b"trailers, gzip")],
        &[("te", b"trailers"), ("te", b"trailers")],
    ] {
        check_more(fields, "400 client sent invalid \"TE\" header");
    }
}

#[test]
fn cookies_are_one() {
    for (cookies, expected) in [
        (&[&b"a=1"[..], b"b=2"][..], "cookie=a=1; b=2|"),
        (&[b""], "cookie=|"),
        (&[b"", b""], "cookie=; |"),
        (&[], ""),
    ] {
        let fields = cookies.iter().map(|cookie| ("cookie", *cookie)).collect::<Vec<_>>();
        check_more(&fields, &format!("GET a.example /?|{expected}host=a.example"));
    }
    check_more(
        &[("cookie", b"a=1"), ("x", b"y"), ("cookie", b"b=2")],
        "GET a.example /?|x=y|cookie=a=1; b=2|host=a.example",
    );
}

#[test]
fn the_host_is_told_once_or_twice_alike() {
    let host = |value| [METHOD, SCHEME, PATH, ("host", value)];
    check(&host(b"B.example:81"), "GET b.example /?|host=B.example:81");
    check(&host(b"b..c"), "400 client sent invalid host header");
    check(&host(b""), "400 client sent invalid host header");
    check(&[METHOD, SCHEME, PATH], "400 client sent neither \":authority\" nor \"Host\" header");
    check_more(&[("host", b"a.example")], "GET a.example /?|host=a.example");
    for value in [&b"b.example"[..], b"A.example", b"a.example:80"] {
        check_more(
            &[("host", value)],
            "400 client sent \":authority\" and \"Host\" headers with different values",
        );
    }
    check_more(
        &[("host", b"a.example"), ("host", b"a.example")],
        "400 client sent duplicate host header: \"host: a.example\", previous value: \"host: a.example\"",
    );
    check(&[METHOD, SCHEME, PATH, (":authority", b"A.example:81")], "GET a.example /?|host=A.example:81");
}

#[test]
fn lengths_of_bodies() {
    for (length, ends, expected) in [
        (&b"0"[..], true, "GET a.example /?|content-length=0|host=a.example"),
        (b"0", false, "GET a.example /?|content-length=0|host=a.example"),
        (b"5", false, "GET a.example /?|content-length=5|host=a.example"),
        (b"5", true, "400 client prematurely closed stream"),
        (b"1x", false, "400 client sent invalid \"Content-Length\" header"),
        (b"-1", true, "400 client sent invalid \"Content-Length\" header"),
        (b"", true, "400 client sent invalid \"Content-Length\" header"),
        (b" 5", false, "400 client sent invalid \"Content-Length\" header"),
        (b"99999999999999999999", false, "400 client sent invalid \"Content-Length\" header"),
    ] {
        let fields = [METHOD, SCHEME, PATH, AUTHORITY, ("content-length", length)];
        assert_eq!(made(&came(&fields, ends, false), &Limits::default()), expected);
    }
    check_more(
        &[("content-length", b"0"), ("content-length", b"0")],
        "400 client sent duplicate header line: \"content-length: 0\", previous value: \"content-length: 0\"",
    );
    // Whether something follows is told by the stream.
    for (fields, ends, expected) in [
        (&[][..], true, (false, false, None)),
        (&[], false, (true, true, None)),
        (&[("content-length", &b"5"[..])], false, (true, false, Some(5))),
    ] {
        let mut head = Head::new();
        let fields = [&[METHOD, SCHEME, PATH, AUTHORITY], fields].concat();
        assert_eq!(assemble(&mut head, &came(&fields, ends, false), None, &Limits::default()), Ok(()));
        assert_eq!((head.streams(), head.is_chunked(), head.content_length()), expected);
    }
}

#[test]
fn odd_names_and_how_many_there_may_be() {
    let odd = [METHOD, SCHEME, PATH, AUTHORITY, ("y_z", b"1"), ("a(", b"2"), ("x-1", b"3")];
    let limits = |ignore_invalid_headers, underscores_in_headers, max_headers| Limits {
        ignore_invalid_headers,
        underscores_in_headers,
        max_headers,
        ..Limits::default()
    };
    let many = "494 client sent too many header lines";
    for (limits, expected) in [
        (limits(true, false, 10), "GET a.example /?|x-1=3|host=a.example"),
        (limits(true, true, 10), "GET a.example /?|y_z=1|x-1=3|host=a.example"),
        (limits(false, false, 10), "GET a.example /?|y_z=1|a(=2|x-1=3|host=a.example"),
        (limits(false, false, 3), "GET a.example /?|y_z=1|a(=2|x-1=3|host=a.example"),
        (limits(false, false, 2), many),
    ] {
        assert_eq!(made(&came(&odd, true, false), &limits), expected);
    }
    let mut ignored = Head::new();
    assert_eq!(assemble(&mut ignored, &came(&odd, true, false), None, &limits(true, false, 10)), Ok(()));
    assert_eq!(ignored.ignored().map(text).collect::<Vec<_>>(), ["y_z: 1", "a(: 2"]);
    // The host and cookies are not counted.
    let fields = [METHOD, SCHEME, PATH, AUTHORITY, ("x", b"1"), ("cookie", b"2"), ("cookie", b"3")];
    let expected = "GET a.example /?|x=1|cookie=2; 3|host=a.example";
    assert_eq!(made(&came(&fields, true, false), &limits(true, false, 1)), expected);
    assert_eq!(made(&came(&fields, true, false), &limits(true, false, 0)), many);
}

#[test]
fn a_websocket_is_an_upgrade() {
    const CONNECT: Field<'_> = (":method", b"CONNECT");
    const PROTOCOL: Field<'_> = (":protocol", b"WebSocket");
    let upgrade = "|upgrade=websocket|connection=upgrade|sec-websocket-key=KEY";
    let first = [CONNECT, PROTOCOL, SCHEME, PATH, AUTHORITY];
    for (more, expected) in [
        (&[][..], format!("GET a.example /?{upgrade}|host=a.example")),
        // The key is ours.
        (
            &[("sec-websocket-key", &b"theirs"[..]), ("sec-websocket-version", b"13")],
            format!("GET a.example /?|sec-websocket-version=13{upgrade}|host=a.example"),
        ),
        (&[("upgrade", b"x")], "400 client sent \"Upgrade\" header".to_owned()),
        (&[("connection", b"x")], "400 client sent \"Connection\" header".to_owned()),
        (&[("content-length", b"1")], "400 client prematurely closed stream".to_owned()),
    ] {
        let fields = [&first[..], more].concat();
        assert_eq!(made(&came(&fields, false, true), &Limits::default()), expected);
    }
    // What is neither is as elsewhere.
    for (fields, expected) in [
        (&[METHOD, PROTOCOL, SCHEME, PATH][..], "400 client sent unknown pseudo-header \":protocol\""),
        (
            &[CONNECT, (":protocol", b"connect-udp"), SCHEME, PATH],
            "400 client sent unknown pseudo-header \":protocol\"",
        ),
        (&[CONNECT, PROTOCOL, PATH, AUTHORITY], "400 client sent no :scheme header"),
        (&[METHOD, SCHEME, PATH, AUTHORITY], "GET a.example /?|host=a.example"),
    ] {
        assert_eq!(made(&came(fields, false, true), &Limits::default()), expected);
    }
    let mut head = Head::new();
    assert_eq!(assemble(&mut head, &came(&first, false, true), Some("KEY"), &Limits::default()), Ok(()));
    assert!(!head.streams() && !head.is_chunked(), "a tunnel is no body");
}

#[test]
fn a_request_that_is_refused_is_known_as_far_as_it_came() {
    for (fields, line, host) in [
        (&[METHOD, AUTHORITY, METHOD][..], "", "a.example"),
        (&[METHOD, SCHEME, PATH, AUTHORITY, ("X", b"")], "", "a.example"),
        (&[METHOD, SCHEME, PATH, AUTHORITY, ("x", b""), ("X", b"")], "GET / HTTP/2.0", "a.example"),
        (&[METHOD, SCHEME, (":path", b"*"), AUTHORITY], "", ""),
        (&[METHOD, SCHEME, PATH, (":authority", b"/")], "", ""),
        (&[METHOD, SCHEME, PATH, ("upgrade", b""), ("host", b"b")], "GET / HTTP/2.0", "b"),
    ] {
        let mut head = Head::new();
        assert!(assemble(&mut head, &came(fields, true, false), None, &Limits::default()).is_err());
        assert_eq!((text(head.request_line()), text(head.host())), (line.to_owned(), host.to_owned()));
        assert_eq!(head.has_line(), !line.is_empty());
    }
}

#[test]
fn hyper_tells_which_stream_it_hands_over() {
    for number in [1, 99, u32::MAX >> 1] {
        assert_eq!(stream(&format!("/{number}")), Some(number));
        for (asked, expected) in
            [(Asked::Request, ":method=GET"), (Asked::WebSocket, ":method=CONNECT :protocol=websocket")]
        {
            let block = of_hyper(number, asked);
            let fields = super::fields(&mut super::Decoder::new(), &block);
            assert_eq!(fields, format!("{expected} :scheme=http :path=/{number}"));
        }
    }
    assert_eq!([stream(""), stream("/"), stream("*"), stream("/x")], [None; 4]);
}

//! Requests that are made to be read differently by two servers: each is refused or read as nginx reads it.

use weir_testkit::{Client, Origin, Server, requests};

use crate::{Test, executable};

pub const TESTS: &[Test] = &[
    ("ambiguous_requests_are_refused", ambiguous_requests_are_refused),
    ("odd_requests_are_read_as_nginx_reads_them", odd_requests_are_read_as_nginx_reads_them),
    ("what_variables_bring_ends_no_line", what_variables_bring_ends_no_line),
];

const CONF: &str = "
    error_log logs/error.log info;
    events {}
    http {
        server {
            listen {listen};
            location / { proxy_pass http://{origin}; }
        }
    }";

const POST: &str = "POST / HTTP/1.1\r\nHost: a.example\r\n";
/// What would be smuggled behind a request.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n";

fn start(origin: &Origin) -> Server {
    Server::start(&executable(), CONF, &[("origin", origin.address().to_string())])
}

fn ambiguous_requests_are_refused() {
    let origin = Origin::saying("fine");
    let server = start(&origin);
    let mut wrong = vec![];
    let mut check = |request: String, status: &str| {
        let mut client = Client::connect(server.address());
        client.send(format!("{request}{HIDDEN}"));
        let first = client.try_response().map_or_else(|e| e.to_string(), |r| r.head);
        if !first.starts_with(&format!("HTTP/1.1 {status}")) {
            wrong.push(format!("{request:?} got {:?}", first.lines().next()));
        } else if client.last_words().contains("HTTP/1.1") {
            wrong.push(format!("{request:?} was refused, and something behind it was not"));
        }
    };
    for head in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length:\r\n",
        "Content-Length: 9999999999999999999999\r\n",
        "Content-Length : 5\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "X-A: b\r\n continued\r\n",
        "X-A: b\r\n\tcontinued\r\n",
        " X-A: b\r\n",
        "X-A: b\rContent-Length: 5\r\n",
        "X-A: b\0c\r\n",
        "X A: b\r\n",
        "X-\x01: b\r\n",
        "Host: b.example\r\n",
        "Host: a.example\r\n",
    ] {
        check(format!("{POST}{head}\r\n0\r\n\r\n"), "400 Bad Request");
    }
    for coding in ["gzip", "gzip, chunked", "chunked, chunked", "identity", "chunked;q=1", "xchunked"] {
        check(format!("{POST}Transfer-Encoding: {coding}\r\n\r\n0\r\n\r\n"), "501 Not Implemented");
    }
    for chunks in [
        "x\r\n",
        "\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "-1\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFFF\r\n",
        "8000000000000000\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r0\r\n\r\n",
    ] {
        check(format!("{POST}Transfer-Encoding: chunked\r\n\r\n{chunks}"), "400 Bad Request");
    }
    for line in [
        "GET / HTTP/1.1 x",
        "GET / http/1.1",
        "GET / HTTP/1.",
        "GET / HTTP/.1",
        "get / HTTP/1.1",
        "GET \t/ HTTP/1.1",
        "GET /\x01 HTTP/1.1",
        "GET / HTTP/1.1\r\r",
    ] {
        check(format!("{line}\r\nHost: a.example\r\n\r\n"), "400 Bad Request");
    }
    // nginx lets anything stand behind a blank there; another server may read the number on.
    check(format!("{POST}Transfer-Encoding: chunked\r\n\r\n5 5\r\nhello\r\n0\r\n\r\n"), "400 Bad Request");
    check("GET / HTTP/2.0\r\nHost: a.example\r\n\r\n".into(), "505 HTTP Version Not Supported");
    check("GET / HTTP/1.1\r\n\r\n".into(), "400 Bad Request");
    check("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), "400 Bad Request");
    check("CONNECT a.example:80 HTTP/1.1\r\nHost: a.example\r\n\r\n".into(), "405 Not Allowed");
    check("TRACE / HTTP/1.1\r\nHost: a.example\r\n\r\n".into(), "405 Not Allowed");
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(origin.heard(), "");
}

fn odd_requests_are_read_as_nginx_reads_them() {
    /// The request is served, and the origin receives this line and, before the empty line, these of its headers.
    #[track_caller]
    fn check(request: &str, expected: &str, absent: &str) {
        let origin = Origin::saying("fine");
        let server = start(&origin);
        let mut client = Client::connect(server.address());
        client.send(format!("{request}{HIDDEN}"));
        let (first, second) = (client.response(), client.response());
        assert_eq!((first.status, second.status), (200, 200), "{request:?}");
        let heard = requests(&origin.received().concat());
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(heard[0].contains(expected), "{request:?} {:?}", heard[0]);
        assert!(!heard[0].contains(absent), "{request:?} {:?}", heard[0]);
        assert!(heard[1].starts_with("GET /hidden "), "{:?}", heard[1]);
    }
    let never = "\u{1}";
    check("GET /a HTTP/1.1\nHost: a.example\nX-A: b\n\n", "X-A: b\r\n", never);
    check("\r\n\r\nGET /a HTTP/1.1\r\nHost: a.example\r\n\r\n", "GET /a HTTP/1.1\r\n", never);
    check("GET /a HTTP/1.1\r\nHost: a.example\r\nContent_Length: 5\r\n\r\n", "GET /a ", "Content_Length");
    check("GET /a HTTP/1.1\r\nHost: a.example\r\nX-A:   b  \r\n\r\n", "X-A: b\r\n", never);
    check("GET /a HTTP/1.1\r\nHost: a.example\r\nX-A:\r\n\r\n", "GET /a ", never);
    check("GET http://b.example/a?b HTTP/1.1\r\nHost: a.example\r\n\r\n", "GET /a?b HTTP/1.1\r\n", never);
    check("GET  /a HTTP/1.1\r\nHost: a.example\r\n\r\n", "GET /a HTTP/1.1\r\n", never);
    check("GET /a HTTP/1.2\r\nHost: a.example\r\n\r\n", "GET /a HTTP/1.1\r\n", never);
    let chunked = "POST /a HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: CHUNKED\r\n\r\n";
    check(&format!("{chunked}5\r\nhello\r\n0\r\n\r\n"), "\r\n\r\nhello", "Transfer-Encoding");
    check(&format!("{chunked}5;a=b\r\nhello\r\n0;c\r\nX-T: x\r\n\r\n"), "\r\n\r\nhello", "X-T");
    check("GET /a HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi", "\r\n\r\nhi", never);
}

fn what_variables_bring_ends_no_line() {
    let origin = Origin::saying("fine");
    let conf = CONF.replace(
        "location / {",
        "location /field/ { proxy_pass http://{origin}/; proxy_set_header X-Path $uri; proxy_set_header Host $uri; }
         location /uri/ { proxy_pass http://{origin}$uri; }
         location /rewritten/ { set $to $uri; rewrite ^ $to break; proxy_pass http://{origin}; }
         location ~ ^/method/([^?]*) { proxy_method $1; proxy_pass http://{origin}; }
         location /return/ { return 302 http://a.example$uri; }
         location /relative/ { return 302 $uri; }
         location /add/ { add_header X-Path $uri; add_trailer X-End $uri; return 200 added; }
         location / {",
    );
    let server = Server::start(&executable(), &conf, &[("origin", origin.address().to_string())]);
    let ask = |path: &str| {
        let fields = "Host: a.example\r\nConnection: close";
        let mut client = Client::connect(server.address());
        client.send(format!("GET {path}x%0d%0aEvil:%20y HTTP/1.1\r\n{fields}\r\n\r\n")).last_words()
    };
    for (path, expected) in [
        ("/field/", "Host: /field/x  Evil: y\r\nX-Path: /field/x  Evil: y\r\n"),
        ("/uri/", "GET /uri/x%0D%0AEvil: y HTTP/1.1\r\n"),
        ("/rewritten/", "GET /rewritten/x%0D%0AEvil:%20y HTTP/1.1\r\n"),
        ("/method/", "x%0D%0AEvil: y /method/x%0d%0aEvil:%20y HTTP/1.1\r\n"),
    ] {
        ask(path);
        let heard = origin.received().pop().unwrap_or_default();
        let heard = String::from_utf8_lossy(&heard);
        assert!(heard.contains(expected), "{heard}");
    }
    for (path, expected) in [
        ("/return/", "Location: http://a.example/return/x  Evil: y\r\n"),
        (
            "/relative/",
            &format!("Location: http://a.example:{}/relative/x  Evil: y\r\n", server.address().port()),
        ),
        ("/add/", "X-Path: /add/x  Evil: y\r\n"),
        ("/add/", "\r\nX-End: /add/x  Evil: y\r\n"),
    ] {
        let answer = ask(path);
        assert!(answer.contains(expected), "{answer}");
    }
}

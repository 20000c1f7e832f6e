//! HTTP/1.1 as a client sees it: pipelining, bodies, limits, and clients that are too slow.

use weir_testkit::{Client, Modules, Origin, Say, Server, Site, requests, until};

use crate::{Test, executable};

pub const TESTS: &[Test] = &[
    ("pipelined_requests_are_answered_in_order", pipelined_requests_are_answered_in_order),
    ("a_chunked_body_arrives_whole", a_chunked_body_arrives_whole),
    ("a_client_that_expects_is_told_to_continue", a_client_that_expects_is_told_to_continue),
    ("a_client_that_does_not_read_is_not_waited_for", a_client_that_does_not_read_is_not_waited_for),
    ("what_is_too_large_is_refused", what_is_too_large_is_refused),
    ("a_bad_head_is_answered_while_it_is_sent", a_bad_head_is_answered_while_it_is_sent),
    ("a_refused_body_goes_nowhere", a_refused_body_goes_nowhere),
    ("a_slow_head_is_timed_out", a_slow_head_is_timed_out),
    ("a_head_on_its_way_is_being_read", a_head_on_its_way_is_being_read),
    ("a_slow_body_is_timed_out", a_slow_body_is_timed_out),
    ("an_unwanted_body_is_read_for_a_bounded_time", an_unwanted_body_is_read_for_a_bounded_time),
    ("an_idle_connection_is_closed", an_idle_connection_is_closed),
];

const CONF: &str = "
    error_log logs/error.log info;
    events {}
    http {
        server {
            listen {listen};
            client_max_body_size 1k;
            location / { proxy_pass http://{origin}; }
            location /local { return 200 'local'; }
        }
    }";

fn start(origin: &Origin) -> Server {
    Server::start(&executable(), CONF, &[("origin", origin.address().to_string())])
}

fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::saying("proxied");
    let server = start(&origin);
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n");
    let post = "POST /b HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello";
    let pipeline = [&get("/a"), post, &get("/local"), &get("/c")].concat();
    // All at once, and byte by byte.
    for size in [pipeline.len(), 1] {
        let mut client = Client::connect(server.address());
        for piece in pipeline.as_bytes().chunks(size) {
            client.send(piece);
        }
        for expected in ["proxied", "proxied", "local", "proxied"] {
            let response = client.response();
            assert_eq!((response.status, response.text().as_str()), (200, expected));
        }
    }
    let heard: Vec<_> = requests(&origin.received().concat());
    let lines: Vec<_> = heard.iter().map(|r| r.split(' ').nth(1).unwrap_or_default()).collect();
    assert_eq!(lines, ["/a", "/b", "/c", "/a", "/b", "/c"]);
}

fn a_chunked_body_arrives_whole() {
    let origin = Origin::saying("got it");
    let server = start(&origin);
    let head = "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = Client::connect(server.address());
    let body = "5\r\nhello\r\n1;name=value\r\n \r\n00006\r\nworld!\r\n0\r\nTrailer: x\r\n\r\n";
    assert_eq!(client.ask(format!("{head}{body}")).text(), "got it");
    // The connection goes on behind it.
    assert_eq!(client.ask("GET /local HTTP/1.1\r\nHost: a.example\r\n\r\n").text(), "local");
    let heard = origin.heard();
    assert!(heard.ends_with("\r\n\r\nhello world!"), "{heard}");
    assert!(heard.contains("\r\nContent-Length: 12\r\n"), "{heard}");
    assert!(!heard.contains("Trailer"), "{heard}");
}

fn a_client_that_expects_is_told_to_continue() {
    let origin = Origin::saying("got it");
    let server = start(&origin);
    let mut client = Client::connect(server.address());
    let expecting = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    let go_on = client.ask(expecting("/"));
    assert_eq!((go_on.status, go_on.head.as_str()), (100, "HTTP/1.1 100 Continue\r\n"));
    assert_eq!(client.ask("hi").text(), "got it");
    assert!(!origin.heard().contains("Expect"), "{}", origin.heard());
    // Nobody wants this body, so nobody asks for it.
    let mut client = Client::connect(server.address());
    let large = expecting("/").replace("Length: 2", "Length: 2000");
    assert_eq!(client.ask(large).status, 413);
}

fn what_is_too_large_is_refused() {
    let origin = Origin::saying("got it");
    let server = start(&origin);
    #[track_caller]
    fn check(server: &Server, request: &str, status: u16) {
        let mut client = Client::connect(server.address());
        client.send(request);
        let answer = client.last_words();
        let line = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&line), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    }
    let long = "x".repeat(9_000);
    let many = "X-Many: y\r\n".repeat(3_500);
    check(&server, &format!("GET /{long} HTTP/1.1\r\nHost: a.example\r\n\r\n"), 414);
    check(&server, &format!("GET / HTTP/1.1\r\nHost: a.example\r\nX-Long: {long}\r\n\r\n"), 400);
    check(&server, &format!("GET / HTTP/1.1\r\nHost: a.example\r\n{many}\r\n"), 400);
    let body = "y".repeat(1_025);
    let post = "POST / HTTP/1.1\r\nHost: a.example\r\n";
    check(&server, &format!("{post}Content-Length: 1025\r\n\r\n{body}"), 413);
    check(&server, &format!("{post}Transfer-Encoding: chunked\r\n\r\n401\r\n{body}\r\n0\r\n\r\n"), 413);
    assert_eq!(origin.heard(), "");
}

fn a_bad_head_is_answered_while_it_is_sent() {
    let origin = Origin::saying("got it");
    let server = start(&origin);
    // More than the server reads at once and the sockets hold.
    let more = vec![b'x'; 16 << 20];
    for head in ["GET / HTTP/1.1\r\nHost: a/b\r\n", "GET / HTTQ/1.1\r\n", "GET / HTTP/1.1\r\n\r\n"] {
        let mut client = Client::connect(server.address());
        client.send([head.as_bytes(), &more].concat());
        let answer = client.last_words();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
}

fn a_refused_body_goes_nowhere() {
    const CONF: &str = "
        error_log logs/error.log info;
        events {}
        http {
            server {
                listen {listen};
                client_max_body_size 10;
                error_page 413 /sorry;
                location / { proxy_pass http://{origin}; }
                location /sorry { client_max_body_size 0; proxy_pass http://{origin}; }
                location /unbuffered { client_max_body_size 0; proxy_request_buffering off; proxy_pass http://{origin}; }
            }
        }";
    let post = "POST / HTTP/1.1\r\nHost: a.example\r\n";
    let body = "y".repeat(20);
    for (framing, sent) in [
        ("Content-Length: 20\r\n\r\n", &*body),
        ("Content-Length: 20\r\n\r\n", "yyyyy"),
        ("Content-Length: 20\r\nExpect: 100-continue\r\n\r\n", ""),
        ("Transfer-Encoding: chunked\r\n\r\n", "14\r\nyyyyyyyyyyyyyyyyyyyy\r\n"),
    ] {
        for page in ["/sorry", "/unbuffered"] {
            let origin = Origin::saying("sorry");
            let conf = CONF.replace("413 /sorry", &format!("413 {page}"));
            let server = Server::start(&executable(), &conf, &[("origin", origin.address().to_string())]);
            let mut client = Client::connect(server.address());
            let answer = client.ask(format!("{post}{framing}{sent}"));
            assert_eq!((answer.status, answer.text().as_str()), (413, "sorry"));
            let heard = origin.heard();
            assert!(heard.starts_with(&format!("GET {page} HTTP/1.1\r\n")), "{heard}");
            assert!(heard.contains("\r\nContent-Length: 0\r\n") && heard.ends_with("\r\n\r\n"), "{heard}");
        }
    }
}

const MODULES: Modules = Modules { http: weir_modules::HTTP, upstream: weir_modules::UPSTREAM };

/// A site with nginx's own timeouts of a minute.
fn site() -> Site {
    let http = "server {
        listen {listen};
        location / { return 200 'here'; }
        location /p { proxy_pass http://127.0.0.1:1; }
    }";
    Site::start(MODULES, http, &[])
}

const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a.example\r\n";

fn a_client_that_does_not_read_is_not_waited_for() {
    let http = "server {
        listen {listen};
        set $k '{k}';
        set $ten $k$k$k$k$k$k$k$k$k$k;
        set $fifty $ten$ten$ten$ten$ten;
        location / { return 200 $fifty$fifty$fifty$fifty; }
        location /p { proxy_pass http://127.0.0.1:1; }
    }";
    let post = b"POST /p HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    // About the size at which a socket takes all of the response and nothing more.
    for size in (1_000..=1_100).step_by(20) {
        let site = Site::start(MODULES, http, &[("k", "k".repeat(size))]);
        site.talk(&[Say::Send(&[HEAD, b"\r\n", post].concat()), Say::Pass(61_000)]);
    }
}

fn a_slow_head_is_timed_out() {
    let site = site();
    // One byte after the other does not buy time: the head as a whole has a minute.
    let answer = site.talk(&[
        Say::Send(b"G"),
        Say::Pass(30_000),
        Say::Send(b"E"),
        Say::Pass(29_000),
        Say::Send(b"T"),
        Say::Pass(2_000),
    ]);
    assert_eq!(answer, "");
    // In time it is served, however slow it was.
    let answer = site.talk(&[
        Say::Pass(59_000),
        Say::Send(HEAD),
        Say::Pass(59_000),
        Say::Send(b"Connection: close\r\n\r\n"),
        Say::Expect("\r\n\r\nhere"),
    ]);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

fn a_head_on_its_way_is_being_read() {
    let site = Site::start(MODULES, "server { listen {listen}; stub_status; }", &[]);
    let mut reader = Client::connect(site.address());
    let ask = || {
        let answer = Client::connect(site.address())
            .ask("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n");
        answer.text()
    };
    assert!(ask().contains("\nReading: 0 Writing: 1 "), "{}", ask());
    reader.send(HEAD);
    until("a connection reads", || ask().contains("\nReading: 1 Writing: 1 "));
    assert!(reader.ask("\r\n").text().contains("\nReading: 0 Writing: 1 "));
}

fn a_slow_body_is_timed_out() {
    let site = site();
    let head = b"POST /p HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10\r\n\r\n";
    let answer = site.talk(&[
        Say::Send(head),
        Say::Send(b"12345"),
        // Each piece has a minute of its own.
        Say::Pass(50_000),
        Say::Send(b"678"),
        Say::Pass(50_000),
        Say::Send(b"9"),
        Say::Pass(61_000),
    ]);
    assert!(answer.starts_with("HTTP/1.1 408 ") || answer.is_empty(), "{answer}");
    // As in nginx only the access log tells of it.
    assert_eq!(site.log(), Vec::<String>::new());
}

fn an_unwanted_body_is_read_for_a_bounded_time() {
    let site = site();
    let head = b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n1;";
    let mut script = vec![Say::Send(head), Say::Expect("\r\n\r\nhere")];
    // Framing alone keeps it going, but only until `lingering_time` is over.
    for _ in 0..7 {
        script.extend([Say::Pass(4_000), Say::Send(b"x")]);
    }
    script.push(Say::Pass(3_000));
    let answer = site.talk(&script);
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

fn an_idle_connection_is_closed() {
    let site = site();
    let request = [HEAD, b"\r\n"].concat();
    let answer = site.talk(&[
        Say::Send(&request),
        Say::Expect("\r\n\r\nhere"),
        Say::Pass(74_000),
        Say::Send(&request),
        Say::Expect("\r\n\r\nhere"),
        Say::Pass(76_000),
    ]);
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
}

//! Requests that go on while their answers come.

use std::io;

use weir_testkit::http2::{Frame, Http2};
use weir_testkit::{Client, Gate, Origin, Server, header, until};

use crate::{Test, executable};

pub const TESTS: &[Test] = &[
    ("an_upstream_that_answers_gets_the_rest", an_upstream_that_answers_gets_the_rest),
    ("an_upstream_that_answers_gets_the_rest_over_http2", over_http2),
    ("the_rest_goes_on_while_the_client_reads_nothing", while_the_client_reads_nothing),
    ("a_connection_that_had_all_of_its_request_is_kept", a_connection_that_had_all_is_kept),
    ("an_answer_outlives_an_upstream_that_reads_no_more", an_upstream_that_reads_no_more),
    ("a_client_that_breaks_off_ends_its_answer", a_client_that_breaks_off_ends_its_answer),
];

const CONF: &str = "
    error_log logs/error.log info;
    worker_processes 1;
    events {}
    http {
        client_max_body_size 0;
        upstream u { server {origin}; keepalive 8; }
        log_format line '$status $request_length';
        access_log logs/access.log line;
        server {
            listen {listen};
            http2 on;
            proxy_set_header Connection '';
            proxy_request_buffering off;
            location / { proxy_pass http://u; }
            location /off/ { proxy_pass http://u; proxy_buffering off; }
            location /late/ { proxy_pass http://u; client_body_timeout 100ms; }
            location /small/ { proxy_pass http://u; client_max_body_size 9; }
        }
    }";

fn start(origin: &Origin) -> Server {
    Server::start(&executable(), CONF, &[("origin", origin.address().to_string())])
}

/// An origin that answers as soon as it has a head, and sends back what comes behind it as it came.
fn echoing() -> Origin {
    Origin::start(|visit| {
        while let Ok(head) = visit.head() {
            let (mut left, framing) = match header(&head, "Content-Length") {
                Some(length) => (length.parse().ok(), format!("Content-Length: {length}")),
                None => (None, "Transfer-Encoding: chunked".to_owned()),
            };
            visit.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"))?;
            while left != Some(0) {
                let piece = visit.some()?;
                if piece.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                visit.send(&piece)?;
                left = match left {
                    Some(left) => Some(left - piece.len()),
                    None => piece.ends_with(b"0\r\n\r\n").then_some(0),
                };
            }
        }
        Ok(())
    })
}

/// A chunk of these bytes.
fn chunk(bytes: &str) -> String {
    format!("{:x}\r\n{bytes}\r\n", bytes.len())
}

fn an_upstream_that_answers_gets_the_rest() {
    let origin = echoing();
    let server = start(&origin);
    for path in ["/", "/off/"] {
        let mut client = Client::connect(server.address());
        // Twice, for what is left of the first.
        for _ in 0..2 {
            client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\n\r\nfirst"));
            assert!(client.head().starts_with("HTTP/1.1 200 "), "{path}");
            assert_eq!(client.bytes(5), b"first", "{path}");
            for piece in ["again", "ended"] {
                assert_eq!(client.send(piece).bytes(5), piece.as_bytes(), "{path}");
            }
            client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"));
            assert!(client.send(chunk("first")).head().starts_with("HTTP/1.1 200 "), "{path}");
            assert_eq!(client.bytes(10), b"5\r\nfirst\r\n", "{path}");
            assert_eq!(client.send(chunk("again")).bytes(10), b"5\r\nagain\r\n", "{path}");
            assert_eq!(client.send("0\r\n\r\n").bytes(5), b"0\r\n\r\n", "{path}");
        }
    }
    assert_eq!(origin.connections(), 1);
    let lengths = "200 63\n200 81\n200 63\n200 81\n200 67\n200 85\n200 67\n200 85\n";
    until("the lines are logged", || server.folder().read("logs/access.log") == lengths);
}

fn over_http2() {
    let origin = echoing();
    let server = start(&origin);
    for path in ["/", "/off/"] {
        let mut client = Http2::connect(server.address());
        client.say(&Frame::post(1, path));
        client.say(&Frame::data(1, 0, b"first"));
        assert_eq!([client.hears(), client.hears()], ["HEADERS 1 200", "DATA 1 first"], "{path}");
        client.say(&Frame::data(1, 0, b"again"));
        assert_eq!(client.hears(), "DATA 1 again", "{path}");
        client.say(&Frame::data(1, 1, b"ended"));
        let heard = client.hears();
        assert!(heard.starts_with("DATA 1 ended"), "{path}: {heard}");
    }
}

fn while_the_client_reads_nothing() {
    // More than sockets take on the way and back, and than fits into `proxy_buffers`.
    const LONG: usize = 48 << 20;
    let origin = echoing();
    let server = start(&origin);
    let mut client = Client::connect(server.address());
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LONG}\r\n\r\n"));
    client.send(vec![b'x'; LONG]);
    assert_eq!(client.response().body.len(), LONG);
}

fn a_connection_that_had_all_is_kept() {
    let origin = Origin::start(|visit| {
        while let Ok(head) = visit.head() {
            visit.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")?;
            if head.starts_with("POST /whole ") {
                while !visit.some()?.ends_with(b"!") {}
            }
            visit.send("b")?;
        }
        Ok(())
    });
    let server = start(&origin);
    for (path, connections) in [("/whole", 1), ("/whole", 1), ("/part", 1), ("/whole", 2)] {
        let mut client = Client::connect(server.address());
        client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nfour"));
        assert!(client.head().starts_with("HTTP/1.1 200 "), "{path}");
        match path {
            "/whole" => assert_eq!(client.send("!").bytes(2), b"ab"),
            _ => assert_eq!(client.bytes(2), b"ab"),
        }
        assert_eq!(origin.connections(), connections, "{path}");
    }
}

fn an_upstream_that_reads_no_more() {
    let origin = Origin::start(|visit| {
        visit.head()?;
        visit.send("HTTP/1.1 413 Too Much\r\nContent-Length: 10\r\n\r\nhalf ")?;
        // With bytes unread this is a reset behind what was sent.
        visit.some()?;
        visit.send("whole")
    });
    let server = start(&origin);
    let mut client = Client::connect(server.address());
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\nbegun");
    assert!(client.head().starts_with("HTTP/1.1 413 "));
    assert_eq!(client.bytes(5), b"half ");
    // It is taken or not, as far as weir has got.
    let _ = client.try_send(&vec![b'x'; 1 << 20]);
    assert_eq!(client.bytes(5), b"whole");
}

fn a_client_that_breaks_off_ends_its_answer() {
    for (path, rest) in [("/", "x\r\n"), ("/off/", "x\r\n"), ("/late/", ""), ("/small/", "5\r\nagain\r\n")] {
        let gone = Gate::default();
        let gate = gone.clone();
        let origin = Origin::start(move |visit| {
            visit.head()?;
            visit.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbegun")?;
            visit.stall()?;
            gate.open();
            Ok(())
        });
        let server = start(&origin);
        let mut client = Client::connect(server.address());
        client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"));
        assert!(client.send(chunk("first")).head().starts_with("HTTP/1.1 200 "), "{path}");
        assert_eq!(client.bytes(5), b"begun", "{path}");
        client.send(rest);
        assert_eq!(client.last_words(), "", "{path}");
        gone.wait();
        until("the line is logged", || server.folder().read("logs/access.log").starts_with("200 "));
        assert!(!server.log().contains("while reading upstream"), "{path}: {}", server.log());
    }
}

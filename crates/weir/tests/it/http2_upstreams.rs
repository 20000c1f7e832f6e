//! HTTP/2 to upstreams that do as they like.

use std::net::TcpListener;

use weir_testkit::http2::{END_HEADERS, END_STREAM, Frame, Http2};
use weir_testkit::{Client, Response, Server, until};

use crate::{Test, executable};

pub const TESTS: &[Test] = &[
    ("requests_share_a_connection", requests_share_a_connection),
    ("no_more_streams_than_the_peer_takes", no_more_streams_than_the_peer_takes),
    ("a_connection_carries_so_many_requests", a_connection_carries_so_many_requests),
    ("what_the_peer_has_not_looked_at_is_asked_again", what_the_peer_has_not_looked_at),
    ("what_the_peer_has_not_looked_at_may_be_a_post", what_the_peer_has_not_looked_at_may_be_a_post),
    ("streams_go_on_after_goaway", streams_go_on_after_goaway),
    ("a_request_alone_is_refused_as_nginx_says", a_request_alone_is_refused),
    ("answers_that_break_off", answers_that_break_off),
    ("who_stalls_gets_no_more_requests", who_stalls_gets_no_more_requests),
    ("heads_that_others_follow_are_no_answer", heads_that_others_follow),
    ("a_client_that_leaves_gives_up_its_stream_alone", a_client_that_leaves),
    ("bodies_wait_for_windows", bodies_wait_for_windows),
    ("a_body_goes_on_while_the_answer_comes", a_body_goes_on_while_the_answer_comes),
    ("a_body_that_breaks_off_does_not_end", a_body_that_breaks_off_does_not_end),
    ("requests_go_as_they_are", requests_go_as_they_are),
    ("what_is_malformed_costs_one_stream", what_is_malformed_costs_one_stream),
    ("connections_obey_the_configuration_of_the_day", connections_obey_the_configuration_of_the_day),
    ("an_answer_may_be_whole_before_its_request", an_answer_may_be_whole_before_its_request),
    ("fields_behind_a_body_go_on", fields_behind_a_body_go_on),
    ("floods_are_survived", floods_are_survived),
    ("a_flood_without_a_request_ends_the_connection", a_flood_without_a_request),
];

const CONF: &str = "
    error_log logs/error.log info;
    worker_processes 1;
    events {}
    http {
        upstream u { server {origin}; keepalive 4; }
        upstream two { server {origin}; keepalive 4; keepalive_requests 2; }
        server {
            listen {listen} sndbuf=4k;
            large_client_header_buffers 4 128k;
            proxy_http_version 2;
            proxy_buffer_size 4k;
            location / { proxy_pass http://u; }
            location /two { proxy_pass http://two; }
            location /alone { proxy_pass http://{origin}; }
            location /stalls { proxy_pass http://u; proxy_read_timeout 200ms; }
            location /streams { proxy_pass http://u; proxy_request_buffering off; }
            location /trailers { proxy_pass http://u; proxy_pass_trailers on; }
            location /off { proxy_pass http://u; proxy_buffering off; }
            location /authority { proxy_pass http://u; proxy_set_header Host a%b; }
            location /path { rewrite ^/(.*)$ $1 break; proxy_pass http://u; }
            location /store {
                proxy_pass http://u;
                proxy_request_buffering off;
                proxy_store on;
                send_timeout 200ms;
            }
        }
    }";

const OK: (&str, &str) = (":status", "200");
const WHOLE: u8 = END_HEADERS | END_STREAM;

/// Weir, and where it finds its upstream.
struct Site {
    server: Server,
    origin: TcpListener,
}

impl Site {
    fn start() -> Self {
        let origin = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = origin.local_addr().expect("an address").to_string();
        Self { server: Server::start(&executable(), CONF, &[("origin", address)]), origin }
    }

    /// A client that has asked for a path.
    fn ask(&self, path: &str) -> Client {
        let mut client = Client::connect(self.server.address());
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        client
    }

    /// The upstream's end of the next connection.
    #[track_caller]
    fn accept(&self, settings: &[(u16, u32)]) -> Http2 {
        Http2::accept(&self.origin, settings)
    }

    /// A connection that has served a request.
    #[track_caller]
    fn warm(&self, settings: &[(u16, u32)]) -> Http2 {
        let mut client = self.ask("/");
        let mut peer = self.accept(settings);
        asked(&mut peer, 1);
        answer(&mut peer, 1, "first");
        check(&mut client, 200, "first");
        peer
    }

    /// Waits until the log has it behind what it had before.
    #[track_caller]
    fn logged(&self, before: usize, text: &str) {
        until(&format!("{text:?} is logged"), || self.server.log()[before..].contains(text));
    }
}

/// A request without a body has come on that stream.
#[track_caller]
fn asked(peer: &mut Http2, stream: u32) {
    let frame = peer.frame().expect("a request");
    assert_eq!((frame.kind, frame.stream, frame.flags & END_STREAM), (1, stream, END_STREAM), "{frame}");
}

#[track_caller]
fn answer(peer: &mut Http2, stream: u32, text: &str) {
    peer.say(&Frame::headers(stream, END_HEADERS, &[OK]));
    peer.say(&Frame::data(stream, END_STREAM, text.as_bytes()));
}

#[track_caller]
fn check(client: &mut Client, status: u16, text: &str) -> Response {
    let response = client.response();
    assert_eq!(response.status, status);
    if status == 200 {
        assert_eq!(response.text(), text);
    }
    response
}

fn requests_share_a_connection() {
    let site = Site::start();
    let mut peer = site.warm(&[]);
    let (mut a, mut b) = (site.ask("/"), site.ask("/"));
    asked(&mut peer, 3);
    asked(&mut peer, 5);
    peer.say(&Frame::headers(3, END_HEADERS, &[OK]));
    answer(&mut peer, 5, "b");
    peer.say(&Frame::data(3, END_STREAM, b"a"));
    let mut texts = [a.response().text(), b.response().text()];
    texts.sort();
    assert_eq!(texts, ["a", "b"]);
    // Its table of fields stays empty, and nothing is pushed.
    assert_eq!([1, 2].map(|id| peer.settings.setting(id)), [Some(0), Some(0)]);
}

fn no_more_streams_than_the_peer_takes() {
    let site = Site::start();
    let mut peer = site.warm(&[(3, 2)]);
    let clients = [(); 3].map(|()| site.ask("/"));
    asked(&mut peer, 3);
    asked(&mut peer, 5);
    let mut other = site.accept(&[]);
    asked(&mut other, 1);
    answer(&mut other, 1, "x");
    answer(&mut peer, 3, "x");
    answer(&mut peer, 5, "x");
    for mut client in clients {
        check(&mut client, 200, "x");
    }
}

fn a_connection_carries_so_many_requests() {
    let site = Site::start();
    let mut client = site.ask("/two");
    let mut peer = site.accept(&[]);
    asked(&mut peer, 1);
    answer(&mut peer, 1, "1");
    check(&mut client, 200, "1");
    let mut client = site.ask("/two");
    asked(&mut peer, 3);
    answer(&mut peer, 3, "2");
    check(&mut client, 200, "2");
    assert_eq!(peer.hears(), "GOAWAY code 0");
    assert_eq!(peer.hears(), "");
}

fn what_the_peer_has_not_looked_at() {
    // One that is too much of a connection, or that crossed the peer's goodbye.
    for refusal in [Frame::reset(3, 7), Frame::goaway(1, 0)] {
        let site = Site::start();
        let mut peer = site.warm(&[]);
        let mut client = site.ask("/");
        asked(&mut peer, 3);
        peer.say(&refusal);
        let mut other = site.accept(&[]);
        asked(&mut other, 1);
        answer(&mut other, 1, "again");
        check(&mut client, 200, "again");
    }
}

fn what_the_peer_has_not_looked_at_may_be_a_post() {
    for refusal in [Frame::reset(3, 7), Frame::goaway(1, 0)] {
        let site = Site::start();
        let mut peer = site.warm(&[]);
        let mut client = Client::connect(site.server.address());
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody");
        assert_eq!(peer.frame().map(|frame| frame.kind), Some(1));
        assert_eq!(peer.hears(), "DATA 3 body end");
        peer.say(&refusal);
        let mut other = site.accept(&[]);
        assert_eq!(other.frame().map(|frame| frame.kind), Some(1));
        assert_eq!(other.hears(), "DATA 1 body end");
        answer(&mut other, 1, "again");
        check(&mut client, 200, "again");
        // Of a body that goes on as it comes nothing is kept.
        let mut client = Client::connect(site.server.address());
        client.send("POST /streams HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo");
        assert_eq!(other.frame().map(|frame| frame.kind), Some(1));
        assert_eq!(other.hears(), "DATA 3 bo");
        other.say(&refusal);
        check(&mut client, 502, "");
    }
}

fn streams_go_on_after_goaway() {
    let site = Site::start();
    let mut peer = site.warm(&[]);
    let mut client = site.ask("/");
    asked(&mut peer, 3);
    peer.say(&Frame::headers(3, END_HEADERS, &[OK]));
    peer.say(&Frame::goaway(3, 0));
    peer.say(&Frame::data(3, 0, b"te"));
    assert_eq!(client.bytes(4), b"HTTP");
    let mut next = site.ask("/");
    let mut other = site.accept(&[]);
    asked(&mut other, 1);
    answer(&mut other, 1, "next");
    check(&mut next, 200, "next");
    peer.say(&Frame::data(3, END_STREAM, b"xt"));
    let rest = client.rest();
    assert!(rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
}

fn a_request_alone_is_refused() {
    let site = Site::start();
    #[track_caller]
    fn refused(site: &Site, frames: &[Frame], message: &str) {
        let before = site.server.log().len();
        let mut client = site.ask("/alone");
        let mut peer = site.accept(&[]);
        asked(&mut peer, 1);
        frames.iter().for_each(|frame| peer.say(frame));
        check(&mut client, 502, "");
        site.logged(before, message);
    }
    let reading = "while reading response header from upstream";
    let refused = |frames: &[Frame], message: &str| match message.strip_suffix(':') {
        Some(_) => refused(&site, frames, message),
        None => refused(&site, frames, &format!("{message} {reading}")),
    };
    refused(&[Frame::reset(1, 8)], "upstream rejected request with error 8");
    refused(&[Frame::reset(1, 7)], "upstream rejected request with error 7");
    refused(&[Frame::goaway(0, 2)], "upstream sent goaway with error 2");
    let interim = Frame::headers(1, END_HEADERS, &[(":status", "100")]);
    refused(&[interim], "upstream sent unexpected :status \"100\"");
    let long = "y".repeat(5000);
    let large = "upstream sent too large http2 header value length: 5000";
    refused(&[Frame::headers(1, WHOLE, &[OK, ("x", &long)])], large);
    let list = [OK, ("x", &long[..2100]), ("y", &long[..1964])];
    refused(&[Frame::headers(1, WHOLE, &list)], "upstream sent too big header");
    let upper = Frame::headers(1, WHOLE, &[OK, ("X", "y")]);
    refused(std::slice::from_ref(&upper), "upstream sent invalid header: \"X: y\"");
    refused(&[upper], "upstream sent invalid header");
    refused(&[Frame::headers(1, WHOLE, &[("x", "y")])], "upstream sent no :status header");
    refused(&[Frame::data(1, END_STREAM, b"x")], "upstream sent unexpected http2 frame: 0");
    refused(&[Frame::data(0, END_STREAM, b"x")], "upstream sent data frame for unknown stream 0");
    refused(&[Frame::headers(3, WHOLE, &[OK])], "upstream sent frame for unknown stream 3");
    refused(&[Frame::window(0, 0)], "upstream sent zero window update");
    let length = [OK, ("content-length", "1"), ("content-length", "1")];
    refused(&[Frame::headers(1, END_HEADERS, &length)], "upstream sent duplicate header line:");
    // As nginx has it: what somebody else may do is not asked for by itself.
    let mut client = site.ask("/alone");
    let mut peer = site.accept(&[]);
    asked(&mut peer, 1);
    peer.finish();
    check(&mut client, 502, "");
    site.logged(0, "upstream prematurely closed connection");
}

fn answers_that_break_off() {
    let site = Site::start();
    #[track_caller]
    fn check(site: &Site, length: Option<&str>, last: Option<Vec<Frame>>, message: &str) {
        for path in ["/", "/off"] {
            let before = site.server.log().len();
            let mut client = site.ask(path);
            let mut peer = site.accept(&[]);
            asked(&mut peer, 1);
            let mut fields = vec![OK];
            fields.extend(length.map(|length| ("content-length", length)));
            peer.say(&Frame::headers(1, END_HEADERS, &fields));
            peer.say(&Frame::data(1, 0, b"text"));
            assert!(client.head().starts_with("HTTP/1.1 200 "), "{path} {message}");
            // What has come before it breaks off is passed on, unless it is read together with that.
            let body: &[u8] = if length.is_some() { b"text" } else { b"4\r\ntext\r\n" };
            assert_eq!(client.bytes(body.len()), body, "{path} {message}");
            match &last {
                Some(frames) => frames.iter().for_each(|frame| peer.say(frame)),
                None => peer.finish(),
            }
            assert_eq!(client.last_words(), "", "{path} {message}");
            site.logged(before, message);
        }
    }
    let reset = |code| [Frame::reset(1, code), Frame::goaway(1, 0)].to_vec();
    let ends = |text: &[u8]| [Frame::data(1, END_STREAM, text), Frame::goaway(1, 0)].to_vec();
    check(&site, None, Some(reset(2)), "upstream rejected request with error 2 while reading upstream");
    check(&site, Some("8"), Some(reset(0)), "upstream rejected request with error 0 while reading upstream");
    check(
        &site,
        None,
        Some([Frame::goaway(0, 2)].to_vec()),
        "upstream sent goaway with error 2 while reading upstream",
    );
    check(&site, None, None, "upstream prematurely closed connection while reading upstream");
    check(&site, Some("8"), None, "upstream prematurely closed connection while reading upstream");
    let closed = "upstream prematurely closed stream while reading upstream";
    check(&site, Some("8"), Some(ends(b"")), closed);
    check(&site, Some("8"), Some([Frame::headers(1, WHOLE, &[("x", "y")])].to_vec()), closed);
    let larger = "upstream sent response body larger than indicated content length while reading upstream";
    check(&site, Some("8"), Some(ends(b" and more")), larger);
    let upper = [Frame::headers(1, WHOLE, &[("X", "y")])].to_vec();
    check(&site, None, Some(upper), "upstream sent invalid trailer while reading upstream");
    let large = [Frame::new(0, 0, 1, vec![b'x'; 16_385])].to_vec();
    check(&site, None, Some(large), "upstream sent too large http2 frame: 16385 while reading upstream");
}

fn who_stalls_gets_no_more_requests() {
    let site = Site::start();
    let mut peer = site.warm(&[]);
    let mut client = site.ask("/stalls");
    asked(&mut peer, 3);
    check(&mut client, 504, "");
    site.logged(
        0,
        "upstream timed out (110: Connection timed out) while reading response header from upstream",
    );
    let mut client = site.ask("/");
    let mut other = site.accept(&[]);
    asked(&mut other, 1);
    answer(&mut other, 1, "other");
    check(&mut client, 200, "other");
    assert_eq!(peer.hears(), "RST_STREAM 3 code 8");
}

/// An upstream that says again and again that it is going to answer.
fn heads_that_others_follow() {
    let site = Site::start();
    let mut client = site.ask("/stalls");
    let mut peer = site.accept(&[]);
    asked(&mut peer, 1);
    let hint = Frame::headers(1, END_HEADERS, &[(":status", "103"), ("link", "</a>")]).bytes();
    // Each comes in time, and all were read before the next.
    let hinting =
        std::thread::spawn(move || while peer.try_send(&hint).is_ok() && peer.try_ping().is_ok() {});
    check(&mut client, 504, "");
    drop(site);
    hinting.join().expect("an upstream");
}

fn a_client_that_leaves() {
    let site = Site::start();
    let mut peer = site.warm(&[]);
    let (leaves, mut stays) = (site.ask("/"), site.ask("/"));
    asked(&mut peer, 3);
    asked(&mut peer, 5);
    drop(leaves);
    let reset = peer.frame().expect("a frame");
    assert_eq!(reset.kind, 3, "{reset}");
    answer(&mut peer, 8 - reset.stream, "stays");
    check(&mut stays, 200, "stays");
}

fn bodies_wait_for_windows() {
    const LONG: usize = 200_000;
    let site = Site::start();
    let body: Vec<u8> = (0..LONG).map(|n| b'a' + (n % 26) as u8).collect();
    for path in ["/", "/streams"] {
        // Not enough for more than a little of it at a time.
        let mut client = Client::connect(site.server.address());
        client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {LONG}\r\n\r\n"));
        client.send(&body);
        let mut peer = site.accept(&[(4, 1000)]);
        assert_eq!(peer.frame().map(|frame| (frame.kind, frame.flags & END_STREAM)), Some((1, 0)));
        let mut got = vec![];
        // Windows are opened, and so much has come then. What came before the settings counts for them too.
        let steps = [(64_535, 0, 65_535), (500, 100_000, 66_035), (200_000, 0, 165_535), (0, 100_000, LONG)];
        for (stream, connection, most) in steps {
            for (stream, more) in [(1, stream), (0, connection)].into_iter().filter(|(_, more)| *more > 0) {
                peer.say(&Frame::window(stream, more));
            }
            while got.len() < most {
                got.extend(peer.data(1, 1));
            }
            assert_eq!(got.len(), most);
        }
        assert!(got == body, "{path}");
        answer(&mut peer, 1, "taken");
        check(&mut client, 200, "taken");
        peer.say(&Frame::goaway(1, 0));
    }
}

fn a_body_goes_on_while_the_answer_comes() {
    let site = Site::start();
    let mut client = Client::connect(site.server.address());
    client.send("POST /streams HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 10\r\n\r\n01234");
    let mut peer = site.accept(&[]);
    assert_eq!(peer.frame().map(|frame| frame.kind), Some(1));
    assert_eq!(peer.hears(), "DATA 1 01234");
    peer.say(&Frame::headers(1, END_HEADERS, &[OK, ("content-length", "9")]));
    peer.say(&Frame::data(1, 0, b"five"));
    assert!(String::from_utf8_lossy(&client.bytes(12)).starts_with("HTTP/1.1 200"));
    client.send("56789");
    assert_eq!(peer.hears(), "DATA 1 56789 end");
    peer.say(&Frame::data(1, END_STREAM, b" more"));
    assert!(client.rest().ends_with(b"five more"));
}

fn a_body_that_breaks_off_does_not_end() {
    let site = Site::start();
    let mut client = Client::connect(site.server.address());
    client.send("POST /store HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n");
    let mut peer = site.accept(&[]);
    assert_eq!(peer.frame().map(|frame| frame.kind), Some(1));
    assert_eq!(peer.hears(), "DATA 1 some");
    peer.say(&Frame::headers(1, END_HEADERS, &[OK]));
    // As much as the stream's window takes, which is more than the client's.
    for _ in 0..16 {
        peer.say(&Frame::data(1, 0, &[b'x'; 16_000]));
    }
    site.logged(0, "client timed out");
    peer.say(&Frame::data(1, END_STREAM, b"x"));
    assert_eq!(peer.hears(), "RST_STREAM 1 code 8");
}

fn requests_go_as_they_are() {
    let site = Site::start();
    for path in ["/authority", "/path", "/<a>\"{b}\""] {
        let mut client = site.ask(path);
        let mut peer = site.accept(&[]);
        asked(&mut peer, 1);
        answer(&mut peer, 1, "answer");
        peer.say(&Frame::goaway(1, 0));
        check(&mut client, 200, "answer");
    }
    let mut client = site.ask(&format!("/{}", "~".repeat(66_000)));
    let mut peer = site.accept(&[]);
    asked(&mut peer, 1);
    for flags in [0, 0, 0, END_HEADERS] {
        let frame = peer.frame().expect("more of a head");
        assert_eq!((frame.kind, frame.stream, frame.flags), (9, 1, flags), "{frame}");
    }
    answer(&mut peer, 1, "answer");
    check(&mut client, 200, "answer");
}

/// RFC 9113 section 5.4.2: who has other streams of the connection does not hear of it.
fn what_is_malformed_costs_one_stream() {
    let site = Site::start();
    let mut peer = site.warm(&[]);
    let bad = |stream| {
        let head = |flags, fields: &[(&str, &str)]| Frame::headers(stream, flags, fields);
        [
            ("upstream sent invalid http2 table index: 62", vec![Frame::new(1, WHOLE, stream, [0x88, 0xbe])]),
            ("upstream sent invalid encoded header", vec![Frame::new(1, WHOLE, stream, [0x88, 0, 0x81, 0])]),
            ("upstream sent truncated http2 header", vec![Frame::new(1, WHOLE, stream, [0x88, 0])]),
            ("upstream sent invalid header: \"a b: c\"", vec![head(WHOLE, &[OK, ("a b", "c")])]),
            ("upstream sent duplicate :status header", vec![head(WHOLE, &[OK, OK])]),
            ("upstream sent unexpected http2 frame: 6", vec![head(0, &[OK]), Frame::ping()]),
            ("upstream sent unexpected http2 frame: 0", vec![Frame::data(stream, 0, b"x")]),
            (
                "upstream sent too large http2 frame: 16385",
                vec![Frame::new(1, WHOLE, stream, vec![0; 16_385])],
            ),
            (
                "upstream sent invalid \"Content-Length\" header",
                vec![head(WHOLE, &[OK, ("content-length", "x")])],
            ),
        ]
    };
    let mut stream = 3;
    for turn in 0..bad(stream).len() {
        let before = site.server.log().len();
        let mut unlucky = site.ask("/");
        asked(&mut peer, stream);
        let mut neighbour = site.ask("/");
        asked(&mut peer, stream + 2);
        peer.say(&Frame::headers(stream + 2, END_HEADERS, &[OK]));
        let (message, frames) = bad(stream)[turn].clone();
        frames.iter().for_each(|frame| peer.say(frame));
        check(&mut unlucky, 502, "");
        site.logged(before, message);
        peer.say(&Frame::data(stream + 2, END_STREAM, b"neighbour"));
        check(&mut neighbour, 200, "neighbour");
        // H2 was told of the end of one alone.
        if !message.contains("Content-Length") {
            assert_eq!(peer.hears(), format!("RST_STREAM {stream} code 8"), "{message}");
        }
        stream += 4;
    }
}

fn connections_obey_the_configuration_of_the_day() {
    for rule in ["keepalive 4; keepalive_requests 2;", "keepalive 4; keepalive_time 0;", "keepalive 0;"] {
        let site = Site::start();
        let mut peer = site.warm(&[]);
        let conf = CONF.replace(
            "upstream u { server {origin}; keepalive 4; }",
            "upstream u { server {origin}; {rule} }",
        );
        let address = site.origin.local_addr().expect("an address").to_string();
        site.server.configure(&conf, &[("origin", address), ("rule", rule.into())]);
        assert_eq!(site.server.reload().code, Some(0), "{}", site.server.log());
        let mut client = site.ask("/");
        if rule.ends_with("requests 2;") {
            asked(&mut peer, 3);
            answer(&mut peer, 3, "second");
        } else {
            let mut other = site.accept(&[]);
            asked(&mut other, 1);
            answer(&mut other, 1, "second");
        }
        check(&mut client, 200, "second");
        assert_eq!(peer.hears(), "GOAWAY code 0", "{rule}");
    }
}

fn an_answer_may_be_whole_before_its_request() {
    let site = Site::start();
    for path in ["/streams", "/store"] {
        let mut client = Client::connect(site.server.address());
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234");
        client.send(head);
        let mut peer = site.accept(&[]);
        assert_eq!(peer.frame().map(|frame| frame.kind), Some(1));
        assert_eq!(peer.hears(), "DATA 1 01234");
        let whole = [
            Frame::headers(1, END_HEADERS, &[OK, ("content-length", "5")]),
            Frame::data(1, END_STREAM, b"whole"),
        ];
        peer.send(&whole.iter().flat_map(Frame::bytes).collect::<Vec<_>>());
        drop(peer);
        check(&mut client, 200, "whole");
    }
    assert!(!site.server.log().contains("upstream prematurely closed"), "{}", site.server.log());
}

fn fields_behind_a_body_go_on() {
    let site = Site::start();
    for (path, expected) in [("/trailers", "0\r\nx-sum: 1\r\n\r\n"), ("/", "0\r\n\r\n")] {
        let mut client = site.ask(path);
        let mut peer = site.accept(&[]);
        asked(&mut peer, 1);
        peer.say(&Frame::headers(1, END_HEADERS, &[OK]));
        peer.say(&Frame::data(1, 0, b"text"));
        peer.say(&Frame::headers(1, WHOLE, &[("x-sum", "1"), ("x-accel-redirect", "/hidden")]));
        peer.say(&Frame::goaway(1, 0));
        let answer = String::from_utf8(client.rest()).expect("text");
        assert!(answer.ends_with(&format!("4\r\ntext\r\n{expected}")), "{path} {answer:?}");
    }
}

fn floods_are_survived() {
    const MANY: usize = 5000;
    let site = Site::start();
    let mut client = site.ask("/");
    let mut peer = site.accept(&[]);
    asked(&mut peer, 1);
    for _ in 0..MANY {
        peer.say(&Frame::window(0, 1));
        peer.say(&Frame::new(0xbe, 0, 0, [0; 8]));
    }
    peer.say(&Frame::headers(1, END_HEADERS, &[OK]));
    for _ in 0..MANY {
        peer.say(&Frame::data(1, 0, b"x"));
        peer.say(&Frame::ping());
    }
    peer.say(&Frame::data(1, END_STREAM, b""));
    check(&mut client, 200, &"x".repeat(MANY));
    // What breaks a connection may be another's fault, so that it is asked once more on a new one.
    let mut client = site.ask("/");
    asked(&mut peer, 3);
    peer.say(&Frame::settings(&[(4, u32::MAX)]));
    let mut other = site.accept(&[]);
    asked(&mut other, 1);
    answer(&mut other, 1, "again");
    check(&mut client, 200, "again");
}

fn a_flood_without_a_request() {
    let site = Site::start();
    let peer = site.warm(&[]);
    peer.flood(10_000_000, |_| vec![Frame::ping(); 100]);
    let mut client = site.ask("/");
    let mut other = site.accept(&[]);
    asked(&mut other, 1);
    answer(&mut other, 1, "again");
    check(&mut client, 200, "again");
}

//! HTTP/2 with the real binary: reloads, the end, WebSockets over it.

use nix::sys::signal::Signal;
use weir_engine::http2::hpack::{Decoder, Fields, Limits};
use weir_testkit::http2::{END_HEADERS, END_STREAM, Frame, Http2};
use weir_testkit::{Client, Gate, Origin, Server, until};

use crate::{Test, executable};

pub const TESTS: &[Test] = &[
    ("http2_and_http1_share_a_port", http2_and_http1_share_a_port),
    ("http2_streams_end_on_their_configuration", http2_streams_end_on_their_configuration),
    ("who_asks_for_nothing_is_told_once", who_asks_for_nothing_is_told_once),
    ("quit_lets_http2_streams_end", quit_lets_http2_streams_end),
    ("a_request_over_http2_is_given_up", a_request_over_http2_is_given_up),
    ("requests_that_are_given_up_and_go_on_are_bounded", requests_that_are_given_up_and_go_on_are_bounded),
    ("attacks_end_their_connection_and_no_other", attacks_end_their_connection_and_no_other),
    ("http2_streams_end_with_the_time_of_a_quit", http2_streams_end_with_the_time_of_a_quit),
    ("a_websocket_over_http2_outlives_a_reload", a_websocket_over_http2_outlives_a_reload),
    ("a_websocket_over_http2_is_closed_in_turn", a_websocket_over_http2_is_closed_in_turn),
    ("a_websocket_over_http2_is_given_up", a_websocket_over_http2_is_given_up),
    (
        "a_tunnel_that_its_upstream_ends_is_left_to_its_client",
        a_tunnel_that_its_upstream_ends_is_left_to_its_client,
    ),
    ("a_reset_tunnel_is_not_waited_for", a_reset_tunnel_is_not_waited_for),
    ("a_tunnel_that_is_not_taken_is_reset", a_tunnel_that_is_not_taken_is_reset),
    ("hints_come_before_answers", hints_come_before_answers),
    ("requests_are_as_long_as_their_frames", requests_are_as_long_as_their_frames),
    ("an_upgrade_without_proof_is_none", an_upgrade_without_proof_is_none),
    (
        "extended_connect_is_told_where_all_servers_have_it",
        extended_connect_is_told_where_all_servers_have_it,
    ),
];

const CONF: &str = "
    {main}
    error_log logs/error.log info;
    events {}
    http {
        http2_extended_connect on;
        log_format line '$request_method $uri $status $body_bytes_sent $request_length';
        access_log logs/access.log line;
        server {
            listen {listen};
            http2 on;
            location / { return 200 '{text}'; }
            location /proxied { proxy_pass http://{origin}; }
            location /hinted { proxy_pass http://{origin}; early_hints $http2; }
            location /length { return 200 $request_length; }
            location /unread { limit_rate 1; return 200 '{text}{text}{text}{text}{text}'; }
            location /ignored { proxy_pass http://{origin}; proxy_ignore_client_abort on; }
            location /tunnel {
                proxy_pass http://{origin};
                proxy_http_version 1.1;
                proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection upgrade;
                location /tunnel/hasty {
                    proxy_pass http://{origin};
                    proxy_set_header Upgrade $http_upgrade;
                    proxy_set_header Connection upgrade;
                    send_timeout 100ms;
                }
            }
        }
    }";

fn names(origin: &Origin, main: &str, text: &str) -> [(&'static str, String); 3] {
    [("origin", origin.address().to_string()), ("main", main.into()), ("text", text.into())]
}

fn start(origin: &Origin, main: &str) -> Server {
    Server::start(&executable(), CONF, &names(origin, main, "old"))
}

/// An origin that answers when the gate opens.
fn held() -> (Origin, Gate) {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |visit| {
        visit.request()?;
        held.wait();
        visit.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
    });
    (origin, gate)
}

/// Checks what a connection hears until its end.
#[track_caller]
fn check_end(client: &mut Http2, expected: &[&str]) {
    let heard: Vec<_> = std::iter::from_fn(|| client.frame()).map(|frame| frame.to_string()).collect();
    assert_eq!(heard, expected);
}

fn http2_and_http1_share_a_port() {
    let origin = Origin::saying("x");
    let server = start(&origin, "");
    assert_eq!(Client::connect(server.address()).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").text(), "old");
    let mut client = Http2::connect(server.address());
    // More of them than may be open at once, one behind the other.
    for stream in (1..400).step_by(2) {
        client.say(&Frame::get(stream, if stream % 4 == 1 { "/" } else { "/proxied" }));
        assert_eq!(client.hears(), format!("HEADERS {stream} 200"));
        assert_eq!(client.data(stream, 1)[0], if stream % 4 == 1 { b'o' } else { b'x' });
    }
}

fn http2_streams_end_on_their_configuration() {
    let (origin, gate) = held();
    let server = start(&origin, "");
    let mut idle = Http2::connect(server.address());
    idle.say(&Frame::get(1, "/"));
    assert_eq!([idle.hears(), idle.hears()], ["HEADERS 1 200", "DATA 1 old end"]);
    let mut busy = Http2::connect(server.address());
    busy.say(&Frame::get(1, "/proxied"));
    origin.visited(1);
    server.configure(CONF, &names(&origin, "", "new"));
    assert_eq!(server.reload().code, Some(0));
    check_end(&mut idle, &["GOAWAY code 0"]);
    assert_eq!(busy.frame(), Some(Frame::goaway(1, 0)));
    // What comes behind the last stream is not served.
    busy.say(&Frame::get(3, "/"));
    busy.try_ping().expect("a connection");
    gate.open();
    check_end(&mut busy, &["HEADERS 1 200", "DATA 1 late end"]);
    let mut next = Http2::connect(server.address());
    next.say(&Frame::get(1, "/"));
    assert_eq!([next.hears(), next.hears()], ["HEADERS 1 200", "DATA 1 new end"]);
}

fn who_asks_for_nothing_is_told_once() {
    let origin = Origin::saying("");
    let server = start(&origin, "");
    let mut client = Http2::connect(server.address());
    for stream in [1, 3] {
        client.say(&Frame::get(stream, "/"));
        assert_eq!(client.hears(), format!("HEADERS {stream} 200"));
        assert_eq!(client.hears(), format!("DATA {stream} old end"));
    }
    assert_eq!(server.reload().code, Some(0));
    // What is asked for behind the last stream was not looked at, and may be asked for elsewhere.
    let expected = Frame::goaway(3, 0);
    assert_eq!([client.frame(), client.frame()], [Some(expected), None]);
    // Who has not all of an answer is asking still.
    let mut client = Http2::connect(server.address());
    client.say(&Frame::settings(&[(4, 1)]));
    client.say(&Frame::get(1, "/"));
    assert_eq!([client.hears(), client.hears()], ["HEADERS 1 200", "DATA 1 o"]);
    assert_eq!(server.reload().code, Some(0));
    assert_eq!(client.hears(), "GOAWAY code 0");
    client.say(&Frame::window(1, 10));
    let heard = [client.hears(), client.hears()];
    assert!(heard.contains(&"DATA 1 ld end".to_owned()), "{heard:?}");
}

fn quit_lets_http2_streams_end() {
    let (origin, gate) = held();
    let mut server = start(&origin, "");
    let mut idle = Http2::connect(server.address());
    let mut busy = Http2::connect(server.address());
    busy.say(&Frame::get(1, "/proxied"));
    origin.visited(1);
    server.signal(Signal::SIGQUIT);
    check_end(&mut idle, &["GOAWAY code 0"]);
    assert_eq!(busy.hears(), "GOAWAY code 0");
    assert!(server.runs());
    gate.open();
    check_end(&mut busy, &["HEADERS 1 200", "DATA 1 late end"]);
    assert_eq!(server.exit().code(), Some(0));
}

fn a_request_over_http2_is_given_up() {
    let (origin, gate) = held();
    let server = start(&origin, "");
    let mut client = Http2::connect(server.address());
    client.say(&Frame::get(1, "/proxied"));
    origin.visited(1);
    client.say(&Frame::reset(1, 8));
    until("the line is logged", || server.folder().read("logs/access.log").contains("GET /proxied 499 0 "));
    client.say(&Frame::get(3, "/"));
    assert_eq!([client.hears(), client.hears()], ["HEADERS 3 200", "DATA 3 old end"]);
    gate.open();
}

fn requests_that_are_given_up_and_go_on_are_bounded() {
    let (origin, gate) = held();
    let server = start(&origin, "");
    let mut client = Http2::connect(server.address());
    for batch in 0..2 {
        let streams = (0..90).map(|n| batch * 180 + 2 * n + 1);
        streams.clone().for_each(|stream| client.say(&Frame::get(stream, "/ignored")));
        // Those that are given up before hyper hands them on are bounded by hyper.
        origin.visited((batch as usize + 1) * 90);
        streams.for_each(|stream| client.say(&Frame::reset(stream, 8)));
    }
    while client.frame().is_some() {}
    server.logged("client sent too many streams at once");
    gate.open();
    // Others are served.
    let mut next = Http2::connect(server.address());
    next.say(&Frame::get(1, "/"));
    assert_eq!(next.hears(), "HEADERS 1 200");
}

/// What one client sends again and again, behind a first frame.
type Attack = (&'static str, Frame, fn(u32) -> Vec<Frame>);

fn attacks_end_their_connection_and_no_other() {
    let (origin, gate) = held();
    // What still comes is read for a while, which would be all the test's.
    let conf = CONF.replace("http {", "http { lingering_time 100ms;");
    let server = Server::start(&executable(), &conf, &names(&origin, "", "old"));
    let attacks: [Attack; 14] = [
        ("requests taken back", Frame::ping(), |n| {
            vec![Frame::get(2 * n + 1, "/"), Frame::reset(2 * n + 1, 8)]
        }),
        ("requests that the server has to reset", Frame::ping(), |n| {
            vec![Frame::get(2 * n + 1, "/"), Frame::window(2 * n + 1, 0)]
        }),
        ("windows that overflow", Frame::ping(), |n| {
            vec![Frame::post(2 * n + 1, "/proxied"), Frame::window(2 * n + 1, i32::MAX as u32)]
        }),
        ("bodies that are longer than was told", Frame::ping(), |n| {
            let fields =
                [(":method", "POST"), (":scheme", "http"), (":path", "/proxied"), (":authority", "a")];
            let fields = [&fields[..], &[("content-length", "1")]].concat();
            vec![Frame::headers(2 * n + 1, END_HEADERS, &fields), Frame::data(2 * n + 1, END_STREAM, b"xx")]
        }),
        ("malformed heads", Frame::ping(), |n| {
            let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("connection", "x")];
            vec![Frame::headers(2 * n + 1, END_HEADERS | END_STREAM, &fields)]
        }),
        ("streams that depend on themselves", Frame::ping(), |n| {
            let [a, b, c, d] = (2 * n + 1).to_be_bytes();
            vec![Frame::new(2, 0, 2 * n + 1, [a, b, c, d, 1])]
        }),
        ("resets of what is over", Frame::get(1, "/"), |_| vec![Frame::reset(1, 8); 100]),
        ("names of no length", Frame::ping(), |n| {
            vec![Frame::headers(2 * n + 1, END_HEADERS | END_STREAM, &[(":method", "GET"), ("", "x")])]
        }),
        ("a head without end", Frame::headers(1, 0, &[(":method", "GET")]), |_| {
            vec![Frame::continuation(1, 0, &[("x", "y")])]
        }),
        ("fields without end", Frame::headers(1, 0, &[(":method", "GET")]), |_| {
            vec![Frame::continuation(1, 0, &[])]
        }),
        ("DATA of nothing", Frame::post(1, "/proxied"), |_| vec![Frame::data(1, 0, b"")]),
        ("DATA of a byte", Frame::post(1, "/unread"), |_| vec![Frame::data(1, 0, b"x")]),
        ("SETTINGS", Frame::ping(), |_| vec![Frame::settings(&[(4, 1), (4, 2), (4, 3)]); 100]),
        ("PRIORITY", Frame::ping(), |_| vec![Frame::new(2, 0, 1, [0, 0, 0, 0, 1]); 100]),
    ];
    let mut other = Http2::connect(server.address());
    for (stream, (name, first, frames)) in (1..).step_by(2).zip(attacks) {
        let mut attacker = Http2::connect(server.address());
        attacker.say(&first);
        let attacking = std::thread::spawn(move || attacker.flood(10_000_000, frames));
        other.say(&Frame::get(stream, "/"));
        let answer = [format!("HEADERS {stream} 200"), format!("DATA {stream} old end")];
        assert_eq!([other.hears(), other.hears()], answer, "{name}");
        attacking.join().expect(name);
    }
    let memory = kilobytes(server.worker());
    assert!(memory < 100_000, "{memory}");
    gate.open();
}

/// What a process has in memory.
fn kilobytes(pid: i32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn http2_streams_end_with_the_time_of_a_quit() {
    let (origin, gate) = held();
    let mut server = start(&origin, "worker_shutdown_timeout 50ms;");
    let mut busy = Http2::connect(server.address());
    busy.say(&Frame::get(1, "/proxied"));
    origin.visited(1);
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.exit().code(), Some(0));
    while busy.frame().is_some() {}
    gate.open();
}

/// Asks for a WebSocket.
fn connect(stream: u32, path: &str) -> Frame {
    let fields = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "a.example"),
        ("sec-websocket-version", "13"),
        ("origin", "http://a.example"),
    ];
    Frame::headers(stream, END_HEADERS, &fields)
}

/// A text as a client frames it, under a mask of zeros; and as a server does.
fn masked(text: &str) -> Vec<u8> {
    [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text.as_bytes()].concat()
}

fn plain(text: &str) -> Vec<u8> {
    [&[0x81, text.len() as u8], text.as_bytes()].concat()
}

#[track_caller]
fn echo_of(client: &mut Http2, stream: u32, text: &str) {
    client.say(&Frame::data(stream, 0, &masked(text)));
    assert_eq!(client.data(stream, 2 + text.len()), plain(text));
}

fn a_websocket_over_http2_outlives_a_reload() {
    let origin = Origin::echoing();
    let mut server = start(&origin, "");
    let mut client = Http2::connect(server.address());
    assert_eq!(client.settings.setting(8), Some(1));
    client.say(&connect(1, "/tunnel"));
    assert_eq!(client.hears(), "HEADERS 1 200");
    echo_of(&mut client, 1, "before");
    // Other streams go on beside it.
    client.say(&Frame::get(3, "/"));
    assert_eq!([client.hears(), client.hears()], ["HEADERS 3 200", "DATA 3 old end"]);
    server.configure(CONF, &names(&origin, "", "new"));
    assert_eq!(server.reload().code, Some(0));
    assert_eq!(client.frame(), Some(Frame::goaway(3, 0)));
    echo_of(&mut client, 1, "after");
    server.signal(Signal::SIGQUIT);
    echo_of(&mut client, 1, "more");
    // The client ends its direction, so the tunnel is over on both sides.
    client.say(&Frame::data(1, END_STREAM, b""));
    assert_eq!(client.hears(), "DATA 1  end");
    while client.frame().is_some() {}
    assert_eq!(server.exit().code(), Some(0));
    assert!(server.folder().read("logs/access.log").contains("GET /tunnel 200 21 "));
}

fn a_websocket_over_http2_is_closed_in_turn() {
    let origin = Origin::echoing();
    let server = start(&origin, "");
    let mut client = Http2::connect(server.address());
    client.say(&connect(1, "/tunnel"));
    assert_eq!(client.hears(), "HEADERS 1 200");
    // As Chromium does: what it ends its stream with is to be answered.
    client.say(&Frame::data(1, END_STREAM, &masked("bye")));
    assert_eq!(client.data(1, 5), plain("bye"));
}

fn a_websocket_over_http2_is_given_up() {
    let origin = Origin::echoing();
    let server = start(&origin, "");
    let mut client = Http2::connect(server.address());
    client.say(&connect(1, "/tunnel"));
    assert_eq!(client.hears(), "HEADERS 1 200");
    echo_of(&mut client, 1, "hello");
    client.say(&Frame::reset(1, 8));
    let line = "GET /tunnel 200 7 ";
    until("the tunnel's line is logged", || server.folder().read("logs/access.log").contains(line));
    // The connection goes on.
    client.say(&connect(3, "/tunnel"));
    assert_eq!(client.hears(), "HEADERS 3 200");
    echo_of(&mut client, 3, "again");
}

fn a_tunnel_that_its_upstream_ends_is_left_to_its_client() {
    let origin = Origin::start(|visit| {
        let _socket = visit.websocket()?;
        visit.send(plain("bye"))
    });
    let server = start(&origin, "");
    let mut client = Http2::connect(server.address());
    for stream in [1, 3] {
        client.say(&connect(stream, "/tunnel"));
        assert_eq!(client.hears(), format!("HEADERS {stream} 200"));
        assert_eq!(client.data(stream, 5), plain("bye"));
        assert_eq!(client.hears(), format!("DATA {stream}  end"));
        client.say(&Frame::data(stream, END_STREAM, &masked("bye")));
    }
    client.say(&Frame::get(5, "/"));
    assert_eq!([client.hears(), client.hears()], ["HEADERS 5 200", "DATA 5 old end"]);
    // Nobody waits for long.
    let conf =
        CONF.replace("http2_extended_connect on;", "http2_extended_connect on; lingering_timeout 50ms;");
    let server = Server::start(&executable(), &conf, &names(&origin, "", "old"));
    let mut client = Http2::connect(server.address());
    client.say(&connect(1, "/tunnel"));
    assert_eq!(client.hears(), "HEADERS 1 200");
    assert_eq!(client.data(1, 5), plain("bye"));
    assert_eq!([client.hears(), client.hears()], ["DATA 1  end", "RST_STREAM 1 code 0"]);
}

fn a_reset_tunnel_is_not_waited_for() {
    let (origin, gate) = {
        let gate = Gate::default();
        let held = gate.clone();
        // Does not end because its peer does.
        (Origin::start(move |visit| visit.websocket().map(|_| held.wait())), gate)
    };
    let server = start(&origin, "");
    let mut client = Http2::connect(server.address());
    for stream in [1, 3] {
        client.say(&connect(stream, "/tunnel"));
        assert_eq!(client.hears(), format!("HEADERS {stream} 200"));
    }
    client.say(&Frame::reset(1, 8));
    let lines = || server.folder().read("logs/access.log").matches("GET /tunnel 200 0 ").count();
    until("the tunnel's line is logged", || lines() == 1);
    // The other one may still be answered.
    client.say(&Frame::data(3, END_STREAM, b""));
    client.try_ping().expect("a connection");
    assert_eq!(lines(), 1);
    gate.open();
    until("both lines are logged", || lines() == 2);
}

fn a_tunnel_that_is_not_taken_is_reset() {
    let origin = Origin::start(|visit| {
        let mut socket = visit.websocket()?;
        // More than hyper and sockets take on the way.
        while socket.try_send("x".repeat(100_000)).is_ok() {}
        Ok(())
    });
    let server = start(&origin, "");
    let mut client = Http2::connect(server.address());
    client.say(&Frame::window(0, 1 << 20));
    client.say(&connect(1, "/tunnel/hasty"));
    assert_eq!(client.hears(), "HEADERS 1 200");
    assert_eq!(client.data(1, 65_535).len(), 65_535);
    // It takes no more.
    assert_eq!(client.hears(), "RST_STREAM 1 code 1");
    until("the tunnel's line is logged", || {
        server.folder().read("logs/access.log").contains("GET /tunnel/hasty 200 ")
    });
    // Other streams go on, whatever becomes of that window.
    client.say(&Frame::settings(&[(4, 1 << 20)]));
    client.say(&Frame::get(3, "/"));
    assert_eq!([client.hears(), client.hears()], ["HEADERS 3 200", "DATA 3 old end"]);
}

fn hints_come_before_answers() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |visit| {
        while visit.request()?.is_some() {
            let long = "x".repeat(200);
            visit.send(format!(
                "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nX-Long: {long}\r\nConnection: a\r\n\r\n"
            ))?;
            held.wait();
            visit.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")?;
        }
        Ok(())
    });
    let server = start(&origin, "");
    let mut client = Http2::connect(server.address());
    // Its table of fields is empty, which has to be said in the first block of fields.
    client.say(&Frame::get(1, "/"));
    assert_eq!([client.hears(), client.hears()], ["HEADERS 1 200", "DATA 1 old end"]);
    for stream in [3, 5] {
        client.say(&Frame::get(stream, "/hinted"));
        let hint = client.frame().expect("a frame");
        assert_eq!((hint.kind, hint.flags, hint.stream), (1, END_HEADERS, stream));
        let (mut limits, mut fields) = (Limits { field: 8192, list: 8192 }, Fields::default());
        let read = Decoder::new().decode(&hint.payload, false, &mut limits, &mut fields);
        assert_eq!(read, Ok(hint.payload.len()));
        let long = vec![b'x'; 200];
        let expected: [(&[u8], &[u8]); 3] =
            [(b":status", b"103"), (b"link", b"</a.css>"), (b"x-long", &long)];
        assert_eq!(fields.iter().collect::<Vec<_>>(), expected);
    }
    gate.open();
    let mut heard: Vec<_> = (0..4).map(|_| client.hears()).collect();
    heard.sort();
    assert_eq!(heard, ["DATA 3 late end", "DATA 5 late end", "HEADERS 3 200", "HEADERS 5 200"]);
    let lines = || server.folder().read("logs/access.log").matches("GET /hinted 200 4 ").count();
    until("what was sent as a body is logged", || lines() == 2);
}

fn requests_are_as_long_as_their_frames() {
    let origin = Origin::saying("");
    let server = start(&origin, "");
    let mut client = Http2::connect(server.address());
    let malformed = [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("connection", "x")];
    client.say(&Frame::headers(1, END_HEADERS | END_STREAM, &malformed));
    assert_eq!(client.hears(), "HEADERS 1 400");
    assert!(client.hears().starts_with("DATA 1 "));
    let whole = Frame::get(3, "/length");
    let mut parts = Frame::get(5, "/length");
    parts.flags = END_STREAM;
    parts.payload.truncate(20);
    let rest = Frame::new(9, END_HEADERS, 5, &whole.payload[20..]);
    let mut padded = Frame::get(7, "/length");
    padded.flags |= 8;
    padded.payload = [&[3], &whole.payload[..], &[0; 3]].concat();
    client.send(&[whole.bytes(), parts.bytes(), rest.bytes(), padded.bytes()].concat());
    let mut heard: Vec<_> = (0..6).map(|_| client.hears()).collect();
    heard.sort();
    assert_eq!(heard[..3], [3, 5, 7].map(|stream| format!("DATA {stream} {} end", whole.payload.len())));
    assert_eq!(heard[3..], [3, 5, 7].map(|stream| format!("HEADERS {stream} 200")));
}

fn an_upgrade_without_proof_is_none() {
    for accept in ["", "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"] {
        let answer =
            format!("HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{accept}\r\n");
        let origin = Origin::answering(answer);
        let server = start(&origin, "");
        let mut client = Http2::connect(server.address());
        client.say(&connect(1, "/tunnel"));
        assert_eq!(client.hears(), "HEADERS 1 other end");
        server.logged("upstream sent no valid \"Sec-WebSocket-Accept\" to an upgrade");
        until("the line is logged", || server.folder().read("logs/access.log").contains("GET /tunnel 502 "));
        let heard = origin.heard();
        for field in [
            "\r\nsec-websocket-version: 13\r\n",
            "\r\nsec-websocket-key: ",
            "\r\norigin: http://a.example\r\n",
        ] {
            assert!(heard.contains(field), "{heard}");
        }
        assert!(heard.starts_with("GET /tunnel HTTP/1.1\r\n"), "{heard}");
    }
    // One that refuses is told.
    let origin = Origin::saying("no");
    let server = start(&origin, "");
    let mut client = Http2::connect(server.address());
    client.say(&connect(1, "/tunnel"));
    assert_eq!([client.hears(), client.hears()], ["HEADERS 1 other end", "RST_STREAM 1 code 0"]);
    until("the line is logged", || server.folder().read("logs/access.log").contains("GET /tunnel 501 "));
    client.say(&connect(3, "/"));
    assert_eq!([client.hears(), client.hears()], ["HEADERS 3 other end", "RST_STREAM 3 code 0"]);
}

fn extended_connect_is_told_where_all_servers_have_it() {
    let conf = "events {} http {
        server { listen {listen}; http2 on; http2_extended_connect on; return 200 x; }
        server { listen {listen}; server_name b; http2 on; return 200 x; }
    }";
    let server = Server::start(&executable(), conf, &[]);
    let mut client = Http2::connect(server.address());
    assert_eq!(client.settings.setting(8), None);
    client.say(&connect(1, "/"));
    assert_eq!(client.hears(), "HEADERS 1 400");
}

mod judged;

use weir_testkit::http2::{END_HEADERS, END_STREAM, Frame, script};
use weir_testkit::{Origin, Say};

use crate::testing::{Site, check_conf, told};

const ECHO: &str = "return 200 \"$request|$server_protocol|$http2|$host|$http_cookie|$http_x|$scheme\";";

/// A site of one server that speaks HTTP/2.
fn site(server: &str) -> Site {
    Site::new(&format!("server {{ listen 80; http2 on; {server} }}"))
}

/// What comes back for frames, until the client's end.
#[track_caller]
fn check(site: &Site, frames: &[Frame], expected: &[&str]) {
    let (sent, last) = (script(frames), last(expected));
    let mut script = vec![Say::Send(&sent), Say::Expect(last), Say::Finish];
    script.retain(|say| !matches!(say, Say::Expect("")));
    assert_eq!(site.frames(&script), expected);
}

/// What the last frame that is expected has in it.
fn last<'e>(expected: &[&'e str]) -> &'e str {
    let data = expected.iter().rev().find_map(|line| line.strip_prefix("DATA "));
    data.and_then(|line| line.split_once(' ')).map_or("", |(_, text)| text.trim_end_matches(" end"))
}

#[test]
fn directives() {
    for (conf, expected) in [
        ("http2 on; http2 off;", "\"http2\" directive is duplicate"),
        ("http2 yes;", "invalid value \"yes\" in \"http2\" directive, it must be \"on\" or \"off\""),
        ("http2_recv_buffer_size 16;", "\"http2_recv_buffer_size\" directive value is too small"),
        (
            "http2_recv_buffer_size 17; http2_recv_buffer_size 17;",
            "\"http2_recv_buffer_size\" directive is duplicate",
        ),
        ("http2_pool_size 10;", "the pool size must be no less than 112"),
        ("http2_pool_size 120;", "the pool size must be a multiple of 16"),
        ("http2_body_preread_size 2g;", "\"http2_body_preread_size\" directive invalid value"),
        ("http2_body_preread_size 2147483648;", "the maximum body preread buffer size is 2147483647"),
        ("http2_streams_index_size 3;", "\"http2_streams_index_size\" directive must be a power of two"),
        ("http2_streams_index_size 0;", "\"http2_streams_index_size\" directive must be a power of two"),
        ("http2_chunk_size 0;", "the http2 chunk size cannot be zero"),
        ("http2_chunk_size 1; http2_chunk_size 1;", "\"http2_chunk_size\" directive is duplicate"),
        ("http2_max_concurrent_streams x;", "\"http2_max_concurrent_streams\" directive invalid number"),
        ("http2_push /x;", "the \"http2_push\" directive is obsolete, ignored"),
        ("http2_push_preload on;", "the \"http2_push_preload\" directive is obsolete, ignored"),
        (
            "http2_max_concurrent_pushes 1;",
            "the \"http2_max_concurrent_pushes\" directive is obsolete, ignored",
        ),
        (
            "http2_idle_timeout x;",
            "the \"http2_idle_timeout\" directive is obsolete, use the \"keepalive_timeout\" directive instead",
        ),
        (
            "http2_extended_connect on; http2_extended_connect on;",
            "\"http2_extended_connect\" directive is duplicate",
        ),
        ("http2 on; http2_pool_size 4096; http2_streams_index_size 32; http2_chunk_size 20m;", ""),
    ] {
        check_conf(conf, expected);
    }
    for (name, by) in [
        ("http2_max_requests", "keepalive_requests"),
        ("http2_max_field_size", "large_client_header_buffers"),
        ("http2_max_header_size", "large_client_header_buffers"),
        ("http2_recv_timeout", "client_header_timeout"),
    ] {
        let warning = format!("the \"{name}\" directive is obsolete, use the \"{by}\" directive instead");
        assert_eq!(told(&format!("{name} 1; {name} 1;"), &[]), [warning.as_str(), &warning]);
    }
}

#[test]
fn requests_and_what_is_known_of_them() {
    let site =
        site(&format!("add_trailer x-t $status; location / {{ {ECHO} }} location /h {{ return 204; }}"));
    check(
        &site,
        &[Frame::get(1, "/a?b=c")],
        &[
            "HEADERS 1 200",
            "DATA 1 GET /a?b=c HTTP/2.0|HTTP/2.0|h2c|a.example|||http",
            "HEADERS 1 trailers end",
        ],
    );
    let fields = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        ("host", "b.example:81"),
        ("cookie", "a=1"),
        ("x", "y"),
        ("cookie", "b=2"),
    ];
    check(
        &site,
        &[Frame::headers(1, END_HEADERS | END_STREAM, &fields)],
        &[
            "HEADERS 1 200",
            "DATA 1 GET / HTTP/2.0|HTTP/2.0|h2c|b.example|a=1; b=2|y|http",
            "HEADERS 1 trailers end",
        ],
    );
    // A head that is told in several frames.
    let frames = [
        Frame::headers(1, END_STREAM, &fields[..4]),
        Frame::continuation(1, 0, &fields[4..6]),
        Frame::continuation(1, END_HEADERS, &fields[6..]),
    ];
    check(
        &site,
        &frames,
        &[
            "HEADERS 1 200",
            "DATA 1 GET / HTTP/2.0|HTTP/2.0|h2c|b.example|a=1; b=2|y|http",
            "HEADERS 1 trailers end",
        ],
    );
    let head = [(":method", "HEAD"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    let frames =
        [Frame::headers(1, END_HEADERS | END_STREAM, &head), Frame::get(3, "/h"), Frame::get(5, "/")];
    check(
        &site,
        &frames,
        &[
            "HEADERS 1 200 end",
            "HEADERS 3 204 end",
            "HEADERS 5 200",
            "DATA 5 GET / HTTP/2.0|HTTP/2.0|h2c|a.example|||http",
            "HEADERS 5 trailers end",
        ],
    );
}

#[test]
fn requests_that_are_refused() {
    let site = site(&format!(
        "error_page 400 405 = /e; location / {{ {ECHO} }} location /e {{ return 200 \"$request\"; }}"
    ));
    for (fields, expected) in [
        (
            &[(":method", "GET"), (":scheme", "http"), (":path", "/")][..],
            &["HEADERS 1 200", "DATA 1 GET / HTTP/2.0 end"][..],
        ),
        (
            &[(":method", "TRACE"), (":scheme", "http"), (":path", "/"), (":authority", "a")],
            &["HEADERS 1 200", "DATA 1 TRACE / HTTP/2.0 end"],
        ),
        // Without a line there is no request to speak of.
        (&[(":method", "GET"), (":path", "/"), (":authority", "a")], &["HEADERS 1 200 end"]),
        (
            &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a"), ("upgrade", "x")],
            &["HEADERS 1 200", "DATA 1 GET / HTTP/2.0 end"],
        ),
        (
            &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a"), ("X", "x")],
            &["HEADERS 1 200 end"],
        ),
    ] {
        check(&site, &[Frame::headers(1, END_HEADERS | END_STREAM, fields)], expected);
    }
    let connect = Frame::headers(1, END_HEADERS, &[(":method", "CONNECT"), (":authority", "a:1")]);
    let frames =
        self::site("").frames(&[Say::Send(&script(&[connect])), Say::Expect("</html>"), Say::Finish]);
    assert_eq!(frames[0], "HEADERS 1 400");
    let expected = "client sent no :scheme header while reading client request headers";
    assert!(site.log().contains(&expected.to_owned()), "{:?}", site.log());
}

#[test]
fn a_server_that_speaks_another_protocol_is_another() {
    let site = Site::new(&format!(
        "server {{ listen 80; http2 on; {ECHO} }} server {{ listen 80; server_name a.example; {ECHO} }}"
    ));
    let frames = site.frames(&[Say::Send(&script(&[Frame::get(1, "/")])), Say::Expect("421"), Say::Finish]);
    assert_eq!(frames[0], "HEADERS 1 other");
    let expected = "client attempted to request the server name for which the negotiated protocol is disabled \
                    while reading client request headers";
    assert!(site.log().contains(&expected.to_owned()), "{:?}", site.log());
}

#[test]
fn bodies_of_requests() {
    let site = site(
        "client_max_body_size 10; client_body_buffer_size 4;
         location / { return 200 \"$content_length|$request_length\"; }",
    );
    let post = |length: &'static str| {
        let fields = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
        let fields = [&fields[..], &[("content-length", length)]].concat();
        Frame::headers(1, END_HEADERS, &fields)
    };
    // An answer does not wait for a body that nobody reads; the client need not send it, but is told so when it had the time to
    // read the answer: there are some that lose what they read together with the reset.
    let answer = ["HEADERS 1 200", "DATA 1 5|69 end"];
    let frames = |sent: &[Frame], more: &[Say<'_>]| {
        let sent = script(sent);
        site.frames(&[&[Say::Send(&sent), Say::Expect("5|69"), Say::Pass(90)], more, &[Say::Finish]].concat())
    };
    assert_eq!(frames(&[post("5")], &[]), answer);
    let reset = ["HEADERS 1 200", "DATA 1 5|69 end", "RST_STREAM 1 code 0"];
    assert_eq!(frames(&[post("5")], &[Say::Pass(100)]), reset);
    // Of one that is all here there is nothing to be told.
    let whole = [post("5"), Frame::data(1, END_STREAM, b"12345")];
    assert_eq!(frames(&whole, &[Say::Pass(100)]), answer);
    let frames = site.frames(&[Say::Send(&script(&[post("11")])), Say::Expect("</html>"), Say::Finish]);
    assert_eq!(frames[0], "HEADERS 1 other");
    assert!(site.log().iter().any(|line| line == "client intended to send too large body: 11 bytes"));
}

#[test]
fn windows_hold_a_response_back() {
    let site = site("location / { alias %DIR%/; http2_chunk_size 10; }").with("f", "0123456789abcdef");
    let mut sent = script(&[Frame::settings(&[(4, 12)]), Frame::get(1, "/f")]);
    let more = Frame::window(1, 100).bytes();
    let frames =
        site.frames(&[Say::Send(&sent), Say::Expect("ab"), Say::Send(&more), Say::Expect("f"), Say::Finish]);
    assert_eq!(frames, ["HEADERS 1 200", "DATA 1 0123456789", "DATA 1 ab", "DATA 1 cdef end"]);
    // A response that the client takes nothing of gives up in the end; other streams go on.
    sent = script(&[Frame::settings(&[(4, 0)]), Frame::get(1, "/f")]);
    let other = [Frame::settings(&[(4, 100)]).bytes(), Frame::get(3, "/f").bytes()].concat();
    let frames = site.frames(&[
        Say::Send(&sent),
        Say::Pass(60_000),
        Say::Pass(1_000),
        Say::Send(&other),
        Say::Expect("f"),
        Say::Finish,
    ]);
    let of_other = ["HEADERS 3 200", "DATA 3 0123456789", "DATA 3 abcdef end"];
    assert_eq!(frames, [&["HEADERS 1 200", "RST_STREAM 1 code 1"][..], &of_other].concat());
}

#[test]
fn connections_end() {
    let server = format!("keepalive_requests 2; keepalive_timeout 5s; client_header_timeout 3s; {ECHO}");
    let site = site(&server);
    let answer = |stream: u32| {
        [
            format!("HEADERS {stream} 200"),
            format!("DATA {stream} GET / HTTP/2.0|HTTP/2.0|h2c|a.example|||http end"),
        ]
    };
    // With the last request that it may have.
    let frames = script(&[Frame::get(1, "/"), Frame::get(3, "/")]);
    let got = site.frames(&[Say::Send(&frames), Say::Expect("http"), Say::Pass(1_100)]);
    let goaway = got.iter().position(|line| line == "GOAWAY code 0").expect("a GOAWAY");
    let mut answers: Vec<_> = got.iter().filter(|line| !line.starts_with("GOAWAY")).cloned().collect();
    answers.sort_by_key(|line| line.contains(" 3 "));
    assert_eq!(answers, [answer(1), answer(3)].concat(), "{goaway}");
    // With its time between requests.
    let one = script(&[Frame::get(1, "/")]);
    let got = site.frames(&[Say::Send(&one), Say::Expect("http"), Say::Pass(5_100), Say::Pass(1_100)]);
    assert_eq!(got, [&answer(1)[..], &["GOAWAY code 0".to_owned()]].concat());
    // A frame that begins and does not end has the time of a head.
    let site = self::site(&server);
    let begun = [&one[..], b"\0\0"].concat();
    let got = site.frames(&[Say::Send(&begun), Say::Expect("http"), Say::Pass(3_100), Say::Pass(0)]);
    assert_eq!(got, [&answer(1)[..], &["GOAWAY code 1".to_owned()]].concat());
    let late = "client timed out while processing HTTP/2 connection".to_owned();
    assert!(site.log().contains(&late), "{:?}", site.log());
    // A head that does is given up; the rest of it is read.
    let site = self::site(&format!("client_header_timeout 3s; {ECHO}"));
    let begun = Frame::headers(3, END_STREAM, &[(":method", "GET")]).bytes();
    let begun = [&one[..], &begun].concat();
    let rest = Frame::continuation(3, END_HEADERS, &[("x", "y")]).bytes();
    let rest = [rest, Frame::get(5, "/").bytes()].concat();
    let got = site.frames(&[
        Say::Send(&begun),
        Say::Expect("http"),
        Say::Pass(3_100),
        Say::Send(&rest),
        Say::Expect("http"),
        Say::Finish,
    ]);
    assert_eq!(got, [&answer(1)[..], &["RST_STREAM 3 code 1".to_owned()], &answer(5)].concat());
    let site = self::site(&server);
    assert_eq!(site.frames(&[Say::Send(&script(&[])), Say::Pass(3_100)]), ["GOAWAY code 0"]);
    assert!(
        site.log().contains(&"client timed out while processing HTTP/2 connection".to_owned()),
        "{:?}",
        site.log()
    );
}

/// Sends frames until the server ends the connection; what it says then in the log.
#[track_caller]
fn attack(
    conf: &str,
    first: &[Frame],
    often: usize,
    frames: impl Fn(u32) -> Vec<Frame>,
) -> (Site, Vec<String>) {
    let site = site(conf);
    let mut bytes = script(first);
    for n in 0..often {
        frames(n as u32).iter().for_each(|frame| bytes.extend(frame.bytes()));
    }
    let got = site.frames(&[Say::Send(&bytes[..24]), Say::Flood(&bytes[24..]), Say::Finish]);
    (site, got)
}

#[test]
fn floods_end_the_connection() {
    let flood = "http2 flood detected while processing HTTP/2 connection".to_owned();
    for (what, kind, end) in [
        ("PING", Frame::ping(), &flood),
        ("its answer", Frame::new(6, 1, 0, [0; 8]), &flood),
        ("an unknown type", Frame::new(99, 0, 0, [0; 100]), &flood),
        (
            "PRIORITY",
            Frame::new(2, 0, 1, [0, 0, 0, 0, 1]),
            &"client sent too many PRIORITY frames while processing HTTP/2 connection".to_owned(),
        ),
        ("WINDOW_UPDATE", Frame::window(0, 1), &flood),
        ("SETTINGS", Frame::settings(&[]), &flood),
    ] {
        let many = (10 << 20) / kind.bytes().len();
        let (site, _) = attack("return 200 x;", &[], many, |_| vec![kind.clone()]);
        assert!(site.log().contains(end), "{what}: {:?}", site.log());
    }
}

#[test]
fn requests_that_are_given_up_are_bounded() {
    // Each is taken back as soon as it was made.
    let conf = "keepalive_requests 50000; location / { limit_rate 1; return 200 xxxxxxxxxxxxxxxxxxxxx; }";
    let (site, _) =
        attack(conf, &[], 20_000, |n| vec![Frame::get(2 * n + 1, "/"), Frame::reset(2 * n + 1, 8)]);
    let log = site.log();
    let ends = ["client sent too many streams at once", "client broke the rules of HTTP/2"];
    assert!(log.iter().any(|line| ends.iter().any(|end| line.starts_with(end))), "{log:?}");
}

#[test]
fn heads_are_bounded() {
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    // CONTINUATION without end, of nothing and of fields.
    for (field, end) in [
        (&[][..], "http2 flood detected"),
        (&[("x", "y")], "client sent too large header"),
        (&[("x", "0123456789012345678901234567890123456789")], "client sent too large header"),
    ] {
        let first = [Frame::headers(1, END_STREAM, &get)];
        let (site, got) =
            attack("return 200 x;", &first, 1_200_000, |_| vec![Frame::continuation(1, 0, field)]);
        assert!(got.iter().all(|line| line.starts_with("GOAWAY")), "{got:?}");
        let log = site.log();
        assert!(log.iter().any(|line| line.starts_with(end)), "{log:?}");
    }
    // A field of the table that is named again and again: few bytes, and a long list.
    let mut block = Frame::headers(1, 0, &get).payload;
    block.push(0x40);
    block.extend(b"\x01x\x7f\xd1\x0e");
    block.extend([b'y'; 2000]);
    block.resize(block.len() + 10_000, 0xbe);
    let bomb = Frame::new(1, END_HEADERS | END_STREAM, 1, block);
    let (site, got) = attack("return 200 x;", &[bomb], 0, |_| vec![]);
    assert_eq!(got, ["GOAWAY code 11"]);
    assert_eq!(site.read("logs/access.log"), "");
}

#[test]
fn frames_that_nobody_reads_are_bounded() {
    // A byte in each, for a place that does not read its body.
    let conf = "location / { limit_rate 1; return 200 xxxxxxxxxxxxxxxxxxxxx; }";
    let (_, got) = attack(conf, &[Frame::post(1, "/")], 30_000, |_| vec![Frame::data(1, 0, b"x")]);
    assert!(got.iter().any(|line| line == "GOAWAY code 11"), "{got:?}");
}

#[test]
fn a_body_that_is_cut_is_not_whole() {
    for code in [0, 8] {
        let site = site("location / { proxy_pass http://127.0.0.1:1; }");
        let sent = script(&[Frame::post(1, "/"), Frame::data(1, 0, b"half"), Frame::reset(1, code)]);
        assert_eq!(site.frames(&[Say::Send(&sent), Say::Finish]), [""; 0]);
        let log = site.log();
        assert!(
            log.iter().any(|line| line.starts_with("client prematurely closed stream")),
            "{code}: {log:?}"
        );
        assert!(!log.iter().any(|line| line.starts_with("connect() failed")), "{code}: {log:?}");
    }
}

#[test]
fn who_is_late_is_told_so() {
    let site = site("location / { proxy_pass http://127.0.0.1:1; }");
    let sent = script(&[Frame::post(1, "/"), Frame::data(1, 0, b"half")]);
    let ping = Frame::ping().bytes();
    let got = site.frames(&[Say::Send(&sent), Say::Pass(61_100), Say::Send(&ping), Say::Finish]);
    assert_eq!(got, ["RST_STREAM 1 code 1"]);
    // Who takes nothing of a long answer.
    let site = self::site("location / { alias %DIR%/; }").with("f", "x".repeat(200_000));
    let sent = script(&[Frame::settings(&[(4, 0)]), Frame::get(1, "/f")]);
    let got = site.frames(&[Say::Send(&sent), Say::Pass(61_100), Say::Send(&ping), Say::Finish]);
    assert_eq!(got, ["HEADERS 1 200", "RST_STREAM 1 code 1"]);
}

#[test]
fn a_stream_that_is_given_up_amid_its_body() {
    let origin = Origin::start(|visit| {
        visit.head()?;
        visit.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nla")?;
        visit.stall()
    });
    let site = site(&format!(
        "keepalive_timeout 5s;
         location / {{ proxy_pass http://{}; proxy_request_buffering off; }}",
        origin.address()
    ));
    let sent = script(&[Frame::post(1, "/"), Frame::data(1, 0, b"x")]);
    let reset = Frame::reset(1, 8).bytes();
    let script = [Say::Send(&sent), Say::Expect("la"), Say::Send(&reset), Say::Pass(5_100), Say::Pass(1_100)];
    // The connection would not end beside a request that goes on.
    assert_eq!(site.frames(&script), ["HEADERS 1 200", "DATA 1 la", "GOAWAY code 0"]);
}

#[test]
fn connections_that_end_amid_streams() {
    let conf = "location / { limit_rate 1; return 200 xxxxxxxxxxxxxxxxxxxxx; }";
    let site = site(conf);
    site.frames(&[Say::Send(&script(&[Frame::get(1, "/")])), Say::Finish]);
    let expected = "client prematurely closed connection while processing HTTP/2 connection".to_owned();
    assert!(site.log().contains(&expected), "{:?}", site.log());
}

#[test]
fn large_heads_of_answers_are_no_flood() {
    let large = "$a".repeat(30);
    let site = site(&format!(
        "keepalive_requests 1800; http2_max_concurrent_streams 1800;
         set $a {}; add_header x \"{large}\"; return 204;",
        "y".repeat(200)
    ));
    let bytes: Vec<_> = (0..1800).flat_map(|n| Frame::get(2 * n + 1, "/").bytes()).collect();
    let got = site.frames(&[Say::Send(&script(&[])), Say::Flood(&bytes)]);
    assert_eq!(site.log(), [""; 0]);
    assert_eq!(got.iter().filter(|line| line.starts_with("HEADERS")).count(), 1800);
}

#[test]
fn answers_that_are_not_taken_are_bounded() {
    let server =
        "keepalive_requests 1000; keepalive_timeout 5s; send_timeout 5s; location / { alias %DIR%/; }";
    let file = vec![b'.'; 2 << 20];
    let gets: Vec<_> = (0..100).map(|n| Frame::get(2 * n + 1, "/f")).collect();
    // No window, and a window but nobody who reads.
    for window in [0, 1 << 30] {
        let site = site(server).with("f", &file);
        let sent =
            script(&[&[Frame::settings(&[(4, window)]), Frame::window(0, 1 << 30)], &gets[..]].concat());
        let pass = Say::Pass(5_100);
        site.frames(&[Say::Send(&sent), pass, pass, pass, pass]);
        let log = site.read("logs/access.log");
        assert_eq!(log.lines().count(), 100, "{log}");
    }
}

#[test]
fn who_takes_nothing_is_not_kept_by_other_frames() {
    let site = site("keepalive_requests 1; send_timeout 60s; return 200 0123456789;");
    let sent = script(&[Frame::settings(&[(4, 4)]), Frame::get(1, "/")]);
    let others = [Frame::new(6, 1, 0, [0; 8]).bytes(), Frame::ping().bytes()].concat();
    let mut steps = vec![Say::Send(&sent), Say::Expect("0123")];
    steps.extend([Say::Flood(&others), Say::Pass(50_000)].repeat(2));
    let got = site.frames(&steps);
    // And then the end of the connection.
    for line in ["DATA 1 0123", "RST_STREAM 1 code 1"] {
        assert!(got.iter().any(|got| got == line), "{got:?}");
    }
}

#[test]
fn answers_go_out_to_their_end_behind_the_last_request() {
    let server = "keepalive_requests 10; location / { alias %DIR%/; }";
    let site = site(server).with("f", [b'.'; 60_000]);
    let gets: Vec<_> = (0..10).map(|n| Frame::get(2 * n + 1, "/f")).collect();
    let sent = script(&[&[Frame::settings(&[(4, 1 << 20)]), Frame::window(0, 1 << 30)], &gets[..]].concat());
    // More than the socket holds, for a client that reads again after a while.
    let got = site.frames(&[Say::Send(&sent), Say::Pass(2_000), Say::Pass(2_000)]);
    assert_eq!(got.iter().filter(|line| line.starts_with("DATA") && line.ends_with(" end")).count(), 10);
}

//! What is judged of requests and frames before a stream has an exchange, and what its client sees of that.

use weir_testkit::http2::{END_HEADERS, END_STREAM, Frame, script};
use weir_testkit::{Origin, Say};

use super::{Site, check, site};

const WHOLE: u8 = END_HEADERS | END_STREAM;
const PADDED: u8 = 8;

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a.example")];

/// Lines about a stream.
fn of(frames: &[String], stream: u32) -> Vec<&str> {
    let number = stream.to_string();
    let mine = frames.iter().filter(|line| line.split(' ').nth(1) == Some(&number));
    mine.map(String::as_str).collect()
}

/// A POST of that length, whose body follows.
fn post(stream: u32, length: &'static str) -> Frame {
    let fields = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a.example")];
    Frame::headers(stream, END_HEADERS, &[&fields[..], &[("content-length", length)]].concat())
}

#[track_caller]
fn check_log(site: &Site, expected: &str) {
    assert!(site.log().iter().any(|line| line == expected), "{:?}", site.log());
}

#[test]
fn a_malformed_head_costs_no_other_stream() {
    for (more, message, line) in [
        (("X", "y"), "invalid header name: \"X\"", "-"),
        (("x", "y\0"), "header \"x\" with invalid value: \"y\0\"", "-"),
        ((":path", "/"), "duplicate :path header", "-"),
        (("connection", "close"), "\"Connection\" header", "GET / HTTP/2.0"),
        (("te", "gzip"), "invalid \"TE\" header", "GET / HTTP/2.0"),
        (("host", "b"), "\":authority\" and \"Host\" headers with different values", "GET / HTTP/2.0"),
        (("content-length", "x"), "invalid \"Content-Length\" header", "GET / HTTP/2.0"),
    ] {
        let site = Site::new(
            "log_format f '$status|$request|$request_length|$http_host'; access_log logs/access.log f;
             server { listen 80; http2 on; return 200 fine; }",
        );
        let malformed = Frame::headers(3, WHOLE, &[&GET[..], &[more]].concat());
        let length = malformed.payload.len();
        let frames = [Frame::get(1, "/"), malformed, Frame::get(5, "/"), Frame::get(7, "/")];
        let sent = script(&frames);
        let got = site.frames(&[Say::Send(&sent), Say::Expect("</html>"), Say::Finish]);
        for stream in [1, 5, 7] {
            assert_eq!(
                of(&got, stream),
                [format!("HEADERS {stream} 200"), format!("DATA {stream} fine end")]
            );
        }
        assert_eq!(of(&got, 3)[0], "HEADERS 3 400");
        assert!(of(&got, 3)[1].contains("400 Bad Request"), "{got:?}");
        let message = format!("client sent {message} while reading client request headers");
        let log = site.read("logs/error.log");
        assert!(log.contains(&message), "{message}: {log}");
        let log = site.read("logs/access.log");
        assert_eq!(log.lines().count(), 4, "{log}");
        let refused = log.lines().find(|line| line.starts_with("400")).expect("a line");
        assert!(refused.starts_with(&format!("400|{line}|{length}|")), "{refused}");
    }
}

#[test]
fn bodies_are_as_long_as_they_say() {
    let origin = Origin::saying("got it");
    for buffering in ["on", "off"] {
        for (length, bodies, is_right) in [
            ("4", &[(0, "bo"), (END_STREAM, "dy")][..], true),
            ("4", &[(0, "body"), (END_STREAM, "")], true),
            ("4", &[(0, "bo"), (END_STREAM, "d")], false),
            ("4", &[(END_STREAM, "")], false),
            ("4", &[(0, "bo"), (END_STREAM, "dy!")], false),
            ("4", &[(0, "body"), (0, "!")], false),
            ("0", &[(END_STREAM, "")], true),
            ("0", &[(END_STREAM, "!")], false),
        ] {
            let site = site(&format!(
                "location / {{ proxy_pass http://{}; proxy_request_buffering {buffering}; }}",
                origin.address()
            ));
            let frames = bodies.iter().map(|(flags, text)| Frame::data(1, *flags, text.as_bytes()));
            let frames: Vec<_> = std::iter::once(post(1, length)).chain(frames).collect();
            let last = if is_right { "got it" } else { "</html>" };
            let got = site.frames(&[Say::Send(&script(&frames)), Say::Expect(last), Say::Finish]);
            let what = format!("{buffering} {length} {bodies:?}: {got:?} {:?}", site.log());
            assert_eq!(got[0], if is_right { "HEADERS 1 200" } else { "HEADERS 1 400" }, "{what}");
            let came: usize = bodies.iter().map(|(_, text)| text.len()).sum();
            let message = if is_right {
                assert_eq!(site.log(), [""; 0], "{what}");
                continue;
            } else if came < 4 && length == "4" {
                format!(
                    "client prematurely closed stream: only {came} out of 4 bytes of request body received"
                )
            } else {
                "client intended to send body data larger than declared".to_owned()
            };
            assert!(site.log().iter().any(|line| line.starts_with(&message)), "{message}: {what}");
        }
    }
}

#[test]
fn paths_go_on_as_they_are() {
    let origin = Origin::saying("x");
    let site = site(&format!("location / {{ proxy_pass http://{}; }}", origin.address()));
    // No text, in the place of letters.
    let mut odd = Frame::get(1, "/ABCD?EF");
    let from = odd.payload.len() - "/ABCD?EF".len() - "\0\x0a:authority\x09a.example".len();
    for byte in odd.payload[from..].iter_mut().filter(|byte| byte.is_ascii_uppercase()) {
        *byte += 0x80;
    }
    let sent = script(&[odd, Frame::get(3, "/<p>\"?a=\"<>\"&b=`{|}")]);
    let got = site.frames(&[Say::Send(&sent), Say::Expect("x"), Say::Expect("x"), Say::Finish]);
    for stream in [1, 3] {
        assert_eq!(of(&got, stream), [format!("HEADERS {stream} 200"), format!("DATA {stream} x end")]);
    }
    let received = origin.received().concat();
    for line in
        [&b"GET /\xc1\xc2\xc3\xc4?\xc5\xc6 HTTP/1.1\r\n"[..], b"GET /<p>\"?a=\"<>\"&b=`{|} HTTP/1.1\r\n"]
    {
        assert!(received.windows(line.len()).any(|got| got == line), "{}", received.escape_ascii());
    }
}

#[test]
fn a_body_behind_its_end_costs_its_stream() {
    let site = site("location / { limit_rate 1; return 200 0123456789; } location /f { return 200 fine; }");
    let late = [Frame::data(1, 0, b"late"), Frame::data(1, END_STREAM, b"later"), Frame::get(3, "/f")];
    let late = late.iter().flat_map(Frame::bytes).collect::<Vec<_>>();
    let sent = script(&[Frame::get(1, "/")]);
    let got = site.frames(&[
        Say::Send(&sent),
        Say::Expect("0"),
        Say::Send(&late),
        Say::Expect("fine"),
        Say::Finish,
    ]);
    assert_eq!(of(&got, 1), ["HEADERS 1 200", "DATA 1 0", "RST_STREAM 1 code 5"]);
    assert_eq!(of(&got, 3), ["HEADERS 3 200", "DATA 3 fine end"]);
}

#[test]
fn bodies_come_before_they_are_read_as_far_as_they_may() {
    let slow = "location / { limit_rate 1; return 200 0123456789; }";
    let acknowledged = Frame::new(4, 1, 0, []);
    for (size, body, expected) in [
        ("10", "0123456789", ""),
        ("10", "0123456789x", "RST_STREAM 1 code 3"),
        ("0", "", ""),
        ("0", "x", "RST_STREAM 1 code 3"),
    ] {
        let site = site(&format!("http2_body_preread_size {size}; {slow}"));
        let sent = [acknowledged.clone(), Frame::post(1, "/"), Frame::data(1, 0, body.as_bytes())];
        let ping = Frame::ping().bytes();
        let first = if expected.is_empty() { "0" } else { "\0\0\0\x03" };
        let got =
            site.frames(&[Say::Send(&script(&sent)), Say::Expect(first), Say::Send(&ping), Say::Finish]);
        let reset = got.iter().find(|line| line.starts_with("RST_STREAM")).map_or("", String::as_str);
        assert_eq!(reset, expected, "{size} {body:?}: {got:?}");
        // Before it knows how much that is, none of it.
        let sent = [Frame::post(1, "/"), Frame::data(1, END_STREAM, b"x"), Frame::get(3, "/")];
        let got = site.frames(&[Say::Send(&script(&sent)), Say::Expect("0"), Say::Finish]);
        assert_eq!(got[..2], ["RST_STREAM 1 code 7", "HEADERS 3 200"]);
    }
}

#[test]
fn a_body_that_is_read_has_more_room() {
    let origin = Origin::saying("got it");
    for size in [0, 10] {
        let site = site(&format!(
            "http2_body_preread_size {size}; client_body_buffer_size 64k; location / {{ proxy_pass http://{}; }}",
            origin.address()
        ));
        let begun = script(&[Frame::new(4, 1, 0, []), Frame::post(1, "/")]);
        let rest = Frame::data(1, END_STREAM, &[b'x'; 16_000]).bytes();
        let room = "\0\0\x04\x08\0\0\0\0\x01";
        let got = site.frames(&[
            Say::Send(&begun),
            Say::Expect(room),
            Say::Send(&rest),
            Say::Expect("got it"),
            Say::Finish,
        ]);
        assert_eq!(got, ["HEADERS 1 200", "DATA 1 got it end"]);
    }
}

#[test]
fn a_stream_counts_until_its_answer_is_taken() {
    let site = Site::new(
        "limit_conn_zone $binary_remote_addr zone=z:1m;
         server { listen 80; http2 on; location / { limit_conn z 1; alias %DIR%/; } }",
    )
    .with("f", "0123456789");
    let sent = script(&[Frame::settings(&[(4, 4)]), Frame::get(1, "/f")]);
    let other = Frame::get(3, "/f").bytes();
    let more = [Frame::window(1, 100), Frame::settings(&[(4, 100)])];
    let more = more.iter().flat_map(Frame::bytes).collect::<Vec<_>>();
    let last = Frame::get(5, "/f").bytes();
    let got = site.frames(&[
        Say::Send(&sent),
        Say::Expect("0123"),
        Say::Send(&other),
        Say::Send(&more),
        Say::Expect("456789"),
        Say::Send(&last),
        Say::Expect("0123456789"),
        Say::Finish,
    ]);
    assert_eq!(of(&got, 1), ["HEADERS 1 200", "DATA 1 0123", "DATA 1 456789 end"]);
    assert_eq!(of(&got, 3)[0], "HEADERS 3 other");
    assert_eq!(of(&got, 5), ["HEADERS 5 200", "DATA 5 0123456789 end"]);
    check_log(&site, "limiting connections by zone \"z\"");
}

#[test]
fn fields_are_no_larger_than_their_buffers() {
    for (value, count, expected) in [
        (500, 1, ""),
        (513, 1, "client sent too large header field while processing HTTP/2 connection"),
        (500, 2, "client sent too large header while processing HTTP/2 connection"),
    ] {
        let site = site("large_client_header_buffers 2 512; return 200 fine;");
        let value = "y".repeat(value);
        let fields = [&GET[..], &vec![("x", value.as_str()); count]].concat();
        let sent = script(&[Frame::headers(1, WHOLE, &fields), Frame::get(3, "/")]);
        let got = site.frames(&[Say::Send(&sent), Say::Finish]);
        match expected {
            "" => assert_eq!(of(&got, 1), ["HEADERS 1 200", "DATA 1 fine end"]),
            expected => {
                assert_eq!(got, ["GOAWAY code 11"]);
                check_log(&site, expected);
            }
        }
    }
}

#[test]
fn requests_are_as_long_as_their_blocks() {
    let site = site("return 200 $request_length;");
    let whole = Frame::headers(1, WHOLE, &GET);
    let length = whole.payload.len();
    let mut padded = whole.clone();
    (padded.flags, padded.payload) = (WHOLE | PADDED, [&[3], &whole.payload[..], b"..."].concat());
    let mut prioritized = whole.clone();
    (prioritized.flags, prioritized.payload) =
        (WHOLE | 0x20, [&b"\0\0\0\0\x10"[..], &whole.payload].concat());
    for head in [whole, padded, prioritized] {
        check(&site, &[head], &["HEADERS 1 200", &format!("DATA 1 {length} end")]);
    }
}

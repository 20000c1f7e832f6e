//! A client's frames in pieces of any size, and what hyper and the client get of them, or which fault is found.

use super::{PIECES, block, frame, settings, shown, text};
use crate::http2::frame::*;
use crate::http2::hpack::Limits;
use crate::http2::inward::{Inward, Rules};
use crate::http2::outward::Outward;
use crate::http2::preface::PREFACE;
use crate::http2::request::{Asked, of_hyper};
use crate::http2::seats::Seats;

const RULES: Rules = Rules {
    limits: Limits { field: 64, list: 256 },
    requests: 1000,
    streams: 100,
    window: USUAL_WINDOW,
    bridges: false,
};

/// Fields whose block has no more than a byte for each.
const GET: &[u8] = b"\x82\x84\x86";
const WHOLE: u8 = END_HEADERS | END_STREAM;
const ACKNOWLEDGED: u8 = ACK;

/// A connection that has had its preface.
struct Fed {
    inward: Inward,
    outward: Outward,
    seats: Seats,
}

impl Fed {
    fn new(rules: Rules) -> Self {
        let mut fed =
            Self { inward: Inward::new(rules), outward: Outward::new(rules.window), seats: Seats::new() };
        assert_eq!(fed.feed(PREFACE, usize::MAX), Ok(()));
        fed.inward.out.clear();
        fed
    }

    fn feed(&mut self, bytes: &[u8], piece: usize) -> Result<(), Fault> {
        let mut pieces = bytes.chunks(piece.min(bytes.len().max(1)));
        pieces.try_for_each(|piece| self.inward.feed(piece, &mut self.seats, &mut self.outward))
    }

    /// What hyper and the client get.
    fn took(&mut self) -> (Vec<String>, Vec<String>) {
        let took = (shown(&self.inward.out), shown(&self.outward.out));
        self.inward.out.clear();
        self.outward.out.clear();
        took
    }

    /// The streams that have a request.
    fn take(&mut self, streams: impl IntoIterator<Item = u32>) -> Vec<String> {
        let came = streams.into_iter().filter_map(|stream| self.seats.take(stream));
        came.map(|came| {
            let fields = came.fields.iter().map(|(name, value)| format!(" {}={}", text(name), text(value)));
            format!("{} {} {}{}", came.stream, came.length, came.ends, fields.collect::<String>())
        })
        .collect()
    }
}

/// Checks what becomes of frames, in pieces of any size: what hyper gets, and then the client.
#[track_caller]
fn check_by(rules: Rules, frames: &[Vec<u8>], hyper: &[&str], client: &[&str]) -> Fed {
    let mut last = None;
    for piece in PIECES {
        let mut fed = Fed::new(rules);
        assert_eq!(fed.feed(&frames.concat(), piece), Ok(()), "{piece}");
        let took = fed.took();
        assert_eq!(took.0, hyper, "{piece}");
        assert_eq!(took.1, client, "{piece}");
        last = Some(fed);
    }
    last.expect("a size")
}

#[track_caller]
fn check(frames: &[Vec<u8>], hyper: &[&str], client: &[&str]) -> Fed {
    check_by(RULES, frames, hyper, client)
}

#[track_caller]
fn check_fault_by(rules: Rules, frames: &[Vec<u8>], code: u32, message: &str) {
    for piece in PIECES {
        let mut fed = Fed::new(rules);
        let fault = fed.feed(&frames.concat(), piece).expect_err(message);
        assert_eq!((fault.message.as_ref(), fault.code), (message, code), "{piece}");
        shown(&fed.inward.out);
    }
}

/// Checks for what the connection ends.
#[track_caller]
fn check_fault(frames: &[Vec<u8>], code: u32, message: &str) {
    check_fault_by(RULES, frames, code, &format!("client sent {message}"));
}

/// What hyper is told of a request, to its end or not.
fn told(stream: u32, flags: u8) -> String {
    format!("HEADERS {stream} {flags:x} {}", text(&of_hyper(stream, Asked::Request)))
}

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, WHOLE, stream, GET)
}

fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, GET)
}

fn ack() -> Vec<u8> {
    frame(SETTINGS, ACKNOWLEDGED, 0, b"")
}

#[test]
fn a_preface_comes_first() {
    for piece in PIECES {
        let mut fed = Fed { inward: Inward::new(RULES), outward: Outward::new(0), seats: Seats::new() };
        assert_eq!(fed.feed(&[PREFACE, &frame(SETTINGS, 0, 0, b"")].concat(), piece), Ok(()));
        assert_eq!(fed.inward.out[..], [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat());
        let mut fed = Fed { inward: Inward::new(RULES), outward: Outward::new(0), seats: Seats::new() };
        let fault = fed.feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r", piece);
        assert_eq!(fault, Err(Fault::new(PROTOCOL_ERROR, "invalid connection preface")));
        assert!(fed.inward.out.is_empty());
    }
}

#[test]
fn heads_become_numbers() {
    let fields = block(&[(":path", "/a?b"), ("x", "y")]);
    let padded = [&[1][..], &fields, b"."].concat();
    let prioritized = [&b"\x80\0\0\x01\xff"[..], &fields].concat();
    let both = [&b"\x02\0\0\0\x01\xff"[..], &fields, b".."].concat();
    let frames = [
        frame(HEADERS, WHOLE, 1, &fields),
        frame(HEADERS, END_HEADERS | PADDED, 3, &padded),
        frame(HEADERS, WHOLE | PRIORITIZED, 5, &prioritized),
        frame(HEADERS, END_HEADERS | PADDED | PRIORITIZED, 7, &both),
        // Of all that a block may be cut at.
        frame(HEADERS, END_STREAM, 9, &fields[..3]),
        frame(CONTINUATION, 0, 9, &fields[3..8]),
        frame(CONTINUATION, 0, 9, b""),
        frame(CONTINUATION, END_HEADERS, 9, &fields[8..]),
        // Nobody says what that flag means here.
        frame(HEADERS, PADDED | PRIORITIZED, 11, &both),
        frame(CONTINUATION, END_HEADERS | END_STREAM, 11, GET),
    ];
    let hyper = [(1, 5), (3, 4), (5, 5), (7, 4), (9, 5), (11, 4)].map(|(stream, flags)| told(stream, flags));
    let mut fed = check(&frames, &hyper.each_ref().map(String::as_str), &[]);
    let fields = ":path=/a?b x=y";
    let get = ":method=GET :path=/ :scheme=http";
    assert_eq!(
        fed.take(0..20),
        [
            format!("1 {} true {fields}", 17),
            format!("3 {} false {fields}", 17),
            format!("5 {} true {fields}", 17),
            format!("7 {} false {fields}", 17),
            format!("9 {} true {fields}", 17),
            format!("11 {} false {fields} {get}", 20),
        ]
    );
    assert_eq!(fed.inward.last(), 11);
}

#[test]
fn streams_may_become_tunnels() {
    let connect = block(&[(":method", "CONNECT"), (":protocol", "websocket")]);
    let frames = [frame(HEADERS, END_HEADERS, 1, &connect), post(3)];
    let tunnel = format!("HEADERS 1 4 {}", text(&of_hyper(1, Asked::WebSocket)));
    check_by(Rules { bridges: true, ..RULES }, &frames, &[&tunnel, &told(3, 4)], &[]);
    check(&frames, &[&told(1, 4), &told(3, 4)], &[]);
}

#[test]
fn trailers_end_a_body() {
    let frames = [
        post(1),
        frame(DATA, 0, 1, b"x"),
        frame(HEADERS, WHOLE, 1, &block(&[("t", "1")])),
        post(3),
        // Of nothing, and in pieces.
        frame(HEADERS, WHOLE, 3, b""),
        post(5),
        frame(HEADERS, END_STREAM, 5, &block(&[("t", "1")])),
        frame(CONTINUATION, END_HEADERS, 5, &block(&[("t", "1")])),
    ];
    let heads = [1, 3, 5].map(|stream| told(stream, 4));
    let hyper = [&heads[0], "DATA 1 0 x", "HEADERS 1 5", &heads[1], "HEADERS 3 5", &heads[2], "HEADERS 5 5"];
    let mut fed = check(&frames, &hyper, &[]);
    assert_eq!(fed.take(0..9).len(), 3);
}

#[test]
fn frames_go_on_to_hyper_or_stay() {
    let frames = [
        frame(SETTINGS, 0, 0, &settings(&[(3, 7), (1, 0), (4, 10), (8, 1), (5, 16_384), (9, 9), (2, 0)])),
        frame(SETTINGS, 0, 0, &settings(&[(1, 4096), (8, 0)])),
        ack(),
        ack(),
        frame(PING, 0, 0, b"12345678"),
        frame(PING, ACK, 0, b"12345678"),
        frame(PRIORITY, 0, 3, b"\0\0\0\x01\xff"),
        frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\x02debug"),
        frame(99, 0xff, 7, b"whatever"),
        frame(99, 0, 0, b""),
        frame(WINDOW_UPDATE, 0, 0, b"\x80\0\0\x01"),
        post(1),
        frame(DATA, 0, 1, b""),
        frame(DATA, 0, 1, b"body"),
        frame(DATA, PADDED, 1, b"\x02pad.."),
        frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x02"),
        frame(DATA, END_STREAM, 1, b""),
        frame(RST_STREAM, 0, 1, b"\0\0\0\x08"),
    ];
    let hyper = [
        r"SETTINGS 0 0 \x00\x03\x00\x00\x00\x07\x00\x04\x00\x00\x00\n\x00\x05\x00\x00@\x00\x00\t\x00\x00\x00\t\x00\x02\x00\x00\x00\x00",
        "SETTINGS 0 0",
        "SETTINGS 0 1",
        "PING 0 0 12345678",
        r"WINDOW_UPDATE 0 0 \x80\x00\x00\x01",
        &told(1, 4),
        "DATA 1 0 body",
        "DATA 1 0 pad",
        r"WINDOW_UPDATE 1 0 \x00\x00\x00\x02",
        "DATA 1 1",
        r"RST_STREAM 1 0 \x00\x00\x00\x08",
    ];
    // Room for padding, which hyper does not see.
    let client = [r"WINDOW_UPDATE 0 0 \x00\x00\x00\x03", r"WINDOW_UPDATE 1 0 \x00\x00\x00\x03"];
    let fed = check(&frames, &hyper, &client);
    assert!(fed.seats.was_reset(1));
    assert_eq!(fed.inward.windows(), 2);
    // What it takes of a stream is known here too.
    let frames = [
        frame(SETTINGS, 0, 0, &settings(&[(4, 10)])),
        get(1),
        get(3),
        frame(WINDOW_UPDATE, 0, 3, b"\0\0\0\x05"),
    ];
    let mut fed = Fed::new(RULES);
    assert_eq!(fed.feed(&frames.concat(), 1), Ok(()));
    assert_eq!([1, 3].map(|stream| fed.seats.room(stream)), [10, 15]);
}

#[test]
fn faults_of_frames() {
    let size = |kind, name: &str, lengths: &[usize]| {
        for length in lengths {
            // Of none of them more is awaited.
            let head = Header { length: *length, kind, flags: 0, stream: 0 }.bytes().to_vec();
            let message = format!("{name} frame with incorrect length {length}");
            check_fault(&[head], FRAME_SIZE_ERROR, &message);
        }
    };
    size(PRIORITY, "PRIORITY", &[0, 4, 6]);
    size(RST_STREAM, "RST_STREAM", &[0, 3, 5]);
    size(SETTINGS, "SETTINGS", &[1, 5, 7]);
    size(PING, "PING", &[0, 7, 9]);
    size(GOAWAY, "GOAWAY", &[0, 7]);
    size(WINDOW_UPDATE, "WINDOW_UPDATE", &[0, 3, 5]);
    size(SETTINGS, "SETTINGS", &[16_386]);
    let incorrect = |name: &str| format!("{name} frame with incorrect identifier");
    for (frame, name) in [
        (frame(PRIORITY, 0, 0, b"\0\0\0\x01."), "PRIORITY"),
        (frame(RST_STREAM, 0, 0, b"...."), "RST_STREAM"),
        (frame(SETTINGS, 0, 1, b""), "SETTINGS"),
        (frame(SETTINGS, ACK, 1, b""), "SETTINGS"),
        (frame(PING, 0, 1, b"........"), "PING"),
        (frame(GOAWAY, 0, 1, b"........"), "GOAWAY"),
        (frame(DATA, 0, 0, b""), "DATA"),
        (frame(DATA, END_STREAM, 0, b"body"), "DATA"),
        (frame(DATA, PADDED, 0, b"\0body"), "DATA"),
    ] {
        check_fault(&[frame], PROTOCOL_ERROR, &incorrect(name));
    }
    let padded = |payload: &[u8]| frame(HEADERS, WHOLE | PADDED, 1, payload);
    let prioritized = |payload: &[u8]| frame(HEADERS, WHOLE | PRIORITIZED, 1, payload);
    for (frames, code, message) in [
        (vec![frame(PUSH_PROMISE, 0, 1, b"....")], PROTOCOL_ERROR, "PUSH_PROMISE frame"),
        (
            vec![frame(SETTINGS, ACK, 0, b"......")],
            FRAME_SIZE_ERROR,
            "SETTINGS frame with the ACK flag and nonzero length",
        ),
        (
            vec![frame(SETTINGS, 0, 0, &settings(&[(3, 1), (2, 2)]))],
            PROTOCOL_ERROR,
            "SETTINGS frame with incorrect ENABLE_PUSH value 2",
        ),
        (
            vec![frame(SETTINGS, 0, 0, &settings(&[(4, 1 << 31)]))],
            FLOW_CONTROL_ERROR,
            "SETTINGS frame with incorrect INITIAL_WINDOW_SIZE value 2147483648",
        ),
        (
            vec![frame(SETTINGS, 0, 0, &settings(&[(5, 16_383)]))],
            PROTOCOL_ERROR,
            "SETTINGS frame with incorrect MAX_FRAME_SIZE value 16383",
        ),
        (
            vec![frame(SETTINGS, 0, 0, &settings(&[(5, 1 << 24)]))],
            PROTOCOL_ERROR,
            "SETTINGS frame with incorrect MAX_FRAME_SIZE value 16777216",
        ),
        (
            vec![frame(WINDOW_UPDATE, 0, 0, b"\x80\0\0\0")],
            PROTOCOL_ERROR,
            "WINDOW_UPDATE frame with incorrect window increment 0",
        ),
        (
            vec![get(1), frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\0")],
            PROTOCOL_ERROR,
            "WINDOW_UPDATE frame with incorrect window increment 0",
        ),
        (
            vec![frame(PRIORITY, 0, 3, b"\x80\0\0\x03.")],
            PROTOCOL_ERROR,
            "PRIORITY frame for stream 3 with incorrect dependency",
        ),
        (
            vec![prioritized(b"\x80\0\0\x01.\x82")],
            PROTOCOL_ERROR,
            "HEADERS frame for stream 1 with incorrect dependency",
        ),
        (
            vec![post(1), frame(DATA, PADDED, 1, b"")],
            FRAME_SIZE_ERROR,
            "padded DATA frame with incorrect length: 0",
        ),
        (
            vec![post(1), frame(DATA, PADDED, 1, b"\x05body")],
            PROTOCOL_ERROR,
            "padded DATA frame with incorrect length: 5, padding: 5",
        ),
        (vec![padded(b"")], FRAME_SIZE_ERROR, "HEADERS frame with incorrect length 0"),
        (vec![prioritized(b"....")], FRAME_SIZE_ERROR, "HEADERS frame with incorrect length 4"),
        (vec![padded(b"\x01")], FRAME_SIZE_ERROR, "HEADERS frame with empty header block"),
        (vec![prioritized(b".....")], FRAME_SIZE_ERROR, "HEADERS frame with empty header block"),
        (vec![frame(HEADERS, WHOLE, 1, b"")], FRAME_SIZE_ERROR, "HEADERS frame with empty header block"),
        (
            vec![padded(b"\x03\x82.")],
            PROTOCOL_ERROR,
            "padded HEADERS frame with incorrect length: 2, padding: 3",
        ),
        (vec![padded(b"\x02..")], FRAME_SIZE_ERROR, "header block with incorrect length"),
        (
            vec![frame(HEADERS, WHOLE, 0, GET)],
            PROTOCOL_ERROR,
            "HEADERS frame with incorrect identifier 0, the last was 0",
        ),
        (vec![get(5), get(8)], PROTOCOL_ERROR, "HEADERS frame with incorrect identifier 8, the last was 5"),
        (vec![frame(CONTINUATION, END_HEADERS, 1, GET)], PROTOCOL_ERROR, "unexpected CONTINUATION frame"),
        (
            vec![get(1), frame(CONTINUATION, END_HEADERS, 1, GET)],
            PROTOCOL_ERROR,
            "unexpected CONTINUATION frame",
        ),
        (
            vec![frame(HEADERS, 0, 1, GET), frame(CONTINUATION, END_HEADERS, 3, GET)],
            PROTOCOL_ERROR,
            "CONTINUATION frame with incorrect identifier",
        ),
        (
            vec![frame(HEADERS, 0, 1, GET), frame(99, 0, 0, b"")],
            PROTOCOL_ERROR,
            "inappropriate frame while CONTINUATION was expected",
        ),
        (
            vec![frame(HEADERS, 0, 1, GET), frame(DATA, 0, 1, b"")],
            PROTOCOL_ERROR,
            "inappropriate frame while CONTINUATION was expected",
        ),
    ] {
        check_fault(&frames, code, message);
    }
}

#[test]
fn faults_of_blocks() {
    const COMPRESSION_ERROR: u32 = 9;
    let long = "x".repeat(65);
    for (block, code, message) in [
        (&b"\x80"[..], COMPRESSION_ERROR, "invalid hpack table index 0"),
        (b"\x82\xbe", COMPRESSION_ERROR, "out of bound hpack table index"),
        (b"\xff\xff\xff\xff\x01", COMPRESSION_ERROR, "header block with too long header index value"),
        (b"\x3f\xe2\x1f", COMPRESSION_ERROR, "invalid table size update"),
        (b"\0\0\0", PROTOCOL_ERROR, "zero header name length"),
        (b"\x04\x81\0", COMPRESSION_ERROR, "invalid encoded header field"),
        // Ends of blocks that are none of a field.
        (b"\0", FRAME_SIZE_ERROR, "header block with incorrect length"),
        (b"\x82\0\x01x\x02y", FRAME_SIZE_ERROR, "header block with incorrect length"),
        (b"\x7f", FRAME_SIZE_ERROR, "header block with incorrect length"),
        (&[b"\0\x01x\x41", long.as_bytes()].concat(), ENHANCE_YOUR_CALM, "too large header field"),
        (&[b"\0\x41", long.as_bytes(), b"\0"].concat(), ENHANCE_YOUR_CALM, "too large header field"),
        (
            &b"\0\x01x\x3f0123456789012345678901234567890123456789012345678901234567890123".repeat(5)[..],
            ENHANCE_YOUR_CALM,
            "too large header",
        ),
    ] {
        let half = block.len() / 2;
        for frames in [
            vec![frame(HEADERS, WHOLE, 1, block)],
            vec![
                frame(HEADERS, END_STREAM, 1, &block[..half.max(1)]),
                frame(CONTINUATION, END_HEADERS, 1, &block[half.max(1)..]),
            ],
            vec![post(1), frame(HEADERS, WHOLE, 1, block)],
        ] {
            check_fault(&frames, code, message);
        }
    }
    // The list of a head is that of all of its frames, not of others.
    let third = b"\0\x01x\x3f0123456789012345678901234567890123456789012345678901234567890123".repeat(3);
    let frames = [frame(HEADERS, WHOLE, 1, &third), frame(HEADERS, WHOLE, 3, &third)];
    check(&frames, &[&told(1, 5), &told(3, 5)], &[]);
    let frames = [frame(HEADERS, 0, 1, &third), frame(CONTINUATION, END_HEADERS, 1, &third)];
    check_fault(&frames, ENHANCE_YOUR_CALM, "too large header");
}

#[test]
fn tables_go_on_over_heads_that_nobody_gets() {
    let kept = b"\x40\x01x\x01y";
    let window = Rules { window: 10, ..RULES };
    // The first is refused: its body may not come before the client knows how much of it may.
    let frames = [
        frame(HEADERS, END_HEADERS, 1, kept),
        frame(DATA, 0, 1, b"body"),
        frame(HEADERS, WHOLE, 1, b"\xbe"),
        frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x01"),
        frame(RST_STREAM, 0, 1, b"\0\0\0\x08"),
        frame(HEADERS, WHOLE, 3, b"\xbe"),
        ack(),
        frame(HEADERS, END_HEADERS, 5, b"\xbe"),
        frame(DATA, 0, 5, b"body"),
    ];
    let hyper = [&told(3, 5), "SETTINGS 0 1", &told(5, 4), "DATA 5 0 body"];
    let client = [r"RST_STREAM 1 0 \x00\x00\x00\x07", r"WINDOW_UPDATE 0 0 \x00\x00\x00\x04"];
    let mut fed = check_by(window, &frames, &hyper, &client);
    assert_eq!(fed.take(0..9), ["3 1 true x=y", "5 1 false x=y"]);
    // Those before it that never were are as unknown to hyper.
    let frames = [post(5), frame(HEADERS, WHOLE, 3, b"\x82"), frame(DATA, 0, 1, b"body"), ack(), post(7)];
    let client = [r"RST_STREAM 5 0 \x00\x00\x00\x07", r"WINDOW_UPDATE 0 0 \x00\x00\x00\x04"];
    check_by(window, &frames, &["SETTINGS 0 1", &told(7, 4)], &client);
    let refused: Vec<_> = (0..=100).map(|n| post(2 * n + 1)).collect();
    check_fault_by(window, &refused, NO_ERROR, "client sent too many refused streams");
    assert_eq!(Fed::new(window).feed(&refused[..100].concat(), 1000), Ok(()));
}

#[test]
fn nothing_comes_behind_the_last_request() {
    let rules = Rules { requests: 2, ..RULES };
    let goaway = r"GOAWAY 0 0 \x00\x00\x00\x05\x00\x00\x00\x00";
    let frames = [
        post(1),
        post(5),
        frame(DATA, 0, 5, b"body"),
        // Not even what cannot be read.
        frame(HEADERS, END_STREAM, 7, b"\x80\0"),
        frame(CONTINUATION, END_HEADERS, 7, b"\xff\xff\xff\xff\xff"),
        frame(DATA, 0, 7, b"body"),
        frame(DATA, 0, 7, b""),
        frame(WINDOW_UPDATE, 0, 7, b"\0\0\0\x01"),
        frame(RST_STREAM, 0, 7, b"\0\0\0\x08"),
        frame(HEADERS, WHOLE, 5, &block(&[("t", "1")])),
        frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\x01"),
    ];
    let hyper =
        [&told(1, 4), &told(5, 4), "DATA 5 0 body", "HEADERS 5 5", r"WINDOW_UPDATE 0 0 \x00\x00\x00\x01"];
    let client = [goaway, r"WINDOW_UPDATE 0 0 \x00\x00\x00\x04"];
    let mut fed = check_by(rules, &frames, &hyper, &client);
    assert!(fed.inward.has_parted());
    assert_eq!((fed.inward.part(), fed.inward.last()), (5, 5));
    // What is no frame ends the connection as ever.
    let message = "client sent HEADERS frame with incorrect identifier 8, the last was 5";
    check_fault_by(rules, &[post(1), post(5), post(8)], PROTOCOL_ERROR, message);
    // At the time, or for another reason: with the next request, or at once.
    let mut fed = Fed::new(RULES);
    assert_eq!(fed.feed(&post(1), 1), Ok(()));
    fed.inward.expect_the_last();
    assert!(!fed.inward.has_parted());
    assert_eq!(fed.feed(&[post(5), post(7)].concat(), 1), Ok(()));
    assert_eq!(fed.took(), (vec![told(1, 4), told(5, 4)], vec![goaway.to_owned()]));
    let mut fed = Fed::new(RULES);
    assert_eq!(fed.feed(&post(1), 1), Ok(()));
    assert_eq!(fed.inward.part(), 1);
    assert_eq!(fed.feed(&post(3), 1), Ok(()));
    assert_eq!((fed.inward.part(), fed.took().0), (1, vec![told(1, 4)]));
    // A head that has begun is whole before that.
    let mut fed = Fed::new(RULES);
    assert_eq!(fed.feed(&frame(HEADERS, END_STREAM, 1, GET), 1), Ok(()));
    assert!(fed.inward.awaits_head());
    assert_eq!(fed.inward.part(), 1);
    assert_eq!(fed.feed(&frame(CONTINUATION, END_HEADERS, 1, &block(&[("x", "y")])), 1), Ok(()));
    assert!(!fed.inward.awaits_head());
    assert_eq!(fed.take([1]), ["1 8 true :method=GET :path=/ :scheme=http x=y"]);
}

#[test]
fn a_head_is_forgone() {
    let mut fed = Fed::new(RULES);
    assert!(!fed.inward.forgo(&mut fed.outward));
    let begun = [get(1), frame(HEADERS, 0, 3, b"\x40\x01x\x01")].concat();
    assert_eq!(fed.feed(&begun, 1), Ok(()));
    assert!(fed.inward.awaits_head() && fed.inward.within().is_some());
    assert!(fed.inward.forgo(&mut fed.outward));
    assert!(!fed.inward.awaits_head() && fed.inward.within().is_none());
    assert!(!fed.inward.forgo(&mut fed.outward));
    let rest = [
        frame(CONTINUATION, END_HEADERS, 3, b"y"),
        frame(DATA, END_STREAM, 3, b"body"),
        frame(HEADERS, WHOLE, 5, b"\xbe"),
    ];
    assert_eq!(fed.feed(&rest.concat(), 1), Ok(()));
    let client = [r"RST_STREAM 3 0 \x00\x00\x00\x01", r"WINDOW_UPDATE 0 0 \x00\x00\x00\x04"];
    assert_eq!(fed.took(), (vec![told(1, 5), told(5, 5)], client.map(str::to_owned).to_vec()));
    assert_eq!(fed.take(0..9), ["1 3 true :method=GET :path=/ :scheme=http", "5 1 true x=y"]);
    // Trailers have the time of their body.
    assert_eq!(fed.feed(&[post(7), frame(HEADERS, 0, 7, b"\x82")].concat(), 1), Ok(()));
    assert!(!fed.inward.forgo(&mut fed.outward));
}

#[test]
fn a_stream_is_reset_between_frames() {
    let first = [post(1), post(3)].concat();
    let behind = frame(PING, 0, 0, b"12345678");
    let data = frame(DATA, 0, 1, b"body");
    for at in 0..=data.len() {
        let mut fed = Fed::new(RULES);
        assert_eq!(fed.feed(&[&first, &data[..at]].concat(), 1000), Ok(()));
        fed.inward.reset(3, 5);
        let rest = [&data[at..], &behind, &frame(DATA, 0, 3, b"late")].concat();
        assert_eq!(fed.feed(&rest, 1000), Ok(()));
        let (mut hyper, client) = fed.took();
        let reset = hyper.iter().position(|line| line == r"RST_STREAM 3 0 \x00\x00\x00\x05");
        hyper.remove(reset.expect("a reset"));
        assert_eq!(hyper, [told(1, 4), told(3, 4), "DATA 1 0 body".into(), "PING 0 0 12345678".into()]);
        assert_eq!(client, [r"WINDOW_UPDATE 0 0 \x00\x00\x00\x04"]);
        assert_eq!(reset, Some(if at == 0 { 2 } else { 3 }), "{at}");
    }
}

#[test]
fn a_body_behind_its_end_costs_its_stream() {
    for end in [frame(DATA, END_STREAM, 1, b"body"), frame(HEADERS, WHOLE, 1, b"")] {
        let frames = [
            post(1),
            post(3),
            end.clone(),
            frame(DATA, 0, 1, b"more"),
            frame(DATA, END_STREAM, 1, b"more"),
            frame(DATA, END_STREAM, 3, b"body"),
        ];
        let hyper =
            [&told(1, 4), &told(3, 4), &shown(&end)[0], r"RST_STREAM 1 0 \x00\x00\x00\x05", "DATA 3 1 body"];
        let client = [
            r"WINDOW_UPDATE 0 0 \x00\x00\x00\x04",
            r"RST_STREAM 1 0 \x00\x00\x00\x05",
            r"WINDOW_UPDATE 0 0 \x00\x00\x00\x04",
        ];
        check(&frames, &hyper, &client);
    }
    // Nothing of hyper's is held back behind it, however it is padded.
    for (data, length) in [(frame(DATA, 0, 1, b"more"), 4), (frame(DATA, PADDED, 1, b"\0"), 1)] {
        let hyper = [&told(1, 5), r"RST_STREAM 1 0 \x00\x00\x00\x05"];
        let room = format!(r"WINDOW_UPDATE 0 0 \x00\x00\x00\x0{length}");
        let fed = check(&[get(1), data], &hyper, &[&room, r"RST_STREAM 1 0 \x00\x00\x00\x05"]);
        assert!(!fed.seats.was_reset(1), "not by the client");
    }
}

#[test]
fn a_body_is_no_longer_than_the_client_was_told() {
    let rules = Rules { window: 8, ..RULES };
    let frames =
        [ack(), post(1), post(3), frame(DATA, PADDED, 1, b"\x01body."), frame(DATA, 0, 3, b"12345678")];
    let hyper = ["SETTINGS 0 1", &told(1, 4), &told(3, 4), "DATA 1 0 body", "DATA 3 0 12345678"];
    // Padding has taken room, which comes back.
    let client = [r"WINDOW_UPDATE 0 0 \x00\x00\x00\x02", r"WINDOW_UPDATE 1 0 \x00\x00\x00\x02"];
    let mut fed = check_by(rules, &frames, &hyper, &client);
    assert!(!fed.seats.may_exceed());
    assert_eq!(fed.feed(&frame(DATA, 0, 1, b"1234"), 1), Ok(()));
    assert!(!fed.seats.may_exceed());
    assert_eq!(fed.feed(&frame(DATA, 0, 1, b"5"), 1), Ok(()));
    assert_eq!(fed.seats.exceeded(), [1]);
}

#[test]
fn bodies_of_any_frames() {
    let large = vec![b'x'; 40_000];
    let ends = END_STREAM | PADDED;
    for (frames, hyper) in [
        (vec![frame(DATA, PADDED, 1, b"\0")], vec![]),
        (vec![frame(DATA, PADDED, 1, b"\x02..")], vec![]),
        (vec![frame(DATA, ends, 1, b"\0")], vec![(0, END_STREAM)]),
        (vec![frame(DATA, ends, 1, b"\x02..")], vec![(0, END_STREAM)]),
        (vec![frame(DATA, ends, 1, b"\x02body..")], vec![(4, END_STREAM)]),
        // Flags that DATA has not.
        (vec![frame(DATA, !PADDED, 1, b"body")], vec![(4, END_STREAM)]),
        (vec![frame(DATA, 0xff, 1, b"\x02body..")], vec![(4, END_STREAM)]),
        (vec![frame(DATA, 0, 1, &large)], vec![(16_384, 0), (16_384, 0), (7232, 0)]),
        (vec![frame(DATA, END_STREAM, 1, &large[..32_768])], vec![(16_384, 0), (16_384, END_STREAM)]),
        (
            vec![frame(DATA, PADDED, 1, &[&[1], &large[..16_386]].concat()), frame(DATA, END_STREAM, 1, b"")],
            vec![(16_384, 0), (1, 0), (0, END_STREAM)],
        ),
    ] {
        for piece in PIECES {
            let mut fed = Fed::new(RULES);
            assert_eq!(fed.feed(&post(1), 100), Ok(()));
            fed.took();
            assert_eq!(fed.feed(&frames.concat(), piece), Ok(()));
            let mut bytes = &fed.inward.out[..];
            let mut got = vec![];
            while let Some(header) = Headers::default().next(&mut bytes) {
                assert_eq!((header.kind, header.stream), (DATA, 1));
                got.push((header.length, header.flags));
                bytes = &bytes[header.length..];
            }
            assert_eq!(got, hyper, "{piece}");
            // The next frame, whatever was before it.
            fed.inward.out.clear();
            assert_eq!(fed.feed(&frame(PING, 0, 0, b"12345678"), piece), Ok(()));
            assert_eq!(fed.took().0, ["PING 0 0 12345678"]);
        }
    }
}

#[test]
fn a_head_may_be_as_large_as_its_fields_are() {
    let mut fed = Fed::new(Rules { limits: Limits { field: 100, list: 50_000 }, ..RULES });
    let large = block(&vec![("a", &*"x".repeat(100)); 400]);
    assert_eq!(fed.feed(&frame(HEADERS, WHOLE, 1, &large), 5_000), Ok(()));
    let came = fed.seats.take(1).expect("a request");
    assert_eq!((came.length, came.fields.len()), (large.len(), 400));
}

#[test]
fn a_field_in_many_pieces_costs_no_more_than_its_length() {
    let limits = Limits { field: 1 << 20, list: 1 << 21 };
    let mut fed = Fed::new(Rules { limits, ..RULES });
    // A name and a value of 512 KiB, in frames of a byte. To read the name anew for each would be 2^38 bytes.
    let string = [&b"\x7f\x81\xff\x1f"[..], &vec![b'a'; 1 << 19]].concat();
    let field = [&b"\0"[..], &string, &string].concat();
    let mut frames = frame(HEADERS, END_STREAM, 1, &field[..1]);
    frames.extend(field[1..].iter().flat_map(|byte| frame(CONTINUATION, 0, 1, &[*byte])));
    frames.extend(frame(CONTINUATION, END_HEADERS, 1, b""));
    assert_eq!(fed.feed(&frames, usize::MAX), Ok(()));
    let came = fed.seats.take(1).expect("a request");
    assert_eq!(
        came.fields.iter().map(|(name, value)| (name.len(), value.len())).collect::<Vec<_>>(),
        [(1 << 19, 1 << 19)]
    );
}

#[test]
fn priorities_are_bounded_by_requests() {
    let priority = frame(PRIORITY, 0, 3, b"\0\0\0\x01\xff");
    let many = |n: usize| priority.repeat(n);
    let mut fed = Fed::new(Rules { streams: 10, ..RULES });
    assert_eq!(fed.feed(&[many(100), get(1), get(3), many(20)].concat(), 1000), Ok(()));
    let fault = Fault::new(ENHANCE_YOUR_CALM, "client sent too many PRIORITY frames");
    assert_eq!(fed.feed(&priority, 1000), Err(fault));
}

/// What is within something behind each piece of that size, by its number.
fn within(frames: &[Vec<u8>], piece: usize) -> String {
    let mut fed = Fed::new(RULES);
    let bytes = frames.concat();
    let number = |piece| {
        assert_eq!(fed.feed(piece, usize::MAX), Ok(()));
        fed.inward.within().map_or('.', |number| char::from(b'0' + number as u8))
    };
    bytes.chunks(piece).map(number).collect()
}

#[test]
fn frames_are_whole_at_their_ends() {
    let settings = |payload: &[u8]| frame(SETTINGS, 0, 0, payload);
    assert_eq!(within(&[settings(b""), settings(b"\0\x09....")], 1), "11111111.22222222222222.");
    // HEADERS without END_HEADERS waits for its CONTINUATION.
    let head = [frame(HEADERS, END_STREAM, 1, b"\x82\x84"), frame(CONTINUATION, END_HEADERS, 1, b"\x86")];
    assert_eq!(within(&head, 1), "11111111111111111111.");
    // A body is awaited by whoever reads it.
    assert_eq!(within(&[post(1), frame(DATA, 0, 1, b"xyz")], 1), "11111111111.22222222....");
    let frames = [post(1), frame(DATA, END_STREAM, 1, b"xyz"), frame(PING, 0, 0, b"12345678")];
    assert_eq!(within(&frames, 40), "3.");
    assert_eq!(within(&frames, 1000), ".");
}

//! Hyper's frames in pieces of any size, and what the client gets.

use super::{PIECES, fields, frame, settings, shown};
use crate::http2::frame::*;
use crate::http2::hpack::{Decoder, Fields};
use crate::http2::outward::Outward;
use crate::http2::request::Came;
use crate::http2::seats::Seats;

const WINDOW: u32 = 100;
const WHOLE: u8 = END_HEADERS | END_STREAM;

struct Fed {
    outward: Outward,
    seats: Seats,
}

impl Fed {
    /// With streams 1, 3 and 5.
    fn new() -> Self {
        let mut seats = Seats::new();
        for stream in [1, 3, 5] {
            seats.come(Came::of(stream), WINDOW);
            assert!(seats.take(stream).is_some());
        }
        Self { outward: Outward::new(WINDOW), seats }
    }

    fn answer(&mut self, stream: u32, status: u16, fields: &[(&str, &str)]) {
        self.seats.answer(stream, status, list(fields));
    }

    fn feed(&mut self, frames: &[Vec<u8>], piece: usize) {
        let bytes = frames.concat();
        for piece in bytes.chunks(piece.min(bytes.len().max(1))) {
            self.outward.feed(piece, &mut self.seats);
        }
    }

    /// What the client gets, with heads as they are.
    fn took(&mut self) -> Vec<String> {
        let took = shown(&self.outward.out);
        self.outward.out.clear();
        took
    }

    /// The same with the fields of heads.
    fn read(&mut self, decoder: &mut Decoder) -> Vec<String> {
        let (mut lines, mut block) = (vec![], vec![]);
        let mut bytes = &self.outward.out[..];
        while !bytes.is_empty() {
            let header = Headers::default().next(&mut bytes).expect("a whole header");
            let (payload, rest) = bytes.split_at(header.length);
            bytes = rest;
            if !matches!(header.kind, HEADERS | CONTINUATION) {
                assert!(block.is_empty(), "nothing is between the frames of a block");
                lines.extend(shown(&[&header.bytes()[..], payload].concat()));
                continue;
            }
            block.extend_from_slice(payload);
            if header.has(END_HEADERS) {
                lines.push(format!("{} {:x} {}", header.stream, header.flags, fields(decoder, &block)));
                block.clear();
            }
        }
        self.outward.out.clear();
        lines
    }
}

fn list(fields: &[(&str, &str)]) -> Fields {
    let mut list = Fields::default();
    for (name, value) in fields {
        list.push(name.as_bytes(), value.as_bytes());
    }
    list
}

fn ack() -> Vec<u8> {
    frame(SETTINGS, ACK, 0, b"")
}

/// Checks what a client reads of hyper's frames, in pieces of any size.
#[track_caller]
fn check(prepare: impl Fn(&mut Fed), frames: &[Vec<u8>], expected: &[&str]) {
    for piece in PIECES {
        let mut fed = Fed::new();
        prepare(&mut fed);
        fed.feed(frames, piece);
        assert_eq!(fed.read(&mut Decoder::new()), expected, "{piece}");
    }
}

#[test]
fn heads_and_trailers_are_ours() {
    let answers = |fed: &mut Fed| {
        fed.answer(1, 200, &[("Server", "weir"), ("x", "1")]);
        fed.seats.trail(1, list(&[("T", "2")]));
        fed.answer(3, 404, &[("server", "weir")]);
        fed.answer(5, 204, &[]);
    };
    let frames = [
        frame(HEADERS, END_HEADERS, 1, b"theirs"),
        frame(DATA, 0, 1, b"body"),
        frame(HEADERS, 0, 3, b"theirs"),
        frame(CONTINUATION, 0, 3, b"and"),
        frame(CONTINUATION, END_HEADERS, 3, b"more"),
        frame(HEADERS, WHOLE, 1, b""),
        frame(DATA, END_STREAM, 3, b""),
        frame(HEADERS, WHOLE, 5, b"theirs"),
    ];
    let expected = [
        "1 4 :status=200 server=weir x=1",
        "DATA 1 0 body",
        "3 4 :status=404 server=weir",
        "1 5 t=2",
        "DATA 3 1",
        "5 5 :status=204",
    ];
    check(answers, &frames, &expected);
    // Nobody has an answer for it.
    check(|_| {}, &[frame(HEADERS, WHOLE, 1, b"theirs")], &[r"RST_STREAM 1 0 \x00\x00\x00\x02"]);
}

#[test]
fn streams_are_over_with_their_last_frame() {
    for (end, is_over) in [
        (frame(DATA, END_STREAM, 1, b"x"), true),
        (frame(HEADERS, WHOLE, 1, b""), true),
        (frame(RST_STREAM, 0, 1, b"...."), true),
        (frame(DATA, 0, 1, b"x"), false),
        (frame(HEADERS, END_HEADERS, 1, b""), false),
        // The flag means another thing there.
        (frame(PING, ACK, 1, b"........"), false),
    ] {
        let mut fed = Fed::new();
        for stream in [3, 5] {
            fed.seats.close(stream);
        }
        fed.answer(1, 200, &[]);
        fed.feed(&[end], 1);
        assert_eq!(fed.seats.rest(), is_over, "{:?}", fed.took());
    }
}

#[test]
fn heads_are_cut_by_what_the_client_takes() {
    let large = "\u{1}".repeat(40_000);
    for (most, sizes) in [(None, vec![16_384, 16_384, 7_240]), (Some(17_000), vec![17_000, 17_000, 6_008])] {
        let mut fed = Fed::new();
        fed.outward.set(vec![], most);
        fed.answer(1, 200, &[("x", &large)]);
        fed.answer(3, 200, &[("y", "z")]);
        fed.feed(&[frame(HEADERS, WHOLE, 1, b""), frame(HEADERS, WHOLE, 3, b"")], 1);
        let frames = fed.took();
        let kinds = frames.iter().map(|frame| frame.split(' ').take(3).collect::<Vec<_>>().join(" "));
        assert_eq!(
            kinds.collect::<Vec<_>>(),
            ["HEADERS 1 1", "CONTINUATION 1 0", "CONTINUATION 1 4", "HEADERS 3 5"]
        );
        fed.answer(1, 200, &[("x", &large)]);
        fed.feed(&[frame(HEADERS, WHOLE, 1, b"")], 1);
        let mut bytes = &fed.outward.out[..];
        let mut got = vec![];
        while let Some(header) = Headers::default().next(&mut bytes) {
            got.push(header.length);
            bytes = &bytes[header.length..];
        }
        assert_eq!(got, sizes);
    }
}

#[test]
fn settings_and_windows_are_those_that_the_client_is_told() {
    let mut fed = Fed::new();
    fed.feed(&[frame(SETTINGS, 0, 0, &settings(&[(3, 7), (4, 1 << 20), (5, 16_384), (8, 1)]))], 1);
    let expected = settings(&[(3, 7), (4, WINDOW), (5, LARGEST), (8, 1)]);
    assert_eq!(fed.outward.out[..], frame(SETTINGS, 0, 0, &expected));
    fed.took();
    let frames = [
        frame(PING, ACK, 0, b"12345678"),
        frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x05"),
        frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\x05"),
    ];
    fed.feed(&frames, 1);
    let expected =
        ["PING 0 1 12345678", r"WINDOW_UPDATE 1 0 \x00\x00\x00\x05", r"WINDOW_UPDATE 0 0 \x00\x00\x00\x05"];
    assert_eq!(fed.took(), expected);
    // The client has been told so.
    assert_eq!([1, 3].map(|stream| fed.seats.receive(stream, 105, false)), [Ok(()); 2]);
    assert_eq!(fed.seats.exceeded(), [3]);
}

#[test]
fn settings_are_acknowledged_behind_the_bodies_before() {
    for piece in PIECES {
        let mut fed = Fed::new();
        fed.seats.give(1, 10);
        fed.outward.set(vec![0], None);
        fed.outward.set(vec![], None);
        fed.feed(&[ack(), frame(DATA, 0, 1, b"1234"), ack()], piece);
        assert_eq!(fed.took(), ["DATA 1 0 1234"]);
        // What hyper is given now is framed by the new ones.
        fed.seats.give(3, 7);
        fed.answer(5, 200, &[("x", "y")]);
        fed.feed(&[frame(HEADERS, END_HEADERS, 5, b""), frame(DATA, 0, 1, b"56789")], piece);
        assert!(fed.took()[1].starts_with("DATA 1"));
        fed.feed(&[frame(DATA, 0, 3, b"1")], piece);
        assert_eq!(fed.took(), ["DATA 3 0 1", "SETTINGS 0 1", "SETTINGS 0 1"]);
    }
    // Of a stream that is reset nothing goes before it.
    let mut fed = Fed::new();
    fed.seats.give(1, 10);
    fed.outward.set(vec![], None);
    fed.feed(&[ack()], 1);
    assert_eq!(fed.took(), [""; 0]);
    fed.seats.reset(1);
    fed.outward.acknowledge(&fed.seats);
    assert_eq!(fed.took(), ["SETTINGS 0 1"]);
    // Not amid a frame.
    let mut fed = Fed::new();
    fed.seats.give(1, 4);
    fed.outward.set(vec![], None);
    let data = frame(DATA, 0, 1, b"1234");
    fed.feed(&[ack(), data[..10].to_vec()], 1);
    fed.seats.reset(1);
    fed.outward.acknowledge(&fed.seats);
    assert_eq!(fed.outward.out.len(), 10);
    fed.feed(&[data[10..].to_vec()], 1);
    assert_eq!(fed.took(), ["DATA 1 0 1234", "SETTINGS 0 1"]);
}

#[test]
fn tables_are_those_of_settings_that_were_acknowledged() {
    let mut decoder = Decoder::new();
    let mut fed = Fed::new();
    let mut block_of = |fed: &mut Fed, stream| {
        fed.answer(stream, 200, &[("x", "y")]);
        fed.feed(&[frame(HEADERS, END_HEADERS, stream, b"")], 1);
        let frames = fed.outward.out.to_vec();
        assert_eq!(fed.read(&mut decoder).last().unwrap(), &format!("{stream} 4 :status=200 x=y"));
        let mut bytes = &frames[..];
        let mut block = vec![];
        while let Some(header) = Headers::default().next(&mut bytes) {
            block = bytes[..header.length].to_vec();
            bytes = &bytes[header.length..];
        }
        block
    };
    let kept = block_of(&mut fed, 1);
    assert_eq!(block_of(&mut fed, 3), b"\x88\xbe", "out of the table");
    // Settings that hyper has not yet heard of.
    fed.outward.set(vec![0, 4096], None);
    assert_eq!(block_of(&mut fed, 1), b"\x88\xbe");
    fed.feed(&[ack()], 1);
    let updated = [b"\x20\x3f\xe1\x1f", &kept[..]].concat();
    assert_eq!(block_of(&mut fed, 1), updated, "both sizes are told");
    fed.outward.set(vec![0], None);
    fed.feed(&[ack()], 1);
    assert_eq!(block_of(&mut fed, 1)[..2], *b"\x20\x88");
    assert_eq!(block_of(&mut fed, 1)[0], 0x88);
    // One after the other.
    fed.outward.set(vec![100], None);
    fed.outward.set(vec![0], None);
    fed.feed(&[ack()], 1);
    assert_eq!(block_of(&mut fed, 1)[..3], *b"\x3f\x45\x88");
    fed.feed(&[ack()], 1);
    assert_eq!(block_of(&mut fed, 1)[..2], *b"\x20\x88");
}

#[test]
fn the_end_is_told_once() {
    let of_hyper = frame(GOAWAY, 0, 0, b"\0\0\0\x01\0\0\0\0");
    let ours = r"GOAWAY 0 0 \x00\x00\x00\x03\x00\x00\x00\x01";
    for piece in PIECES {
        let mut fed = Fed::new();
        fed.outward.part(3, 1);
        fed.feed(&[of_hyper.clone(), frame(PING, ACK, 0, b"12345678")], piece);
        fed.outward.part(5, 0);
        assert_eq!(fed.took(), [ours, "PING 0 1 12345678"]);
        let mut fed = Fed::new();
        fed.feed(&[of_hyper.clone(), of_hyper.clone()], piece);
        fed.outward.part(5, 0);
        assert_eq!(fed.took(), [r"GOAWAY 0 0 \x00\x00\x00\x01\x00\x00\x00\x00"]);
    }
}

#[test]
fn what_is_said_between_has_its_place_between_frames() {
    let frames = [
        frame(HEADERS, 0, 1, b"the"),
        frame(CONTINUATION, END_HEADERS, 1, b"irs"),
        frame(DATA, 0, 1, b"body"),
        frame(SETTINGS, 0, 0, b"\0\x03\0\0\0\x07"),
        frame(RST_STREAM, 0, 3, b"\0\0\0\x08"),
    ];
    let bytes = frames.concat();
    // Where each of them ends.
    let ends: Vec<_> = frames
        .iter()
        .scan(0, |end, frame| {
            *end += frame.len();
            Some(*end)
        })
        .collect();
    for at in 0..=bytes.len() {
        let mut fed = Fed::new();
        fed.answer(1, 200, &[("x", "y")]);
        fed.feed(&[bytes[..at].to_vec()], 3);
        fed.outward.reset(5, 1);
        fed.outward.widen(1, 2);
        fed.outward.widen(1, 0);
        assert_eq!(fed.outward.hint(3, 103, list(&[("link", "</>")])), Some(9 + 4 + 3 + 2));
        fed.feed(&[bytes[at..].to_vec()], 3);
        let mut lines = fed.read(&mut Decoder::new());
        let place = lines.iter().position(|line| line.starts_with("RST_STREAM 5")).expect("a reset");
        let said: Vec<_> = lines.drain(place..place + 3).collect();
        assert_eq!(
            said,
            [
                r"RST_STREAM 5 0 \x00\x00\x00\x01",
                r"WINDOW_UPDATE 1 0 \x00\x00\x00\x02",
                "3 4 :status=103 link=</>"
            ]
        );
        let expected = [
            "1 4 :status=200 x=y",
            "DATA 1 0 body",
            r"SETTINGS 0 0 \x00\x03\x00\x00\x00\x07",
            r"RST_STREAM 3 0 \x00\x00\x00\x08",
        ];
        assert_eq!(lines, expected, "{at}");
        // At once, or behind the frame that goes on; HEADERS and CONTINUATION of hyper's are one of ours.
        let begun = ends.iter().filter(|end| **end < at).count() + usize::from(at > 0);
        let place_of = [0, 1, 1, 2, 3, 4];
        assert_eq!(place, place_of[begun], "{at}");
    }
}

#[test]
fn hints_are_bounded_and_nothing_else() {
    let mut fed = Fed::new();
    let large = "\u{1}".repeat(4000);
    let hint = |fed: &mut Fed| fed.outward.hint(1, 103, list(&[("x", &large)]));
    // Amid a frame they wait; the client has read nothing of those that went out either.
    fed.feed(&[b"\0\0\x08".to_vec()], 1);
    let taken = (0..10).filter(|_| hint(&mut fed).is_some()).count();
    assert_eq!(taken, 4);
    fed.feed(&[frame(PING, ACK, 0, b"12345678")[3..].to_vec()], 1);
    assert!(fed.outward.out.len() > 16_000);
    assert_eq!(hint(&mut fed), None);
    fed.outward.reset(1, 0);
    assert_eq!(fed.took().last().unwrap(), r"RST_STREAM 1 0 \x00\x00\x00\x00");
    assert!(hint(&mut fed).is_some(), "there is room again");
}

#[test]
fn what_hyper_sends_of_a_reset_stream_takes_room_of_all() {
    let mut fed = Fed::new();
    fed.seats.widen(1, 100_000);
    fed.seats.give(1, 65_535);
    assert_eq!(fed.seats.room(3), 0);
    fed.feed(&[frame(DATA, 0, 1, &[b'x'; 1000])], 100);
    assert_eq!(fed.seats.given(), 64_535);
    fed.seats.reset(1);
    assert_eq!((fed.seats.room(3), fed.seats.given()), (64_535, 0));
    fed.feed(&[frame(DATA, 0, 1, &[b'x'; 1000])], 100);
    assert_eq!(fed.seats.room(3), 63_535);
}

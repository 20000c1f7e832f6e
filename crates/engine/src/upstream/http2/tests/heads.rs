//! Blocks of fields.

use super::*;
use crate::http2::frame::{CONTINUATION, DATA, END_STREAM, PADDED, PRIORITIZED};

const LIMIT: usize = 256;
const WHOLE: u8 = END_HEADERS | END_STREAM;

/// What comes of a head, whole and in pieces.
#[track_caller]
fn check(block: &[u8], expected: &str) {
    check_frames(&[frame(HEADERS, END_HEADERS, 1, block)], expected);
    for size in [1, 2, 7] {
        let mut frames: Vec<_> = block.chunks(size).map(|piece| frame(CONTINUATION, 0, 1, piece)).collect();
        frames.push(frame(CONTINUATION, END_HEADERS, 1, &[]));
        frames[0][3] = HEADERS;
        if frames.len() * 9 + block.len() <= LIMIT {
            check_frames(&frames, expected);
        }
    }
}

#[track_caller]
fn check_frames(list: &[Vec<u8>], expected: &str) {
    for size in [usize::MAX, 3, 1] {
        let mut frames = Frames::new(&[1, 3], LIMIT);
        for piece in list.concat().chunks(size) {
            frames.comes(piece);
        }
        assert_eq!(frames.tells(1), expected, "in pieces of {size}");
        assert_eq!((frames.tells(3).as_str(), frames.inward.fault), ("", None));
    }
}

#[track_caller]
fn check_fields(fields: &[(&[u8], &[u8])], expected: &str) {
    let fields = fields.iter().map(|(name, value)| field(name, value));
    check(&fields.collect::<Vec<_>>().concat(), expected);
}

#[track_caller]
fn check_bad(octets: &[u8], message: &str) {
    check(&[OK, octets].concat(), &format!("{message} | upstream sent invalid header"));
}

#[test]
fn heads() {
    check(OK, "200");
    check_fields(&[(b":status", b"299"), (b"b", b"1"), (b"a", b""), (b"b", b" 2\t")], "299 b=1 a= b= 2\t");
}

#[test]
fn forms_of_fields() {
    let forms: [&[u8]; 5] = [
        &[0x40 | 33, 1, b'x'],
        &[0x1f, 18, 1, b'x'],
        &[0x0f, 46, 1, b'y'],
        &[0x90],
        &[0, 0x81, 0x1f, 0x81, 0x1f],
    ];
    check(
        &[OK, &forms.concat()].concat(),
        "200 date=x date=x www-authenticate=y accept-encoding=gzip, deflate a=a",
    );
    // A code may be padded by whole octets.
    check(&[OK, &[0, 1, b'a', 0x83, 0x1f, 0xff, 0xff]].concat(), "200 a=a");
    check(&[&[0x20, 0x20], OK, &[0x20]].concat(), "200");
}

#[test]
fn what_has_no_place_in_a_block() {
    for index in [0, 62, 63, 126, 127] {
        check_bad(&[0x80 | index], &format!("upstream sent invalid http2 table index: {index}"));
    }
    check_bad(&[0x40 | 62, 1, b'x'], "upstream sent invalid http2 table index: 62");
    check_bad(&[0x0f, 47, 1, b'x'], "upstream sent invalid http2 table index: 62");
    check_bad(&[0x1f, 0x80, 0], "upstream sent http2 table index with continuation flag");
    check_bad(&[0x3f, 1], "upstream sent invalid http2 dynamic table size update: 31");
    check_bad(&[0, 0x80, 1, b'x'], "upstream sent zero http2 header name length");
    check_bad(&[0, 0x7f, 0x80, 0x80, 0x80, 0], "upstream sent too large http2 header name length");
    check_bad(&[0, 1, b'a', 0x7f, 0x80, 0x80, 0x80], "upstream sent too large http2 header value length");
    check_bad(&[0, 0x7f, 0x80, 0x01, b'x'], "upstream sent too large http2 header name length: 255");
    check_bad(&[0, 1, b'a', 0x80 | 0x7f, 0x40, 0], "upstream sent too large http2 header value length: 305");
    check_bad(&[0, 0x81, 0], "upstream sent invalid encoded header");
    check_bad(&[0, 1, b'a', 0x84, 0xff, 0xff, 0xff, 0xff], "upstream sent invalid encoded header");
    for cut in [&[0][..], &[0, 2, b'a'], &[0, 1, b'a'], &[0, 1, b'a', 0x7f], &[0, 1, b'a', 1], &[0x0f]] {
        check_bad(cut, "upstream sent truncated http2 header");
    }
}

#[test]
fn names_and_values() {
    #[track_caller]
    fn check_name(name: &[u8], is_one: bool) {
        let shown = String::from_utf8_lossy(name);
        match is_one {
            true => check_fields(&[(b":status", b"200"), (name, b"v")], &format!("200 {shown}=v")),
            false => {
                check_bad(&field(name, b"v"), &format!("upstream sent invalid header: \"{shown}: v\""));
            }
        }
    }
    for name in ["a-b_c.d", "\"(),/;<=>?@[\\]{}", "!#$%&'*+^`|~", "\u{e4}", "9"] {
        check_name(name.as_bytes(), true);
    }
    for name in ["A", "a b", "a\tb", "a\u{0}", "a\u{7f}", "a:b", "::", "a\r", "a\nb"] {
        check_name(name.as_bytes(), false);
    }
    // A name that is none but for its padding.
    check_bad(&[0, 0x81, 0xff, 1, b'v'], "upstream sent invalid header: \": v\"");
    for value in ["\u{1}\u{7f}\u{e4}\t\"", " a "] {
        check_fields(&[(b":status", b"200"), (b"a", value.as_bytes())], &format!("200 a={value}"));
    }
    for value in ["\r", "a\n", "\u{0}a"] {
        check_bad(&field(b"a", value.as_bytes()), &format!("upstream sent invalid header: \"a: {value}\""));
    }
}

#[test]
fn statuses() {
    #[track_caller]
    fn check_status(status: &[u8], expected: &str) {
        check_fields(&[(b":status", status)], expected);
    }
    check_status(b"999", "999");
    for status in ["20", "2000", "2x0", "+20", " 20", ""] {
        check_status(status.as_bytes(), &format!("upstream sent invalid :status \"{status}\""));
    }
    for status in ["000", "100", "101", "102", "104", "199"] {
        check_status(status.as_bytes(), &format!("upstream sent unexpected :status \"{status}\""));
    }
    check(&[], "upstream sent no :status header");
    check_fields(&[(b"a", b"b"), (b":status", b"200")], "upstream sent no :status header");
    check(&[OK, OK].concat(), "upstream sent duplicate :status header");
    check(&[OK, &[0x82]].concat(), "upstream sent invalid header \":method: GET\"");
    check_fields(&[(b":status", b"200"), (b":", b"b")], "upstream sent invalid header \":: b\"");
}

#[test]
fn heads_that_others_follow() {
    let hint = |flags: u8| frame(HEADERS, flags, 1, &[field(b":status", b"103"), field(b"a", b"b")].concat());
    let answer = frame(HEADERS, END_HEADERS, 1, OK);
    check_frames(&[hint(END_HEADERS), hint(END_HEADERS), answer.clone()], "103 a=b | 103 a=b | 200");
    check_frames(&[hint(WHOLE), answer], "upstream prematurely closed stream");
    let mut frames = Frames::new(&[1], LIMIT);
    for _ in 0..100_000 {
        frames.comes(&hint(END_HEADERS));
    }
    assert_eq!(frames.tells(1).matches("103").count(), LIMIT / (16 + 2) + 1);
    assert_eq!(frames.hears(), b"", "h2 has nothing to do with them");
}

#[test]
fn a_head_fits_a_buffer() {
    // Beside the value there are 9 octets of the frame, one of the status, and 5 of the field.
    let with = |n: usize| [OK, &field(b"a", &b"b".repeat(n))].concat();
    let value = |n: usize| "b".repeat(n);
    let most = LIMIT - 9 - 1 - 5;
    check_frames(&[frame(HEADERS, END_HEADERS, 1, &with(most))], &format!("200 a={}", value(most)));
    check_frames(&[frame(HEADERS, END_HEADERS, 1, &with(most + 1))], "upstream sent too big header");
    let padded = [&[1][..], &with(most - 2), &[0]].concat();
    check_frames(&[frame(HEADERS, END_HEADERS | PADDED, 1, &padded)], &format!("200 a={}", value(most - 2)));
    let padded = [&[1][..], &with(most - 1), &[0]].concat();
    check_frames(&[frame(HEADERS, END_HEADERS | PADDED, 1, &padded)], "upstream sent too big header");
    check_frames(
        &[frame(HEADERS, 0, 1, OK), [&frame(CONTINUATION, 0, 1, &[])[..]; 40].concat()],
        "upstream sent too big header",
    );
    // Indexed fields are short, but not what they stand for.
    check_frames(
        &[frame(HEADERS, END_HEADERS, 1, &[OK, &[0x90; 10]].concat())],
        "upstream sent too large http2 header | upstream sent invalid header",
    );
}

#[test]
fn padding_and_priority() {
    let block = [OK, &field(b"a", b"b")].concat();
    let padded = [&[3][..], &block, &[0; 3]].concat();
    check_frames(&[frame(HEADERS, END_HEADERS | PADDED, 1, &padded)], "200 a=b");
    let both = [&[2, 0, 0, 0, 1, 9][..], &block, &[0; 2]].concat();
    check_frames(&[frame(HEADERS, END_HEADERS | PADDED | PRIORITIZED, 1, &both)], "200 a=b");
    check_frames(
        &[frame(HEADERS, END_HEADERS | PADDED, 1, &[3, 0x88, 0])],
        "upstream sent http2 frame with too long padding: 3 in frame 2 | upstream sent invalid header",
    );
    check_frames(
        &[frame(HEADERS, END_HEADERS | PRIORITIZED, 1, &[0; 4])],
        "upstream sent headers frame with invalid length: 4 | upstream sent invalid header",
    );
}

#[test]
fn what_is_behind_a_body() {
    let behind = |flags: u8, block: &[u8]| {
        [frame(HEADERS, END_HEADERS, 1, OK), frame(DATA, 0, 1, b"x"), frame(HEADERS, flags, 1, block)]
    };
    let sum = field(b"x-sum", b"1");
    check_frames(&behind(WHOLE, &sum), "200 | end x-sum=1");
    check_frames(&behind(WHOLE, b""), "200 | end");
    check_frames(&behind(END_HEADERS, &sum), "200 | upstream sent trailer without end stream flag");
    check_frames(&behind(WHOLE, OK), "200 | upstream sent invalid trailer \":status: 200\"");
    for (bad, message) in [
        (field(b"X", b"y"), "upstream sent invalid header: \"X: y\""),
        (vec![0, 1], "upstream sent truncated http2 header"),
        (field(b"x", &[b'y'; LIMIT]), "upstream sent too large http2 header"),
    ] {
        check_frames(&behind(WHOLE, &bad), &format!("200 | {message} | upstream sent invalid trailer"));
    }
    let short = [frame(HEADERS, END_HEADERS, 1, OK), frame(HEADERS, WHOLE | PRIORITIZED, 1, b"1")];
    let message = "upstream sent headers frame with invalid length: 1";
    check_frames(&short, &format!("200 | {message} | upstream sent invalid trailer"));
}

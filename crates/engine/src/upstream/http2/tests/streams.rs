//! Frames of streams and of the connection.

use super::*;
use crate::http2::frame::{
    ACK, CONTINUATION, DATA, END_STREAM, GOAWAY, PADDED, PING, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS,
    WINDOW_UPDATE,
};
use crate::http2::hpack::{Decoder, Fields, Limits};

const LIMIT: usize = 4096;
const WHOLE: u8 = END_HEADERS | END_STREAM;

/// What h2 hears of frames, and what is told of the stream, while another's goes on.
#[track_caller]
fn check(list: &[Vec<u8>], heard: &[Vec<u8>], told: &str) {
    for size in [usize::MAX, 5, 1] {
        let mut frames = Frames::new(&[1, 3], LIMIT);
        frames.comes(&frame(HEADERS, END_HEADERS, 3, OK));
        frames.comes(&frame(DATA, 0, 3, b"begun"));
        frames.hears();
        for piece in list.concat().chunks(size) {
            frames.comes(piece);
        }
        assert_eq!(frames.hears(), heard.concat(), "in pieces of {size}");
        assert_eq!((frames.tells(1).as_str(), &frames.inward.fault), (told, &None));
        let last = frame(DATA, END_STREAM, 3, b"done");
        frames.comes(&last);
        assert_eq!((frames.hears(), frames.tells(3).as_str()), (last, "200"));
    }
}

/// What the connection ends for, with all of its streams.
#[track_caller]
fn check_fault(list: &[Vec<u8>], fault: &str) {
    let mut frames = Frames::new(&[1, 3], LIMIT);
    frames.comes(&list.concat());
    assert_eq!(frames.inward.fault.as_deref(), Some(fault));
    frames.hears();
    frames.comes(&frame(HEADERS, END_HEADERS, 1, OK));
    assert_eq!((frames.hears(), frames.tells(1).as_str()), (vec![], ""));
}

fn head() -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, OK)
}

#[test]
fn h2_gets_a_head_of_one_field() {
    let block = [OK, &field(b"a", b"b")].concat();
    check(&[frame(HEADERS, END_HEADERS, 1, &block)], &[head()], "200 a=b");
    check(&[frame(HEADERS, WHOLE, 1, &block)], &[frame(HEADERS, WHOLE, 1, OK)], "200 a=b");
    let status = [field(b":status", b"404"), field(b"content-length", b"4")].concat();
    let data = frame(DATA, 0, 1, b"text");
    let end = frame(HEADERS, WHOLE, 1, &field(b"x", b"y"));
    check(
        &[frame(HEADERS, END_HEADERS, 1, &status), data.clone(), end],
        &[head(), data, frame(HEADERS, WHOLE, 1, &[])],
        "404 content-length=4 | end x=y",
    );
}

#[test]
fn what_is_wrong_with_a_stream_is_its_own_fault() {
    let malformed = |message: &str| format!("200 | {message}");
    let reset = frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    // H2 takes it for answered, so that nothing that follows is wrong.
    let bad = frame(HEADERS, END_HEADERS, 1, &[0x80]);
    let index = "upstream sent invalid http2 table index: 0 | upstream sent invalid header";
    check(std::slice::from_ref(&bad), &[head()], index);
    let data = frame(DATA, 0, 1, b"x");
    check(&[bad.clone(), data.clone(), bad, reset.clone()], &[head(), data.clone(), reset.clone()], index);
    check(&[reset.clone(), data.clone(), head(), data.clone()], &[reset], "");
    check(&[data.clone(), head()], &[head(), data.clone()], "upstream sent unexpected http2 frame: 0");
    let goes_on = frame(CONTINUATION, END_HEADERS, 1, OK);
    check(std::slice::from_ref(&goes_on), &[head()], "upstream sent unexpected http2 frame: 9");
    check(&[head(), goes_on], &[head()], &malformed("upstream sent unexpected http2 frame: 9"));
    let begun = frame(HEADERS, 0, 1, OK);
    let ping = frame(PING, 0, 0, &[7; 8]);
    check(&[begun.clone(), ping.clone()], &[head(), ping], "upstream sent unexpected http2 frame: 6");
    let other = frame(CONTINUATION, END_HEADERS, 3, OK);
    let mut frames = Frames::new(&[1, 3], LIMIT);
    frames.comes(&[begun, other].concat());
    assert_eq!(frames.tells(1), "upstream sent frame for unknown stream 3");
    assert_eq!(frames.tells(3), "upstream sent unexpected http2 frame: 9");
    let large = frame(DATA, END_STREAM, 1, &[b'x'; 16_385]);
    check(&[head(), large.clone()], &[head()], &malformed("upstream sent too large http2 frame: 16385"));
    let padded = |length: u8| frame(DATA, PADDED, 1, &[length, 1, 0, 0]);
    check(&[head(), padded(3)], &[head(), padded(3)], "200");
    let message = "upstream sent http2 frame with too long padding: 4 in frame 3";
    check(&[head(), padded(4)], &[head()], &malformed(message));
    let empty = frame(DATA, PADDED, 1, &[]);
    check(&[head(), empty], &[head()], &malformed("upstream sent too short http2 frame"));
    for (kind, name) in [(RST_STREAM, "rst stream"), (WINDOW_UPDATE, "window update")] {
        let message = format!("upstream sent {name} frame with invalid length: 3");
        check(&[head(), frame(kind, 0, 1, &[1; 3])], &[head()], &malformed(&message));
    }
    for zero in [[0; 4], [0x80, 0, 0, 0]] {
        let window = frame(WINDOW_UPDATE, 0, 1, &zero);
        check(&[head(), window], &[head()], &malformed("upstream sent zero window update"));
    }
    let push = frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82]);
    check(&[push], &[head()], "upstream sent unexpected push promise frame");
    for nothing in [frame(PRIORITY, 0, 1, &[0; 4]), frame(0xbe, 0xff, 1, b"x")] {
        check(&[nothing, head()], &[head()], "200");
    }
}

#[test]
fn what_is_wrong_with_all_of_them_ends_the_connection() {
    let unknown = "upstream sent frame for unknown stream";
    for stream in [0, 2, 5] {
        check_fault(&[frame(HEADERS, END_HEADERS, stream, OK)], &format!("{unknown} {stream}"));
        let data = format!("upstream sent data frame for unknown stream {stream}");
        check_fault(&[frame(DATA, 0, stream, b"x")], &data);
        check_fault(&[frame(RST_STREAM, 0, stream, &[0; 4])], &format!("{unknown} {stream}"));
    }
    check_fault(&[frame(WINDOW_UPDATE, 0, 5, &[1; 4])], &format!("{unknown} 5"));
    check_fault(&[frame(GOAWAY, 0, 0, &[0; 7])], "upstream sent goaway frame with invalid length: 7");
    check_fault(&[frame(GOAWAY, 0, 7, &[0; 8])], "upstream sent goaway frame with non-zero stream id: 7");
    check_fault(&[frame(PING, 0, 0, &[0; 7])], "upstream sent ping frame with invalid length: 7");
    check_fault(&[frame(SETTINGS, 0, 0, &[0; 7])], "upstream sent settings frame with invalid length: 7");
    check_fault(
        &[frame(SETTINGS, ACK, 0, &[0; 6])],
        "upstream sent settings frame with ack flag and non-zero length: 6",
    );
    check_fault(
        &[frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0])],
        "upstream sent settings frame with too large initial window size: 2147483648",
    );
    check_fault(&[frame(WINDOW_UPDATE, 0, 0, &[0; 4])], "upstream sent zero window update");
    check_fault(&[frame(0xbe, 0, 0, &[0; 16_385])], "upstream sent too large http2 frame: 16385");
}

#[test]
fn a_stream_that_was_given_up_is_nobodys() {
    let mut frames = Frames::new(&[1, 3], LIMIT);
    frames.seats.leave(1);
    let all = [
        frame(HEADERS, 0, 1, &[0x80]),
        frame(CONTINUATION, WHOLE, 1, &[0x80]),
        frame(DATA, PADDED, 1, &[9]),
        frame(DATA, 0, 1, b"x"),
        frame(RST_STREAM, 0, 1, &[0]),
        frame(CONTINUATION, 0, 1, &[0]),
        frame(HEADERS, WHOLE, 3, OK),
    ];
    frames.comes(&all.concat());
    let heard = [head(), frame(DATA, 0, 1, b"x"), frame(HEADERS, WHOLE, 3, OK)];
    assert_eq!((frames.hears(), frames.inward.fault), (heard.concat(), None));
    assert_eq!(frames.seats.take_answer(3).map(|(status, _)| status), Some(200));
}

#[test]
fn what_comes_at_once_behind_the_end() {
    let end = frame(DATA, END_STREAM, 1, b"x");
    let reset = |code: u8| frame(RST_STREAM, 0, 1, &[0, 0, 0, code]);
    let closed = "200 | upstream sent frame for closed stream 1";
    #[track_caller]
    fn check(behind: &[Vec<u8>], at_once: &str, dropped: bool) {
        for (later, expected) in [(false, at_once), (true, "200")] {
            let mut frames = Frames::new(&[1, 3], LIMIT);
            let begun = [head(), frame(DATA, END_STREAM, 1, b"x")].concat();
            match later {
                false => frames.comes(&[&begun[..], &behind.concat()].concat()),
                true => [&begun[..], &behind.concat()].iter().for_each(|bytes| frames.comes(bytes)),
            }
            let heard = if dropped { begun } else { [&begun[..], &behind.concat()].concat() };
            assert_eq!(frames.hears(), heard);
            assert_eq!((frames.tells(1).as_str(), &frames.inward.fault), (expected, &None));
        }
    }
    check(&[reset(0)], "200", false);
    check(&[reset(8)], "200 | upstream rejected request with error 8", false);
    check(&[reset(0), reset(0)], closed, false);
    check(&[frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])], "200", false);
    check(&[end], closed, true);
    check(&[head()], closed, true);
    check(&[frame(PRIORITY, 0, 1, &[0; 5])], closed, true);
}

#[test]
fn settings_are_for_h2_where_they_are_of_streams() {
    let setting = |id: u8, value: u8| vec![0, id, 0, 0, 0, value];
    let all = [setting(1, 0), setting(2, 1), setting(3, 7), setting(4, 9), setting(5, 1), setting(6, 1)];
    let mut frames = Frames::new(&[], LIMIT);
    frames.comes(&frame(SETTINGS, 0, 0, &all.concat()));
    assert_eq!(frames.hears(), frame(SETTINGS, 0, 0, &[setting(3, 7), setting(4, 9)].concat()));
    frames.comes(&frame(SETTINGS, 0, 0, &[]));
    assert_eq!(frames.hears(), frame(SETTINGS, 0, 0, &[]));
}

/// A request as the peer reads it.
fn read(decoder: &mut Decoder, block: &[u8]) -> String {
    let mut fields = Fields::default();
    let mut limits = Limits { field: 1 << 20, list: 1 << 20 };
    assert_eq!(decoder.decode(block, false, &mut limits, &mut fields), Ok(block.len()));
    let text = String::from_utf8_lossy;
    fields.iter().map(|(name, value)| format!("{}={}\n", text(name), text(value))).collect()
}

#[test]
fn requests_are_sent_as_they_are() {
    let mut frames = Frames::new(&[], LIMIT);
    let mut head = RequestHead::new(b"m/x".into(), b"<a b>#\xff".into(), b"a%b".into());
    for (name, value) in [("b", "1"), ("A", "\u{1}"), ("Connection", "b"), ("b", " 2 "), ("x y", "")] {
        head.push(name.as_bytes(), value.as_bytes());
    }
    frames.asks(1, head, LIMIT);
    let sent = frames.sends();
    assert_eq!(
        sent[..9],
        Header { length: sent.len() - 9, kind: HEADERS, flags: END_HEADERS, stream: 1 }.bytes()
    );
    let lines = [
        ":method=m/x",
        ":scheme=http",
        ":path=<a b>#\u{fffd}",
        ":authority=a%b",
        "b=1",
        "a=\u{1}",
        "b= 2 ",
        "x y=",
        "",
    ];
    assert_eq!(read(&mut Decoder::new(), &sent[9..]), lines.join("\n"));
}

#[test]
fn large_requests_go_in_as_many_frames_as_it_takes() {
    let mut frames = Frames::new(&[], LIMIT);
    let mut head = RequestHead::new(b"GET".into(), b"/".into(), b"a".into());
    head.push(b"x", &[0xff; 40_000]);
    let value = head.fields().last().map(|(_, value)| value.to_vec()).expect("a field");
    frames.asks(1, head, LIMIT);
    let sent = frames.sends();
    let (mut rest, mut block, mut kinds) = (&sent[..], vec![], vec![]);
    while let Some((header, behind)) = rest.split_first_chunk::<9>() {
        let [_, a, b, kind, flags, _, _, _, stream] = *header;
        let (payload, behind) = behind.split_at(usize::from(u16::from_be_bytes([a, b])));
        kinds.push((kind, flags, stream, payload.len() <= 16_384));
        block.extend_from_slice(payload);
        rest = behind;
    }
    assert_eq!(kinds, [(1, 0, 1, true), (9, 0, 1, true), (9, 4, 1, true)]);
    assert!(block.ends_with(&value));
}

#[test]
fn the_table_has_the_size_that_the_peer_says() {
    let mut frames = Frames::new(&[], LIMIT);
    let mut decoder = Decoder::new();
    let mut ask = |frames: &mut Frames, stream: u32| {
        let mut head = RequestHead::new(b"GET".into(), b"/".into(), b"a".into());
        head.push(b"x-name", b"a value");
        head.push(b"authorization", b"secret");
        frames.asks(stream, head, LIMIT);
        let sent = frames.sends();
        assert!(read(&mut decoder, &sent[9..]).ends_with("x-name=a value\nauthorization=secret\n"));
        sent.len()
    };
    let first = ask(&mut frames, 1);
    // All but what tells who somebody is comes from the table.
    assert_eq!(ask(&mut frames, 3), 9 + 5 + 2 + 5);
    frames.comes(&frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]));
    assert_eq!(ask(&mut frames, 5), 9 + 5 + 2 + 5);
    // From here on there is none, which the block begins with.
    frames.says(&frame(SETTINGS, ACK, 0, &[]));
    frames.sends();
    assert_eq!(ask(&mut frames, 7), first + 1);
    assert_eq!(ask(&mut frames, 9), first);
}

#[test]
fn seats_of_requests_that_are_never_sent_are_forgotten() {
    let mut frames = Frames::new(&[], LIMIT);
    let head = || RequestHead::new(b"GET".into(), b"/".into(), b"a".into());
    for stream in [1, 3, 5] {
        frames.seats.begin(stream, Rc::new(head()), LIMIT);
    }
    frames.seats.leave(1);
    // An answer to what was not asked.
    let mut early = Frames::new(&[], LIMIT);
    early.seats.begin(1, Rc::new(head()), LIMIT);
    early.comes(&frame(HEADERS, END_HEADERS, 1, OK));
    assert_eq!(early.inward.fault.as_deref(), Some("upstream sent frame for unknown stream 1"));
    // H2 sends one that was left, if it had begun to.
    frames.says(&frame(HEADERS, WHOLE, 1, b""));
    assert!(!frames.sends().is_empty());
    assert_eq!(frames.seats.len(), 2);
    frames.seats.leave(3);
    frames.says(&frame(HEADERS, WHOLE, 5, b""));
    assert_eq!(frames.seats.len(), 1);
    frames.seats.leave(5);
    assert_eq!(frames.seats.len(), 0);
}

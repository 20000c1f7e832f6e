//! Whatever a peer sends in whatever pieces, h2 gets whole frames that it takes for right, and no more is kept than may be.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::http2::frame::{
    CONTINUATION, DATA, END_STREAM, GOAWAY, PADDED, PAYLOAD, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};

const LIMIT: usize = 200;

/// A stream as h2 has it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Asked,
    Answered,
    Ended,
}

/// What h2 has heard.
#[derive(Default)]
struct H2 {
    bytes: Vec<u8>,
    streams: BTreeMap<u32, State>,
}

impl H2 {
    fn hear(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        while let Some(&[a, b, c, kind, flags, d, e, f, g]) = self.bytes.first_chunk() {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            let stream = u32::from_be_bytes([d, e, f, g]);
            assert!(length <= PAYLOAD, "a frame of {length} octets");
            let Some(payload) = self.bytes.get(9..9 + length).map(<[u8]>::to_vec) else { return };
            self.bytes.drain(..9 + length);
            self.judge(kind, flags, stream, &payload);
        }
    }

    fn judge(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        // Those of streams that were given up it passes over.
        let state = self.streams.get_mut(&stream);
        match (kind, state) {
            (HEADERS, None) => assert!(stream % 2 == 1 && payload == OK),
            (HEADERS, Some(state)) => {
                let expected = match state {
                    State::Asked => OK,
                    State::Answered => &[],
                    State::Ended => panic!("HEADERS behind the end of {stream}"),
                };
                assert_eq!((payload, flags & END_HEADERS), (expected, END_HEADERS));
                assert!(*state == State::Asked || flags & END_STREAM != 0, "fields within a body");
                *state = if flags & END_STREAM != 0 { State::Ended } else { State::Answered };
            }
            (DATA, state) => {
                let padding = if flags & PADDED != 0 { usize::from(payload[0]) + 1 } else { 0 };
                assert!(padding <= payload.len());
                if let Some(state) = state {
                    assert_eq!(*state, State::Answered, "DATA of {stream}");
                    *state = if flags & END_STREAM != 0 { State::Ended } else { State::Answered };
                }
            }
            (RST_STREAM, state) => {
                assert!(stream > 0 && payload.len() == 4);
                state.into_iter().for_each(|state| *state = State::Ended);
            }
            (WINDOW_UPDATE, _) => assert!(payload.len() == 4 && payload != [0; 4]),
            (SETTINGS, _) => assert!(stream == 0 && payload.len().is_multiple_of(6)),
            (PING, _) => assert!(stream == 0 && payload.len() == 8),
            (GOAWAY, _) => assert!(stream == 0 && payload.len() >= 8),
            (kind, _) => panic!("a frame of kind {kind}"),
        }
    }
}

/// A frame, or what is almost one: kinds, flags and payloads that mean something more often than others.
fn frames() -> impl Strategy<Value = Vec<(u8, u8, u32, Vec<u8>)>> {
    let kind =
        prop_oneof![Just(DATA), Just(HEADERS), Just(HEADERS), Just(CONTINUATION), Just(RST_STREAM), 0..12u8];
    let flags = prop_oneof![Just(END_HEADERS), Just(END_HEADERS | END_STREAM), Just(0), any::<u8>()];
    let stream = prop_oneof![Just(1), Just(3), Just(3), Just(5), 0..8u32];
    let field = prop_oneof![
        Just(OK.to_vec()),
        Just(vec![0, 1, b'a', 1, b'b']),
        Just([field(b":status", b"103"), field(b"a", b"b")].concat()),
        vec(any::<u8>(), 0..12),
    ];
    let payload = vec(field, 0..4).prop_map(|fields| fields.concat());
    vec((kind, flags, stream, payload), 1..40)
}

proptest! {
    #[test]
    fn whatever_comes_h2_has_nothing_to_say(list in frames(), piece in 1..64usize, left in 0..80usize) {
        let mut frames = Frames::new(&[1, 3, 5], LIMIT);
        let mut h2 = H2::default();
        h2.streams.extend([1, 3, 5].map(|stream| (stream, State::Asked)));
        let bytes = list.iter().map(|(kind, flags, stream, payload)| frame(*kind, *flags, *stream, payload));
        for (turn, bytes) in bytes.collect::<Vec<_>>().concat().chunks(piece).enumerate() {
            if turn == left {
                frames.seats.leave(5);
                h2.streams.remove(&5);
            }
            frames.comes(bytes);
            h2.hear(&frames.hears());
            prop_assert!(frames.inward.kept() <= 3 * LIMIT, "{} bytes are kept", frames.inward.kept());
        }
    }
}

//! The chunked decoder must not panic, must get on, and must find the same body however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_engine::http1::body::{Decoder, Piece};

fn decode(wire: &[u8], step: usize) -> (Vec<u8>, Option<bool>) {
    let mut decoder = Decoder::new();
    let mut body = Vec::new();
    for piece in wire.chunks(step) {
        let mut rest = piece;
        while !rest.is_empty() && !decoder.is_over() {
            let Ok((taken, what)) = decoder.next(rest) else { return (body, None) };
            assert!(taken > 0);
            if let Piece::Data(range) = what {
                body.extend_from_slice(&rest[range]);
            }
            rest = &rest[taken..];
        }
    }
    (body, Some(decoder.is_over()))
}

fuzz_target!(|input: (u8, &[u8])| {
    let (step, wire) = input;
    assert_eq!(decode(wire, usize::from(step).max(1)), decode(wire, wire.len().max(1)));
});

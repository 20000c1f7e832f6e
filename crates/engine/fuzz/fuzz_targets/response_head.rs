//! An answer's head must not panic, and must mean the same however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_engine::http1::response::{Head, Parsed, Trailers};

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (limit, step, wire) = input;
    let limit = usize::from(limit) * 16 + 1;
    let mut whole = Head::new();
    let expected = whole.parse(wire, limit);
    let mut head = Head::new();
    let mut before = 0;
    for piece in wire.chunks(usize::from(step).max(1)) {
        match head.parse(piece, limit) {
            Ok(Parsed::Partial) => before += piece.len(),
            Ok(Parsed::Complete(taken)) => {
                assert_eq!(expected, Ok(Parsed::Complete(before + taken)));
                assert_eq!((head.status_line(), head.fields()), (whole.status_line(), whole.fields()));
                break;
            }
            other => {
                assert_eq!(expected, other);
                break;
            }
        }
    }
    let _ = (head.framing(false), head.warnings().count());
    let _ = Trailers::default().parse(wire, limit);
});

//! A request head must not panic, and must mean the same however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_engine::http1::request::{Head, Limits, Parsed};

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (options, step, wire) = input;
    let limits = Limits {
        header_buffer: if options & 1 == 0 { 1024 } else { 16 },
        large_buffer: if options & 2 == 0 { 8192 } else { 32 },
        merge_slashes: options & 4 == 0,
        ignore_invalid_headers: options & 8 == 0,
        underscores_in_headers: options & 16 == 0,
        ..Limits::default()
    };
    let mut whole = Head::new();
    let expected = whole.parse(wire, &limits);
    let mut head = Head::new();
    let mut before = 0;
    for piece in wire.chunks(usize::from(step).max(1)) {
        match head.parse(piece, &limits) {
            Ok(Parsed::Partial) => before += piece.len(),
            Ok(Parsed::Complete(taken)) => {
                assert_eq!(expected, Ok(Parsed::Complete(before + taken)));
                break;
            }
            Err(reject) => {
                assert_eq!(expected, Err(reject));
                break;
            }
        }
    }
    assert_eq!(
        (head.path(), head.args(), head.host(), head.fields()),
        (whole.path(), whole.args(), whole.host(), whole.fields()),
    );
});

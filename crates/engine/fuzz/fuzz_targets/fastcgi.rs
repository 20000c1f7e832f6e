//! An application's records must not panic, and must say the same however they are cut; so must the head in its output.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_engine::http1::response::{Head, Parsed};
use weir_engine::upstream::fastcgi::{Records, parse};

const LIMIT: usize = 4096;

/// What the application writes, how its records ended, and what the log has.
fn output(wire: &[u8], step: usize) -> (Vec<u8>, bool, Option<String>, Vec<u8>) {
    let (mut records, mut output) = (Records::default(), Vec::new());
    for piece in wire.chunks(step) {
        let mut piece = piece.to_vec();
        let n = records.take(&mut piece);
        assert!(n <= piece.len());
        output.extend_from_slice(&piece[..n]);
    }
    let fault = records.fault().map(ToString::to_string);
    (output, records.has_ended(), fault, records.stderr().to_vec())
}

/// The status of the head, and where it ends.
fn status(output: &[u8], step: usize) -> Option<(u16, usize)> {
    let (mut head, mut taken) = (Head::new(), 0);
    for piece in output.chunks(step) {
        match parse(&mut head, piece, LIMIT) {
            Ok(Parsed::Partial) => taken += piece.len(),
            Ok(Parsed::Complete(n)) => return Some((head.status(), taken + n)),
            Ok(Parsed::Headless) => panic!("a status line was given"),
            Err(_) => return None,
        }
    }
    None
}

fuzz_target!(|input: (u8, &[u8])| {
    let (step, wire) = (usize::from(input.0).max(1), input.1);
    let whole = output(wire, wire.len().max(1));
    assert_eq!(output(wire, step), whole);
    for text in [&whole.0[..], wire] {
        assert_eq!(status(text, step), status(text, text.len().max(1)));
    }
});

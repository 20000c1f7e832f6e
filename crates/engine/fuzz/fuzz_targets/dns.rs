//! An answer of a name server must not panic, and is one of the question that was put.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_engine::resolver::wire::{Answer, Kind, Query, answer};

fuzz_target!(|input: (bool, u8, &[u8], &[u8])| {
    let (tcp, kind, name, rest) = input;
    let kind = [Kind::A, Kind::Aaaa, Kind::Srv][usize::from(kind) % 3];
    let Some(query) = Query::new(7, name, kind) else { return };
    let _ = answer(rest, &query, tcp);
    // The question as it was sent, with flags and counts of the input, is followed by what may be records.
    let mut bytes = query.bytes.clone();
    let Some((head, records)) = rest.split_at_checked(10) else { return };
    bytes[2..12].copy_from_slice(head);
    bytes.extend_from_slice(records);
    if let Ok(Answer::Addresses { addresses, .. }) = answer(&bytes, &query, tcp) {
        assert!(!addresses.is_empty() && addresses.iter().all(|ip| ip.is_ipv6() == (kind == Kind::Aaaa)));
    }
});

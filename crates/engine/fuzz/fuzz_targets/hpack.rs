//! Blocks of fields must not panic, keep to their limits (the table to its own: it asserts that), and what was read must
//! come back from what is written of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_engine::http2::hpack::{Decoder, Encoder, Fields, Limits};

const LIST: usize = 8192;

fuzz_target!(|input: (u8, Vec<(Option<u32>, &[u8])>)| {
    let (field, blocks) = input;
    let limits = Limits { field: usize::from(field) * 16, list: LIST };
    let (mut decoder, mut encoder, mut reader) = (Decoder::new(), Encoder::new(), Decoder::new());
    for (size, block) in blocks {
        let mut fields = Fields::default();
        // In two pieces: what is not whole comes again.
        let (first, mut left) = (block.len() / 2, limits);
        let result = decoder.decode(&block[..first], true, &mut left, &mut fields);
        let result = result.and_then(|n| decoder.decode(&block[n..], false, &mut left, &mut fields));
        assert!(fields.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() <= LIST);
        if let Some(size) = size {
            encoder.resize(size);
        }
        let (mut written, mut lower) = (Vec::new(), Fields::default());
        for (name, value) in fields.iter() {
            encoder.field(name, value, &mut written);
            lower.push(&name.to_ascii_lowercase(), value);
        }
        let mut read = Fields::default();
        let mut left = Limits { field: LIST, list: LIST };
        assert_eq!(reader.decode(&written, false, &mut left, &mut read), Ok(written.len()));
        assert_eq!(read, lower);
        if result.is_err() {
            return;
        }
    }
});

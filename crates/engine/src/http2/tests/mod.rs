//! Tables of what clients and hyper write, and what is made of it.

mod inward;
mod outward;
mod requests;
mod wire;

use super::frame::{self, Header, Headers};
use super::hpack::{Decoder, Fields, Limits};
use crate::io::Buf;

/// Bytes of the pieces in which all of it comes once each; what is made of it is the same.
const PIECES: [usize; 5] = [1, 2, 7, 1000, usize::MAX];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut buf = Buf::new();
    frame::put(&mut buf, kind, flags, stream, payload);
    buf.to_vec()
}

/// Settings as they are on the wire.
fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    values.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect()
}

/// Fields of a block, none of them compressed.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![];
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "a short text");
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// Frames in short: `DATA 1 1 text` is one that ends its stream.
///
/// # Panics
/// If there is anything but whole frames.
#[track_caller]
fn shown(mut bytes: &[u8]) -> Vec<String> {
    const NAMES: [&str; 10] = [
        "DATA",
        "HEADERS",
        "PRIORITY",
        "RST_STREAM",
        "SETTINGS",
        "PUSH_PROMISE",
        "PING",
        "GOAWAY",
        "WINDOW_UPDATE",
        "CONTINUATION",
    ];
    let mut frames = vec![];
    let mut headers = Headers::default();
    while !bytes.is_empty() {
        let Header { length, kind, flags, stream } = headers.next(&mut bytes).expect("a whole header");
        let (payload, rest) = bytes.split_at_checked(length).expect("a whole frame");
        bytes = rest;
        let line = format!("{} {stream} {flags:x} {}", NAMES[usize::from(kind)], text(payload));
        frames.push(line.trim_end().to_owned());
    }
    frames
}

/// Fields of blocks that one encoder has made, in lines.
fn fields(decoder: &mut Decoder, block: &[u8]) -> String {
    let mut fields = Fields::default();
    let mut limits = Limits { field: 1 << 20, list: 1 << 20 };
    assert_eq!(decoder.decode(block, false, &mut limits, &mut fields), Ok(block.len()));
    let fields =
        fields.iter().map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii()));
    fields.collect::<Vec<_>>().join(" ")
}

/// Bytes as a table has them: what is no letter as a number.
fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string().replace("\\\"", "\"")
}

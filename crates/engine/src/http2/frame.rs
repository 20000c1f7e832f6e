//! Frames as they stand on the wire (RFC 9113 section 4).

use std::borrow::Cow;

use crate::io::Buf;

/// Bytes of a frame's header.
pub(crate) const HEADER: usize = 9;
/// Bytes of a frame's payload that everybody takes, and those that there may be at most.
pub(crate) const PAYLOAD: usize = 16_384;
pub(crate) const LARGEST: u32 = (1 << 24) - 1;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const PRIORITIZED: u8 = 0x20;

/// Bytes of a setting.
pub(crate) const SETTING: usize = 6;
pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
pub(crate) const ENABLE_PUSH: u16 = 2;
pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(crate) const MAX_FRAME_SIZE: u16 = 5;
pub(crate) const ENABLE_CONNECT_PROTOCOL: u16 = 8;

pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const INTERNAL_ERROR: u32 = 2;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const STREAM_CLOSED: u32 = 5;
pub(crate) const FRAME_SIZE_ERROR: u32 = 6;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// The largest window that there is, and the one that a stream has before anything is said of it.
pub(crate) const MAX_WINDOW: u32 = (1 << 31) - 1;
pub(crate) const USUAL_WINDOW: u32 = 65_535;

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) length: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Header {
    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn bytes(self) -> [u8; HEADER] {
        let [_, a, b, c] = (self.length as u32).to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }
}

/// Headers as they come, in pieces.
#[derive(Debug, Default)]
pub(crate) struct Headers {
    bytes: [u8; HEADER],
    have: usize,
}

impl Headers {
    /// Takes bytes up to the end of a header, which it gives back.
    pub(crate) fn next(&mut self, bytes: &mut &[u8]) -> Option<Header> {
        let n = (HEADER - self.have).min(bytes.len());
        self.bytes[self.have..self.have + n].copy_from_slice(&bytes[..n]);
        (self.have, *bytes) = (self.have + n, &bytes[n..]);
        if self.have < HEADER {
            return None;
        }
        self.have = 0;
        let [a, b, c, kind, flags, stream @ ..] = self.bytes;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        Some(Header { length, kind, flags, stream: u32::from_be_bytes(stream) & MAX_WINDOW })
    }

    /// Whether a header has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.have > 0
    }
}

/// Appends a frame.
pub(crate) fn put(buf: &mut Buf, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    buf.extend(&Header { length: payload.len(), kind, flags, stream }.bytes());
    buf.extend(payload);
}

/// Appends a block of fields in as many frames as it takes, each with so many bytes of it at most.
pub(crate) fn put_block(buf: &mut Buf, flags: u8, stream: u32, block: &[u8], most: usize) {
    let (mut kind, mut flags, mut rest) = (HEADERS, flags, block);
    loop {
        let (piece, behind) = rest.split_at(rest.len().min(most));
        if behind.is_empty() {
            flags |= END_HEADERS;
        }
        put(buf, kind, flags, stream, piece);
        if behind.is_empty() {
            return;
        }
        (kind, flags, rest) = (CONTINUATION, 0, behind);
    }
}

/// What a client did for which its connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// RFC 9113 section 7.
    pub(crate) code: u32,
    pub(crate) message: Cow<'static, str>,
}

impl Fault {
    pub(crate) fn new(code: u32, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }
}

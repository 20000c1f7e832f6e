//! Frames as they stand on the wire (RFC 9113 section 4).

use std::borrow::Cow;

use crate::io::Buf;

/// Bytes of a frame's header.
pub(super) const HEADER: usize = 9;
/// Bytes of a frame's payload that everybody takes, and those that there may be at most.
pub(super) const PAYLOAD: usize = 16_384;
pub(super) const LARGEST: u32 = (1 << 24) - 1;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const PRIORITIZED: u8 = 0x20;

/// Bytes of a setting.
pub(super) const SETTING: usize = 6;
pub(super) const HEADER_TABLE_SIZE: u16 = 1;
pub(super) const ENABLE_PUSH: u16 = 2;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(super) const MAX_FRAME_SIZE: u16 = 5;
pub(super) const ENABLE_CONNECT_PROTOCOL: u16 = 8;

pub(super) const NO_ERROR: u32 = 0;
pub(super) const PROTOCOL_ERROR: u32 = 1;
pub(super) const INTERNAL_ERROR: u32 = 2;
pub(super) const FLOW_CONTROL_ERROR: u32 = 3;
pub(super) const STREAM_CLOSED: u32 = 5;
pub(super) const FRAME_SIZE_ERROR: u32 = 6;
pub(super) const REFUSED_STREAM: u32 = 7;
pub(super) const ENHANCE_YOUR_CALM: u32 = 11;

/// The largest window that there is, and the one that a stream has before anything is said of it.
pub(super) const MAX_WINDOW: u32 = (1 << 31) - 1;
pub(super) const USUAL_WINDOW: u32 = 65_535;

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Header {
    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn bytes(self) -> [u8; HEADER] {
        let [_, a, b, c] = (self.length as u32).to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }
}

/// Headers as they come, in pieces.
#[derive(Debug, Default)]
pub(super) struct Headers {
    bytes: [u8; HEADER],
    have: usize,
}

impl Headers {
    /// Takes bytes up to the end of a header, which it gives back.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Option<Header> {
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
    pub(super) fn has_begun(&self) -> bool {
        self.have > 0
    }
}

/// Appends a frame.
pub(super) fn put(buf: &mut Buf, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    buf.extend(&Header { length: payload.len(), kind, flags, stream }.bytes());
    buf.extend(payload);
}

/// What a client did for which its connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// RFC 9113 section 7.
    pub(super) code: u32,
    pub(super) message: Cow<'static, str>,
}

impl Fault {
    pub(super) fn new(code: u32, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }
}

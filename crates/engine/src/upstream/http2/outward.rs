//! From h2's frames to those that a peer gets: fields are ours.

use std::collections::VecDeque;

use super::head::RequestHead;
use super::seats::Seats;
use crate::http2::PREFACE;
use crate::http2::frame::{
    self, ACK, END_STREAM, HEADERS, Header, Headers, INTERNAL_ERROR, PAYLOAD, RST_STREAM, SETTINGS,
};
use crate::http2::hpack::Encoder;
use crate::io::Buf;

pub(super) struct Outward {
    headers: Headers,
    state: State,
    /// What the peer gets.
    pub(super) out: Buf,
    encoder: Encoder,
    block: Vec<u8>,
    /// Sizes of the table of fields that came in each of the peer's SETTINGS that h2 has not acknowledged.
    tables: VecDeque<Vec<u32>>,
}

/// What of h2's comes next.
enum State {
    Header,
    /// Bytes that go on as they are.
    Pass(usize),
    /// A payload that nobody gets.
    Drop(usize),
}

impl Outward {
    pub(super) fn new() -> Self {
        Self {
            headers: Headers::default(),
            state: State::Pass(PREFACE.len()),
            out: Buf::new(),
            encoder: Encoder::new(),
            block: vec![],
            tables: VecDeque::new(),
        }
    }

    /// Takes bytes of h2's.
    pub(super) fn feed(&mut self, mut bytes: &[u8], seats: &mut Seats) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Header => {
                    if let Some(header) = self.headers.next(&mut bytes) {
                        self.begin(header, seats);
                    }
                }
                State::Pass(left) | State::Drop(left) => {
                    let n = (*left).min(bytes.len());
                    *left -= n;
                    let over = *left == 0;
                    if matches!(self.state, State::Pass(_)) {
                        self.out.extend(&bytes[..n]);
                    }
                    bytes = &bytes[n..];
                    if over {
                        self.state = State::Header;
                    }
                }
            }
        }
    }

    fn begin(&mut self, header: Header, seats: &mut Seats) {
        let Header { length, kind, stream, .. } = header;
        if kind == HEADERS {
            match seats.take_request(stream) {
                Some(head) => self.head(stream, header.flags & END_STREAM, &head),
                None => frame::put(&mut self.out, RST_STREAM, 0, stream, &INTERNAL_ERROR.to_be_bytes()),
            }
            self.state = if length > 0 { State::Drop(length) } else { State::Header };
            return;
        }
        if kind == SETTINGS && header.has(ACK) {
            for size in self.tables.pop_front().unwrap_or_default() {
                self.encoder.resize(size);
            }
        }
        self.out.extend(&header.bytes());
        self.state = if length > 0 { State::Pass(length) } else { State::Header };
    }

    fn head(&mut self, stream: u32, flags: u8, head: &RequestHead) {
        self.block.clear();
        for (name, value) in head.fields() {
            self.encoder.field(name, value, &mut self.block);
        }
        // As in nginx no peer gets larger frames than all have to take.
        frame::put_block(&mut self.out, flags, stream, &self.block, PAYLOAD);
        self.block.shrink_to(PAYLOAD);
    }

    /// The sizes of the table of fields in a peer's settings, which count once h2 acknowledges them.
    pub(super) fn set(&mut self, tables: Vec<u32>) {
        self.tables.push_back(tables);
    }
}

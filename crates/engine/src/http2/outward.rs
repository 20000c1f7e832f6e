//! From hyper's frames to those that a client gets: fields are ours, and so is what is said between hyper's frames.

use std::collections::VecDeque;

use super::frame::{
    self, ACK, CONTINUATION, DATA, END_STREAM, GOAWAY, HEADER, HEADERS, Header, Headers, INITIAL_WINDOW_SIZE,
    INTERNAL_ERROR, MAX_FRAME_SIZE, RST_STREAM, SETTING, SETTINGS, WINDOW_UPDATE,
};
use super::hpack::{Encoder, Fields};
use super::seats::Seats;
use crate::io::Buf;

/// Bytes that may wait for their place between hyper's frames, but for those that end something.
const ROOM: usize = 16 * 1024;

pub(super) struct Outward {
    headers: Headers,
    state: State,
    /// Of the frame that is gathered.
    payload: Vec<u8>,
    /// What the client gets.
    pub(super) out: Buf,
    /// What it gets between two of hyper's frames.
    between: VecDeque<Between>,
    /// Bytes of it.
    waits: usize,
    encoder: Encoder,
    block: Vec<u8>,
    /// Bytes of a payload that the client takes.
    max_frame: usize,
    /// Sizes of the table of fields that came in each of the client's SETTINGS that hyper has not acknowledged.
    tables: VecDeque<Vec<u32>>,
    /// What the client is told that it may send of a stream.
    window: u32,
    /// Bytes of bodies that go before each acknowledgement of its settings: those that hyper had framed by its former ones.
    before: VecDeque<i64>,
    /// It was told that the connection ends.
    parted: bool,
}

/// What of hyper's comes next.
enum State {
    Header,
    /// A payload that goes on as it is.
    Data(usize),
    /// One that is looked at.
    Gather(Header),
    /// One that nobody gets.
    Drop(usize),
}

enum Between {
    Frame(Vec<u8>),
    Head { stream: u32, status: u16, fields: Fields },
}

impl Outward {
    /// For a client that may send so much of a stream before anybody reads it.
    pub(super) fn new(window: u32) -> Self {
        Self {
            headers: Headers::default(),
            state: State::Header,
            payload: vec![],
            out: Buf::new(),
            between: VecDeque::new(),
            waits: 0,
            encoder: Encoder::new(),
            block: vec![],
            max_frame: frame::PAYLOAD,
            tables: VecDeque::new(),
            window,
            before: VecDeque::new(),
            parted: false,
        }
    }

    /// Takes bytes of hyper's.
    pub(super) fn feed(&mut self, mut bytes: &[u8], seats: &mut Seats) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Header => {
                    self.settle();
                    if let Some(header) = self.headers.next(&mut bytes) {
                        self.begin(header, seats);
                    }
                }
                State::Data(left) | State::Drop(left) => {
                    let n = (*left).min(bytes.len());
                    *left -= n;
                    let over = *left == 0;
                    if matches!(self.state, State::Data(_)) {
                        self.out.extend(&bytes[..n]);
                    }
                    bytes = &bytes[n..];
                    if over {
                        self.state = State::Header;
                    }
                }
                State::Gather(header) => {
                    let header = *header;
                    let n = (header.length - self.payload.len()).min(bytes.len());
                    self.payload.extend_from_slice(&bytes[..n]);
                    bytes = &bytes[n..];
                    if self.payload.len() == header.length {
                        self.state = State::Header;
                        self.gathered(header, seats);
                        self.payload.clear();
                    }
                }
            }
        }
        if matches!(self.state, State::Header) {
            self.settle();
        }
        self.acknowledge(seats);
    }

    /// Acknowledges settings once nothing is on its way that knows nothing of them, as nginx does.
    pub(super) fn acknowledge(&mut self, seats: &Seats) {
        // So many may wait for a client that takes nothing.
        const MANY: usize = 32;
        let between = matches!(self.state, State::Header) && !self.headers.has_begun();
        let is_due = |before: &i64, all: usize| *before <= 0 || all > MANY || seats.given() == 0;
        while between && self.before.front().is_some_and(|before| is_due(before, self.before.len())) {
            self.before.pop_front();
            for size in self.tables.pop_front().unwrap_or_default() {
                self.encoder.resize(size);
            }
            frame::put(&mut self.out, SETTINGS, ACK, 0, &[]);
        }
    }

    fn begin(&mut self, header: Header, seats: &mut Seats) {
        let Header { length, kind, stream, .. } = header;
        self.state = match kind {
            HEADERS => {
                self.fields(header, seats);
                State::Drop(length)
            }
            // Of a block that is ours.
            CONTINUATION => State::Drop(length),
            SETTINGS if header.has(ACK) => {
                self.before.push_back(seats.given());
                State::Drop(0)
            }
            SETTINGS | WINDOW_UPDATE => State::Gather(header),
            GOAWAY if std::mem::replace(&mut self.parted, true) => State::Drop(length),
            _ => State::Data(length),
        };
        match self.state {
            State::Data(_) => self.out.extend(&header.bytes()),
            State::Header | State::Gather(_) | State::Drop(_) => {}
        }
        if kind == DATA {
            seats.send(stream, length);
            self.before.iter_mut().for_each(|before| *before -= length as i64);
        }
        if kind == RST_STREAM || matches!(kind, DATA | HEADERS) && header.has(END_STREAM) {
            seats.close(stream);
        }
        if matches!(self.state, State::Data(0) | State::Drop(0)) {
            self.state = State::Header;
        }
    }

    /// Puts our fields in the place of hyper's.
    fn fields(&mut self, header: Header, seats: &mut Seats) {
        match seats.fields(header.stream) {
            Some((status, fields)) => self.head(header.stream, header.flags & END_STREAM, status, &fields),
            // Hyper answers for nobody.
            None => frame::put(&mut self.out, RST_STREAM, 0, header.stream, &INTERNAL_ERROR.to_be_bytes()),
        }
    }

    /// Appends fields in as many frames as it takes.
    fn head(&mut self, stream: u32, flags: u8, status: Option<u16>, fields: &Fields) {
        self.block.clear();
        if let Some(status) = status {
            self.encoder.status(status, &mut self.block);
        }
        for (name, value) in fields.iter() {
            self.encoder.field(name, value, &mut self.block);
        }
        frame::put_block(&mut self.out, flags, stream, &self.block, self.max_frame);
    }

    /// Hyper's settings are ours but for what it gets otherwise than it comes: it has one window for all of a body, of which the client
    /// gets more once somebody reads, and no large frames.
    fn gathered(&mut self, header: Header, seats: &mut Seats) {
        let number = self.payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        if header.kind == WINDOW_UPDATE {
            seats.admit(header.stream, number);
        } else {
            for setting in self.payload.chunks_exact_mut(SETTING) {
                let value = match u16::from_be_bytes([setting[0], setting[1]]) {
                    INITIAL_WINDOW_SIZE => self.window,
                    MAX_FRAME_SIZE => frame::LARGEST,
                    _ => continue,
                };
                setting[2..].copy_from_slice(&value.to_be_bytes());
            }
        }
        frame::put(&mut self.out, header.kind, header.flags, header.stream, &self.payload);
    }

    /// Appends what waits for this place.
    fn settle(&mut self) {
        if self.between.is_empty() || self.headers.has_begun() {
            return;
        }
        self.waits = 0;
        for between in std::mem::take(&mut self.between) {
            match between {
                Between::Frame(frame) => self.out.extend(&frame),
                Between::Head { stream, status, fields } => self.head(stream, 0, Some(status), &fields),
            }
        }
    }

    fn say(&mut self, kind: u8, stream: u32, payload: &[u8]) {
        let header = Header { length: payload.len(), kind, flags: 0, stream }.bytes();
        self.between.push_back(Between::Frame([&header[..], payload].concat()));
        if matches!(self.state, State::Header) {
            self.settle();
        }
    }

    /// Sends a head ahead of that of an answer. Says about how long it is, or nothing if the client is not to have it: it takes little.
    pub(super) fn hint(&mut self, stream: u32, status: u16, fields: Fields) -> Option<u64> {
        let length = HEADER + fields.iter().map(|(name, value)| name.len() + value.len() + 2).sum::<usize>();
        if self.waits + self.out.len() + length > ROOM {
            return None;
        }
        self.waits += length;
        self.between.push_back(Between::Head { stream, status, fields });
        if matches!(self.state, State::Header) {
            self.settle();
        }
        Some(length as u64)
    }

    /// Resets a stream.
    pub(super) fn reset(&mut self, stream: u32, code: u32) {
        self.say(RST_STREAM, stream, &code.to_be_bytes());
    }

    /// Lets the client send more, of a stream or of all (0).
    pub(super) fn widen(&mut self, stream: u32, by: u32) {
        if by > 0 {
            self.say(WINDOW_UPDATE, stream, &by.to_be_bytes());
        }
    }

    /// Tells the client of the connection's end, behind that stream, unless it was told.
    pub(super) fn part(&mut self, last: u32, code: u32) {
        if !std::mem::replace(&mut self.parted, true) {
            self.say(GOAWAY, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat());
        }
    }

    /// The client's settings: the sizes of the table of fields, and bytes of a payload.
    pub(super) fn set(&mut self, tables: Vec<u32>, max_frame: Option<u32>) {
        self.tables.push_back(tables);
        if let Some(size) = max_frame {
            self.max_frame = size as usize;
        }
    }
}

//! From a client's frames to those that hyper gets: heads are read here, and hyper is told that there is one.
//!
//! What is wrong with a frame is judged as nginx does; what is wrong with a request, where its fields are read.

use super::frame::{
    self, ACK, CONTINUATION, DATA, ENABLE_CONNECT_PROTOCOL, ENABLE_PUSH, END_HEADERS, END_STREAM,
    ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, Fault, GOAWAY, HEADER_TABLE_SIZE, HEADERS,
    Header, Headers, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_WINDOW, NO_ERROR, PADDED, PAYLOAD, PING,
    PRIORITIZED, PRIORITY, PROTOCOL_ERROR, PUSH_PROMISE, REFUSED_STREAM, RST_STREAM, SETTING, SETTINGS,
    USUAL_WINDOW, WINDOW_UPDATE,
};
use super::hpack::{Decoder, Fields, Limits, Pieces};
use super::outward::Outward;
use super::preface::PREFACE;
use super::request::{self, Asked, Came};
use super::seats::Seats;
use crate::io::Buf;

/// What is said of a connection's requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Sizes of heads.
    pub(super) limits: Limits,
    /// As many may come.
    pub(super) requests: u64,
    /// Streams that may be open at once.
    pub(super) streams: u32,
    /// What the client may send of a stream before anybody reads it.
    pub(super) window: u32,
    /// Streams may become tunnels.
    pub(super) bridges: bool,
}

pub(super) struct Inward {
    rules: Rules,
    headers: Headers,
    state: State,
    /// Of the frame that is gathered.
    payload: Vec<u8>,
    block: Option<Block>,
    decoder: Decoder,
    /// What hyper gets.
    pub(super) out: Buf,
    /// What it gets between two of the client's frames.
    between: Buf,
    /// Frames that have begun, those of a block as one.
    begun: u64,
    /// The highest stream, and the highest that hyper was told of.
    last: u32,
    told: u32,
    /// Requests that may come yet.
    left: u64,
    /// PRIORITY frames that may come yet.
    priorities: u64,
    /// Streams behind that one come to nobody.
    away: Option<u32>,
    /// It knows our settings.
    knows: bool,
    /// So many of its frames made room for more of answers.
    windows: u64,
    /// Streams of which hyper hears nothing, those of late.
    skipped: Vec<u32>,
    /// So many were refused.
    refused: u32,
}

/// What of the client's comes next.
enum State {
    /// Of the preface, so many bytes.
    Preface(usize),
    Header,
    /// So many bytes of a body, of which hyper gets so many in the frame that has begun, and padding behind them.
    Data {
        header: Header,
        left: usize,
        piece: usize,
        padding: usize,
    },
    /// A payload that is looked at.
    Gather(Header),
    /// What is before the fields of HEADERS, or how much padding is behind a body.
    Before(Header),
    /// So many bytes of fields, and padding behind them.
    Fields(usize, usize),
    /// One that nobody gets.
    Drop(usize),
}

/// A block of fields.
struct Block {
    stream: u32,
    /// It is the head of a request.
    begins: bool,
    /// No body follows.
    ends: bool,
    /// No CONTINUATION follows.
    whole: bool,
    /// Nobody gets it.
    dropped: bool,
    /// Bytes that came.
    length: usize,
    pieces: Pieces,
    /// What may come yet.
    limits: Limits,
    fields: Fields,
}

impl Inward {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            headers: Headers::default(),
            state: State::Preface(PREFACE.len()),
            payload: vec![],
            block: None,
            decoder: Decoder::new(),
            out: Buf::new(),
            between: Buf::new(),
            begun: 0,
            last: 0,
            told: 0,
            left: rules.requests.max(1),
            priorities: u64::from(rules.streams.max(100)),
            away: None,
            knows: false,
            windows: 0,
            skipped: vec![],
            refused: 0,
        }
    }

    /// Takes the client's next bytes.
    ///
    /// # Errors
    /// The connection is to end for them.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        seats: &mut Seats,
        outward: &mut Outward,
    ) -> Result<(), Fault> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Preface(left) => {
                    let n = (*left).min(bytes.len());
                    let expected = &PREFACE[PREFACE.len() - *left..][..n];
                    if bytes[..n] != *expected {
                        return Err(Fault::new(PROTOCOL_ERROR, "invalid connection preface"));
                    }
                    *left -= n;
                    if *left == 0 {
                        self.out.extend(PREFACE);
                        self.state = State::Header;
                    }
                    bytes = &bytes[n..];
                }
                State::Data { left, piece, .. } => {
                    let n = (*piece).min(bytes.len());
                    (*left, *piece) = (*left - n, *piece - n);
                    self.out.extend(&bytes[..n]);
                    bytes = &bytes[n..];
                    self.go_on();
                }
                State::Drop(left) => {
                    let n = (*left).min(bytes.len());
                    *left -= n;
                    bytes = &bytes[n..];
                    if *left == 0 {
                        self.state = State::Header;
                    }
                }
                State::Header => {
                    self.settle();
                    self.begun += u64::from(!self.headers.has_begun() && self.block.is_none());
                    if let Some(header) = self.headers.next(&mut bytes) {
                        self.begin(header, seats, outward)?;
                        self.gather(&mut bytes, seats, outward)?;
                    }
                }
                State::Fields(left, _) => {
                    let n = (*left).min(bytes.len());
                    *left -= n;
                    let (piece, behind) = bytes.split_at(n);
                    bytes = behind;
                    self.read(piece)?;
                    self.end_fields(seats)?;
                }
                State::Gather(_) | State::Before(_) => self.gather(&mut bytes, seats, outward)?,
            }
        }
        if matches!(self.state, State::Header) {
            self.settle();
        }
        Ok(())
    }

    fn settle(&mut self) {
        if !self.between.is_empty() && !self.headers.has_begun() {
            self.out.extend(&self.between);
            self.between.clear();
            self.between.release();
        }
    }

    fn begin(&mut self, header: Header, seats: &mut Seats, outward: &mut Outward) -> Result<(), Fault> {
        let Header { length, kind, stream, .. } = header;
        if let Some(block) = &self.block {
            if kind != CONTINUATION {
                let message = "client sent inappropriate frame while CONTINUATION was expected";
                return Err(Fault::new(PROTOCOL_ERROR, message));
            }
            if stream != block.stream {
                let message = "client sent CONTINUATION frame with incorrect identifier";
                return Err(Fault::new(PROTOCOL_ERROR, message));
            }
        }
        let size = |name: &str, right: bool| {
            let message = || format!("client sent {name} frame with incorrect length {length}");
            if right { Ok(()) } else { Err(Fault::new(FRAME_SIZE_ERROR, message())) }
        };
        match kind {
            DATA if stream == 0 => place("DATA", false)?,
            DATA if header.has(PADDED) && length == 0 => {
                let message = "client sent padded DATA frame with incorrect length: 0";
                return Err(Fault::new(FRAME_SIZE_ERROR, message));
            }
            DATA if header.has(PADDED) => {
                self.state = State::Before(Header { flags: header.flags & (END_STREAM | PADDED), ..header });
            }
            DATA => self.body(header, 0, seats, outward),
            PRIORITY => size("PRIORITY", length == 5)?,
            RST_STREAM => size("RST_STREAM", length == 4)?,
            SETTINGS => size("SETTINGS", length.is_multiple_of(SETTING) && length <= PAYLOAD)?,
            PING => size("PING", length == 8)?,
            GOAWAY => {
                size("GOAWAY", length >= 8)?;
                place("GOAWAY", header.stream == 0)?;
                // It may ask all the same, as in nginx, and goes when it is done.
                self.state = State::Drop(length);
            }
            WINDOW_UPDATE => size("WINDOW_UPDATE", length == 4)?,
            HEADERS => {
                let beside = beside(header);
                size("HEADERS", length >= beside)?;
                // Behind a body there may be no more than its end.
                if length == beside && stream > self.last {
                    let message = "client sent HEADERS frame with empty header block";
                    return Err(Fault::new(FRAME_SIZE_ERROR, message));
                }
                self.state = State::Before(header);
            }
            CONTINUATION => {
                let Some(block) = &mut self.block else {
                    return Err(Fault::new(PROTOCOL_ERROR, "client sent unexpected CONTINUATION frame"));
                };
                block.whole = header.has(END_HEADERS);
                self.state = State::Fields(length, 0);
                return self.end_fields(seats);
            }
            PUSH_PROMISE => return Err(Fault::new(PROTOCOL_ERROR, "client sent PUSH_PROMISE frame")),
            // A kind that is not known means nothing.
            _ => self.state = State::Drop(length),
        }
        match self.state {
            State::Drop(0) => self.state = State::Header,
            State::Header if kind != DATA => self.state = State::Gather(header),
            _ => {}
        }
        Ok(())
    }

    /// Begins a body, or a piece of it, behind what is told of its padding.
    fn body(&mut self, header: Header, padding: usize, seats: &mut Seats, outward: &mut Outward) {
        let Header { length, stream, .. } = header;
        let beside = if header.has(PADDED) { 1 + padding } else { 0 };
        let judged = match self.is_unknown(stream) {
            true => Err(None),
            false => seats.receive(stream, length, header.has(END_STREAM)).map_err(Some),
        };
        if let Err(code) = judged {
            // Hyper does not make room again for what it has not seen.
            outward.widen(0, length as u32);
            let left = length - usize::from(header.has(PADDED));
            self.state = if left > 0 { State::Drop(left) } else { State::Header };
            if let Some(code) = code {
                outward.reset(stream, code);
                seats.close(stream);
                self.reset(stream, code);
            }
            return;
        }
        if beside > 0 {
            for stream in [0, stream] {
                outward.widen(stream, beside as u32);
            }
            seats.admit(stream, beside as u32);
        }
        self.state = State::Data { header, left: length - beside, piece: 0, padding };
        self.go_on();
    }

    /// Begins another frame of a body for hyper, if there is more of it; an end of the stream is in the last.
    fn go_on(&mut self) {
        let State::Data { header, left, piece, padding } = &mut self.state else { return };
        if *piece > 0 {
            return;
        }
        let ends = header.flags & END_STREAM;
        // One without any bytes is its end alone: hyper takes many that are nothing for an attack, nginx does not mind them.
        let first = *left + *padding + usize::from(header.has(PADDED)) == header.length;
        if *left > 0 || first && ends > 0 {
            *piece = (*left).min(PAYLOAD);
            let flags = if piece == left { ends } else { 0 };
            let frame = Header { length: *piece, kind: DATA, flags, stream: header.stream };
            self.out.extend(&frame.bytes());
        }
        if *piece == 0 {
            self.state = if *padding > 0 { State::Drop(*padding) } else { State::Header };
        }
    }

    /// Takes bytes of a frame that is looked at, if it is one.
    fn gather(&mut self, bytes: &mut &[u8], seats: &mut Seats, outward: &mut Outward) -> Result<(), Fault> {
        let (header, wanted) = match self.state {
            State::Gather(header) => (header, header.length),
            State::Before(header) => (header, beside(header)),
            _ => return Ok(()),
        };
        let n = (wanted - self.payload.len()).min(bytes.len());
        self.payload.extend_from_slice(&bytes[..n]);
        *bytes = &bytes[n..];
        if self.payload.len() < wanted {
            return Ok(());
        }
        self.state = State::Header;
        let payload = std::mem::take(&mut self.payload);
        self.gathered(header, &payload, seats, outward)?;
        self.payload = payload;
        self.payload.clear();
        Ok(())
    }

    fn gathered(
        &mut self,
        header: Header,
        payload: &[u8],
        seats: &mut Seats,
        outward: &mut Outward,
    ) -> Result<(), Fault> {
        let stream = header.stream;
        let number = || payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        match header.kind {
            DATA => {
                let padding = usize::from(payload[0]);
                if padding >= header.length {
                    let length = header.length;
                    let message = format!(
                        "client sent padded DATA frame with incorrect length: {length}, padding: {padding}"
                    );
                    return Err(Fault::new(PROTOCOL_ERROR, message));
                }
                self.body(header, padding, seats, outward);
                Ok(())
            }
            HEADERS => self.heads(header, payload, seats, outward),
            PRIORITY => {
                place("PRIORITY", stream > 0)?;
                self.priorities = self
                    .priorities
                    .checked_sub(1)
                    .ok_or_else(|| Fault::new(ENHANCE_YOUR_CALM, "client sent too many PRIORITY frames"))?;
                depends("PRIORITY", stream, number())
            }
            RST_STREAM => {
                place("RST_STREAM", stream > 0)?;
                seats.reset(stream);
                self.pass(header, payload);
                Ok(())
            }
            SETTINGS => {
                place("SETTINGS", stream == 0)?;
                self.settings(header, payload, seats, outward)
            }
            PING => {
                place("PING", stream == 0)?;
                // We have asked for none.
                if !header.has(ACK) {
                    self.pass(header, payload);
                }
                Ok(())
            }
            WINDOW_UPDATE => {
                let by = number() & MAX_WINDOW;
                if by == 0 {
                    let message = "client sent WINDOW_UPDATE frame with incorrect window increment 0";
                    return Err(Fault::new(PROTOCOL_ERROR, message));
                }
                self.windows += 1;
                seats.widen(stream, by);
                self.pass(header, payload);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether hyper hears nothing of a stream.
    fn is_unknown(&self, stream: u32) -> bool {
        let passed_over = stream > self.told && stream <= self.last;
        passed_over || self.skipped.contains(&stream) || self.away.is_some_and(|last| stream > last)
    }

    /// Hands a frame on.
    fn pass(&mut self, header: Header, payload: &[u8]) {
        if !self.is_unknown(header.stream) {
            self.out.extend(&header.bytes());
            self.out.extend(payload);
        }
    }

    fn settings(
        &mut self,
        mut header: Header,
        payload: &[u8],
        seats: &mut Seats,
        outward: &mut Outward,
    ) -> Result<(), Fault> {
        if header.has(ACK) {
            if !payload.is_empty() {
                let message = "client sent SETTINGS frame with the ACK flag and nonzero length";
                return Err(Fault::new(FRAME_SIZE_ERROR, message));
            }
            // Hyper waits for one.
            if !std::mem::replace(&mut self.knows, true) {
                self.pass(header, payload);
            }
            return Ok(());
        }
        let (mut kept, mut tables, mut max_frame) = (Vec::with_capacity(payload.len()), vec![], None);
        for setting in payload.chunks_exact(SETTING) {
            let &[a, b, c, d, e, f] = setting else { continue };
            let value = u32::from_be_bytes([c, d, e, f]);
            let incorrect = |code: u32, name: &str| {
                Err(Fault::new(
                    code,
                    format!("client sent SETTINGS frame with incorrect {name} value {value}"),
                ))
            };
            match u16::from_be_bytes([a, b]) {
                // Fields are none of hyper's business, and who may connect says the server.
                HEADER_TABLE_SIZE => {
                    tables.push(value);
                    continue;
                }
                ENABLE_CONNECT_PROTOCOL => continue,
                ENABLE_PUSH if value > 1 => return incorrect(PROTOCOL_ERROR, "ENABLE_PUSH"),
                INITIAL_WINDOW_SIZE if value > MAX_WINDOW => {
                    return incorrect(FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE");
                }
                INITIAL_WINDOW_SIZE => seats.resize(value),
                MAX_FRAME_SIZE if !(16_384..1 << 24).contains(&value) => {
                    return incorrect(PROTOCOL_ERROR, "MAX_FRAME_SIZE");
                }
                MAX_FRAME_SIZE => max_frame = Some(value),
                _ => {}
            }
            kept.extend_from_slice(setting);
        }
        outward.set(tables, max_frame);
        header.length = kept.len();
        self.pass(header, &kept);
        Ok(())
    }

    /// Begins a block of fields, behind what is before them.
    fn heads(
        &mut self,
        header: Header,
        before: &[u8],
        seats: &mut Seats,
        outward: &mut Outward,
    ) -> Result<(), Fault> {
        let Header { length, stream, .. } = header;
        let room = length - before.len();
        let padding = if header.has(PADDED) { usize::from(before[0]) } else { 0 };
        if padding > room {
            let message =
                format!("client sent padded HEADERS frame with incorrect length: {room}, padding: {padding}");
            return Err(Fault::new(PROTOCOL_ERROR, message));
        }
        if stream.is_multiple_of(2) {
            let last = self.last;
            let message =
                format!("client sent HEADERS frame with incorrect identifier {stream}, the last was {last}");
            return Err(Fault::new(PROTOCOL_ERROR, message));
        }
        let unknown = self.is_unknown(stream);
        if header.has(PRIORITIZED) {
            let at = usize::from(header.has(PADDED));
            let depend = before[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
            depends("HEADERS", stream, depend)?;
        }
        let begins = stream > self.last;
        if begins && padding == room {
            return Err(Fault::new(FRAME_SIZE_ERROR, "client sent header block with incorrect length"));
        }
        self.block = Some(Block {
            stream,
            begins,
            ends: header.has(END_STREAM),
            whole: header.has(END_HEADERS),
            dropped: unknown,
            length: 0,
            pieces: Pieces::default(),
            limits: self.rules.limits,
            fields: Fields::default(),
        });
        if begins && !unknown {
            self.last = stream;
            self.admit(outward)?;
        }
        self.state = State::Fields(room - padding, padding);
        self.end_fields(seats)
    }

    /// Whether a request that has begun is one too many; as nginx does, its body may not come before the client knows how much of
    /// it may.
    fn admit(&mut self, outward: &mut Outward) -> Result<(), Fault> {
        let Some(block) = self.block.as_mut().filter(|block| !block.dropped) else { return Ok(()) };
        if !self.knows && !block.ends && self.rules.window < USUAL_WINDOW {
            block.dropped = true;
            skip(&mut self.skipped, block.stream);
            outward.reset(block.stream, REFUSED_STREAM);
            self.refused += 1;
            let many = self.refused > self.rules.streams.max(100);
            let message = "client sent too many refused streams";
            return if many { Err(Fault::new(NO_ERROR, message)) } else { Ok(()) };
        }
        self.priorities += u64::from(self.rules.streams);
        self.left -= 1;
        if self.left == 0 {
            self.away = Some(block.stream);
            outward.part(block.stream, NO_ERROR);
        }
        Ok(())
    }

    /// Reads a piece of a block, up to a field that is not whole.
    fn read(&mut self, piece: &[u8]) -> Result<(), Fault> {
        let more = matches!(self.state, State::Fields(1.., _));
        let Some(block) = &mut self.block else { return Ok(()) };
        if self.away.is_some_and(|last| block.stream > last) {
            // Nothing comes any more for which the tables would be needed.
            return Ok(());
        }
        block.length += piece.len();
        let Block { pieces, limits, fields, .. } = block;
        let read = pieces
            .take(piece, more || !block.whole, |bytes| self.decoder.decode(bytes, more, limits, fields));
        read.map_err(|fault| Fault::new(fault.code, fault.message))
    }

    /// Ends a piece of a block that is all here, and the block with it if no more follows.
    fn end_fields(&mut self, seats: &mut Seats) -> Result<(), Fault> {
        let State::Fields(0, padding) = self.state else { return Ok(()) };
        self.state = if padding > 0 { State::Drop(padding) } else { State::Header };
        if self.block.as_ref().is_some_and(|block| block.whole && !block.pieces.is_empty()) {
            self.read(&[])?;
        }
        let Some(block) = self.block.take_if(|block| block.whole) else { return Ok(()) };
        if !block.pieces.is_empty() {
            return Err(Fault::new(FRAME_SIZE_ERROR, "client sent header block with incorrect length"));
        }
        if block.dropped {
            return Ok(());
        }
        let Block { stream, ends, fields, length, .. } = block;
        let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
        if !block.begins {
            // Trailers of requests go no further, as in nginx, but they end them.
            frame::put(&mut self.out, HEADERS, flags, stream, &[]);
            if ends {
                seats.end(stream);
            }
            return Ok(());
        }
        let asked = if self.rules.bridges { request::asked(&fields) } else { Asked::Request };
        self.told = stream;
        frame::put(&mut self.out, HEADERS, flags, stream, &request::of_hyper(stream, asked));
        seats.come(Came { stream, length, fields, asked, ends }, self.rules.window);
        Ok(())
    }

    /// The head that has begun takes too long: its stream is reset, the rest of it goes nowhere. Says whether there is one.
    pub(super) fn forgo(&mut self, outward: &mut Outward) -> bool {
        let Some(block) = self.block.as_mut().filter(|block| block.begins && !block.dropped) else {
            return false;
        };
        block.dropped = true;
        skip(&mut self.skipped, block.stream);
        outward.reset(block.stream, PROTOCOL_ERROR);
        true
    }

    /// Resets a stream. Hyper cannot where the client has no room for what it sends, so to hyper it is the client that does.
    pub(super) fn reset(&mut self, stream: u32, code: u32) {
        skip(&mut self.skipped, stream);
        frame::put(&mut self.between, RST_STREAM, 0, stream, &code.to_be_bytes());
        if matches!(self.state, State::Header) {
            self.settle();
        }
    }

    /// Nothing that comes behind the last stream gets to anybody; says which it is.
    pub(super) fn part(&mut self) -> u32 {
        *self.away.get_or_insert(self.last)
    }

    /// Whether the head of a request has begun that is served.
    pub(super) fn awaits_head(&self) -> bool {
        self.block.as_ref().is_some_and(|block| block.begins && !block.dropped)
    }

    /// The request that comes next is the last.
    pub(super) fn expect_the_last(&mut self) {
        self.left = self.left.min(1);
    }

    /// Whether the client was told that there are no more requests.
    pub(super) fn has_parted(&self) -> bool {
        self.away.is_some()
    }

    /// The highest stream.
    pub(super) fn last(&self) -> u32 {
        self.last
    }

    /// Grows where the client makes room.
    pub(super) fn windows(&self) -> u64 {
        self.windows
    }

    /// Streams that are remembered, and bytes of what is not whole.
    pub(super) fn kept(&self) -> (usize, usize) {
        let of_block = |block: &Block| {
            let fields = block.fields.iter().map(|(name, value)| name.len() + value.len());
            block.pieces.len() + fields.sum::<usize>()
        };
        (self.skipped.len(), self.payload.len() + self.block.as_ref().map_or(0, of_block))
    }

    /// What has begun and is not whole, by its number. The body of a request is awaited by whoever reads it.
    pub(super) fn within(&self) -> Option<u64> {
        match &self.block {
            Some(block) => !block.dropped,
            None => match self.state {
                State::Gather(_) => true,
                State::Before(header) => header.kind == HEADERS,
                _ => self.headers.has_begun(),
            },
        }
        .then_some(self.begun)
    }
}

/// Remembers a stream; not all that ever were, of which some would have to be very late.
fn skip(skipped: &mut Vec<u32>, stream: u32) {
    const MANY: usize = 256;
    if skipped.len() == MANY {
        skipped.remove(0);
    }
    skipped.push(stream);
}

/// Bytes before the fields of HEADERS.
fn beside(header: Header) -> usize {
    usize::from(header.has(PADDED)) + if header.has(PRIORITIZED) { 5 } else { 0 }
}

/// Whether a frame is of the connection, or of a stream, as it has to be.
fn place(name: &str, right: bool) -> Result<(), Fault> {
    let message = || format!("client sent {name} frame with incorrect identifier");
    if right { Ok(()) } else { Err(Fault::new(PROTOCOL_ERROR, message())) }
}

/// A stream that depends on itself waits for ever.
fn depends(name: &str, stream: u32, on: u32) -> Result<(), Fault> {
    if on & MAX_WINDOW != stream {
        return Ok(());
    }
    let message = format!("client sent {name} frame for stream {stream} with incorrect dependency");
    Err(Fault::new(PROTOCOL_ERROR, message))
}

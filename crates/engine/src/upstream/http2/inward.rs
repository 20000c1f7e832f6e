//! From a peer's frames to those that h2 gets: heads are read here, and h2 is told that there is one.
//!
//! What is wrong with a stream ends that one, be it a frame that is none; what is wrong with all of them ends the connection.

use super::block::{Block, Came};
use super::outward::Outward;
use super::seats::{Progress, Seats};
use super::stream::Broken;
use crate::http2::frame::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADER_TABLE_SIZE, HEADERS, Header,
    Headers, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, MAX_WINDOW, NO_ERROR, PADDED, PAYLOAD, PING,
    PRIORITIZED, PUSH_PROMISE, RST_STREAM, SETTING, SETTINGS, WINDOW_UPDATE,
};
use crate::io::Buf;

/// The block of fields that h2 gets for each answer: `:status: 200` of the table that everybody has.
const OK: &[u8] = &[0x88];

pub(super) struct Inward {
    headers: Headers,
    state: State,
    /// Of the frame that is gathered.
    payload: Vec<u8>,
    block: Option<Block>,
    /// What h2 gets.
    pub(super) out: Buf,
    /// What the peer did to the connection that it must not. Nothing is read behind that.
    pub(super) fault: Option<String>,
    /// Streams that have ended in what was taken last, of which nobody has read that, and whether they were reset since.
    ended: Vec<(u32, bool)>,
}

/// What of the peer's comes next.
enum State {
    Header,
    /// A payload that goes on as it is.
    Pass(usize),
    /// One that nobody gets.
    Drop(usize),
    /// One that is looked at.
    Gather(Header),
    /// What is before the fields of HEADERS, or how much padding is behind a body.
    Before(Header),
    /// So many bytes of fields, and padding behind them.
    Fields(usize, usize),
}

impl Inward {
    pub(super) fn new() -> Self {
        Self {
            headers: Headers::default(),
            state: State::Header,
            payload: vec![],
            block: None,
            out: Buf::new(),
            fault: None,
            ended: vec![],
        }
    }

    /// Bytes of what is not whole.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.payload.len() + self.block.as_ref().map_or(0, Block::kept)
    }

    /// Takes the peer's next bytes, once h2 has got all before them.
    pub(super) fn feed(&mut self, mut bytes: &[u8], seats: &mut Seats, outward: &mut Outward) {
        self.ended.clear();
        while !bytes.is_empty() && self.fault.is_none() {
            match &mut self.state {
                State::Header => {
                    if let Some(header) = self.headers.next(&mut bytes) {
                        self.begin(header, seats, outward);
                        self.gather(&mut bytes, seats, outward);
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
                State::Gather(_) | State::Before(_) => self.gather(&mut bytes, seats, outward),
                State::Fields(left, _) => {
                    let n = (*left).min(bytes.len());
                    *left -= n;
                    let more = *left > 0;
                    let (piece, behind) = bytes.split_at(n);
                    bytes = behind;
                    self.read(piece, more, seats);
                    self.end_fields(seats);
                }
            }
        }
    }

    fn begin(&mut self, header: Header, seats: &mut Seats, outward: &mut Outward) {
        let Header { length, kind, stream, .. } = header;
        let progress = seats.progress(stream);
        let is_other = |block: &mut Block| kind != CONTINUATION || stream != block.stream;
        if let Some(block) = self.block.take_if(is_other) {
            let message = if kind == CONTINUATION { unknown(header) } else { unexpected(kind) };
            self.fail(block.stream, Broken::malformed(message), seats);
        }
        if let Some(message) = judge(header) {
            return self.refuse(header, length, message, seats);
        }
        if progress == Progress::Idle && (of_stream(kind) || kind == WINDOW_UPDATE && stream > 0) {
            return self.refuse(header, length, unknown(header), seats);
        }
        let ended = self.ended.iter().any(|(ended, _)| *ended == stream);
        if ended && !matches!(kind, RST_STREAM | WINDOW_UPDATE) {
            seats.spoil(stream, closed(stream));
        }
        match kind {
            DATA => self.body(header, progress, seats),
            HEADERS if length < beside(header) => {
                let message = format!("upstream sent headers frame with invalid length: {length}");
                self.fail(stream, Block::misframed(progress == Progress::Answered, message), seats);
                self.drop_rest(length);
            }
            HEADERS => self.state = State::Before(header),
            CONTINUATION => {
                self.state = State::Fields(length, 0);
                match self.block.as_mut().map(|block| block.goes_on(0, header.has(END_HEADERS))) {
                    Some(went) => self.judge_block(went, seats),
                    None => self.fail(stream, Broken::malformed(unexpected(kind)), seats),
                }
                self.end_fields(seats);
            }
            RST_STREAM if ended => self.state = State::Gather(header),
            RST_STREAM => {
                seats.end(stream);
                self.pass(header, &[]);
            }
            SETTINGS if !header.has(ACK) && length > 0 => self.state = State::Gather(header),
            WINDOW_UPDATE => self.state = State::Gather(header),
            SETTINGS if !header.has(ACK) => self.settings(header, &[], outward),
            SETTINGS | PING | GOAWAY => self.pass(header, &[]),
            // Who comes first is not for a client to be told, and a kind that is not known means nothing.
            _ => self.drop_rest(length),
        }
    }

    /// What is wrong with a frame is its stream's fault, if it has one; of a stream that was given up it is nobody's.
    fn refuse(&mut self, header: Header, left: usize, message: String, seats: &mut Seats) {
        match seats.progress(header.stream) {
            Progress::Idle => self.fault = Some(message),
            Progress::GivenUp => {}
            Progress::Asked | Progress::Answered | Progress::Ended | Progress::Faulty => {
                self.fail(header.stream, Broken::malformed(message), seats);
            }
        }
        self.drop_rest(left);
    }

    /// Begins a body, or a piece of it.
    fn body(&mut self, header: Header, progress: Progress, seats: &mut Seats) {
        let Header { length, stream, .. } = header;
        match progress {
            Progress::Asked => self.fail(stream, Broken::malformed(unexpected(DATA)), seats),
            // H2 would end the connection.
            Progress::Ended => return self.drop_rest(length),
            Progress::Idle | Progress::GivenUp | Progress::Answered | Progress::Faulty => {}
        }
        if header.has(PADDED) && length == 0 {
            return self.refuse(header, length, "upstream sent too short http2 frame".to_owned(), seats);
        }
        if header.has(PADDED) {
            self.state = State::Before(header);
            return;
        }
        if header.has(END_STREAM) {
            self.end(stream, seats);
        }
        self.pass(header, &[]);
    }

    fn end(&mut self, stream: u32, seats: &mut Seats) {
        if seats.end(stream) {
            self.ended.push((stream, false));
        }
    }

    /// A reset of a stream that has ended says that no more of the request is wanted, if it is no error. As in nginx it is looked at
    /// where it comes at once with the end.
    fn reset(&mut self, stream: u32, code: u32, seats: &mut Seats) {
        let Some((_, was_reset)) = self.ended.iter_mut().find(|(ended, _)| *ended == stream) else { return };
        if code != NO_ERROR {
            let message = format!("upstream rejected request with error {code}");
            seats.spoil(stream, Broken::malformed(message));
        } else if std::mem::replace(was_reset, true) {
            seats.spoil(stream, closed(stream));
        }
    }

    /// Hands a frame on, of which some of the payload is here.
    fn pass(&mut self, header: Header, begun: &[u8]) {
        self.out.extend(&header.bytes());
        self.out.extend(begun);
        let left = header.length - begun.len();
        self.state = if left > 0 { State::Pass(left) } else { State::Header };
    }

    fn drop_rest(&mut self, left: usize) {
        self.state = if left > 0 { State::Drop(left) } else { State::Header };
    }

    /// Takes bytes of a frame that is looked at, if it is one.
    fn gather(&mut self, bytes: &mut &[u8], seats: &mut Seats, outward: &mut Outward) {
        let (header, wanted) = match self.state {
            State::Gather(header) => (header, header.length),
            State::Before(header) => (header, beside(header)),
            State::Header | State::Pass(_) | State::Drop(_) | State::Fields(..) => return,
        };
        let n = (wanted - self.payload.len()).min(bytes.len());
        self.payload.extend_from_slice(&bytes[..n]);
        *bytes = &bytes[n..];
        if self.payload.len() < wanted {
            return;
        }
        let mut payload = std::mem::take(&mut self.payload);
        match header.kind {
            SETTINGS => self.settings(header, &payload, outward),
            WINDOW_UPDATE if number(&payload) & MAX_WINDOW == 0 => {
                self.refuse(header, 0, "upstream sent zero window update".to_owned(), seats);
            }
            WINDOW_UPDATE => self.pass(header, &payload),
            DATA => self.padded(header, payload[0], seats),
            RST_STREAM => {
                self.reset(header.stream, number(&payload), seats);
                self.pass(header, &payload);
            }
            _ => self.heads(header, &payload, seats),
        }
        payload.clear();
        self.payload = payload;
    }

    /// As in nginx no more counts than what of bodies may be sent, and how many streams there may be. Fields are none of h2's business.
    fn settings(&mut self, mut header: Header, payload: &[u8], outward: &mut Outward) {
        let (mut kept, mut tables) = (Vec::with_capacity(payload.len()), vec![]);
        for setting in payload.chunks_exact(SETTING) {
            let &[a, b, c, d, e, f] = setting else { continue };
            let value = u32::from_be_bytes([c, d, e, f]);
            match u16::from_be_bytes([a, b]) {
                HEADER_TABLE_SIZE => tables.push(value),
                INITIAL_WINDOW_SIZE if value > MAX_WINDOW => {
                    let name = "upstream sent settings frame with too large initial window size";
                    self.fault = Some(format!("{name}: {value}"));
                }
                MAX_CONCURRENT_STREAMS | INITIAL_WINDOW_SIZE => kept.extend_from_slice(setting),
                _ => {}
            }
        }
        outward.set(tables);
        header.length = kept.len();
        self.pass(header, &kept);
    }

    /// A piece of a body, behind what is told of its padding.
    fn padded(&mut self, header: Header, padding: u8, seats: &mut Seats) {
        let room = header.length - 1;
        if usize::from(padding) > room {
            let message =
                format!("upstream sent http2 frame with too long padding: {padding} in frame {room}");
            return self.refuse(header, room, message, seats);
        }
        if header.has(END_STREAM) {
            self.end(header.stream, seats);
        }
        self.pass(header, &[padding]);
    }

    /// Begins a block of fields, behind what is before them.
    fn heads(&mut self, header: Header, before: &[u8], seats: &mut Seats) {
        let stream = header.stream;
        let progress = seats.progress(stream);
        let room = header.length - before.len();
        let padding = if header.has(PADDED) { usize::from(before[0]) } else { 0 };
        if padding > room {
            let message =
                format!("upstream sent http2 frame with too long padding: {padding} in frame {room}");
            self.fail(stream, Block::misframed(progress == Progress::Answered, message), seats);
            return self.drop_rest(room);
        }
        let mut block = Block::new(stream, progress == Progress::Answered, seats.limit(stream));
        block.ends = header.has(END_STREAM);
        block.dropped = !matches!(progress, Progress::Asked | Progress::Answered);
        let went = block.goes_on(before.len() + padding, header.has(END_HEADERS));
        self.block = Some(block);
        self.judge_block(went, seats);
        self.state = State::Fields(room - padding, padding);
        self.end_fields(seats);
    }

    /// Reads a piece of a block.
    fn read(&mut self, piece: &[u8], more: bool, seats: &mut Seats) {
        let Some(block) = self.block.as_mut().filter(|block| !block.dropped) else { return };
        let taken = block.take(piece, more);
        self.judge_block(taken, seats);
    }

    /// Nobody gets a block of which something is wrong.
    fn judge_block(&mut self, went: Result<(), Broken>, seats: &mut Seats) {
        let (Err(broken), Some(block)) = (went, &mut self.block) else { return };
        let (stream, dropped) = (block.stream, std::mem::replace(&mut block.dropped, true));
        if !dropped {
            self.fail(stream, broken, seats);
        }
    }

    /// Ends a piece of a block that is all here, and the block with it if no more follows.
    fn end_fields(&mut self, seats: &mut Seats) {
        let State::Fields(0, padding) = self.state else { return };
        self.drop_rest(padding);
        if self.block.as_ref().is_some_and(Block::is_whole) {
            self.read(&[], false, seats);
        }
        let Some(block) = self.block.take_if(|block| block.is_whole()) else { return };
        let (stream, ends) = (block.stream, block.ends);
        let progress = seats.progress(stream);
        let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
        match progress {
            // It passes over those of a stream that was given up.
            Progress::Idle | Progress::GivenUp => {
                return frame::put(&mut self.out, HEADERS, flags, stream, OK);
            }
            Progress::Ended | Progress::Faulty => return,
            Progress::Asked | Progress::Answered => {}
        }
        match block.done() {
            Ok(Came::Interim(status, fields)) => seats.hint(stream, status, fields),
            Ok(Came::Answer(status, fields)) => {
                seats.answer(stream, status, fields, ends);
                frame::put(&mut self.out, HEADERS, flags, stream, OK);
            }
            Ok(Came::Trailers(fields)) => {
                seats.trail(stream, fields);
                self.end(stream, seats);
                frame::put(&mut self.out, HEADERS, flags, stream, &[]);
            }
            Err(broken) => self.fail(stream, broken, seats),
        }
    }

    /// Whoever has a stream finds out what is wrong with it, and gives it up. Until then it has a head, as far as h2 knows.
    fn fail(&mut self, stream: u32, broken: Broken, seats: &mut Seats) {
        if seats.fail(stream, broken) {
            frame::put(&mut self.out, HEADERS, END_HEADERS, stream, OK);
        }
    }
}

fn number(payload: &[u8]) -> u32 {
    payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Bytes before the fields of HEADERS, or before a body.
fn beside(header: Header) -> usize {
    let prioritized = header.kind == HEADERS && header.has(PRIORITIZED);
    usize::from(header.has(PADDED)) + if prioritized { 5 } else { 0 }
}

fn closed(stream: u32) -> Broken {
    Broken::malformed(format!("upstream sent frame for closed stream {stream}"))
}

fn unexpected(kind: u8) -> String {
    format!("upstream sent unexpected http2 frame: {kind}")
}

fn unknown(header: Header) -> String {
    let data = if header.kind == DATA { "data " } else { "" };
    format!("upstream sent {data}frame for unknown stream {}", header.stream)
}

/// Whether a frame has to be of a stream.
fn of_stream(kind: u8) -> bool {
    matches!(kind, DATA | HEADERS | RST_STREAM | CONTINUATION)
}

/// What is wrong with a frame by its header alone.
fn judge(header: Header) -> Option<String> {
    let Header { length, kind, stream, .. } = header;
    let sized = |name: &str, right: bool| {
        (!right).then(|| format!("upstream sent {name} frame with invalid length: {length}"))
    };
    let of_all = |name: &str| {
        (stream > 0).then(|| format!("upstream sent {name} frame with non-zero stream id: {stream}"))
    };
    match kind {
        _ if length > PAYLOAD => Some(format!("upstream sent too large http2 frame: {length}")),
        RST_STREAM => sized("rst stream", length == 4),
        GOAWAY => of_all("goaway").or_else(|| sized("goaway", length >= 8)),
        WINDOW_UPDATE => sized("window update", length == 4),
        SETTINGS if header.has(ACK) => of_all("settings").or_else(|| {
            let name = "upstream sent settings frame with ack flag and non-zero length";
            (length > 0).then(|| format!("{name}: {length}"))
        }),
        SETTINGS => of_all("settings").or_else(|| sized("settings", length.is_multiple_of(SETTING))),
        PING => of_all("ping").or_else(|| sized("ping", length == 8)),
        PUSH_PROMISE => Some("upstream sent unexpected push promise frame".to_owned()),
        _ => None,
    }
}

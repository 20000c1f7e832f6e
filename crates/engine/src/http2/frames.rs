//! Where in the frames of a connection its bytes are, by their headers: hyper tells neither what it waits for nor which
//! stream a request came over.

use std::collections::VecDeque;

/// Bytes of the preface and of a frame's header.
const PREFACE: usize = 24;
const HEADER: usize = 9;

const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;
const ACK: u8 = 1;

/// Bytes of a setting, and the one of the table of fields (RFC 9113 section 6.5).
const SETTING: usize = 6;
const HEADER_TABLE_SIZE: u16 = 1;
/// Bytes that the table of fields has before anything is said of it.
const USUAL_TABLE: u32 = 4096;

/// The header of a frame.
#[derive(Clone, Copy, Debug)]
struct Header {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

/// A way along frames.
#[derive(Debug)]
struct Walk {
    header: [u8; HEADER],
    /// Bytes of a header that are there.
    have: usize,
    /// Bytes until the next header.
    skip: usize,
    /// A HEADERS frame has come whose block of fields has not ended.
    in_block: bool,
}

impl Walk {
    fn new(skip: usize) -> Self {
        Self { header: [0; HEADER], have: 0, skip, in_block: false }
    }

    /// Takes bytes up to the end of the next header, which it gives back.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Header> {
        let n = self.skip.min(bytes.len());
        (self.skip, *bytes) = (self.skip - n, &bytes[n..]);
        let n = (HEADER - self.have).min(bytes.len());
        if self.skip > 0 || n == 0 {
            return None;
        }
        self.header[self.have..self.have + n].copy_from_slice(&bytes[..n]);
        (self.have, *bytes) = (self.have + n, &bytes[n..]);
        if self.have < HEADER {
            return None;
        }
        self.have = 0;
        let [a, b, c, kind, flags, stream @ ..] = self.header;
        self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.in_block = flags & END_HEADERS == 0;
        }
        Some(Header { length: self.skip, kind, flags, stream: u32::from_be_bytes(stream) & !(1 << 31) })
    }

    /// Bytes until there may be another frame than those that have begun, if that is told yet: 0 between frames.
    fn left(&self) -> usize {
        match self.have {
            0 if self.skip == 0 && self.in_block => HEADER,
            0 => self.skip,
            have => HEADER - have,
        }
    }
}

/// The head of a request: its stream, and how many bytes its block of fields has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Came {
    pub(super) stream: u32,
    pub(super) length: usize,
}

/// A client's frames.
#[derive(Debug)]
pub(super) struct Frames {
    walk: Walk,
    /// Of what is looked at in the present frame, these bytes are there.
    seen: [u8; SETTING],
    have: usize,
    /// As many are looked at.
    want: usize,
    /// Frames that have begun, those of a block as one.
    begun: u64,
    /// One of them was GOAWAY.
    away: bool,
    /// One of them was the answer to a PING.
    answered: bool,
    /// So many of them made room for more of answers.
    windows: u64,
    /// Settings of its that came, and the last of them that made the table of fields smaller than is usual, of which hyper has not
    /// told yet in a block of fields.
    settings: u64,
    shrunk: Option<u64>,
    /// The highest stream.
    last: u32,
    /// Heads that nobody has asked for yet, in their order, which is that of the requests: the last may not have ended.
    heads: VecDeque<Came>,
    /// Streams that were handed over, and that neither side has ended for good.
    open: Vec<u32>,
    /// Streams that somebody watches, and whether the client has reset them.
    watched: Vec<(u32, bool)>,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self {
            walk: Walk::new(PREFACE),
            seen: [0; SETTING],
            have: 0,
            want: 0,
            begun: 0,
            away: false,
            answered: false,
            windows: 0,
            settings: 0,
            shrunk: None,
            last: 0,
            heads: VecDeque::new(),
            open: vec![],
            watched: vec![],
        }
    }

    /// Takes the next bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.want > 0 {
                let n = (self.want - self.have).min(bytes.len());
                self.seen[self.have..self.have + n].copy_from_slice(&bytes[..n]);
                (self.have, self.walk.skip, bytes) = (self.have + n, self.walk.skip - n, &bytes[n..]);
                if self.have == self.want {
                    self.look();
                }
                continue;
            }
            let begins = self.walk.skip < bytes.len() && self.walk.have == 0 && !self.walk.in_block;
            self.begun += u64::from(begins);
            if let Some(header) = self.walk.next(&mut bytes) {
                self.begin(header);
            }
        }
    }

    fn begin(&mut self, header: Header) {
        let Header { length, kind, flags, stream } = header;
        match kind {
            HEADERS if stream > self.last => {
                self.last = stream;
                let length = length.saturating_sub(if flags & PRIORITY != 0 { 5 } else { 0 });
                self.heads.push_back(Came { stream, length });
                self.peek(usize::from(flags & PADDED != 0));
            }
            CONTINUATION if stream == self.last => {
                if let Some(head) = self.heads.back_mut().filter(|head| head.stream == stream) {
                    head.length += length;
                }
            }
            RST_STREAM => {
                self.end(stream);
                for (_, reset) in self.watched.iter_mut().filter(|(watched, _)| *watched == stream) {
                    *reset = true;
                }
            }
            SETTINGS if flags & ACK == 0 => {
                self.settings += 1;
                self.peek(SETTING);
            }
            PING => self.answered |= flags & ACK != 0,
            GOAWAY => self.away = true,
            WINDOW_UPDATE => self.windows += 1,
            _ => {}
        }
    }

    /// Looks at the next bytes of the present frame, if it has as many.
    fn peek(&mut self, want: usize) {
        (self.have, self.want) = (0, if want <= self.walk.skip { want } else { 0 });
    }

    fn look(&mut self) {
        let [a, b, value @ ..] = self.seen;
        if self.want == SETTING {
            if u16::from_be_bytes([a, b]) == HEADER_TABLE_SIZE && u32::from_be_bytes(value) < USUAL_TABLE {
                self.shrunk = Some(self.settings);
            }
            return self.peek(SETTING);
        }
        // How much of the frame is padding.
        if let Some(head) = self.heads.back_mut() {
            head.length = head.length.saturating_sub(1 + usize::from(a));
        }
        self.want = 0;
    }

    /// Whether the client has said that it goes.
    pub(super) fn away(&self) -> bool {
        self.away
    }

    /// Whether the client knows of the connection's end: hyper asks for that with the only PING that it sends.
    pub(super) fn answered(&self) -> bool {
        self.answered
    }

    /// Grows where the client makes room.
    pub(super) fn windows(&self) -> u64 {
        self.windows
    }

    /// Whether fields may be sent that are not of hyper's making: not where it has to say first that its table is smaller now
    /// (RFC 7541 section 4.2).
    pub(super) fn takes_fields(&self) -> bool {
        self.shrunk.is_none()
    }

    /// The last stream, unless there is none yet, not all of an answer is out, or something has come of which hyper knows nothing.
    pub(super) fn last_of_whole(&self) -> Option<u32> {
        let whole = self.open.is_empty() && self.heads.is_empty() && self.walk.left() == 0;
        (self.last > 0 && whole).then_some(self.last)
    }

    /// The head of the next request that hyper hands over.
    pub(super) fn take_head(&mut self) -> Option<Came> {
        let head = self.heads.pop_front()?;
        self.open.push(head.stream);
        Some(head)
    }

    /// A stream was reset, or all of its answer is out.
    pub(super) fn end(&mut self, stream: u32) {
        if let Some(at) = self.open.iter().position(|open| *open == stream) {
            self.open.swap_remove(at);
        }
    }

    /// Has an eye on a stream.
    pub(super) fn watch(&mut self, stream: u32) {
        self.watched.push((stream, false));
    }

    pub(super) fn unwatch(&mut self, stream: u32) {
        self.watched.retain(|(watched, _)| *watched != stream);
    }

    /// Whether the client has reset a stream that is watched.
    pub(super) fn was_reset(&self, stream: u32) -> bool {
        self.watched.contains(&(stream, true))
    }

    /// Bytes until there may be a frame that is not the client's: 0 if it may be now.
    pub(super) fn left(&self) -> usize {
        self.walk.left()
    }

    /// What has begun and is not whole, by its number. The body of a request is awaited by whoever reads it.
    pub(super) fn within(&self) -> Option<u64> {
        let walk = &self.walk;
        let within = walk.in_block || walk.have > 0 || walk.skip > 0 && walk.header[3] != DATA;
        within.then_some(self.begun)
    }
}

/// GOAWAY of a server that ends without an error, behind that stream.
pub(super) fn goaway(last: u32) -> [u8; HEADER + 8] {
    let mut frame = [0; HEADER + 8];
    (frame[2], frame[3]) = (8, GOAWAY);
    frame[HEADER..HEADER + 4].copy_from_slice(&last.to_be_bytes());
    frame
}

/// Hyper's frames.
#[derive(Debug)]
pub(super) struct Sent {
    walk: Walk,
    /// Settings of the client's that were acknowledged.
    acks: u64,
}

impl Sent {
    pub(super) fn new() -> Self {
        Self { walk: Walk::new(0), acks: 0 }
    }

    /// Takes the next bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8], came: &mut Frames) {
        while !bytes.is_empty() {
            let Some(Header { kind, flags, stream, .. }) = self.walk.next(&mut bytes) else { continue };
            match kind {
                SETTINGS => self.acks += u64::from(flags & ACK),
                HEADERS => came.shrunk = came.shrunk.filter(|number| *number > self.acks),
                _ => {}
            }
            if kind == RST_STREAM || matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                came.end(stream);
            }
            // Who is answered or reset by hyper itself is not handed over as a request.
            if matches!(kind, HEADERS | RST_STREAM) && !came.heads.is_empty() {
                came.heads.retain(|head| head.stream != stream);
            }
        }
    }

    /// Bytes until there may be a frame of somebody else's: 0 if it may be now.
    pub(super) fn left(&self) -> usize {
        self.walk.left()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        of_stream(1, kind, flags, &vec![0xff; payload])
    }

    fn of_stream(stream: u8, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    }

    /// Feeds frames in pieces of that size.
    fn fed(frames: &[Vec<u8>], piece: usize) -> Frames {
        let mut state = Frames::new();
        state.feed(&[b'.'; PREFACE]);
        for piece in frames.concat().chunks(piece) {
            state.feed(piece);
        }
        state
    }

    /// Feeds frames in pieces of that size; says what is within something behind each piece of one byte.
    fn within(frames: &[Vec<u8>], piece: usize) -> String {
        let mut state = Frames::new();
        state.feed(&[b'.'; PREFACE]);
        let bytes = frames.concat();
        bytes
            .chunks(piece)
            .map(|piece| {
                state.feed(piece);
                state.within().map_or('.', |number| char::from(b'0' + number as u8))
            })
            .collect()
    }

    #[test]
    fn frames_are_whole_at_their_ends() {
        assert_eq!(within(&[frame(4, 0, 0), frame(4, 0, 6)], 1), "11111111.22222222222222.");
        // HEADERS without END_HEADERS waits for its CONTINUATION.
        assert_eq!(within(&[frame(1, 0, 2), frame(9, 4, 1)], 1), "11111111111111111111.");
        assert_eq!(within(&[frame(1, 5, 2), frame(0, 0, 3)], 1), "1111111111.22222222....");
        assert_eq!(within(&[frame(1, 5, 2), frame(0, 1, 3), frame(6, 0, 8)], 40), ".");
        assert_eq!(within(&[frame(1, 5, 2), frame(0, 1, 3), frame(6, 0, 8)], 7), "12.33.");
    }

    #[test]
    fn heads_are_told_with_their_lengths() {
        let frames = [
            of_stream(1, HEADERS, END_HEADERS, b"block"),
            // 3 bytes of padding, a priority, and what follows.
            of_stream(3, HEADERS, PADDED | PRIORITY, b"\x03priorblock..."),
            of_stream(3, CONTINUATION, END_HEADERS, b"more"),
            // Trailers are no request.
            of_stream(1, HEADERS, END_HEADERS | 1, b"trailers"),
            // More padding than there is.
            of_stream(5, HEADERS, END_HEADERS | PADDED, b"\xff"),
            of_stream(7, HEADERS, END_HEADERS | PADDED, b""),
            of_stream(9, HEADERS, END_HEADERS, b"one more"),
        ];
        for piece in [1, 2, 7, 1000] {
            let mut state = fed(&frames, piece);
            let heads = std::iter::from_fn(|| state.take_head().map(|head| (head.stream, head.length)));
            assert_eq!(heads.collect::<Vec<_>>(), [(1, 5), (3, 9), (5, 0), (7, 0), (9, 8)], "{piece}");
        }
    }

    #[test]
    fn who_is_answered_at_once_is_no_request() {
        let frames = [1, 3, 5, 7].map(|stream| of_stream(stream, HEADERS, END_HEADERS, b"x"));
        for piece in [1, 5, 1000] {
            let mut state = fed(&frames, 1000);
            assert_eq!(state.take_head().map(|head| head.stream), Some(1));
            let sent = [of_stream(3, HEADERS, 0, b"431"), of_stream(3, CONTINUATION, 4, b""), frame(0, 0, 5)];
            let sent = [sent.concat(), of_stream(5, RST_STREAM, 0, b"code")].concat();
            let mut walk = Sent::new();
            for piece in sent.chunks(piece) {
                walk.feed(piece, &mut state);
            }
            assert_eq!(state.take_head().map(|head| head.stream), Some(7));
        }
    }

    #[test]
    fn others_have_their_place_between_frames() {
        let mut came = Frames::new();
        let mut sent = Sent::new();
        let frames = [frame(1, 0, 2), frame(9, 4, 1), frame(0, 0, 3)].concat();
        let left = frames.iter().map(|byte| {
            let left = sent.left();
            sent.feed(&[*byte], &mut came);
            char::from_digit(left as u32, 10).unwrap()
        });
        assert_eq!(left.collect::<String>(), "087654321219876543211087654321321");
        assert_eq!(sent.left(), 0);
    }

    #[test]
    fn answers_that_are_not_out_keep_a_connection() {
        let mut came = fed(&[frame(HEADERS, END_HEADERS, 1), of_stream(3, HEADERS, END_HEADERS, b"x")], 1);
        let mut sent = Sent::new();
        assert_eq!(came.last_of_whole(), None);
        while came.take_head().is_some() {}
        assert_eq!(came.last_of_whole(), None);
        sent.feed(&[frame(HEADERS, END_HEADERS, 2), frame(DATA, 0, 3)].concat(), &mut came);
        came.feed(&of_stream(3, RST_STREAM, 0, b"code"));
        assert_eq!(came.last_of_whole(), None);
        sent.feed(&frame(DATA, END_STREAM, 0), &mut came);
        assert_eq!(came.last_of_whole(), Some(3));
        // Something more has begun.
        came.feed(&frame(PING, 0, 8)[..5]);
        assert_eq!(came.last_of_whole(), None);
    }

    #[test]
    fn streams_are_watched() {
        let mut state = fed(&[], 1);
        for stream in [3, 5] {
            state.watch(stream);
        }
        state.feed(&of_stream(3, RST_STREAM, 0, b"code"));
        assert_eq!([1, 3, 5].map(|stream| state.was_reset(stream)), [false, true, false]);
        state.unwatch(3);
        assert!(!state.was_reset(3));
    }

    #[test]
    fn tables_are_made_smaller() {
        let setting = |id: u8, value: u32| [&[0, id], &value.to_be_bytes()[..]].concat();
        for (settings, takes) in [
            ([setting(1, 4096), setting(4, 0)], true),
            ([setting(3, 1), setting(1, 65_536)], true),
            ([setting(3, 1), setting(1, 4095)], false),
            ([setting(1, 0), setting(1, 4096)], false),
        ] {
            for piece in [1, 4, 1000] {
                let frames = [frame(SETTINGS, 0, 0), of_stream(0, SETTINGS, 0, &settings.concat())];
                let mut state = fed(&frames, piece);
                assert_eq!(state.takes_fields(), takes, "{settings:?}");
                // Until hyper has said that it has heard of it, and had a block of fields since.
                let mut sent = Sent::new();
                let [ack, block] = [frame(SETTINGS, ACK, 0), frame(HEADERS, END_HEADERS, 1)];
                for (frame, then) in [(&ack, takes), (&block, takes), (&ack, takes), (&block, true)] {
                    sent.feed(frame, &mut state);
                    assert_eq!(state.takes_fields(), then, "{settings:?}");
                }
            }
        }
    }
}

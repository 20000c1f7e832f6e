//! Where in the frames of a client its bytes are, by their headers alone: hyper does not tell what it still waits for.

/// Bytes of the preface and of a frame's header.
const PREFACE: usize = 24;
const HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

#[derive(Debug)]
pub(super) struct Frames {
    header: [u8; HEADER],
    /// Bytes of a header that are there.
    have: usize,
    /// Bytes until the next header.
    skip: usize,
    /// A HEADERS frame has come whose block of fields has not ended.
    in_block: bool,
    /// Frames that have begun, those of a block as one.
    begun: u64,
    /// One of them was GOAWAY.
    away: bool,
    /// One of them was the answer to a PING.
    answered: bool,
    /// So many of them made room for more of answers.
    windows: u64,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self {
            header: [0; HEADER],
            have: 0,
            skip: PREFACE,
            in_block: false,
            begun: 0,
            away: false,
            answered: false,
            windows: 0,
        }
    }

    /// Takes the next bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = self.skip.min(bytes.len());
            (self.skip, bytes) = (self.skip - n, &bytes[n..]);
            let n = (HEADER - self.have).min(bytes.len());
            if self.skip > 0 || n == 0 {
                continue;
            }
            self.begun += u64::from(self.have == 0 && !self.in_block);
            self.header[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            (self.have, bytes) = (self.have + n, &bytes[n..]);
            if self.have == HEADER {
                self.have = 0;
                let [a, b, c, kind, flags, ..] = self.header;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                self.away |= kind == GOAWAY;
                self.answered |= kind == PING && flags & ACK != 0;
                self.windows += u64::from(kind == WINDOW_UPDATE);
                if matches!(kind, HEADERS | CONTINUATION) {
                    self.in_block = flags & END_HEADERS == 0;
                }
            }
        }
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

    /// What has begun and is not whole, by its number. The body of a request is awaited by whoever reads it.
    pub(super) fn within(&self) -> Option<u64> {
        let within = self.in_block || self.have > 0 || self.skip > 0 && self.header[3] != DATA;
        within.then_some(self.begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = (payload as u32).to_be_bytes();
        let mut bytes = [&length[1..], &[kind, flags, 0, 0, 0, 1]].concat();
        bytes.resize(HEADER + payload, 0xff);
        bytes
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
}

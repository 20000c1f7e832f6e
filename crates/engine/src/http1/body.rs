//! Chunked bodies (RFC 9112 section 7.1): a decoder that points into the caller's bytes, and the few bytes an encoder needs.

use std::ops::Range;

/// Chunked framing that cannot be trusted: the message, and what follows it on the connection, must be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadChunk;

/// What came of a call to `Decoder::next`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A range of the input that belongs to the body; never empty.
    Data(Range<usize>),
    /// Only framing was left in the input, and all of it is taken.
    More,
    /// The last chunk is over and the trailer section starts behind it; only where trailers are kept.
    Trailers,
    /// The body is over.
    End,
}

/// The longest a chunk's size and extensions, or a trailer section that is passed over, may be, in bytes.
const LONGEST_LINE: u32 = 8192;
/// See `LONGEST_LINE`.
const LONGEST_TRAILERS: u32 = 65536;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Start,
    Size,
    /// Spaces before `;`.
    Blank,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailer,
    TrailerLine,
    TrailerLf,
    LastLf,
    End,
}

/// Takes a chunked body apart as it arrives. As strict as nginx, and stricter behind a size: only blanks, then `;`, may follow it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Decoder {
    stage: Stage,
    /// Bytes left of the chunk, or its size so far.
    left: u64,
    overhead: u32,
    keep_trailers: bool,
}

impl Decoder {
    /// Passes over trailers, as nginx does with those of a request.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops before the trailer section and leaves it to the caller (`proxy_pass_trailers`).
    pub fn keeping_trailers() -> Self {
        Self { keep_trailers: true, ..Self::default() }
    }

    /// Whether the end of the body has been seen.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::End
    }

    /// Takes framing and at most one piece of data from the front of `input`; returns how many bytes were taken with what came of them.
    /// Call it until the input is used up or the body is over; what is left then is not part of the message.
    pub fn next(&mut self, input: &[u8]) -> Result<(usize, Piece), BadChunk> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            match self.stage {
                Stage::Start | Stage::Size => match (char::from(byte).to_digit(16), byte) {
                    (Some(digit), _) => {
                        if self.left > i64::MAX as u64 / 16 {
                            return Err(BadChunk);
                        }
                        self.left = self.left * 16 + u64::from(digit);
                        self.stage = Stage::Size;
                    }
                    _ if self.stage == Stage::Start => return Err(BadChunk),
                    (None, b'\r') => self.stage = Stage::SizeLf,
                    (None, b';') => self.stage = Stage::Extension,
                    (None, b' ' | b'\t') => self.stage = Stage::Blank,
                    (None, _) => return Err(BadChunk),
                },
                Stage::Blank => match byte {
                    b' ' | b'\t' => {}
                    b';' => self.stage = Stage::Extension,
                    b'\r' => self.stage = Stage::SizeLf,
                    _ => return Err(BadChunk),
                },
                Stage::Extension => match byte {
                    b'\r' => self.stage = Stage::SizeLf,
                    b'\t' | b' '..=b'~' | 0x80.. => {}
                    _ => return Err(BadChunk),
                },
                Stage::SizeLf => {
                    if byte != b'\n' {
                        return Err(BadChunk);
                    }
                    self.overhead = 0;
                    self.stage = Stage::Data;
                    if self.left == 0 {
                        if self.keep_trailers {
                            self.stage = Stage::End;
                            return Ok((at + 1, Piece::Trailers));
                        }
                        self.stage = Stage::Trailer;
                    }
                    at += 1;
                    continue;
                }
                Stage::Data => {
                    let rest = (input.len() - at) as u64;
                    let len = self.left.min(rest);
                    self.left -= len;
                    if self.left == 0 {
                        self.stage = Stage::DataCr;
                    }
                    let end = at + len as usize;
                    return Ok((end, Piece::Data(at..end)));
                }
                Stage::DataCr if byte == b'\r' => self.stage = Stage::DataLf,
                Stage::DataLf if byte == b'\n' => self.stage = Stage::Start,
                Stage::DataCr | Stage::DataLf => return Err(BadChunk),
                Stage::Trailer => {
                    self.stage = match byte {
                        b'\r' => Stage::LastLf,
                        b'\n' => return Err(BadChunk),
                        _ => Stage::TrailerLine,
                    };
                }
                Stage::TrailerLine => match byte {
                    b'\r' => self.stage = Stage::TrailerLf,
                    b'\n' => return Err(BadChunk),
                    _ => {}
                },
                Stage::TrailerLf if byte == b'\n' => self.stage = Stage::Trailer,
                Stage::LastLf if byte == b'\n' => {
                    self.stage = Stage::End;
                    return Ok((at + 1, Piece::End));
                }
                Stage::TrailerLf | Stage::LastLf => return Err(BadChunk),
                Stage::End => return Ok((at, Piece::End)),
            }
            at += 1;
            self.overhead += 1;
            let longest = match self.stage {
                Stage::Trailer | Stage::TrailerLine | Stage::TrailerLf | Stage::LastLf => LONGEST_TRAILERS,
                _ => LONGEST_LINE,
            };
            if self.overhead > longest {
                return Err(BadChunk);
            }
        }
        Ok((at, if self.stage == Stage::End { Piece::End } else { Piece::More }))
    }
}

/// What stands behind the data of a chunk.
pub const CHUNK_END: &[u8] = b"\r\n";
/// What ends a body without trailers, behind the end of its last chunk.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// What stands before trailers; an empty line ends them.
pub const LAST_CHUNK_HEAD: &[u8] = b"0\r\n";

/// The size line of a chunk.
#[derive(Clone, Copy, Debug)]
pub struct ChunkHead {
    text: [u8; 18],
    start: usize,
}

impl ChunkHead {
    /// `len` must not be 0, which would end the body.
    pub fn new(len: u64) -> Self {
        let mut text = [0; 18];
        text[16..].copy_from_slice(b"\r\n");
        let mut start = 16;
        let mut left = len;
        loop {
            start -= 1;
            text[start] = b"0123456789abcdef"[(left & 15) as usize];
            left >>= 4;
            if left == 0 {
                return Self { text, start };
            }
        }
    }
}

impl AsRef<[u8]> for ChunkHead {
    fn as_ref(&self) -> &[u8] {
        &self.text[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body in `wire` cut into pieces of `step` bytes, and what is left behind it.
    fn decode(wire: &[u8], step: usize, mut decoder: Decoder) -> Result<(Vec<u8>, Vec<u8>, bool), BadChunk> {
        let mut body = Vec::new();
        let mut rest = Vec::new();
        for piece in wire.chunks(step) {
            let mut piece = piece;
            while !piece.is_empty() && !decoder.is_over() {
                let (taken, what) = decoder.next(piece)?;
                if let Piece::Data(range) = what {
                    body.extend_from_slice(&piece[range]);
                }
                piece = &piece[taken..];
            }
            rest.extend_from_slice(piece);
        }
        Ok((body, rest, decoder.is_over()))
    }

    #[track_caller]
    fn check(wire: &str, expected: Result<(&str, &str, bool), BadChunk>) {
        let expected = expected.map(|(body, rest, over)| (body.into(), rest.into(), over));
        for step in 1..=wire.len() {
            assert_eq!(
                decode(wire.as_bytes(), step, Decoder::new()),
                expected,
                "{wire:?} in steps of {step}"
            );
        }
    }

    #[test]
    fn bodies() {
        check("0\r\n\r\n", Ok(("", "", true)));
        check("5\r\nhello\r\n0\r\n\r\nGET", Ok(("hello", "GET", true)));
        check("5\r\nhello\r\n00\r\n\r\n", Ok(("hello", "", true)));
        check("A;name=\"v\"\r\n0123456789\r\n1 \t; x\r\nb\r\n0;last\r\n\r\n", Ok(("0123456789b", "", true)));
        check("3\r\nabc\r\n0\r\nName: value\r\nb:\r\n\r\nx", Ok(("abc", "x", true)));
        check("5\r\nhel", Ok(("hel", "", false)));
    }

    #[test]
    fn broken_framing() {
        for wire in [
            "\r\n0\r\n\r\n",
            " 5\r\nhello\r\n",
            "x\r\n",
            "-1\r\n",
            "0x5\r\nhello\r\n",
            "5\nhello\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhelloX0\r\n\r\n",
            "5\rhello",
            "5;a\nb\r\nhello",
            "5;a\rb\r\nhello",
            "5 5\r\nhello",
            "0\r\n\n",
            "0\r\na: b\n\r\n",
            "0\r\na: b\rc\r\n\r\n",
            "0\r\n\rx",
            "fffffffffffffffff\r\n",
            "8000000000000000\r\n",
        ] {
            check(wire, Err(BadChunk));
        }
        check("7fffffffffffffff\r\nx", Ok(("x", "", false)));
    }

    #[test]
    fn framing_is_bounded() {
        let long = |len: usize| "x".repeat(len);
        let run = |wire: String| decode(wire.as_bytes(), 1000, Decoder::new()).map(|found| found.2);
        assert_eq!(run(format!("0;{}\r\n\r\n", long(8000))), Ok(true));
        assert_eq!(run(format!("0;{}\r\n\r\n", long(8192))), Err(BadChunk));
        assert_eq!(run(format!("0\r\n{}\r\n\r\n", long(65000))), Ok(true));
        assert_eq!(run(format!("0\r\n{}\r\n\r\n", long(65536))), Err(BadChunk));
        assert_eq!(run("0".repeat(9000)), Err(BadChunk));
    }

    #[test]
    fn trailers_can_be_kept() {
        let mut decoder = Decoder::keeping_trailers();
        assert_eq!(decoder.next(b"1\r\nab"), Ok((4, Piece::Data(3..4))));
        assert_eq!(decoder.next(b"\r\n0\r\na: b\r\n\r\n"), Ok((5, Piece::Trailers)));
        assert!(decoder.is_over());
    }

    #[test]
    fn chunk_heads() {
        for (len, expected) in
            [(1, "1\r\n"), (16, "10\r\n"), (0xabc, "abc\r\n"), (u64::MAX, "ffffffffffffffff\r\n")]
        {
            assert_eq!(ChunkHead::new(len).as_ref(), expected.as_bytes());
        }
    }
}

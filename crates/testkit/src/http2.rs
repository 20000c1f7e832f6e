//! Either end of HTTP/2 that knows frames and no more: it says what a test wants said, be it wrong.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use crate::wire::{patient, uninterrupted};

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Flags of frames: of DATA and HEADERS that end their stream, of HEADERS that are whole, of answers to SETTINGS and PING.
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// One frame, of any type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, flags, stream, payload: payload.into() }
    }

    /// Fields that begin a stream, in the order given; `GET https` and what else is named by `:path` first.
    pub fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Self {
        Self::new(HEADERS, flags, stream, block(fields))
    }

    pub fn continuation(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Self {
        Self::new(CONTINUATION, flags, stream, block(fields))
    }

    /// A GET, whole.
    pub fn get(stream: u32, path: &str) -> Self {
        let fields = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "a.example")];
        Self::headers(stream, END_HEADERS | END_STREAM, &fields)
    }

    /// A POST whose body follows.
    pub fn post(stream: u32, path: &str) -> Self {
        let fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "a.example")];
        Self::headers(stream, END_HEADERS, &fields)
    }

    pub fn data(stream: u32, flags: u8, bytes: &[u8]) -> Self {
        Self::new(DATA, flags, stream, bytes)
    }

    pub fn reset(stream: u32, code: u32) -> Self {
        Self::new(RST_STREAM, 0, stream, code.to_be_bytes())
    }

    /// The connection takes no streams behind the last one.
    pub fn goaway(last: u32, code: u32) -> Self {
        Self::new(GOAWAY, 0, 0, [last.to_be_bytes(), code.to_be_bytes()].concat())
    }

    pub fn ping() -> Self {
        Self::new(PING, 0, 0, *b"weirping")
    }

    pub fn settings(values: &[(u16, u32)]) -> Self {
        let values = values.iter().map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
        Self::new(SETTINGS, 0, 0, values.collect::<Vec<_>>().concat())
    }

    pub fn window(stream: u32, more: u32) -> Self {
        Self::new(WINDOW_UPDATE, 0, stream, more.to_be_bytes())
    }

    pub fn bytes(&self) -> Vec<u8> {
        let length = (self.payload.len() as u32).to_be_bytes();
        let head = [&length[1..], &[self.kind, self.flags], &self.stream.to_be_bytes()].concat();
        [head, self.payload.clone()].concat()
    }

    /// The first frame of what was received, and its length.
    fn first(bytes: &[u8]) -> Option<(Self, usize)> {
        let (head, rest) = bytes.split_at_checked(9)?;
        let payload = rest.get(..u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((Self::new(head[3], head[4], stream, payload), 9 + payload.len()))
    }

    /// All whole frames of what was received.
    pub fn all(mut bytes: &[u8]) -> Vec<Self> {
        let mut frames = vec![];
        while let Some((frame, length)) = Self::first(bytes) {
            frames.push(frame);
            bytes = &bytes[length..];
        }
        frames
    }

    /// Whether it is about the connection's working and not about a request.
    fn is_housekeeping(&self) -> bool {
        matches!(self.kind, SETTINGS | PING | WINDOW_UPDATE)
    }

    /// A number among the settings.
    pub fn setting(&self, id: u16) -> Option<u32> {
        let pairs = self.payload.chunks_exact(6).filter(|_| self.kind == SETTINGS);
        let mut values = pairs.filter(|pair| pair[..2] == id.to_be_bytes());
        values.next().map(|pair| u32::from_be_bytes([pair[2], pair[3], pair[4], pair[5]]))
    }

    fn code(&self, at: usize) -> u32 {
        self.payload[at..].first_chunk().map_or(0, |code| u32::from_be_bytes(*code))
    }
}

/// In short: `HEADERS 1 200 end`, `DATA 1 text`, `RST_STREAM 1 code 8`, `GOAWAY code 0`.
impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stream = self.stream;
        let end = if self.flags & END_STREAM != 0 { " end" } else { "" };
        match self.kind {
            DATA => write!(f, "DATA {stream} {}{end}", String::from_utf8_lossy(&self.payload)),
            HEADERS => write!(f, "HEADERS {stream} {}{end}", status(&self.payload)),
            RST_STREAM => write!(f, "RST_STREAM {stream} code {}", self.code(0)),
            GOAWAY => write!(f, "GOAWAY code {}", self.code(4)),
            kind => write!(f, "frame {kind} of {stream}"),
        }
    }
}

/// The status that a block of fields begins with, as far as the static table has it; trailers have none.
fn status(block: &[u8]) -> &'static str {
    let known = ["200", "204", "206", "304", "400", "404", "500"];
    // Updates of the table's size come first.
    let first = block.iter().find(|byte| **byte & 0xe0 != 0x20);
    match first {
        Some(index @ 0x88..=0x8e) => known[usize::from(index - 0x88)],
        Some(0x48 | 0x08 | 0x18) => "other",
        _ => "trailers",
    }
}

/// Fields, none of them compressed.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![];
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // RFC 7541 section 5.1, with seven bits of prefix.
            let mut length = text.len();
            if length < 127 {
                block.push(length as u8);
            } else {
                block.push(127);
                length -= 127;
                while length >= 128 {
                    block.push(length as u8 | 128);
                    length >>= 7;
                }
                block.push(length as u8);
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// What a client begins with: the preface, and settings that keep the server's table of fields empty.
pub fn preface() -> Vec<u8> {
    [PREFACE.to_vec(), Frame::settings(&[(1, 0)]).bytes()].concat()
}

/// All that a script of a conversation sends, behind the preface.
pub fn script(frames: &[Frame]) -> Vec<u8> {
    let frames: Vec<_> = frames.iter().map(Frame::bytes).collect();
    [preface(), frames.concat()].concat()
}

/// What was received of a server, in short and without housekeeping.
pub fn told(received: &[u8]) -> Vec<String> {
    let frames = Frame::all(received).into_iter().filter(|frame| !frame.is_housekeeping());
    frames.map(|frame| frame.to_string()).collect()
}

/// A connection that was opened with the preface.
pub struct Http2 {
    stream: TcpStream,
    unread: Vec<u8>,
    /// What the other end has set.
    pub settings: Frame,
}

impl Http2 {
    /// # Panics
    /// If nobody is there who speaks HTTP/2.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).expect("a server of HTTP/2")
    }

    /// # Errors
    /// If nobody is there who speaks HTTP/2.
    pub fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).and_then(patient)?;
        let settings = Frame::settings(&[]);
        let mut connection = Self { stream, unread: vec![], settings };
        connection.try_send(&preface())?;
        match connection.any()? {
            Some(frame) if frame.kind == SETTINGS => connection.settings = frame,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        connection.try_send(&Frame::new(SETTINGS, ACK, 0, []).bytes())?;
        Ok(connection)
    }

    /// The server's end of the next connection, with these settings.
    ///
    /// # Panics
    /// If nobody comes who speaks HTTP/2.
    #[track_caller]
    pub fn accept(listener: &TcpListener, settings: &[(u16, u32)]) -> Self {
        let (stream, _) = listener.accept().expect("a client");
        Self::serve(stream, settings).expect("a client of HTTP/2")
    }

    /// The same of a connection that was accepted.
    ///
    /// # Errors
    /// If nobody is there who speaks HTTP/2.
    pub fn serve(stream: TcpStream, settings: &[(u16, u32)]) -> io::Result<Self> {
        let mut stream = patient(stream)?;
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface)?;
        if preface != *PREFACE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut connection = Self { stream, unread: vec![], settings: Frame::settings(&[]) };
        connection.try_send(&Frame::settings(settings).bytes())?;
        match connection.any()? {
            Some(frame) if frame.kind == SETTINGS => connection.settings = frame,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        connection.try_send(&Frame::new(SETTINGS, ACK, 0, []).bytes())?;
        Ok(connection)
    }

    /// # Panics
    /// If the server does not take it.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("a server that reads");
    }

    /// # Errors
    /// If the server does not take it.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// # Panics
    /// If the server does not take it.
    #[track_caller]
    pub fn say(&mut self, frame: &Frame) {
        self.send(&frame.bytes());
    }

    /// Waits until the other end has read all that was sent: it answers a PING behind it.
    ///
    /// # Errors
    /// If it does not.
    pub fn try_ping(&mut self) -> io::Result<()> {
        self.try_send(&Frame::ping().bytes())?;
        while let Some(frame) = self.any()? {
            if frame.kind == PING && frame.flags & ACK != 0 {
                return Ok(());
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    /// Says no more.
    ///
    /// # Panics
    /// If the other end is gone.
    #[track_caller]
    pub fn finish(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("a connection");
    }

    /// The next frame that is no housekeeping, with PING answered meanwhile; `None` at the end of the connection.
    ///
    /// # Panics
    /// If nothing comes.
    #[track_caller]
    pub fn frame(&mut self) -> Option<Frame> {
        self.try_frame().expect("a frame")
    }

    /// # Errors
    /// If nothing comes.
    pub fn try_frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let Some(frame) = self.any()? else { return Ok(None) };
            if frame.kind == PING && frame.flags & ACK == 0 {
                // It may have closed meanwhile, which the next read tells.
                let _ = self.stream.write_all(&Frame::new(PING, ACK, 0, frame.payload).bytes());
            } else if !frame.is_housekeeping() {
                return Ok(Some(frame));
            }
        }
    }

    /// The same in short; empty at the end.
    #[track_caller]
    pub fn hears(&mut self) -> String {
        self.frame().map_or_else(String::new, |frame| frame.to_string())
    }

    /// Bytes of a stream's DATA, until there are as many.
    ///
    /// # Panics
    /// If anything else comes.
    #[track_caller]
    pub fn data(&mut self, stream: u32, length: usize) -> Vec<u8> {
        let mut bytes = vec![];
        while bytes.len() < length {
            let frame = self.frame().expect("DATA before the end");
            assert_eq!((frame.kind, frame.stream), (DATA, stream), "{frame}");
            bytes.extend_from_slice(&frame.payload);
        }
        bytes
    }

    /// Sends what is given for each number for as long as the server takes it, and reads meanwhile; what came until the end.
    ///
    /// # Panics
    /// If the server does not end the connection before that number.
    #[track_caller]
    pub fn flood(mut self, most: u32, frames: impl Fn(u32) -> Vec<Frame>) -> Vec<String> {
        let mut from = self.stream.try_clone().expect("a descriptor");
        let reading = std::thread::spawn(move || {
            let mut received = self.unread;
            // A reset behind the last bytes is an end as well.
            let _ = from.read_to_end(&mut received);
            received
        });
        let ended = (0..most).any(|n| {
            let bytes: Vec<_> = frames(n).iter().flat_map(Frame::bytes).collect();
            self.stream.write_all(&bytes).is_err()
        });
        assert!(ended, "the server takes it all");
        told(&reading.join().expect("a reader"))
    }

    fn any(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some((frame, length)) = Frame::first(&self.unread) {
                self.unread.drain(..length);
                return Ok(Some(frame));
            }
            let mut chunk = [0; 16384];
            match uninterrupted(|| self.stream.read(&mut chunk)) {
                Ok(0) => return Ok(None),
                Ok(n) => self.unread.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

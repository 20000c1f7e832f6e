//! FastCGI 1.0: what an application reads and writes comes in records, one request at a time on a connection.

use std::fmt;
use std::io;
use std::mem;
use std::task::{Context, Poll, ready};

use weir_syntax::Level;

use crate::http::Exchange;
use crate::http1::response::{Head, Invalid, Parsed};
use crate::http1::{Known, status};
use crate::io::Io;

const VERSION: u8 = 1;
/// The one request of a connection.
const REQUEST: u8 = 1;
const HEADER: usize = 8;

const END_REQUEST: u8 = 3;
const STDIN: u8 = 5;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;

/// Bytes of a body in one record, as nginx has it.
const PIECE: usize = 32 * 1024;

/// Bytes of an application's messages that are kept until somebody asks for them.
const MESSAGES: usize = 64 * 1024;

/// Bytes of messages that are read at a turn.
const TURN: usize = 256 * 1024;

/// Appends a record of this type with padding to eight bytes.
///
/// # Panics
/// Where the content has more than 65,535 bytes.
pub fn append_record(kind: u8, content: &[u8], out: &mut Vec<u8>) {
    let length = u16::try_from(content.len()).expect("a record's length has two bytes");
    let [high, low] = length.to_be_bytes();
    let padding = content.len().wrapping_neg() % 8;
    out.extend_from_slice(&[VERSION, kind, 0, REQUEST, high, low, padding as u8, 0]);
    out.extend_from_slice(content);
    out.extend_from_slice(&[0; 7][..padding]);
}

/// Appends a part of a request's body, its end behind the last one.
pub(super) fn append_stdin(piece: &[u8], last: bool, out: &mut Vec<u8>) {
    for content in piece.chunks(PIECE) {
        append_record(STDIN, content, out);
    }
    if last {
        append_record(STDIN, b"", out);
    }
}

/// What of an application's answer is none.
#[derive(Debug)]
pub struct Fault(String);

impl Fault {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::other(fault)
    }
}

/// How an application's output ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// An empty record of it.
    Stdout,
    /// With the request.
    Request,
    /// With the connection.
    Closed,
}

/// What an application's records say.
#[derive(Debug, Default)]
pub struct Records {
    header: [u8; HEADER],
    /// Bytes of the header that were read.
    had: usize,
    /// Bytes that the record's content lacks,
    left: usize,
    /// and its padding.
    padding: usize,
    stdout_closed: bool,
    request_ended: bool,
    /// Something came behind the end of the request.
    beyond: bool,
    /// What the application says of itself.
    stderr: Vec<u8>,
    /// What is wrong with what came next.
    fault: Option<Fault>,
}

impl Records {
    /// Reads what came; the application's output is put together at the front, so many bytes of it.
    pub fn take(&mut self, bytes: &mut [u8]) -> usize {
        let (mut at, mut kept) = (0, 0);
        while at < bytes.len() && self.fault.is_none() {
            if self.request_ended {
                self.beyond = true;
                break;
            }
            let rest = bytes.len() - at;
            if self.had < HEADER {
                let n = rest.min(HEADER - self.had);
                self.header[self.had..self.had + n].copy_from_slice(&bytes[at..at + n]);
                self.had += n;
                at += n;
                if self.had == HEADER {
                    self.fault = self.begin().err();
                }
            } else if self.left > 0 {
                let n = rest.min(self.left);
                match self.header[1] {
                    STDOUT if !self.stdout_closed => {
                        bytes.copy_within(at..at + n, kept);
                        kept += n;
                    }
                    STDERR => {
                        let room = MESSAGES.saturating_sub(self.stderr.len());
                        self.stderr.extend_from_slice(&bytes[at..at + n.min(room)]);
                    }
                    _ => {}
                }
                self.left -= n;
                at += n;
            } else {
                let n = rest.min(self.padding);
                self.padding -= n;
                at += n;
            }
            if self.had == HEADER && self.left == 0 && self.padding == 0 {
                self.had = 0;
                self.request_ended = self.header[1] == END_REQUEST;
            }
        }
        kept
    }

    /// What is wrong with the record that came last, behind which nothing is read.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Whether the request has ended.
    pub fn has_ended(&self) -> bool {
        self.request_ended
    }

    /// What the application has said of itself and nobody has taken.
    pub fn stderr(&self) -> &[u8] {
        &self.stderr
    }

    fn begin(&mut self) -> Result<(), Fault> {
        let [version, kind, id_high, id_low, high, low, padding, _] = self.header;
        let fault = |what: &str, byte: u8| Err(Fault::new(format!("upstream sent {what}: {byte}")));
        if version != VERSION {
            return fault("unsupported FastCGI protocol version", version);
        }
        if !matches!(kind, STDOUT | STDERR | END_REQUEST) {
            return fault("invalid FastCGI record type", kind);
        }
        if id_high != 0 {
            return fault("unexpected FastCGI request id high byte", id_high);
        }
        if id_low != REQUEST {
            return fault("unexpected FastCGI request id low byte", id_low);
        }
        self.left = usize::from(u16::from_be_bytes([high, low]));
        self.padding = usize::from(padding);
        self.stdout_closed |= kind == STDOUT && self.left == 0;
        Ok(())
    }
}

/// A connection to an application, as its one request sees it: what is read is the application's output.
pub struct Application {
    io: Io,
    records: Records,
    /// It is asked to let the connection go on.
    keep: bool,
    /// The head of the answer was read.
    answers: bool,
    closed: bool,
}

impl Application {
    pub(super) fn new(io: Io, keep: bool) -> Self {
        Self { io, records: Records::default(), keep, answers: false, closed: false }
    }

    /// The connection below.
    pub(crate) fn io(&self) -> &Io {
        &self.io
    }

    pub(crate) fn io_mut(&mut self) -> &mut Io {
        &mut self.io
    }

    /// How the output ended, if it did. Behind its last record the end of the request is waited for.
    fn end(&self) -> Option<End> {
        let Records { stdout_closed, request_ended, .. } = self.records;
        if stdout_closed && (request_ended || !self.answers) {
            Some(End::Stdout)
        } else if request_ended {
            Some(End::Request)
        } else {
            self.closed.then_some(End::Closed)
        }
    }

    /// Reads output; 0 is its end.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut read = 0;
        loop {
            // What is wrong with a record ends the answer.
            if let Some(fault) = self.records.fault.take() {
                return Poll::Ready(Err(fault.into()));
            }
            match self.end() {
                None => {}
                Some(End::Stdout) if !self.answers => {
                    let fault = Fault::new("upstream prematurely closed FastCGI stdout");
                    return Poll::Ready(Err(fault.into()));
                }
                Some(End::Request) if !self.answers => {
                    let fault = format!("upstream sent unexpected FastCGI record: {END_REQUEST}");
                    return Poll::Ready(Err(Fault::new(fault).into()));
                }
                Some(_) => return Poll::Ready(Ok(0)),
            }
            let n = ready!(self.io.poll_read(cx, into))?;
            self.closed = n == 0;
            let output = self.records.take(&mut into[..n]);
            if output > 0 {
                return Poll::Ready(Ok(output));
            }
            read += n;
            if read > TURN {
                // Messages without end are no reason to let others wait.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// Whether a read would find something.
    pub(crate) fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_over() || self.records.fault().is_some() {
            return Poll::Ready(Ok(()));
        }
        self.io.poll_read_ready(cx)
    }

    /// What is read from now on is the body.
    pub(super) fn begin_body(&mut self) {
        self.answers = true;
    }

    /// Whether all of the output was read.
    pub(super) fn is_over(&self) -> bool {
        self.end().is_some()
    }

    /// Whether the application is asked to let the connection go on, which is worth waiting for the end of the request.
    pub(super) fn keeps(&self) -> bool {
        self.keep
    }

    /// What is wrong with the end of a body that lacks bytes, or has no length.
    pub(super) fn fault_of_end(&self, lacks: bool) -> Option<Fault> {
        let premature = match self.end() {
            Some(End::Stdout) if lacks => "upstream prematurely closed FastCGI stdout",
            Some(End::Request) if lacks => "upstream prematurely closed FastCGI request",
            Some(End::Closed) if lacks || self.keep => "upstream prematurely closed connection",
            Some(_) | None => return None,
        };
        Some(Fault::new(premature))
    }

    /// What the application has said of itself since this was asked last; nothing mostly.
    pub(super) fn take_stderr(&mut self) -> Option<Vec<u8>> {
        if self.records.stderr().is_empty() { None } else { Some(mem::take(&mut self.records.stderr)) }
    }

    /// The connection, where another request may follow on it.
    pub(super) fn into_idle(self) -> Option<Io> {
        let Records { request_ended, beyond, .. } = self.records;
        (self.keep && request_ended && !beyond).then_some(self.io)
    }
}

/// Logs what an application said of itself.
pub(super) fn log_stderr(x: &Exchange, said: &[u8], doing: &str) {
    let end = said.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n' | b'.' | b' '));
    let said = String::from_utf8_lossy(&said[..end.map_or(1, |end| end + 1)]);
    x.log_while(Level::Error, None, format_args!("FastCGI sent in stderr: \"{said}\""), doing);
}

/// What stands before the fields of an application's head, so that it reads as others do.
const STATUS_LINE: &[u8] = b"HTTP/1.1 200 OK\r\n";

/// Takes output for the head of an answer (RFC 3875 section 6.3), which has `limit` bytes at most.
///
/// # Errors
/// As [`Head::parse`], and where `Status` has no three digits.
pub fn parse(head: &mut Head, input: &[u8], limit: usize) -> Result<Parsed, Invalid> {
    if head.raw().is_empty() {
        head.parse(STATUS_LINE, usize::MAX)?;
    }
    let parsed = head.parse(input, limit.saturating_add(STATUS_LINE.len()))?;
    if let Parsed::Complete(_) = parsed {
        settle(head)?;
    }
    Ok(parsed)
}

/// Gives a head the status that its fields tell.
fn settle(head: &mut Head) -> Result<(), Invalid> {
    let status = match head.first(Known::Status) {
        Some(status) => {
            let Some(digits) = status.first_chunk::<3>().filter(|code| code.iter().all(u8::is_ascii_digit))
            else {
                return Err(Invalid::quoting(&[b"upstream sent invalid status \"", status, b"\""]));
            };
            match (status[3..].strip_prefix(b" "), usual(digits)) {
                (None, Some(line)) => line.as_bytes().to_vec(),
                (reason, _) => [digits, &b" "[..], reason.unwrap_or_default()].concat(),
            }
        }
        None if head.has(Known::Location) => b"302 Moved Temporarily".to_vec(),
        None => return Ok(()),
    };
    let fields = &head.raw()[STATUS_LINE.len()..];
    let whole = [b"HTTP/1.1 ", &status[..], b"\r\n", fields].concat();
    head.reset();
    head.parse(&whole, usize::MAX).map(|_| ())
}

/// The line that goes with three digits.
fn usual(digits: &[u8; 3]) -> Option<&'static str> {
    status::line(digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0')))
}

#[cfg(test)]
mod tests;

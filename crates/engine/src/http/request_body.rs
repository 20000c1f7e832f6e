//! The body of a request: read whole before an upstream is asked, streamed to it, or thrown away.

use std::future::poll_fn;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use weir_ir::http::core::BodyInFile;
use weir_syntax::Level;

use crate::files::Failed;
use crate::http::{Client, Exchange};
use crate::http1::Known;
use crate::http1::body::{Decoder, Piece};
use crate::http1::request::{Head, Version};
use crate::io::{Io, scratch};
use crate::temp_file::{Keep, TempFile};
use crate::timer::Timer;

/// How the body is framed and how much of it is still to come.
#[derive(Debug)]
enum Framing {
    None,
    Length(u64),
    Chunked(Box<Decoder>),
    /// Up to the end of its stream.
    Stream {
        over: bool,
        /// Of the bytes that were declared.
        left: Option<u64>,
    },
}

/// The state of a request's body.
pub struct RequestBody {
    framing: Framing,
    /// Bytes of the body received so far, framing not counted.
    received: u64,
    /// `100 Continue` was sent, or need not be.
    continued: bool,
    /// It is not sent any more, since the client is answered with an error.
    refused: bool,
    /// Some of it was handed on as it came.
    begun: bool,
    /// The rest of it is handed on while the answer comes.
    goes_on: bool,
    /// The whole body, once it was read.
    stored: Option<Rc<Stored>>,
    /// It is read into a file whatever its length, and whoever asked for that may move the file away.
    in_file: bool,
    /// Nobody is to have it: what comes of it is thrown away.
    discarded: bool,
    /// Reading it failed; what is left of it cannot be told from the next request.
    broken: bool,
    /// The client ended, or broke, the connection within it.
    cut: bool,
    /// Until when more of it has to come (`client_body_timeout`), which may be while the client is written to.
    late: Option<Timer>,
}

/// A body that was read whole: in memory, or in a temporary file.
#[derive(Debug)]
pub enum Stored {
    Memory(Vec<u8>),
    File { file: TempFile, length: u64 },
}

impl Stored {
    pub fn len(&self) -> u64 {
        match self {
            Stored::Memory(bytes) => bytes.len() as u64,
            Stored::File { length, .. } => *length,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads a part into `into`, up to its length.
    ///
    /// # Errors
    /// The temporary file cannot be read.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Stored::Memory(bytes) => {
                let rest = bytes.get(offset as usize..).unwrap_or_default();
                let n = rest.len().min(into.len());
                into[..n].copy_from_slice(&rest[..n]);
                Ok(n)
            }
            Stored::File { file, .. } => file.file.read_at(into, offset),
        }
    }
}

/// Why a body could not be had: the status to answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyError(pub u16);

impl RequestBody {
    /// The state of a request without a body.
    pub(crate) const fn none() -> Self {
        Self {
            framing: Framing::None,
            received: 0,
            continued: true,
            refused: false,
            begun: false,
            goes_on: false,
            stored: None,
            in_file: false,
            discarded: false,
            broken: false,
            cut: false,
            late: None,
        }
    }

    /// The body as a subrequest has it: what was read of it, for nothing more is.
    pub(crate) fn shared(&self) -> Self {
        match (&self.stored, &self.framing) {
            (None, Framing::None) => Self::none(),
            (stored, _) => Self {
                framing: Framing::Length(0),
                received: self.received,
                stored: stored.clone(),
                discarded: stored.is_none(),
                ..Self::none()
            },
        }
    }

    /// Lets nobody have the body, be it read already.
    pub(crate) fn forget(&mut self) {
        self.discarded = !matches!(self.framing, Framing::None);
        self.stored = None;
    }

    pub(crate) fn of(head: &Head) -> Self {
        let framing = if head.streams() {
            Framing::Stream { over: false, left: head.content_length() }
        } else if head.is_chunked() {
            Framing::Chunked(Box::new(Decoder::new()))
        } else {
            match head.content_length() {
                Some(length) if length > 0 => Framing::Length(length),
                Some(_) | None => Framing::None,
            }
        };
        // As in nginx, nobody is told to go on over HTTP/2: how much is sent ahead is bounded there.
        let expects = (Version::HTTP_11..Version::HTTP_20).contains(&head.version())
            && head.first(Known::Expect).is_some_and(|e| e.eq_ignore_ascii_case(b"100-continue"));
        Self {
            framing,
            received: 0,
            continued: !expects,
            refused: false,
            begun: false,
            goes_on: false,
            stored: None,
            in_file: false,
            discarded: false,
            broken: false,
            cut: false,
            late: None,
        }
    }

    /// Whether nothing of the body is left on the connection.
    pub fn is_over(&self) -> bool {
        match &self.framing {
            Framing::None => true,
            Framing::Length(left) => *left == 0,
            Framing::Chunked(decoder) => decoder.is_over(),
            Framing::Stream { over, .. } => *over,
        }
    }

    /// Whether nothing of the body is left, and no client waits to send it.
    #[inline]
    pub(crate) fn is_settled(&self) -> bool {
        self.continued && self.is_over()
    }

    /// Whether the request has a body that somebody may have.
    pub fn exists(&self) -> bool {
        !self.discarded && !matches!(self.framing, Framing::None)
    }

    /// It is handed on as it comes from now on, so that nobody else can have all of it.
    pub(crate) fn begin(&mut self) {
        self.begun = true;
    }

    pub fn is_discarded(&self) -> bool {
        self.discarded
    }

    /// Lets nobody have the body any more, unless it was read whole before.
    pub(crate) fn discard(&mut self) {
        self.discarded = self.stored.is_none();
    }

    pub fn is_chunked(&self) -> bool {
        matches!(self.framing, Framing::Chunked(_) | Framing::Stream { left: None, .. })
    }

    /// What is left of it is for whoever makes the answer.
    pub(crate) fn go_on(&mut self) {
        self.goes_on = true;
    }

    pub(crate) fn goes_on(&self) -> bool {
        self.goes_on
    }

    /// The length of a body that came in chunks and is all here, thrown away or not.
    pub fn known_length(&self) -> Option<u64> {
        match (&self.stored, &self.framing) {
            (Some(stored), _) => Some(stored.len()),
            (None, Framing::Chunked(decoder)) if decoder.is_over() => Some(0),
            (None, Framing::Stream { over: true, left: None }) => Some(0),
            (None, _) => None,
        }
    }

    /// Lets nobody tell the client any more to send it.
    pub(crate) fn refuse(&mut self) {
        self.refused = true;
    }

    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether nobody is there to be told that it is not whole.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    /// Whether the client still waits for `100 Continue` and so has sent nothing of the body.
    pub fn is_awaited(&self) -> bool {
        !self.continued
    }

    pub fn stored(&self) -> Option<&Stored> {
        self.stored.as_deref()
    }
}

impl Exchange {
    /// Lets nobody have the rest of a body of which an upstream had the beginning.
    ///
    /// # Errors
    /// 502 where it is `needed`, unless the request has become a GET meanwhile, or was answered.
    pub(crate) fn forgo_rest(&mut self, needed: bool) -> Result<(), BodyError> {
        if !self.body.begun || !self.body.exists() {
            return Ok(());
        }
        self.body.discard();
        if needed && self.method_name.is_none() && !self.post_action {
            self.log(Level::Error, "request body was passed to another upstream already");
            return Err(BodyError(502));
        }
        Ok(())
    }

    /// Reads the whole body, into memory up to `client_body_buffer_size` and into a temporary file beyond.
    ///
    /// # Errors
    /// 413 beyond `client_max_body_size`, 408 after `client_body_timeout`, 400 for bad framing or a client that
    /// went away, 500 where the temporary file fails, 502 where an upstream had the beginning.
    pub async fn read_body(&mut self) -> Result<(), BodyError> {
        self.forgo_rest(true)?;
        let empty_file = self.body.in_file && self.head.content_length() == Some(0);
        if self.body.stored.is_some() || !(self.body.exists() || empty_file) {
            return Ok(());
        }
        self.send_continue().await?;
        let size = self.location().core.client_body_buffer_size;
        let bound = self.body_in_memory(size);
        let before = self.request_length;
        let mut memory = Vec::new();
        let mut file: Option<(TempFile, u64)> = None;
        while !self.body.is_over() {
            let result = poll_fn(|cx| self.poll_body_piece(cx, &mut memory)).await;
            if let Err(error) = result {
                self.body.broken = true;
                self.body.discard();
                self.keepalive = false;
                return Err(error);
            }
            if self.request_length - before > bound
                && (file.is_none() || memory.len() as u64 > size)
                && let Err(failed) = self.spill(&mut memory, &mut file)
            {
                self.log_error(Level::Crit, Some(&failed.error), &failed);
                self.keepalive = false;
                return Err(BodyError(500));
            }
        }
        let in_file = self.body.in_file || self.location().core.client_body_in_file_only != BodyInFile::Off;
        if (file.is_some() || in_file)
            && let Err(failed) = self.spill(&mut memory, &mut file)
        {
            self.log_error(Level::Crit, Some(&failed.error), &failed);
            return Err(BodyError(500));
        }
        self.body.stored = Some(Rc::new(match file {
            Some((file, length)) => Stored::File { file, length },
            None => Stored::Memory(memory),
        }));
        Ok(())
    }

    /// Reads the whole body into a temporary file, which has its name until the request ends or somebody moves it; `None`
    /// without a body.
    ///
    /// # Errors
    /// As [`Exchange::read_body`].
    pub async fn read_body_into_file(&mut self) -> Result<Option<&TempFile>, BodyError> {
        self.body.in_file = true;
        self.read_body().await?;
        match self.body.stored.as_deref() {
            Some(Stored::File { file, .. }) => Ok(Some(file)),
            Some(Stored::Memory(_)) | None => Ok(None),
        }
    }

    /// How much of the body, its framing included, is read before all of it goes into a file: as much as nginx has buffers for,
    /// one of them with what came behind the head, the other one as long as a rest that is little more than asked for.
    fn body_in_memory(&self, size: u64) -> u64 {
        let room = self.head.room_behind() as u64;
        let ahead = room.min(self.client.input.len() as u64);
        match &self.body.framing {
            Framing::Length(length) if self.head.version() < Version::HTTP_20 => {
                let in_room = ahead > 0 && *length <= room;
                let whole = in_room || length.saturating_sub(ahead) < size.saturating_add(size / 4);
                if whole { *length } else { ahead.saturating_add(size).min(length - 1) }
            }
            Framing::Chunked(_) => ahead.saturating_add(size).saturating_sub(1),
            Framing::None | Framing::Length(_) | Framing::Stream { .. } => size,
        }
    }

    fn spill(&mut self, memory: &mut Vec<u8>, file: &mut Option<(TempFile, u64)>) -> Result<(), Failed> {
        if file.is_none() {
            let core = &self.location().core;
            let (keep, level) = match core.client_body_in_file_only {
                _ if self.body.in_file => (Keep::WhileOpen, None),
                BodyInFile::Off => (Keep::Never, Some(Level::Warn)),
                BodyInFile::Clean => (Keep::WhileOpen, Some(Level::Notice)),
                BodyInFile::On => (Keep::Forever, Some(Level::Notice)),
            };
            let made = TempFile::create(&core.client_body_temp_path, keep)?;
            if let Some(level) = level {
                let message = "a client request body is buffered to a temporary file";
                self.log(level, format_args!("{message} {}", made.name()));
            }
            *file = Some((made, 0));
        }
        if let Some((made, length)) = file {
            let written = (&made.file).write_all(memory);
            written.map_err(|error| Failed::of("pwrite()", made.name(), error))?;
            *length += memory.len() as u64;
        }
        memory.clear();
        Ok(())
    }

    /// Lets a client that asked first send its body.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn send_continue(&mut self) -> Result<(), BodyError> {
        // Behind the answer it would be taken for the next one.
        if self.body.continued || self.body.discarded || self.body.refused || self.post_action {
            return Ok(());
        }
        self.body.continued = true;
        let io = &mut self.client.io;
        let text = b"HTTP/1.1 100 Continue\r\n\r\n";
        // Once: a client that does not even take this is given up, as in nginx.
        let sent = poll_fn(|cx| {
            let whole = matches!(io.poll_write(cx, text), Poll::Ready(Ok(n)) if n == text.len());
            Poll::Ready(whole && matches!(io.poll_flush(cx), Poll::Ready(Ok(()))))
        });
        if !sent.await {
            return Err(BodyError(499));
        }
        self.sent += text.len() as u64;
        Ok(())
    }

    /// Lets go of the body, which the answer is made without. As in nginx a client that asked first is told to send it all
    /// the same, so that the connection can go on.
    ///
    /// # Errors
    /// 499 where the client is gone, 400 where what came is no body.
    pub async fn forgo_body(&mut self) -> Result<(), BodyError> {
        if self.body.broken || self.head.version() == Version::HTTP_20 {
            return Ok(());
        }
        self.send_continue().await?;
        if self.discard_body_input() || !self.body.broken { Ok(()) } else { Err(BodyError(400)) }
    }

    /// Appends what is there of the body to `out`: at least a byte, unless the body is over.
    ///
    /// # Errors
    /// As [`Exchange::read_body`].
    pub fn poll_body_piece(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<u8>,
    ) -> Poll<Result<(), BodyError>> {
        let before = out.len();
        loop {
            if !self.client.input.is_empty() {
                self.take_body_input(out)?;
            }
            if out.len() > before || self.body.is_over() {
                self.body.late.iter().for_each(Timer::clear);
                if self.client.input.is_empty() {
                    self.client.input.release();
                }
                return Poll::Ready(Ok(()));
            }
            match self.poll_input(cx) {
                Poll::Ready(Ok(0)) if matches!(self.body.framing, Framing::Stream { .. }) => {
                    self.end_stream()?;
                }
                Poll::Ready(Ok(0) | Err(_)) if matches!(self.client.io, Io::Stream(_)) => {
                    self.body.cut = true;
                    self.log(Level::Info, "client prematurely closed stream");
                    return Poll::Ready(Err(BodyError(499)));
                }
                Poll::Ready(Ok(0)) => {
                    self.body.cut = true;
                    self.log(Level::Info, "client prematurely closed connection");
                    return Poll::Ready(Err(BodyError(400)));
                }
                Poll::Ready(Ok(_)) => self.body.late.iter().for_each(Timer::clear),
                Poll::Ready(Err(error)) => {
                    self.body.cut = true;
                    self.log_error(Level::Info, Some(&error), "recv() failed");
                    return Poll::Ready(Err(BodyError(400)));
                }
                Poll::Pending => {
                    let timeout = self.location().core.client_body_timeout;
                    let late = self.body.late.get_or_insert_with(|| self.reactor.timers().register());
                    if late.deadline().is_none() {
                        late.set_in(timeout);
                    }
                    if late.poll_expired(cx).is_ready() {
                        if let Io::Stream(stream) = &self.client.io {
                            stream.time_out();
                            let late = io::Error::from_raw_os_error(nix::libc::ETIMEDOUT);
                            self.log_error(Level::Info, Some(&late), "client timed out");
                        }
                        return Poll::Ready(Err(BodyError(408)));
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// The client has ended a body of HTTP/2.
    ///
    /// # Errors
    /// 400 where it is shorter than was declared.
    fn end_stream(&mut self) -> Result<(), BodyError> {
        let received = self.body.received;
        let Framing::Stream { over, left } = &mut self.body.framing else { return Ok(()) };
        *over = true;
        let Some(left @ 1..) = *left else { return Ok(()) };
        let declared = received + left;
        self.body.broken = true;
        self.log(
            Level::Info,
            format_args!(
                "client prematurely closed stream: only {received} out of {declared} bytes of request body received"
            ),
        );
        Err(BodyError(400))
    }

    /// Appends what of the body was read behind the head.
    ///
    /// # Errors
    /// 400 for bad framing, 413 beyond `client_max_body_size`.
    pub(crate) fn take_body_input(&mut self, out: &mut Vec<u8>) -> Result<(), BodyError> {
        let max = self.location().core.client_max_body_size;
        match &mut self.body.framing {
            Framing::None => Ok(()),
            Framing::Length(left) => {
                let n = (self.client.input.len() as u64).min(*left) as usize;
                out.extend_from_slice(&self.client.input[..n]);
                self.client.input.consume(n);
                *left -= n as u64;
                self.body.received += n as u64;
                if !self.body.discarded {
                    self.request_length += n as u64;
                }
                Ok(())
            }
            Framing::Stream { left, over } => {
                let ends = matches!(&self.client.io, Io::Stream(stream) if stream.is_over());
                let (before, piece) = (self.body.received, self.client.input.len() as u64);
                self.body.received += piece;
                self.request_length += piece;
                let Some(left) = left else {
                    *over |= ends;
                    out.extend_from_slice(&self.client.input);
                    self.client.input.clear();
                    return self.bound_body(max, before, piece);
                };
                let Some(rest) = left.checked_sub(piece) else {
                    self.body.broken = true;
                    self.log(Level::Info, "client intended to send body data larger than declared");
                    return Err(BodyError(400));
                };
                *left = rest;
                if rest > 0 && ends {
                    return self.end_stream();
                }
                *over |= ends;
                out.extend_from_slice(&self.client.input);
                self.client.input.clear();
                Ok(())
            }
            Framing::Chunked(decoder) => {
                while !self.client.input.is_empty() && !decoder.is_over() {
                    let Ok((taken, piece)) = decoder.next(&self.client.input) else {
                        self.log(Level::Error, "client sent invalid chunked body");
                        self.body.broken = true;
                        return Err(BodyError(400));
                    };
                    if !self.body.discarded {
                        self.request_length += taken as u64;
                    }
                    let mut last = 0;
                    if let Piece::Data(range) = piece {
                        last = range.len() as u64;
                        self.body.received += last;
                        out.extend_from_slice(&self.client.input[range]);
                    }
                    self.client.input.consume(taken);
                    if max > 0 && self.body.received > max && !self.body.discarded {
                        return self.bound_body(max, self.body.received - last, last);
                    }
                }
                Ok(())
            }
        }
    }

    /// Takes no more than `client_max_body_size` of a body whose length was not told; a piece came behind what came before.
    fn bound_body(&mut self, max: u64, before: u64, piece: u64) -> Result<(), BodyError> {
        if max == 0 || before + piece <= max || self.body.discarded {
            return Ok(());
        }
        if !self.body.broken {
            let message = format!("client intended to send too large chunked body: {before}+{piece} bytes");
            self.log(Level::Error, message);
        }
        self.body.broken = true;
        Err(BodyError(413))
    }

    /// Takes a body that has arrived as a whole already. True where it did, and is now at hand as if it had been read.
    pub(crate) fn take_ready_body(&mut self) -> bool {
        if self.body.is_awaited() || self.client.input.is_empty() || self.body.stored.is_some() {
            return self.body.stored.is_some();
        }
        let whole = match &self.body.framing {
            // Nothing of a stream is at hand before it is asked for.
            Framing::None | Framing::Stream { .. } => false,
            Framing::Length(left) => self.client.input.len() as u64 >= *left,
            Framing::Chunked(decoder) => {
                // A look ahead on a copy of the decoder.
                let (mut ahead, mut rest) = ((**decoder), &self.client.input[..]);
                while !rest.is_empty() && !ahead.is_over() {
                    match ahead.next(rest) {
                        Ok((taken, _)) => rest = &rest[taken..],
                        Err(_) => return false,
                    }
                }
                ahead.is_over()
            }
        };
        let mut bytes = Vec::new();
        if !whole || self.take_body_input(&mut bytes).is_err() {
            return false;
        }
        self.body.stored = Some(Rc::new(Stored::Memory(bytes)));
        true
    }

    /// Throws away what has arrived of a body that nobody read. True where all of it is gone and the connection may
    /// carry another request.
    pub fn discard_body_input(&mut self) -> bool {
        let mut sink = Vec::new();
        if self.body.is_over() {
            return !self.body.broken;
        }
        if self.body.broken || self.body.is_awaited() {
            return false;
        }
        self.body.discard();
        if !self.client.input.is_empty() && self.take_body_input(&mut sink).is_err() {
            self.body.broken = true;
            return false;
        }
        self.body.is_over()
    }

    /// Reads what is left of the body and throws it away, for `lingering_time` at the most and as long as something
    /// comes within `lingering_timeout`, be it framing.
    ///
    /// True where the connection may carry another request.
    pub(crate) async fn discard_body(&mut self) -> bool {
        if self.body.broken || self.body.is_awaited() && !self.body.is_over() {
            return false;
        }
        self.body.discard();
        let core = &self.location().core;
        let (time, timeout) = (core.lingering_time, core.lingering_timeout);
        let now = self.reactor.clock().refresh();
        let end = now + time;
        self.client.timer.set(end.min(now + timeout));
        let mut sink = Vec::new();
        let discarded = poll_fn(|cx| {
            loop {
                sink.clear();
                if self.take_body_input(&mut sink).is_err() {
                    return Poll::Ready(false);
                }
                if self.body.is_over() {
                    return Poll::Ready(true);
                }
                match self.poll_input(cx) {
                    Poll::Ready(Ok(1..)) => {
                        let now = self.reactor.clock().refresh();
                        if now >= end {
                            return Poll::Ready(false);
                        }
                        self.client.timer.set(end.min(now + timeout));
                    }
                    Poll::Ready(_) => return Poll::Ready(false),
                    Poll::Pending => return self.client.timer.poll_expired(cx).map(|()| false),
                }
            }
        })
        .await;
        self.client.timer.clear();
        if self.client.input.is_empty() {
            self.client.input.release();
        }
        discarded
    }

    /// Reads once, behind what is there already; 0 is the client's end.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Client { io, input, .. } = &mut self.client;
        scratch(|bytes| {
            let n = ready!(io.poll_read(cx, bytes))?;
            input.extend(&bytes[..n]);
            Poll::Ready(Ok(n))
        })
    }
}

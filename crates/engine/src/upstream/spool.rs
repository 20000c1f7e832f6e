//! Bytes on their way into a temporary file: threads that may block write them, and what was written is read meanwhile.

use std::future::Future;
use std::mem;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::task::{JoinHandle, spawn_blocking};
use weir_ir::program::PathSpec;

use crate::cache;
use crate::files::Failed;
use crate::io::Buf;
use crate::temp_file::{Keep, TempFile};

/// Bytes that are written at once at least, while more come: fewer are not worth another thread.
const PIECE: usize = 64 * 1024;
/// Bytes that may wait for it.
const MOST: usize = 4 * PIECE;
/// Bytes that are read at once.
const READ: u64 = 64 * 1024;

/// Where the file is made.
#[derive(Clone)]
pub(super) enum Place {
    /// Nobody else ever sees it.
    Nameless(Arc<PathSpec>),
    /// It will be moved.
    Below(Arc<PathSpec>),
    /// It will be moved to this path, which it is near already.
    Near(Arc<str>),
}

impl Place {
    fn create(&self) -> Result<TempFile, Failed> {
        match self {
            Self::Nameless(below) => TempFile::create(below, Keep::Never),
            Self::Below(below) => TempFile::create(below, Keep::WhileOpen),
            Self::Near(path) => cache::beside(path),
        }
    }
}

pub(super) struct Spool {
    place: Place,
    piece: usize,
    /// Made when there is something to write.
    file: Option<Arc<TempFile>>,
    /// Bytes of the file that can be read,
    written: u64,
    /// that are being written behind them,
    writing: u64,
    /// and that wait for that.
    pending: Vec<u8>,
    write: Option<JoinHandle<Result<Arc<TempFile>, Failed>>>,
}

impl Spool {
    /// `piece` is how much is written at once where that is more than usual.
    pub fn new(place: Place, piece: usize, start: Vec<u8>) -> Self {
        let piece = piece.max(PIECE);
        Self { place, piece, file: None, written: 0, writing: 0, pending: start, write: None }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// How many bytes there are, written or not.
    pub fn len(&self) -> u64 {
        self.written + self.writing + self.pending.len() as u64
    }

    pub fn file(&self) -> Option<&Arc<TempFile>> {
        self.file.as_ref()
    }

    /// Begins anew, since all of it was read.
    pub fn rewind(&mut self) {
        if self.write.is_none() {
            self.written = 0;
            self.pending = Vec::new();
        }
    }

    /// Waits until nothing is being written.
    ///
    /// # Errors
    /// As [`Spool::poll_room`].
    pub fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let Some(write) = &mut self.write else { return Poll::Ready(Ok(())) };
        let done = ready!(Pin::new(write).poll(cx));
        self.write = None;
        self.written += mem::take(&mut self.writing);
        // A thread that died has said why.
        let file = done.unwrap_or_else(|error| Err(Failed::of("write()", "", error.into())))?;
        self.file = Some(file);
        Poll::Ready(Ok(()))
    }

    /// Waits until more may be pushed.
    ///
    /// # Errors
    /// The file cannot be written; it is of no more use.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        loop {
            match self.poll_idle(cx) {
                Poll::Pending if self.pending.len() < MOST.max(self.piece) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(failed)) => return Poll::Ready(Err(failed)),
                Poll::Ready(Ok(())) if self.pending.len() < self.piece => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => self.start(),
            }
        }
    }

    /// Waits until all of it is in the file, which is made if it has no bytes.
    ///
    /// # Errors
    /// As [`Spool::poll_room`].
    pub fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arc<TempFile>, Failed>> {
        loop {
            ready!(self.poll_idle(cx))?;
            if let (Some(file), true) = (&self.file, self.pending.is_empty()) {
                return Poll::Ready(Ok(Arc::clone(file)));
            }
            self.start();
        }
    }

    /// Writes what is pending.
    fn start(&mut self) {
        let bytes = mem::take(&mut self.pending);
        let (file, place, offset) = (self.file.clone(), self.place.clone(), self.written);
        self.writing = bytes.len() as u64;
        self.write = Some(spawn_blocking(move || {
            let file = match file {
                Some(file) => file,
                None => Arc::new(place.create()?),
            };
            let written = file.file.write_all_at(&bytes, offset);
            written.map_err(|error| Failed::of("pwrite()", file.name(), error))?;
            Ok(file)
        }));
    }

    /// Reads on from the start of a part that was pushed, as far as it goes.
    ///
    /// # Errors
    /// The bytes could not be written, or cannot be read.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        part: &Range<u64>,
        into: &mut Buf,
    ) -> Poll<Result<(), Failed>> {
        let most = (part.end - part.start).min(READ);
        loop {
            if let Some(file) = self.file.as_ref().filter(|_| part.start < self.written) {
                let room = (self.written - part.start).min(most) as usize;
                let read = into.fill(room, |into| file.file.read_exact_at(into, part.start).map(|()| room));
                let read = read.map_err(|error| Failed::of("pread()", file.name(), error));
                return Poll::Ready(read.map(|_| ()));
            }
            if let Some(at) = part.start.checked_sub(self.written + self.writing) {
                let rest = self.pending.get(at as usize..).unwrap_or_default();
                into.extend(&rest[..rest.len().min(most as usize)]);
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_idle(cx))?;
        }
    }
}

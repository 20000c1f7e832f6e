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

/// What failed once is to be dropped: the file lacks something then.
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

    /// Waits until what was pushed is written, for no more comes for a while.
    ///
    /// # Errors
    /// As [`Spool::poll_room`].
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        loop {
            ready!(self.poll_idle(cx))?;
            if self.pending.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.start();
        }
    }

    /// Waits until all of it is in the file, which is made if it has no bytes.
    ///
    /// # Errors
    /// As [`Spool::poll_room`].
    pub fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arc<TempFile>, Failed>> {
        loop {
            ready!(self.poll_flush(cx))?;
            if let Some(file) = &self.file {
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn spool(name: &str, piece: usize, start: &[u8]) -> (Spool, std::path::PathBuf) {
        let below = std::env::temp_dir().join(format!("weir-spool-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&below).unwrap();
        let spec = PathSpec { path: below.to_string_lossy().into(), levels: [1, 0, 0], position: None };
        (Spool::new(Place::Below(Arc::new(spec)), piece, start.to_vec()), below)
    }

    /// All of a part.
    async fn read(spool: &mut Spool, mut part: Range<u64>) -> Vec<u8> {
        let mut all = vec![];
        while !part.is_empty() {
            let mut some = Buf::new();
            poll_fn(|cx| spool.poll_read(cx, &part, &mut some)).await.unwrap();
            assert!(!some.is_empty());
            part.start += some.len() as u64;
            all.extend_from_slice(&some);
        }
        all
    }

    #[tokio::test]
    async fn what_was_pushed_is_read_wherever_it_is() {
        let (mut spool, folder) = spool("read", 0, b"start");
        let mut all = b"start".to_vec();
        for n in 0..40_u8 {
            let piece = vec![n; 9_000 + usize::from(n)];
            poll_fn(|cx| spool.poll_room(cx)).await.unwrap();
            spool.push(&piece);
            all.extend_from_slice(&piece);
            // Some of it is in the file, some is on its way, some waits.
            let from = all.len() / 3;
            assert!(read(&mut spool, from as u64..all.len() as u64).await == all[from..], "{n}");
            assert!(read(&mut spool, 2..9).await == all[2..9]);
        }
        let file = poll_fn(|cx| spool.poll_written(cx)).await.unwrap();
        assert!(std::fs::read(file.name()).unwrap() == all);
        assert!(read(&mut spool, 0..all.len() as u64).await == all);
        spool.rewind();
        spool.push(b"again");
        assert_eq!((spool.len(), read(&mut spool, 0..5).await), (5, b"again".to_vec()));
        drop((spool, file));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn as_much_waits_as_is_allowed() {
        let (mut spool, folder) = spool("room", 2 * MOST, b"");
        for _ in 0..3 {
            spool.push(&[0; MOST]);
        }
        let noop = &mut Context::from_waker(std::task::Waker::noop());
        assert!(
            spool.poll_room(noop).is_ready() && spool.pending.is_empty(),
            "it is being written, or is already"
        );
        spool.push(&[0; 2 * MOST]);
        // Nobody has looked whether it is written.
        assert!(spool.poll_room(noop).is_pending() || spool.written > 0);
        poll_fn(|cx| spool.poll_written(cx)).await.unwrap();
        assert_eq!((spool.written, spool.pending.len()), (5 * MOST as u64, 0));
        drop(spool);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn nothing_is_a_file_too_and_a_folder_that_is_none_is_told() {
        let (mut empty, folder) = spool("empty", 0, b"");
        let file = poll_fn(|cx| empty.poll_written(cx)).await.unwrap();
        assert_eq!(std::fs::read(file.name()).unwrap(), b"");
        drop((empty, file));
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::write(&folder, "").unwrap();
        let spec = PathSpec { path: folder.to_string_lossy().into(), levels: [0; 3], position: None };
        let mut broken = Spool::new(Place::Nameless(Arc::new(spec)), 0, vec![1]);
        let failed = poll_fn(|cx| broken.poll_written(cx)).await.unwrap_err();
        assert!(failed.to_string().starts_with(&format!("open() \"{}/0", folder.display())), "{failed}");
        std::fs::remove_file(folder).unwrap();
    }
}

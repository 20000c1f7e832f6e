//! Files as a reactor may ask for them: what the kernel has at hand is had at once; what a disk has to be waited for is
//! `WouldBlock`, and asked for again on a thread that may wait.
//!
//! To hand everything to a thread would cost more than all else that a small answer takes.

use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::fs::{CWD, FsWord, Mode, OFlags, ResolveFlags, fstatfs, open, openat2};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::io::Buf;

// Without NONBLOCK opening a pipe would wait for its writer.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// These cannot say what they have at hand, but are memory, or hand on to others that are as near.
const NEAR: [FsWord; 3] = [0x0102_1994, 0x8584_58f6, 0x794c_7630];

/// Bytes that are waited for before the first of them go out.
const FETCHED: u64 = 512 * 1024;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// May not wait.
    Reactor,
    /// May.
    Pool,
}

impl Caller {
    /// Opens a file to read it.
    ///
    /// # Errors
    /// Those of the file system; for a reactor `WouldBlock` where it did not say what there is.
    pub fn open(self, path: &Path) -> io::Result<File> {
        self.look(path, READ)
    }

    /// Follows a path and no more: whether it leads to something does not depend on what may be done with that.
    ///
    /// # Errors
    /// As for [`Caller::open`].
    pub fn reach(self, path: &Path) -> io::Result<File> {
        self.look(path, OFlags::PATH | OFlags::CLOEXEC)
    }

    fn look(self, path: &Path, flags: OFlags) -> io::Result<File> {
        if self == Self::Pool {
            return Ok(open(path, flags, Mode::empty())?.into());
        }
        match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED) {
            Ok(file) => Ok(file.into()),
            Err(Errno::NOENT) => Err(Errno::NOENT.into()),
            // Not at hand, or not to be asked of this kernel. Any other failure is rare enough to be met the other way.
            Err(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Reads what it can of a file, from `at` on.
    ///
    /// # Errors
    /// Those of the file system; for a reactor `WouldBlock` where none of it is at hand.
    pub fn read(self, file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
        if self == Self::Pool {
            return file.read_at(into, at);
        }
        match preadv2(file, &mut [IoSliceMut::new(into)], at, ReadWriteFlags::NOWAIT) {
            Ok(n) => Ok(n),
            Err(Errno::OPNOTSUPP) if fstatfs(file).is_ok_and(|about| NEAR.contains(&about.f_type)) => {
                file.read_at(into, at)
            }
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether a part of a file can be read without waiting, as far as its first and its last byte tell.
fn is_at_hand(file: &File, at: u64, length: u64) -> bool {
    let waits = |at| match Caller::Reactor.read(file, &mut [0], at) {
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        // At the end there is nothing to be waited for.
        Ok(_) => false,
    };
    length == 0 || !waits(at) && !waits(at + length - 1)
}

/// Reads a part of a file for the sake of the kernel's cache. What fails here fails for whoever reads it then.
fn fetch(file: Arc<File>, mut at: u64, length: u64) -> JoinHandle<()> {
    spawn_blocking(move || {
        let end = at + length;
        let mut bytes = vec![0; 128 * 1024];
        while at < end {
            let room = usize::try_from(end - at).unwrap_or(usize::MAX).min(bytes.len());
            match file.read_at(&mut bytes[..room], at) {
                Ok(0) | Err(_) => return,
                Ok(n) => at += n as u64,
            }
        }
    })
}

/// Has a thread read a part of a file where it is not at hand, so that who reads it then need not wait; how much of it.
pub async fn bring(file: &Arc<File>, at: u64, length: u64) -> u64 {
    if is_at_hand(file, at, length) {
        return length;
    }
    let length = length.min(FETCHED);
    // It ends early only with the runtime.
    let _ = fetch(Arc::clone(file), at, length).await;
    length
}

/// Reads a file piece by piece, some of which are waited for.
#[derive(Debug, Default)]
pub struct Reader(Option<JoinHandle<()>>);

impl Reader {
    /// Reads what it can, from `at` on; 0 at the end.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        file: &Arc<File>,
        into: &mut [u8],
        at: u64,
    ) -> Poll<io::Result<usize>> {
        if self.0.is_none() {
            match Caller::Reactor.read(file, into, at) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
        let fetching = self.0.get_or_insert_with(|| fetch(Arc::clone(file), at, into.len() as u64));
        let _ = ready!(Pin::new(fetching).poll(cx));
        self.0 = None;
        Poll::Ready(file.read_at(into, at))
    }

    /// The same behind what a buffer has.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        file: &Arc<File>,
        buf: &mut Buf,
        room: usize,
        at: u64,
    ) -> Poll<io::Result<usize>> {
        let filled = buf.fill(room, |into| match self.poll_read(cx, file, into, at) {
            Poll::Ready(read) => read.map_err(Some),
            Poll::Pending => Err(None),
        });
        match filled {
            Ok(n) => Poll::Ready(Ok(n)),
            Err(Some(error)) => Poll::Ready(Err(error)),
            Err(None) => Poll::Pending,
        }
    }

    /// The same.
    ///
    /// # Errors
    /// Those of the file system.
    pub async fn fill(&mut self, file: &Arc<File>, buf: &mut Buf, room: usize, at: u64) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx, file, buf, room, at)).await
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Advice, fadvise};
    use weir_testkit::Folder;

    use super::*;

    fn is_near(file: &File) -> bool {
        fstatfs(file).is_ok_and(|about| NEAR.contains(&about.f_type))
    }

    #[tokio::test]
    async fn what_is_not_at_hand_is_brought() {
        let folder = Folder::new(&[("a", &[b'x'; 600_000])]);
        let path = folder.path().join("a");
        let file = Arc::new(Caller::Pool.open(&path).unwrap());
        let drop_pages = || {
            file.sync_all().unwrap();
            fadvise(&*file, 0, None, Advice::DontNeed).unwrap();
        };
        drop_pages();
        let mut bytes = [0; 8];
        let read = Caller::Reactor.read(&file, &mut bytes, 599_996);
        match is_near(&file) {
            true => assert_eq!(read.unwrap(), 4),
            false => assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock),
        }
        // As much as is waited for at once, and what is there already.
        let brought = bring(&file, 0, 600_000).await;
        assert!(brought == FETCHED || is_near(&file) && brought == 600_000, "{brought}");
        assert_eq!(bring(&file, brought, 600_000 - brought).await, 600_000 - brought);
        assert_eq!(bring(&file, 0, 600_000).await, 600_000);
        assert_eq!(Caller::Reactor.read(&file, &mut bytes, 599_996).unwrap(), 4);
        drop_pages();
        let (mut reader, mut buf) = (Reader::default(), Buf::new());
        assert_eq!(reader.fill(&file, &mut buf, 5, 599_998).await.unwrap(), 2);
        assert_eq!(reader.fill(&file, &mut buf, 5, 600_000).await.unwrap(), 0);
        assert_eq!(*buf, *b"xx");
    }

    #[test]
    fn names() {
        let folder = Folder::new(&[("a", b"x")]);
        let path = folder.path().join("a");
        // A name that was asked for just now is at hand.
        Caller::Pool.open(&path).unwrap();
        assert!(Caller::Reactor.open(&path).is_ok() && Caller::Reactor.reach(&path).is_ok());
        let none = folder.path().join("none");
        assert_eq!(Caller::Pool.open(&none).unwrap_err().kind(), io::ErrorKind::NotFound);
        let kind = Caller::Reactor.open(&none).unwrap_err().kind();
        assert!(matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::WouldBlock), "{kind}");
        // Whatever else is wrong, who may wait finds it.
        let below = path.join("below");
        assert_eq!(Caller::Reactor.open(&below).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(Caller::Pool.open(&below).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }
}

//! Files to sockets: `sendfile` where the socket is plain, `pread` and an ordinary write where TLS must encrypt, or HTTP/2 frame.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};

use nix::libc::{MSG_MORE, MSG_NOSIGNAL};
use tokio::io::Interest;

use super::{Io, Socket, scratch};

/// Bytes that one `sendfile` is asked for: the kernel's own bound, below 2 GiB.
const CHUNK: u64 = 0x7fff_f000;

impl Io {
    /// Sends up to `len` bytes of `file` from `*offset` on and moves the offset by what was sent, which is returned.
    ///
    /// Returns 0 when the file ends before that (it was truncated meanwhile). With TLS, ask [`Io::poll_flush`] at the
    /// end. A fast reader is served for as long as `len` lasts: bound it (nginx: `sendfile_max_chunk`, 2 MiB) for the
    /// sake of the thread's other tasks. With TLS the read from disk happens on the calling thread, as with `sendfile`.
    pub fn poll_sendfile(
        &mut self,
        cx: &mut Context<'_>,
        file: impl AsFd,
        offset: &mut u64,
        len: u64,
    ) -> Poll<io::Result<usize>> {
        let from = i64::try_from(*offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let sent = match self {
            Io::Plain(socket) => ready!(poll_sendfile(socket, cx, &file, from, len))?,
            Io::TlsServer(_) | Io::TlsClient(_) | Io::Stream(_) => ready!(scratch(|bytes| {
                // What is read and not taken would be read again.
                let taken = match self {
                    Io::Stream(stream) => ready!(stream.poll_room(cx))?,
                    _ => bytes.len(),
                };
                let room = bytes.len().min(taken).min(usize::try_from(len).unwrap_or(usize::MAX));
                match nix::sys::uio::pread(&file, &mut bytes[..room], from) {
                    Ok(0) => Poll::Ready(Ok(0)),
                    Ok(got) => self.poll_write(cx, &bytes[..got]),
                    Err(e) => Poll::Ready(Err(e.into())),
                }
            }))?,
            Io::Request(_) | Io::FastCgi(_) | Io::Absent => {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
        };
        *offset += sent as u64;
        Poll::Ready(Ok(sent))
    }
}

fn poll_sendfile(
    socket: &Socket,
    cx: &mut Context<'_>,
    file: &impl AsFd,
    from: i64,
    len: u64,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_write_ready(cx))?;
        let mut at = from;
        let count = len.min(CHUNK) as usize;
        let sent = socket.try_io(Interest::WRITABLE, || {
            Ok(nix::sys::sendfile::sendfile(socket, file, Some(&mut at), count)?)
        });
        match sent {
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            sent => return Poll::Ready(sent),
        }
    }
}

pub(super) fn poll_send_more(
    socket: &Socket,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_write_ready(cx))?;
        let sent = socket.try_io(Interest::WRITABLE, || {
            socket.options().send_vectored_with_flags(pieces, MSG_MORE | MSG_NOSIGNAL)
        });
        match sent {
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            sent => return Poll::Ready(sent),
        }
    }
}

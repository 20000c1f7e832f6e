//! A stream socket, TCP or unix, with the options that nginx's directives set on it.

use std::cell::Cell;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::coop;

use super::sendfile::poll_send_more;

/// A connected stream socket registered with the thread's reactor: TCP over IPv4 or IPv6, or a unix stream.
pub struct Socket {
    stream: Stream,
    /// Whose waker the reactor has for when the socket becomes readable, by [`task`]. Holds until the socket is found
    /// readable, so a task that looks at a silent socket again and again registers once.
    waits: Cell<usize>,
    /// [`Socket::closes`] was called.
    closing: Cell<bool>,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What [`Socket::bound_unsent`] lets the kernel queue, in bytes.
const UNSENT: u32 = 128 * 1024;

/// Nobody's [`task`].
const NOBODY: usize = usize::MAX;
/// Nobody's either: the last read took all that it could hold.
const FULL: usize = usize::MAX - 1;

/// Tells the wakers of tasks apart. The reactor holds a clone of the one it has, so no other task gets its address.
fn task(cx: &Context<'_>) -> usize {
    cx.waker().data().addr()
}

pub use weir_ir::address::Address;

pub(super) fn unix_address(address: &tokio::net::unix::SocketAddr) -> Address {
    Address::Unix(address.as_pathname().map(|path| path.to_string_lossy().into()).unwrap_or_default())
}

macro_rules! either {
    ($socket:expr, $s:ident => $call:expr) => {
        match $socket {
            Stream::Tcp($s) => $call,
            Stream::Unix($s) => $call,
        }
    };
}

impl Socket {
    /// The peer's address.
    pub fn peer_addr(&self) -> io::Result<Address> {
        match &self.stream {
            Stream::Tcp(tcp) => tcp.peer_addr().map(Address::Ip),
            Stream::Unix(unix) => unix.peer_addr().map(|address| unix_address(&address)),
        }
    }

    /// Our own address on this connection.
    pub fn local_addr(&self) -> io::Result<Address> {
        match &self.stream {
            Stream::Tcp(tcp) => tcp.local_addr().map(Address::Ip),
            Stream::Unix(unix) => unix.local_addr().map(|address| unix_address(&address)),
        }
    }

    /// Lets each write go out at once, instead of with what follows it (nginx: `tcp_nodelay`).
    pub fn set_nodelay(&self) {
        if let Stream::Tcp(tcp) = &self.stream {
            // A socket that refuses is broken, and the next write says how.
            let _ = tcp.set_nodelay(true);
        }
    }

    /// Bounds what the kernel queues beyond what the peer has room for (`TCP_NOTSENT_LOWAT`): for connections that large
    /// files go out on. A slow reader then holds as much instead of a send buffer grown to MiBs, and many at a time take
    /// turns, which on a fast network costs half the work of filling one buffer after the other.
    pub fn bound_unsent(&self) {
        if let Stream::Tcp(_) = &self.stream {
            // Linux has it since 3.12; without it the connection works as any other.
            let _ = self.options().set_tcp_notsent_lowat(UNSENT);
        }
    }

    /// The pending error of the socket (`SO_ERROR`), which reading it clears.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        either!(&self.stream, s => s.take_error())
    }

    /// Lets the close send a reset and drop what was not sent (`SO_LINGER` of zero seconds).
    pub fn linger_zero(&self) {
        // A socket that refuses is closed the ordinary way.
        let _ = self.options().set_linger(Some(Duration::ZERO));
    }

    /// All other socket options.
    pub fn options(&self) -> SockRef<'_> {
        either!(&self.stream, s => SockRef::from(s))
    }

    /// Waits until a read would not wait.
    #[inline]
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if either!(&self.stream, s => s.try_io(Interest::READABLE, || Ok(()))).is_ok() {
            return Poll::Ready(Ok(()));
        }
        if self.waits.get() == task(cx) { Poll::Pending } else { self.wait(cx) }
    }

    /// Has the task woken when the socket becomes readable.
    fn wait(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Of a task that has had its share the reactor takes no waker: it is polled again at once.
        let registers = coop::has_budget_remaining();
        let polled = either!(&self.stream, s => s.poll_read_ready(cx));
        self.waits.set(if registers && polled.is_pending() { task(cx) } else { NOBODY });
        polled
    }

    /// Reads what is there, up to `into.len()` bytes; 0 is the end of the stream.
    #[inline]
    pub fn poll_read(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        // A socket that keeps filling what it is read into must not keep the thread.
        if self.waits.get() == FULL {
            ready!(coop::poll_proceed(cx)).made_progress();
        }
        loop {
            if let Some(read) = self.read(into) {
                return Poll::Ready(read);
            }
            if self.waits.get() == task(cx) {
                return Poll::Pending;
            }
            ready!(self.wait(cx))?;
        }
    }

    /// As [`Socket::poll_read`], but leaves what it reads where it is.
    pub fn poll_peek(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_read_ready(cx))?;
            self.waits.set(NOBODY);
            let peek = || Ok(recv(self, &mut *into, RecvFlags::PEEK)?.1);
            match self.try_io(Interest::READABLE, peek) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                peeked => return Poll::Ready(peeked),
            }
        }
    }

    /// Whether the peer's end has come, be it behind bytes that were not read yet.
    pub fn is_read_closed(&self) -> bool {
        // Of what this waits for, the end alone ever happens.
        let cx = &mut Context::from_waker(Waker::noop());
        let ready = either!(&self.stream, s => pin!(s.ready(Interest::PRIORITY)).poll(cx));
        matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    /// Says that the connection is closed as soon as what is written from now on is taken: the last segment waits for the
    /// FIN, which then is none of its own. [`Socket::close`] has to follow before anything is waited for but the peer.
    pub fn closes(&self) {
        self.closing.set(true);
    }

    /// Sends the FIN where something waits for it. Otherwise dropping the socket does, but then the kernel would forget
    /// what it holds if there were something to read.
    pub fn close(&self) {
        if self.closing.get() {
            // A peer that is gone needs none.
            let _ = self.options().shutdown(Shutdown::Write);
        }
    }

    /// Waits until a write would not wait.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(&self.stream, s => s.poll_write_ready(cx))
    }

    /// Reads if the socket is known to be readable; nothing, without a system call, if it is not.
    pub fn read(&self, into: &mut [u8]) -> Option<io::Result<usize>> {
        let mut read = None;
        // The reads are told of here, so that one that took all there was can take the readiness away with it.
        let _ = either!(&self.stream, s => s.try_io(Interest::READABLE, || {
            let got = recv(s, &mut *into, RecvFlags::empty()).map(|(_, n)| n).map_err(io::Error::from);
            let (emptied, full) = match &got {
                Ok(n) => (0 < *n && *n < into.len(), *n == into.len()),
                Err(error) => (error.kind() == io::ErrorKind::WouldBlock, false),
            };
            self.waits.set(if full { FULL } else { NOBODY });
            read = match got {
                Err(_) if emptied => None,
                got => Some(got),
            };
            if emptied { Err(io::Error::from(io::ErrorKind::WouldBlock)) } else { Ok(()) }
        }));
        read
    }

    /// Writes if the socket is not known to be full; `WouldBlock` if it is.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = Err(io::ErrorKind::WouldBlock.into());
        // As with reads: what took less than there was is full.
        let _ = either!(&self.stream, s => s.try_io(Interest::WRITABLE, || {
            let more = if self.closing.get() { SendFlags::MORE } else { SendFlags::empty() };
            written = send(s, bytes, SendFlags::NOSIGNAL | more).map_err(io::Error::from);
            let filled = match &written {
                Ok(n) => *n < bytes.len(),
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            };
            if filled { Err(io::Error::from(io::ErrorKind::WouldBlock)) } else { Ok(()) }
        }));
        written
    }

    /// Runs `work` if the socket is known to be ready; a `WouldBlock` from it clears the readiness.
    pub fn try_io<T>(&self, interest: Interest, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        either!(&self.stream, s => s.try_io(interest, work))
    }
}

impl From<TcpStream> for Socket {
    fn from(tcp: TcpStream) -> Self {
        Socket { stream: Stream::Tcp(tcp), waits: Cell::new(NOBODY), closing: Cell::new(false) }
    }
}

impl From<UnixStream> for Socket {
    fn from(unix: UnixStream) -> Self {
        Socket { stream: Stream::Unix(unix), waits: Cell::new(NOBODY), closing: Cell::new(false) }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(&self.stream, s => s.as_fd())
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        either!(&self.stream, s => s.fmt(f))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = ready!(Socket::poll_read(&self, cx, buf.initialize_unfilled()))?;
        buf.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let share = ready!(coop::poll_proceed(cx));
        loop {
            match self.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(self.poll_write_ready(cx))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => {
                    share.made_progress();
                    return Poll::Ready(written);
                }
            }
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(&mut self.get_mut().stream, s => Pin::new(s).poll_shutdown(cx))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let socket = self.get_mut();
        if socket.closing.get() {
            return poll_send_more(socket, cx, pieces);
        }
        either!(&mut socket.stream, s => Pin::new(s).poll_write_vectored(cx, pieces))
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
}

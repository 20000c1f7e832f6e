//! A stream socket, TCP or unix, with the options that nginx's directives set on it.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A connected stream socket registered with the thread's reactor.
pub enum Socket {
    /// TCP over IPv4 or IPv6.
    Tcp(TcpStream),
    /// A unix stream socket.
    Unix(UnixStream),
}

pub use weir_ir::address::Address;

pub(super) fn unix_address(address: &tokio::net::unix::SocketAddr) -> Address {
    Address::Unix(address.as_pathname().map(|path| path.to_string_lossy().into()).unwrap_or_default())
}

macro_rules! either {
    ($socket:expr, $s:ident => $call:expr) => {
        match $socket {
            Socket::Tcp($s) => $call,
            Socket::Unix($s) => $call,
        }
    };
}

impl Socket {
    /// The peer's address.
    pub fn peer_addr(&self) -> io::Result<Address> {
        match self {
            Socket::Tcp(tcp) => tcp.peer_addr().map(Address::Ip),
            Socket::Unix(unix) => unix.peer_addr().map(|address| unix_address(&address)),
        }
    }

    /// Our own address on this connection.
    pub fn local_addr(&self) -> io::Result<Address> {
        match self {
            Socket::Tcp(tcp) => tcp.local_addr().map(Address::Ip),
            Socket::Unix(unix) => unix.local_addr().map(|address| unix_address(&address)),
        }
    }

    /// Lets each write go out at once, instead of with what follows it (nginx: `tcp_nodelay`).
    pub fn set_nodelay(&self) {
        if let Socket::Tcp(tcp) = self {
            // A socket that refuses is broken, and the next write says how.
            let _ = tcp.set_nodelay(true);
        }
    }

    /// The pending error of the socket (`SO_ERROR`), which reading it clears.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        either!(self, s => s.take_error())
    }

    /// Lets the close send a reset and drop what was not sent (`SO_LINGER` of zero seconds).
    pub fn linger_zero(&self) {
        // A socket that refuses is closed the ordinary way.
        let _ = self.options().set_linger(Some(Duration::ZERO));
    }

    /// All other socket options.
    pub fn options(&self) -> SockRef<'_> {
        either!(self, s => SockRef::from(s))
    }

    /// Waits until a read would not wait.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, s => s.poll_read_ready(cx))
    }

    /// Whether the peer's end has come, be it behind bytes that were not read yet.
    pub fn is_read_closed(&self) -> bool {
        // Of what this waits for, the end alone ever happens.
        let cx = &mut Context::from_waker(Waker::noop());
        let ready = either!(self, s => pin!(s.ready(Interest::PRIORITY)).poll(cx));
        matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    /// Waits until a write would not wait.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, s => s.poll_write_ready(cx))
    }

    /// Reads if the socket is known to be readable; `WouldBlock`, without a system call, if it is not.
    pub fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        either!(self, s => s.try_read(into))
    }

    /// Writes if the socket is not known to be full; `WouldBlock` if it is.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        either!(self, s => s.try_write(bytes))
    }

    /// Runs `work` if the socket is known to be ready; a `WouldBlock` from it clears the readiness.
    pub fn try_io<T>(&self, interest: Interest, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        either!(self, s => s.try_io(interest, work))
    }
}

impl From<TcpStream> for Socket {
    fn from(tcp: TcpStream) -> Self {
        Socket::Tcp(tcp)
    }
}

impl From<UnixStream> for Socket {
    fn from(unix: UnixStream) -> Self {
        Socket::Unix(unix)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(self, s => s.as_fd())
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        either!(self, s => s.fmt(f))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), s => Pin::new(s).poll_write(cx, bytes))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), s => Pin::new(s).poll_shutdown(cx))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), s => Pin::new(s).poll_write_vectored(cx, pieces))
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
}

//! Listening sockets and the loop that accepts from them.

use std::future::poll_fn;
use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::task::{Context, Poll};

use nix::errno::Errno;
use tokio::net::{TcpListener, UnixListener};

use super::socket::unix_address;
use super::{Address, Socket};
use crate::timer::Timers;

/// Connections taken in a row before the thread's other tasks have their turn.
const BATCH: u32 = 64;

/// A listening socket registered with the thread's reactor.
pub enum Listener {
    /// TCP over IPv4 or IPv6.
    Tcp(TcpListener),
    /// A unix stream socket.
    Unix(UnixListener),
}

impl Listener {
    /// Registers a listening TCP socket, which is made non-blocking.
    pub fn tcp(listener: StdTcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener).map(Listener::Tcp)
    }

    /// Registers a listening unix socket, which is made non-blocking.
    pub fn unix(listener: StdUnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener).map(Listener::Unix)
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<Address> {
        match self {
            Listener::Tcp(tcp) => tcp.local_addr().map(Address::Ip),
            Listener::Unix(unix) => unix.local_addr().map(|address| unix_address(&address)),
        }
    }

    /// Waits for a connection; gives it with its peer's address.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, Address)>> {
        match self {
            Listener::Tcp(tcp) => {
                tcp.poll_accept(cx).map_ok(|(stream, peer)| (Socket::from(stream), Address::Ip(peer)))
            }
            Listener::Unix(unix) => {
                unix.poll_accept(cx).map_ok(|(stream, peer)| (Socket::from(stream), unix_address(&peer)))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(tcp) => tcp.as_fd(),
            Listener::Unix(unix) => unix.as_fd(),
        }
    }
}

/// How bad a failure to accept is: the level at which nginx logs `accept4() failed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The connection was gone again before we took it.
    Err,
    /// No descriptor is left; the loop pauses.
    Crit,
    /// Anything else; the loop pauses.
    Alert,
}

impl Severity {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            // accept(2): what is pending on the new socket is reported by accept on Linux.
            Some(
                Errno::ECONNABORTED
                | Errno::EPERM
                | Errno::EPROTO
                | Errno::ENOPROTOOPT
                | Errno::ENETDOWN
                | Errno::EHOSTDOWN
                | Errno::ENONET
                | Errno::EHOSTUNREACH
                | Errno::EOPNOTSUPP
                | Errno::ENETUNREACH,
            ) => Severity::Err,
            Some(Errno::EMFILE | Errno::ENFILE) => Severity::Crit,
            _ => Severity::Alert,
        }
    }
}

/// Accepts until the task is dropped: hands each connection to `accepted` and each failure to `failed`.
///
/// After a failure that another attempt at once would only repeat (no descriptor, no memory) it waits `pause_ms`
/// (nginx: `accept_mutex_delay`, 500) while the connections wait in the backlog.
pub async fn accept_loop(
    listener: &Listener,
    timers: &Timers,
    pause_ms: u64,
    mut accepted: impl FnMut(Socket, Address),
    mut failed: impl FnMut(Severity, &io::Error),
) {
    loop {
        for _ in 0..BATCH {
            match poll_fn(|cx| listener.poll_accept(cx)).await {
                Ok((socket, peer)) => accepted(socket, peer),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let severity = Severity::of(&error);
                    failed(severity, &error);
                    match severity {
                        Severity::Err => {}
                        Severity::Crit | Severity::Alert => timers.sleep(pause_ms).await,
                    }
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

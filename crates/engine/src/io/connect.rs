//! Opening upstream connections without waiting for the handshake where that is not needed.
//!
//! `connect` starts; the caller may send at once. On loopback, on unix sockets and with TCP Fast Open the first send
//! succeeds right away and saves one turn of the reactor and the question for `SO_ERROR`.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use socket2::{Domain, SockAddr, Type};
use tokio::net::{TcpStream, UnixStream};

use super::{Address, Socket};

/// What is set on a socket before it connects.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    /// The local address (nginx: `proxy_bind`); the port is chosen by the kernel at connect where it is 0.
    pub bind: Option<SocketAddr>,
    /// `IP_TRANSPARENT` for `proxy_bind … transparent`.
    pub transparent: bool,
    /// `TCP_NODELAY`, which small requests on upgraded connections need.
    pub nodelay: bool,
    /// `SO_KEEPALIVE` (nginx: `proxy_socket_keepalive`).
    pub keepalive: bool,
    /// `SO_RCVBUF` in bytes.
    pub receive_buffer: Option<usize>,
}

/// A connection on its way.
pub struct Connecting {
    socket: Socket,
    connected: bool,
}

/// Starts a connection to `address`. Must be called on a reactor thread.
///
/// # Errors
/// What `socket`, `bind` and `connect` say at once: no descriptor left, no route, a unix socket that nobody listens
/// on or whose backlog is full (`EAGAIN`).
pub fn connect(address: &Address, options: &ConnectOptions) -> io::Result<Connecting> {
    match address {
        Address::Inet(to) => {
            let socket = socket2::Socket::new(Domain::for_address(*to), Type::STREAM.nonblocking(), None)?;
            if let Some(from) = options.bind {
                if options.transparent {
                    socket.set_ip_transparent_v4(true)?;
                }
                if from.port() == 0 {
                    // The kernel then picks the port at connect, so that many connections may share it.
                    nix::sys::socket::setsockopt(
                        &socket,
                        nix::sys::socket::sockopt::IpBindAddressNoPort,
                        &true,
                    )?;
                }
                socket.bind(&from.into())?;
            }
            prepare(&socket, options)?;
            if options.nodelay {
                socket.set_tcp_nodelay(true)?;
            }
            let connected = start(&socket, &(*to).into())?;
            let socket = TcpStream::from_std(socket.into())?.into();
            Ok(Connecting { socket, connected })
        }
        Address::Unix(path) => {
            let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
            prepare(&socket, options)?;
            // A unix socket connects at once or not at all.
            socket.connect(&SockAddr::unix(path)?)?;
            let socket = UnixStream::from_std(socket.into())?.into();
            Ok(Connecting { socket, connected: true })
        }
    }
}

fn prepare(socket: &socket2::Socket, options: &ConnectOptions) -> io::Result<()> {
    if options.keepalive {
        socket.set_keepalive(true)?;
    }
    if let Some(bytes) = options.receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    Ok(())
}

fn start(socket: &socket2::Socket, to: &SockAddr) -> io::Result<bool> {
    match socket.connect(to) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(Errno::EINPROGRESS as i32) => Ok(false),
        Err(e) => Err(e),
    }
}

impl Connecting {
    /// Sends without waiting: the number of bytes that the kernel took, 0 while the handshake is under way.
    ///
    /// # Errors
    /// Those of the connection attempt, where it has failed meanwhile (`ECONNREFUSED`), and of sending.
    pub fn try_send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            match self.socket.options().send_vectored_with_flags(pieces, MsgFlags::MSG_NOSIGNAL.bits()) {
                Ok(sent) => {
                    self.connected = true;
                    return Ok(sent);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(e) if e.raw_os_error() == Some(Errno::ENOTCONN as i32) => return Ok(0),
                Err(e) if e.raw_os_error() == Some(Errno::EINPROGRESS as i32) => return Ok(0),
                Err(e) => return Err(e),
            }
        }
    }

    /// Whether the connection is known to be up: something was sent, or [`Connecting::poll_connected`] said so.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Waits for the end of the handshake.
    pub fn poll_connected(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.connected {
            ready!(self.socket.poll_write_ready(cx))?;
            if let Some(e) = self.socket.take_error()? {
                return Poll::Ready(Err(e));
            }
            self.connected = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for the end of the handshake and gives the socket.
    pub async fn connected(mut self) -> io::Result<Socket> {
        std::future::poll_fn(|cx| self.poll_connected(cx)).await?;
        Ok(self.socket)
    }

    /// The socket as it is.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The socket as it is, connected or not: reading and writing wait for the handshake and report its failure.
    pub fn into_socket(self) -> Socket {
        self.socket
    }
}

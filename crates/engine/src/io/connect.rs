//! Opening upstream connections without waiting for the handshake where that is not needed.
//!
//! `connect` starts; the caller may send at once. On loopback, on unix sockets and with TCP Fast Open the first send
//! succeeds right away and saves one turn of the reactor and the question for `SO_ERROR`.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use socket2::{Domain, SockAddr, Type};
use tokio::net::{TcpStream, UnixStream};
use weir_syntax::Level;

use super::{Address, Socket};

/// What is set on a socket before it connects.
#[derive(Clone, Debug, Default, Hash)]
pub struct ConnectOptions {
    /// The local address (nginx: `proxy_bind`); the port is chosen by the kernel at connect where it is 0.
    pub bind: Option<SocketAddr>,
    /// That address may be another machine's (`IP_TRANSPARENT`).
    pub transparent: bool,
    /// `SO_KEEPALIVE` (nginx: `proxy_socket_keepalive`).
    pub keepalive: bool,
    /// `SO_RCVBUF` in bytes.
    pub receive_buffer: Option<usize>,
    /// `SO_SNDBUF` in bytes.
    pub send_buffer: Option<usize>,
}

/// A connection on its way.
pub struct Connecting {
    socket: Socket,
    connected: bool,
}

/// The system call that a connection failed in, in nginx's words (`connect() to 127.0.0.1:80 failed`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectCall {
    /// No descriptor left, or the family is not supported.
    Socket,
    /// This option was refused.
    Setsockopt(&'static str),
    /// The local address is not ours.
    Bind,
    /// The peer, or the way to it, refuses. The only one for which nginx tries the next upstream.
    Connect,
}

/// Why a connection could not be started. Converts into the [`io::Error`] in it.
#[derive(Debug)]
pub struct ConnectError {
    /// Where.
    pub call: ConnectCall,
    /// What the kernel said.
    pub error: io::Error,
}

impl ConnectError {
    /// How the log takes it: a peer that is not there is what happens.
    pub(crate) fn level(&self) -> Level {
        match (self.call, self.error.raw_os_error().map(Errno::from_raw)) {
            (ConnectCall::Socket | ConnectCall::Setsockopt(_), _) => Level::Alert,
            (
                ConnectCall::Connect,
                Some(
                    Errno::ECONNREFUSED
                    | Errno::EAGAIN
                    | Errno::ECONNRESET
                    | Errno::ENETDOWN
                    | Errno::ENETUNREACH
                    | Errno::EHOSTDOWN
                    | Errno::EHOSTUNREACH,
                ),
            ) => Level::Error,
            (ConnectCall::Connect | ConnectCall::Bind, _) => Level::Crit,
        }
    }
}

impl std::fmt::Display for ConnectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.call {
            ConnectCall::Socket => f.write_str("socket() failed"),
            ConnectCall::Setsockopt(option) => write!(f, "setsockopt({option}) failed"),
            ConnectCall::Bind => f.write_str("bind() failed"),
            ConnectCall::Connect => f.write_str("connect() failed"),
        }
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl From<ConnectError> for io::Error {
    fn from(e: ConnectError) -> Self {
        e.error
    }
}

fn at(call: ConnectCall) -> impl Fn(io::Error) -> ConnectError {
    move |error| ConnectError { call, error }
}

/// Starts a connection to `address`, for who has something to send: over TCP the other side hears of it with the first bytes,
/// or a fifth of a second later. Must be called on a reactor thread.
///
/// # Errors
/// What `socket`, `bind` and `connect` say at once: no descriptor left, no route, a unix socket that nobody listens
/// on or whose backlog is full (`EAGAIN`).
pub fn connect(address: &Address, options: &ConnectOptions) -> Result<Connecting, ConnectError> {
    match address {
        Address::Ip(to) => {
            let socket = open(Domain::for_address(*to), options)?;
            if let Some(from) = options.bind {
                if options.transparent {
                    set_transparent(&socket, from)?;
                }
                bind(&socket, from)?;
            }
            // The request follows at once and takes the handshake's last acknowledgement along: two packets less. A
            // kernel that does not know the option still connects.
            let _ = socket.set_tcp_quickack(false);
            let connected = match socket.connect(&(*to).into()) {
                Ok(()) => true,
                Err(e) if e.raw_os_error() == Some(Errno::EINPROGRESS as i32) => false,
                Err(e) => return Err(at(ConnectCall::Connect)(e)),
            };
            let socket = TcpStream::from_std(socket.into()).map_err(at(ConnectCall::Socket))?.into();
            Ok(Connecting { socket, connected })
        }
        Address::Unix(path) => {
            let socket = open(Domain::UNIX, options)?;
            // A unix socket connects at once or not at all.
            let to = SockAddr::unix(&**path).map_err(at(ConnectCall::Connect))?;
            socket.connect(&to).map_err(at(ConnectCall::Connect))?;
            let socket = UnixStream::from_std(socket.into()).map_err(at(ConnectCall::Socket))?.into();
            Ok(Connecting { socket, connected: true })
        }
    }
}

fn open(domain: Domain, options: &ConnectOptions) -> Result<socket2::Socket, ConnectError> {
    let socket =
        socket2::Socket::new(domain, Type::STREAM.nonblocking(), None).map_err(at(ConnectCall::Socket))?;
    if options.keepalive {
        socket.set_keepalive(true).map_err(at(ConnectCall::Setsockopt("SO_KEEPALIVE")))?;
    }
    if let Some(bytes) = options.receive_buffer {
        socket.set_recv_buffer_size(bytes).map_err(at(ConnectCall::Setsockopt("SO_RCVBUF")))?;
    }
    if let Some(bytes) = options.send_buffer {
        socket.set_send_buffer_size(bytes).map_err(at(ConnectCall::Setsockopt("SO_SNDBUF")))?;
    }
    Ok(socket)
}

fn set_transparent(socket: &socket2::Socket, from: SocketAddr) -> Result<(), ConnectError> {
    let (set, option) = match from {
        SocketAddr::V4(_) => (socket.set_ip_transparent_v4(true), "IP_TRANSPARENT"),
        SocketAddr::V6(_) => (socket.set_ip_transparent_v6(true), "IPV6_TRANSPARENT"),
    };
    set.map_err(at(ConnectCall::Setsockopt(option)))
}

fn bind(socket: &socket2::Socket, from: SocketAddr) -> Result<(), ConnectError> {
    if from.port() == 0 {
        // The kernel then picks the port at connect, so that many connections may share it. A kernel that does not
        // know the option still connects.
        let _ = setsockopt(socket, sockopt::IpBindAddressNoPort, &true);
    }
    socket.bind(&from.into()).map_err(at(ConnectCall::Bind))
}

impl Connecting {
    /// Sends without waiting: the number of bytes that the kernel took, 0 while the handshake is under way.
    ///
    /// # Errors
    /// Those of the connection attempt, where it has failed meanwhile (`ECONNREFUSED`), and of sending.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.socket.options().send_with_flags(bytes, MsgFlags::MSG_NOSIGNAL.bits()) {
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

    /// The socket as it is, connected or not: reading and writing wait for the handshake and report its failure.
    pub fn into_socket(self) -> Socket {
        self.socket
    }
}

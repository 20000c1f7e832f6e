//! Both ends of a WebSocket, by `tungstenite`.

use std::io;
use std::net::{SocketAddr, TcpStream};

use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};
use tungstenite::{Error, HandshakeError};

use crate::wire::Wire;

pub use tungstenite::Message;

/// An open WebSocket.
pub struct Socket(WebSocket<Wire>);

fn config() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(None).max_frame_size(None)
}

impl Socket {
    /// Opens `ws://ADDRESS/PATH`.
    ///
    /// # Panics
    /// If the handshake fails.
    #[track_caller]
    pub fn connect(address: SocketAddr, path: &str) -> Self {
        Self::try_connect(address, path).unwrap_or_else(|e| panic!("{e}"))
    }

    /// # Errors
    /// If the handshake fails.
    pub fn try_connect(address: SocketAddr, path: &str) -> io::Result<Self> {
        Self::handshake(Wire::connect(address)?, "ws", address, path)
    }

    /// Opens `wss://ADDRESS/PATH`; whatever certificate the server has is fine.
    ///
    /// # Panics
    /// If the handshake fails.
    #[track_caller]
    pub fn connect_tls(address: SocketAddr, path: &str) -> Self {
        let wire = Wire::connect_tls(address).unwrap_or_else(|e| panic!("connect to {address}: {e}"));
        Self::handshake(wire, "wss", address, path).unwrap_or_else(|e| panic!("{e}"))
    }

    fn handshake(wire: Wire, scheme: &str, address: SocketAddr, path: &str) -> io::Result<Self> {
        let uri = format!("{scheme}://{address}{path}");
        match tungstenite::client::client_with_config(uri.as_str(), wire, Some(config())) {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(error) => Err(io::Error::other(format!("handshake of {uri}: {error}"))),
        }
    }

    pub(crate) fn accept(wire: Wire) -> io::Result<Self> {
        match tungstenite::accept_with_config(wire, Some(config())) {
            Ok(socket) => Ok(Self(socket)),
            Err(HandshakeError::Failure(error)) => Err(io::Error::other(error)),
            Err(HandshakeError::Interrupted(_)) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// A server's end over a stream whose handshake is over.
    pub fn server_end(stream: TcpStream) -> Self {
        Self(WebSocket::from_raw_socket(Wire::Plain(stream), Role::Server, Some(config())))
    }

    pub fn tcp(&self) -> &TcpStream {
        self.0.get_ref().tcp()
    }

    /// # Panics
    /// If the other end does not take it.
    #[track_caller]
    pub fn send(&mut self, message: impl Into<Message>) {
        self.try_send(message).expect("a message to the other end");
    }

    /// # Errors
    /// If the other end does not take it.
    pub fn try_send(&mut self, message: impl Into<Message>) -> io::Result<()> {
        self.0.send(message.into()).map_err(io::Error::other)
    }

    /// The next message, of any kind.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn receive(&mut self) -> Message {
        self.try_receive().expect("a message from the other end")
    }

    /// # Errors
    /// If none comes.
    pub fn try_receive(&mut self) -> io::Result<Message> {
        self.0.read().map_err(io::Error::other)
    }

    /// Sends a text and waits for the same back.
    ///
    /// # Panics
    /// If something else comes, or nothing.
    #[track_caller]
    pub fn echo_of(&mut self, text: &str) {
        self.send(text);
        assert_eq!(self.receive(), Message::text(text));
    }

    /// Closes and waits for the other end to do so.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn close(&mut self) {
        self.try_close().expect("a close of both ends");
    }

    /// # Errors
    /// If it does not.
    pub fn try_close(&mut self) -> io::Result<()> {
        self.0.close(None).map_err(io::Error::other)?;
        loop {
            match self.0.read() {
                Ok(_) => {}
                Err(Error::ConnectionClosed) => return Ok(()),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }

    /// Sends every message back until the other end closes.
    ///
    /// # Errors
    /// If the connection breaks.
    pub fn echo(&mut self) -> io::Result<()> {
        loop {
            match self.0.read() {
                Ok(message @ (Message::Text(_) | Message::Binary(_))) => self.try_send(message)?,
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_) | Message::Close(_)) => {}
                Err(Error::ConnectionClosed) => return Ok(()),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

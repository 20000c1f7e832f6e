//! What clients and origins talk over: TCP or TLS, both with a deadline per read and write.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use rustls::{ClientConnection, StreamOwned};

use crate::{PATIENCE, tls};

/// A connection of bytes.
pub(crate) enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Wire {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::Plain(patient(TcpStream::connect(address)?)?))
    }

    /// With TLS around it; whatever certificate the server has is fine.
    pub(crate) fn connect_tls(address: SocketAddr) -> io::Result<Self> {
        let stream = patient(TcpStream::connect(address)?)?;
        Ok(Self::Tls(Box::new(StreamOwned::new(tls::client(), stream))))
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }

    /// Sends the end of this direction.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        if let Self::Tls(stream) = self {
            stream.conn.send_close_notify();
            stream.flush()?;
        }
        self.tcp().shutdown(Shutdown::Write)
    }
}

/// What the kernel takes for who reads nothing, in bytes. On its own it may take more than 32 MiB, as its
/// `net.ipv4.tcp_rmem` says, and tests that wait for a sender to be held up would wait for ever.
const RECEIVED: usize = 64 * 1024;

/// A stream whose reads and writes fail after [`PATIENCE`], and that takes no more than [`RECEIVED`] unread.
pub(crate) fn patient(stream: TcpStream) -> io::Result<TcpStream> {
    socket2::SockRef::from(&stream).set_recv_buffer_size(RECEIVED)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads again where the process was stopped meanwhile, and goes on: a read that has a deadline fails then.
pub(crate) fn uninterrupted(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Closes with a reset instead of an end of stream.
pub(crate) fn reset(stream: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO))
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => uninterrupted(|| stream.read(buf)),
            Self::Tls(stream) => uninterrupted(|| stream.read(buf)),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(buf),
            Self::Tls(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

//! A server behind the one under test, which does what its script says.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::client::{find, whole_request};
use crate::websocket::Socket;
use crate::wire::{Wire, patient, reset, uninterrupted};
use crate::{free_address, until};

/// A listening origin; it stops when it is dropped.
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    connections: Mutex<Vec<Connection>>,
}

struct Connection {
    stream: Option<TcpStream>,
    received: Vec<u8>,
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Origin {
    /// An origin that gives every connection to `serve`, each on a thread of its own. An error in it closes the
    /// connection.
    ///
    /// # Panics
    /// If it cannot listen.
    pub fn start(serve: impl Fn(&mut Visit) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self::start_at(free_address(), serve)
    }

    /// The same at an address that was picked before.
    ///
    /// # Panics
    /// If it cannot listen.
    #[track_caller]
    pub fn start_at(
        address: SocketAddr,
        serve: impl Fn(&mut Visit) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("a free address");
        let shared = Arc::new(Shared::default());
        let (of_thread, serve) = (Arc::clone(&shared), Arc::new(serve));
        let accepting = std::thread::spawn(move || {
            for number in 0.. {
                let Ok((stream, _)) = listener.accept() else { return };
                if of_thread.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(kept), Ok(stream)) = (stream.try_clone(), patient(stream)) else { continue };
                of_thread.connections().push(Connection { stream: Some(kept), received: vec![] });
                let (shared, serve) = (Arc::clone(&of_thread), Arc::clone(&serve));
                std::thread::spawn(move || {
                    let mut visit = Visit { number, stream, shared, unread: vec![], resets: false };
                    // A client that went away is no matter of the script's.
                    let _ = serve(&mut visit);
                    visit.end();
                });
            }
        });
        Self { address, shared, accepting: Some(accepting) }
    }

    /// An origin that answers every request, on connections that stay open, with these bytes.
    pub fn answering(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::start(move |visit| {
            while visit.request()?.is_some() {
                visit.send(&bytes)?;
            }
            Ok(())
        })
    }

    /// An origin that answers every request with 200 and this text.
    pub fn saying(text: &str) -> Self {
        Self::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()))
    }

    /// An origin that sends every WebSocket message back.
    pub fn echoing() -> Self {
        Self::start(|visit| visit.websocket()?.echo())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What each connection so far has sent, in the order of their coming, as far as scripts have read it.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.shared.connections().iter().map(|c| c.received.clone()).collect()
    }

    /// All that was received, as one text.
    pub fn heard(&self) -> String {
        String::from_utf8_lossy(&self.received().concat()).into_owned()
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.shared.connections().len()
    }

    /// Waits until that many connections have come.
    ///
    /// # Panics
    /// If they never do.
    #[track_caller]
    pub fn visited(&self, times: usize) {
        until("the origin is visited", || self.connections() >= times);
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // The listener wakes up for this one.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for connection in self.shared.connections().iter() {
            if let Some(stream) = &connection.stream {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

/// A connection to an origin, in the hands of its script.
pub struct Visit {
    /// Counted from 0.
    pub number: usize,
    stream: TcpStream,
    shared: Arc<Shared>,
    unread: Vec<u8>,
    resets: bool,
}

impl Visit {
    /// The next request with its body, as text; `None` when the client has closed instead.
    ///
    /// # Errors
    /// If the connection breaks, also amid a request.
    pub fn request(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(length) = whole_request(&self.unread) {
                let request: Vec<u8> = self.unread.drain(..length).collect();
                return Ok(Some(String::from_utf8_lossy(&request).into_owned()));
            }
            if self.more()? == 0 {
                return if self.unread.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// The next request's head alone.
    ///
    /// # Errors
    /// If the connection ends before.
    pub fn head(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = find(&self.unread, b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..end + 4).collect();
                return Ok(String::from_utf8_lossy(&head).into_owned());
            }
            if self.more()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// What has come and was not read yet, at least a byte of it; nothing when the client has closed.
    ///
    /// # Errors
    /// If the connection breaks.
    pub fn some(&mut self) -> io::Result<Vec<u8>> {
        if self.unread.is_empty() {
            self.more()?;
        }
        Ok(std::mem::take(&mut self.unread))
    }

    fn more(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 65536];
        let read = uninterrupted(|| self.stream.read(&mut chunk))?;
        self.unread.extend_from_slice(&chunk[..read]);
        self.shared.connections()[self.number].received.extend_from_slice(&chunk[..read]);
        Ok(read)
    }

    /// # Errors
    /// If the client does not take them.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Does nothing until the client closes.
    ///
    /// # Errors
    /// If the client resets the connection, or does not close in time.
    pub fn stall(&mut self) -> io::Result<()> {
        while self.more()? > 0 {}
        Ok(())
    }

    /// Ends the direction to the client.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Lets the connection be reset instead of closed when the script ends.
    pub fn reset_at_end(&mut self) {
        self.resets = true;
    }

    /// Lets go of what is kept of this connection, for origins that serve for long: what it sent so far, and the means
    /// to close it when the origin stops.
    pub fn forget(&mut self) {
        self.shared.connections()[self.number] = Connection { stream: None, received: vec![] };
    }

    fn end(self) {
        if self.resets {
            // The copy that is kept for stopping would hold the connection open.
            self.shared.connections()[self.number].stream = None;
            let _ = reset(&self.stream);
        } else {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }

    /// Answers a WebSocket handshake.
    ///
    /// # Errors
    /// If there is none.
    pub fn websocket(&mut self) -> io::Result<Socket> {
        Socket::accept(Wire::Plain(self.stream.try_clone()?))
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.stream
    }
}

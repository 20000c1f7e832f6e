//! A WebSocket backend that says who answers: what the demo has instead of somebody's application.
//!
//! Each text message comes back behind a line that names the backend, counts the messages of this connection and says how
//! often weir was reloaded, so that the page can show all of it and notice a message that went missing:
//!
//! ```text
//! hello    ->    one 17 2\nhello
//! ```
//!
//! It blocks, with a thread for each connection: a demo has a handful.

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tungstenite::{Error, HandshakeError, Message};

/// What a request gets that does not ask for a WebSocket (RFC 9110 section 15.5.22).
const UPGRADE_REQUIRED: &[u8] = b"HTTP/1.1 426 Upgrade Required\r\n\
    Upgrade: websocket\r\n\
    Connection: Upgrade, close\r\n\
    Content-Length: 0\r\n\
    \r\n";

/// The pause after a connection that could not be accepted: mostly there are no descriptors left, and trying again at
/// once would change nothing.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until the process ends.
///
/// # Errors
/// If no thread can be started.
pub fn serve(name: &'static str, listener: TcpListener, reloads: Arc<AtomicU64>) -> io::Result<()> {
    thread::Builder::new().name(format!("backend {name}")).spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                thread::sleep(PAUSE);
                continue;
            };
            let reloads = reloads.clone();
            // How a conversation ends concerns only its two sides; without a thread it ends before it begins.
            let _ = thread::Builder::new().spawn(move || talk(name, stream, &reloads));
        }
    })?;
    Ok(())
}

/// Answers until the other side is gone.
fn talk(name: &str, stream: TcpStream, reloads: &AtomicU64) -> Result<(), Error> {
    stream.set_nodelay(true)?;
    let mut plain = stream.try_clone()?;
    let mut socket = match tungstenite::accept(stream) {
        Ok(socket) => socket,
        Err(HandshakeError::Failure(error)) => {
            plain.write_all(UPGRADE_REQUIRED)?;
            return Err(error);
        }
        // Only a stream that does not block is interrupted.
        Err(HandshakeError::Interrupted(_)) => return Ok(()),
    };
    drop(plain);
    let mut count: u64 = 0;
    loop {
        match socket.read()? {
            Message::Text(text) => {
                count += 1;
                let reloads = reloads.load(Ordering::Relaxed);
                socket.send(Message::text(format!("{name} {count} {reloads}\n{text}")))?;
            }
            Message::Binary(bytes) => socket.send(Message::Binary(bytes))?,
            // Answered by the library, or an answer.
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn backend() -> (TcpStream, Arc<AtomicU64>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let reloads = Arc::new(AtomicU64::new(0));
        serve("one", listener, reloads.clone()).unwrap();
        (TcpStream::connect(address).unwrap(), reloads)
    }

    #[test]
    fn an_answer_says_who_how_many_and_how_often_reloaded() {
        let (stream, reloads) = backend();
        let (mut socket, _) = tungstenite::client("ws://localhost/ws", stream).unwrap();
        for (sent, reloaded, answer) in
            [("a", 0, "one 1 0\na"), ("", 0, "one 2 0\n"), ("ä\nb", 3, "one 3 3\nä\nb")]
        {
            reloads.store(reloaded, Ordering::Relaxed);
            socket.send(Message::text(sent)).unwrap();
            assert_eq!(socket.read().unwrap(), Message::text(answer));
        }
        socket.send(Message::binary(vec![0, 255])).unwrap();
        assert_eq!(socket.read().unwrap(), Message::binary(vec![0, 255]));
    }

    #[test]
    fn a_plain_request_is_told_to_upgrade() {
        let (mut stream, _) = backend();
        stream.write_all(b"GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, UPGRADE_REQUIRED);
    }
}

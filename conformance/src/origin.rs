//! A backend that answers what a case tells it to, and remembers what it received.

use crate::Result;
use crate::clock::Deadline;
use crate::steps::After;
use crate::wire::{End, Framing, Kind, Wire, framing, head_end, header};
use std::collections::VecDeque;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a backend waits for the rest of a request.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Reply {
    after: After,
    bytes: Vec<u8>,
}

/// One request as it came, and on which connection of the backend.
pub struct Received {
    pub connection: usize,
    pub bytes: Vec<u8>,
}

#[derive(Default)]
struct Script {
    replies: VecDeque<Reply>,
    received: Vec<Received>,
}

#[derive(Default)]
struct Shared {
    script: Mutex<Script>,
    stopped: AtomicBool,
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops accepting when it is dropped.
pub struct Origin {
    shared: Arc<Shared>,
    port: u16,
}

impl Origin {
    pub fn listen(port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        std::thread::spawn(move || {
            for (number, stream) in (1..).zip(listener.incoming()) {
                let Ok(stream) = stream else { continue };
                if theirs.stopped.load(Ordering::Acquire) {
                    return;
                }
                let shared = theirs.clone();
                // A connection that breaks shows in the case's transcript, not here.
                std::thread::spawn(move || drop(serve(Wire::new(stream), number, &shared)));
            }
        });
        Ok(Self { shared, port })
    }

    /// Adds an answer; the last one is given again and again.
    pub fn reply(&self, after: After, bytes: Vec<u8>) {
        self.shared.script().replies.push_back(Reply { after, bytes });
    }

    pub fn received(&self) -> Vec<Received> {
        std::mem::take(&mut self.shared.script().received)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        // Wakes the accepting thread; if that is gone already, so is the port.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

fn serve(mut wire: Wire, connection: usize, shared: &Shared) -> Result<()> {
    loop {
        let deadline = Deadline::after(PATIENCE);
        let (request, end) = wire.message(deadline, Kind::Request)?;
        if end != End::Open {
            if !request.is_empty() {
                shared.script().received.push(Received { connection, bytes: request });
            }
            return Ok(());
        }
        let head = &request[..head_end(&request).unwrap_or(request.len())];
        let closes = !keeps_alive(head);
        let kind = if request.starts_with(b"HEAD ") { Kind::ResponseHead } else { Kind::Response };
        let reply = {
            let mut script = shared.script();
            script.received.push(Received { connection, bytes: request });
            match script.replies.len() {
                0 => Reply { after: After::Follow, bytes: OK.to_vec() },
                1 => script.replies[0].clone(),
                _ => script.replies.pop_front().unwrap_or_else(|| unreachable!("there are two")),
            }
        };
        wire.send(&reply.bytes, deadline)?;
        let endless = head_end(&reply.bytes)
            .is_none_or(|head| framing(&reply.bytes[..head], kind) == Framing::UntilClose);
        match reply.after {
            After::Follow if closes || endless => return Ok(()),
            After::Follow => {}
            After::Close => return Ok(()),
            After::Reset => return wire.reset(),
            After::Hang => {
                wire.take(deadline, |_| None)?;
                return Ok(());
            }
        }
    }
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";

fn keeps_alive(head: &[u8]) -> bool {
    let connection = header(head, "connection").unwrap_or_default().to_ascii_lowercase();
    if head.windows(11).any(|w| w == b" HTTP/1.0\r\n") {
        connection.contains("keep-alive")
    } else {
        !connection.contains("close")
    }
}

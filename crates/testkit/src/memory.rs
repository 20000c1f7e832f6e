//! A conversation over a socket pair, on one thread with a clock that can be moved.
//!
//! A paused clock would run ahead by itself whenever the thread waits for a socket; this one goes on as usual and jumps
//! where the script says so.

use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time;
use weir_engine::generation::Generation;
use weir_engine::http::connection::{accepted, serve};
use weir_engine::http2;
use weir_engine::io::{Address, Io, Socket};
use weir_engine::reactor::{Counters, Reactor};

use crate::PATIENCE;
use crate::client::find;

/// A step of a conversation, as the client.
#[derive(Clone, Copy, Debug)]
pub enum Say<'s> {
    Send(&'s [u8]),
    /// Sends as much as the server takes before it ends the connection, and reads meanwhile.
    Flood(&'s [u8]),
    /// Reads until this has come, behind what was expected before.
    Expect(&'s str),
    /// Moves the clock by that many milliseconds.
    Pass(u64),
    /// Ends the direction to the server.
    Finish,
}

/// The client's end of a conversation.
pub struct Talk {
    client: UnixStream,
    reactor: Rc<Reactor>,
    received: Vec<u8>,
    seen: usize,
}

impl Talk {
    /// Plays the script on a connection from `peer` to the generation's first address, then reads until the server closes
    /// and waits for what it still does.
    ///
    /// # Panics
    /// If something that the script expects does not come.
    #[track_caller]
    pub fn over(
        generation: &Arc<Generation>,
        counters: &Arc<Counters>,
        peer: Address,
        script: &[Say<'_>],
    ) -> String {
        String::from_utf8_lossy(&Self::bytes_over(generation, counters, peer, script)).into_owned()
    }

    /// The same, as it came. A script that begins with the preface of HTTP/2 is played over that.
    ///
    /// # Panics
    /// If something that the script expects does not come.
    #[track_caller]
    pub fn bytes_over(
        generation: &Arc<Generation>,
        counters: &Arc<Counters>,
        peer: Address,
        script: &[Say<'_>],
    ) -> Vec<u8> {
        let runtime = weir_engine::timer::runtime().expect("a runtime");
        let outcome = runtime.block_on(async {
            let (client, server) = UnixStream::pair().expect("a socket pair");
            let reactor = Reactor::new(Arc::clone(generation), Arc::clone(counters));
            tokio::task::spawn_local(reactor.timers().clone().drive());
            let listener = generation.sockets[0].address.clone();
            let local = match &listener {
                Address::Ip(at) => Address::Ip((Ipv4Addr::LOCALHOST, at.port()).into()),
                Address::Unix(_) => listener.clone(),
            };
            let counts = Arc::clone(&reactor.counts);
            for count in [&counts.accepted, &counts.handled, &counts.active] {
                count.up();
            }
            let connection = accepted(&reactor, generation, peer, local, 0);
            let io = Io::Plain(Socket::from(server));
            let (of, generation) = (Rc::clone(&reactor), Arc::clone(generation));
            let listener = Arc::new(listener);
            let served = match script {
                [Say::Send(first), ..] if first.starts_with(b"PRI * HTTP/2.0") => {
                    tokio::task::spawn_local(http2::serve(of, generation, listener, connection, io))
                }
                _ => tokio::task::spawn_local(serve(of, generation, listener, connection, io)),
            };
            let mut talk = Talk { client, reactor, received: vec![], seen: 0 };
            let played = talk.play(script).await;
            drop(talk.client);
            let ended = time::timeout(PATIENCE, served).await.map_err(|_| "the server goes on".to_owned());
            let played = played.and(ended.map(|served| served.expect("a server that does not panic")));
            counts.active.down();
            (played, talk.received)
        });
        match outcome {
            (Ok(()), received) => received,
            (Err(what), received) => panic!("{what} after {:?}", String::from_utf8_lossy(&received)),
        }
    }

    async fn play(&mut self, script: &[Say<'_>]) -> Result<(), String> {
        for step in script {
            match step {
                Say::Send(bytes) => {
                    self.client.write_all(bytes).await.map_err(|e| e.to_string())?;
                    // The server is to see them before anything else happens.
                    self.settle().await;
                }
                Say::Flood(bytes) => self.flood(bytes).await?,
                Say::Expect(text) => loop {
                    if let Some(at) = find(&self.received[self.seen..], text.as_bytes()) {
                        self.seen += at + text.len();
                        break;
                    }
                    if !self.more().await? {
                        return Err(format!("{text:?} did not come"));
                    }
                },
                Say::Pass(ms) => {
                    time::pause();
                    time::advance(Duration::from_millis(*ms)).await;
                    time::resume();
                    // The time that the server has at hand is that of the last batch of events.
                    self.reactor.clock().refresh();
                    self.settle().await;
                }
                Say::Finish => self.client.shutdown().await.map_err(|e| e.to_string())?,
            }
        }
        while self.more().await? {}
        Ok(())
    }

    async fn flood(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        let mut chunk = [0; 65536];
        while !bytes.is_empty() {
            let (mut from, mut to) = self.client.split();
            let moved = async {
                tokio::select! {
                    written = to.write(bytes) => written.map(|n| bytes = &bytes[n..]),
                    read = from.read(&mut chunk) => read.map(|n| self.received.extend_from_slice(&chunk[..n])),
                }
            };
            match time::timeout(PATIENCE, moved).await {
                Err(_) => return Err("the server takes nothing".into()),
                Ok(Err(_)) => return Ok(()),
                Ok(Ok(())) => {}
            }
        }
        Ok(())
    }

    /// Lets the server's tasks do all that they can do now.
    async fn settle(&self) {
        for _ in 0..16 {
            tokio::task::yield_now().await;
        }
    }

    async fn more(&mut self) -> Result<bool, String> {
        let mut chunk = [0; 65536];
        match time::timeout(PATIENCE, self.client.read(&mut chunk)).await {
            Err(_) => Err("nothing came".into()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(read)) => {
                self.received.extend_from_slice(&chunk[..read]);
                Ok(read > 0)
            }
        }
    }
}

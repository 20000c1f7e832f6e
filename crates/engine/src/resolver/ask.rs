//! One question, put to the servers of a resolver in turn until one of them answers it.
//!
//! Each question has sockets of its own, so that its source port is as hard to guess as its number, and what comes to
//! them comes from the servers they are connected to.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UdpSocket};

use super::wire::{self, Answer, Query};
use super::{Resolver, Server};
use crate::errorlog::Level;
use crate::io::scratch;
use crate::reactor::Reactor;
use crate::timer::Timer;

/// Milliseconds until the next server is asked.
const RESEND: u64 = 5_000;

/// Asks for as long as it takes; whoever waits ends it. `first` counts on from server to server.
pub(super) async fn ask(resolver: &Resolver, reactor: &Reactor, query: &Query, first: usize) -> Answer {
    let timer = reactor.timers().register();
    let mut asking = Asking { resolver, query, timer, sockets: vec![] };
    let mut turn = first;
    let mut tcp = false;
    loop {
        asking.timer.set_in(RESEND);
        let answer = if tcp { asking.over_tcp(turn).await } else { asking.over_udp(&mut turn).await };
        match answer {
            // Truncated is what came over UDP: the same server is asked for the whole.
            Some(Answer::Truncated) => tcp = true,
            Some(answer) => return answer,
            None => turn += 1,
        }
    }
}

struct Asking<'r> {
    resolver: &'r Resolver,
    query: &'r Query,
    /// Until the next server is asked.
    timer: Timer,
    /// To each server that was asked over UDP: one that was too slow may still answer.
    sockets: Vec<Socket<'r>>,
}

/// A socket on which an answer may come.
struct Socket<'r> {
    server: &'r Server,
    udp: Rc<UdpSocket>,
    hearing: Pin<Box<dyn Future<Output = io::Result<Answer>> + 'r>>,
}

impl<'r> Asking<'r> {
    fn server(&self, turn: usize) -> &'r Server {
        &self.resolver.servers[turn % self.resolver.servers.len()]
    }

    /// Asks a server, or the next one where that cannot even be sent, and waits.
    async fn over_udp(&mut self, turn: &mut usize) -> Option<Answer> {
        if !self.send(self.server(*turn)) {
            *turn += 1;
            self.send(self.server(*turn));
        }
        poll_fn(|cx| {
            if let Poll::Ready(answer) = self.poll_answer(cx) {
                return Poll::Ready(Some(answer));
            }
            self.timer.poll_expired(cx).map(|()| None)
        })
        .await
    }

    /// Sends the question; false where that failed, which was logged.
    fn send(&mut self, server: &'r Server) -> bool {
        let at = match self.sockets.iter().position(|socket| std::ptr::eq(socket.server, server)) {
            Some(at) => at,
            None => match connected(server.address) {
                Ok(udp) => {
                    let udp = Rc::new(udp);
                    let hearing = Box::pin(hear(Rc::clone(&udp), self.resolver, self.query));
                    self.sockets.push(Socket { server, udp, hearing });
                    self.sockets.len() - 1
                }
                Err(error) => {
                    self.log(server, Level::Crit, &error, "connect() failed");
                    return false;
                }
            },
        };
        // One datagram, for which a socket always has room.
        match SockRef::from(&*self.sockets[at].udp).send(&self.query.bytes) {
            Ok(_) => true,
            Err(error) => {
                self.log(server, level_of(&error), &error, "send() failed");
                self.sockets.swap_remove(at);
                false
            }
        }
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        let mut at = 0;
        while let Some(Socket { server, hearing, .. }) = self.sockets.get_mut(at) {
            let server = *server;
            match hearing.as_mut().poll(cx) {
                Poll::Ready(Ok(answer)) => return Poll::Ready(answer),
                Poll::Ready(Err(error)) => {
                    self.log(server, level_of(&error), &error, "recv() failed");
                    self.sockets.swap_remove(at);
                }
                Poll::Pending => at += 1,
            }
        }
        Poll::Pending
    }

    /// Asks a server over TCP; where that fails, the next turn is as far away as ever.
    async fn over_tcp(&self, turn: usize) -> Option<Answer> {
        let server = self.server(turn);
        let mut work = pin!(self.exchange(server));
        let mut failed = false;
        poll_fn(|cx| {
            if !failed && let Poll::Ready(answer) = work.as_mut().poll(cx) {
                match answer {
                    Ok(answer) => return Poll::Ready(Some(answer)),
                    // A server that closes says nothing more by it.
                    Err((_, error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                    Err((call, error)) => self.log(server, level_of(&error), &error, call),
                }
                failed = true;
            }
            self.timer.poll_expired(cx).map(|()| None)
        })
        .await
    }

    /// The answer, or the call that failed.
    async fn exchange(&self, server: &Server) -> Result<Answer, (&'static str, io::Error)> {
        let failed = |call: &'static str| move |error| (call, error);
        let connected = TcpStream::connect(server.address).await;
        let mut stream = connected.map_err(failed("connect() failed"))?;
        // A name of 255 bytes and the little around it.
        let length = (self.query.bytes.len() as u16).to_be_bytes();
        let sent = stream.write_all(&[&length, &*self.query.bytes].concat()).await;
        sent.map_err(failed("send() failed"))?;
        loop {
            let length = stream.read_u16().await.map_err(failed("recv() failed"))?;
            let mut bytes = vec![0; usize::from(length)];
            stream.read_exact(&mut bytes).await.map_err(failed("recv() failed"))?;
            match wire::answer(&bytes, self.query, true) {
                Ok(answer) => return Ok(answer),
                Err(message) => self.resolver.log.write(Level::Error, message),
            }
        }
    }

    fn log(&self, server: &Server, level: Level, error: &io::Error, message: &str) {
        let errno = error.raw_os_error().map(Errno::from_raw);
        self.resolver.log.write_with(level, errno, message, |line| {
            line.bytes(b" while resolving");
            line.field("resolver", &server.text);
        });
    }
}

/// A socket to a server, at a port that the kernel picks at random.
fn connected(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Waits for the answer, or for word that nobody is there, which is no data to read.
async fn hear(udp: Rc<UdpSocket>, resolver: &Resolver, query: &Query) -> io::Result<Answer> {
    loop {
        let ready = udp.ready(Interest::READABLE | Interest::ERROR).await?;
        let of = if ready.is_readable() { Interest::READABLE } else { Interest::ERROR };
        let read = scratch(|bytes| {
            let length = udp.try_io(of, || Ok(recv(udp.as_raw_fd(), bytes, MsgFlags::empty())?))?;
            Ok::<_, io::Error>(wire::answer(&bytes[..length], query, false))
        });
        match read {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(message)) => resolver.log.write(Level::Error, message),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// How bad it is: what comes of the network or of the other end is to be expected.
fn level_of(error: &io::Error) -> Level {
    use Errno::{
        ECONNREFUSED, ECONNRESET, EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH, ENOTCONN, EPIPE, ETIMEDOUT,
    };
    match error.raw_os_error().map(Errno::from_raw) {
        Some(
            ECONNREFUSED | ECONNRESET | EHOSTDOWN | EHOSTUNREACH | ENETDOWN | ENETUNREACH | ENOTCONN | EPIPE
            | ETIMEDOUT,
        ) => Level::Error,
        Some(_) | None => Level::Alert,
    }
}

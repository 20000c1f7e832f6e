//! The handshake of an accepted connection, up to the server that it is for.
//!
//! The first read takes the ClientHello (or the start of a plain request) into the thread's scratch, so a client that
//! says nothing holds no buffer, and telling TLS from plain HTTP costs no system call of its own.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use nix::errno::Errno;
use rustls::server::{AcceptedAlert, Acceptor, ClientHello};
use rustls::{AlertDescription, Error, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::StartHandshake;
use weir_ir::LocationId;
use weir_syntax::Level;

use super::words::reason;
use super::{Offer, ServerTls, Session};
use crate::generation::Generation;
use crate::http::exchange::Connection;
use crate::http::{Client, Exchange, router};
use crate::http2;
use crate::io::{Address, Buf, Io, Records, Socket, scratch};
use crate::reactor::Reactor;
use crate::timer::Timer;

/// The most that is read of a ClientHello at once.
const READ: usize = 8 * 1024;

/// A connection that may be served.
pub enum Accepted {
    Tls {
        io: Io,
        session: Rc<Session>,
    },
    /// Somebody speaks HTTP without TLS to this port, and this is how it begins.
    Plain {
        io: Io,
        input: Buf,
    },
}

/// Why a connection is not served.
enum Failure {
    /// The client was gone before it said anything.
    Closed,
    /// The client was gone in the middle.
    Gone(Option<io::Error>),
    Late,
    /// No server wants this handshake.
    Rejected,
    /// There is nothing to show, for this reason.
    NoCertificate(String),
    Tls(Error),
    Read(io::Error),
}

/// Does the handshake of a connection to the address at `connection.address`, within the `client_header_timeout` of
/// its default server. `None` where it failed, which is logged.
///
/// The server that the client asked for is found in `connection` afterwards: its log is the connection's.
pub async fn accept(
    reactor: &Rc<Reactor>,
    generation: &Arc<Generation>,
    listener: &Address,
    connection: &mut Connection,
    socket: Socket,
) -> Option<Accepted> {
    let address = &generation.addresses[connection.address()];
    let timer = reactor.timers().register();
    timer.set_in(generation.location(address.default_server).core.client_header_timeout);
    match handshake(reactor, generation, connection, socket, &timer).await {
        Ok(accepted) => Some(accepted),
        Err(failure) => {
            log(connection, listener, &failure);
            None
        }
    }
}

async fn handshake(
    reactor: &Rc<Reactor>,
    generation: &Arc<Generation>,
    connection: &mut Connection,
    mut socket: Socket,
    timer: &Timer,
) -> Result<Accepted, Failure> {
    let accepted = match hello(&mut socket, timer).await? {
        Hello::Tls(accepted) => accepted,
        Hello::Plain(input) => return Ok(Accepted::Plain { io: Io::Plain(socket), input }),
        Hello::Bad(error, alert) => {
            send_alert(&mut socket, alert, timer).await;
            return Err(Failure::Tls(error));
        }
    };
    let client_hello = accepted.client_hello();
    let offer = Offer::of(&client_hello);
    let server_name: Option<Box<str>> = client_hello.server_name().map(Into::into);
    let Some(Chosen { server, tls, mut config }) = choose(generation, connection, &client_hello) else {
        // RFC 6066 section 3: unrecognized_name(112).
        send(&mut socket, &fatal(112), timer).await;
        return Err(Failure::Rejected);
    };
    if let Some(computed) = &tls.computed {
        let session = Session::before(server_name.clone(), offer.clone());
        let x = nothing_asked(reactor, generation, connection, server, session);
        match computed.config(&config, &x).await {
            Ok(complete) => config = complete,
            Err(reason) => {
                // internal_error(80), as OpenSSL tells.
                send(&mut socket, &fatal(80), timer).await;
                return Err(Failure::NoCertificate(reason));
            }
        }
    }
    reactor.handshakes.turn().await;
    let accept = StartHandshake::from_parts(*accepted, Records::new(socket)).into_stream(config);
    let mut accept = accept.into_fallible();
    let mut stream = poll_fn(|cx| match Pin::new(&mut accept).poll(cx) {
        Poll::Ready(done) => Poll::Ready(done.map_err(|failed| Failure::of(Records::give_up(failed)))),
        Poll::Pending => timer.poll_expired(cx).map(|()| Err(Failure::Late)),
    })
    .await?;
    for staple in &tls.staples {
        staple.refresh(reactor);
    }
    if tls.statuses.is_some() {
        // Asking a responder takes its time, and a client of TLS 1.2 waits for the end of the handshake.
        poll_fn(|cx| match stream.get_mut().0.poll_send(cx) {
            Poll::Ready(sent) => Poll::Ready(sent.map_err(Failure::of)),
            Poll::Pending => timer.poll_expired(cx).map(|()| Err(Failure::Late)),
        })
        .await?;
    }
    let state = stream.get_ref().1;
    let chain = state.peer_certificates().unwrap_or_default();
    let mut shown = tls.client_auth.as_ref().and_then(|auth| auth.judge(chain));
    if let (Some(statuses), Some(auth)) = (&tls.statuses, &tls.client_auth)
        && let Some((shown, Some(path))) = &mut shown
    {
        let mut check = Box::pin(statuses.check(reactor, path, auth.trust(), &connection.log));
        shown.status = poll_fn(|cx| match check.as_mut().poll(cx) {
            Poll::Ready(status) => Poll::Ready(Ok(status)),
            Poll::Pending => timer.poll_expired(cx).map(|()| Err(Failure::Late)),
        })
        .await?;
    }
    let session = Session {
        server_name,
        alpn: state.alpn_protocol().map(Into::into),
        protocol: state.protocol_version().unwrap_or(rustls::ProtocolVersion::TLSv1_3),
        cipher: state
            .negotiated_cipher_suite()
            .map_or(rustls::CipherSuite::Unknown(0), |suite| suite.suite()),
        group: state.negotiated_key_exchange_group().map(|group| group.name()),
        resumed: state.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
        offer,
        client: shown.map(|(shown, _)| Box::new(shown)),
    };
    Ok(Accepted::Tls { io: Io::from(stream), session: Rc::new(session) })
}

enum Hello {
    Tls(Box<rustls::server::Accepted>),
    Plain(Buf),
    Bad(Error, AcceptedAlert),
}

/// Reads until the ClientHello is whole, or until it is plain that none will come.
async fn hello(socket: &mut Socket, timer: &Timer) -> Result<Hello, Failure> {
    let mut acceptor = None;
    poll_fn(|cx| {
        loop {
            let step = scratch(|bytes| read(cx, socket, &mut bytes[..READ], &mut acceptor));
            match step {
                Poll::Ready(Ok(Some(hello))) => return Poll::Ready(Ok(hello)),
                Poll::Ready(Ok(None)) => {}
                Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                Poll::Pending => return timer.poll_expired(cx).map(|()| Err(Failure::Late)),
            }
        }
    })
    .await
}

/// One read and what it makes of the ClientHello so far.
fn read(
    cx: &mut Context<'_>,
    socket: &mut Socket,
    bytes: &mut [u8],
    acceptor: &mut Option<Acceptor>,
) -> Poll<Result<Option<Hello>, Failure>> {
    let mut into = ReadBuf::new(bytes);
    match Pin::new(socket).poll_read(cx, &mut into) {
        Poll::Pending => return Poll::Pending,
        Poll::Ready(Ok(())) => {}
        Poll::Ready(Err(error)) if acceptor.is_none() => return Poll::Ready(Err(Failure::Read(error))),
        Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Gone(Some(error)))),
    }
    let mut bytes = into.filled();
    let Some(first) = bytes.first() else {
        let failure = if acceptor.is_none() { Failure::Closed } else { Failure::Gone(None) };
        return Poll::Ready(Err(failure));
    };
    // A handshake record, or what may be the length of an SSL 2 message; anything else is no TLS.
    if acceptor.is_none() && *first != 0x16 && *first & 0x80 == 0 {
        let mut input = Buf::new();
        input.extend(bytes);
        return Poll::Ready(Ok(Some(Hello::Plain(input))));
    }
    let acceptor = acceptor.get_or_insert_with(Acceptor::default);
    while !bytes.is_empty() {
        match acceptor.read_tls(&mut bytes) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => return Poll::Ready(Err(Failure::Read(error))),
        }
    }
    Poll::Ready(match acceptor.accept() {
        Ok(accepted) => Ok(accepted.map(|accepted| Hello::Tls(Box::new(accepted)))),
        Err((error, alert)) => Ok(Some(Hello::Bad(error, alert))),
    })
}

/// An exchange for what variables tell of a connection before its handshake.
fn nothing_asked(
    reactor: &Rc<Reactor>,
    generation: &Arc<Generation>,
    connection: &Connection,
    server: LocationId,
    session: Session,
) -> Box<Exchange> {
    let connection = Rc::new(Connection { tls: Some(Rc::new(session)), ..connection.clone() });
    let client = Client {
        io: Io::Absent,
        input: Buf::new(),
        timer: reactor.timers().register(),
        look: None,
        nodelay: false,
    };
    let mut x =
        Box::new(Exchange::new(Rc::clone(reactor), Arc::clone(generation), connection, client, server));
    x.begin(generation, server);
    x
}

/// What a handshake is done with.
struct Chosen {
    /// The one that the client asks for.
    server: LocationId,
    /// Its own, or the default server's.
    tls: Arc<ServerTls>,
    config: Arc<ServerConfig>,
}

/// The server that the client asks for: by SNI, else the default one. `None` where that server takes no handshakes.
fn choose(generation: &Generation, connection: &mut Connection, hello: &ClientHello<'_>) -> Option<Chosen> {
    let address = &generation.addresses[connection.address()];
    let by_name = hello.server_name().and_then(|name| by_name(generation, connection.address(), name));
    if let Some(server) = by_name {
        connection.log = generation.location(server).log.of_connection(&connection.log);
    }
    let of = |server: LocationId| generation.location(server).tls.as_ref();
    let server = by_name.unwrap_or(address.default_server);
    let named = of(server);
    if named.is_some_and(|tls| tls.reject_handshake) {
        return None;
    }
    // A server without certificates of its own shows those of the default server, and asks what that asks.
    let tls = named.filter(|tls| tls.config.is_some()).or_else(|| of(address.default_server))?;
    let http2 = http2::is_spoken(generation, connection.address(), server);
    let config = if http2 { &tls.with_http2 } else { &tls.config };
    Some(Chosen { server, tls: Arc::clone(tls), config: config.clone()? })
}

/// The server that a client names in its ClientHello.
pub(crate) fn by_name(generation: &Generation, address: usize, name: &str) -> Option<LocationId> {
    let lower = name.to_ascii_lowercase();
    let host = lower.strip_suffix('.').unwrap_or(&lower);
    router::find(generation, address, host.as_bytes()).map(|(server, _)| server)
}

impl Failure {
    fn of(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Gone(None);
        }
        if error.raw_os_error().is_some() {
            return Self::Gone(Some(error));
        }
        match error.downcast::<Error>() {
            Ok(Error::AlertReceived(AlertDescription::CloseNotify)) => Self::Gone(None),
            Ok(error) => Self::Tls(error),
            Err(error) => Self::Read(error),
        }
    }
}

async fn send_alert(socket: &mut Socket, mut alert: AcceptedAlert, timer: &Timer) {
    let mut bytes = vec![];
    // A Vec takes everything.
    let _ = alert.write_all(&mut bytes);
    send(socket, &bytes, timer).await;
}

/// An alert in a record of its own.
fn fatal(alert: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, alert]
}

/// Sends a few last bytes; what the client does not take is its own loss.
async fn send(socket: &mut Socket, bytes: &[u8], timer: &Timer) {
    poll_fn(|cx| match Pin::new(&mut *socket).poll_write(cx, bytes) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => timer.poll_expired(cx),
    })
    .await;
}

fn log(connection: &Connection, listener: &Address, failure: &Failure) {
    let write = |level, errno, message: &str| {
        connection.log.write_with(level, errno, message, |line| {
            line.bytes(b" while SSL handshaking");
            line.field("client", connection.peer.text());
            line.field("server", listener.to_string().as_bytes());
        });
    };
    let errno = |error: &io::Error| error.raw_os_error().map(Errno::from_raw);
    let (message, errno) = match failure {
        Failure::Closed => ("client closed connection".into(), None),
        Failure::Gone(error) => {
            ("peer closed connection in SSL handshake".into(), error.as_ref().and_then(errno))
        }
        Failure::Late => ("client timed out".into(), Some(Errno::ETIMEDOUT)),
        Failure::Rejected => ("handshake rejected".into(), None),
        Failure::NoCertificate(reason) => {
            write(Level::Error, None, reason);
            ("SSL_do_handshake() failed (SSL: error:0A000179:SSL routines::cert cb error)".into(), None)
        }
        Failure::Tls(error) => (format!("SSL_do_handshake() failed (SSL: {})", reason(error)), None),
        Failure::Read(error) => match errno(error) {
            Some(errno) => ("recv() failed".into(), Some(errno)),
            None => (format!("SSL_do_handshake() failed (SSL: {error})"), None),
        },
    };
    write(Level::Info, errno, &message);
}

//! For tests: connected pairs of every kind of stream, on real loopback sockets, and a reactor to use them on.

use std::cell::LazyCell;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::runtime::{LocalOptions, LocalRuntime};
use tokio_rustls::{Accept, Connect, TlsAcceptor, TlsConnector};

use super::{Io, Records, Socket};
use crate::timer::{Clock, Timers};

/// A kind of stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Unix,
    /// TLS over TCP.
    Tls,
    /// TLS over a unix socket.
    TlsUnix,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Tcp, Kind::Unix, Kind::Tls, Kind::TlsUnix];
}

/// Runs `work` on a reactor with driven timers.
pub(crate) fn reactor<F: Future<Output = ()>>(work: impl FnOnce(Timers) -> F) {
    let runtime = crate::timer::runtime().unwrap();
    drive(&runtime, Clock::new, work);
}

/// The same with a paused clock, which moves when everything waits.
pub(crate) fn paused<F: Future<Output = ()>>(work: impl FnOnce(Timers) -> F) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build_local(LocalOptions::default()).unwrap();
    drive(&runtime, || Clock::fixed(0), work);
}

fn drive<F: Future<Output = ()>>(
    runtime: &LocalRuntime,
    clock: impl FnOnce() -> Clock,
    work: impl FnOnce(Timers) -> F,
) {
    runtime.block_on(async {
        let timers = Timers::new(clock());
        let driver = tokio::task::spawn_local(timers.clone().drive());
        work(timers).await;
        driver.abort();
    });
}

/// Bytes that the kernel takes for who reads nothing, which on its own it may take MiBs of (`net.ipv4.tcp_rmem`). They are
/// several segments of loopback: a window of less is opened by timers.
const RECEIVED: usize = 256 * 1024;

/// A connected pair of sockets: who accepted, who connected.
pub(crate) async fn sockets(tcp: bool) -> (Socket, Socket) {
    if !tcp {
        let (a, b) = UnixStream::pair().unwrap();
        return (a.into(), b.into());
    }
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, connected) = tokio::join!(listener.accept(), connecting);
    let (accepted, connected) = (accepted.unwrap().0, connected.unwrap());
    for socket in [&accepted, &connected] {
        socket.set_nodelay(true).unwrap();
        socket2::SockRef::from(socket).set_recv_buffer_size(RECEIVED).unwrap();
    }
    (accepted.into(), connected.into())
}

thread_local! {
    static TLS: LazyCell<(TlsAcceptor, TlsConnector)> = const { LazyCell::new(tls) };
}

fn tls() -> (TlsAcceptor, TlsConnector) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    (TlsAcceptor::from(Arc::new(server)), TlsConnector::from(Arc::new(client)))
}

/// A connected pair: who accepted, who connected.
pub(crate) async fn pair(kind: Kind) -> (Io, Io) {
    let (accepted, connected) = sockets(matches!(kind, Kind::Tcp | Kind::Tls)).await;
    if matches!(kind, Kind::Tcp | Kind::Unix) {
        return (accepted.into(), connected.into());
    }
    let (accept, connect) = handshake(accepted, connected);
    tokio::join!(shaken(accept), shaken(connect))
}

/// TLS on a connected pair, as it begins.
pub(crate) fn handshake(accepted: Socket, connected: Socket) -> (Accept<Records>, Connect<Records>) {
    let (acceptor, connector) = TLS.with(|tls| (tls.0.clone(), tls.1.clone()));
    let name = ServerName::try_from("localhost").unwrap();
    (acceptor.accept(Records::new(accepted)), connector.connect(name, Records::new(connected)))
}

/// Does a handshake and sends what it leaves.
async fn shaken<S: Into<Io>>(handshake: impl Future<Output = io::Result<S>>) -> Io {
    let mut io = handshake.await.unwrap().into();
    poll_fn(|cx| io.poll_flush(cx)).await.unwrap();
    io
}

/// Reads exactly `n` bytes, or what comes before the end.
pub(crate) async fn read(io: &mut Io, n: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; n];
    let mut have = 0;
    while have < n {
        match poll_fn(|cx| io.poll_read(cx, &mut bytes[have..])).await? {
            0 => break,
            got => have += got,
        }
    }
    bytes.truncate(have);
    Ok(bytes)
}

pub(crate) async fn write(io: &mut Io, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = poll_fn(|cx| io.poll_write(cx, bytes)).await?;
        bytes = &bytes[n..];
    }
    poll_fn(|cx| io.poll_flush(cx)).await
}

pub(crate) async fn shutdown(io: &mut Io) {
    poll_fn(|cx| io.poll_shutdown_write(cx)).await.unwrap();
}

/// `n` bytes that are not all alike.
pub(crate) fn noise(n: usize) -> Vec<u8> {
    (0..n as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

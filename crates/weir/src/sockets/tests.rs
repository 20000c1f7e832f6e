//! Listening sockets against the real kernel, on loopback.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU8, Ordering};

use super::*;
use crate::testing::{Folder, memory};

fn tcp(address: SocketAddr) -> ListenSpec {
    ListenSpec::new(Address::Ip(address))
}

/// An address of this process alone, so that no other can take its port.
fn free() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, NEXT.fetch_add(1, Ordering::Relaxed), high, low | 1);
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

#[track_caller]
fn open(listeners: &Listeners, specs: &[ListenSpec]) -> Listeners {
    let (log, lines) = memory(Level::Info);
    let mut opened = listeners.open(specs, Mode::Run, &log, || panic!("in use")).unwrap();
    opened.configure(specs, &log);
    assert_eq!(lines.take(), [""; 0]);
    opened
}

fn raw(listeners: &Listeners) -> Vec<RawFd> {
    listeners.sockets().map(|fd| fd.as_raw_fd()).collect()
}

#[test]
fn a_group_grows_and_never_shrinks() {
    let address = free();
    let group = |sockets| [ListenSpec { sockets, ..tcp(address) }];
    let one = open(&Listeners::default(), &group(1));
    let three = open(&one, &group(3));
    assert_eq!(raw(&three).len(), 3);
    assert_eq!(raw(&three)[0], raw(&one)[0]);
    let still = open(&three, &group(2));
    assert_eq!(raw(&still), raw(&three));
    let mut reached = [false; 3];
    let mut connections = Vec::new();
    for _ in 0..200 {
        connections.push(TcpStream::connect(address).unwrap());
        for (at, fd) in three.sockets().enumerate() {
            reached[at] |= SockRef::from(&**fd).accept().is_ok();
        }
    }
    assert_eq!(reached, [true; 3]);
}

#[test]
fn a_foreign_server_is_not_joined() {
    let foreign = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    foreign.set_reuse_port(true).unwrap();
    foreign.set_reuse_address(true).unwrap();
    foreign.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    foreign.listen(1).unwrap();
    let address = foreign.local_addr().unwrap().as_socket().unwrap();
    let (log, lines) = memory(Level::Info);
    let mut pauses = 0;
    let specs = [ListenSpec { sockets: 2, ..tcp(address) }];
    let opened = Listeners::default().open(&specs, Mode::Run, &log, || pauses += 1);
    assert!(opened.is_err());
    let in_use = format!("[emerg] bind() to {address} failed (98: Address already in use)");
    let again = "[notice] try again to bind() after 500ms".to_owned();
    let mut expected: Vec<String> = (0..5).flat_map(|_| [in_use.clone(), again.clone()]).collect();
    expected.push("[emerg] still could not bind()".into());
    assert_eq!((lines.take(), pauses), (expected, 5));
    drop(foreign);
    open(&Listeners::default(), &specs);
}

#[test]
fn an_address_that_gets_free_is_taken() {
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = foreign.local_addr().unwrap();
    let mut foreign = Some(foreign);
    let (log, lines) = memory(Level::Emerg);
    let opened = Listeners::default().open(&[tcp(address)], Mode::Run, &log, || foreign = None);
    assert_eq!(raw(&opened.unwrap()).len(), 1);
    assert_eq!(lines.take().len(), 1);
}

#[test]
fn a_test_passes_over_addresses_in_use_but_not_over_others() {
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let (log, lines) = memory(Level::Info);
    let spec = tcp(foreign.local_addr().unwrap());
    let pause = || panic!("waited");
    assert!(Listeners::default().open(&[spec], Mode::Test, &log, pause).is_ok());
    assert_eq!(lines.take(), [""; 0]);
    // TEST-NET-1 (RFC 5737) is nobody's own address.
    let spec = tcp("192.0.2.1:9".parse().unwrap());
    assert!(Listeners::default().open(&[spec], Mode::Test, &log, pause).is_err());
    let text = "[emerg] bind() to 192.0.2.1:9 failed (99: Cannot assign requested address)";
    assert_eq!(lines.take(), [text]);
}

#[test]
fn a_failure_leaves_the_old_sockets_listening() {
    let (kept, taken) = (free(), TcpListener::bind("127.0.0.1:0").unwrap());
    let old = open(&Listeners::default(), &[tcp(kept)]);
    let (log, _) = memory(Level::Info);
    let specs = [tcp(kept), tcp(taken.local_addr().unwrap())];
    assert!(old.open(&specs, Mode::Run, &log, || {}).is_err());
    TcpStream::connect(kept).unwrap();
}

#[test]
fn unix_sockets_are_files_that_go_with_them() {
    let folder = Folder::new();
    let path = folder.path("s");
    let spec = ListenSpec { sockets: 4, ..ListenSpec::new(Address::Unix(path.clone())) };
    let (log, lines) = memory(Level::Info);
    let tested = Listeners::default().open(std::slice::from_ref(&spec), Mode::Test, &log, || {}).unwrap();
    assert!(!path.exists());
    drop(tested);
    let listeners = open(&Listeners::default(), std::slice::from_ref(&spec));
    assert_eq!(raw(&listeners).len(), 1);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    UnixStream::connect(&path).unwrap();
    listeners.unlink_except(&listeners, &log);
    assert!(path.exists());
    listeners.unlink_except(&Listeners::default(), &log);
    assert!(!path.exists());
    // Where others are listened on, it is told.
    let next = open(&Listeners::default(), &[tcp(free())]);
    listeners.unlink_except(&next, &log);
    let shown = path.display();
    let texts = [
        format!("[warn] deleting socket {shown}"),
        format!("[emerg] unlink() {shown} failed (2: No such file or directory)"),
    ];
    assert_eq!(lines.take(), texts);
}

#[test]
fn parameters_reach_the_kernel() {
    let spec = ListenSpec {
        receive_buffer: Some(50_000),
        deferred: true,
        fast_open: Some(5),
        keep_alive: Some(KeepAlive { on: true, idle: 100, interval: 7, count: 3 }),
        ..tcp(free())
    };
    let listeners = open(&Listeners::default(), &[spec]);
    let socket = SockRef::from(&**listeners.sockets().next().unwrap());
    assert!(socket.recv_buffer_size().unwrap() >= 50_000);
    assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(100));
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(7));
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
}

#[test]
fn lists_of_inherited_sockets() {
    #[track_caller]
    fn check(list: &str, expected: &[RawFd], message: Option<&str>) {
        let (log, lines) = memory(Level::Info);
        assert_eq!(numbers(list.as_bytes(), &log), expected);
        assert_eq!(lines.take(), message.map_or(Vec::new(), |text| vec![text.to_owned()]));
    }
    check(&inheritance([6, 7]), &[6, 7], None);
    check("6:7;", &[6, 7], None);
    check(
        "6;x;7;",
        &[6],
        Some(
            "[emerg] invalid socket number \"x;7;\" in NGINX environment variable, ignoring the rest of the variable",
        ),
    );
    check("6;7", &[6], Some("[emerg] invalid socket number \"7\" in NGINX environment variable, ignoring"));
}

#[test]
fn a_description_says_which_socket_it_is() {
    #[track_caller]
    fn check(address: Address, text: &str) {
        let group = Group { address, sockets: Vec::new(), backlog: None, deferred: None };
        assert_eq!(group.description(), text.as_bytes());
        assert_eq!(described(text.as_bytes()), Some(group.address));
    }
    check(Address::Ip("[::1]:80".parse().unwrap()), "[::1]:80");
    check(Address::Ip("1.2.3.4:5".parse().unwrap()), "1.2.3.4:5");
    check(Address::Unix("/run/a b".into()), "unix:/run/a b");
    for nonsense in ["", "x", "1.2.3.4"] {
        assert_eq!(described(nonsense.as_bytes()), None);
    }
}

#[test]
fn sockets_from_elsewhere_are_known_by_their_names() {
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = foreign.local_addr().unwrap();
    let (address, fd) = name_of(foreign.into()).unwrap();
    assert_eq!(address, Address::Ip(local));
    let mut listeners = Listeners::default();
    listeners.add(address, fd);
    // It was opened without SO_REUSEPORT and still lets the group grow.
    let grown = open(&listeners, &[ListenSpec { sockets: 3, ..tcp(local) }]);
    assert_eq!(raw(&grown).len(), 3);
    assert_eq!(name_of(std::fs::File::open("/dev/null").unwrap().into()).err(), Some(Errno::ENOTSOCK));
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(name_of(datagrams.into()).err(), Some(Errno::ESOCKTNOSUPPORT));
}

use std::future::poll_fn;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use super::pair::{Kind, noise, pair, paused, reactor, read, shutdown, sockets, write};
use super::*;

async fn now<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    poll_fn(|cx| Poll::Ready(poll(cx))).await
}

#[test]
fn vectored_writes_and_shutdown_arrive_in_order() {
    reactor(|_| async {
        for kind in Kind::ALL {
            let (mut a, mut b) = pair(kind).await;
            let pieces = [IoSlice::new(b"head "), IoSlice::new(b""), IoSlice::new(b"body")];
            let n = poll_fn(|cx| a.poll_write_vectored(cx, &pieces)).await.unwrap();
            assert_eq!(n, 9, "{kind:?}");
            poll_fn(|cx| a.poll_flush(cx)).await.unwrap();
            shutdown(&mut a).await;
            assert_eq!(read(&mut b, 100).await.unwrap(), b"head body", "{kind:?}");
            write(&mut b, b"still heard").await.unwrap();
            assert_eq!(read(&mut a, 11).await.unwrap(), b"still heard", "{kind:?}");
        }
    });
}

#[test]
fn the_last_of_a_connection_waits_for_its_fin() {
    reactor(|_| async {
        for kind in [Kind::Tcp, Kind::Tls] {
            let mut waited = false;
            // The kernel has no patience with a thread that comes to nothing in between.
            for _ in 0..20 {
                let (mut server, mut client) = pair(kind).await;
                let there = |client: &Io| rustix::io::ioctl_fionread(client.socket().unwrap()).unwrap();
                let before = there(&client);
                server.closes();
                write(&mut server, b"answer").await.unwrap();
                waited |= there(&client) == before;
                server.farewell();
                drop(server);
                assert_eq!(read(&mut client, 99).await.unwrap(), b"answer", "{kind:?}");
            }
            assert!(waited, "{kind:?}");
        }
    });
}

#[test]
fn what_waits_for_the_fin_is_not_lost_for_what_was_not_read() {
    reactor(|_| async {
        for kind in Kind::ALL {
            let (mut server, mut client) = pair(kind).await;
            write(&mut client, b"unasked").await.unwrap();
            poll_fn(|cx| server.socket().unwrap().poll_read_ready(cx)).await.unwrap();
            server.closes();
            write(&mut server, b"answer").await.unwrap();
            server.farewell();
            drop(server);
            assert_eq!(read(&mut client, 6).await.unwrap(), b"answer", "{kind:?}");
        }
    });
}

#[test]
fn a_missing_close_notify_is_an_end() {
    reactor(|_| async {
        let (mut server, client) = pair(Kind::Tls).await;
        client.socket().unwrap().options().shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(read(&mut server, 1).await.unwrap(), b"");
    });
}

#[test]
fn plaintext_held_by_the_session_is_readable() {
    reactor(|_| async {
        let (mut server, mut client) = pair(Kind::Tls).await;
        write(&mut client, b"abc").await.unwrap();
        assert_eq!(read(&mut server, 1).await.unwrap(), b"a");
        assert!(now(|cx| server.poll_read_ready(cx)).await.is_ready());
        assert_eq!(read(&mut server, 2).await.unwrap(), b"bc");
        assert!(now(|cx| server.poll_read(cx, &mut [0; 8])).await.is_pending());
        assert!(now(|cx| server.poll_read_ready(cx)).await.is_pending());
    });
}

#[test]
fn an_end_that_came_with_the_last_bytes_is_readable() {
    reactor(|_| async {
        let (mut server, mut client) = pair(Kind::Tls).await;
        let Io::TlsClient(tls) = &mut client else { panic!("a client") };
        // Both go out at once, and the socket stays open.
        let session = tls.get_mut().1;
        session.writer().write_all(b"abc").unwrap();
        session.send_close_notify();
        poll_fn(|cx| client.poll_flush(cx)).await.unwrap();
        assert_eq!(read(&mut server, 3).await.unwrap(), b"abc");
        assert!(now(|cx| server.poll_read_ready(cx)).await.is_ready());
        assert_eq!(read(&mut server, 1).await.unwrap(), b"");
    });
}

#[test]
fn a_stale_connection_is_seen_without_asking_the_kernel() {
    reactor(|_| async {
        for kind in Kind::ALL {
            let (mut server, mut client) = pair(kind).await;
            if client.is_tls() {
                // A ticket of the handshake is no reason to give a connection up.
                poll_fn(|cx| client.socket().unwrap().poll_read_ready(cx)).await.unwrap();
            }
            assert!(!client.is_stale(), "{kind:?}: idle");
            write(&mut client, b"q").await.unwrap();
            assert_eq!(read(&mut server, 1).await.unwrap(), b"q");
            write(&mut server, b"answer").await.unwrap();
            assert_eq!(read(&mut client, 6).await.unwrap(), b"answer");
            assert!(!client.is_stale(), "{kind:?}: used");
            drop(server);
            poll_fn(|cx| client.poll_stale(cx)).await;
            assert!(client.is_stale(), "{kind:?}: closed");

            let (mut server, mut client) = pair(kind).await;
            write(&mut server, b"unasked").await.unwrap();
            poll_fn(|cx| client.socket().unwrap().poll_read_ready(cx)).await.unwrap();
            assert!(client.is_stale(), "{kind:?}: garbage");
        }
    });
}

#[test]
fn files_are_sent_from_an_offset() {
    let data = noise(3_000_000);
    let mut file = tempfile();
    file.write_all(&data).unwrap();
    let (file, data) = (Rc::new(file), Rc::new(data));
    reactor(|_| async move {
        for kind in Kind::ALL {
            for (from, len) in [(0, 3_000_000), (17, 5), (2_999_000, 1_000), (1_000_000, 1_500_000)] {
                let (mut a, mut b) = pair(kind).await;
                let file = file.clone();
                let sender = tokio::task::spawn_local(async move {
                    let head = b"head:";
                    let mut sent = 0;
                    while sent < head.len() {
                        sent += poll_fn(|cx| a.poll_write_more(cx, &head[sent..])).await.unwrap();
                    }
                    let (mut at, end) = (from as u64, (from + len) as u64);
                    while at < end {
                        let left = end - at;
                        let n = poll_fn(|cx| a.poll_sendfile(cx, &*file, &mut at, left)).await.unwrap();
                        assert_ne!(n, 0);
                    }
                    poll_fn(|cx| a.poll_flush(cx)).await.unwrap();
                    shutdown(&mut a).await;
                    a
                });
                let got = read(&mut b, 4_000_000).await.unwrap();
                assert!(got[..5] == *b"head:" && got[5..] == data[from..from + len], "{kind:?} {from} {len}");
                sender.await.unwrap();
            }
            let (mut a, _b) = pair(kind).await;
            let mut at = 3_000_000;
            let n = poll_fn(|cx| a.poll_sendfile(cx, &*file, &mut at, 10)).await.unwrap();
            assert_eq!((n, at), (0, 3_000_000), "{kind:?}: past the end");
        }
    });
}

#[test]
fn a_reader_that_does_not_read_holds_little_of_a_file() {
    let mut file = tempfile();
    file.write_all(&noise(8_000_000)).unwrap();
    reactor(|_| async move {
        let mut taken = Vec::new();
        for bound in [false, true] {
            let (mut a, b) = pair(Kind::Tcp).await;
            // A send buffer as it may have grown, which is the kernel's choice, and little beside it.
            a.socket().unwrap().options().set_send_buffer_size(400_000).unwrap();
            b.socket().unwrap().options().set_recv_buffer_size(16 * 1024).unwrap();
            if bound {
                a.socket().unwrap().bound_unsent();
            }
            let mut at = 0;
            poll_fn(|cx| {
                while a.poll_sendfile(cx, &file, &mut at, 8_000_000)?.is_ready() {}
                Poll::Ready(io::Result::Ok(()))
            })
            .await
            .unwrap();
            taken.push(at);
        }
        assert!(taken[1] < 1_000_000 && taken[1] * 2 < taken[0], "{taken:?}");
    });
}

/// A file without a name.
fn tempfile() -> std::fs::File {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_TMPFILE)
        .open(std::env::temp_dir())
        .unwrap()
}

#[test]
fn a_lingering_close_reads_on_for_as_long_as_it_may() {
    paused(|timers| async move {
        for kind in Kind::ALL {
            let (server, mut client) = pair(kind).await;
            let begun = timers.clock().refresh();
            let lingering = tokio::task::spawn_local({
                let timers = timers.clone();
                async move { server.linger(&timers, 30_000, 5_000).await }
            });
            assert_eq!(read(&mut client, 1).await.unwrap(), b"", "{kind:?}: our direction ended");
            for _ in 0..4 {
                timers.sleep(4_000).await;
                write(&mut client, b"late").await.unwrap();
            }
            lingering.await.unwrap();
            let took = timers.clock().refresh() - begun;
            assert!((21_000..21_200).contains(&took), "{kind:?}: idle, {took}");

            let (server, mut client) = pair(kind).await;
            let begun = timers.clock().refresh();
            let chatter = tokio::task::spawn_local({
                let timers = timers.clone();
                async move {
                    while write(&mut client, b"x").await.is_ok() {
                        timers.sleep(1_000).await;
                    }
                }
            });
            server.linger(&timers, 30_000, 5_000).await;
            let took = timers.clock().refresh() - begun;
            assert!((30_000..31_100).contains(&took), "{kind:?}: total, {took}");
            chatter.await.unwrap();

            let (server, client) = pair(kind).await;
            let begun = timers.clock().refresh();
            drop(client);
            server.linger(&timers, 30_000, 5_000).await;
            assert!(timers.clock().refresh() - begun < 100, "{kind:?}: the client's end ends it");
        }
    });
}

async fn listening() -> (Listener, Address) {
    let listener = Listener::tcp(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn connected(mut connecting: Connecting) -> io::Result<Socket> {
    poll_fn(|cx| connecting.poll_connected(cx)).await?;
    Ok(connecting.into_socket())
}

#[test]
fn a_connection_is_sent_to_before_it_is_known_to_be_up() {
    reactor(|_| async {
        let (listener, address) = listening().await;
        let options = ConnectOptions {
            bind: Some(SocketAddr::from(([127, 0, 0, 2], 0))),
            keepalive: true,
            ..ConnectOptions::default()
        };
        let mut connecting = connect(&address, &options).unwrap();
        let sent = connecting.try_send(b"GET /").unwrap();
        assert_eq!((sent, connecting.is_connected()), (5, true), "loopback connects within the call");
        let (accepted, peer) = poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
        let Address::Ip(peer) = peer else { panic!("{peer}") };
        assert_eq!(peer.ip(), Ipv4Addr::new(127, 0, 0, 2));
        let mut accepted = Io::from(accepted);
        assert_eq!(read(&mut accepted, 5).await.unwrap(), b"GET /");
        let socket = connected(connecting).await.unwrap();
        assert!(socket.options().keepalive().unwrap() && !socket.options().tcp_nodelay().unwrap());
        socket.set_nodelay();
        assert!(socket.options().tcp_nodelay().unwrap());
        let mut io = Io::from(socket);
        write(&mut accepted, b"200").await.unwrap();
        assert_eq!(read(&mut io, 3).await.unwrap(), b"200");
    });
}

#[test]
fn a_refused_connection_is_an_error_wherever_it_is_asked() {
    reactor(|_| async {
        let (listener, address) = listening().await;
        drop(listener);
        let refused = |result: io::Result<usize>| {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        };
        let options = ConnectOptions::default();
        match connect(&address, &options) {
            Ok(mut connecting) => refused(connecting.try_send(b"x")),
            Err(e) => refused(Err(e.into())),
        }
        match connect(&address, &options) {
            Ok(connecting) => refused(connected(connecting).await.map(|_| 0)),
            Err(e) => refused(Err(e.into())),
        }
        let nowhere = Address::Unix("/nonexistent/weir.sock".into());
        let e = connect(&nowhere, &options).err().unwrap();
        assert_eq!((e.call, e.error.kind()), (ConnectCall::Connect, io::ErrorKind::NotFound));
        let elsewhere = Some(SocketAddr::from(([192, 0, 2, 1], 0)));
        let e = connect(&address, &ConnectOptions { bind: elsewhere, ..options }).err().unwrap();
        assert_eq!((e.call, e.error.kind()), (ConnectCall::Bind, io::ErrorKind::AddrNotAvailable));
    });
}

#[test]
fn unix_sockets_connect_and_are_accepted() {
    let directory = std::env::temp_dir().join(format!("weir-io-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("listen.sock");
    let listening = std::os::unix::net::UnixListener::bind(&path).unwrap();
    reactor(|_| async {
        let listener = Listener::unix(listening).unwrap();
        let address = Address::Unix(path.to_string_lossy().into());
        assert_eq!(listener.local_addr().unwrap(), address);
        let mut connecting = connect(&address, &ConnectOptions::default()).unwrap();
        assert_eq!(connecting.try_send(b"hi").unwrap(), 2);
        let (accepted, peer) = poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
        assert_eq!(peer.to_string(), "unix:");
        let mut accepted = Io::from(accepted);
        assert_eq!(read(&mut accepted, 2).await.unwrap(), b"hi");
        let socket = connecting.into_socket();
        assert_eq!(socket.peer_addr().unwrap(), address);
        socket.set_nodelay();
    });
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn the_accept_loop_hands_over_every_connection() {
    reactor(|timers| async move {
        let (listener, address) = listening().await;
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let looping = tokio::task::spawn_local(async move {
            let accepted = |socket: Socket, peer| {
                assert_eq!(socket.peer_addr().unwrap(), peer);
                tell.send((socket, peer)).unwrap();
            };
            accept_loop(&listener, &timers, 500, accepted, |_, e| panic!("{e}")).await;
        });
        let mut ends = Vec::new();
        for _ in 0..100 {
            let mut connecting = connect(&address, &ConnectOptions::default()).unwrap();
            // Without it the other side hears of the connection a fifth of a second later.
            assert_eq!(connecting.try_send(b"x").unwrap(), 1);
            let socket = connected(connecting).await.unwrap();
            let (accepted, peer) = told.recv().await.unwrap();
            assert_eq!(socket.local_addr().unwrap(), peer);
            ends.push((socket, accepted));
        }
        looping.abort();
    });
}

/// Runs in a process of its own, because a limit on descriptors would hit every other test.
#[test]
fn the_accept_loop_pauses_when_descriptors_run_out() {
    const CHILD: &str = "WEIR_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        let this = std::env::current_exe().unwrap();
        let name = "io::tests::the_accept_loop_pauses_when_descriptors_run_out";
        let child = std::process::Command::new("sh")
            .args(["-c", "ulimit -n 48; exec \"$0\" --exact \"$1\" --test-threads=1 --nocapture"])
            .arg(this)
            .arg(name)
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
        return;
    }
    reactor(|timers| async move {
        let (listener, address) = listening().await;
        let client = connected(connect(&address, &ConnectOptions::default()).unwrap()).await.unwrap();
        let mut hoard = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            hoard.push(file);
        }
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let tell_failure = tell.clone();
        let clock = timers.clone();
        let looping = tokio::task::spawn_local(async move {
            let accepted = |socket: Socket, _| tell.send(Ok(socket)).unwrap();
            let failed = |severity, e: &io::Error| tell_failure.send(Err((severity, e.to_string()))).unwrap();
            accept_loop(&listener, &timers, 200, accepted, failed).await;
        });
        let (severity, text) = told.recv().await.unwrap().unwrap_err();
        assert_eq!((severity, text.as_str()), (Severity::Crit, "Too many open files (os error 24)"));
        let begun = clock.clock().refresh();
        hoard.clear();
        let accepted = told.recv().await.unwrap().unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
        assert!(clock.clock().refresh() - begun >= 150, "it waited");
        looping.abort();
    });
}

#[test]
fn sockets_tell_their_addresses_and_errors() {
    reactor(|_| async {
        let (accepted, connected) = sockets(true).await;
        assert_eq!(accepted.peer_addr().unwrap(), connected.local_addr().unwrap());
        assert!(accepted.local_addr().unwrap().to_string().starts_with("127.0.0.1:"));
        assert!(accepted.take_error().unwrap().is_none());
        Io::from(connected).reset();
        poll_fn(|cx| accepted.poll_read_ready(cx)).await.unwrap();
        assert_eq!(accepted.take_error().unwrap().unwrap().kind(), io::ErrorKind::ConnectionReset);
    });
}

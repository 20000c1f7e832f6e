use std::task::ready;

use super::*;
use crate::io::pair::{Kind, noise, pair, paused, reactor, read, shutdown, write};

const OPTIONS: Options = Options {
    read_timeout: 60_000,
    send_timeout: 60_000,
    client_send_timeout: 60_000,
    half_close: HalfClose::Never,
};

/// A tunnel with its outer ends: what the client and the upstream hold in their hands.
async fn tunnel(client: Kind, upstream: Kind, options: Options, timers: &Timers) -> (Tunnel, Io, Io) {
    let (ours, client) = pair(client).await;
    let (upstream, theirs) = pair(upstream).await;
    (Tunnel::new(ours, theirs, Buf::new(), Buf::new(), options, timers), client, upstream)
}

fn spawn(mut tunnel: Tunnel) -> tokio::task::JoinHandle<Closed> {
    tokio::task::spawn_local(async move { tunnel.run().await })
}

#[test]
fn every_kind_of_stream_carries_both_ways() {
    reactor(|timers| async move {
        for near in Kind::ALL {
            for far in Kind::ALL {
                let (tunnel, mut client, mut upstream) = tunnel(near, far, OPTIONS, &timers).await;
                let closed = spawn(tunnel);
                for size in [1, 125, 70_000] {
                    let message = noise(size);
                    write(&mut client, &message).await.unwrap();
                    assert!(
                        read(&mut upstream, size).await.unwrap() == message,
                        "{near:?} to {far:?}: {size}"
                    );
                    write(&mut upstream, &message).await.unwrap();
                    assert!(read(&mut client, size).await.unwrap() == message, "{far:?} to {near:?}: {size}");
                }
                shutdown(&mut client).await;
                assert_eq!(read(&mut upstream, 1).await.unwrap(), b"");
                let closed = closed.await.unwrap();
                assert!(matches!(closed.reason, Reason::Eof(Side::Client)), "{closed:?}");
                assert_eq!((closed.bytes_up, closed.bytes_down), (70_126, 70_126));
            }
        }
    });
}

#[test]
fn both_directions_flow_at_once() {
    reactor(|timers| async move {
        for kind in Kind::ALL {
            let (tunnel, client, upstream) = tunnel(kind, kind, OPTIONS, &timers).await;
            let closed = spawn(tunnel);
            let data = Rc::new(noise(4_000_000));
            let exchange = |mut io: Io| {
                let data = data.clone();
                tokio::task::spawn_local(async move {
                    let (mut sent, mut got) = (0, Vec::new());
                    let mut bytes = vec![0; 50_000];
                    poll_fn(|cx| {
                        while sent < data.len() {
                            match io.poll_write(cx, &data[sent..]) {
                                Poll::Ready(n) => sent += n.unwrap(),
                                Poll::Pending => break,
                            }
                        }
                        let flushed = io.poll_flush(cx);
                        while got.len() < data.len() {
                            let n = ready!(io.poll_read(cx, &mut bytes)).unwrap();
                            assert_ne!(n, 0);
                            got.extend_from_slice(&bytes[..n]);
                        }
                        if sent < data.len() { Poll::Pending } else { flushed.map(Result::unwrap) }
                    })
                    .await;
                    assert!(got == *data);
                    io
                })
            };
            let (a, b) = (exchange(client), exchange(upstream));
            let (_a, b) = (a.await.unwrap(), b.await.unwrap());
            drop(b);
            let closed = closed.await.unwrap();
            assert!(matches!(closed.reason, Reason::Eof(Side::Upstream)), "{closed:?}");
            assert_eq!((closed.bytes_up, closed.bytes_down), (4_000_000, 4_000_000));
        }
    });
}

#[test]
fn a_slow_reader_holds_the_writer_back_and_the_tunnel_stays_small() {
    const TOTAL: usize = 50_000_000;
    reactor(|timers| async move {
        for kind in [Kind::Tcp, Kind::Tls] {
            let (mut tunnel, mut client, mut upstream) = tunnel(kind, kind, OPTIONS, &timers).await;
            let (most, stuck) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let (noted, noted_stuck) = (most.clone(), stuck.clone());
            let closed = tokio::task::spawn_local(async move {
                poll_fn(|cx| {
                    let polled = tunnel.poll_closed(cx);
                    noted.set(noted.get().max(tunnel.up.pending.capacity()));
                    noted_stuck.set(noted_stuck.get() + usize::from(!tunnel.up.delivered()));
                    polled
                })
                .await
            });
            let sent = Rc::new(Cell::new(0));
            let counted = sent.clone();
            let writer = tokio::task::spawn_local(async move {
                let chunk = noise(100_000);
                for _ in 0..TOTAL / chunk.len() {
                    write(&mut client, &chunk).await.unwrap();
                    counted.set(counted.get() + chunk.len());
                }
                shutdown(&mut client).await;
                client
            });
            let (mut got, mut ahead) = (0, 0);
            loop {
                // The reader lets the writer run until it is stuck, then takes a little.
                let before = sent.get();
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                if sent.get() != before && sent.get() < got + 20_000_000 {
                    continue;
                }
                let taken = read(&mut upstream, 1_000_000).await.unwrap().len();
                ahead = ahead.max(sent.get() - got);
                got += taken;
                if taken < 1_000_000 {
                    break;
                }
            }
            assert_eq!(got, TOTAL);
            assert!(most.get() <= 64 * 1024, "pending grew to {}", most.get());
            assert!(stuck.get() > 0, "the reader was never slow");
            assert!(ahead < 25_000_000, "the writer was {ahead} ahead");
            let closed = closed.await.unwrap();
            assert_eq!(closed.bytes_up, TOTAL as u64);
            drop(writer.await);
        }
    });
}

#[test]
fn bytes_read_with_the_heads_go_first() {
    reactor(|timers| async move {
        for kind in Kind::ALL {
            let (ours, mut client) = pair(kind).await;
            let (mut upstream, theirs) = pair(kind).await;
            write(&mut client, b" world").await.unwrap();
            write(&mut upstream, b" there").await.unwrap();
            let (up, down) = (Buf::copy_of(b"hello"), Buf::copy_of(b"hi"));
            let closed = spawn(Tunnel::new(ours, theirs, up, down, OPTIONS, &timers));
            assert_eq!(read(&mut upstream, 11).await.unwrap(), b"hello world");
            assert_eq!(read(&mut client, 8).await.unwrap(), b"hi there");
            drop(client);
            let closed = closed.await.unwrap();
            assert_eq!((closed.bytes_up, closed.bytes_down), (11, 8));
        }
    });
}

/// What nginx does with an upgraded connection: one end's FIN closes both, after what that end said is delivered.
#[test]
fn an_end_on_either_side_closes_both() {
    reactor(|timers| async move {
        for kind in Kind::ALL {
            for side in [Side::Client, Side::Upstream] {
                let (mut tunnel, client, upstream) = tunnel(kind, kind, OPTIONS, &timers).await;
                let (mut first, mut second) =
                    if side == Side::Client { (client, upstream) } else { (upstream, client) };
                let last_words = noise(3_000_000);
                let expected = last_words.clone();
                let speaker = tokio::task::spawn_local(async move {
                    write(&mut first, &last_words).await.unwrap();
                    shutdown(&mut first).await;
                    read(&mut first, 1).await.unwrap()
                });
                let closed = tokio::task::spawn_local(async move {
                    let closed = tunnel.run().await;
                    // As a caller does who has nothing more to say.
                    drop(tunnel);
                    closed
                });
                assert!(read(&mut second, 4_000_000).await.unwrap() == expected, "{kind:?} {side:?}");
                let closed = closed.await.unwrap();
                assert!(matches!(closed.reason, Reason::Eof(of) if of == side), "{kind:?}: {closed:?}");
                assert_eq!(speaker.await.unwrap(), b"", "{kind:?} {side:?}");
            }
        }
    });
}

#[test]
fn with_half_close_the_other_direction_goes_on() {
    reactor(|timers| async move {
        for kind in Kind::ALL {
            for side in [Side::Client, Side::Upstream] {
                let options = Options { half_close: HalfClose::Both, ..OPTIONS };
                let (tunnel, client, upstream) = tunnel(kind, kind, options, &timers).await;
                let (mut first, mut second) =
                    if side == Side::Client { (client, upstream) } else { (upstream, client) };
                let closed = spawn(tunnel);
                write(&mut first, b"question").await.unwrap();
                shutdown(&mut first).await;
                assert_eq!(read(&mut second, 100).await.unwrap(), b"question", "{kind:?} {side:?}");
                for _ in 0..3 {
                    write(&mut second, b"answer").await.unwrap();
                    assert_eq!(read(&mut first, 6).await.unwrap(), b"answer", "{kind:?} {side:?}");
                }
                assert!(!closed.is_finished());
                shutdown(&mut second).await;
                assert_eq!(read(&mut first, 1).await.unwrap(), b"");
                let closed = closed.await.unwrap();
                assert!(matches!(closed.reason, Reason::Eof(of) if of == side), "{kind:?}: {closed:?}");
            }
        }
    });
}

#[test]
fn a_client_may_end_first() {
    let options = Options { half_close: HalfClose::Client, ..OPTIONS };
    reactor(|timers| async move {
        for kind in Kind::ALL {
            let (tunnel, mut client, mut upstream) = tunnel(kind, kind, options, &timers).await;
            let closed = spawn(tunnel);
            write(&mut client, b"close").await.unwrap();
            shutdown(&mut client).await;
            assert_eq!(read(&mut upstream, 100).await.unwrap(), b"close", "{kind:?}");
            write(&mut upstream, b"closed").await.unwrap();
            assert_eq!(read(&mut client, 6).await.unwrap(), b"closed", "{kind:?}");
            assert!(!closed.is_finished());
            shutdown(&mut upstream).await;
            assert_eq!(read(&mut client, 1).await.unwrap(), b"");
            assert!(matches!(closed.await.unwrap().reason, Reason::Eof(Side::Client)));
            // An upstream's end closes both.
            let (tunnel, mut client, mut upstream) = self::tunnel(kind, kind, options, &timers).await;
            let closed = spawn(tunnel);
            shutdown(&mut upstream).await;
            assert_eq!(read(&mut client, 1).await.unwrap(), b"");
            assert!(matches!(closed.await.unwrap().reason, Reason::Eof(Side::Upstream)));
        }
    });
    // Not for as long as it likes.
    paused(move |timers| async move {
        let (tunnel, mut client, _upstream) = tunnel(Kind::Tcp, Kind::Tcp, options, &timers).await;
        let closed = spawn(tunnel);
        shutdown(&mut client).await;
        let closed = closed.await.unwrap();
        assert!(matches!(closed.reason, Reason::Drained), "{closed:?}");
        assert_eq!((closed.ended - closed.started) / 1000, CLOSING / 1000);
    });
}

#[test]
fn a_deadline_that_stays_wakes_nobody() {
    reactor(|timers| async move {
        let (tunnel, _client, _upstream) = tunnel(Kind::Tcp, Kind::Tcp, OPTIONS, &timers).await;
        let wakes = |deadline| {
            tunnel.control.waker.replace(Some(Waker::noop().clone()));
            tunnel.control.drain(deadline);
            tunnel.control.waker.take().is_none()
        };
        assert_eq!([20, 20, 30, 10].map(wakes), [true, false, false, true]);
    });
}

#[test]
fn a_reset_is_told_from_an_end() {
    reactor(|timers| async move {
        for half_close in [HalfClose::Never, HalfClose::Client, HalfClose::Both] {
            for side in [Side::Client, Side::Upstream] {
                let options = Options { half_close, ..OPTIONS };
                let (mut tunnel, client, upstream) = tunnel(Kind::Tcp, Kind::Tcp, options, &timers).await;
                let (first, mut second) =
                    if side == Side::Client { (client, upstream) } else { (upstream, client) };
                first.reset();
                let closed = tunnel.run().await;
                drop(tunnel);
                let Reason::Failed { side: of, call: Call::Recv, error } = closed.reason else {
                    panic!("{closed:?}");
                };
                assert_eq!((of, error.kind()), (side, io::ErrorKind::ConnectionReset));
                assert_eq!(read(&mut second, 1).await.unwrap(), b"");
            }
        }
    });
}

#[test]
fn a_reset_under_pending_bytes_is_a_failure_to_send() {
    reactor(|timers| async move {
        let (tunnel, mut client, upstream) = tunnel(Kind::Tcp, Kind::Tcp, OPTIONS, &timers).await;
        let control = tunnel.control();
        let closed = spawn(tunnel);
        let writer = tokio::task::spawn_local(async move { write(&mut client, &noise(50_000_000)).await });
        while control.bytes_up() == 0 {
            tokio::task::yield_now().await;
        }
        upstream.reset();
        let closed = closed.await.unwrap();
        assert!(matches!(closed.reason, Reason::Failed { side: Side::Upstream, .. }), "{closed:?}");
        assert!(writer.await.unwrap().is_err());
    });
}

/// What the two ends do while the clock runs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Play {
    Silence,
    /// A byte every second, five times.
    ClientTalks,
    UpstreamTalks,
    /// Sends without end to an upstream that does not read.
    ClientFloods,
    UpstreamFloods,
}

/// Plays `play` and checks who is said to have been too slow, and when, in seconds.
#[track_caller]
fn check_timeout(options: Options, play: Play, side: Side, seconds: std::ops::RangeInclusive<u64>) {
    paused(|timers| async move {
        // A flood over TCP now and then waits for a timer of the kernel's, which a paused clock does not wait for.
        let (tunnel, client, upstream) = tunnel(Kind::Unix, Kind::Unix, options, &timers).await;
        let (mut client, mut upstream) = (Some(client), Some(upstream));
        let closed = spawn(tunnel);
        let talk = |mut io: Io, timers: Timers| {
            tokio::task::spawn_local(async move {
                for _ in 0..5 {
                    timers.sleep(1_000).await;
                    write(&mut io, b"x").await.unwrap();
                }
                std::future::pending::<Io>().await
            })
        };
        let flood = |mut io: Io| {
            tokio::task::spawn_local(async move {
                let _ = write(&mut io, &[0; 1_000_000]).await;
                io
            })
        };
        let mut ends: Vec<tokio::task::JoinHandle<Io>> = Vec::new();
        match play {
            Play::Silence => {}
            Play::ClientTalks => ends.push(talk(client.take().unwrap(), timers)),
            Play::UpstreamTalks => ends.push(talk(upstream.take().unwrap(), timers)),
            Play::ClientFloods => ends.push(flood(client.take().unwrap())),
            Play::UpstreamFloods => ends.push(flood(upstream.take().unwrap())),
        }
        let closed = closed.await.unwrap();
        let took = (closed.ended - closed.started) / 1000;
        assert!(matches!(closed.reason, Reason::Timeout(of) if of == side), "{play:?}: {closed:?}");
        assert!(seconds.contains(&took), "{play:?}: {took} s");
        drop(ends);
    });
}

/// The same plays were seen to end so with nginx 1.31.5 (see the top of the module).
#[test]
fn timeouts_run_as_in_nginx() {
    let options = |read: u64, send: u64, client: u64| Options {
        read_timeout: read * 1000,
        send_timeout: send * 1000,
        client_send_timeout: client * 1000,
        half_close: HalfClose::Never,
    };
    check_timeout(options(2, 60, 60), Play::Silence, Side::Upstream, 2..=2);
    check_timeout(options(60, 60, 60), Play::Silence, Side::Upstream, 60..=61);
    check_timeout(options(2, 60, 60), Play::ClientTalks, Side::Upstream, 7..=7);
    check_timeout(options(2, 60, 60), Play::UpstreamTalks, Side::Upstream, 7..=7);
    check_timeout(options(2, 3, 60), Play::ClientFloods, Side::Upstream, 2..=2);
    check_timeout(options(60, 3, 60), Play::ClientFloods, Side::Upstream, 3..=3);
    check_timeout(options(2, 60, 4), Play::UpstreamFloods, Side::Client, 4..=4);
}

#[test]
fn a_tunnel_can_be_watched_drained_and_aborted() {
    paused(|timers| async move {
        let (first, mut client, mut upstream) = tunnel(Kind::Tcp, Kind::Tls, OPTIONS, &timers).await;
        let control = first.control();
        let closed = spawn(first);
        timers.sleep(5_000).await;
        write(&mut client, b"abc").await.unwrap();
        assert_eq!(read(&mut upstream, 3).await.unwrap(), b"abc");
        assert_eq!((control.bytes_up(), control.bytes_down()), (3, 0));
        control.drain(7_000);
        control.drain(20_000);
        let closed = closed.await.unwrap();
        assert!(matches!(closed.reason, Reason::Drained), "{closed:?}");
        assert!((7_000..7_100).contains(&closed.ended), "{closed:?}");
        assert_eq!(read(&mut upstream, 1).await.unwrap(), b"", "a close_notify");

        let (second, client, _upstream) = tunnel(Kind::Tls, Kind::Tcp, OPTIONS, &timers).await;
        let control = second.control();
        let closed = spawn(second);
        tokio::task::yield_now().await;
        control.abort();
        assert!(matches!(closed.await.unwrap().reason, Reason::Aborted));
        drop(client);
    });
}

#[test]
fn a_flood_yields_after_a_bounded_number_of_reads() {
    reactor(|timers| async move {
        let (mut flooded, mut client, mut upstream) = tunnel(Kind::Tcp, Kind::Tcp, OPTIONS, &timers).await;
        let writer = tokio::task::spawn_local(async move { write(&mut client, &noise(20_000_000)).await });
        let reader = tokio::task::spawn_local(async move { read(&mut upstream, 20_000_000).await });
        let (mut most, mut turns) = (0, 0);
        let control = flooded.control();
        let closed = poll_fn(|cx| {
            let before = control.bytes_up();
            let polled = flooded.poll_closed(cx);
            most = most.max(control.bytes_up() - before);
            turns += 1;
            polled
        })
        .await;
        assert_eq!(closed.bytes_up, 20_000_000);
        // One read's worth may have been pending from the turn before.
        assert!(most <= 64 * 1024 * u64::from(READS_A_TURN + 1), "{most} bytes in one turn");
        assert!(turns > 20_000_000 / (64 * 1024 * READS_A_TURN + 1), "{turns} turns");
        drop((writer, reader));
    });
}

#[test]
fn an_idle_tunnel_is_small_and_holds_no_buffer() {
    reactor(|timers| async move {
        let (mut idle, mut client, mut upstream) = tunnel(Kind::Tcp, Kind::Tcp, OPTIONS, &timers).await;
        write(&mut client, &noise(30_000)).await.unwrap();
        let mut reading = std::pin::pin!(read(&mut upstream, 30_000));
        let got = poll_fn(|cx| {
            assert!(idle.poll_closed(cx).is_pending());
            reading.as_mut().poll(cx)
        })
        .await;
        assert_eq!(got.unwrap().len(), 30_000);
        assert_eq!((idle.up.pending.capacity(), idle.down.pending.capacity()), (0, 0));
        let task = |mut tunnel: Tunnel| async move {
            let closed = tunnel.run().await;
            drop(tunnel);
            closed
        };
        let size = size_of_val(&task(idle));
        assert!(size <= 512, "the future of a tunnel takes {size} bytes");
    });
}

#[test]
fn what_was_read_is_delivered_before_a_tunnel_is_finished() {
    reactor(|timers| async move {
        for kind in Kind::ALL {
            let (mut tunnel, mut client, mut upstream) = tunnel(kind, kind, OPTIONS, &timers).await;
            let control = tunnel.control();
            let message = noise(30_000_000);
            // More than goes out at once: what was read waits in the tunnel.
            let sent = message.clone();
            let writer = tokio::task::spawn_local(async move {
                let _ = write(&mut client, &sent).await;
                client
            });
            poll_fn(|cx| {
                assert!(tunnel.poll_closed(cx).is_pending());
                if tunnel.up.delivered() { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            control.finish();
            let waiting = tunnel.up.pending.len();
            let taken = control.bytes_up() as usize + waiting;
            let closed = spawn(tunnel);
            let mut got = 0;
            while got < taken {
                let piece = read(&mut upstream, 1.max((taken - got).min(50_000))).await.unwrap();
                assert!(!piece.is_empty() && message[got..].starts_with(&piece));
                got += piece.len();
            }
            let closed = closed.await.unwrap();
            assert!(matches!(closed.reason, Reason::Finished), "{closed:?}");
            assert_eq!(closed.bytes_up as usize, taken);
            writer.await.unwrap();
        }
    });
}

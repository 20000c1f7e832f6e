//! What a connection keeps for a client that reads nothing.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use hyper::rt::{Read, ReadBuf};

use super::frame;
use crate::http2::frame::{DATA, END_HEADERS, HEADERS, PADDED, SETTINGS, USUAL_WINDOW};
use crate::http2::hpack::Limits;
use crate::http2::inward::Rules;
use crate::http2::preface::PREFACE;
use crate::http2::wire::{Traffic, Wire};
use crate::io::{Buf, Io, pair};

/// Bytes that no connection has to take from somebody who does not read.
const ENOUGH: usize = 8 << 20;

#[test]
fn who_reads_nothing_is_read_no_further() {
    // Bytes of a body that room is given back for at once: behind the last request, and padding.
    for (stream, flags, payload) in [(3, 0, &b"x"[..]), (1, PADDED, b"\0")] {
        let limits = Limits { field: 100, list: 1000 };
        let rules = Rules { limits, requests: 1, streams: 1, window: USUAL_WINDOW, bridges: false };
        let first =
            [PREFACE.to_vec(), frame(SETTINGS, 0, 0, b""), frame(HEADERS, END_HEADERS, 1, b"\x82\x84\x86")];
        let many = frame(DATA, flags, stream, payload).repeat(10_000);
        pair::reactor(|_| async move {
            let (server, client) = pair::sockets(false).await;
            let mut client = Io::Plain(client);
            let traffic = Rc::new(Traffic::new(Io::Plain(server), rules));
            let mut wire = Wire { input: Buf::copy_of(&first.concat()), traffic: Rc::clone(&traffic) };
            let (mut sent, mut at) = (0, 0);
            for _ in 0..20_000 {
                poll_fn(|cx| {
                    while let Poll::Ready(Ok(n)) = client.poll_write(cx, &many[at..]) {
                        (sent, at) = (sent + n, (at + n) % many.len());
                    }
                    let mut bytes = [0; 4096];
                    let mut read = ReadBuf::new(&mut bytes);
                    while let Poll::Ready(Ok(())) = Pin::new(&mut wire).poll_read(cx, read.unfilled()) {
                        read = ReadBuf::new(&mut bytes);
                    }
                    Poll::Ready(())
                })
                .await;
                assert!(traffic.waits() < 1 << 20, "{} for {sent}", traffic.waits());
                assert!(sent < ENOUGH, "all of it is read");
                tokio::task::yield_now().await;
            }
            assert!(sent > 1 << 16, "{sent}");
        });
    }
}

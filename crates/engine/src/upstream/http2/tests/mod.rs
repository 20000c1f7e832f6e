//! Frames of an upstream, without a socket and without h2.

mod heads;
mod odd;
mod streams;

use std::rc::Rc;

use super::head::RequestHead;
use super::inward::Inward;
use super::outward::Outward;
use super::seats::Seats;
use crate::http2::PREFACE;
use crate::http2::frame::{END_HEADERS, HEADERS, Header};

/// `:status: 200`
const OK: &[u8] = &[0x88];

/// The layers of a connection whose requests may have answers with heads of so many bytes.
struct Frames {
    seats: Seats,
    inward: Inward,
    outward: Outward,
}

impl Frames {
    fn new(streams: &[u32], limit: usize) -> Self {
        let mut frames = Self { seats: Seats::default(), inward: Inward::new(), outward: Outward::new() };
        frames.says(PREFACE);
        for &stream in streams {
            frames.asks(stream, RequestHead::new(b"GET".into(), b"/".into(), b"a".into()), limit);
        }
        frames.outward.out.clear();
        frames
    }

    /// H2 sends a request.
    fn asks(&mut self, stream: u32, head: RequestHead, limit: usize) {
        let head = head.build(false).expect("a head");
        self.seats.begin(stream, Rc::new(head), limit);
        self.says(&frame(HEADERS, END_HEADERS, stream, b"whatever it says"));
    }

    fn says(&mut self, bytes: &[u8]) {
        self.outward.feed(bytes, &mut self.seats);
    }

    fn comes(&mut self, bytes: &[u8]) {
        self.inward.feed(bytes, &mut self.seats, &mut self.outward);
    }

    /// What h2 gets.
    fn hears(&mut self) -> Vec<u8> {
        let heard = self.inward.out.to_vec();
        self.inward.out.clear();
        heard
    }

    /// What a peer gets.
    fn sends(&mut self) -> Vec<u8> {
        let sent = self.outward.out.to_vec();
        self.outward.out.clear();
        sent
    }

    /// What has come of a stream, as text: heads, and what is wrong.
    fn tells(&mut self, stream: u32) -> String {
        let mut told = vec![];
        let mut show = |what: String, fields: &crate::http2::hpack::Fields| {
            let fields = fields.iter().map(|(name, value)| {
                format!(" {}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
            });
            told.push(what + &fields.collect::<String>());
        };
        while let Some((status, fields)) = self.seats.take_interim(stream) {
            show(status.to_string(), &fields);
        }
        if let Some((status, fields)) = self.seats.take_answer(stream) {
            show(status.to_string(), &fields);
        }
        if let Some(fields) = self.seats.take_trailers(stream) {
            show("end".to_owned(), &fields);
        }
        if let Some(fault) = self.seats.fault(stream) {
            told.push(fault.message);
            told.extend(fault.then.map(str::to_owned));
        }
        told.join(" | ")
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    [&Header { length: payload.len(), kind, flags, stream }.bytes(), payload].concat()
}

/// A field as it is, raw and without an index.
fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0][..], &string(name), &string(value)].concat()
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [number(0, 7, bytes.len()), bytes.to_vec()].concat()
}

/// A number behind the first bits of its octet.
fn number(bits: u8, prefix: u32, mut n: usize) -> Vec<u8> {
    let most = (1 << prefix) - 1;
    if n < most {
        return vec![bits | n as u8];
    }
    let mut octets = vec![bits | most as u8];
    n -= most;
    while n >= 0x80 {
        octets.push(0x80 | n as u8);
        n >>= 7;
    }
    octets.push(n as u8);
    octets
}

//! A connection's frames with neither a socket nor hyper, for whoever makes them up.

use super::hpack::{self, Fields};
use super::inward::{Inward, Rules};
use super::outward::Outward;
use super::seats::Seats;

/// What goes through both ways of a connection.
pub struct Frames {
    inward: Inward,
    outward: Outward,
    seats: Seats,
}

impl Frames {
    /// For so many requests, of which so many bytes may come before anybody reads them.
    pub fn new(limits: hpack::Limits, requests: u64, streams: u32, window: u32, bridges: bool) -> Self {
        let rules = Rules { limits, requests, streams, window, bridges };
        Self { inward: Inward::new(rules), outward: Outward::new(window), seats: Seats::new() }
    }

    /// Takes bytes of the client's.
    ///
    /// # Errors
    /// The connection is to end for them.
    pub fn came(&mut self, bytes: &[u8]) -> Result<(), String> {
        let came = self.inward.feed(bytes, &mut self.seats, &mut self.outward);
        came.map_err(|fault| fault.message.into_owned())
    }

    /// Takes bytes of hyper's.
    pub fn said(&mut self, bytes: &[u8]) {
        self.outward.feed(bytes, &mut self.seats);
    }

    /// Takes what hyper gets.
    pub fn for_hyper(&mut self) -> Vec<u8> {
        let bytes = self.inward.out.to_vec();
        self.inward.out.clear();
        bytes
    }

    /// Takes what the client gets.
    pub fn for_client(&mut self) -> Vec<u8> {
        let bytes = self.outward.out.to_vec();
        self.outward.out.clear();
        bytes
    }

    /// Hands a request over, and answers it.
    pub fn answer(&mut self, stream: u32, fields: Fields, trailers: Fields) {
        if self.seats.take(stream).is_some() {
            self.seats.answer(stream, 200, fields);
            self.seats.trail(stream, trailers);
        }
    }

    /// Says how much of so many bytes of a body hyper is given.
    pub fn give(&mut self, stream: u32, n: usize) -> usize {
        let n = n.min(self.seats.room(stream));
        self.seats.give(stream, n);
        n
    }

    /// The exchange of a stream is over.
    pub fn leave(&mut self, stream: u32) {
        self.seats.leave(stream);
    }

    /// Sends a head ahead of that of an answer.
    pub fn hint(&mut self, stream: u32, fields: Fields) {
        self.outward.hint(stream, 103, fields);
    }

    /// Resets a stream, as for one that takes too long.
    pub fn reset(&mut self, stream: u32) {
        self.outward.reset(stream, 1);
        self.inward.reset(stream, 1);
        self.seats.close(stream);
    }

    /// Gives up the head that has begun.
    pub fn forgo(&mut self) {
        self.inward.forgo(&mut self.outward);
    }

    /// Tells the client of the connection's end.
    pub fn part(&mut self) {
        let last = self.inward.part();
        self.outward.part(last, 0);
    }

    /// How much is kept of the client's: streams, and bytes of what is not whole.
    pub fn kept(&self) -> (usize, usize) {
        let (streams, bytes) = self.inward.kept();
        (streams + self.seats.len(), bytes)
    }
}

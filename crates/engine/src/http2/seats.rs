//! The streams of a connection: what of their heads hyper does not see, and how much of their answers the client has room for.

use std::task::{Context, Waker};

use super::frame::{STREAM_CLOSED, USUAL_WINDOW};
use super::hpack::Fields;
use super::request::Came;

/// What a stream has beside what hyper knows of it.
#[derive(Debug)]
struct Seat {
    stream: u32,
    /// The request, until hyper hands it over.
    came: Option<Box<Came>>,
    /// The head of the answer, and what is behind its body, until hyper sends its own.
    head: Option<(u16, Box<Fields>)>,
    trailers: Option<Box<Fields>>,
    /// Bytes that the client takes of a body.
    room: i64,
    /// Bytes that the client may send of the request.
    takes: i64,
    /// Bytes of it that hyper was given, and those that it has sent.
    given: u64,
    sent: u64,
    /// An exchange has it.
    held: bool,
    /// Nothing more of it goes to the client.
    closed: bool,
    /// The client has said all of the request.
    ended: bool,
    /// The client has reset it.
    reset: bool,
    /// Who waits for room.
    waker: Option<Waker>,
}

/// Streams whose answer is not all out, or that an exchange has, in the order in which they came.
#[derive(Debug)]
pub(super) struct Seats {
    list: Vec<Seat>,
    /// Bytes that the client takes of all bodies, and those that it takes of a stream that comes.
    room: i64,
    initial: i64,
    /// So many were reset before hyper has handed them over.
    unclaimed: usize,
    /// More of a body has come than may.
    exceeded: bool,
}

impl Seats {
    pub(super) fn new() -> Self {
        let usual = i64::from(USUAL_WINDOW);
        Self { list: vec![], room: usual, initial: usual, unclaimed: 0, exceeded: false }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    fn find(&self, stream: u32) -> Option<usize> {
        self.list.binary_search_by_key(&stream, |seat| seat.stream).ok()
    }

    fn seat(&mut self, stream: u32) -> Option<&mut Seat> {
        self.find(stream).map(|at| &mut self.list[at])
    }

    /// A request that hyper is told of, of which so many bytes may come.
    pub(super) fn come(&mut self, came: Came, takes: u32) {
        self.list.push(Seat {
            stream: came.stream,
            head: None,
            trailers: None,
            room: self.initial,
            takes: i64::from(takes),
            given: 0,
            sent: 0,
            held: false,
            closed: false,
            ended: came.ends,
            reset: false,
            waker: None,
            came: Some(Box::new(came)),
        });
    }

    /// The request that hyper hands over. It does so in their order, so what was reset before that one it never will.
    pub(super) fn take(&mut self, stream: u32) -> Option<Box<Came>> {
        if self.unclaimed > 0 {
            self.list.retain(|seat| seat.stream >= stream || seat.held || !seat.closed);
            self.unclaimed = self.list.iter().filter(|seat| seat.closed && seat.came.is_some()).count();
        }
        let seat = self.seat(stream)?;
        seat.held = true;
        seat.came.take()
    }

    /// Its exchange is over.
    pub(super) fn leave(&mut self, stream: u32) {
        if let Some(at) = self.find(stream) {
            self.list[at].held = false;
            self.clear(at);
        }
    }

    /// Bytes of a body have come, and with `end` there are no more. More than the client was told that may is no fault before whoever
    /// reads it had the time to begin; as in nginx that makes room for it.
    ///
    /// # Errors
    /// The code with which the stream is to be reset.
    pub(super) fn receive(&mut self, stream: u32, n: usize, end: bool) -> Result<(), u32> {
        let Some(seat) = self.seat(stream).filter(|seat| !seat.closed) else { return Ok(()) };
        if seat.ended {
            return Err(STREAM_CLOSED);
        }
        seat.ended = end;
        seat.takes -= n as i64;
        self.exceeded |= seat.takes < 0;
        Ok(())
    }

    /// Fields behind a body have ended it.
    pub(super) fn end(&mut self, stream: u32) {
        if let Some(seat) = self.seat(stream) {
            seat.ended = true;
        }
    }

    /// Whether more of a request is to come.
    pub(super) fn is_coming(&self, stream: u32) -> bool {
        self.find(stream).is_some_and(|at| !self.list[at].ended && !self.list[at].reset)
    }

    /// Streams of which more has come than may.
    pub(super) fn exceeded(&mut self) -> Vec<u32> {
        match std::mem::take(&mut self.exceeded) {
            true => self
                .list
                .iter()
                .filter(|seat| !seat.closed && seat.takes < 0)
                .map(|seat| seat.stream)
                .collect(),
            false => vec![],
        }
    }

    /// Whether there may be some.
    pub(super) fn may_exceed(&self) -> bool {
        self.exceeded
    }

    /// The client is told that more of a body may come.
    pub(super) fn admit(&mut self, stream: u32, n: u32) {
        if let Some(seat) = self.seat(stream) {
            seat.takes += i64::from(n);
        }
    }

    /// Nothing more of it goes to the client: all has, or it was reset.
    pub(super) fn close(&mut self, stream: u32) {
        let Some(at) = self.find(stream) else { return };
        let seat = &mut self.list[at];
        if !std::mem::replace(&mut seat.closed, true) {
            // What hyper was given and does not send any more takes no room.
            self.room += seat.given as i64 - seat.sent as i64;
        }
        if let Some(waker) = seat.waker.take() {
            waker.wake();
        }
        self.clear(at);
    }

    /// The client resets it. A request that hyper has not handed over stays for the log, but not more of them than that.
    pub(super) fn reset(&mut self, stream: u32) {
        const UNCLAIMED: usize = 128;
        let Some(seat) = self.seat(stream) else { return };
        seat.reset = true;
        self.unclaimed += usize::from(seat.came.is_some() && !seat.closed);
        self.close(stream);
        if self.unclaimed > UNCLAIMED {
            self.list.retain(|seat| seat.held || !seat.closed);
            self.unclaimed = 0;
        }
    }

    pub(super) fn was_reset(&self, stream: u32) -> bool {
        self.find(stream).is_some_and(|at| self.list[at].reset)
    }

    fn clear(&mut self, at: usize) {
        let seat = &self.list[at];
        let awaited = seat.reset && seat.came.is_some();
        if seat.closed && !seat.held && !awaited {
            self.list.remove(at);
        }
    }

    /// Whether all of all answers is out.
    pub(super) fn rest(&self) -> bool {
        self.list.iter().all(|seat| seat.closed)
    }

    /// The head of an answer, to be sent where hyper sends one.
    pub(super) fn answer(&mut self, stream: u32, status: u16, fields: Fields) {
        if let Some(seat) = self.seat(stream) {
            seat.head = Some((status, Box::new(fields)));
        }
    }

    /// What is behind the body.
    pub(super) fn trail(&mut self, stream: u32, fields: Fields) {
        if let Some(seat) = self.seat(stream) {
            seat.trailers = Some(Box::new(fields));
        }
    }

    /// Fields for the HEADERS that hyper sends: those of a head have a status.
    pub(super) fn fields(&mut self, stream: u32) -> Option<(Option<u16>, Box<Fields>)> {
        let seat = self.seat(stream)?;
        match seat.head.take() {
            Some((status, fields)) => Some((Some(status), fields)),
            None => seat.trailers.take().map(|fields| (None, fields)),
        }
    }

    /// Bytes that the client has room for.
    pub(super) fn room(&self, stream: u32) -> usize {
        let seat = self.find(stream).map_or(0, |at| self.list[at].room);
        usize::try_from(seat.min(self.room)).unwrap_or(0)
    }

    /// Waits until there may be more room.
    pub(super) fn wait(&mut self, stream: u32, cx: &Context<'_>) {
        if let Some(seat) = self.seat(stream) {
            seat.waker = Some(cx.waker().clone());
        }
    }

    /// Hyper is given bytes of a body.
    pub(super) fn give(&mut self, stream: u32, n: usize) {
        if let Some(seat) = self.seat(stream).filter(|seat| !seat.closed) {
            seat.room -= n as i64;
            seat.given += n as u64;
            self.room -= n as i64;
        }
    }

    /// Bytes of bodies that hyper was given and has not sent.
    pub(super) fn given(&self) -> i64 {
        let open = self.list.iter().filter(|seat| !seat.closed);
        open.map(|seat| seat.given as i64 - seat.sent as i64).sum()
    }

    /// Hyper sends bytes of a body.
    pub(super) fn send(&mut self, stream: u32, n: usize) {
        match self.seat(stream) {
            Some(seat) if !seat.closed => seat.sent += n as u64,
            // What it had begun with.
            Some(_) | None => self.room -= n as i64,
        }
    }

    /// The client takes more: of that stream, or of all (0). Too much of that is for hyper to see.
    pub(super) fn widen(&mut self, stream: u32, by: u32) {
        if stream == 0 {
            self.room = self.room.saturating_add(i64::from(by));
            return self.wake();
        }
        let Some(seat) = self.seat(stream) else { return };
        seat.room = seat.room.saturating_add(i64::from(by));
        if let Some(waker) = seat.waker.take() {
            waker.wake();
        }
    }

    /// What the client takes of streams that come, which changes what it takes of those that are there.
    pub(super) fn resize(&mut self, initial: u32) {
        let by = i64::from(initial) - self.initial;
        self.initial += by;
        for seat in &mut self.list {
            seat.room += by;
        }
        self.wake();
    }

    fn wake(&mut self) {
        for waker in self.list.iter_mut().filter_map(|seat| seat.waker.take()) {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats() -> Seats {
        let mut seats = Seats::new();
        for stream in [1, 3, 5] {
            seats.come(Came::of(stream), 100);
        }
        seats
    }

    #[test]
    fn a_seat_is_kept_for_hyper_and_for_an_exchange() {
        let mut seats = seats();
        assert_eq!(seats.take(3).map(|came| came.stream), Some(3));
        assert!(seats.take(3).is_none() && seats.take(7).is_none());
        for stream in [1, 3] {
            seats.close(stream);
        }
        assert_eq!(seats.list.iter().map(|seat| seat.stream).collect::<Vec<_>>(), [3, 5]);
        assert!(!seats.rest());
        seats.reset(5);
        assert!(seats.rest());
        assert!(seats.was_reset(5) && !seats.was_reset(3));
        assert!(seats.take(5).is_some());
        seats.reset(3);
        assert!(seats.was_reset(3));
        for stream in [3, 5] {
            seats.leave(stream);
        }
        assert!(seats.list.is_empty());
    }

    #[test]
    fn what_hyper_never_hands_over_is_forgotten() {
        let mut seats = seats();
        seats.reset(1);
        assert!(seats.take(3).is_some() && seats.list.len() == 2);
        for stream in (7..10_000).step_by(2) {
            seats.come(Came::of(stream), 100);
            seats.reset(stream);
        }
        assert!(seats.list.len() < 200, "{}", seats.list.len());
        seats.reset(5);
        assert!(seats.take(9_999).is_some());
        assert_eq!(seats.list.iter().map(|seat| seat.stream).collect::<Vec<_>>(), [3, 9_999]);
    }

    #[test]
    fn room_is_that_of_the_stream_and_of_all() {
        let mut seats = seats();
        seats.resize(100);
        assert_eq!([1, 3, 7].map(|stream| seats.room(stream)), [100, 100, 0]);
        seats.widen(1, 100_000);
        assert_eq!(seats.room(1), 65_535);
        seats.give(1, 65_000);
        assert_eq!([1, 3].map(|stream| seats.room(stream)), [535, 100]);
        seats.send(1, 60_000);
        // What was on its way to a stream that is reset comes back, but for what hyper had begun to write.
        seats.reset(1);
        assert_eq!(seats.room, 5_535);
        seats.send(1, 1_000);
        assert_eq!(seats.room, 4_535);
        seats.resize(0);
        seats.give(3, 10);
        assert_eq!([seats.room(3), seats.room(5)], [0, 0]);
        seats.resize(20);
        assert_eq!([seats.room(3), seats.room(5)], [10, 20]);
        seats.widen(0, 10);
        assert_eq!(seats.room, 4_535 - 10 + 10);
    }

    #[test]
    fn a_body_comes_as_far_as_it_may() {
        let mut seats = seats();
        assert_eq!([1, 3, 7].map(|stream| seats.receive(stream, 100, false)), [Ok(()); 3]);
        assert!(!seats.may_exceed());
        assert_eq!([1, 3].map(|stream| seats.receive(stream, 1, false)), [Ok(()); 2]);
        seats.admit(1, 10);
        assert!(seats.may_exceed());
        assert_eq!(seats.exceeded(), [3]);
        assert!(!seats.may_exceed());
        assert_eq!(seats.receive(1, 1, true), Ok(()));
        assert_eq!(seats.receive(1, 1, false), Err(STREAM_CLOSED));
    }

    #[test]
    fn fields_are_those_of_the_head_and_then_those_behind_the_body() {
        let mut seats = seats();
        let of = |name: &[u8]| {
            let mut fields = Fields::default();
            fields.push(name, b"");
            fields
        };
        seats.trail(3, of(b"t"));
        seats.answer(3, 200, of(b"h"));
        let took = |seats: &mut Seats| seats.fields(3).map(|(status, fields)| (status, *fields));
        assert_eq!(took(&mut seats), Some((Some(200), of(b"h"))));
        assert_eq!(took(&mut seats), Some((None, of(b"t"))));
        assert_eq!(took(&mut seats), None);
    }
}

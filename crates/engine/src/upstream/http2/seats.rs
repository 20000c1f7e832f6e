//! The streams of a connection: what of their heads h2 does not see.

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Waker};

use super::head::RequestHead;
use super::stream::Broken;
use crate::http2::hpack::Fields;

/// What a stream has beside what h2 knows of it.
struct Seat {
    stream: u32,
    /// The head of the request, until h2 sends its own.
    request: Option<Rc<RequestHead>>,
    /// Bytes of a block of fields at most.
    limit: usize,
    /// Heads before that of the answer, and bytes of all that have come.
    interim: VecDeque<(u16, Fields)>,
    hinted: usize,
    answer: Option<(u16, Fields)>,
    /// Fields behind the body.
    trailers: Option<Fields>,
    /// What the peer did to it that it must not.
    fault: Option<Broken>,
    /// H2 was told of an answer.
    answered: bool,
    /// The peer has ended it.
    ended: bool,
    /// No exchange has it any more.
    left: bool,
    /// Who waits for a head, or for what is behind a body.
    waker: Option<Waker>,
}

/// Streams that exchanges have, or whose requests are not sent, in the order in which they were begun.
#[derive(Default)]
pub(super) struct Seats {
    list: Vec<Seat>,
    /// The last one whose request was sent.
    last: u32,
}

/// What of a stream has come so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It has not begun, or is none.
    Idle,
    /// Nobody has it any more.
    GivenUp,
    /// Nothing but heads that another follows, if any.
    Asked,
    Answered,
    /// It has ended.
    Ended,
    /// What comes is not looked at any more.
    Faulty,
}

impl Seats {
    /// A request that h2 has taken.
    pub(super) fn begin(&mut self, stream: u32, request: Rc<RequestHead>, limit: usize) {
        self.list.push(Seat {
            stream,
            request: Some(request),
            limit,
            interim: VecDeque::new(),
            hinted: 0,
            answer: None,
            trailers: None,
            fault: None,
            answered: false,
            ended: false,
            left: false,
            waker: None,
        });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    fn find(&self, stream: u32) -> Option<usize> {
        self.list.binary_search_by_key(&stream, |seat| seat.stream).ok()
    }

    fn seat(&mut self, stream: u32) -> Option<&mut Seat> {
        self.find(stream).map(|at| &mut self.list[at])
    }

    /// The head to be sent where h2 sends one. It does so in their order, so those before it that were left are never sent.
    pub(super) fn take_request(&mut self, stream: u32) -> Option<Rc<RequestHead>> {
        self.last = stream;
        let request = self.seat(stream)?.request.take();
        self.list.retain(|seat| !seat.left || seat.stream > stream);
        request
    }

    /// Its exchange has it no more.
    pub(super) fn leave(&mut self, stream: u32) {
        let Some(at) = self.find(stream) else { return };
        match self.list[at].request {
            Some(_) => self.list[at].left = true,
            None => _ = self.list.remove(at),
        }
    }

    pub(super) fn progress(&self, stream: u32) -> Progress {
        if stream.is_multiple_of(2) || stream > self.last {
            return Progress::Idle;
        }
        match self.find(stream).map(|at| &self.list[at]) {
            None => Progress::GivenUp,
            Some(Seat { ended: true, .. }) => Progress::Ended,
            Some(Seat { fault: Some(_), .. }) => Progress::Faulty,
            Some(Seat { answered: true, .. }) => Progress::Answered,
            Some(_) => Progress::Asked,
        }
    }

    /// Bytes of a block of fields at most.
    pub(super) fn limit(&self, stream: u32) -> usize {
        self.find(stream).map_or(0, |at| self.list[at].limit)
    }

    /// A head has come that another follows. More of them than may go on to a client are not kept.
    pub(super) fn hint(&mut self, stream: u32, status: u16, fields: Fields) {
        const LINE: usize = 16;
        let Some(seat) = self.seat(stream) else { return };
        if seat.hinted > seat.limit {
            return;
        }
        let size = fields.iter().map(|(name, value)| name.len() + value.len());
        seat.hinted += LINE + size.sum::<usize>();
        seat.interim.push_back((status, fields));
        seat.wake();
    }

    /// The head of the answer has come, of which h2 is told.
    pub(super) fn answer(&mut self, stream: u32, status: u16, fields: Fields, ends: bool) {
        if let Some(seat) = self.seat(stream) {
            (seat.answered, seat.ended) = (true, ends);
            seat.answer = Some((status, fields));
        }
    }

    /// Fields behind the body have come.
    pub(super) fn trail(&mut self, stream: u32, fields: Fields) {
        if let Some(seat) = self.seat(stream) {
            seat.trailers = Some(fields);
        }
    }

    /// The body has ended. Says whether somebody has the stream.
    pub(super) fn end(&mut self, stream: u32) -> bool {
        self.seat(stream).map(|seat| seat.ended = true).is_some()
    }

    /// The peer did something that it must not; to a stream that has ended it does nothing. Says whether h2 is to be told of an
    /// answer, as there was none.
    pub(super) fn fail(&mut self, stream: u32, fault: Broken) -> bool {
        let is_open = |seat: &&mut Seat| seat.fault.is_none() && !seat.ended && !seat.left;
        let Some(seat) = self.seat(stream).filter(is_open) else { return false };
        seat.fault = Some(fault);
        seat.wake();
        !std::mem::replace(&mut seat.answered, true)
    }

    /// The same to a stream that has ended, of which nobody has read that.
    pub(super) fn spoil(&mut self, stream: u32, fault: Broken) {
        if let Some(seat) = self.seat(stream) {
            seat.fault.get_or_insert(fault);
        }
    }

    pub(super) fn take_interim(&mut self, stream: u32) -> Option<(u16, Fields)> {
        self.seat(stream)?.interim.pop_front()
    }

    pub(super) fn take_answer(&mut self, stream: u32) -> Option<(u16, Fields)> {
        self.seat(stream)?.answer.take()
    }

    pub(super) fn take_trailers(&mut self, stream: u32) -> Option<Fields> {
        self.seat(stream)?.trailers.take()
    }

    /// What the peer did, unless the head of an answer has come before that and was not taken.
    pub(super) fn fault(&self, stream: u32) -> Option<Broken> {
        let seat = &self.list[self.find(stream)?];
        seat.fault.clone().filter(|_| seat.answer.is_none())
    }

    /// Waits until more has come of it than h2 tells.
    pub(super) fn wait(&mut self, stream: u32, cx: &Context<'_>) {
        if let Some(seat) = self.seat(stream) {
            seat.waker = Some(cx.waker().clone());
        }
    }
}

impl Seat {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

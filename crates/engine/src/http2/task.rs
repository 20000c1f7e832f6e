//! The task of a stream: the exchange and hyper's half of it. And the seat that an exchange has, which later streams of the
//! connection take in turn: what a request needs of memory is mostly what the one before had.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::request::Request;
use super::stream::Answer;
use crate::http::exchange::Connection;
use crate::io::Io;

/// A stream with what is known of its connection, to be served as a request of its own.
pub(crate) struct Streamed {
    pub(crate) connection: Rc<Connection>,
    pub(crate) io: Io,
    pub(crate) request: Request,
}

/// Where whoever serves streams finds the next one.
#[derive(Default)]
pub(crate) struct Next {
    stream: Cell<Option<Streamed>>,
    served: Cell<bool>,
}

impl Next {
    /// The stream to be served, once there is one.
    pub(crate) fn take(&self) -> impl Future<Output = Streamed> {
        std::future::poll_fn(|_| self.stream.take().map_or(Poll::Pending, Poll::Ready))
    }

    /// The stream is served, and another one may come.
    pub(crate) fn is_served(&self) {
        self.served.set(true);
    }
}

/// A place where streams are served, one after the other.
pub(super) struct Seat {
    next: Rc<Next>,
    serving: Pin<Box<dyn Future<Output = ()>>>,
}

impl Seat {
    pub(super) fn new<S: Future<Output = ()> + 'static>(serve: impl FnOnce(Rc<Next>) -> S) -> Self {
        let next = Rc::<Next>::default();
        Self { serving: Box::pin(serve(Rc::clone(&next))), next }
    }

    /// Gives it to a stream.
    pub(super) fn give(&self, stream: Streamed) {
        self.next.served.set(false);
        self.next.stream.set(Some(stream));
    }

    /// Serves the stream; whether another one may have the seat.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        match self.serving.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(false),
            Poll::Pending if self.next.served.get() => Poll::Ready(true),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Seats that nobody has.
#[derive(Default)]
pub(super) struct Seats(RefCell<Vec<Seat>>);

impl Seats {
    pub(super) fn take(&self) -> Option<Seat> {
        self.0.borrow_mut().pop()
    }

    fn put(&self, seat: Seat) {
        self.0.borrow_mut().push(seat);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Gives their memory up.
    pub(super) fn clear(&self) {
        let seats = std::mem::take(&mut *self.0.borrow_mut());
        drop(seats);
    }
}

/// An exchange that has begun, for the task that hyper makes of its half.
pub(super) struct Begun {
    pub(super) seat: Seat,
    pub(super) answer: Rc<Answer>,
}

pin_project! {
    /// The task of a stream.
    pub(super) struct Task<F> {
        #[pin]
        hyper: Option<F>,
        seat: Option<Seat>,
        answer: Rc<Answer>,
        seats: Rc<Seats>,
    }
}

impl<F> Task<F> {
    pub(super) fn new(hyper: F, begun: Begun, seats: Rc<Seats>) -> Self {
        Self { hyper: Some(hyper), seat: Some(begun.seat), answer: begun.answer, seats }
    }
}

impl<F: Future<Output = ()>> Future for Task<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if let Some(seat) = this.seat
            && let Poll::Ready(is_free) = seat.poll(cx)
            && let Some(seat) = this.seat.take().filter(|_| is_free)
        {
            this.seats.put(seat);
        }
        if let Some(hyper) = this.hyper.as_mut().as_pin_mut() {
            let given_up = this.seat.is_none() && this.answer.is_given_up();
            if given_up || hyper.poll(cx).is_ready() {
                // Dropped before it is done, it resets the stream.
                this.hyper.set(None);
            }
        }
        if this.seat.is_some() || this.hyper.is_some() { Poll::Pending } else { Poll::Ready(()) }
    }
}

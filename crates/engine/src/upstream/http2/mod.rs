//! HTTP/2 to upstreams: several requests share a connection, each has a stream of it.
//!
//! ```text
//!  Asking == Stream == h2 == Wire == peer     a task of its own drives each connection
//! ```
//!
//! The crate h2 is what hyper speaks HTTP/2 with; hyper's client around it does not tell numbers of streams and errors, or whose those are.
//! Fields do not reach it: beneath it [`outward`] puts those of a request in the place of its own, and [`inward`] reads those of an
//! answer, of which it is told no more than that there is one.

mod block;
mod head;
mod inward;
mod outward;
mod seats;
mod session;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

pub use head::RequestHead;
pub(super) use head::trailers;
pub(super) use session::Session;
pub use stream::Stream;
pub(super) use stream::{Broken, Kind, Message};

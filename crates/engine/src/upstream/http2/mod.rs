//! HTTP/2 to upstreams: several requests share a connection, each has a stream of it.
//!
//! ```text
//!  Asking == Stream == h2 == Io == peer       a task of its own drives each connection
//! ```
//!
//! The crate h2 is what hyper speaks HTTP/2 with; hyper's client around it does not tell heads that come before the
//! answer (103), numbers of errors, or whose they are.

mod head;
mod session;
mod stream;

pub use head::RequestHead;
pub(super) use head::{BuiltHead, Invalid, check_trailers, read};
pub(super) use session::Session;
pub use stream::Stream;
pub(super) use stream::{Broken, Kind, Message};

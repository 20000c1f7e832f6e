//! The HTTP/1.x codec: bytes in, values out, without sockets, clocks or tasks, so that every rule of it can be tested as a table.
//!
//! ```text
//! bytes -> request::Head   -> phases -> upstream request
//!          response::Head  <- bytes of an upstream
//!          body::Decoder   chunked bodies both ways
//! ```
//! Heads keep their bytes in one reused buffer and hand out `Span`s into it; a parse allocates only
//! when a head is larger than every head that the same value held before.
//!
//! Where nginx and RFC 9112 differ, nginx decides, except where its answer lets two parties disagree about
//! where a message ends: bare CR inside a line is refused, also `CR CR LF`; and what a value has of line breaks, that of a
//! variable, ends no line.

mod agent;
pub mod body;
pub mod date;
mod fields;
mod host;
mod known;
mod limits;
pub mod request;
mod request_line;
pub mod response;
pub mod status;
pub mod uri;

pub use agent::Browser;
pub use fields::{Field, Span, unbreak};
pub use host::{BadHost, Host, validate_host};
pub use known::{Known, KnownSet};
pub use request::{Limits, Method, Reject, Version};

#[cfg(test)]
mod tests;

//! HTTP/2 towards clients: hyper has the frames, each stream is an [`Exchange`](crate::http::Exchange) like any other.
//!
//! ```text
//!  socket == Wire == hyper == Stream == Exchange      a task of its own for each stream; a tunnel keeps its Stream
//! ```

mod connection;
pub(crate) mod frame;
mod frames;
pub mod hpack;
mod inward;
mod outward;
mod preface;
mod request;
mod seats;
mod send;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

pub use connection::serve;
pub(crate) use connection::serve_from;
pub use frames::Frames;
pub(crate) use preface::{PREFACE, begins};
pub(crate) use send::send;
pub use stream::Stream;

use weir_ir::LocationId;

use crate::generation::Generation;

/// What a server says of HTTP/2; attached to its level where it differs from the default.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub enabled: bool,
    /// Streams that a client may have open at once.
    pub max_concurrent_streams: u32,
    /// Bytes of a request's body that a client may send before anybody reads them.
    pub body_preread_size: u32,
    /// Streams may become tunnels (RFC 8441).
    pub extended_connect: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: false,
            max_concurrent_streams: 128,
            body_preread_size: 65_536,
            extended_connect: false,
        }
    }
}

impl Settings {
    fn of(generation: &Generation, server: LocationId) -> Self {
        generation.location(server).attached().copied().unwrap_or_default()
    }
}

/// Bytes of a DATA frame at most; attached to a level where it differs from the default.
#[derive(Clone, Copy, Debug)]
pub struct ChunkSize(pub usize);

impl Default for ChunkSize {
    fn default() -> Self {
        Self(8192)
    }
}

/// Whether HTTP/2 is spoken with whoever comes to that address for that server.
pub(crate) fn is_spoken(generation: &Generation, address: usize, server: LocationId) -> bool {
    generation.addresses[address].protocols.http2 || Settings::of(generation, server).enabled
}

/// Whether every server of an address makes tunnels of streams, so that a client may be told so before it names one.
fn bridges(generation: &Generation, address: usize) -> bool {
    generation.addresses[address]
        .servers
        .iter()
        .all(|server| Settings::of(generation, *server).extended_connect)
}

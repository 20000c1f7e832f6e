//! Test tools: scripted origins, raw clients, one of them for HTTP/2, a WebSocket client, sites in memory and on loopback, the real binary.
//!
//! Clients and origins are blocking and have deadlines, so that a test reads from top to bottom and a broken server
//! fails it instead of hanging it. Tools panic where something is wrong: they are for tests alone. Modules are never
//! named here; whoever starts a site hands in its list of them.

mod address;
mod binary;
mod client;
mod folder;
pub mod http2;
mod memory;
mod names;
mod origin;
mod site;
mod tls;
mod wait;
mod websocket;
mod wire;

pub use address::free_address;
pub use binary::{Called, Server};
pub use client::{Client, Response, header, requests};
pub use folder::Folder;
pub use memory::{Say, Talk};
pub use names::NameServer;
pub use origin::{Origin, Visit};
pub use site::{Modules, Site, messages};
pub use wait::{Gate, PATIENCE, RaisedAtEnd, until, within};
pub use websocket::{Message, Socket};

/// A text with `{name}` replaced by the name's value; braces around anything else stay.
pub fn filled(text: &str, names: &[(&str, String)]) -> String {
    names.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

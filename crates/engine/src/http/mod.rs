//! HTTP: an exchange and its phases, independent of the protocol that carries it.

pub mod connection;
pub mod exchange;
pub mod phases;
pub mod request_body;
pub mod response;
pub mod router;
pub mod send;
pub mod special;
pub mod template;
pub mod variables;

pub use exchange::{Client, Exchange};
pub use response::{Body, Headers, Response, Source};
pub use template::Template;

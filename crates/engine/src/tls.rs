//! TLS on both sides.

use std::sync::Arc;

/// What a server with `listen … ssl` presents: its certificates and rules, ready for handshakes.
pub struct ServerTls {
    pub config: Arc<rustls::ServerConfig>,
}

/// What is known of a connection's TLS after its handshake, for variables.
#[derive(Debug)]
pub struct Session {
    /// The name that the client asked for (SNI), in lower case.
    pub server_name: Option<Box<str>>,
    /// `TLSv1.3`
    pub protocol: &'static str,
    pub cipher: String,
    pub resumed: bool,
}

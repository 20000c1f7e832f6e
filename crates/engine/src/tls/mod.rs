//! TLS on both sides. Towards clients: what a server presents, which server a ClientHello means, and what is known
//! afterwards.
//!
//! ```text
//! accept -> first byte -> ClientHello -> server by SNI -> its rustls::ServerConfig -> Io::TlsServer + Session
//!               \-> no TLS: plain HTTP, every request of which is answered with 497
//! ```
//!
//! Towards upstreams: whom weir asks for, what it shows, and whom it believes.
//!
//! ```text
//! connect -> rustls::ClientConfig of the peer -> handshake -> chain and name judged -> Io::TlsClient
//! ```

mod accept;
pub mod ciphers;
mod client;
mod client_auth;
mod crl;
pub mod der;
mod encrypted;
mod names;
mod ocsp;
mod pairs;
mod path;
pub mod pem;
mod responder;
mod resume;
mod schedule;
mod server;
mod signature;
mod staple;
mod status;
#[cfg(test)]
mod testing;
mod trust;
mod turns;
mod words;

pub(crate) use accept::by_name;
pub use accept::{Accepted, accept};
pub(crate) use client::Distrust;
pub use client::{ClientSettings, ClientTls};
pub use client_auth::{ClientAuth, ClientCertificate, Demand, Unauthorized, Whose};
pub use pairs::{PairCache, Pairs};
pub use path::issuer_of;
pub use responder::{Names, Responder};
pub use resume::{Lifetime, TicketKey};
pub use server::{Computed, Protocols, ServerTls, SessionCache, Settings};
pub use staple::{Staple, Stapled};
pub use status::{StatusCache, Statuses};
pub use trust::{Reason, Trust};
pub(crate) use turns::Turns;
pub(crate) use words::failed;

use rustls::{NamedGroup, ProtocolVersion};

/// What is known of a connection's TLS after its handshake, for variables.
#[derive(Debug)]
pub struct Session {
    /// The name that the client asked for (SNI), as it was sent.
    pub server_name: Option<Box<str>>,
    /// The protocol agreed on by ALPN.
    pub alpn: Option<Box<[u8]>>,
    pub protocol: ProtocolVersion,
    pub cipher: rustls::CipherSuite,
    /// The group of the key exchange; a resumed session of TLS 1.2 has none.
    pub group: Option<NamedGroup>,
    pub resumed: bool,
    /// What the client offered.
    pub offer: Offer,
    /// The certificate that it showed.
    pub client: Option<Box<ClientCertificate>>,
}

/// The cipher suites, then the groups and the signature algorithms of a ClientHello, by their numbers, in one allocation.
#[derive(Clone, Debug)]
pub struct Offer {
    numbers: Box<[u16]>,
    ciphers: usize,
    groups: usize,
}

impl Offer {
    fn of(hello: &rustls::server::ClientHello<'_>) -> Self {
        let ciphers = hello.cipher_suites();
        let groups = hello.named_groups().unwrap_or_default();
        let numbers = ciphers.iter().map(|c| u16::from(*c)).chain(groups.iter().map(|g| u16::from(*g)));
        let numbers = numbers.chain(hello.signature_schemes().iter().map(|s| u16::from(*s)));
        Self { numbers: numbers.collect(), ciphers: ciphers.len(), groups: groups.len() }
    }

    /// In the client's order, the signalling values that are no ciphers included.
    pub fn ciphers(&self) -> &[u16] {
        &self.numbers[..self.ciphers]
    }

    pub fn groups(&self) -> &[u16] {
        &self.numbers[self.ciphers..][..self.groups]
    }

    pub fn signatures(&self) -> &[u16] {
        &self.numbers[self.ciphers + self.groups..]
    }
}

impl Session {
    /// What is known before a handshake.
    fn before(server_name: Option<Box<str>>, offer: Offer) -> Self {
        Self {
            server_name,
            alpn: None,
            protocol: ProtocolVersion::Unknown(0),
            cipher: rustls::CipherSuite::Unknown(0),
            group: None,
            resumed: false,
            offer,
            client: None,
        }
    }

    /// `TLSv1.3`
    pub fn protocol_name(&self) -> &'static str {
        match self.protocol {
            ProtocolVersion::TLSv1_2 => "TLSv1.2",
            ProtocolVersion::TLSv1_3 => "TLSv1.3",
            // rustls negotiates nothing else.
            _ => "unknown",
        }
    }
}

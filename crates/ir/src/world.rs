//! What a configuration asks of the outside, as a trait, so that lowering does no IO itself.
//!
//! The master answers from the machine and records the answers; the worker lowers the same configuration
//! again from that recording and so arrives at the same program, without the master's rights.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use weir_syntax::Files;

/// Files, names and identities of the machine that a configuration may mention.
pub trait World: Files {
    /// Every address of a host name, IPv4 first, as the system's resolver gives them.
    ///
    /// # Errors
    /// The name does not resolve or the resolver failed; nginx says `host not found`.
    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;

    /// The whole content of a file that is no configuration: certificate, key, parameters.
    ///
    /// # Errors
    /// The operating system's.
    fn content(&self, path: &[u8]) -> io::Result<Arc<[u8]>> {
        self.read(path)
    }

    /// This machine's name in lower case, `$hostname`.
    fn hostname(&self) -> String;

    /// The numeric id of a user of that name, and of that user's own group.
    ///
    /// # Errors
    /// There is no such user.
    fn user(&self, name: &str) -> io::Result<(u32, u32)>;

    /// The numeric id of a group.
    ///
    /// # Errors
    /// There is no such group.
    fn group(&self, name: &str) -> io::Result<u32>;

    /// Whether the server runs with super-user privileges.
    fn privileged(&self) -> bool;
}

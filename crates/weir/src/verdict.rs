//! How `-s reload` learns whether the new configuration was accepted.
//!
//! nginx's signaller sends SIGHUP and hopes. Here it first connects to a socket of the master, then sends the signal as
//! nginx does, and reads how it ended. The socket has an abstract name made of the master's pid: no file to leave
//! behind, and for a real nginx the connection is refused at once and the signal is all there is. The master looks at
//! the socket only when a reload begins, so a plain `kill -HUP` costs nothing.
//!
//! ```text
//! -s reload                     master
//!   | -- connect ----------------> |
//!   | -- SIGHUP -----------------> | accepts all who wait, reads the configuration, loads it
//!   | <-- "+", or "-diagnostics" - |
//! ```
//! Who connects later than a reload begins waits for the next one, which its own signal starts.

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

/// How long a signaller waits; a configuration that names unreachable hosts takes a while.
const PATIENCE: Duration = Duration::from_secs(120);
/// A bound on what is read from the other side.
const LONGEST: u64 = 16 << 20;

fn name(pid: i32) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("weir/{pid}/reload"))
}

/// The master's side.
#[derive(Debug)]
pub struct Verdicts {
    listener: UnixListener,
    waiting: Vec<UnixStream>,
}

impl Verdicts {
    /// Listens under the name of this process.
    ///
    /// # Errors
    /// Those of `socket(2)` and `bind(2)`; the master can do without.
    pub fn listen() -> io::Result<Verdicts> {
        let listener = UnixListener::bind_addr(&name(std::process::id() as i32)?)?;
        listener.set_nonblocking(true)?;
        Ok(Verdicts { listener, waiting: Vec::new() })
    }

    /// Takes in who waits now, before the configuration is read.
    pub fn gather(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            // Diagnostics quote the configuration, which is not everybody's to read.
            let allowed = getsockopt(&stream, sockopt::PeerCredentials)
                .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw());
            if allowed && stream.set_nonblocking(true).is_ok() {
                self.waiting.push(stream);
            }
        }
    }

    /// Tells those who were taken in. What does not fit into a socket's buffer is cut off rather than waited for.
    pub fn deliver(&mut self, verdict: &Result<(), Vec<u8>>) {
        let message = match verdict {
            Ok(()) => b"+".to_vec(),
            Err(diagnostics) => [b"-", diagnostics.as_slice()].concat(),
        };
        for mut stream in self.waiting.drain(..) {
            let _ = stream.write_all(&message);
        }
    }
}

/// What became of a reload.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// With what the master has to say about it, lines as for the terminal.
    Refused(Vec<u8>),
    /// The master ended or did not answer in time.
    Unknown,
}

/// The signaller's side: a place in the queue of a master.
#[derive(Debug)]
pub struct Waiting(UnixStream);

impl Waiting {
    /// Connects to the master of this pid; `None` if it is not weir, or not it who listens.
    pub fn on(pid: i32) -> Option<Waiting> {
        let stream = UnixStream::connect_addr(&name(pid).ok()?).ok()?;
        let peer = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
        (peer.pid() == pid).then_some(Waiting(stream))
    }

    /// Waits for the verdict.
    pub fn wait(self) -> Verdict {
        let mut message = Vec::new();
        let read = self
            .0
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| (&self.0).take(LONGEST).read_to_end(&mut message));
        match (read, message.split_first()) {
            (Ok(_), Some((b'+', _))) => Verdict::Accepted,
            (_, Some((b'-', diagnostics))) => Verdict::Refused(diagnostics.to_vec()),
            _ => Verdict::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, since a process has one name.
    #[test]
    fn each_reload_answers_those_who_came_before_it() {
        let pid = std::process::id() as i32;
        assert!(Waiting::on(pid).is_none());
        let mut verdicts = Verdicts::listen().unwrap();
        verdicts.gather();
        verdicts.deliver(&Ok(()));

        let (one, two) = (Waiting::on(pid).unwrap(), Waiting::on(pid).unwrap());
        verdicts.gather();
        let late = Waiting::on(pid).unwrap();
        verdicts.deliver(&Err(b"line 1\n".to_vec()));
        assert_eq!(one.wait(), Verdict::Refused(b"line 1\n".to_vec()));
        assert_eq!(two.wait(), Verdict::Refused(b"line 1\n".to_vec()));
        verdicts.gather();
        verdicts.deliver(&Ok(()));
        assert_eq!(late.wait(), Verdict::Accepted);

        let left = Waiting::on(pid).unwrap();
        drop(verdicts);
        assert_eq!(left.wait(), Verdict::Unknown);
        assert!(Waiting::on(pid).is_none());
    }
}

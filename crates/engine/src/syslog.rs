//! Lines to a syslog server: one datagram each, in the form of RFC 3164. A socket that would block drops the line.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use socket2::{Domain, SockAddr, Socket, Type};
use weir_ir::address::Address;
use weir_ir::core::syslog::Syslog;
use weir_syntax::Level;

use crate::errorlog::{Log, Sink};
use crate::http1::date;
use crate::localtime::local;

/// A syslog server that lines are sent to, shared by all logs that name it in the same way.
pub struct Peer {
    spec: Arc<Syslog>,
    /// Opened by the first line, and after an error by the next one.
    socket: RwLock<Option<Socket>>,
    /// Where it is told that lines cannot be sent.
    log: Log,
}

impl Peer {
    /// `log` must not write to the peer itself.
    pub fn new(spec: Arc<Syslog>, log: Log) -> Self {
        Self { spec, socket: RwLock::new(None), log }
    }

    /// Sends a line of the severity that the configuration says.
    ///
    /// # Errors
    /// It could not be sent, and was dropped; why is logged already.
    pub fn send(&self, line: &[u8], second: u64) -> io::Result<()> {
        self.send_as(self.spec.severity, line, second)
    }

    fn send_as(&self, severity: u8, line: &[u8], second: u64) -> io::Result<()> {
        let Syslog { facility, tag, hostname, .. } = &*self.spec;
        let mut message = Vec::with_capacity(128 + line.len());
        message.extend_from_slice(format!("<{}>", facility * 8 + severity).as_bytes());
        let second = second as i64;
        message.extend_from_slice(date::syslog(second, (local(second).offset / 60) as i32).as_ref());
        for word in hostname.iter().chain([tag]) {
            message.push(b' ');
            message.extend_from_slice(word.as_bytes());
        }
        message.extend_from_slice(b": ");
        message.extend_from_slice(line);
        let sent =
            self.open().and_then(|()| match &*self.socket.read().unwrap_or_else(PoisonError::into_inner) {
                Some(socket) => socket.send(&message).map_err(|error| ("send()", error)),
                // Another thread's line failed meanwhile, and was told of.
                None => Ok(0),
            });
        let Err((call, error)) = sent else { return Ok(()) };
        if error.kind() != io::ErrorKind::WouldBlock {
            *self.socket.write().unwrap_or_else(PoisonError::into_inner) = None;
            let level = if call == "send()" { Level::Error } else { Level::Alert };
            let errno = error.raw_os_error().map(nix::errno::Errno::from_raw);
            self.log.write_with(level, errno, format_args!("{call} failed"), |line| {
                line.bytes(b" while logging to syslog");
                line.field("server", self.spec.name.as_bytes());
            });
        }
        Err(error)
    }

    fn open(&self) -> Result<(), (&'static str, io::Error)> {
        if self.socket.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        let (domain, address) = match &self.spec.server {
            Address::Ip(ip) => (Domain::for_address(*ip), SockAddr::from(*ip)),
            Address::Unix(path) => {
                (Domain::UNIX, SockAddr::unix(&**path).map_err(|error| ("connect()", error))?)
            }
        };
        let socket = Socket::new(domain, Type::DGRAM, None).map_err(|error| ("socket()", error))?;
        socket.set_nonblocking(true).map_err(|error| ("fcntl(O_NONBLOCK)", error))?;
        socket.connect(&address).map_err(|error| ("connect()", error))?;
        *self.socket.write().unwrap_or_else(PoisonError::into_inner) = Some(socket);
        Ok(())
    }
}

impl Sink for Peer {
    fn write(&self, level: Level, line: &[u8]) {
        // Whoever logs has no other place to say it; the peer did where it could.
        let _ = self.send_as(level as u8, line, crate::errorlog::now());
    }
}

/// The peers of one configuration.
pub(crate) struct Peers {
    peers: HashMap<Arc<Syslog>, Arc<Peer>>,
    log: Log,
}

impl Peers {
    /// As for [`Peer::new`].
    pub(crate) fn new(log: Log) -> Self {
        Self { peers: HashMap::new(), log }
    }

    pub(crate) fn get(&mut self, spec: &Arc<Syslog>) -> Arc<Peer> {
        let open = || Arc::new(Peer::new(Arc::clone(spec), self.log.clone()));
        Arc::clone(self.peers.entry(Arc::clone(spec)).or_insert_with(open))
    }
}

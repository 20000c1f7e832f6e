//! What master and worker say to each other.
//!
//! ```text
//! master                              worker
//!   | -- Start: who and what to be ----> |   once, before anything else
//!   | -- Load: generation, sockets ----> |   at start and on every reload
//!   | <----- Ready or Refused ---------- |
//!   | -- Reopen, Quit, Terminate ------> |
//! ```

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::privileges::Identity;
use crate::wire::{Malformed, Reader, Writer};

/// A listening socket and [`crate::sockets::Group::description`].
///
/// Sockets of one description keep their order over all generations, and new ones come last: the worker recognises the
/// ones that it has by their place, and every one of them must be accepted on, also when there are fewer threads now.
#[derive(Clone, Debug)]
pub struct PassedSocket {
    pub description: Vec<u8>,
    pub fd: Arc<OwnedFd>,
}

/// A log file opened by the master.
#[derive(Clone, Debug)]
pub struct PassedLog {
    pub path: PathBuf,
    pub fd: Arc<OwnedFd>,
}

/// From the master.
#[derive(Clone, Debug)]
pub enum ToWorker {
    Start(Identity),
    Load { generation: u64, snapshot: Arc<[u8]>, sockets: Vec<PassedSocket>, logs: Vec<PassedLog> },
    Reopen { logs: Vec<PassedLog> },
    Quit,
    Terminate,
}

/// From the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromWorker {
    Ready { generation: u64 },
    Refused { generation: u64, diagnostics: Vec<u8> },
}

/// A message that can travel over a [`crate::channel`].
pub trait Message: Sized {
    /// The kind byte, the payload and the descriptors in the order in which `decode` takes them.
    fn encode(&self) -> (u8, Vec<u8>, Vec<Arc<OwnedFd>>);
    /// # Errors
    /// Anything that `encode` would not have written, also too few or too many descriptors.
    fn decode(kind: u8, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Self, Malformed>;
}

const START: u8 = 1;
const LOAD: u8 = 2;
const REOPEN: u8 = 3;
const QUIT: u8 = 4;
const TERMINATE: u8 = 5;
const READY: u8 = 16;
const REFUSED: u8 = 17;

impl Message for ToWorker {
    fn encode(&self) -> (u8, Vec<u8>, Vec<Arc<OwnedFd>>) {
        let mut payload = Writer::default();
        let mut fds = Vec::new();
        let kind = match self {
            ToWorker::Start(identity) => {
                identity.encode(&mut payload);
                START
            }
            ToWorker::Load { generation, snapshot, sockets, logs } => {
                payload.u64(*generation).bytes(snapshot).u64(sockets.len() as u64);
                for socket in sockets {
                    payload.bytes(&socket.description);
                    fds.push(socket.fd.clone());
                }
                encode_logs(logs, &mut payload, &mut fds);
                LOAD
            }
            ToWorker::Reopen { logs } => {
                encode_logs(logs, &mut payload, &mut fds);
                REOPEN
            }
            ToWorker::Quit => QUIT,
            ToWorker::Terminate => TERMINATE,
        };
        (kind, payload.0, fds)
    }

    fn decode(kind: u8, payload: &[u8], fds: Vec<OwnedFd>) -> Result<ToWorker, Malformed> {
        let mut reader = Reader(payload);
        let mut fds = fds.into_iter();
        let message = match kind {
            START => ToWorker::Start(Identity::decode(&mut reader)?),
            LOAD => {
                let generation = reader.u64()?;
                let snapshot = reader.bytes()?.into();
                let sockets = (0..reader.u64()?)
                    .map(|_| {
                        let description = reader.bytes()?.to_vec();
                        Ok(PassedSocket { description, fd: Arc::new(fds.next().ok_or(Malformed)?) })
                    })
                    .collect::<Result<_, _>>()?;
                ToWorker::Load { generation, snapshot, sockets, logs: decode_logs(&mut reader, &mut fds)? }
            }
            REOPEN => ToWorker::Reopen { logs: decode_logs(&mut reader, &mut fds)? },
            QUIT => ToWorker::Quit,
            TERMINATE => ToWorker::Terminate,
            _ => return Err(Malformed),
        };
        reader.end()?;
        if fds.next().is_some() { Err(Malformed) } else { Ok(message) }
    }
}

fn encode_logs(logs: &[PassedLog], payload: &mut Writer, fds: &mut Vec<Arc<OwnedFd>>) {
    payload.u64(logs.len() as u64);
    for log in logs {
        payload.bytes(path_bytes(&log.path));
        fds.push(log.fd.clone());
    }
}

fn decode_logs(
    reader: &mut Reader<'_>,
    fds: &mut impl Iterator<Item = OwnedFd>,
) -> Result<Vec<PassedLog>, Malformed> {
    (0..reader.u64()?)
        .map(|_| {
            let path = bytes_path(reader.bytes()?);
            Ok(PassedLog { path, fd: Arc::new(fds.next().ok_or(Malformed)?) })
        })
        .collect()
}

impl Message for FromWorker {
    fn encode(&self) -> (u8, Vec<u8>, Vec<Arc<OwnedFd>>) {
        let mut payload = Writer::default();
        let kind = match self {
            FromWorker::Ready { generation } => {
                payload.u64(*generation);
                READY
            }
            FromWorker::Refused { generation, diagnostics } => {
                payload.u64(*generation).bytes(diagnostics);
                REFUSED
            }
        };
        (kind, payload.0, Vec::new())
    }

    fn decode(kind: u8, payload: &[u8], fds: Vec<OwnedFd>) -> Result<FromWorker, Malformed> {
        let mut reader = Reader(payload);
        let message = match kind {
            READY => FromWorker::Ready { generation: reader.u64()? },
            REFUSED => {
                FromWorker::Refused { generation: reader.u64()?, diagnostics: reader.bytes()?.to_vec() }
            }
            _ => return Err(Malformed),
        };
        reader.end()?;
        if fds.is_empty() { Ok(message) } else { Err(Malformed) }
    }
}

/// A path as the bytes that it is.
pub fn path_bytes(path: &Path) -> &[u8] {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes()
}

/// Bytes as a path.
pub fn bytes_path(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn descriptors_must_match_the_payload() {
        let load = ToWorker::Load {
            generation: 3,
            snapshot: Arc::from(&b"conf"[..]),
            sockets: vec![PassedSocket { description: b"80".to_vec(), fd: Arc::new(null()) }],
            logs: vec![PassedLog { path: "/l".into(), fd: Arc::new(null()) }],
        };
        let (kind, payload, fds) = load.encode();
        assert_eq!(fds.len(), 2);
        assert!(ToWorker::decode(kind, &payload, vec![null(), null()]).is_ok());
        assert_eq!(ToWorker::decode(kind, &payload, vec![null()]).err(), Some(Malformed));
        assert_eq!(ToWorker::decode(kind, &payload, vec![null(), null(), null()]).err(), Some(Malformed));
        assert_eq!(ToWorker::decode(0, &payload, vec![null(), null()]).err(), Some(Malformed));
    }

    #[test]
    fn no_prefix_of_a_message_is_a_message() {
        let messages = [
            FromWorker::Ready { generation: 9 },
            FromWorker::Refused { generation: 9, diagnostics: b"no".to_vec() },
        ];
        for message in messages {
            let (kind, payload, _) = message.encode();
            assert_eq!(FromWorker::decode(kind, &payload, Vec::new()), Ok(message));
            for length in 0..payload.len() {
                assert_eq!(FromWorker::decode(kind, &payload[..length], Vec::new()), Err(Malformed));
            }
        }
    }
}

//! The channel between master and worker: framed messages with descriptors over a unix socket pair.
//!
//! ```text
//! | version 1 | kind 1 | zero 2 | descriptors 4 | payload length 8 |  0 per 253 descriptors, sent with them  | payload |
//! ```
//! The kernel passes at most 253 descriptors with one `sendmsg`, hence the carrier bytes. They stand before the payload
//! so that a receiver never reads past one with a plain read, which would close the descriptors.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::message::Message;

const VERSION: u8 = 1;
const HEADER: usize = 16;
/// `SCM_MAX_FD` of Linux.
pub(crate) const DESCRIPTORS_AT_ONCE: usize = 253;
/// More than any configuration opens; a bound on what a mad peer can make us wait for.
const MOST_DESCRIPTORS: usize = 1 << 16;
const LONGEST_PAYLOAD: usize = 1 << 30;

/// A connected pair: one end to keep, one to pass to the worker.
///
/// # Errors
/// Those of `socketpair(2)`.
pub fn pair() -> io::Result<(StdStream, OwnedFd)> {
    let (ours, theirs) = StdStream::pair()?;
    Ok((ours, theirs.into()))
}

/// Makes both directions of one end; needs a running tokio.
///
/// # Errors
/// If the socket cannot be made non-blocking or registered.
pub fn open(stream: StdStream) -> io::Result<(Sender, Receiver)> {
    stream.set_nonblocking(true)?;
    let stream = Arc::new(UnixStream::from_std(stream)?);
    Ok((Sender(stream.clone()), Receiver(stream)))
}

/// The sending half.
#[derive(Debug)]
pub struct Sender(Arc<UnixStream>);

/// The receiving half.
#[derive(Debug)]
pub struct Receiver(Arc<UnixStream>);

impl Sender {
    /// Sends a whole message. Not cancel safe: a message sent half leaves the channel useless, so run it to its end.
    ///
    /// # Errors
    /// Those of `sendmsg(2)`; a message over 1 GiB or 65536 descriptors.
    pub async fn send(&mut self, message: &impl Message) -> io::Result<()> {
        let (kind, payload, fds) = message.encode();
        if payload.len() > LONGEST_PAYLOAD || fds.len() > MOST_DESCRIPTORS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too long"));
        }
        let mut header = vec![VERSION, kind, 0, 0];
        header.extend_from_slice(&(fds.len() as u32).to_le_bytes());
        header.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        self.write(&header).await?;
        for batch in fds.chunks(DESCRIPTORS_AT_ONCE) {
            let raw: Vec<RawFd> = batch.iter().map(|fd| fd.as_raw_fd()).collect();
            self.send_once(&[0], &raw).await?;
        }
        self.write(&payload).await
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.send_once(bytes, &[]).await?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    async fn send_once(&self, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        self.0
            .async_io(Interest::WRITABLE, || {
                // A worker that died must not kill its master with SIGPIPE.
                let flags = MsgFlags::MSG_NOSIGNAL;
                Ok(sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?)
            })
            .await
    }
}

impl Receiver {
    /// Closes both directions, whoever else holds the other half.
    pub fn close(&self) {
        // Fails only if the other end has done so before.
        let _ = socket2::SockRef::from(&*self.0).shutdown(std::net::Shutdown::Both);
    }

    /// The next message, or `None` when the other side closed between messages. Not cancel safe: give it a task of its
    /// own.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`; `InvalidData` for anything that [`Sender::send`] would not write; `UnexpectedEof`.
    pub async fn receive<M: Message>(&mut self) -> io::Result<Option<M>> {
        let mut header = [0; HEADER];
        if self.read(&mut header[..1]).await? == 0 {
            return Ok(None);
        }
        self.read_exact(&mut header[1..]).await?;
        let [version, kind, 0, 0, a, b, c, d, length @ ..] = header else {
            return Err(invalid("malformed header"));
        };
        let count = u32::from_le_bytes([a, b, c, d]) as usize;
        let length = u64::from_le_bytes(length);
        if version != VERSION || count > MOST_DESCRIPTORS || length > LONGEST_PAYLOAD as u64 {
            return Err(invalid("malformed header"));
        }
        let mut fds = Vec::new();
        while fds.len() < count {
            let expected = (count - fds.len()).min(DESCRIPTORS_AT_ONCE);
            let batch = self.receive_descriptors().await?;
            if batch.len() != expected {
                return Err(invalid("descriptors missing"));
            }
            fds.extend(batch);
        }
        let mut payload = vec![0; length as usize];
        self.read_exact(&mut payload).await?;
        M::decode(kind, &payload, fds)
            .map(Some)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, || self.0.try_read(buffer)).await
    }

    async fn read_exact(&self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read(buffer).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => buffer = &mut buffer[read..],
            }
        }
        Ok(())
    }

    /// One carrier byte and what came with it.
    async fn receive_descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        let (read, fds) =
            self.0.async_io(Interest::READABLE, || crate::sys::receive_descriptors(self.0.as_fd())).await?;
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(fds) }
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::message::{FromWorker, PassedLog, PassedSocket, ToWorker};

    /// Runs `play` with two connected ends on one thread, as the master and the worker each have one.
    fn with_ends<F: Future<Output = ()>>(play: impl FnOnce((Sender, Receiver), (Sender, Receiver)) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = pair().unwrap();
            play(open(ours).unwrap(), open(theirs.into()).unwrap()).await;
        });
    }

    /// Sends bytes as they are and gives back how they were received.
    fn receive_raw(bytes: &[u8]) -> io::Result<Option<FromWorker>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut ours, theirs) = pair().unwrap();
            ours.write_all(bytes).unwrap();
            drop(ours);
            open(theirs.into()).unwrap().1.receive().await
        })
    }

    #[test]
    fn many_descriptors_and_megabytes_arrive_in_order() {
        with_ends(|(mut sender, _), (_, mut receiver)| async move {
            let (pipe, write) = nix::unistd::pipe().unwrap();
            let write = Arc::new(write);
            let snapshot: Arc<[u8]> = (0..5_000_000_u32).map(|at| at as u8).collect();
            let sockets: Vec<_> = (0..600)
                .map(|at: u32| PassedSocket { description: at.to_le_bytes().into(), fd: write.clone() })
                .collect();
            let logs = vec![PassedLog { path: "/log".into(), fd: write }];
            let load = ToWorker::Load { generation: 1, snapshot: snapshot.clone(), sockets, logs };
            let sent = tokio::spawn(async move { sender.send(&load).await });
            let received = receiver.receive::<ToWorker>().await.unwrap().unwrap();
            sent.await.unwrap().unwrap();
            let ToWorker::Load { generation: 1, snapshot: got, sockets, logs } = received else {
                panic!("another message");
            };
            assert!(got == snapshot);
            assert_eq!(logs[0].path.to_str(), Some("/log"));
            assert_eq!(sockets.len(), 600);
            for (at, socket) in sockets.into_iter().enumerate() {
                assert_eq!(socket.description, (at as u32).to_le_bytes());
                let mut file = File::from(Arc::into_inner(socket.fd).unwrap());
                file.write_all(&[at as u8]).unwrap();
            }
            drop(logs);
            let mut text = Vec::new();
            File::from(pipe).read_to_end(&mut text).unwrap();
            assert_eq!(text, (0..600).map(|at: u32| at as u8).collect::<Vec<u8>>());
        });
    }

    #[test]
    fn messages_follow_each_other_and_the_end_is_seen() {
        with_ends(|(mut sender, mut answers), (mut answer, mut receiver)| async move {
            sender.send(&ToWorker::Quit).await.unwrap();
            sender.send(&ToWorker::Terminate).await.unwrap();
            assert!(matches!(receiver.receive().await.unwrap(), Some(ToWorker::Quit)));
            assert!(matches!(receiver.receive().await.unwrap(), Some(ToWorker::Terminate)));
            answer.send(&FromWorker::Ready { generation: 7 }).await.unwrap();
            drop((answer, receiver));
            assert_eq!(answers.receive().await.unwrap(), Some(FromWorker::Ready { generation: 7 }));
            assert_eq!(answers.receive::<FromWorker>().await.unwrap(), None);
            assert_eq!(sender.send(&ToWorker::Quit).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        });
    }

    #[test]
    fn an_end_that_gives_up_is_noticed() {
        with_ends(|(mut sender, mut answers), (_answer, receiver)| async move {
            receiver.close();
            assert_eq!(answers.receive::<FromWorker>().await.unwrap(), None);
            assert_eq!(sender.send(&ToWorker::Quit).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        });
    }

    #[test]
    fn received_descriptors_are_closed_on_exec() {
        with_ends(|(mut sender, _), (_, mut receiver)| async move {
            let fd = Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
            sender.send(&ToWorker::Reopen { logs: vec![PassedLog { path: "x".into(), fd }] }).await.unwrap();
            let Some(ToWorker::Reopen { logs }) = receiver.receive().await.unwrap() else {
                panic!("no message")
            };
            assert!(logs[0].fd.as_raw_fd() > 2);
            let flags = nix::fcntl::fcntl(&*logs[0].fd, nix::fcntl::F_GETFD).unwrap();
            assert_eq!(flags & nix::libc::FD_CLOEXEC, nix::libc::FD_CLOEXEC);
        });
    }

    #[test]
    fn nonsense_is_refused_without_waiting_or_allocating_for_it() {
        let header = |version, kind, zero, fds: u32, length: u64| {
            let mut header = vec![version, kind, zero, 0];
            header.extend_from_slice(&fds.to_le_bytes());
            header.extend_from_slice(&length.to_le_bytes());
            header
        };
        let kind = |bytes: Vec<u8>| receive_raw(&bytes).map_err(|error| error.kind());
        let ready = [header(1, 16, 0, 0, 8), 7u64.to_le_bytes().to_vec()].concat();
        assert_eq!(kind(ready), Ok(Some(FromWorker::Ready { generation: 7 })));
        assert_eq!(kind(Vec::new()), Ok(None));
        assert_eq!(kind(header(2, 16, 0, 0, 0)), Err(io::ErrorKind::InvalidData));
        assert_eq!(kind(header(1, 16, 1, 0, 0)), Err(io::ErrorKind::InvalidData));
        assert_eq!(kind(header(1, 99, 0, 0, 0)), Err(io::ErrorKind::InvalidData));
        assert_eq!(kind(header(1, 16, 0, u32::MAX, 0)), Err(io::ErrorKind::InvalidData));
        assert_eq!(kind(header(1, 16, 0, 0, u64::MAX)), Err(io::ErrorKind::InvalidData));
        assert_eq!(kind(header(1, 16, 0, 0, 5)), Err(io::ErrorKind::UnexpectedEof));
        assert_eq!(kind(header(1, 18, 0, 0, 0)[..9].to_vec()), Err(io::ErrorKind::UnexpectedEof));
        assert_eq!(kind([header(1, 18, 0, 1, 0), vec![0]].concat()), Err(io::ErrorKind::InvalidData));
    }
}

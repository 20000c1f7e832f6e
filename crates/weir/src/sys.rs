//! The system calls that no crate wraps safely: descriptors by number, TCP options of listeners, `setpriority`.
#![allow(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sockopt};

use crate::channel::DESCRIPTORS_AT_ONCE;

/// Reads one byte of a unix stream socket and the descriptors that came with it.
///
/// # Errors
/// Those of `recvmsg(2)`, and `ENOBUFS` when more descriptors came than may be passed at once.
pub fn receive_descriptors(socket: BorrowedFd<'_>) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut byte = [0];
    let mut space = cmsg_space!([RawFd; DESCRIPTORS_AT_ONCE]);
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let received =
        recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just opened these descriptors for this message and nothing else knows them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((received.bytes, fds))
}

/// Takes over sockets that the program before `exec` left open, from now on closed on exec. Standard streams and
/// repetitions count as not open; what is no socket is left alone, since it may be a file of this process. Works once a
/// process, before it opens a socket: the second call takes nothing.
pub fn inherited_sockets(numbers: &[RawFd]) -> Vec<Result<OwnedFd, Errno>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let first = !TAKEN.swap(true, Ordering::SeqCst);
    let mut seen = Vec::new();
    numbers
        .iter()
        .map(|&number| {
            if !first || number <= 2 || seen.contains(&number) {
                return Err(Errno::EBADF);
            }
            // SAFETY: fcntl takes no pointer here and reports a number that is not open as an error.
            Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
            // SAFETY: it is open, and nothing closes it while it is looked at.
            getsockopt(&unsafe { BorrowedFd::borrow_raw(number) }, sockopt::SockType)?;
            // SAFETY: takes numbers only.
            Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
            seen.push(number);
            // SAFETY: the socket was named by the process that started this one for exactly this purpose, and is taken
            // once only; the caller has opened no socket yet that could have this number.
            Ok(unsafe { OwnedFd::from_raw_fd(number) })
        })
        .collect()
}

/// Sets the scheduling priority of this process (`worker_priority`), -20 to 19.
///
/// # Errors
/// `EACCES` or `EPERM` without the privilege for it.
pub fn set_priority(priority: i32) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, priority) }).map(drop)
}

/// The options of listening TCP sockets that take an `int`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpOption {
    /// Seconds to wait for data before a connection is accepted.
    DeferAccept,
    /// Length of the queue of fast-open connections.
    FastOpen,
    /// Seconds.
    KeepIdle,
    /// Seconds.
    KeepInterval,
    KeepCount,
}

impl TcpOption {
    pub fn name(self) -> &'static str {
        match self {
            TcpOption::DeferAccept => "TCP_DEFER_ACCEPT",
            TcpOption::FastOpen => "TCP_FASTOPEN",
            TcpOption::KeepIdle => "TCP_KEEPIDLE",
            TcpOption::KeepInterval => "TCP_KEEPINTVL",
            TcpOption::KeepCount => "TCP_KEEPCNT",
        }
    }
}

/// Sets one.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub fn set_tcp_option(socket: BorrowedFd<'_>, option: TcpOption, value: i32) -> Result<(), Errno> {
    let number = match option {
        TcpOption::DeferAccept => libc::TCP_DEFER_ACCEPT,
        TcpOption::FastOpen => libc::TCP_FASTOPEN,
        TcpOption::KeepIdle => libc::TCP_KEEPIDLE,
        TcpOption::KeepInterval => libc::TCP_KEEPINTVL,
        TcpOption::KeepCount => libc::TCP_KEEPCNT,
    };
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer is to an int that lives over the call, and the length is that of an int.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, number, (&raw const value).cast(), length)
    };
    Errno::result(result).map(drop)
}

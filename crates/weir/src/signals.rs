//! Catching signals: none is lost between the pid file and the stream, and each comes with its sender.

use std::io;
use std::pin::Pin;
use std::task::Poll;

use futures_core::Stream;
use nix::sys::signal::{self, SigSet};
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::Origin;
use signal_hook_tokio::SignalsInfo;

use crate::master::machine::Signal;

/// Lets the signals of a master wait until [`catch`]. Once the pid file is written somebody may send one, which would
/// end a process that does not catch it yet.
///
/// # Errors
/// Those of `pthread_sigmask(3)`.
pub fn hold() -> nix::Result<()> {
    ours().thread_block()
}

/// Starts to catch the signals of a master; those that waited come first.
///
/// # Errors
/// If a signal cannot be caught; needs a running tokio.
pub fn catch() -> io::Result<SignalsInfo<WithOrigin>> {
    let signals = SignalsInfo::new(Signal::ALL.map(Signal::number))?;
    ours().thread_unblock()?;
    Ok(signals)
}

fn ours() -> SigSet {
    Signal::ALL.iter().filter_map(|signal| signal::Signal::try_from(signal.number()).ok()).collect()
}

/// Waits for the next signal. Cancel safe. The stream never ends, since nobody closes it.
pub async fn next(signals: &mut SignalsInfo<WithOrigin>) -> Origin {
    std::future::poll_fn(|context| match Pin::new(&mut *signals).poll_next(context) {
        Poll::Ready(Some(origin)) => Poll::Ready(origin),
        Poll::Ready(None) | Poll::Pending => Poll::Pending,
    })
    .await
}

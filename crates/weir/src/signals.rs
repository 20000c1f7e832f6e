//! The next signal with its sender, from the stream of signal-hook.

use std::pin::Pin;
use std::task::Poll;

use futures_core::Stream;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::Origin;
use signal_hook_tokio::SignalsInfo;

/// Waits for the next signal. Cancel safe. The stream never ends, since nobody closes it.
pub async fn next(signals: &mut SignalsInfo<WithOrigin>) -> Origin {
    std::future::poll_fn(|context| match Pin::new(&mut *signals).poll_next(context) {
        Poll::Ready(Some(origin)) => Poll::Ready(origin),
        Poll::Ready(None) | Poll::Pending => Poll::Pending,
    })
    .await
}

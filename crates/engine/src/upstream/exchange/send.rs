//! Sends a request to its upstream: the head, and the body as it was stored or as it comes.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use weir_syntax::Level;

use super::{Asking, Attempt, Failure, Settings, client_gone, log_timeout, next, poll_client_gone};
use crate::http::Exchange;
use crate::upstream::uplink::{Rest, Stopped, Uplink};

impl Attempt {
    /// Whether the upstream has answered while it is still sent to; what became of reading is kept.
    fn poll_early(&mut self, cx: &mut Context<'_>, x: &mut Exchange, settings: &Settings) -> bool {
        if self.line.io.poll_read_ready(cx).is_ready()
            && let Poll::Ready(read) = self.poll_head(cx, x, settings)
        {
            self.early = Some(read);
        }
        self.early.is_some()
    }
}

/// How sending ended.
enum Sent {
    All,
    Answered,
    Timeout,
    ClientGone,
    Stopped(Stopped),
}

impl Asking<'_> {
    /// Sends the request. An upstream that answers before it has all of it is listened to, unless it only says that it
    /// is going to; a body that comes from the client goes on meanwhile.
    pub(super) async fn send(&mut self, x: &mut Exchange, attempt: &mut Attempt) -> Result<(), Failure> {
        let already = x.upstream_states.last().map_or(0, |s| s.bytes_sent) as usize;
        let mut first = &self.request[already..];
        if !first.is_empty() {
            // Nearly always it is taken whole, and nothing has to be set up for waiting.
            match attempt.line.io.try_write(first) {
                Ok(n) => {
                    first = &first[n..];
                    if let Some(state) = x.upstream_states.last_mut() {
                        state.bytes_sent += n as u64;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(send_failed(x, attempt, &error)),
            }
        }
        if self.rest == Rest::Streams
            && let Err(error) = x.send_continue().await
        {
            return Err(Failure::end(error.0));
        }
        match Uplink::new(first, self.rest) {
            None => attempt.sent = true,
            Some(uplink) => self.send_rest(x, attempt, uplink).await?,
        }
        Ok(())
    }

    async fn send_rest(
        &self,
        x: &mut Exchange,
        attempt: &mut Attempt,
        mut uplink: Uplink,
    ) -> Result<(), Failure> {
        let settings = self.protocol.settings();
        let timer = &self.timer;
        let last = x.upstream_states.len().saturating_sub(1);
        let result = poll_fn(|cx| {
            let (moved, polled) = uplink.poll(x, &mut attempt.line.io, last, cx);
            if let Poll::Ready(sent) = polled {
                return Poll::Ready(sent.map_or_else(Sent::Stopped, |()| Sent::All));
            }
            if moved || !uplink.waits_for_peer() {
                timer.clear();
            }
            if attempt.poll_early(cx, x, settings) {
                return Poll::Ready(Sent::Answered);
            }
            if !uplink.waits_for_peer() {
                return Poll::Pending;
            }
            if attempt.line.io.has_taken() || timer.deadline().is_none() {
                timer.set_about(settings.send_timeout);
            }
            if poll_client_gone(x, cx, settings) {
                return Poll::Ready(Sent::ClientGone);
            }
            timer.poll_expired(cx).map(|()| Sent::Timeout)
        })
        .await;
        timer.clear();
        match result {
            Sent::All => attempt.sent = true,
            Sent::Answered if uplink.streams() => attempt.uplink = Some(Box::new(uplink)),
            Sent::Answered => {}
            Sent::ClientGone => return Err(client_gone(x, "sending request to upstream")),
            Sent::Timeout => {
                log_timeout(x, "sending request to upstream");
                return Err(Failure::of(next::TIMEOUT, attempt.cached));
            }
            Sent::Stopped(Stopped::Client(status)) => return Err(Failure::end(status)),
            Sent::Stopped(Stopped::Upstream(error)) => {
                return Err(error.map_or_else(
                    || Failure::of(next::ERROR, attempt.cached),
                    |error| send_failed(x, attempt, &error),
                ));
            }
        }
        Ok(())
    }
}

fn send_failed(x: &Exchange, attempt: &Attempt, error: &io::Error) -> Failure {
    x.log_while(Level::Error, Some(error), "send() failed", "sending request to upstream");
    Failure::of(next::ERROR, attempt.cached)
}

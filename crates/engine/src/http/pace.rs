//! `limit_rate`: how much of a response may go to the client by now.

use std::task::{Context, Poll};

use weir_ir::value;
use weir_syntax::Level;

use crate::http::{Exchange, Template};

impl Exchange {
    /// Waits until something may be sent, and says how many bytes.
    pub(crate) fn poll_pace(&mut self, cx: &mut Context<'_>) -> Poll<u64> {
        let (rate, after) = self.pace();
        if rate == 0 {
            return Poll::Ready(u64::MAX);
        }
        loop {
            if let Some(until) = self.paused_until {
                self.client.timer.set(until);
                if self.client.timer.poll_expired(cx).is_pending() {
                    // What TLS holds of earlier bytes is not held back; its failure shows at the next write.
                    let _ = self.client.io.poll_flush(cx);
                    return Poll::Pending;
                }
                self.client.timer.clear();
                self.paused_until = None;
            }
            // As in nginx: each second that has begun, by the wall clock, allows its bytes.
            let clock = self.reactor.clock();
            let (now, unix) = (clock.now_ms(), clock.unix_ms());
            let began = unix.saturating_sub(now.saturating_sub(self.started)) / 1000;
            let seconds = (unix / 1000).saturating_sub(began) + 1;
            let allowed = rate.saturating_mul(seconds).saturating_add(after);
            match allowed.checked_sub(self.sent) {
                Some(left @ 1..) => return Poll::Ready(left),
                Some(0) | None => self.pause((self.sent - allowed).saturating_mul(1000) / rate + 1),
            }
        }
    }

    /// Whether there is a rate at all.
    pub(crate) fn is_paced(&mut self) -> bool {
        self.pace().0 > 0
    }

    /// Counts what was sent, and pauses for as long as it would have taken at the rate.
    pub(crate) fn count_sent(&mut self, n: u64) {
        let before = self.sent;
        self.sent += n;
        let (rate, after) = self.pace();
        let beyond = self.sent.saturating_sub(after) - before.saturating_sub(after);
        if let Some(delay @ 1..) = beyond.saturating_mul(1000).checked_div(rate) {
            self.pause(delay);
        }
    }

    fn pause(&mut self, ms: u64) {
        self.paused_until = Some(self.reactor.clock().refresh().saturating_add(ms));
    }

    /// The rate, and how many bytes go before it counts: judged when the first byte is sent.
    fn pace(&mut self) -> (u64, u64) {
        let core = &self.location().core;
        let rate = match self.limit_rate {
            Some(rate) => rate,
            None => self.size(core.limit_rate.as_ref()),
        };
        let after = match self.limit_rate_after {
            Some(after) => after,
            None if rate == 0 => 0,
            None => self.size(core.limit_rate_after.as_ref()),
        };
        self.limit_rate = Some(rate);
        if rate > 0 {
            self.limit_rate_after = Some(after);
        }
        (rate, after)
    }

    /// The size that a template gives; 0 without one, or if it is none.
    pub(crate) fn size(&self, template: Option<&Template>) -> u64 {
        let Some(template) = template else { return 0 };
        let text = template.value(self);
        value::size(&text).unwrap_or_else(|| {
            let shown = String::from_utf8_lossy(&text);
            self.log(Level::Error, format_args!("invalid size \"{shown}\""));
            0
        })
    }
}

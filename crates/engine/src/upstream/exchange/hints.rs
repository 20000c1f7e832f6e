//! What an upstream hints at before it answers (103), on its way to the client.

use std::task::{Context, Poll};

use weir_syntax::Level;

use super::{READING_HEAD, Settings};
use crate::http::Exchange;
use crate::http1::request::Version;
use crate::http1::response::Head;
use crate::io::Io;

impl Exchange {
    /// Sends the fields of a 103 on, where `early_hints` says so. `length` is that of all hints of this upstream.
    pub(super) fn hint(&mut self, head: &Head, length: usize, settings: &Settings) {
        let Some(hidden) = settings.pass_early_hints.as_ref().filter(|_| head.status() == 103) else {
            return;
        };
        if length > settings.buffer_size {
            self.log_while(Level::Info, None, "upstream sent too big early hints", READING_HEAD);
            return;
        }
        let wanted = !self.is_subrequest()
            && !self.post_action
            && self.head.version() >= Version::HTTP_11
            && self.location().core.early_hints.iter().any(|condition| condition.is_true(self));
        let fields =
            head.fields().iter().map(|field| (field.known, head.get(field.name), head.get(field.value)));
        let mut fields = fields.filter(|(known, name, _)| !hidden.hides(*known, name)).peekable();
        if !wanted || fields.peek().is_none() {
            return;
        }
        if let Io::Stream(stream) = &self.client.io {
            self.sent += stream.hint(head.status(), fields.map(|(_, name, value)| (name, value)));
            return;
        }
        let hints = &mut self.early_hints;
        hints.extend(b"HTTP/1.1 103 Early Hints\r\n");
        for (_, name, value) in fields {
            for part in [name, b": ", value, b"\r\n"] {
                hints.extend(part);
            }
        }
        hints.extend(b"\r\n");
    }

    /// Writes what was hinted at as far as the client takes it; the answer comes behind the rest.
    pub(super) fn poll_hints(&mut self, cx: &mut Context<'_>) {
        let io = &mut self.client.io;
        while !self.early_hints.is_empty() {
            match io.poll_write(cx, &self.early_hints) {
                Poll::Ready(Ok(n)) => {
                    self.sent += n as u64;
                    self.early_hints.consume(n);
                }
                // That it is gone is found by whoever sends the answer.
                Poll::Ready(Err(_)) => self.early_hints.clear(),
                Poll::Pending => return,
            }
            // Nothing follows it at once.
            let _ = io.poll_flush(cx);
        }
    }
}

//! Sets of media types, as `gzip_types` and others of that kind have them.

use weir_engine::http::Response;
use weir_ir::{Call, Fault};

/// The types that a level names.
#[derive(Clone, Debug, Default)]
pub(super) struct Types {
    named: Vec<Box<[u8]>>,
    /// `*`
    any: bool,
}

impl Types {
    /// Adds the types of a directive to those that its level has already; `text/html` is always among them.
    pub(super) fn add(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        if self.any {
            return Ok(());
        }
        if self.named.is_empty() {
            self.named.push(b"text/html"[..].into());
        }
        for index in 0..call.args().len() {
            let name = call.arg(index).to_ascii_lowercase();
            if name == b"*" {
                self.any = true;
                return Ok(());
            }
            if self.named.iter().any(|known| **known == *name) {
                call.warn([b"duplicate MIME type \"", &name[..], b"\""].concat());
            } else {
                self.named.push(name.into());
            }
        }
        Ok(())
    }

    pub(super) fn inherit(&mut self, outer: &Self) {
        if self.named.is_empty() {
            self.clone_from(outer);
        }
    }

    /// The types where no level names any.
    pub(super) fn or(&self, default: &[&str]) -> Self {
        if self.named.is_empty() {
            return Self { named: default.iter().map(|name| name.as_bytes().into()).collect(), any: false };
        }
        self.clone()
    }

    /// Whether a response is of one of these types.
    pub(super) fn has(&self, response: &Response) -> bool {
        self.names(response.media_type().0)
    }

    /// Whether a type is among them.
    pub(super) fn names(&self, media_type: &[u8]) -> bool {
        self.any || self.named.iter().any(|name| name.eq_ignore_ascii_case(media_type))
    }
}

//! What the master sends its worker of a configuration: where it is read from and everything that it asked.

use std::sync::Arc;

use weir_ir::Prefixes;

use super::{Reading, text};
use crate::wire::{Malformed, Reader, Writer};

/// A configuration and the answers of the outside.
pub struct Snapshot {
    pub reading: Reading,
    pub recording: Vec<u8>,
}

impl Snapshot {
    pub fn encode(&self) -> Arc<[u8]> {
        let Reading { conf_file, prefixes, globals } = &self.reading;
        let mut out = Writer::default();
        out.bytes(conf_file);
        let Prefixes { prefix, conf, error_log, access_log, state } = prefixes;
        for path in [prefix, conf, error_log, access_log, state] {
            out.bytes(path.as_bytes());
        }
        out.option(globals.as_deref(), |out, globals| {
            out.bytes(globals);
        });
        out.bytes(&self.recording);
        out.0.into()
    }

    /// # Errors
    /// Anything that [`Snapshot::encode`] would not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader(bytes);
        let conf_file = from.bytes()?.to_vec();
        let mut path = || from.bytes().map(text);
        let prefixes = Prefixes {
            prefix: path()?,
            conf: path()?,
            error_log: path()?,
            access_log: path()?,
            state: path()?,
        };
        let globals = from.option(|from| Ok(from.bytes()?.to_vec()))?;
        let recording = from.bytes()?.to_vec();
        from.end()?;
        Ok(Self { reading: Reading { conf_file, prefixes, globals }, recording })
    }
}

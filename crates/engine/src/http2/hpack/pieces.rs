//! A block that comes in pieces.

/// What of a block is not read, since a field of it is not whole.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    rest: Vec<u8>,
    /// With so many bytes it is looked at again.
    again: usize,
}

impl Pieces {
    /// Takes the next bytes, of which `decode` gets those before them too and says how many it has read. A field of many pieces is
    /// looked at when there is twice as much of it, so that it costs no more than its length, unless nothing `follows`.
    ///
    /// # Errors
    /// Those of `decode`.
    pub(crate) fn take<F>(
        &mut self,
        piece: &[u8],
        follows: bool,
        decode: impl FnOnce(&[u8]) -> Result<usize, F>,
    ) -> Result<(), F> {
        let bytes = match self.rest.is_empty() {
            true => piece,
            false => {
                self.rest.extend_from_slice(piece);
                &self.rest
            }
        };
        if bytes.len() < self.again && follows {
            return Ok(());
        }
        let n = decode(bytes)?;
        self.rest = bytes[n..].to_vec();
        self.again = 2 * self.rest.len();
        Ok(())
    }

    /// Bytes of a field that is not whole.
    pub(crate) fn len(&self) -> usize {
        self.rest.len()
    }

    /// Whether all was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

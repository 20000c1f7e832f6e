//! Fields as HTTP/2 has them on the wire: HPACK (RFC 7541), judged as nginx does.
//!
//! ```text
//!  block of HEADERS and CONTINUATION == Decoder == Fields        fields of a response == Encoder == block
//! ```
//!
//! A connection has one of each, and both have to see every block, in the order of the wire. Which names and values make a
//! request is not judged here.

mod decode;
mod encode;
mod huffman;
mod pieces;
mod table;
#[cfg(test)]
mod tests;

pub use decode::{Decoder, Fault, Limits};
pub(crate) use decode::{Rest, Stop, string};
pub use encode::Encoder;
pub(crate) use pieces::Pieces;
pub(crate) use table::entry;

/// Fields in the order in which they came, with their names and values in one run of bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    bytes: Vec<u8>,
    /// Of each name and its value.
    lengths: Vec<(u32, u32)>,
}

impl Fields {
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.lengths.push((name.len() as u32, value.len() as u32));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.lengths.iter().scan(self.bytes.as_slice(), |rest, &(name, value)| {
            let (field, behind) = rest.split_at((name + value) as usize);
            *rest = behind;
            Some(field.split_at(name as usize))
        })
    }

    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Forgets the fields and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.lengths.clear();
    }
}

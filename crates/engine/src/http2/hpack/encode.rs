//! Blocks of fields that are sent: those of responses, and of requests to upstreams.

use std::collections::VecDeque;
use std::hash::Hasher;
use std::mem;

use super::huffman;
use super::table::{self, MOST, STATIC, Table};
use crate::hash::Mixing;

/// Makes the blocks of one connection. They have to be sent in the order in which they were made.
#[derive(Debug)]
pub struct Encoder {
    pub(super) table: Table,
    /// Of the entries of the table, the newest last. In front are those of entries that are gone, until the next is added.
    tags: VecDeque<Tag>,
    /// The smallest size of the table since the last block, where the peer is still to be told.
    smallest: Option<usize>,
    /// A name in lower case.
    name: Vec<u8>,
}

/// Hashes of a field. Whoever makes them alike has 128 comparisons more.
#[derive(Clone, Copy, Debug)]
struct Tag {
    name: u32,
    field: u32,
}

/// Longer values are not put into the table, where they would take the place of many.
const LONGEST_KEPT: usize = 1024;

/// Indexes of the static table, a bit each: names whose values are others in each response or request, or that tell who somebody is:
/// requests of many share a connection to an upstream.
const CHANGING: u64 = {
    let names = [
        ":path",
        "age",
        "authorization",
        "content-length",
        "content-range",
        "cookie",
        "etag",
        "expires",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "last-modified",
        "location",
        "proxy-authorization",
        "range",
        "referer",
        "set-cookie",
    ];
    let (mut set, mut at) = (0, 0);
    while at < names.len() {
        set |= 1 << table::index(names[at]);
        at += 1;
    }
    set
};

/// How a literal begins (RFC 7541 section 6.2): the bits before its index, and those that the index has.
const KEPT: (u8, u8) = (0x40, 0x3f);
const PASSING: (u8, u8) = (0, 0x0f);

impl Encoder {
    /// With the table that a connection has before anything is said of it, and no memory for it yet.
    #[expect(clippy::new_without_default, reason = "a connection begins with it, nothing defaults to it")]
    pub fn new() -> Self {
        Self { table: Table::new(), tags: VecDeque::new(), smallest: None, name: Vec::new() }
    }

    /// The peer's table may have that many bytes (SETTINGS_HEADER_TABLE_SIZE); said between two blocks. No more than 4096
    /// are used. The next block begins with what RFC 7541 section 4.2 wants to be said of it.
    pub fn resize(&mut self, size: u32) {
        let size = MOST.min(size as usize);
        if size != self.table.most() || self.smallest.is_some() {
            self.smallest = Some(self.smallest.unwrap_or(MOST).min(size));
            self.table.resize(size);
        }
    }

    /// Appends `:status`.
    pub fn status(&mut self, status: u16, block: &mut Vec<u8>) {
        let digits = [status / 100, status / 10 % 10, status % 10].map(|digit| b'0' + (digit % 10) as u8);
        self.lower(b":status", &digits, block);
    }

    /// Appends a field, with its name in lower case.
    pub fn field(&mut self, name: &[u8], value: &[u8], block: &mut Vec<u8>) {
        if !name.iter().any(u8::is_ascii_uppercase) {
            return self.lower(name, value, block);
        }
        let mut lower = mem::take(&mut self.name);
        lower.clear();
        lower.extend(name.iter().map(u8::to_ascii_lowercase));
        self.lower(&lower, value, block);
        self.name = lower;
    }

    fn lower(&mut self, name: &[u8], value: &[u8], block: &mut Vec<u8>) {
        if let Some(smallest) = self.smallest.take() {
            self.announce(smallest, block);
        }
        let known = table::find(name);
        if let Some(first) = known {
            let mut same = STATIC[first - 1..].iter().take_while(|entry| entry.0.as_bytes() == name);
            if let Some(others) = same.position(|entry| entry.1.as_bytes() == value) {
                return number(0x80, 0x7f, first + others, block);
            }
        }
        let keeps = value.len() <= LONGEST_KEPT
            && known.is_none_or(|index| CHANGING >> index & 1 == 0)
            && self.table.fits(name, value);
        let tag = Tag::of(name, value);
        if keeps && let Some(age) = self.place(|seen| seen.field == tag.field, |entry| entry == (name, value))
        {
            return number(0x80, 0x7f, STATIC.len() + 1 + age, block);
        }
        let index = known.or_else(|| {
            let age = self.place(|seen| seen.name == tag.name, |entry| entry.0 == name)?;
            Some(STATIC.len() + 1 + age)
        });
        let (bits, prefix) = if keeps { KEPT } else { PASSING };
        number(bits, prefix, index.unwrap_or(0), block);
        if index.is_none() {
            string(name, block);
        }
        string(value, block);
        if keeps {
            self.table.insert(name, value);
            self.tags.push_back(tag);
            // Those of entries that are gone.
            self.tags.drain(..self.tags.len() - self.table.len());
        }
    }

    /// The age of the newest entry that both hold of.
    fn place(&self, tag: impl Fn(&Tag) -> bool, field: impl Fn((&[u8], &[u8])) -> bool) -> Option<usize> {
        let mut ages = self.tags.iter().rev().enumerate().filter(|(_, seen)| tag(seen)).map(|(age, _)| age);
        ages.find(|age| self.table.get(*age).is_some_and(&field))
    }

    #[cold]
    fn announce(&self, smallest: usize, block: &mut Vec<u8>) {
        if smallest < self.table.most() {
            number(0x20, 0x1f, smallest, block);
        }
        number(0x20, 0x1f, self.table.most(), block);
    }
}

impl Tag {
    fn of(name: &[u8], value: &[u8]) -> Self {
        let mut hash = Mixing::default();
        hash.write(name);
        let name = hash.finish() as u32;
        hash.write(value);
        Self { name, field: hash.finish() as u32 }
    }
}

/// Appends a number (RFC 7541 section 5.1) behind `bits`, which are those above `prefix`.
fn number(bits: u8, prefix: u8, number: usize, block: &mut Vec<u8>) {
    if number < usize::from(prefix) {
        block.push(bits | number as u8);
        return;
    }
    block.push(bits | prefix);
    let mut rest = number - usize::from(prefix);
    while rest >= 0x80 {
        block.push(0x80 | rest as u8);
        rest >>= 7;
    }
    block.push(rest as u8);
}

/// Appends a string (RFC 7541 section 5.2) in whichever form is shorter.
fn string(bytes: &[u8], block: &mut Vec<u8>) {
    let length = huffman::length(bytes);
    if length < bytes.len() {
        number(0x80, 0x7f, length, block);
        huffman::encode(bytes, block);
    } else {
        number(0, 0x7f, bytes.len(), block);
        block.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tag_stays_longer_than_its_entry() {
        let (mut encoder, mut block) = (Encoder::new(), Vec::new());
        for turn in 0..1000u32 {
            encoder.field(b"x-request-id", &turn.to_be_bytes(), &mut block);
            assert_eq!(encoder.tags.len(), encoder.table.len());
        }
        assert_eq!(encoder.table.len(), 4096 / (12 + 4 + 32));
    }
}

//! Blocks of fields that a client sends.

use super::table::{MOST, STATIC, Table};
use super::{Fields, huffman};

/// Takes the blocks of one connection apart.
#[derive(Debug)]
pub struct Decoder {
    pub(super) table: Table,
}

/// What a block may have at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a name, or of a value, as they are on the wire.
    pub field: usize,
    /// Bytes of all names and values of a block.
    pub list: usize,
}

/// Why a connection ends: whoever cannot read a block cannot read those that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The error code of HTTP/2 (RFC 9113 section 7).
    pub code: u32,
    /// nginx's words.
    pub message: &'static str,
}

impl Fault {
    const fn protocol(message: &'static str) -> Self {
        Self { code: 1, message }
    }

    const fn compression(message: &'static str) -> Self {
        Self { code: 9, message }
    }

    const fn enhance_your_calm(message: &'static str) -> Self {
        Self { code: 11, message }
    }
}

const LONG_INDEX: Fault = Fault::compression("client sent header block with too long header index value");

/// Octets of a number at most, as in nginx: 2,097,278 is the largest.
const OCTETS: usize = 4;

impl Decoder {
    /// With the table that a connection has before anything is said of it, and no memory for it yet.
    #[expect(clippy::new_without_default, reason = "a connection begins with it, nothing defaults to it")]
    pub fn new() -> Self {
        Self { table: Table::new() }
    }

    /// Appends the fields of a block, or of a piece of it: that of a HEADERS frame, without padding and priority, and of its
    /// CONTINUATION; `more` of it is known to follow. Says how many bytes are read: those of a field that is not whole have to come
    /// again with those that follow.
    ///
    /// # Errors
    /// Those before it are there, and the connection has to end.
    pub fn decode(
        &mut self,
        block: &[u8],
        more: bool,
        limits: &mut Limits,
        fields: &mut Fields,
    ) -> Result<usize, Fault> {
        let mut rest = Rest { bytes: block, more };
        while !rest.bytes.is_empty() {
            let (left, start) = (rest.bytes.len(), fields.bytes.len());
            match self.next(&mut rest, limits, fields) {
                Ok(()) => {}
                Err(stop) => {
                    fields.bytes.truncate(start);
                    return match stop {
                        Stop::Cut => Ok(block.len() - left),
                        Stop::Bad(fault) => Err(fault),
                    };
                }
            }
        }
        Ok(block.len())
    }

    /// Takes a field, or what is said of the table.
    fn next(
        &mut self,
        rest: &mut Rest<'_>,
        limits: &mut Limits,
        fields: &mut Fields,
    ) -> Result<(), Stop<Fault>> {
        match rest.bytes.first() {
            Some(0x80..) => {
                let (name, value) = self.field(number(rest, 0x7f, LONG_INDEX)?)?;
                limits.take(name.len() + value.len())?;
                fields.push(name, value);
            }
            Some(0x20..0x40) => {
                let long = Fault::compression("client sent header block with too long size update value");
                let size = number(rest, 0x1f, long)?;
                if size > MOST {
                    return Err(Fault::compression("client sent invalid table size update").into());
                }
                self.table.resize(size);
            }
            Some(_) | None => self.literal(rest, limits, fields)?,
        }
        Ok(())
    }

    fn literal(
        &mut self,
        rest: &mut Rest<'_>,
        limits: &mut Limits,
        fields: &mut Fields,
    ) -> Result<(), Stop<Fault>> {
        let keeps = rest.bytes.first().is_some_and(|first| first & 0x40 != 0);
        let index = number(rest, if keeps { 0x3f } else { 0x0f }, LONG_INDEX)?;
        let start = fields.bytes.len();
        if index == 0 {
            bounded(rest, limits.field, &mut fields.bytes)?;
            if fields.bytes.len() == start {
                return Err(Fault::protocol("client sent zero header name length").into());
            }
        } else {
            fields.bytes.extend_from_slice(self.field(index)?.0);
        }
        let middle = fields.bytes.len();
        bounded(rest, limits.field, &mut fields.bytes)?;
        let (name, value) = fields.bytes[start..].split_at(middle - start);
        limits.take(name.len() + value.len())?;
        if keeps {
            self.table.insert(name, value);
        }
        fields.lengths.push((name.len() as u32, value.len() as u32));
        Ok(())
    }

    fn field(&self, index: usize) -> Result<(&[u8], &[u8]), Fault> {
        let place =
            index.checked_sub(1).ok_or(Fault::compression("client sent invalid hpack table index 0"))?;
        match place.checked_sub(STATIC.len()) {
            None => Ok((STATIC[place].0.as_bytes(), STATIC[place].1.as_bytes())),
            Some(age) => {
                self.table.get(age).ok_or(Fault::compression("client sent out of bound hpack table index"))
            }
        }
    }
}

impl Limits {
    fn take(&mut self, n: usize) -> Result<(), Fault> {
        let large = Fault::enhance_your_calm("client sent too large header");
        self.list = self.list.checked_sub(n).ok_or(large)?;
        Ok(())
    }
}

/// Takes a string of no more than so many bytes and appends it.
fn bounded(rest: &mut Rest<'_>, most: usize, bytes: &mut Vec<u8>) -> Result<(), Stop<Fault>> {
    let long = Fault::compression("client sent header field with too long length value");
    let bad = Fault::compression("client sent invalid encoded header field");
    let large = Fault::enhance_your_calm("client sent too large header field");
    string(rest, bytes, long, bad, |length, _| if length > most { Err(large) } else { Ok(()) })
}

/// What of a block is not read.
pub(crate) struct Rest<'b> {
    pub(crate) bytes: &'b [u8],
    /// It goes on.
    pub(crate) more: bool,
}

/// Why a block is not read any further.
pub(crate) enum Stop<F> {
    /// More of it has to come.
    Cut,
    Bad(F),
}

impl<F> From<F> for Stop<F> {
    fn from(fault: F) -> Self {
        Self::Bad(fault)
    }
}

/// Takes a number (RFC 7541 section 5.1) whose first bits are those of `prefix`.
pub(crate) fn number<F>(rest: &mut Rest<'_>, prefix: u8, long: F) -> Result<usize, Stop<F>> {
    let (first, octets) = rest.bytes.split_first().ok_or(Stop::Cut)?;
    let mut number = usize::from(first & prefix);
    if first & prefix != prefix {
        rest.bytes = octets;
        return Ok(number);
    }
    for (place, octet) in octets.iter().take(OCTETS - 1).enumerate() {
        number += usize::from(octet & 0x7f) << (7 * place);
        if *octet < 0x80 {
            rest.bytes = &octets[place + 1..];
            return Ok(number);
        }
    }
    let is_long = octets.len() >= OCTETS || octets.len() == OCTETS - 1 && rest.more;
    Err(if is_long { Stop::Bad(long) } else { Stop::Cut })
}

/// Takes a string (RFC 7541 section 5.2) and appends it. `judge` is told how long it is on the wire, and whether by Huffman's code.
pub(crate) fn string<F>(
    rest: &mut Rest<'_>,
    bytes: &mut Vec<u8>,
    long: F,
    bad: F,
    judge: impl FnOnce(usize, bool) -> Result<(), F>,
) -> Result<(), Stop<F>> {
    let is_huffman = rest.bytes.first().is_some_and(|first| first & 0x80 != 0);
    let length = number(rest, 0x7f, long)?;
    judge(length, is_huffman)?;
    let (encoded, behind) = rest.bytes.split_at_checked(length).ok_or(Stop::Cut)?;
    if is_huffman {
        huffman::decode(encoded, bytes).map_err(|_| bad)?;
    } else {
        bytes.extend_from_slice(encoded);
    }
    rest.bytes = behind;
    Ok(())
}

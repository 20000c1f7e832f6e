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

    const fn frame_size(message: &'static str) -> Self {
        Self { code: 6, message }
    }

    const fn compression(message: &'static str) -> Self {
        Self { code: 9, message }
    }

    const fn enhance_your_calm(message: &'static str) -> Self {
        Self { code: 11, message }
    }
}

const CUT: Fault = Fault::frame_size("client sent header block with incorrect length");
const TOO_LARGE: Fault = Fault::enhance_your_calm("client sent too large header");

/// Octets of a number at most, as in nginx: 2,097,278 is the largest.
const OCTETS: usize = 4;

impl Decoder {
    /// With the table that a connection has before anything is said of it, and no memory for it yet.
    #[expect(clippy::new_without_default, reason = "a connection begins with it, nothing defaults to it")]
    pub fn new() -> Self {
        Self { table: Table::new() }
    }

    /// Appends the fields of a whole block: that of a HEADERS frame, without padding and priority, and of all its CONTINUATION.
    /// After a fault those before it are there, and the connection has to end.
    pub fn decode(&mut self, block: &[u8], limits: &Limits, fields: &mut Fields) -> Result<(), Fault> {
        let mut rest = block;
        let mut left = limits.list;
        while let Some(first) = rest.first() {
            match first {
                0x80.. => {
                    let index = number(&mut rest, 0x7f).map_err(Number::of_index)?;
                    let (name, value) = self.field(index)?;
                    left = left.checked_sub(name.len() + value.len()).ok_or(TOO_LARGE)?;
                    fields.push(name, value);
                }
                0x20..0x40 => {
                    let size = number(&mut rest, 0x1f).map_err(|bad| match bad {
                        Number::Cut => CUT,
                        Number::Long => {
                            Fault::compression("client sent header block with too long size update value")
                        }
                    })?;
                    if size > MOST {
                        return Err(Fault::compression("client sent invalid table size update"));
                    }
                    self.table.resize(size);
                }
                _ => {
                    let start = fields.bytes.len();
                    if let Err(fault) = self.literal(&mut rest, limits, &mut left, fields) {
                        fields.bytes.truncate(start);
                        return Err(fault);
                    }
                }
            }
        }
        Ok(())
    }

    fn literal(
        &mut self,
        rest: &mut &[u8],
        limits: &Limits,
        left: &mut usize,
        fields: &mut Fields,
    ) -> Result<(), Fault> {
        let keeps = rest.first().is_some_and(|first| first & 0x40 != 0);
        let index = number(rest, if keeps { 0x3f } else { 0x0f }).map_err(Number::of_index)?;
        let start = fields.bytes.len();
        if index == 0 {
            string(rest, limits.field, &mut fields.bytes)?;
            if fields.bytes.len() == start {
                return Err(Fault::protocol("client sent zero header name length"));
            }
        } else {
            fields.bytes.extend_from_slice(self.field(index)?.0);
        }
        let middle = fields.bytes.len();
        string(rest, limits.field, &mut fields.bytes)?;
        let (name, value) = fields.bytes[start..].split_at(middle - start);
        *left = left.checked_sub(name.len() + value.len()).ok_or(TOO_LARGE)?;
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

/// What is wrong with a number.
enum Number {
    Cut,
    Long,
}

impl Number {
    fn of_index(self) -> Fault {
        match self {
            Self::Cut => CUT,
            Self::Long => Fault::compression("client sent header block with too long header index value"),
        }
    }
}

/// Takes a number (RFC 7541 section 5.1) whose first bits are those of `prefix`.
fn number(rest: &mut &[u8], prefix: u8) -> Result<usize, Number> {
    let (first, octets) = rest.split_first().ok_or(Number::Cut)?;
    let mut number = usize::from(first & prefix);
    if first & prefix != prefix {
        *rest = octets;
        return Ok(number);
    }
    for (place, octet) in octets.iter().take(OCTETS - 1).enumerate() {
        number += usize::from(octet & 0x7f) << (7 * place);
        if *octet < 0x80 {
            *rest = &octets[place + 1..];
            return Ok(number);
        }
    }
    Err(if octets.len() < OCTETS { Number::Cut } else { Number::Long })
}

/// Takes a string (RFC 7541 section 5.2) and appends it.
fn string(rest: &mut &[u8], most: usize, bytes: &mut Vec<u8>) -> Result<(), Fault> {
    let is_huffman = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = number(rest, 0x7f).map_err(|bad| match bad {
        Number::Cut => CUT,
        Number::Long => Fault::compression("client sent header field with too long length value"),
    })?;
    if length > most {
        return Err(Fault::enhance_your_calm("client sent too large header field"));
    }
    let (encoded, behind) = rest.split_at(length.min(rest.len()));
    let is_whole = encoded.len() == length;
    if is_huffman {
        match huffman::decode(encoded, bytes) {
            Err(huffman::Broken::Within) if !is_whole => {}
            Err(_) => return Err(Fault::compression("client sent invalid encoded header field")),
            Ok(()) => {}
        }
    } else if is_whole {
        bytes.extend_from_slice(encoded);
    }
    if !is_whole {
        return Err(Fault::frame_size("client sent header field with incorrect length"));
    }
    *rest = behind;
    Ok(())
}

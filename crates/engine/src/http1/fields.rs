//! The header section of a message: one resumable scanner for requests, responses and trailers, as nginx has one.

use memchr::memchr3;
use wide::u8x16;

use super::known::Known;

/// Set in both ends of a span that points into a head's own text (decoded path, lower-cased host), not into the bytes received.
const OWN: u32 = 1 << 31;

/// The largest head a span can point into; no configuration reaches it.
pub(crate) const LONGEST: usize = OWN as usize - 1;

/// A range of bytes within the head that made it; resolve it with that head's `get`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    #[inline]
    pub(crate) fn raw(start: usize, end: usize) -> Self {
        Self { start: start as u32, end: end as u32 }
    }

    pub(crate) fn own(start: usize, end: usize) -> Self {
        Self { start: start as u32 | OWN, end: end as u32 | OWN }
    }

    /// In bytes.
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether it holds no byte.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether it points into a head's own text.
    pub(crate) fn is_own(self) -> bool {
        self.start & OWN != 0
    }

    /// Where it starts among the bytes received.
    pub(crate) fn start(self) -> usize {
        (self.start & !OWN) as usize
    }

    #[inline]
    pub(crate) fn of<'a>(self, raw: &'a [u8], own: &'a [u8]) -> &'a [u8] {
        let text = if self.start & OWN == 0 { raw } else { own };
        text.get((self.start & !OWN) as usize..(self.end & !OWN) as usize).unwrap_or_default()
    }
}

/// One header line, in the order received.
#[derive(Clone, Copy, Debug, Default)]
pub struct Field {
    /// As the peer spelled it.
    pub name: Span,
    /// Without the spaces around it; tabs stay, as in nginx.
    pub value: Span,
    /// Which header it is.
    pub known: Known,
    /// Whether the line is as we would write it: `name: value`, CR LF at its end.
    usual: bool,
}

/// Who has to write a line anew writes the same.
impl PartialEq for Field {
    fn eq(&self, other: &Self) -> bool {
        (self.name, self.value, self.known) == (other.name, other.value, other.known)
    }
}

impl Eq for Field {}

impl Field {
    /// Of a line as we would write it, without its end.
    pub(crate) fn of_line(start: usize, name_end: usize, end: usize, known: Known) -> Self {
        Self { name: Span::raw(start, name_end), value: Span::raw(name_end + 2, end), known, usual: true }
    }

    #[inline]
    pub(crate) fn line(self, raw: &[u8]) -> Option<&[u8]> {
        if self.usual { raw.get(self.name.start as usize..self.value.end as usize + 2) } else { None }
    }
}

/// The fields of a head with the first of each known name at hand.
#[derive(Clone, Debug)]
pub(crate) struct Fields {
    pub(crate) list: Vec<Field>,
    first: [u16; Known::COUNT],
}

/// No such field.
const NONE: u16 = u16::MAX;

impl Default for Fields {
    fn default() -> Self {
        Self { list: Vec::new(), first: [NONE; Known::COUNT] }
    }
}

impl Fields {
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.first = [NONE; Known::COUNT];
    }

    /// Adds a field; true if it is the first of its name, as far as the name is known.
    #[inline]
    pub(crate) fn push(&mut self, field: Field) -> bool {
        let first = &mut self.first[field.known as usize];
        let is_first = *first == NONE;
        if is_first {
            *first = self.list.len().min(NONE as usize - 1) as u16;
        }
        self.list.push(field);
        is_first
    }

    #[inline]
    pub(crate) fn has(&self, known: Known) -> bool {
        self.first[known as usize] != NONE
    }

    #[inline]
    pub(crate) fn first(&self, known: Known) -> Option<&Field> {
        let at = self.first[known as usize];
        if at == NONE {
            return None;
        }
        // Only a head of more fields than an index can tell makes this look further than at one.
        self.list.get(at as usize..)?.iter().find(|field| field.known == known)
    }
}

/// How requests and responses are asked for their fields: methods of a head with `fields` and `get`.
macro_rules! accessors {
    ($head:ty) => {
        impl $head {
            /// In the order received, without those left out.
            pub fn fields(&self) -> &[Field] {
                &self.fields.list
            }

            /// Whether there is such a header.
            pub fn has(&self, known: Known) -> bool {
                self.fields.has(known)
            }

            /// The value of the first such header.
            pub fn first(&self, known: Known) -> Option<&[u8]> {
                self.fields.first(known).map(|field| self.get(field.value))
            }

            /// The whole line with its end, where it is written as we would write it: `name: value`.
            #[inline]
            pub fn line(&self, field: &Field) -> Option<&[u8]> {
                field.line(&self.raw)
            }

            /// The values of all such headers.
            pub fn all(&self, known: Known) -> impl Iterator<Item = &[u8]> {
                let fields = if self.has(known) { self.fields() } else { &[] };
                fields.iter().filter(move |field| field.known == known).map(|field| self.get(field.value))
            }

            /// The values of the headers of a name that need not be known, in any case.
            pub fn named<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
                self.fields()
                    .iter()
                    .filter(|field| self.get(field.name).eq_ignore_ascii_case(name))
                    .map(|field| self.get(field.value))
            }
        }
    };
}

pub(crate) use accessors;

/// What a byte means inside of a header name.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Class {
    Plain,
    Underscore,
    Colon,
    Cr,
    Lf,
    /// Spaces, controls and DEL, which end the request.
    Bad,
    /// Any other byte: the line is invalid, but its end can be trusted.
    Odd,
}

const fn classes() -> [Class; 256] {
    let mut classes = [Class::Odd; 256];
    let mut at = 0;
    while at < 256 {
        classes[at] = match at as u8 {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => Class::Plain,
            b'_' => Class::Underscore,
            b':' => Class::Colon,
            b'\r' => Class::Cr,
            b'\n' => Class::Lf,
            0..=b' ' | 0x7f => Class::Bad,
            _ => Class::Odd,
        };
        at += 1;
    }
    classes
}

static CLASSES: [Class; 256] = classes();

/// Makes spaces of what would end the line that a value stands in (RFC 9110 section 5.5).
pub fn unbreak(value: &mut [u8]) {
    let mut rest = value;
    while let Some(at) = memchr3(b'\r', b'\n', 0, rest) {
        rest[at] = b' ';
        rest = &mut rest[at + 1..];
    }
}

/// How header lines are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Whether `_` is an ordinary character of a name (`underscores_in_headers`).
    pub(crate) underscores: bool,
    /// Whether repeated `HTTP/…` lines are passed over; some old upstreams send their status line twice.
    pub(crate) skip_status_lines: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Start,
    Name,
    Space,
    Value,
    /// CR was read, LF must follow.
    Cr,
    /// CR of the empty line was read.
    LastCr,
    /// Within a line that is passed over.
    Skip,
}

/// The next thing found in a header section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line `name: value`; `odd` tells of characters that a name must not have.
    Field { field: Field, odd: bool },
    /// The empty line.
    End,
    /// All bytes are read; come back with more.
    Partial,
}

/// A line whose end cannot be trusted; `end` is the offset of the byte that nginx shows in its log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadLine {
    pub(crate) end: usize,
}

/// Where the scan of a header section stands. Offsets are those of the buffer given to `next`, whose front must not move.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scan {
    stage: Stage,
    odd: bool,
    /// The next byte to look at.
    pub(crate) pos: usize,
    /// Start of the line that is being read.
    pub(crate) line: usize,
    name_end: usize,
    value: usize,
    value_end: usize,
}

impl Scan {
    pub(crate) fn at(pos: usize) -> Self {
        Self { pos, line: pos, ..Self::default() }
    }

    /// Where the value of the last line ends, without the spaces behind it.
    pub(crate) fn value_end(&self) -> usize {
        self.value_end
    }

    /// The end of the last whole line.
    pub(crate) fn done(&self) -> usize {
        if self.at_line() { self.pos } else { self.line }
    }

    /// Whether the next byte starts a line, so that `ordinary` may be tried.
    #[inline]
    pub(crate) fn at_line(&self) -> bool {
        self.stage == Stage::Start
    }

    /// Whether the empty line is next, CR LF.
    #[inline]
    pub(crate) fn at_end(&self, buf: &[u8]) -> bool {
        buf.get(self.pos..).and_then(<[u8]>::first_chunk) == Some(b"\r\n")
    }

    /// The next line, or what stands in its place.
    pub(crate) fn next(&mut self, buf: &[u8], rules: Rules) -> Result<Line, BadLine> {
        loop {
            match self.stage {
                Stage::Start => {
                    self.line = self.pos;
                    self.odd = false;
                    let Some(&byte) = buf.get(self.pos) else { return Ok(Line::Partial) };
                    match CLASSES[byte as usize] {
                        Class::Cr => {
                            self.stage = Stage::LastCr;
                            self.pos += 1;
                        }
                        Class::Lf => {
                            self.pos += 1;
                            return Ok(Line::End);
                        }
                        Class::Bad | Class::Colon => return Err(BadLine { end: self.pos }),
                        Class::Plain | Class::Underscore | Class::Odd => self.stage = Stage::Name,
                    }
                }
                Stage::Name => {
                    let rest = buf.get(self.pos..).unwrap_or_default();
                    let plain = rest.iter().position(|byte| CLASSES[*byte as usize] != Class::Plain);
                    self.pos += plain.unwrap_or(rest.len());
                    let Some(&byte) = buf.get(self.pos) else { return Ok(Line::Partial) };
                    match CLASSES[byte as usize] {
                        Class::Colon => {
                            self.name_end = self.pos;
                            self.stage = Stage::Space;
                        }
                        Class::Underscore => self.odd |= !rules.underscores,
                        Class::Cr | Class::Lf => {
                            // A line without a colon is a header without a value.
                            self.name_end = self.pos;
                            self.value = self.pos;
                            self.value_end = self.pos;
                            if byte == b'\n' {
                                return Ok(self.field(buf));
                            }
                            self.stage = Stage::Cr;
                        }
                        Class::Odd if rules.skip_status_lines && self.is_status_line(buf) => {
                            self.stage = Stage::Skip
                        }
                        Class::Odd => self.odd = true,
                        Class::Bad => return Err(BadLine { end: self.pos }),
                        Class::Plain => {}
                    }
                    self.pos += 1;
                }
                Stage::Space => {
                    while buf.get(self.pos) == Some(&b' ') {
                        self.pos += 1;
                    }
                    if self.pos >= buf.len() {
                        return Ok(Line::Partial);
                    }
                    self.value = self.pos;
                    self.stage = Stage::Value;
                }
                Stage::Value => {
                    let rest = buf.get(self.pos..).unwrap_or_default();
                    let Some(found) = memchr3(b'\n', b'\r', 0, rest) else {
                        self.pos = buf.len();
                        return Ok(Line::Partial);
                    };
                    self.pos += found;
                    let byte = rest[found];
                    if byte == 0 {
                        return Err(BadLine { end: self.pos });
                    }
                    self.value_end = self.pos;
                    while self.value_end > self.value && buf[self.value_end - 1] == b' ' {
                        self.value_end -= 1;
                    }
                    if byte == b'\n' {
                        return Ok(self.field(buf));
                    }
                    self.pos += 1;
                    self.stage = Stage::Cr;
                }
                Stage::Cr => match buf.get(self.pos) {
                    None => return Ok(Line::Partial),
                    Some(b'\n') => return Ok(self.field(buf)),
                    Some(_) => return Err(BadLine { end: self.value_end }),
                },
                Stage::LastCr => match buf.get(self.pos) {
                    None => return Ok(Line::Partial),
                    Some(b'\n') => {
                        self.pos += 1;
                        self.stage = Stage::Start;
                        return Ok(Line::End);
                    }
                    Some(_) => return Err(BadLine { end: self.line }),
                },
                Stage::Skip => {
                    let rest = buf.get(self.pos..).unwrap_or_default();
                    let Some(found) = memchr::memchr(b'\n', rest) else {
                        self.pos = buf.len();
                        return Ok(Line::Partial);
                    };
                    self.pos += found + 1;
                    self.stage = Stage::Start;
                }
            }
        }
    }

    /// The line that ends with the LF at `pos`.
    fn field(&mut self, buf: &[u8]) -> Line {
        self.pos += 1;
        self.stage = Stage::Start;
        let name = Span::raw(self.line, self.name_end);
        let known = if self.odd { Known::Other } else { Known::of(name.of(buf, &[])) };
        Line::Field {
            field: Field { name, value: Span::raw(self.value, self.value_end), known, usual: false },
            odd: self.odd,
        }
    }

    fn is_status_line(&self, buf: &[u8]) -> bool {
        buf.get(self.line..=self.pos) == Some(b"HTTP/".as_slice())
    }
}

/// How many zero bytes must stand behind what was received, so that `ordinary` can look ahead without looking for the end.
pub(crate) const PADDING: usize = 64;
/// How long a name may be for `ordinary`.
const AHEAD: usize = 32;
const STEP: usize = 16;

/// The line at `pos` and where the next one starts, if all of it is there and it is as most are: a plain name, at most one
/// space before the value and none behind it, CR LF at its end. Any other line, the empty one too, is `Scan::next`'s.
///
/// `padded` is what was received with `PADDING` behind it; no line runs into the padding, since a zero byte ends every search.
#[inline(always)]
pub(crate) fn ordinary(padded: &[u8], pos: usize) -> Option<(Field, usize)> {
    let ahead: &[u8; PADDING] = padded.get(pos..)?.first_chunk()?;
    let window: &[u8; AHEAD] = ahead.first_chunk()?;
    let (halves, _) = window.as_chunks::<STEP>();
    let name_len = match first_of(colons(halves[0])) {
        Some(found) => found,
        None => STEP + first_of(colons(halves[1]))?,
    };
    let known = Known::within(window, name_len);
    if known == Known::Other && !is_plain(window, name_len) {
        return None;
    }
    let space = ahead[name_len + 1] == b' ';
    let value = name_len + 1 + usize::from(space);
    let mut cr = value + STEP;
    if let Some(found) = first_of(controls(*ahead[value..].first_chunk()?)) {
        cr = value + found;
    } else {
        loop {
            let further = padded.get(pos + cr..)?.first_chunk()?;
            if let Some(found) = first_of(controls(*further)) {
                cr += found;
                break;
            }
            cr += STEP;
        }
    }
    let [last, b'\r', b'\n'] = *padded.get(pos + cr - 1..)?.first_chunk()? else { return None };
    if last == b' ' || ahead[value] == b' ' {
        return None;
    }
    let field = Field {
        name: Span::raw(pos, pos + name_len),
        value: Span::raw(pos + value, pos + cr),
        known,
        usual: space,
    };
    Some((field, pos + cr + 2))
}

/// Whether the first `len` bytes are letters, digits and hyphens, and at least one.
#[inline]
fn is_plain(window: &[u8; AHEAD], len: usize) -> bool {
    let within = |bytes: u8x16, least, most| {
        bytes.max(u8x16::splat(least)).simd_eq(bytes) & bytes.min(u8x16::splat(most)).simd_eq(bytes)
    };
    let (halves, _) = window.as_chunks::<STEP>();
    let plain = halves.iter().rev().fold(0, |plain, half| {
        let bytes = u8x16::new(*half);
        // Folding makes no other byte a letter.
        let marks = within(bytes | u8x16::splat(0x20), b'a', b'z')
            | within(bytes, b'0', b'9')
            | bytes.simd_eq(u8x16::splat(b'-'));
        plain << STEP | marks.to_bitmask()
    });
    len > 0 && plain.trailing_ones() as usize >= len
}

/// Marks the colons.
#[inline(always)]
fn colons(bytes: [u8; STEP]) -> u32 {
    u8x16::new(bytes).simd_eq(u8x16::splat(b':')).to_bitmask()
}

/// Marks the bytes below a space.
#[inline(always)]
fn controls(bytes: [u8; STEP]) -> u32 {
    let bytes = u8x16::new(bytes);
    bytes.min(u8x16::splat(b' ' - 1)).simd_eq(bytes).to_bitmask()
}

/// The place of the first mark: one bit stands for each byte, the lowest for the first.
#[inline(always)]
fn first_of(marks: u32) -> Option<usize> {
    // There are sixteen places, which spares the check of an index.
    (marks != 0).then_some(marks.trailing_zeros() as usize % STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_name_is_one_of_plain_bytes() {
        let mut window = [b'x'; AHEAD];
        for at in [0, 1, 7, 8, 20, 31] {
            for byte in 0..=255 {
                window[at] = byte;
                let plain = CLASSES[byte as usize] == Class::Plain;
                assert_eq!(is_plain(&window, at + 1), plain, "{byte} at the end of {}", at + 1);
                assert_eq!(is_plain(&window, AHEAD), plain, "{byte} within");
                assert_eq!(is_plain(&window, at), at > 0, "{byte} behind {at}");
            }
            window[at] = b'x';
        }
    }
}

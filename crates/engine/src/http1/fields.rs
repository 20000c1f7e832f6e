//! The header section of a message: one resumable scanner for requests, responses and trailers, as nginx has one.

use memchr::memchr3;

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

    #[inline]
    pub(crate) fn of<'a>(self, raw: &'a [u8], own: &'a [u8]) -> &'a [u8] {
        let text = if self.start & OWN == 0 { raw } else { own };
        text.get((self.start & !OWN) as usize..(self.end & !OWN) as usize).unwrap_or_default()
    }
}

/// One header line, in the order received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Field {
    /// As the peer spelled it.
    pub name: Span,
    /// Without the spaces around it; tabs stay, as in nginx.
    pub value: Span,
    /// Which header it is.
    pub known: Known,
}

/// The fields of a head with the first of each known name at hand.
#[derive(Clone, Debug)]
pub(crate) struct Fields {
    pub(crate) list: Vec<Field>,
    /// A bit per `Known` seen; `first` is only read where it is set, so that it needs no clearing.
    present: u128,
    first: [u16; Known::COUNT],
}

impl Default for Fields {
    fn default() -> Self {
        Self { list: Vec::new(), present: 0, first: [0; Known::COUNT] }
    }
}

impl Fields {
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.present = 0;
    }

    #[inline]
    pub(crate) fn push(&mut self, field: Field) {
        if self.present & field.known.bit() == 0 {
            self.present |= field.known.bit();
            self.first[field.known as usize] = self.list.len().min(u16::MAX as usize) as u16;
        }
        self.list.push(field);
    }

    #[inline]
    pub(crate) fn has(&self, known: Known) -> bool {
        self.present & known.bit() != 0
    }

    #[inline]
    pub(crate) fn first(&self, known: Known) -> Option<&Field> {
        if !self.has(known) || known == Known::Other {
            return None;
        }
        let at = self.first[known as usize] as usize;
        self.list.get(at..)?.iter().find(|field| field.known == known)
    }
}

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
    Field { name: Span, value: Span, odd: bool },
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

    /// Where the value of the last line starts.
    pub(crate) fn value_start(&self) -> usize {
        self.value
    }

    /// Where it ends, without the spaces behind it.
    pub(crate) fn value_end(&self) -> usize {
        self.value_end
    }

    #[inline]
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
                                return Ok(self.field());
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
                        return Ok(self.field());
                    }
                    self.pos += 1;
                    self.stage = Stage::Cr;
                }
                Stage::Cr => match buf.get(self.pos) {
                    None => return Ok(Line::Partial),
                    Some(b'\n') => return Ok(self.field()),
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
    #[inline]
    fn field(&mut self) -> Line {
        self.pos += 1;
        self.stage = Stage::Start;
        Line::Field {
            name: Span::raw(self.line, self.name_end),
            value: Span::raw(self.value, self.value_end),
            odd: self.odd,
        }
    }

    fn is_status_line(&self, buf: &[u8]) -> bool {
        buf.get(self.line..=self.pos) == Some(b"HTTP/".as_slice())
    }
}

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

    #[inline]
    pub(crate) fn push(&mut self, field: Field) {
        let first = &mut self.first[field.known as usize];
        if *first == NONE {
            *first = self.list.len().min(NONE as usize - 1) as u16;
        }
        self.list.push(field);
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

/// A set of known headers.
pub(crate) type Set = [bool; Known::COUNT];

pub(crate) const fn set(of: &[Known]) -> Set {
    let mut set = [false; Known::COUNT];
    let mut at = 0;
    while at < of.len() {
        set[of[at] as usize] = true;
        at += 1;
    }
    set
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
        if self.stage == Stage::Start
            && let Some(field) = self.ordinary(buf)
        {
            return Ok(Line::Field { field, odd: false });
        }
        self.step(buf, rules)
    }

    /// A whole line with a plain name that ends with CR LF, which is all that most heads have.
    #[inline]
    fn ordinary(&mut self, buf: &[u8]) -> Option<Field> {
        let line = self.pos;
        let text = buf.get(line..)?;
        let name_len = colon(text)?;
        let known = Known::at(text, name_len);
        if known == Known::Other
            && (name_len == 0 || !text[..name_len].iter().all(|byte| CLASSES[*byte as usize] == Class::Plain))
        {
            return None;
        }
        let mut value = name_len + 1;
        while *text.get(value)? == b' ' {
            value += 1;
        }
        let mut end = value + control(text.get(value..)?)?;
        if text.get(end..end + 2)? != b"\r\n" {
            return None;
        }
        self.line = line;
        self.pos = line + end + 2;
        while text[end - 1] == b' ' && end > value {
            end -= 1;
        }
        self.value = line + value;
        self.value_end = line + end;
        Some(Field {
            name: Span::raw(line, line + name_len),
            value: Span::raw(line + value, line + end),
            known,
        })
    }

    /// The general case, byte by byte where need be.
    fn step(&mut self, buf: &[u8], rules: Rules) -> Result<Line, BadLine> {
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
            field: Field { name, value: Span::raw(self.value, self.value_end), known },
            odd: self.odd,
        }
    }

    fn is_status_line(&self, buf: &[u8]) -> bool {
        buf.get(self.line..=self.pos) == Some(b"HTTP/".as_slice())
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Where the first colon is, if it is near and enough bytes are there to look at words.
#[inline]
fn colon(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < 64 {
        let word = u64::from_le_bytes(*text.get(at..)?.first_chunk()?) ^ (ONES * b':' as u64);
        let hit = word.wrapping_sub(ONES) & !word & HIGHS;
        if hit != 0 {
            return Some(at + hit.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    None
}

/// Where the first byte is that may end a value. Short values are looked at here, since a call for vector code only pays for long ones.
#[inline]
fn control(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < 48 {
        let Some(word) = text.get(at..)?.first_chunk() else { break };
        let word = u64::from_le_bytes(*word);
        let hit = word.wrapping_sub(ONES * b' ' as u64) & !word & HIGHS;
        if hit != 0 {
            return Some(at + hit.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    memchr3(b'\n', b'\r', 0, &text[at..]).map(|found| at + found)
}

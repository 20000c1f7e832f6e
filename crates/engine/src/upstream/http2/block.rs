//! A block of fields that an upstream sends, read and judged as nginx does.
//!
//! It was told that there is no table of fields but the one that everybody has (RFC 7541 appendix A). So one that cannot be read says
//! nothing about those that follow.

use std::borrow::Cow;

use super::stream::{Broken, Kind};
use crate::http2::frame::HEADER;
use crate::http2::hpack::{Fields, Pieces, Rest, Stop, entry, string};

pub(super) struct Block {
    pub(super) stream: u32,
    /// The stream ends with it.
    pub(super) ends: bool,
    /// No CONTINUATION follows.
    whole: bool,
    /// It is behind a body.
    behind: bool,
    /// Nobody gets it.
    pub(super) dropped: bool,
    pieces: Pieces,
    /// Bytes of names and values that may come yet.
    room: usize,
    /// Those of frames, where there is a bound: nginx has a head in one buffer.
    frames: Option<usize>,
    status: Option<u16>,
    fields: Fields,
}

/// What a block has turned out to be.
pub(super) enum Came {
    /// A head that another follows.
    Interim(u16, Fields),
    Answer(u16, Fields),
    Trailers(Fields),
}

/// Why a block is none.
enum Bad {
    /// All that is said of it.
    Told(String),
    /// The same, with what it was to be behind it.
    Malformed(Cow<'static, str>),
}

impl<S: Into<Cow<'static, str>>> From<S> for Bad {
    fn from(message: S) -> Self {
        Self::Malformed(message.into())
    }
}

impl Block {
    /// Of a head, or of fields `behind` a body, that may have so many bytes.
    pub(super) fn new(stream: u32, behind: bool, room: usize) -> Self {
        Self {
            stream,
            ends: false,
            whole: false,
            behind,
            dropped: false,
            pieces: Pieces::default(),
            room,
            frames: (!behind).then_some(room),
            status: None,
            fields: Fields::default(),
        }
    }

    /// Another frame of it begins, of which there are so many bytes beside fields. `whole` is whether no more follows.
    pub(super) fn goes_on(&mut self, beside: usize, whole: bool) -> Result<(), Broken> {
        self.whole = whole;
        let Some(frames) = &mut self.frames else { return Ok(()) };
        *frames = frames.checked_sub(HEADER + beside).ok_or_else(|| broken(too_big(), false))?;
        Ok(())
    }

    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Takes the next bytes; `more` are known to follow in the frame.
    pub(super) fn take(&mut self, piece: &[u8], more: bool) -> Result<(), Broken> {
        let fits = self.frames.unwrap_or(usize::MAX).min(piece.len());
        if let Some(frames) = &mut self.frames {
            *frames -= fits;
        }
        let follows = more || !self.whole || fits < piece.len();
        let mut pieces = std::mem::take(&mut self.pieces);
        let taken = pieces.take(&piece[..fits], follows, |bytes| self.read(bytes));
        self.pieces = pieces;
        let taken = taken.and_then(|()| if fits < piece.len() { Err(too_big()) } else { Ok(()) });
        taken.map_err(|bad| broken(bad, self.behind))
    }

    /// Bytes of it.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        let fields = self.fields.iter().map(|(name, value)| name.len() + value.len());
        self.pieces.len() + fields.sum::<usize>()
    }

    /// What it is, once all of it is here.
    pub(super) fn done(self) -> Result<Came, Broken> {
        let judged = match (self.behind, self.status) {
            _ if !self.pieces.is_empty() => Err("upstream sent truncated http2 header".into()),
            (true, _) if self.ends => return Ok(Came::Trailers(self.fields)),
            (true, _) => Err(Bad::Told("upstream sent trailer without end stream flag".into())),
            (false, None) => Err(Bad::Told("upstream sent no :status header".into())),
            (false, Some(103)) if self.ends => Err(Bad::Told("upstream prematurely closed stream".into())),
            (false, Some(103)) => return Ok(Came::Interim(103, self.fields)),
            (false, Some(status)) => return Ok(Came::Answer(status, self.fields)),
        };
        judged.map_err(|bad| broken(bad, self.behind))
    }

    /// What is wrong with the frames that it is in.
    pub(super) fn misframed(behind: bool, message: String) -> Broken {
        broken(Bad::Malformed(message.into()), behind)
    }

    /// Reads fields, and says of how many bytes.
    fn read(&mut self, bytes: &[u8]) -> Result<usize, Bad> {
        // A number that could only be too long is so at once.
        let mut rest = Rest { bytes, more: true };
        let mut field = vec![];
        while !rest.bytes.is_empty() {
            let left = rest.bytes.len();
            field.clear();
            match self.next(&mut rest, &mut field) {
                Ok(()) => {}
                Err(Stop::Cut) => return Ok(bytes.len() - left),
                Err(Stop::Bad(bad)) => return Err(bad),
            }
        }
        Ok(bytes.len())
    }

    /// Takes a field, or what is said of the table: that there is none. `text` is room for a name and a value.
    fn next(&mut self, rest: &mut Rest<'_>, text: &mut Vec<u8>) -> Result<(), Stop<Bad>> {
        let &[first, ..] = rest.bytes else { return Err(Stop::Cut) };
        rest.bytes = &rest.bytes[1..];
        match first {
            0x80.. => {
                let (name, value) = indexed(first & 0x7f)?;
                return Ok(self.judge(name, value)?);
            }
            0x20..0x40 => {
                let size = first & 0x1f;
                let message = format!("upstream sent invalid http2 dynamic table size update: {size}");
                return if size == 0 { Ok(()) } else { Err(Bad::from(message).into()) };
            }
            0x40..0x80 | 0..0x20 => {}
        }
        let index = match first {
            0x40.. => first & 0x3f,
            0x0f | 0x1f => {
                let (&more, behind) = rest.bytes.split_first().ok_or(Stop::Cut)?;
                rest.bytes = behind;
                if more & 0x80 != 0 {
                    let message = "upstream sent http2 table index with continuation flag";
                    return Err(Bad::from(message).into());
                }
                0x0f + more
            }
            0..0x40 => first & 0x0f,
        };
        let literal = index == 0;
        if literal {
            if rest.bytes.first().is_some_and(|length| length & 0x7f == 0) {
                return Err(Bad::from("upstream sent zero http2 header name length").into());
            }
            self.string(rest, text, "name")?;
        } else {
            text.extend_from_slice(indexed(index)?.0);
        }
        let middle = text.len();
        self.string(rest, text, "value")?;
        let (name, value) = text.split_at(middle);
        if literal && !is_name(name) || value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
            return Err(Bad::from(format!("upstream sent invalid header: \"{}\"", shown(name, value))).into());
        }
        Ok(self.judge(name, value)?)
    }

    fn string(&self, rest: &mut Rest<'_>, text: &mut Vec<u8>, what: &str) -> Result<(), Stop<Bad>> {
        let long = match what {
            "name" => "upstream sent too large http2 header name length",
            _ => "upstream sent too large http2 header value length",
        };
        let taken =
            string(rest, text, long.into(), "upstream sent invalid encoded header".into(), |n, coded| {
                // As many bytes as there are if all of them have the shortest code.
                let length = if coded { n * 8 / 5 } else { n };
                if length > self.room { Err(Cow::from(format!("{long}: {length}"))) } else { Ok(()) }
            });
        taken.map_err(|stop| match stop {
            Stop::Cut => Stop::Cut,
            Stop::Bad(message) => Stop::Bad(Bad::Malformed(message)),
        })
    }

    fn judge(&mut self, name: &[u8], value: &[u8]) -> Result<(), Bad> {
        let large = "upstream sent too large http2 header";
        self.room = self.room.checked_sub(name.len() + value.len()).ok_or(large)?;
        let pseudo = name.first() == Some(&b':');
        if self.behind && pseudo {
            return Err(Bad::Told(format!("upstream sent invalid trailer \"{}\"", shown(name, value))));
        }
        if !self.behind && pseudo {
            return self.judge_status(name, value).map_err(Bad::Told);
        }
        if !self.behind && self.status.is_none() {
            return Err(Bad::Told("upstream sent no :status header".into()));
        }
        self.fields.push(name, value);
        Ok(())
    }

    fn judge_status(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        if name != b":status" {
            return Err(format!("upstream sent invalid header \"{}\"", shown(name, value)));
        }
        if self.status.is_some() {
            return Err("upstream sent duplicate :status header".into());
        }
        let text = String::from_utf8_lossy(value);
        let &[b'0'..=b'9', b'0'..=b'9', b'0'..=b'9'] = value else {
            return Err(format!("upstream sent invalid :status \"{text}\""));
        };
        match text.parse() {
            Ok(status @ (103 | 200..)) => self.status = Some(status),
            Ok(_) | Err(_) => return Err(format!("upstream sent unexpected :status \"{text}\"")),
        }
        Ok(())
    }
}

/// An entry of the table.
fn indexed(index: u8) -> Result<(&'static [u8], &'static [u8]), Bad> {
    let none = || Bad::from(format!("upstream sent invalid http2 table index: {index}"));
    entry(index.into()).ok_or_else(none)
}

/// Whether a name is one, but for what a colon in front makes of it.
fn is_name(name: &[u8]) -> bool {
    let bad = |byte: &u8| matches!(byte, 0..=b' ' | b'A'..=b'Z' | 0x7f);
    !name.is_empty() && !name.iter().any(bad) && !name[1..].contains(&b':')
}

fn too_big() -> Bad {
    Bad::Told("upstream sent too big header".into())
}

fn shown(name: &[u8], value: &[u8]) -> String {
    String::from_utf8_lossy(&[name, b": ", value].concat()).into_owned()
}

fn broken(bad: Bad, behind: bool) -> Broken {
    let (message, then) = match bad {
        Bad::Told(message) => (message, None),
        Bad::Malformed(message) if behind => (message.into_owned(), Some("upstream sent invalid trailer")),
        Bad::Malformed(message) => (message.into_owned(), Some("upstream sent invalid header")),
    };
    Broken { message, then, system: None, kind: Kind::Malformed }
}

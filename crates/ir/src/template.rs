//! Values with variables in them: nginx's complex values, parsed once.

use crate::lowering::{Call, Fault};
use crate::program::VariableId;

/// A piece of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    Literal(Box<[u8]>),
    Variable(VariableId),
    /// `$1` to `$9`: a capture of the last regular expression that matched.
    Capture(u8),
}

/// Text with variables, `${name}` or `$name`, and captures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Template {
    pub parts: Vec<Part>,
}

impl Template {
    pub fn literal(text: &[u8]) -> Self {
        let parts = if text.is_empty() { vec![] } else { vec![Part::Literal(text.into())] };
        Self { parts }
    }

    /// The text, where no variable is in it.
    pub fn as_literal(&self) -> Option<&[u8]> {
        match self.parts.as_slice() {
            [] => Some(b""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Reads a text with variables.
    ///
    /// # Errors
    /// `invalid variable name`, and `the closing bracket in "…" variable is missing`.
    pub fn parse(text: &[u8], call: &mut Call<'_>) -> Result<Self, Fault> {
        let mut parts = vec![];
        let mut literal = vec![];
        let mut rest = text;
        while let Some(at) = memchr::memchr(b'$', rest) {
            literal.extend_from_slice(&rest[..at]);
            rest = &rest[at + 1..];
            if let [digit @ b'1'..=b'9', after @ ..] = rest {
                flush(&mut literal, &mut parts);
                parts.push(Part::Capture(digit - b'0'));
                rest = after;
                continue;
            }
            let braced = rest.first() == Some(&b'{');
            let name = if braced { &rest[1..] } else { rest };
            let length = name.iter().position(|b| !is_name_byte(*b)).unwrap_or(name.len());
            if braced && !name.is_empty() && name.get(length) != Some(&b'}') {
                let shown = String::from_utf8_lossy(&name[..length]).into_owned();
                return Err(call.fail(format!("the closing bracket in \"{shown}\" variable is missing")));
            }
            if length == 0 {
                return Err(call.fail("invalid variable name"));
            }
            flush(&mut literal, &mut parts);
            let text = std::str::from_utf8(&name[..length]).expect("names are ASCII").to_ascii_lowercase();
            parts.push(Part::Variable(call.variable(&text)));
            rest = &name[length + usize::from(braced)..];
        }
        literal.extend_from_slice(rest);
        flush(&mut literal, &mut parts);
        Ok(Self { parts })
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn flush(literal: &mut Vec<u8>, parts: &mut Vec<Part>) {
    if !literal.is_empty() {
        parts.push(Part::Literal(std::mem::take(literal).into()));
    }
}

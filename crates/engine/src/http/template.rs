//! Templates ready for evaluation: each variable is a function or a slot, found once at load.

use weir_ir::VariableId;

use crate::contract::{Get, GetOf};
use crate::http::Exchange;
use crate::http1::Known;

/// Text with variables.
#[derive(Clone, Default)]
pub struct Template {
    pub(crate) pieces: Vec<Piece>,
}

#[derive(Clone)]
pub(crate) enum Piece {
    Literal(Box<[u8]>),
    Get(Get),
    GetOf(GetOf, Box<str>),
    Slot(VariableId),
    /// What the configuration made of one of weir's own or of a family, or that one.
    SlotOr(VariableId, Box<Piece>),
    /// `$http_…` of a known header.
    Header(Known),
    Capture(u8),
}

/// One variable, ready to be asked for.
#[derive(Clone)]
pub struct Reference {
    pub(crate) piece: Piece,
}

impl Reference {
    /// Appends the value; false where the variable has none.
    pub fn append(&self, x: &Exchange, out: &mut Vec<u8>) -> bool {
        self.piece.append(x, out)
    }
}

/// Where a value goes that a directive gives a variable.
#[derive(Clone)]
pub enum Assign {
    Slot(VariableId),
    /// A variable of weir's own that can be written.
    Own(fn(&mut Exchange, &[u8])),
}

impl Assign {
    pub fn set(&self, x: &mut Exchange, value: Vec<u8>) {
        match self {
            Assign::Slot(id) => x.set_variable(*id, value),
            Assign::Own(set) => set(x, &value),
        }
    }
}

impl Template {
    pub fn literal(text: &[u8]) -> Self {
        Self { pieces: if text.is_empty() { vec![] } else { vec![Piece::Literal(text.into())] } }
    }

    /// The text, where no variable is in it.
    pub fn as_literal(&self) -> Option<&[u8]> {
        match self.pieces.as_slice() {
            [] => Some(b""),
            [Piece::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Appends the value; variables without a value add nothing.
    pub fn append(&self, x: &Exchange, out: &mut Vec<u8>) {
        for piece in &self.pieces {
            piece.append(x, out);
        }
    }

    pub fn value(&self, x: &Exchange) -> Vec<u8> {
        let mut out = Vec::new();
        self.append(x, &mut out);
        out
    }

    /// As [`Template::append`], with every capture written by `capture`: for escaping.
    pub fn append_with(&self, x: &Exchange, out: &mut Vec<u8>, capture: impl Fn(&[u8], &mut Vec<u8>)) {
        for piece in &self.pieces {
            if let Piece::Capture(n) = piece {
                let mut value = Vec::new();
                x.capture(*n, &mut value);
                capture(&value, out);
            } else {
                piece.append(x, out);
            }
        }
    }

    /// Calls `each` for every variable and literal by itself, with whether it has a value: for escaping.
    pub fn each(&self, x: &Exchange, mut each: impl FnMut(Segment<'_>)) {
        let mut value = Vec::new();
        for piece in &self.pieces {
            if let Piece::Literal(text) = piece {
                each(Segment::Literal(text));
                continue;
            }
            value.clear();
            if piece.append(x, &mut value) {
                each(Segment::Value(&value));
            } else {
                each(Segment::Missing);
            }
        }
    }

    /// nginx's truth of a predicate value: neither empty nor `0`.
    pub fn is_true(&self, x: &Exchange) -> bool {
        let value = self.value(x);
        !value.is_empty() && value != b"0"
    }
}

/// A piece of an evaluated template.
#[derive(Clone, Copy, Debug)]
pub enum Segment<'a> {
    Literal(&'a [u8]),
    Value(&'a [u8]),
    /// A variable that has no value.
    Missing,
}

impl Piece {
    pub(crate) fn append(&self, x: &Exchange, out: &mut Vec<u8>) -> bool {
        match self {
            Piece::Literal(text) => {
                out.extend_from_slice(text);
                true
            }
            Piece::Get(get) => get(x, out),
            Piece::GetOf(get, rest) => get(x, rest, out),
            Piece::Slot(id) => x.variable(*id, out),
            Piece::SlotOr(id, own) => x.variable(*id, out) || own.append(x, out),
            Piece::Header(known) => crate::http::variables::known(x, *known, out),
            Piece::Capture(n) => x.capture(*n, out),
        }
    }
}

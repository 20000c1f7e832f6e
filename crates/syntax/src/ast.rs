//! The tree of a configuration: what was written, where, and in which order nginx would meet it.
//!
//! Values are bytes, since a configuration may hold any byte. Nothing here knows the name of a directive.

use crate::{Diagnostic, Place, Sources};

/// Names one text of a [`Sources`]; only meaningful together with the `Sources` of the same [`Ast`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub(crate) u32);

impl FileId {
    /// The text of the `-g` option. It always exists, empty when the option was not given.
    pub const COMMAND_LINE: FileId = FileId(0);
}

/// The bytes `lo..hi` of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    pub file: FileId,
    pub lo: u32,
    pub hi: u32,
}

/// Which quotes a word was written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quote {
    Single,
    Double,
}

impl Quote {
    pub(crate) fn byte(self) -> u8 {
        match self {
            Quote::Single => b'\'',
            Quote::Double => b'"',
        }
    }
}

/// One word of a directive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The word without its quotes; `\" \' \\ \t \r \n` are resolved, every other backslash is kept.
    pub value: Box<[u8]>,
    /// The word as written, quotes included.
    pub span: Span,
    pub quote: Option<Quote>,
}

/// `name argument ... ;` or `name argument ... { ... }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// The name and the arguments; never empty, though the name itself may be (`""`).
    pub words: Vec<Word>,
    pub block: Option<Block>,
    /// The line that nginx reports: where the terminating `;` or `{` was read. From 1.
    pub line: u32,
    pub file: FileId,
}

impl Directive {
    pub fn name(&self) -> &[u8] {
        self.words.first().map_or(&[], |word| &word.value)
    }

    /// The words after the name.
    pub fn args(&self) -> &[Word] {
        self.words.get(1..).unwrap_or_default()
    }

    /// Where nginx says that this directive is.
    pub fn place(&self) -> Place {
        Place::of(self.file, self.line)
    }

    /// From the first byte of the name to the last byte of the last argument.
    pub fn span(&self) -> Span {
        let lo = self.words.first().map_or(0, |word| word.span.lo);
        let hi = self.words.last().map_or(lo, |word| word.span.hi);
        Span { file: self.file, lo, hi }
    }

    /// A sentence for `help` when the words stand on several lines, as they do where a `;` was forgotten.
    pub fn missing_semicolon(&self, sources: &Sources) -> Option<String> {
        let line = |word: &Word| sources.line(self.file, word.span.lo);
        let pair = self.words.windows(2).find(|pair| line(&pair[0]) != line(&pair[1]))?;
        let last = String::from_utf8_lossy(&pair[0].value);
        Some(format!("is a \";\" missing after \"{last}\" on line {}?", line(&pair[0])))
    }
}

/// What stands between `{` and `}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub items: Vec<Item>,
    /// The file of both braces: a block never ends in another file than it began.
    pub file: FileId,
    /// The line of the closing brace, or the last line where the brace is missing.
    pub close_line: u32,
    pub open: Span,
    /// The closing brace; `None` where it is missing, which an [`Item::Error`] reports.
    pub close: Option<Span>,
}

impl Block {
    /// Where nginx says that an error is which it finds once the block has been read.
    pub fn place(&self) -> Place {
        Place::of(self.file, self.close_line)
    }
}

/// An `include` directive with what it brought in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Include {
    /// As written. Blocks whose entries are not directives may take it as an entry named `include`.
    pub directive: Directive,
    /// The items of each file, one file after the other, and the errors met on the way.
    pub items: Vec<Item>,
}

/// One step in the order in which nginx reads a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Directive(Directive),
    Include(Include),
    /// nginx would stop here with this error, unless it found an earlier one.
    Error(Diagnostic),
}

/// A whole configuration.
#[derive(Clone, Debug)]
pub struct Ast {
    pub sources: Sources,
    /// The directives of the `-g` option, which nginx reads before the file.
    pub globals: Vec<Item>,
    pub items: Vec<Item>,
}

impl Ast {
    /// The syntax errors in the order in which nginx would meet them.
    pub fn errors(&self) -> Vec<&Diagnostic> {
        let mut found = Vec::new();
        errors(&self.globals, &mut found);
        errors(&self.items, &mut found);
        found
    }
}

fn errors<'a>(items: &'a [Item], found: &mut Vec<&'a Diagnostic>) {
    for item in items {
        match item {
            Item::Error(error) => found.push(error),
            Item::Include(include) => {
                errors(&include.items, found);
                if let Some(block) = &include.directive.block {
                    errors(&block.items, found);
                }
            }
            Item::Directive(directive) => {
                if let Some(block) = &directive.block {
                    errors(&block.items, found);
                }
            }
        }
    }
}

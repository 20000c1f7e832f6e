//! The texts that a configuration was read from, in the order of their first reading.

use std::collections::HashMap;
use std::sync::Arc;

use crate::{FileId, Span};

#[derive(Clone, Debug)]
struct Source {
    path: Arc<[u8]>,
    text: Arc<[u8]>,
    /// The offset of each line feed, in order.
    feeds: Arc<[u32]>,
}

impl Source {
    fn new(path: &[u8], text: Arc<[u8]>) -> Source {
        let feeds = memchr::memchr_iter(b'\n', &text).map(|at| at as u32).collect();
        Source { path: path.into(), text, feeds }
    }
}

/// Every text of a configuration; cheap to clone.
#[derive(Clone, Debug)]
pub struct Sources {
    all: Vec<Source>,
    ids: HashMap<Arc<[u8]>, FileId>,
}

impl Sources {
    pub(crate) fn new(globals: &[u8]) -> Sources {
        Sources { all: vec![Source::new(b"command line", globals.into())], ids: HashMap::new() }
    }

    pub(crate) fn find(&self, path: &[u8]) -> Option<FileId> {
        self.ids.get(path).copied()
    }

    /// `text` is below 4 GiB, which the parser has made sure of.
    pub(crate) fn add(&mut self, path: &[u8], text: Arc<[u8]>) -> FileId {
        let id = FileId(self.all.len() as u32);
        let source = Source::new(path, text);
        self.ids.insert(source.path.clone(), id);
        self.all.push(source);
        id
    }

    /// The files in the order of their first reading, each once, without the command line: what `-T` prints.
    pub fn files(&self) -> impl Iterator<Item = FileId> + '_ {
        (1..self.all.len()).map(|id| FileId(id as u32))
    }

    /// The path as it was opened.
    pub fn path(&self, file: FileId) -> &[u8] {
        self.all.get(file.0 as usize).map_or(&[], |source| &source.path)
    }

    pub fn text(&self, file: FileId) -> &[u8] {
        self.all.get(file.0 as usize).map_or(&[], |source| &source.text)
    }

    pub(crate) fn shared(&self, file: FileId) -> Arc<[u8]> {
        self.all.get(file.0 as usize).map_or_else(|| Arc::from([]), |source| source.text.clone())
    }

    /// The bytes as written.
    pub fn slice(&self, span: Span) -> &[u8] {
        self.text(span.file).get(span.lo as usize..span.hi as usize).unwrap_or_default()
    }

    /// The line of the byte at `offset`, from 1; a line feed belongs to the line that it ends.
    pub fn line(&self, file: FileId, offset: u32) -> u32 {
        let Some(source) = self.all.get(file.0 as usize) else { return 1 };
        1 + source.feeds.partition_point(|&feed| feed < offset) as u32
    }

    /// Where `line` (from 1) begins and ends, without its line feed; `None` past the last line.
    pub fn line_span(&self, file: FileId, line: u32) -> Option<Span> {
        let source = self.all.get(file.0 as usize)?;
        let at = (line as usize).checked_sub(1)?;
        let lo = match at.checked_sub(1) {
            Some(before) => source.feeds.get(before)? + 1,
            None => 0,
        };
        let hi = source.feeds.get(at).copied().unwrap_or(source.text.len() as u32);
        Some(Span { file, lo, hi })
    }
}

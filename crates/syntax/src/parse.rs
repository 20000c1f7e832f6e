//! Statements to items: blocks, includes, and how to go on after an error.
//!
//! nginx stops at its first error. We go on to find the further ones, but always report the same first one.

use std::sync::Arc;

use nom::Offset;

use crate::files::{EIO, EISDIR, EMFILE};
use crate::token::{self, End, Fault, Lexeme, Reason};
use crate::{
    Ast, Block, Diagnostic, Directive, FileId, Files, Include, Item, Level, Place, Sources, Span, Word,
};

/// The size of nginx's buffer for a configuration file in bytes, which every word and comment must fit into.
const BUFFER: usize = 4096;

/// How deep blocks and included files may nest together; also keeps the walkers of the tree from overflowing
/// their stack.
const MAX_DEPTH: usize = 128;

/// How many files may be included in all, each time counted. A few files that include one another twice each
/// would else fill the memory.
const MAX_INCLUDES: usize = 65_536;

/// How many errors are worth reading.
const MAX_ERRORS: usize = 100;

/// Reads the configuration file at the absolute `path`, with all that it includes, and before it the text of the
/// `-g` option. Relative includes are below `prefix`, the directory of the main configuration file.
///
/// Never fails: what is wrong stands as [`Item::Error`] where nginx would meet it.
pub fn parse(files: &dyn Files, path: &[u8], prefix: &[u8], globals: Option<&[u8]>) -> Ast {
    let sources = Sources::new(globals.unwrap_or_default());
    let mut parser = Parser { files, prefix, sources, open: Vec::new(), depth: 0, includes: 0, errors: 0 };
    let globals = parser.text(FileId::COMMAND_LINE);
    let items = parser.file(path, Place::None, None);
    Ast { sources: parser.sources, globals, items }
}

struct Parser<'f> {
    files: &'f dyn Files,
    prefix: &'f [u8],
    sources: Sources,
    /// The files being read, the innermost last.
    open: Vec<FileId>,
    depth: usize,
    includes: usize,
    errors: usize,
}

/// One pass over one text.
struct Reader {
    file: FileId,
    text: Arc<[u8]>,
    pos: usize,
    /// The end of the text has been complained about: it is not missing once more for each open block.
    ended: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Text,
    Block { open: Span },
}

impl Reader {
    fn span(&self, lo: usize, hi: usize) -> Span {
        Span { file: self.file, lo: lo as u32, hi: hi as u32 }
    }

    fn limit(&self) -> usize {
        match self.file {
            FileId::COMMAND_LINE => usize::MAX,
            _ => BUFFER,
        }
    }

    fn word(&self, lexeme: &Lexeme<'_>) -> Word {
        Word { value: lexeme.value(), span: self.lexeme_span(lexeme), quote: lexeme.quote }
    }

    fn lexeme_span(&self, lexeme: &Lexeme<'_>) -> Span {
        let lo = self.text.as_ref().offset(lexeme.raw);
        self.span(lo, lo + lexeme.raw.len())
    }
}

impl Parser<'_> {
    fn text(&mut self, file: FileId) -> Vec<Item> {
        let mut reader = Reader { file, text: self.sources.shared(file), pos: 0, ended: false };
        let mut items = Vec::new();
        self.items(&mut reader, Within::Text, &mut items);
        items
    }

    /// Appends what stands before the closing brace, which it returns, or the end of the text.
    fn items(&mut self, reader: &mut Reader, within: Within, items: &mut Vec<Item>) -> Option<Span> {
        while !self.is_stopped() {
            let text = reader.text.clone();
            let statement = match token::statement(&text[reader.pos..], reader.limit()) {
                Ok(statement) => statement,
                Err(fault) => {
                    self.recover(reader, within, fault, items);
                    continue;
                }
            };
            let at = text.offset(statement.at);
            reader.pos = (at + 1).min(text.len());
            match (statement.end, within) {
                (End::Close, Within::Block { .. }) => return Some(reader.span(at, at + 1)),
                (End::Close, Within::Text) => {
                    let span = reader.span(at, at + 1);
                    let error = self.error(span, "unexpected \"}\"").help("no block is open here");
                    items.push(Item::Error(error));
                }
                (End::Eof, Within::Block { open }) if !reader.ended => {
                    reader.ended = true;
                    let line = self.sources.line(reader.file, open.lo);
                    let error = self
                        .error(reader.span(at, at), "unexpected end of file, expecting \"}\"")
                        .span(open)
                        .help(format!("the block opened on line {line} is not closed"));
                    items.push(Item::Error(error));
                    return None;
                }
                (End::Eof, _) => return None,
                (End::Semicolon | End::Open, _) => {
                    let words = statement.words.iter().map(|word| reader.word(word)).collect();
                    let line = self.sources.line(reader.file, at as u32);
                    let directive = Directive { words, block: None, line, file: reader.file };
                    let open = (statement.end == End::Open).then(|| reader.span(at, at + 1));
                    self.directive(reader, directive, open, items);
                }
            }
        }
        None
    }

    fn directive(
        &mut self,
        reader: &mut Reader,
        mut directive: Directive,
        open: Option<Span>,
        items: &mut Vec<Item>,
    ) {
        if let Some(open) = open {
            if reader.file == FileId::COMMAND_LINE {
                let error = self.error(open, "block directives are not supported in -g option");
                items.push(Item::Error(error));
                self.skip_block(reader, open, items);
                return;
            }
            if self.depth >= MAX_DEPTH {
                let error = self.error(open, format!("more than {MAX_DEPTH} blocks are nested"));
                items.push(Item::Error(error));
                self.stop();
                return;
            }
        }
        let is_include = directive.name() == b"include";
        let mut brought = Vec::new();
        if is_include {
            self.include(&directive, open, &mut brought);
        }
        if let Some(open) = open {
            directive.block = Some(self.block(reader, open));
        }
        items.push(match is_include {
            true => Item::Include(Include { directive, items: brought }),
            false => Item::Directive(directive),
        });
    }

    fn block(&mut self, reader: &mut Reader, open: Span) -> Block {
        let mut items = Vec::new();
        self.depth += 1;
        let close = self.items(reader, Within::Block { open }, &mut items);
        self.depth -= 1;
        let end = close.map_or(reader.text.len() as u32, |close| close.lo);
        let close_line = self.sources.line(reader.file, end);
        Block { items, file: reader.file, close_line, open, close }
    }

    /// Reads a block whose opening has failed, for the sake of its errors.
    fn skip_block(&mut self, reader: &mut Reader, open: Span, items: &mut Vec<Item>) {
        if self.depth >= MAX_DEPTH {
            self.stop();
            return;
        }
        let block = self.block(reader, open);
        keep_errors(block.items, items);
    }

    fn include(&mut self, directive: &Directive, open: Option<Span>, items: &mut Vec<Item>) {
        let fail = |parser: &mut Self, message: &str| {
            let error = Diagnostic::emerg(message).at(directive.place()).span(directive.span());
            let help = directive.missing_semicolon(&parser.sources);
            parser.count(Diagnostic { help, ..error })
        };
        if open.is_some() {
            let error = fail(self, "directive \"include\" is not terminated by \";\"");
            items.push(Item::Error(error));
            return;
        }
        let [_, word] = directive.words.as_slice() else {
            let error = fail(self, "invalid number of arguments in \"include\" directive");
            items.push(Item::Error(error));
            return;
        };
        let name = full_name(self.prefix, &word.value);
        let place = directive.place();
        if !name.iter().any(|c| matches!(c, b'*' | b'?' | b'[')) {
            items.append(&mut self.file(&name, place, Some(word.span)));
            return;
        }
        match self.files.glob(&name) {
            Ok(paths) => {
                for path in paths {
                    items.append(&mut self.file(&path, place, Some(word.span)));
                }
            }
            Err(error) => {
                let error = failed("glob()", &name, &error).at(place).span(word.span);
                items.push(Item::Error(self.count(error)));
            }
        }
    }

    /// The items of the file at `path`, which the text at `place` names with the word at `span`.
    fn file(&mut self, path: &[u8], place: Place, span: Option<Span>) -> Vec<Item> {
        if self.is_stopped() {
            return Vec::new();
        }
        let fail = |parser: &mut Self, error: Diagnostic| {
            vec![Item::Error(parser.count(Diagnostic { span, ..error }))]
        };
        let id = match self.read(path, place) {
            Ok(id) => id,
            Err(error) => return fail(self, error),
        };
        // nginx opens a file that includes itself until it runs out of descriptors. The second time through is
        // kept, since it is there that nginx finds the duplicates.
        let again = self.open.iter().filter(|&&open| open == id).count();
        self.includes += 1;
        let help = if again >= 2 {
            "the file includes itself"
        } else if self.depth >= MAX_DEPTH {
            "too many files and blocks are nested"
        } else if self.includes > MAX_INCLUDES {
            "too many files are included"
        } else {
            self.depth += 1;
            self.open.push(id);
            let items = self.text(id);
            self.open.pop();
            self.depth -= 1;
            return items;
        };
        let error = Diagnostic::emerg(quote("open()", path)).errno(EMFILE).at(place).help(help);
        let items = fail(self, error);
        self.stop();
        items
    }

    fn read(&mut self, path: &[u8], place: Place) -> Result<FileId, Diagnostic> {
        if let Some(id) = self.sources.find(path) {
            return Ok(id);
        }
        match self.files.read(path) {
            Ok(text) if u32::try_from(text.len()).is_err() => {
                Err(Diagnostic::emerg([b"\"", path, b"\" is too large"].concat()).at(place))
            }
            Ok(text) => Ok(self.sources.add(path, text)),
            // nginx notices these only when it reads, and logs them without a place.
            Err(error) if matches!(error.raw_os_error(), Some(EISDIR | EIO)) => {
                Err(Diagnostic { level: Level::Crit, ..failed("pread()", path, &error) })
            }
            Err(error) => Err(failed("open()", path, &error).at(place)),
        }
    }

    /// Reports a fault and moves the reader to where the next directive may begin.
    fn recover(&mut self, reader: &mut Reader, within: Within, fault: Fault<'_>, items: &mut Vec<Item>) {
        let text = reader.text.clone();
        let at = text.offset(fault.at);
        let last = fault.last.map(|word| reader.lexeme_span(&word));
        let open = fault.open.map(|open| text.offset(open));
        let quote_help = |parser: &Self, lo: usize| {
            let line = parser.sources.line(reader.file, lo as u32);
            format!("the quote opened on line {line} is not closed")
        };
        let error = match fault.reason {
            Reason::Unexpected(c) => {
                let error = self.error(reader.span(at, at + 1), [b"unexpected \"", &[c][..], b"\""].concat());
                self.explain_unexpected(reader, c, last, error)
            }
            Reason::Ended => {
                let message = match reader.file {
                    FileId::COMMAND_LINE => "unexpected end of parameter, expecting \";\"",
                    _ => "unexpected end of file, expecting \";\" or \"}\"",
                };
                let error = self.error(reader.span(at, at), message);
                match (open, last) {
                    (Some(lo), _) => error.span(reader.span(lo, lo + 1)).help(quote_help(self, lo)),
                    (None, Some(last)) => error.span(last).help("is a \";\" missing here?"),
                    (None, None) => error,
                }
            }
            Reason::TooLong(Some(quote)) => {
                let mark = [quote.byte()];
                let message =
                    [b"too long parameter, probably missing terminating \"", &mark[..], b"\" character"]
                        .concat();
                self.error(reader.span(at, at + 1), message).help(quote_help(self, at))
            }
            Reason::TooLong(None) => {
                let shown = &text[at..(at + 10).min(text.len())];
                let message = [b"too long parameter \"", shown, b"...\" started"].concat();
                let help = format!("a word or a comment may have up to {} bytes", BUFFER - 1);
                self.error(reader.span(at, at + shown.len()), message).help(help)
            }
        };
        items.push(Item::Error(error));
        self.resume(reader, within, fault.reason, open, at, items);
    }

    fn explain_unexpected(
        &self,
        reader: &Reader,
        c: u8,
        last: Option<Span>,
        error: Diagnostic,
    ) -> Diagnostic {
        let Some(last) = last else {
            return match c {
                b'{' => error.help("a block needs a name before its \"{\""),
                _ => error.help("nothing stands before this \";\""),
            };
        };
        let text = String::from_utf8_lossy(self.sources.slice(last));
        if c == b'}' {
            return error.span(last).help(format!("is a \";\" missing after {text}?"));
        }
        let (first, end) = (self.sources.line(reader.file, last.lo), self.sources.line(reader.file, last.hi));
        if first == end {
            return error.help(format!("a space or \";\" is missing after {text}"));
        }
        error.help(format!("the quote opened on line {first} ends here; is one missing on that line?"))
    }

    fn resume(
        &mut self,
        reader: &mut Reader,
        within: Within,
        reason: Reason,
        open: Option<usize>,
        at: usize,
        items: &mut Vec<Item>,
    ) {
        let text = reader.text.clone();
        let line_end = |from: usize| match memchr::memchr(b'\n', &text[from..]) {
            Some(feed) => from + feed + 1,
            None => text.len(),
        };
        match (reason, open) {
            (Reason::Ended, None) => {
                reader.ended = true;
                reader.pos = text.len();
            }
            // On the command line all is one line as a rule.
            (Reason::Ended, Some(_)) if reader.file == FileId::COMMAND_LINE => reader.pos = text.len(),
            (Reason::Ended | Reason::TooLong(_), Some(quote)) => {
                reader.ended |= reason == Reason::Ended;
                reader.pos = line_end(quote);
            }
            (Reason::TooLong(_), None) => reader.pos = line_end(at),
            (Reason::Unexpected(_), _) => {
                // The offending byte is a terminator, or the rest of the directive is behind it.
                let stops = |c: &u8| matches!(c, b';' | b'{' | b'}' | b'\n');
                let stop = text[at..].iter().position(stops).map_or(text.len(), |found| at + found);
                reader.pos = (stop + 1).min(text.len());
                match text.get(stop) {
                    Some(b'{') => self.skip_block(reader, reader.span(stop, stop + 1), items),
                    // A block closes all the same, so that the rest keeps its place.
                    Some(b'}') if within != Within::Text => reader.pos = stop,
                    Some(_) | None => {}
                }
            }
        }
    }

    /// A counted error whose place is the line of the first byte of `span`.
    fn error(&mut self, span: Span, message: impl Into<Vec<u8>>) -> Diagnostic {
        let line = self.sources.line(span.file, span.lo);
        self.count(Diagnostic::emerg(message).at(Place::of(span.file, line)).span(span))
    }

    fn count(&mut self, error: Diagnostic) -> Diagnostic {
        self.errors += 1;
        error
    }

    fn stop(&mut self) {
        self.errors = MAX_ERRORS;
    }

    fn is_stopped(&self) -> bool {
        self.errors >= MAX_ERRORS
    }
}

fn keep_errors(from: Vec<Item>, to: &mut Vec<Item>) {
    for item in from {
        match item {
            Item::Error(_) => to.push(item),
            Item::Include(include) => {
                keep_errors(include.items, to);
                keep_errors(include.directive.block.map(|block| block.items).unwrap_or_default(), to);
            }
            Item::Directive(directive) => {
                keep_errors(directive.block.map(|block| block.items).unwrap_or_default(), to);
            }
        }
    }
}

/// What the operating system is asked for: up to the first NUL, below `prefix` unless absolute.
fn full_name(prefix: &[u8], word: &[u8]) -> Vec<u8> {
    let name = word.split(|&c| c == 0).next().unwrap_or_default();
    match (name.first(), prefix.last()) {
        (Some(b'/'), _) => name.to_vec(),
        (_, Some(b'/') | None) => [prefix, name].concat(),
        (_, Some(_)) => [prefix, b"/", name].concat(),
    }
}

fn failed(call: &str, path: &[u8], error: &std::io::Error) -> Diagnostic {
    Diagnostic::emerg(quote(call, path)).errno(error.raw_os_error().unwrap_or(EIO))
}

fn quote(call: &str, path: &[u8]) -> Vec<u8> {
    [call.as_bytes(), b" \"", path, b"\" failed"].concat()
}

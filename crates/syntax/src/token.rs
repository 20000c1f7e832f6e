//! Words, quotes and terminators: one statement of the language at a time.
//!
//! nom recognises the lexemes; [`statement`] holds what may stand beside what, and where nginx notices that it may not.

use nom::branch::alt;
use nom::bytes::complete::{tag, take_till, take_while, take_while_m_n, take_while1};
use nom::combinator::recognize;
use nom::multi::many0_count;
use nom::sequence::preceded;
use nom::{IResult, Parser};

use crate::Quote;

/// A word as written, quotes included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lexeme<'a> {
    pub(crate) raw: &'a [u8],
    pub(crate) quote: Option<Quote>,
}

impl Lexeme<'_> {
    /// Without quotes, with escapes resolved as nginx resolves them.
    pub(crate) fn value(&self) -> Box<[u8]> {
        match self.quote {
            Some(_) => unescape(&self.raw[1..self.raw.len() - 1]),
            None => unescape(self.raw),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// `;`
    Semicolon,
    /// `{`
    Open,
    /// `}`, never behind words
    Close,
    /// No more input, never behind words
    Eof,
}

#[derive(Debug)]
pub(crate) struct Statement<'a> {
    pub(crate) words: Vec<Lexeme<'a>>,
    pub(crate) end: End,
    /// The input from the terminator on.
    pub(crate) at: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A byte that may not stand where it stands.
    Unexpected(u8),
    /// The input ends within a statement.
    Ended,
    /// A word or a comment that does not fit into the buffer; the quote if it is inside of one.
    TooLong(Option<Quote>),
}

#[derive(Debug)]
pub(crate) struct Fault<'a> {
    pub(crate) reason: Reason,
    /// The input from the byte whose line nginx reports.
    pub(crate) at: &'a [u8],
    /// The last whole word before the fault.
    pub(crate) last: Option<Lexeme<'a>>,
    /// The input from a quote on that is never closed.
    pub(crate) open: Option<&'a [u8]>,
}

/// Reads up to and including the next `;`, `{` or `}`. `limit` is the size of nginx's buffer in bytes, which a word
/// and a comment must fit into.
pub(crate) fn statement(input: &[u8], limit: usize) -> Result<Statement<'_>, Fault<'_>> {
    let mut words: Vec<Lexeme<'_>> = Vec::new();
    let mut rest = input;
    loop {
        rest = match trivia(rest, limit) {
            Ok(rest) => rest,
            Err(comment) => return Err(Fault::new(Reason::TooLong(None), comment).after(&words)),
        };
        let end = match (rest.first(), words.is_empty()) {
            (None, true) => End::Eof,
            (None, false) => return Err(Fault::new(Reason::Ended, rest).after(&words)),
            (Some(b';'), false) => End::Semicolon,
            (Some(b'{'), false) => End::Open,
            (Some(b'}'), true) => End::Close,
            (Some(&c @ (b';' | b'{')), true) => {
                return Err(Fault::new(Reason::Unexpected(c), rest).after(&words));
            }
            (Some(b'}'), false) => return Err(Fault::new(Reason::Unexpected(b'}'), rest).after(&words)),
            (Some(&first), _) => {
                let word = match first {
                    b'"' => quoted(rest, Quote::Double, limit),
                    b'\'' => quoted(rest, Quote::Single, limit),
                    _ => unquoted(rest, limit),
                };
                let (after, word) = word.map_err(|fault| fault.after(&words))?;
                words.push(word);
                rest = after;
                continue;
            }
        };
        return Ok(Statement { words, end, at: rest });
    }
}

impl<'a> Fault<'a> {
    fn new(reason: Reason, at: &'a [u8]) -> Fault<'a> {
        Fault { reason, at, last: None, open: None }
    }

    /// Keeps a word that the fault already names, for then it came behind the others.
    fn after(self, words: &[Lexeme<'a>]) -> Fault<'a> {
        Fault { last: self.last.or(words.last().copied()), ..self }
    }
}

/// Skips blanks and comments. `Err` is a comment that overflows the buffer, which nginx takes for a long word.
fn trivia(input: &[u8], limit: usize) -> Result<&[u8], &[u8]> {
    let mut rest = input;
    loop {
        rest = &rest[span(blanks, rest).len()..];
        let text = span(comment, rest);
        if text.is_empty() {
            return Ok(rest);
        }
        if text.len() >= limit && rest.len() > limit {
            return Err(rest);
        }
        rest = &rest[text.len()..];
    }
}

fn unquoted(input: &[u8], limit: usize) -> Result<(&[u8], Lexeme<'_>), Fault<'_>> {
    let raw = span(bare, capped(input, limit));
    let rest = &input[raw.len()..];
    let fault = Fault::new;
    match rest.first() {
        None => Err(fault(Reason::Ended, rest)),
        Some(_) if raw.len() >= limit => Err(fault(Reason::TooLong(None), input)),
        // nginx forgets where the word began only with the byte behind the blank.
        Some(&c) if is_blank(c) && raw.len() + 1 == limit && rest.len() > 1 => {
            Err(fault(Reason::TooLong(None), input))
        }
        Some(_) => Ok((rest, Lexeme { raw, quote: None })),
    }
}

fn quoted(input: &[u8], quote: Quote, limit: usize) -> Result<(&[u8], Lexeme<'_>), Fault<'_>> {
    let inside = &input[1..];
    let text = match quote {
        Quote::Double => span(double, capped(inside, limit)),
        Quote::Single => span(single, capped(inside, limit)),
    };
    let len = text.len();
    match inside.get(len) {
        None => {
            let at = &inside[len..];
            return Err(Fault { reason: Reason::Ended, at, last: None, open: Some(input) });
        }
        Some(_) if len >= limit => {
            let reason = Reason::TooLong(Some(quote));
            return Err(Fault { reason, at: input, last: None, open: Some(input) });
        }
        Some(_) => {}
    }
    let word = Lexeme { raw: &input[..len + 2], quote: Some(quote) };
    let rest = &input[len + 2..];
    let fault = |reason, at| Fault { reason, at, last: Some(word), open: None };
    let overflows = |used: usize, left: usize| used == limit && left > 0;
    match rest.first() {
        // nginx forgets where the word began only with the byte behind the blank behind the quote.
        Some(_) if overflows(len + 1, rest.len()) => Err(fault(Reason::TooLong(None), inside)),
        Some(&c) if is_blank(c) && overflows(len + 2, rest.len() - 1) => {
            Err(fault(Reason::TooLong(None), inside))
        }
        // "a")b" is two words, so that conditions may close their parenthesis behind a quote.
        Some(&c) if !is_blank(c) && !matches!(c, b';' | b'{' | b')') => {
            Err(fault(Reason::Unexpected(c), rest))
        }
        Some(_) | None => Ok((rest, word)),
    }
}

fn capped(input: &[u8], limit: usize) -> &[u8] {
    &input[..input.len().min(limit)]
}

/// What `recognizer` takes from the start of `input`, nothing where it fails.
fn span<'a>(recognizer: fn(&'a [u8]) -> IResult<&'a [u8], &'a [u8]>, input: &'a [u8]) -> &'a [u8] {
    recognizer(input).map_or(&[], |(_, taken)| taken)
}

fn is_blank(c: u8) -> bool {
    matches!(c, b' ' | b'\t' | b'\r' | b'\n')
}

fn blanks(input: &[u8]) -> IResult<&[u8], &[u8]> {
    take_while(is_blank).parse(input)
}

fn comment(input: &[u8]) -> IResult<&[u8], &[u8]> {
    recognize(preceded(tag("#"), take_till(|c| c == b'\n'))).parse(input)
}

fn bare(input: &[u8]) -> IResult<&[u8], &[u8]> {
    text(|c| is_blank(c) || c == b';' || c == b'{').parse(input)
}

fn double(input: &[u8]) -> IResult<&[u8], &[u8]> {
    text(|c| c == b'"').parse(input)
}

fn single(input: &[u8]) -> IResult<&[u8], &[u8]> {
    text(|c| c == b'\'').parse(input)
}

/// Bytes up to one that `stops`. A backslash takes the next byte along, whatever it is, and braces right behind
/// a dollar belong to the name of a variable.
fn text<'a>(
    stops: fn(u8) -> bool,
) -> impl Parser<&'a [u8], Output = &'a [u8], Error = nom::error::Error<&'a [u8]>> {
    recognize(many0_count(alt((
        take_while1(move |c| !stops(c) && c != b'\\' && c != b'$'),
        recognize((tag("\\"), take_while_m_n(0, 1, |_| true))),
        recognize((tag("$"), take_while(|c| c == b'{'))),
    ))))
}

fn unescape(raw: &[u8]) -> Box<[u8]> {
    let mut value = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        value.extend_from_slice(&rest[..at]);
        let escaped = match rest.get(at + 1) {
            Some(&c @ (b'"' | b'\'' | b'\\')) => Some(c),
            Some(b't') => Some(b'\t'),
            Some(b'r') => Some(b'\r'),
            Some(b'n') => Some(b'\n'),
            Some(_) | None => None,
        };
        value.push(escaped.unwrap_or(b'\\'));
        rest = &rest[at + 1 + usize::from(escaped.is_some())..];
    }
    value.extend_from_slice(rest);
    value.into()
}

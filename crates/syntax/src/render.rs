//! Diagnostics as text: nginx's own line, and an explained form with the source underlined.

use std::fmt::Write as _;

use crate::{Diagnostic, Place, Sources, Span};

/// nginx formats a finding while it reads a configuration into a buffer of this size, in bytes.
const MESSAGE: usize = 1024;

/// An error number needs this much of it, in bytes.
const ERRNO: usize = 50;

/// How many characters of a source line are shown.
const WIDTH: usize = 160;

/// The message with error number and place, cut where nginx cuts it: what stands behind the level in an error log.
pub fn message(diagnostic: &Diagnostic, sources: &Sources) -> Vec<u8> {
    let mut text = diagnostic.message.clone();
    text.truncate(MESSAGE);
    if let Some(errno) = diagnostic.errno {
        if text.len() > MESSAGE - ERRNO {
            text.truncate(MESSAGE - ERRNO);
            text.extend_from_slice(b"...");
        }
        text.extend_from_slice(format!(" ({errno}: {})", strerror(errno)).as_bytes());
    }
    match diagnostic.place {
        Place::None => {}
        Place::CommandLine => text.extend_from_slice(b" in command line"),
        Place::At { file, line } => {
            text.extend_from_slice(b" in ");
            text.extend_from_slice(sources.path(file));
            text.extend_from_slice(format!(":{line}").as_bytes());
        }
    }
    text
}

/// The line on stderr, without its line feed: `nginx: [emerg] MESSAGE in FILE:LINE`, where `program` is the name
/// before the colon.
pub fn line(program: &str, diagnostic: &Diagnostic, sources: &Sources) -> Vec<u8> {
    let head = format!("{program}: [{}] ", diagnostic.level.as_str());
    [head.into_bytes(), message(diagnostic, sources)].concat()
}

/// [`line`] and below it the source with carets and the help, where there are any. Ends with a line feed. What is
/// not printable is shown escaped, so that no configuration can steer a terminal.
///
/// ```text
/// nginx: [emerg] unexpected "}" in /etc/nginx/nginx.conf:4
///   3 |     listen 80
///     |            ^^
///     = help: is a ";" missing after 80?
/// ```
pub fn explained(program: &str, diagnostic: &Diagnostic, sources: &Sources) -> String {
    let mut out = printable(&line(program, diagnostic, sources));
    out.push('\n');
    let excerpt = diagnostic.span.and_then(|span| excerpt(span, sources));
    let margin = excerpt.as_ref().map_or(1, |excerpt| excerpt.number.len());
    if let Some(Excerpt { number, text, before, carets }) = excerpt {
        let _ = writeln!(out, "  {number} | {text}");
        let _ = writeln!(out, "  {:margin$} | {:before$}{}", "", "", "^".repeat(carets));
    }
    if let Some(help) = &diagnostic.help {
        let _ = writeln!(out, "  {:margin$} = help: {}", "", printable(help.as_bytes()));
    }
    out
}

struct Excerpt {
    number: String,
    text: String,
    /// In characters of `text`.
    before: usize,
    carets: usize,
}

/// The line where `span` begins. A span over several lines is underlined to the end of the first one.
fn excerpt(span: Span, sources: &Sources) -> Option<Excerpt> {
    let number = sources.line(span.file, span.lo);
    let whole = sources.line_span(span.file, number)?;
    let hi = span.hi.clamp(span.lo, whole.hi.max(span.lo));
    let part = |lo, hi| printable(sources.slice(Span { file: span.file, lo, hi }));
    let (head, marked, tail) = (part(whole.lo, span.lo), part(span.lo, hi), part(hi, whole.hi));
    let (skip, head) = clip_head(&head);
    let text: String = [skip, &head, &marked, tail.trim_end()].concat();
    let before = skip.chars().count() + head.chars().count();
    let text = match text.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    };
    let carets = marked.chars().count().clamp(1, WIDTH.saturating_sub(before).max(1));
    Some(Excerpt { number: number.to_string(), text, before, carets })
}

/// Leaves out the start of a long line, so that what is underlined stays in sight.
fn clip_head(head: &str) -> (&'static str, String) {
    let count = head.chars().count();
    match count > WIDTH / 2 {
        true => ("...", head.chars().skip(count - WIDTH / 2).collect()),
        false => ("", head.to_string()),
    }
}

/// Tabs become a blank and what is not printable an escape.
fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\t' => out.push(' '),
                '\r' => {}
                c if c.is_control() || is_invisible(c) => out.extend(c.escape_unicode()),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// Characters that take no room or turn the direction of writing.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The C library's words for an error number, which are nginx's.
pub fn strerror(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    // The standard library adds " (os error N)" to them.
    match text.rsplit_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

//! Paths as locations see them: the scan that tells a plain path from one to be normalised, the normaliser, and nginx's escapes.

/// A URI that is answered with 400: a broken or zero `%` escape, or `..` above the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadUri;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Class {
    Plain,
    Slash,
    Dot,
    Percent,
    Question,
    Hash,
    Plus,
    /// Space and controls, where a scan stops.
    Stop,
}

const fn classes() -> [Class; 256] {
    let mut classes = [Class::Plain; 256];
    let mut at = 0;
    while at < 256 {
        classes[at] = match at as u8 {
            b'/' => Class::Slash,
            b'.' => Class::Dot,
            b'%' => Class::Percent,
            b'?' => Class::Question,
            b'#' => Class::Hash,
            b'+' => Class::Plus,
            0..=b' ' | 0x7f => Class::Stop,
            _ => Class::Plain,
        };
        at += 1;
    }
    classes
}

static CLASSES: [Class; 256] = classes();

/// What one pass over a URI tells; resumable at any byte. Offsets are those of the buffer scanned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UriScan {
    /// Has `//`, `/.` or `#`, so that the path as written is not the path meant.
    pub complex: bool,
    /// Has a `%` in its path.
    pub quoted: bool,
    /// Has a `+` in the part that was looked at closely.
    pub plus: bool,
    /// Where the arguments start, right behind the first `?`.
    pub args: Option<usize>,
    in_segment: bool,
    /// Nothing but `#` and the end matter any more.
    tail: bool,
}

impl UriScan {
    /// A scan that starts within the arguments, for an absolute form without a path.
    pub(crate) fn in_args(args: usize) -> Self {
        Self { args: Some(args), tail: true, ..Self::default() }
    }

    /// Looks at bytes from `pos` on, the leading `/` being read already; returns the offset of the first byte that no URI
    /// holds (space, control), or the end of `buf`.
    #[inline]
    pub fn run(&mut self, buf: &[u8], mut pos: usize) -> usize {
        while !self.tail {
            let Some(&byte) = buf.get(pos) else { return pos };
            match CLASSES[byte as usize] {
                Class::Plain => self.in_segment = true,
                Class::Stop => return pos,
                Class::Slash if self.in_segment => self.in_segment = false,
                Class::Dot if self.in_segment => {}
                Class::Slash | Class::Dot | Class::Hash => {
                    self.complex = true;
                    self.tail = true;
                }
                Class::Percent => {
                    self.quoted = true;
                    self.tail = true;
                }
                Class::Question => {
                    self.args = Some(pos + 1);
                    self.tail = true;
                }
                Class::Plus => self.plus = true,
            }
            pos += 1;
        }
        loop {
            while let Some(bytes) = buf.get(pos..).and_then(|rest| rest.first_chunk())
                && !has_tail_special(u64::from_le_bytes(*bytes))
            {
                pos += 8;
            }
            for _ in 0..8 {
                let Some(&byte) = buf.get(pos) else { return pos };
                match CLASSES[byte as usize] {
                    Class::Stop => return pos,
                    Class::Hash => self.complex = true,
                    _ => {}
                }
                pos += 1;
            }
        }
    }

    /// Scans a whole URI that starts with `/`, as a pseudo-header or a directive holds it; anything that no URI holds is an error.
    pub fn of(uri: &[u8]) -> Result<Self, BadUri> {
        let mut scan = Self::default();
        if uri.first() != Some(&b'/') || scan.run(uri, 1) != uri.len() {
            return Err(BadUri);
        }
        Ok(scan)
    }

    /// Whether the path must go through `normalize`.
    pub fn needs_work(&self) -> bool {
        self.complex || self.quoted
    }
}

/// Whether any of eight bytes is a control, a space or a `#`.
#[inline]
fn has_tail_special(word: u64) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word;
    let low = word.wrapping_sub(ONES * 0x21) & !word;
    (low | zeros(word ^ (ONES * b'#' as u64)) | zeros(word ^ (ONES * 0x7f))) & (ONES * 0x80) != 0
}

/// What `normalize` found. The path is in the output, the arguments are in the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Normal {
    /// Where the path ends in the output; it starts where the output ended before.
    pub path_end: usize,
    /// The arguments within the input, without a fragment.
    pub args: Option<(usize, usize)>,
    /// Whether a `+` was seen, plain or escaped.
    pub plus: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Segment {
    /// Right behind a slash.
    Empty,
    /// Behind `/.`.
    Dot,
    /// Behind `/..`.
    DotDot,
    Named,
}

/// Appends the path meant by `uri` to `out`: escapes decoded, `.` and `..` resolved, and with `merge_slashes` repeated slashes merged.
///
/// Decoded bytes take part in the normalisation (`%2e%2e` is `..`, `%2f` is a slash), except `%25`, `%23` and `%3f`, which only
/// ever stand for themselves.
///
/// # Errors
/// `BadUri` on `%` without two hex digits, on `%00` and on `..` above the root; `out` then holds rubbish behind its former end.
pub fn normalize(uri: &[u8], merge_slashes: bool, out: &mut Vec<u8>) -> Result<Normal, BadUri> {
    let base = out.len();
    let mut normal = Normal::default();
    let mut segment = Segment::Named;
    let mut at = 0;
    while let Some(&read) = uri.get(at) {
        at += 1;
        let mut byte = read;
        if read == b'%' {
            byte = unhex(uri.get(at..at + 2)).ok_or(BadUri)?;
            at += 2;
            match byte {
                0 => return Err(BadUri),
                b'%' | b'#' | b'?' => {
                    out.push(byte);
                    segment = Segment::Named;
                    continue;
                }
                b'+' => normal.plus = true,
                _ => {}
            }
        }
        match byte {
            b'/' => {
                match segment {
                    Segment::Empty if merge_slashes => {}
                    Segment::Named | Segment::Empty => out.push(b'/'),
                    Segment::Dot => {
                        out.pop();
                    }
                    Segment::DotDot => climb(out, base)?,
                }
                segment = Segment::Empty;
            }
            b'?' => {
                let rest = &uri[at..];
                normal.args = Some((at, at + memchr::memchr(b'#', rest).unwrap_or(rest.len())));
                break;
            }
            b'#' => break,
            b'.' => {
                segment = match segment {
                    Segment::Empty => Segment::Dot,
                    Segment::Dot => Segment::DotDot,
                    Segment::DotDot | Segment::Named => Segment::Named,
                };
                out.push(b'.');
            }
            _ => {
                normal.plus |= read == b'+';
                out.push(byte);
                segment = Segment::Named;
            }
        }
    }
    match segment {
        Segment::Dot => {
            out.pop();
        }
        Segment::DotDot => climb(out, base)?,
        Segment::Empty | Segment::Named => {}
    }
    normal.path_end = out.len();
    Ok(normal)
}

/// Takes `/name/..` off, leaving the slash before `name`.
fn climb(out: &mut Vec<u8>, base: usize) -> Result<(), BadUri> {
    let dots = out.len() - 2;
    let above = dots.checked_sub(1).and_then(|slash| out.get(base..slash)).ok_or(BadUri)?;
    let slash = memchr::memrchr(b'/', above).ok_or(BadUri)?;
    out.truncate(base + slash + 1);
    Ok(())
}

fn unhex(digits: Option<&[u8]>) -> Option<u8> {
    let [high, low] = digits? else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    Some(digit(*high)? << 4 | digit(*low)?)
}

/// Which bytes `escape` must not leave as they are. All escape controls, space and everything above `~`, unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    /// A path: also `"#%<>?\^` `` ` `` `{|}`.
    Uri,
    /// Arguments: as a path, also `&+;`.
    Args,
    /// One argument: everything but letters, digits and `-._~`.
    Component,
    /// A link in a page: as a path without `?`, also `'`.
    Html,
    /// The target of a refresh page: as `Html`, but `%`, `#` and `}` stay and `~` does not.
    Refresh,
    /// A part of a request line: controls only.
    Line,
    /// A memcached key: controls, space and `%` only.
    Memcached,
    /// What goes to a mail authentication server: as `Memcached`.
    MailAuth,
}

/// A bit per byte, set where the byte is escaped.
type Set = [bool; 256];

const fn set(extra: &[u8], high: bool) -> Set {
    let mut set = [false; 256];
    let mut at = 0;
    while at < 256 {
        set[at] = at <= 0x20 || (high && at >= 0x7f);
        at += 1;
    }
    let mut at = 0;
    while at < extra.len() {
        set[extra[at] as usize] = true;
        at += 1;
    }
    set
}

const fn component() -> Set {
    let mut set = [true; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        set[at] = !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'));
        at += 1;
    }
    set
}

const fn controls() -> Set {
    let mut set = [false; 256];
    let mut at = 0;
    while at < 256 {
        set[at] = (at as u8).is_ascii_control();
        at += 1;
    }
    set
}

static URI: Set = set(b"\"#%<>?\\^`{|}", true);
static ARGS: Set = set(b"\"#%<>?\\^`{|}&+;", true);
static COMPONENT: Set = component();
static HTML: Set = set(b"\"#%'<>\\^`{|}", true);
static REFRESH: Set = set(b"\"'<>\\^`{|~", true);
static LINE: Set = controls();
static MEMCACHED: Set = set(b"%", false);

impl Escape {
    fn set(self) -> &'static Set {
        match self {
            Self::Uri => &URI,
            Self::Args => &ARGS,
            Self::Component => &COMPONENT,
            Self::Html => &HTML,
            Self::Refresh => &REFRESH,
            Self::Line => &LINE,
            Self::Memcached | Self::MailAuth => &MEMCACHED,
        }
    }
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Appends `text` to `out` with the bytes of `kind` as `%XX`.
pub fn escape(text: &[u8], kind: Escape, out: &mut Vec<u8>) {
    let set = kind.set();
    out.reserve(text.len());
    for &byte in text {
        if set[byte as usize] {
            out.extend([b'%', HEX[(byte >> 4) as usize], HEX[(byte & 15) as usize]]);
        } else {
            out.push(byte);
        }
    }
}

/// Whether `escape` would change anything.
pub fn needs_escape(text: &[u8], kind: Escape) -> bool {
    let set = kind.set();
    text.iter().any(|byte| set[*byte as usize])
}

/// Appends `text` to `out` with `<>&"` as entities.
pub fn escape_html(text: &[u8], out: &mut Vec<u8>) {
    for byte in text {
        match byte {
            b'<' => out.extend(b"&lt;"),
            b'>' => out.extend(b"&gt;"),
            b'&' => out.extend(b"&amp;"),
            b'"' => out.extend(b"&quot;"),
            byte => out.push(*byte),
        }
    }
}

/// Appends `text` to `out` as it may stand in a string of JSON.
pub fn escape_json(text: &[u8], out: &mut Vec<u8>) {
    for byte in text {
        let short = match byte {
            b'"' | b'\\' => *byte,
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0x08 => b'b',
            0x0c => b'f',
            0..0x20 => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
                continue;
            }
            _ => {
                out.push(*byte);
                continue;
            }
        };
        out.extend_from_slice(&[b'\\', short]);
    }
}

/// How `unescape` treats what it decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unescape {
    /// Decodes everything.
    All,
    /// Stops behind the first `?`, plain or escaped.
    Uri,
    /// As `Uri`, but decodes only printable bytes above `%`, as the target of a rewrite's redirect needs it.
    Redirect,
}

/// Appends `text` to `out` with `%XX` decoded, and returns how much of `text` was read. A broken escape loses its `%`,
/// and if the first digit was good, both bytes behind it too, as in nginx.
pub fn unescape(text: &[u8], kind: Unescape, out: &mut Vec<u8>) -> usize {
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        if byte == b'?' && kind != Unescape::All {
            out.push(byte);
            return at;
        }
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let Some(&high) = text.get(at) else { break };
        if !high.is_ascii_hexdigit() {
            out.push(high);
            at += 1;
            continue;
        }
        let pair = text.get(at..at + 2);
        at = (at + 2).min(text.len());
        let Some(decoded) = unhex(pair) else { continue };
        match kind {
            Unescape::All => out.push(decoded),
            Unescape::Uri | Unescape::Redirect if decoded == b'?' => {
                out.push(decoded);
                return at;
            }
            Unescape::Uri => out.push(decoded),
            Unescape::Redirect if decoded > b'%' && decoded < 0x7f => out.push(decoded),
            Unescape::Redirect => {
                out.push(b'%');
                out.extend(pair.unwrap_or_default());
            }
        }
    }
    at
}

/// Splits a URI that an upstream or a page named (X-Accel-Redirect, SSI, a WebDAV destination), appends its decoded path to `out` and
/// returns its arguments.
///
/// # Errors
/// `BadUri` for an empty path, a zero byte, or `..` as a segment; the caller logs `unsafe URI "…" was detected`.
pub fn decode_unsafe<'a>(uri: &'a [u8], out: &mut Vec<u8>) -> Result<Option<&'a [u8]>, BadUri> {
    let (path, args) = match memchr::memchr(b'?', uri) {
        Some(at) => (&uri[..at], Some(&uri[at + 1..])),
        None => (uri, None),
    };
    if !is_safe(path) {
        return Err(BadUri);
    }
    let base = out.len();
    unescape(path, Unescape::All, out);
    if is_safe(&out[base..]) { Ok(args) } else { Err(BadUri) }
}

fn is_safe(path: &[u8]) -> bool {
    !path.is_empty() && !path.contains(&0) && path.split(|byte| *byte == b'/').all(|segment| segment != b"..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    #[track_caller]
    fn check_normal(uri: &str, merge: bool, expected: Option<(&str, Option<&str>)>) {
        let mut out = b"before".to_vec();
        let found = normalize(uri.as_bytes(), merge, &mut out).ok().map(|normal| {
            assert_eq!(normal.path_end, out.len());
            (text(&out[6..]), normal.args.map(|(start, end)| uri[start..end].to_owned()))
        });
        let expected = expected.map(|(path, args)| (path.to_owned(), args.map(str::to_owned)));
        assert_eq!(found, expected, "{uri}");
    }

    #[test]
    fn normalized_behind_other_text() {
        check_normal("/a/../b.c?d#e", true, Some(("/b.c", Some("d"))));
        check_normal("/..", true, None);
        check_normal("//..", true, None);
        check_normal("//..", false, Some(("/", None)));
        check_normal("//a//..", false, Some(("//a/", None)));
        check_normal("/a/./b/.?", true, Some(("/a/b/", Some(""))));
        check_normal("/a.b/..c", true, Some(("/a.b/..c", None)));
        check_normal("", true, Some(("", None)));
        check_normal("/%2", true, None);
        check_normal("/%00", true, None);
    }

    #[track_caller]
    fn check_scan(uri: &str, expected: Option<(bool, bool, bool)>) {
        let found = UriScan::of(uri.as_bytes()).ok().map(|scan| (scan.complex, scan.quoted, scan.plus));
        assert_eq!(found, expected, "{uri}");
    }

    #[test]
    fn scanned() {
        check_scan("/a/b.c?d", Some((false, false, false)));
        check_scan("/a//b", Some((true, false, false)));
        check_scan("/.a", Some((true, false, false)));
        check_scan("/a%2f", Some((false, true, false)));
        check_scan("/a+b", Some((false, false, true)));
        check_scan("/a?b#c23456789", Some((true, false, false)));
        check_scan("/a?b2345678901#", Some((true, false, false)));
        check_scan("/a?%+//..", Some((false, false, false)));
        for bad in
            ["", "a", "*", "/ ", "/a b", "/a?b c", "/a?b2345678901 c", "/\x7f", "/a?\x7f", "/a?b2345678\x01"]
        {
            check_scan(bad, None);
        }
    }

    /// Which of the bytes are escaped, as ranges.
    fn escaped(kind: Escape) -> String {
        let all: Vec<u8> = (0x21..0x7f).filter(|byte| needs_escape(&[*byte], kind)).collect();
        text(&all)
    }

    /// The sets of nginx 1.31.5.
    #[test]
    fn escapes() {
        assert_eq!(escaped(Escape::Uri), "\"#%<>?\\^`{|}");
        assert_eq!(escaped(Escape::Args), "\"#%&+;<>?\\^`{|}");
        assert_eq!(escaped(Escape::Component), "!\"#$%&'()*+,/:;<=>?@[\\]^`{|}");
        assert_eq!(escaped(Escape::Html), "\"#%'<>\\^`{|}");
        assert_eq!(escaped(Escape::Refresh), "\"'<>\\^`{|~");
        assert_eq!(escaped(Escape::Memcached), "%");
        for kind in [Escape::Uri, Escape::Args, Escape::Component, Escape::Html, Escape::Refresh] {
            assert!((0..=0x20).chain(0x7f..=0xff).all(|byte| needs_escape(&[byte], kind)));
        }
        assert!((0..=0x20).all(|byte| needs_escape(&[byte], Escape::MailAuth)));
        let line: Vec<u8> = (0..=0xff).filter(|byte| needs_escape(&[*byte], Escape::Line)).collect();
        assert!(line.iter().copied().eq((0..0x20).chain([0x7f])));
        assert!((0x7f..=0xff).all(|byte| !needs_escape(&[byte], Escape::MailAuth)));
        let mut out = Vec::new();
        escape(b"/a b\xff?", Escape::Uri, &mut out);
        escape_html(b"<a href=\"&'\">", &mut out);
        assert_eq!(text(&out), "/a%20b%FF%3F&lt;a href=&quot;&amp;'&quot;&gt;");
    }

    #[track_caller]
    fn check_unescape(from: &str, kind: Unescape, expected: &str, read: usize) {
        let mut out = Vec::new();
        let taken = unescape(from.as_bytes(), kind, &mut out);
        assert_eq!((text(&out).as_str(), taken), (expected, read), "{from} {kind:?}");
    }

    #[test]
    fn unescapes() {
        check_unescape("a%20b%3fc?d", Unescape::All, "a b?c?d", 11);
        check_unescape("a%20b%3fc?d", Unescape::Uri, "a b?", 8);
        check_unescape("a%20b?c", Unescape::Redirect, "a%20b?", 6);
        check_unescape("%41%25%7f%80", Unescape::Redirect, "A%25%7f%80", 12);
        check_unescape("%zz%4zb%", Unescape::All, "zzb", 8);
        check_unescape("%4", Unescape::All, "", 2);
    }

    #[track_caller]
    fn check_unsafe(uri: &str, expected: Result<(&str, Option<&str>), BadUri>) {
        let mut out = Vec::new();
        let found = decode_unsafe(uri.as_bytes(), &mut out).map(|args| args.map(text));
        assert_eq!(
            found.map(|args| (text(&out), args)),
            expected.map(|(path, args)| (path.to_owned(), args.map(str::to_owned))),
            "{uri}"
        );
    }

    #[test]
    fn paths_of_others() {
        check_unsafe("/a%20b?c%20d", Ok(("/a b", Some("c%20d"))));
        check_unsafe("a/..b/...", Ok(("a/..b/...", None)));
        for bad in
            ["", "?a", "..", "../a", "/a/../b", "/a/..", "/a/..?b", "/%2e%2e/b", "/%2e.", "/a%00", "/a\0"]
        {
            check_unsafe(bad, Err(BadUri));
        }
    }
}

//! Regular expressions in nginx's own dialect (PCRE2), on bytes.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::{Arc, Mutex};

use pcre2::bytes::{CaptureLocations, RegexBuilder};

use crate::lowering::{Call, Fault};
use crate::program::VariableId;

/// A compiled regular expression and the variables that its named captures set.
#[derive(Clone)]
pub struct Regex {
    compiled: Arc<Compiled>,
    source: Arc<[u8]>,
    caseless: bool,
    named: Arc<[(usize, VariableId)]>,
}

struct Compiled {
    regex: pcre2::bytes::Regex,
    /// Groups with the whole match.
    groups: usize,
    /// Where a match puts its groups, while none is on.
    spare: Mutex<Option<CaptureLocations>>,
}

impl std::fmt::Debug for Regex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.caseless { "~*" } else { "~" };
        write!(f, "{sign} {}", String::from_utf8_lossy(&self.source))
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.caseless == other.caseless
    }
}

impl Regex {
    /// Compiles a pattern and declares the variables of its named captures.
    ///
    /// # Errors
    /// `pcre2_compile() failed: … in "…" at "…"`.
    pub fn compile(pattern: &[u8], caseless: bool, call: &mut Call<'_>) -> Result<Self, Fault> {
        let mut built = Self::build(pattern, caseless, true).map_err(|message| call.fail(message))?;
        let names: Vec<_> = built.names().map(|(index, name)| (index, name.to_ascii_lowercase())).collect();
        let declared: Result<Vec<_>, Fault> =
            names.iter().map(|(index, name)| Ok((*index, call.declare(name, true)?))).collect();
        built.named = declared?.into();
        Ok(built)
    }

    /// Compiles a pattern whose named captures set no variables.
    ///
    /// # Errors
    /// As for [`Regex::compile`].
    pub fn without_names(pattern: &[u8], call: &Call<'_>) -> Result<Self, Fault> {
        Self::build(pattern, false, true).map_err(|message| call.fail(message))
    }

    /// Compiles a pattern that is used once, whose named captures are the caller's.
    ///
    /// # Errors
    /// As for [`Regex::compile`].
    pub fn for_once(pattern: &[u8]) -> Result<Self, Vec<u8>> {
        Self::build(pattern, false, false)
    }

    fn build(pattern: &[u8], caseless: bool, jit: bool) -> Result<Self, Vec<u8>> {
        let text = as_text(pattern);
        let mut builder = RegexBuilder::new();
        builder.caseless(caseless).jit_if_available(jit);
        let compiled = builder.build(&text).map_err(|error| {
            let at = error.offset().unwrap_or(0);
            let at = if matches!(text, Cow::Borrowed(_)) { at } else { written_from(pattern, at) };
            let reason = error.to_string();
            let reason = reason
                .rsplit_once("at offset")
                .map_or(reason.as_str(), |(_, r)| r.split_once(": ").map_or(r, |(_, text)| text));
            let start = format!("pcre2_compile() failed: {reason} in \"");
            match pattern.get(at..) {
                Some(tail @ [_, ..]) => [start.as_bytes(), pattern, b"\" at \"", tail, b"\""].concat(),
                Some([]) | None => [start.as_bytes(), pattern, b"\""].concat(),
            }
        })?;
        let groups = compiled.captures_len();
        let compiled = Arc::new(Compiled { regex: compiled, groups, spare: Mutex::new(None) });
        Ok(Self { compiled, source: pattern.into(), caseless, named: Arc::new([]) })
    }

    /// The names of its groups.
    pub fn names(&self) -> impl Iterator<Item = (usize, &str)> {
        let names = self.compiled.regex.capture_names().iter().enumerate();
        names.filter_map(|(index, name)| Some((index, name.as_deref()?)))
    }

    pub fn source(&self) -> &[u8] {
        &self.source
    }

    pub fn caseless(&self) -> bool {
        self.caseless
    }

    /// How many groups the pattern has, the whole match not counted.
    pub fn groups(&self) -> usize {
        self.compiled.groups.saturating_sub(1)
    }

    pub fn named(&self) -> &[(usize, VariableId)] {
        &self.named
    }

    pub fn is_match(&self, subject: &[u8]) -> bool {
        self.compiled.regex.is_match(subject).unwrap_or(false)
    }

    /// Matches and gives the byte ranges of all groups, the whole match first.
    ///
    /// # Errors
    /// PCRE2's own limits (backtracking, stack), as text.
    pub fn captures(&self, subject: &[u8]) -> Result<Option<Vec<Option<(usize, usize)>>>, String> {
        let Compiled { regex, groups, spare } = &*self.compiled;
        // Another thread that has it at the moment is not waited for.
        let kept = spare.try_lock().ok().and_then(|mut spare| spare.take());
        let mut locations = kept.unwrap_or_else(|| regex.capture_locations());
        let found = match regex.captures_read(&mut locations, subject) {
            Ok(None) => Ok(None),
            Ok(Some(_)) => Ok(Some((0..*groups).map(|i| locations.get(i)).collect())),
            Err(error) => Err(error.to_string()),
        };
        if let Ok(mut spare) = spare.try_lock() {
            *spare = Some(locations);
        }
        found
    }
}

/// The pattern as the text that the crate asks for.
fn as_text(pattern: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(pattern).map_or_else(|_| ascii(pattern).into(), Cow::from)
}

/// The pattern with `\xHH` for each byte that is not ASCII.
fn ascii(pattern: &[u8]) -> String {
    let mut text = String::new();
    let (mut escaped, mut quoted) = (false, false);
    for byte in pattern {
        // Writing to a string does not fail.
        let _ = match (byte, escaped, quoted) {
            (0x80.., _, true) => write!(text, "\\E\\x{byte:02x}\\Q"),
            (0x80.., true, false) => write!(text, "x{byte:02x}"),
            (0x80.., false, false) => write!(text, "\\x{byte:02x}"),
            _ => text.write_char(char::from(*byte)),
        };
        quoted = match byte {
            b'Q' if escaped && !quoted => true,
            b'E' if escaped => false,
            _ => quoted,
        };
        // Between \Q and \E a backslash is itself, unless it begins the latter.
        escaped = *byte == b'\\' && (quoted || !escaped);
    }
    text
}

/// Where in the pattern the text begins that [`ascii`] has at `at`.
fn written_from(pattern: &[u8], at: usize) -> usize {
    (0..pattern.len()).find(|end| ascii(&pattern[..*end]).len() >= at).unwrap_or(pattern.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &[u8], expected: &str) {
        assert_eq!(as_text(pattern), expected);
    }

    #[test]
    fn patterns_of_bytes() {
        check("ü\\Qü".as_bytes(), "ü\\Qü");
        check(b"a\xfc[\x80-\xff]", "a\\xfc[\\x80-\\xff]");
        check(b"\\\xfc\\\\\xfc", "\\xfc\\\\\\xfc");
        check(b"\\Q\\\xfc\\E\xfc", "\\Q\\\\E\\xfc\\Q\\E\\xfc");
        assert_eq!(written_from(b"\xfc[z-a]", 8), 5);
        assert_eq!(written_from(b"\xc3\xbc[z-a]\xff", 12), 6);
    }
}

//! Regular expressions in nginx's own dialect (PCRE2), on bytes.

use std::sync::Arc;

use pcre2::bytes::RegexBuilder;

use crate::lowering::{Call, Fault};
use crate::program::VariableId;

/// A compiled regular expression and the variables that its named captures set.
#[derive(Clone)]
pub struct Regex {
    compiled: Arc<pcre2::bytes::Regex>,
    source: Arc<[u8]>,
    caseless: bool,
    named: Arc<[(usize, VariableId)]>,
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
        let Ok(text) = std::str::from_utf8(pattern) else {
            return Err(call.fail(format!(
                "pcre2_compile() failed: pattern is not UTF-8 in \"{}\"",
                String::from_utf8_lossy(pattern)
            )));
        };
        let built = RegexBuilder::new().caseless(caseless).jit_if_available(true).build(text);
        let compiled = match built {
            Ok(compiled) => compiled,
            Err(error) => {
                let at = error.offset().unwrap_or(0).min(text.len());
                let reason = error.to_string();
                let reason = reason
                    .rsplit_once("at offset")
                    .map_or(reason.as_str(), |(_, r)| r.split_once(": ").map_or(r, |(_, text)| text));
                let tail = text.get(at..).filter(|t| !t.is_empty());
                let message = match tail {
                    Some(tail) => format!("pcre2_compile() failed: {reason} in \"{text}\" at \"{tail}\""),
                    None => format!("pcre2_compile() failed: {reason} in \"{text}\""),
                };
                return Err(call.fail(message));
            }
        };
        let mut named = vec![];
        for (index, name) in compiled.capture_names().iter().enumerate() {
            if let Some(name) = name {
                named.push((index, call.declare(&name.to_ascii_lowercase(), true)?));
            }
        }
        Ok(Self { compiled: Arc::new(compiled), source: pattern.into(), caseless, named: named.into() })
    }

    pub fn source(&self) -> &[u8] {
        &self.source
    }

    pub fn caseless(&self) -> bool {
        self.caseless
    }

    /// How many groups the pattern has, the whole match not counted.
    pub fn groups(&self) -> usize {
        self.compiled.captures_len().saturating_sub(1)
    }

    pub fn named(&self) -> &[(usize, VariableId)] {
        &self.named
    }

    pub fn is_match(&self, subject: &[u8]) -> bool {
        self.compiled.is_match(subject).unwrap_or(false)
    }

    /// Matches and gives the byte ranges of all groups, the whole match first.
    ///
    /// # Errors
    /// PCRE2's own limits (backtracking, stack), as text.
    pub fn captures(&self, subject: &[u8]) -> Result<Option<Vec<Option<(usize, usize)>>>, String> {
        let mut locations = self.compiled.capture_locations();
        match self.compiled.captures_read(&mut locations, subject) {
            Ok(None) => Ok(None),
            Ok(Some(_)) => Ok(Some((0..self.compiled.captures_len()).map(|i| locations.get(i)).collect())),
            Err(error) => Err(error.to_string()),
        }
    }
}

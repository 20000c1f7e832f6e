//! The condition of an `if`, read from its words.

use weir_ir::{Call, Fault, Regex, Template, VariableId};

/// What an `if` asks.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    /// The value is neither empty nor `0`.
    True(VariableId),
    Equals {
        variable: VariableId,
        value: Template,
        negated: bool,
    },
    Matches {
        variable: VariableId,
        regex: Regex,
        negated: bool,
    },
    File {
        path: Template,
        test: FileTest,
        negated: bool,
    },
}

/// What is asked of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileTest {
    /// `-f`
    Plain,
    /// `-d`
    Directory,
    /// `-e`: a plain file or a directory.
    Exists,
    /// `-x`: its owner may execute it.
    Executable,
}

impl Condition {
    /// Reads the words between the parentheses.
    ///
    /// # Errors
    /// `invalid condition "…"`, `unexpected "…" in condition`, and what the variable, value or regex has wrong.
    pub(super) fn read(call: &mut Call<'_>) -> Result<Self, Fault> {
        let words: Vec<&[u8]> = call.args().iter().map(|word| &*word.value).collect();
        let words = bare(&words).map_err(|at| invalid(call, at))?;
        let first = words[0];
        match first {
            [b'$', name @ ..] if !name.is_empty() => read_variable(&words, name, call),
            [b'-', letter] => read_file(&words, *letter, false, call),
            [b'!', b'-', letter] => read_file(&words, *letter, true, call),
            _ => Err(invalid(call, first)),
        }
    }
}

/// The words without the parentheses around them; at least one is left. The error is the word to blame.
fn bare<'w>(words: &[&'w [u8]]) -> Result<Vec<&'w [u8]>, &'w [u8]> {
    let mut words = words.to_vec();
    match words.first() {
        Some([b'(', rest @ ..]) => words[0] = rest,
        Some(other) => return Err(other),
        None => return Err(b""),
    }
    let last = words.len() - 1;
    let Some((b')', rest)) = words[last].split_last() else {
        // The word as it stands: without its parenthesis if something else is in it.
        return Err(if last == 0 && words[0].is_empty() { b"(" } else { words[last] });
    };
    words[last] = rest;
    if words.len() == 1 && words[0].is_empty() {
        return Err(b")");
    }
    if words.len() > 1 && words[words.len() - 1].is_empty() {
        words.pop();
    }
    if words[0].is_empty() {
        words.remove(0);
    }
    if words.is_empty() { Err(b")") } else { Ok(words) }
}

fn invalid(call: &Call<'_>, word: &[u8]) -> Fault {
    call.fail([b"invalid condition \"", word, b"\""].concat())
}

fn read_variable(words: &[&[u8]], name: &[u8], call: &mut Call<'_>) -> Result<Condition, Fault> {
    if words.len() != 1 && words.len() != 3 {
        return Err(invalid(call, words[0]));
    }
    let variable = call.variable(&String::from_utf8_lossy(name).to_ascii_lowercase());
    let [_, operator, operand] = words else { return Ok(Condition::True(variable)) };
    let negated = operator.starts_with(b"!");
    match *operator {
        b"=" | b"!=" => {
            let value = Template::parse(operand, call)?;
            Ok(Condition::Equals { variable, value, negated })
        }
        b"~" | b"~*" | b"!~" | b"!~*" => {
            let regex = Regex::compile(operand, operator.ends_with(b"*"), call)?;
            Ok(Condition::Matches { variable, regex, negated })
        }
        other => Err(call.fail([b"unexpected \"", other, b"\" in condition"].concat())),
    }
}

fn read_file(words: &[&[u8]], letter: u8, negated: bool, call: &mut Call<'_>) -> Result<Condition, Fault> {
    let [operator, path] = words else { return Err(invalid(call, words[0])) };
    let path = Template::parse(path, call)?;
    let test = match letter {
        b'f' => FileTest::Plain,
        b'd' => FileTest::Directory,
        b'e' => FileTest::Exists,
        b'x' => FileTest::Executable,
        _ => return Err(invalid(call, operator)),
    };
    Ok(Condition::File { path, test, negated })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(words: &[&str], expected: Result<&[&str], &str>) {
        let words: Vec<_> = words.iter().map(|w| w.as_bytes()).collect();
        let expected =
            expected.map(|w| w.iter().map(|w| w.as_bytes()).collect::<Vec<_>>()).map_err(str::as_bytes);
        assert_eq!(bare(&words), expected);
    }

    #[test]
    fn parentheses() {
        check(&["($a)"], Ok(&["$a"]));
        check(&["(", "$a", ")"], Ok(&["$a"]));
        check(&["($a", "=", "b)"], Ok(&["$a", "=", "b"]));
        check(&["($a", "=", "b", ")"], Ok(&["$a", "=", "b"]));
        check(&["(", "$a", "=", "b)"], Ok(&["$a", "=", "b"]));
        check(&["$a)"], Err("$a)"));
        check(&["($a"], Err("$a"));
        check(&["("], Err("("));
        check(&["()"], Err(")"));
        check(&["(", ")"], Err(")"));
    }
}

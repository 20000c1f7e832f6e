//! What parameters say: texts with variables, and expressions.

use weir_engine::generation::Names;
use weir_engine::http::Exchange;
use weir_ir::Regex;
use weir_syntax::Level;

use super::run::{Stop, doing};
use super::{KEPT, Shared};

/// Evaluates a text: `$name` and `${name}`, of the page or of the server, and `\` before quotes, dollars and itself.
pub(super) fn evaluate(x: &Exchange, names: &Names, shared: &Shared, text: &[u8]) -> Result<Vec<u8>, Stop> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'\\' => {
                let Some(&quoted) = text.get(at) else { break };
                at += 1;
                if !matches!(quoted, b'\\' | b'\'' | b'"' | b'$') {
                    out.push(b'\\');
                }
                out.push(quoted);
            }
            b'$' => {
                let invalid = || Stop::error(x, &[b"invalid variable name in \"", text, b"\""]);
                let bracket = text.get(at) == Some(&b'{');
                at += usize::from(bracket);
                let rest = &text[at..];
                let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
                let length = rest.iter().position(|byte| !is_name(byte)).unwrap_or(rest.len());
                if rest.is_empty() {
                    return Err(invalid());
                }
                if bracket && rest.get(length) != Some(&b'}') {
                    let name = &rest[..length];
                    let message = [b"the closing bracket in \"", name, b"\" variable is missing"];
                    return Err(Stop::error(x, &message));
                }
                if length == 0 {
                    return Err(invalid());
                }
                at += length + usize::from(bracket);
                variable(x, names, shared, &rest[..length], &mut out);
                if out.len() > KEPT {
                    return Err(Stop::too_much(x));
                }
            }
            _ => out.push(byte),
        }
    }
    Ok(out)
}

/// Appends the value of a variable of the pages, else of the server; false where there is none.
pub(super) fn variable(x: &Exchange, names: &Names, shared: &Shared, name: &[u8], out: &mut Vec<u8>) -> bool {
    let name = name.to_ascii_lowercase();
    if let Some(value) = shared.variable(&name) {
        out.extend_from_slice(value);
        return true;
    }
    std::str::from_utf8(&name).is_ok_and(|name| names.append(name, x, out))
}

/// Whether an expression holds: `text`, `text = text`, `text != text`, `text = /pattern/`.
pub(super) fn holds(
    x: &Exchange,
    names: &Names,
    shared: &mut Shared,
    expression: &[u8],
) -> Result<bool, Stop> {
    let in_left =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'$' | b'{' | b'}' | b'_' | b'"' | b'\'');
    let length = expression.iter().position(|byte| !in_left(byte)).unwrap_or(expression.len());
    let (left, rest) = expression.split_at(length);
    // As in nginx, what stands there is in lower case.
    let left = evaluate(x, names, shared, &left.to_ascii_lowercase())?;
    let rest = without_spaces(rest);
    if rest.is_empty() {
        return Ok(!left.is_empty());
    }
    let invalid = || Stop::error(x, &[b"invalid expression in \"", expression, b"\""]);
    let (right, equal) = match rest {
        [b'=', right @ ..] => (right, true),
        [b'!', b'=', right @ ..] => (right, false),
        _ => return Err(invalid()),
    };
    let same = match without_spaces(right) {
        [b'/', pattern @ .., b'/'] => {
            let pattern = evaluate(x, names, shared, pattern)?;
            matches(x, shared, &pattern, &left)?
        }
        [b'/', _, ..] => return Err(invalid()),
        right => {
            let quoted = right.strip_prefix(b"\\").filter(|right| right.starts_with(b"/"));
            evaluate(x, names, shared, quoted.unwrap_or(right))? == left
        }
    };
    Ok(same == equal)
}

fn without_spaces(text: &[u8]) -> &[u8] {
    &text[text.iter().position(|byte| *byte != b' ').unwrap_or(text.len())..]
}

/// Matches, and keeps the groups for the page.
fn matches(x: &Exchange, shared: &mut Shared, pattern: &[u8], subject: &[u8]) -> Result<bool, Stop> {
    let regex = Regex::for_once(pattern).map_err(|message| Stop::error(x, &[&message]))?;
    let found = regex.captures(subject).map_err(|reason| {
        let (pattern, subject) = (String::from_utf8_lossy(pattern), String::from_utf8_lossy(subject));
        let message = format_args!("pcre2_match() failed: {reason} on \"{subject}\" using \"{pattern}\"");
        x.log_while(Level::Alert, None, message, doing(x));
        Stop::Error
    })?;
    let Some(groups) = found else { return Ok(false) };
    let text = |group: Option<(usize, usize)>| {
        group.and_then(|(start, end)| subject.get(start..end)).unwrap_or_default().to_vec()
    };
    let last = groups.iter().rposition(Option::is_some).unwrap_or(0);
    shared.groups = groups[..=last].iter().map(|group| text(*group)).collect();
    for (index, name) in regex.names() {
        let value = text(groups.get(index).copied().flatten());
        shared.set(name.to_ascii_lowercase().as_bytes(), value).map_err(|_| Stop::too_much(x))?;
    }
    Ok(true)
}

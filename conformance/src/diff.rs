//! A line diff for people: what was expected, what came, and two lines around.

const AROUND: usize = 2;

enum Line<'a> {
    Same(&'a str),
    Missing(&'a str),
    Extra(&'a str),
}

/// `-` marks expected lines that did not come, `+` lines that were not expected.
pub fn diff(expected: &str, actual: &str) -> String {
    let lines = align(&expected.lines().collect::<Vec<_>>(), &actual.lines().collect::<Vec<_>>());
    let changed = |at: usize| {
        let (low, high) = (at.saturating_sub(AROUND), (at + AROUND).min(lines.len() - 1));
        lines[low..=high].iter().any(|l| !matches!(l, Line::Same(_)))
    };
    let heading = |at: usize| matches!(lines[at], Line::Same(l) if l.starts_with("== "));
    let mut out = String::new();
    let mut last_heading = None;
    let mut shown = None;
    for at in 0..lines.len() {
        if heading(at) {
            last_heading = Some(at);
        }
        if !changed(at) {
            continue;
        }
        if shown.is_none_or(|s| s + 1 < at) {
            match (last_heading, &lines[last_heading.unwrap_or(at)]) {
                (Some(h), Line::Same(text)) if h != at && shown.is_none_or(|s| s < h) => {
                    out.push_str(&format!("    {text}\n    ...\n"));
                }
                _ => out.push_str("    ...\n"),
            }
        }
        let (mark, text) = match lines[at] {
            Line::Same(l) => (' ', l),
            Line::Missing(l) => ('-', l),
            Line::Extra(l) => ('+', l),
        };
        out.push_str(&format!("  {mark} {text}\n"));
        shown = Some(at);
    }
    out
}

/// The longest common subsequence by the textbook table: transcripts have hundreds of lines, not millions.
fn align<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Line<'a>> {
    let width = new.len() + 1;
    let mut best = vec![0u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            best[i * width + j] = if old[i] == new[j] {
                best[(i + 1) * width + j + 1] + 1
            } else {
                best[(i + 1) * width + j].max(best[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut out = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            out.push(Line::Same(old[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < old.len() && (j == new.len() || best[(i + 1) * width + j] >= best[i * width + j + 1]) {
            out.push(Line::Missing(old[i]));
            i += 1;
        } else {
            out.push(Line::Extra(new[j]));
            j += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::diff;

    #[track_caller]
    fn check(expected: &str, actual: &str, shown: &str) {
        assert_eq!(diff(expected, actual), shown);
    }

    #[test]
    fn only_what_differs_is_shown() {
        check("a\nb\n", "a\nb\n", "");
        check("a\nb\nc\n", "a\nx\nc\n", "    ...\n    a\n  - b\n  + x\n    c\n");
    }

    #[test]
    fn the_step_that_a_difference_belongs_to_is_named() {
        check(
            "== ask\n1\n2\n3\n4\n",
            "== ask\n1\n2\n3\n5\n",
            "    == ask\n    ...\n    2\n    3\n  - 4\n  + 5\n",
        );
    }
}

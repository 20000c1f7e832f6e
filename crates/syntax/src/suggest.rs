//! Did-you-mean: the known word that is nearest to what was written.

/// The candidate with the fewest edits (insert, delete, replace, swap of neighbours) from `word`, if they are few
/// enough for a slip of the hand: at most a third of its length. The first of equals wins.
pub fn suggest<'a>(word: &[u8], candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = word.len().max(3) / 3;
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        if candidate.len().abs_diff(word.len()) > most {
            continue;
        }
        let edits = distance(word, candidate.as_bytes());
        if edits <= most && best.is_none_or(|(least, _)| edits < least) {
            best = Some((edits, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// The optimal string alignment distance, ASCII case ignored.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1; b.len() + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(!x.eq_ignore_ascii_case(y));
            row[j + 1] = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            let swapped =
                i > 0 && j > 0 && a[i - 1].eq_ignore_ascii_case(y) && x.eq_ignore_ascii_case(&b[j - 1]);
            if swapped {
                row[j + 1] = row[j + 1].min(before[j - 1] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::suggest;

    const NAMES: [&str; 6] = ["proxy_pass", "proxy_set_header", "listen", "server", "server_name", "map"];

    #[track_caller]
    fn check(word: &str, expected: Option<&str>) {
        assert_eq!(suggest(word.as_bytes(), NAMES), expected, "{word}");
    }

    #[test]
    fn nearest() {
        check("proxy_pas", Some("proxy_pass"));
        check("porxy_pass", Some("proxy_pass"));
        check("proxy-pass", Some("proxy_pass"));
        check("lisetn", Some("listen"));
        check("Listen", Some("listen"));
        check("servers", Some("server"));
        check("mpa", Some("map"));
        check("xyz", None);
        check("gzip", None);
        check("", None);
    }
}

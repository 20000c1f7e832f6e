//! Browsers that nginx treats apart: `keepalive_disable`, `msie_padding`, `msie_refresh`.

use memchr::memmem::find;

/// What a `User-Agent` gives away. Asked for only where a directive needs it, since it costs several searches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Browser {
    /// Internet Explorer of any version.
    pub msie: bool,
    /// Internet Explorer 4 to 6, without the service pack that made 6 usable.
    pub msie6: bool,
    /// Opera.
    pub opera: bool,
    /// Gecko, unless it is one of the above.
    pub gecko: bool,
    /// Chrome, unless it is one of the above.
    pub chrome: bool,
    /// Safari on macOS, unless it is one of the above.
    pub safari: bool,
    /// Konqueror, unless it is one of the above.
    pub konqueror: bool,
}

impl Browser {
    /// Reads the value of a `User-Agent` header.
    pub fn of(agent: &[u8]) -> Self {
        let has = |word: &str| find(agent, word.as_bytes()).is_some();
        let mut browser = Self::default();
        if let Some(at) = find(agent, b"MSIE ")
            && let Some([major, mark, rest @ ..]) = agent.get(at + 5..)
            && !rest.is_empty()
        {
            browser.msie = true;
            if *mark == b'.' {
                browser.msie6 = match major {
                    b'4' | b'5' => true,
                    b'6' => find(rest, b"SV1").is_none(),
                    _ => false,
                };
            }
        }
        if has("Opera") {
            return Self { opera: true, ..Self::default() };
        }
        if browser.msie {
            return browser;
        }
        if has("Gecko/") {
            browser.gecko = true;
        } else if has("Chrome/") {
            browser.chrome = true;
        } else if has("Safari/") && has("Mac OS X") {
            browser.safari = true;
        } else if has("Konqueror") {
            browser.konqueror = true;
        }
        browser
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(agent: &str, expected: Browser) {
        assert_eq!(Browser::of(agent.as_bytes()), expected, "{agent}");
    }

    #[test]
    fn browsers() {
        let none = Browser::default();
        check("curl/8", none);
        check("Mozilla/4.0 (compatible; MSIE 6.0; Windows)", Browser { msie: true, msie6: true, ..none });
        check("Mozilla/4.0 (compatible; MSIE 6.0; Windows; SV1)", Browser { msie: true, ..none });
        check("Mozilla/4.0 (compatible; MSIE 5.5; Windows)", Browser { msie: true, msie6: true, ..none });
        check("Mozilla/4.0 (compatible; MSIE 10.0; Windows)", Browser { msie: true, ..none });
        check("MSIE 6", none);
        check("MSIE 6.", none);
        check("MSIE 6.0", Browser { msie: true, msie6: true, ..none });
        check("Mozilla/4.0 (MSIE 6.0) Opera 8", Browser { opera: true, ..none });
        check("Mozilla/5.0 Gecko/2010 Firefox/1", Browser { gecko: true, ..none });
        check(
            "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120 Safari/537.36",
            Browser { chrome: true, ..none },
        );
        check("(Macintosh; Mac OS X) AppleWebKit Safari/605", Browser { safari: true, ..none });
        check("Safari/605", none);
        check("Konqueror/4", Browser { konqueror: true, ..none });
    }
}

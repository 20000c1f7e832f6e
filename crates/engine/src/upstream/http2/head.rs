//! Heads of requests as peers get them, and what is behind the bodies of answers.

use crate::http::Headers;
use crate::http2::hpack::Fields;

/// Bytes of a name or a value at most, as in nginx: lengths have four octets.
const LONGEST: usize = 127 + (1 << 21) - 1;

/// A request as a module puts it together.
pub struct RequestHead {
    method: Vec<u8>,
    path: Vec<u8>,
    authority: Vec<u8>,
    tls: bool,
    fields: Fields,
}

impl RequestHead {
    pub fn new(method: Vec<u8>, path: Vec<u8>, authority: Vec<u8>) -> Self {
        Self { method, path, authority, tls: false, fields: Fields::default() }
    }

    /// Adds a field. What HTTP/2 has no place for stays behind: fields of the connection, which are for others than the peer.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        if !is_of_connection(name, value) {
            self.fields.push(name, value);
        }
    }

    /// Whether the answer has no body, whatever its head says.
    pub fn is_to_head(&self) -> bool {
        self.method.eq_ignore_ascii_case(b"HEAD")
    }

    /// Path and arguments.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// As it goes to a peer, with TLS or without.
    ///
    /// # Errors
    /// It cannot, for what the error log is told.
    pub(in crate::upstream) fn build(mut self, tls: bool) -> Result<Self, String> {
        self.tls = tls;
        let text = String::from_utf8_lossy;
        if self.method.len() > LONGEST {
            return Err(format!("too long http2 method: \"{}\"", text(&self.method)));
        }
        if self.path.len() > LONGEST {
            return Err("too long http2 URI".into());
        }
        if self.authority.len() > LONGEST {
            return Err(format!("too long http2 host: \"{}\"", text(&self.authority)));
        }
        for (name, value) in self.fields.iter() {
            if name.len() > LONGEST {
                return Err("too long http2 header name".into());
            }
            if value.len() > LONGEST {
                return Err(format!("too long http2 header value: \"{}\"", text(name)));
            }
        }
        Ok(self)
    }

    /// All of it as fields.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let scheme: &[u8] = if self.tls { b"https" } else { b"http" };
        let pseudo: [(&[u8], &[u8]); 4] = [
            (b":method", &self.method),
            (b":scheme", scheme),
            (b":path", &self.path),
            (b":authority", &self.authority),
        ];
        pseudo.into_iter().chain(self.fields.iter())
    }

    /// How long it reads.
    pub(super) fn size(&self) -> usize {
        let fields = self.fields.iter().map(|(name, value)| name.len() + value.len());
        self.method.len() + self.path.len() + self.authority.len() + fields.sum::<usize>()
    }
}

/// Fields of a connection (RFC 9113 section 8.2.2), and the host that the authority is.
fn is_of_connection(name: &[u8], value: &[u8]) -> bool {
    const NAMES: [&[u8]; 6] =
        [b"connection", b"transfer-encoding", b"upgrade", b"host", b"keep-alive", b"proxy-connection"];
    let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
    NAMES.into_iter().any(is) || is(b"te") && !value.eq_ignore_ascii_case(b"trailers")
}

/// Fields behind a body.
pub(in crate::upstream) fn trailers(fields: &Fields) -> Headers {
    let mut all = Headers::default();
    for (name, value) in fields.iter() {
        all.push(name, value);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_connection_stay() {
        #[track_caller]
        fn check(name: &str, value: &str, stays: bool) {
            let got = is_of_connection(name.as_bytes(), value.as_bytes());
            assert_eq!(got, stays, "{name}: {value}");
        }
        for name in ["connection", "upgrade", "keep-alive", "proxy-connection", "transfer-encoding", "host"] {
            check(name, "x", true);
            check(&name.to_ascii_uppercase(), "x", true);
        }
        check("te", "gzip", true);
        check("TE", "trailers", false);
        check("x", "y", false);
    }

    #[test]
    fn what_is_too_long_is_told() {
        #[track_caller]
        fn check(lengths: [usize; 5], expected: Result<(), &str>) {
            let [method, path, authority, name, value] = lengths.map(|length| vec![b'a'; length]);
            let mut head = RequestHead::new(method, path, authority);
            head.push(&name, &value);
            let built = head.build(true).map(|_| ());
            let start = |message: String| message.chars().take(28).collect::<String>();
            assert_eq!(built.map_err(start), expected.map_err(str::to_owned));
        }
        const MOST: usize = 2_097_278;
        check([MOST; 5], Ok(()));
        check([MOST + 1, 1, 1, 1, 1], Err("too long http2 method: \"aaaa"));
        check([1, MOST + 1, 1, 1, 1], Err("too long http2 URI"));
        check([1, 1, MOST + 1, 1, 1], Err("too long http2 host: \"aaaaaa"));
        check([1, 1, 1, MOST + 1, 1], Err("too long http2 header name"));
        check([1, 1, 1, 1, MOST + 1], Err("too long http2 header value:"));
    }
}

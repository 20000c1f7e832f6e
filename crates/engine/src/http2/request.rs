//! The head of a request, from its fields to what the phases read.

use super::hpack::Fields;
use super::send::Key;
use crate::http::{Exchange, base64_encode};
use crate::http1::Limits;
use crate::http1::request::{Assembled, Head, Reject};

/// A request as it came.
#[derive(Debug)]
pub(super) struct Came {
    pub(super) stream: u32,
    /// Bytes of its block of fields.
    pub(super) length: usize,
    pub(super) fields: Fields,
    pub(super) asked: Asked,
    /// No body follows.
    pub(super) ends: bool,
}

#[cfg(test)]
impl Came {
    /// A request without fields.
    pub(super) fn of(stream: u32) -> Self {
        Self { stream, length: 0, fields: Fields::default(), asked: Asked::Request, ends: false }
    }
}

/// What a stream asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Request,
    /// A WebSocket (RFC 8441).
    WebSocket,
}

/// What is asked for where streams may become tunnels.
pub(super) fn asked(fields: &Fields) -> Asked {
    let has = |wanted: &[u8], is: &dyn Fn(&[u8]) -> bool| {
        fields.iter().any(|(name, value)| name == wanted && is(value))
    };
    let connects = has(b":method", &|method| method == b"CONNECT");
    match connects && has(b":protocol", &|protocol| protocol.eq_ignore_ascii_case(b"websocket")) {
        true => Asked::WebSocket,
        false => Asked::Request,
    }
}

/// The block of fields that hyper is given for a request: all that it has to know is whether it may become a tunnel, and by the
/// path it says which one it hands over. All of it without an index, and raw (RFC 7541 sections 6.1 and 6.2.2).
pub(super) fn of_hyper(stream: u32, asked: Asked) -> Vec<u8> {
    const GET: u8 = 0x82;
    const HTTP: u8 = 0x86;
    const METHOD: u8 = 2;
    const PATH: u8 = 4;
    let mut block = match asked {
        Asked::Request => vec![GET],
        Asked::WebSocket => {
            [&[METHOD, 7][..], b"CONNECT", &[0, 9], b":protocol", &[9], b"websocket"].concat()
        }
    };
    let mut number = itoa::Buffer::new();
    let number = number.format(stream);
    block.extend_from_slice(&[HTTP, PATH, number.len() as u8 + 1, b'/']);
    block.extend_from_slice(number.as_bytes());
    block
}

/// The stream of a request that hyper hands over.
pub(super) fn stream(path: &str) -> Option<u32> {
    path.strip_prefix('/')?.parse().ok()
}

/// Reads the head of what is asked for.
///
/// A WebSocket is an upgrade of HTTP/1.1 for all that follows, with a key of our own that the upstream has to answer.
pub(super) fn read(x: &mut Exchange, came: &Came, limits: &Limits) -> Result<(), Reject> {
    if came.asked == Asked::Request {
        return assemble(&mut x.head, came, None, limits);
    }
    let mut random = [0; 16];
    if aws_lc_rs::rand::fill(&mut random).is_err() {
        return Err(Reject::new(500, "no randomness for the key of an upgrade"));
    }
    let key = base64_encode(&random);
    let judged = assemble(&mut x.head, came, Some(&key), limits);
    x.remember(Key(key));
    judged
}

/// Reads a head, with what makes an upgrade of it if there is a key for that.
pub(super) fn assemble(
    head: &mut Head,
    came: &Came,
    key: Option<&str>,
    limits: &Limits,
) -> Result<(), Reject> {
    let Some(key) = key else { return Lines::of(came, &[], limits).assemble(head, came, limits) };
    let upgrade: [(&[u8], &[u8]); 3] =
        [(b"upgrade", b"websocket"), (b"connection", b"upgrade"), (b"sec-websocket-key", key.as_bytes())];
    Lines::of(came, &upgrade, limits).assemble(head, came, limits)
}

/// The fields of a request as far as nothing is wrong with them.
#[derive(Default)]
struct Lines<'f> {
    method: Option<&'f [u8]>,
    scheme: Option<&'f [u8]>,
    path: Option<&'f [u8]>,
    authority: Option<&'f [u8]>,
    cookies: Vec<&'f [u8]>,
    fields: Vec<(&'f [u8], &'f [u8])>,
    /// A field without a colon has come, so the line is complete.
    complete: bool,
    wrong: Option<Reject>,
}

impl<'f> Lines<'f> {
    /// Sorts fields up to the first one that is wrong, with further ones that make an upgrade of it.
    fn of(came: &'f Came, upgrade: &[(&'f [u8], &'f [u8])], limits: &Limits) -> Self {
        let mut lines =
            Self { fields: Vec::with_capacity(came.fields.len() + upgrade.len()), ..Self::default() };
        let is_request = upgrade.is_empty();
        let fields = came.fields.iter().filter(|(name, _)| is_request || *name != b":protocol");
        lines.wrong = fields
            .filter(|(name, _)| is_request || *name != b"sec-websocket-key")
            .try_for_each(|(name, value)| lines.take(name, value, limits))
            .and_then(|()| lines.line())
            .and_then(|()| lines.connection())
            .err();
        if !is_request {
            lines.method = Some(b"GET");
            lines.fields.extend_from_slice(upgrade);
        }
        lines
    }

    fn take(&mut self, name: &'f [u8], value: &'f [u8], limits: &Limits) -> Result<(), Reject> {
        let (pseudo, rest) = match name {
            [b':', rest @ ..] => (true, rest),
            _ => (false, name),
        };
        let wrong = |byte: &u8| matches!(byte, 0..=b' ' | 0x7f | b':' | b'A'..=b'Z');
        if rest.iter().any(wrong) {
            return Err(quoting(&[b"client sent invalid header name: \"", name, b"\""]));
        }
        if value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
            let parts: [&[u8]; 5] =
                [b"client sent header \"", name, b"\" with invalid value: \"", value, b"\""];
            return Err(quoting(&parts));
        }
        if pseudo {
            return self.pseudo(rest, value);
        }
        self.line()?;
        if name == b"cookie" {
            self.cookies.push(value);
            return Ok(());
        }
        if self.fields.len() >= limits.max_headers {
            return Err(Reject::new(494, "client sent too many header lines"));
        }
        self.fields.push((name, value));
        Ok(())
    }

    fn pseudo(&mut self, name: &[u8], value: &'f [u8]) -> Result<(), Reject> {
        if self.complete {
            return Err(Reject::new(400, "client sent out of order pseudo-headers"));
        }
        let slot = match name {
            b"method" => &mut self.method,
            b"scheme" => &mut self.scheme,
            b"path" => &mut self.path,
            b"authority" if self.authority.is_some() => {
                return Err(Reject::new(400, "client sent duplicate \":authority\" header"));
            }
            b"authority" => {
                self.authority = Some(value);
                return Ok(());
            }
            _ => return Err(quoting(&[b"client sent unknown pseudo-header \":", name, b"\""])),
        };
        let what: &[u8] = match (&slot, value) {
            (Some(_), _) => b"duplicate",
            (None, []) => b"empty",
            (None, _) => {
                *slot = Some(value);
                return self.scheme();
            }
        };
        Err(quoting(&[b"client sent ", what, b" :", name, b" header"]))
    }

    fn scheme(&self) -> Result<(), Reject> {
        let Some(scheme @ [first, ..]) = self.scheme else { return Ok(()) };
        let part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        if first.is_ascii_alphabetic() && scheme.iter().all(part) {
            return Ok(());
        }
        Err(quoting(&[b"client sent invalid :scheme header: \"", scheme, b"\""]))
    }

    /// What a request cannot do without.
    fn line(&mut self) -> Result<(), Reject> {
        let missing = match (self.method, self.scheme, self.path) {
            (None, _, _) => "client sent no :method header",
            (_, None, _) => "client sent no :scheme header",
            (_, _, None) => "client sent no :path header",
            (Some(_), Some(_), Some(_)) => {
                self.complete = true;
                return Ok(());
            }
        };
        Err(Reject::new(400, missing))
    }

    /// What belongs to a connection has no place here (RFC 9113 section 8.2.2).
    fn connection(&mut self) -> Result<(), Reject> {
        let has = |wanted: &[u8]| self.fields.iter().any(|(name, _)| *name == wanted);
        for (name, shown) in OF_HTTP1 {
            if has(name) {
                return Err(quoting(&[b"client sent \"", shown, b"\" header"]));
            }
        }
        let mut te = self.fields.iter().filter(|(name, _)| *name == b"te");
        match (te.next(), te.next()) {
            (None, _) => Ok(()),
            (Some((_, value)), None) if value.eq_ignore_ascii_case(b"trailers") => Ok(()),
            (Some(_), _) => Err(Reject::new(400, "client sent invalid \"TE\" header")),
        }
    }

    /// Puts the head together.
    fn assemble(self, head: &mut Head, came: &Came, limits: &Limits) -> Result<(), Reject> {
        if !self.complete {
            head.assemble_nothing(self.authority);
            return self.wrong.map_or(Ok(()), Err);
        }
        let assembled = Assembled {
            method: self.method.unwrap_or_default(),
            path: self.path.unwrap_or_default(),
            authority: self.authority,
            cookie: (!self.cookies.is_empty()).then(|| self.cookies.join(&b"; "[..])),
            streams: !came.ends && came.asked == Asked::Request,
        };
        // The cookie, the host and what makes an upgrade are not among those that were counted.
        let limits = Limits { max_headers: limits.max_headers.saturating_add(5), ..limits.clone() };
        let judged = head.assemble(&assembled, self.fields.into_iter(), &limits);
        match self.wrong {
            Some(wrong) if head.has_line() => Err(wrong),
            Some(_) | None => judged,
        }
    }
}

/// Fields of a connection, and as messages have them.
pub(super) const OF_HTTP1: [(&[u8], &[u8]); 5] = [
    (b"connection", b"Connection"),
    (b"proxy-connection", b"Proxy-Connection"),
    (b"keep-alive", b"Keep-Alive"),
    (b"transfer-encoding", b"Transfer-Encoding"),
    (b"upgrade", b"Upgrade"),
];

fn quoting(parts: &[&[u8]]) -> Reject {
    Reject::quoting(400, parts)
}

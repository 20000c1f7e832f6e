//! The request line, read byte by byte as it arrives: nginx answers the first byte that cannot belong to a request
//! line without waiting for its end, so that a TLS hello on a plain port gets its 400 at once.

use super::uri::UriScan;

/// Why a request line is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadRequestLine {
    Method,
    Request,
    Version,
    /// Anything but GET without a version.
    Http09Method,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Start,
    Method,
    BeforeUri,
    Scheme,
    /// This many slashes of `://` are still to come.
    Slashes(u8),
    BeforeHost,
    HostStart,
    Host,
    HostEnd,
    HostLiteral,
    PortStart,
    Port,
    Uri,
    AfterUri,
    /// This many bytes of `HTTP/` have been read.
    Protocol(u8),
    MajorStart,
    Major,
    MinorStart,
    Minor,
    AfterVersion,
    Lf,
    Done,
}

/// A request line in the making; offsets are those of the buffer given to `run`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RequestLine {
    stage: Stage,
    pub(crate) pos: usize,
    pub(crate) method_end: usize,
    pub(crate) is_connect: bool,
    pub(crate) uri_start: usize,
    pub(crate) uri_end: usize,
    pub(crate) uri: UriScan,
    /// The scheme of an absolute form.
    pub(crate) scheme: Option<(usize, usize)>,
    pub(crate) host: Option<(usize, usize)>,
    host_start: usize,
    /// The URI is arguments only (`http://host?a`): its path is `/`, which is nowhere in the line.
    pub(crate) empty_path: bool,
    pub(crate) protocol: Option<usize>,
    major: u16,
    minor: u16,
    /// Without its line end.
    pub(crate) end: usize,
}

impl RequestLine {
    /// One of which only its first bytes are known.
    pub(crate) fn cut(end: usize) -> Self {
        Self { end, ..Self::default() }
    }

    /// The line `METHOD URI HTTP/2.0`, as if it had been read.
    pub(crate) fn of_parts(method: usize, uri: usize) -> Self {
        let (uri_start, uri_end) = (method + 1, method + 1 + uri);
        let (protocol, end) = (uri_end + 1, uri_end + " HTTP/2.0".len());
        Self {
            stage: Stage::Done,
            pos: end + 2,
            method_end: method,
            uri_start,
            uri_end,
            protocol: Some(protocol),
            major: 2,
            end,
            ..Self::default()
        }
    }

    /// Looks at the URI of such a line; false where it is none.
    pub(crate) fn scan_uri(&mut self, buf: &[u8]) -> bool {
        buf.get(self.uri_start) == Some(&b'/') && self.uri.run(buf, self.uri_start + 1) == self.uri_end
    }

    /// 1000 times the major plus the minor number, 9 without any.
    pub(crate) fn version(&self) -> u16 {
        self.major * 1000 + self.minor
    }

    pub(crate) fn method_is_over(&self) -> bool {
        !matches!(self.stage, Stage::Start | Stage::Method)
    }

    /// Reads on; true once the whole line is read, `pos` being behind its LF.
    pub(crate) fn run(&mut self, buf: &[u8]) -> Result<bool, BadRequestLine> {
        if self.pos == 0 && buf.starts_with(b"GET /") {
            self.method_end = 3;
            self.pos = 4;
            self.start_uri();
            self.pos = 5;
        }
        while let Some(&byte) = buf.get(self.pos) {
            match self.stage {
                Stage::Start | Stage::Method => {
                    if byte == b' ' && self.stage == Stage::Method {
                        self.method_end = self.pos;
                        self.is_connect = buf.get(..self.pos) == Some(b"CONNECT".as_slice());
                        self.stage = if self.is_connect { Stage::BeforeHost } else { Stage::BeforeUri };
                    } else if byte.is_ascii_uppercase() || byte == b'_' || byte == b'-' {
                        self.stage = Stage::Method;
                    } else {
                        return Err(BadRequestLine::Method);
                    }
                }
                Stage::BeforeUri => match byte {
                    b'/' => self.start_uri(),
                    b' ' => {}
                    byte if byte.is_ascii_alphabetic() => {
                        self.scheme = Some((self.pos, self.pos));
                        self.stage = Stage::Scheme;
                    }
                    _ => return Err(BadRequestLine::Request),
                },
                Stage::Scheme => match byte {
                    b':' => {
                        self.scheme = self.scheme.map(|(start, _)| (start, self.pos));
                        self.stage = Stage::Slashes(2);
                    }
                    b'+' | b'-' | b'.' => {}
                    byte if byte.is_ascii_alphanumeric() => {}
                    _ => return Err(BadRequestLine::Request),
                },
                Stage::Slashes(left) => match (byte, left) {
                    (b'/', 1) => self.stage = Stage::HostStart,
                    (b'/', left) => self.stage = Stage::Slashes(left - 1),
                    _ => return Err(BadRequestLine::Request),
                },
                Stage::BeforeHost if byte == b' ' => {}
                Stage::BeforeHost | Stage::HostStart => {
                    self.host_start = self.pos;
                    self.stage = if byte == b'[' { Stage::HostLiteral } else { Stage::Host };
                    if byte != b'[' {
                        continue;
                    }
                }
                Stage::Host if byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-' => {}
                Stage::Host | Stage::HostEnd if byte == b':' => self.stage = Stage::PortStart,
                Stage::Host | Stage::HostEnd if self.is_connect => return Err(BadRequestLine::Request),
                Stage::Host | Stage::HostEnd => self.after_authority(byte)?,
                Stage::HostLiteral => match byte {
                    b']' => self.stage = Stage::HostEnd,
                    byte if byte.is_ascii_alphanumeric() || b":-._~!$&'()*+,;=".contains(&byte) => {}
                    _ => return Err(BadRequestLine::Request),
                },
                Stage::PortStart | Stage::Port if byte.is_ascii_digit() => self.stage = Stage::Port,
                Stage::PortStart if self.is_connect => return Err(BadRequestLine::Request),
                Stage::PortStart | Stage::Port if self.is_connect => {
                    if byte != b' ' {
                        return Err(BadRequestLine::Request);
                    }
                    self.host = Some((self.host_start, self.pos));
                    self.stage = Stage::AfterUri;
                }
                Stage::PortStart | Stage::Port => self.after_authority(byte)?,
                Stage::Uri => {
                    self.pos = self.uri.run(buf, self.pos);
                    self.uri_end = self.pos;
                    match buf.get(self.pos) {
                        None => return Ok(false),
                        Some(b' ') => self.stage = Stage::AfterUri,
                        Some(b'\r') => self.http_09(Stage::Lf),
                        Some(b'\n') => self.http_09(Stage::Done),
                        Some(_) => return Err(BadRequestLine::Request),
                    }
                }
                Stage::AfterUri => match byte {
                    b' ' => {}
                    b'\r' => self.http_09(Stage::Lf),
                    b'\n' => self.http_09(Stage::Done),
                    b'H' => {
                        self.protocol = Some(self.pos);
                        self.stage = Stage::Protocol(1);
                        if self.ordinary_version(buf) {
                            return Ok(true);
                        }
                    }
                    _ => return Err(BadRequestLine::Request),
                },
                Stage::Protocol(read) => {
                    if b"HTTP/".get(read as usize) != Some(&byte) {
                        return Err(BadRequestLine::Request);
                    }
                    self.stage = Stage::Protocol(read + 1);
                    if byte == b'/' {
                        self.stage = Stage::MajorStart;
                        if self.is_connect {
                            self.uri_start = self.pos;
                            self.uri_end = self.pos + 1;
                        }
                    }
                }
                Stage::MajorStart => match byte {
                    b'1' => {
                        self.major = 1;
                        self.stage = Stage::Major;
                    }
                    b'2'..=b'9' => return Err(BadRequestLine::Version),
                    _ => return Err(BadRequestLine::Request),
                },
                Stage::Major => match byte {
                    b'.' => self.stage = Stage::MinorStart,
                    b'0'..=b'9' => return Err(BadRequestLine::Version),
                    _ => return Err(BadRequestLine::Request),
                },
                Stage::MinorStart | Stage::Minor if byte.is_ascii_digit() => {
                    if self.minor > 99 {
                        return Err(BadRequestLine::Request);
                    }
                    self.minor = self.minor * 10 + u16::from(byte - b'0');
                    self.stage = Stage::Minor;
                }
                Stage::MinorStart => return Err(BadRequestLine::Request),
                Stage::Minor | Stage::AfterVersion => match byte {
                    b' ' => self.stage = Stage::AfterVersion,
                    b'\r' => self.over(Stage::Lf),
                    b'\n' => self.over(Stage::Done),
                    _ => return Err(BadRequestLine::Request),
                },
                Stage::Lf if byte == b'\n' => self.stage = Stage::Done,
                Stage::Lf => return Err(BadRequestLine::Request),
                Stage::Done => return Ok(true),
            }
            self.pos += 1;
            if self.stage == Stage::Done {
                let is_get = buf.get(..self.method_end) == Some(b"GET".as_slice());
                return if self.version() == 9 && !is_get {
                    Err(BadRequestLine::Http09Method)
                } else {
                    Ok(true)
                };
            }
        }
        Ok(self.stage == Stage::Done)
    }

    fn start_uri(&mut self) {
        self.uri_start = self.pos;
        self.uri_end = self.pos;
        self.stage = Stage::Uri;
    }

    /// The byte behind the host and port of an absolute form.
    fn after_authority(&mut self, byte: u8) -> Result<(), BadRequestLine> {
        self.host = Some((self.host_start, self.pos));
        match byte {
            b'/' => self.start_uri(),
            b'?' => {
                self.start_uri();
                self.uri = UriScan::in_args(self.pos + 1);
                self.empty_path = true;
            }
            b' ' => {
                // The path is "/"; one of the slashes behind the scheme stands for it.
                let scheme_end = self.scheme.map_or(0, |(_, end)| end);
                self.uri_start = scheme_end + 1;
                self.uri_end = scheme_end + 2;
                self.stage = Stage::AfterUri;
            }
            _ => return Err(BadRequestLine::Request),
        }
        Ok(())
    }

    fn over(&mut self, stage: Stage) {
        self.end = self.pos;
        self.stage = stage;
    }

    fn http_09(&mut self, stage: Stage) {
        self.minor = 9;
        self.over(stage);
    }

    /// Takes the usual ending of a request line in one step.
    #[inline]
    fn ordinary_version(&mut self, buf: &[u8]) -> bool {
        let Some(minor) = buf.get(self.pos..self.pos + 10).and_then(|end| match end {
            b"HTTP/1.1\r\n" => Some(1),
            b"HTTP/1.0\r\n" => Some(0),
            _ => None,
        }) else {
            return false;
        };
        if self.is_connect {
            self.uri_start = self.pos + 4;
            self.uri_end = self.pos + 5;
        }
        self.major = 1;
        self.minor = minor;
        self.end = self.pos + 8;
        self.pos += 10;
        self.stage = Stage::Done;
        true
    }
}

//! Formats (`log_format`): read once, compiled to steps that append to a line.

use weir_engine::contract::TunnelFacts;
use weir_engine::generation::Build;
use weir_engine::http::template::Reference;
use weir_engine::http::{Exchange, variables};
use weir_engine::http1::uri::escape_json;
use weir_ir::VariableId;

/// What is done to the bytes of a variable (`escape=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Escape {
    /// `\xXX` for quotes, backslashes and what is not printable ASCII; `-` for a variable without a value.
    Default,
    /// What a JSON string needs.
    Json,
    None,
}

/// A format as written.
#[derive(Clone, Debug)]
pub(super) struct FormatSpec {
    name: Box<[u8]>,
    escape: Escape,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
    Variable(Box<str>, VariableId),
}

impl FormatSpec {
    pub(super) fn new(name: &[u8], escape: Escape) -> Self {
        Self { name: name.into(), escape, parts: vec![] }
    }

    /// Whether it has exactly that name.
    pub(super) fn is_named(&self, name: &[u8]) -> bool {
        *self.name == *name
    }

    /// Whether `access_log` means it by that name: case does not count there.
    pub(super) fn is_asked_as(&self, name: &[u8]) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// Adds one argument of `log_format`; arguments are joined without anything between them.
    ///
    /// # Errors
    /// `the closing bracket in "…" variable is missing` and `invalid parameter "…"`.
    pub(super) fn add(
        &mut self,
        text: &[u8],
        variable: &mut dyn FnMut(&str) -> VariableId,
    ) -> Result<(), String> {
        let mut rest = text;
        while let Some(at) = memchr::memchr(b'$', rest) {
            self.literal(&rest[..at]);
            let from_dollar = &rest[at..];
            let invalid = || format!("invalid parameter \"{}\"", String::from_utf8_lossy(from_dollar));
            rest = &from_dollar[1..];
            let bracket = rest.first() == Some(&b'{');
            if bracket {
                rest = &rest[1..];
            }
            if rest.is_empty() {
                return Err(invalid());
            }
            let is_name = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
            let length = rest.iter().position(|b| !is_name(b)).unwrap_or(rest.len());
            let name = String::from_utf8_lossy(&rest[..length]).to_ascii_lowercase();
            if bracket && rest.get(length) != Some(&b'}') {
                let shown = String::from_utf8_lossy(&rest[..length]);
                return Err(format!("the closing bracket in \"{shown}\" variable is missing"));
            }
            if name.is_empty() {
                return Err(invalid());
            }
            let id = variable(&name);
            self.parts.push(Part::Variable(name.into(), id));
            rest = &rest[length + usize::from(bracket)..];
        }
        self.literal(rest);
        Ok(())
    }

    fn literal(&mut self, text: &[u8]) {
        match self.parts.last_mut() {
            _ if text.is_empty() => {}
            Some(Part::Literal(before)) => before.extend_from_slice(text),
            Some(Part::Variable(..)) | None => self.parts.push(Part::Literal(text.to_vec())),
        }
    }

    pub(super) fn compile(&self, build: &Build<'_>) -> Format {
        let ops = self.parts.iter().map(|part| match part {
            Part::Literal(text) => Op::Literal(text.as_slice().into()),
            Part::Variable(name, id) => match &**name {
                "pipe" => Op::Pipe,
                "status" => Op::Status,
                "request_length" => Op::RequestLength,
                "time_local" => Op::Late(Late::TimeLocal),
                "time_iso8601" => Op::Late(Late::TimeIso8601),
                "msec" => Op::Late(Late::Msec),
                "request_time" => Op::Late(Late::RequestTime),
                "bytes_sent" => Op::Late(Late::BytesSent),
                "body_bytes_sent" => Op::Late(Late::BodyBytesSent),
                name => Op::Variable { value: build.reference(*id), late: Late::of_variable(name) },
            },
        });
        Format { ops: ops.collect(), escape: self.escape }
    }
}

/// What a tunnel's line learns only at the tunnel's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    TimeLocal,
    TimeIso8601,
    Msec,
    RequestTime,
    BytesSent,
    BodyBytesSent,
    RequestCompletion,
    UpstreamResponseTime,
    UpstreamBytesSent,
    UpstreamBytesReceived,
}

impl Late {
    fn of_variable(name: &str) -> Option<Self> {
        match name {
            "request_completion" => Some(Late::RequestCompletion),
            "upstream_response_time" => Some(Late::UpstreamResponseTime),
            "upstream_bytes_sent" => Some(Late::UpstreamBytesSent),
            "upstream_bytes_received" => Some(Late::UpstreamBytesReceived),
            _ => None,
        }
    }

    /// The value is one of a list, one each attempt, and only the last attempt's changes.
    fn is_listed(self) -> bool {
        matches!(self, Late::UpstreamResponseTime | Late::UpstreamBytesSent | Late::UpstreamBytesReceived)
    }

    pub(super) fn write_facts(self, facts: &TunnelFacts, out: &mut Vec<u8>) {
        match self {
            Late::TimeLocal => out.extend_from_slice(variables::stamps(facts.unix_ms / 1000).local.as_ref()),
            Late::TimeIso8601 => {
                out.extend_from_slice(variables::stamps(facts.unix_ms / 1000).iso8601.as_ref());
            }
            Late::Msec => {
                variables::seconds(facts.unix_ms, out);
            }
            Late::RequestTime => {
                variables::seconds(facts.request_time, out);
            }
            Late::BytesSent => {
                variables::number(facts.bytes_sent, out);
            }
            Late::BodyBytesSent => {
                variables::number(facts.body_bytes_sent, out);
            }
            Late::RequestCompletion if facts.complete => out.extend_from_slice(b"OK"),
            Late::RequestCompletion => {}
            Late::UpstreamResponseTime => {
                variables::seconds(facts.upstream_response_time, out);
            }
            Late::UpstreamBytesSent => {
                variables::number(facts.upstream_bytes_sent, out);
            }
            Late::UpstreamBytesReceived => {
                variables::number(facts.upstream_bytes_received, out);
            }
        }
    }

    /// The same at the end of a request; those that are variables are asked as such.
    fn write(self, x: &Exchange, out: &mut Vec<u8>) {
        let clock = x.reactor.clock();
        match self {
            Late::TimeLocal => {
                out.extend_from_slice(variables::stamps(clock.unix_secs()).local.as_ref());
            }
            Late::TimeIso8601 => {
                out.extend_from_slice(variables::stamps(clock.unix_secs()).iso8601.as_ref());
            }
            Late::Msec => {
                variables::seconds(clock.unix_ms(), out);
            }
            Late::RequestTime => {
                variables::seconds(clock.now_ms().saturating_sub(x.started), out);
            }
            Late::BytesSent => {
                variables::number(x.sent, out);
            }
            Late::BodyBytesSent => {
                variables::number(x.body_sent, out);
            }
            Late::RequestCompletion
            | Late::UpstreamResponseTime
            | Late::UpstreamBytesSent
            | Late::UpstreamBytesReceived => {}
        }
    }
}

enum Op {
    Literal(Box<[u8]>),
    Pipe,
    Status,
    /// A tunnel's bytes do not count.
    RequestLength,
    Late(Late),
    Variable {
        value: Reference,
        late: Option<Late>,
    },
}

/// A format, ready.
pub(super) struct Format {
    ops: Box<[Op]>,
    escape: Escape,
}

impl Format {
    /// Appends the line of a request, without its newline.
    pub(super) fn write(&self, x: &Exchange, out: &mut Vec<u8>) {
        for op in &self.ops {
            match op {
                Op::Late(late) => late.write(x, out),
                op => self.write_op(op, x, out),
            }
        }
    }

    /// Appends what is known when a request becomes a tunnel, and gives the places of what is not.
    pub(super) fn write_known(&self, x: &Exchange, out: &mut Vec<u8>) -> Vec<(u32, Late)> {
        let mut places = vec![];
        for op in &self.ops {
            let late = match op {
                Op::Late(late) => *late,
                Op::Variable { value, late: Some(late) } => {
                    if late.is_listed() {
                        let start = out.len();
                        if !value.append(x, out) {
                            // Without an upstream there is nothing to come.
                            self.write_op(op, x, out);
                            continue;
                        }
                        let last = out[start..].iter().rposition(|b| *b == b' ').map_or(0, |at| at + 1);
                        out.truncate(start + last);
                    }
                    *late
                }
                op => {
                    self.write_op(op, x, out);
                    continue;
                }
            };
            // A line is bounded by the buffers of heads, far below 4 GiB.
            places.push((out.len() as u32, late));
        }
        places
    }

    fn write_op(&self, op: &Op, x: &Exchange, out: &mut Vec<u8>) {
        match op {
            Op::Literal(text) => out.extend_from_slice(text),
            Op::Pipe => out.push(if x.pipelined { b'p' } else { b'.' }),
            Op::Status => variables::status(x, out),
            Op::RequestLength => {
                variables::number(x.request_length, out);
            }
            Op::Late(late) => late.write(x, out),
            Op::Variable { value, .. } => {
                let start = out.len();
                if value.append(x, out) {
                    escape(self.escape, start, out);
                } else {
                    out.truncate(start);
                    if self.escape == Escape::Default {
                        out.push(b'-');
                    }
                }
            }
        }
    }
}

/// Escapes what was appended from `start` on. Nearly always there is nothing to do, so looking comes first.
fn escape(how: Escape, start: usize, out: &mut Vec<u8>) {
    // Without early exit: the compiler looks at many bytes at once.
    let dirty = match how {
        Escape::Default => out[start..].iter().fold(false, |dirty, b| dirty | needs_hex(*b)),
        Escape::Json => out[start..].iter().fold(false, |dirty, b| dirty | needs_json(*b)),
        Escape::None => false,
    };
    if dirty {
        let value = out.split_off(start);
        match how {
            Escape::Default => escape_hex(&value, out),
            Escape::Json => escape_json(&value, out),
            Escape::None => out.extend_from_slice(&value),
        }
    }
}

fn needs_hex(byte: u8) -> bool {
    !(0x20..=0x7e).contains(&byte) | (byte == b'"') | (byte == b'\\')
}

fn needs_json(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\')
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

fn escape_hex(value: &[u8], out: &mut Vec<u8>) {
    for byte in value {
        if needs_hex(*byte) {
            out.extend_from_slice(&[b'\\', b'x', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        } else {
            out.push(*byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_escape(how: Escape, value: &[u8], expected: &str) {
        let mut out = b"\"kept\x01".to_vec();
        let start = out.len();
        out.extend_from_slice(value);
        escape(how, start, &mut out);
        assert_eq!(String::from_utf8_lossy(&out[start..]), expected);
        assert_eq!(&out[..start], b"\"kept\x01");
    }

    #[test]
    fn escapes() {
        check_escape(Escape::Default, b"plain ~ text", "plain ~ text");
        check_escape(Escape::Default, b"a\"b\\c\x7f\xff\n\x00", "a\\x22b\\x5Cc\\x7F\\xFF\\x0A\\x00");
        check_escape(
            Escape::Json,
            b"a\"b\\c\n\r\t\x08\x0c\x01\x1f\x7f",
            "a\\\"b\\\\c\\n\\r\\t\\b\\f\\u0001\\u001F\x7f",
        );
        check_escape(Escape::Json, "ü".as_bytes(), "ü");
        check_escape(Escape::None, b"a\"b\\\x01", "a\"b\\\x01");
    }

    /// The parts of a format of these arguments, variables in brackets; or the message.
    #[track_caller]
    fn check(arguments: &[&str], expected: &str) {
        let mut spec = FormatSpec::new(b"x", Escape::Default);
        let mut result = Ok(());
        for argument in arguments {
            result = result.and_then(|()| spec.add(argument.as_bytes(), &mut |_| VariableId(0)));
        }
        let shown = spec.parts.iter().map(|part| match part {
            Part::Literal(text) => String::from_utf8_lossy(text).into_owned(),
            Part::Variable(name, _) => format!("<{name}>"),
        });
        let shown: Vec<_> = shown.collect();
        assert_eq!(result.map_or_else(|message| message, |()| shown.join("|")), expected);
    }

    #[test]
    fn formats() {
        check(&["$a $b"], "<a>| |<b>");
        check(&["a", "b", "$c", "d"], "ab|<c>|d");
        check(&["${Status}x$1"], "<status>|x|<1>");
        check(&["x$"], "invalid parameter \"$\"");
        check(&["x${"], "invalid parameter \"${\"");
        check(&["x${}y"], "invalid parameter \"${}y\"");
        check(&["x$-y"], "invalid parameter \"$-y\"");
        check(&["${a-b}"], "the closing bracket in \"a\" variable is missing");
        check(&["${ab"], "the closing bracket in \"ab\" variable is missing");
    }
}

//! Takes out of a transcript what differs from run to run (time, ports, pids, the prefix) and what
//! weir names by its own name, and makes any byte readable.

use crate::wire::{Framing, Kind, framing, head_end, message_end, unchunk};

/// What stands for what in one run of a case.
#[derive(Clone, Debug, Default)]
pub struct Normal {
    pub prefix: String,
    /// The port and the name that the case gives it.
    pub ports: Vec<(u16, String)>,
}

/// What stands for `nginx/1.31.5` or `weir`.
const SERVER: &str = "%%SERVER%%";

impl Normal {
    /// `%%PREFIX%%` and `%%PORT_name%%` to what they stand for.
    pub fn fill(&self, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.windows(2).position(|w| w == b"%%") {
            out.extend_from_slice(&rest[..at]);
            rest = &rest[at..];
            let end = rest[2..].windows(2).position(|w| w == b"%%").map_or(2, |n| n + 4);
            let name = std::str::from_utf8(&rest[2..end.max(4) - 2]).unwrap_or_default();
            match (name, name.strip_prefix("PORT_").and_then(|n| self.port(n))) {
                ("PREFIX", _) => out.extend_from_slice(self.prefix.as_bytes()),
                (_, Some(port)) => out.extend_from_slice(port.to_string().as_bytes()),
                _ => out.extend_from_slice(&rest[..end]),
            }
            rest = &rest[end..];
        }
        out.extend_from_slice(rest);
        out
    }

    pub fn port(&self, name: &str) -> Option<u16> {
        self.ports.iter().find(|(_, n)| n == name).map(|(port, _)| *port)
    }

    /// Messages in a row as text, and what follows them.
    pub fn messages(&self, mut bytes: &[u8], kind: Kind) -> String {
        let mut out = String::new();
        while bytes.starts_with(b"HTTP/1.") || kind == Kind::Request && head_end(bytes).is_some() {
            let Some(head) = head_end(bytes) else { break };
            let how = framing(&bytes[..head], kind);
            let end = match how {
                Framing::UntilClose => bytes.len(),
                Framing::Nothing | Framing::Length(_) | Framing::Chunked => {
                    let Some(end) = message_end(bytes, kind) else { break };
                    end
                }
            };
            if !out.is_empty() && !out.ends_with('\n') {
                out.push('\n');
            }
            out.push_str(&self.message(&bytes[..head], &bytes[head..end], how));
            bytes = &bytes[end..];
        }
        out + &self.text(bytes)
    }

    fn message(&self, head: &[u8], body: &[u8], how: Framing) -> String {
        let named = named_in(body);
        let mut head = self.text(head);
        if named > 0
            && let Framing::Length(n) = how
        {
            // A shorter name makes a shorter error page; the placeholder counts as nothing.
            let length = |n: usize| format!("Content-Length: {n}\n");
            head = head.replacen(&length(n), &length(n.saturating_sub(named)), 1);
        }
        let body = match how {
            Framing::Chunked => {
                // Where chunks begin is chance: it follows how the bytes arrived.
                let payload = unchunk(body).map_or_else(|| body.to_vec(), |(payload, _)| payload);
                format!("[chunked]\n{}", self.text(&payload))
            }
            Framing::Nothing | Framing::Length(_) | Framing::UntilClose => self.text(body),
        };
        head + &body
    }

    /// Bytes as readable, normalised text: CRLF ends a line, LF alone shows as `\n`.
    pub fn text(&self, bytes: &[u8]) -> String {
        self.lines(&readable(bytes))
    }

    /// The same for a file or for what a program printed, where LF ends lines.
    pub fn file(&self, bytes: &[u8]) -> String {
        let text: Vec<u8> = bytes.split_inclusive(|b| *b == b'\n').flat_map(with_crlf).collect();
        self.text(&text)
    }

    fn lines(&self, text: &str) -> String {
        let mut text = text.replace(&self.prefix, "%%PREFIX%%");
        for (port, name) in &self.ports {
            text = replace_number(&text, &port.to_string(), &format!("%%PORT_{name}%%"));
        }
        text.split_inclusive('\n').map(line).collect()
    }
}

fn with_crlf(line: &[u8]) -> Vec<u8> {
    match line.strip_suffix(b"\n") {
        Some(l) => [l, b"\r\n"].concat(),
        None => line.to_vec(),
    }
}

/// The length of the server's name at the end of an error page of its own, or 0.
fn named_in(body: &[u8]) -> usize {
    let Ok(text) = std::str::from_utf8(body) else { return 0 };
    text.lines().rev().find_map(own_name).map_or(0, str::len)
}

fn own_name(line: &str) -> Option<&str> {
    let name = line.split_once("<center>")?.1.split_once("</center>")?.0;
    is_own_name(name).then_some(name)
}

fn is_own_name(name: &str) -> bool {
    name == "weir" || name.starts_with("weir/") || name == "nginx" || name.starts_with("nginx/")
}

fn line(line: &str) -> String {
    let (text, end) = line.strip_suffix('\n').map_or((line, ""), |l| (l, "\n"));
    let text = match text.split_once(": ") {
        Some(("Date", _)) => "Date: %%DATE%%".to_owned(),
        Some(("Server", name)) if is_own_name(name) => format!("Server: {SERVER}"),
        _ => match own_name(text) {
            Some(name) => {
                text.replace(&format!("<center>{name}</center>"), &format!("<center>{SERVER}</center>"))
            }
            None => untimed(text),
        },
    };
    text + end
}

/// Without the time, the pid and the connection number that open a line of an error log, and without
/// the time of a line in the combined format.
fn untimed(line: &str) -> String {
    let bytes = line.as_bytes();
    let is_error = bytes.len() > 21 && bytes[4] == b'/' && bytes[13] == b':' && &bytes[19..21] == b" [";
    if is_error && let Some((level, rest)) = line[20..].split_once(' ') {
        let rest = rest.split_once(": ").filter(|(p, _)| p.contains('#')).map_or(rest, |(_, r)| r);
        let rest = match rest.strip_prefix('*').and_then(|r| r.split_once(' ')) {
            Some((number, message)) if number.bytes().all(|b| b.is_ascii_digit()) => message,
            _ => rest,
        };
        return format!("{level} {rest}");
    }
    if let Some((before, rest)) = line.split_once(" [")
        && let Some((time, after)) = rest.split_once(']')
        && time.len() == 26
        && time.as_bytes()[11] == b':'
    {
        return format!("{before} [%%TIME%%]{after}");
    }
    line.to_owned()
}

fn replace_number(text: &str, number: &str, with: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(number) {
        let after = &rest[at + number.len()..];
        let inside = rest[..at].ends_with(|c: char| c.is_ascii_digit())
            || after.starts_with(|c: char| c.is_ascii_digit());
        out.push_str(&rest[..at]);
        out.push_str(if inside { number } else { with });
        rest = after;
    }
    out + rest
}

/// Longer runs of one character are counted instead of shown.
const LONGEST_RUN: usize = 64;

fn readable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let mut chars = chunk.valid().chars().peekable();
        while let Some(c) = chars.next() {
            let mut run = 1;
            while chars.peek() == Some(&c) {
                chars.next();
                run += 1;
            }
            if run > LONGEST_RUN {
                out.push_str(&format!("[{}*{run}]", c.escape_default()));
                continue;
            }
            for _ in 0..run {
                match c {
                    '\r' => out.push_str("\\r"),
                    '\n' if out.ends_with("\\r") => {
                        out.truncate(out.len() - 2);
                        out.push('\n');
                    }
                    '\n' => out.push_str("\\n\n"),
                    '\t' => out.push_str("\\t"),
                    c if c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
                    c => out.push(c),
                }
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal() -> Normal {
        Normal { prefix: "/tmp/x1".into(), ports: vec![(12345, "8080".into())] }
    }

    #[track_caller]
    fn check(bytes: &str, expected: &str) {
        assert_eq!(normal().text(bytes.as_bytes()), expected);
    }

    #[test]
    fn what_changes_from_run_to_run_is_taken_out() {
        check("Date: Sun, 22 Nov 2026 18:41:11 GMT\r\n", "Date: %%DATE%%\n");
        check("Location: http://a:12345/tmp/x1/\r\n", "Location: http://a:%%PORT_8080%%%%PREFIX%%/\n");
        check("112345 123456", "112345 123456");
        check("2026/11/22 18:41:11 [error] 1#2: *3 open() failed", "[error] open() failed");
        check("2026/11/22 18:41:11 [notice] 1#2: signal", "[notice] signal");
        check("1.1.1.1 - - [22/Nov/2026:18:41:11 +0000] \"GET\"", "1.1.1.1 - - [%%TIME%%] \"GET\"");
    }

    #[test]
    fn both_servers_have_one_name() {
        check("Server: nginx/1.31.5\r\n", "Server: %%SERVER%%\n");
        check("Server: weir\r\n", "Server: %%SERVER%%\n");
        check("Server: other\r\n", "Server: other\n");
    }

    #[test]
    fn an_error_page_has_the_length_of_its_other_bytes() {
        let page = |name: &str| {
            let body = format!("<hr><center>{name}</center>\r\n");
            let response = format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            normal().messages(response.as_bytes(), Kind::Response)
        };
        assert_eq!(page("nginx/1.31.5"), page("weir"));
        assert!(page("weir").contains("Content-Length: 23\n"), "{}", page("weir"));
    }

    #[test]
    fn chunks_are_joined() {
        let response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n";
        assert_eq!(
            normal().messages(response, Kind::Response),
            "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n[chunked]\nab"
        );
    }

    #[test]
    fn every_byte_is_readable() {
        check("a\nb", "a\\n\nb");
        assert_eq!(readable(b"\xff\0\r"), "\\xff\\x00\\r");
        assert_eq!(readable(&[b'x'; 100]), "[x*100]");
    }

    #[test]
    fn placeholders_are_filled() {
        assert_eq!(normal().fill(b"%%PREFIX%%:%%PORT_8080%% 100%% %%X%%"), b"/tmp/x1:12345 100%% %%X%%");
    }
}

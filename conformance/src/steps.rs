//! The language of `steps.txt`: one step a line, its bytes in the lines below it.
//!
//! ```text
//! # a comment
//! connect c 8080                 a step: a verb and its words; with `tls HOST`, its block is sent before the handshake
//! send c
//! | GET / HTTP/1.1               a line of its block, ended by CRLF (LF in a file)
//! | Host: a
//! |
//! > body\n                       bytes as they are
//! *1000 x                        bytes, so many times
//! ```
//! `\r \n \t \\ \xHH` stand for bytes in a block that is sent. A block of `file` is taken as it is, and its
//! lines end with LF.

use crate::Result;

/// One step, with where it stands for messages.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub line: usize,
    /// The step as written: it heads what the step records.
    pub text: String,
    pub verb: Verb,
}

/// How much `recv` waits for.
#[derive(Clone, Debug, PartialEq)]
pub enum Take {
    /// One response, framed as its head says.
    Response,
    /// One response to a HEAD request: a head only.
    Head,
    /// One request, framed as its head says.
    Request,
    /// Everything until the peer closes.
    All,
    /// So many bytes.
    Bytes(usize),
    /// Everything up to and with this text.
    Until(String),
}

/// What a scripted backend does after it answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum After {
    /// As the request's `Connection` says.
    Follow,
    Close,
    /// Resets the connection instead of a FIN.
    Reset,
    /// Answers nothing and keeps the connection.
    Hang,
}

/// TLS on a connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    pub host: String,
    /// What is sent before the handshake: the PROXY protocol.
    pub before: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    /// The server is not started before the first step.
    NoStart,
    Start,
    /// One request on its own connection; the response until the server closes.
    Ask {
        http2: bool,
        port: String,
        method: String,
        uri: String,
        headers: Vec<u8>,
        body: Option<Vec<u8>>,
    },
    Connect {
        name: String,
        port: String,
        tls: Option<Tls>,
    },
    Send {
        name: String,
        bytes: Vec<u8>,
    },
    Recv {
        name: String,
        take: Take,
    },
    /// Half-close: no more bytes from here.
    Shut {
        name: String,
    },
    Close {
        name: String,
    },
    /// A backend that answers by itself, or (manual) one whose connections are taken with `accept`.
    Backend {
        name: String,
        port: String,
        manual: bool,
    },
    /// The next answer of a backend; its last one is repeated.
    Reply {
        name: String,
        after: After,
        bytes: Vec<u8>,
    },
    Accept {
        backend: String,
        name: String,
    },
    /// What a backend received since the last `received`.
    Received {
        name: String,
    },
    /// Puts another file of the case in the place of nginx.conf.
    Conf {
        file: String,
    },
    File {
        path: String,
        text: Vec<u8>,
    },
    /// The content of a file, once it has that many lines.
    Cat {
        path: String,
        lines: usize,
    },
    Move {
        from: String,
        to: String,
    },
    Signal {
        name: String,
    },
    /// Waits until a file holds a text.
    Wait {
        path: String,
        text: String,
    },
    /// Repeats a GET until its responses hold a text many times in a row.
    Until {
        port: String,
        uri: String,
        text: String,
    },
    /// Waits for the server to end.
    Exit,
    /// The server binary with these arguments: exit code and output.
    Run {
        args: Vec<String>,
    },
}

/// Reads a whole `steps.txt`.
pub fn parse(text: &str) -> Result<Vec<Step>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut steps = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let (line, head) = (at + 1, lines[at].trim_end());
        at += 1;
        if head.is_empty() || head.starts_with('#') {
            continue;
        }
        let start = at;
        while lines.get(at).is_some_and(|l| l.starts_with(['|', '>', '*'])) {
            at += 1;
        }
        let verb = verb(head, &lines[start..at]).map_err(|e| format!("line {line}: {e}"))?;
        steps.push(Step { line, text: head.to_owned(), verb });
    }
    Ok(steps)
}

fn verb(head: &str, block: &[&str]) -> Result<Verb> {
    let words: Vec<&str> = head.split_whitespace().collect();
    let own = |s: &str| s.to_owned();
    let takes_block = matches!(words[0], "ask" | "ask2" | "connect" | "send" | "reply" | "file");
    if !takes_block && !block.is_empty() {
        return Err(format!("\"{}\" takes no block", words[0]).into());
    }
    Ok(match words[..] {
        ["nostart"] => Verb::NoStart,
        ["start"] => Verb::Start,
        [verb @ ("ask" | "ask2"), port, method, uri] => {
            let headers = bytes(block.iter().filter(|l| l.starts_with('|')), "\r\n", true)?;
            let sent = bytes(block.iter().filter(|l| !l.starts_with('|')), "", true)?;
            let body = block.iter().any(|l| !l.starts_with('|')).then_some(sent);
            let http2 = verb == "ask2";
            Verb::Ask { http2, port: own(port), method: own(method), uri: own(uri), headers, body }
        }
        ["connect", name, port] if block.is_empty() => {
            Verb::Connect { name: own(name), port: own(port), tls: None }
        }
        ["connect", name, port, "tls", host] => {
            let tls = Tls { host: own(host), before: bytes(block.iter(), "\r\n", true)? };
            Verb::Connect { name: own(name), port: own(port), tls: Some(tls) }
        }
        ["send", name] => Verb::Send { name: own(name), bytes: bytes(block.iter(), "\r\n", true)? },
        ["recv", name] => Verb::Recv { name: own(name), take: Take::Response },
        ["recv", name, "head"] => Verb::Recv { name: own(name), take: Take::Head },
        ["recv", name, "request"] => Verb::Recv { name: own(name), take: Take::Request },
        ["recv", name, "all"] => Verb::Recv { name: own(name), take: Take::All },
        ["recv", name, "bytes", n] => Verb::Recv { name: own(name), take: Take::Bytes(n.parse()?) },
        ["recv", name, "until", ref text @ ..] if !text.is_empty() => {
            Verb::Recv { name: own(name), take: Take::Until(text.join(" ")) }
        }
        ["shut", name] => Verb::Shut { name: own(name) },
        ["close", name] => Verb::Close { name: own(name) },
        ["backend", name, port] => Verb::Backend { name: own(name), port: own(port), manual: false },
        ["backend", name, port, "manual"] => Verb::Backend { name: own(name), port: own(port), manual: true },
        ["reply", name, ref after @ ..] => {
            let after = match after {
                [] => After::Follow,
                ["close"] => After::Close,
                ["reset"] => After::Reset,
                ["hang"] => After::Hang,
                _ => return Err("a reply ends with close, reset or hang".into()),
            };
            Verb::Reply { name: own(name), after, bytes: bytes(block.iter(), "\r\n", true)? }
        }
        ["accept", backend, name] => Verb::Accept { backend: own(backend), name: own(name) },
        ["received", name] => Verb::Received { name: own(name) },
        ["conf", file] => Verb::Conf { file: own(file) },
        ["file", path] => Verb::File { path: own(path), text: bytes(block.iter(), "\n", false)? },
        ["cat", path] => Verb::Cat { path: own(path), lines: 0 },
        ["cat", path, n] => Verb::Cat { path: own(path), lines: n.parse()? },
        ["mv", from, to] => Verb::Move { from: own(from), to: own(to) },
        ["signal", name] => Verb::Signal { name: own(name) },
        ["wait", path, ref text @ ..] if !text.is_empty() => {
            Verb::Wait { path: own(path), text: text.join(" ") }
        }
        ["until", port, uri, ref text @ ..] if !text.is_empty() => {
            Verb::Until { port: own(port), uri: own(uri), text: text.join(" ") }
        }
        ["exit"] => Verb::Exit,
        ["run", ref args @ ..] => Verb::Run { args: args.iter().map(|a| own(a)).collect() },
        ["test"] => Verb::Run { args: test_args("nginx.conf") },
        ["test", file] => Verb::Run { args: test_args(file) },
        _ => return Err(format!("not a step: {head}").into()),
    })
}

fn test_args(file: &str) -> Vec<String> {
    ["-t", "-p", "%%PREFIX%%/", "-c", file].map(str::to_owned).to_vec()
}

/// The bytes of a block; `end` closes the lines that begin with a bar.
fn bytes<'a>(block: impl Iterator<Item = &'a &'a str>, end: &str, escapes: bool) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for line in block {
        let rest = &line[1..];
        match line.as_bytes()[0] {
            b'|' => {
                unescape(rest.strip_prefix(' ').unwrap_or(rest), escapes, &mut out)?;
                out.extend_from_slice(end.as_bytes());
            }
            b'>' => unescape(rest.strip_prefix(' ').unwrap_or(rest), true, &mut out)?,
            _ => {
                let (count, text) = rest.split_once(' ').ok_or("\"*\" takes a count and bytes")?;
                let mut once = Vec::new();
                unescape(text, true, &mut once)?;
                out.extend(once.repeat(count.parse()?));
            }
        }
    }
    Ok(out)
}

fn unescape(text: &str, escapes: bool, out: &mut Vec<u8>) -> Result<()> {
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' || !escapes {
            out.push(*first);
            continue;
        }
        let (byte, used) = match rest {
            [b'r', ..] => (b'\r', 1),
            [b'n', ..] => (b'\n', 1),
            [b't', ..] => (b'\t', 1),
            [b'\\', ..] => (b'\\', 1),
            [b'x', hex @ ..] if hex.len() >= 2 => {
                (u8::from_str_radix(std::str::from_utf8(&hex[..2])?, 16)?, 3)
            }
            _ => return Err(format!("unknown escape in: {text}").into()),
        };
        out.push(byte);
        rest = &rest[used..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Verb) {
        let steps = parse(text).expect("the text is a step");
        assert_eq!(steps.into_iter().map(|s| s.verb).collect::<Vec<_>>(), [expected]);
    }

    #[track_caller]
    fn check_refused(text: &str, message: &str) {
        let error = parse(text).expect_err("the text is no step").to_string();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn a_block_gives_the_bytes_to_send() {
        let sent = |bytes: &[u8]| Verb::Send { name: "c".into(), bytes: bytes.to_vec() };
        check("send c\n| GET / HTTP/1.1\n|\n", sent(b"GET / HTTP/1.1\r\n\r\n"));
        check("# why\n\nsend c\n> a\\x00\\r\\n\\\\\n", sent(b"a\0\r\n\\"));
        check("send c\n*3 ab\n", sent(b"ababab"));
        check("send c\n|  folded\n", sent(b" folded\r\n"));
    }

    #[test]
    fn a_file_is_taken_as_it_is() {
        check(
            "file a.conf\n| location ~ \\.php$ {\n| }\n",
            Verb::File { path: "a.conf".into(), text: b"location ~ \\.php$ {\n}\n".to_vec() },
        );
    }

    #[test]
    fn a_request_knows_whether_it_has_a_body() {
        let ask = |body: Option<&[u8]>| Verb::Ask {
            http2: false,
            port: "8080".into(),
            method: "POST".into(),
            uri: "/".into(),
            headers: b"A: b\r\n".to_vec(),
            body: body.map(<[u8]>::to_vec),
        };
        check("ask 8080 POST /\n| A: b\n", ask(None));
        check("ask 8080 POST /\n| A: b\n> hi\n", ask(Some(b"hi")));
        let tls = |before: &[u8]| Verb::Connect {
            name: "c".into(),
            port: "8443".into(),
            tls: Some(Tls { host: "a".into(), before: before.to_vec() }),
        };
        check("connect c 8443 tls a\n", tls(b""));
        check("connect c 8443 tls a\n| PROXY UNKNOWN\n", tls(b"PROXY UNKNOWN\r\n"));
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        check_refused("\nsned c\n", "line 2: not a step: sned c");
        check_refused("close c\n| x\n", "takes no block");
        check_refused("connect c 8080\n| x\n", "not a step: connect c 8080");
        check_refused("send c\n> \\q\n", "unknown escape");
    }
}

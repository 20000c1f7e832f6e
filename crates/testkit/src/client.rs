//! A client that sends exact bytes and reads exact responses.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::wire::{Wire, reset};

/// A response as it came, its body without framing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Status line and header lines, each with its CRLF.
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    /// The first header line of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The value of the first line of that name in a head, in any case.
pub fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// How many bytes of `input` are a request with its body, by the plain rules of honest clients.
pub(crate) fn whole_request(input: &[u8]) -> Option<usize> {
    let end = find(input, b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&input[..end]);
    if header(&head, "Transfer-Encoding").is_some() {
        return find(&input[end..], b"0\r\n\r\n").map(|at| end + at + 5);
    }
    let length = header(&head, "Content-Length").and_then(|v| v.parse().ok()).unwrap_or(0);
    (input.len() >= end + length).then_some(end + length)
}

/// The requests in what a server received, as texts.
pub fn requests(mut received: &[u8]) -> Vec<String> {
    let mut found = vec![];
    while !received.is_empty() {
        let length = whole_request(received).unwrap_or(received.len());
        found.push(String::from_utf8_lossy(&received[..length]).into_owned());
        received = &received[length..];
    }
    found
}

pub(crate) fn find(input: &[u8], what: &[u8]) -> Option<usize> {
    input.windows(what.len()).position(|w| w == what)
}

/// A connection of a raw client.
pub struct Client {
    wire: Wire,
    buffer: Vec<u8>,
}

impl Client {
    /// # Panics
    /// If nobody listens.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap_or_else(|e| panic!("connect to {address}: {e}"))
    }

    /// # Errors
    /// If nobody listens.
    pub fn try_connect(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { wire: Wire::connect(address)?, buffer: vec![] })
    }

    /// What came and was not asked for yet: the whole of an answer that was not.
    pub fn unread(&self) -> &[u8] {
        &self.buffer
    }

    /// Over TLS; whatever certificate the server has is fine.
    ///
    /// # Panics
    /// If nobody listens.
    #[track_caller]
    pub fn connect_tls(address: SocketAddr) -> Self {
        Self::try_connect_tls(address).unwrap_or_else(|e| panic!("connect to {address}: {e}"))
    }

    /// # Errors
    /// If nobody listens.
    pub fn try_connect_tls(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { wire: Wire::connect_tls(address)?, buffer: vec![] })
    }

    pub fn tcp(&self) -> &TcpStream {
        self.wire.tcp()
    }

    /// # Panics
    /// If the server does not take the bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.try_send(bytes.as_ref()).expect("bytes to the server");
        self
    }

    /// # Errors
    /// If the server does not take the bytes.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.wire.write_all(bytes)?;
        self.wire.flush()
    }

    /// Ends the direction to the server.
    ///
    /// # Panics
    /// If the connection is gone.
    #[track_caller]
    pub fn finish(&mut self) -> &mut Self {
        self.wire.finish().expect("an end of stream to the server");
        self
    }

    /// Closes with a reset.
    ///
    /// # Panics
    /// If the connection is gone.
    #[track_caller]
    pub fn reset(self) {
        reset(self.wire.tcp()).expect("a socket option");
    }

    /// Sends a request and reads its response.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Response {
        self.send(request);
        self.response()
    }

    /// The next response, which is not one to HEAD.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        match self.try_response() {
            Ok(response) => response,
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&self.buffer)),
        }
    }

    /// # Errors
    /// If none comes, or not all of it; what came stays unread.
    pub fn try_response(&mut self) -> io::Result<Response> {
        let end = self.end_of_head()?;
        let head = String::from_utf8_lossy(&self.buffer[..end - 2]).into_owned();
        let status = head.get(9..12).and_then(|s| s.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status line: {head:?}")))?;
        let (body, used) = if status < 200 || status == 204 || status == 304 {
            (vec![], end)
        } else if header(&head, "Transfer-Encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            self.chunked(end)?
        } else if let Some(length) = header(&head, "Content-Length") {
            let length: usize = length.parse().map_err(io::Error::other)?;
            while self.buffer.len() < end + length {
                self.more()?;
            }
            (self.buffer[end..end + length].to_vec(), end + length)
        } else {
            self.all()?;
            (self.buffer[end..].to_vec(), self.buffer.len())
        };
        self.buffer.drain(..used);
        Ok(Response { status, head, body })
    }

    /// Waits for the head of an answer; its body stays unread.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn head(&mut self) -> String {
        match self.end_of_head() {
            Ok(end) => String::from_utf8_lossy(&self.bytes(end)).into_owned(),
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&self.buffer)),
        }
    }

    fn end_of_head(&mut self) -> io::Result<usize> {
        loop {
            match find(&self.buffer, b"\r\n\r\n") {
                Some(at) => return Ok(at + 4),
                None => self.more()?,
            }
        }
    }

    fn chunked(&mut self, mut at: usize) -> io::Result<(Vec<u8>, usize)> {
        let mut body = vec![];
        loop {
            let line = loop {
                match find(&self.buffer[at..], b"\r\n") {
                    Some(length) => break at + length,
                    None => self.more()?,
                }
            };
            let size = String::from_utf8_lossy(&self.buffer[at..line]).into_owned();
            let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16);
            let size = size.map_err(io::Error::other)?;
            let (start, end) = (line + 2, line + 2 + size + 2);
            while self.buffer.len() < end {
                self.more()?;
            }
            if &self.buffer[end - 2..end] != b"\r\n" {
                return Err(io::Error::other("a chunk without its end"));
            }
            if size == 0 {
                return Ok((body, end));
            }
            body.extend_from_slice(&self.buffer[start..end - 2]);
            at = end;
        }
    }

    fn more(&mut self) -> io::Result<()> {
        let mut chunk = [0; 65536];
        match self.wire.read(&mut chunk)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.buffer.extend_from_slice(&chunk[..read]);
                Ok(())
            }
        }
    }

    fn all(&mut self) -> io::Result<()> {
        loop {
            match self.more() {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    /// Exactly that many bytes.
    ///
    /// # Panics
    /// If they do not come.
    #[track_caller]
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            self.more().unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&self.buffer)));
        }
        self.buffer.drain(..count).collect()
    }

    /// All that comes until the server closes.
    ///
    /// # Panics
    /// If it does not close, or resets the connection.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        self.all().unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&self.buffer)));
        std::mem::take(&mut self.buffer)
    }

    /// All that comes until the server closes or resets the connection, as one does that was sent more than it reads.
    ///
    /// # Panics
    /// If it does neither.
    #[track_caller]
    pub fn last_words(&mut self) -> String {
        match self.all() {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            Err(e) => panic!("{e} after {:?}", String::from_utf8_lossy(&self.buffer)),
        }
        String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned()
    }

    /// The head of a response that is cut off, and what comes of its body as it is on the wire.
    ///
    /// # Panics
    /// If the server does not end the connection, or has sent no head.
    #[track_caller]
    pub fn cut_off(&mut self) -> (String, Vec<u8>) {
        match self.all() {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            Err(e) => panic!("not cut off: {e}"),
        }
        let mut head = std::mem::take(&mut self.buffer);
        let end = find(&head, b"\r\n\r\n").expect("a head") + 4;
        let body = head.split_off(end);
        (String::from_utf8_lossy(&head).into_owned(), body)
    }

    /// Waits for the server to close without sending anything more; a reset is fine too.
    ///
    /// # Panics
    /// If it sends something, or does not close.
    #[track_caller]
    pub fn closed(&mut self) {
        match self.all() {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            Err(e) => panic!("not closed: {e}"),
        }
        assert_eq!(String::from_utf8_lossy(&self.buffer), "");
    }
}

#[cfg(test)]
mod tests {
    use crate::{Client, Origin, Socket, filled, requests};

    #[test]
    fn requests_are_told_apart() {
        #[track_caller]
        fn check(received: &str, expected: &[&str]) {
            assert_eq!(requests(received.as_bytes()), expected);
        }
        check("", &[]);
        check("GET / HTTP/1.1\r\n\r\nGET", &["GET / HTTP/1.1\r\n\r\n", "GET"]);
        check(
            "A\r\nContent-Length: 2\r\n\r\nhiB\r\n\r\n",
            &["A\r\nContent-Length: 2\r\n\r\nhi", "B\r\n\r\n"],
        );
        let chunked = "A\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
        check(&format!("{chunked}B\r\n\r\n"), &[chunked, "B\r\n\r\n"]);
    }

    #[test]
    fn responses_are_read_by_their_framing() {
        #[track_caller]
        fn check(answer: &str, status: u16, body: &str) {
            let origin = Origin::answering(answer);
            let mut client = Client::connect(origin.address());
            for _ in 0..2 {
                let response = client.ask("GET / HTTP/1.1\r\n\r\n");
                assert_eq!((response.status, response.text().as_str()), (status, body));
            }
        }
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "hi");
        check("HTTP/1.1 204 No Content\r\n\r\n", 204, "");
        check(
            "HTTP/1.1 404 x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1;a\r\n!\r\n0\r\n\r\n",
            404,
            "hi!",
        );
        let origin = Origin::start(|visit| {
            visit.request()?;
            visit.send("HTTP/1.1 200 OK\r\n\r\nall")
        });
        let mut client = Client::connect(origin.address());
        assert_eq!(client.ask("GET / HTTP/1.1\r\n\r\n").text(), "all");
        client.closed();
        assert_eq!(origin.heard(), "GET / HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn a_reset_is_no_end_of_stream() {
        let origin = Origin::start(|visit| {
            visit.reset_at_end();
            visit.request().map(drop)
        });
        let mut client = Client::connect(origin.address());
        client.send("GET / HTTP/1.1\r\n\r\n");
        let error = client.try_response().map(|_| ()).map_err(|e| e.kind());
        assert_eq!(error, Err(std::io::ErrorKind::ConnectionReset));
    }

    #[test]
    fn both_ends_of_a_websocket_agree() {
        let origin = Origin::echoing();
        let mut socket = Socket::connect(origin.address(), "/");
        socket.echo_of("");
        socket.echo_of("hello");
        socket.close();
        assert_eq!(origin.connections(), 1);
    }

    #[test]
    fn only_names_are_filled_in() {
        let names = [("listen", "1:2".to_owned()), ("a", "b".to_owned())];
        assert_eq!(
            filled("server { listen {listen}; return 200 '{a}{b}'; }", &names),
            "server { listen 1:2; return 200 'b{b}'; }"
        );
    }
}

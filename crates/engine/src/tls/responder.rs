//! Responders of OCSP, who are asked over HTTP.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use nix::errno::Errno;
use nix::libc::ETIMEDOUT;
use weir_ir::address::{self, Address, Authority, Form};
use weir_syntax::Level;

use super::ocsp::CertificateId;
use crate::errorlog::Log;
use crate::http::base64_encode;
use crate::http1::response::{Head, Parsed};
use crate::http1::uri::{Escape, escape};
use crate::io::{ConnectOptions, Io, connect};
use crate::reactor::Reactor;
use crate::resolver::{Failure, Resolver, name_of};
use crate::timer::Timer;

/// Milliseconds for each step of an exchange.
const TIMEOUT: u64 = 60_000;
/// The longest answer.
const LONGEST: usize = 64 * 1024;

/// A resolver, and the milliseconds that it has for a name.
pub type Names = Option<(Arc<Resolver>, u64)>;

/// Where a responder is asked.
#[derive(Clone, Debug)]
pub struct Responder {
    pub host: Box<str>,
    pub port: u16,
    pub uri: Box<[u8]>,
    /// What is known of the host's addresses before it is asked.
    pub addresses: Vec<Address>,
}

impl Responder {
    /// # Errors
    /// It is no `http` URL: what is wrong with it, in nginx's words.
    pub fn split(url: &[u8]) -> Result<Authority, String> {
        let bad = |reason: &str, url: &[u8]| {
            let url = String::from_utf8_lossy(url);
            format!("{reason} in OCSP responder \"{url}\"")
        };
        let prefix = url
            .split_at_checked(7)
            .filter(|(prefix, rest)| prefix.eq_ignore_ascii_case(b"http://") && !rest.is_empty());
        let (_, rest) = prefix.ok_or_else(|| bad("invalid URL prefix", url))?;
        address::parse(rest, Form { listen: false, uri: true }).map_err(|reason| bad(reason, rest))
    }

    pub fn new(authority: Authority, addresses: Vec<Address>) -> Self {
        Self {
            addresses,
            port: authority.port.unwrap_or(80),
            uri: if authority.uri.is_empty() { b"/"[..].into() } else { authority.uri },
            host: authority.host_text,
        }
    }

    fn ip(&self) -> Option<IpAddr> {
        self.host.trim_matches(['[', ']']).parse().ok()
    }
}

/// A question about a certificate.
pub(super) struct Question<'q> {
    pub responder: &'q Responder,
    pub names: &'q Names,
    pub log: &'q Log,
    /// The certificate's name, where it has one.
    pub certificate: Option<&'q str>,
}

impl Question<'_> {
    fn request(&self, id: &CertificateId) -> Vec<u8> {
        let mut request = [b"GET ", &*self.responder.uri].concat();
        if !request.ends_with(b"/") {
            request.push(b'/');
        }
        escape(base64_encode(&id.request()).as_bytes(), Escape::Component, &mut request);
        request.extend_from_slice(b" HTTP/1.0\r\nHost: ");
        request.extend_from_slice(self.responder.host.as_bytes());
        request.extend_from_slice(b"\r\n\r\n");
        request
    }

    /// Asks the responder's addresses one after the other; which of them answered comes with the answer. What goes wrong is
    /// logged.
    pub(super) async fn ask(&self, reactor: &Rc<Reactor>, id: &CertificateId) -> Option<(Vec<u8>, Address)> {
        let request = self.request(id);
        let addresses = self.addresses(reactor).await?;
        let timer = reactor.timers().register();
        for address in &addresses {
            match exchange(address, &request, &timer).await {
                Ok(answer) => return answer.map(|answer| (answer, address.clone())),
                Err((message, error)) => {
                    let errno = error.and_then(|error| error.raw_os_error()).map(Errno::from_raw);
                    self.tell(Level::Error, errno, Some(address), &message);
                }
            }
        }
        None
    }

    async fn addresses(&self, reactor: &Rc<Reactor>) -> Option<Vec<Address>> {
        let Responder { host, port, addresses, .. } = self.responder;
        if let Some(ip) = self.responder.ip() {
            return Some(vec![Address::Ip((ip, *port).into())]);
        }
        let Some((resolver, timeout)) = self.names else {
            let message = format!("no resolver defined to resolve {host}");
            let level = if addresses.is_empty() { Level::Error } else { Level::Warn };
            self.tell(level, None, None, &message);
            return (!addresses.is_empty()).then(|| addresses.clone());
        };
        let timer = reactor.timers().register();
        if *timeout > 0 {
            timer.set_in(*timeout);
        }
        let name = name_of(host);
        let mut asked = pin!(resolver.resolve(reactor, &name));
        let resolved = poll_fn(|cx| {
            if let Poll::Ready(resolved) = asked.as_mut().poll(cx) {
                return Poll::Ready(resolved);
            }
            timer.poll_expired(cx).map(|()| Err(Failure::TimedOut))
        });
        match resolved.await {
            Ok(found) => {
                Some(found.addresses.into_iter().map(|ip| Address::Ip((ip, *port).into())).collect())
            }
            Err(failure) => {
                let message = format!("{host} could not be resolved ({failure})");
                self.tell(Level::Error, None, None, &message);
                None
            }
        }
    }

    pub(super) fn tell(&self, level: Level, errno: Option<Errno>, peer: Option<&Address>, message: &str) {
        self.log.write_with(level, errno, message, |line| {
            line.bytes(b" while requesting certificate status");
            line.field("responder", self.responder.host.as_bytes());
            if let Some(peer) = peer {
                line.field("peer", peer.to_string().as_bytes());
            }
            if let Some(certificate) = self.certificate {
                line.quoted("certificate", certificate.as_bytes());
            }
        });
    }
}

type Trouble = (Cow<'static, str>, Option<io::Error>);

/// Sends a request and reads the answer to its end. `None` is an answer of another status than 200, of which nothing is told.
async fn exchange(address: &Address, request: &[u8], timer: &Timer) -> Result<Option<Vec<u8>>, Trouble> {
    let late = || ("OCSP responder timed out".into(), Some(io::Error::from_raw_os_error(ETIMEDOUT)));
    let mut connecting = connect(address, &ConnectOptions::default())
        .map_err(|failed| ("connect() failed".into(), Some(failed.error)))?;
    timer.set_in(TIMEOUT);
    poll_fn(|cx| match connecting.poll_connected(cx) {
        Poll::Ready(done) => Poll::Ready(done.map_err(|error| ("connect() failed".into(), Some(error)))),
        Poll::Pending => timer.poll_expired(cx).map(|()| Err(late())),
    })
    .await?;
    let mut io = Io::Plain(connecting.into_socket());
    let mut rest = request;
    timer.set_in(TIMEOUT);
    poll_fn(|cx| {
        while !rest.is_empty() {
            match io.poll_write(cx, rest) {
                Poll::Ready(Ok(n)) => rest = &rest[n..],
                Poll::Ready(Err(error)) => return Poll::Ready(Err(("send() failed".into(), Some(error)))),
                Poll::Pending => return timer.poll_expired(cx).map(|()| Err(late())),
            }
        }
        Poll::Ready(Ok(()))
    })
    .await?;
    let mut head = Head::new();
    let mut length = None;
    let mut body: Option<Vec<u8>> = None;
    let mut piece = [0; 4096];
    loop {
        timer.set_in(TIMEOUT);
        let n = poll_fn(|cx| match io.poll_read(cx, &mut piece) {
            Poll::Ready(done) => Poll::Ready(done.map_err(|error| ("recv() failed".into(), Some(error)))),
            Poll::Pending => timer.poll_expired(cx).map(|()| Err(late())),
        })
        .await?;
        let read = &piece[..n];
        match &mut body {
            Some(body) => body.extend_from_slice(read),
            None if n == 0 => return Err(("OCSP responder prematurely closed connection".into(), None)),
            None => match head.parse(read, LONGEST) {
                Ok(Parsed::Partial) => {}
                Ok(Parsed::Complete(taken)) => {
                    check_type(&head)?;
                    if head.status() != 200 {
                        return Ok(None);
                    }
                    length = head.content_length();
                    body = Some(read[taken..].to_vec());
                }
                Ok(Parsed::Headless) | Err(_) => {
                    return Err(("OCSP responder sent invalid response".into(), None));
                }
            },
        }
        let Some(whole) = &mut body else { continue };
        if whole.len() > LONGEST {
            return Err(("OCSP responder sent too big response".into(), None));
        }
        if n == 0 || length.is_some_and(|length| whole.len() as u64 >= length) {
            timer.clear();
            return Ok(body);
        }
    }
}

fn check_type(head: &Head) -> Result<(), Trouble> {
    let values = head
        .fields()
        .iter()
        .filter(|field| head.get(field.name).eq_ignore_ascii_case(b"content-type"))
        .map(|field| head.get(field.value));
    for value in values {
        if !value.eq_ignore_ascii_case(b"application/ocsp-response") {
            let value = String::from_utf8_lossy(value);
            let message = format!("OCSP responder sent invalid \"Content-Type\" header: \"{value}\"");
            return Err((message.into(), None));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::timer::{Clock, Timers};

    /// What becomes of a responder's answer, and the request that it got.
    fn asked(answer: &[u8]) -> (Result<Option<Vec<u8>>, Cow<'static, str>>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Ip(listener.local_addr().unwrap());
        let answer = answer.to_vec();
        let responder = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut request = [0; 100];
            let n = client.read(&mut request).unwrap();
            // Who has read enough may be gone.
            let _ = client.write_all(&answer);
            String::from_utf8_lossy(&request[..n]).into_owned()
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answered = runtime.block_on(async {
            let timers = Timers::new(Clock::new());
            exchange(&address, b"GET / HTTP/1.0\r\n\r\n", &timers.register()).await
        });
        (answered.map_err(|(message, _)| message), responder.join().unwrap())
    }

    #[test]
    fn answers_of_responders() {
        #[track_caller]
        fn check(answer: &str, expected: Result<Option<&[u8]>, &str>) {
            let (answered, request) = asked(answer.as_bytes());
            assert_eq!(answered.as_ref().map(Option::as_deref).map_err(|m| &**m), expected, "{answer}");
            assert_eq!(request, "GET / HTTP/1.0\r\n\r\n");
        }
        check("HTTP/1.1 200 OK\r\nContent-Type: application/OCSP-response\r\n\r\nabc", Ok(Some(b"abc")));
        check("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", Ok(Some(b"ab")));
        check("HTTP/1.0 404 Not Found\r\n\r\nabc", Ok(None));
        let bad_type = "OCSP responder sent invalid \"Content-Type\" header: \"text/html\"";
        for status in ["200 OK", "404 Not Found", "302 Found"] {
            check(&format!("HTTP/1.0 {status}\r\nContent-Type: text/html\r\n\r\nabc"), Err(bad_type));
        }
        check("HTTP/1.0 200 OK\r\nContent-Type:", Err("OCSP responder prematurely closed connection"));
        check("<html>", Err("OCSP responder sent invalid response"));
        let long = format!("HTTP/1.0 200 OK\r\n\r\n{}", "x".repeat(LONGEST + 1));
        check(&long, Err("OCSP responder sent too big response"));
    }
}

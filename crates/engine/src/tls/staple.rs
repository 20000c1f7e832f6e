//! OCSP stapling: what a responder says of a certificate is fetched beside the handshakes and shown in those that follow.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use nix::errno::Errno;
use nix::libc::ETIMEDOUT;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::sign::CertifiedKey;
use weir_ir::address::Address;
use weir_syntax::Level;

use super::ocsp::{self, Believed, CertificateId};
use super::path::Known;
use crate::errorlog::Log;
use crate::http::base64_encode;
use crate::http1::response::{Head, Parsed};
use crate::http1::uri::{Escape, escape};
use crate::io::{ConnectOptions, Io, connect};
use crate::reactor::Reactor;
use crate::resolver::{Resolver, name_of};
use crate::timer::Timer;

/// Milliseconds for each step of an exchange.
const TIMEOUT: u64 = 60_000;
/// Seconds after which an answer is fetched anew at the earliest, be there none or one.
const SOONEST: i64 = 300;
/// Seconds after which it is at the latest.
const LATEST: i64 = 3600;
/// The longest answer.
const LONGEST: usize = 64 * 1024;

/// Who is asked about a certificate, and whom to believe.
#[derive(Clone, Debug)]
pub struct Responder {
    /// Of the certificate, for messages.
    pub name: String,
    pub issuer: CertificateDer<'static>,
    pub host: Box<str>,
    pub port: u16,
    pub uri: Box<[u8]>,
    /// Those of the host at load.
    pub addresses: Vec<Address>,
    /// Whose chains answers have to be of (`ssl_stapling_verify`).
    pub verify: Option<Vec<CertificateDer<'static>>>,
}

/// A certificate with what its issuer's responder says of it.
pub struct Staple {
    pair: Arc<CertifiedKey>,
    responder: Responder,
    /// The time in milliseconds is that for names.
    resolver: Option<(Arc<Resolver>, u64)>,
    log: Log,
    state: Mutex<State>,
}

/// Times are Unix seconds.
#[derive(Default)]
struct State {
    /// The pair with an answer, and how long it may be shown.
    shown: Option<(Arc<CertifiedKey>, i64)>,
    /// A handshake was for this certificate.
    wanted: bool,
    loading: bool,
    /// When to ask again.
    refresh: i64,
}

impl Staple {
    pub fn new(
        pair: Arc<CertifiedKey>,
        responder: Responder,
        resolver: Option<(Arc<Resolver>, u64)>,
        log: Log,
    ) -> Self {
        Self { pair, responder, resolver, log, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a handshake is to show.
    pub(super) fn show(&self) -> Arc<CertifiedKey> {
        let now = UnixTime::now().as_secs() as i64;
        let mut state = self.state();
        state.wanted = true;
        match &state.shown {
            Some((pair, until)) if *until >= now => Arc::clone(pair),
            Some(_) | None => Arc::clone(&self.pair),
        }
    }

    /// Fetches an answer where a handshake was for the certificate and it is time for one.
    pub(super) fn refresh(self: &Arc<Self>, reactor: &Rc<Reactor>) {
        let now = reactor.clock().unix_secs() as i64;
        let mut state = self.state();
        if !state.wanted || state.loading || state.refresh >= now {
            return;
        }
        (state.wanted, state.loading) = (false, true);
        drop(state);
        let (staple, reactor) = (Arc::clone(self), Rc::clone(reactor));
        // Nobody waits for it, so it counts as no task.
        tokio::task::spawn_local(async move {
            let fetched = staple.fetch(&reactor).await;
            let now = reactor.clock().unix_secs() as i64;
            let mut state = staple.state();
            state.loading = false;
            state.refresh = now + SOONEST;
            if let Some((answer, until)) = fetched {
                let mut pair = CertifiedKey::clone(&staple.pair);
                pair.ocsp = Some(answer);
                let until = until.unwrap_or(i64::MAX);
                // Before it is over, but neither too often nor too seldom.
                state.refresh = (until - SOONEST).min(now + LATEST).max(now + SOONEST);
                state.shown = Some((Arc::new(pair), until));
            }
        });
    }

    /// An answer, and until when it is valid. What is wrong is logged.
    async fn fetch(&self, reactor: &Rc<Reactor>) -> Option<(Vec<u8>, Option<i64>)> {
        let (certificate, chain) = self.pair.cert.split_first()?;
        let id = CertificateId::of(certificate, &self.responder.issuer)?;
        let answer = self.ask(reactor, &self.request(&id)).await?;
        let (roots, mut between) = match &self.responder.verify {
            Some(trusted) => trusted.iter().cloned().partition(|c| super::trust::is_self_issued(c)),
            None => (vec![], vec![]),
        };
        between.extend_from_slice(chain);
        let known = Known { roots: &roots, between: &between, depth: usize::MAX };
        let believed = Believed {
            issuer: &self.responder.issuer,
            chain,
            verify: self.responder.verify.as_ref().map(|_| known),
        };
        match ocsp::read(&answer, &id, &believed, UnixTime::now()) {
            Ok(until) => Some((answer, until)),
            Err(message) => {
                self.tell(Level::Error, None, None, &message);
                None
            }
        }
    }

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

    /// Asks the responder's addresses one after the other.
    async fn ask(&self, reactor: &Rc<Reactor>, request: &[u8]) -> Option<Vec<u8>> {
        let addresses = self.addresses(reactor).await?;
        let timer = reactor.timers().register();
        for address in &addresses {
            match exchange(address, request, &timer).await {
                Ok(answer) => return answer,
                Err((message, error)) => {
                    let errno = error.and_then(|error| error.raw_os_error()).map(Errno::from_raw);
                    self.tell(Level::Error, errno, Some(address), message);
                }
            }
        }
        None
    }

    async fn addresses(&self, reactor: &Rc<Reactor>) -> Option<Vec<Address>> {
        let Responder { host, port, addresses, .. } = &self.responder;
        if host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok() {
            return Some(addresses.clone());
        }
        let Some((resolver, timeout)) = &self.resolver else {
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
            timer.poll_expired(cx).map(|()| Err(crate::resolver::Failure::TimedOut))
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

    fn tell(&self, level: Level, errno: Option<Errno>, peer: Option<&Address>, message: &str) {
        self.log.write_with(level, errno, message, |line| {
            line.bytes(b" while requesting certificate status");
            line.field("responder", self.responder.host.as_bytes());
            if let Some(peer) = peer {
                line.field("peer", peer.to_string().as_bytes());
            }
            line.quoted("certificate", self.responder.name.as_bytes());
        });
    }
}

type Trouble = (&'static str, Option<io::Error>);

/// Sends a request and reads the answer to its end. `None` is an answer of another status than 200, of which nothing is told.
async fn exchange(address: &Address, request: &[u8], timer: &Timer) -> Result<Option<Vec<u8>>, Trouble> {
    let late = || ("OCSP responder timed out", Some(io::Error::from_raw_os_error(ETIMEDOUT)));
    let mut connecting = connect(address, &ConnectOptions::default())
        .map_err(|failed| ("connect() failed", Some(failed.error)))?;
    timer.set_in(TIMEOUT);
    poll_fn(|cx| match connecting.poll_connected(cx) {
        Poll::Ready(done) => Poll::Ready(done.map_err(|error| ("connect() failed", Some(error)))),
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
                Poll::Ready(Err(error)) => return Poll::Ready(Err(("send() failed", Some(error)))),
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
            Poll::Ready(done) => Poll::Ready(done.map_err(|error| ("recv() failed", Some(error)))),
            Poll::Pending => timer.poll_expired(cx).map(|()| Err(late())),
        })
        .await?;
        let read = &piece[..n];
        match &mut body {
            Some(body) => body.extend_from_slice(read),
            None if n == 0 => return Err(("OCSP responder prematurely closed connection", None)),
            None => match head.parse(read, LONGEST) {
                Ok(Parsed::Partial) => {}
                Ok(Parsed::Complete(taken)) => {
                    if head.status() != 200 {
                        return Ok(None);
                    }
                    check_type(&head)?;
                    length = head.content_length();
                    body = Some(read[taken..].to_vec());
                }
                Ok(Parsed::Headless) | Err(_) => return Err(("OCSP responder sent invalid response", None)),
            },
        }
        let Some(whole) = &mut body else { continue };
        if whole.len() > LONGEST {
            return Err(("OCSP responder sent too big response", None));
        }
        if n == 0 || length.is_some_and(|length| whole.len() as u64 >= length) {
            timer.clear();
            return Ok(body);
        }
    }
}

fn check_type(head: &Head) -> Result<(), Trouble> {
    let mut types =
        head.fields().iter().filter(|field| head.get(field.name).eq_ignore_ascii_case(b"content-type"));
    match types.all(|field| head.get(field.value).eq_ignore_ascii_case(b"application/ocsp-response")) {
        true => Ok(()),
        false => Err(("OCSP responder sent invalid \"Content-Type\" header", None)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::timer::{Clock, Timers};

    /// What becomes of a responder's answer, and the request that it got.
    fn asked(answer: &[u8]) -> (Result<Option<Vec<u8>>, &'static str>, String) {
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
        fn check(answer: &str, expected: Result<Option<&[u8]>, &'static str>) {
            let (answered, request) = asked(answer.as_bytes());
            assert_eq!(answered.as_ref().map(Option::as_deref).map_err(|m| *m), expected, "{answer}");
            assert_eq!(request, "GET / HTTP/1.0\r\n\r\n");
        }
        check("HTTP/1.1 200 OK\r\nContent-Type: application/OCSP-response\r\n\r\nabc", Ok(Some(b"abc")));
        check("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", Ok(Some(b"ab")));
        check("HTTP/1.0 404 Not Found\r\n\r\nabc", Ok(None));
        let bad_type = "OCSP responder sent invalid \"Content-Type\" header";
        check("HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\nabc", Err(bad_type));
        check("HTTP/1.0 200 OK\r\nContent-Type:", Err("OCSP responder prematurely closed connection"));
        check("<html>", Err("OCSP responder sent invalid response"));
        let long = format!("HTTP/1.0 200 OK\r\n\r\n{}", "x".repeat(LONGEST + 1));
        check(&long, Err("OCSP responder sent too big response"));
    }
}

//! A name server that answers what its script says, over UDP and TCP.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::free_address;
use crate::wire::patient;

/// A running name server; it stops when it is dropped.
///
/// Its script is asked with the question, as `A a.example` or `AAAA a.example tcp`, and how many came before it, and
/// says in words what the answer is: `60 127.0.0.1 127.0.0.2` (a time to live, then addresses), `60 alias b.example`,
/// `60 srv 1 5 80 b.example` (priority, weight, port and host, and again),
/// `code 3`, `truncated`, nothing for no records, `garbage`, and `silence`. Behind `wrong` stands an answer to some other question.
pub struct NameServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    script: Box<dyn Fn(&str, usize) -> String + Send + Sync>,
    asked: Mutex<Vec<String>>,
    stopped: AtomicBool,
}

impl NameServer {
    /// # Panics
    /// If it cannot listen.
    pub fn start(script: impl Fn(&str, usize) -> String + Send + Sync + 'static) -> Self {
        let address = free_address();
        let (udp, tcp) = (UdpSocket::bind(address), TcpListener::bind(address));
        let (udp, tcp) = (udp.expect("a free address"), tcp.expect("a free address"));
        let shared = Arc::new(Shared {
            script: Box::new(script),
            asked: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let (over_udp, over_tcp) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            std::thread::spawn(move || {
                let mut bytes = [0; 512];
                while let Ok((length, from)) = udp.recv_from(&mut bytes) {
                    if over_udp.stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    if let Some(answer) = over_udp.answer(&bytes[..length], "") {
                        // Whoever asked may have gone.
                        let _ = udp.send_to(&answer, from);
                    }
                }
            }),
            std::thread::spawn(move || {
                while let Ok((stream, _)) = tcp.accept() {
                    if over_tcp.stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    let _ = over_tcp.serve(stream);
                }
            }),
        ];
        Self { address, shared, threads }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The questions so far.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Both threads wait for somebody.
        let woken = UdpSocket::bind((self.address.ip(), 0)).and_then(|udp| udp.send_to(b"", self.address));
        if woken.is_ok() && TcpStream::connect(self.address).is_ok() {
            for thread in self.threads.drain(..) {
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let mut stream = patient(stream)?;
        loop {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut query)?;
            if let Some(answer) = self.answer(&query, " tcp") {
                stream.write_all(&(answer.len() as u16).to_be_bytes())?;
                stream.write_all(&answer)?;
            }
        }
    }

    fn answer(&self, query: &[u8], over: &str) -> Option<Vec<u8>> {
        let (name, rest) = query.get(12..)?.split_at(query[12..].iter().position(|byte| *byte == 0)?);
        let question = 12..12 + name.len() + 5;
        let kind = match rest[2] {
            28 => "AAAA",
            33 => "SRV",
            _ => "A",
        };
        let mut labels = vec![];
        let mut left = name;
        while let Some((length, more)) = left.split_first() {
            let (label, more) = more.split_at(usize::from(*length));
            labels.push(String::from_utf8_lossy(label).into_owned());
            left = more;
        }
        let asked = format!("{kind} {}{over}", labels.join("."));
        let number = {
            let mut all = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(asked.clone());
            all.len() - 1
        };
        let said = (self.script)(&asked, number);
        let (said, wrong) = said.strip_prefix("wrong ").map_or((&*said, 0), |said| (said, 1));
        let (mut code, mut truncated, mut records) = (0, 0, vec![]);
        match said.split(' ').collect::<Vec<_>>()[..] {
            ["silence"] => return None,
            ["garbage"] => return Some(b"garbage".to_vec()),
            ["truncated"] => truncated = 2,
            ["code", text] => code = text.parse().expect("a code"),
            [""] => {}
            [ttl, "alias", of] => records.push(record(5, ttl, &name_of(of))),
            [ttl, "srv", ref places @ ..] => {
                for place in places.chunks(4) {
                    let number = |at: usize| place[at].parse::<u16>().expect("a number").to_be_bytes();
                    let data = [&number(0)[..], &number(1), &number(2), &name_of(place[3])].concat();
                    records.push(record(33, ttl, &data));
                }
            }
            [ttl, ref addresses @ ..] => {
                for address in addresses {
                    records.push(match address.parse().expect("an address") {
                        IpAddr::V4(ip) => record(1, ttl, &ip.octets()),
                        IpAddr::V6(ip) => record(28, ttl, &ip.octets()),
                    });
                }
            }
            [] => unreachable!("split gives something"),
        }
        let id = u16::from_be_bytes([query[0], query[1]]).wrapping_add(wrong).to_be_bytes();
        let head = [0x81 | truncated, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0];
        Some([&id, &head[..], &query[question], &records.concat()].concat())
    }
}

/// A name as records have it.
fn name_of(text: &str) -> Vec<u8> {
    let labels = text.split('.').flat_map(|l| [&[l.len() as u8][..], l.as_bytes()].concat());
    labels.chain([0]).collect()
}

/// A record of the name that was asked for.
fn record(kind: u8, ttl: &str, data: &[u8]) -> Vec<u8> {
    let ttl: u32 = ttl.parse().expect("a time to live");
    [&[0xc0, 12, 0, kind, 0, 1], &ttl.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), data].concat()
}

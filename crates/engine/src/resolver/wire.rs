//! Queries and answers of the DNS, as bytes (RFC 1035): what a resolver that asks another one needs of them.
//!
//! The crates for it bring a date library or the tables of Unicode along for these few records, and none tells what is
//! wrong with an answer in nginx's words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is asked for, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    A = 1,
    Aaaa = 28,
    Srv = 33,
}

const CNAME: u16 = 5;
const INTERNET: u16 = 1;

const HEADER: usize = 12;
/// Type, class, time to live and length of a record, behind its name.
const RECORD: usize = 10;
/// What every server takes over UDP.
const DATAGRAM: usize = 512;
/// More labels and pointers than a name of 255 bytes can have.
const JUMPS: usize = 128;

/// A question as it was sent.
#[derive(Debug)]
pub struct Query {
    pub id: u16,
    /// In lower case, without a dot at its end.
    pub name: Box<[u8]>,
    pub kind: Kind,
    pub bytes: Vec<u8>,
}

impl Query {
    /// `None` for what cannot be a name: an empty label, one above 63 bytes, more than a datagram takes. That names end
    /// at 255 bytes is for the server to say, as with nginx.
    pub fn new(id: u16, name: &[u8], kind: Kind) -> Option<Self> {
        // Recursion is asked for; one question.
        let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        for label in name.split(|byte| *byte == b'.') {
            let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
            bytes.push(length);
            bytes.extend_from_slice(label);
        }
        bytes.push(0);
        bytes.extend_from_slice(&(kind as u16).to_be_bytes());
        bytes.extend_from_slice(&INTERNET.to_be_bytes());
        (bytes.len() <= DATAGRAM).then(|| Self { id, name: name.into(), kind, bytes })
    }
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The server's code, 1 to 5.
    Refused(u8),
    /// There is more of it over TCP.
    Truncated,
    /// Such records there are none.
    Nothing,
    Addresses {
        addresses: Vec<IpAddr>,
        ttl: u32,
    },
    /// Where a service is (RFC 2782).
    Services {
        services: Vec<Service>,
        ttl: u32,
    },
    /// Only another name to ask for.
    Alias {
        name: Box<[u8]>,
        ttl: u32,
    },
}

/// One of the places of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Those of the lowest come first.
    pub priority: u16,
    /// At least 1.
    pub weight: u16,
    pub port: u16,
    pub target: Box<[u8]>,
}

/// What a code means, `Unknown error` among it.
pub fn code_text(code: u8) -> &'static str {
    match code {
        1 => "Format error",
        2 => "Server failure",
        3 => "Host not found",
        4 => "Unimplemented",
        5 => "Operation refused",
        _ => "Unknown error",
    }
}

fn short() -> String {
    "short DNS response".into()
}

/// Reads what came as an answer to the query.
///
/// # Errors
/// It is none, with nginx's words for it: the right one may still come.
pub fn answer(bytes: &[u8], query: &Query, tcp: bool) -> Result<Answer, String> {
    let shown = String::from_utf8_lossy(&query.name);
    if bytes.len() < HEADER {
        return Err(short());
    }
    let mut read = Reader { bytes, at: 0 };
    let (id, flags, questions, answers) = (read.u16()?, read.u16()?, read.u16()?, read.u16()?);
    let truncated = flags & 0x0200 != 0;
    // A response to a standard query; the bits that are reserved are 0.
    if flags & 0xf870 != 0x8000 || truncated && tcp {
        let over = if tcp { "TCP" } else { "UDP" };
        return Err(format!("invalid {over} DNS response {id} fl:{flags:04X}"));
    }
    let code = (flags & 0xf) as u8;
    if code == 1 || code > 5 {
        let mut message = format!("DNS error ({code}: {}), query id:{id}", code_text(code));
        if code == 1 && id == query.id {
            message = format!("{message}, name:\"{shown}\"");
        }
        return Err(message);
    }
    if questions != 1 {
        return Err("invalid number of questions in DNS response".into());
    }
    read.at = HEADER;
    let asked = read.question()?;
    if read.at + 4 + usize::from(answers) * (2 + RECORD) > bytes.len() {
        return Err(short());
    }
    let (kind, class) = (read.u16()?, read.u16()?);
    if class != INTERNET {
        return Err(format!("unknown query class {class} in DNS response"));
    }
    if asked != *query.name || kind != query.kind as u16 {
        return Err(format!("unexpected DNS response for {}", String::from_utf8_lossy(&asked)));
    }
    if id != query.id {
        return Err(format!("wrong ident {id} in DNS response for {shown}, expect {}", query.id));
    }
    match (truncated, code) {
        (true, _) => Ok(Answer::Truncated),
        (false, 1..) => Ok(Answer::Refused(code)),
        (false, 0) if answers == 0 => Ok(Answer::Nothing),
        (false, 0) => read.records(query.kind, answers),
    }
}

/// Reads on from `at`.
struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.bytes.get(self.at..self.at + N).and_then(|bytes| bytes.try_into().ok());
        self.at += N;
        bytes.ok_or_else(short)
    }

    fn u16(&mut self) -> Result<u16, String> {
        self.take().map(u16::from_be_bytes)
    }

    /// The name that was asked for, in lower case.
    fn question(&mut self) -> Result<Vec<u8>, String> {
        let from = self.at;
        loop {
            let length = self.take::<1>()?[0];
            match length {
                0 => break,
                1..64 => self.at += usize::from(length),
                64.. => return Err("unexpected compression pointer in DNS response".into()),
            }
        }
        if self.at - from == 1 {
            return Err("zero-length domain name in DNS response".into());
        }
        self.name_at(from)
    }

    /// The name at that place, in lower case, pointers followed.
    fn name_at(&self, mut at: usize) -> Result<Vec<u8>, String> {
        const OUTSIDE: &str = "name is out of DNS response";
        let mut name = vec![];
        for _ in 0..JUMPS {
            let length = usize::from(*self.bytes.get(at).ok_or(OUTSIDE)?);
            match length {
                0 => {
                    name.pop();
                    return Ok(name);
                }
                1..64 => {
                    let label = self.bytes.get(at + 1..at + 1 + length).ok_or(OUTSIDE)?;
                    name.extend(label.iter().map(u8::to_ascii_lowercase));
                    name.push(b'.');
                    at += 1 + length;
                }
                0xc0.. => at = (length & 0x3f) << 8 | usize::from(*self.bytes.get(at + 1).ok_or(OUTSIDE)?),
                64.. => return Err("invalid label type in DNS response".into()),
            }
        }
        Err("compression pointers loop in DNS response".into())
    }

    /// Goes on behind a record's name. Whose record it is does not matter: a server that follows aliases sends those of
    /// the last one along.
    fn skip_name(&mut self) -> Result<(), String> {
        let from = self.at;
        loop {
            match self.take::<1>()?[0] {
                0 if self.at - from < 2 => return Err("invalid name in DNS response".into()),
                0 => return Ok(()),
                64.. => {
                    self.at += 1;
                    return Ok(());
                }
                length => self.at += usize::from(length),
            }
        }
    }

    fn records(&mut self, kind: Kind, count: u16) -> Result<Answer, String> {
        let mut addresses = vec![];
        let mut services = vec![];
        let mut alias = None;
        let mut least = u32::MAX;
        for _ in 0..count {
            self.skip_name()?;
            let (of, class, ttl, length) = (self.u16()?, self.u16()?, self.take()?, self.u16()?);
            if class != INTERNET {
                return Err(format!("unexpected RR class {class} in DNS response"));
            }
            // What would be negative is none at all (RFC 2181 section 8).
            least = least.min(u32::try_from(i32::from_be_bytes(ttl)).unwrap_or(0));
            let from = self.at;
            match (of, length) {
                (1, 4) if kind == Kind::A => addresses.push(IpAddr::V4(Ipv4Addr::from(self.take::<4>()?))),
                (28, 16) if kind == Kind::Aaaa => {
                    addresses.push(IpAddr::V6(Ipv6Addr::from(self.take::<16>()?)));
                }
                (33, 7..) if kind == Kind::Srv => {
                    let (priority, weight, port) = (self.u16()?, self.u16()?, self.u16()?);
                    let target = self.name_at(from + 6)?.into();
                    services.push(Service { priority, weight: weight.max(1), port, target });
                }
                (33, _) if kind == Kind::Srv => return Err(short()),
                (1 | 28, _) if kind != Kind::Srv => {
                    let name = if of == 1 { "A" } else { "AAAA" };
                    let what = if of == kind as u16 { "invalid" } else { "unexpected" };
                    return Err(format!("{what} {name} record in DNS response"));
                }
                (CNAME, _) => alias = Some(from),
                // A DNAME comes with the alias that follows from it; the rest is not for us.
                (_, _) => {}
            }
            self.at = from + usize::from(length);
            if self.at > self.bytes.len() {
                return Err(short());
            }
        }
        match alias {
            _ if !addresses.is_empty() => Ok(Answer::Addresses { addresses, ttl: least }),
            _ if !services.is_empty() => {
                services.sort_by_key(|service| service.priority);
                Ok(Answer::Services { services, ttl: least })
            }
            Some(at) => Ok(Answer::Alias { name: self.name_at(at)?.into(), ttl: least }),
            None if kind == Kind::Srv => Err("no SRV type in DNS response".into()),
            None => Err("no A or CNAME types in DNS response".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [u8; 2] = [0x81, 0x80];

    fn query() -> Query {
        Query::new(7, b"a.example", Kind::A).unwrap()
    }

    /// An answer to the query with so many records.
    fn reply(flags: [u8; 2], count: u8, records: &[u8]) -> Vec<u8> {
        let mut bytes = query().bytes;
        bytes[2..4].copy_from_slice(&flags);
        bytes[7] = count;
        bytes.extend_from_slice(records);
        bytes
    }

    /// A record of the name that was asked for.
    fn record(kind: u8, ttl: u32, data: &[u8]) -> Vec<u8> {
        let ttl = ttl.to_be_bytes();
        [&[0xc0, 12, 0, kind, 0, 1], &ttl[..], &[0, data.len() as u8], data].concat()
    }

    fn addresses(ttl: u32, addresses: &[&str]) -> Result<Answer, String> {
        Ok(Answer::Addresses { addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(), ttl })
    }

    #[test]
    fn a_query_is_what_the_rfc_says() {
        let bytes = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\0\0\x1c\0\x01";
        assert_eq!(Query::new(0x1234, b"a.example", Kind::Aaaa).unwrap().bytes, bytes);
    }

    #[test]
    fn places_of_a_service() {
        let query = Query::new(7, b"a.example", Kind::Srv).unwrap();
        let reply = |records: &[Vec<u8>]| {
            let mut bytes = query.bytes.clone();
            bytes[2..4].copy_from_slice(&FLAGS);
            bytes[7] = records.len() as u8;
            answer(&[bytes, records.concat()].concat(), &query, false)
        };
        // The host is the name that was asked for, by a pointer.
        let place = |priority: u8, weight: u8, port: u8| [0, priority, 0, weight, 0, port, 1, b'b', 0xc0, 12];
        let service =
            |priority, weight, port| Service { priority, weight, port, target: b"b.a.example"[..].into() };
        let two = [record(33, 9, &place(2, 0, 80)), record(33, 5, &place(1, 7, 81))];
        let services = vec![service(1, 7, 81), service(2, 1, 80)];
        assert_eq!(reply(&two), Ok(Answer::Services { services, ttl: 5 }));
        // What else may stand there is not for us.
        let address = record(1, 9, &[127, 0, 0, 1]);
        let services = vec![service(1, 1, 1)];
        let both = [address.clone(), record(33, 9, &place(1, 1, 1))];
        assert_eq!(reply(&both), Ok(Answer::Services { services, ttl: 9 }));
        assert_eq!(reply(&[address]), Err("no SRV type in DNS response".into()));
        assert_eq!(reply(&[record(33, 9, &[0, 1, 0, 1, 0, 1])]), Err("short DNS response".into()));
        let alias = reply(&[record(5, 9, &[1, b'b', 0xc0, 12])]);
        assert_eq!(alias, Ok(Answer::Alias { name: b"b.a.example"[..].into(), ttl: 9 }));
        assert_eq!(reply(&[]), Ok(Answer::Nothing));
    }

    #[test]
    fn what_cannot_be_a_name_is_not_asked_for() {
        let is_name = |name: &str| Query::new(1, name.as_bytes(), Kind::A).is_some();
        let label = "a".repeat(63);
        assert!(is_name("a") && is_name(&label));
        let seven = [&*label; 7].join(".");
        assert!(
            is_name(&format!("{seven}.{}", &label[..46])) && !is_name(&format!("{seven}.{}", &label[..47]))
        );
        for name in ["", ".", "a..b", ".a", "a.", &format!("{label}a")] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn answers() {
        #[track_caller]
        fn check(bytes: &[u8], expected: Result<Answer, String>) {
            assert_eq!(answer(bytes, &query(), false), expected);
        }
        let alias = |name: &str, ttl| Ok(Answer::Alias { name: name.as_bytes().into(), ttl });
        check(&reply(FLAGS, 0, b""), Ok(Answer::Nothing));
        check(&reply([0x81, 0x83], 0, b""), Ok(Answer::Refused(3)));
        check(&reply([0x83, 0x80], 0, b""), Ok(Answer::Truncated));
        check(&reply(FLAGS, 1, &record(1, 60, &[127, 0, 0, 1])), addresses(60, &["127.0.0.1"]));
        let two = [record(1, 60, &[127, 0, 0, 1]), record(1, 5, &[127, 0, 0, 2])].concat();
        check(&reply(FLAGS, 2, &two), addresses(5, &["127.0.0.1", "127.0.0.2"]));
        check(&reply(FLAGS, 1, &record(1, 1 << 31, &[127, 0, 0, 1])), addresses(0, &["127.0.0.1"]));
        // The rest of the name is that of the question.
        let cname = record(5, 9, b"\x01B\xc0\x0e");
        check(&reply(FLAGS, 1, &cname), alias("b.example", 9));
        // Whose address it is follows from the alias.
        let both = [&cname, &b"\x01b\x07example\0"[..], &record(1, 60, &[127, 0, 0, 3])[2..]].concat();
        check(&reply(FLAGS, 2, &both), addresses(9, &["127.0.0.3"]));
        let dname = [record(39, 9, b"\x03net\0"), cname].concat();
        check(&reply(FLAGS, 2, &dname), alias("b.example", 9));
        let mut upper = reply(FLAGS, 0, b"");
        upper[13] = b'A';
        check(&upper, Ok(Answer::Nothing));
        let aaaa = Query::new(7, b"a.example", Kind::Aaaa).unwrap();
        let mut bytes = reply(FLAGS, 1, &record(28, 1, &Ipv6Addr::LOCALHOST.octets()));
        bytes[24] = 28;
        assert_eq!(answer(&bytes, &aaaa, true), addresses(1, &["::1"]));
    }

    #[test]
    fn what_is_no_answer_is_told() {
        #[track_caller]
        fn check(bytes: &[u8], expected: &str) {
            assert_eq!(answer(bytes, &query(), false), Err(expected.into()));
        }
        let change = |at: usize, byte: u8| {
            let mut bytes = reply(FLAGS, 1, &record(1, 60, &[127, 0, 0, 1]));
            bytes[at] = byte;
            bytes
        };
        check(&[0; 11], "short DNS response");
        check(&change(2, 1), "invalid UDP DNS response 7 fl:0180");
        check(&change(3, 0x81), "DNS error (1: Format error), query id:7, name:\"a.example\"");
        check(&change(3, 0x86), "DNS error (6: Unknown error), query id:7");
        check(&change(5, 2), "invalid number of questions in DNS response");
        check(&change(12, 0xc0), "unexpected compression pointer in DNS response");
        check(&change(12, 0), "zero-length domain name in DNS response");
        check(&change(7, 2), "short DNS response");
        check(&change(26, 3), "unknown query class 3 in DNS response");
        check(&change(13, b'b'), "unexpected DNS response for b.example");
        check(&change(24, 28), "unexpected DNS response for a.example");
        check(&change(1, 8), "wrong ident 8 in DNS response for a.example, expect 7");
        check(&change(32, 3), "unexpected RR class 3 in DNS response");
        check(&change(30, 28), "unexpected AAAA record in DNS response");
        check(&change(38, 3), "invalid A record in DNS response");
        check(&reply(FLAGS, 1, &record(16, 60, b"text")), "no A or CNAME types in DNS response");
        check(&reply(FLAGS, 1, &record(5, 60, &[0xc0, 39])), "compression pointers loop in DNS response");
        check(&reply(FLAGS, 1, &record(5, 60, &[0xff, 0xff])), "name is out of DNS response");
        check(&reply(FLAGS, 1, &record(5, 60, &[0x80, 0])), "invalid label type in DNS response");
        let long = [&record(16, 60, b"")[..11], &[200]].concat();
        check(&reply(FLAGS, 1, &long), "short DNS response");
        let truncated = reply([0x83, 0x80], 0, b"");
        let told = answer(&truncated, &query(), true);
        assert_eq!(told, Err("invalid TCP DNS response 7 fl:8380".into()));
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let whole =
            reply(FLAGS, 2, &[record(5, 9, b"\x01B\xc0\x0e"), record(1, 1, &[127, 0, 0, 1])].concat());
        for end in 0..whole.len() {
            let _ = answer(&whole[..end], &query(), false);
            for byte in [0, 1, 0x3f, 0x40, 0x80, 0xc0, 0xff] {
                let mut bytes = whole.clone();
                bytes[end] = byte;
                let _ = answer(&bytes, &query(), false);
            }
        }
    }
}

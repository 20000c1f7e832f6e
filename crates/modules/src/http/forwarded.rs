//! The client's address as trusted proxies tell it (`X-Forwarded-For`).

use std::net::{IpAddr, SocketAddr};

use weir_ir::address::Address;
use weir_ir::cidr::{self, Cidr};

/// Walks lists of addresses from their ends: while who spoke last is trusted, whom it names takes its place; only
/// once unless `recursive`. `lists` are the header fields in the order in which they came.
pub(super) fn client(
    peer: Option<IpAddr>,
    lists: &[&[u8]],
    trusted: &[Cidr],
    recursive: bool,
) -> Option<IpAddr> {
    let mut client = peer;
    for list in lists.iter().rev() {
        for entry in list.rsplit(|byte| matches!(byte, b' ' | b',')).filter(|entry| !entry.is_empty()) {
            let speaker = match client {
                Some(ip) => Address::Ip(SocketAddr::new(ip, 0)),
                None => Address::Unix("".into()),
            };
            if !trusted.iter().any(|range| range.contains(&speaker)) {
                return client;
            }
            let Some(named) = address(entry) else { return client };
            client = Some(named);
            if !recursive {
                return client;
            }
        }
    }
    client
}

/// An address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `::1`, `[::1]`, `[::1]:80`.
fn address(text: &[u8]) -> Option<IpAddr> {
    if let Some(rest) = text.strip_prefix(b"[") {
        let end = memchr::memchr(b']', rest)?;
        let port = &rest[end + 1..];
        let good = port.is_empty() || port.strip_prefix(b":").is_some_and(is_port);
        return cidr::ip(&rest[..end]).filter(|_| good);
    }
    if let Some(ip) = cidr::ip(text) {
        return Some(ip);
    }
    let colon = memchr::memchr(b':', text)?;
    cidr::ip(&text[..colon]).filter(|_| is_port(&text[colon + 1..]))
}

fn is_port(text: &[u8]) -> bool {
    weir_ir::value::number(text).is_some_and(|port| (1..=65535).contains(&port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lists: &[&str], recursive: bool, expected: &str) {
        let trusted: Vec<_> = ["10.0.0.0/8", "::1"]
            .iter()
            .filter_map(|range| Cidr::parse(range.as_bytes()).map(|(range, _)| range))
            .collect();
        let lists: Vec<_> = lists.iter().map(|list| list.as_bytes()).collect();
        let found = client(cidr::ip(b"10.0.0.1"), &lists, &trusted, recursive);
        assert_eq!(found, cidr::ip(expected.as_bytes()), "{lists:?}");
    }

    #[test]
    fn walks() {
        check(&[], true, "10.0.0.1");
        check(&["1.1.1.1"], false, "1.1.1.1");
        check(&["1.1.1.1, 10.0.0.2"], false, "10.0.0.2");
        check(&["1.1.1.1, 10.0.0.2"], true, "1.1.1.1");
        check(&["2.2.2.2, 1.1.1.1,10.0.0.2 ,"], true, "1.1.1.1");
        check(&["1.1.1.1", "10.0.0.2"], true, "1.1.1.1");
        check(&["1.1.1.1", "10.0.0.2"], false, "10.0.0.2");
        check(&["1.1.1.1, x, 10.0.0.2"], true, "10.0.0.2");
        check(&["1.1.1.1:80"], true, "1.1.1.1");
        check(&["[::2]:80"], true, "::2");
        check(&["2.2.2.2, [::1]"], true, "2.2.2.2");
        check(&["x"], false, "10.0.0.1");
    }
}

//! The client's address as trusted proxies tell it (`X-Forwarded-For`).

use std::net::SocketAddr;

use weir_ir::address::Address;
use weir_ir::cidr::{self, Cidr};
use weir_ir::value;

/// Goes back through the hops of a list, from its end and the last of its `lines`, as long as each was told by one that
/// is trusted; only once unless `recursive`. `None` where the peer itself is not trusted or names nobody.
pub(super) fn client(
    peer: &Address,
    lines: &[&[u8]],
    trusted: &[Cidr],
    recursive: bool,
) -> Option<SocketAddr> {
    let mut found = None;
    for line in lines.iter().rev() {
        let mut rest = *line;
        loop {
            let told = found.map(Address::Ip);
            if !trusted.iter().any(|range| range.contains(told.as_ref().unwrap_or(peer))) {
                return found;
            }
            let end = rest.iter().rposition(|b| !matches!(b, b' ' | b',')).map_or(0, |at| at + 1);
            let start = rest[..end].iter().rposition(|b| matches!(b, b' ' | b',')).map_or(0, |at| at + 1);
            match address(&rest[start..end]) {
                Some(address) => found = Some(address),
                None => return found,
            }
            rest = &rest[..start];
            if !recursive {
                return found;
            }
            if rest.is_empty() {
                break;
            }
        }
    }
    found
}

/// An address with or without a port; IPv6 with a port stands in brackets, without one it may.
fn address(text: &[u8]) -> Option<SocketAddr> {
    if let Some(ip) = cidr::ip(text) {
        return Some(SocketAddr::new(ip, 0));
    }
    let (host, rest) = match text {
        [b'[', inner @ ..] => {
            let end = memchr::memchr(b']', inner)?;
            (&inner[..end], &inner[end + 1..])
        }
        _ => text.split_at(memchr::memchr(b':', text)?),
    };
    let port = match rest {
        [] => 0,
        rest => {
            let port = value::number(rest.strip_prefix(b":")?)?;
            u16::try_from(port).ok().filter(|port| *port > 0)?
        }
    };
    Some(SocketAddr::new(cidr::ip(host)?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lists: &[&str], recursive: bool, expected: Option<&str>) {
        let trusted: Vec<_> = ["10.0.0.0/8", "::1"]
            .iter()
            .filter_map(|range| Cidr::parse(range.as_bytes()).map(|(range, _)| range))
            .collect();
        let lists: Vec<_> = lists.iter().map(|list| list.as_bytes()).collect();
        let peer = Address::Ip("10.0.0.1:1".parse().unwrap());
        let found = client(&peer, &lists, &trusted, recursive);
        assert_eq!(found.map(|found| found.to_string()).as_deref(), expected, "{lists:?}");
    }

    #[test]
    fn walks() {
        check(&[], true, None);
        check(&["1.1.1.1"], false, Some("1.1.1.1:0"));
        check(&["1.1.1.1, 10.0.0.2"], false, Some("10.0.0.2:0"));
        check(&["1.1.1.1, 10.0.0.2"], true, Some("1.1.1.1:0"));
        check(&["2.2.2.2, 1.1.1.1,10.0.0.2 ,"], true, Some("1.1.1.1:0"));
        check(&["1.1.1.1", "10.0.0.2"], true, Some("1.1.1.1:0"));
        check(&["1.1.1.1", "10.0.0.2"], false, Some("10.0.0.2:0"));
        check(&["1.1.1.1, x, 10.0.0.2"], true, Some("10.0.0.2:0"));
        check(&["1.1.1.1:80"], true, Some("1.1.1.1:80"));
        check(&["[::2]:80"], true, Some("[::2]:80"));
        check(&["2.2.2.2, ::1"], true, Some("2.2.2.2:0"));
        check(&["2.2.2.2, [::1]"], true, Some("2.2.2.2:0"));
        check(&["1.1.1.1:0"], true, None);
        check(&["x"], false, None);
    }
}

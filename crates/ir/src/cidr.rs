//! Ranges of addresses: `192.0.2.0/24`, `2001:db8::/32`, `unix:`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::address::Address;

/// A range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cidr {
    V4 { address: u32, mask: u32 },
    V6 { address: u128, mask: u128 },
    Unix,
}

impl Cidr {
    /// Reads an address or a range, and tells whether it has bits below its mask, which are taken away.
    pub fn parse(text: &[u8]) -> Option<(Self, bool)> {
        let (address, bits) = match memchr::memchr(b'/', text) {
            Some(at) => (&text[..at], Some(crate::value::number(&text[at + 1..])?)),
            None => (text, None),
        };
        match ip(address)? {
            IpAddr::V4(ip) => {
                let bits = bits.unwrap_or(32);
                let mask = mask_of(u128::from(u32::MAX), 32, bits)? as u32;
                let address = u32::from(ip);
                Some((Cidr::V4 { address: address & mask, mask }, address & !mask != 0))
            }
            IpAddr::V6(ip) => {
                let mask = mask_of(u128::MAX, 128, bits.unwrap_or(128))?;
                let address = u128::from(ip);
                Some((Cidr::V6 { address: address & mask, mask }, address & !mask != 0))
            }
        }
    }

    /// The range of one address.
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Cidr::V4 { address: u32::from(ip), mask: u32::MAX },
            IpAddr::V6(ip) => Cidr::V6 { address: u128::from(ip), mask: u128::MAX },
        }
    }

    /// Whether the address lies in the range; an IPv4 address within IPv6 is the IPv4 address.
    pub fn contains(&self, address: &Address) -> bool {
        match (self, address) {
            (Cidr::Unix, Address::Unix(_)) => true,
            (Cidr::Unix, Address::Ip(_)) | (Cidr::V4 { .. } | Cidr::V6 { .. }, Address::Unix(_)) => false,
            (_, Address::Ip(inet)) => match unmapped(inet.ip()) {
                IpAddr::V4(ip) => self.contains_v4(ip),
                IpAddr::V6(ip) => self.contains_v6(ip),
            },
        }
    }

    pub fn contains_v4(&self, ip: Ipv4Addr) -> bool {
        matches!(self, Cidr::V4 { address, mask } if u32::from(ip) & mask == *address)
    }

    pub fn contains_v6(&self, ip: Ipv6Addr) -> bool {
        matches!(self, Cidr::V6 { address, mask } if u128::from(ip) & mask == *address)
    }
}

fn mask_of(all: u128, width: u64, bits: u64) -> Option<u128> {
    match bits {
        0 => Some(0),
        bits if bits <= width => Some(all << (width - bits) & all),
        _ => None,
    }
}

/// The IPv4 address within `::ffff:0:0/96`.
pub fn unmapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

/// Reads an address; octets of IPv4 may have leading zeros and are decimal all the same.
pub fn ip(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    if text.contains(':') {
        return text.parse().ok().map(IpAddr::V6);
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))?;
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| IpAddr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(range: &str, address: &str, expected: Option<(bool, bool)>) {
        let address = match address {
            "unix:" => Address::Unix("".into()),
            text => Address::Ip((ip(text.as_bytes()).unwrap(), 1).into()),
        };
        let got = Cidr::parse(range.as_bytes()).map(|(cidr, low)| (cidr.contains(&address), low));
        assert_eq!(got, expected, "{range} {address}");
    }

    #[test]
    fn ranges() {
        check("192.0.2.0/24", "192.0.2.255", Some((true, false)));
        check("192.0.2.0/24", "192.0.3.0", Some((false, false)));
        check("192.0.2.7/24", "192.0.2.1", Some((true, true)));
        check("192.0.2.07", "192.0.2.7", Some((true, false)));
        check("0.0.0.0/0", "255.1.1.1", Some((true, false)));
        check("0.0.0.0/0", "::1", Some((false, false)));
        check("192.0.2.0/24", "::ffff:192.0.2.1", Some((true, false)));
        check("2001:db8::/32", "2001:db8:1::", Some((true, false)));
        check("2001:db8::1/32", "2001:db9::", Some((false, true)));
        check("::/0", "::1", Some((true, false)));
        check("::1", "unix:", Some((false, false)));
        for bad in [
            "192.0.2.0/33",
            "::/129",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.256",
            "1.2.3.4/",
            "1.2.3.4/x",
            "",
            "x",
            "1..2.3",
        ] {
            check(bad, "::1", None);
        }
    }
}

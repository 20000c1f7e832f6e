//! Addresses that nobody else listens on.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// So many IPs a process has.
const EACH: u16 = 250;

/// A loopback address that is free now and stays so: the port is the kernel's choice, and the IP is of this process and,
/// for the first 250, of this call alone, so that no other program binds it in between.
///
/// # Panics
/// If nothing can be bound, or after 1000 calls.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(number < 4 * EACH, "out of addresses");
    let listener = TcpListener::bind((ip(std::process::id(), number), 0)).expect("a free port");
    listener.local_addr().expect("the address of a bound socket")
}

fn ip(process: u32, number: u16) -> Ipv4Addr {
    let [_, _, high, low] = process.to_be_bytes();
    Ipv4Addr::new(127, (2 + number % EACH) as u8, high, low)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn processes_share_no_ip() {
        let ips: HashSet<_> =
            (1000..1010).flat_map(|process| (0..EACH).map(move |n| ip(process, n))).collect();
        assert_eq!(ips.len(), 10 * usize::from(EACH));
    }
}

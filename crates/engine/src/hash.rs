//! A cheap hash for tables that only the configuration fills: whoever asks cannot put anything in, so that an attacker
//! has no chain to lengthen.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map with configured keys.
pub type ConfiguredMap<K, V> = HashMap<K, V, BuildHasherDefault<Mixing>>;

/// Mixes eight bytes at a time by multiplication and rotation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mixing(u64);

/// An odd number with its bits well spread: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Mixing {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(SPREAD);
    }
}

impl Hasher for Mixing {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0u8; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.mix(u64::from_le_bytes(last));
        }
    }

    fn write_usize(&mut self, n: usize) {
        self.mix(n as u64);
    }

    fn write_u8(&mut self, n: u8) {
        self.mix(u64::from(n));
    }

    fn finish(&self) -> u64 {
        // The table takes its place from the low bits and its tag from the high ones.
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_all_lengths_are_told_apart() {
        let mut map = ConfiguredMap::default();
        for length in 0..100usize {
            assert!(map.insert(vec![b'a'; length], length).is_none());
        }
        for length in 0..100usize {
            assert_eq!(map.get(&vec![b'a'; length]), Some(&length));
        }
    }
}

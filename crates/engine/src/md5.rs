//! MD5 (RFC 1321), which old password files and signed links still use; nothing new should.

/// A digest in the making.
#[derive(Clone)]
pub struct Md5 {
    state: [u32; 4],
    block: [u8; 64],
    /// Bytes taken so far.
    length: u64,
}

/// Bits by which the four steps of each round rotate (RFC 1321 section 3.4).
const SHIFTS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];

/// `floor(2^32 * abs(sin(i + 1)))`, computed from the definition.
static SINES: std::sync::LazyLock<[u32; 64]> = std::sync::LazyLock::new(|| {
    std::array::from_fn(|i| (((i + 1) as f64).sin().abs() * 4_294_967_296.0) as u32)
});

impl Default for Md5 {
    fn default() -> Self {
        Self { state: [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476], block: [0; 64], length: 0 }
    }
}

impl Md5 {
    /// The digest of one text.
    pub fn of(bytes: &[u8]) -> [u8; 16] {
        Self::default().with(bytes).finish()
    }

    pub fn with(mut self, bytes: &[u8]) -> Self {
        self.add(bytes);
        self
    }

    pub fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let at = (self.length % 64) as usize;
            let n = bytes.len().min(64 - at);
            self.block[at..at + n].copy_from_slice(&bytes[..n]);
            self.length += n as u64;
            bytes = &bytes[n..];
            if at + n == 64 {
                self.mix();
            }
        }
    }

    pub fn finish(mut self) -> [u8; 16] {
        let bits = self.length.wrapping_mul(8);
        self.add(&[0x80]);
        while self.length % 64 != 56 {
            self.add(&[0]);
        }
        self.add(&bits.to_le_bytes());
        let mut digest = [0; 16];
        for (out, word) in digest.chunks_exact_mut(4).zip(self.state) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        digest
    }

    fn mix(&mut self) {
        let mut words = [0u32; 16];
        for (word, bytes) in words.iter_mut().zip(self.block.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        let sines = &*SINES;
        let [mut a, mut b, mut c, mut d] = self.state;
        for i in 0..64 {
            let (mixed, word) = match i / 16 {
                0 => ((b & c) | (!b & d), i),
                1 => ((d & b) | (!d & c), 5 * i + 1),
                2 => (b ^ c ^ d, 3 * i + 5),
                _ => (c ^ (b | !d), 7 * i),
            };
            let sum = a.wrapping_add(mixed).wrapping_add(sines[i]).wrapping_add(words[word % 16]);
            (a, d, c, b) = (d, c, b, b.wrapping_add(sum.rotate_left(SHIFTS[i / 16][i % 4])));
        }
        for (state, word) in self.state.iter_mut().zip([a, b, c, d]) {
            *state = state.wrapping_add(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let hex: String = Md5::of(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, expected, "{text}");
    }

    /// RFC 1321 section A.5.
    #[test]
    fn digests() {
        check("", "d41d8cd98f00b204e9800998ecf8427e");
        check("a", "0cc175b9c0f1b6a831c399e269772661");
        check("message digest", "f96b697d7cb7938d525a2f31aaf161d0");
        check("abcdefghijklmnopqrstuvwxyz", "c3fcd3d76192e4007dfb496cca67e13b");
        let digits = "12345678901234567890123456789012345678901234567890123456789012345678901234567890";
        check(digits, "57edf4a22be3c955ac49da2e2107b67a");
    }
}

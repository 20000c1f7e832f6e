//! Tables of bytes and what nginx made of them, and what must hold for any bytes.

mod observed;
mod requests;
mod responses;

/// Numbers that look random and are the same in every run (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }

    /// `wire` with a few bytes changed, doubled or left out.
    fn mangle(&mut self, wire: &[u8]) -> Vec<u8> {
        const BYTES: &[u8] = b"\r\n \t:/.%?#0aA_\x00\x7f\xff";
        let mut wire = wire.to_vec();
        for _ in 0..self.roll(4) {
            if wire.is_empty() {
                break;
            }
            let at = self.roll(wire.len());
            match self.roll(3) {
                0 => wire[at] = BYTES[self.roll(BYTES.len())],
                1 => wire.insert(at, BYTES[self.roll(BYTES.len())]),
                _ => {
                    wire.remove(at);
                }
            }
        }
        wire
    }
}

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

/// Gives `wire` to `parse` in pieces of the lengths that `cut` makes of what is left, until it answers other than
/// `partial` or all is given.
fn feed<P: PartialEq>(
    wire: &[u8],
    mut cut: impl FnMut(usize) -> usize,
    partial: &P,
    mut parse: impl FnMut(&[u8]) -> P,
) -> P {
    let mut rest = wire;
    loop {
        let (piece, behind) = rest.split_at(cut(rest.len()).clamp(1.min(rest.len()), rest.len()));
        let parsed = parse(piece);
        if parsed != *partial || behind.is_empty() {
            return parsed;
        }
        rest = behind;
    }
}

#[track_caller]
fn same(found: &[u8], expected: &[u8], wire: &[u8]) {
    let text = String::from_utf8_lossy;
    assert_eq!(text(found), text(expected), "{:?}", text(wire));
}

/// Checks what comes of `wire` as a whole, byte by byte, and cut in two anywhere.
#[track_caller]
fn same_however_cut(wire: &[u8], expected: &[u8], found: impl Fn(&mut dyn FnMut(usize) -> usize) -> Vec<u8>) {
    same(&found(&mut |len| len), expected, wire);
    same(&found(&mut |_| 1), expected, wire);
    for at in 0..wire.len() {
        let mut cuts = [at, usize::MAX].into_iter();
        same(&found(&mut |_| cuts.next().unwrap_or(usize::MAX)), expected, wire);
    }
}

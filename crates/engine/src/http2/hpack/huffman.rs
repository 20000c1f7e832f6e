//! The Huffman code of HPACK (RFC 7541 section 5.2 and appendix B).
//!
//! The code is canonical: codes of one length follow each other in the order of their symbols, right behind those that are
//! shorter. So the lengths alone say all of it.

/// Bits of the code of each byte, and of the end of a string.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The symbol that ends strings and stands in none.
const END: u16 = 256;

const LONGEST: usize = 30;

/// What is wrong with a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The code for the end of a string is in it.
    Ended,
    /// It ends within a code, by other bits than ones.
    Within,
}

/// Appends what `encoded` says. At its end it takes as many ones as are no whole code, like nginx, though section 5.2 wants
/// no more than seven.
pub(super) fn decode(encoded: &[u8], bytes: &mut Vec<u8>) -> Result<(), Broken> {
    bytes.reserve(encoded.len() * 8 / 5);
    let mut rest = encoded;
    // The next bits are the uppermost of `window`, which has `bits` of them.
    let (mut window, mut bits) = (0u64, 0);
    while let Some((word, behind)) = rest.split_first_chunk() {
        window |= u64::from(u32::from_be_bytes(*word)) << (32 - bits);
        (rest, bits) = (behind, bits + 32);
        while bits >= 32 {
            let (symbol, length) = first((window >> 32) as u32);
            if symbol == END {
                return Err(Broken::Ended);
            }
            bytes.push(symbol as u8);
            window <<= length;
            bits -= length;
        }
    }
    for byte in rest {
        window |= u64::from(*byte) << (56 - bits);
        bits += 8;
    }
    // Ones follow, without end.
    window |= u64::MAX >> bits;
    while bits > 0 {
        let (symbol, length) = first((window >> 32) as u32);
        match (symbol == END, length > bits) {
            (true, true) => return Ok(()),
            (true, false) => return Err(Broken::Ended),
            (false, true) => return Err(Broken::Within),
            (false, false) => bytes.push(symbol as u8),
        }
        window = !(!window << length);
        bits -= length;
    }
    Ok(())
}

/// How many bytes `encode` appends.
pub(super) fn length(bytes: &[u8]) -> usize {
    let bits: usize = bytes.iter().map(|byte| usize::from(LENGTHS[usize::from(*byte)])).sum();
    bits.div_ceil(8)
}

pub(super) fn encode(bytes: &[u8], encoded: &mut Vec<u8>) {
    let (mut window, mut bits) = (0u64, 0);
    for byte in bytes {
        let (code, length) = CODES[usize::from(*byte)];
        window = window << length | u64::from(code);
        bits += u32::from(length);
        if bits >= 32 {
            bits -= 32;
            encoded.extend_from_slice(&((window >> bits) as u32).to_be_bytes());
        }
    }
    if bits > 0 {
        let last = (window << (32 - bits)) as u32 | u32::MAX >> bits;
        encoded.extend_from_slice(&last.to_be_bytes()[..bits.div_ceil(8) as usize]);
    }
}

/// The symbol whose code is first in `window`, with its length.
fn first(window: u32) -> (u16, u32) {
    let (symbol, length) = SHORT[(window >> (32 - SHORTER)) as usize];
    if length != 0 {
        return (u16::from(symbol), u32::from(length));
    }
    let mut length = SHORTER + 1;
    while window >> (32 - length) >= BEHIND[length] {
        length += 1;
    }
    let back = BEHIND[length] - (window >> (32 - length));
    (SORTED[PLACES[length] - back as usize], length as u32)
}

/// Codes of as many bits are found at once: those of letters, digits, and nearly all that stands in fields.
const SHORTER: usize = 10;

/// Codes and their lengths.
const CODES: [(u32, u8); 257] = {
    let mut codes = [(0, 0); 257];
    let (mut code, mut length) = (0u32, 1);
    while length <= LONGEST {
        code <<= 1;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                codes[symbol] = (code, length as u8);
                code += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    codes
};

/// Symbols in the order of their codes.
const SORTED: [u16; 257] = {
    let mut sorted = [0; 257];
    let (mut place, mut length) = (0, 1);
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                sorted[place] = symbol as u16;
                place += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    sorted
};

/// For each length, the place in `SORTED` behind its codes.
const PLACES: [usize; LONGEST + 1] = {
    let mut places = [0; LONGEST + 1];
    let mut length = 1;
    while length <= LONGEST {
        places[length] = places[length - 1];
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            places[length] += (LENGTHS[symbol] as usize == length) as usize;
            symbol += 1;
        }
        length += 1;
    }
    places
};

/// For each length, the number behind its last code: what is longer begins with that or more.
const BEHIND: [u32; LONGEST + 1] = {
    let mut behind = [0; LONGEST + 1];
    let mut length = 1;
    while length <= LONGEST {
        behind[length] = behind[length - 1] * 2 + (PLACES[length] - PLACES[length - 1]) as u32;
        length += 1;
    }
    behind
};

/// For each beginning, the symbol whose code it has, and the length; that is 0 where the code is longer.
const SHORT: [(u8, u8); 1 << SHORTER] = {
    let mut short = [(0, 0); 1 << SHORTER];
    let mut symbol = 0;
    while symbol < 256 {
        let (code, length) = CODES[symbol];
        if length as usize <= SHORTER {
            let others = SHORTER - length as usize;
            let mut at = (code as usize) << others;
            while at < (code as usize + 1) << others {
                short[at] = (symbol as u8, length);
                at += 1;
            }
        }
        symbol += 1;
    }
    short
};

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(bytes: &[u8]) -> Vec<u8> {
        let mut encoded = Vec::new();
        encode(bytes, &mut encoded);
        assert_eq!(encoded.len(), length(bytes));
        encoded
    }

    fn decoded(encoded: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut bytes = Vec::new();
        decode(encoded, &mut bytes).map(|()| bytes)
    }

    #[test]
    fn the_codes_are_those_of_the_rfc() {
        #[track_caller]
        fn check(symbol: u16, code: u32, length: u8) {
            assert_eq!(CODES[usize::from(symbol)], (code, length));
        }
        check(0, 0x1ff8, 13);
        check(10, 0x3fff_fffc, 30);
        check(u16::from(b'0'), 0, 5);
        check(u16::from(b':'), 0x5c, 7);
        check(u16::from(b'?'), 0x3fc, 10);
        check(u16::from(b'z'), 0x7b, 7);
        check(128, 0xfffe6, 20);
        check(255, 0x03ff_ffee, 26);
        check(END, 0x3fff_ffff, 30);
        assert_eq!(crc32fast::hash(&LENGTHS), 0xfbab_bff4);
    }

    #[test]
    fn every_byte_there_and_back() {
        let all: Vec<u8> = (0..=255).collect();
        for byte in &all {
            for length in 1..9 {
                let bytes = vec![*byte; length];
                assert_eq!(decoded(&encoded(&bytes)), Ok(bytes));
            }
        }
        for start in 0..all.len() {
            assert_eq!(decoded(&encoded(&all[start..])).as_deref(), Ok(&all[start..]));
        }
        assert_eq!((encoded(b""), decoded(b"")), (vec![], Ok(vec![])));
    }

    /// A string of `bits` bits, all of them ones but those of `bytes` in front.
    fn padded(bytes: &[u8], bits: usize) -> Vec<u8> {
        let mut encoded = encoded(bytes);
        encoded.resize(bits / 8, 0xff);
        encoded
    }

    #[test]
    fn ones_at_the_end_are_no_more_than_a_whole_code_without_its_last() {
        // `0` has 5 bits and `:` 7, so that 3 and 1 of the first byte are padding.
        for (bytes, bits) in [(&b""[..], 0usize), (b"0", 5), (b":", 7), (b"00000000", 40), (b"?0", 15)] {
            for octets in bits.div_ceil(8)..9 {
                let expected = if octets * 8 - bits < 30 { Ok(bytes.to_vec()) } else { Err(Broken::Ended) };
                assert_eq!(decoded(&padded(bytes, octets * 8)), expected, "{octets} octets");
            }
        }
    }

    #[test]
    fn what_ends_within_a_code_is_broken() {
        // The 3 bits behind `0`.
        for bits in 0..7 {
            assert_eq!(decoded(&[bits]), Err(Broken::Within), "{bits}");
        }
        assert_eq!(decoded(&[0xff, 0xfe]), Err(Broken::Within));
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xf0]), Err(Broken::Within));
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff, 0x00]), Err(Broken::Ended));
        assert_eq!(decoded(&[0x07, 0xff, 0xff, 0xff, 0xff, 0x07]), Err(Broken::Ended));
    }
}

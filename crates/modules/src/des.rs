//! The traditional `crypt(3)`: 25 times DES (FIPS 46) over nothing, with the password as key and a salt that disturbs
//! the expansion. Old password files still have it; nothing new should.

/// Rows of the four pairs of S-boxes are read by the outer two bits, columns by the inner four.
const SUBSTITUTION: [[u8; 64]; 8] = [
    [
        14, 4, 13, 1, 2, 15, 11, 8, 3, 10, 6, 12, 5, 9, 0, 7, 0, 15, 7, 4, 14, 2, 13, 1, 10, 6, 12, 11, 9, 5,
        3, 8, 4, 1, 14, 8, 13, 6, 2, 11, 15, 12, 9, 7, 3, 10, 5, 0, 15, 12, 8, 2, 4, 9, 1, 7, 5, 11, 3, 14,
        10, 0, 6, 13,
    ],
    [
        15, 1, 8, 14, 6, 11, 3, 4, 9, 7, 2, 13, 12, 0, 5, 10, 3, 13, 4, 7, 15, 2, 8, 14, 12, 0, 1, 10, 6, 9,
        11, 5, 0, 14, 7, 11, 10, 4, 13, 1, 5, 8, 12, 6, 9, 3, 2, 15, 13, 8, 10, 1, 3, 15, 4, 2, 11, 6, 7, 12,
        0, 5, 14, 9,
    ],
    [
        10, 0, 9, 14, 6, 3, 15, 5, 1, 13, 12, 7, 11, 4, 2, 8, 13, 7, 0, 9, 3, 4, 6, 10, 2, 8, 5, 14, 12, 11,
        15, 1, 13, 6, 4, 9, 8, 15, 3, 0, 11, 1, 2, 12, 5, 10, 14, 7, 1, 10, 13, 0, 6, 9, 8, 7, 4, 15, 14, 3,
        11, 5, 2, 12,
    ],
    [
        7, 13, 14, 3, 0, 6, 9, 10, 1, 2, 8, 5, 11, 12, 4, 15, 13, 8, 11, 5, 6, 15, 0, 3, 4, 7, 2, 12, 1, 10,
        14, 9, 10, 6, 9, 0, 12, 11, 7, 13, 15, 1, 3, 14, 5, 2, 8, 4, 3, 15, 0, 6, 10, 1, 13, 8, 9, 4, 5, 11,
        12, 7, 2, 14,
    ],
    [
        2, 12, 4, 1, 7, 10, 11, 6, 8, 5, 3, 15, 13, 0, 14, 9, 14, 11, 2, 12, 4, 7, 13, 1, 5, 0, 15, 10, 3, 9,
        8, 6, 4, 2, 1, 11, 10, 13, 7, 8, 15, 9, 12, 5, 6, 3, 0, 14, 11, 8, 12, 7, 1, 14, 2, 13, 6, 15, 0, 9,
        10, 4, 5, 3,
    ],
    [
        12, 1, 10, 15, 9, 2, 6, 8, 0, 13, 3, 4, 14, 7, 5, 11, 10, 15, 4, 2, 7, 12, 9, 5, 6, 1, 13, 14, 0, 11,
        3, 8, 9, 14, 15, 5, 2, 8, 12, 3, 7, 0, 4, 10, 1, 13, 11, 6, 4, 3, 2, 12, 9, 5, 15, 10, 11, 14, 1, 7,
        6, 0, 8, 13,
    ],
    [
        4, 11, 2, 14, 15, 0, 8, 13, 3, 12, 9, 7, 5, 10, 6, 1, 13, 0, 11, 7, 4, 9, 1, 10, 14, 3, 5, 12, 2, 15,
        8, 6, 1, 4, 11, 13, 12, 3, 7, 14, 10, 15, 6, 8, 0, 5, 9, 2, 6, 11, 13, 8, 1, 4, 10, 7, 9, 5, 0, 15,
        14, 2, 3, 12,
    ],
    [
        13, 2, 8, 4, 6, 15, 11, 1, 10, 9, 3, 14, 5, 0, 12, 7, 1, 15, 13, 8, 10, 3, 7, 4, 12, 5, 6, 11, 0, 14,
        9, 2, 7, 11, 4, 1, 9, 12, 14, 2, 0, 6, 10, 13, 15, 3, 5, 8, 2, 1, 14, 7, 4, 10, 8, 13, 15, 12, 9, 0,
        3, 5, 6, 11,
    ],
];

/// Where the bits behind the S-boxes go; as in all tables of the standard the first bit is 1.
const PERMUTATION: [usize; 32] = [
    16, 7, 20, 21, 29, 12, 28, 17, 1, 15, 23, 26, 5, 18, 31, 10, 2, 8, 24, 14, 32, 27, 3, 9, 19, 13, 30, 6,
    22, 11, 4, 25,
];

/// The key's bits in the two registers that rotate.
const CHOICE_1: [usize; 56] = [
    57, 49, 41, 33, 25, 17, 9, 1, 58, 50, 42, 34, 26, 18, 10, 2, 59, 51, 43, 35, 27, 19, 11, 3, 60, 52, 44,
    36, 63, 55, 47, 39, 31, 23, 15, 7, 62, 54, 46, 38, 30, 22, 14, 6, 61, 53, 45, 37, 29, 21, 13, 5, 28, 20,
    12, 4,
];

/// Those of them that a round uses.
const CHOICE_2: [usize; 48] = [
    14, 17, 11, 24, 1, 5, 3, 28, 15, 6, 21, 10, 23, 19, 12, 4, 26, 8, 16, 7, 27, 20, 13, 2, 41, 52, 31, 37,
    47, 55, 30, 40, 51, 45, 33, 48, 44, 49, 39, 56, 34, 53, 46, 42, 50, 36, 29, 32,
];

/// By how much they rotate before each round.
const ROTATIONS: [usize; 16] = [1, 1, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 1];

/// The 64 bits of the hash; only seven bits of the first eight bytes of a password count.
pub(crate) fn crypt(password: &[u8], salt: u16) -> u64 {
    let keys = keys(password);
    // The expansion: each group of four bits with its neighbours, and what the salt exchanges in it.
    let mut expansion: [usize; 48] = std::array::from_fn(|at| (at / 6 * 4 + at % 6 + 31) % 32);
    for bit in (0..12).filter(|bit| salt >> bit & 1 == 1) {
        expansion.swap(bit, bit + 24);
    }
    // The initial permutation of nothing is nothing, and between two times it cancels the final one.
    let (mut left, mut right) = ([0u8; 32], [0u8; 32]);
    for _ in 0..25 {
        for key in &keys {
            let mixed: [u8; 48] = std::array::from_fn(|at| right[expansion[at]] ^ key[at]);
            let mut chosen = [0; 32];
            for (group, bits) in mixed.chunks_exact(6).enumerate() {
                let [a, b, c, d, e, f] = [0, 1, 2, 3, 4, 5].map(|bit| usize::from(bits[bit]));
                let value = SUBSTITUTION[group][a << 5 | f << 4 | b << 3 | c << 2 | d << 1 | e];
                for bit in 0..4 {
                    chosen[group * 4 + bit] = value >> (3 - bit) & 1;
                }
            }
            let next = std::array::from_fn(|at| left[at] ^ chosen[PERMUTATION[at] - 1]);
            left = std::mem::replace(&mut right, next);
        }
        std::mem::swap(&mut left, &mut right);
    }
    // The final permutation: columns of the two halves in turn, from the last to the first.
    (0..64).fold(0, |hash, at| {
        let half = if at % 2 == 0 { right } else { left };
        hash << 1 | u64::from(half[at % 8 / 2 * 8 + 7 - at / 8])
    })
}

/// The bits of the key for each round.
fn keys(password: &[u8]) -> [[u8; 48]; 16] {
    // The bits of parity, which the standard has last in each byte, are not looked at.
    let bit = |at: usize| password.get((at - 1) / 8).map_or(0, |byte| byte >> (6 - (at - 1) % 8) & 1);
    let mut registers = CHOICE_1.map(bit);
    ROTATIONS.map(|by| {
        registers.chunks_exact_mut(28).for_each(|register| register.rotate_left(by));
        CHOICE_2.map(|at| registers[at - 1])
    })
}

//! Stored passwords as password files have them: whether a password is the one that was stored.
//!
//! `{PLAIN}`, `{SHA}` and `{SSHA}` (RFC 2307), Apache's `$apr1$`, and of `crypt(3)` the traditional form without a sign,
//! `$1$`, `$2a$`, `$2b$`, `$2y$`, `$5$` and `$6$`.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{self, Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA512};
use weir_engine::http::base64;

use crate::des;
use weir_engine::md5::Md5;

/// The form is called so, as in `$7$`, and cannot be checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unsupported(pub String);

/// Whether checking takes milliseconds: not something to do between other clients' requests.
pub(crate) fn is_slow(stored: &[u8]) -> bool {
    is_bcrypt(stored) || stored.starts_with(b"$5$") || stored.starts_with(b"$6$")
}

/// Whether `password` is what `stored` was made of.
///
/// # Errors
/// A form of others, which must let nobody in.
pub(crate) fn verify(password: &[u8], stored: &[u8]) -> Result<bool, Unsupported> {
    let same = |a: &[u8], b: &[u8]| verify_slices_are_equal(a, b).is_ok();
    if let Some(plain) = stored.strip_prefix(b"{PLAIN}") {
        return Ok(same(password, plain));
    }
    if let Some(text) = stored.strip_prefix(b"{SHA}") {
        return Ok(base64(text).is_some_and(|stored| same(sha1(password, b"").as_ref(), &stored)));
    }
    if let Some(text) = stored.strip_prefix(b"{SSHA}") {
        let stored = base64(text);
        let split = stored.as_deref().and_then(|stored| stored.split_at_checked(20));
        return Ok(split.is_some_and(|(hash, salt)| same(sha1(password, salt).as_ref(), hash)));
    }
    if is_bcrypt(stored) {
        let text = std::str::from_utf8(stored).ok();
        return Ok(text.is_some_and(|text| bcrypt::verify(password, text).unwrap_or(false)));
    }
    let made = if stored.starts_with(b"$apr1$") {
        md5_crypt(password, b"$apr1$", stored)
    } else if stored.starts_with(b"$1$") {
        md5_crypt(password, b"$1$", stored)
    } else if stored.starts_with(b"$5$") {
        sha_crypt(password, &SHA256_CRYPT, stored)
    } else if stored.starts_with(b"$6$") {
        sha_crypt(password, &SHA512_CRYPT, stored)
    } else if let Some(form) = form_of(stored) {
        return Err(Unsupported(form));
    } else {
        match des_crypt(password, stored) {
            Some(made) => made,
            None => return Ok(false),
        }
    };
    Ok(same(&made, stored))
}

fn is_bcrypt(stored: &[u8]) -> bool {
    [b"$2a$", b"$2b$", b"$2y$"].iter().any(|form| stored.starts_with(*form))
}

/// The sign that a stored form begins with, without anything of the hash.
fn form_of(stored: &[u8]) -> Option<String> {
    let form = match stored {
        [b'_', ..] => &stored[..1],
        [b'$', rest @ ..] => &stored[..memchr::memchr(b'$', rest)? + 2],
        _ => return None,
    };
    String::from_utf8(form.to_vec()).ok()
}

fn sha1(password: &[u8], salt: &[u8]) -> digest::Digest {
    let mut context = digest::Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    context.update(password);
    context.update(salt);
    context.finish()
}

const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Appends `digits` characters of six bits each, the lowest first.
fn to64(mut bits: u32, digits: usize, out: &mut Vec<u8>) {
    for _ in 0..digits {
        out.push(ALPHABET[(bits & 63) as usize]);
        bits >>= 6;
    }
}

/// The salt within a stored form: up to the next `$`, and no longer than the form allows.
fn salt_of(text: &[u8], longest: usize) -> &[u8] {
    let end = memchr::memchr(b'$', text).unwrap_or(text.len());
    &text[..end.min(longest)]
}

/// The form of Unix' seventh edition: two characters of salt, and 64 bits, the highest first.
fn des_crypt(password: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
    let salt = stored.get(..2)?;
    let digit = |at: usize| memchr::memchr(salt[at], ALPHABET);
    let hash = des::crypt(password, (digit(0)? | digit(1)? << 6) as u16);
    let digits = (0..11).map(|at| ALPHABET[(u128::from(hash) << 2 >> (60 - 6 * at) & 63) as usize]);
    Some(salt.iter().copied().chain(digits).collect())
}

/// Poul-Henning Kamp's password hash of FreeBSD, which Apache took over under a name of its own.
fn md5_crypt(password: &[u8], magic: &[u8], stored: &[u8]) -> Vec<u8> {
    let salt = salt_of(&stored[magic.len()..], 8);
    let inner = Md5::default().with(password).with(salt).with(password).finish();
    let mut first = Md5::default().with(password).with(magic).with(salt);
    for at in (0..password.len()).step_by(16) {
        first.add(&inner[..(password.len() - at).min(16)]);
    }
    let mut bits = password.len();
    while bits > 0 {
        first.add(if bits & 1 == 1 { &[0] } else { &password[..1] });
        bits >>= 1;
    }
    let mut hash = first.finish();
    for round in 0..1000 {
        let odd = round % 2 == 1;
        let mut next = Md5::default().with(if odd { password } else { &hash });
        if round % 3 != 0 {
            next.add(salt);
        }
        if round % 7 != 0 {
            next.add(password);
        }
        next.add(if odd { &hash } else { password });
        hash = next.finish();
    }
    let mut out = [magic, salt, b"$"].concat();
    for i in 0..5 {
        let last = if i == 4 { 5 } else { i + 12 };
        let bits = u32::from(hash[i]) << 16 | u32::from(hash[i + 6]) << 8 | u32::from(hash[last]);
        to64(bits, 4, &mut out);
    }
    to64(u32::from(hash[11]), 2, &mut out);
    out
}

/// Where the two sizes of Ulrich Drepper's SHA-crypt differ.
struct ShaCrypt {
    magic: &'static [u8],
    algorithm: &'static Algorithm,
    /// The places of the first three bytes, and how each next three follow from them.
    order: fn(usize) -> [usize; 3],
    groups: usize,
}

static SHA256_CRYPT: ShaCrypt = ShaCrypt {
    magic: b"$5$",
    algorithm: &SHA256,
    order: |i| [(i * 21) % 30, (i * 21 + 10) % 30, (i * 21 + 20) % 30],
    groups: 10,
};

static SHA512_CRYPT: ShaCrypt = ShaCrypt {
    magic: b"$6$",
    algorithm: &SHA512,
    order: |i| [(i * 22) % 63, (i * 22 + 21) % 63, (i * 22 + 42) % 63],
    groups: 21,
};

/// "Unix crypt using SHA-256 and SHA-512", steps 1 to 22.
fn sha_crypt(password: &[u8], kind: &ShaCrypt, stored: &[u8]) -> Vec<u8> {
    let size = kind.algorithm.output_len();
    let sum = |parts: &[&[u8]]| {
        let mut context = digest::Context::new(kind.algorithm);
        parts.iter().for_each(|part| context.update(part));
        context.finish()
    };
    let mut rest = &stored[kind.magic.len()..];
    let mut rounds = 5000;
    let mut out = kind.magic.to_vec();
    if let Some(text) = rest.strip_prefix(b"rounds=")
        && let Some(end) = memchr::memchr(b'$', text)
        && let Some(number) = weir_ir::value::number(&text[..end])
    {
        rounds = number.clamp(1000, 999_999_999);
        out.extend_from_slice(format!("rounds={rounds}$").as_bytes());
        rest = &text[end + 1..];
    }
    let salt = salt_of(rest, 16);
    let inner = sum(&[password, salt, password]);
    let mut first = digest::Context::new(kind.algorithm);
    first.update(password);
    first.update(salt);
    for at in (0..password.len()).step_by(size) {
        first.update(&inner.as_ref()[..(password.len() - at).min(size)]);
    }
    let mut bits = password.len();
    while bits > 0 {
        first.update(if bits & 1 == 1 { inner.as_ref() } else { password });
        bits >>= 1;
    }
    let mut hash = first.finish();
    let repeated = |digest: digest::Digest, length: usize| -> Vec<u8> {
        digest.as_ref().iter().copied().cycle().take(length).collect()
    };
    let of_password = repeated(sum(&vec![password; password.len()]), password.len());
    let of_salt = repeated(sum(&vec![salt; 16 + usize::from(hash.as_ref()[0])]), salt.len());
    for round in 0..rounds {
        let odd = round % 2 == 1;
        let mut next = digest::Context::new(kind.algorithm);
        next.update(if odd { &of_password } else { hash.as_ref() });
        if round % 3 != 0 {
            next.update(&of_salt);
        }
        if round % 7 != 0 {
            next.update(&of_password);
        }
        next.update(if odd { hash.as_ref() } else { &of_password });
        hash = next.finish();
    }
    out.extend_from_slice(salt);
    out.push(b'$');
    let hash = hash.as_ref();
    let byte = |at: usize| u32::from(hash[at]);
    for group in 0..kind.groups {
        let [a, b, c] = (kind.order)(group);
        to64(byte(a) << 16 | byte(b) << 8 | byte(c), 4, &mut out);
    }
    match size {
        32 => to64(byte(31) << 8 | byte(30), 3, &mut out),
        _ => to64(byte(63), 2, &mut out),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(password: &str, stored: &str, expected: Result<bool, Unsupported>) {
        assert_eq!(verify(password.as_bytes(), stored.as_bytes()), expected, "{stored}");
        if expected == Ok(true) {
            let wrong = format!("{password}x");
            assert_eq!(verify(wrong.as_bytes(), stored.as_bytes()), Ok(false), "{stored}");
        }
    }

    #[test]
    fn passwords() {
        check("secret", "{PLAIN}secret", Ok(true));
        check("password", "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", Ok(true));
        check("secret", "{SSHA}!", Ok(false));
        check("secret", "{SSHA}c2hvcnQ=", Ok(false));
        check("secret", "plain", Ok(false));
        check("secret", "x", Ok(false));
        check("secret", "!!", Ok(false));
        check("secret", "$", Ok(false));
        check("", "", Ok(false));
        let unsupported = |form: &str| Err(Unsupported(form.into()));
        check("secret", "_J9..rasmz0.F/jqjWck", unsupported("_"));
        check("secret", "$y$j75$abcdefgh$uMUXG79B2cFpoAYyDccUnsaH/aGTyBYMlnQidzyag01", unsupported("$y$"));
    }

    /// Made by `crypt(3)`.
    #[test]
    fn traditional() {
        check_eight("secret", "abNANd1rDfiNc");
        check_eight("mH3kEq2.", "Hr1dRchT1JPWw");
        check_eight("u3DXzPJoQE", "y383ynkLFuaGg");
        check_eight("a/2icB", "i9X.6Qrmk8Os2");
        check_eight("cwgYW4eO", "C.NoY.9us2/Gw");
        check_eight("geheimü", "./S0T7MJmGQBQ");
    }

    /// Only eight bytes of a password count.
    #[track_caller]
    fn check_eight(password: &str, stored: &str) {
        let password = password.as_bytes();
        assert_eq!(verify(password, stored.as_bytes()), Ok(true), "{stored}");
        assert_eq!(verify(&password[1..], stored.as_bytes()), Ok(false), "{stored}");
        let more = format!("{stored}x");
        assert_eq!(verify(password, more.as_bytes()), Ok(false), "{more}");
    }

    /// Made by `crypt(3)`.
    #[test]
    fn bcrypts() {
        check("secret", "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a", Ok(true));
        check("secretü", "$2b$04$abcdefghijklmnopqrstuugBcmnni607jtYSxWX23t1NNHlO0I.O2", Ok(true));
        check("secret", "$2y$05$abcdefghijklmnopqrstuu", Ok(false));
        check("secret", "$2y$ü5$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a", Ok(false));
        // Only 72 bytes of a password count.
        let long = "$2a$04$abcdefghijklmnopqrstuubzadhGtS2zEF.gu0yd0opP6cVzb.e0i";
        assert_eq!(verify(&[b'x'; 80], long.as_bytes()), Ok(true));
        assert_eq!(verify(&[b'x'; 71], long.as_bytes()), Ok(false));
    }

    /// Made by `openssl passwd`.
    #[test]
    fn crypts() {
        check("secret", "{SSHA}8bX4JQDfZqtTfvnQ4ssDmWb17/FTQUxU", Ok(true));
        check("secret", "$apr1$saltsalt$LrttParrLPdxvgutaSXWJ0", Ok(true));
        check("secret", "$1$ab$dslkcXxVH.x8LwW1W/oAB/", Ok(true));
        check("secret", "$5$saltstring$C3o4O1TC6aRHF4FI.QSZMXtHbaj2gSXr4sUc/3NcUi.", Ok(true));
        check(
            "secret",
            "$6$saltstring$AIsRs/Ee56G/tC8MEHhvReZTfx8u3rXXMl6eYrjCG9ibix19DxoMBLogdTET5Ukw9Sf7eZTITsuk0Ry5qulYz.",
            Ok(true),
        );
        check("a-password-of-more-than-sixteen", "$apr1$x$B50kacIsksUGqOd.2VjHD.", Ok(true));
        check(
            "a-password-of-more-than-thirty-two-characters",
            "$5$x$n/mWJ5I4kATqlTqF4Yh.GGHZ7nfiSjNLr5KTwcMoRx8",
            Ok(true),
        );
        check(
            "a-password-of-more-than-sixty-four-characters-because-that-is-a-block",
            "$6$0123456789abcdef$mV5LjA6D8W8iZQHrq.1XMv8OVdzysX1gMR.vUMW/2E/NvtjKlf5iotu6Jid5DecwVaSf0h5GhJhQ11fP1suKz/",
            Ok(true),
        );
    }
}

//! Certificates and keys that a request names or a handshake names (variables in `ssl_certificate` and `proxy_ssl_certificate`): read when they are needed, away
//! from the reactor, and kept for a while where the configuration says so.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::sign::CertifiedKey;

use super::pem::{self, NoPair, Passwords};

/// How much is kept, and for how long (`ssl_certificate_cache`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairCache {
    /// Certificates and keys: two of a pair.
    pub max: usize,
    /// Milliseconds without use after which a pair makes room for others.
    pub inactive: u64,
    /// Milliseconds after which the files are read again.
    pub valid: u64,
}

/// Where pairs come from.
#[derive(Debug)]
pub struct Pairs {
    /// The folder of the configuration, which names are relative to.
    prefix: Arc<str>,
    cache: Option<PairCache>,
    passwords: Arc<Passwords>,
    kept: Mutex<HashMap<(Box<[u8]>, Box<[u8]>), Kept>>,
}

#[derive(Debug)]
struct Kept {
    pair: Arc<CertifiedKey>,
    read: u64,
    used: u64,
}

impl Pairs {
    pub fn new(prefix: Arc<str>, cache: Option<PairCache>, passwords: Arc<Passwords>) -> Self {
        Self { prefix, cache, passwords, kept: Mutex::default() }
    }

    /// The pair of these names, at a time in milliseconds.
    ///
    /// # Errors
    /// What the log says of it.
    pub(crate) async fn get(
        &self,
        certificate: &[u8],
        key: &[u8],
        now: u64,
    ) -> Result<Arc<CertifiedKey>, String> {
        let names = (Box::from(certificate), Box::from(key));
        if let Some(cache) = &self.cache
            && let Some(kept) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&names)
            && now.saturating_sub(kept.read) < cache.valid
        {
            kept.used = now;
            return Ok(Arc::clone(&kept.pair));
        }
        let shown = [self.shown(certificate), self.shown_key(key)];
        let passwords = Arc::clone(&self.passwords);
        let read = tokio::task::spawn_blocking(move || read(&shown, &passwords));
        let read = read.await.unwrap_or_else(|error| Err(error.to_string()));
        let Some(cache) = &self.cache else { return read.map(|(pair, _)| pair) };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(&names);
        let (pair, encrypted) = read?;
        // What a password opened is not left lying about.
        if !encrypted {
            kept.retain(|_, kept| now.saturating_sub(kept.used) <= cache.inactive);
            let oldest = kept.iter().min_by_key(|(_, kept)| kept.used).map(|(names, _)| names.clone());
            if let Some(oldest) = oldest.filter(|_| 2 * kept.len() + 1 >= cache.max) {
                kept.remove(&oldest);
            }
            kept.insert(names, Kept { pair: Arc::clone(&pair), read: now, used: now });
        }
        Ok(pair)
    }

    fn shown_key(&self, name: &[u8]) -> String {
        let is_elsewhere = [&b"store:"[..], b"engine:"].iter().any(|other| name.starts_with(other));
        if is_elsewhere { String::from_utf8_lossy(name).into_owned() } else { self.shown(name) }
    }

    /// The whole path, or the data itself.
    fn shown(&self, name: &[u8]) -> String {
        let name = String::from_utf8_lossy(name);
        if name.starts_with('/') || name.starts_with("data:") {
            return name.into_owned();
        }
        format!("{}{name}", self.prefix)
    }
}

/// A pair, and whether its key is encrypted.
fn read(
    [certificate, key]: &[String; 2],
    passwords: &Passwords,
) -> Result<(Arc<CertifiedKey>, bool), String> {
    let chain = content(certificate).and_then(|pem| pem::chain(&pem));
    let chain = chain.map_err(|fault| format!("cannot load certificate \"{certificate}\": {fault}"))?;
    let elsewhere = pem::elsewhere(key, |path| std::fs::read(path));
    let private = elsewhere.unwrap_or_else(|| content(key)).and_then(|pem| {
        let encrypted = pem::is_encrypted(&pem);
        Ok((pem::private_key(&pem, passwords)?, encrypted))
    });
    let (private, encrypted) =
        private.map_err(|fault| format!("cannot load certificate key \"{key}\": {fault}"))?;
    let pair = pem::pair(chain, private, None).map_err(|no_pair| match no_pair {
        NoPair::Mismatch => format!(
            "SSL_use_PrivateKey(\"{key}\") failed (SSL: error:05800074:x509 certificate routines::key values mismatch)"
        ),
        NoPair::TooSmall => format!(
            "SSL_use_certificate(\"{certificate}\") failed (SSL: error:0A00018F:SSL routines::ee key too small)"
        ),
        NoPair::Unsupported => {
            format!("SSL_use_PrivateKey(\"{key}\") failed: the kind of the key is not supported by weir")
        }
    })?;
    Ok((pair, encrypted))
}

fn content(name: &str) -> Result<Vec<u8>, pem::Fault> {
    match name.strip_prefix("data:") {
        Some(data) => Ok(data.as_bytes().to_vec()),
        None => match std::fs::read(name) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => Ok(vec![]),
            read => read.map_err(|error| pem::Fault::open(name, &error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs in the order of their numbers, as they were first read.
    struct Kept {
        pairs: Pairs,
        data: Vec<[String; 2]>,
        first: Vec<Arc<CertifiedKey>>,
    }

    impl Kept {
        async fn new(max: usize) -> Self {
            let cache = PairCache { max, inactive: 10, valid: 60 };
            let made = |number: usize| {
                let made = rcgen::generate_simple_self_signed([number.to_string()]).unwrap();
                [format!("data:{}", made.cert.pem()), format!("data:{}", made.signing_key.serialize_pem())]
            };
            let mut kept = Self {
                pairs: Pairs::new("/".into(), Some(cache), [].into()),
                data: (0..4).map(made).collect(),
                first: vec![],
            };
            for (number, now) in (0..4).zip(0..) {
                kept.first.push(kept.pair(number, now).await);
            }
            kept
        }

        async fn pair(&self, number: usize, now: u64) -> Arc<CertifiedKey> {
            let [certificate, key] = &self.data[number];
            self.pairs.get(certificate.as_bytes(), key.as_bytes(), now).await.unwrap()
        }

        async fn has(&self, number: usize, now: u64) -> bool {
            Arc::ptr_eq(&self.pair(number, now).await, &self.first[number])
        }
    }

    #[tokio::test]
    async fn certificates_and_keys_are_counted() {
        let kept = Kept::new(4).await;
        for (number, now, expected) in [(3, 4, true), (2, 5, true), (0, 6, false), (3, 7, false)] {
            assert_eq!(kept.has(number, now).await, expected, "{number}");
        }
        let kept = Kept::new(8).await;
        for number in 0..4 {
            assert!(kept.has(number, 5).await, "{number}");
        }
        // Unused for long, and still there until somebody else wants the room.
        assert!(kept.has(0, 59).await);
        assert!(!kept.has(0, 60).await, "read again");
        assert!(!kept.has(1, 60).await, "made room");
    }

    #[tokio::test]
    async fn what_a_password_opened_is_not_kept() {
        let signer = rcgen::KeyPair::from_pem(include_str!("testdata/plain.key")).unwrap();
        let made = rcgen::CertificateParams::default().self_signed(&signer).unwrap().pem();
        let cache = PairCache { max: 4, inactive: 10, valid: 60 };
        let pairs = Pairs::new("/".into(), Some(cache), [Box::from(&b"open"[..])].into());
        let certificate = format!("data:{made}");
        for (key, is_kept) in
            [(include_str!("testdata/aes128.key"), false), (include_str!("testdata/plain.key"), true)]
        {
            let key = format!("data:{key}");
            let get = || pairs.get(certificate.as_bytes(), key.as_bytes(), 0);
            assert_eq!(Arc::ptr_eq(&get().await.unwrap(), &get().await.unwrap()), is_kept);
        }
    }
}

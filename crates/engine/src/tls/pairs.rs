//! Certificates and keys that a request names or a handshake names (variables in `ssl_certificate` and `proxy_ssl_certificate`): read when they are needed, away
//! from the reactor, and kept for a while where the configuration says so.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::sign::CertifiedKey;

use super::pem::{self, NoPair, Passwords};

/// How many pairs are kept, and for how long (`ssl_certificate_cache`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairCache {
    pub max: usize,
    /// Milliseconds without use.
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
            && now.saturating_sub(kept.used) < cache.inactive
        {
            kept.used = now;
            return Ok(Arc::clone(&kept.pair));
        }
        let shown = [certificate, key].map(|name| self.shown(name));
        let passwords = Arc::clone(&self.passwords);
        let read = tokio::task::spawn_blocking(move || read(&shown, &passwords));
        let pair = read.await.unwrap_or_else(|error| Err(error.to_string()))?;
        if let Some(cache) = &self.cache {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() >= cache.max && !kept.contains_key(&names) {
                kept.retain(|_, kept| now.saturating_sub(kept.used) < cache.inactive);
                let oldest = kept.iter().min_by_key(|(_, kept)| kept.used).map(|(names, _)| names.clone());
                if let Some(oldest) = oldest.filter(|_| kept.len() >= cache.max) {
                    kept.remove(&oldest);
                }
            }
            kept.insert(names, Kept { pair: Arc::clone(&pair), read: now, used: now });
        }
        Ok(pair)
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

fn read([certificate, key]: &[String; 2], passwords: &Passwords) -> Result<Arc<CertifiedKey>, String> {
    let chain = content(certificate).and_then(|pem| pem::certificates(&pem));
    let chain = chain.map_err(|fault| format!("cannot load certificate \"{certificate}\": {fault}"))?;
    let private = content(key).and_then(|pem| pem::private_key(&pem, passwords));
    let private = private.map_err(|fault| format!("cannot load certificate key \"{key}\": {fault}"))?;
    pem::pair(chain, private, None).map_err(|no_pair| match no_pair {
        NoPair::Mismatch => format!(
            "SSL_use_PrivateKey(\"{key}\") failed (SSL: error:05800074:x509 certificate routines::key values mismatch)"
        ),
        NoPair::Unsupported => {
            format!("SSL_use_PrivateKey(\"{key}\") failed: the kind of the key is not supported by weir")
        }
    })
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

//! Sessions that clients come back to: tickets and the session cache, one of each for all threads and generations.
//!
//! What a ticket or a cache entry holds is stamped with the time and with the server's own mark, because tickets of all
//! servers are sealed with the same keys: a session goes on only where the certificates and the demands on the
//! client's certificate are those that it began under (RFC 8446 section 8.1, nginx: `ngx_ssl_session_id_context`).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use aws_lc_rs::cipher::{
    AES_128, AES_256, DecryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{hmac, rand};
use rustls::crypto::GetRandomFailed;
use rustls::pki_types::UnixTime;
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions};
use rustls::ticketer::TicketRotator;

/// What a server's sessions are stamped with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark(pub [u8; 16]);

/// How long a session may be resumed, in seconds (nginx: `ssl_session_timeout`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime(pub u64);

/// Stamps what is kept of sessions, and reads it back while it is good.
#[derive(Clone, Copy)]
struct Stamp {
    mark: Mark,
    lifetime: Lifetime,
    now: fn() -> u64,
}

const STAMP: usize = 16 + 8;

fn now() -> u64 {
    UnixTime::now().as_secs()
}

impl Stamp {
    fn put(&self, session: &[u8]) -> Vec<u8> {
        let mut stamped = Vec::with_capacity(STAMP + session.len());
        stamped.extend_from_slice(&self.mark.0);
        stamped.extend_from_slice(&(self.now)().to_be_bytes());
        stamped.extend_from_slice(session);
        stamped
    }

    /// The session without its stamp; `None` where it is another server's or too old.
    fn read(&self, mut stamped: Vec<u8>) -> Option<Vec<u8>> {
        let (stamp, _) = stamped.split_first_chunk::<STAMP>()?;
        let (mark, time) = stamp.split_first_chunk::<16>()?;
        let made = u64::from_be_bytes(time.try_into().ok()?);
        if *mark != self.mark.0 || (self.now)().saturating_sub(made) > self.lifetime.0 {
            return None;
        }
        stamped.drain(..STAMP);
        Some(stamped)
    }
}

/// Seals tickets of one server with keys that others use too.
struct Tickets {
    keys: Arc<dyn ProducesTickets>,
    stamp: Stamp,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(self.stamp.lifetime.0).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys.encrypt(&self.stamp.put(plain))
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.stamp.read(self.keys.decrypt(cipher)?)
    }
}

/// Tickets sealed with the process's own keys, or with given ones: the first seals, all open.
pub(super) fn tickets(
    keys: &[Arc<TicketKey>],
    mark: Mark,
    lifetime: Lifetime,
) -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
    let keys: Arc<dyn ProducesTickets> =
        if keys.is_empty() { own_keys(lifetime)? } else { Arc::new(GivenKeys(keys.into())) };
    Ok(Arc::new(Tickets { keys, stamp: Stamp { mark, lifetime, now } }))
}

/// Keys of the process for each lifetime of sessions: they change once a lifetime and open for one more, so no session
/// ends before its time.
static OWN_KEYS: Mutex<BTreeMap<u32, Arc<TicketRotator>>> = Mutex::new(BTreeMap::new());

/// Those of one lifetime seal. All open, for a reload may have changed it: a session begun on one thread, or before,
/// goes on at another.
#[derive(Debug)]
struct OwnKeys(Arc<TicketRotator>);

fn own_keys(lifetime: Lifetime) -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
    let seconds = u32::try_from(lifetime.0).unwrap_or(u32::MAX).max(1);
    let mut known = OWN_KEYS.lock().unwrap_or_else(PoisonError::into_inner);
    let keys = match known.entry(seconds) {
        Entry::Occupied(keys) => Arc::clone(keys.get()),
        Entry::Vacant(place) => Arc::clone(place.insert(Arc::new(TicketRotator::new(seconds, random_key)?))),
    };
    Ok(Arc::new(OwnKeys(keys)))
}

impl ProducesTickets for OwnKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(ticket).or_else(|| {
            let known = OWN_KEYS.lock().unwrap_or_else(PoisonError::into_inner);
            known.values().find_map(|keys| keys.decrypt(ticket))
        })
    }
}

fn random_key() -> Result<Box<dyn ProducesTickets>, GetRandomFailed> {
    let mut file = [0; 80];
    rand::fill(&mut file).map_err(|_| GetRandomFailed)?;
    let key = TicketKey::read(&file).ok_or(GetRandomFailed)?;
    Ok(Box::new(GivenKeys(vec![Arc::new(key)])))
}

/// A key of `ssl_session_ticket_key`: name, HMAC key and AES key of a file of 48 or 80 bytes.
///
/// ```text
/// 48:  name 16 | AES-128 key 16 | HMAC key 16
/// 80:  name 16 | HMAC key 32    | AES-256 key 32
/// ```
pub struct TicketKey {
    name: [u8; 16],
    hmac: hmac::Key,
    seal: PaddedBlockEncryptingKey,
    open: PaddedBlockDecryptingKey,
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey")
    }
}

impl TicketKey {
    /// `None` where the file has another size.
    pub fn read(file: &[u8]) -> Option<Self> {
        let (name, keys) = file.split_first_chunk::<16>()?;
        let (algorithm, aes, mac) = match keys.len() {
            32 => (&AES_128, &keys[..16], &keys[16..]),
            64 => (&AES_256, &keys[32..], &keys[..32]),
            _ => return None,
        };
        let unbound = || UnboundCipherKey::new(algorithm, aes).ok();
        Some(Self {
            name: *name,
            hmac: hmac::Key::new(hmac::HMAC_SHA256, mac),
            seal: PaddedBlockEncryptingKey::cbc_pkcs7(unbound()?).ok()?,
            open: PaddedBlockDecryptingKey::cbc_pkcs7(unbound()?).ok()?,
        })
    }
}

/// Tickets as RFC 5077 section 4 recommends: name, IV, AES-CBC, HMAC over all of them.
struct GivenKeys(Vec<Arc<TicketKey>>);

impl fmt::Debug for GivenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GivenKeys")
    }
}

const IV: usize = 16;
const TAG: usize = 32;

impl ProducesTickets for GivenKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let key = self.0.first()?;
        let mut sealed = plain.to_vec();
        let DecryptionContext::Iv128(iv) = key.seal.encrypt(&mut sealed).ok()? else { return None };
        let mut ticket = Vec::with_capacity(16 + IV + sealed.len() + TAG);
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(iv.as_ref());
        ticket.extend_from_slice(&sealed);
        let tag = hmac::sign(&key.hmac, &ticket);
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let body = ticket.len().checked_sub(TAG).filter(|n| *n >= 16 + IV)?;
        let (authentic, tag) = ticket.split_at(body);
        let key = self.0.iter().find(|key| authentic.starts_with(&key.name))?;
        hmac::verify(&key.hmac, authentic, tag).ok()?;
        let iv: [u8; IV] = authentic[16..16 + IV].try_into().ok()?;
        let mut sealed = authentic[16 + IV..].to_vec();
        let context = DecryptionContext::Iv128(FixedLength::from(iv));
        let length = key.open.decrypt(&mut sealed, context).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

/// Sessions kept by the server, for clients that take no ticket or where tickets are off.
struct Cache {
    sessions: Arc<ServerSessionMemoryCache>,
    stamp: Stamp,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cache")
    }
}

impl StoresServerSessions for Cache {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.sessions.put(key, self.stamp.put(&value))
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.stamp.read(self.sessions.get(key)?)
    }

    /// It stays, as in nginx: a client opens several connections with the one session that it has. What must not be
    /// played twice is early data, of which there is none.
    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.get(key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

/// A cache for `sessions` sessions at most. One with a name is the same for all servers and generations that name it
/// with the same size.
pub(super) fn cache(
    name: Option<&str>,
    sessions: usize,
    mark: Mark,
    lifetime: Lifetime,
) -> Arc<dyn StoresServerSessions> {
    type Named = Mutex<HashMap<(String, usize), Weak<ServerSessionMemoryCache>>>;
    static NAMED: OnceLock<Named> = OnceLock::new();
    let stamp = Stamp { mark, lifetime, now };
    let Some(name) = name else {
        return Arc::new(Cache { sessions: ServerSessionMemoryCache::new(sessions), stamp });
    };
    let mut named = NAMED.get_or_init(Named::default).lock().unwrap_or_else(PoisonError::into_inner);
    named.retain(|_, cache| cache.strong_count() > 0);
    let known = named.get(&(name.to_owned(), sessions)).and_then(Weak::upgrade);
    let sessions = known.unwrap_or_else(|| {
        let made = ServerSessionMemoryCache::new(sessions);
        named.insert((name.to_owned(), sessions), Arc::downgrade(&made));
        made
    });
    Arc::new(Cache { sessions, stamp })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark = Mark([7; 16]);

    #[test]
    fn a_stamp_is_good_for_its_server_and_its_time() {
        let at = |now, mark| Stamp { mark, lifetime: Lifetime(300), now };
        let stamped = at(|| 1000, MARK).put(b"session");
        let read = |stamp: Stamp| stamp.read(stamped.clone());
        assert_eq!(read(at(|| 1300, MARK)).as_deref(), Some(&b"session"[..]));
        assert_eq!(read(at(|| 1301, MARK)), None);
        assert_eq!(read(at(|| 1000, Mark([8; 16]))), None);
        assert_eq!(at(|| 1000, MARK).read(b"short".to_vec()), None);
    }

    #[test]
    fn given_keys_open_what_any_of_them_sealed() {
        let key = |byte: u8, size: usize| Arc::new(TicketKey::read(&vec![byte; size]).unwrap());
        let old = tickets(&[key(1, 48)], MARK, Lifetime(300)).unwrap();
        let both = tickets(&[key(2, 80), key(1, 48)], MARK, Lifetime(300)).unwrap();
        let ticket = old.encrypt(b"session").unwrap();
        assert_eq!(both.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        let new = both.encrypt(b"session").unwrap();
        assert_eq!(both.decrypt(&new).as_deref(), Some(&b"session"[..]));
        assert_eq!(old.decrypt(&new), None);
        for at in 0..ticket.len() {
            let mut forged = ticket.clone();
            forged[at] ^= 1;
            assert_eq!(both.decrypt(&forged), None, "byte {at}");
            assert_eq!(both.decrypt(&ticket[..at]), None, "cut at {at}");
        }
        assert!(TicketKey::read(&[0; 47]).is_none());
    }

    #[test]
    fn own_keys_go_on_with_another_lifetime() {
        let own = |lifetime| tickets(&[], MARK, Lifetime(lifetime)).unwrap();
        let ticket = own(300).encrypt(b"session").unwrap();
        assert_eq!(own(300).decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(own(301).decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        let other = |ticket: &[u8]| random_key().unwrap().decrypt(ticket);
        assert_eq!(other(&ticket), None);
        assert!(own(0).encrypt(b"session").is_some());
    }

    #[test]
    fn a_named_cache_is_one_cache() {
        let first = cache(Some("one"), 100, MARK, Lifetime(300));
        assert!(first.put(b"id".to_vec(), b"session".to_vec()));
        for _ in 0..2 {
            assert_eq!(first.take(b"id").as_deref(), Some(&b"session"[..]));
        }
        assert_eq!(cache(Some("one"), 100, MARK, Lifetime(300)).get(b"id").as_deref(), Some(&b"session"[..]));
        assert_eq!(cache(Some("two"), 100, MARK, Lifetime(300)).get(b"id"), None);
        assert_eq!(cache(None, 100, MARK, Lifetime(300)).get(b"id"), None);
        assert_eq!(cache(Some("one"), 100, Mark([8; 16]), Lifetime(300)).get(b"id"), None);
    }
}

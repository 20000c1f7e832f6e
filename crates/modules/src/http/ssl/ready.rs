//! What a server's words mean: files read, lists understood, everything checked that nginx checks at load.

use std::fmt::Display;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use weir_engine::generation::Plan;
use weir_engine::tls::pem::Passwords;
use weir_engine::tls::{ClientAuth, Computed, Demand, Pairs, SessionCache, TicketKey, Trust};
use weir_ir::{Fault, Merge};

use super::super::openssl::{self, File, Terms};
use super::{OwnCache, SESSION, Server};

/// What a server's words mean.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) pairs: Vec<Arc<CertifiedKey>>,
    /// Where they come from instead, if handshakes name them.
    pub(super) computed: Option<Arc<Pairs>>,
    pub(super) terms: Terms,
    pub(super) ticket_keys: Vec<Arc<TicketKey>>,
    pub(super) client_auth: Option<Arc<ClientAuth>>,
}

impl Server {
    /// Checks all that nginx checks of a server that speaks TLS, in its order.
    pub(super) fn prepare(&self, merge: &mut Merge<'_>) -> Result<Option<Ready>, Fault> {
        match self.certificates.last() {
            Some(last) if self.certificate_keys.len() < self.certificates.len() => {
                return Err(merge.fail_nowhere(format!(
                    "no \"ssl_certificate_key\" is defined for certificate \"{}\"",
                    last.text
                )));
            }
            None if !self.reject_handshake.or(false) => return Ok(None),
            Some(_) | None => {}
        }
        let list = self.ciphers.get().map_or("HIGH:!aNULL:!MD5", |list| list);
        let mut terms = Terms::new(("ssl_protocols", self.protocols), list, merge)?;
        let (mut pairs, mut computed) = (vec![], None);
        if self.names().any(|(certificate, key)| certificate.is_computed() || key.is_computed()) {
            let cache = self.certificate_cache.or(None);
            computed = Some(Arc::new(openssl::computed_pairs(cache, self.passwords(), merge)));
        } else {
            pairs = self.pairs(merge)?;
        }
        if self.certificate_compression.or(false) && !pairs.is_empty() {
            merge.warn_nowhere("\"ssl_certificate_compression\" is not supported on this platform, ignored");
        }
        let client_auth = self.client_auth(merge)?.map(Arc::new);
        self.check_dhparam(merge)?;
        if self.ech_file {
            merge.warn_nowhere("\"ssl_ech_file\" is not supported on this platform, ignored");
        }
        terms.set_groups(self.ecdh_curve.get().map_or("auto", |list| list), merge)?;
        let ticket_keys = self.ticket_keys(merge)?;
        if self.stapling.or(false) && !self.stapling_file.is_set() && !pairs.is_empty() {
            merge.warn_nowhere("\"ssl_stapling\" ignored, weir asks no OCSP responder");
        }
        terms.run("ssl_conf_command", &self.conf_commands, merge)?;
        Ok(Some(Ready { pairs, computed, terms, ticket_keys, client_auth }))
    }

    fn pairs(&self, merge: &Merge<'_>) -> Result<Vec<Arc<CertifiedKey>>, Fault> {
        let staple = match self.stapling_file.get() {
            Some(path) if self.stapling.or(false) => Some(staple(path, merge)?),
            Some(_) | None => None,
        };
        let passwords = self.passwords();
        let pair = |(certificate, key): (&File, &File)| {
            openssl::pair(&certificate.text, &key.text, staple.clone(), &passwords, merge)
        };
        self.names().map(pair).collect()
    }

    fn names(&self) -> impl Iterator<Item = (&File, &File)> {
        self.certificates.iter().zip(&self.certificate_keys)
    }

    fn passwords(&self) -> Arc<Passwords> {
        self.passwords.get().map_or_else(|| [].into(), Arc::clone)
    }

    /// Ready for handshakes that name their certificates.
    pub(super) fn computed(&self, pairs: &Arc<Pairs>, plan: &Plan<'_, '_>) -> Computed {
        let names = self.names();
        let names = names.map(|(pem, key)| (plan.template(&pem.value), plan.template(&key.value))).collect();
        let text = self.certificates.iter().map(|file| file.text.as_str()).collect::<Vec<_>>().join(" ");
        Computed { names, text, pairs: Arc::clone(pairs) }
    }

    fn client_auth(&self, merge: &Merge<'_>) -> Result<Option<ClientAuth>, Fault> {
        let certificates = |path: Option<&Arc<str>>| match path {
            Some(path) => openssl::certificates(path, merge),
            None => Ok(vec![]),
        };
        let demand = self.verify_client.or(None);
        let mut named = vec![];
        if let Some(demand) = demand {
            let nothing = !self.client_certificate.is_set() && !self.trusted_certificate.is_set();
            if demand != Demand::OptionalNoCa && nothing {
                return Err(merge.fail_nowhere(
                    "no ssl_client_certificate or ssl_trusted_certificate for ssl_verify_client",
                ));
            }
            named = certificates(self.client_certificate.get())?;
        }
        let trusted = certificates(self.trusted_certificate.get())?;
        let revoked = match self.crl.get() {
            Some(path) => openssl::revocations(path, merge)?,
            None => vec![],
        };
        let Some(demand) = demand else { return Ok(None) };
        let depth = usize::try_from(self.verify_depth.or(1)).unwrap_or(usize::MAX);
        let failed =
            |error: &dyn Display| merge.fail_nowhere(format!("\"ssl_verify_client\" failed ({error})"));
        let trust = Trust::new(depth, named.iter().chain(&trusted), &revoked).map_err(|e| failed(&e))?;
        ClientAuth::new(demand, &named, trust).map(Some).map_err(|e| failed(&e))
    }

    /// The parameters are never used, but a wrong path is told as nginx tells it.
    fn check_dhparam(&self, merge: &Merge<'_>) -> Result<(), Fault> {
        let Some(path) = self.dhparam.get() else { return Ok(()) };
        let content = openssl::read(merge, path).map_err(|fault| {
            merge.fail_nowhere(format!("BIO_new_file(\"{path}\") failed (SSL: {})", fault.reasons))
        })?;
        let found = memchr::memmem::find(&content, b"-----BEGIN DH PARAMETERS-----")
            .or_else(|| memchr::memmem::find(&content, b"-----BEGIN X9.42 DH PARAMETERS-----"));
        if found.is_none() {
            return Err(merge.fail_nowhere(format!(
                "PEM_read_bio_DHparams(\"{path}\") failed (SSL: error:0480006C:PEM routines::no start line:\
                 Expecting: DH PARAMETERS)"
            )));
        }
        Ok(())
    }

    fn ticket_keys(&self, merge: &Merge<'_>) -> Result<Vec<Arc<TicketKey>>, Fault> {
        let read = |path: &Arc<str>| {
            let content = merge
                .world()
                .content(path.as_bytes())
                .map_err(|error| merge.fail_os(format!("open() \"{path}\" failed"), &error))?;
            let key = TicketKey::read(&content);
            key.map(Arc::new).ok_or_else(|| merge.fail(format!("\"{path}\" must be 48 or 80 bytes")))
        };
        self.session_ticket_keys.iter().map(read).collect()
    }

    pub(super) fn cache(&self) -> Option<SessionCache> {
        let sessions = |n: u64| usize::try_from(n.max(1)).unwrap_or(usize::MAX);
        match (self.own_cache.or(OwnCache::None), self.shared_cache.get()) {
            (OwnCache::Off | OwnCache::None, _) => None,
            (OwnCache::Shared | OwnCache::Builtin(_), Some((name, size))) => {
                Some(SessionCache { name: Some(Arc::clone(name)), sessions: sessions(size / SESSION) })
            }
            (OwnCache::Builtin(n), None) => Some(SessionCache { name: None, sessions: sessions(n) }),
            (OwnCache::Shared, None) => None,
        }
    }
}

/// An OCSP response in DER, as `openssl ocsp` writes it.
fn staple(path: &str, merge: &Merge<'_>) -> Result<Vec<u8>, Fault> {
    let content = openssl::read(merge, path).map_err(|fault| {
        let reasons = fault.reasons.replacen(", r)", ", rb)", 1);
        merge.fail_nowhere(format!("BIO_new_file(\"{path}\") failed (SSL: {reasons})"))
    })?;
    // A DER sequence; what is in it is the client's to judge.
    if content.first() != Some(&0x30) {
        return Err(merge.fail_nowhere(format!(
            "d2i_OCSP_RESPONSE_bio(\"{path}\") failed (SSL: error:068000A8:asn1 encoding routines::wrong tag)"
        )));
    }
    Ok(content.to_vec())
}

//! What a server's words mean: files read, lists understood, everything checked that nginx checks at load.

use std::fmt::Display;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use weir_engine::generation::Plan;
use weir_engine::tls::der::Fields;
use weir_engine::tls::pem::{Passwords, Purpose};
use weir_engine::tls::{
    ClientAuth, Computed, Demand, Names, Pairs, Responder, SessionCache, Staple, Stapled, StatusCache,
    Statuses, TicketKey, Trust, issuer_of,
};
use weir_ir::contract::Setting;
use weir_ir::http::HttpCore;
use weir_ir::{Fault, Merge};

use super::super::openssl::{self, File, Terms};
use super::{Asked, OwnCache, SESSION, Server};

/// What a server's words mean.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) pairs: Vec<Arc<CertifiedKey>>,
    /// Who is asked for what is stapled, by the places of the pairs.
    stapled: Vec<(usize, Stapled)>,
    /// Where they come from instead, if handshakes name them.
    pub(super) computed: Option<Arc<Pairs>>,
    pub(super) terms: Terms,
    pub(super) ticket_keys: Vec<Arc<TicketKey>>,
    pub(super) client_auth: Option<Arc<ClientAuth>>,
    /// Who is asked about clients' certificates in place of those that they name.
    ocsp_responder: Option<Responder>,
}

/// Who knows addresses at run time.
pub(super) fn names(plan: &mut Plan<'_, '_>) -> Names {
    let core = plan.scope().confs.get::<HttpCore>();
    let timeout = core.resolver_timeout.or(30_000);
    let resolver = core.resolver.get().cloned();
    resolver.map(|resolver| (plan.build.resolver(&resolver), timeout))
}

impl Ready {
    pub(super) fn staples(&self, plan: &mut Plan<'_, '_>) -> Vec<(usize, Arc<Staple>)> {
        if self.stapled.is_empty() {
            return vec![];
        }
        let names = names(plan);
        let staple = |(index, stapled): &(usize, Stapled)| {
            let pair = Arc::clone(&self.pairs[*index]);
            let log = plan.build.log.clone();
            (*index, Arc::new(Staple::new(pair, stapled.clone(), names.clone(), log)))
        };
        self.stapled.iter().map(staple).collect()
    }
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
        let ocsp_responder = self.ocsp_responder(merge)?;
        self.check_dhparam(merge)?;
        if self.ech_file {
            merge.warn_nowhere("\"ssl_ech_file\" is not supported on this platform, ignored");
        }
        terms.set_groups(self.ecdh_curve.get().map_or("auto", |list| list), merge)?;
        let ticket_keys = self.ticket_keys(merge)?;
        let stapled = self.stapled(&pairs, merge)?;
        terms.run("ssl_conf_command", &self.conf_commands, merge)?;
        Ok(Some(Ready { pairs, stapled, computed, terms, ticket_keys, client_auth, ocsp_responder }))
    }

    fn pairs(&self, merge: &Merge<'_>) -> Result<Vec<Arc<CertifiedKey>>, Fault> {
        let staple = match self.stapling_file.or(None) {
            Some(path) if self.stapling.or(false) => Some(staple(&path, merge)?),
            Some(_) | None => None,
        };
        let passwords = self.passwords();
        let pair = |(certificate, key): (&File, &File)| {
            openssl::pair(&certificate.text, &key.text, staple.clone(), &passwords, merge)
        };
        self.names().map(pair).collect()
    }

    /// Who is asked what of which certificate; where nobody can be, that is told.
    fn stapled(
        &self,
        pairs: &[Arc<CertifiedKey>],
        merge: &mut Merge<'_>,
    ) -> Result<Vec<(usize, Stapled)>, Fault> {
        if !self.stapling.or(false) {
            return Ok(vec![]);
        }
        if self.certificate_compression.or(false) {
            return Err(
                merge.fail_nowhere("\"ssl_stapling\" is incompatible with \"ssl_certificate_compression\"")
            );
        }
        let mut stapled = vec![];
        if self.stapling_file.or(None).is_some() {
            return Ok(stapled);
        }
        let mut trusted = vec![];
        let of_clients = self.client_certificate.or(None).filter(|_| self.verify_client.or(None).is_some());
        for path in of_clients.into_iter().chain(self.trusted_certificate.or(None)) {
            trusted.extend(openssl::trusted(&path, Purpose::Clients, merge)?);
        }
        for (index, pair) in pairs.iter().enumerate() {
            let name = openssl::shown(&self.certificates[index].text, merge);
            match self.responder(pair, &trusted, &name, merge) {
                Ok(known) => stapled.push((index, known)),
                Err(reason) => merge.warn_nowhere(format!("\"ssl_stapling\" ignored, {reason} \"{name}\"")),
            }
        }
        Ok(stapled)
    }

    /// Who is asked about a certificate, or why nobody is.
    fn responder(
        &self,
        pair: &CertifiedKey,
        trusted: &[CertificateDer<'static>],
        name: &str,
        merge: &Merge<'_>,
    ) -> Result<Stapled, String> {
        let (certificate, chain) =
            pair.cert.split_first().ok_or("no OCSP responder URL in the certificate")?;
        let issuer = issuer_of(certificate, chain.iter().chain(trusted));
        let issuer = issuer.ok_or("issuer certificate not found for certificate")?;
        let url = match self.stapling_responder.get().filter(|url| !url.is_empty()) {
            Some(url) => url.as_bytes(),
            None => Fields::of(certificate)
                .and_then(|fields| fields.ocsp_responder())
                .ok_or("no OCSP responder URL in the certificate")?,
        };
        let in_certificate = |reason: String| format!("{reason} in the certificate");
        let authority = Responder::split(url).map_err(in_certificate)?;
        let addresses = merge.addresses(&authority, 80).map_err(|reason| {
            let rest = String::from_utf8_lossy(&url[7..]);
            in_certificate(format!("{reason} in OCSP responder \"{rest}\""))
        })?;
        Ok(Stapled {
            name: name.to_owned(),
            issuer: issuer.clone(),
            responder: Responder::new(authority, addresses),
            verify: self.stapling_verify.or(false).then(|| trusted.to_vec()),
        })
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
        let certificates = |setting: &Setting<Option<Arc<str>>>| match setting.or(None) {
            Some(path) => openssl::trusted(&path, Purpose::Clients, merge),
            None => Ok(vec![]),
        };
        let demand = self.verify_client.or(None);
        let mut named = vec![];
        if let Some(demand) = demand {
            let nothing = self.client_certificate.or(None).or(self.trusted_certificate.or(None)).is_none();
            if demand != Demand::OptionalNoCa && nothing {
                return Err(merge.fail_nowhere(
                    "no ssl_client_certificate or ssl_trusted_certificate for ssl_verify_client",
                ));
            }
            named = certificates(&self.client_certificate)?;
        }
        let trusted = certificates(&self.trusted_certificate)?;
        let revoked = match self.crl.or(None) {
            Some(path) => openssl::revocations(&path, merge)?,
            None => vec![],
        };
        let Some(demand) = demand else { return Ok(None) };
        let depth = usize::try_from(self.verify_depth.or(1)).unwrap_or(usize::MAX);
        let failed =
            |error: &dyn Display| merge.fail_nowhere(format!("\"ssl_verify_client\" failed ({error})"));
        let trust = Trust::new(depth, named.iter().chain(&trusted), &revoked).map_err(|e| failed(&e))?;
        ClientAuth::new(demand, &named, trust).map(Some).map_err(|e| failed(&e))
    }

    fn ocsp_responder(&self, merge: &Merge<'_>) -> Result<Option<Responder>, Fault> {
        if self.ocsp.or(None).is_none() {
            return Ok(None);
        }
        if self.verify_client.or(None) == Some(Demand::OptionalNoCa) {
            return Err(
                merge.fail_nowhere("\"ssl_ocsp\" is incompatible with \"ssl_verify_client optional_no_ca\"")
            );
        }
        let Some(url) = self.ocsp_responder.get().filter(|url| !url.is_empty()) else { return Ok(None) };
        let here = |reason: String| merge.fail_nowhere(format!("{reason} in \"ssl_ocsp_responder\""));
        let authority = Responder::split(url.as_bytes()).map_err(here)?;
        let addresses = merge
            .addresses(&authority, 80)
            .map_err(|reason| here(format!("{reason} in OCSP responder \"{}\"", &url[7..])))?;
        Ok(Some(Responder::new(authority, addresses)))
    }

    /// Who is asked about clients' certificates.
    pub(super) fn statuses(&self, ready: &Ready, plan: &mut Plan<'_, '_>) -> Option<Statuses> {
        let asked = self.ocsp.or(None)?;
        let cache = self.ocsp_cache.or(None).map(|(name, size)| {
            // It goes on over a reload, and is the same for all servers that name it.
            let kept = plan.build.kept::<StatusCache>(&name);
            let cache = kept.or_else(|| plan.build.kept_before::<StatusCache>(&name));
            let cache = cache.unwrap_or_else(|| Arc::new(StatusCache::new(size)));
            plan.build.keep(&name, Arc::clone(&cache));
            cache
        });
        let responder = ready.ocsp_responder.clone();
        Some(Statuses { leaf: asked == Asked::Leaf, responder, cache, names: names(plan) })
    }

    /// The parameters are never used, but a wrong path is told as nginx tells it.
    fn check_dhparam(&self, merge: &Merge<'_>) -> Result<(), Fault> {
        let Some(path) = self.dhparam.or(None) else { return Ok(()) };
        let content = openssl::read(merge, &path).map_err(|fault| {
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

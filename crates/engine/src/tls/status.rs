//! What responders say of clients' certificates (`ssl_ocsp`), asked between the handshake and the first request.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::{CertificateDer, UnixTime};
use weir_ir::address::{Address, Host};
use weir_syntax::Level;

use super::der::Fields;
use super::ocsp::{self, Answer, Believed, CertificateId, Status};
use super::path::Known;
use super::responder::{Names, Question, Responder};
use super::trust::Trust;
use crate::errorlog::Log;
use crate::reactor::Reactor;

/// Seconds for which an answer is kept that is valid for ever.
const FOREVER: i64 = 3600;

/// Who is asked about clients' certificates.
pub struct Statuses {
    /// The client's own certificate only, not those between it and the root.
    pub leaf: bool,
    /// In place of those that the certificates name.
    pub responder: Option<Responder>,
    pub cache: Option<Arc<StatusCache>>,
    pub names: Names,
}

/// What was said, for all connections (`ssl_ocsp_cache`).
#[derive(Debug)]
pub struct StatusCache {
    max: usize,
    kept: Mutex<Kept>,
}

/// Ends are Unix seconds.
#[derive(Debug, Default)]
struct Kept {
    statuses: HashMap<Arc<CertificateId>, (Status, i64)>,
    /// The same, what ends first before the others.
    ends: BTreeSet<(i64, Arc<CertificateId>)>,
}

impl StatusCache {
    /// A cache in a zone of so many bytes.
    pub fn new(size: u64) -> Self {
        /// What an entry takes in nginx's zone.
        const ENTRY: u64 = 192;
        let max = usize::try_from((size / ENTRY).max(1)).unwrap_or(usize::MAX);
        Self { max, kept: Mutex::default() }
    }

    fn find(&self, id: &CertificateId, now: i64) -> Option<Status> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.statuses.get(id).filter(|(_, until)| *until > now).map(|(status, _)| *status)
    }

    fn keep(&self, id: CertificateId, status: Status, until: i64) {
        let id = Arc::new(id);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept { statuses, ends } = &mut *kept;
        match statuses.insert(Arc::clone(&id), (status, until)) {
            Some((_, before)) => {
                ends.remove(&(before, Arc::clone(&id)));
            }
            // What ends first is worth least.
            None if ends.len() >= self.max => {
                if let Some((_, first)) = ends.pop_first() {
                    statuses.remove(&first);
                }
            }
            None => {}
        }
        ends.insert((until, id));
    }
}

impl Statuses {
    /// What is wrong with a path that is otherwise fine, in nginx's words.
    pub(super) async fn check(
        &self,
        reactor: &Rc<Reactor>,
        path: &[CertificateDer<'static>],
        trust: &Trust,
        log: &Log,
    ) -> Option<&'static str> {
        let most = if self.leaf { 1 } else { usize::MAX };
        for index in (1..path.len()).take(most) {
            match self.ask(reactor, path, index, trust, log).await {
                Some(Status::Good) => {}
                Some(Status::Revoked) => return Some("certificate revoked"),
                Some(Status::Unknown) => return Some("certificate status unknown"),
                None => return Some("certificate status request failed"),
            }
        }
        None
    }

    /// Asks about the certificate before that place in the path, where its issuer is. What goes wrong is logged.
    async fn ask(
        &self,
        reactor: &Rc<Reactor>,
        path: &[CertificateDer<'static>],
        index: usize,
        trust: &Trust,
        log: &Log,
    ) -> Option<Status> {
        let (certificate, issuer) = (&path[index - 1], &path[index]);
        let named;
        let responder = match &self.responder {
            Some(responder) => responder,
            None => {
                named = named_by(certificate).map_err(|reason| log.write(Level::Error, reason)).ok()?;
                &named
            }
        };
        let id = CertificateId::of(certificate, issuer)?;
        let now = reactor.clock().unix_secs() as i64;
        if let Some(status) = self.cache.as_ref().and_then(|cache| cache.find(&id, now)) {
            return Some(status);
        }
        let question = Question { responder, names: &self.names, log, certificate: None };
        let (answer, peer) = question.ask(reactor, &id).await?;
        let said = read(&answer, &id, &path[index..], trust)
            .map_err(|trouble| question.tell(Level::Error, None, Some(&peer), &trouble))
            .ok()?;
        if let Some(cache) = &self.cache {
            let now = reactor.clock().unix_secs() as i64;
            cache.keep(id, said.status, said.until.unwrap_or(now + FOREVER));
        }
        Some(said.status)
    }
}

/// Reads what is said of a certificate, from whose issuer a path leads that was found good.
fn read(
    answer: &[u8],
    id: &CertificateId,
    path: &[CertificateDer<'static>],
    trust: &Trust,
) -> Result<Answer, String> {
    let known = trust.known();
    let issuer = path.first().ok_or("issuer certificate not found")?;
    // Whoever the client has sent along may be needed for who signs, too.
    let between = [known.between, path].concat();
    let verify = Some(Known { between: &between, ..known });
    let believed = Believed { issuer, chain: path, trusts_chain: false, verify };
    ocsp::read(answer, id, &believed, UnixTime::now())
}

/// The responder that a certificate names; its host's addresses are asked for when they are needed.
fn named_by(certificate: &[u8]) -> Result<Responder, String> {
    let url = Fields::of(certificate).and_then(|fields| fields.ocsp_responder());
    let url = url.ok_or("no OCSP responder URL in certificate")?;
    let authority = Responder::split(url).map_err(|reason| format!("{reason} in certificate"))?;
    let addresses = match authority.host {
        Host::Ip(ip) => vec![Address::Ip((ip, authority.port.unwrap_or(80)).into())],
        Host::Any | Host::Name(_) | Host::Unix(_) => vec![],
    };
    Ok(Responder::new(authority, addresses))
}

#[cfg(test)]
mod tests {
    use rcgen::ExtendedKeyUsagePurpose;

    use super::*;
    use crate::tls::testing::{Authority, response};

    #[test]
    fn what_is_kept() {
        let root = Authority::root(&[]);
        let id = |serial| CertificateId::of(&root.client(serial), &root.certificate).unwrap();
        let cache = StatusCache::new(2 * 192);
        cache.keep(id(1), Status::Good, 10);
        cache.keep(id(2), Status::Revoked, 20);
        assert_eq!((cache.find(&id(1), 9), cache.find(&id(1), 10)), (Some(Status::Good), None));
        // The one that ends first makes room, whether it has ended or not.
        cache.keep(id(3), Status::Unknown, 30);
        assert_eq!((cache.find(&id(1), 5), cache.find(&id(2), 5)), (None, Some(Status::Revoked)));
        assert_eq!(cache.find(&id(3), 5), Some(Status::Unknown));
        cache.keep(id(3), Status::Good, 40);
        assert_eq!(
            (cache.find(&id(2), 5), cache.find(&id(3), 5)),
            (Some(Status::Revoked), Some(Status::Good))
        );
        // What was said anew is not forgotten at its former end.
        cache.keep(id(2), Status::Good, 50);
        cache.keep(id(1), Status::Good, 60);
        assert_eq!((cache.find(&id(2), 5), cache.find(&id(3), 5)), (Some(Status::Good), None));
        let kept = cache.kept.lock().unwrap();
        assert_eq!((kept.statuses.len(), kept.ends.len()), (2, 2));
    }

    #[test]
    fn a_delegate_of_an_intermediate_that_was_sent() {
        let root = Authority::root(&[]);
        let between = root.below(2);
        let client = between.client(3);
        let delegate = between.end_for(4, ExtendedKeyUsagePurpose::OcspSigning);
        let trust = Trust::new(1, [&root.certificate].into_iter(), &[]).unwrap();
        let id = CertificateId::of(&client, &between.certificate).unwrap();
        let says = |who| response(who, &client, &between.certificate, b"\x80\x00", [b"20200101000000Z", b""]);
        let path = [between.certificate.clone(), root.certificate.clone()];
        let read = |who| read(&says(who), &id, &path, &trust).map(|said| said.status);
        assert_eq!(read(&delegate), Ok(Status::Good));
        assert_eq!(read(&between), Ok(Status::Good));
        let stranger = root.end_for(5, ExtendedKeyUsagePurpose::OcspSigning);
        assert!(read(&stranger).is_err_and(|trouble| trouble.contains("root ca not trusted")));
    }

    #[test]
    fn responders_that_certificates_name() {
        let certificate = Authority::root(&[]).client(1);
        let reason = named_by(&certificate).err();
        assert_eq!(reason.as_deref(), Some("no OCSP responder URL in certificate"));
    }
}

//! OCSP stapling: what a responder says of a certificate is fetched beside the handshakes and shown in those that follow.

use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::sign::CertifiedKey;
use weir_syntax::Level;

use super::ocsp::{self, Believed, CertificateId, Status};
use super::path::Known;
use super::responder::{Names, Question, Responder};
use super::trust::is_self_issued;
use crate::errorlog::Log;
use crate::reactor::Reactor;

/// Seconds after which an answer is fetched anew at the earliest, be there none or one.
const SOONEST: i64 = 300;
/// Seconds after which it is at the latest.
const LATEST: i64 = 3600;

/// What is needed to know of a certificate.
#[derive(Clone, Debug)]
pub struct Stapled {
    /// Its name, for messages.
    pub name: String,
    pub issuer: CertificateDer<'static>,
    pub responder: Responder,
    /// Whose chains answers have to be of (`ssl_stapling_verify`).
    pub verify: Option<Vec<CertificateDer<'static>>>,
}

/// A certificate with what its issuer's responder says of it.
pub struct Staple {
    pair: Arc<CertifiedKey>,
    stapled: Stapled,
    names: Names,
    log: Log,
    state: Mutex<State>,
}

/// Times are Unix seconds.
#[derive(Default)]
struct State {
    /// The pair with an answer, and how long it may be shown.
    shown: Option<(Arc<CertifiedKey>, i64)>,
    /// A handshake was for this certificate.
    wanted: bool,
    loading: bool,
    /// When to ask again.
    refresh: i64,
}

impl Staple {
    pub fn new(pair: Arc<CertifiedKey>, stapled: Stapled, names: Names, log: Log) -> Self {
        Self { pair, stapled, names, log, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a handshake is to show.
    pub(super) fn show(&self) -> Arc<CertifiedKey> {
        let now = UnixTime::now().as_secs() as i64;
        let mut state = self.state();
        state.wanted = true;
        match &state.shown {
            Some((pair, until)) if *until >= now => Arc::clone(pair),
            Some(_) | None => Arc::clone(&self.pair),
        }
    }

    /// Fetches an answer where a handshake was for the certificate and it is time for one.
    pub(super) fn refresh(self: &Arc<Self>, reactor: &Rc<Reactor>) {
        let now = reactor.clock().unix_secs() as i64;
        let mut state = self.state();
        if !state.wanted || state.loading || state.refresh >= now {
            return;
        }
        (state.wanted, state.loading) = (false, true);
        drop(state);
        let (staple, reactor) = (Arc::clone(self), Rc::clone(reactor));
        // Nobody waits for it, so it counts as no task.
        tokio::task::spawn_local(async move {
            let fetched = staple.fetch(&reactor).await;
            let now = reactor.clock().unix_secs() as i64;
            let mut state = staple.state();
            state.loading = false;
            state.refresh = now + SOONEST;
            if let Some((answer, until)) = fetched {
                let mut pair = CertifiedKey::clone(&staple.pair);
                pair.ocsp = Some(answer);
                let until = until.unwrap_or(i64::MAX);
                // Before it is over, but neither too often nor too seldom.
                state.refresh = (until - SOONEST).min(now + LATEST).max(now + SOONEST);
                state.shown = Some((Arc::new(pair), until));
            }
        });
    }

    /// An answer, and until when it is valid. What is wrong is logged.
    async fn fetch(&self, reactor: &Rc<Reactor>) -> Option<(Vec<u8>, Option<i64>)> {
        let (certificate, chain) = self.pair.cert.split_first()?;
        let Stapled { name, issuer, responder, verify } = &self.stapled;
        let id = CertificateId::of(certificate, issuer)?;
        let question = Question { responder, names: &self.names, log: &self.log, certificate: Some(name) };
        let (answer, peer) = question.ask(reactor, &id).await?;
        let (roots, mut between) = match verify {
            Some(trusted) => trusted.iter().cloned().partition(|c| is_self_issued(c)),
            None => (vec![], vec![]),
        };
        between.extend_from_slice(chain);
        let known = Known { roots: &roots, between: &between, depth: between.len() };
        let verify = verify.as_ref().map(|_| known);
        let believed = Believed { issuer, chain, trusts_chain: true, verify };
        let trouble = match ocsp::read(&answer, &id, &believed, UnixTime::now()) {
            Ok(said) if said.status == Status::Good => return Some((answer, said.until)),
            Ok(said) => format!("certificate status \"{}\" in the OCSP response", said.status.word()),
            Err(trouble) => trouble,
        };
        question.tell(Level::Error, None, Some(&peer), &trouble);
        None
    }
}

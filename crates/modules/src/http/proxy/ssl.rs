//! `proxy_ssl_…`: TLS towards upstreams.

use std::sync::{Arc, OnceLock};

use weir_engine::generation::Plan;
use weir_engine::tls::pem::{Passwords, Purpose};
use weir_engine::tls::{ClientSettings, ClientTls, Trust};
use weir_engine::upstream::Tls;
use weir_ir::lowering::{Fault, Merge};
use weir_ir::{Setting, Template};

use super::super::openssl::{self, Terms, Versions};
pub(super) use super::super::openssl::{CertificateCache, File, passwords};

/// The settings of a level.
#[derive(Clone, Debug, Default)]
pub(super) struct Ssl {
    pub(super) session_reuse: Setting<bool>,
    pub(super) protocols: Versions,
    pub(super) ciphers: Setting<Box<str>>,
    pub(super) name: Setting<Template>,
    pub(super) server_name: Setting<bool>,
    pub(super) verify: Setting<bool>,
    pub(super) verify_depth: Setting<u64>,
    /// Empty is none.
    pub(super) trusted_certificate: Setting<Option<Arc<str>>>,
    pub(super) crl: Setting<Option<Arc<str>>>,
    pub(super) certificate: Setting<File>,
    pub(super) certificate_key: Setting<File>,
    pub(super) passwords: Setting<Arc<Passwords>>,
    pub(super) certificate_cache: Setting<Option<CertificateCache>>,
    pub(super) conf_commands: Vec<(String, String)>,
    /// What they mean, once somebody passes requests by them; the same for all levels that say nothing new, so that
    /// these have their sessions in common.
    client: Arc<OnceLock<Arc<ClientTls>>>,
}

impl Ssl {
    pub(super) fn inherit(&mut self, outer: &Self) {
        if !self.says_anything() {
            self.client = Arc::clone(&outer.client);
        }
        macro_rules! settings {
            ($($field:ident),* $(,)?) => { $(self.$field.inherit(&outer.$field);)* };
        }
        settings!(
            session_reuse,
            ciphers,
            name,
            server_name,
            verify,
            verify_depth,
            trusted_certificate,
            crl,
            certificate,
            certificate_key,
            passwords,
            certificate_cache,
        );
        self.protocols.inherit(outer.protocols);
        if self.conf_commands.is_empty() {
            self.conf_commands.clone_from(&outer.conf_commands);
        }
    }

    /// Whether a word of this level itself changes what handshakes follow; the name is of each connection.
    fn says_anything(&self) -> bool {
        self.session_reuse.is_set()
            || self.protocols.is_set()
            || self.ciphers.is_set()
            || self.server_name.is_set()
            || self.verify.is_set()
            || self.verify_depth.is_set()
            || self.trusted_certificate.is_set()
            || self.crl.is_set()
            || self.certificate.is_set()
            || self.certificate_key.is_set()
            || self.passwords.is_set()
            || self.certificate_cache.is_set()
            || !self.conf_commands.is_empty()
    }

    /// Checks all that nginx checks of a level that passes requests over TLS, in its order.
    pub(super) fn prepare(&self, merge: &mut Merge<'_>) -> Result<(), Fault> {
        if self.client.get().is_some() {
            return Ok(());
        }
        let list = self.ciphers.get().map_or("DEFAULT", |list| list);
        let mut terms = Terms::new(("proxy_ssl_protocols", self.protocols), list, merge)?;
        let pair = match (self.certificate.get(), self.certificate_key.get()) {
            (Some(certificate), _) if certificate.text.is_empty() => None,
            (Some(certificate), Some(key)) if certificate.is_computed() || key.is_computed() => None,
            (Some(certificate), Some(key)) => {
                Some(openssl::pair(&certificate.text, &key.text, None, &self.passwords(), merge)?)
            }
            (Some(certificate), None) => {
                return Err(merge.fail_nowhere(format!(
                    "no \"proxy_ssl_certificate_key\" is defined for certificate \"{}\"",
                    certificate.text
                )));
            }
            (None, _) => None,
        };
        let trust = if self.verify.or(false) { Some(self.trust(merge)?) } else { None };
        terms.run("proxy_ssl_conf_command", &self.conf_commands, merge)?;
        let settings = ClientSettings {
            protocols: terms.protocols,
            ciphers: terms.ciphers(),
            groups: terms.groups,
            pair,
            pairs: self
                .computed_pair()
                .map(|_| openssl::computed_pairs(self.certificate_cache.or(None), self.passwords(), merge)),
            trust,
            server_name: self.server_name.or(false),
            // Tickets are most of what sessions are resumed by.
            session_reuse: self.session_reuse.or(true) && terms.tickets.unwrap_or(true),
        };
        let client = ClientTls::new(settings)
            .map_err(|error| merge.fail_nowhere(format!("SSL_CTX_new() failed ({error})")))?;
        self.client.get_or_init(|| Arc::new(client));
        Ok(())
    }

    fn trust(&self, merge: &Merge<'_>) -> Result<Trust, Fault> {
        let Some(trusted) = self.trusted_certificate.or(None) else {
            return Err(merge.fail_nowhere("no proxy_ssl_trusted_certificate for proxy_ssl_verify"));
        };
        let certificates = openssl::trusted(&trusted, Purpose::Servers, merge)?;
        let revoked = match self.crl.or(None) {
            Some(crl) => openssl::revocations(&crl, merge)?,
            None => vec![],
        };
        let depth = usize::try_from(self.verify_depth.or(1)).unwrap_or(usize::MAX);
        Trust::new(depth, certificates.iter(), &revoked).map_err(|error| {
            merge.fail_nowhere(format!("X509_STORE_add_cert(\"{trusted}\") failed ({error})"))
        })
    }

    /// Certificate and key, where the request says which.
    fn computed_pair(&self) -> Option<(&Template, &Template)> {
        let (certificate, key) = self.certificate.get().zip(self.certificate_key.get())?;
        let computed = certificate.is_computed() || key.is_computed();
        (!certificate.text.is_empty() && computed).then_some((&certificate.value, &key.value))
    }

    fn passwords(&self) -> Arc<Passwords> {
        self.passwords.get().map_or_else(|| [].into(), Arc::clone)
    }

    /// Ready for requests.
    pub(super) fn compile(&self, plan: &Plan<'_, '_>) -> Option<Arc<Tls>> {
        let client = Arc::clone(self.client.get()?);
        let name = self.name.get().map(|name| plan.template(name));
        let pair = self.computed_pair();
        let pair = pair.map(|(certificate, key)| (plan.template(certificate), plan.template(key)));
        Some(Arc::new(Tls { client, name, pair }))
    }
}

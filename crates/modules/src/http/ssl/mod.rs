//! `ngx_http_ssl_module`: TLS towards clients.
//!
//! The words are read as OpenSSL reads them and mean what rustls has for it. Files are read while levels inherit, by
//! the master, but for certificates with variables in their names, which each handshake asks for. What rustls has not is
//! refused or warned of, never silently left out.

use std::sync::Arc;

use weir_engine::contract::{Install, Variable};
use weir_engine::generation::{Build, Plan};
use weir_engine::tls::pem::Passwords;
use weir_engine::tls::{Demand, Lifetime, ServerTls, Settings};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::program::{Http, ScopeKind};
use weir_ir::value;
use weir_ir::{Call, Fault, Merge};
use weir_syntax::{Diagnostic, Level};

mod ready;
mod variables;

use super::openssl::{self, CertificateCache, File, Versions};
use ready::Ready;

const HTTP_SERVER: Contexts = Contexts::HTTP_SERVER;

pub struct Ssl;

type D = Directive<Ssl>;

impl Module for Ssl {
    const NAME: &'static str = "http_ssl";
    type Main = ();
    type Scope = Server;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("ssl_certificate", HTTP_SERVER, Takes::ONE, |s, c| {
            s.certificates.push(File::read(c)?);
            Ok(())
        }),
        D::scope("ssl_certificate_key", HTTP_SERVER, Takes::ONE, |s, c| {
            s.certificate_keys.push(File::read(c)?);
            Ok(())
        }),
        D::scope("ssl_certificate_cache", HTTP_SERVER, Takes::ONE_TO_THREE, |s, c| {
            s.certificate_cache.put_with(c, CertificateCache::read)
        }),
        D::scope("ssl_password_file", HTTP_SERVER, Takes::ONE, |s, c| {
            s.passwords.put_with(c, openssl::passwords)
        }),
        D::scope("ssl_certificate_compression", HTTP_SERVER, Takes::FLAG, |s, c| {
            s.certificate_compression.flag(c)
        }),
        D::scope("ssl_ech_file", HTTP_SERVER, Takes::ONE, |s, _| {
            s.ech_file = true;
            Ok(())
        }),
        D::scope("ssl_dhparam", HTTP_SERVER, Takes::ONE, |s, c| s.dhparam.put(c, openssl::path(c)))
            .accepted("finite-field Diffie-Hellman is never agreed on"),
        D::scope("ssl_ecdh_curve", HTTP_SERVER, Takes::ONE, |s, c| s.ecdh_curve.put(c, c.text(0).into())),
        D::scope("ssl_protocols", HTTP_SERVER, Takes::ONE_MORE, |s, c| s.protocols.add(c)),
        D::scope("ssl_ciphers", HTTP_SERVER, Takes::ONE, |s, c| s.ciphers.put(c, c.text(0).into())),
        D::scope("ssl_buffer_size", HTTP_SERVER, Takes::ONE, |s, c| s.buffer_size.size(c))
            .accepted("a record holds what is ready to be sent"),
        D::scope("ssl_verify_client", HTTP_SERVER, Takes::ONE, |s, c| {
            let words = [
                ("off", None),
                ("on", Some(Demand::On)),
                ("optional", Some(Demand::Optional)),
                ("optional_no_ca", Some(Demand::OptionalNoCa)),
            ];
            s.verify_client.one_of(c, &words)
        }),
        D::scope("ssl_verify_depth", HTTP_SERVER, Takes::ONE, |s, c| s.verify_depth.number(c)),
        D::scope("ssl_client_certificate", HTTP_SERVER, Takes::ONE, |s, c| {
            s.client_certificate.put(c, openssl::path(c))
        }),
        D::scope("ssl_crl", HTTP_SERVER, Takes::ONE, |s, c| s.crl.put(c, openssl::path(c))),
        D::scope("ssl_trusted_certificate", HTTP_SERVER, Takes::ONE, |s, c| {
            s.trusted_certificate.put(c, openssl::path(c))
        }),
        D::scope("ssl_prefer_server_ciphers", HTTP_SERVER, Takes::FLAG, |s, c| {
            s.prefer_server_ciphers.flag(c)
        }),
        D::scope("ssl_session_cache", HTTP_SERVER, Takes::ONE_TWO, session_cache),
        D::scope("ssl_session_tickets", HTTP_SERVER, Takes::FLAG, |s, c| s.session_tickets.flag(c)),
        D::scope("ssl_session_ticket_key", HTTP_SERVER, Takes::ONE, |s, c| {
            s.session_ticket_keys.push(c.conf_path(0));
            Ok(())
        }),
        D::scope("ssl_session_timeout", HTTP_SERVER, Takes::ONE, |s, c| s.session_timeout.sec(c)),
        D::scope("ssl_ocsp", HTTP_SERVER, Takes::ONE, |s, c| {
            let (leaf, all) = (Some(Asked::Leaf), Some(Asked::All));
            s.ocsp.one_of(c, &[("off", None), ("on", all), ("leaf", leaf)])
        }),
        D::scope("ssl_ocsp_responder", HTTP_SERVER, Takes::ONE, |s, c| {
            s.ocsp_responder.put(c, c.text(0).into())
        }),
        D::scope("ssl_ocsp_cache", HTTP_SERVER, Takes::ONE, ocsp_cache),
        D::scope("ssl_stapling", HTTP_SERVER, Takes::FLAG, |s, c| s.stapling.flag(c)),
        D::scope("ssl_stapling_file", HTTP_SERVER, Takes::ONE, |s, c| {
            s.stapling_file.put(c, openssl::path(c))
        }),
        D::scope("ssl_stapling_responder", HTTP_SERVER, Takes::ONE, |s, c| {
            s.stapling_responder.put(c, c.text(0).into())
        }),
        D::scope("ssl_stapling_verify", HTTP_SERVER, Takes::FLAG, |s, c| s.stapling_verify.flag(c)),
        D::scope("ssl_early_data", HTTP_SERVER, Takes::FLAG, |s, c| s.early_data.flag(c))
            .accepted("early data is declined, which costs the client one round trip"),
        D::scope("ssl_conf_command", HTTP_SERVER, Takes::TWO, |s, c| {
            s.conf_commands.push((c.text(0), c.text(1)));
            Ok(())
        }),
        D::scope("ssl_reject_handshake", HTTP_SERVER, Takes::FLAG, |s, c| s.reject_handshake.flag(c)),
    ];
}

/// About which of a client's certificates responders are asked, `ssl_ocsp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    All,
    Leaf,
}

/// The settings of a server, or of all of them at the `http` level.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// nginx lets an inner list replace an outer one.
    certificates: Vec<File>,
    certificate_keys: Vec<File>,
    certificate_cache: Setting<Option<CertificateCache>>,
    passwords: Setting<Arc<Passwords>>,
    certificate_compression: Setting<bool>,
    ech_file: bool,
    dhparam: Setting<Option<Arc<str>>>,
    ecdh_curve: Setting<Box<str>>,
    protocols: Versions,
    ciphers: Setting<Box<str>>,
    buffer_size: Setting<u64>,
    verify_client: Setting<Option<Demand>>,
    verify_depth: Setting<u64>,
    client_certificate: Setting<Option<Arc<str>>>,
    crl: Setting<Option<Arc<str>>>,
    trusted_certificate: Setting<Option<Arc<str>>>,
    prefer_server_ciphers: Setting<bool>,
    own_cache: Setting<OwnCache>,
    shared_cache: Setting<(Arc<str>, u64)>,
    session_tickets: Setting<bool>,
    session_ticket_keys: Vec<Arc<str>>,
    /// Seconds.
    session_timeout: Setting<u64>,
    ocsp: Setting<Option<Asked>>,
    ocsp_responder: Setting<Box<str>>,
    /// A zone and its size.
    ocsp_cache: Setting<Option<(Arc<str>, u64)>>,
    stapling: Setting<bool>,
    stapling_file: Setting<Option<Arc<str>>>,
    stapling_responder: Setting<Box<str>>,
    stapling_verify: Setting<bool>,
    early_data: Setting<bool>,
    conf_commands: Vec<(String, String)>,
    reject_handshake: Setting<bool>,
    /// Of a server that takes or refuses handshakes: what the words above mean.
    ready: Option<Arc<Ready>>,
}

/// The part of `ssl_session_cache` that nginx keeps within a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OwnCache {
    Off,
    None,
    /// Only a shared one was named.
    Shared,
    /// Sessions.
    Builtin(u64),
}

/// nginx's `builtin` without a size: OpenSSL's default.
const BUILTIN: u64 = 20 * 1024;

/// Bytes of nginx's shared cache that a session takes: a megabyte holds about 4000.
const SESSION: u64 = 256;

fn session_cache(server: &mut Server, call: &mut Call<'_>) -> Result<(), Fault> {
    for index in 0..call.args().len() {
        let text = call.text(index);
        let invalid = || Err(call.fail(format!("invalid session cache \"{text}\"")));
        match text.split_once(':') {
            None => match text.as_str() {
                "off" => server.own_cache.replace(OwnCache::Off),
                "none" => server.own_cache.replace(OwnCache::None),
                "builtin" => server.own_cache.replace(OwnCache::Builtin(BUILTIN)),
                _ => return invalid(),
            },
            Some(("builtin", size)) => match value::number(size.as_bytes()) {
                Some(sessions) => server.own_cache.replace(OwnCache::Builtin(sessions)),
                None => return invalid(),
            },
            Some(("shared", rest)) => {
                let Some((name, size)) = rest.split_once(':').filter(|(name, _)| !name.is_empty()) else {
                    return invalid();
                };
                let Some(size) = value::size(size.as_bytes()) else { return invalid() };
                // Eight pages.
                if size < 8 * 4096 {
                    return Err(call.fail(format!("session cache \"{text}\" is too small")));
                }
                call.zone(name, size, Ssl::NAME)?;
                server.shared_cache.replace((name.into(), size));
            }
            Some(_) => return invalid(),
        }
    }
    if server.shared_cache.is_set() && !server.own_cache.is_set() {
        server.own_cache.replace(OwnCache::Shared);
    }
    Ok(())
}

fn ocsp_cache(server: &mut Server, call: &mut Call<'_>) -> Result<(), Fault> {
    server.ocsp_cache.put_with(call, |call| {
        let text = call.text(0);
        if text == "off" {
            return Ok(None);
        }
        let zone = text.strip_prefix("shared:").and_then(|rest| rest.split_once(':'));
        let zone = zone.filter(|(name, _)| !name.is_empty());
        let size = zone.and_then(|(_, size)| value::size(size.as_bytes()));
        let Some(((name, _), size)) = zone.zip(size) else {
            return Err(call.fail(format!("invalid OCSP cache \"{text}\"")));
        };
        // Eight pages.
        if size < 8 * 4096 {
            return Err(call.fail(format!("OCSP cache \"{text}\" is too small")));
        }
        call.zone(name, size, Ssl::NAME)?;
        Ok(Some((name.into(), size)))
    })
}

impl Conf for Server {
    const EVERY_LEVEL: bool = true;

    fn inherit(&mut self, outer: &Self, merge: &mut Merge<'_>) -> Result<(), Fault> {
        // Nothing of this is read below a server.
        if !matches!(merge.kind(), ScopeKind::Server) {
            return Ok(());
        }
        macro_rules! settings {
            ($($field:ident),* $(,)?) => { $(self.$field.inherit(&outer.$field);)* };
        }
        settings!(
            certificate_cache,
            passwords,
            certificate_compression,
            dhparam,
            ecdh_curve,
            ciphers,
            verify_client,
            verify_depth,
            client_certificate,
            crl,
            trusted_certificate,
            prefer_server_ciphers,
            own_cache,
            shared_cache,
            session_tickets,
            session_timeout,
            ocsp,
            ocsp_responder,
            ocsp_cache,
            stapling,
            stapling_file,
            stapling_responder,
            stapling_verify,
            reject_handshake,
        );
        macro_rules! lists {
            ($($field:ident),* $(,)?) => {
                $(if self.$field.is_empty() { self.$field.clone_from(&outer.$field); })*
            };
        }
        lists!(certificates, certificate_keys, session_ticket_keys, conf_commands);
        self.protocols.inherit(outer.protocols);
        self.ech_file |= outer.ech_file;
        self.ready = self.prepare(merge)?.map(Arc::new);
        Ok(())
    }
}

impl Install for Ssl {
    const VARIABLES: &'static [Variable] = variables::VARIABLES;

    /// Every address with `ssl` must have a certificate to show.
    fn prepare((): &(), build: &mut Build<'_>) -> Result<(), Diagnostic> {
        let Some(http) = &build.program.http else { return Ok(()) };
        for bound in http.bound.iter().filter(|bound| bound.protocols.ssl) {
            let conf = |server| http.scope(server).confs.get::<Ssl>();
            let default = conf(bound.default_server);
            if !default.certificates.is_empty() {
                continue;
            }
            if !default.reject_handshake.or(false) {
                return Err(no_certificate(http, bound.default_server));
            }
            // Names that the default server does not refuse need a certificate of their own.
            for server in &bound.servers {
                let conf = conf(*server);
                if conf.certificates.is_empty() && !conf.reject_handshake.or(false) {
                    return Err(no_certificate(http, *server));
                }
            }
        }
        Ok(())
    }

    fn install(server: &Server, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let ScopeKind::Server = plan.kind() else { return Ok(()) };
        let Some(ready) = &server.ready else {
            plan.tls = server.verify_client.or(None).map(|demand| Arc::new(ServerTls::demanding(demand)));
            return Ok(());
        };
        let settings = Settings {
            pairs: &ready.pairs,
            staples: ready.staples(plan),
            computed: ready.computed.as_ref().map(|pairs| server.computed(pairs, plan)),
            protocols: ready.terms.protocols,
            ciphers: ready.terms.ciphers(),
            groups: ready.terms.groups.clone(),
            prefer_server_ciphers: ready
                .terms
                .prefer_server_ciphers
                .unwrap_or(server.prefer_server_ciphers.or(false)),
            session_cache: server.cache(),
            session_lifetime: Lifetime(server.session_timeout.or(300)),
            tickets: ready.terms.tickets.unwrap_or(server.session_tickets.or(true)),
            ticket_count: ready.terms.ticket_count,
            ticket_keys: &ready.ticket_keys,
            reject_handshake: server.reject_handshake.or(false),
            client_auth: ready.client_auth.clone(),
            statuses: server.statuses(ready, plan),
        };
        let tls =
            ServerTls::new(settings).map_err(|error| plan.fail(format!("SSL_CTX_new() failed ({error})")))?;
        plan.tls = Some(Arc::new(tls));
        Ok(())
    }
}

fn no_certificate(http: &Http, server: weir_ir::LocationId) -> Diagnostic {
    let position = &http.scope(server).position;
    Diagnostic::new(
        Level::Emerg,
        format!(
            "no \"ssl_certificate\" is defined for the \"listen ... ssl\" directive in {}:{}",
            position.file, position.line
        ),
    )
}

#[cfg(test)]
pub(crate) mod tests;

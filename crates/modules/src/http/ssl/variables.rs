//! `$ssl_…`: what is known of a TLS connection. They have no value on a plain one.

use weir_engine::contract::Variable;
use weir_engine::http::Exchange;
use weir_engine::tls::{ClientCertificate, Session, Whose, ciphers};

pub(super) const VARIABLES: &[Variable] = &[
    Variable::new("ssl_protocol", |x, out| text(x, out, |tls| tls.protocol_name())),
    Variable::new("ssl_cipher", |x, out| text(x, out, |tls| ciphers::cipher_name(tls.cipher))),
    Variable::new("ssl_ciphers", |x, out| list(x, out, |tls| tls.offer.ciphers(), ciphers::openssl_name)),
    Variable::new("ssl_curve", |x, out| {
        text(x, out, |tls| {
            tls.group.and_then(|group| ciphers::group_name(u16::from(group))).unwrap_or_default()
        })
    }),
    Variable::new("ssl_curves", |x, out| list(x, out, |tls| tls.offer.groups(), ciphers::group_name)),
    // As nginx shows them before OpenSSL 4: numbers.
    Variable::new("ssl_sigalgs", |x, out| list(x, out, |tls| tls.offer.signatures(), |_| None)),
    // rustls keeps to itself which ones were chosen; nginx has no value either before OpenSSL 3.5.
    Variable::new("ssl_sigalg", |_, _| false),
    Variable::new("ssl_client_sigalg", |_, _| false),
    // Encrypted ClientHello is not spoken.
    Variable::new("ssl_ech_status", |_, _| false),
    Variable::new("ssl_ech_outer_server_name", |_, _| false),
    // rustls keeps the id of a session to itself.
    Variable::new("ssl_session_id", |_, _| false),
    Variable::new("ssl_session_reused", |x, out| text(x, out, |tls| if tls.resumed { "r" } else { "." })),
    // Early data is never taken.
    Variable::new("ssl_early_data", |_, _| false),
    Variable::new("ssl_server_name", |x, out| {
        text(x, out, |tls| tls.server_name.as_deref().unwrap_or_default())
    }),
    Variable::new("ssl_alpn_protocol", |x, out| {
        let Some(alpn) = x.connection.tls.as_ref().and_then(|tls| tls.alpn.as_deref()) else {
            return false;
        };
        out.extend_from_slice(alpn);
        true
    }),
    Variable::new("ssl_client_verify", |x, out| {
        let Some(tls) = &x.connection.tls else { return false };
        let fault = |client: &ClientCertificate| client.fault.map(|reason| reason.text).or(client.status);
        match tls.client.as_deref().map(fault) {
            None => out.extend_from_slice(b"NONE"),
            Some(None) => out.extend_from_slice(b"SUCCESS"),
            Some(Some(reason)) => {
                out.extend_from_slice(b"FAILED:");
                out.extend_from_slice(reason.as_bytes());
            }
        }
        true
    }),
    Variable::new("ssl_client_raw_cert", |x, out| client(x, out, ClientCertificate::pem)),
    // For headers: every line but the first begins with a tab.
    Variable::new("ssl_client_cert", |x, out| client(x, out, |c| c.pem().trim_end().replace('\n', "\n\t"))),
    Variable::new("ssl_client_escaped_cert", |x, out| {
        client(x, out, |c| {
            let escape = |byte: char| match byte {
                '0'..='9' | 'A'..='Z' | 'a'..='z' | '-' | '.' | '_' | '~' => byte.to_string(),
                other => format!("%{:02X}", u32::from(other)),
            };
            c.pem().chars().map(escape).collect()
        })
    }),
    Variable::new("ssl_client_s_dn", |x, out| client(x, out, |c| c.name(Whose::Subject))),
    Variable::new("ssl_client_i_dn", |x, out| client(x, out, |c| c.name(Whose::Issuer))),
    Variable::new("ssl_client_s_dn_legacy", |x, out| client(x, out, |c| c.legacy_name(Whose::Subject))),
    Variable::new("ssl_client_i_dn_legacy", |x, out| client(x, out, |c| c.legacy_name(Whose::Issuer))),
    Variable::new("ssl_client_v_start", |x, out| {
        client(x, out, |c| c.times().unwrap_or_default()[0].clone())
    }),
    Variable::new("ssl_client_v_end", |x, out| client(x, out, |c| c.times().unwrap_or_default()[1].clone())),
    Variable::new("ssl_client_v_remain", |x, out| {
        let now = i64::try_from(x.reactor.clock().unix_secs()).unwrap_or(i64::MAX);
        client(x, out, |c| (c.end().unwrap_or(0).saturating_sub(now).max(0) / 86400).to_string())
    }),
    Variable::new("ssl_client_serial", |x, out| client(x, out, ClientCertificate::serial)),
    Variable::new("ssl_client_fingerprint", |x, out| client(x, out, ClientCertificate::fingerprint)),
];

/// Appends what a TLS connection has to say; an empty text is no value.
fn text(x: &Exchange, out: &mut Vec<u8>, of: impl FnOnce(&Session) -> &str) -> bool {
    let Some(tls) = &x.connection.tls else { return false };
    let text = of(tls);
    out.extend_from_slice(text.as_bytes());
    !text.is_empty()
}

/// Appends a text about the client's certificate.
fn client(x: &Exchange, out: &mut Vec<u8>, of: impl FnOnce(&ClientCertificate) -> String) -> bool {
    let Some(client) = x.connection.tls.as_ref().and_then(|tls| tls.client.as_deref()) else { return false };
    out.extend_from_slice(of(client).as_bytes());
    true
}

/// Appends names joined by colons; numbers without a name are shown as nginx shows them.
fn list(
    x: &Exchange,
    out: &mut Vec<u8>,
    of: impl FnOnce(&Session) -> &[u16],
    name: impl Fn(u16) -> Option<&'static str>,
) -> bool {
    let Some(tls) = &x.connection.tls else { return false };
    // GREASE (RFC 8701) is shown as numbers too.
    let names = of(tls).iter().map(|number| name(*number).map_or(format!("0x{number:04x}"), str::to_owned));
    let names: Vec<_> = names.collect();
    out.extend_from_slice(names.join(":").as_bytes());
    !names.is_empty()
}

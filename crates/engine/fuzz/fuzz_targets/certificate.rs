//! What a client shows as its certificate must not panic, whatever is asked of it; nor must what stands in a file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;
use webpki::KeyUsage;
use weir_engine::tls::pem::{self, Purpose};
use weir_engine::tls::{ClientCertificate, Trust, Whose, der::Fields};

fuzz_target!(|input: &[u8]| {
    let der = CertificateDer::from(input.to_vec());
    // Trusted as it is, or not at all.
    if let Ok(trust) = Trust::new(3, [&der].into_iter(), &[]) {
        let _ = trust.judge(std::slice::from_ref(&der), KeyUsage::client_auth());
        let _ = trust.judge(&[der.clone(), der.clone()], KeyUsage::client_auth());
    }
    let shown = ClientCertificate { der, fault: None, status: None };
    for whose in [Whose::Subject, Whose::Issuer] {
        let _ = (shown.name(whose), shown.legacy_name(whose));
    }
    let _ = (shown.times(), shown.end(), shown.serial(), shown.fingerprint());
    if let Some(fields) = Fields::of(input) {
        let _ = (fields.is_for(b"a.example"), fields.is_self_issued(), fields.ocsp_responder());
    }
    if let Ok(chain) = pem::chain(shown.pem().as_bytes()) {
        assert!(chain.len() == 1 && input.starts_with(&chain[0]));
    }
    let _ = (pem::chain(input), pem::trusted(input, Purpose::Clients), pem::revocations(input));
    let _ = pem::private_key(input, &[Box::from(&b"password"[..])]);
});

//! A list of revoked certificates must not panic, nor may any list that cannot be signed let a certificate pass.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use webpki::KeyUsage;
use weir_engine::tls::der::Fields;
use weir_engine::tls::{Trust, pem};

static ROOT: LazyLock<CertificateDer<'static>> = LazyLock::new(|| {
    let pem = include_bytes!("../../../../fixtures/certs/example.com.crt");
    pem::chain(pem).expect("a certificate").remove(0)
});

fn tagged(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let [high, low] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    [&[&[tag, 0x82, high, low][..]], parts].concat().concat()
}

fuzz_target!(|input: &[u8]| {
    if input.len() > 4096 {
        return;
    }
    // The input as it is, and as what comes behind the name of an issuer: times, entries, extensions.
    let algorithm = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
    let issuer = Fields::of(&ROOT).expect("it was read").subject;
    let list = tagged(0x30, &[b"\x02\x01\x01", algorithm, &tagged(0x30, &[issuer]), input]);
    let signed = tagged(0x30, &[&list, algorithm, b"\x03\x03\x00\x30\x00"]);
    for der in [input.to_vec(), signed] {
        let Ok(trust) = Trust::new(1, [&*ROOT].into_iter(), &[CertificateRevocationListDer::from(der)]) else {
            continue;
        };
        let shown = std::slice::from_ref(&*ROOT);
        assert!(trust.judge(shown, KeyUsage::client_auth()).is_some());
    }
});

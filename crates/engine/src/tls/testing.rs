//! For tests: authorities that issue certificates, and DER that no library would write.

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SerialNumber, SigningKey,
};
use rustls::pki_types::CertificateDer;

use super::der::{self, BIT_STRING, Fields, INTEGER, OCTETS, OID, SEQUENCE};
use super::ocsp::{BASIC, CertificateId, TAGGED};

pub(super) fn tagged(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = (content.len() as u32).to_be_bytes();
    [&[tag, 0x84][..], &length, &content].concat()
}

/// ecdsa-with-SHA256
pub(super) const ALGORITHM: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";

pub(super) struct Authority {
    pub(super) certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn params(name: &str, usages: &[KeyUsagePurpose]) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = usages.to_vec();
        params
    }

    pub(super) fn root(usages: &[KeyUsagePurpose]) -> Self {
        Self::root_with(|params| params.key_usages = usages.to_vec())
    }

    pub(super) fn root_with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (mut params, key) = (Self::params("root", &[]), KeyPair::generate().unwrap());
        change(&mut params);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    pub(super) fn below(&self, serial: u64) -> Self {
        let mut params = Self::params("between", &[]);
        params.serial_number = Some(SerialNumber::from(serial));
        self.issue(params)
    }

    pub(super) fn issue(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// Another certificate for the key of one that is below, or its own.
    pub(super) fn renew(
        &self,
        name: &str,
        below: &Self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let mut params = Self::params(name, &[]);
        change(&mut params);
        params.signed_by(below.issuer.key(), &self.issuer).unwrap().der().clone()
    }

    /// What a client has.
    pub(super) fn end(&self, serial: u64) -> Self {
        self.end_for(serial, ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub(super) fn end_for(&self, serial: u64, purpose: ExtendedKeyUsagePurpose) -> Self {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages = vec![purpose];
        self.issue(params)
    }

    pub(super) fn client(&self, serial: u64) -> CertificateDer<'static> {
        self.end(serial).certificate
    }

    /// A certificate of version 1.
    pub(super) fn plain(&self, serial: u8, years: [&[u8]; 2]) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let key = rcgen::PublicKeyData::subject_public_key_info(&key);
        let name = tagged(SEQUENCE, &[Fields::of(&self.certificate).unwrap().subject]);
        let [from, to] = years.map(|year| tagged(0x17, &[year, b"0101000000Z"]));
        let times = tagged(SEQUENCE, &[&from, &to]);
        let serial = tagged(INTEGER, &[&[serial]]);
        self.sign(&tagged(SEQUENCE, &[&serial, ALGORITHM, &name, &times, &tagged(SEQUENCE, &[]), &key]))
            .into()
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature = self.issuer.key().sign(message).unwrap();
        tagged(SEQUENCE, &[message, ALGORITHM, &tagged(BIT_STRING, &[&[0], &signature])])
    }
}

/// What a responder says of a certificate, with the times between which that is valid.
pub(super) fn response(
    signer: &Authority,
    about: &[u8],
    issuer: &[u8],
    status: &[u8],
    times: [&[u8]; 2],
) -> Vec<u8> {
    let time = |time: &[u8]| tagged(0x18, &[time]);
    let request = CertificateId::of(about, issuer).unwrap().request();
    let mut id = &request[..];
    for _ in 0..4 {
        id = der::element(id, SEQUENCE).unwrap().0;
    }
    let next = if times[1].is_empty() { vec![] } else { tagged(TAGGED[0], &[&time(times[1])]) };
    let single = tagged(SEQUENCE, &[id, status, &time(times[0]), &next]);
    let name = tagged(SEQUENCE, &[Fields::of(&signer.certificate).unwrap().subject]);
    let data = [&tagged(TAGGED[1], &[&name])[..], &time(times[0]), &tagged(SEQUENCE, &[&single])];
    let signed = signer.sign(&tagged(SEQUENCE, &data));
    let signature = der::element(&signed, SEQUENCE).unwrap().0;
    let certificates = tagged(TAGGED[0], &[&tagged(SEQUENCE, &[&signer.certificate])]);
    let basic = tagged(SEQUENCE, &[signature, &certificates]);
    let bytes = tagged(SEQUENCE, &[&tagged(OID, &[BASIC]), &tagged(OCTETS, &[&basic])]);
    tagged(SEQUENCE, &[b"\x0a\x01\x00", &tagged(TAGGED[0], &[&bytes])])
}

//! Revocation lists (RFC 5280 section 5), judged as OpenSSL judges them: webpki reads none of version 1, which `openssl ca -gencrl` writes
//! unless it is told otherwise, and takes the first list that fits for the only one.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::Error;

use super::der::{self, Fields, INTEGER, SEQUENCE, Signed};
use super::trust::Reason;

/// `[0] EXPLICIT`, the extensions of a list.
const EXTENSIONS: u8 = 0xa0;
/// Of `KeyUsage`.
const CRL_SIGN: u8 = 6;

/// 2.5.29.20
const NUMBER: &[u8] = &[0x55, 0x1d, 0x14];
/// 2.5.29.21
const REASON: &[u8] = &[0x55, 0x1d, 0x15];
/// 2.5.29.24
const INVALIDITY: &[u8] = &[0x55, 0x1d, 0x18];
/// 2.5.29.27
const DELTA: &[u8] = &[0x55, 0x1d, 0x1b];
/// 2.5.29.28
const ISSUING_POINT: &[u8] = &[0x55, 0x1d, 0x1c];
/// 2.5.29.29
const ENTRY_ISSUER: &[u8] = &[0x55, 0x1d, 0x1d];
/// 2.5.29.35
const AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 0x23];

#[derive(Debug)]
pub(super) struct List {
    der: Box<[u8]>,
    /// The key that it was found to be signed with, at once where that is somebody's who is trusted: big lists are not read
    /// by every handshake.
    pub(super) signer: OnceLock<Box<[u8]>>,
    /// The content of the name.
    issuer: Box<[u8]>,
    /// 14 digits.
    this_update: Vec<u8>,
    /// A list may go without.
    next_update: Option<Vec<u8>>,
    scope: Scope,
    /// Serial numbers of those that are revoked.
    revoked: BTreeSet<Box<[u8]>>,
}

/// Which of its issuer's certificates a list is about (`IssuingDistributionPoint`).
#[derive(Debug, Default)]
struct Scope {
    /// Those that name one of these places for their list, each with the tag of its `GeneralName`.
    points: Option<Vec<(u8, Box<[u8]>)>>,
    /// No authorities' certificates.
    users: bool,
    /// Only those.
    authorities: bool,
}

impl Scope {
    fn read(point: &[u8]) -> Result<Self, Error> {
        let mut scope = Self::default();
        let (mut rest, _) = der::element(point, SEQUENCE).ok_or(Error::BadDer)?;
        while let Some(tag) = rest.first() {
            let (value, behind) = der::element(rest, *tag).ok_or(Error::BadDer)?;
            match (tag, value) {
                (0xa0, name) => {
                    let names =
                        der::element(name, 0xa0).ok_or(Error::UnsupportedCrlIssuingDistributionPoint)?;
                    scope.points =
                        Some(der::elements(names.0).map(|(tag, name)| (tag, name.into())).collect());
                }
                (0x81, value) => scope.users = value != [0],
                (0x82, value) => scope.authorities = value != [0],
                (0x84 | 0x85, [0]) => {}
                (0x83, _) => return Err(Error::UnsupportedRevocationReasonsPartitioning),
                (0x84, _) => return Err(Error::UnsupportedIndirectCrl),
                (_, _) => return Err(Error::UnsupportedCrlIssuingDistributionPoint),
            }
            rest = behind;
        }
        Ok(scope)
    }

    fn covers(&self, certificate: &Fields<'_>) -> bool {
        let excludes = if certificate.authority().is_some() { self.users } else { self.authorities };
        let is_named = |points: &Vec<(u8, Box<[u8]>)>| {
            certificate.list_points().any(|(tag, name)| points.iter().any(|(t, n)| (*t, &**n) == (tag, name)))
        };
        !excludes && self.points.as_ref().is_none_or(is_named)
    }
}

impl List {
    /// # Errors
    /// It is none, or says something that is not judged here.
    pub(super) fn read(der: &[u8]) -> Result<Self, Error> {
        let (_, behind) = der::element(der, SEQUENCE).ok_or(Error::BadDer)?;
        let signed = Signed::of(der).ok_or(Error::BadDer)?;
        let list = signed.content;
        let list = der::element(list, INTEGER).map_or(list, |(_version, list)| list);
        let (algorithm, list) = der::element(list, SEQUENCE).ok_or(Error::BadDer)?;
        if algorithm != signed.algorithm {
            return Err(Error::SignatureAlgorithmMismatch);
        }
        let (issuer, list) = der::element(list, SEQUENCE).ok_or(Error::BadDer)?;
        let (this_update, list) = der::time(list).ok_or(Error::BadDerTime)?;
        let (next_update, list) = der::time(list).map_or((None, list), |(time, list)| (Some(time), list));
        let (entries, list) = der::element(list, SEQUENCE).unwrap_or((&[], list));
        let (extensions, list) = der::element(list, EXTENSIONS).unwrap_or((&[], list));
        if !(list.is_empty() && signed.rest.is_empty() && behind.is_empty()) {
            return Err(Error::BadDer);
        }
        if der::extension(extensions, DELTA).is_some() {
            return Err(Error::UnsupportedDeltaCrl);
        }
        if der::critical(extensions).any(|oid| ![NUMBER, ISSUING_POINT, AUTHORITY_KEY].contains(&oid)) {
            return Err(Error::UnsupportedCriticalExtension);
        }
        let scope = der::extension(extensions, ISSUING_POINT).map(Scope::read).transpose()?;
        let revoked = serials(entries)?;
        Ok(Self {
            der: der.into(),
            signer: OnceLock::new(),
            issuer: issuer.into(),
            this_update,
            next_update,
            scope: scope.unwrap_or_default(),
            revoked,
        })
    }

    /// Whether a certificate would be on it.
    fn is_about(&self, certificate: &Fields<'_>) -> bool {
        *self.issuer == *certificate.issuer && self.scope.covers(certificate)
    }

    /// Settles who has signed it, where that is one of these.
    pub(super) fn seek_signer<'c>(&self, among: impl Iterator<Item = &'c CertificateDer<'static>>) {
        let named = among.filter_map(|c| Fields::of(c)).filter(|fields| *fields.subject == *self.issuer);
        let _ = { named }.any(|fields| self.is_signed_by(&fields));
    }

    fn is_signed_by(&self, issuer: &Fields<'_>) -> bool {
        if let Some(key) = self.signer.get() {
            return **key == *issuer.public_key;
        }
        let is_by = Signed::of(&self.der).is_some_and(|signed| signed.is_by(issuer.public_key));
        if is_by {
            // Whoever was here before found the same.
            let _ = self.signer.set(issuer.public_key.into());
        }
        is_by
    }

    fn check_time(&self, now: UnixTime) -> Result<(), Reason> {
        let now = der::digits_of(now.as_secs() as i64);
        if self.this_update > now {
            return Err(Reason::CRL_NOT_YET_VALID);
        }
        match &self.next_update {
            Some(end) if now > *end => Err(Reason::CRL_EXPIRED),
            Some(_) | None => Ok(()),
        }
    }

    /// Judges a certificate, whose issuer's own is given.
    fn judge(&self, certificate: &Fields<'_>, issuer: &Fields<'_>, now: UnixTime) -> Result<(), Reason> {
        if self.revoked.contains(certificate.serial) {
            return Err(Reason::REVOKED);
        }
        self.check_time(now)?;
        if !issuer.may(CRL_SIGN) {
            return Err(Reason::NO_CRL_SIGNER);
        }
        Ok(())
    }
}

/// The serial numbers among the entries of a list.
fn serials(mut entries: &[u8]) -> Result<BTreeSet<Box<[u8]>>, Error> {
    let mut serials = BTreeSet::new();
    while !entries.is_empty() {
        let (entry, others) = der::element(entries, SEQUENCE).ok_or(Error::BadDer)?;
        let (serial, entry) = der::element(entry, INTEGER).ok_or(Error::InvalidSerialNumber)?;
        let (_date, extensions) = der::time(entry).ok_or(Error::BadDerTime)?;
        match der::critical(extensions).find(|oid| ![REASON, INVALIDITY].contains(oid)) {
            // The certificate is another issuer's.
            Some(ENTRY_ISSUER) => return Err(Error::UnsupportedIndirectCrl),
            Some(_) => return Err(Error::UnsupportedCriticalExtension),
            None => {}
        }
        serials.insert(serial.into());
        entries = others;
    }
    Ok(serials)
}

/// Judges a certificate, whose issuer's own is given, by the newest of its issuer's lists that are about it and valid.
pub(super) fn judge(
    lists: &[List],
    certificate: &Fields<'_>,
    issuer: &Fields<'_>,
    now: UnixTime,
) -> Result<(), Reason> {
    let mut named = lists.iter().filter(|list| list.is_about(certificate)).peekable();
    if named.peek().is_none() {
        return Err(Reason::NO_CRL);
    }
    // Another key may have had the same name.
    let signed = named.filter(|list| list.is_signed_by(issuer));
    let best = signed.max_by_key(|list| (list.check_time(now).is_ok(), &list.this_update));
    best.ok_or(Reason::CRL_SIGNATURE)?.judge(certificate, issuer, now)
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::KeyUsagePurpose;
    use rustls::pki_types::CertificateRevocationListDer;
    use webpki::KeyUsage;

    use super::*;
    use crate::tls::Trust;
    use crate::tls::testing::{ALGORITHM, Authority, tagged};

    /// A list of version 1 without `nextUpdate`, unless it is given.
    pub(in crate::tls) fn list_of(
        authority: &Authority,
        serials: &[u8],
        next: &[u8],
        entry: &[u8],
    ) -> CertificateRevocationListDer<'static> {
        let entries: Vec<_> = serials
            .iter()
            .map(|serial| {
                tagged(SEQUENCE, &[&tagged(INTEGER, &[&[*serial]]), &time(b"200101000000Z"), entry])
            })
            .collect();
        let entries: Vec<_> = entries.iter().map(Vec::as_slice).collect();
        let revoked = if entries.is_empty() { vec![] } else { tagged(SEQUENCE, &entries) };
        signed(authority, &[], [b"200101000000Z", next], &revoked, &[])
    }

    fn time(time: &[u8]) -> Vec<u8> {
        tagged(0x17, &[time])
    }

    fn signed(
        authority: &Authority,
        version: &[u8],
        [this, next]: [&[u8]; 2],
        revoked: &[u8],
        extensions: &[u8],
    ) -> CertificateRevocationListDer<'static> {
        let name = tagged(SEQUENCE, &[Fields::of(&authority.certificate).unwrap().subject]);
        let next = if next.is_empty() { vec![] } else { time(next) };
        let list = tagged(SEQUENCE, &[version, ALGORITHM, &name, &time(this), &next, revoked, extensions]);
        authority.sign(&list).into()
    }

    /// A list about what the content of an `IssuingDistributionPoint` says.
    fn partial(authority: &Authority, point: &[&[u8]]) -> CertificateRevocationListDer<'static> {
        let point = tagged(0x04, &[&tagged(SEQUENCE, point)]);
        let extension = tagged(SEQUENCE, &[b"\x06\x03\x55\x1d\x1c\x01\x01\xff", &point]);
        let extensions = tagged(EXTENSIONS, &[&tagged(SEQUENCE, &[&extension])]);
        signed(authority, b"\x02\x01\x01", [b"200101000000Z", b"490101000000Z"], &[], &extensions)
    }

    #[track_caller]
    fn check(
        root: &Authority,
        lists: &[CertificateRevocationListDer<'static>],
        chain: &[&CertificateDer<'static>],
        expected: &str,
    ) {
        let trust = Trust::new(5, [&root.certificate].into_iter(), lists).unwrap();
        let chain: Vec<_> = chain.iter().map(|c| (*c).clone()).collect();
        let reason = trust.judge(&chain, KeyUsage::client_auth());
        assert_eq!(reason.map_or("", |reason| reason.text), expected);
    }

    #[test]
    fn lists_of_version_1() {
        let root = Authority::root(&[]);
        let between = root.below(3);
        let (one, two, deep) = (root.client(1), root.client(2), between.client(1));
        let list = list_of(&root, &[2], b"", b"");
        check(&root, std::slice::from_ref(&list), &[&one], "");
        check(&root, std::slice::from_ref(&list), &[&two], "certificate revoked");
        check(&root, &[list_of(&root, &[], b"490101000000Z", b"")], &[&two], "");
        check(&root, &[list_of(&root, &[], b"210101000000Z", b"")], &[&two], "CRL has expired");
        // Each issuer needs a list.
        let chain = [&deep, &between.certificate];
        check(&root, std::slice::from_ref(&list), &chain, "unable to get certificate CRL");
        check(&root, &[list.clone(), list_of(&between, &[2], b"", b"")], &chain, "");
        check(&root, &[list, list_of(&between, &[1], b"", b"")], &chain, "certificate revoked");
        check(
            &root,
            &[list_of(&root, &[3], b"", b""), list_of(&between, &[], b"", b"")],
            &chain,
            "certificate revoked",
        );
    }

    #[test]
    fn lists_that_do_not_count() {
        let root = Authority::root(&[]);
        let client = root.client(1);
        // Of another key with the same name.
        let forged = list_of(&Authority::root(&[]), &[], b"", b"");
        check(&root, &[forged], &[&client], "CRL signature failure");
        let silent = Authority::root(&[KeyUsagePurpose::KeyCertSign]);
        let list = list_of(&silent, &[], b"", b"");
        check(&silent, &[list], &[&silent.client(1)], "key usage does not include CRL signing");
        let able = Authority::root(&[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign]);
        check(&able, &[list_of(&able, &[], b"", b"")], &[&able.client(1)], "");
        // Extensions of an entry: 2.5.29.29, critical and not.
        let entry = |critical: &[u8]| {
            let parts: [&[u8]; 3] = [b"\x06\x03\x55\x1d\x1d", critical, b"\x04\x00"];
            tagged(SEQUENCE, &[&tagged(SEQUENCE, &parts)])
        };
        let read = |list: CertificateRevocationListDer<'_>| List::read(&list).is_ok();
        assert!(read(list_of(&root, &[1], b"", &entry(b"\x01\x01\x00"))));
        assert!(!read(list_of(&root, &[1], b"", &entry(b"\x01\x01\xff"))));
        let list = list_of(&root, &[1], b"490101000000Z", b"");
        for at in 0..list.len() {
            assert!(List::read(&list[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn several_lists_of_one_name() {
        let (root, earlier) = (Authority::root(&[]), Authority::root(&[]));
        let client = root.client(1);
        let (old, new) =
            (list_of(&root, &[], b"210101000000Z", b""), list_of(&root, &[1], b"490101000000Z", b""));
        let foreign = list_of(&earlier, &[], b"490101000000Z", b"");
        for lists in [[&old, &new], [&new, &old], [&foreign, &new], [&new, &foreign]] {
            check(&root, &lists.map(Clone::clone), &[&client], "certificate revoked");
        }
    }

    #[test]
    fn a_signature_is_verified_once() {
        let (root, other) = (Authority::root(&[]), Authority::root(&[]));
        let mut list = List::read(&list_of(&root, &[], b"", b"")).unwrap();
        let is_by = |list: &List, who: &Authority| list.is_signed_by(&Fields::of(&who.certificate).unwrap());
        assert!(!is_by(&list, &other) && is_by(&list, &root) && !is_by(&list, &other));
        list.der = Box::default();
        assert!(is_by(&list, &root) && !is_by(&list, &other));
    }

    #[test]
    fn lists_about_a_part() {
        let root = Authority::root(&[]);
        let between = root.below(3);
        let place = "http://a.example/list";
        let mut params = rcgen::CertificateParams::default();
        params.crl_distribution_points = vec![rcgen::CrlDistributionPoint { uris: vec![place.to_owned()] }];
        let named = between.issue(params).certificate;
        let other = between.client(1);
        let lists = |point: &[&[u8]]| [list_of(&root, &[], b"490101000000Z", b""), partial(&between, point)];
        let point = |place: &str| tagged(0xa0, &[&tagged(0xa0, &[&tagged(0x86, &[place.as_bytes()])])]);
        let [users, authorities]: [&[u8]; 2] = [b"\x81\x01\xff", b"\x82\x01\xff"];
        let chain = |shown| [shown, &between.certificate];
        check(&root, &lists(&[&point(place), users]), &chain(&named), "");
        check(&root, &lists(&[&point(place), authorities]), &chain(&named), "unable to get certificate CRL");
        check(&root, &lists(&[&point("http://b.example")]), &chain(&named), "unable to get certificate CRL");
        check(&root, &lists(&[&point(place)]), &chain(&other), "unable to get certificate CRL");
        check(&root, &lists(&[users]), &chain(&other), "");
        // A list about everything is better than one that is not about the certificate.
        let [of_root, of_others] = lists(&[authorities]);
        let all = [of_root, of_others, list_of(&between, &[1], b"", b"")];
        check(&root, &all, &chain(&other), "certificate revoked");
        // The root is judged by its own list.
        let users_of_root = partial(&root, &[users]);
        check(&root, &[users_of_root], &[&root.client(1)], "unable to get certificate CRL");
        // There is one for the client only.
        check(&root, &all[1..], &chain(&other), "unable to get certificate CRL");
        for not_judged in [&b"\x83\x02\x06\x40"[..], b"\x84\x01\xff", b"\x85\x01\xff", b"\x81\x05\xff"] {
            assert!(List::read(&partial(&root, &[not_judged])).is_err());
        }
    }

    #[test]
    fn several_lists_that_are_valid() {
        let root = Authority::root(&[]);
        let client = root.client(1);
        let revoked = tagged(SEQUENCE, &[&tagged(SEQUENCE, &[b"\x02\x01\x01", &time(b"240101000000Z")])]);
        let old = signed(&root, &[], [b"200101000000Z", b"490101000000Z"], &[], &[]);
        let new = signed(&root, &[], [b"240101000000Z", b"400101000000Z"], &revoked, &[]);
        let future = signed(&root, &[], [b"480101000000Z", b""], &[], &[]);
        for lists in [[&old, &new, &future], [&future, &new, &old]] {
            check(&root, &lists.map(Clone::clone), &[&client], "certificate revoked");
        }
        check(&root, std::slice::from_ref(&future), &[&client], "CRL is not yet valid");
        check(&root, &[future, old], &[&client], "");
    }

    #[test]
    fn certificates_that_webpki_does_not_judge() {
        let root = Authority::root(&[]);
        let between = root.below(7);
        let name = |certificate: &CertificateDer<'_>| path_of(&root, Some(&between), certificate, 5);
        assert_eq!(name(&root.plain(1, [b"20", b"49"])), "");
        assert_eq!(name(&between.plain(1, [b"20", b"49"])), "");
        assert_eq!(name(&between.certificate), "");
        assert_eq!(name(&root.plain(1, [b"20", b"21"])), "certificate has expired");
        assert_eq!(name(&root.plain(1, [b"48", b"49"])), "certificate is not yet valid");
        assert_eq!(
            path_of(&root, Some(&between), &between.plain(1, [b"20", b"49"]), 0),
            "unable to get issuer certificate"
        );
        let stranger = Authority::root(&[]);
        // Of the same name, but not signed.
        assert_eq!(name(&stranger.plain(1, [b"20", b"49"])), "unable to verify the first certificate");
        assert_eq!(
            path_of(&root, None, &between.plain(1, [b"20", b"49"]), 5),
            "unable to verify the first certificate"
        );
        // What a client has makes nobody an authority.
        let client = root.end(9);
        let below = client.plain(1, [b"20", b"49"]);
        assert_eq!(path_of(&root, Some(&client), &below, 5), "unspecified certificate verification error");
        let plain = root.plain(2, [b"20", b"49"]);
        check(&root, &[list_of(&root, &[1], b"", b"")], &[&plain], "");
        check(&root, &[list_of(&root, &[2], b"", b"")], &[&plain], "certificate revoked");
        check(&root, &[list_of(&between, &[], b"", b"")], &[&plain], "unable to get certificate CRL");
    }

    /// What is told of a certificate where root and intermediate are named.
    fn path_of(
        root: &Authority,
        between: Option<&Authority>,
        shown: &CertificateDer<'_>,
        depth: usize,
    ) -> &'static str {
        let named = std::iter::once(root).chain(between).map(|authority| &authority.certificate);
        let trust = Trust::new(depth, named, &[]).unwrap();
        trust.judge(std::slice::from_ref(shown), KeyUsage::client_auth()).map_or("", |reason| reason.text)
    }
}

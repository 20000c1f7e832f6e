//! Revocation lists that are about all certificates of their issuer (RFC 5280 section 5.1), version 1 among them, which webpki does not
//! read and `openssl ca -gencrl` writes unless it is told otherwise.

use std::collections::BTreeSet;

use rustls::pki_types::UnixTime;
use webpki::Error;

use super::der::{self, Fields, INTEGER, SEQUENCE, Signed};

/// `[0] EXPLICIT`, the extensions of a list.
const EXTENSIONS: u8 = 0xa0;
/// Of `KeyUsage`.
const CRL_SIGN: u8 = 6;

#[derive(Debug)]
pub(super) struct PlainList {
    der: Box<[u8]>,
    /// The content of the name.
    issuer: Box<[u8]>,
    /// 14 digits; a list may go without.
    next_update: Option<Vec<u8>>,
    /// Serial numbers of those that are revoked.
    revoked: BTreeSet<Box<[u8]>>,
}

impl PlainList {
    /// `None` where it is none, or is about a part of the issuer's certificates, or of other issuers'.
    pub(super) fn read(der: &[u8]) -> Option<Self> {
        let (_, behind) = der::element(der, SEQUENCE)?;
        let signed = Signed::of(der)?;
        let list = signed.content;
        let list = der::element(list, INTEGER).map_or(list, |(_version, list)| list);
        let (algorithm, list) = der::element(list, SEQUENCE)?;
        let (issuer, list) = der::element(list, SEQUENCE)?;
        let (_this_update, list) = der::time(list)?;
        let (next_update, list) = der::time(list).map_or((None, list), |(time, list)| (Some(time), list));
        let (mut entries, list) = der::element(list, SEQUENCE).unwrap_or((&[], list));
        let (extensions, list) = der::element(list, EXTENSIONS).unwrap_or((&[], list));
        let whole = list.is_empty() && signed.rest.is_empty() && behind.is_empty();
        if algorithm != signed.algorithm || !whole || der::critical(extensions).next().is_some() {
            return None;
        }
        let mut revoked = BTreeSet::new();
        while !entries.is_empty() {
            let (entry, others) = der::element(entries, SEQUENCE)?;
            let (serial, entry) = der::element(entry, INTEGER)?;
            let (_date, extensions) = der::time(entry)?;
            // One that is critical may say that the certificate is another issuer's.
            if der::critical(extensions).next().is_some() {
                return None;
            }
            revoked.insert(serial.into());
            entries = others;
        }
        Some(Self { der: der.into(), issuer: issuer.into(), next_update, revoked })
    }

    /// Whether it is about certificates of this issuer.
    fn is_of(&self, certificate: &Fields<'_>) -> bool {
        *self.issuer == *certificate.issuer
    }

    fn is_signed_by(&self, issuer: &Fields<'_>) -> bool {
        Signed::of(&self.der).is_some_and(|signed| signed.is_by(issuer.public_key))
    }

    /// Judges a certificate, whose issuer's own is given.
    fn judge(&self, certificate: &Fields<'_>, issuer: &Fields<'_>, now: UnixTime) -> Result<(), Error> {
        if !issuer.may(CRL_SIGN) {
            return Err(Error::IssuerNotCrlSigner);
        }
        if self.next_update.as_ref().is_some_and(|end| der::digits_of(now.as_secs() as i64) > *end) {
            return Err(Error::CrlExpired { time: now, next_update: now });
        }
        match self.revoked.contains(certificate.serial) {
            true => Err(Error::CertRevoked),
            false => Ok(()),
        }
    }
}

/// Judges a certificate, whose issuer's own is given, by that of its issuer's lists which is good for the longest time.
pub(super) fn judge(
    lists: &[PlainList],
    certificate: &Fields<'_>,
    issuer: &Fields<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    let mut named = lists.iter().filter(|list| list.is_of(certificate)).peekable();
    if named.peek().is_none() {
        return Err(Error::UnknownRevocationStatus);
    }
    // Another key may have had the same name.
    let signed = named.filter(|list| list.is_signed_by(issuer));
    // One without an end is good for ever.
    let last = signed.max_by_key(|list| (list.next_update.is_none(), &list.next_update));
    last.ok_or(Error::InvalidCrlSignatureForPublicKey)?.judge(certificate, issuer, now)
}

#[cfg(test)]
mod tests {
    use rcgen::KeyUsagePurpose;
    use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
    use webpki::KeyUsage;

    use super::*;
    use crate::tls::Trust;
    use crate::tls::testing::{ALGORITHM, Authority, tagged};

    /// A list of version 1 without `nextUpdate`, unless it is given.
    fn list_of(
        authority: &Authority,
        serials: &[u8],
        next: &[u8],
        entry: &[u8],
    ) -> CertificateRevocationListDer<'static> {
        let time = |time: &[u8]| tagged(0x17, &[time]);
        let name = tagged(SEQUENCE, &[Fields::of(&authority.certificate).unwrap().subject]);
        let entries: Vec<_> = serials
            .iter()
            .map(|serial| {
                tagged(SEQUENCE, &[&tagged(INTEGER, &[&[*serial]]), &time(b"200101000000Z"), entry])
            })
            .collect();
        let entries: Vec<_> = entries.iter().map(Vec::as_slice).collect();
        let next = if next.is_empty() { vec![] } else { time(next) };
        let revoked = if entries.is_empty() { vec![] } else { tagged(SEQUENCE, &entries) };
        let list = tagged(SEQUENCE, &[ALGORITHM, &name, &time(b"200101000000Z"), &next, &revoked]);
        authority.sign(&list).into()
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
        check(&root, &[forged], &[&client], "unspecified certificate verification error");
        let silent = Authority::root(&[KeyUsagePurpose::KeyCertSign]);
        let list = list_of(&silent, &[], b"", b"");
        check(&silent, &[list], &[&silent.client(1)], "unspecified certificate verification error");
        let able = Authority::root(&[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign]);
        check(&able, &[list_of(&able, &[], b"", b"")], &[&able.client(1)], "");
        // Extensions of an entry: 2.5.29.29, critical and not.
        let entry = |critical: &[u8]| {
            let parts: [&[u8]; 3] = [b"\x06\x03\x55\x1d\x1d", critical, b"\x04\x00"];
            tagged(SEQUENCE, &[&tagged(SEQUENCE, &parts)])
        };
        let read = |list: CertificateRevocationListDer<'_>| PlainList::read(&list).is_some();
        assert!(read(list_of(&root, &[1], b"", &entry(b"\x01\x01\x00"))));
        assert!(!read(list_of(&root, &[1], b"", &entry(b"\x01\x01\xff"))));
        let list = list_of(&root, &[1], b"490101000000Z", b"");
        for at in 0..list.len() {
            assert!(PlainList::read(&list[..at]).is_none(), "cut at {at}");
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
            "certificate chain too long"
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

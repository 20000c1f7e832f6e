//! Whom to believe: the other side's chain of certificates, judged as OpenSSL would and told in its words.

use std::cell::Cell;

use aws_lc_rs::digest;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime,
};
use webpki::{EndEntityCert, Error, KeyUsage, VerifiedPath, anchor_from_trusted_cert};

use super::crl::{self, List};
use super::der::Fields;
use super::path::{self, Known};

/// Why a certificate is not accepted: OpenSSL's number and words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    pub code: u8,
    pub text: &'static str,
}

impl Reason {
    const UNSPECIFIED: Self = Self { code: 1, text: "unspecified certificate verification error" };
    const NO_FURTHER_ISSUER: Self = Self { code: 2, text: "unable to get issuer certificate" };
    pub(super) const NO_CRL: Self = Self { code: 3, text: "unable to get certificate CRL" };
    const BAD_SIGNATURE: Self = Self { code: 7, text: "certificate signature failure" };
    pub(super) const CRL_SIGNATURE: Self = Self { code: 8, text: "CRL signature failure" };
    const NOT_YET_VALID: Self = Self { code: 9, text: "certificate is not yet valid" };
    const EXPIRED: Self = Self { code: 10, text: "certificate has expired" };
    pub(super) const CRL_NOT_YET_VALID: Self = Self { code: 11, text: "CRL is not yet valid" };
    pub(super) const CRL_EXPIRED: Self = Self { code: 12, text: "CRL has expired" };
    const SELF_SIGNED: Self = Self { code: 18, text: "self-signed certificate" };
    const SELF_SIGNED_IN_CHAIN: Self =
        Self { code: 19, text: "self-signed certificate in certificate chain" };
    const NO_ISSUER: Self = Self { code: 20, text: "unable to get local issuer certificate" };
    const UNKNOWN_ISSUER: Self = Self { code: 21, text: "unable to verify the first certificate" };
    const TOO_LONG: Self = Self { code: 22, text: "certificate chain too long" };
    pub(super) const REVOKED: Self = Self { code: 23, text: "certificate revoked" };
    const PATH_LENGTH: Self = Self { code: 25, text: "path length constraint exceeded" };
    const PURPOSE: Self = Self { code: 26, text: "unsuitable certificate purpose" };
    pub(super) const NO_CRL_SIGNER: Self = Self { code: 35, text: "key usage does not include CRL signing" };
    const NOT_PERMITTED: Self = Self { code: 47, text: "permitted subtree violation" };

    fn of(error: &Error, chain: &[CertificateDer<'_>]) -> Self {
        match error {
            Error::CertExpired { .. } => Self::EXPIRED,
            Error::CertNotValidYet { .. } => Self::NOT_YET_VALID,
            Error::RequiredEkuNotFoundContext(_) => Self::PURPOSE,
            Error::PathLenConstraintViolated => Self::PATH_LENGTH,
            Error::NameConstraintViolation => Self::NOT_PERMITTED,
            Error::MaximumPathDepthExceeded => Self::TOO_LONG,
            Error::UnknownIssuer => Self::unknown(chain),
            // It is looked for among the roots as a whole, whoever there has its name.
            _ if chain.first().is_some_and(is_self_issued) => Self::SELF_SIGNED,
            Error::InvalidSignatureForPublicKey => Self::BAD_SIGNATURE,
            _ => Self::UNSPECIFIED,
        }
    }

    /// Nothing that is trusted ends this chain.
    fn unknown(chain: &[CertificateDer<'_>]) -> Self {
        match chain {
            [one] if is_self_issued(one) => Self::SELF_SIGNED,
            [_] | [] => Self::UNKNOWN_ISSUER,
            [.., last] if is_self_issued(last) => Self::SELF_SIGNED_IN_CHAIN,
            [..] => Self::NO_ISSUER,
        }
    }

    /// It says only that nobody here knows the issuer.
    pub(super) fn is_about_issuer(self) -> bool {
        [Self::SELF_SIGNED, Self::SELF_SIGNED_IN_CHAIN, Self::NO_ISSUER, Self::UNKNOWN_ISSUER].contains(&self)
    }
}

pub(super) fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    Fields::of(certificate).is_some_and(|fields| fields.is_self_issued())
}

/// Certificates that are trusted, and how far.
#[derive(Debug, Default)]
pub struct Trust {
    /// Certificates between the one that is shown and a root, at most (`ssl_verify_depth`).
    depth: usize,
    /// Self-issued ones: as in OpenSSL only these end a chain.
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    /// Further certificates to build chains from.
    between: Vec<CertificateDer<'static>>,
    lists: Vec<List>,
    /// What of all this tells it from others.
    mark: Box<[u8]>,
}

impl Trust {
    /// # Errors
    /// A certificate or a revocation list that is none.
    pub fn new<'c>(
        depth: usize,
        certificates: impl Iterator<Item = &'c CertificateDer<'static>>,
        revoked: &[CertificateRevocationListDer<'static>],
    ) -> Result<Self, Error> {
        let mut mark = digest::Context::new(&digest::SHA256);
        mark.update(&depth.to_be_bytes());
        let certificates: Vec<_> = certificates.cloned().collect();
        for part in certificates.iter().map(|c| c.as_ref()).chain(revoked.iter().map(|crl| crl.as_ref())) {
            mark.update(&part.len().to_be_bytes());
            mark.update(part);
        }
        let mark = mark.finish();
        let (roots, between): (Vec<_>, Vec<_>) = certificates.into_iter().partition(is_self_issued);
        let lists = revoked.iter().map(|list| List::read(list)).collect::<Result<Vec<_>, _>>()?;
        lists.iter().for_each(|list| list.seek_signer(roots.iter().chain(&between)));
        let anchor = |root| Ok::<_, Error>(anchor_from_trusted_cert(root)?.to_owned());
        Ok(Self {
            depth,
            anchors: roots.iter().map(anchor).collect::<Result<_, _>>()?,
            roots,
            between,
            lists,
            mark: mark.as_ref().into(),
        })
    }

    /// What is wrong with a chain, the certificate that is judged first.
    pub fn judge(&self, chain: &[CertificateDer<'_>], usage: KeyUsage) -> Option<Reason> {
        self.verify(chain, usage).err()
    }

    /// The path that was found good, from the certificate that is judged to its root. Nothing else of a chain is to be believed.
    pub(super) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        usage: KeyUsage,
    ) -> Result<Vec<CertificateDer<'static>>, Reason> {
        // Where a path is longer than it may be: OpenSSL looks no further than that.
        let ends = Cell::new(Reason::TOO_LONG);
        let bad = |error: Error| match Reason::of(&error, chain) {
            Reason::TOO_LONG => ends.get(),
            // Its lists are looked for all the same, and what is told last counts.
            Reason::SELF_SIGNED => {
                self.ask_lists(&chain[..1], UnixTime::now()).err().unwrap_or(Reason::SELF_SIGNED)
            }
            reason => reason,
        };
        let (shown, sent) = chain.split_first().ok_or(Error::UnknownIssuer).map_err(bad)?;
        let now = UnixTime::now();
        let mut path = vec![shown.clone().into_owned()];
        // Who is trusted itself needs no issuer, whatever it says of its own purpose; its time has to be right.
        if self.lists.is_empty() && self.roots.contains(shown) {
            return path::check_time(shown, now).map(|()| path).map_err(bad);
        }
        if path::is_for(shown) {
            ends.set(Reason::NO_FURTHER_ISSUER);
            path.extend(self.known().path(shown, Some(usage), now).map_err(bad)?.into_iter().cloned());
        } else {
            let between: Vec<_> = sent.iter().chain(&self.between).cloned().collect();
            let acceptable = |path: &VerifiedPath<'_>| {
                if let Some(last) = path.intermediate_certificates().nth(self.depth) {
                    let known = self.between.contains(&last.der());
                    ends.set(if known { Reason::NO_FURTHER_ISSUER } else { Reason::NO_ISSUER });
                    return Err(Error::MaximumPathDepthExceeded);
                }
                path::check_time(self.root_of(path, now).ok_or(Error::UnknownIssuer)?, now)
            };
            let shown = EndEntityCert::try_from(shown).map_err(bad)?;
            let found = shown
                .verify_for_usage(algorithms(), &self.anchors, &between, now, usage, None, Some(&acceptable))
                .map_err(bad)?;
            path.extend(found.intermediate_certificates().map(|c| c.der().into_owned()));
            path.extend(self.root_of(&found, now).cloned());
        }
        // A root is its own issuer.
        path.dedup();
        self.ask_lists(&path, now).map(|()| path)
    }

    /// The root of a path that webpki has found. Of several with its key, any is.
    fn root_of(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Option<&CertificateDer<'static>> {
        let anchor = path.anchor();
        let is_it = |root: &&CertificateDer<'_>| {
            Fields::of(root).is_some_and(|fields| {
                fields.subject == anchor.subject.as_ref()
                    && fields.public_key.ends_with(&anchor.subject_public_key_info)
            })
        };
        path::timely(self.roots.iter().filter(is_it), now)
    }

    /// Whether each certificate of a path, the root's as well, has a list where it would be, and is not on it. As OpenSSL is used by nginx, of several
    /// errors the one nearest to the root is told.
    fn ask_lists(&self, path: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Reason> {
        if self.lists.is_empty() {
            return Ok(());
        }
        let mut last = Ok(());
        for (certificate, issuer) in path.iter().zip(path.iter().skip(1).chain(path.last())) {
            let fields = Fields::of(certificate).zip(Fields::of(issuer));
            let (certificate, issuer) = fields.ok_or(Reason::UNSPECIFIED)?;
            last = crl::judge(&self.lists, &certificate, &issuer, now).and(last);
        }
        last
    }

    /// Whom it trusts.
    pub(super) fn known(&self) -> Known<'_> {
        Known { roots: &self.roots, between: &self.between, depth: self.depth }
    }

    /// What distinguishes it from others.
    pub(super) fn mark(&self) -> &[u8] {
        &self.mark
    }
}

fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    super::signature::ALGORITHMS.all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::Authority;

    #[test]
    fn the_path_that_was_found_good() {
        let (root, other) = (Authority::root(&[]), Authority::root(&[]));
        let between = root.below(2);
        let whole = [between.client(3), between.certificate.clone(), root.certificate.clone()];
        let trust = Trust::new(5, [&root.certificate].into_iter(), &[]).unwrap();
        let path = |chain: &[CertificateDer<'static>]| trust.verify(chain, KeyUsage::client_auth());
        assert_eq!(path(&whole[..2]).unwrap(), whole);
        assert_eq!(path(&whole[2..]).unwrap(), whole[2..]);
        // An intermediate is judged by what the configuration has.
        assert_eq!(path(&whole[1..2]).unwrap(), whole[1..]);
        assert_eq!(path(&[]), Err(Reason::UNKNOWN_ISSUER));
        // What nobody who is trusted has signed leads nowhere, and is not asked about (`ssl_ocsp`), wherever the client has it.
        let forged = other.renew("between", &between, |_| {});
        let [client, between, root] = &whole;
        for sent in [[&forged, between], [between, &forged]] {
            let chain = [client, sent[0], sent[1]].map(Clone::clone);
            assert_eq!(path(&chain).unwrap(), [client, between, root].map(Clone::clone));
        }
    }

    #[test]
    fn paths_that_are_too_long_end_where_openssl_looks_no_further() {
        let root = Authority::root(&[]);
        let upper = root.below(2);
        let lower = upper.issue(Authority::params("lower", &[]));
        let chain = [lower.client(4), lower.certificate.clone(), upper.certificate.clone()];
        let code = |depth, known: &[&Authority]| {
            let trust = Trust::new(depth, known.iter().map(|one| &one.certificate), &[]).unwrap();
            trust.judge(&chain, KeyUsage::client_auth()).map(|reason| reason.code)
        };
        assert_eq!(code(2, &[&root]), None);
        // The last that is looked at came from the client, or it is known.
        for depth in [0, 1] {
            assert_eq!(code(depth, &[&root]), Some(20));
        }
        assert_eq!(code(1, &[&root, &upper]), Some(2));
        assert_eq!(code(0, &[&root, &upper]), Some(20));
        assert_eq!(code(0, &[&root, &upper, &lower]), Some(2));
    }

    #[test]
    fn nobody_has_lists_about_who_signs_for_itself() {
        let root = Authority::root(&[]);
        let name = |params: &mut rcgen::CertificateParams| {
            params.distinguished_name.push(rcgen::DnType::CommonName, "stranger");
        };
        let stranger = Authority::root_with(name);
        let list = crl::tests::list_of(&root, &[], b"", b"");
        let code = |lists: &[CertificateRevocationListDer<'static>]| {
            let trust = Trust::new(1, [&root.certificate].into_iter(), lists).unwrap();
            let reason = trust.judge(std::slice::from_ref(&stranger.certificate), KeyUsage::client_auth());
            reason.map(|reason| reason.code)
        };
        assert_eq!(code(&[]), Some(18));
        assert_eq!(code(&[list]), Some(3));
    }

    #[test]
    fn lists_are_read_once() {
        let roots = [Authority::root(&[]), Authority::root(&[])];
        let lists = roots.each_ref().map(|root| crl::tests::list_of(root, &[], b"", b""));
        let trust = Trust::new(1, roots.iter().map(|root| &root.certificate), &lists).unwrap();
        assert!(trust.lists.iter().all(|list| list.signer.get().is_some()));
    }
}

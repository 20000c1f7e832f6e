//! Whom to believe: the other side's chain of certificates, judged as OpenSSL would and told in its words.

use std::cmp::Ordering;

use aws_lc_rs::digest;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime,
};
use webpki::{
    Cert, CertRevocationList, EndEntityCert, Error, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath, anchor_from_trusted_cert,
};

use super::crl::PlainList;
use super::der::Fields;

/// Why a certificate is not accepted: OpenSSL's number and words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    pub code: u8,
    pub text: &'static str,
}

impl Reason {
    const UNSPECIFIED: Self = Self { code: 1, text: "unspecified certificate verification error" };
    const NO_CRL: Self = Self { code: 3, text: "unable to get certificate CRL" };
    const BAD_SIGNATURE: Self = Self { code: 7, text: "certificate signature failure" };
    const NOT_YET_VALID: Self = Self { code: 9, text: "certificate is not yet valid" };
    const EXPIRED: Self = Self { code: 10, text: "certificate has expired" };
    const CRL_EXPIRED: Self = Self { code: 12, text: "CRL has expired" };
    const SELF_SIGNED: Self = Self { code: 18, text: "self-signed certificate" };
    const SELF_SIGNED_IN_CHAIN: Self =
        Self { code: 19, text: "self-signed certificate in certificate chain" };
    const NO_ISSUER: Self = Self { code: 20, text: "unable to get local issuer certificate" };
    const UNKNOWN_ISSUER: Self = Self { code: 21, text: "unable to verify the first certificate" };
    const TOO_LONG: Self = Self { code: 22, text: "certificate chain too long" };
    const REVOKED: Self = Self { code: 23, text: "certificate revoked" };
    const PATH_LENGTH: Self = Self { code: 25, text: "path length constraint exceeded" };
    const PURPOSE: Self = Self { code: 26, text: "unsuitable certificate purpose" };
    const NOT_PERMITTED: Self = Self { code: 47, text: "permitted subtree violation" };

    fn of(error: &Error, chain: &[CertificateDer<'_>]) -> Self {
        match error {
            Error::CertExpired { .. } => Self::EXPIRED,
            Error::CertNotValidYet { .. } => Self::NOT_YET_VALID,
            Error::CertRevoked => Self::REVOKED,
            Error::UnknownRevocationStatus => Self::NO_CRL,
            Error::CrlExpired { .. } => Self::CRL_EXPIRED,
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

fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    Fields::of(certificate).is_some_and(|fields| fields.is_self_issued())
}

/// Certificates that are trusted, and how far.
#[derive(Debug)]
pub struct Trust {
    /// Certificates between the one that is shown and a root, at most (`ssl_verify_depth`).
    depth: usize,
    /// Self-issued ones: as in OpenSSL only these end a chain.
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    /// Further certificates to build chains from.
    between: Vec<CertificateDer<'static>>,
    revoked: Vec<CertRevocationList<'static>>,
    /// Further lists, which webpki does not read.
    plain: Vec<PlainList>,
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
        let anchor = |root| Ok::<_, Error>(anchor_from_trusted_cert(root)?.to_owned());
        let mut plain = vec![];
        let mut lists = vec![];
        for crl in revoked {
            match PlainList::read(crl) {
                Some(list) => plain.push(list),
                None => lists.push(OwnedCertRevocationList::from_der(crl)?.into()),
            }
        }
        Ok(Self {
            depth,
            anchors: roots.iter().map(anchor).collect::<Result<_, _>>()?,
            roots,
            between,
            revoked: lists,
            plain,
            mark: mark.as_ref().into(),
        })
    }

    /// What is wrong with a chain, the certificate that is judged first.
    pub fn judge(&self, chain: &[CertificateDer<'_>], usage: KeyUsage) -> Option<Reason> {
        self.verify(chain, usage).err().map(|error| Reason::of(&error, chain))
    }

    fn verify(&self, chain: &[CertificateDer<'_>], usage: KeyUsage) -> Result<(), Error> {
        let (shown, sent) = chain.split_first().ok_or(Error::UnknownIssuer)?;
        let now = UnixTime::now();
        // Who is trusted itself needs no issuer, whatever it says of its own purpose; its time has to be right.
        if self.revoked.is_empty() && self.plain.is_empty() && self.roots.contains(shown) {
            return match Fields::of(shown).and_then(|fields| fields.time_at(now.as_secs() as i64)) {
                Some(Ordering::Equal) => Ok(()),
                Some(Ordering::Less) => Err(Error::CertNotValidYet { time: now, not_before: now }),
                Some(Ordering::Greater) => Err(Error::CertExpired { time: now, not_after: now }),
                None => Err(Error::BadDer),
            };
        }
        let between: Vec<_> = sent.iter().chain(&self.between).cloned().collect();
        let acceptable = |path: &VerifiedPath<'_>| match path.intermediate_certificates().count() {
            count if count <= self.depth => self.ask_plain_lists(path, now),
            _ => Err(Error::MaximumPathDepthExceeded),
        };
        let lists: Vec<_> = self.revoked.iter().collect();
        let unknown = match self.plain.is_empty() {
            true => UnknownStatusPolicy::Deny,
            false => UnknownStatusPolicy::Allow,
        };
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|builder| {
            let builder = builder.with_expiration_policy(ExpirationPolicy::Enforce);
            builder.with_status_policy(unknown).build()
        });
        EndEntityCert::try_from(shown)?
            .verify_for_usage(
                algorithms(),
                &self.anchors,
                &between,
                now,
                usage,
                revocation,
                Some(&acceptable),
            )
            .map(drop)
    }

    /// Where there are lists that webpki does not read: whether each certificate of a path is on none, and has one
    /// where it would be.
    fn ask_plain_lists(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), Error> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let anchor = path.anchor();
        let root = self.roots.iter().find(|root| {
            Fields::of(root).is_some_and(|fields| {
                fields.subject == anchor.subject.as_ref()
                    && fields.public_key.ends_with(&anchor.subject_public_key_info)
            })
        });
        let between: Vec<_> = path.intermediate_certificates().collect();
        let issuers = between.iter().map(|c| c.der()).chain(root.cloned());
        let judged = std::iter::once(&**path.end_entity()).chain(between.iter().copied());
        for (certificate, issuer) in judged.zip(issuers) {
            match self.plain.iter().find(|list| list.is_of(certificate)) {
                Some(list) => list.judge(certificate, &issuer, now)?,
                None if self.is_on_wide_list(certificate) => {}
                None => return Err(Error::UnknownRevocationStatus),
            }
        }
        Ok(())
    }

    /// Whether webpki has asked a list that is about everything of its issuer.
    fn is_on_wide_list(&self, certificate: &Cert<'_>) -> bool {
        let mut lists = self.revoked.iter();
        lists.any(|list| list.issuer() == certificate.issuer() && list.issuing_distribution_point().is_none())
    }

    /// What distinguishes it from others.
    pub(super) fn mark(&self) -> &[u8] {
        &self.mark
    }
}

fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    super::signature::ALGORITHMS.all
}

//! Paths of certificates that webpki takes for nobody's own, and OpenSSL does: of version 1, as `openssl x509 -req` makes them unless it
//! is told otherwise, and of authorities. Their issuers are those that the configuration has, not what is sent along.

use std::cmp::Ordering;

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{Error, KeyUsage, RequiredEkuNotFoundContext};

use super::der::{Fields, Signed};

/// Of `KeyUsage`.
const CERT_SIGN: u8 = 5;

/// Whether a certificate is to be judged here.
pub(super) fn is_for(certificate: &[u8]) -> bool {
    Fields::of(certificate).is_some_and(|fields| !fields.is_version_3() || fields.authority().is_some())
}

/// Whether it is the time of a certificate.
pub(super) fn check_time(certificate: &[u8], now: UnixTime) -> Result<(), Error> {
    let fields = Fields::of(certificate).ok_or(Error::BadDer)?;
    match fields.time_at(now.as_secs() as i64).ok_or(Error::BadDerTime)? {
        Ordering::Equal => Ok(()),
        Ordering::Less => Err(Error::CertNotValidYet { time: now, not_before: now }),
        Ordering::Greater => Err(Error::CertExpired { time: now, not_after: now }),
    }
}

/// Of certificates that would do the first whose time it is, else the first.
pub(super) fn timely<'c>(
    mut some: impl Iterator<Item = &'c CertificateDer<'static>>,
    now: UnixTime,
) -> Option<&'c CertificateDer<'static>> {
    let first = some.next()?;
    std::iter::once(first).chain(some).find(|c| check_time(c, now).is_ok()).or(Some(first))
}

/// Whom to trust.
pub(super) struct Known<'t> {
    pub roots: &'t [CertificateDer<'static>],
    /// They end no path.
    pub between: &'t [CertificateDer<'static>],
    /// Certificates of the latter kind in a path, at most.
    pub depth: usize,
}

impl<'t> Known<'t> {
    /// The issuers of a certificate, its own first, a root last; `usage` is asked of all but the root.
    pub(super) fn path(
        &self,
        shown: &[u8],
        usage: Option<KeyUsage>,
        now: UnixTime,
    ) -> Result<Vec<&'t CertificateDer<'static>>, Error> {
        let fields = Fields::of(shown).ok_or(Error::BadDer)?;
        check_time(shown, now)?;
        if !fields.is_plain() {
            return Err(Error::UnsupportedCriticalExtension);
        }
        let purpose = usage.map(|usage| oid(usage.oid_values()));
        let is_meant = |fields: &Fields<'_>| purpose.as_ref().is_none_or(|p| fields.is_meant_for(p));
        if let Some(usage) = usage.filter(|_| !is_meant(&fields)) {
            let context = RequiredEkuNotFoundContext { required: usage, present: vec![] };
            return Err(Error::RequiredEkuNotFoundContext(context));
        }
        // Names are not compared here, so none is permitted; they do not matter of who has no other use than to sign answers.
        let may_name = |fields: &Fields<'_>| usage.is_none() || !fields.constrains_names();
        let mut path = vec![];
        let mut below = shown;
        loop {
            if let Some(root) = timely(self.roots.iter().filter(|root| issued(root, below)), now) {
                check_time(root, now)?;
                if !may_name(&Fields::of(root).ok_or(Error::BadDer)?) {
                    return Err(Error::NameConstraintViolation);
                }
                path.push(root);
                return Ok(path);
            }
            let issuer = timely(self.between.iter().filter(|c| issued(c, below)), now);
            let issuer = issuer.ok_or(Error::UnknownIssuer)?;
            let fields = Fields::of(issuer).ok_or(Error::BadDer)?;
            check_time(issuer, now)?;
            if !may_name(&fields) {
                return Err(Error::NameConstraintViolation);
            }
            if !fields.is_plain() {
                return Err(Error::UnsupportedCriticalExtension);
            }
            if !fields.may(CERT_SIGN) || !is_meant(&fields) {
                return Err(Error::EndEntityUsedAsCa);
            }
            match fields.authority() {
                None => return Err(Error::EndEntityUsedAsCa),
                Some(most) if most < path.len() as u64 => return Err(Error::PathLenConstraintViolated),
                Some(_) => {}
            }
            path.push(issuer);
            // A circle ends here, too.
            if path.len() > self.depth {
                return Err(Error::MaximumPathDepthExceeded);
            }
            below = issuer;
        }
    }
}

/// The issuer of a certificate among others.
pub fn issuer_of<'c>(
    certificate: &[u8],
    mut others: impl Iterator<Item = &'c CertificateDer<'static>>,
) -> Option<&'c CertificateDer<'static>> {
    others.find(|other| issued(other, certificate))
}

/// Whether a certificate is an issuer's.
pub(super) fn issued(issuer: &[u8], certificate: &[u8]) -> bool {
    let (Some(issuer), Some(fields)) = (Fields::of(issuer), Fields::of(certificate)) else { return false };
    issuer.subject == fields.issuer && Signed::of(certificate).is_some_and(|s| s.is_by(issuer.public_key))
}

/// An identifier of small numbers as it is encoded.
fn oid(mut values: impl Iterator<Item = usize>) -> Vec<u8> {
    let first = values.next().unwrap_or(0) * 40 + values.next().unwrap_or(0);
    std::iter::once(first).chain(values).map(|n| n as u8).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, GeneralSubtree, NameConstraints};

    use super::*;
    use crate::tls::Trust;
    use crate::tls::testing::Authority;

    #[track_caller]
    fn check(named: &[&CertificateDer<'static>], shown: [&CertificateDer<'static>; 2], expected: &str) {
        let trust = Trust::new(5, named.iter().copied(), &[]).unwrap();
        // One that is judged here, and one that webpki judges.
        for shown in shown {
            let reason = trust.judge(std::slice::from_ref(shown), KeyUsage::client_auth());
            assert_eq!(reason.map_or("", |reason| reason.text), expected);
        }
    }

    fn expired(params: &mut CertificateParams) {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    }

    #[test]
    fn roots_that_have_expired() {
        let root = Authority::root(&[]);
        let (plain, client) = (root.plain(1, [b"20", b"49"]), root.client(1));
        let past = root.renew("root", &root, expired);
        check(&[&past], [&plain, &client], "certificate has expired");
        // Whatever the order, the one that is renewed counts.
        check(&[&past, &root.certificate], [&plain, &client], "");
        check(&[&root.certificate, &past], [&plain, &client], "");
    }

    #[test]
    fn issuers_that_are_renewed() {
        let root = Authority::root(&[]);
        let between = root.below(2);
        let (plain, client) = (between.plain(1, [b"20", b"49"]), between.client(1));
        let past = root.renew("between", &between, expired);
        check(&[&root.certificate, &past], [&plain, &client], "certificate has expired");
        check(&[&root.certificate, &past, &between.certificate], [&plain, &client], "");
    }

    #[test]
    fn names_that_are_constrained() {
        let constrained = |params: &mut CertificateParams| {
            let permitted_subtrees = vec![GeneralSubtree::DnsName("a.example".to_owned())];
            params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: vec![] });
        };
        let root = Authority::root_with(constrained);
        let mut params = CertificateParams::new(["b.example".to_owned()]).unwrap();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let client = root.issue(params.clone()).certificate;
        let violation = "permitted subtree violation";
        check(&[&root.certificate], [&root.plain(1, [b"20", b"49"]), &client], violation);
        let root = Authority::root(&[]);
        let between = root.below(2);
        let narrow = root.renew("between", &between, constrained);
        let client = between.issue(params).certificate;
        check(&[&root.certificate, &narrow], [&between.plain(1, [b"20", b"49"]), &client], violation);
    }
}

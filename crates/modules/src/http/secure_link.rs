//! `ngx_http_secure_link_module`: links that carry a hash of a secret, and an end of their time.

use weir_engine::contract::{Install, Variable};
use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Template, base64};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Fault, Merge, value};
use weir_syntax::Diagnostic;

use weir_engine::md5::Md5;

pub struct SecureLink;

type D = Directive<SecureLink>;

impl Module for SecureLink {
    const NAME: &'static str = "http_secure_link";
    type Main = ();
    type Scope = Links;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("secure_link", Contexts::SCOPES, Takes::ONE, |links, call| {
            links.link.put_with(call, |call| call.template(0))
        }),
        D::scope("secure_link_md5", Contexts::SCOPES, Takes::ONE, |links, call| {
            links.md5.put_with(call, |call| call.template(0))
        }),
        D::scope("secure_link_secret", Contexts::SCOPES, Takes::ONE, |links, call| {
            links.secret.put_with(call, |call| Ok(call.arg(0).into()))
        }),
    ];
}

/// How links of one level are checked.
#[derive(Clone, Debug, Default)]
pub struct Links {
    link: Setting<weir_ir::Template>,
    md5: Setting<weir_ir::Template>,
    secret: Setting<Box<[u8]>>,
}

impl Conf for Links {
    fn inherit(&mut self, outer: &Self, merge: &mut Merge<'_>) -> Result<(), Fault> {
        if self.secret.is_set() {
            if self.link.is_set() || self.md5.is_set() {
                return Err(merge.fail(
                    "\"secure_link_secret\" cannot be mixed with \"secure_link\" and \"secure_link_md5\"",
                ));
            }
            return Ok(());
        }
        self.link.inherit(&outer.link);
        self.md5.inherit(&outer.md5);
        if !self.link.is_set() && !self.md5.is_set() {
            self.secret.inherit(&outer.secret);
        }
        Ok(())
    }
}

/// The check of a level, ready.
enum Checking {
    Secret(Box<[u8]>),
    Md5 { link: Template, of: Template },
}

impl Install for SecureLink {
    const VARIABLES: &'static [Variable] =
        &[Variable::new("secure_link", secure_link), Variable::new("secure_link_expires", expires)];

    fn install(links: &Links, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let checking = match (links.secret.get(), links.link.get(), links.md5.get()) {
            (Some(secret), _, _) => Checking::Secret(secret.clone()),
            (None, Some(link), Some(md5)) => {
                Checking::Md5 { link: plan.template(link), of: plan.template(md5) }
            }
            (None, _, _) => return Ok(()),
        };
        plan.handlers.attach(checking);
        Ok(())
    }
}

/// What was found when `$secure_link` was first asked for. As in nginx it stays so wherever the request goes on.
struct Found(Option<Vec<u8>>);

fn secure_link(x: &Exchange, out: &mut Vec<u8>) -> bool {
    if x.remembered::<Found>().is_none() {
        x.remember(Found(check(x)));
    }
    let found = x.remembered::<Found>();
    let value = found.as_ref().and_then(|found| found.0.as_deref());
    out.extend_from_slice(value.unwrap_or_default());
    value.is_some()
}

/// The checked link, or whether it is right.
fn check(x: &Exchange) -> Option<Vec<u8>> {
    match x.location().attached::<Checking>()? {
        Checking::Secret(secret) => rest_of_link(x.head.unparsed_uri(), secret).map(<[u8]>::to_vec),
        Checking::Md5 { link, of } => {
            let now = x.reactor.clock().unix_secs();
            let valid = verify(&link.value(x), now, || of.value(x))?;
            Some(if valid { b"1".to_vec() } else { b"0".to_vec() })
        }
    }
}

/// What the link says of its end, whether or not its hash is right.
fn expires(x: &Exchange, out: &mut Vec<u8>) -> bool {
    let Some(Checking::Md5 { link, .. }) = x.location().attached::<Checking>() else { return false };
    match split(&link.value(x)) {
        Some((_, Some((text, _)))) => {
            out.extend_from_slice(text);
            true
        }
        Some((_, None)) | None => false,
    }
}

/// Takes `hash[,expires]` apart, the end in seconds since the epoch; `None` where that is no time.
fn split(link: &[u8]) -> Option<(&[u8], Option<(&[u8], u64)>)> {
    match memchr::memchr(b',', link) {
        None => Some((link, None)),
        Some(at) => {
            let text = &link[at + 1..];
            let time = value::number(text).filter(|time| *time > 0)?;
            Some((&link[..at], Some((text, time))))
        }
    }
}

/// `None` for a wrong hash, else whether the link's time is not over.
fn verify(link: &[u8], now: u64, hashed: impl FnOnce() -> Vec<u8>) -> Option<bool> {
    let (hash, end) = split(link)?;
    if hash.len() > 24 {
        return None;
    }
    let standard: Vec<u8> = hash
        .iter()
        .map(|byte| match byte {
            b'-' => b'+',
            b'_' => b'/',
            byte => *byte,
        })
        .collect();
    let given = base64(&standard).filter(|given| given.len() == 16)?;
    let expected = Md5::of(&hashed());
    aws_lc_rs::constant_time::verify_slices_are_equal(&given, &expected).ok()?;
    Some(end.is_none_or(|(_, time)| time >= now))
}

/// Of `/prefix/hash/link` the link, where the hash is that of link and secret.
fn rest_of_link<'u>(uri: &'u [u8], secret: &[u8]) -> Option<&'u [u8]> {
    let after_prefix = uri.get(1..).and_then(|rest| memchr::memchr(b'/', rest).map(|at| &rest[at + 1..]))?;
    let slash = memchr::memchr(b'/', after_prefix)?;
    let (hash, link) = (&after_prefix[..slash], &after_prefix[slash + 1..]);
    if hash.len() != 32 || link.is_empty() {
        return None;
    }
    let mut given = [0u8; 16];
    for (byte, pair) in given.iter_mut().zip(hash.as_chunks::<2>().0) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    let expected = Md5::default().with(link).with(secret).finish();
    aws_lc_rs::constant_time::verify_slices_are_equal(&given, &expected).ok()?;
    Some(link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Site, check_conf};

    #[test]
    fn messages() {
        check_conf(
            "secure_link $arg_a; secure_link_md5 x; server { location / { secure_link_secret y; } }",
            "",
        );
        check_conf(
            "server { location / { secure_link_secret y; secure_link $arg_a; } }",
            "\"secure_link_secret\" cannot be mixed with \"secure_link\" and \"secure_link_md5\"",
        );
    }

    #[track_caller]
    fn check(conf: &str, path: &str, expected: &str) {
        let site = Site::new(&format!(
            "server {{ listen 80; location / {{ {conf} answer 200 a [$secure_link]$secure_link_expires; }} }}"
        ));
        let response = site.get(path, "");
        assert_eq!(response.split_once("\r\n\r\n").unwrap().1, expected, "{path}");
    }

    #[test]
    fn links() {
        // md5("secret") is 5ebe2294ecd0e0f08eab7690d2a6ee69.
        let conf = "secure_link $arg_m,$arg_e; secure_link_md5 secret;";
        check(conf, "/?m=Xr4ilOzQ4PCOq3aQ0qbuaQ&e=9999999999", "[1]9999999999");
        check(conf, "/?m=Xr4ilOzQ4PCOq3aQ0qbuaQ==&e=1", "[0]1");
        check(conf, "/?m=Xr4ilOzQ4PCOq3aQ0qbuaA&e=9999999999", "[]9999999999");
        check(conf, "/?m=Xr4ilOzQ4PCOq3aQ0qbuaQ&e=x", "[]");
        check("secure_link $arg_m; secure_link_md5 secret;", "/?m=Xr4ilOzQ4PCOq3aQ0qbuaQ", "[1]");
        check("", "/", "[]");
        // md5("linksecret")
        let hash: String = Md5::of(b"linksecret").iter().map(|b| format!("{b:02x}")).collect();
        check("secure_link_secret secret;", &format!("/p/{hash}/link"), "[link]");
        check("secure_link_secret secret;", &format!("/p/{hash}/link2"), "[]");
        check("secure_link_secret secret;", "/p/x/link", "[]");
    }

    #[test]
    fn what_was_found_stays() {
        let site = Site::new(
            "server { listen 80; location /p { secure_link_secret secret; if ($secure_link) { rewrite ^ /elsewhere; } }
             location /elsewhere { answer 200 a [$secure_link]; } }",
        );
        let hash: String = Md5::of(b"linksecret").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(site.short(&format!("/p/{hash}/link")), "200 [link]");
    }
}

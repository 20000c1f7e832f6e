//! `ngx_http_auth_basic_module`: names and passwords (RFC 7617) from a file that is read at each request.

use std::io;
use std::sync::Arc;

use weir_engine::contract::{Check, Flow, Install, Step};
use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Template, basic_credentials};
use weir_engine::http1::Known;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Fault, Merge};
use weir_syntax::{Diagnostic, Level};

use crate::crypt;

pub struct AuthBasic;

type D = Directive<AuthBasic>;

const SCOPES_LIMIT: Contexts = Contexts::SCOPES.or(Contexts::LIMIT_EXCEPT);

impl Module for AuthBasic {
    const NAME: &'static str = "http_auth_basic";
    type Main = ();
    type Scope = Realm;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("auth_basic", SCOPES_LIMIT, Takes::ONE, |realm, call| {
            realm.realm.put_with(call, |call| call.template(0))
        }),
        D::scope("auth_basic_user_file", SCOPES_LIMIT, Takes::ONE, |realm, call| {
            realm.users.put_with(call, |call| Ok((call.template(0)?, Arc::clone(&call.prefixes().conf))))
        }),
    ];
}

/// Who may enter one level.
#[derive(Clone, Debug, Default)]
pub struct Realm {
    realm: Setting<weir_ir::Template>,
    /// The file, and the folder that a relative path starts from.
    users: Setting<(weir_ir::Template, Arc<str>)>,
}

impl Conf for Realm {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.realm.inherit(&outer.realm);
        self.users.inherit(&outer.users);
        Ok(())
    }
}

impl Install for AuthBasic {
    fn install(realm: &Realm, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let (Some(name), Some((users, folder))) = (realm.realm.get(), realm.users.get()) else {
            return Ok(());
        };
        if name.as_literal() == Some(b"off") {
            return Ok(());
        }
        let asking =
            Asking { realm: plan.template(name), users: plan.template(users), folder: Arc::clone(folder) };
        plan.handlers.access.push(Box::new(asking));
        Ok(())
    }
}

struct Asking {
    realm: Template,
    users: Template,
    folder: Arc<str>,
}

impl Check for Asking {
    fn check<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        let realm = self.realm.value(x);
        if realm == b"off" {
            return Step::Now(Flow::Decline);
        }
        let credentials = x.header(Known::Authorization).and_then(basic_credentials);
        let named = credentials.and_then(|c| memchr::memchr(b':', &c).filter(|at| *at > 0).map(|at| (c, at)));
        let Some((credentials, colon)) = named else {
            x.log(Level::Info, "no user/password was provided for basic authentication");
            return Step::Now(refuse(x, &realm));
        };
        let path = self.path(x);
        let stored = match read(&path) {
            Ok(file) => password_of(&file, &credentials[..=colon]).map(<[u8]>::to_vec),
            Err(error) => return Step::Now(unreadable(x, &path, &error)),
        };
        let user = String::from_utf8_lossy(&credentials[..colon]).into_owned();
        let Some(stored) = stored else {
            let path = String::from_utf8_lossy(&path).into_owned();
            x.log(Level::Error, format_args!("user \"{user}\" was not found in \"{path}\""));
            return Step::Now(refuse(x, &realm));
        };
        if !crypt::is_slow(&stored) {
            let verdict = crypt::verify(&credentials[colon + 1..], &stored);
            return Step::Now(decide(x, verdict, &user, &realm));
        }
        Step::Later(Box::pin(async move {
            let work = move || crypt::verify(&credentials[colon + 1..], &stored);
            // A panic in there lets nobody in.
            let verdict = tokio::task::spawn_blocking(work).await.unwrap_or(Ok(false));
            decide(x, verdict, &user, &realm)
        }))
    }
}

impl Asking {
    fn path(&self, x: &Exchange) -> Vec<u8> {
        let path = self.users.value(x);
        if path.first() == Some(&b'/') { path } else { [self.folder.as_bytes(), &path].concat() }
    }
}

fn read(path: &[u8]) -> io::Result<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    std::fs::read(std::ffi::OsStr::from_bytes(path))
}

fn unreadable(x: &Exchange, path: &[u8], error: &io::Error) -> Flow {
    let path = String::from_utf8_lossy(path);
    // A directory opens, but cannot be read.
    if error.kind() == io::ErrorKind::IsADirectory {
        x.log_error(Level::Crit, Some(error), format_args!("read() \"{path}\" failed"));
        return Flow::Answer(500);
    }
    let (level, code) =
        if error.kind() == io::ErrorKind::NotFound { (Level::Error, 403) } else { (Level::Crit, 500) };
    x.log_error(level, Some(error), format_args!("open() \"{path}\" failed"));
    Flow::Answer(code)
}

fn decide(x: &mut Exchange, verdict: Result<bool, crypt::Unsupported>, user: &str, realm: &[u8]) -> Flow {
    match verdict {
        Ok(true) => Flow::Pass,
        Ok(false) => {
            x.log(Level::Error, format_args!("user \"{user}\": password mismatch"));
            refuse(x, realm)
        }
        Err(crypt::Unsupported(form)) => {
            x.log(
                Level::Error,
                format_args!("user \"{user}\": passwords of the form \"{form}\" are not supported"),
            );
            refuse(x, realm)
        }
    }
}

fn refuse(x: &mut Exchange, realm: &[u8]) -> Flow {
    x.answer_headers.push(b"WWW-Authenticate", &[b"Basic realm=\"", realm, b"\""].concat());
    Flow::Answer(401)
}

/// The stored password of a user in a file of lines `user:password[:…]`; `user` ends with the colon.
///
/// As in nginx, a line that ends within the user's name hides the line after it.
fn password_of<'f>(file: &'f [u8], user: &[u8]) -> Option<&'f [u8]> {
    let mut rest = file;
    loop {
        let skip = match rest.first()? {
            b'\n' => {
                rest = &rest[1..];
                continue;
            }
            b'#' | b'\r' => 1,
            _ => match rest.iter().zip(user).position(|(line, user)| line != user) {
                Some(at) => at + 1,
                None => {
                    let password = rest.get(user.len()..)?;
                    let end = password.iter().position(|b| matches!(b, b'\n' | b'\r' | b':'));
                    return Some(&password[..end.unwrap_or(password.len())]);
                }
            },
        };
        let next = memchr::memchr(b'\n', &rest[skip..])?;
        rest = &rest[skip + next + 1..];
    }
}

#[cfg(test)]
mod tests {
    use weir_testkit::until;

    use super::*;
    use crate::testing::{Site, check_conf, code, header};

    #[track_caller]
    fn check_file(file: &str, expected: Option<&str>) {
        let got = password_of(file.as_bytes(), b"user:").map(String::from_utf8_lossy);
        assert_eq!(got.as_deref(), expected, "{file:?}");
    }

    #[test]
    fn files() {
        check_file("user:a\n", Some("a"));
        check_file("user:a", Some("a"));
        check_file("user:", Some(""));
        check_file("user:a:comment\n", Some("a"));
        check_file("user:a\r\n", Some("a"));
        check_file("\n\n#user:x\nother:b\nuser:a\nuser:c\n", Some("a"));
        check_file("users:b\nuser:a\n", Some("a"));
        check_file("use\nuser:a\n", None);
        check_file("use", None);
        check_file("user", None);
        check_file("", None);
    }

    #[test]
    fn messages() {
        check_conf("auth_basic x; auth_basic_user_file y; server { location / { auth_basic off; } }", "");
        check_conf("auth_basic x; auth_basic y;", "\"auth_basic\" directive is duplicate");
    }

    const CONF: &str = "server { listen 80; auth_basic_user_file %DIR%/users; auth_basic 'a realm';
        location / { answer 200 text/plain $remote_user; }
        location /off { auth_basic off; answer 200 text/plain ok; }
        location /var { auth_basic $arg_realm; answer 200 text/plain ok; }
        location /nix { auth_basic_user_file nix; answer 200 text/plain ok; }
        location /any { satisfy any; allow 127.0.0.1; deny all; answer 200 text/plain ok; }
        location /page { error_page 401 /page401; answer 200 text/plain ok; }
        location /page401 { auth_basic off; answer 200 text/plain page; }
    }";

    #[track_caller]
    fn check(path: &str, credentials: &str, expected: &str, error: &str) {
        let users = "plain:{PLAIN}secret\nslow:$5$saltstring$C3o4O1TC6aRHF4FI.QSZMXtHbaj2gSXr4sUc/3NcUi.\n\
            fish:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n\
            old:xx\nempty:\nnew:$7$CU..../....abcdefgh$XWs9HxtpA2\n";
        let site = Site::new(CONF).with("users", users);
        let headers = if credentials.is_empty() { "" } else { &format!("Authorization: {credentials}\r\n") };
        let response = site.get_from("192.0.2.2:1", path, headers);
        assert_eq!(code(&response), expected, "{path} {credentials}");
        assert_eq!(header(&response, "WWW-Authenticate").is_some(), expected == "401");
        assert!(site.log().concat().starts_with(error), "{:?}", site.log());
        assert_eq!(site.log().is_empty(), error.is_empty());
    }

    #[test]
    fn requests() {
        let none = "no user/password was provided for basic authentication";
        // plain:secret, plain:wrong, slow:secret, fish:secret, old:xx, empty:, new:secret, nobody:x, without colon
        let (plain, wrong) = ("Basic cGxhaW46c2VjcmV0", "basic cGxhaW46d3Jvbmc=");
        check("/", plain, "200", "");
        check("/", wrong, "401", "user \"plain\": password mismatch");
        check("/", "Basic c2xvdzpzZWNyZXQ=", "200", "");
        check("/", "Basic ZmlzaDpzZWNyZXQ=", "200", "");
        check("/", "Basic b2xkOnh4", "401", "user \"old\": password mismatch");
        check("/", "Basic ZW1wdHk6", "401", "user \"empty\": password mismatch");
        let form = "user \"new\": passwords of the form \"$7$\" are not supported";
        check("/", "Basic bmV3OnNlY3JldA==", "401", form);
        check("/", "Basic bm9ib2R5Ong=", "401", "user \"nobody\" was not found in \"/");
        check("/", "Basic cGxhaW4=", "401", none);
        check("/", "Bearer x", "401", none);
        check("/", "", "401", none);
        check("/off", "", "200", "");
        check("/var?realm=off", "", "200", "");
        check("/var?realm=b", "", "401", none);
        check("/nix", plain, "403", "open() \"/");
        check("/any", plain, "200", "");
        check("/any", "", "401", none);
    }

    #[test]
    fn realms() {
        let site = Site::new(CONF).with("users", "");
        let realm = |path: &str| header(&site.get(path, ""), "WWW-Authenticate").map(str::to_owned);
        assert_eq!(realm("/").as_deref(), Some("Basic realm=\"a realm\""));
        assert_eq!(realm("/var?realm=b").as_deref(), Some("Basic realm=\"b\""));
        assert_eq!(realm("/any"), None, "the address lets this one in");
        assert_eq!(realm("/page").as_deref(), Some("Basic realm=\"a realm\""), "an error page has it too");
    }

    #[track_caller]
    fn check_delay(path: &str, password: &str, expected: (&str, &str)) {
        // On a busy machine one may be later than that.
        until(&format!("{path} {password} gets {expected:?}"), || {
            let site = Site::new(
                "log_format t $request_time; access_log logs/t t; server { auth_delay 2s; auth_basic x; \
             auth_basic_user_file %DIR%/users; location / { answer 200 text/plain ok; } \
             location /any { satisfy any; deny all; answer 200 text/plain ok; } \
             location /0 { auth_delay 0; answer 200 text/plain ok; } }",
            )
            .with("users", "plain:{PLAIN}secret\n");
            let response = site.get(path, &format!("Authorization: Basic {password}\r\n"));
            let time = site.read("logs/t");
            let delayed = site.log().contains(&"delaying unauthorized request".to_owned());
            assert_eq!(delayed, expected.1 != "0", "{path} {password}");
            (code(&response), &time[..1]) == expected
        });
    }

    #[test]
    fn delays() {
        let (good, bad) = ("cGxhaW46c2VjcmV0", "cGxhaW46d3Jvbmc=");
        check_delay("/", good, ("200", "0"));
        check_delay("/", bad, ("401", "2"));
        check_delay("/any", bad, ("401", "2"));
        check_delay("/0", bad, ("401", "0"));
    }
}

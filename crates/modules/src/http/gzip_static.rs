//! `ngx_http_gzip_static_module`: files that lie beside the asked one compressed, `x.gz` for `x`.

use weir_engine::contract::{Content, Flow, Install, Step};
use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Response};
use weir_engine::http1::Method;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Fault, Merge};
use weir_syntax::{Diagnostic, Level};

use super::files::Reach;
use super::gzip_ok::{self, Acceptance};
use super::static_files;

pub struct GzipStatic;

type D = Directive<GzipStatic>;

impl Module for GzipStatic {
    const NAME: &'static str = "http_gzip_static";
    type Main = ();
    type Scope = Settings;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[D::scope("gzip_static", Contexts::SCOPES, Takes::ONE, |s, c| {
            s.when.one_of(c, &[("off", When::Off), ("on", When::Accepted), ("always", When::Always)])
        })];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Off,
    /// Where the client takes gzip.
    Accepted,
    Always,
}

/// What a level says of it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    when: Setting<When>,
}

impl Conf for Settings {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.when.inherit(&outer.when);
        Ok(())
    }
}

impl Install for GzipStatic {
    fn install(settings: &Settings, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let acceptance = match settings.when.or(When::Off) {
            When::Off => return Ok(()),
            When::Accepted => Some(Acceptance::of(plan)),
            When::Always => None,
        };
        plan.handlers.content.push(Box::new(Compressed { acceptance }));
        Ok(())
    }
}

struct Compressed {
    /// What is asked of the client; nothing where it gets the file in any case.
    acceptance: Option<Acceptance>,
}

impl Content for Compressed {
    fn respond<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        Step::Now(self.answer(x))
    }
}

impl Compressed {
    fn answer(&self, x: &mut Exchange) -> Flow {
        if !matches!(x.method, Method::Get | Method::Head) || x.uri.ends_with(b"/") {
            return Flow::Decline;
        }
        // There is no response yet that could speak against it.
        let takes = self.acceptance.as_ref().is_none_or(|a| a.holds(x, &Response::default()));
        // Without the file nothing depends on the client, so it has to be looked for where that is told.
        if !takes && self.acceptance.as_ref().is_some_and(|a| !a.vary) {
            return Flow::Decline;
        }
        let Some(mut name) = x.file() else { return Flow::Answer(500) };
        name.path.extend_from_slice(b".gz");
        let shown = || String::from_utf8_lossy(&name.path).into_owned();
        let (file, metadata) = match static_files::open(&name.path) {
            Ok(opened) => opened,
            Err((call, error)) => {
                let level = match Reach::of(&error) {
                    Reach::Missing => return Flow::Decline,
                    Reach::Forbidden => Level::Error,
                    Reach::Broken => Level::Crit,
                };
                x.log_error(level, Some(&error), format_args!("{call} \"{}\" failed", shown()));
                return Flow::Decline;
            }
        };
        if self.acceptance.is_some() {
            gzip_ok::varies(x);
        }
        if !takes || metadata.is_dir() {
            return Flow::Decline;
        }
        if !metadata.is_file() {
            x.log(Level::Crit, format_args!("\"{}\" is not a regular file", shown()));
            return Flow::Answer(404);
        }
        let mut response = static_files::send(file, &metadata, x);
        response.headers.push(b"Content-Encoding", b"gzip");
        Flow::Respond(Box::new(response))
    }
}

#[cfg(test)]
mod tests {
    use weir_testkit::Folder;

    use crate::testing::{Site, check_conf, header};

    #[test]
    fn messages() {
        check_conf("gzip_static always;", "");
        check_conf("gzip_static yes;", "invalid value \"yes\"");
        check_conf("gzip_static on; gzip_static on;", "\"gzip_static\" directive is duplicate");
    }

    #[test]
    fn files() {
        let folder = Folder::new(&[
            ("a.html", b"plain"),
            ("a.html.gz", b"packed"),
            ("b.html", b"plain"),
            ("only.html.gz", b"packed"),
            ("dir.html", b"plain"),
            ("dir.html.gz/x", b""),
        ]);
        let site = Site::new(&format!(
            "gzip_vary on; gzip_static on; root {}; server {{
                location / {{ }}
                location /always/ {{ gzip_static always; alias {0}/; }}
                location /quiet/ {{ gzip_vary off; alias {0}/; }}
             }}",
            folder.path().display()
        ));
        for (path, takes, expected, coded, varies) in [
            ("/a.html", true, "200 packed", true, true),
            ("/a.html", false, "200 plain", false, true),
            ("/b.html", true, "200 plain", false, false),
            ("/only.html", true, "200 packed", true, true),
            ("/only.html", false, "404", false, true),
            ("/dir.html", true, "200 plain", false, true),
            ("/quiet/a.html", true, "200 packed", true, false),
            ("/quiet/a.html", false, "200 plain", false, false),
            ("/always/a.html", false, "200 packed", true, false),
            ("/always/b.html", false, "200 plain", false, false),
        ] {
            let answer = site.get(path, if takes { "Accept-Encoding: gzip\r\n" } else { "" });
            let body = answer.split_once("\r\n\r\n").unwrap().1;
            let body = if body.starts_with("<html>") { "" } else { body };
            assert_eq!(format!("{} {body}", &answer[9..12]).trim_end(), expected, "{path} {takes}");
            assert_eq!(header(&answer, "Content-Encoding").is_some(), coded, "{path} {takes}");
            assert_eq!(header(&answer, "Vary").is_some(), varies, "{path} {takes}");
        }
        let part = site.get("/a.html", "Accept-Encoding: gzip\r\nRange: bytes=1-2\r\n");
        assert!(part.ends_with("\r\n\r\nac"), "{part}");
    }
}

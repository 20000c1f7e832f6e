//! Files that lie beside the asked one compressed: what `gzip_static`, `brotli_static` and `zstd_static` have in common,
//! and which of several a client gets.

use std::cmp::Reverse;

use weir_engine::contract::{Content, Flow, Install, Step};
use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Response};
use weir_engine::http1::Method;
use weir_ir::contract::{Directive, Module};
use weir_syntax::{Diagnostic, Level};

use super::files::{self, Reach};
use super::gzip_ok::{self, Acceptance};
use super::{brotli, compress, gzip_static, static_files, zstd};

/// Has no directives: it chooses among the codings that other modules configure.
pub struct Precompressed;

impl Module for Precompressed {
    const NAME: &'static str = "http_precompressed";
    type Main = ();
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] = &[];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Off,
    /// Where the client takes the coding.
    Accepted,
    Always,
}

pub(super) const WORDS: &[(&str, When)] =
    &[("off", When::Off), ("on", When::Accepted), ("always", When::Always)];

impl Install for Precompressed {
    fn install(_: &(), plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let acceptance = Acceptance::of(plan);
        // What a client likes equally well goes by this order.
        let codings = [
            Coding { name: brotli::NAME, suffix: b".br", when: brotli::files(plan), gzip: None },
            Coding { name: zstd::NAME, suffix: b".zst", when: zstd::files(plan), gzip: None },
            Coding { name: "gzip", suffix: b".gz", when: gzip_static::files(plan), gzip: Some(acceptance) },
        ];
        let codings: Vec<_> = codings.into_iter().filter(|coding| coding.when != When::Off).collect();
        if !codings.is_empty() {
            let vary = gzip_ok::vary(plan);
            plan.handlers.content.push(Box::new(Compressed { codings, vary }));
        }
        Ok(())
    }
}

struct Coding {
    /// As `Content-Encoding` says it.
    name: &'static str,
    suffix: &'static [u8],
    when: When,
    /// What nginx's core asks of clients besides.
    gzip: Option<Acceptance>,
}

impl Coding {
    /// How much the client likes it, in thousandths; 0 is not at all.
    fn weight(&self, x: &mut Exchange) -> u16 {
        if self.when == When::Always {
            return 1000;
        }
        let weight = compress::weight(x, self.name);
        match &self.gzip {
            None => weight,
            // There is no response yet that could speak against it.
            Some(acceptance) if acceptance.holds(x, &Response::default()) => weight.max(1),
            Some(_) => 0,
        }
    }
}

struct Compressed {
    /// By preference.
    codings: Vec<Coding>,
    vary: bool,
}

impl Content for Compressed {
    fn respond<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        Step::Later(Box::pin(self.answer(x)))
    }
}

impl Compressed {
    async fn answer(&self, x: &mut Exchange) -> Flow {
        if !matches!(x.method, Method::Get | Method::Head) || x.uri.ends_with(b"/") {
            return Flow::Decline;
        }
        let mut codings: Vec<_> = self.codings.iter().map(|coding| (coding.weight(x), coding)).collect();
        codings.sort_by_key(|(weight, _)| Reverse(*weight));
        for (weight, coding) in codings {
            match self.look(coding, weight > 0, x).await {
                Flow::Decline => {}
                flow => return flow,
            }
        }
        Flow::Decline
    }

    /// Answers with the file of a coding, if it is there and the client takes it.
    async fn look(&self, coding: &Coding, takes: bool, x: &mut Exchange) -> Flow {
        // Without the file nothing depends on the client, so it has to be looked for where that is told.
        if !takes && !self.vary {
            return Flow::Decline;
        }
        let Some(mut name) = x.file() else { return Flow::Answer(500) };
        name.path.extend_from_slice(coding.suffix);
        let shown = || String::from_utf8_lossy(&name.path).into_owned();
        let (file, metadata) = match files::open(&name.path, x).await {
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
        if coding.when == When::Accepted {
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
        response.headers.push(b"Content-Encoding", coding.name.as_bytes());
        Flow::Respond(Box::new(response))
    }
}

#[cfg(test)]
mod tests {
    use weir_testkit::Folder;

    use crate::testing::{Site, check_conf, header};

    #[test]
    fn messages() {
        for name in ["gzip_static", "brotli_static", "zstd_static"] {
            check_conf(&format!("{name} always;"), "");
            check_conf(&format!("{name} yes;"), "invalid value \"yes\"");
            check_conf(&format!("{name} on; {name} on;"), &format!("\"{name}\" directive is duplicate"));
        }
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

    #[test]
    fn codings() {
        let folder = Folder::new(&[
            ("a.html", b"plain"),
            ("a.html.gz", b"gzip"),
            ("a.html.br", b"br"),
            ("a.html.zst", b"zstd"),
            ("b.html", b"plain"),
            ("b.html.gz", b"gzip"),
        ]);
        let site = Site::new(&format!(
            "gzip_vary on; gzip_static on; brotli_static on; zstd_static on; root {}; server {{
                location / {{ }}
                location /always/ {{ gzip_static off; brotli_static always; zstd_static off; alias {0}/; }}
             }}",
            folder.path().display()
        ));
        for (path, accepts, expected) in [
            ("/a.html", "gzip, deflate, br, zstd", "br"),
            ("/a.html", "gzip, zstd", "zstd"),
            ("/a.html", "gzip;q=1, br;q=0.5", "gzip"),
            ("/a.html", "br;q=0, zstd;q=0.1", "zstd"),
            ("/a.html", "deflate", "plain"),
            ("/b.html", "gzip, deflate, br, zstd", "gzip"),
            ("/b.html", "br", "plain"),
            ("/always/a.html", "gzip", "br"),
            ("/always/b.html", "gzip", "plain"),
        ] {
            let answer = site.get(path, &format!("Accept-Encoding: {accepts}\r\n"));
            assert_eq!(answer.split_once("\r\n\r\n").unwrap().1, expected, "{path} {accepts}");
            let coding = Some(expected).filter(|coding| *coding != "plain");
            assert_eq!(header(&answer, "Content-Encoding"), coding, "{path} {accepts}");
            assert_eq!(header(&answer, "Vary").is_some(), !path.starts_with("/always"), "{path} {accepts}");
        }
    }
}

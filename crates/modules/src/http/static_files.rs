//! `ngx_http_static_module`: files below `root`, for every location that has no other content.

use std::borrow::Cow;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use weir_engine::contract::{Content, Flow, Install, Step};
use weir_engine::generation::Plan;
use weir_engine::http::phases::append_args;
use weir_engine::http::response::FilePart;
use weir_engine::http::{Body, Exchange, Response};
use weir_engine::http1::Method;
use weir_engine::http1::uri::{Escape, escape};
use weir_engine::open_files::Opened;
use weir_ir::contract::{Directive, Module};
use weir_syntax::{Diagnostic, Level};

use super::files::{self, Reach};

pub struct Static;

impl Module for Static {
    const NAME: &'static str = "http_static";
    type Main = ();
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] = &[];
}

impl Install for Static {
    fn install((): &(), plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        plan.handlers.content.push(Box::new(Static));
        Ok(())
    }
}

impl Content for Static {
    fn respond<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        if !matches!(x.method, Method::Get | Method::Head | Method::Post) {
            return Step::Now(Flow::Answer(405));
        }
        files::with_open(x, respond)
    }
}

fn respond(name: &[u8], opened: Opened, x: &mut Exchange) -> Flow {
    let (file, metadata) = match opened {
        Ok(opened) => opened,
        Err((call, error)) => return failed(name, call, &error, x),
    };
    if metadata.is_dir() {
        return to_directory(x);
    }
    if !metadata.is_file() {
        let shown = String::from_utf8_lossy(name);
        x.log(Level::Crit, format_args!("\"{shown}\" is not a regular file"));
        return Flow::Answer(404);
    }
    if x.method == Method::Post {
        return Flow::Answer(405);
    }
    Flow::Respond(Box::new(send(file, &metadata, x)))
}

/// Logs why a file cannot be had, and answers.
pub(super) fn failed(name: &[u8], call: &str, error: &io::Error, x: &Exchange) -> Flow {
    let (level, code) = match Reach::of(error) {
        Reach::Missing => (Level::Error, 404),
        Reach::Forbidden => (Level::Error, 403),
        Reach::Broken => (Level::Crit, 500),
    };
    if code != 404 || x.location().core.log_not_found {
        let shown = String::from_utf8_lossy(name);
        x.log_error(level, Some(error), format_args!("{call} \"{shown}\" failed"));
    }
    Flow::Answer(code)
}

/// Sends the client to the same path with a slash.
fn to_directory(x: &mut Exchange) -> Flow {
    let mut target = Vec::with_capacity(x.uri.len() + x.args.len() + 2);
    escape(&x.uri, Escape::Uri, &mut target);
    target.push(b'/');
    append_args(&x.args, &mut target);
    x.redirect_target = Some(Cow::Owned(target));
    Flow::Answer(301)
}

/// The response of a regular file.
pub(super) fn send(file: Arc<File>, metadata: &Metadata, x: &Exchange) -> Response {
    let (length, modified) = (metadata.len(), metadata.mtime());
    let mut response = Response {
        status: 200,
        content_type: x.content_type(),
        content_length: Some(length),
        last_modified: Some(modified),
        allow_ranges: true,
        ..Response::default()
    };
    if x.location().core.etag {
        response.headers.push(b"ETag", format!("\"{modified:x}-{length:x}\"").as_bytes());
    }
    if length > 0 {
        response.body = Body::File(FilePart { file, offset: 0, length });
    }
    response
}

#[cfg(test)]
mod tests {
    use nix::fcntl::PosixFadviseAdvice;
    use weir_testkit::Folder;

    use crate::testing::Site;

    #[test]
    fn files() {
        let folder = Folder::new(&[("a.html", b"hello"), ("empty", b""), ("dir/x y", b"spaced")]);
        let site = Site::new(&format!("server {{ root {}; }}", folder.path().display()));
        folder.set_modified("a.html", 0x5000_0000);
        assert_eq!(
            site.ask("GET /a.html", ""),
            "HTTP/1.1 200 OK\nContent-Type: text/html\nContent-Length: 5\n\
             Last-Modified: Fri, 13 Jul 2012 11:01:20 GMT\nETag: \"50000000-5\"\nAccept-Ranges: bytes\n\nhello"
        );
        assert!(site.ask("GET /empty", "").contains("\nContent-Length: 0\n"));
        for (uri, expected) in [
            ("/dir/x%20y", "200 spaced"),
            ("/dir", "301 http://a.example/dir/"),
            ("/dir?a=b", "301 http://a.example/dir/?a=b"),
            ("/dir/", "403"),
            ("/none", "404"),
            ("/a.html/b", "404"),
        ] {
            assert_eq!(site.short(uri), expected, "{uri}");
        }
        for (method, expected) in [("POST", "405"), ("PUT", "405"), ("HEAD", "200")] {
            assert_eq!(&site.ask(&format!("{method} /a.html"), "")[9..12], expected, "{method}");
        }
    }

    #[test]
    fn a_folder_is_never_relative() {
        let folder = Folder::new(&[("a.html", b"hello")]);
        let path = folder.path().display();
        let site = Site::new(
            "server {
                location / { root $arg_to; }
                location /at/ { alias $arg_to/; }
                location /tell { root $arg_to; return 200 $document_root; }
                location /empty { root \"\"; return 200 $document_root; }
                location /all { root /; return 200 [$document_root]; }
            }",
        );
        let prefix = site.short("/empty").split_off("200 ".len());
        assert!(prefix.len() > 1 && prefix.starts_with('/') && prefix.ends_with('/'), "{prefix}");
        assert_eq!(site.short("/all"), "200 []");
        for (to, expected) in [("", &*prefix), ("sub", &format!("{prefix}sub")), ("/sub", "/sub")] {
            assert_eq!(site.short(&format!("/tell?to={to}")), format!("200 {expected}"));
        }
        // Not the machine's files.
        assert_eq!(site.short("/etc/passwd"), "404");
        assert_eq!(site.short(&format!("/a.html?to={path}")), "200 hello");
        assert_eq!(site.short(&format!("/at/a.html?to={path}")), "200 hello");
    }

    #[test]
    fn what_has_to_be_waited_for_comes_as_well() {
        let long: Vec<u8> = (0..700_000u32).map(|n| b'a' + (n % 23) as u8).collect();
        let folder = Folder::new(&[("small", b"hello"), ("long", &long)]);
        let path = folder.path().display();
        let site = Site::new(&format!("server {{ root {path}; location /l {{ sendfile on; }} }}"));
        for (uri, range, expected) in [
            ("GET /small", "", &b"hello"[..]),
            ("GET /long", "", &long),
            ("GET /long", "Range: bytes=5-600000\r\n", &long[5..=600_000]),
        ] {
            for name in ["small", "long"] {
                let file = std::fs::File::open(folder.path().join(name)).unwrap();
                file.sync_all().unwrap();
                nix::fcntl::posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
            }
            let answer = site.ask(uri, range);
            let body = answer.split_once("\n\n").unwrap().1;
            assert!(body.as_bytes() == expected, "{uri} {range}: {}", body.len());
        }
    }

    #[test]
    fn messages() {
        let folder = Folder::new(&[]);
        let server = format!(
            "server {{ root {0}; location /q {{ log_not_found off; }} location /al {{ alias {0}; rewrite ^ /x break; }} }}",
            folder.path().display()
        );
        let site = Site::new(&server);
        assert_eq!(
            (site.short("/x"), site.short("/q"), site.short("/al")),
            ("404".into(), "404".into(), "500".into())
        );
        assert_eq!(
            site.log(),
            [
                format!("open() \"{}/x\" failed (2: No such file or directory)", folder.path().display()),
                "\"alias\" cannot be used in location \"/al\" where URI was rewritten".into(),
            ]
        );
    }

    #[test]
    fn pipes_are_no_files() {
        let site = Site::new("server { root /dev; }");
        assert_eq!(site.short("/null"), "404");
        assert_eq!(site.log(), ["\"/dev/null\" is not a regular file"]);
    }
}

//! `ngx_http_flv_module`: Flash videos from a place within them on (`?start=`), with a header of their own.

use std::os::unix::fs::MetadataExt;

use weir_engine::contract::{Content, Flow, Install, Step};
use weir_engine::generation::Plan;
use weir_engine::http::{Body, Exchange, variables};
use weir_engine::http1::Method;
use weir_engine::open_files::Opened;
use weir_ir::contract::{Contexts, Directive, Module, Takes};
use weir_ir::value;
use weir_syntax::Diagnostic;

use super::body::{Piece, Pieces};
use super::shown::Shown;
use super::{files, static_files};

pub struct Flv;

impl Module for Flv {
    const NAME: &'static str = "http_flv";
    type Main = ();
    type Scope = Shown;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[Directive::<Flv>::scope("flv", Contexts::LOCATION, Takes::NONE, |shown, _| shown.set())];
}

impl Install for Flv {
    fn install(shown: &Shown, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        shown.install(plan, Video);
        Ok(())
    }
}

/// Version 1 with sound and pictures, which begin behind these nine bytes and an empty tag before them.
const HEADER: &[u8; 13] = b"FLV\x01\x05\0\0\0\x09\0\0\0\0";

struct Video;

impl Content for Video {
    fn respond<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        if !matches!(x.method, Method::Get | Method::Head) {
            return Step::Now(Flow::Answer(405));
        }
        files::with_open(x, respond)
    }
}

fn respond(name: &[u8], opened: Opened, x: &mut Exchange) -> Flow {
    let (file, metadata) = match opened {
        Ok(opened) => opened,
        Err((call, error)) => return static_files::failed(name, call, &error, x),
    };
    if !metadata.is_file() {
        return Flow::Decline;
    }
    let mut start = Vec::new();
    variables::arg(x, "start", &mut start);
    let start = value::number(&start).filter(|start| *start < metadata.len()).unwrap_or(0);
    let mut response = static_files::send(file, &metadata, x);
    if start > 0
        && let Body::File(mut part) = std::mem::take(&mut response.body)
    {
        (part.offset, part.length) = (start, metadata.len() - start);
        let length = HEADER.len() as u64 + part.length;
        response.content_length = Some(length);
        if x.location().core.etag {
            response.headers.set(b"ETag", format!("\"{:x}-{length:x}\"", metadata.mtime()).as_bytes());
        }
        response.body =
            Body::Stream(Box::new(Pieces::new(vec![Piece::Text(HEADER[..].into()), Piece::File(part)])));
    }
    Flow::Respond(Box::new(response))
}

#[cfg(test)]
mod tests {
    use weir_testkit::Folder;

    use crate::testing::{Site, code, header};

    #[test]
    fn videos() {
        let folder = Folder::new(&[("a.flv", b"0123456789"), ("d/x", b"")]);
        let site =
            Site::new(&format!("server {{ root {}; location / {{ flv; }} }}", folder.path().display()));
        let body = |uri: &str, headers: &str| {
            let answer = site.get(uri, headers);
            assert_eq!(
                header(&answer, "Content-Length"),
                answer.split_once("\r\n\r\n").map(|(_, body)| body.len().to_string()).as_deref()
            );
            format!("{} {}", code(&answer), answer.split_once("\r\n\r\n").unwrap().1)
        };
        let head = "FLV\x01\x05\0\0\0\x09\0\0\0\0";
        assert_eq!(body("/a.flv", ""), "200 0123456789");
        for start in ["0", "10", "1k", "", "-1"] {
            assert_eq!(body(&format!("/a.flv?start={start}"), ""), "200 0123456789", "{start}");
        }
        assert_eq!(body("/a.flv?start=4", ""), format!("200 {head}456789"));
        assert_eq!(body("/a.flv?start=4", "Range: bytes=-3\r\n"), "206 789");
        assert_eq!(body("/a.flv?start=4", "Range: bytes=0-2\r\n"), "206 FLV");
        for (line, expected) in
            [("GET /none", "404"), ("GET /d", "301"), ("GET /d/", "403"), ("POST /a.flv", "405")]
        {
            assert_eq!(code(&site.ask(line, "")), expected, "{line}");
        }
    }
}

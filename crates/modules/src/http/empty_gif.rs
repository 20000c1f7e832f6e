//! `ngx_http_empty_gif_module`: a transparent image of one pixel.

use weir_engine::contract::{Content, Flow, Install, Step};
use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Response};
use weir_engine::http1::Method;
use weir_ir::contract::{Contexts, Directive, Module, Takes};
use weir_syntax::Diagnostic;

use super::shown::Shown;

pub struct EmptyGif;

impl Module for EmptyGif {
    const NAME: &'static str = "http_empty_gif";
    type Main = ();
    type Scope = Shown;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[Directive::<EmptyGif>::scope("empty_gif", Contexts::LOCATION, Takes::NONE, |shown, _| shown.set())];
}

impl Install for EmptyGif {
    fn install(shown: &Shown, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        shown.install(plan, Image);
        Ok(())
    }
}

/// One transparent pixel: header and screen of 1x1 with two colours, a control block that makes the second one
/// transparent, the picture of 1x1 and its LZW codes (clear, colour 1, end).
const GIF: &[u8] = b"GIF89a\x01\0\x01\0\x80\x01\0\0\0\0\xff\xff\xff\
    !\xf9\x04\x01\0\0\x01\0\
    ,\0\0\0\0\x01\0\x01\0\0\x02\x02L\x01\0;";

/// The time that the image was always last modified at, so that it stays in caches: 1970-09-28 06:00:00.
const MODIFIED: i64 = 23_349_600;

struct Image;

impl Content for Image {
    fn respond<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        if !matches!(x.method, Method::Get | Method::Head) {
            return Step::Now(Flow::Answer(405));
        }
        let mut response = Response::with_body(200, &b"image/gif"[..], GIF);
        response.last_modified = Some(MODIFIED);
        Step::Now(Flow::Respond(Box::new(response)))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Site, header};

    #[test]
    fn image() {
        let site = Site::new("server { listen 80; location / { empty_gif; } }");
        let response = site.get("/x", "");
        assert_eq!(header(&response, "Content-Type"), Some("image/gif"));
        assert_eq!(header(&response, "Content-Length"), Some("43"));
        assert_eq!(header(&response, "Last-Modified"), Some("Mon, 28 Sep 1970 06:00:00 GMT"));
        assert!(site.raw(b"DELETE / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 405 "));
    }
}

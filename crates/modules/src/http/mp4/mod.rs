//! `ngx_http_mp4_module`: MP4 videos from one time in them to another (`?start=`, `?end=`).
//!
//! `atoms.rs` reads what stands before the pictures, `track.rs` crops it to the time that is asked for.

mod atoms;
#[cfg(test)]
mod tests;
mod track;

use std::os::unix::fs::MetadataExt;

use weir_engine::contract::{BoxFuture, Content, Flow, Install, Step};
use weir_engine::generation::{ContentHandler, Plan};
use weir_engine::http::{Body, Exchange, variables};
use weir_engine::http1::Method;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Fault, Merge};
use weir_syntax::Diagnostic;

use super::body::{Piece, Pieces};
use super::{files, static_files};
use atoms::{Cut, Wanted};

pub struct Mp4;

type D = Directive<Mp4>;

const SCOPES: Contexts = Contexts::SCOPES;

impl Module for Mp4 {
    const NAME: &'static str = "http_mp4";
    type Main = ();
    type Scope = Settings;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("mp4", Contexts::LOCATION, Takes::NONE, |s, _| {
            s.shown = true;
            Ok(())
        }),
        D::scope("mp4_buffer_size", SCOPES, Takes::ONE, |s, c| s.buffer_size.size(c)),
        D::scope("mp4_max_buffer_size", SCOPES, Takes::ONE, |s, c| s.max_buffer_size.size(c)),
        D::scope("mp4_start_key_frame", SCOPES, Takes::FLAG, |s, c| s.start_key_frame.flag(c)),
    ];
}

/// What a level says of videos.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Not inherited.
    shown: bool,
    buffer_size: Setting<u64>,
    max_buffer_size: Setting<u64>,
    start_key_frame: Setting<bool>,
}

impl Conf for Settings {
    const EVERY_LEVEL: bool = true;

    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.buffer_size.inherit(&outer.buffer_size);
        self.max_buffer_size.inherit(&outer.max_buffer_size);
        self.start_key_frame.inherit(&outer.start_key_frame);
        Ok(())
    }
}

impl Install for Mp4 {
    fn install(settings: &Settings, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if settings.shown {
            // What fits the first read is never too large.
            let most = settings.max_buffer_size.or(10 << 20).max(settings.buffer_size.or(512 << 10));
            let video = Video { most, start_key_frame: settings.start_key_frame.or(false) };
            plan.handlers.handler = Some(ContentHandler::Content(std::sync::Arc::new(video)));
        }
        Ok(())
    }
}

struct Video {
    /// Bytes that the description of a video may have.
    most: u64,
    start_key_frame: bool,
}

impl Content for Video {
    fn respond<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        Step::Later(self.send(x))
    }
}

impl Video {
    fn send<'a>(&'a self, x: &'a mut Exchange) -> BoxFuture<'a, Flow> {
        Box::pin(async move {
            if !matches!(x.method, Method::Get | Method::Head) {
                return Flow::Answer(405);
            }
            if x.uri.ends_with(b"/") {
                return Flow::Decline;
            }
            let Some(name) = x.file() else { return Flow::Answer(500) };
            let (file, metadata) = match files::open(&name.path, x).await {
                Ok(opened) => opened,
                Err((call, error)) => return static_files::failed(&name.path, call, &error, x),
            };
            if !metadata.is_file() {
                return Flow::Decline;
            }
            let Some((start, length)) = asked_for(x) else {
                return Flow::Respond(Box::new(static_files::send(file, &metadata, x)));
            };
            let wanted = Wanted {
                name: String::from_utf8_lossy(&name.path).into_owned(),
                end: metadata.len(),
                start,
                length,
                most: self.most,
                start_key_frame: self.start_key_frame,
            };
            // Reading and changing some megabytes would keep others waiting.
            let done = tokio::task::spawn_blocking(move || {
                let cut = atoms::cut(&file, &wanted);
                (file, cut)
            });
            let Ok((file, cut)) = done.await else { return Flow::Answer(500) };
            let cut = match cut {
                Ok(cut) => cut,
                Err(trouble) => {
                    x.log_error(trouble.level, trouble.error.as_ref(), trouble.message);
                    return Flow::Answer(500);
                }
            };
            let mut response = static_files::send(file, &metadata, x);
            response.single_range = true;
            if let Some(Cut { head, offset, length: data }) = cut
                && let Body::File(mut part) = std::mem::take(&mut response.body)
            {
                (part.offset, part.length) = (offset, data);
                let length = head.len() as u64 + data;
                response.content_length = Some(length);
                if x.location().core.etag {
                    let etag = format!("\"{:x}-{length:x}\"", metadata.mtime());
                    response.headers.set(b"ETag", etag.as_bytes());
                }
                let pieces = vec![Piece::Text(head.into()), Piece::File(part)];
                response.body = Body::Stream(Box::new(Pieces::new(pieces)));
            }
            Flow::Respond(Box::new(response))
        })
    }
}

/// The time at which a part begins and its length, 0 to the end, in milliseconds; `None` where no part is asked for.
fn asked_for(x: &Exchange) -> Option<(u64, u64)> {
    let time = |name| {
        let mut text = vec![];
        variables::arg(x, name, &mut text);
        milliseconds(&text)
    };
    match (time("start"), time("end").filter(|end| *end > 0)) {
        (start, Some(end)) => {
            let start = start.unwrap_or(0);
            Some((start, end.saturating_sub(start)))
        }
        (start, None) => start.map(|start| (start, 0)),
    }
}

/// Seconds with any number of digits behind a dot, of which three count.
fn milliseconds(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let (mut value, mut dot, mut places) = (0i64, false, 3);
    for byte in text {
        match byte {
            b'.' if !dot => dot = true,
            b'0'..=b'9' if places == 0 => {}
            b'0'..=b'9' => {
                value = value.checked_mul(10)?.checked_add(i64::from(byte - b'0'))?;
                places -= i32::from(dot);
            }
            _ => return None,
        }
    }
    for _ in 0..places {
        value = value.checked_mul(10)?;
    }
    u64::try_from(value).ok()
}

//! `ngx_http_gunzip_filter_module`: decompresses responses for clients that do not take gzip.

use std::io;

use flate2::{Decompress, FlushDecompress, Status};
use weir_engine::contract::{Filter, Install};
use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Response};
use weir_engine::http1::{Known, Method};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Once, Setting, Takes};
use weir_ir::{Fault, Merge};
use weir_syntax::{Diagnostic, Level};

use super::body::{self, Transform};
use super::gzip_ok::{self, Acceptance};

pub struct Gunzip;

type D = Directive<Gunzip>;

impl Module for Gunzip {
    const NAME: &'static str = "http_gunzip_filter";
    type Main = ();
    type Scope = Settings;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("gunzip", Contexts::SCOPES, Takes::FLAG, |s, c| s.enable.flag(c)),
        D::scope("gunzip_buffers", Contexts::SCOPES, Takes::TWO, |s, c| s.once.buffers(c))
            .accepted("a response is decompressed through one small buffer"),
    ];
}

/// What a level says of it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    enable: Setting<bool>,
    once: Once,
}

impl Conf for Settings {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.enable.inherit(&outer.enable);
        Ok(())
    }
}

impl Install for Gunzip {
    fn install(settings: &Settings, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if settings.enable.or(false) {
            let acceptance = Acceptance::of(plan);
            plan.handlers.filters.push(Box::new(Decompressing { acceptance }));
        }
        Ok(())
    }
}

struct Decompressing {
    acceptance: Acceptance,
}

impl Filter for Decompressing {
    fn filter(&self, x: &mut Exchange, response: &mut Response) {
        let coding = response.headers.first(Known::ContentEncoding);
        if !coding.is_some_and(|coding| coding.eq_ignore_ascii_case(b"gzip")) {
            return;
        }
        gzip_ok::varies(x);
        if self.acceptance.holds(x, response) {
            return;
        }
        response.headers.remove(b"Content-Encoding");
        response.body_changes();
        // What is not sent need not be readable.
        if x.method != Method::Head && !matches!(response.status, 204 | 304) {
            body::transform(Inflate::new(), x, response);
        }
    }
}

/// The largest window that there is.
const WINDOW: u8 = 15;

pub(super) struct Inflate {
    decompress: Decompress,
    status: Status,
    /// Why it broke off, for the log.
    failure: Option<String>,
}

impl Inflate {
    pub(super) fn new() -> Self {
        Self { decompress: Decompress::new_gzip(WINDOW), status: Status::BufError, failure: None }
    }

    fn run(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        let before = self.decompress.total_in();
        match self.decompress.decompress_vec(input, out, FlushDecompress::Sync) {
            Ok(status) => {
                self.status = status;
                Ok((self.decompress.total_in() - before) as usize)
            }
            Err(error) => {
                self.failure = Some("inflate() failed: 0, -3".into());
                Err(io::Error::other(error))
            }
        }
    }
}

impl Transform for Inflate {
    const BOUNDED: bool = false;

    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        // One compressed text may follow another.
        if self.status == Status::StreamEnd {
            self.decompress.reset(true);
        }
        self.run(input, out)
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if self.status == Status::Ok {
            self.run(b"", out)?;
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        self.flush(out)?;
        match self.status {
            Status::StreamEnd => Ok(true),
            Status::Ok | Status::BufError if out.len() == out.capacity() => Ok(false),
            Status::Ok | Status::BufError => {
                self.failure = Some("inflate() returned -5 on response end".into());
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        }
    }

    fn finish(&mut self, x: &mut Exchange) {
        if let Some(failure) = self.failure.take() {
            x.log(Level::Error, failure);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Site, check_conf};

    #[test]
    fn messages() {
        check_conf("gunzip on; gunzip_buffers 4 8k;", "");
        check_conf("gunzip on; gunzip on;", "\"gunzip\" directive is duplicate");
        check_conf("gunzip_buffers 4;", "invalid number of arguments in \"gunzip_buffers\" directive");
    }

    #[test]
    fn what_is_no_gzip() {
        let site = Site::new(
            "gunzip on; add_header Content-Encoding gzip; server {
                location /bad { answer 200 a/b bad; } location /empty { answer 200 a/b ''; }
             }",
        );
        for path in ["/bad", "/empty"] {
            assert!(!site.get(path, "").contains("\r\n0\r\n"), "{path}");
            assert!(site.get(path, "Accept-Encoding: gzip\r\n").contains("\r\nContent-Encoding: gzip\r\n"));
        }
        assert_eq!(site.log(), ["inflate() failed: 0, -3", "inflate() returned -5 on response end"]);
    }
}

//! `ngx_http_dav_module`: PUT, DELETE, MKCOL, COPY and MOVE of files below `root`.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use weir_engine::contract::{Content, Flow, Install, Step};
use weir_engine::files::{Moving, of_directory};
use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Response};
use weir_engine::http1::uri::{Escape, decode_unsafe, escape};
use weir_engine::http1::{Known, Method, date};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::http::core::Alias;
use weir_ir::{Call, Fault, Merge};
use weir_syntax::{Diagnostic, Level};

use super::files;
use work::{Trouble, Work};

mod work;

pub struct Dav;

type D = Directive<Dav>;
const SCOPES: Contexts = Contexts::SCOPES;

impl Module for Dav {
    const NAME: &'static str = "http_dav";
    type Main = ();
    type Scope = Rules;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("dav_methods", SCOPES, Takes::ONE_MORE, |rules, call| {
            call.add_bits(&mut rules.methods, &METHODS)
        }),
        D::scope("create_full_put_path", SCOPES, Takes::FLAG, |rules, call| {
            rules.create_full_put_path.flag(call)
        }),
        D::scope("min_delete_depth", SCOPES, Takes::ONE, |rules, call| rules.min_delete_depth.number(call)),
        D::scope("dav_access", SCOPES, Takes::ONE_TO_THREE, |rules, call| {
            rules.access.put_with(call, access)
        }),
    ];
}

const OFF: u32 = 1;
const PUT: u32 = 1 << 1;
const DELETE: u32 = 1 << 2;
const MKCOL: u32 = 1 << 3;
const COPY: u32 = 1 << 4;
const MOVE: u32 = 1 << 5;
const METHODS: [(&str, u32); 6] =
    [("off", OFF), ("put", PUT), ("delete", DELETE), ("mkcol", MKCOL), ("copy", COPY), ("move", MOVE)];

/// What one level allows.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    methods: u32,
    create_full_put_path: Setting<bool>,
    min_delete_depth: Setting<u64>,
    /// The mode of files that are made.
    access: Setting<u32>,
}

impl Conf for Rules {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        if self.methods == 0 {
            self.methods = outer.methods;
        }
        self.create_full_put_path.inherit(&outer.create_full_put_path);
        self.min_delete_depth.inherit(&outer.min_delete_depth);
        self.access.inherit(&outer.access);
        Ok(())
    }
}

/// `user:rw group:r all:r`; its owner may read and write what nothing is said of.
pub(super) fn access(call: &mut Call<'_>) -> Result<u32, Fault> {
    let (mut mode, mut user) = (0, 0o600);
    for index in 0..call.args().len() {
        let (shift, rights) = match call.arg(index) {
            [b'u', b's', b'e', b'r', b':', rights @ ..] => {
                user = 0;
                (6, rights)
            }
            [b'g', b'r', b'o', b'u', b'p', b':', rights @ ..] => (3, rights),
            [b'a', b'l', b'l', b':', rights @ ..] => (0, rights),
            _ => return Err(call.fail_at(index, "invalid value")),
        };
        mode |= match rights {
            b"rw" => 6 << shift,
            b"r" => 4 << shift,
            _ => return Err(call.fail_at(index, "invalid value")),
        };
    }
    Ok(mode | user)
}

impl Install for Dav {
    fn install(rules: &Rules, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if rules.methods & !OFF != 0 {
            plan.handlers.content.push(Box::new(Ready {
                methods: rules.methods,
                create_full_put_path: rules.create_full_put_path.or(false),
                min_delete_depth: rules.min_delete_depth.or(0),
                access: rules.access.or(0o600),
            }));
        }
        Ok(())
    }
}

struct Ready {
    methods: u32,
    create_full_put_path: bool,
    min_delete_depth: u64,
    access: u32,
}

impl Content for Ready {
    fn respond<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        let method = match x.method {
            Method::Put => PUT,
            Method::Delete => DELETE,
            Method::Mkcol => MKCOL,
            Method::Copy => COPY,
            Method::Move => MOVE,
            _ => 0,
        };
        if self.methods & method == 0 {
            return Step::Now(Flow::Decline);
        }
        Step::Later(Box::pin(async move {
            let work = match method {
                PUT => self.put(x).await,
                DELETE => self.delete(x),
                MKCOL => self.make_collection(x),
                _ => self.copy_or_move(x),
            };
            match work {
                Ok(work) => finish(x, work).await,
                Err(code) => Flow::Answer(code),
            }
        }))
    }
}

/// Does the work away from the reactor and answers with what came of it.
async fn finish(x: &mut Exchange, work: Work) -> Flow {
    let done = tokio::task::spawn_blocking(move || work.run()).await;
    let code = match done.unwrap_or(Err(Trouble::of_ours())) {
        Ok(code) => code,
        Err(trouble) => {
            if !trouble.message.is_empty() {
                x.log_error(trouble.level, trouble.error.as_ref(), trouble.message);
            }
            trouble.code
        }
    };
    if code >= 300 {
        return Flow::Answer(code);
    }
    let mut response = Response { status: code, content_length: Some(0), ..Response::default() };
    if code == 201 && matches!(x.method, Method::Put | Method::Mkcol) {
        let mut location = Vec::new();
        escape(&x.uri, Escape::Uri, &mut location);
        response.location = Some(location.into());
    }
    Flow::Respond(Box::new(response))
}

/// `Depth`, which says how much of a collection is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    Zero,
    One,
    Infinity,
    Invalid,
}

fn depth(x: &Exchange, default: Depth) -> Depth {
    let Some(text) = x.header(Known::Depth) else { return default };
    match text {
        b"0" => Depth::Zero,
        b"1" => Depth::One,
        b"infinity" => Depth::Infinity,
        _ => {
            let shown = String::from_utf8_lossy(text);
            x.log(Level::Error, format_args!("client sent invalid \"Depth\" header: \"{shown}\""));
            Depth::Invalid
        }
    }
}

/// Logs why a request is refused, and says with which status.
fn refuse<T>(x: &Exchange, code: u16, why: impl std::fmt::Display) -> Result<T, u16> {
    x.log(Level::Error, why);
    Err(code)
}

fn has_body(x: &Exchange) -> bool {
    x.head.is_chunked() || x.head.content_length().is_some_and(|length| length > 0)
}

fn path(x: &Exchange) -> Result<PathBuf, u16> {
    x.file().map(|file| files::path(&file.path).to_owned()).ok_or(500)
}

/// The file without the slash that marks a collection.
fn bare(path: &Path) -> &Path {
    let bytes = path.as_os_str().as_bytes();
    files::path(bytes.strip_suffix(b"/").filter(|bare| !bare.is_empty()).unwrap_or(bytes))
}

/// The same with each run of slashes as one.
fn merged(path: &Path) -> PathBuf {
    let mut bytes = path.as_os_str().as_bytes().to_vec();
    bytes.dedup_by(|a, b| (*a, *b) == (b'/', b'/'));
    files::path(&bytes).to_owned()
}

impl Ready {
    async fn put(&self, x: &mut Exchange) -> Result<Work, u16> {
        if x.uri.ends_with(b"/") {
            return refuse(x, 409, "cannot PUT to a collection");
        }
        if x.header(Known::ContentRange).is_some() {
            return refuse(x, 501, "PUT with range is unsupported");
        }
        let body = match x.read_body_into_file().await {
            Ok(file) => file.map(|file| PathBuf::from(file.name())),
            Err(error) => return Err(error.0),
        };
        let Some(body) = body else { return refuse(x, 500, "PUT request body must be in a file") };
        Ok(Work::Put(Moving {
            from: body,
            to: path(x)?,
            access: Some(self.access),
            modified: x.header(Known::Date).and_then(date::parse_http),
            create_path: self.create_full_put_path.then_some(self.access),
        }))
    }

    fn delete(&self, x: &Exchange) -> Result<Work, u16> {
        if has_body(x) {
            return refuse(x, 415, "DELETE with body is unsupported");
        }
        let last = x.uri.len().saturating_sub(1);
        let slashes = x.uri.iter().filter(|b| **b == b'/').count() as u64;
        // A final slash counts only where more are asked for than are there.
        let deep = x.uri.iter().take(last).filter(|b| **b == b'/').count() as u64;
        if deep < self.min_delete_depth {
            return refuse(x, 409, format_args!("insufficient URI depth:{slashes} to DELETE"));
        }
        let path = path(x)?;
        let metadata = match std::fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) => {
                let missing = if error.raw_os_error() == Some(Errno::ENOTDIR as i32) { 409 } else { 404 };
                let trouble = Trouble::of("lstat()", &path, error, missing);
                x.log_error(trouble.level, trouble.error.as_ref(), trouble.message);
                return Err(trouble.code);
            }
        };
        if metadata.is_dir() {
            if !x.uri.ends_with(b"/") {
                let error = Errno::EISDIR.into();
                x.log_error(Level::Error, Some(&error), format_args!("DELETE \"{}\" failed", path.display()));
                return Err(409);
            }
            if depth(x, Depth::Infinity) != Depth::Infinity {
                return refuse(x, 400, "\"Depth\" header must be infinity");
            }
        } else if !matches!(depth(x, Depth::Zero), Depth::Zero | Depth::Infinity) {
            return refuse(x, 400, "\"Depth\" header must be 0 or infinity");
        }
        Ok(Work::Delete { path: bare(&path).to_owned(), directory: metadata.is_dir() })
    }

    fn make_collection(&self, x: &Exchange) -> Result<Work, u16> {
        if has_body(x) {
            return refuse(x, 415, "MKCOL with body is unsupported");
        }
        if !x.uri.ends_with(b"/") {
            return refuse(x, 409, "MKCOL can create a collection only");
        }
        Ok(Work::MakeDirectory { path: bare(&path(x)?).to_owned(), mode: of_directory(self.access) })
    }

    fn copy_or_move(&self, x: &mut Exchange) -> Result<Work, u16> {
        if has_body(x) {
            return refuse(x, 415, "COPY and MOVE with body are unsupported");
        }
        let Some(header) = x.header(Known::Destination).map(<[u8]>::to_vec) else {
            return refuse(x, 400, "client sent no \"Destination\" header");
        };
        let shown = String::from_utf8_lossy(&header).into_owned();
        let invalid = |x: &Exchange| {
            refuse(x, 400, format_args!("client sent invalid \"Destination\" header: \"{shown}\""))
        };
        let Some(target) = within_host(x, &header)? else { return invalid(x) };
        let mut destination = Vec::new();
        if decode_unsafe(target, &mut destination).is_err() {
            let target = String::from_utf8_lossy(target);
            x.log(Level::Error, format_args!("unsafe URI \"{target}\" was detected"));
            return invalid(x);
        }
        let uri = String::from_utf8_lossy(&x.uri).into_owned();
        let collection = x.uri.ends_with(b"/");
        if collection != target.ends_with(b"/") {
            let should = "should be either collections or non-collections";
            return refuse(
                x,
                409,
                format_args!("both URI \"{uri}\" and \"Destination\" URI \"{shown}\" {should}"),
            );
        }
        if matches!(x.location().core.alias, Some(Alias::Prefix(length)) if destination.len() < length) {
            return invalid(x);
        }
        let moves = x.method == Method::Move;
        match depth(x, Depth::Infinity) {
            Depth::Infinity => {}
            Depth::Zero if !moves => {}
            _ if moves => return refuse(x, 400, "\"Depth\" header must be infinity"),
            _ => return refuse(x, 400, "\"Depth\" header must be 0 or infinity"),
        }
        let overwrite = match x.header(Known::Overwrite) {
            None | Some(b"T" | b"t") => true,
            Some(b"F" | b"f") => false,
            Some(other) => {
                let other = String::from_utf8_lossy(other);
                return refuse(x, 400, format_args!("client sent invalid \"Overwrite\" header: \"{other}\""));
            }
        };
        let from = path(x)?;
        let source = std::mem::replace(&mut x.uri, destination);
        let to = path(x);
        x.uri = source;
        let (from, to) = (merged(&from), bare(&merged(&to?)).to_owned());
        let from_bare = bare(&from);
        if from_bare == to {
            let same = "point to the same location";
            return refuse(
                x,
                403,
                format_args!("both URI \"{uri}\" and \"Destination\" URI \"{shown}\" {same}"),
            );
        }
        let method = String::from_utf8_lossy(x.method_name()).into_owned();
        let not_into = format!("\"{uri}\" could not be {method}ed to collection \"{shown}\"");
        if collection && (to.starts_with(from_bare) || from_bare.starts_with(&to)) {
            return refuse(x, 403, not_into);
        }
        Ok(Work::Copy { from, to, moves, collection, overwrite, access: self.access, uri, not_into })
    }
}

/// The path of a destination, which may be a whole URI of this host; `None` where it is something else.
fn within_host<'d>(x: &Exchange, destination: &'d [u8]) -> Result<Option<&'d [u8]>, u16> {
    if destination.starts_with(b"/") {
        return Ok(Some(destination));
    }
    if x.host.is_empty() {
        return refuse(x, 400, "client sent no \"Host\" header");
    }
    let rest = destination.strip_prefix(x.scheme()).and_then(|rest| rest.strip_prefix(b"://"));
    let Some(rest) = rest else { return Ok(None) };
    let Some(rest) = rest.strip_prefix(&x.host[..]) else {
        let shown = String::from_utf8_lossy(destination);
        let other = "is handled by different repository than the source URI";
        return refuse(x, 400, format_args!("\"Destination\" URI \"{shown}\" {other}"));
    };
    Ok(memchr::memchr(b'/', rest).map(|at| &rest[at..]))
}

#[cfg(test)]
mod tests;

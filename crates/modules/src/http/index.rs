//! `ngx_http_index_module`: the file that answers for a directory.

use std::io;

use nix::errno::Errno;
use weir_engine::contract::{Content, Flow, Install, Step};
use weir_engine::generation::Plan;
use weir_engine::http::{self, Exchange};
use weir_engine::http1::Method;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Takes};
use weir_ir::{Call, Fault, Merge, Template};
use weir_syntax::{Diagnostic, Level};

use super::files;

pub struct Index;

type D = Directive<Index>;

impl Module for Index {
    const NAME: &'static str = "http_index";
    type Main = ();
    type Scope = Names;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[D::scope("index", Contexts::SCOPES, Takes::ONE_MORE, index)];
}

/// The names to try, in order.
#[derive(Clone, Debug, Default)]
pub struct Names(Vec<Template>);

impl Conf for Names {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        if self.0.is_empty() {
            self.0.clone_from(&outer.0);
        }
        Ok(())
    }
}

fn index(conf: &mut Names, call: &mut Call<'_>) -> Result<(), Fault> {
    for at in 0..call.args().len() {
        let name = call.arg(at);
        if name.starts_with(b"/") && at + 1 != call.args().len() {
            call.warn("only the last index in \"index\" directive should be absolute");
        }
        if name.is_empty() {
            let fault = call.fail("index \"\" in \"index\" directive is invalid");
            return Err(call.under(fault, at));
        }
        conf.0.push(call.template(at)?);
    }
    Ok(())
}

impl Install for Index {
    fn install(conf: &Names, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let names = match conf.0.as_slice() {
            [] => vec![http::Template::literal(b"index.html")],
            names => names.iter().map(|name| plan.template(name)).collect(),
        };
        plan.handlers.content.push(Box::new(Indices(names)));
        Ok(())
    }
}

struct Indices(Vec<http::Template>);

impl Content for Indices {
    fn respond<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        Step::Now(self.find(x))
    }
}

impl Indices {
    fn find(&self, x: &mut Exchange) -> Flow {
        if !x.uri.ends_with(b"/") || !matches!(x.method, Method::Get | Method::Head | Method::Post) {
            return Flow::Decline;
        }
        let mut directory = None;
        for name in &self.0 {
            let name = name.value(x);
            if name.starts_with(b"/") {
                let args = x.args.clone();
                return x.internal_redirect(name, args);
            }
            if directory.is_none() {
                let Some(file) = x.file() else { return Flow::Answer(500) };
                directory = Some((file.path, false));
            }
            let Some((directory, tested)) = &mut directory else { return Flow::Answer(500) };
            let path = [directory.as_slice(), &name].concat();
            let Err((call, error)) = files::metadata(&path, x) else {
                let (uri, args) = ([x.uri.as_slice(), &name].concat(), x.args.clone());
                return x.internal_redirect(uri, args);
            };
            match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EMLINK | Errno::ELOOP) => return Flow::Answer(403),
                Some(Errno::ENOTDIR | Errno::ENAMETOOLONG | Errno::EACCES) => {
                    return not_found(&path, &error, x);
                }
                Some(Errno::ENOENT) => {}
                _ => {
                    let shown = String::from_utf8_lossy(&path);
                    x.log_error(Level::Crit, Some(&error), format_args!("{call} \"{shown}\" failed"));
                    return Flow::Answer(500);
                }
            }
            if !std::mem::replace(tested, true)
                && let Some(flow) = test_directory(directory, &path, x)
            {
                return flow;
            }
        }
        Flow::Decline
    }
}

/// Tells a directory that is not there from one without an index. `path` is the index that was not found first.
fn test_directory(directory: &[u8], path: &[u8], x: &Exchange) -> Option<Flow> {
    let bare = directory.strip_suffix(b"/").filter(|bare| !bare.is_empty()).unwrap_or(directory);
    let shown = String::from_utf8_lossy(bare);
    let (call, error) = match files::metadata(bare, x) {
        Ok(metadata) if metadata.is_dir() => return None,
        Ok(_) => {
            x.log(Level::Alert, format_args!("\"{shown}\" is not a directory"));
            return Some(Flow::Answer(500));
        }
        Err(error) => error,
    };
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMLINK | Errno::ELOOP) => Some(Flow::Answer(403)),
        Some(Errno::ENOENT) => Some(not_found(path, &error, x)),
        // The index itself was not refused, so the directory may be searched.
        Some(Errno::EACCES) => None,
        _ => {
            x.log_error(Level::Crit, Some(&error), format_args!("{call} \"{shown}\" failed"));
            Some(Flow::Answer(500))
        }
    }
}

fn not_found(path: &[u8], error: &io::Error, x: &Exchange) -> Flow {
    let shown = String::from_utf8_lossy(path);
    if error.raw_os_error() == Some(Errno::EACCES as i32) {
        x.log_error(Level::Error, Some(error), format_args!("\"{shown}\" is forbidden"));
        return Flow::Answer(403);
    }
    if x.location().core.log_not_found {
        x.log_error(Level::Error, Some(error), format_args!("\"{shown}\" is not found"));
    }
    Flow::Answer(404)
}

#[cfg(test)]
mod tests {
    use weir_testkit::Folder;

    use crate::testing::{Site, check_conf};

    #[test]
    fn messages() {
        check_conf("index a '';", "index \"\" in \"index\" directive is invalid");
        check_conf("index /a b;", "only the last index in \"index\" directive should be absolute");
    }

    #[test]
    fn names_in_order() {
        let folder =
            Folder::new(&[("index.html", b"top"), ("d/b", b"b"), ("d/c", b"c"), ("x", b"x"), ("al/q", b"q")]);
        let site = Site::new(&format!(
            "server {{ root {0}; location /d/ {{ index none b$arg_n c; }} \
             location /e/ {{ index none /x; }} location /loop/ {{ index /loop/; }} \
             location /o/ {{ index q; alias {0}/al/; }} location /h {{ return 200 $uri; }} }}",
            folder.path().display()
        ));
        for (uri, expected) in [
            ("/", "200 top"),
            ("/d/", "200 b"),
            ("/d/?n=x", "200 c"),
            ("/o/", "200 q"),
            ("/none/", "404"),
            ("/x/", "404"),
            ("/al/", "403"),
            ("/e/", "404"),
            ("/loop/", "500"),
        ] {
            assert_eq!(site.short(uri), expected, "{uri}");
        }
        let root = folder.path().display();
        assert_eq!(
            site.log(),
            [
                format!("\"{root}/none/index.html\" is not found (2: No such file or directory)"),
                format!("\"{root}/x/index.html\" is not found (20: Not a directory)"),
                format!("directory index of \"{root}/al/\" is forbidden"),
                format!("\"{root}/e/none\" is not found (2: No such file or directory)"),
                "rewrite or internal redirection cycle while internally redirecting to \"/loop/\"".into(),
            ]
        );
    }
}

//! `ngx_http_try_files_module`: the first file that is there, or else another path, location or status.

use weir_engine::contract::{Check, Flow, Install, Step};
use weir_engine::generation::Plan;
use weir_engine::http::{self, Exchange, Response};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Takes};
use weir_ir::http::core::Alias;
use weir_ir::{Call, Fault, Merge, Template, value};
use weir_syntax::Diagnostic;

use super::files;

pub struct TryFiles;

type D = Directive<TryFiles>;

impl Module for TryFiles {
    const NAME: &'static str = "http_try_files";
    type Main = ();
    type Scope = Tries;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[D::scope("try_files", Contexts::SERVER.or(Contexts::LOCATION), Takes::TWO_MORE, try_files)];
}

/// `try_files` of one level.
#[derive(Clone, Debug, Default)]
pub struct Tries(Option<(Vec<Try>, Last)>);

#[derive(Clone, Debug)]
struct Try {
    name: Template,
    /// Written with a slash at its end.
    directory: bool,
}

#[derive(Clone, Debug)]
enum Last {
    Code(u16),
    /// A path, or with `@` a named location.
    Target(Template),
}

impl Conf for Tries {
    // Neither inner locations nor an `if` take it over.
    const EVERY_LEVEL: bool = true;

    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

fn try_files(conf: &mut Tries, call: &mut Call<'_>) -> Result<(), Fault> {
    if conf.0.is_some() {
        return Err(call.duplicate());
    }
    let last = call.args().len() - 1;
    let mut tries = vec![];
    for at in 0..last {
        let word = call.arg(at);
        let name = word.strip_suffix(b"/").unwrap_or(word);
        let directory = name.len() < word.len();
        let name = Template::parse(name, call).map_err(|fault| call.under(fault, at))?;
        tries.push(Try { name, directory });
    }
    let target = call.template(last)?;
    let last = match call.arg(last) {
        [b'=', code @ ..] => match value::number(code) {
            // nginx takes no status for one: it is a path like any other.
            Some(0) => Last::Target(target),
            Some(code @ 1..=999) => Last::Code(code as u16),
            Some(_) | None => {
                let mut shown = call.arg(last).to_vec();
                if target.as_literal().is_none() {
                    // nginx counts an end that only texts without variables have.
                    shown.pop();
                }
                let fault = call.fail([b"invalid code \"", shown.as_slice(), b"\""].concat());
                return Err(call.under(fault, last));
            }
        },
        _ => Last::Target(target),
    };
    conf.0 = Some((tries, last));
    Ok(())
}

impl Install for TryFiles {
    fn install(conf: &Tries, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let Some((tries, last)) = &conf.0 else { return Ok(()) };
        let tries = tries.iter().map(|t| (plan.template(&t.name), t.directory)).collect();
        let last = match last {
            Last::Code(code) => Fallback::Code(*code),
            Last::Target(target) => Fallback::Target(plan.template(target)),
        };
        plan.handlers.precontent.push(Box::new(Files { tries, last }));
        Ok(())
    }
}

struct Files {
    /// Names, and whether a directory is asked for.
    tries: Vec<(http::Template, bool)>,
    last: Fallback,
}

enum Fallback {
    Code(u16),
    Target(http::Template),
}

impl Check for Files {
    fn check<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        Step::Now(self.find(x))
    }
}

impl Files {
    fn find(&self, x: &mut Exchange) -> Flow {
        let Some(mut file) = x.file() else { return Flow::Answer(500) };
        file.path.truncate(file.root);
        let root = file.path;
        for (template, directory) in &self.tries {
            let name = below_alias(template, x);
            let path = [root.as_slice(), &name].concat();
            let Some(metadata) = files::stat(&path, x) else { continue };
            if metadata.is_dir() == *directory {
                take(name, *directory, x);
                return Flow::Decline;
            }
        }
        let target = match &self.last {
            // nginx has no page for these, and closes the connection without an answer.
            Fallback::Code(code) if *code < 300 && !matches!(code, 201 | 204) => {
                return Flow::Respond(Box::new(Response { unsent: true, ..Response::default() }));
            }
            Fallback::Code(code) => return Flow::Answer(*code),
            Fallback::Target(target) => below_alias(target, x),
        };
        if target.starts_with(b"@") {
            return x.named_redirect(&target);
        }
        let (uri, args) = match memchr::memchr(b'?', &target) {
            Some(at) => (target[..at].to_vec(), target[at + 1..].to_vec()),
            None => (target, vec![]),
        };
        x.internal_redirect(uri, args)
    }
}

/// The length of the prefix that an `alias` replaces; none in a regex location or without one.
fn replaced(x: &Exchange) -> Option<usize> {
    match x.location().core.alias {
        Some(Alias::Prefix(length)) => Some(length),
        Some(Alias::Whole) | None => None,
    }
}

/// A name as it follows `root` or `alias`: what a variable makes of it (`$uri`) loses the location's prefix.
fn below_alias(template: &http::Template, x: &Exchange) -> Vec<u8> {
    let name = template.value(x);
    match replaced(x).and_then(|length| x.uri.get(..length)) {
        Some(prefix) if template.as_literal().is_none() && name.starts_with(prefix) => {
            name[prefix.len()..].to_vec()
        }
        _ => name,
    }
}

/// Makes a name that was found the request's path.
fn take(name: Vec<u8>, directory: bool, x: &mut Exchange) {
    match (x.location().core.alias.is_some(), replaced(x)) {
        (false, _) => x.uri = name,
        (true, None) if directory => {}
        (true, None) => {
            x.uri = name;
            x.uri_below_alias = true;
        }
        (true, Some(length)) => {
            x.uri.truncate(length);
            x.uri.extend_from_slice(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_testkit::Folder;

    use crate::testing::{Site, check_conf};

    #[test]
    fn messages() {
        let refused = |words: &str, message: &str| {
            check_conf(&format!("server {{ try_files {words}; }}"), message);
        };
        refused("a", "invalid number of arguments in \"try_files\" directive");
        refused("a =x", "invalid code \"=x\"");
        refused("a =1000", "invalid code \"=1000\"");
        refused("a =$uri", "invalid code \"=$ur\"");
        refused("a b; try_files a b", "\"try_files\" directive is duplicate");
        refused("a =404", "");
    }

    #[test]
    fn files_in_order() {
        let folder =
            Folder::new(&[("a.txt", b"a"), ("d/index.html", b"d"), ("fall", b"fall"), ("al/x/y", b"y")]);
        let site = Site::new(&format!(
            "server {{ root {0}; try_files $uri $uri/ =410; \
             location /t/ {{ try_files /none $arg_f /fall; }} \
             location /n/ {{ try_files /none @named; }} location @named {{ return 200 named$uri; }} \
             location /m/ {{ try_files /none @none; }} \
             location /q/ {{ try_files /none /s?$args&x; }} location /s {{ return 200 $uri?$args; }} \
             location /al/ {{ alias {0}/al/x/; try_files $uri /fall; }} \
             location ~ ^/re/(.*) {{ alias {0}/al/; try_files x/$1 =404; }} \
             location /dir/ {{ try_files /d/ =404; }} \
             location /loop {{ try_files /none /loop; }} }}",
            folder.path().display()
        ));
        for (uri, expected) in [
            ("/a.txt", "200 a"),
            ("/t/", "200 fall"),
            ("/t/?f=/a.txt", "200 a"),
            ("/n/x", "200 named/n/x"),
            ("/m/x", "500"),
            ("/q/x?y", "200 /s?y&x"),
            ("/al/y", "200 y"),
            ("/al/z", "200 fall"),
            ("/re/y", "200 y"),
            ("/dir/", "301 http://a.example/d/"),
            ("/loop", "500"),
        ] {
            assert_eq!(site.short(uri), expected, "{uri}");
        }
        let top =
            Site::new(&format!("server {{ root {}; try_files $uri $uri/ =410; }}", folder.path().display()));
        assert_eq!((top.short("/a.txt"), top.short("/zz")), ("200 a".into(), "410".into()));
    }
}

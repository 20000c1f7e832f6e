//! `ngx_http_random_index_module`: any file of a directory answers for it.

use std::fs::ReadDir;
use std::io;
use std::os::unix::ffi::OsStringExt;

use weir_engine::contract::{Content, Flow, Install, Step};
use weir_engine::generation::Plan;
use weir_engine::http::Exchange;
use weir_engine::http1::Method;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Fault, Merge};
use weir_syntax::{Diagnostic, Level};

use super::files;

pub struct RandomIndex;

impl Module for RandomIndex {
    const NAME: &'static str = "http_random_index";
    type Main = ();
    type Scope = Enabled;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[Directive::<RandomIndex>::scope("random_index", Contexts::LOCATION, Takes::FLAG, |on, call| {
            on.0.flag(call)
        })];
}

#[derive(Clone, Debug, Default)]
pub struct Enabled(Setting<bool>);

impl Conf for Enabled {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.0.inherit(&outer.0);
        Ok(())
    }
}

impl Install for RandomIndex {
    fn install(on: &Enabled, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if on.0.or(false) {
            plan.handlers.content.push(Box::new(AnyFile));
        }
        Ok(())
    }
}

struct AnyFile;

impl Content for AnyFile {
    fn respond<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        Step::Now(pick(x))
    }
}

fn pick(x: &mut Exchange) -> Flow {
    if !x.uri.ends_with(b"/") || !matches!(x.method, Method::Get | Method::Head | Method::Post) {
        return Flow::Decline;
    }
    let Some(mut directory) = x.file().map(|file| file.path) else { return Flow::Answer(500) };
    if directory.len() > 1 {
        directory.pop();
    }
    let mut files = match std::fs::read_dir(files::path(&directory)) {
        Ok(entries) => match names(entries, &directory, x) {
            Ok(names) => names,
            Err(()) => return Flow::Answer(500),
        },
        Err(error) => return files::not_opened(&directory, &error, x),
    };
    if files.is_empty() {
        return Flow::Decline;
    }
    let mut random = [0u8; 8];
    // The generator fails only where the system has no randomness at all; then the first file will do.
    let _ = aws_lc_rs::rand::fill(&mut random);
    let at = (u64::from_ne_bytes(random) % files.len() as u64) as usize;
    let (uri, args) = ([x.uri.as_slice(), &files.swap_remove(at)].concat(), x.args.clone());
    x.internal_redirect(uri, args)
}

/// The regular files of a directory, hidden ones left out. What went wrong is logged.
fn names(entries: ReadDir, directory: &[u8], x: &Exchange) -> Result<Vec<Vec<u8>>, ()> {
    let mut names = vec![];
    for entry in entries {
        let entry = entry.map_err(|error| {
            let shown = String::from_utf8_lossy(directory);
            x.log_error(Level::Crit, Some(&error), format_args!("readdir() \"{shown}\" failed"));
        })?;
        let name = entry.file_name().into_vec();
        if name.starts_with(b".") {
            continue;
        }
        // A link counts as what it leads to, and one that leads nowhere is no file.
        let kind = match entry.file_type() {
            Ok(kind) if kind.is_symlink() => entry.path().metadata().map(|metadata| metadata.file_type()),
            kind => kind,
        };
        let kind = match kind {
            Ok(kind) => kind,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let shown = entry.path();
                x.log_error(Level::Crit, Some(&error), format_args!("stat() \"{}\" failed", shown.display()));
                return Err(());
            }
        };
        if kind.is_file() {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use weir_testkit::Folder;

    use crate::testing::{Site, check_conf};

    #[test]
    fn messages() {
        check_conf(
            "server { location / { random_index on; random_index on; } }",
            "\"random_index\" directive is duplicate",
        );
        check_conf(
            "server { location / { random_index x; } }",
            "invalid value \"x\" in \"random_index\" directive, it must be \"on\" or \"off\"",
        );
    }

    #[test]
    fn any_file_of_a_directory() {
        let folder = Folder::new(&[
            ("d/a", b"a"),
            ("d/b", b"b"),
            ("d/.hidden", b"hidden"),
            ("d/e/f", b"f"),
            ("empty/.keep", b""),
            ("link/.keep", b""),
        ]);
        let link = |to: &str, name: &str| {
            std::os::unix::fs::symlink(to, folder.path().join("link").join(name)).unwrap();
        };
        link("../d/a", "a");
        link("nowhere", "broken");
        link("../d", "directory");
        let site = Site::new(&format!(
            "server {{ root {0}; location / {{ random_index on; location /d/e/ {{ random_index off; }} }} }}",
            folder.path().display()
        ));
        let seen: std::collections::BTreeSet<_> = (0..64).map(|_| site.short("/d/")).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["200 a", "200 b"]);
        for (uri, expected) in
            [("/link/", "200 a"), ("/empty/", "403"), ("/none/", "404"), ("/d/a/", "404"), ("/d/e/", "403")]
        {
            assert_eq!(site.short(uri), expected, "{uri}");
        }
        let root = folder.path().display();
        assert_eq!(
            site.log()[1..3],
            [
                format!("opendir() \"{root}/none\" failed (2: No such file or directory)"),
                format!("opendir() \"{root}/d/a\" failed (20: Not a directory)"),
            ]
        );
    }
}

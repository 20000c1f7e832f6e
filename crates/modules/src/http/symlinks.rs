//! `disable_symlinks`: a file is reached folder by folder, so that no symbolic link on the way leads elsewhere.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, fstatat};
use weir_engine::http::Exchange;

/// How one path is to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Strict {
    /// Links lead on to what their own owner has.
    same_owner: bool,
    /// The length of what may have links in it.
    from: usize,
}

/// What the request's location says of that path; none where links may be followed.
pub(super) fn of(path: &[u8], x: &Exchange) -> Option<Strict> {
    let symlinks = x.location().core.symlinks.as_ref()?;
    let from = match &symlinks.from {
        Some(from) => length_of(&from.value(x), path)?,
        None => 0,
    };
    Some(Strict { same_owner: symlinks.same_owner, from })
}

/// How much of the path is the part that is spared; none where all of it is. The part ends with a folder.
fn length_of(from: &[u8], path: &[u8]) -> Option<usize> {
    let rest = path.strip_prefix(from).filter(|_| !from.is_empty());
    match (rest, from) {
        (Some([]), _) => None,
        (Some([b'/', ..]), _) => Some(from.len()),
        (Some(_), [.., b'/']) => Some(from.len() - 1),
        (Some(_) | None, _) => Some(0),
    }
}

const SEARCH: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NONBLOCK);

impl Strict {
    /// What tells it from others.
    pub(super) fn way(self) -> (bool, usize) {
        (self.same_owner, self.from)
    }

    /// Opens the file, or tells which call failed. A link that may not be followed is `ELOOP`, or
    /// `ENOTDIR` on the way.
    pub(super) fn open(
        self,
        path: &[u8],
        flags: OFlag,
        mode: Mode,
    ) -> Result<File, (&'static str, io::Error)> {
        let (call, first) = match (self.from, path.first()) {
            (0, Some(b'/')) => ("openat()", &b"/"[..]),
            (0, _) => ("openat()", &b"."[..]),
            (from, _) => ("open()", &path[..from]),
        };
        let mut at = open(first, SEARCH | OFlag::O_CLOEXEC, Mode::empty()).map_err(|e| (call, e.into()))?;
        let failed = |errno: Errno| ("openat()", io::Error::from(errno));
        let rest = &path[self.from..];
        let (folders, name) = match memchr::memrchr(b'/', rest) {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (&rest[..0], rest),
        };
        for folder in folders.split(|byte| *byte == b'/').filter(|folder| !folder.is_empty()) {
            at = self.step(&at, folder, SEARCH).map_err(failed)?;
        }
        let flags = flags | OFlag::O_CLOEXEC;
        let file = match name {
            // The folder itself, now to be read.
            b"" => openat(&at, ".", flags, mode),
            // Whose link it is cannot be asked of what may have to be made.
            _ if flags.contains(OFlag::O_CREAT) => openat(&at, name, flags | OFlag::O_NOFOLLOW, mode),
            _ => self.step(&at, name, flags),
        };
        Ok(File::from(file.map_err(failed)?))
    }

    fn step(self, at: &OwnedFd, name: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC;
        if !self.same_owner {
            return openat(at, name, flags | OFlag::O_NOFOLLOW, Mode::empty());
        }
        // Between the two calls a link may come or go, so what is no link is compared too.
        let opened = openat(at, name, flags, Mode::empty())?;
        let itself = fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let opened = File::from(opened);
        let behind = opened.metadata().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        if behind.uid() == itself.st_uid { Ok(opened.into()) } else { Err(Errno::ELOOP) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{lchown, symlink};

    use weir_testkit::Folder;

    use super::*;
    use crate::testing::{Site, check_conf};

    #[test]
    fn messages() {
        let refused = |words: &str, message: &str| check_conf(&format!("disable_symlinks {words};"), message);
        refused("none", "invalid parameter \"none\"");
        refused("on on", "duplicate parameters \"on on\"");
        refused("from=/a", "\"disable_symlinks\" must have \"off\", \"on\" or \"if_not_owner\" parameter");
        refused("off from=/a", "\"from=\" cannot be used with \"off\" parameter");
        refused("on; disable_symlinks off", "\"disable_symlinks\" directive is duplicate");
        refused("on from=", "");
        refused("from=$document_root if_not_owner", "");
    }

    #[test]
    fn what_is_spared() {
        #[track_caller]
        fn check(from: &str, path: &str, expected: Option<usize>) {
            assert_eq!(length_of(from.as_bytes(), path.as_bytes()), expected, "{from} {path}");
        }
        check("/a", "/a/b", Some(2));
        check("/a/", "/a/b", Some(2));
        check("/a/b", "/a/b", None);
        check("/a", "/ab", Some(0));
        check("/b", "/a", Some(0));
        check("/a/b", "/a", Some(0));
        check("", "/a", Some(0));
        check("/", "/a", Some(0));
    }

    /// A folder with links of each kind in it.
    fn folder() -> Folder {
        let folder = Folder::new(&[("d/a.html", b"a"), ("d/index.html", b"i"), ("d/a.html.gz", b"z")]);
        let path = folder.path();
        symlink("a.html", path.join("d/link")).unwrap();
        symlink("d", path.join("to")).unwrap();
        symlink("index.html", path.join("d/other")).unwrap();
        symlink("a.html.gz", path.join("d/index.html.gz")).unwrap();
        folder
    }

    #[test]
    fn links_are_refused_wherever_files_are_opened() {
        let folder = folder();
        let root = folder.path().display();
        let strict = "disable_symlinks on";
        let site = Site::new(&format!(
            "server {{ root {root}; {strict}; \
             location /free/ {{ disable_symlinks off; alias {root}/; }} \
             location /d/index {{ gzip_static always; }} \
             location /try/ {{ try_files /d/link /d/a.html =404; }} \
             location /if/ {{ if (-f {root}/d/link) {{ return 204; }} return 205; }} \
             location /in/ {{ {strict} from={root}/to; alias {root}/to/; index other a.html; }} }}"
        ));
        for (uri, expected) in [
            ("/d/a.html", "200 a"),
            ("/d/link", "403"),
            // The kernel's word for a link where a folder is expected is that it is none.
            ("/to/a.html", "404"),
            ("/to/", "404"),
            ("/d/", "200 i"),
            ("/d/index.html", "200 i"),
            ("/free/d/link", "200 a"),
            ("/free/to/link", "200 a"),
            ("/try/", "200 a"),
            ("/if/", "205"),
            ("/in/a.html", "200 a"),
            ("/in/link", "403"),
            ("/in/", "403"),
            ("/none/x", "404"),
        ] {
            assert_eq!(site.short(uri), expected, "{uri}");
        }
        assert_eq!(
            site.log()[0],
            format!("openat() \"{root}/d/link\" failed (40: Too many levels of symbolic links)")
        );
    }

    #[test]
    fn a_link_leads_to_what_its_owner_has() {
        let folder = folder();
        let root = folder.path();
        let site =
            Site::new(&format!("server {{ root {}; disable_symlinks if_not_owner; }}", root.display()));
        assert_eq!((site.short("/to/link"), site.short("/d/a.html")), ("200 a".into(), "200 a".into()));
        // Only root can give files away.
        if lchown(root.join("d/link"), Some(1), None).is_ok() {
            assert_eq!((site.short("/d/link"), site.short("/d/other")), ("403".into(), "200 i".into()));
        }
    }
}

//! Where weir looks when it is not told: the compile-time paths and nginx's rules to resolve them.
//!
//! The defaults are those of the Debian package of nginx, so that weir finds an installed configuration; a packager
//! changes them at build time with `WEIR_PREFIX`, `WEIR_CONF`, `WEIR_ERROR_LOG`, `WEIR_PID`, `WEIR_USER`, `WEIR_GROUP`,
//! as nginx's `configure` does with its `--…-path` options.

use crate::args::Options;

macro_rules! built_in {
    ($variable:literal, $otherwise:literal) => {
        match option_env!($variable) {
            Some(path) => path,
            None => $otherwise,
        }
    };
}

/// What relative paths of the command line start from; ends in a slash.
pub const PREFIX: &str = built_in!("WEIR_PREFIX", "/etc/nginx/");
/// The configuration file without `-c`.
pub const CONF: &str = built_in!("WEIR_CONF", "/etc/nginx/nginx.conf");
/// The error log until (and unless) `error_log` names one.
pub const ERROR_LOG: &str = built_in!("WEIR_ERROR_LOG", "/var/log/nginx/error.log");
/// The pid file without the `pid` directive.
pub const PID: &str = built_in!("WEIR_PID", "/run/nginx.pid");
/// Whom workers run as without the `user` directive.
pub const USER: &str = built_in!("WEIR_USER", "nobody");
/// The group of workers without the `user` directive; empty: the primary group of [`USER`].
pub const GROUP: &str = built_in!("WEIR_GROUP", "");

/// The paths of a run, resolved as nginx resolves them. Paths are bytes: nginx never asks for UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Start of relative paths (logs, pid, temporary files); empty or ends in `/`.
    pub prefix: Vec<u8>,
    /// Start of relative paths inside the configuration (includes, certificates): the folder of the configuration file.
    pub conf_prefix: Vec<u8>,
    pub conf_file: Vec<u8>,
    pub error_log: ErrorLog,
}

/// The log that exists before the configuration is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorLog {
    /// `-e stderr`, or an empty name.
    Stderr,
    File(Vec<u8>),
}

impl Paths {
    pub fn of(options: &Options) -> Paths {
        let prefix = match &options.prefix {
            Some(given) if !given.is_empty() && !given.ends_with(b"/") => [given, &b"/"[..]].concat(),
            Some(given) => given.clone(),
            None => PREFIX.into(),
        };
        let conf_file = full_name(&prefix, options.conf_file.as_deref().unwrap_or(CONF.as_bytes()));
        // A file directly under `/` leaves the prefix in place: nginx looks for the slash after the first byte only.
        let conf_prefix = match conf_file.iter().rposition(|&byte| byte == b'/') {
            Some(slash) if slash > 0 => conf_file[..=slash].to_vec(),
            _ => prefix.clone(),
        };
        let error_log = match options.error_log.as_deref().unwrap_or(ERROR_LOG.as_bytes()) {
            b"" | b"stderr" => ErrorLog::Stderr,
            name => ErrorLog::File(full_name(&prefix, name)),
        };
        Paths { prefix, conf_prefix, conf_file, error_log }
    }
}

/// `name` itself if absolute, else under `prefix`.
pub fn full_name(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    if name.starts_with(b"/") { name.to_vec() } else { [prefix, name].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    #[track_caller]
    fn check(words: &[&str], prefix: &str, conf_prefix: &str, conf_file: &str, error_log: Option<&str>) {
        let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        let Ok(Command::Run(options)) = parse(&words) else { panic!("not a run: {words:?}") };
        let expected = Paths {
            prefix: prefix.into(),
            conf_prefix: conf_prefix.into(),
            conf_file: conf_file.into(),
            error_log: error_log.map_or(ErrorLog::Stderr, |path| ErrorLog::File(path.into())),
        };
        assert_eq!(Paths::of(&options), expected);
    }

    #[test]
    fn defaults_come_from_the_build() {
        check(&[], PREFIX, "/etc/nginx/", CONF, Some(ERROR_LOG));
    }

    #[test]
    fn a_prefix_gets_its_slash_and_carries_relative_names() {
        check(
            &["-p", "/srv", "-c", "a/b.conf", "-e", "l"],
            "/srv/",
            "/srv/a/",
            "/srv/a/b.conf",
            Some("/srv/l"),
        );
        check(&["-p", "rel/", "-c", "b.conf"], "rel/", "rel/", "rel/b.conf", Some(ERROR_LOG));
        check(&["-p", "", "-c", "b.conf", "-e", ""], "", "", "b.conf", None);
    }

    #[test]
    fn absolute_names_ignore_the_prefix() {
        check(&["-p/srv", "-c/x/n.conf", "-estderr"], "/srv/", "/x/", "/x/n.conf", None);
        check(&["-p/srv", "-c/n.conf", "-estderr"], "/srv/", "/srv/", "/n.conf", None);
    }
}

//! Where weir looks when it is not told: the compile-time paths and nginx's rules to resolve them.
//!
//! Without `-p` the defaults are those of the Debian package of nginx, so that weir finds an installed configuration; a
//! packager changes them at build time with `WEIR_PREFIX`, `WEIR_CONF`, `WEIR_LOGS`, `WEIR_STATE`, `WEIR_PID`,
//! `WEIR_USER`, `WEIR_GROUP`, as nginx's `configure` does with its `--…-path` options. With `-p` everything is below that
//! folder, as in an nginx built from source: `conf/nginx.conf`, `logs/error.log`, `logs/nginx.pid`.

use crate::args::Options;

macro_rules! built_in {
    ($variable:literal, $otherwise:literal) => {
        match option_env!($variable) {
            Some(path) => path,
            None => $otherwise,
        }
    };
}

/// What relative paths start from without `-p`; ends in a slash.
pub const PREFIX: &str = built_in!("WEIR_PREFIX", "/usr/share/nginx/");
/// The configuration file without `-c` and `-p`.
pub const CONF: &str = built_in!("WEIR_CONF", "/etc/nginx/nginx.conf");
/// The folder of logs without `-p`; ends in a slash.
pub const LOGS: &str = built_in!("WEIR_LOGS", "/var/log/nginx/");
/// The folder of temporary files without `-p`; ends in a slash.
pub const STATE: &str = built_in!("WEIR_STATE", "/var/lib/nginx/");
/// The pid file without the `pid` directive and `-p`.
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
    /// The error log until (and unless) `error_log` names one.
    pub error_log: ErrorLog,
    /// The log of requests where no `access_log` names one.
    pub access_log: Vec<u8>,
    /// The pid file without the `pid` directive.
    pub pid: Vec<u8>,
    /// Start of the folders for temporary files.
    pub state: Vec<u8>,
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
        let given = options.prefix.is_some();
        let default = |below: &str, alone: String| if given { below.to_owned() } else { alone };
        let conf_default = default("conf/nginx.conf", CONF.into()).into_bytes();
        let conf_file = full_name(&prefix, options.conf_file.as_ref().unwrap_or(&conf_default));
        // A file directly under `/` leaves the prefix in place: nginx looks for the slash after the first byte only.
        let conf_prefix = match conf_file.iter().rposition(|&byte| byte == b'/') {
            Some(slash) if slash > 0 => conf_file[..=slash].to_vec(),
            _ => prefix.clone(),
        };
        let log_default = default("logs/error.log", format!("{LOGS}error.log")).into_bytes();
        let error_log = match options.error_log.as_ref().unwrap_or(&log_default).as_slice() {
            b"" | b"stderr" => ErrorLog::Stderr,
            name => ErrorLog::File(full_name(&prefix, name)),
        };
        let below = |name: String| full_name(&prefix, name.as_bytes());
        Paths {
            access_log: below(default("logs/access.log", format!("{LOGS}access.log"))),
            pid: below(default("logs/nginx.pid", PID.into())),
            state: below(default("", STATE.into())),
            conf_prefix,
            conf_file,
            error_log,
            prefix,
        }
    }

    /// Makes the folders of the built-in defaults, which otherwise a package makes; what cannot be made shows when it
    /// is used.
    pub fn make_default_folders() {
        for folder in [LOGS, STATE] {
            let _ = std::fs::create_dir_all(folder);
        }
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

    fn paths(words: &[&str]) -> Paths {
        let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        let Ok(Command::Run(options)) = parse(&words) else { panic!("not a run: {words:?}") };
        Paths::of(&options)
    }

    #[track_caller]
    fn check(words: &[&str], prefix: &str, conf_prefix: &str, conf_file: &str, error_log: Option<&str>) {
        let paths = paths(words);
        assert_eq!(paths.prefix, prefix.as_bytes());
        assert_eq!(paths.conf_prefix, conf_prefix.as_bytes());
        assert_eq!(paths.conf_file, conf_file.as_bytes());
        assert_eq!(paths.error_log, error_log.map_or(ErrorLog::Stderr, |path| ErrorLog::File(path.into())));
    }

    #[test]
    fn defaults_come_from_the_build() {
        check(&[], PREFIX, "/etc/nginx/", CONF, Some("/var/log/nginx/error.log"));
        assert_eq!(paths(&[]).pid, PID.as_bytes());
        assert_eq!(paths(&[]).state, STATE.as_bytes());
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
        check(&["-p", "rel/", "-c", "b.conf"], "rel/", "rel/", "rel/b.conf", Some("rel/logs/error.log"));
        check(&["-p", "", "-c", "b.conf", "-e", ""], "", "", "b.conf", None);
        assert_eq!(paths(&["-p", "/srv"]).conf_file, b"/srv/conf/nginx.conf");
        assert_eq!(paths(&["-p", "/srv"]).access_log, b"/srv/logs/access.log");
        assert_eq!(paths(&["-p", "/srv"]).pid, b"/srv/logs/nginx.pid");
    }

    #[test]
    fn absolute_names_ignore_the_prefix() {
        check(&["-p/srv", "-c/x/n.conf", "-estderr"], "/srv/", "/x/", "/x/n.conf", None);
        check(&["-p/srv", "-c/n.conf", "-estderr"], "/srv/", "/srv/", "/n.conf", None);
    }
}

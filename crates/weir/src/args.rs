//! The command line, read as nginx reads it: short options in clusters, values glued or apart, its words for each error.
//!
//! Nothing is done here and nothing printed; `main` acts on the [`Command`]. weir adds two long options and one
//! subcommand where nginx knows only errors, so no command line that nginx accepts means anything else here.

use std::fmt::{self, Display, Write as _};

use weir_engine::NGINX_VERSION;

use crate::paths;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Everything that nginx does too.
    Run(Options),
    /// `--directives`: print the table of directives and their standing.
    Directives,
    /// `demo`: serve a small site out of the binary, or print its configuration.
    Demo { print_config: bool },
}

/// nginx's options; the last of repeated ones wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `-?`, `-h`: usage; implies `version`.
    pub help: bool,
    /// `-v`: print the version and, unless `test` is on too, exit.
    pub version: bool,
    /// `-V`: with the build options; implies `version`.
    pub configure: bool,
    /// `-t`
    pub test: bool,
    /// `-T`: print the configuration as well; implies `test`.
    pub dump: bool,
    /// `-q`: only errors when testing.
    pub quiet: bool,
    /// `-s`
    pub signal: Option<Signal>,
    /// `-p`, as written.
    pub prefix: Option<Vec<u8>>,
    /// `-e`, as written.
    pub error_log: Option<Vec<u8>>,
    /// `-c`, as written.
    pub conf_file: Option<Vec<u8>>,
    /// `-g`: directives read before the configuration file.
    pub directives: Option<Vec<u8>>,
    /// `--explain-errors`: diagnostics with source lines also where stderr is no terminal.
    pub explain_errors: bool,
}

/// What `-s` sends to the running master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Stop,
    Quit,
    Reopen,
    Reload,
}

/// A command line that nginx refuses; shown as nginx's text without the program's name. Exit code 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(Vec<u8>);

impl Refusal {
    /// The text as bytes, since it may quote an argument that is not UTF-8.
    pub fn text(&self) -> &[u8] {
        &self.0
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl std::error::Error for Refusal {}

/// Reads the arguments after the program's name.
pub fn parse(words: &[Vec<u8>]) -> Result<Command, Refusal> {
    match words {
        [demo, rest @ ..] if demo == b"demo" => return parse_demo(rest),
        [directives] if directives == b"--directives" => return Ok(Command::Directives),
        _ => {}
    }
    let mut options = Options::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == b"--explain-errors" {
            options.explain_errors = true;
            continue;
        }
        let Some((b'-', cluster)) = word.split_first() else {
            return Err(refusal(b"invalid option: \"", word, b"\""));
        };
        for (at, &letter) in cluster.iter().enumerate() {
            // An option with a value takes the rest of its cluster, or else the next word.
            let mut value = |missing: &str| match &cluster[at + 1..] {
                [] => words.next().cloned().ok_or_else(|| Refusal(missing.into())),
                glued => Ok(glued.to_vec()),
            };
            match letter {
                b'?' | b'h' => {
                    options.version = true;
                    options.help = true;
                    continue;
                }
                b'v' => {
                    options.version = true;
                    continue;
                }
                b'V' => {
                    options.version = true;
                    options.configure = true;
                    continue;
                }
                b't' => {
                    options.test = true;
                    continue;
                }
                b'T' => {
                    options.test = true;
                    options.dump = true;
                    continue;
                }
                b'q' => {
                    options.quiet = true;
                    continue;
                }
                b'p' => options.prefix = Some(value("option \"-p\" requires directory name")?),
                b'e' => options.error_log = Some(value("option \"-e\" requires file name")?),
                b'c' => options.conf_file = Some(value("option \"-c\" requires file name")?),
                b'g' => options.directives = Some(value("option \"-g\" requires parameter")?),
                b's' => {
                    let name = value("option \"-s\" requires parameter")?;
                    options.signal = Some(match name.as_slice() {
                        b"stop" => Signal::Stop,
                        b"quit" => Signal::Quit,
                        b"reopen" => Signal::Reopen,
                        b"reload" => Signal::Reload,
                        _ => return Err(refusal(b"invalid option: \"-s ", &name, b"\"")),
                    });
                }
                other => return Err(refusal(b"invalid option: \"", &[other], b"\"")),
            }
            break;
        }
    }
    Ok(Command::Run(options))
}

fn parse_demo(words: &[Vec<u8>]) -> Result<Command, Refusal> {
    match words {
        [] => Ok(Command::Demo { print_config: false }),
        [word] if word == b"--print-config" => Ok(Command::Demo { print_config: true }),
        [word, ..] => Err(refusal(b"invalid option: \"", word, b"\"")),
    }
}

fn refusal(before: &[u8], word: &[u8], after: &[u8]) -> Refusal {
    Refusal([before, word, after].concat())
}

/// The program's own name as it was called: what stands before the colon of its messages.
pub fn program_name(arg0: &[u8]) -> String {
    let name = arg0.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    if name.is_empty() { "weir".to_owned() } else { String::from_utf8_lossy(name).into_owned() }
}

/// What `-v`, `-V` and `-h` print on stderr. `built_in` are the options of configure that this build
/// stands for.
pub fn version_text(options: &Options, program: &str, built_in: &[&str]) -> String {
    let mut text = concat!("weir version: weir/", env!("CARGO_PKG_VERSION"), "\n").to_owned();
    if options.help {
        text.push_str(&usage(program));
    }
    if options.configure {
        // As scripts read it.
        text.push_str("nginx version: nginx/");
        text.push_str(NGINX_VERSION);
        text.push_str("\nbuilt with rustls/aws-lc\nTLS SNI support enabled\nconfigure arguments: --prefix=");
        text.push_str(paths::PREFIX.strip_suffix('/').unwrap_or(paths::PREFIX));
        for option in built_in {
            text.push(' ');
            text.push_str(option);
        }
        text.push('\n');
    }
    text
}

fn usage(program: &str) -> String {
    let error_log = format!("{}error.log", paths::LOGS);
    let lines: [(&str, &str, Option<&str>); 12] = [
        ("-?,-h", "this help", None),
        ("-v", "show version and exit", None),
        ("-V", "show version and configure options then exit", None),
        ("-t", "test configuration and exit", None),
        ("-T", "test configuration, dump it and exit", None),
        ("-q", "suppress non-error messages during configuration testing", None),
        ("-s signal", "send signal to a master process: stop, quit, reopen, reload", None),
        ("-p prefix", "set prefix path", Some(paths::PREFIX)),
        ("-e filename", "set error log file", Some(&error_log)),
        ("-c filename", "set configuration file", Some(paths::CONF)),
        ("-g directives", "set global directives out of configuration file", None),
        ("--explain-errors", "show source lines with configuration errors", None),
    ];
    let mut text = format!(
        "Usage: {program} [-?hvVtTq] [-s signal] [-p prefix]\n\
         {:indent$}[-e filename] [-c filename] [-g directives]\n\
         {:indent$}[--explain-errors]\n\
         \x20      {program} --directives\n\
         \x20      {program} demo [--print-config]\n\nOptions:\n",
        "",
        "",
        indent = "Usage:  ".len() + program.len(),
    );
    for (option, meaning, default) in lines {
        // Writing to a String cannot fail.
        let _ = match default {
            Some(path) => writeln!(text, "  {option:<14}: {meaning} (default: {path})"),
            None => writeln!(text, "  {option:<14}: {meaning}"),
        };
    }
    text.push_str("  --directives  : list the directives of nginx and their standing here\n");
    text.push_str("  demo          : serve a demonstration site\n\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str]) -> Vec<Vec<u8>> {
        line.iter().map(|word| word.as_bytes().to_vec()).collect()
    }

    #[track_caller]
    fn check(line: &[&str], change: impl FnOnce(&mut Options)) {
        let mut expected = Options::default();
        change(&mut expected);
        assert_eq!(parse(&words(line)), Ok(Command::Run(expected)), "{line:?}");
    }

    #[track_caller]
    fn refused(line: &[&str], text: &str) {
        assert_eq!(
            parse(&words(line)).map_err(|refusal| refusal.to_string()),
            Err(text.to_owned()),
            "{line:?}"
        );
    }

    #[test]
    fn flags_come_alone_or_in_a_cluster() {
        check(&[], |_| {});
        check(&["-"], |_| {});
        check(&["-t", "-q"], |o| (o.test, o.quiet) = (true, true));
        check(&["-tq"], |o| (o.test, o.quiet) = (true, true));
        check(&["-qT"], |o| (o.test, o.dump, o.quiet) = (true, true, true));
        check(&["-?"], |o| (o.help, o.version) = (true, true));
        check(&["-hV"], |o| (o.help, o.version, o.configure) = (true, true, true));
        check(&["-v", "--explain-errors"], |o| (o.version, o.explain_errors) = (true, true));
    }

    #[test]
    fn values_are_glued_or_apart_and_end_a_cluster() {
        check(&["-c", "x"], |o| o.conf_file = Some(b"x".to_vec()));
        check(&["-cx"], |o| o.conf_file = Some(b"x".to_vec()));
        check(&["-tcq"], |o| (o.test, o.conf_file) = (true, Some(b"q".to_vec())));
        check(&["-tc", "-q"], |o| (o.test, o.conf_file) = (true, Some(b"-q".to_vec())));
        check(&["-c", ""], |o| o.conf_file = Some(Vec::new()));
        check(&["-c", "a", "-c", "b"], |o| o.conf_file = Some(b"b".to_vec()));
        check(&["-g", "daemon off;", "-p/x", "-e", "stderr"], |o| {
            o.directives = Some(b"daemon off;".to_vec());
            o.prefix = Some(b"/x".to_vec());
            o.error_log = Some(b"stderr".to_vec());
        });
    }

    #[test]
    fn signals_have_four_names() {
        check(&["-s", "stop"], |o| o.signal = Some(Signal::Stop));
        check(&["-squit"], |o| o.signal = Some(Signal::Quit));
        check(&["-s", "reopen"], |o| o.signal = Some(Signal::Reopen));
        check(&["-ts", "reload"], |o| (o.test, o.signal) = (true, Some(Signal::Reload)));
        refused(&["-s", "foo"], "invalid option: \"-s foo\"");
        refused(&["-s", ""], "invalid option: \"-s \"");
        refused(&["-stop"], "invalid option: \"-s top\"");
    }

    #[test]
    fn refusals_are_nginx_texts() {
        refused(&["x"], "invalid option: \"x\"");
        refused(&[""], "invalid option: \"\"");
        refused(&["-x"], "invalid option: \"x\"");
        refused(&["-tx"], "invalid option: \"x\"");
        refused(&["--help"], "invalid option: \"-\"");
        refused(&["-p"], "option \"-p\" requires directory name");
        refused(&["-e"], "option \"-e\" requires file name");
        refused(&["-c"], "option \"-c\" requires file name");
        refused(&["-g"], "option \"-g\" requires parameter");
        refused(&["-t", "-s"], "option \"-s\" requires parameter");
    }

    #[test]
    fn a_refusal_keeps_bytes_that_are_not_utf8() {
        let refusal = parse(&[vec![b'-', 0xff]]).unwrap_err();
        assert_eq!(refusal.text(), b"invalid option: \"\xff\"");
    }

    #[test]
    fn own_commands() {
        assert_eq!(parse(&words(&["--directives"])), Ok(Command::Directives));
        assert_eq!(parse(&words(&["demo"])), Ok(Command::Demo { print_config: false }));
        assert_eq!(parse(&words(&["demo", "--print-config"])), Ok(Command::Demo { print_config: true }));
        refused(&["demo", "-x"], "invalid option: \"-x\"");
        refused(&["-t", "demo"], "invalid option: \"demo\"");
    }

    #[test]
    fn the_name_is_the_last_part_of_arg0() {
        for (arg0, name) in [("/usr/sbin/nginx", "nginx"), ("weir", "weir"), ("./weir", "weir"), ("", "weir")]
        {
            assert_eq!(program_name(arg0.as_bytes()), name);
        }
    }

    #[test]
    fn version_help_and_build() {
        let version = "weir version: weir/0.1.0\n";
        assert_eq!(version_text(&Options::default(), "nginx", &[]), version);
        let build =
            version_text(&Options { configure: true, ..Options::default() }, "nginx", &["--with-stream"]);
        assert_eq!(
            build,
            format!(
                "{version}nginx version: nginx/{NGINX_VERSION}\nbuilt with rustls/aws-lc\nTLS SNI support enabled\n\
                 configure arguments: --prefix=/usr/share/nginx --with-stream\n"
            )
        );
        let help = version_text(&Options { help: true, ..Options::default() }, "nginx", &[]);
        let lines: Vec<&str> = help.lines().collect();
        assert_eq!(lines[1], "Usage: nginx [-?hvVtTq] [-s signal] [-p prefix]");
        assert_eq!(lines[2], "             [-e filename] [-c filename] [-g directives]");
        assert!(lines.contains(&"  -?,-h         : this help"));
        assert!(lines.contains(&"  -p prefix     : set prefix path (default: /usr/share/nginx/)"));
    }
}

//! Runs each case of `conformance/cases` against a server and compares what it does with what nginx did.

mod clock;
mod diff;
mod http2;
mod normal;
mod origin;
mod run;
mod server;
mod steps;
mod wire;

use run::Setup;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// An error is for the person at the terminal: its text is all that matters.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "\
Usage: weir-conformance [options] [case ...]

Runs the cases whose names hold one of the given texts, or all.

  --binary PATH   the server (default: target/release/weir, else target/debug/weir)
  --record PATH   writes what this nginx (1.29.7 or later) does as what is expected
  --root DIR      the folder with cases/, skips.tsv and ../fixtures (default: conformance)
  --jobs N        cases at a time (default: 2)
  --limit SECONDS how long one step may take (default: 5)
  --keep          leave the prefixes of the cases in /tmp
  --list          print the names of the cases only
";

/// The oldest nginx whose defaults (HTTP/1.1 to backends with keep-alive) are those of the cases.
const OLDEST: (u32, u32, u32) = (1, 29, 7);

struct Options {
    binary: Option<PathBuf>,
    record: Option<PathBuf>,
    root: PathBuf,
    jobs: usize,
    limit: Duration,
    keep: bool,
    list: bool,
    names: Vec<String>,
}

fn options() -> Result<Options> {
    let mut options = Options {
        binary: None,
        record: None,
        root: PathBuf::from("conformance"),
        jobs: 2,
        limit: Duration::from_secs(5),
        keep: false,
        list: false,
        names: Vec::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} takes a value"));
        match arg.as_str() {
            "--binary" => options.binary = Some(value()?.into()),
            "--record" => options.record = Some(value()?.into()),
            "--root" => options.root = value()?.into(),
            "--jobs" => options.jobs = value()?.parse()?,
            "--limit" => options.limit = Duration::from_secs(value()?.parse()?),
            "--keep" => options.keep = true,
            "--list" => options.list = true,
            "-h" | "--help" => return Err(USAGE.into()),
            name if name.starts_with('-') => return Err(format!("unknown option {name}\n\n{USAGE}").into()),
            name => options.names.push(name.to_owned()),
        }
    }
    Ok(options)
}

/// What became of a case.
enum Verdict {
    Passed,
    /// With the difference or the error.
    Failed(String),
    Recorded {
        changed: bool,
    },
}

fn main() -> ExitCode {
    match options().and_then(|options| conform(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(2)
        }
    }
}

fn conform(options: &Options) -> Result<bool> {
    let cases = cases(&options.root.join("cases"), &options.names)?;
    if options.list {
        cases.keys().for_each(|name| eprintln!("{name}"));
        return Ok(true);
    }
    if let Some(nginx) = &options.record {
        check_version(nginx)?;
    }
    let binary = match (&options.record, &options.binary) {
        (Some(path), _) | (None, Some(path)) => path.clone(),
        (None, None) => default_binary()?,
    };
    let setup = Setup {
        binary: fs::canonicalize(&binary).map_err(|e| format!("{}: {e}", binary.display()))?,
        certificates: options.root.join("../fixtures/certs"),
        limit: options.limit,
        keep: options.keep,
    };
    let skips = skips(&options.root.join("skips.tsv"))?;
    let verdicts = run_all(&cases, &setup, options.jobs, options.record.is_some());
    Ok(report(&verdicts, &skips, cases.len(), options.record.is_some()))
}

/// Every case by name, in order.
fn cases(folder: &Path, names: &[String]) -> Result<BTreeMap<String, PathBuf>> {
    let mut cases = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let wanted = names.is_empty() || names.iter().any(|n| name.contains(n.as_str()));
        if wanted && path.join("steps.txt").is_file() {
            cases.insert(name, path);
        }
    }
    if cases.is_empty() { Err("no such case".into()) } else { Ok(cases) }
}

fn default_binary() -> Result<PathBuf> {
    let target = PathBuf::from(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
    ["release/weir", "debug/weir"]
        .iter()
        .map(|b| target.join(b))
        .find(|b| b.is_file())
        .ok_or_else(|| "no weir in target: build it, or name one with --binary".into())
}

fn check_version(nginx: &Path) -> Result<()> {
    let output = Command::new(nginx).arg("-v").output().map_err(|e| format!("{}: {e}", nginx.display()))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let version = text.trim().strip_prefix("nginx version: nginx/").unwrap_or_default();
    let mut numbers = version.split(['.', ' ']).map_while(|n| n.parse::<u32>().ok());
    let found = (numbers.next(), numbers.next(), numbers.next());
    match found {
        (Some(a), Some(b), Some(c)) if (a, b, c) >= OLDEST => Ok(()),
        _ => Err(format!("cannot record from \"{}\": nginx 1.29.7 or later is needed", text.trim()).into()),
    }
}

/// Cases that are known to fail, each with its reason: `name<TAB>reason` a line.
fn skips(path: &Path) -> Result<BTreeMap<String, String>> {
    let mut skips = BTreeMap::new();
    for line in fs::read_to_string(path)?.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (name, reason) = line.split_once('\t').ok_or_else(|| format!("{}: {line}", path.display()))?;
        skips.insert(name.to_owned(), reason.to_owned());
    }
    Ok(skips)
}

fn run_all(
    cases: &BTreeMap<String, PathBuf>,
    setup: &Setup,
    jobs: usize,
    record: bool,
) -> BTreeMap<String, Verdict> {
    let list: Vec<_> = cases.iter().collect();
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some((name, path)) = list.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let verdict =
                        verdict(path, setup, record).unwrap_or_else(|e| Verdict::Failed(e.to_string()));
                    if let Ok(mut verdicts) = verdicts.lock() {
                        verdicts.insert((*name).clone(), verdict);
                    }
                }
            });
        }
    });
    verdicts.into_inner().unwrap_or_default()
}

fn verdict(case: &Path, setup: &Setup, record: bool) -> Result<Verdict> {
    let path = case.join("expected");
    let transcript = run::run(case, setup)?;
    let expected = fs::read_to_string(&path).unwrap_or_default();
    if record {
        fs::write(&path, &transcript)?;
        return Ok(Verdict::Recorded { changed: transcript != expected });
    }
    Ok(if transcript == expected {
        Verdict::Passed
    } else {
        Verdict::Failed(diff::diff(&expected, &transcript))
    })
}

/// Prints what needs to be known and says whether all is well.
fn report(
    verdicts: &BTreeMap<String, Verdict>,
    skips: &BTreeMap<String, String>,
    cases: usize,
    record: bool,
) -> bool {
    let (mut passed, mut failed, mut skipped) = (0, cases - verdicts.len(), 0);
    for (name, verdict) in verdicts {
        match (verdict, skips.get(name).filter(|_| !record)) {
            (Verdict::Passed, Some(_)) => {
                failed += 1;
                eprintln!("{name}: passes, so its line in skips.tsv must go");
            }
            (Verdict::Failed(_), Some(reason)) => {
                skipped += 1;
                eprintln!("{name}: skipped: {reason}");
            }
            (Verdict::Passed, None) => passed += 1,
            (Verdict::Recorded { changed }, _) => {
                passed += 1;
                if *changed {
                    eprintln!("{name}: recorded anew");
                }
            }
            (Verdict::Failed(why), None) => {
                failed += 1;
                eprintln!("{name}: FAILED\n{}", why.trim_end_matches('\n'));
            }
        }
    }
    let skipped = if skipped == 0 { String::new() } else { format!(", {skipped} skipped") };
    eprintln!("{passed} passed, {failed} failed{skipped}");
    failed == 0
}

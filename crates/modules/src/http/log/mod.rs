//! `ngx_http_log_module`: one line a request, in the formats and to the files that the configuration names.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use weir_engine::contract::{Install, LogHandler, TunnelFacts, TunnelLog};
use weir_engine::errorlog::LogFile;
use weir_engine::generation::{Build, Plan};
use weir_engine::http::{Exchange, Template};
use weir_engine::syslog::Peer;
use weir_engine::timer::Timers;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::core::syslog::Syslog;
use weir_ir::{Call, Fault, Merge, value};
use weir_syntax::{Diagnostic, Level};

mod buffer;
mod format;
mod varying;

use buffer::{Buffered, Buffering};
use format::{Escape, Format, FormatSpec, Late};
use varying::{Varied, Varying};

const COMBINED: &[u8] = b"$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent \
    \"$http_referer\" \"$http_user_agent\"";

pub struct Log;

type D = Directive<Log>;

const LOG_CONTEXTS: Contexts = Contexts::SCOPES.or(Contexts::LOCATION_IF).or(Contexts::LIMIT_EXCEPT);

impl Module for Log {
    const NAME: &'static str = "http_log";
    type Main = Formats;
    type Scope = Logs;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::main("log_format", Contexts::HTTP, Takes::TWO_MORE, log_format),
        D::scope("access_log", LOG_CONTEXTS, Takes::ONE_MORE, access_log),
        D::scope("open_log_file_cache", Contexts::SCOPES, Takes::ONE_TO_FOUR, open_log_file_cache)
            .accepted("a path with variables is opened anew for each line"),
    ];

    fn init(formats: &mut Formats, merge: &mut Merge<'_>) -> Result<(), Fault> {
        formats.complete(&mut |name| merge.http().variables.intern(name));
        Ok(())
    }
}

/// What the `http` level keeps: formats by name, and which files are buffered.
#[derive(Clone, Debug, Default)]
pub struct Formats {
    /// The first is `combined` once any log uses formats.
    formats: Vec<FormatSpec>,
    buffered: Vec<(Arc<str>, Buffering)>,
}

impl Conf for Formats {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

impl Formats {
    /// Puts `combined` before all others, where every log finds it that names no format.
    fn complete(&mut self, variable: &mut dyn FnMut(&str) -> weir_ir::VariableId) {
        if self.formats.is_empty() {
            let mut combined = FormatSpec::new(b"combined", Escape::Default);
            // The text is known to be well-formed.
            let _ = combined.add(COMBINED, variable);
            self.formats.push(combined);
        }
    }
}

/// One `access_log`.
#[derive(Clone, Debug)]
struct AccessLog {
    place: Place,
    /// Position among the formats.
    format: usize,
    condition: Option<weir_ir::Template>,
}

/// Where an `access_log` goes.
#[derive(Clone, Debug)]
enum Place {
    Stderr,
    /// Absolute path.
    File(Arc<str>),
    /// A path with variables.
    Varying(weir_ir::Template),
    Syslog(Arc<Syslog>),
}

/// The logs of one level.
#[derive(Clone, Debug, Default)]
pub struct Logs {
    logs: Vec<AccessLog>,
    /// One `access_log off` silences all logs of its level.
    off: bool,
    cache: Setting<()>,
}

impl Conf for Logs {
    // A server that says nothing of logs has the default one.
    const EVERY_LEVEL: bool = true;

    fn inherit(&mut self, outer: &Self, merge: &mut Merge<'_>) -> Result<(), Fault> {
        if !self.logs.is_empty() || self.off {
            return Ok(());
        }
        self.logs.clone_from(&outer.logs);
        self.off = outer.off;
        if self.logs.is_empty() && !self.off {
            let path = merge.open_file(merge.prefixes().access_log.clone());
            self.logs.push(AccessLog { place: Place::File(path), format: 0, condition: None });
        }
        Ok(())
    }
}

fn log_format(formats: &mut Formats, call: &mut Call<'_>) -> Result<(), Fault> {
    formats.complete(&mut |name| call.variable(name));
    let name = call.arg(0);
    if formats.formats.iter().any(|f| f.is_named(name)) {
        return Err(call.fail(format!("duplicate \"log_format\" name \"{}\"", call.text(0))));
    }
    let mut first = 1;
    let mut escape = Escape::Default;
    if let Some(word) = call.arg(1).strip_prefix(b"escape=") {
        escape = match word {
            b"json" => Escape::Json,
            b"none" => Escape::None,
            b"default" => Escape::Default,
            _ => {
                let shown = String::from_utf8_lossy(word).into_owned();
                return Err(call.under(call.fail(format!("unknown log format escaping \"{shown}\"")), 1));
            }
        };
        first = 2;
    }
    let mut spec = FormatSpec::new(name, escape);
    for index in first..call.args().len() {
        let text = call.arg(index);
        if let Err(message) = spec.add(text, &mut |name| call.variable(name)) {
            return Err(call.under(call.fail(message), index));
        }
    }
    formats.formats.push(spec);
    Ok(())
}

/// What `gzip` holds back where no `buffer` says how much.
const GZIP_BUFFER: usize = 64 * 1024;

fn access_log(logs: &mut Logs, call: &mut Call<'_>) -> Result<(), Fault> {
    let target = call.arg(0);
    if target == b"off" {
        logs.off = true;
        return if call.args().len() == 1 { Ok(()) } else { Err(call.invalid_parameter(1)) };
    }
    let place = if target.starts_with(b"syslog:") {
        Place::Syslog(Syslog::read(call)?)
    } else if memchr::memchr(b'$', target).is_some() {
        let path = call.path(0);
        Place::Varying(weir_ir::Template::parse(path.as_bytes(), call).map_err(|fault| call.under(fault, 0))?)
    } else if target.is_empty() {
        Place::Stderr
    } else {
        let path = call.path(0);
        Place::File(call.open_file(path))
    };
    let formats = call.main_of::<Log>();
    let mut variables = std::mem::take(formats);
    variables.complete(&mut |name| call.variable(name));
    let name = if call.args().len() > 1 { call.arg(1) } else { b"combined" };
    let format = variables.formats.iter().position(|f| f.is_asked_as(name));
    *call.main_of::<Log>() = variables;
    let Some(format) = format else {
        return Err(call.under(call.fail(format!("unknown log format \"{}\"", call.text(1))), 1));
    };
    let mut log = AccessLog { place, format, condition: None };
    let mut size = None;
    let mut flush = None;
    let mut gzip = None;
    for index in 2..call.args().len() {
        let text = call.arg(index);
        let shown = |at: usize| String::from_utf8_lossy(&text[at..]).into_owned();
        if let Some(value) = text.strip_prefix(b"buffer=") {
            match value::size(value).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0) {
                Some(n) => size = Some(n),
                None => {
                    return Err(call.under(call.fail(format!("invalid buffer size \"{}\"", shown(7))), index));
                }
            }
        } else if let Some(value) = text.strip_prefix(b"flush=") {
            match value::msec(value).filter(|ms| *ms > 0) {
                Some(ms) => flush = Some(ms),
                None => {
                    return Err(call.under(call.fail(format!("invalid flush time \"{}\"", shown(6))), index));
                }
            }
        } else if text == b"gzip" || text.starts_with(b"gzip=") {
            size = size.or(Some(GZIP_BUFFER));
            match text.strip_prefix(b"gzip=").map_or(Some(1), value::number) {
                Some(level @ 1..=9) => gzip = Some(level as u32),
                _ => {
                    let message = format!("invalid compression level \"{}\"", shown(5));
                    return Err(call.under(call.fail(message), index));
                }
            }
        } else if let Some(value) = text.strip_prefix(b"if=") {
            log.condition = Some(weir_ir::Template::parse(value, call)?);
        } else {
            return Err(call.invalid_parameter(index));
        }
    }
    match (size, flush) {
        (None, Some(_)) => {
            return Err(call.fail(format!("no buffer is defined for access_log \"{}\"", call.text(0))));
        }
        (Some(size), flush) => {
            let path = match &log.place {
                Place::File(path) => path,
                // Standard error is written line by line, whatever is asked for.
                Place::Stderr => &"".into(),
                Place::Varying(_) => {
                    return Err(call.fail("buffered logs cannot have variables in name"));
                }
                Place::Syslog(_) => return Err(call.fail("logs to syslog cannot be buffered")),
            };
            let buffering = Buffering { size, flush, gzip };
            let buffered = &mut call.main_of::<Log>().buffered;
            match buffered.iter().find(|(known, _)| known == path) {
                Some((_, known)) if *known != buffering => {
                    return Err(call.fail(format!(
                        "access_log \"{}\" already defined with conflicting parameters",
                        call.text(0)
                    )));
                }
                Some(_) => {}
                None => buffered.push((Arc::clone(path), buffering)),
            }
        }
        (None, None) => {}
    }
    logs.logs.push(log);
    Ok(())
}

fn open_log_file_cache(logs: &mut Logs, call: &mut Call<'_>) -> Result<(), Fault> {
    if logs.cache.is_set() {
        return Err(call.duplicate());
    }
    let mut max = None;
    let mut off = false;
    for index in 0..call.args().len() {
        let text = call.arg(index);
        let known = match text.split(|b| *b == b'=').next().unwrap_or_default() {
            b"max" if text.len() > 3 => {
                max = value::number(&text[4..]);
                max.is_some()
            }
            b"min_uses" if text.len() > 8 => value::number(&text[9..]).is_some(),
            b"inactive" if text.len() > 8 => value::sec(&text[9..]).is_some(),
            b"valid" if text.len() > 5 => value::sec(&text[6..]).is_some(),
            _ => {
                off |= text == b"off";
                text == b"off"
            }
        };
        if !known {
            let message = format!("invalid \"open_log_file_cache\" parameter \"{}\"", call.text(index));
            return Err(call.under(call.fail(message), index));
        }
    }
    if !off && max.is_none_or(|max| max == 0) {
        return Err(call.fail("\"open_log_file_cache\" must have \"max\" parameter"));
    }
    logs.cache.put(call, ())
}

/// Formats as `install` shares them.
struct Compiled(Vec<Arc<Format>>);

impl Install for Log {
    fn prepare(formats: &Formats, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        let compiled = formats.formats.iter().map(|spec| Arc::new(spec.compile(build))).collect();
        build.keep("", Arc::new(Compiled(compiled)));
        for (path, buffering) in &formats.buffered {
            let Some(file) = build.file(path) else { continue };
            // A buffer of the same kind goes on over a reload, so that lines stay in order.
            let before = build.kept_before::<Buffered>(path).filter(|b| b.fits(&file, *buffering));
            let buffered = before.unwrap_or_else(|| Buffered::open(file, *buffering));
            build.keep(path, buffered);
        }
        Ok(())
    }

    fn install(logs: &Logs, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if logs.off {
            return Ok(());
        }
        let Some(formats) = plan.build.kept::<Compiled>("") else { return Ok(()) };
        for log in &logs.logs {
            let output = match &log.place {
                Place::Varying(path) => {
                    let (path, complained_at) = (plan.template(path), Arc::default());
                    Output::Varying(Varying { path, complained_at })
                }
                Place::Stderr => Output::Known(Target::Stderr),
                Place::Syslog(spec) => Output::Known(Target::Syslog(plan.build.syslog(spec))),
                Place::File(path) => match (plan.build.kept::<Buffered>(path), plan.build.file(path)) {
                    (Some(buffered), _) => Output::Known(Target::Buffered(buffered)),
                    (None, Some(file)) => {
                        Output::Known(Target::File(Arc::new(File { file, complained_at: Arc::default() })))
                    }
                    (None, None) => return Err(plan.fail(format!("open() \"{path}\" failed"))),
                },
            };
            plan.handlers.log.push(Box::new(Logger {
                condition: log.condition.as_ref().map(|c| plan.build.template(c)),
                format: Arc::clone(&formats.0[log.format]),
                output,
            }));
        }
        Ok(())
    }
}

/// What is being done when a line cannot be written, as the error log tells it.
const LOGGING: &str = "logging request";

/// A log whose lines are written one by one.
struct File {
    file: Arc<LogFile>,
    /// The second in which the last failure was told of.
    complained_at: Arc<AtomicU64>,
}

impl File {
    /// Writes whole lines; says in words what went wrong, at most once a minute.
    fn write(&self, lines: &[u8], second: u64) -> Result<(), Complaint> {
        let failure = match self.file.append(lines, second) {
            Ok(n) if n == lines.len() => return Ok(()),
            Ok(n) => (None, format!(" was incomplete: {n} of {}", lines.len())),
            Err(error) => (Some(error), " failed".to_owned()),
        };
        if second.saturating_sub(self.complained_at.load(Ordering::Relaxed)) <= 59 {
            return Ok(());
        }
        self.complained_at.store(second, Ordering::Relaxed);
        let message = format!("write() to \"{}\"{}", self.file.path().display(), failure.1);
        Err(Complaint { level: Level::Alert, message, error: failure.0 })
    }
}

/// A failure that is worth a line in the error log.
struct Complaint {
    level: Level,
    message: String,
    error: Option<std::io::Error>,
}

impl Complaint {
    /// The peer has said what was wrong.
    fn of_syslog() -> Self {
        Self { level: Level::Warn, message: "send() to syslog failed".into(), error: None }
    }
}

/// Where the lines of one `access_log` go.
#[derive(Clone)]
enum Target {
    File(Arc<File>),
    Buffered(Arc<Buffered>),
    Path(Varied),
    Syslog(Arc<Peer>),
    Stderr,
}

impl Target {
    fn write(&self, line: &[u8], second: u64, timers: &Timers) -> Result<(), Complaint> {
        match self {
            Target::File(file) => file.write(line, second),
            Target::Buffered(buffered) => buffered.write(line, second, timers),
            Target::Path(path) => path.write(line, second),
            Target::Syslog(peer) => {
                let line = line.strip_suffix(b"\n").unwrap_or(line);
                peer.send(line, second).map_err(|_| Complaint::of_syslog())
            }
            Target::Stderr => {
                // Nowhere is left to say that standard error is gone.
                let _ = std::io::Write::write_all(&mut std::io::stderr(), line);
                Ok(())
            }
        }
    }
}

thread_local! {
    /// The line in the making. It is out of its place while it is in use, so a handler within a handler has its own.
    static LINE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A buffer that grew over this by one long line is not kept.
const KEPT_LINE: usize = 16 * 1024;

fn with_line<T>(work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut line = LINE.take();
    line.clear();
    let result = work(&mut line);
    if line.capacity() <= KEPT_LINE {
        LINE.set(line);
    }
    result
}

/// One `access_log` of a level.
struct Logger {
    condition: Option<Template>,
    format: Arc<Format>,
    output: Output,
}

enum Output {
    Known(Target),
    Varying(Varying),
}

impl Output {
    /// Where the line of a request goes; `None` is nowhere.
    fn of(&self, x: &Exchange) -> Option<Cow<'_, Target>> {
        match self {
            Output::Known(target) => Some(Cow::Borrowed(target)),
            Output::Varying(varying) => varying.of(x).map(|path| Cow::Owned(Target::Path(path))),
        }
    }
}

impl Logger {
    /// `if=`: neither empty nor `0`.
    fn wants(&self, x: &Exchange, scratch: &mut Vec<u8>) -> bool {
        let Some(condition) = &self.condition else { return true };
        condition.append(x, scratch);
        let wanted = !scratch.is_empty() && scratch != b"0";
        scratch.clear();
        wanted
    }
}

impl LogHandler for Logger {
    fn log(&self, x: &Exchange) {
        with_line(|line| {
            if !self.wants(x, line) {
                return;
            }
            self.format.write(x, line);
            line.push(b'\n');
            let timers = x.reactor.timers();
            let Some(target) = self.output.of(x) else { return };
            if let Err(complaint) = target.write(line, timers.clock().unix_secs(), timers) {
                x.log_while(complaint.level, complaint.error.as_ref(), complaint.message, LOGGING);
            }
        });
    }

    fn detach(&self, x: &Exchange) -> Option<Box<dyn TunnelLog>> {
        with_line(|line| {
            if !self.wants(x, line) {
                return None;
            }
            let target = self.output.of(x)?.into_owned();
            let late = self.format.write_known(x, line);
            let (known, late) = (line.as_slice().into(), late.into());
            Some(Box::new(Detached { known, late, target }) as Box<dyn TunnelLog>)
        })
    }
}

/// A tunnel's line: what was known when it began, and where the rest goes.
struct Detached {
    known: Box<[u8]>,
    /// In rising order, each before the byte of `known` at its position.
    late: Box<[(u32, Late)]>,
    target: Target,
}

impl TunnelLog for Detached {
    fn log(&self, facts: &TunnelFacts, timers: &Timers) {
        with_line(|line| {
            let mut done = 0;
            for (at, late) in &self.late {
                let at = *at as usize;
                line.extend_from_slice(&self.known[done..at]);
                late.write_facts(facts, line);
                done = at;
            }
            line.extend_from_slice(&self.known[done..]);
            line.push(b'\n');
            // The request's error log is gone with it; the next request tells of a log that cannot be written.
            let _ = self.target.write(line, facts.unix_ms / 1000, timers);
        });
    }
}

#[cfg(test)]
mod tests;

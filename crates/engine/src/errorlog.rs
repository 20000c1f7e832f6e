//! The error log (`error_log`): nginx's line format, levels and several logs a level, written from any thread.
//!
//! A [`Log`] is a cheap handle: two pointers and a level, cloned into every thread, connection and request. The level is
//! looked at before anything is formatted, so a message that nobody wants costs a comparison. The files are opened by
//! whoever may open them (the master) and only written here; [`LogFile::replace`] swaps one under all its writers when
//! logs are reopened.
//!
//! ```text
//! 2026/11/22 18:30:24 [error] 123#456: *7 message (2: No such file or directory), client: 127.0.0.1, server: a
//! time                level   pid tid  connection  errno                          context
//! ```

use std::cell::RefCell;
use std::fmt::{self, Display, Write as _};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use weir_syntax::render::strerror;

use crate::localtime::local;

pub use weir_syntax::Level;

/// The longest line with its newline (nginx: `NGX_MAX_ERROR_STR`); what does not fit is cut off.
pub const LONGEST_LINE: usize = 2048;

/// How much of a line an error code may claim when the message is too long for it.
const ROOM_FOR_ERRNO: usize = 50;

/// A file that lines are appended to, shared by all logs that name its path.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: RwLock<File>,
    /// The second in which the disk was found full; nothing more is tried in that second.
    full_at: AtomicU64,
    /// Who holds lines back for this file.
    holding: Mutex<Vec<Weak<dyn Holding>>>,
}

/// Something that holds lines back before it writes them to a [`LogFile`].
pub trait Holding: Send + Sync {
    /// Writes them now.
    fn flush(&self);
}

impl fmt::Debug for dyn Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Holding")
    }
}

impl LogFile {
    /// `file` must be open for appending, so that lines of several processes do not overwrite each other.
    pub fn new(path: impl Into<PathBuf>, file: File) -> LogFile {
        let (file, full_at) = (RwLock::new(file), AtomicU64::new(0));
        LogFile { path: path.into(), file, full_at, holding: Mutex::default() }
    }

    /// Opens or creates `path` as nginx does (append, mode 0644 less the umask).
    ///
    /// # Errors
    /// Those of `open(2)`.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<LogFile> {
        let path = path.into();
        let file = open_for_append(&path)?;
        Ok(LogFile::new(path, file))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Goes on in another file; who is writing a line finishes it in the old one, and lines held back go there too.
    pub fn replace(&self, file: File) {
        self.flush();
        *self.file.write().unwrap_or_else(PoisonError::into_inner) = file;
        self.full_at.store(0, Ordering::Relaxed);
    }

    /// A second descriptor of the open file, to hand to another process.
    ///
    /// # Errors
    /// Those of `fcntl(F_DUPFD_CLOEXEC)`.
    pub fn duplicate(&self) -> io::Result<File> {
        self.file.read().unwrap_or_else(PoisonError::into_inner).try_clone()
    }

    /// Remembers who holds lines back for this file, for as long as it lives.
    pub fn hold(&self, holding: Weak<dyn Holding>) {
        let mut all = self.holding.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|entry| entry.strong_count() > 0);
        all.push(holding);
    }

    /// Writes all lines that are held back: before the process ends.
    pub fn flush(&self) {
        let all: Vec<_> = {
            let all = self.holding.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        all.iter().for_each(|holding| holding.flush());
    }

    /// Writes whole lines with one `write(2)` and says how many bytes were taken. While the disk is full nothing is
    /// tried for the rest of `second` (since the epoch), and all counts as taken.
    ///
    /// # Errors
    /// Those of `write(2)`.
    pub fn append(&self, lines: &[u8], second: u64) -> io::Result<usize> {
        if self.full_at.load(Ordering::Relaxed) == second {
            return Ok(lines.len());
        }
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        let written = (&*file).write(lines);
        if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull) {
            self.full_at.store(second, Ordering::Relaxed);
        }
        written
    }

    /// Writes one whole line. A log that cannot be written must not stop the server, so failures are dropped.
    pub fn write(&self, line: &[u8]) {
        self.write_at(line, now());
    }

    fn write_at(&self, line: &[u8], second: u64) {
        let _ = self.append(line, second);
    }
}

/// Opens or creates a log file for appending.
///
/// # Errors
/// Those of `open(2)`.
pub fn open_for_append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().append(true).create(true).mode(0o644).open(path)
}

/// Somewhere else than a file: syslog, a memory ring.
pub trait Sink: Send + Sync {
    /// Takes one line, without its newline; must neither block for long nor log.
    fn write(&self, level: Level, line: &[u8]);
}

/// Where the lines of one `error_log` go.
#[derive(Clone)]
pub enum Target {
    Stderr,
    File(Arc<LogFile>),
    Sink(Arc<dyn Sink>),
}

/// One `error_log` directive.
#[derive(Clone)]
pub struct Output {
    /// The least important level that is written.
    pub level: Level,
    pub target: Target,
}

/// What handles of the same log share.
struct Shared {
    outputs: Vec<Output>,
    /// The name before the colon of lines repeated on stderr.
    program: Arc<str>,
    /// While a program starts, warnings and worse are repeated on stderr for whoever started it.
    echo: Arc<AtomicBool>,
}

/// A handle to the logs of one configuration scope.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
    /// The least important level that any output takes; `None` when there is no output.
    level: Option<Level>,
    /// The number after `*`; 0 outside of a connection.
    connection: u64,
    /// It is of a connection of which all is written, whatever the levels say (`debug_connection`).
    debugs: bool,
}

impl Log {
    /// A log that writes to all `outputs` whose level allows it.
    pub fn new(program: &str, outputs: Vec<Output>) -> Log {
        Log::sharing(Arc::from(program), Arc::new(AtomicBool::new(false)), outputs)
    }

    /// A log as at start: warnings and worse also go to stderr as `program: [level] message`, until
    /// [`Log::started`] is called on it or on any log derived from it.
    pub fn starting(program: &str, outputs: Vec<Output>) -> Log {
        Log::sharing(Arc::from(program), Arc::new(AtomicBool::new(true)), outputs)
    }

    /// Another set of outputs, with the same name and the same state of starting.
    pub fn with_outputs(&self, outputs: Vec<Output>) -> Log {
        Log::sharing(self.shared.program.clone(), self.shared.echo.clone(), outputs)
    }

    /// The same without what is neither a file nor standard error: where a [`Sink`] may tell what is wrong with itself.
    #[must_use]
    pub fn without_sinks(&self) -> Log {
        let outputs = self.outputs().iter().filter(|output| !matches!(output.target, Target::Sink(_)));
        self.with_outputs(outputs.cloned().collect())
    }

    fn sharing(program: Arc<str>, echo: Arc<AtomicBool>, outputs: Vec<Output>) -> Log {
        let level = outputs.iter().map(|output| output.level).max();
        Log { shared: Arc::new(Shared { outputs, program, echo }), level, connection: 0, debugs: false }
    }

    /// The same log for the connection of this number.
    pub fn with_connection(&self, connection: u64) -> Log {
        Log { connection, ..self.clone() }
    }

    /// The same log for a connection of which all is written.
    #[must_use]
    pub fn debugging(self) -> Log {
        Log { level: self.level.map(|_| Level::Debug), debugs: true, ..self }
    }

    /// This log for the connection that another one is of.
    #[must_use]
    pub fn of_connection(&self, other: &Log) -> Log {
        let log = self.with_connection(other.connection);
        if other.debugs { log.debugging() } else { log }
    }

    pub(crate) fn debugs(&self) -> bool {
        self.debugs
    }

    /// Ends the repetition on stderr.
    pub fn started(&self) {
        self.shared.echo.store(false, Ordering::Relaxed);
    }

    /// The program's name as it was called.
    pub fn program(&self) -> &str {
        &self.shared.program
    }

    pub fn outputs(&self) -> &[Output] {
        &self.shared.outputs
    }

    /// Whether a message of this level would be written anywhere.
    pub fn takes(&self, level: Level) -> bool {
        self.level.is_some_and(|most| level <= most)
    }

    /// Writes a message.
    pub fn write(&self, level: Level, message: impl Display) {
        self.write_with(level, None, message, |_| {});
    }

    /// Writes a message and the error that it is about, as `message (2: No such file or directory)`.
    pub fn write_errno(&self, level: Level, error: Errno, message: impl Display) {
        self.write_with(level, Some(error), message, |_| {});
    }

    /// [`Log::write_errno`] for an error of the standard library; one without a code is shown by its text.
    pub fn write_error(&self, level: Level, error: &io::Error, message: impl Display) {
        match error.raw_os_error() {
            Some(code) => self.write_errno(level, Errno::from_raw(code), message),
            None => self.write(level, format_args!("{message} ({error})")),
        }
    }

    /// Writes a message, its error and then what `context` adds (client, server, request, upstream).
    ///
    /// As in nginx the context is left out of debug messages.
    pub fn write_with(
        &self,
        level: Level,
        error: Option<Errno>,
        message: impl Display,
        context: impl FnOnce(&mut Line),
    ) {
        if !self.takes(level) {
            return;
        }
        LINE.with(|line| match line.try_borrow_mut() {
            Ok(mut line) => self.compose(&mut line, level, error, message, context),
            // A Display that itself logs; rare enough for an allocation.
            Err(_) => self.compose(&mut Line::default(), level, error, message, context),
        });
    }

    fn compose(
        &self,
        line: &mut Line,
        level: Level,
        error: Option<Errno>,
        message: impl Display,
        context: impl FnOnce(&mut Line),
    ) {
        let second = now();
        line.start(second);
        // A Line takes everything and cuts off what does not fit.
        let _ = write!(line, " [{}] {}#{}: ", level.as_str(), std::process::id(), nix::unistd::gettid());
        if self.connection != 0 {
            let _ = write!(line, "*{} ", self.connection);
        }
        let said_from = line.bytes.len();
        let _ = write!(line, "{message}");
        if let Some(error) = error {
            line.errno(error);
        }
        if level != Level::Debug {
            context(line);
        }
        let mut on_stderr = false;
        line.bytes.push(b'\n');
        let outputs = self.shared.outputs.iter();
        for output in outputs.filter(|output| self.debugs || level <= output.level) {
            match &output.target {
                Target::File(file) => file.write_at(&line.bytes, second),
                Target::Stderr => {
                    on_stderr = true;
                    // Nowhere is left to say that stderr is gone.
                    let _ = io::stderr().write_all(&line.bytes);
                }
                Target::Sink(sink) => sink.write(level, &line.bytes[..line.bytes.len() - 1]),
            }
        }
        if level <= Level::Warn && !on_stderr && self.shared.echo.load(Ordering::Relaxed) {
            let said = &line.bytes[said_from..];
            let start = format!("{}: [{}] ", self.shared.program, level.as_str());
            let _ = io::stderr().write_all(&[start.as_bytes(), said].concat());
        }
    }
}

/// What a message says of its context, for messages that come when the context is gone.
pub fn context(of: impl FnOnce(&mut Line)) -> Box<[u8]> {
    LINE.with_borrow_mut(|line| {
        line.bytes.clear();
        of(line);
        line.bytes.as_slice().into()
    })
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("level", &self.level).field("connection", &self.connection).finish()
    }
}

thread_local! {
    static LINE: RefCell<Line> = RefCell::new(Line::default());
    /// The text of the last second seen by this thread; the calendar is asked once a second.
    static TIME: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

/// A line in the making. It takes text and bytes alike (what clients send is not always UTF-8) up to [`LONGEST_LINE`].
#[derive(Debug, Default)]
pub struct Line {
    bytes: Vec<u8>,
}

impl Line {
    fn start(&mut self, second: u64) {
        self.bytes.clear();
        TIME.with_borrow_mut(|(of, text)| {
            if *of != second {
                let at = local(second as i64);
                *of = second;
                text.clear();
                let _ = write!(
                    text,
                    "{}/{:02}/{:02} {:02}:{:02}:{:02}",
                    at.year, at.month, at.day, at.hour, at.minute, at.second
                );
            }
            self.bytes(text.as_bytes());
        });
    }

    /// Adds bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let room = (LONGEST_LINE - 1).saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Adds `, name: value`.
    pub fn field(&mut self, name: &str, value: &[u8]) {
        self.bytes(b", ");
        self.bytes(name.as_bytes());
        self.bytes(b": ");
        self.bytes(value);
    }

    /// Adds `, name: "value"`.
    pub fn quoted(&mut self, name: &str, value: &[u8]) {
        self.bytes(b", ");
        self.bytes(name.as_bytes());
        self.bytes(b": \"");
        self.bytes(value);
        self.bytes(b"\"");
    }

    /// Adds the error; a message that leaves no room for it is cut and marked with dots, as in nginx.
    fn errno(&mut self, error: Errno) {
        if self.bytes.len() > LONGEST_LINE - ROOM_FOR_ERRNO {
            self.bytes.truncate(LONGEST_LINE - ROOM_FOR_ERRNO);
            self.bytes(b"...");
        }
        let _ = write!(self, " ({}: {})", error as i32, strerror(error as i32));
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes());
        Ok(())
    }
}

/// Seconds since the epoch.
#[expect(
    clippy::disallowed_methods,
    reason = "messages are written where there is no reactor too: before the first and between two"
)]
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Memory(Mutex<Vec<Vec<u8>>>);

    impl Sink for Memory {
        fn write(&self, _: Level, line: &[u8]) {
            self.0.lock().unwrap().push(line.to_vec());
        }
    }

    impl Memory {
        fn lines(&self) -> Vec<String> {
            self.0.lock().unwrap().iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect()
        }
    }

    fn memory(level: Level) -> (Log, Arc<Memory>) {
        let memory = Arc::new(Memory::default());
        (Log::new("weir", vec![Output { level, target: Target::Sink(memory.clone()) }]), memory)
    }

    /// What `write` leaves in a log of level info, without the time.
    #[track_caller]
    fn check(write: impl FnOnce(&Log), expected: &[&str]) {
        let (log, memory) = memory(Level::Info);
        write(&log);
        let start = format!("{}#{}: ", std::process::id(), nix::unistd::gettid());
        let lines: Vec<String> = memory.lines().iter().map(|line| line[20..].replace(&start, "")).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_line_has_level_connection_error_and_context() {
        check(|log| log.write(Level::Notice, "start"), &["[notice] start"]);
        check(|log| log.with_connection(7).write(Level::Error, "bad"), &["[error] *7 bad"]);
        check(
            |log| log.write_errno(Level::Emerg, Errno::ENOENT, format_args!("open() \"{}\" failed", "/x")),
            &["[emerg] open() \"/x\" failed (2: No such file or directory)"],
        );
        check(
            |log| {
                log.with_connection(1).write_with(
                    Level::Error,
                    Some(Errno::ECONNREFUSED),
                    "connect() failed",
                    |line| {
                        line.field("client", b"127.0.0.1");
                        line.quoted("request", b"GET / HTTP/1.1");
                    },
                )
            },
            &[
                "[error] *1 connect() failed (111: Connection refused), client: 127.0.0.1, request: \"GET / HTTP/1.1\"",
            ],
        );
    }

    #[test]
    fn what_no_output_takes_is_not_even_formatted() {
        struct Trap;
        impl Display for Trap {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                panic!("formatted")
            }
        }
        check(|log| log.write(Level::Debug, Trap), &[]);
        Log::new("weir", Vec::new()).write(Level::Emerg, Trap);
    }

    #[test]
    fn each_output_has_its_level() {
        let (all, some) = (Arc::new(Memory::default()), Arc::new(Memory::default()));
        let log = Log::new(
            "weir",
            vec![
                Output { level: Level::Crit, target: Target::Sink(some.clone()) },
                Output { level: Level::Debug, target: Target::Sink(all.clone()) },
            ],
        );
        for level in Level::ALL {
            log.write(level, "x");
        }
        assert_eq!((all.lines().len(), some.lines().len()), (8, 3));
    }

    #[test]
    fn all_is_written_of_a_connection_that_is_debugged() {
        let (log, memory) = memory(Level::Alert);
        let connection = log.with_connection(3).debugging();
        connection.write(Level::Debug, "one");
        log.of_connection(&connection).write(Level::Info, "two");
        log.with_connection(3).write(Level::Info, "none");
        assert!(Log::new("weir", Vec::new()).debugging().outputs().is_empty());
        let lines: Vec<String> =
            memory.lines().iter().map(|line| line[line.len() - 6..].to_owned()).collect();
        assert_eq!(lines, ["*3 one", "*3 two"]);
    }

    #[test]
    fn a_long_line_is_cut_with_room_for_its_error() {
        let (log, memory) = memory(Level::Info);
        log.write(Level::Info, "x".repeat(5000));
        log.write_errno(Level::Info, Errno::ENOENT, "x".repeat(5000));
        let lines = memory.lines();
        assert_eq!(lines[0].len(), LONGEST_LINE - 1);
        assert_eq!(lines[1].find("..."), Some(LONGEST_LINE - ROOM_FOR_ERRNO));
        assert!(lines[1].ends_with("... (2: No such file or directory)"));
    }

    #[test]
    fn the_time_is_nginx_format() {
        let (log, memory) = memory(Level::Info);
        log.write(Level::Info, "x");
        let shape: String = memory.lines()[0][..20]
            .chars()
            .map(|letter| if letter.is_ascii_digit() { '9' } else { letter })
            .collect();
        assert_eq!(shape, "9999/99/99 99:99:99 ");
    }

    #[test]
    fn a_message_that_logs_does_not_lock_up() {
        struct Nested<'a>(&'a Log);
        impl Display for Nested<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.write(Level::Info, "inner");
                f.write_str("outer")
            }
        }
        check(|log| log.write(Level::Info, Nested(log)), &["[info] inner", "[info] outer"]);
    }

    #[test]
    fn files_are_appended_to_and_replaced() {
        let folder = std::env::temp_dir().join(format!("weir-errorlog-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (one, two) = (folder.join("one"), folder.join("two"));
        std::fs::write(&one, "before\n").unwrap();
        let file = Arc::new(LogFile::open(&one).unwrap());
        let log = Log::new("weir", vec![Output { level: Level::Info, target: Target::File(file.clone()) }]);
        log.write(Level::Info, "first");
        file.replace(open_for_append(&two).unwrap());
        log.write(Level::Info, "second");
        let one = std::fs::read_to_string(&one).unwrap();
        let two = std::fs::read_to_string(&two).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(one.starts_with("before\n") && one.ends_with(": first\n"), "{one}");
        assert!(two.ends_with(": second\n") && two.lines().count() == 1, "{two}");
    }

    #[test]
    fn a_full_disk_is_left_alone_for_the_rest_of_the_second() {
        let file = LogFile::new("/dev/full", File::options().append(true).open("/dev/full").unwrap());
        file.write_at(b"x\n", 10);
        assert_eq!(file.full_at.load(Ordering::Relaxed), 10);
        let (reader, writer) = nix::unistd::pipe().unwrap();
        *file.file.write().unwrap() = writer.into();
        file.write_at(b"skipped\n", 10);
        file.write_at(b"written\n", 11);
        drop(file);
        assert_eq!(io::read_to_string(File::from(reader)).unwrap(), "written\n");
    }

    #[test]
    fn words_name_levels() {
        for level in Level::ALL {
            assert_eq!(Level::of_word(level.as_str().as_bytes()), Some(level));
        }
        assert_eq!(Level::of_word(b"nonsense"), None);
    }
}

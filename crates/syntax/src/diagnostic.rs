//! What is wrong with a configuration, in nginx's own words, with what more we can say about it.

use crate::{FileId, Span};

/// nginx's error levels, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    Emerg,
    Alert,
    Crit,
    Error,
    Warn,
    Notice,
    Info,
    Debug,
}

impl Level {
    /// As in the brackets of a log line.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Emerg => "emerg",
            Level::Alert => "alert",
            Level::Crit => "crit",
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Notice => "notice",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }
}

/// What nginx puts behind a message to say where it was reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Nothing: no text was being read.
    None,
    /// ` in command line`: the `-g` option.
    CommandLine,
    /// ` in PATH:LINE`, the line from 1.
    At { file: FileId, line: u32 },
}

impl Place {
    /// The place of `line` in `file`, which may be the command line.
    pub fn of(file: FileId, line: u32) -> Place {
        match file {
            FileId::COMMAND_LINE => Place::CommandLine,
            file => Place::At { file, line },
        }
    }
}

/// One finding. The first one printed is what nginx would print, to the letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub level: Level,
    /// nginx's sentence without error number and place. Bytes, since it quotes the configuration.
    pub message: Vec<u8>,
    /// Shown as ` (2: No such file or directory)` behind the message.
    pub errno: Option<i32>,
    pub place: Place,
    /// What to underline; may stand on another line than `place`, which is where nginx noticed.
    pub span: Option<Span>,
    /// What to do about it, as a sentence.
    pub help: Option<String>,
}

impl Diagnostic {
    pub fn new(level: Level, message: impl Into<Vec<u8>>) -> Diagnostic {
        Diagnostic { level, message: message.into(), errno: None, place: Place::None, span: None, help: None }
    }

    /// The level that refuses a configuration.
    pub fn emerg(message: impl Into<Vec<u8>>) -> Diagnostic {
        Diagnostic::new(Level::Emerg, message)
    }

    pub fn warn(message: impl Into<Vec<u8>>) -> Diagnostic {
        Diagnostic::new(Level::Warn, message)
    }

    pub fn errno(mut self, errno: i32) -> Diagnostic {
        self.errno = Some(errno);
        self
    }

    pub fn at(mut self, place: Place) -> Diagnostic {
        self.place = place;
        self
    }

    pub fn span(mut self, span: Span) -> Diagnostic {
        self.span = Some(span);
        self
    }

    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }
}

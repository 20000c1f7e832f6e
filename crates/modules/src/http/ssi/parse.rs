//! Commands in a page: `<!--#name parameter="value" -->`, found in whatever pieces it comes.

/// Bytes that the name of a command or a parameter may have.
const NAME: usize = 32;
/// Parameters that a command may have; one more is kept, to see that there are more.
pub(super) const PARAMETERS: usize = 16;

const START: &[u8] = b"<!--";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Text,
    /// So many bytes of [`START`] were seen.
    Start(usize),
    BeforeName,
    Name,
    BeforeKey,
    Key,
    BeforeEquals,
    BeforeValue,
    Value(u8),
    /// Behind a backslash in a value.
    Quoted(u8),
    BehindValue,
    /// One `-` of the end was seen.
    End,
    /// Both were.
    Ends,
    Error,
    ErrorEnd,
    ErrorEnds,
    /// It ends here, well or not.
    Command,
    Failed,
}

/// Where looking through a piece has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// At its end.
    More,
    /// Behind a command.
    Command,
    /// Behind something that is no command, which was told.
    Error,
}

/// The parser of a page, and the command that it is at.
pub(super) struct Parser {
    state: State,
    value_length: usize,
    pub name: Vec<u8>,
    pub parameters: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Parser {
    pub(super) fn new(value_length: usize) -> Self {
        Self { state: State::Text, value_length, name: vec![], parameters: vec![] }
    }

    /// Looks through a piece up to the first end of a command, appends the text before the command and gives the number of
    /// bytes that are done with. The start of a command that never comes is not text.
    pub(super) fn parse(
        &mut self,
        piece: &[u8],
        text: &mut Vec<u8>,
        complain: &mut dyn FnMut(Vec<u8>),
    ) -> (usize, Found) {
        let mut at = 0;
        while let Some(&byte) = piece.get(at) {
            if self.state == State::Text {
                let rest = &piece[at..];
                let length = memchr::memchr(b'<', rest).unwrap_or(rest.len());
                text.extend_from_slice(&rest[..length]);
                at += length;
                if at < piece.len() {
                    self.state = State::Start(1);
                    at += 1;
                }
                continue;
            }
            at += 1;
            if let State::Start(seen) = self.state {
                self.state = self.start(seen, byte, text);
                continue;
            }
            match self.step(byte) {
                Ok(State::Command) => {
                    self.state = State::Text;
                    return (at, Found::Command);
                }
                Ok(State::Failed) => {
                    self.state = State::Text;
                    return (at, Found::Error);
                }
                Ok(next) => self.state = next,
                Err((next, message)) => {
                    complain(message);
                    self.state = next;
                }
            }
        }
        (at, Found::More)
    }

    /// A byte that may go on with the start of a command; if not, it was text all along.
    fn start(&mut self, seen: usize, byte: u8, text: &mut Vec<u8>) -> State {
        let next = if seen == START.len() { b'#' } else { START[seen] };
        if byte == next {
            return if seen == START.len() { State::BeforeName } else { State::Start(seen + 1) };
        }
        text.extend_from_slice(&START[..seen]);
        if byte == b'<' {
            return State::Start(1);
        }
        text.push(byte);
        State::Text
    }

    /// A byte of a command: where that leads, else why it is none and where that leads.
    fn step(&mut self, byte: u8) -> Result<State, (State, Vec<u8>)> {
        let blank = matches!(byte, b' ' | b'\r' | b'\n' | b'\t');
        // The end of the command may begin in the wrong place.
        let failed = if byte == b'-' { State::ErrorEnd } else { State::Error };
        Ok(match self.state {
            State::BeforeName | State::BeforeKey | State::BeforeEquals | State::BeforeValue if blank => {
                self.state
            }
            State::BeforeName => {
                self.parameters.clear();
                self.name = vec![byte];
                State::Name
            }
            State::Name if blank => State::BeforeKey,
            State::Name | State::BeforeKey | State::BehindValue if byte == b'-' => State::End,
            State::Name if self.name.len() == NAME => {
                let message = [b"the \"", &self.name[..], &[byte], b"...\" SSI command is too long"].concat();
                return Err((State::Error, message));
            }
            State::Name => {
                self.name.push(byte);
                State::Name
            }
            State::BeforeKey => {
                // Of those that are too many one says as much as all.
                self.parameters.truncate(PARAMETERS);
                self.parameters.push((vec![byte], vec![]));
                State::Key
            }
            State::Key if blank => State::BeforeEquals,
            State::Key | State::BeforeEquals if byte == b'=' => State::BeforeValue,
            State::Key if byte != b'-' => {
                let (key, _) = self.parameter();
                if key.len() == NAME {
                    let parts = [b"too long \"", &key[..], &[byte], b"...\" parameter in "];
                    let message = parts.concat();
                    return Err((State::Error, self.of_command(message)));
                }
                key.push(byte);
                State::Key
            }
            State::Key | State::BeforeEquals => {
                let message = [b"unexpected \"", &[byte][..], b"\" symbol after"].concat();
                return Err((failed, self.of_parameter(message)));
            }
            State::BeforeValue if matches!(byte, b'"' | b'\'') => State::Value(byte),
            State::BeforeValue => {
                let message = [b"unexpected \"", &[byte][..], b"\" symbol before value of"].concat();
                return Err((failed, self.of_parameter(message)));
            }
            State::Value(quote) if byte == quote => State::BehindValue,
            State::Value(_) | State::Quoted(_) => {
                let length = self.value_length;
                let (_, value) = self.parameter();
                if value.len() == length {
                    let message = [b"too long \"", &value[..], &[byte], b"...\" value of"].concat();
                    return Err((State::Error, self.of_parameter(message)));
                }
                value.push(byte);
                match self.state {
                    State::Value(quote) if byte == b'\\' => State::Quoted(quote),
                    State::Quoted(quote) => State::Value(quote),
                    state => state,
                }
            }
            State::BehindValue if blank => State::BeforeKey,
            State::BehindValue => {
                let (_, value) = self.parameter();
                let parts = [b"unexpected \"", &[byte][..], b"\" symbol after \"", value, b"\" value of"];
                let message = parts.concat();
                return Err((State::Error, self.of_parameter(message)));
            }
            State::End if byte == b'-' => State::Ends,
            State::Ends if byte == b'>' => State::Command,
            State::End | State::Ends => {
                let message = [b"unexpected \"", &[byte][..], b"\" symbol in "].concat();
                return Err((State::Error, self.of_command(message)));
            }
            State::Error => failed,
            State::ErrorEnd if byte == b'-' => State::ErrorEnds,
            State::ErrorEnds if byte == b'>' => State::Failed,
            State::ErrorEnd | State::ErrorEnds => State::Error,
            State::Text | State::Start(_) | State::Command | State::Failed => State::Text,
        })
    }

    /// The key and value that are being read.
    fn parameter(&mut self) -> &mut (Vec<u8>, Vec<u8>) {
        if self.parameters.is_empty() {
            self.parameters.push(Default::default());
        }
        let last = self.parameters.len() - 1;
        &mut self.parameters[last]
    }

    fn of_parameter(&mut self, mut message: Vec<u8>) -> Vec<u8> {
        message.extend_from_slice(b" \"");
        message.extend_from_slice(&self.parameter().0);
        message.extend_from_slice(b"\" parameter in ");
        self.of_command(message)
    }

    fn of_command(&self, mut message: Vec<u8>) -> Vec<u8> {
        message.push(b'"');
        message.extend_from_slice(&self.name);
        message.extend_from_slice(b"\" SSI command");
        message
    }
}

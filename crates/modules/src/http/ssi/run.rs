//! Following the commands of a page.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use weir_engine::http::subrequest::Included;
use weir_engine::http::{Body, Exchange, Response};
use weir_engine::http1::uri::{Escape, decode_unsafe, escape, escape_html};
use weir_syntax::Level;

use super::parse::{Found, PARAMETERS, Parser};
use super::{Pages, SharedRef, TimeFormat, text};

/// What is going on, for the log.
pub(super) fn doing(x: &Exchange) -> &'static str {
    if x.upstream_states.is_empty() { "sending response to client" } else { "sending to client" }
}

/// Why a command was not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It is wrong, which the page tells.
    Error,
    /// The page cannot go on.
    Fatal,
}

impl Stop {
    pub(super) fn error(x: &Exchange, message: &[&[u8]]) -> Self {
        complain(x, &message.concat());
        Self::Error
    }

    pub(super) fn too_much(x: &Exchange) -> Self {
        complain(x, b"too much in SSI variables and blocks");
        Self::Fatal
    }
}

fn complain(x: &Exchange, message: &[u8]) {
    x.log_while(Level::Error, None, String::from_utf8_lossy(message), doing(x));
}

/// A piece of what comes of a page.
pub(super) enum Piece {
    Text {
        bytes: Vec<u8>,
        at: usize,
    },
    Part(Included),
    /// What becomes the value of a variable.
    Set {
        part: Included,
        name: Vec<u8>,
        value: Vec<u8>,
        /// The answer's status and how long it may be, once its head is there.
        answer: Option<(u16, u64)>,
    },
}

/// How `echo` writes values, from one that says so on.
#[derive(Clone, Copy)]
enum Encoding {
    None,
    Url,
    Entity,
}

/// How far the present `if` is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Conditional {
    Outside,
    /// Behind `if` or `elif`.
    If,
    Else,
}

/// Which part of an `if` a command needs around it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    If,
    IfOrElse,
}

struct Command {
    name: &'static str,
    /// A `+` marks those that have to be there.
    parameters: &'static [&'static str],
    needs: Needs,
    run: fn(&mut Run, &mut Exchange, &Values) -> Result<(), Stop>,
}

/// The values of a command's parameters, in the order of the command's own list.
type Values = [Option<Vec<u8>>; 5];

const COMMANDS: [Command; 10] = [
    Command {
        name: "include",
        parameters: &["virtual", "file", "wait", "set", "stub"],
        needs: Needs::Nothing,
        run: Run::include,
    },
    Command {
        name: "echo",
        parameters: &["+var", "default", "encoding"],
        needs: Needs::Nothing,
        run: Run::echo,
    },
    Command { name: "config", parameters: &["errmsg", "timefmt"], needs: Needs::Nothing, run: Run::config },
    Command { name: "set", parameters: &["+var", "+value"], needs: Needs::Nothing, run: Run::set },
    Command { name: "if", parameters: &["+expr"], needs: Needs::Nothing, run: Run::begin_if },
    Command { name: "elif", parameters: &["+expr"], needs: Needs::If, run: Run::choose },
    Command { name: "else", parameters: &[], needs: Needs::If, run: Run::otherwise },
    Command { name: "endif", parameters: &[], needs: Needs::IfOrElse, run: Run::end_if },
    Command { name: "block", parameters: &["+name"], needs: Needs::Nothing, run: Run::block },
    Command { name: "endblock", parameters: &[], needs: Needs::Nothing, run: Run::end_block },
];

/// What is known of a page at the place up to which it was read.
pub(super) struct Run {
    parser: Parser,
    pages: Arc<Pages>,
    pub shared: SharedRef,
    /// What comes of it and was not sent yet.
    pub pieces: VecDeque<Piece>,
    /// Nothing more is read before all pieces are sent.
    pub waits: bool,
    error_message: Vec<u8>,
    encoding: Encoding,
    conditional: Conditional,
    /// One of the branches of the present `if` was taken.
    chosen: bool,
    /// What is read goes out; not so in a branch that is not taken, nor in a block.
    output: bool,
    in_block: bool,
    /// Text before a command, on its way to a piece.
    text: Vec<u8>,
}

impl Run {
    pub(super) fn new(pages: Arc<Pages>, shared: SharedRef) -> Self {
        Self {
            parser: Parser::new(pages.value_length),
            pages,
            shared,
            pieces: VecDeque::new(),
            waits: false,
            error_message: b"[an error occurred while processing the directive]".to_vec(),
            encoding: Encoding::Entity,
            conditional: Conditional::Outside,
            chosen: false,
            output: true,
            in_block: false,
            text: vec![],
        }
    }

    /// Takes a piece of the page up to the end of its first command, and follows that. Gives the number of bytes taken.
    pub(super) fn take(&mut self, x: &mut Exchange, piece: &[u8]) -> Result<usize, Stop> {
        let mut text = mem::take(&mut self.text);
        let (taken, found) = self.parser.parse(piece, &mut text, &mut |message| complain(x, &message));
        if self.output {
            self.send(&text);
        } else if self.in_block {
            self.shared.borrow_mut().add_to_block(&text).map_err(|_| Stop::too_much(x))?;
        }
        text.clear();
        self.text = text;
        let followed = match found {
            Found::More => return Ok(taken),
            Found::Command => self.command(x),
            Found::Error => Err(Stop::Error),
        };
        match followed {
            Err(Stop::Error) if !self.pages.silent_errors => {
                let message = mem::take(&mut self.error_message);
                self.send(&message);
                self.error_message = message;
            }
            Err(Stop::Fatal) => return Err(Stop::Fatal),
            Ok(()) | Err(Stop::Error) => {}
        }
        Ok(taken)
    }

    /// Text for the client, behind what comes before it.
    fn send(&mut self, text: &[u8]) {
        if text.is_empty() {
        } else if let Some(Piece::Text { bytes, .. }) = self.pieces.back_mut() {
            bytes.extend_from_slice(text);
        } else {
            self.pieces.push_back(Piece::Text { bytes: text.to_vec(), at: 0 });
        }
    }

    fn command(&mut self, x: &mut Exchange) -> Result<(), Stop> {
        let name = mem::take(&mut self.parser.name);
        let given = mem::take(&mut self.parser.parameters);
        let Some(command) = COMMANDS.iter().find(|command| command.name.as_bytes() == name) else {
            if self.output {
                return Err(Stop::error(x, &[b"invalid SSI command: \"", &name, b"\""]));
            }
            return Ok(());
        };
        if !self.output && command.name != "endblock" {
            if self.in_block {
                return self.keep_command(x, &name, &given);
            }
            if command.needs == Needs::Nothing {
                return Ok(());
            }
        }
        let fits = match (command.needs, self.conditional) {
            (Needs::Nothing, _) | (Needs::IfOrElse, Conditional::If | Conditional::Else) => true,
            (Needs::If, conditional) => conditional == Conditional::If,
            (Needs::IfOrElse, Conditional::Outside) => false,
        };
        if !fits {
            return Err(Stop::error(x, &[b"invalid context of SSI command: \"", &name, b"\""]));
        }
        let values = values(x, command, given)?;
        (command.run)(self, x, &values)
    }

    /// A command within a block stays a part of it.
    fn keep_command(&mut self, x: &Exchange, name: &[u8], given: &[(Vec<u8>, Vec<u8>)]) -> Result<(), Stop> {
        let mut text = [b"<!--#", name].concat();
        for (key, value) in given {
            text.extend_from_slice(&[b" ", &key[..], b"=\"", value, b"\""].concat());
        }
        text.extend_from_slice(b" -->");
        self.shared.borrow_mut().add_to_block(&text).map_err(|_| Stop::too_much(x))
    }

    fn evaluate(&self, x: &Exchange, text: &[u8]) -> Result<Vec<u8>, Stop> {
        text::evaluate(x, &self.pages.names, &self.shared.borrow(), text)
    }

    fn include(&mut self, x: &mut Exchange, values: &Values) -> Result<(), Stop> {
        let [path, file, wait, set, stub] = values;
        let fail = |message: &[&[u8]]| Err(Stop::error(x, message));
        let waits = match wait.as_deref() {
            Some(word) if word.eq_ignore_ascii_case(b"no") => Some(false),
            Some(word) if word.eq_ignore_ascii_case(b"yes") => Some(true),
            Some(_) => None,
            None => Some(false),
        };
        let (path, waits) = match (path, file, waits) {
            (Some(path), Some(file), _) => {
                return fail(&[b"inclusion may be either virtual=\"", path, b"\" or file=\"", file, b"\""]);
            }
            (None, None, _) => return fail(&[b"no parameter in \"include\" SSI command"]),
            _ if set.is_some() && stub.is_some() => {
                return fail(&[b"\"set\" and \"stub\" cannot be used together in \"include\" SSI command"]);
            }
            (None, Some(file), _) if wait.is_some() => {
                return fail(&[b"\"wait\" cannot be used with file=\"", file, b"\""]);
            }
            (Some(_), None, None) => {
                let word = wait.as_deref().unwrap_or_default();
                return fail(&[b"invalid value \"", word, b"\" in the \"wait\" parameter"]);
            }
            (Some(path), None, Some(waits)) => (path, waits),
            (None, Some(file), _) => (file, true),
        };
        let (uri, args) = self.target(x, path)?;
        let stub = match stub {
            None => None,
            Some(name) => {
                let shared = self.shared.borrow();
                let Some(block) = shared.blocks.iter().find(|block| block.name == *name) else {
                    return fail(&[b"\"stub\"=\"", name, b"\" for \"include\" not found"]);
                };
                Some(block.text.clone())
            }
        };
        let mut part = x.subrequest(&uri, &args).map_err(|_| Stop::Error)?;
        if let Some(text) = stub {
            let content_type = x.response.as_ref().and_then(|page| page.content_type.clone());
            let body = Body::Bytes(text.into());
            part.set_stub(Box::new(Response { content_type, body, ..Response::new(200) }));
        }
        self.waits = waits || set.is_some();
        self.pieces.push_back(match set {
            None => Piece::Part(Included::new(part)),
            Some(name) => {
                let name = name.to_ascii_lowercase();
                let mut shared = self.shared.borrow_mut();
                if shared.variable(&name).is_none() {
                    shared.set(&name, vec![]).map_err(|_| Stop::too_much(x))?;
                }
                Piece::Set { part: Included::in_memory(part), name, value: vec![], answer: None }
            }
        });
        Ok(())
    }

    /// The path and the arguments that a parameter names; below the folder of the page unless it begins with a slash.
    fn target(&self, x: &Exchange, text: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Stop> {
        let mut path = self.evaluate(x, text)?;
        if path.first() != Some(&b'/') && (!path.is_empty() || !text.contains(&b'$')) {
            let folder = memchr::memrchr(b'/', &x.uri).map_or(0, |slash| slash + 1);
            path.splice(..0, x.uri[..folder].iter().copied());
        }
        let mut uri = vec![];
        match decode_unsafe(&path, &mut uri) {
            Ok(args) => Ok((uri, args.unwrap_or_default().to_vec())),
            Err(_) => {
                // What was decoded before it was found to be so is shown as that.
                let shown = if uri.is_empty() { &path } else { &uri };
                Err(Stop::error(x, &[b"unsafe URI \"", shown, b"\" was detected"]))
            }
        }
    }

    fn echo(&mut self, x: &mut Exchange, [name, default, encoding, ..]: &Values) -> Result<(), Stop> {
        let mut value = vec![];
        let name = name.as_deref().unwrap_or_default();
        if !text::variable(x, &self.pages.names, &self.shared.borrow(), name, &mut value) {
            value = default.as_deref().unwrap_or(b"(none)").to_vec();
        }
        if value.is_empty() {
            return Ok(());
        }
        match encoding.as_deref() {
            None => {}
            Some(b"none") => self.encoding = Encoding::None,
            Some(b"url") => self.encoding = Encoding::Url,
            Some(b"entity") => self.encoding = Encoding::Entity,
            Some(other) => {
                complain(x, &[b"unknown encoding \"", other, b"\" in the \"echo\" command"].concat());
            }
        }
        let mut encoded = vec![];
        match self.encoding {
            Encoding::None => encoded = value,
            Encoding::Url => escape(&value, Escape::Html, &mut encoded),
            Encoding::Entity => escape_html(&value, &mut encoded),
        }
        self.send(&encoded);
        Ok(())
    }

    fn config(&mut self, x: &mut Exchange, [message, time_format, ..]: &Values) -> Result<(), Stop> {
        if let Some(form) = time_format {
            *x.extension_mut() = TimeFormat::new(form);
        }
        if let Some(message) = message {
            self.error_message.clone_from(message);
        }
        Ok(())
    }

    fn set(&mut self, x: &mut Exchange, [name, value, ..]: &Values) -> Result<(), Stop> {
        let value = self.evaluate(x, value.as_deref().unwrap_or_default())?;
        let name = name.as_deref().unwrap_or_default().to_ascii_lowercase();
        self.shared.borrow_mut().set(&name, value).map_err(|_| Stop::too_much(x))
    }

    fn begin_if(&mut self, x: &mut Exchange, values: &Values) -> Result<(), Stop> {
        if self.conditional != Conditional::Outside {
            return Err(Stop::error(x, &[b"the \"if\" command inside the \"if\" command"]));
        }
        self.choose(x, values)
    }

    /// `if` outside of another one, or `elif`.
    fn choose(&mut self, x: &mut Exchange, [expression, ..]: &Values) -> Result<(), Stop> {
        if self.chosen {
            self.output = false;
            return Ok(());
        }
        let expression = expression.as_deref().unwrap_or_default();
        self.output = text::holds(x, &self.pages.names, &mut self.shared.borrow_mut(), expression)?;
        self.chosen = self.output;
        self.conditional = Conditional::If;
        Ok(())
    }

    fn otherwise(&mut self, _: &mut Exchange, _: &Values) -> Result<(), Stop> {
        self.output = !self.chosen;
        self.conditional = Conditional::Else;
        Ok(())
    }

    fn end_if(&mut self, _: &mut Exchange, _: &Values) -> Result<(), Stop> {
        self.output = true;
        self.chosen = false;
        self.conditional = Conditional::Outside;
        Ok(())
    }

    fn block(&mut self, x: &mut Exchange, [name, ..]: &Values) -> Result<(), Stop> {
        let name = name.as_deref().unwrap_or_default();
        self.shared.borrow_mut().begin_block(name).map_err(|_| Stop::too_much(x))?;
        self.output = false;
        self.in_block = true;
        Ok(())
    }

    fn end_block(&mut self, _: &mut Exchange, _: &Values) -> Result<(), Stop> {
        self.output = true;
        self.in_block = false;
        Ok(())
    }
}

/// Sorts what a command was given into its own order.
fn values(x: &Exchange, command: &Command, given: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Values, Stop> {
    let name = command.name.as_bytes();
    if given.len() > PARAMETERS {
        return Err(Stop::error(x, &[b"too many SSI command parameters: \"", name, b"\""]));
    }
    let mut values = Values::default();
    let of_command = [b" in \"", name, b"\" SSI command"].concat();
    for (key, value) in given {
        let own = command.parameters.iter().position(|own| own.trim_start_matches('+').as_bytes() == key);
        match own.and_then(|at| values.get_mut(at)) {
            None => return Err(Stop::error(x, &[b"invalid parameter name: \"", &key, b"\"", &of_command])),
            Some(Some(_)) => {
                return Err(Stop::error(x, &[b"duplicate \"", &key, b"\" parameter", &of_command]));
            }
            Some(place) => *place = Some(value),
        }
    }
    for (own, value) in command.parameters.iter().zip(&values) {
        if let (Some(own), None) = (own.strip_prefix('+'), value) {
            let own = own.as_bytes();
            return Err(Stop::error(x, &[b"mandatory \"", own, b"\" parameter is absent", &of_command]));
        }
    }
    Ok(values)
}

//! `match`: what an answer has to be.

use weir_engine::generation::Build;
use weir_engine::http::{Exchange, Headers, Template};
use weir_ir::Regex;
use weir_ir::lowering::{Call, Fault};
use weir_ir::value;

/// A `match` block.
#[derive(Clone, Debug, Default)]
pub(super) struct Match {
    pub name: Box<str>,
    status: Option<Statuses>,
    headers: Vec<Header>,
    body: Option<(bool, Regex)>,
    require: Vec<weir_ir::Template>,
}

/// Statuses from one to another, or all but these.
#[derive(Clone, Debug)]
struct Statuses {
    not: bool,
    ranges: Vec<(u16, u16)>,
}

/// A test of a header field.
#[derive(Clone, Debug)]
struct Header {
    name: Box<[u8]>,
    not: bool,
    value: Value,
}

#[derive(Clone, Debug)]
enum Value {
    /// It is there.
    Any,
    Is(Box<[u8]>),
    Like(Regex),
}

impl Match {
    /// Reads a block.
    pub(super) fn read(name: &str, call: &mut Call<'_>) -> Result<Self, Fault> {
        let mut read = Self { name: name.into(), ..Self::default() };
        call.entries(|call| match (call.name(), call.args().len()) {
            (b"status", 1..) => read.status(call),
            (b"header", 1..) => read.header(call),
            (b"body", 2) => read.body(call),
            (b"require", 1..) => {
                for index in 0..call.args().len() {
                    let name = call.variable_name(index)?;
                    let id = call.variable(&name);
                    read.require.push(weir_ir::Template { parts: vec![weir_ir::Part::Variable(id)] });
                }
                Ok(())
            }
            (b"status" | b"header" | b"body" | b"require", _) => Err(call.invalid_arguments()),
            (name, _) => Err(call.fail([b"unknown test \"", name, b"\" in \"match\""].concat())),
        })?;
        Ok(read)
    }

    fn status(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        if self.status.is_some() {
            return Err(call.duplicate());
        }
        let not = call.arg(0) == b"!";
        let mut ranges = vec![];
        for index in usize::from(not)..call.args().len() {
            ranges.push(range(call.arg(index)).ok_or_else(|| call.fail_at(index, "invalid status"))?);
        }
        if ranges.is_empty() {
            return Err(call.invalid_arguments());
        }
        self.status = Some(Statuses { not, ranges });
        Ok(())
    }

    fn header(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        let (not_there, rest) = if call.arg(0) == b"!" { (true, 1) } else { (false, 0) };
        let name = call.arg(rest).into();
        let count = call.args().len() - rest;
        let (not, value) = match (count, call.arg(1)) {
            (1, _) => (not_there, Value::Any),
            (3, b"=") if !not_there => (false, Value::Is(call.arg(2).into())),
            (3, b"!=") if !not_there => (true, Value::Is(call.arg(2).into())),
            (3, b"~") if !not_there => (false, Value::Like(regex(call, 2)?)),
            (3, b"!~") if !not_there => (true, Value::Like(regex(call, 2)?)),
            (3, _) if !not_there => return Err(call.invalid_parameter(1)),
            _ => return Err(call.invalid_arguments()),
        };
        self.headers.push(Header { name, not, value });
        Ok(())
    }

    fn body(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        if self.body.is_some() {
            return Err(call.duplicate());
        }
        let not = match call.arg(0) {
            b"~" => false,
            b"!~" => true,
            _ => return Err(call.invalid_parameter(0)),
        };
        self.body = Some((not, regex(call, 1)?));
        Ok(())
    }

    pub(super) fn compile(&self, build: &Build<'_>) -> Tests {
        Tests {
            status: self.status.clone(),
            headers: self.headers.clone(),
            body: self.body.clone(),
            require: self.require.iter().map(|t| build.template(t)).collect(),
        }
    }
}

fn regex(call: &mut Call<'_>, index: usize) -> Result<Regex, Fault> {
    Regex::compile(call.arg(index), false, call).map_err(|fault| call.under(fault, index))
}

/// `200`, or `200-399`.
fn range(text: &[u8]) -> Option<(u16, u16)> {
    let status = |text: &[u8]| {
        let number = value::number(text).filter(|number| (100..=599).contains(number))?;
        u16::try_from(number).ok()
    };
    match memchr::memchr(b'-', text) {
        None => status(text).map(|status| (status, status)),
        Some(at) => {
            let (from, to) = (status(&text[..at])?, status(&text[at + 1..])?);
            (from <= to).then_some((from, to))
        }
    }
}

/// What an answer has to be, compiled. Without any test, whatever is no failure will do.
#[derive(Default)]
pub(super) struct Tests {
    status: Option<Statuses>,
    headers: Vec<Header>,
    body: Option<(bool, Regex)>,
    require: Vec<Template>,
}

impl Tests {
    pub(super) fn is_status(&self, status: u16) -> bool {
        match &self.status {
            // A match that asks for something else does so instead.
            None if self.is_empty() => (200..400).contains(&status),
            None => true,
            Some(of) => of.ranges.iter().any(|(from, to)| (*from..=*to).contains(&status)) != of.not,
        }
    }

    fn is_empty(&self) -> bool {
        self.headers.is_empty() && self.body.is_none() && self.require.is_empty()
    }

    pub(super) fn are_headers(&self, headers: &Headers) -> bool {
        self.headers.iter().all(|header| {
            let mut values = headers.all(&header.name);
            let is = match &header.value {
                Value::Any => values.next().is_some(),
                Value::Is(value) => values.any(|own| *own == **value),
                Value::Like(regex) => values.any(|own| regex.is_match(own)),
            };
            is != header.not
        })
    }

    pub(super) fn reads_body(&self) -> bool {
        self.body.is_some()
    }

    pub(super) fn is_body(&self, body: &[u8]) -> bool {
        self.body.as_ref().is_none_or(|(not, regex)| regex.is_match(body) != *not)
    }

    pub(super) fn is_required(&self, x: &Exchange) -> bool {
        self.require.iter().all(|variable| variable.is_true(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        assert_eq!(range(b"200"), Some((200, 200)));
        assert_eq!(range(b"200-399"), Some((200, 399)));
        for bad in [&b""[..], b"-", b"20", b"600", b"300-200", b"200-", b"ok"] {
            assert_eq!(range(bad), None, "{bad:?}");
        }
        let of = |not, ranges: &[(u16, u16)]| Tests {
            status: Some(Statuses { not, ranges: ranges.to_vec() }),
            ..Tests::default()
        };
        let some = of(false, &[(301, 303), (307, 307)]);
        assert_eq!([300, 302, 307].map(|s| some.is_status(s)), [false, true, true]);
        let others = of(true, &[(400, 599)]);
        assert_eq!([200, 404].map(|s| others.is_status(s)), [true, false]);
        assert_eq!([199, 200, 399, 404].map(|s| Tests::default().is_status(s)), [false, true, true, false]);
    }

    #[test]
    fn header_fields() {
        let mut headers = Headers::default();
        headers.push(b"Content-Type", b"text/html");
        headers.push(b"X", b"a");
        headers.push(b"X", b"b");
        let check = |name: &[u8], not, value, expected| {
            let tests = Tests { headers: vec![Header { name: name.into(), not, value }], ..Tests::default() };
            assert_eq!(tests.are_headers(&headers), expected);
        };
        check(b"content-type", false, Value::Is(b"text/html"[..].into()), true);
        check(b"content-type", true, Value::Is(b"text/html"[..].into()), false);
        check(b"x", false, Value::Is(b"b"[..].into()), true);
        check(b"x", false, Value::Like(Regex::for_once(b"^c").unwrap()), false);
        check(b"x", true, Value::Like(Regex::for_once(b"^c").unwrap()), true);
        check(b"y", false, Value::Any, false);
        check(b"y", true, Value::Any, true);
        check(b"y", true, Value::Is(b"a"[..].into()), true);
    }
}

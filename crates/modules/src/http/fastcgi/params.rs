//! `fastcgi_param`, and the records of a request that stand before its body.

use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Template};
use weir_engine::http1::{Field, Known};
use weir_engine::upstream::fastcgi::append_record;
use weir_ir::lowering::{Call, Fault};
use weir_syntax::Level;

use super::Passing;

/// One `fastcgi_param`.
#[derive(Clone, Debug)]
pub(super) struct Param {
    name: Box<[u8]>,
    value: weir_ir::Template,
    if_not_empty: bool,
}

pub(super) fn read(passing: &mut Passing, call: &mut Call<'_>) -> Result<(), Fault> {
    let if_not_empty = call.args().len() > 2;
    if if_not_empty && call.arg(2) != b"if_not_empty" {
        return Err(call.invalid_parameter(2));
    }
    let value = call.template(1)?;
    passing.params.push(Param { name: call.arg(0).into(), value, if_not_empty });
    Ok(())
}

const HOST: (&str, &str) = ("HTTP_HOST", "$host$is_request_port$request_port");

/// Of an answer that may be kept the whole is wanted, or to know whether the copy that is there holds still.
const CONDITIONS: [(&str, &str); 6] = [
    ("HTTP_IF_MODIFIED_SINCE", "$upstream_cache_last_modified"),
    ("HTTP_IF_UNMODIFIED_SINCE", ""),
    ("HTTP_IF_NONE_MATCH", "$upstream_cache_etag"),
    ("HTTP_IF_MATCH", ""),
    ("HTTP_RANGE", ""),
    ("HTTP_IF_RANGE", ""),
];

/// What is sent unless a `fastcgi_param` of that name is there, and it is not empty.
#[derive(Clone, Debug)]
pub(super) struct Defaults {
    pub(super) usual: Vec<Param>,
    /// Of requests whose answers may be kept.
    pub(super) cached: Vec<Param>,
}

impl Defaults {
    pub(super) fn read(call: &mut Call<'_>) -> Result<Self, Fault> {
        let mut param = |(name, value): &(&str, &str)| {
            let value = weir_ir::Template::parse(value.as_bytes(), call)?;
            Ok(Param { name: name.as_bytes().into(), value, if_not_empty: true })
        };
        let usual = vec![param(&HOST)?];
        let conditions = CONDITIONS.iter().map(param).collect::<Result<Vec<_>, Fault>>()?;
        Ok(Self { cached: [usual.clone(), conditions].concat(), usual })
    }
}

/// The parameters of a location's requests.
pub(super) struct Params {
    list: Vec<Ready>,
    /// Headers of the client that do not go on, for a parameter says what they would: in lower case, `_` for `-`.
    replaced: Vec<Box<[u8]>>,
}

struct Ready {
    name: Box<[u8]>,
    value: Template,
    if_not_empty: bool,
}

impl Params {
    pub(super) fn compile(own: &[Param], defaults: &[Param], plan: &Plan<'_, '_>) -> Self {
        let mut params = Self { list: vec![], replaced: vec![] };
        let given = |default: &&Param| !own.iter().any(|own| own.name.eq_ignore_ascii_case(&default.name));
        for Param { name, value, if_not_empty } in own.iter().chain(defaults.iter().filter(given)) {
            let header = name.strip_prefix(b"HTTP_").filter(|header| !header.is_empty());
            if let Some(header) = header {
                params.replaced.push(header.to_ascii_lowercase().into());
            }
            // The way to leave out a header of the client.
            if header.is_none() || !value.is_empty() {
                let (name, value) = (name.clone(), plan.template(value));
                params.list.push(Ready { name, value, if_not_empty: *if_not_empty });
            }
        }
        params
    }

    /// Appends all that the application is told before the body comes.
    ///
    /// # Errors
    /// The status to answer with, where that is more than a record holds; it was logged.
    pub(super) fn write(
        &self,
        x: &Exchange,
        keep: bool,
        pass_headers: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), u16> {
        append_record(BEGIN_REQUEST, &[0, RESPONDER, u8::from(keep), 0, 0, 0, 0, 0], out);
        let mut content = vec![];
        for Ready { name, value, if_not_empty } in &self.list {
            pair(x, name, *if_not_empty, &mut content, |out| value.append(x, out));
        }
        if pass_headers {
            self.write_client_headers(x, &mut content);
        }
        if content.len() > usize::from(u16::MAX) {
            x.log(Level::Alert, format_args!("fastcgi request record is too big: {}", content.len()));
            return Err(500);
        }
        // An empty record is the end of them.
        if !content.is_empty() {
            append_record(PARAMS, &content, out);
        }
        append_record(PARAMS, b"", out);
        Ok(())
    }

    fn write_client_headers(&self, x: &Exchange, out: &mut Vec<u8>) {
        let fields = x.head.fields();
        let name = |field: &Field| x.head.get(field.name);
        let same = |a: &Field, b: &Field| {
            a.known == b.known && (a.known != Known::Other || name(a).eq_ignore_ascii_case(name(b)))
        };
        let mut told = vec![false; fields.len()];
        let mut param = vec![];
        for (index, field) in fields.iter().enumerate() {
            if told[index] || self.replaced.iter().any(|replaced| is_header(replaced, name(field))) {
                continue;
            }
            param.clear();
            param.extend_from_slice(b"HTTP_");
            param.extend(name(field).iter().map(|byte| as_in_param(*byte).to_ascii_uppercase()));
            let between: &[u8] = if field.known == Known::Cookie { b"; " } else { b", " };
            pair(x, &param, false, out, |out| {
                out.extend_from_slice(x.head.get(field.value));
                for (told, later) in told.iter_mut().zip(fields).skip(index + 1) {
                    if same(field, later) {
                        *told = true;
                        out.extend_from_slice(between);
                        out.extend_from_slice(x.head.get(later.value));
                    }
                }
            });
        }
    }
}

const BEGIN_REQUEST: u8 = 1;
const PARAMS: u8 = 4;
const RESPONDER: u8 = 1;

/// Appends a parameter; one `if_not_empty` that is empty is left out.
fn pair(x: &Exchange, name: &[u8], if_not_empty: bool, out: &mut Vec<u8>, value: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(length(name.len(), &mut [0; 4]));
    let place = out.len();
    out.push(0);
    out.extend_from_slice(name);
    let from = out.len();
    value(out);
    if if_not_empty && out.len() == from {
        out.truncate(start);
        return;
    }
    x.debug(|| {
        let text = String::from_utf8_lossy;
        format!("fastcgi param: \"{}: {}\"", text(name), text(&out[from..]))
    });
    // Most are short, so the one byte is most often all of it.
    match length(out.len() - from, &mut [0; 4]) {
        &[short] => out[place] = short,
        long => drop(out.splice(place..=place, long.iter().copied())),
    }
}

/// A length as it stands before names and values.
fn length(length: usize, four: &mut [u8; 4]) -> &[u8] {
    match u8::try_from(length) {
        Ok(short @ ..=127) => {
            four[0] = short;
            &four[..1]
        }
        // What does not fit here does not fit into the record either, which is looked at behind the last.
        Ok(_) | Err(_) => {
            *four = (length as u32 | 1 << 31).to_be_bytes();
            four
        }
    }
}

fn as_in_param(byte: u8) -> u8 {
    if byte == b'-' { b'_' } else { byte }
}

/// Whether a header of the client would be that parameter's.
fn is_header(replaced: &[u8], name: &[u8]) -> bool {
    replaced.len() == name.len()
        && name.iter().zip(replaced).all(|(byte, other)| as_in_param(*byte).to_ascii_lowercase() == *other)
}

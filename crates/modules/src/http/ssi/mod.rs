//! `ngx_http_ssi_filter_module`: pages with commands in comments, `<!--#include virtual="/part" -->`.
//!
//! `parse.rs` finds the commands, `run.rs` follows them, `text.rs` evaluates what their parameters say, `page.rs` is the body
//! that comes of it: texts and answers of subrequests in their order.

mod page;
mod parse;
mod run;
#[cfg(test)]
mod tests;
mod text;

use std::cell::RefCell;
use std::ffi::CString;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;

use weir_engine::contract::{Filter, Install, Variable};
use weir_engine::generation::{Build, Names, Plan};
use weir_engine::http::variables::number;
use weir_engine::http::{Body, Exchange, Response};
use weir_engine::http1::Method;
use weir_engine::localtime;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Once, Setting, Takes};
use weir_ir::{Call, Fault, Merge};
use weir_syntax::Diagnostic;

use super::types::Types;
use page::Page;

pub struct Ssi;

type D = Directive<Ssi>;

const SCOPES: Contexts = Contexts::SCOPES;

impl Module for Ssi {
    const NAME: &'static str = "http_ssi_filter";
    type Main = Used;
    type Scope = Settings;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("ssi", SCOPES.or(Contexts::LOCATION_IF), Takes::FLAG, Settings::enable),
        D::scope("ssi_silent_errors", SCOPES, Takes::FLAG, |s, c| s.silent_errors.flag(c)),
        D::scope("ssi_ignore_recycled_buffers", SCOPES, Takes::FLAG, |s, c| s.once.flag(c))
            .accepted("no buffer is waited for"),
        D::scope("ssi_min_file_chunk", SCOPES, Takes::ONE, |s, c| s.once.size(c))
            .accepted("a page is read to be looked through, and what was read is sent"),
        D::scope("ssi_value_length", SCOPES, Takes::ONE, |s, c| s.value_length.size(c)),
        D::scope("ssi_types", SCOPES, Takes::ONE_MORE, |s, c| s.types.add(c)),
        D::scope("ssi_last_modified", SCOPES, Takes::FLAG, |s, c| s.last_modified.flag(c)),
    ];
}

/// Whether some level has `ssi on`, so that variables are wanted by name.
#[derive(Clone, Debug, Default)]
pub struct Used(bool);

impl Conf for Used {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

/// What a level does with pages.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    enabled: Setting<bool>,
    silent_errors: Setting<bool>,
    value_length: Setting<u64>,
    types: Types,
    last_modified: Setting<bool>,
    once: Once,
}

impl Conf for Settings {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.enabled.inherit(&outer.enabled);
        self.silent_errors.inherit(&outer.silent_errors);
        self.value_length.inherit(&outer.value_length);
        self.types.inherit(&outer.types);
        self.last_modified.inherit(&outer.last_modified);
        Ok(())
    }
}

impl Settings {
    fn enable(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        self.enabled.flag(call)?;
        if self.enabled.or(false) {
            call.main_of::<Ssi>().0 = true;
        }
        Ok(())
    }
}

impl Install for Ssi {
    const VARIABLES: &'static [Variable] = &[
        Variable::new("date_local", |x, out| date(x, false, out)),
        Variable::new("date_gmt", |x, out| date(x, true, out)),
    ];

    fn prepare(used: &Used, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        if used.0 {
            let names = Arc::new(build.names());
            build.keep("", names);
        }
        Ok(())
    }

    fn install(settings: &Settings, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if let (true, Some(names)) = (settings.enabled.or(false), plan.build.kept::<Names>("")) {
            plan.handlers.filters.push(Box::new(Including {
                pages: Arc::new(Pages {
                    names,
                    silent_errors: settings.silent_errors.or(false),
                    value_length: settings.value_length.or(255) as usize,
                }),
                types: settings.types.or(&["text/html"]),
                last_modified: settings.last_modified.or(false),
            }));
        }
        Ok(())
    }
}

/// The times of a page are written in its own words (`config timefmt`).
#[derive(Default)]
struct TimeFormat(Option<CString>);

impl TimeFormat {
    fn new(form: &[u8]) -> Self {
        let text = form.split(|byte| *byte == 0).next().unwrap_or_default();
        Self(CString::new(text).ok())
    }
}

fn date(x: &Exchange, gmt: bool, out: &mut Vec<u8>) -> bool {
    let form = x.extension::<TimeFormat>().and_then(|form| form.0.as_deref());
    let form = form.unwrap_or(c"%A, %d-%b-%Y %H:%M:%S %Z");
    let now = x.reactor.clock().unix_secs();
    // Seconds since the epoch know no zone.
    if form == c"%s" { number(now, out) } else { localtime::format(now as i64, gmt, form, out) }
}

/// What a level's pages have in common.
struct Pages {
    names: Arc<Names>,
    silent_errors: bool,
    value_length: usize,
}

struct Including {
    pages: Arc<Pages>,
    types: Types,
    last_modified: bool,
}

impl Filter for Including {
    fn filter(&self, x: &mut Exchange, response: &mut Response) {
        if response.content_length == Some(0)
            || matches!(response.body, Body::Tunnel(_))
            || !self.types.has(response)
        {
            return;
        }
        if !x.is_subrequest() {
            response.body_changes();
            if !self.last_modified {
                response.clear_validators();
            }
        }
        // A page that is not sent is not read either.
        if x.method == Method::Head {
            return;
        }
        x.remember(RefCell::new(Shared::default()));
        let Some(shared) = x.remembered::<RefCell<Shared>>() else { return };
        let body = mem::take(&mut response.body).into_source();
        response.body = Body::Stream(Box::new(Page::new(body, Arc::clone(&self.pages), shared)));
    }
}

/// Bytes that the pages of a request may keep in blocks and variables.
const KEPT: usize = 1 << 20;

/// What a page and all that it includes have in common.
#[derive(Default)]
struct Shared {
    variables: Vec<(Vec<u8>, Vec<u8>)>,
    blocks: Vec<Block>,
    /// The groups of the last regular expression that matched; those behind the last that took part are not there.
    groups: Vec<Vec<u8>>,
    /// Bytes of blocks and variables.
    kept: usize,
}

/// A block that is kept as a stub.
struct Block {
    name: Vec<u8>,
    text: Vec<u8>,
}

/// The pages of a request keep more than they may.
struct TooMuch;

impl Shared {
    fn variable(&self, name: &[u8]) -> Option<&[u8]> {
        if let [digit @ b'0'..=b'9'] = name
            && let Some(group) = self.groups.get(usize::from(digit - b'0'))
        {
            return Some(group);
        }
        self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    fn keep(&mut self, bytes: usize) -> Result<(), TooMuch> {
        self.kept += bytes;
        if self.kept > KEPT { Err(TooMuch) } else { Ok(()) }
    }

    fn set(&mut self, name: &[u8], value: Vec<u8>) -> Result<(), TooMuch> {
        match self.variables.iter().position(|(known, _)| known == name) {
            Some(at) => {
                self.keep(value.len())?;
                self.kept -= mem::replace(&mut self.variables[at].1, value).len();
            }
            None => {
                self.keep(name.len() + value.len())?;
                self.variables.push((name.to_vec(), value));
            }
        }
        Ok(())
    }

    fn begin_block(&mut self, name: &[u8]) -> Result<(), TooMuch> {
        self.keep(name.len())?;
        self.blocks.push(Block { name: name.to_vec(), text: vec![] });
        Ok(())
    }

    /// Adds to the block that was begun last.
    fn add_to_block(&mut self, text: &[u8]) -> Result<(), TooMuch> {
        self.keep(text.len())?;
        if let Some(block) = self.blocks.last_mut() {
            block.text.extend_from_slice(text);
        }
        Ok(())
    }
}

/// What is shared, as a page holds it.
type SharedRef = Rc<RefCell<Shared>>;

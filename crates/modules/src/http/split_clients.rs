//! `ngx_http_split_clients_module`: a variable that divides requests by the hash of a text (A/B tests).

use weir_engine::contract::{Evaluate, Install};
use weir_engine::generation::{Build, Plan};
use weir_engine::http::{self, Exchange};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Takes};
use weir_ir::{Call, Fault, Merge, Template, VariableId};
use weir_syntax::Diagnostic;

/// All, in hundredths of a percent.
const ALL: u64 = 10_000;

pub struct SplitClients;

type D = Directive<SplitClients>;

impl Module for SplitClients {
    const NAME: &'static str = "http_split_clients";
    type Main = Splits;
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] =
        &[D::main("split_clients", Contexts::HTTP, Takes::TWO.with_block(), split_clients)];
}

/// All blocks of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Splits(Vec<Split>);

#[derive(Clone, Debug)]
struct Split {
    source: Template,
    variable: VariableId,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// Hashes below it belong to this part or one before; `None` takes all.
    below: Option<u32>,
    value: Box<[u8]>,
}

impl Conf for Splits {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

fn split_clients(conf: &mut Splits, call: &mut Call<'_>) -> Result<(), Fault> {
    let source = call.template(0)?;
    let name = call.variable_name(1)?;
    let variable = call.declare(&name, true)?;
    let mut shares = vec![];
    call.entries(|entry| {
        if entry.args().is_empty() {
            return Err(entry.fail("invalid number of the split_clients parameters"));
        }
        let share = match entry.name() {
            b"*" => None,
            [text @ .., b'%'] if hundredths(text).is_some_and(|n| n > 0) => hundredths(text),
            other => return Err(entry.fail([b"invalid percent value \"", other, b"\""].concat())),
        };
        shares.push((share, entry.arg(0).into()));
        Ok(())
    })?;
    let parts = bounds(shares).ok_or_else(|| call.fail_at_end("percent total is greater than 100%"))?;
    conf.0.push(Split { source, variable, parts });
    Ok(())
}

/// A decimal number with at most two digits behind its point, times 100.
fn hundredths(text: &[u8]) -> Option<u64> {
    let (whole, rest) = match memchr::memchr(b'.', text) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &b""[..]),
    };
    if text.is_empty() || rest.len() > 2 {
        return None;
    }
    let mut digits = [whole, rest].concat();
    digits.resize(digits.len() + 2 - rest.len(), b'0');
    weir_ir::value::number(&digits)
}

/// The bounds of hashes for shares in hundredths of a percent; `None` where they are more than all.
fn bounds(shares: Vec<(Option<u64>, Box<[u8]>)>) -> Option<Vec<Part>> {
    let (mut sum, mut last) = (0u64, 0u32);
    let parts = shares.into_iter().map(|(share, value)| {
        sum = match share {
            Some(share) => sum.checked_add(share)?,
            None => ALL,
        };
        let below = match share {
            _ if sum > ALL => return None,
            Some(share) if sum < ALL => {
                last += (share * u64::from(u32::MAX) / ALL) as u32;
                Some(last)
            }
            Some(_) | None => None,
        };
        Some(Part { below, value })
    });
    parts.collect()
}

impl Install for SplitClients {
    fn prepare(splits: &Splits, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        for split in &splits.0 {
            let ready = Ready { source: build.template(&split.source), parts: split.parts.clone() };
            build.define(split.variable, Box::new(ready), false);
        }
        Ok(())
    }

    fn install((): &(), _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

struct Ready {
    source: http::Template,
    parts: Vec<Part>,
}

impl Evaluate for Ready {
    fn evaluate(&self, x: &Exchange, out: &mut Vec<u8>) -> bool {
        let hash = murmur2(&self.source.value(x));
        if let Some(part) = self.parts.iter().find(|part| part.below.is_none_or(|below| hash < below)) {
            out.extend_from_slice(&part.value);
        }
        true
    }
}

/// Austin Appleby's MurmurHash2 of 32 bits with seed 0, which decides who belongs to which part.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (at, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Site, check_conf};

    #[test]
    fn messages() {
        let refused = |block: &str, message: &str| {
            check_conf(&format!("split_clients $uri $v {{ {block} }}"), message);
        };
        refused("50 a;", "invalid percent value \"50\"");
        refused("0% a;", "invalid percent value \"0%\"");
        refused("1.234% a;", "invalid percent value \"1.234%\"");
        refused("x% a;", "invalid percent value \"x%\"");
        refused("% a;", "invalid percent value \"%\"");
        refused("60% a; 50% b;", "percent total is greater than 100%");
        refused("50% a; 50% b;", "");
        refused("99.99% a; 0.01% b;", "");
    }

    #[test]
    fn hashes() {
        assert_eq!(murmur2(b""), 0);
        // Parts as nginx gives them.
        for (text, part) in [("1", "a"), ("2", "a"), ("3", "b"), ("4", "a"), ("abcdefg", "c")] {
            let site =
                Site::new("split_clients $arg_x $v { 33.3% a; 33.3% b; * c; } server { return 200 $v; }");
            assert_eq!(site.short(&format!("/?x={text}")), format!("200 {part}"), "{text}");
        }
        let site = Site::new("split_clients $arg_x $v { 0.01% a; } server { return 200 [$v]; }");
        assert_eq!(site.short("/?x=1"), "200 []");
    }
}

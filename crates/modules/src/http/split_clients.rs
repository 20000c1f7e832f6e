//! `ngx_http_split_clients_module`: a variable whose value depends on the hash of a text, for A/B tests.

use weir_engine::contract::{Evaluate, Install};
use weir_engine::generation::{Build, Plan};
use weir_engine::http::{Exchange, Template};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Takes};
use weir_ir::{Call, Fault, Merge, VariableId};
use weir_syntax::Diagnostic;

pub struct SplitClients;

impl Module for SplitClients {
    const NAME: &'static str = "split_clients";
    type Main = Splits;
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] = &[Directive::<SplitClients>::main(
        "split_clients",
        Contexts::HTTP,
        Takes::TWO.with_block(),
        Splits::add,
    )];
}

/// All `split_clients` blocks.
#[derive(Clone, Debug, Default)]
pub struct Splits(Vec<Split>);

#[derive(Clone, Debug)]
struct Split {
    key: weir_ir::Template,
    variable: VariableId,
    parts: Vec<Part>,
}

/// A value for all hashes below a bound that no earlier part took.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// `None`: all that are left.
    below: Option<u32>,
    value: Box<[u8]>,
}

impl Conf for Splits {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

impl Splits {
    fn add(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        let key = call.template(0)?;
        let name = call.variable_name(1)?;
        let variable = call.declare(&name, true)?;
        let mut shares = vec![];
        call.entries(|entry| {
            let share = match entry.name() {
                b"*" => 0,
                text => match text.strip_suffix(b"%").and_then(hundredths) {
                    Some(share) if share > 0 => share,
                    Some(_) | None => {
                        let shown = String::from_utf8_lossy(text).into_owned();
                        return Err(entry.fail(format!("invalid percent value \"{shown}\"")));
                    }
                },
            };
            shares.push((share, Box::from(entry.arg(0))));
            Ok(())
        })?;
        let parts = bounds(shares).ok_or_else(|| call.fail("percent total is greater than 100%"))?;
        self.0.push(Split { key, variable, parts });
        Ok(())
    }
}

/// A decimal number with at most two places, in hundredths.
fn hundredths(text: &[u8]) -> Option<u64> {
    let (whole, places) = match memchr::memchr(b'.', text) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &b""[..]),
    };
    let digits = |text: &[u8]| if text.is_empty() { Some(0) } else { weir_ir::value::number(text) };
    let scale = [100, 10, 1].get(places.len())?;
    if text.is_empty() {
        return None;
    }
    digits(whole)?.checked_mul(100)?.checked_add(digits(places)? * scale)
}

/// Turns shares (hundredths of a percent; 0 is the rest) into bounds of the hash; `None` where they exceed the whole.
fn bounds(shares: Vec<(u64, Box<[u8]>)>) -> Option<Vec<Part>> {
    const WHOLE: u64 = 10_000;
    let mut sum = 0u64;
    let mut last = 0u32;
    let mut parts = vec![];
    for (share, value) in shares {
        sum = if share == 0 { WHOLE } else { sum.checked_add(share)? };
        let below = match sum {
            WHOLE => None,
            0..WHOLE => {
                last = last.wrapping_add((share * u64::from(u32::MAX) / WHOLE) as u32);
                Some(last)
            }
            _ => return None,
        };
        parts.push(Part { below, value });
    }
    Some(parts)
}

/// MurmurHash2 by Austin Appleby, seed 0.
fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let (words, tail) = bytes.as_chunks::<4>();
    let mut hash = bytes.len() as u32;
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (at, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

impl Install for SplitClients {
    fn prepare(splits: &Splits, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        for split in &splits.0 {
            let ready = Ready { key: build.template(&split.key), parts: split.parts.clone() };
            build.define(split.variable, Box::new(ready), false);
        }
        Ok(())
    }

    fn install((): &(), _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

struct Ready {
    key: Template,
    parts: Vec<Part>,
}

impl Evaluate for Ready {
    fn evaluate(&self, x: &Exchange, out: &mut Vec<u8>) -> bool {
        let hash = murmur2(&self.key.value(x));
        if let Some(part) = self.parts.iter().find(|part| part.below.is_none_or(|below| hash < below)) {
            out.extend_from_slice(&part.value);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::{Site, check_conf};

    #[test]
    fn messages() {
        check_conf("split_clients $uri $v { 0.5% a; 2.25% b; * c; }", "");
        check_conf("split_clients $uri $v { 0% a; }", "invalid percent value \"0%\"");
        check_conf("split_clients $uri $v { 1.234% a; }", "invalid percent value \"1.234%\"");
        check_conf("split_clients $uri $v { 5 a; }", "invalid percent value \"5\"");
        check_conf("split_clients $uri $v { 60% a; 50% b; }", "percent total is greater than 100%");
        check_conf("split_clients $uri v { * a; }", "invalid variable name \"v\"");
    }

    #[test]
    fn hashes() {
        for (text, expected) in
            [("", 0), ("a", 0x9268_5f5e), ("abcd", 0x2687_3021), ("hello world", 0x44a8_1419)]
        {
            assert_eq!(murmur2(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn shares() {
        let shares =
            [(50, "a"), (9_950, "b"), (0, "c")].map(|(share, value)| (share, value.as_bytes().into()));
        let below: Vec<_> = bounds(shares.into()).unwrap().iter().map(|part| part.below).collect();
        assert_eq!(below, [Some(21_474_836), None, None]);
    }

    #[test]
    fn values() {
        let site = Site::new(
            "split_clients $arg_k $v { 50% low; * high; } server { listen 80; location / { answer 200 a $v; } }",
        );
        // The hash of "abcd" lies in the lower half, that of "a" in the upper one.
        assert!(site.get("/?k=abcd", "").ends_with("\r\n\r\nlow"));
        assert!(site.get("/?k=a", "").ends_with("\r\n\r\nhigh"));
    }
}

//! `resolver`: the name servers that names are asked of at run time.

use crate::address::{self, Address, Form, Host};
use crate::lowering::{Call, Fault};
use crate::value;

/// One `resolver` directive. Levels that inherit it share it, and so what it has learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolver {
    /// Asked in turn.
    pub servers: Vec<Address>,
    /// Seconds that an answer holds, whatever it says itself.
    pub valid: Option<u64>,
    pub ipv4: bool,
    pub ipv6: bool,
}

/// Reads a `resolver` directive.
///
/// # Errors
/// nginx's words, where they end in a colon too.
pub fn read(call: &mut Call<'_>) -> Result<Resolver, Fault> {
    let mut resolver = Resolver { servers: vec![], valid: None, ipv4: true, ipv6: true };
    for index in 0..call.args().len() {
        let word = call.arg(index);
        let known = if let Some(time) = word.strip_prefix(b"valid=") {
            // No time at all is what a server's answer says.
            value::sec(time).map(|valid| resolver.valid = (valid > 0).then_some(valid))
        } else if let Some(word) = word.strip_prefix(b"ipv4=") {
            on_off(word).map(|on| resolver.ipv4 = on)
        } else if let Some(word) = word.strip_prefix(b"ipv6=") {
            on_off(word).map(|on| resolver.ipv6 = on)
        } else {
            resolver.servers.extend(servers(call, index)?);
            Some(())
        };
        if known.is_none() {
            let message = [b"invalid parameter: ", word].concat();
            return Err(call.under(call.fail(message), index));
        }
    }
    if !resolver.ipv4 && !resolver.ipv6 {
        return Err(call.fail("\"ipv4\" and \"ipv6\" cannot both be \"off\""));
    }
    if resolver.servers.is_empty() {
        return Err(call.fail("no name servers defined"));
    }
    Ok(resolver)
}

fn on_off(word: &[u8]) -> Option<bool> {
    match word {
        b"on" => Some(true),
        b"off" => Some(false),
        _ => None,
    }
}

fn servers(call: &Call<'_>, index: usize) -> Result<Vec<Address>, Fault> {
    let bad = |reason: &str| {
        let message = [reason.as_bytes(), b" in resolver \"", call.arg(index), b"\""].concat();
        call.under(call.fail(message), index)
    };
    let authority = address::parse(call.arg(index), Form::default()).map_err(bad)?;
    if matches!(authority.host, Host::Unix(_)) {
        return Err(bad("a unix domain socket is known but not supported by weir yet"));
    }
    call.addresses(&authority, 53).map_err(bad)
}

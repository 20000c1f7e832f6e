//! `ngx_http_upstream_zone_module`: in nginx, the memory through which workers share what they know of servers.

use weir_engine::contract::Install;
use weir_engine::generation::{Build, Plan};
use weir_ir::lowering::{Call, Fault, Merge};
use weir_ir::{Conf, Contexts, Directive, Module, Takes, value};
use weir_syntax::Diagnostic;

pub struct Zone;

impl Module for Zone {
    const NAME: &'static str = "http_upstream_zone";
    type Main = ();
    type Scope = Name;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[Directive::<Self>::scope("zone", Contexts::UPSTREAM, Takes::ONE_TWO, zone)
            .accepted("all threads share what they know of servers")];
}

/// The zone of an upstream block.
#[derive(Clone, Debug, Default)]
pub struct Name(Option<String>);

impl Conf for Name {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

/// Eight pages.
const SMALLEST: u64 = 8 * 4096;

fn zone(name: &mut Name, call: &mut Call<'_>) -> Result<(), Fault> {
    if call.arg(0).is_empty() {
        return Err(call.fail_at(0, "invalid zone name"));
    }
    let mut bytes = 0;
    if call.args().len() == 2 {
        bytes = value::size(call.arg(1)).ok_or_else(|| call.fail_at(1, "invalid zone size"))?;
        if bytes < SMALLEST {
            return Err(call.fail(format!("zone \"{}\" is too small", call.text(0))));
        }
    }
    let text = call.text(0);
    call.zone(&text, bytes, "http_upstream")?;
    call.upstream().shared = true;
    name.0 = Some(text);
    Ok(())
}

impl Install for Zone {
    /// One of the blocks that name a zone has to say how large it is.
    fn prepare((): &(), build: &mut Build<'_>) -> Result<(), Diagnostic> {
        let Some(http) = &build.program.http else { return Ok(()) };
        for upstream in &http.upstreams {
            let Some(name) = &upstream.confs.get::<Zone>().0 else { continue };
            if build.program.zones.iter().any(|zone| &*zone.name == name && zone.size == 0) {
                return Err(Diagnostic::emerg(format!("zero size shared memory zone \"{name}\"")));
            }
        }
        Ok(())
    }

    fn install(_: &Name, _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

//! Configurations lowered in memory, with the spine's own modules and no others.

mod inheritance;
mod messages;
mod programs;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use weir_ir::core::MODULES;
use weir_ir::http::{HttpCore, HttpUpstream};
use weir_ir::{AnyModule, Builtin, Dialect, Prefixes, Program, World};
use weir_syntax::{Ast, Diagnostic, Files, Memory};

/// A machine with one configuration, one user and one other host.
struct Machine(Memory);

impl Files for Machine {
    fn read(&self, path: &[u8]) -> io::Result<Arc<[u8]>> {
        self.0.read(path)
    }

    fn glob(&self, pattern: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.0.glob(pattern)
    }
}

impl World for Machine {
    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        match host {
            "localhost" => Ok(vec![Ipv4Addr::LOCALHOST.into()]),
            // As the resolver reads numbers.
            "1.2.3" => Ok(vec![Ipv4Addr::new(1, 2, 0, 3).into()]),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn hostname(&self) -> String {
        "Machine".into()
    }

    fn user(&self, name: &str) -> io::Result<(u32, u32)> {
        if name == "root" { Ok((0, 0)) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn group(&self, name: &str) -> io::Result<u32> {
        if name == "root" { Ok(0) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn privileged(&self) -> bool {
        true
    }
}

/// Lowers the file C below the prefix P.
fn lower(conf: impl AsRef<[u8]>) -> (Ast, Program, Vec<Diagnostic>) {
    let machine = Machine(Memory::new().with("P/C", conf));
    let ast = weir_syntax::parse(&machine, b"P/C", b"P/", None);
    let http: [&dyn AnyModule; 2] = [&HttpCore, &HttpUpstream];
    let builtin = |name: &str| {
        let changeable = name == "args";
        ["args", "uri", "document_root"].contains(&name).then_some(Builtin { changeable })
    };
    let dialect = Dialect { core: MODULES, http: &http, upstream: &[], builtin: &builtin };
    let prefixes = Prefixes { prefix: "P/".into(), conf: "P/".into(), ..Prefixes::default() };
    let (program, told) = weir_ir::lower(&ast, &prefixes, &dialect, &machine);
    (ast, program, told)
}

/// A good configuration's program.
#[track_caller]
fn program(conf: &str) -> Program {
    let (_, program, told) = lower(conf);
    assert_eq!((told, &program.told_late), (vec![], &vec![]), "{conf}");
    program
}

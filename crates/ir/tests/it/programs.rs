//! The shape of programs: levels, addresses and sockets, upstreams, files.

use std::fmt::Write;

use weir_ir::cidr::Cidr;
use weir_ir::core::Events;
use weir_ir::http::HttpCore;
use weir_ir::http::listen::sockets;
use weir_ir::program::{Http, LocationId, LocationMatch, ScopeKind};

use crate::{lower, program};

/// A program in short, a line for each thing.
fn shape(conf: &str) -> String {
    let program = program(conf);
    let mut out = String::new();
    if let Some(http) = &program.http {
        levels(http, Http::ROOT, 0, &mut out);
        for socket in sockets(http) {
            let serves: Vec<_> = socket.serves.iter().map(|at| http.bound[*at].address.to_string()).collect();
            writeln!(out, "socket {} serves {}", socket.address, serves.join(" ")).unwrap();
        }
        for upstream in &http.upstreams {
            let peers = upstream.servers.iter().flat_map(|server| {
                server.addresses.iter().map(move |address| format!("{address} weight={}", server.weight))
            });
            writeln!(out, "upstream {}: {}", upstream.name, peers.collect::<Vec<_>>().join(", ")).unwrap();
        }
        let names: Vec<_> =
            http.variables.entries.iter().map(|v| format!("{} {:?}", v.name, v.origin)).collect();
        if !names.is_empty() {
            writeln!(out, "variables {}", names.join(", ")).unwrap();
        }
    }
    for path in &program.paths {
        writeln!(out, "path {} {:?}", path.path, path.levels).unwrap();
    }
    out
}

fn levels(http: &Http, id: LocationId, depth: usize, out: &mut String) {
    let scope = http.scope(id);
    let core = scope.confs.get::<HttpCore>();
    let names: Vec<_> = core.server_names.iter().map(|name| format!(" {:?}", name.shown())).collect();
    writeln!(out, "{}{:?}{}", "  ".repeat(depth), scope.kind, names.concat()).unwrap();
    for child in &scope.children {
        levels(http, *child, depth + 1, out);
    }
}

#[track_caller]
fn check(conf: &str, expected: &str) {
    let expected: Vec<_> =
        expected.lines().map(|line| line.strip_prefix("        ").unwrap_or(line)).collect();
    assert_eq!(shape(conf).trim(), expected.join("\n").trim(), "{conf}");
}

#[test]
fn nothing_but_events() {
    check("events {}", "");
}

#[test]
fn servers_and_their_sockets() {
    check(
        "events {} http {
            server { server_name a *.b .c d.* ~^e$ $hostname; listen 80; listen 127.0.0.1:80; listen [::]:80; }
            server { listen 127.0.0.2:80 bind; listen 8000-8001; listen unix:/s; location = / { } location ~* x { } }
            server { }
        }",
        r#"
        Http
          Server "a" "*.b" ".c" "d.*" "~^e$" "machine"
          Server ""
            Location(Exact([47]))
            Location(Regex(~* x))
          Server ""
        socket 0.0.0.0:80 serves 0.0.0.0:80 127.0.0.1:80
        socket [::]:80 serves [::]:80
        socket 127.0.0.2:80 serves 127.0.0.2:80
        socket 0.0.0.0:8000 serves 0.0.0.0:8000
        socket 0.0.0.0:8001 serves 0.0.0.0:8001
        socket unix:/s serves unix:/s
        path client_body_temp [0, 0, 0]"#,
    );
}

#[test]
fn a_regular_expression_is_bytes() {
    let conf = |regex: &[u8]| {
        [b"events {} http { server { location ~ ", regex, b" { client_max_body_size 1; } } }"].concat()
    };
    let (_, program, told) = lower(conf(b"^/\xfc+$"));
    assert_eq!(told, []);
    let http = program.http.unwrap();
    let regex = http.scopes.iter().find_map(|scope| match &scope.kind {
        ScopeKind::Location(LocationMatch::Regex(regex)) => Some(regex),
        _ => None,
    });
    assert!(regex.is_some_and(|regex| regex.is_match(b"/\xfc\xfc") && !regex.is_match("/ü".as_bytes())));
    let (_, _, told) = lower(conf(b"\xfc[z-a]\xff"));
    let message =
        b"pcre2_compile() failed: range out of order in character class in \"\xfc[z-a]\xff\" at \"a]\xff\"";
    assert_eq!(told[0].message, message);
}

/// What grew with the square of the range took all memory.
#[test]
fn a_range_may_be_all_ports() {
    let program = program(
        "events { worker_connections 99999; } http { server { listen 127.0.0.1:1-65535; listen 1-65535; } }",
    );
    let sockets = sockets(program.http.as_ref().unwrap());
    assert_eq!(sockets.len(), 65535);
    assert!(sockets.iter().all(|socket| socket.serves.len() == 2));
}

#[test]
fn debugged_connections() {
    let of = |events: &str| {
        let (_, program, told) = lower(format!("events {{ {events} }}").into_bytes());
        let messages = told.iter().map(|told| String::from_utf8_lossy(&told.message).into_owned());
        (program.main.main::<Events>().debugged.clone(), messages.collect::<Vec<_>>())
    };
    let ten = Cidr::parse(b"10.0.0.0/8").unwrap().0;
    let local = Cidr::of([127, 0, 0, 1].into());
    let (ranges, told) =
        of("debug_connection 10.0.0.0/8; debug_connection unix:; debug_connection localhost;");
    assert_eq!((ranges, told), (vec![ten, Cidr::Unix, local], vec![]));
    let (ranges, told) = of("debug_connection 10.1.0.0/8;");
    assert_eq!(
        (ranges, &*told),
        (vec![ten], &["low address bits of 10.1.0.0/8 are meaningless".to_owned()][..])
    );
    let (_, told) = of("debug_connection nowhere;");
    assert_eq!(told, ["host not found in debug_connection \"nowhere\""]);
}

#[test]
fn upstreams_and_variables() {
    check(
        "events {} http {
            upstream u { server localhost:8000 weight=3; server unix:/x; server 10.0.0.1 backup; }
            server { root /$uri/$ARGS; location ~ ^/(?<part>.) { client_body_temp_path /t/ 1 2; } }
        }",
        r#"
        Http
          Server ""
            Location(Regex(~ ^/(?<part>.)))
        socket 0.0.0.0:80 serves 0.0.0.0:80
        upstream u: 127.0.0.1:8000 weight=3, unix:/x weight=1, 10.0.0.1:80 weight=1
        variables uri Builtin, args Builtin, part Declared
        path /t [1, 2, 0]
        path client_body_temp [0, 0, 0]"#,
    );
}

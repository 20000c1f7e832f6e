//! What an inner level takes over from the outer one.

use weir_ir::ScopeKind;
use weir_ir::http::HttpCore;
use weir_ir::http::core::{Alias, Core};

use crate::program;

/// The core's settings of the innermost level of the last server.
fn innermost(conf: &str) -> Core {
    let program = program(&format!("events {{}} http {{ {conf} }}"));
    let http = program.http.unwrap();
    let mut level = http.servers[http.servers.len() - 1];
    while let Some(inner) = http.scope(level).children.last() {
        level = *inner;
    }
    http.scope(level).confs.get::<HttpCore>().into_owned()
}

#[track_caller]
fn check<T: PartialEq + std::fmt::Debug>(conf: &str, of: fn(&Core) -> T, expected: T) {
    assert_eq!(of(&innermost(conf)), expected, "{conf}");
}

#[test]
fn settings_come_from_the_nearest_level() {
    let timeout = |core: &Core| core.send_timeout.get().copied();
    check("server { location / { } }", timeout, None);
    check("send_timeout 1; server { location / { } }", timeout, Some(1000));
    check("send_timeout 1; server { send_timeout 2; location / { } }", timeout, Some(2000));
    check("send_timeout 1; server { location / { send_timeout 3; location /a { } } }", timeout, Some(3000));
    // Where in the level it stands does not matter.
    check("server { location / { } send_timeout 2; }", timeout, Some(2000));
    check("server { location / { } } send_timeout 1;", timeout, Some(1000));
}

#[test]
fn a_list_is_taken_over_whole_or_not_at_all() {
    let codes = |core: &Core| core.error_pages.iter().map(|page| page.code).collect::<Vec<_>>();
    check("error_page 404 /a; server { error_page 500 /b; location / { } }", codes, vec![500]);
    check("error_page 404 500 /a; server { location / { } }", codes, vec![404, 500]);
    let types = |core: &Core| core.types.get().map(|types| types.len());
    check("types { a b c; } server { types { d e; } location / { } }", types, Some(1));
    check("types { a b c; } types { d e; } server { location / { } }", types, Some(3));
}

#[test]
fn what_belongs_to_a_location_stays_there() {
    let internal = |core: &Core| core.internal.is_set();
    check("server { location / { internal; } }", internal, true);
    check("server { location / { internal; location /a { } } }", internal, false);
    check("server { location / { internal; limit_except GET { } } }", internal, true);
    let alias = |core: &Core| core.root.get().and_then(|root| root.alias);
    check("server { location / { alias /x; location /a { } } }", alias, Some(Alias::Prefix(1)));
}

#[test]
fn a_server_without_root_serves_html_below_the_prefix() {
    let root = |core: &Core| core.root.get().and_then(|root| root.path.as_literal().map(<[u8]>::to_vec));
    check("server { location / { } }", root, Some(b"P/html".to_vec()));
    check("root x/; server { location / { } }", root, Some(b"P/x".to_vec()));
    check("root /; server { location / { } }", root, Some(b"".to_vec()));
}

#[test]
fn levels_know_their_server() {
    let program =
        program("events {} http { server { location /a { location /a/b { } } } server { server_name a; } }");
    let http = program.http.unwrap();
    let servers: Vec<_> = http.scopes.iter().map(|scope| scope.server.map(|id| id.0)).collect();
    assert_eq!(servers, [None, Some(1), Some(1), Some(1), Some(4)]);
    assert!(matches!(http.scopes[3].kind, ScopeKind::Location(_)));
}

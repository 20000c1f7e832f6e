//! No input makes the parser or the renderer panic, and spans are inside of their sources.

use proptest::prelude::*;
use weir_syntax::{Ast, Item, Memory, Span, parse, render};

fn inside(ast: &Ast, span: Span) -> bool {
    span.lo <= span.hi && span.hi as usize <= ast.sources.text(span.file).len()
}

fn walk(ast: &Ast, items: &[Item]) {
    for item in items {
        let directive = match item {
            Item::Error(error) => {
                assert!(error.span.is_none_or(|span| inside(ast, span)), "{error:?}");
                assert!(!render::explained("nginx", error, &ast.sources).is_empty());
                continue;
            }
            Item::Include(include) => {
                walk(ast, &include.items);
                &include.directive
            }
            Item::Directive(directive) => directive,
        };
        assert!(!directive.words.is_empty() && inside(ast, directive.span()));
        if let Some(block) = &directive.block {
            walk(ast, &block.items);
        }
    }
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    let fixed = prop::sample::select(vec![
        &b"a"[..],
        b" ",
        b"\n",
        b"\r",
        b";",
        b"{",
        b"}",
        b"\"",
        b"'",
        b"\\",
        b"$",
        b"${",
        b"#",
        b")",
        b"\0",
        b"\xff",
        b"include a;",
        b"include *;",
        b"include nginx.conf;",
        b"b c;\n",
    ]);
    prop_oneof![
        20 => fixed.prop_map(<[u8]>::to_vec),
        1 => (any::<u8>(), 4090..4100usize).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(piece(), 0..40).prop_map(|pieces| pieces.concat()),
        prop::collection::vec(any::<u8>(), 0..200),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn on_any_bytes(main in text(), included in text(), globals in prop::option::of(text())) {
        let files = Memory::new().with("/nginx.conf", main).with("/a", included);
        let ast = parse(&files, b"/nginx.conf", b"/", globals.as_deref());
        walk(&ast, &ast.globals);
        walk(&ast, &ast.items);
    }
}

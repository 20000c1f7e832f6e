//! The shape of what was accepted, with lines and spans.

use std::fmt::Write as _;

use super::{conf, parsed};
use weir_syntax::{Ast, FileId, Item, Place, Quote};

/// `name'arg'@line{ ... }@line`, words quoted as Rust would, includes as `name(...)`.
fn show(items: &[Item], out: &mut String) {
    for item in items {
        let (directive, brought) = match item {
            Item::Directive(directive) => (directive, None),
            Item::Include(include) => (&include.directive, Some(&include.items)),
            Item::Error(_) => {
                out.push_str("error ");
                continue;
            }
        };
        for word in &directive.words {
            let quote = match word.quote {
                Some(Quote::Single) => "s",
                Some(Quote::Double) => "d",
                None => "",
            };
            let _ = write!(out, "{quote}[{}]", word.value.escape_ascii());
        }
        let _ = write!(out, "@{}", directive.line);
        if let Some(brought) = brought {
            out.push('(');
            show(brought, out);
            out.push(')');
        }
        if let Some(block) = &directive.block {
            out.push('{');
            show(&block.items, out);
            let _ = write!(out, "}}@{}", block.close_line);
        }
        out.push(' ');
    }
}

fn shown(ast: &Ast) -> String {
    let mut out = String::new();
    show(&ast.items, &mut out);
    out.replace(" }", "}").replace(" )", ")").trim_end().to_string()
}

#[track_caller]
fn check(text: impl AsRef<[u8]>, expected: &str) {
    assert_eq!(shown(&parsed(&conf(text), None)), expected);
}

#[test]
fn words() {
    check("a;b c;", "[a]@1 [b][c]@1");
    check("a\n b\n\n;", "[a][b]@4");
    check("'a' \"b\" \"\";", "s[a]d[b]d[]@1");
    check(r#"a "\"\'\\\t\r\n\x\$";"#, r#"[a]d[\"\'\\\t\r\n\\x\\$]@1"#);
    check(r"a \;b\ c\{ \#;", r"[a][\\;b\\ c\\{][\\#]@1");
    check("a 'x\ny' z;", "[a]s[x\\ny][z]@2");
    check("a b#c#;", "[a][b#c#]@1");
    check("a # b;\n c;", "[a][c]@2");
    check("a b\"c'd;", "[a][b\\\"c\\'d]@1");
    check("a }b; }", "error [b]@1 error");
    check("a \"x\")b;", "[a]d[x][)b]@1");
    check("if ($a = \"b\"){c;}", "[if][($a][=]d[b][)]@1{[c]@1}@1");
    check(b"a \xff\0;", "[a][\\xff\\x00]@1");
    check("\u{feff}a;", "[\\xef\\xbb\\xbfa]@1");
    check("a\r\nb;\r\n", "[a][b]@2");
}

#[test]
fn dollars() {
    check("a ${b}c;", "[a][${b}c]@1");
    check("a x${{b;", "[a][x${{b]@1");
    check("a $b{c;}", "[a][$b]@1{[c]@1}@1");
    check("a $ {c;}", "[a][$]@1{[c]@1}@1");
    check(r#"a "$";"#, "[a]d[$]@1");
    check(r"a $\{b;", r"[a][$\\{b]@1");
}

#[test]
fn blocks() {
    check("a{}", "[a]@1{}@1");
    check("a b\n{\n c;\n d { e; }\n}\nf;", "[a][b]@2{[c]@3 [d]@4{[e]@4}@4}@5 [f]@6");
    check("types { text/html html; x y z; }", "[types]@1{[text/html][html]@1 [x][y][z]@1}@1");
    check("a {\n", "[a]@1{error}@2");
}

#[test]
fn includes_stand_where_they_were_written() {
    let files = conf("a;\nb { include d/*.conf; include e; }")
        .with("/d/1.conf", "one;")
        .with("/d/2.conf", "\ntwo { x; }")
        .with("/d/other", "no;")
        .with("/e", "");
    let ast = parsed(&files, None);
    let expected = "[a]@1 [b]@2{[include][d/*.conf]@2([one]@1 [two]@2{[x]@2}@2) [include][e]@2()}@2";
    assert_eq!(shown(&ast), expected);
    let paths: Vec<_> = ast.sources.files().map(|file| ast.sources.path(file)).collect();
    assert_eq!(paths, [&b"/nginx.conf"[..], b"/d/1.conf", b"/d/2.conf", b"/e"]);
}

#[test]
fn a_file_included_twice_is_one_source() {
    let ast = parsed(&conf("include a; include a;").with("/a", "x;"), None);
    assert_eq!(shown(&ast), "[include][a]@1([x]@1) [include][a]@1([x]@1)");
    assert_eq!(ast.sources.files().count(), 2);
}

#[test]
fn spans_are_the_bytes_as_written() {
    let ast = parsed(&conf("\n  a 'b\\'' {\n}"), None);
    let [Item::Directive(directive)] = ast.items.as_slice() else { panic!("one directive") };
    let written: Vec<_> = directive.words.iter().map(|word| ast.sources.slice(word.span)).collect();
    assert_eq!(written, [&b"a"[..], b"'b\\''"]);
    assert_eq!(ast.sources.slice(directive.span()), b"a 'b\\''");
    let block = directive.block.as_ref().expect("written with one");
    assert_eq!(ast.sources.slice(block.open), b"{");
    assert_eq!(block.close.map(|close| ast.sources.slice(close)), Some(&b"}"[..]));
    assert_eq!(directive.place(), Place::At { file: directive.file, line: 2 });
    assert_eq!(block.place(), Place::At { file: directive.file, line: 3 });
}

#[test]
fn globals_are_read_first() {
    let ast = parsed(&conf("include a;").with("/a", "x;"), Some("daemon off; include a;"));
    let [Item::Directive(daemon), Item::Include(include)] = ast.globals.as_slice() else {
        panic!("two items")
    };
    assert_eq!((daemon.file, daemon.place()), (FileId::COMMAND_LINE, Place::CommandLine));
    assert_eq!(ast.sources.text(FileId::COMMAND_LINE), b"daemon off; include a;");
    assert_eq!(include.items.len(), 1);
    let paths: Vec<_> = ast.sources.files().map(|file| ast.sources.path(file)).collect();
    assert_eq!(paths, [&b"/a"[..], b"/nginx.conf"]);
}

//! The first error, which must be nginx's to the letter.

use super::{conf, lines, parsed};
use weir_syntax::Memory;

const SEMICOLON_OR_BRACE: &str = "[emerg] unexpected end of file, expecting \";\" or \"}\"";
const BRACE: &str = "[emerg] unexpected end of file, expecting \"}\"";

#[track_caller]
fn first(files: &Memory, globals: Option<&str>, expected: &str) {
    let ast = parsed(files, globals);
    let found = lines(&ast);
    assert_eq!(found.first().map_or("", String::as_str), expected);
}

/// `expected` stands before the place; nothing is no error.
#[track_caller]
fn check(text: impl AsRef<[u8]>, expected: &str, line: u32) {
    let expected = match expected {
        "" => String::new(),
        text => format!("{text} in /nginx.conf:{line}"),
    };
    first(&conf(text), None, &expected);
}

#[track_caller]
fn accepted(text: impl AsRef<[u8]>) {
    check(text, "", 0);
}

#[test]
fn nothing_to_complain_about() {
    accepted("");
    accepted("\n\n");
    accepted("# c");
    accepted("events {\r\n}\r\n");
    accepted("\"events\" {}");
    accepted("user a}b;");
    accepted("a \"x\")b;");
    accepted("user ${; events{}");
    accepted("user \\;x y z;");
    accepted("\"\"{}");
    accepted(format!("events{{}}\n{}", " ".repeat(5000)));
    accepted("\u{feff}events{}");
    accepted("include nosuch*;");
    accepted("include [;");
}

#[test]
fn braces_and_semicolons() {
    check(";", "[emerg] unexpected \";\"", 1);
    check("\n;", "[emerg] unexpected \";\"", 2);
    check("{", "[emerg] unexpected \"{\"", 1);
    check("events {}\n{}", "[emerg] unexpected \"{\"", 2);
    check("}", "[emerg] unexpected \"}\"", 1);
    check("events{}\n}", "[emerg] unexpected \"}\"", 2);
    check("user a }", "[emerg] unexpected \"}\"", 1);
    check("events { use epoll }", "[emerg] unexpected \"}\"", 1);
}

#[test]
fn ends() {
    check("events {", BRACE, 1);
    check("events {\n\n", BRACE, 3);
    check("a { b { c;\n", BRACE, 2);
    check("events", SEMICOLON_OR_BRACE, 1);
    check("events \"", SEMICOLON_OR_BRACE, 1);
    check("events{}\0", SEMICOLON_OR_BRACE, 1);
    check("user \n\"aaa\n", SEMICOLON_OR_BRACE, 3);
    check("user $", SEMICOLON_OR_BRACE, 1);
    check("user \\", SEMICOLON_OR_BRACE, 1);
    check("user \"a\"", SEMICOLON_OR_BRACE, 1);
    check("user a # c", SEMICOLON_OR_BRACE, 1);
}

#[test]
fn behind_a_quote() {
    check("events {} \"a\"b;", "[emerg] unexpected \"b\"", 1);
    check("user 'a'#b;", "[emerg] unexpected \"#\"", 1);
    check("user \"a\nb\"c;", "[emerg] unexpected \"c\"", 2);
    check("user \"a\\\"b\"c;", "[emerg] unexpected \"c\"", 1);
    check("user \"a\"\"b\";", "[emerg] unexpected \"\"\"", 1);
    check(b"user \"\0\"\0;", "[emerg] unexpected \"\0\"", 1);
    check(b"user \"x\"\xff;", "[emerg] unexpected \"\u{fffd}\"", 1);
    check("a { b \"c\"} d;", "[emerg] unexpected \"}\"", 1);
}

/// A word must fit into the buffer together with what nginx reads before it forgets where the word began.
#[test]
fn too_long() {
    let word = |len: usize| "a".repeat(len);
    let started = "[emerg] too long parameter \"aaaaaaaaaa...\" started";
    accepted(format!("user \"{}\";", word(4094)));
    check(format!("user \"{}\";", word(4095)), started, 1);
    check(format!("user \"{}\" ;", word(4095)), started, 1);
    check(format!("user \"{}\" ;", word(4094)), started, 1);
    check(format!("user \"{}\"\n;", word(4094)), started, 1);
    accepted(format!("user \"{}\" ;", word(4093)));
    accepted(format!("user {} ;", word(4094)));
    check(format!("user {} ;", word(4095)), started, 1);
    accepted(format!("user {};", word(4095)));
    check(format!("user {};", word(4096)), started, 1);
    let quote =
        |c: char| format!("[emerg] too long parameter, probably missing terminating \"{c}\" character");
    check(format!("user \"{}\";", word(4096)), &quote('"'), 1);
    check(format!("user\n\n'{}';", "a\n".repeat(4096)), &quote('\''), 3);
    let comment = |text: &str, line| {
        check(text, &format!("[emerg] too long parameter \"{}...\" started", &text.trim()[..10]), line);
    };
    comment(&format!("\n# {}\nevents{{}}", "0123456789".repeat(500)), 2);
    comment(&format!("#{}\nevents{{}}", word(4095)), 1);
    comment(&format!("#{}", word(4096)), 1);
    accepted(format!("#{}\nevents{{}}", word(4094)));
    accepted(format!("#{}", word(4095)));
}

#[test]
fn includes() {
    let arguments = "[emerg] invalid number of arguments in \"include\" directive";
    check("include;", arguments, 1);
    check("include a b;", arguments, 1);
    check("include a {}", "[emerg] directive \"include\" is not terminated by \";\"", 1);
    let missing = |name: &str| format!("[emerg] open() \"/{name}\" failed (2: No such file or directory)");
    check("include nosuch;", &missing("nosuch"), 1);
    check("include\nnosuch\n;", &missing("nosuch"), 3);
    check("include \"a\\tb\";", &missing("a\tb"), 1);
    check("include \"a\0b\";", &missing("a"), 1);
    check("types { include é; }", &missing("é"), 1);
    let directory = "[crit] pread() \"/d\" failed (21: Is a directory)";
    first(&conf("include d;").with("/d/a", ""), None, directory);
    first(&Memory::new(), None, "[emerg] open() \"/nginx.conf\" failed (2: No such file or directory)");
}

#[test]
fn within_an_included_file() {
    let check = |text: &str, included: &str, expected: &str| {
        first(&conf(text).with("/a", included), None, expected);
    };
    check("events{}\ninclude a;\n", "\n}\n", "[emerg] unexpected \"}\" in /a:2");
    check("events {\ninclude a;\n}\n", "}\n", "[emerg] unexpected \"}\" in /a:1");
    check("events {\ninclude a;\n}\n", "use epoll", &format!("{SEMICOLON_OR_BRACE} in /a:1"));
    check("events {\ninclude a;\n}\n", "", "");
    check("include a;\n}", "events {\n", &format!("{BRACE} in /a:2"));
    let files = conf("include d/*;").with("/d/a", "events{}\n").with("/d/b", "\n;");
    first(&files, None, "[emerg] unexpected \";\" in /d/b:2");
    let files = conf("\nevents{}include a;").with("/a", "include b;").with("/b", "\n\ninclude no;");
    first(&files, None, "[emerg] open() \"/no\" failed (2: No such file or directory) in /b:3");
}

#[test]
fn command_line() {
    let check = |globals: &str, expected: &str| {
        first(&conf("events{}").with("/a", "env x;\n}"), Some(globals), expected);
    };
    let end = "[emerg] unexpected end of parameter, expecting \";\" in command line";
    check("daemon off; # c", "");
    check("worker_processes 1", end);
    check("user \"x", end);
    check("worker_processes 1; }", "[emerg] unexpected \"}\" in command line");
    check("events {}", "[emerg] block directives are not supported in -g option in command line");
    check("\"a\"b;", "[emerg] unexpected \"b\" in command line");
    check(";", "[emerg] unexpected \";\" in command line");
    check("include;", "[emerg] invalid number of arguments in \"include\" directive in command line");
    check("include no;", "[emerg] open() \"/no\" failed (2: No such file or directory) in command line");
    check("include a;", "[emerg] unexpected \"}\" in /a:2");
    check(&format!("user {};", "a".repeat(5000)), "");
}

/// nginx opens the file until it has no descriptors left, or dies.
#[test]
fn a_file_that_includes_itself() {
    check("include nginx.conf;", "[emerg] open() \"/nginx.conf\" failed (24: Too many open files)", 1);
    let files = conf("include a;").with("/a", "\ninclude b;").with("/b", "include a;include a;");
    first(&files, None, "[emerg] open() \"/a\" failed (24: Too many open files) in /b:1");
}

/// A message is cut to the 1024 bytes of nginx's buffer, the last 50 of which are kept for an error number.
#[test]
fn long_messages_are_cut() {
    let path = format!("/{}", "a".repeat(1200));
    let shown = "[emerg] open() \"";
    let kept = &path[..1024 - 50 - "open() \"".len()];
    let expected = format!("{shown}{kept}... (2: No such file or directory) in /nginx.conf:1");
    first(&conf(format!("include {path};")), None, &expected);
}

//! Configurations that are refused, and what requests become of.

use weir_testkit::until;

use crate::testing::{Site, check_conf};

#[track_caller]
fn refused(server: &str, message: &str) {
    check_conf(&format!("server {{ {server} }}"), message);
}

#[test]
fn messages() {
    refused("rewrite ^ '';", "empty replacement");
    refused("rewrite ^ /a now;", "invalid parameter \"now\"");
    refused("rewrite ^ /a$;", "invalid variable name");
    refused("return x;", "invalid return code \"x\"");
    refused("return 1000;", "invalid return code \"1000\"");
    refused("return http://a b;", "invalid return code \"http://a\"");
    refused("set a b;", "invalid variable name \"a\"");
    refused("set $uri b;", "the duplicate \"uri\" variable");
    refused("set $http_host x;", "the duplicate \"http_host\" variable");
    refused("if $a { }", "invalid condition \"$a\"");
    refused("if (a = b) { }", "invalid condition \"a\"");
    refused("set $a 1; if ($a =) { }", "invalid condition \"$a\"");
    refused("set $a 1; if ($a == b) { }", "unexpected \"==\" in condition");
    refused("if (-q /a) { }", "invalid condition \"-q\"");
    refused("if (!-q /a) { }", "invalid condition \"!-q\"");
    refused("if (-f /a b) { }", "invalid condition \"-f\"");
    refused("set $a 1; if ($a) { if ($a) { } }", "\"if\" directive is not allowed here");
    refused("if ($nothing) { }", "unknown \"nothing\" variable");
    refused("set $args x; set $http_x 1; return 301;", "");
}

#[track_caller]
fn check(server: &str, uri: &str, expected: &str) {
    let site = Site::new(&format!("server {{ {server} }}"));
    assert_eq!(site.short(uri), expected, "{server}");
}

#[test]
fn returns() {
    check("return 200 \"$uri?$args\";", "/a?b=c", "200 /a?b=c");
    check("return 200;", "/", "200");
    check("return 204;", "/", "204");
    check("return 301 /b?$args;", "/a?c", "301 http://a.example/b?c");
    check("return https://b.example$request_uri;", "/a?c", "302 https://b.example/a?c");
    check("return 308 $scheme://b;", "/", "308 http://b");
    check("return 403;", "/", "403");
    check("return 403 no;", "/", "403 no");
    check("return 444;", "/", "");
    check("error_page 403 /e; location / { return 403; } location /e { return 200 page; }", "/", "403 page");
    check(
        "error_page 301 /e; location / { return 301 /x; } location /e { return 200 page; }",
        "/",
        "301 http://a.example/x page",
    );
}

#[test]
fn types_of_texts() {
    let site = Site::new("default_type a/b; types { text/x X; } server { return 200 x; }");
    assert_eq!(site.ask("GET /a.x", ""), "HTTP/1.1 200 OK\nContent-Type: text/x\nContent-Length: 1\n\nx");
    assert_eq!(site.ask("HEAD /a", ""), "HTTP/1.1 200 OK\nContent-Type: a/b\nContent-Length: 1\n\n");
}

#[test]
fn rewrites() {
    let show = "location / { return 200 \"$uri?$args\"; }";
    let check = |steps: &str, uri: &str, expected: &str| check(&format!("{steps} {show}"), uri, expected);
    check("rewrite ^/a/(.*)$ /b/$1;", "/a/c?d", "200 /b/c?d");
    check("rewrite ^/a/(.*)$ /b/$1?;", "/a/c?d", "200 /b/c?");
    check("rewrite ^/a/(.*)$ /b?x=$1;", "/a/c?d", "200 /b?x=c&d");
    check("rewrite ^/a/(.*)$ /b?x=$1?;", "/a/c?d", "200 /b?x=c");
    check("rewrite ^/a/(.*)$ /b?x=$1;", "/a/c%26d", "200 /b?x=c%26d");
    check("rewrite ^/a/(.*)$ /b/$1;", "/a/c%26d", "200 /b/c&d?");
    check("rewrite ^/a/(.*)$ /b/$1 permanent;", "/a/c%20d?e", "301 http://a.example/b/c%20d?e");
    check("rewrite ^/a/(.*)$ /b?x=$1 redirect;", "/a/c%26d?e", "302 http://a.example/b?x=c%26d&e");
    check("rewrite ^/a/(.*)$ http://b/$1?;", "/a/c?d", "302 http://b/c");
    check("rewrite ^/a /b last; rewrite ^/b /c;", "/a", "200 /b?");
    check("rewrite ^/a /b; rewrite ^/b /c;", "/a", "200 /c?");
    check("set $x $1; rewrite ^/(a)$ /$1$x;", "/a", "200 /a?");
    check("rewrite ^ ?;", "/a", "500");
}

#[test]
fn programs_of_locations() {
    let conf = "location / { return 200 \"root $uri\"; } \
        location /loop { rewrite ^ /loop last; } \
        location /break { rewrite ^/break(.*)$ /loop$1 break; return 200 never; } \
        location /undone { rewrite ^ /loop; break; return 200 never; } \
        location /chain { rewrite ^/chain(.*)$ /to$1; if ($uri ~ ^/to/(x)) { return 200 \"$1\"; } }";
    check(conf, "/loop", "500");
    check(conf, "/chain/x", "200 x");
    check(conf, "/chain/y", "200 root /to/y");
    let site = Site::new(&format!("server {{ {conf} }}"));
    site.short("/loop");
    assert_eq!(site.log(), ["rewrite or internal redirection cycle while processing \"/loop\""]);
}

#[test]
fn conditions() {
    let ask = |condition: &str, expected: bool| {
        let conf = format!("set $a abc; set $z 0; if ({condition}) {{ return 200 yes; }} return 200 no;");
        check(&conf, "/u", if expected { "200 yes" } else { "200 no" });
    };
    ask("$a", true);
    ask("$z", false);
    ask("$arg_x", false);
    ask("$a = abc", true);
    ask("$a = $a", true);
    ask("$a != abc", false);
    ask("$a ~ B", false);
    ask("$a ~* B", true);
    ask("$a !~ B", true);
    ask("$a !~* B", false);
    ask("-d /", true);
    ask("!-d /", false);
    ask("-f /", false);
    ask("-e /", true);
    ask("-e /dev/null", false);
    ask("-x /", true);
    ask("!-e /no/such/file", true);
    ask("!-f /no/such$uri", true);
}

#[test]
fn blocks_are_levels() {
    let conf = "set $a $arg_a; location / { default_type x/outer; \
        if ($a) { error_page 404 /found; } return 404; } \
        location /found { return 200 found; } \
        location /inner { if ($a) { set $a 2; break; } set $a 3; return 200 $a; }";
    check(conf, "/", "404");
    check(conf, "/?a=1", "404 found");
    check(conf, "/inner", "200 3");
}

#[test]
fn steps_are_not_inherited() {
    check("location /a { return 200 outer; location /a/b { set $x 1; if ($x) { } } }", "/a/b", "404");
}

#[test]
fn variables_without_value_are_told() {
    let site = Site::new("server { if ($arg_x) { set $a 1; } return 200 \"[$a$a]\"; }");
    assert_eq!(site.short("/"), "200 []");
    assert_eq!(site.log(), ["using uninitialized \"a\" variable"]);
    let site = Site::new(
        "uninitialized_variable_warn off; server { if ($arg_x) { set $a 1; } return 200 \"[$a]\"; }",
    );
    assert_eq!((site.short("/").as_str(), site.log().len()), ("200 []", 0));
    let site = Site::new("server { if ($arg_x) { set $http_connection h; } return 200 $http_connection; }");
    assert_eq!((site.short("/"), site.short("/?x=1")), ("200 close".into(), "200 h".into()));
}

#[test]
fn rewrite_log() {
    let site = Site::new(
        "server { rewrite_log on; rewrite ^/no /x; rewrite ^/(a) /b?x=$1; location / { return 200 x; } }",
    );
    site.short("/a?y");
    assert_eq!(
        site.log(),
        [
            "\"^/no\" does not match \"/a\"",
            "\"^/(a)\" matches \"/a\"",
            "rewritten data: \"/b\", args: \"x=a&y\"",
        ]
    );
}

#[test]
fn the_debug_log_tells_the_way_of_a_request() {
    let site = Site::new(
        "error_log logs/error.log debug;
         server { location = /a { rewrite ^ /b?x=1? last; }
         location /b { error_page 404 @n; return 404; } location @n { return 200 x; } }",
    );
    site.get("/a?y", "A: b\r\n");
    let log = site.log();
    let expected = [
        "http request line: \"GET /a?y HTTP/1.1\"",
        "http uri: \"/a\"",
        "http args: \"y\"",
        "http header: \"A: b\"",
        "http header done",
        "using configuration \"=/a\"",
        "\"^\" matches \"/a\"",
        "rewritten data: \"/b\", args: \"x=1\"",
        "using configuration \"/b\"",
        "http special response: 404, \"/b?x=1\"",
        "using location: @n \"/b?x=1\"",
        "using configuration \"@n\"",
        "HTTP/1.1 404 Not Found",
        "close http connection",
    ];
    let mut lines = log.iter();
    for line in expected {
        assert!(lines.any(|found| found.trim_end() == line), "{line} in {log:#?}");
    }
}

/// The seconds that a response of 3000 bytes takes, and `$limit_rate` afterwards.
#[track_caller]
fn check_rate(location: &str, expected: (&str, &str), log: &[&str]) {
    // On a busy machine one may be late, or make up for that: a rate is one of whole seconds.
    until(&format!("{location} is {expected:?}"), || {
        let site = Site::new(&format!(
            "log_format t '$request_time $limit_rate'; access_log logs/t t; server {{ \
             location / {{ {location} answer 200 text/plain {}; }} }}",
            "x".repeat(3000)
        ));
        let answer = site.get("/?rate=1k&bad=x", "");
        assert!(answer.ends_with(&"x".repeat(3000)), "{location}");
        assert_eq!(site.log(), log, "{location}");
        let line = site.read("logs/t");
        let (time, rate) = line.trim_end().split_once(' ').unwrap();
        // The last byte goes out somewhat before its second is over.
        let seconds = time.parse::<f64>().unwrap() + 0.2;
        (seconds.trunc().to_string().as_str(), rate) == expected
    });
}

#[test]
fn rates() {
    check_rate("", ("0", "0"), &[]);
    check_rate("limit_rate_after 1k;", ("0", "0"), &[]);
    check_rate("limit_rate 1k;", ("3", "1024"), &[]);
    check_rate("limit_rate 1k; limit_rate_after 2k;", ("1", "1024"), &[]);
    check_rate("limit_rate $arg_rate;", ("3", "1024"), &[]);
    check_rate("limit_rate $arg_bad;", ("0", "0"), &["invalid size \"x\""]);
    check_rate("set $limit_rate 1k;", ("3", "1024"), &[]);
    check_rate("limit_rate 1k; set $limit_rate 0;", ("0", "0"), &[]);
    check_rate("set $limit_rate x;", ("0", "0"), &["invalid $limit_rate \"x\""]);
}

#[test]
fn refreshes_in_place_of_redirects() {
    let site = Site::new(
        "server { msie_refresh on; location / { return 301 'te xt'; } location /off { msie_refresh off; return 301 text; }
            location /page { error_page 303 text; return 303; } location /303 { return 303 text; } }",
    );
    for (uri, agent, expected) in [
        ("/", "MSIE foo", Ok("te%20xt")),
        ("/page", "MSIE foo", Ok("text")),
        ("/off", "MSIE foo", Err("301")),
        ("/303", "MSIE foo", Err("303")),
        ("/", "other", Err("301")),
    ] {
        let answer = site.get(uri, &format!("User-Agent: {agent}\r\n"));
        match expected {
            Ok(to) => {
                let page = "<html><head><meta http-equiv=\"Refresh\" content=\"0; URL=";
                assert!(
                    answer.starts_with("HTTP/1.1 200 ") && !answer.contains("Location"),
                    "{uri} {answer}"
                );
                assert!(
                    answer.ends_with(&format!("{page}{to}\"></head><body></body></html>\r\n")),
                    "{answer}"
                );
            }
            Err(status) => assert_eq!(crate::testing::code(&answer), status, "{uri} {agent}"),
        }
    }
}

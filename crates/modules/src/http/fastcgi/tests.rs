//! What is told of a configuration, how a path is taken apart, and an application that tells what it was told.

use std::io;
use std::sync::{Arc, Mutex};

use weir_engine::upstream::fastcgi::append_record;
use weir_testkit::{Client, Modules, Origin, Visit};

use crate::testing::{Site, check_conf};

#[test]
fn messages() {
    for (conf, message) in [
        ("fastcgi_pass 127.0.0.1:9000", ""),
        ("fastcgi_pass unix:/run/php/php8.2-fpm.sock", ""),
        ("fastcgi_pass a; fastcgi_pass b", "\"fastcgi_pass\" directive is duplicate"),
        ("fastcgi_pass 127.0.0.1", "no port in upstream \"127.0.0.1\" in /conf/nginx.conf:1"),
        ("fastcgi_pass 127.0.0.1:9/a", "invalid host in upstream \"127.0.0.1:9/a\""),
        ("fastcgi_pass $nothing", "unknown \"nothing\" variable"),
        ("fastcgi_split_path_info ^(.+)$", "pattern \"^(.+)$\" must have 2 captures"),
        ("fastcgi_split_path_info ^(?<a>.)(.)$; add_header X $a", "unknown \"a\" variable"),
        ("fastcgi_split_path_info ^(.)(.)$; fastcgi_split_path_info ^(.+)(.)$", ""),
        ("fastcgi_param A b if_not_empty", ""),
        ("fastcgi_param A b empty", "invalid parameter \"empty\""),
        ("fastcgi_catch_stderr a; fastcgi_catch_stderr b", ""),
        (
            "fastcgi_keep_conn a",
            "invalid value \"a\" in \"fastcgi_keep_conn\" directive, it must be \"on\" or \"off\"",
        ),
        ("fastcgi_next_upstream http_503 updating", ""),
        ("fastcgi_next_upstream http_502", "invalid value \"http_502\""),
        ("fastcgi_next_upstream denied", "invalid value \"denied\""),
        ("fastcgi_cache_use_stale http_504", "invalid value \"http_504\""),
        ("fastcgi_cache z", "\"fastcgi_cache\" zone \"z\" is unknown"),
        ("fastcgi_cache y", "no \"fastcgi_cache_key\" for \"fastcgi_cache\""),
        ("fastcgi_cache y; fastcgi_cache_key $uri", ""),
        (
            "fastcgi_cache y; fastcgi_cache_key a; fastcgi_store on",
            "\"fastcgi_store\" directive is incompatible with \"fastcgi_cache\"",
        ),
        (
            "fastcgi_store on; fastcgi_cache y; fastcgi_cache_key a",
            "\"fastcgi_cache\" directive is incompatible with \"fastcgi_store\"",
        ),
        ("fastcgi_buffers 1 4k", "there must be at least 2 \"fastcgi_buffers\""),
        (
            "fastcgi_busy_buffers_size 1m",
            "\"fastcgi_busy_buffers_size\" must be less than the size of all \"fastcgi_buffers\" minus one buffer",
        ),
        ("fastcgi_send_lowat 1", "\"fastcgi_send_lowat\" is not supported, ignored"),
        ("fastcgi_bind a", "invalid address \"a\""),
    ] {
        check_conf(
            &format!(
                "fastcgi_cache_path /c keys_zone=y:1m; server {{ location / {{ {conf}; }} }} upstream a {{ server 127.0.0.1:1; }}"
            ),
            message,
        );
    }
}

#[test]
fn a_path_is_script_and_rest() {
    let shown = "return 200 $fastcgi_script_name|$fastcgi_path_info;";
    let site = Site::new(&format!(
        "fastcgi_index main.php;
         server {{
            location / {{ {shown} }}
            location /plain {{ fastcgi_index ''; {shown} }}
            location ~ \\.php {{
                fastcgi_split_path_info ^(.+?\\.php)(/.*)?$;
                location ~ captures {{ return 200 $1|$fastcgi_path_info|$1; }}
                location ~ ^/x {{ fastcgi_split_path_info ^(/)(.*)$; {shown} }}
                {shown}
            }}
         }}"
    ));
    for (path, expected) in [
        ("/", "/main.php|"),
        ("/a/", "/a/main.php|"),
        ("/a", "/a|"),
        ("/plain/", "/plain/|"),
        ("/a.php", "/a.php|"),
        ("/a.php/b/c", "/a.php|/b/c"),
        ("/a%2ephp/%62/../c", "/a.php|/c"),
        // The pattern does not match; what does not take part in a match is empty.
        ("/a.phpx/b/", "/a.phpx/b/main.php|"),
        ("/x.php", "/main.php|x.php"),
        // Its groups are nobody else's.
        ("/captures.php/b", "|/b|"),
    ] {
        assert_eq!(site.short(path), format!("200 {expected}"), "{path}");
    }
}

/// A request as an application gets it.
#[derive(Default)]
struct Told {
    keep: bool,
    /// In their order.
    params: Vec<String>,
    body: Vec<u8>,
}

impl Told {
    /// Reads until the end of the body; `None` where the connection ends.
    fn read(visit: &mut Visit) -> io::Result<Option<Self>> {
        let (mut told, mut content) = (Self::default(), vec![]);
        let mut unread = vec![];
        loop {
            while unread.len() < 8 {
                let some = visit.some()?;
                if some.is_empty() {
                    return Ok(None);
                }
                unread.extend(some);
            }
            let [version, kind, high, low] = unread[..4] else { unreachable!("of eight") };
            assert_eq!((version, high, low), (1, 0, 1));
            let length = usize::from(u16::from_be_bytes([unread[4], unread[5]]));
            let whole = 8 + length + usize::from(unread[6]);
            assert_eq!(whole % 8, 0, "it is padded");
            while unread.len() < whole {
                unread.extend(visit.some()?);
            }
            let record = &unread[8..8 + length];
            match (kind, length) {
                (1, _) => {
                    assert_eq!((&record[..2], &record[3..]), (&[0, 1][..], &[0; 5][..]));
                    told.keep = record[2] == 1;
                }
                (4, 0) => told.params = params(&content),
                (4, _) => content.extend_from_slice(record),
                (5, 0) => return Ok(Some(told)),
                (5, _) => told.body.extend_from_slice(record),
                (kind, _) => panic!("a record of type {kind}"),
            }
            unread.drain(..whole);
        }
    }
}

/// `NAME=value` of each.
fn params(mut content: &[u8]) -> Vec<String> {
    fn length(content: &mut &[u8]) -> usize {
        let size = if content[0] < 128 { 1 } else { 4 };
        let (length, rest) = content.split_at(size);
        *content = rest;
        length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)) & 0x7fff_ffff
    }
    let mut params = vec![];
    while !content.is_empty() {
        let lengths = (length(&mut content), length(&mut content));
        let (name, rest) = content.split_at(lengths.0);
        let (value, rest) = rest.split_at(lengths.1);
        content = rest;
        params.push(format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
    }
    params
}

/// An application that answers each request with what stands behind its `ANSWER=`, and says what it was told.
fn application() -> (Origin, Arc<Mutex<Vec<Told>>>) {
    let requests = Arc::<Mutex<Vec<Told>>>::default();
    let kept = Arc::clone(&requests);
    let origin = Origin::start(move |visit| {
        while let Some(told) = Told::read(visit)? {
            let keep = told.keep;
            let head = told.params.iter().find_map(|param| param.strip_prefix("ANSWER="));
            let mut answer = vec![];
            let head = head.unwrap_or("Content-Type: text/plain").replace('|', "\r\n");
            let text = format!("{head}\r\n\r\nfound");
            append_record(6, text.as_bytes(), &mut answer);
            append_record(6, b"", &mut answer);
            append_record(3, &[0; 8], &mut answer);
            kept.lock().unwrap().push(told);
            visit.send(answer)?;
            if !keep {
                return Ok(());
            }
        }
        Ok(())
    });
    (origin, requests)
}

const ALL: Modules = Modules { http: crate::HTTP, upstream: crate::UPSTREAM };

/// Serves what stands inside a `server`, in which `PHP` is the application, for these requests of which the last ends its
/// connection; gives the answers and what the application was told.
fn asked(http: &str, server: &str, requests: &[&str]) -> (Vec<String>, Vec<Told>) {
    let (origin, told) = application();
    let text =
        format!("{http} server {{ listen {{listen}}; server_name local; {server} }}").replace("PHP", "{php}");
    let site = weir_testkit::Site::start(ALL, &text, &[("php", origin.address().to_string())]);
    let answers = requests.iter().map(|request| {
        let mut client = Client::connect(site.address());
        client.send(request);
        client.last_words()
    });
    (answers.collect(), std::mem::take(&mut *told.lock().unwrap()))
}

/// What an application is told of a GET with these header lines.
#[track_caller]
fn check_params(conf: &str, headers: &str, expected: &[&str]) {
    let request = format!("GET /a.php/b?c HTTP/1.0\r\n{headers}\r\n");
    let (answers, told) = asked("", &format!("location / {{ fastcgi_pass PHP; {conf} }}"), &[&request]);
    assert!(answers[0].ends_with("found"), "{}", answers[0]);
    assert_eq!(told[0].params, expected, "{conf}");
    assert!(!told[0].keep);
}

#[test]
fn headers_of_the_client_are_parameters() {
    check_params("", "Host: a\r\n", &["HTTP_HOST=a"]);
    check_params("", "", &["HTTP_HOST=local"]);
    check_params("", "Host: a:8080\r\nX-y-1: b\r\n", &["HTTP_HOST=a:8080", "HTTP_X_Y_1=b"]);
    check_params("fastcgi_pass_request_headers off;", "Host: a\r\nX: b\r\n", &["HTTP_HOST=a"]);
    // Those of one name are one.
    check_params(
        "fastcgi_param HTTP_HOST '';",
        "X: 1\r\nCookie: a\r\nx: 2\r\nHost: h\r\nCookie: b\r\nX: \r\n",
        &["HTTP_X=1, 2, ", "HTTP_COOKIE=a; b"],
    );
    // Parameters come first, and take the place of what is called as they are.
    check_params(
        "fastcgi_param HTTP_X_A b; fastcgi_param HTTP_HOST c; fastcgi_param http_y d; fastcgi_param HTTP_ e;",
        "Host: a\r\nX-a: 1\r\nx-A: 2\r\nY: 3\r\n",
        &["HTTP_X_A=b", "HTTP_HOST=c", "http_y=d", "HTTP_=e", "HTTP_Y=3"],
    );
    check_params(
        "fastcgi_param HTTP_X ''; fastcgi_param http_host a;",
        "Host: a\r\nX: 1\r\n",
        &["http_host=a", "HTTP_HOST=a"],
    );
    check_params("fastcgi_param HTTP_X $arg_none;", "X: 1\r\n", &["HTTP_X=", "HTTP_HOST=local"]);
}

#[test]
fn parameters_are_written_as_they_are_long() {
    let long = "n".repeat(128);
    for name in [&long[1..], &long] {
        for length in [127, 128, 600] {
            let value = "v".repeat(length);
            let conf = format!("fastcgi_pass_request_headers off; fastcgi_param {name} $http_x;");
            check_params(&conf, &format!("X: {value}\r\n"), &[&format!("{name}={value}"), "HTTP_HOST=local"]);
        }
    }
    check_params(
        "fastcgi_param A '' if_not_empty; fastcgi_param B ''; fastcgi_param C c if_not_empty; fastcgi_param C d;",
        "Host: a\r\n",
        &["B=", "C=c", "C=d", "HTTP_HOST=a"],
    );
    check_params("fastcgi_pass_request_headers off; fastcgi_param HTTP_HOST '';", "X: 1\r\n", &[]);
}

#[test]
fn what_is_more_than_a_record_holds_is_refused() {
    let value = "v".repeat(16_384);
    let request = format!("GET / HTTP/1.0\r\nX: {value}\r\n\r\n");
    let (answers, told) = asked(
        "large_client_header_buffers 4 32k; fastcgi_param A $http_x$http_x$http_x; fastcgi_param HTTP_HOST '';",
        "location / { fastcgi_pass PHP; } location /less { fastcgi_pass_request_headers off; fastcgi_pass PHP; }",
        &[&request, &request.replace("GET /", "GET /less")],
    );
    assert!(answers[0].starts_with("HTTP/1.1 500 "), "{}", answers[0]);
    assert!(answers[1].ends_with("found"), "{}", answers[1]);
    assert_eq!(told.len(), 1);
}

#[test]
fn parameters_of_an_outer_level_are_taken_over_whole() {
    let server = "fastcgi_param A b; fastcgi_param C d; fastcgi_keep_conn on;
        location / { fastcgi_pass PHP; if ($arg_x) { add_header X y; } }
        location /own { fastcgi_keep_conn off; fastcgi_pass PHP; fastcgi_param E f; limit_except PUT { allow all; } }";
    let requests = ["/", "/?x=1", "/own"].map(|path| format!("GET {path} HTTP/1.0\r\n\r\n"));
    let (_, told) = asked("", server, &requests.each_ref().map(|request| &**request));
    let params: Vec<_> = told.iter().map(|told| told.params.join(" ")).collect();
    assert_eq!(params, ["A=b C=d HTTP_HOST=local", "A=b C=d HTTP_HOST=local", "E=f HTTP_HOST=local"]);
    assert_eq!(told.iter().map(|told| told.keep).collect::<Vec<_>>(), [true, true, false]);
}

#[test]
fn a_body_has_its_length() {
    let server = "client_body_buffer_size 1m; fastcgi_param CONTENT_LENGTH $content_length; fastcgi_pass_request_headers off;
        location / { fastcgi_pass PHP; }
        location /none { fastcgi_pass PHP; fastcgi_pass_request_body off; }";
    let requests = [
        "POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        format!("POST / HTTP/1.0\r\nContent-Length: 100000\r\n\r\n{}", "b".repeat(100_000)),
        "POST / HTTP/1.1\r\nHost: local\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_owned(),
        "POST /none HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
    ];
    let (answers, told) = asked("", server, &requests.each_ref().map(|request| &**request));
    for ((told, answer), (length, body)) in
        told.iter().zip(&answers).zip([("5", 5), ("100000", 100_000), ("3", 3), ("5", 0)])
    {
        assert!(answer.contains("found"), "{answer}");
        assert_eq!(told.params[0], format!("CONTENT_LENGTH={length}"));
        assert_eq!(told.body.len(), body);
    }
}

#[test]
fn what_an_application_says_goes_on() {
    #[track_caller]
    fn check(said: &str, conf: &str, expected: &[&str]) {
        let server = format!("location / {{ fastcgi_param ANSWER '{said}'; fastcgi_pass PHP; {conf} }}");
        let (answers, _) = asked("", &server, &["GET / HTTP/1.0\r\n\r\n"]);
        let (head, body) = answers[0].split_once("\r\n\r\n").unwrap();
        let same = |line: &&str| !line.starts_with("Connection: ");
        let lines = head.lines().filter(same).map(|line| match line {
            _ if line.ends_with(" GMT") => "Date",
            _ if line.starts_with("Server: weir/") => "Server",
            line => line,
        });
        assert_eq!(lines.collect::<Vec<_>>(), expected, "{said}");
        assert_eq!(body, "found");
    }
    let of_type = "Content-Type: a/b";
    check(of_type, "", &["HTTP/1.1 200 OK", "Server", "Date", of_type]);
    check("Status: 404|Content-Type: a/b", "", &["HTTP/1.1 404 Not Found", "Server", "Date", of_type]);
    check(
        "Status: 201 Made|Content-Type: a/b|X-Accel-Expires: 3|X-Pad: x|Set-Cookie: a=b; path=/",
        "",
        &["HTTP/1.1 201 Made", "Server", "Date", of_type, "X-Pad: x", "Set-Cookie: a=b; path=/"],
    );
    check(
        "Content-Type: a/b|Location: /there",
        "",
        &["HTTP/1.1 302 Moved Temporarily", "Server", "Date", of_type, "Location: /there"],
    );
    // What the application says of these, weir does not.
    check(
        "Content-Type: a/b|Date: never|Server: it",
        "",
        &["HTTP/1.1 200 OK", of_type, "Date: never", "Server: it"],
    );
    check(
        "Status: 200 OK|Content-Type: a/b|Date: never|X: y",
        "fastcgi_pass_header Status; fastcgi_hide_header X; fastcgi_hide_header Date;",
        &["HTTP/1.1 200 OK", "Server", "Date", of_type, "Status: 200 OK"],
    );
}

#[test]
fn whom_to_ask_may_be_computed() {
    let server = "set $php PHP;
        location / { fastcgi_pass $php; }
        location /group { set $php app; fastcgi_pass $php; }
        location /none { fastcgi_pass $arg_none; }
        location /port { set $php 127.0.0.1; fastcgi_pass $php; }";
    let requests = ["/", "/group", "/none", "/port"].map(|path| format!("GET {path} HTTP/1.0\r\n\r\n"));
    let (answers, told) =
        asked("upstream app { server PHP; }", server, &requests.each_ref().map(|request| &**request));
    assert_eq!(answers.iter().map(|answer| &answer[9..12]).collect::<Vec<_>>(), ["200", "200", "500", "500"]);
    assert_eq!(told.len(), 2);
}

#[test]
fn of_an_answer_that_may_be_kept_the_whole_is_asked_for() {
    let folder = weir_testkit::Folder::new(&[]);
    let http = format!("fastcgi_cache_path {} keys_zone=z:1m;", folder.path().display());
    let server = "fastcgi_cache z; fastcgi_cache_key $request_method$uri; fastcgi_cache_valid 1m;
        location / { fastcgi_pass PHP; }
        location /asks { fastcgi_param HTTP_RANGE $http_range; fastcgi_pass PHP; }
        location /not { fastcgi_cache off; fastcgi_pass PHP; }";
    let fields = "Host: a\r\nRange: bytes=1-2\r\nIf-Match: b\r\nIf-Range: c\r\nIf-None-Match: d\r\nX: y\r\n";
    let requests = ["GET /", "GET /", "HEAD /", "GET /asks", "GET /not"]
        .map(|line| format!("{line} HTTP/1.0\r\n{fields}\r\n"));
    let (_, told) = asked(&http, server, &requests.each_ref().map(|request| &**request));
    let params: Vec<_> = told.iter().map(|told| told.params.join(" ")).collect();
    let whole = "HTTP_HOST=a HTTP_X=y";
    assert_eq!(
        params,
        [
            whole,
            // A head is another answer than the whole.
            whole,
            "HTTP_RANGE=bytes=1-2 HTTP_HOST=a HTTP_X=y",
            "HTTP_HOST=a HTTP_RANGE=bytes=1-2 HTTP_IF_MATCH=b HTTP_IF_RANGE=c HTTP_IF_NONE_MATCH=d HTTP_X=y",
        ]
    );
}

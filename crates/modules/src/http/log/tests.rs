use weir_testkit::Say;

use crate::testing::{Site, check_conf};

#[test]
fn messages() {
    for ok in [
        "access_log off;",
        "access_log x.log combined buffer=4k flush=5s if=$args;",
        "access_log x.log COMBINED;",
        "access_log x.log combined gzip flush=1s; access_log x.log combined buffer=64k gzip=1 flush=1s;",
        "access_log x.log combined buffer=4k; access_log x.log; access_log x.log combined buffer=4096;",
        "log_format a $status; log_format b escape=json $uri; access_log off; access_log x.log b;",
        "open_log_file_cache max=10 inactive=5s valid=1m min_uses=2;",
        "open_log_file_cache off;",
    ] {
        check_conf(ok, "");
    }
    for (conf, message) in [
        ("access_log off x;", "invalid parameter \"x\""),
        ("access_log x.log nix;", "unknown log format \"nix\""),
        ("access_log x.log a; log_format a $uri;", "unknown log format \"a\""),
        ("access_log x.log combined buffer=0;", "invalid buffer size \"0\""),
        ("access_log x.log combined buffer=1k flush=0;", "invalid flush time \"0\""),
        ("access_log x.log combined flush=1s;", "no buffer is defined for access_log \"x.log\""),
        ("access_log x.log combined gzip=0;", "invalid compression level \"0\""),
        (
            "access_log x.log combined gzip; access_log x.log combined gzip=2;",
            "access_log \"x.log\" already defined with conflicting parameters",
        ),
        ("access_log logs/$host.log combined gzip;", "buffered logs cannot have variables in name"),
        ("access_log syslog:server=127.0.0.1 combined gzip flush=1s;", "logs to syslog cannot be buffered"),
        ("access_log x.log combined gzip=10;", "invalid compression level \"10\""),
        ("access_log x.log combined what;", "invalid parameter \"what\""),
        (
            "access_log x.log combined buffer=1k; access_log x.log combined buffer=2k;",
            "access_log \"x.log\" already defined with conflicting parameters",
        ),
        ("access_log logs/$host.log combined buffer=1k;", "buffered logs cannot have variables in name"),
        ("access_log logs/$nix.log;", "unknown \"nix\" variable"),
        ("access_log syslog:server=127.0.0.1 combined buffer=1k;", "logs to syslog cannot be buffered"),
        ("log_format combined $uri;", "duplicate \"log_format\" name \"combined\""),
        ("log_format a $uri; log_format a $uri;", "duplicate \"log_format\" name \"a\""),
        ("log_format a escape=xml $uri;", "unknown log format escaping \"xml\""),
        ("log_format a $nix;", "unknown \"nix\" variable"),
        ("log_format a $;", "invalid parameter \"$\""),
        ("open_log_file_cache inactive=5s;", "\"open_log_file_cache\" must have \"max\" parameter"),
        ("open_log_file_cache max=x;", "invalid \"open_log_file_cache\" parameter \"max=x\""),
        (
            "open_log_file_cache max=1; open_log_file_cache max=1;",
            "\"open_log_file_cache\" directive is duplicate",
        ),
    ] {
        check_conf(conf, message);
    }
}

/// What one request leaves in `logs/a.log`, logged in the format given.
#[track_caller]
fn check(format: &str, request: &str, expected: &str) {
    let site = Site::new(&format!(
        "log_format a {format}; access_log logs/a.log a; server {{ listen 80; location /ok {{ answer 200 text/plain ok; }} }}"
    ));
    site.raw(request.as_bytes());
    assert_eq!(site.read("logs/a.log"), format!("{expected}\n"), "{format}");
}

#[test]
fn lines() {
    let get = "GET /ok?a=1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\nUser-Agent: a\"b\\\u{ff}\r\n\r\n";
    check(
        "$remote_addr|$remote_user|$request|$status|$body_bytes_sent",
        get,
        "127.0.0.1|-|GET /ok?a=1 HTTP/1.1|200|2",
    );
    check("'$http_user_agent $http_x $args $arg_a $arg_b'", get, "a\\x22b\\x5C\\xC3\\xBF - a=1 1 -");
    check("escape=json '$http_user_agent|$http_x'", get, "a\\\"b\\\\ÿ|");
    check("escape=none '$http_user_agent|$http_x'", get, "a\"b\\ÿ|");
    check("'$pipe $connection_requests $request_length $request_completion'", get, ". 1 72 OK");
    check("'$status [$request] [$uri] [$args]'", "GARBAGE\r\n\r\n", "400 [GARBAGE] [-] [-]");
    check("'$status $body_bytes_sent [$server_protocol]'", "GET /ok\r\n", "200 2 [-]");
    check(
        "'$status $http_authorization $remote_user'",
        "GET /ok? HTTP/1.0\r\nAuthorization: Basic YWI6Yw==\r\n\r\n",
        "200 Basic YWI6Yw== ab",
    );
    check("'[$args]'", "GET /ok? HTTP/1.0\r\n\r\n", "[-]");
    check("'$request_method $status'", "HEAD /nix HTTP/1.0\r\n\r\n", "HEAD 404");
}

#[test]
fn which_requests_are_logged_where() {
    let site = Site::new(
        "log_format u $uri; access_log logs/a.log u;
         server {
             listen 80;
             location /off { access_log off; answer 200 text/plain ok; }
             location /two { access_log logs/a.log u; access_log logs/b.log u; answer 200 text/plain ok; }
             location /if { access_log logs/a.log u if=$arg_x; answer 200 text/plain ok; }
             location / { answer 200 text/plain ok; }
         }",
    );
    for path in ["/1", "/off", "/two", "/if", "/if?x=0", "/if?x=00", "/2"] {
        site.get(path, "");
    }
    assert_eq!(site.read("logs/a.log"), "/1\n/two\n/if\n/2\n");
    assert_eq!(site.read("logs/b.log"), "/two\n");
}

#[test]
fn the_default_is_a_combined_log() {
    let site = Site::new("server { listen 80; location / { answer 200 text/plain ok; } }");
    site.get("/", "Referer: r\r\n");
    let line = site.read("logs/access.log");
    assert!(
        line.starts_with("127.0.0.1 - - [") && line.ends_with("] \"GET / HTTP/1.1\" 200 2 \"r\" \"-\"\n"),
        "{line}"
    );
}

#[test]
fn buffered_lines_wait_until_the_buffer_is_full() {
    let conf = "log_format u $uri; access_log logs/a.log u buffer=16;
        server { listen 80; location / { answer 200 text/plain ok; } }";
    let mut site = Site::new(conf);
    site.get("/12345", "");
    site.get("/67890", "");
    assert_eq!(site.read("logs/a.log"), "");
    site.get("/abcde", "");
    assert_eq!(site.read("logs/a.log"), "/12345\n/67890\n");
    site.reload(conf);
    assert_eq!(site.read("logs/a.log"), "/12345\n/67890\n", "a buffer goes on over a reload");
    site.get("/longer-than-the-buffer", "");
    assert_eq!(site.read("logs/a.log"), "/12345\n/67890\n/abcde\n/longer-than-the-buffer\n");
    site.get("/1", "");
    site.reload("access_log off; server { listen 80; }");
    assert!(site.read("logs/a.log").ends_with("\n/1\n"), "a buffer that goes away is written");
}

#[test]
fn a_buffer_is_written_when_its_first_line_has_waited() {
    let check = |passed, expected| {
        let site = Site::new(
            "log_format u $uri; access_log logs/a.log u buffer=1k flush=5s; server { return 200 here; }",
        );
        let request = b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\n";
        site.talk("unix:", &[Say::Send(request), Say::Expect("here"), Say::Pass(passed), Say::Finish]);
        assert_eq!(site.read("logs/a.log"), expected, "{passed}");
    };
    check(4_000, "");
    check(5_100, "/1\n");
}

#[test]
fn syslog_messages() {
    for (parameters, message) in [
        ("server=127.0.0.1", ""),
        ("server=[::1]:515,tag=,nohostname,nohostname", ""),
        ("severity=alert,facility=kern,server=unix:/tmp/log", ""),
        ("", "unknown syslog parameter \"\""),
        ("server=127.0.0.1,", "unknown syslog parameter \"\""),
        ("server=127.0.0.1,foo=1", "unknown syslog parameter \"foo=1\""),
        ("server=127.0.0.1,nohostname2", "unknown syslog parameter \"nohostname2\""),
        ("server=", "no host in syslog server \"\""),
        ("server=127.0.0.1:99999", "invalid port in syslog server \"127.0.0.1:99999\""),
        ("server=127.0.0.1,server=1", "duplicate syslog \"server\""),
        ("server=127.0.0.1,tag=a,tag=b", "duplicate syslog \"tag\""),
        ("server=127.0.0.1,facility=user,facility=x", "duplicate syslog \"facility\""),
        ("server=127.0.0.1,facility=x", "unknown syslog facility \"x\""),
        ("server=127.0.0.1,severity=x", "unknown syslog severity \"x\""),
        ("tag=x", "no syslog server specified"),
        ("tag=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "syslog tag length exceeds 32"),
        ("tag=a-b", "syslog \"tag\" only allows alphanumeric characters and underscore"),
    ] {
        check_conf(&format!("access_log syslog:{parameters};"), message);
        check_conf(&format!("error_log syslog:{parameters};"), message);
    }
}

#[test]
fn lines_to_syslog() {
    let daemon = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    daemon.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let server = format!("syslog:server={}", daemon.local_addr().unwrap());
    let site = Site::new(&format!(
        "log_format a $uri; access_log {server},tag=web,severity=alert,nohostname a;
         server {{ location / {{ answer 200 text/plain ok; }}
         location /e {{ error_log {server},facility=user info; access_log off; auth_basic x;
            auth_basic_user_file nix; answer 200 text/plain ok; }} }}"
    ));
    // `<PRI>`, the time of 15 bytes, and the rest.
    let received = || {
        let mut datagram = [0; 4096];
        let n = daemon.recv(&mut datagram).unwrap();
        let text = String::from_utf8_lossy(&datagram[..n]).into_owned();
        let (pri, rest) = text.split_once('>').unwrap();
        (format!("{pri}>"), rest[15..].to_owned())
    };
    site.get("/a", "");
    assert_eq!(received(), ("<185>".into(), " web: /a".into()));
    site.get("/e", "");
    let (pri, rest) = received();
    assert_eq!(pri, "<14>");
    let mut words = rest.split(' ');
    assert!(words.nth(1).is_some_and(|host| host == host.to_lowercase()));
    assert_eq!(words.next(), Some("nginx:"));
    assert!(rest.contains(" [info] ") && rest.contains("no user/password"), "{rest}");
}

#[test]
fn paths_of_requests() {
    let site = Site::new(
        "log_format a $uri; access_log logs/$arg_to.log a; server { root %DIR%; \
         location / { answer 200 text/plain ok; } location /nix { root %DIR%/nix; answer 200 text/plain ok; } }",
    );
    for uri in ["/1?to=a", "/2?to=b", "/3?to=a", "/4?to=../up", "/5?to=no/such", "/nix?to=a"] {
        assert_eq!(site.short(uri), "200 ok");
    }
    assert_eq!((site.read("logs/a.log"), site.read("logs/b.log")), ("/1\n/3\n".into(), "/2\n".into()));
    let log = site.log();
    assert!(log[0].ends_with("logs/../up.log\" has \"..\" in a variable while logging request"), "{log:?}");
    assert!(log.iter().all(|line| line.ends_with(" while logging request")), "{log:?}");
    assert!(log[1].starts_with("open() \"") && log[1].contains("logs/no/such.log\" failed (2: "), "{log:?}");
    assert!(log[2].starts_with("testing \"") && log[2].contains("/nix\" existence failed (2: "), "{log:?}");
}

#[test]
fn compressed_lines() {
    let site = Site::new(
        "log_format a $uri; access_log logs/a.gz a gzip=9 buffer=20; \
         server { location / { answer 200 text/plain ok; } }",
    );
    let long = "/a/path/that/is/longer/than/the/buffer";
    for uri in ["/one", "/two", "/three", "/four", long, "/five"] {
        site.get(uri, "");
    }
    let file = site.generation().files().values().find(|file| file.path().ends_with("a.gz")).unwrap();
    file.flush();
    let packed = std::fs::read(file.path()).unwrap();
    let lines = std::io::read_to_string(flate2::read::MultiGzDecoder::new(&packed[..])).unwrap();
    assert_eq!(lines, format!("/one\n/two\n/three\n/four\n{long}\n/five\n"));
}

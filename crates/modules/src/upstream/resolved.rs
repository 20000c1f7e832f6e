//! Servers whose names are resolved at run time.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use weir_testkit::{Client, Modules, NameServer, Origin, Site, free_address, until};

use crate::testing::check_conf;

#[test]
fn messages() {
    let refused = |http: &str, message: &str| check_conf(http, message);
    refused(
        "upstream u { server a.example resolve; }",
        "resolving names at run time requires upstream \"u\" in /conf/nginx.conf:1 to be in shared memory",
    );
    refused(
        "server { resolver 127.0.0.1; } upstream u { zone z 1m; server a.example resolve; }",
        "no resolver defined to resolve names at run time in upstream \"u\" in /conf/nginx.conf:1",
    );
    refused(
        "resolver ::1; upstream u { zone z 1m; server a.example resolve backup; }",
        "invalid port in resolver \"::1\"",
    );
    refused(
        "resolver 127.0.0.1; upstream u { zone z 1m; server a.example resolve backup; }",
        "no servers in upstream \"u\" in /conf/nginx.conf:1",
    );
    refused(
        "upstream u { resolver 127.0.0.1; resolver 127.0.0.2; server 127.0.0.1; }",
        "\"resolver\" directive is duplicate",
    );
    refused(
        "upstream u { resolver_timeout 5; resolver_timeout 5; server 127.0.0.1; }",
        "\"resolver_timeout\" directive is duplicate",
    );
    for (server, message) in [
        ("a.example service=http", "service upstream \"a.example\" requires \"resolve\" parameter"),
        ("a.example service= resolve", "service is empty"),
        ("a.example:80 service=http resolve", "service upstream \"a.example:80\" may not have port"),
        ("127.0.0.1 service=http resolve", "service upstream \"127.0.0.1\" requires domain name"),
        ("unix:/a service=http resolve", "service upstream \"unix:/a\" may not have port"),
        ("a.example service resolve", "invalid parameter \"service\""),
    ] {
        refused(&format!("resolver 127.0.0.1; upstream u {{ zone z 1m; server {server}; }}"), message);
    }
    for good in [
        "resolver 127.0.0.1; upstream u { zone z 1m; server a.example service=_http._tcp resolve; }",
        "resolver 127.0.0.1; upstream u { zone z 1m; server a.example resolve; hash $uri consistent; }",
        "upstream u { zone z 1m; server a.example:81 resolve; resolver 127.0.0.1; resolver_timeout 5; }",
        "upstream u { server 127.0.0.1 resolve; server unix:/a resolve; }",
    ] {
        refused(good, "");
    }
}

/// Two origins at one port, and a name server that says what it is told to.
struct Moving {
    one: Origin,
    two: Origin,
    names: NameServer,
    says: Arc<Mutex<String>>,
}

impl Moving {
    fn start() -> Self {
        let one = free_address();
        let two = SocketAddr::new(free_address().ip(), one.port());
        let saying = |text: &'static str, address| {
            Origin::start_at(address, move |visit| {
                while let Some(request) = visit.request()? {
                    if request.starts_with("GET /held ") {
                        return visit.stall();
                    }
                    visit.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{text}"))?;
                }
                Ok(())
            })
        };
        let says = Arc::new(Mutex::new(format!("0 {}", one.ip())));
        let said = Arc::clone(&says);
        let names = NameServer::start(move |_, _| said.lock().unwrap().clone());
        Self { one: saying("one", one), two: saying("two", two), names, says }
    }

    fn say(&self, text: &str) {
        *self.says.lock().unwrap() = text.replace("TWO", &self.two.address().ip().to_string());
    }

    /// A site that asks the group, which has more directives.
    fn site(&self, more: &str) -> Site {
        let http = self.http(more);
        Site::start(Modules { http: crate::HTTP, upstream: crate::UPSTREAM }, &http, &[])
    }

    fn http(&self, more: &str) -> String {
        format!(
            "resolver {} ipv6=off; upstream u {{ zone z 64k; server a.example:{} resolve; {more} }} \
             server {{ listen {{listen}}; location / {{ proxy_pass http://u; }} }}",
            self.names.address(),
            self.one.address().port()
        )
    }
}

fn ask(site: &Site) -> String {
    let mut client = Client::connect(site.address());
    client.send("GET / HTTP/1.0\r\n\r\n");
    let answer = client.last_words();
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    if body.len() == 3 { body.to_owned() } else { answer[9..12].to_owned() }
}

#[test]
fn peers_come_and_go() {
    for more in ["", "least_conn;", "hash $uri consistent;", "sticky cookie id;"] {
        let moving = Moving::start();
        let site = moving.site(more);
        until("the name is known", || ask(&site) == "one");
        moving.say("0 TWO");
        until("it is another one", || ask(&site) == "two");
        // One that cannot say is not believed to know better.
        let log = site.log().len();
        moving.say("code 2");
        until("it fails", || site.log().len() > log);
        assert_eq!(site.log().last().unwrap(), "a.example could not be resolved (2: Server failure)");
        assert_eq!(ask(&site), "two");
    }
}

#[test]
fn who_waits_has_the_peers_that_come() {
    let moving = Moving::start();
    let http = moving.http("queue 1;").replace(" resolve;", " resolve max_conns=1;");
    let site = Site::start(Modules { http: crate::HTTP, upstream: crate::UPSTREAM }, &http, &[]);
    until("the name is known", || ask(&site) == "one");
    let [_held, mut waits] = ["held", "waits"].map(|path| {
        let mut client = Client::connect(site.address());
        client.send(format!("GET /{path} HTTP/1.0\r\n\r\n"));
        until("it is held", || moving.one.heard().contains("GET /held "));
        client
    });
    until("the queue is full", || ask(&site) == "502");
    moving.say("0 TWO");
    assert!(waits.last_words().ends_with("two"));
}

#[test]
fn nobody_is_left_where_the_name_is_gone() {
    let moving = Moving::start();
    let site = moving.site("");
    until("the name is known", || ask(&site) == "one");
    moving.say("code 3");
    until("it is gone", || ask(&site) == "502");
    let log = site.log();
    assert!(log.contains(&"no live upstreams while connecting to upstream".to_owned()), "{log:?}");
}

#[test]
fn a_reload_keeps_what_is_known() {
    let moving = Moving::start();
    let mut site = moving.site("");
    until("the name is known", || ask(&site) == "one");
    moving.say("silence");
    site.reload(&moving.http("keepalive 1;"), &[]);
    assert_eq!(ask(&site), "one");
}

#[test]
fn places_of_a_service() {
    let moving = Moving::start();
    let (one, two) = (moving.one.address(), moving.two.address());
    let (port, ip) = (one.port(), one.ip());
    let said = Arc::new(Mutex::new(String::new()));
    let says = Arc::clone(&said);
    let names = NameServer::start(move |asked, _| match asked {
        "SRV _http._tcp.a.example" => says.lock().unwrap().clone(),
        "A one.example" => format!("60 {ip}"),
        "A two.example" => format!("60 {}", two.ip()),
        "A sick.example" => "code 2".to_owned(),
        _ => "code 3".to_owned(),
    });
    let site = |more: &str, says: &str| {
        *said.lock().unwrap() = says.replace("PORT", &port.to_string());
        let http = format!(
            "resolver {} ipv6=off; upstream u {{ zone z 64k; server a.example service=http resolve {more}; \
             server 127.0.0.1:1 down; }} server {{ listen {{listen}}; location / {{ proxy_pass http://u; }} }}",
            names.address()
        );
        Site::start(Modules { http: crate::HTTP, upstream: crate::UPSTREAM }, &http, &[])
    };
    let check = |more: &str, says: &str, expected: &str| {
        let site = site(more, says);
        until("the service is known", || ask(&site) != "502");
        let answers: String =
            (0..expected.len()).map(|_| if ask(&site) == "one" { '1' } else { '2' }).collect();
        let count = |text: &str| (text.matches('1').count(), text.matches('2').count());
        assert_eq!(count(&answers), count(expected), "{more} {says}");
        site
    };
    check("", "60 srv 1 5 PORT one.example", "1111");
    check("", "60 srv 1 5 PORT one.example 1 5 PORT two.example", "1122");
    // By their weights, unless the server has one of its own; those of a higher priority are backups.
    check("", "60 srv 1 3 PORT one.example 1 1 PORT two.example", "11121112");
    check("weight=2", "60 srv 1 3 PORT one.example 1 1 PORT two.example", "1122");
    check("", "60 srv 7 1 PORT two.example 2 0 PORT one.example", "1111");
    let log =
        check("", "60 srv 1 1 PORT none.example 1 1 PORT sick.example 1 1 PORT two.example", "22").log();
    let failed = |what: &str| log.iter().filter(|line| line.starts_with(what)).count();
    let of = "while resolving service http of a.example";
    assert_eq!(failed(&format!("none.example could not be resolved (3: Host not found) {of}")), 1, "{log:?}");
    assert_eq!(failed(&format!("sick.example could not be resolved (2: Server failure) {of}")), 1, "{log:?}");
    let site = site("", "code 3");
    until("it is known that there is none", || !site.log().is_empty());
    assert_eq!(site.log()[0], "service http of a.example could not be resolved (3: Host not found)");
    assert_eq!(ask(&site), "502");
}

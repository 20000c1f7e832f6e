//! Names that only a name server knows.

use weir_testkit::{Client, Gate, Modules, NameServer, Origin, Say, Site, until};

/// A site that passes requests to whatever host they name, with a resolver, and an origin that answers them.
struct Resolving {
    names: NameServer,
    origin: Origin,
    site: Site,
}

impl Resolving {
    fn start(resolver: &str, script: impl Fn(&str, usize) -> String + Send + Sync + 'static) -> Self {
        let origin = Origin::saying("found");
        let host = origin.address().ip().to_string();
        let names = NameServer::start(move |asked, number| script(asked, number).replace("HOST", &host));
        let http = format!(
            "resolver {{names}} {resolver}; \
             server {{ listen {{listen}}; location / {{ proxy_pass http://$host:{{port}}; }} }}"
        );
        let filled = [("names", names.address().to_string()), ("port", origin.address().port().to_string())];
        let modules = Modules { http: crate::HTTP, upstream: crate::UPSTREAM };
        Self { site: Site::start(modules, &http, &filled), names, origin }
    }

    fn ask(&self, host: &str) -> Client {
        let mut client = Client::connect(self.site.address());
        client.send(request(host));
        client
    }

    /// The status of the answer to a request for that host.
    #[track_caller]
    fn status(&self, host: &str) -> String {
        self.ask(host).last_words()[9..12].to_owned()
    }
}

fn request(host: &str) -> String {
    format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n")
}

#[test]
fn a_name_is_asked_for_once() {
    let gate = Gate::default();
    let opened = gate.clone();
    let resolving = Resolving::start("", move |asked, _| {
        opened.wait();
        if asked == "A a.example" { "60 HOST".into() } else { String::new() }
    });
    let waiting: Vec<_> = (0..5).map(|_| resolving.ask("a.example")).collect();
    until("both kinds are asked for", || !resolving.names.asked().is_empty());
    gate.open();
    for mut client in waiting {
        assert!(client.last_words().ends_with("found"));
    }
    assert_eq!(resolving.status("A.Example."), "200");
    let mut asked = resolving.names.asked();
    asked.sort();
    assert_eq!(asked, ["A a.example", "AAAA a.example"]);
    assert_eq!(resolving.origin.connections(), 6);
}

#[test]
fn what_has_no_addresses_is_a_bad_gateway() {
    let resolving = Resolving::start("ipv6=off", |asked, _| match asked {
        "A refused.example" => "code 5".into(),
        "A alias.example" => "60 alias alias.example".into(),
        "A nothing.example" => String::new(),
        _ => "code 3".into(),
    });
    let long = "a".repeat(64);
    for host in ["a.example", "a.example", "refused.example", "nothing.example", "alias.example", &long] {
        assert_eq!(resolving.status(host), "502", "{host}");
    }
    assert_eq!(
        resolving.site.log(),
        [
            "a.example could not be resolved (3: Host not found)",
            "a.example could not be resolved (3: Host not found)",
            "refused.example could not be resolved (5: Operation refused)",
            "nothing.example could not be resolved (3: Host not found)",
            "alias.example could not be resolved (3: Host not found)",
            &format!("{long} could not be resolved (3: Host not found)"),
        ]
    );
    let asked = ["A a.example", "A a.example", "A refused.example", "A nothing.example", "A alias.example"];
    assert_eq!(resolving.names.asked(), asked, "failures are not kept, and an alias is");
}

#[test]
fn aliases_are_followed_and_both_kinds_count() {
    let resolving = Resolving::start("", |asked, _| match asked {
        "A a.example" | "AAAA a.example" => "60 alias b.example".into(),
        "A b.example" => "60 HOST".into(),
        "AAAA b.example" => String::new(),
        "A c.example" => "60 HOST".into(),
        _ => "code 2".into(),
    });
    assert_eq!(resolving.status("a.example"), "200");
    assert_eq!(resolving.status("b.example"), "200");
    assert_eq!(resolving.names.asked().len(), 4);
    assert_eq!(resolving.status("c.example"), "502", "one kind that fails fails both");
}

#[test]
fn an_answer_holds_for_its_time() {
    let resolving = Resolving::start("ipv6=off", |_, _| "1 HOST".into());
    assert_eq!(resolving.status("a.example"), "200");
    until("the name is asked for again", || {
        assert_eq!(resolving.status("a.example"), "200");
        resolving.names.asked().len() > 1
    });
    assert!(resolving.origin.connections() > 2, "it was kept meanwhile");
}

#[test]
fn a_long_answer_comes_over_tcp() {
    let resolving = Resolving::start("ipv6=off", |asked, _| match asked {
        "A a.example tcp" => "60 HOST".into(),
        _ => "truncated".into(),
    });
    assert_eq!(resolving.status("a.example"), "200");
    assert_eq!(resolving.names.asked(), ["A a.example", "A a.example tcp"]);
}

#[test]
fn who_does_not_answer_is_asked_again() {
    let resolving = Resolving::start("ipv6=off", |_, number| match number {
        0 => "wrong 60 HOST".into(),
        _ => "60 HOST".into(),
    });
    let request = request("a.example");
    let told = resolving.site.talk(&[
        Say::Send(request.as_bytes()),
        Say::Pass(4_900),
        Say::Pass(200),
        Say::Expect("found"),
    ]);
    assert!(told.contains("200 OK"), "{told}");
    let log = resolving.site.log();
    assert!(log[0].starts_with("wrong ident ") && log.len() == 1, "{log:?}");
}

#[test]
fn what_is_no_answer_is_none() {
    #[track_caller]
    fn check(over_udp: &'static str, over_tcp: &'static str, told: &str) {
        let resolving = Resolving::start("ipv6=off", move |asked, _| match asked {
            "A a.example tcp" => over_tcp.into(),
            _ => over_udp.into(),
        });
        let _client = resolving.ask("a.example");
        until("it is told", || resolving.site.log().iter().any(|line| line.starts_with(told)));
        // What is waited for may still come.
        assert_eq!(resolving.site.log().len(), 1, "{:?}", resolving.site.log());
        assert_eq!(resolving.origin.connections(), 0);
    }
    check("garbage", "", "short DNS response");
    check("wrong 60 HOST", "", "wrong ident ");
    check("truncated", "truncated", "invalid TCP DNS response ");
    check("truncated", "garbage", "short DNS response");
}

#[test]
fn a_request_waits_for_its_time() {
    let resolving = Resolving::start("ipv6=off; resolver_timeout 7s", |_, _| "silence".into());
    let request = request("a.example");
    let told = resolving.site.talk(&[
        Say::Send(request.as_bytes()),
        Say::Pass(6_900),
        Say::Pass(200),
        Say::Expect("502 Bad Gateway"),
    ]);
    assert!(told.contains("502"), "{told}");
    assert_eq!(resolving.site.log(), ["a.example could not be resolved (110: Operation timed out)"]);
}

#[test]
fn a_client_that_goes_is_not_waited_for() {
    let resolving = Resolving::start("ipv6=off", |_, _| "silence".into());
    let client = resolving.ask("a.example");
    until("the name is asked for", || !resolving.names.asked().is_empty());
    drop(client);
    until("that is seen", || {
        resolving
            .site
            .log()
            .contains(&"epoll_wait() reported that client prematurely closed connection".to_owned())
    });
}

#[test]
fn every_address_is_tried() {
    // Nobody listens at the others.
    let resolving = Resolving::start("ipv6=off", |_, _| "60 127.255.255.1 127.255.255.2 HOST".into());
    for _ in 0..6 {
        assert_eq!(resolving.status("a.example"), "200");
    }
}

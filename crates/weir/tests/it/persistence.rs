//! What goes on over a reload of what an upstream knows: the tunnels that count, the servers that sessions belong to.

use weir_testkit::{Client, Origin, Server, Socket};

use crate::{Test, executable};

pub const TESTS: &[Test] = &[
    ("tunnels_count_after_a_reload", tunnels_count_after_a_reload),
    ("tunnels_count_until_they_end", tunnels_count_until_they_end),
    ("sessions_go_on_after_a_reload", sessions_go_on_after_a_reload),
    ("a_websocket_goes_where_its_session_is", a_websocket_goes_where_its_session_is),
];

const CONF: &str = "
    error_log logs/error.log info;
    events {}
    http {
        upstream u { {peers} }
        server {
            listen {listen};
            location / {
                proxy_pass http://u;
                proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection upgrade;
            }
        }
    }";

fn peers(text: &str, origins: &[Origin; 2]) -> [(&'static str, String); 1] {
    let [a, b] = [0, 1].map(|at| origins[at].address().to_string());
    [("peers", text.replace("{a}", &a).replace("{b}", &b))]
}

fn start(text: &str, origins: &[Origin; 2]) -> Server {
    Server::start(&executable(), CONF, &peers(text, origins))
}

#[track_caller]
fn reload(server: &Server, text: &str, origins: &[Origin; 2]) {
    server.configure(CONF, &peers(text, origins));
    assert_eq!(server.reload().code, Some(0));
}

/// The connections that each origin has had.
fn connections(origins: &[Origin; 2]) -> [usize; 2] {
    [origins[0].connections(), origins[1].connections()]
}

fn tunnels_count_after_a_reload() {
    let origins = [Origin::echoing(), Origin::echoing()];
    let server = start("least_conn; server {a}; server {b};", &origins);
    let mut first = Socket::connect(server.address(), "/");
    first.echo_of("one");
    assert_eq!(connections(&origins), [1, 0]);
    // The group is another, but the first peer has its tunnel still.
    reload(&server, "least_conn; server {a} max_fails=2; server {b} max_fails=2;", &origins);
    let mut second = Socket::connect(server.address(), "/");
    second.echo_of("two");
    assert_eq!(connections(&origins), [1, 1]);
    first.echo_of("one again");
}

fn tunnels_count_until_they_end() {
    let origins = [Origin::echoing(), Origin::echoing()];
    let server = start("server {a} max_conns=1; server {b} backup;", &origins);
    let mut first = Socket::connect(server.address(), "/");
    first.echo_of("one");
    let mut second = Socket::connect(server.address(), "/");
    second.echo_of("two");
    assert_eq!(connections(&origins), [1, 1]);
    reload(&server, "server {a} max_conns=1; server {b} backup; keepalive 3;", &origins);
    let mut third = Socket::connect(server.address(), "/");
    third.echo_of("three");
    assert_eq!(connections(&origins), [1, 2]);
    first.close();
    weir_testkit::until("the first peer is free again", || {
        let mut socket = Socket::connect(server.address(), "/");
        socket.echo_of("four");
        origins[0].connections() == 2
    });
}

fn ask(server: &Server, cookie: &str) -> String {
    let request =
        format!("GET / HTTP/1.1\r\nHost: a.example\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n");
    Client::connect(server.address()).ask(request).text()
}

fn sessions_go_on_after_a_reload() {
    let origins = [Origin::saying("a"), Origin::saying("b")];
    let learn = "sticky learn create=$cookie_id lookup=$cookie_id zone=sessions:1m;";
    let server = start(&format!("server {{a}}; server {{b}}; {learn}"), &origins);
    let first: Vec<String> = ["id=1", "id=2", "id=1", "id=2", "id=2"].map(|id| ask(&server, id)).into();
    assert_eq!(first, ["a", "b", "a", "b", "b"]);
    // Peers come, go and change their places; their sessions do not.
    let other = format!("least_conn; server 127.0.0.1:1 down; server {{b}} weight=9; server {{a}}; {learn}");
    reload(&server, &other, &origins);
    let again: Vec<String> = ["id=1", "id=1", "id=2", "id=1"].map(|id| ask(&server, id)).into();
    assert_eq!(again, ["a", "a", "b", "a"]);
    reload(&server, &format!("server {{b}}; {learn}"), &origins);
    assert_eq!(ask(&server, "id=1"), "b");
    reload(&server, &format!("server {{a}}; server {{b}}; {learn}"), &origins);
    assert_eq!(ask(&server, "id=1"), "b");
}

fn a_websocket_goes_where_its_session_is() {
    let origins = [Origin::echoing(), Origin::echoing()];
    let server = start("server {a} route=a; server {b} route=b; sticky route $arg_to;", &origins);
    let mut sockets = vec![];
    for (path, expected) in [("/?to=b", [0, 1]), ("/?to=b", [0, 2]), ("/?to=a", [1, 2]), ("/?to=b", [1, 3])] {
        let mut socket = Socket::connect(server.address(), path);
        socket.echo_of(path);
        assert_eq!(connections(&origins), expected, "{path}");
        sockets.push(socket);
    }
    // New sessions go elsewhere, those that are there go on.
    reload(&server, "server {a} route=a; server {b} route=b drain; sticky route $arg_to;", &origins);
    for (path, expected) in [("/", [2, 3]), ("/", [3, 3]), ("/?to=b", [3, 4])] {
        let mut socket = Socket::connect(server.address(), path);
        socket.echo_of(path);
        assert_eq!(connections(&origins), expected, "{path}");
        sockets.push(socket);
    }
    sockets.iter_mut().for_each(|socket| socket.echo_of("still there"));
}

use crate::testing::check_conf;

const GROUP: &str = "upstream u { zone u 64k; server 127.0.0.1; }";

#[test]
fn messages() {
    let refused = |check: &str, more: &str, message: &str| {
        let http = format!("{GROUP} {more} server {{ location /a {{ proxy_pass http://u; {check} }} }}");
        check_conf(&http, message);
    };
    for good in [
        "health_check;",
        "health_check interval=1s jitter=500ms fails=3 passes=2 uri=/a?b port=81 mandatory persistent;",
        "health_check type=http keepalive_time=60s;",
        "health_check type=websocket;",
        "health_check match=m; location /a/b { proxy_pass http://u; health_check; }",
    ] {
        refused(good, "match m { }", "");
    }
    for bad in [
        "interval=0",
        "interval=x",
        "jitter=x",
        "fails=0",
        "passes=x",
        "uri=a",
        "match=",
        "port=0",
        "port=65536",
        "type=tcp",
        "persistent",
        "mandatory=on",
        "unknown",
    ] {
        refused(&format!("health_check {bad};"), "", &format!("invalid parameter \"{bad}\""));
    }
    refused("health_check; health_check;", "", "\"health_check\" directive is duplicate");
    refused("health_check match=m;", "", "match \"m\" is not defined");
    refused(
        "health_check type=grpc;",
        "",
        "\"health_check\" with \"type=grpc\" is known but not supported by weir yet",
    );
    refused(
        "health_check type=websocket match=m;",
        "match m { }",
        "\"health_check\" directive with \"type=websocket\" takes neither \"match\" nor \"keepalive_time\"",
    );
    check_conf(
        "upstream u { server 127.0.0.1; } server { location / { proxy_pass http://u; health_check; } }",
        "health checks require upstream \"u\" in /conf/nginx.conf:1 to be in shared memory",
    );
    for no_group in ["", "proxy_pass http://127.0.0.1;", "proxy_pass http://$host;"] {
        check_conf(
            &format!("server {{ location / {{ {no_group} health_check; }} }}"),
            "\"health_check\" requires \"proxy_pass\" to an upstream block in location in /conf/nginx.conf:1",
        );
    }
}

#[test]
fn messages_of_match() {
    let refused = |inside: &str, message: &str| check_conf(&format!("match m {{ {inside} }}"), message);
    for good in [
        "status 200;",
        "status ! 301-303 307;",
        "header Content-Type = text/html; header Connection !~ close; header Host; header ! X-Accel-Redirect;",
        "body !~ \"not (well|here)\"; require $upstream_status $upstream_http_x;",
    ] {
        refused(good, "");
    }
    refused("status;", "invalid number of arguments in \"status\" directive");
    refused("status !;", "invalid number of arguments in \"status\" directive");
    refused("status 99;", "invalid status \"99\"");
    refused("status 200; status 201;", "\"status\" directive is duplicate");
    refused("header A b;", "invalid number of arguments in \"header\" directive");
    refused("header A < b;", "invalid parameter \"<\"");
    refused("header ! A = b;", "invalid number of arguments in \"header\" directive");
    refused("body = a;", "invalid parameter \"=\"");
    refused("body ~ a; body ~ b;", "\"body\" directive is duplicate");
    refused("require a;", "invalid variable name \"a\"");
    refused("color red;", "unknown test \"color\" in \"match\"");
    check_conf("match m { } match m { }", "duplicate match \"m\"");
}

//! What is told of a configuration, and how a path is taken apart.

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

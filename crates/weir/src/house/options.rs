//! The options of a build that `-V` names: nginx's modules as they are in this one or not.
//!
//! Scripts and test suites read there what they may write into a configuration, so it follows from the directives
//! that are declared.

use std::collections::HashSet;

/// What nginx leaves out unless told otherwise, each with a directive that only it has.
const OPTIONAL: &[(&str, &str)] = &[
    ("--with-http_ssl_module", "ssl_certificate"),
    ("--with-http_v2_module", "http2"),
    ("--with-http_v3_module", "http3"),
    ("--with-http_realip_module", "set_real_ip_from"),
    ("--with-http_addition_module", "add_after_body"),
    ("--with-http_sub_module", "sub_filter"),
    ("--with-http_dav_module", "dav_methods"),
    ("--with-http_flv_module", "flv"),
    ("--with-http_mp4_module", "mp4"),
    ("--with-http_gunzip_module", "gunzip"),
    ("--with-http_gzip_static_module", "gzip_static"),
    ("--with-http_auth_request_module", "auth_request"),
    ("--with-http_random_index_module", "random_index"),
    ("--with-http_secure_link_module", "secure_link"),
    ("--with-http_slice_module", "slice"),
    ("--with-http_stub_status_module", "stub_status"),
];

/// What nginx has unless told otherwise, each with a directive that only it has.
const USUAL: &[(&str, &str)] = &[
    ("--without-http_charset_module", "charset_map"),
    ("--without-http_gzip_module", "gzip"),
    ("--without-http_ssi_module", "ssi"),
    ("--without-http_userid_module", "userid"),
    ("--without-http_access_module", "allow"),
    ("--without-http_auth_basic_module", "auth_basic"),
    ("--without-http_mirror_module", "mirror"),
    ("--without-http_autoindex_module", "autoindex"),
    ("--without-http_geo_module", "geo"),
    ("--without-http_map_module", "map"),
    ("--without-http_split_clients_module", "split_clients"),
    ("--without-http_referer_module", "valid_referers"),
    ("--without-http_rewrite_module", "rewrite"),
    ("--without-http_proxy_module", "proxy_pass"),
    ("--without-http_tunnel_module", "tunnel_pass"),
    ("--without-http_fastcgi_module", "fastcgi_pass"),
    ("--without-http_uwsgi_module", "uwsgi_pass"),
    ("--without-http_scgi_module", "scgi_pass"),
    ("--without-http_grpc_module", "grpc_pass"),
    ("--without-http_memcached_module", "memcached_pass"),
    ("--without-http_limit_conn_module", "limit_conn"),
    ("--without-http_limit_req_module", "limit_req"),
    ("--without-http_empty_gif_module", "empty_gif"),
    ("--without-http_browser_module", "modern_browser"),
    ("--without-http_upstream_hash_module", "hash"),
    ("--without-http_upstream_ip_hash_module", "ip_hash"),
    ("--without-http_upstream_least_conn_module", "least_conn"),
    ("--without-http_upstream_least_time_module", "least_time"),
    ("--without-http_upstream_random_module", "random"),
    ("--without-http_upstream_keepalive_module", "keepalive"),
    ("--without-http_upstream_zone_module", "zone"),
    ("--without-http_upstream_sticky_module", "sticky"),
];

/// The options of a build that has these directives.
pub fn of(declared: &HashSet<&str>) -> Vec<&'static str> {
    let with = OPTIONAL.iter().filter(|(_, directive)| declared.contains(directive));
    let without = USUAL.iter().filter(|(_, directive)| !declared.contains(directive));
    ["--with-debug", "--with-threads"]
        .into_iter()
        .chain(with.chain(without).map(|(option, _)| *option))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_directive_is_one_of_nginx() {
        for (option, directive) in OPTIONAL.iter().chain(USUAL) {
            assert!(weir_ir::table::find(directive).next().is_some(), "{option}: {directive}");
        }
    }

    #[test]
    fn options_follow_from_directives() {
        let usual: HashSet<&str> = USUAL.iter().map(|(_, directive)| *directive).collect();
        assert_eq!(of(&usual), ["--with-debug", "--with-threads"]);
        let mut other = usual.clone();
        other.remove("map");
        other.insert("http2");
        let others = ["--with-debug", "--with-threads", "--with-http_v2_module", "--without-http_map_module"];
        assert_eq!(of(&other), others);
    }
}

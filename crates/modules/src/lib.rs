//! Every nginx module, one file or folder each, and the order in which they are asked.

mod crypt;
mod des;
pub mod http;
#[cfg(test)]
mod testing;
pub mod upstream;

use weir_engine::contract::AnyInstall;

/// The modules of the `http` block, each phase and the chain of filters in this order, which is nginx's: there handlers and
/// filters run from the end of `auto/modules` to its beginning.
pub const HTTP: &[&dyn AnyInstall] = &[
    // Has no handlers; as in nginx a missing certificate is told before what later modules find.
    &http::Ssl,
    // Have no handlers either.
    &http::V2,
    &http::ExtendedConnect,
    &http::V3,
    // The client's address, before anything asks for it.
    &http::RealIp,
    // Its filter is the first, since it puts together what all others work on; its variable may be wanted by `set`.
    &http::Slice,
    // Before all else that defines variables: a `map` or `geo` of the same name takes precedence over `set`.
    &http::Rewrite,
    &http::Map,
    &http::Geo,
    &http::SplitClients,
    &http::Referer,
    &http::SecureLink,
    // Has variables only.
    &http::Browser,
    // Limits, requests before connections as in nginx, both before anything costly.
    &http::LimitReq,
    &http::LimitConn,
    // Behind the limits, so that what it refuses counts there; before anybody is asked for a password.
    &http::WebsocketOrigins,
    // Access: cheap rules before files of users, and those before asking somebody else.
    &http::Access,
    &http::AuthBasic,
    &http::AuthRequest,
    // Each takes its location whole, so their places among the content handlers do not matter.
    &http::Proxy,
    &http::FastCgi,
    &http::Tunnel,
    // It asks as the location's requests are passed on.
    &http::UpstreamHc,
    &http::temp_paths::Uwsgi,
    &http::temp_paths::Scgi,
    &http::StubStatus,
    &http::EmptyGif,
    &http::Flv,
    &http::Mp4,
    // The content phase: a directory's index before the listing of it, files last.
    &http::TryFiles,
    &http::Mirror,
    &http::RandomIndex,
    &http::Index,
    &http::Autoindex,
    // Only what no listing and no index is for.
    &http::Dav,
    // What lies there compressed already comes before the file itself.
    &http::GzipStatic,
    &http::Precompressed,
    &http::Static,
    // The first filter: it judges the response as its maker sent it, before any other filter changes it.
    &http::NotModified,
    // Fields of the configuration, once it is settled whether there is anything to send.
    &http::Headers,
    // Its cookie stands behind them.
    &http::UserId,
    // For clients that do not take gzip, and for the filters below, which need plain text.
    &http::Gunzip,
    // What other locations add to the body, before anything works on the whole of it.
    &http::Addition,
    // Texts are looked for as the upstream wrote them, so before they are recoded.
    &http::Sub,
    &http::Charset,
    // What its pages include has been through the filters above on its own.
    &http::Ssi,
    // Compression of whatever the filters before made of the body. Each has its directives; the last one chooses among
    // them, by what the client likes best.
    &http::Brotli,
    &http::Zstd,
    &http::Gzip,
    &http::Compress,
    // What depended on the client is told behind all that asked for it.
    &http::GzipOk,
    // The last filter: it cuts ranges out of the body that all others have agreed on.
    &http::RangeFilter,
    // After everything: it runs in the log phase.
    &http::Log,
];

/// The modules of the `upstream` context: balancers first, then what wraps them.
pub const UPSTREAM: &[&dyn AnyInstall] = &[
    // Balancers, of which a block has one.
    &upstream::Hash,
    &upstream::IpHash,
    &upstream::LeastConn,
    &upstream::LeastTime,
    &upstream::Random,
    // It asks the balancer that it stands before.
    &upstream::Sticky,
    &upstream::Zone,
    // After every balancer: it keeps the connections to whatever peer they picked.
    &upstream::keepalive::Keepalive,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The order in which nginx runs them.
    const NGINX: &[&str] = &[
        // The first filter; where it stands among handlers does not matter.
        "http_slice_filter",
        "http_limit_req",
        "http_limit_conn",
        "http_access",
        "http_auth_basic",
        "http_auth_request",
        "http_try_files",
        "http_mirror",
        "http_random_index",
        "http_index",
        "http_autoindex",
        "http_dav",
        "http_gzip_static",
        "http_static",
        "http_not_modified_filter",
        "http_headers_filter",
        "http_userid_filter",
        "http_gunzip_filter",
        "http_addition_filter",
        "http_sub_filter",
        "http_image_filter",
        "http_xslt_filter",
        "http_charset_filter",
        "http_ssi_filter",
        // Where those who add these two put them.
        "http_brotli",
        "http_zstd",
        "http_gzip_filter",
        "http_range_filter",
        "http_log",
    ];

    #[test]
    fn handlers_and_filters_run_in_nginxs_order() {
        let place = |name: &&str| NGINX.iter().position(|known| known == name);
        let places: Vec<_> = HTTP.iter().filter_map(|module| place(&module.name())).collect();
        assert!(places.is_sorted(), "{:?}", places.iter().map(|at| NGINX[*at]).collect::<Vec<_>>());
        // None of them is missing here for its name alone.
        assert!(places.len() > 20, "{}", places.len());
    }
}

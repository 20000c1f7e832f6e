//! The core's settings at one level with every default filled in, as requests read them.

use std::collections::HashMap;
use std::sync::Arc;

use weir_ir::http::core::{
    Alias, BodyInFile, Core, IfModifiedSince, KeepaliveDisable, LingeringClose, Satisfy, ServerTokens,
    Symlinks as IrSymlinks,
};
use weir_ir::program::PathSpec;

use crate::generation::Build;
use crate::http::Template;
use crate::http1;
use crate::open_files::OpenFiles;
use crate::resolver::Resolver;

/// Settings of a level. Times are milliseconds, sizes are bytes.
pub struct CoreSettings {
    pub limits: Arc<http1::Limits>,
    /// Files stay open.
    pub open_files: Option<OpenFiles>,
    pub client_header_timeout: u64,
    pub client_body_timeout: u64,
    pub client_max_body_size: u64,
    pub client_body_buffer_size: u64,
    pub client_body_temp_path: PathSpec,
    pub client_body_in_file_only: BodyInFile,
    pub send_timeout: u64,
    pub keepalive_timeout: u64,
    /// Seconds in the `Keep-Alive` header; 0 leaves it out.
    pub keepalive_header: u64,
    pub keepalive_min_timeout: u64,
    pub keepalive_time: u64,
    pub keepalive_requests: u64,
    pub keepalive_disable: KeepaliveDisable,
    pub lingering_close: LingeringClose,
    pub lingering_time: u64,
    pub lingering_timeout: u64,
    pub reset_timedout_connection: bool,
    pub tcp_nopush: bool,
    pub tcp_nodelay: bool,
    pub sendfile: bool,
    /// Sizes that may differ from request to request.
    pub limit_rate: Option<Template>,
    pub limit_rate_after: Option<Template>,
    pub satisfy: Satisfy,
    pub auth_delay: u64,
    pub internal: bool,
    pub absolute_redirect: bool,
    pub server_name_in_redirect: bool,
    pub port_in_redirect: bool,
    pub msie_padding: bool,
    pub msie_refresh: bool,
    pub subrequest_output_buffer_size: u64,
    pub log_not_found: bool,
    pub log_subrequest: bool,
    pub recursive_error_pages: bool,
    pub server_tokens: ServerTokens,
    pub if_modified_since: IfModifiedSince,
    pub early_hints: Vec<Template>,
    pub post_action: Option<Box<[u8]>>,
    pub max_ranges: Option<u64>,
    pub chunked_transfer_encoding: bool,
    pub etag: bool,
    /// `disable_symlinks`; none where all are followed.
    pub symlinks: Option<Symlinks>,
    /// Names are asked of it at run time.
    pub resolver: Option<Arc<Resolver>>,
    /// 0 is no bound.
    pub resolver_timeout: u64,
    pub error_pages: Vec<ErrorPage>,
    /// [`Exchange::root`](crate::http::Exchange::root) is what it comes to.
    pub(crate) root: Template,
    /// Where that is, if it turns out not to be absolute.
    pub(crate) root_below: Option<Arc<str>>,
    /// `root` is an `alias`.
    pub alias: Option<Alias>,
    pub types: Arc<HashMap<Box<[u8]>, Box<[u8]>>>,
    pub default_type: Box<[u8]>,
    /// The first name of the server, `$server_name`.
    pub server_name: Box<[u8]>,
    pub limit_except: Option<(Vec<Box<[u8]>>, weir_ir::LocationId)>,
}

/// Symbolic links are not followed.
pub struct Symlinks {
    /// But for those whose owner has what is behind them.
    pub same_owner: bool,
    /// Nor within a path that begins so.
    pub from: Option<Template>,
}

/// `error_page`, ready.
pub struct ErrorPage {
    pub code: u16,
    pub overwrite: Option<u16>,
    pub target: Template,
    pub args: Vec<u8>,
}

impl CoreSettings {
    pub(crate) fn compile(core: &Core, build: &mut Build<'_>) -> Self {
        let (large_buffers, large_buffer) = core.large_client_header_buffers.or((4, 8192));
        let root = core.root.get();
        Self {
            symlinks: core.disable_symlinks.get().and_then(|(symlinks, from)| match symlinks {
                IrSymlinks::Followed => None,
                IrSymlinks::Refused | IrSymlinks::OfOwner => Some(Symlinks {
                    same_owner: *symlinks == IrSymlinks::OfOwner,
                    from: from.as_ref().map(|from| build.template(from)),
                }),
            }),
            resolver: core.resolver.get().map(|resolver| build.resolver(resolver)),
            resolver_timeout: core.resolver_timeout.or(30_000),
            limits: Arc::new(http1::Limits {
                header_buffer: core.client_header_buffer_size.or(1024) as usize,
                large_buffers: large_buffers as usize,
                large_buffer: large_buffer as usize,
                max_headers: core.max_headers.or(1000) as usize,
                merge_slashes: core.merge_slashes.or(true),
                ignore_invalid_headers: core.ignore_invalid_headers.or(true),
                underscores_in_headers: core.underscores_in_headers.or(false),
            }),
            open_files: core.open_file_cache.get().and_then(Option::as_ref).map(|cache| OpenFiles {
                cache: build.open_files(cache),
                valid: core.open_file_cache_valid.or(60) * 1000,
                min_uses: core.open_file_cache_min_uses.or(1),
                errors: core.open_file_cache_errors.or(false),
            }),
            client_header_timeout: core.client_header_timeout.or(60_000),
            client_body_timeout: core.client_body_timeout.or(60_000),
            client_max_body_size: core.client_max_body_size.or(1 << 20),
            // Two pages, as most machines have them.
            client_body_buffer_size: core.client_body_buffer_size.or(8 << 10),
            client_body_temp_path: core.client_body_temp_path.or(PathSpec {
                // Only the `http` level itself has none.
                path: "/tmp".into(),
                levels: [0; 3],
                position: None,
            }),
            client_body_in_file_only: core.client_body_in_file_only.or(BodyInFile::Off),
            send_timeout: core.send_timeout.or(60_000),
            keepalive_timeout: core.keepalive_timeout.or(75_000),
            keepalive_header: core.keepalive_header.or(0),
            keepalive_min_timeout: core.keepalive_min_timeout.or(0),
            keepalive_time: core.keepalive_time.or(3_600_000),
            keepalive_requests: core.keepalive_requests.or(1000),
            keepalive_disable: core
                .keepalive_disable
                .or(KeepaliveDisable { msie6: true, ..KeepaliveDisable::default() }),
            lingering_close: core.lingering_close.or(LingeringClose::On),
            lingering_time: core.lingering_time.or(30_000),
            lingering_timeout: core.lingering_timeout.or(5_000),
            reset_timedout_connection: core.reset_timedout_connection.or(false),
            tcp_nopush: core.tcp_nopush.or(false),
            tcp_nodelay: core.tcp_nodelay.or(true),
            sendfile: core.sendfile.or(false),
            limit_rate: core.limit_rate.get().map(|rate| build.template(rate)),
            limit_rate_after: core.limit_rate_after.get().map(|size| build.template(size)),
            auth_delay: core.auth_delay.or(0),
            satisfy: core.satisfy.or(Satisfy::All),
            internal: core.internal.or(false),
            absolute_redirect: core.absolute_redirect.or(true),
            server_name_in_redirect: core.server_name_in_redirect.or(false),
            port_in_redirect: core.port_in_redirect.or(true),
            msie_padding: core.msie_padding.or(true),
            msie_refresh: core.msie_refresh.or(false),
            subrequest_output_buffer_size: core.subrequest_output_buffer_size.or(4096),
            log_not_found: core.log_not_found.or(true),
            log_subrequest: core.log_subrequest.or(false),
            recursive_error_pages: core.recursive_error_pages.or(false),
            server_tokens: core.server_tokens.or(ServerTokens::On),
            if_modified_since: core.if_modified_since.or(IfModifiedSince::Exact),
            early_hints: core.early_hints.iter().map(|condition| build.template(condition)).collect(),
            post_action: core.post_action.get().cloned(),
            max_ranges: core.max_ranges.get().copied(),
            chunked_transfer_encoding: core.chunked_transfer_encoding.or(true),
            etag: core.etag.or(true),
            error_pages: core
                .error_pages
                .iter()
                .map(|page| ErrorPage {
                    code: page.code,
                    overwrite: page.overwrite,
                    target: build.template(&page.target),
                    args: page.args.clone(),
                })
                .collect(),
            root: match root {
                Some(root) => build.template(&root.path),
                // Only the `http` level itself has none.
                None => Template::default(),
            },
            root_below: root.and_then(|r| r.below.clone()),
            alias: root.and_then(|r| r.alias),
            types: types(core),
            default_type: core.default_type.get().map_or(b"text/plain"[..].into(), Clone::clone),
            server_name: core
                .server_names
                .first()
                // `.example.com` is known by the name that it begins below.
                .map_or_else(Box::default, |n| n.shown().trim_start_matches('.').as_bytes().into()),
            limit_except: core.limit_except.clone(),
        }
    }
}

fn types(core: &Core) -> Arc<HashMap<Box<[u8]>, Box<[u8]>>> {
    let Some(types) = core.types.get() else {
        let defaults = [("html", "text/html"), ("gif", "image/gif"), ("jpg", "image/jpeg")];
        return Arc::new(defaults.map(|(e, t)| (e.as_bytes().into(), t.as_bytes().into())).into());
    };
    Arc::new(types.iter().cloned().collect())
}

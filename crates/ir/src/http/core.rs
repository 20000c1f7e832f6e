//! `ngx_http_core_module`: the settings that the spine itself executes.

use std::sync::Arc;

use crate::contract::{Conf, Contexts, Directive, Module, Once, Setting, Takes};
use crate::http::listen::Listen;
use crate::http::resolver::Resolver;
use crate::http::server_name::ServerName;
use crate::lowering::{Call, Fault, Merge};
use crate::program::{LocationId, LocationMatch, PathSpec, ScopeKind};
use crate::regex::Regex;
use crate::template::Template;
use crate::value;

const HTTP: Contexts = Contexts::HTTP;
const HTTP_SERVER: Contexts = Contexts::HTTP_SERVER;
const SCOPES: Contexts = Contexts::SCOPES;
const SCOPES_IF: Contexts = SCOPES.or(Contexts::LOCATION_IF);

const HASH: &str = "weir's tables size themselves";
const POOL: &str = "weir has no memory pools to size";

pub struct HttpCore;

type D = Directive<HttpCore>;

impl Module for HttpCore {
    const NAME: &'static str = "http_core";
    type Main = ();
    type Scope = Core;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("variables_hash_max_size", HTTP, Takes::ONE, |s, c| s.once.number(c)).accepted(HASH),
        D::scope("variables_hash_bucket_size", HTTP, Takes::ONE, |s, c| s.once.number(c)).accepted(HASH),
        D::scope("server_names_hash_max_size", HTTP, Takes::ONE, |s, c| s.once.number(c)).accepted(HASH),
        D::scope("server_names_hash_bucket_size", HTTP, Takes::ONE, |s, c| s.once.number(c)).accepted(HASH),
        D::scope("types_hash_max_size", SCOPES, Takes::ONE, |s, c| s.once.number(c)).accepted(HASH),
        D::scope("types_hash_bucket_size", SCOPES, Takes::ONE, |s, c| s.once.number(c)).accepted(HASH),
        D::scope("connection_pool_size", HTTP_SERVER, Takes::ONE, |s, c| {
            s.connection_pool_size.put_with(c, pool_size)
        })
        .accepted(POOL),
        D::scope("request_pool_size", HTTP_SERVER, Takes::ONE, |s, c| s.once.read(c, pool_size))
            .accepted(POOL),
        D::scope("server", HTTP, Takes::BLOCK, server),
        D::scope("location", Contexts::SERVER.or(Contexts::LOCATION), Takes::ONE_TWO.with_block(), location),
        D::scope("limit_except", Contexts::LOCATION, Takes::ONE_MORE.with_block(), limit_except),
        D::scope("listen", Contexts::SERVER, Takes::ONE_MORE, crate::http::listen::read),
        D::scope("server_name", Contexts::SERVER, Takes::ONE_MORE, crate::http::server_name::read),
        D::scope("client_header_timeout", HTTP_SERVER, Takes::ONE, |s, c| s.client_header_timeout.msec(c)),
        D::scope("client_header_buffer_size", HTTP_SERVER, Takes::ONE, |s, c| {
            s.client_header_buffer_size.size(c)
        }),
        D::scope("large_client_header_buffers", HTTP_SERVER, Takes::TWO, |s, c| {
            s.large_client_header_buffers.put_with(c, |c| c.buffers())
        }),
        D::scope("max_headers", HTTP_SERVER, Takes::ONE, |s, c| s.max_headers.number(c)),
        D::scope("ignore_invalid_headers", HTTP_SERVER, Takes::FLAG, |s, c| s.ignore_invalid_headers.flag(c)),
        D::scope("merge_slashes", HTTP_SERVER, Takes::FLAG, |s, c| s.merge_slashes.flag(c)),
        D::scope("underscores_in_headers", HTTP_SERVER, Takes::FLAG, |s, c| s.underscores_in_headers.flag(c)),
        D::scope("types", SCOPES, Takes::BLOCK, types),
        D::scope("default_type", SCOPES, Takes::ONE, |s, c| {
            s.default_type.put_with(c, |c| Ok(c.arg(0).into()))
        }),
        D::scope("root", SCOPES_IF, Takes::ONE, root),
        D::scope("alias", Contexts::LOCATION, Takes::ONE, root),
        D::scope("client_max_body_size", SCOPES, Takes::ONE, |s, c| s.client_max_body_size.offset(c)),
        D::scope("client_body_buffer_size", SCOPES, Takes::ONE, |s, c| s.client_body_buffer_size.size(c)),
        D::scope("client_body_timeout", SCOPES, Takes::ONE, |s, c| s.client_body_timeout.msec(c)),
        D::scope("client_body_temp_path", SCOPES, Takes::ONE_TO_FOUR, |s, c| {
            s.client_body_temp_path.put_with(c, temp_path)
        }),
        D::scope("client_body_in_file_only", SCOPES, Takes::ONE, |s, c| {
            let words = [("off", BodyInFile::Off), ("on", BodyInFile::On), ("clean", BodyInFile::Clean)];
            s.client_body_in_file_only.one_of(c, &words)
        }),
        D::scope("client_body_in_single_buffer", SCOPES, Takes::FLAG, |s, c| s.once.flag(c))
            .accepted("a body in memory is one buffer"),
        D::scope("limit_rate", SCOPES_IF, Takes::ONE, |s, c| s.limit_rate.put_with(c, size_template)),
        D::scope("limit_rate_after", SCOPES_IF, Takes::ONE, |s, c| {
            s.limit_rate_after.put_with(c, size_template)
        }),
        D::scope("sendfile", SCOPES_IF, Takes::FLAG, |s, c| s.sendfile.flag(c)),
        D::scope("sendfile_max_chunk", SCOPES, Takes::ONE, |s, c| s.once.size(c))
            .accepted("a connection gives way after a bounded amount of work"),
        D::scope("aio", SCOPES, Takes::ONE, aio)
            .accepted("what a disk has to be waited for is left to other threads"),
        D::scope("aio_write", SCOPES, Takes::FLAG, |s, c| s.once.flag(c))
            .accepted("what a disk has to be waited for is left to other threads"),
        D::scope("read_ahead", SCOPES, Takes::ONE, |s, c| s.once.size(c))
            .accepted("the kernel reads ahead by itself"),
        D::scope("directio", SCOPES, Takes::ONE, directio).accepted("files go out through the page cache"),
        D::scope("directio_alignment", SCOPES, Takes::ONE, |s, c| s.once.offset(c))
            .accepted("files go out through the page cache"),
        D::scope("output_buffers", SCOPES, Takes::TWO, |s, c| s.once.buffers(c))
            .accepted("buffers belong to a thread, not to a request"),
        D::scope("tcp_nopush", SCOPES, Takes::FLAG, |s, c| s.tcp_nopush.flag(c)),
        D::scope("tcp_nodelay", SCOPES, Takes::FLAG, |s, c| s.tcp_nodelay.flag(c)),
        D::scope("send_timeout", SCOPES, Takes::ONE, |s, c| s.send_timeout.msec(c)),
        D::scope("send_lowat", SCOPES, Takes::ONE, |s, c| {
            s.once.size(c)?;
            c.warn("\"send_lowat\" is not supported, ignored");
            Ok(())
        })
        .accepted("it has no effect on Linux"),
        D::scope("postpone_output", SCOPES, Takes::ONE, |s, c| s.once.size(c))
            .accepted("small pieces of a response are joined before they are sent"),
        D::scope("keepalive_time", SCOPES, Takes::ONE, |s, c| s.keepalive_time.msec(c)),
        D::scope("keepalive_timeout", SCOPES, Takes::ONE_TWO, keepalive_timeout),
        D::scope("keepalive_min_timeout", SCOPES, Takes::ONE, |s, c| s.keepalive_min_timeout.msec(c)),
        D::scope("keepalive_requests", SCOPES, Takes::ONE, |s, c| s.keepalive_requests.number(c)),
        D::scope("keepalive_disable", SCOPES, Takes::ONE_TWO, keepalive_disable),
        D::scope("satisfy", SCOPES, Takes::ONE, |s, c| {
            s.satisfy.one_of(c, &[("all", Satisfy::All), ("any", Satisfy::Any)])
        }),
        D::scope("auth_delay", SCOPES, Takes::ONE, |s, c| s.auth_delay.msec(c)),
        D::scope("internal", Contexts::LOCATION, Takes::NONE, |s, c| s.internal.put(c, true)),
        D::scope("lingering_close", SCOPES, Takes::ONE, |s, c| {
            let words = [
                ("off", LingeringClose::Off),
                ("on", LingeringClose::On),
                ("always", LingeringClose::Always),
            ];
            s.lingering_close.one_of(c, &words)
        }),
        D::scope("lingering_time", SCOPES, Takes::ONE, |s, c| s.lingering_time.msec(c)),
        D::scope("lingering_timeout", SCOPES, Takes::ONE, |s, c| s.lingering_timeout.msec(c)),
        D::scope("reset_timedout_connection", SCOPES, Takes::FLAG, |s, c| {
            s.reset_timedout_connection.flag(c)
        }),
        D::scope("absolute_redirect", SCOPES, Takes::FLAG, |s, c| s.absolute_redirect.flag(c)),
        D::scope("server_name_in_redirect", SCOPES, Takes::FLAG, |s, c| s.server_name_in_redirect.flag(c)),
        D::scope("port_in_redirect", SCOPES, Takes::FLAG, |s, c| s.port_in_redirect.flag(c)),
        D::scope("msie_padding", SCOPES, Takes::FLAG, |s, c| s.msie_padding.flag(c)),
        D::scope("msie_refresh", SCOPES, Takes::FLAG, |s, c| s.msie_refresh.flag(c)),
        D::scope("resolver", SCOPES, Takes::ONE_MORE, |s, c| {
            s.resolver.put_with(c, |c| crate::http::resolver::read(c).map(Arc::new))
        }),
        D::scope("resolver_timeout", SCOPES, Takes::ONE, |s, c| s.resolver_timeout.msec(c)),
        D::scope("disable_symlinks", SCOPES, Takes::ONE_TWO, disable_symlinks),
        D::scope("open_file_cache", SCOPES, Takes::ONE_TWO, open_file_cache),
        D::scope("open_file_cache_valid", SCOPES, Takes::ONE, |s, c| s.open_file_cache_valid.sec(c)),
        D::scope("open_file_cache_min_uses", SCOPES, Takes::ONE, |s, c| s.open_file_cache_min_uses.number(c)),
        D::scope("open_file_cache_errors", SCOPES, Takes::FLAG, |s, c| s.open_file_cache_errors.flag(c)),
        D::scope("open_file_cache_events", SCOPES, Takes::FLAG, |s, c| s.once.flag(c))
            .accepted("Linux has no such events"),
        D::scope("subrequest_output_buffer_size", SCOPES, Takes::ONE, |s, c| {
            s.subrequest_output_buffer_size.size(c)
        }),
        D::scope("log_not_found", SCOPES, Takes::FLAG, |s, c| s.log_not_found.flag(c)),
        D::scope("log_subrequest", SCOPES, Takes::FLAG, |s, c| s.log_subrequest.flag(c)),
        D::scope("recursive_error_pages", SCOPES, Takes::FLAG, |s, c| s.recursive_error_pages.flag(c)),
        D::scope("server_tokens", SCOPES, Takes::ONE, |s, c| {
            let words =
                [("off", ServerTokens::Off), ("on", ServerTokens::On), ("build", ServerTokens::Build)];
            s.server_tokens.one_of(c, &words)
        }),
        D::scope("if_modified_since", SCOPES, Takes::ONE, |s, c| {
            let words = [
                ("off", IfModifiedSince::Off),
                ("exact", IfModifiedSince::Exact),
                ("before", IfModifiedSince::Before),
            ];
            s.if_modified_since.one_of(c, &words)
        }),
        D::scope("early_hints", SCOPES, Takes::ONE_MORE, |s, c| predicates(&mut s.early_hints, c)),
        D::scope("client_body_early_read", HTTP_SERVER, Takes::ONE_MORE, |s, c| {
            predicates(&mut s.early_read, c)
        }),
        D::scope("post_action", SCOPES_IF, Takes::ONE, |s, c| {
            s.post_action.put_with(c, |c| Ok(c.arg(0).into()))
        }),
        D::scope("max_ranges", SCOPES, Takes::ONE, |s, c| s.max_ranges.number(c)),
        D::scope("chunked_transfer_encoding", SCOPES, Takes::FLAG, |s, c| {
            s.chunked_transfer_encoding.flag(c)
        }),
        D::scope("etag", SCOPES, Takes::FLAG, |s, c| s.etag.flag(c)),
        D::scope("error_page", SCOPES_IF, Takes::TWO_MORE, error_page),
        D::scope("error_log", SCOPES, Takes::ONE_MORE, |s, c| {
            let log = crate::core::error_log::read(c)?;
            s.error_logs.push(log);
            Ok(())
        }),
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Satisfy {
    All,
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LingeringClose {
    Off,
    On,
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfModifiedSince {
    Off,
    Exact,
    Before,
}

/// Which symbolic links lead on to files: `disable_symlinks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symlinks {
    Followed,
    Refused,
    /// Those whose owner has what is behind them.
    OfOwner,
}

/// What responses say of the server: `server_tokens`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerTokens {
    On,
    Off,
    Build,
}

/// `client_body_in_file_only`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyInFile {
    Off,
    /// Every body, and the file stays.
    On,
    /// Every body, and the file goes with the request.
    Clean,
}

/// `root` or `alias`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    pub path: Template,
    /// What begins with a variable may turn out to be relative, or empty: then it is below this folder.
    pub below: Option<Arc<str>>,
    /// It is an `alias`.
    pub alias: Option<Alias>,
}

/// What of a request's path an `alias` takes the place of; levels below inherit it as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alias {
    /// So many bytes: the name of its location.
    Prefix(usize),
    /// Everything: the alias of a regex location is the whole file name.
    Whole,
}

/// `open_file_cache`.
#[derive(Debug)]
pub struct OpenFileCache {
    pub max: u64,
    /// Seconds.
    pub inactive: u64,
}

/// One `error_page`: what to do instead of the plain page of some codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorPage {
    pub code: u16,
    /// `=code`: the code of the answer; `Some(0)` is `=`, the code of whatever answers.
    pub overwrite: Option<u16>,
    pub target: Template,
    /// The arguments after `?` in a literal target.
    pub args: Vec<u8>,
}

/// Which browsers are not kept alive, `keepalive_disable`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeepaliveDisable {
    /// Says nothing beside another.
    pub none: bool,
    pub msie6: bool,
    pub safari: bool,
}

/// The core's settings at one level.
#[derive(Clone, Debug, Default)]
pub struct Core {
    /// Of the server itself, not inherited.
    pub listens: Vec<Listen>,
    /// Of the server itself, not inherited.
    pub server_names: Vec<ServerName>,
    /// Methods that a `limit_except` block spares, and the block.
    pub limit_except: Option<(Vec<Box<[u8]>>, LocationId)>,
    /// Milliseconds, as are all times here.
    pub client_header_timeout: Setting<u64>,
    pub client_header_buffer_size: Setting<u64>,
    pub large_client_header_buffers: Setting<(u64, u64)>,
    /// Bytes; only nginx's rule about it and the buffers above is left of it.
    connection_pool_size: Setting<u64>,
    pub max_headers: Setting<u64>,
    pub ignore_invalid_headers: Setting<bool>,
    pub merge_slashes: Setting<bool>,
    pub underscores_in_headers: Setting<bool>,
    pub types: Setting<Arc<Vec<(Box<[u8]>, Box<[u8]>)>>>,
    pub default_type: Setting<Box<[u8]>>,
    pub root: Setting<Root>,
    pub client_max_body_size: Setting<u64>,
    pub client_body_buffer_size: Setting<u64>,
    pub client_body_timeout: Setting<u64>,
    pub client_body_temp_path: Setting<PathSpec>,
    pub client_body_in_file_only: Setting<BodyInFile>,
    pub limit_rate: Setting<Template>,
    pub limit_rate_after: Setting<Template>,
    pub sendfile: Setting<bool>,
    /// The head of a response and the file behind it share packets.
    pub tcp_nopush: Setting<bool>,
    pub tcp_nodelay: Setting<bool>,
    pub send_timeout: Setting<u64>,
    pub keepalive_time: Setting<u64>,
    pub keepalive_timeout: Setting<u64>,
    /// Seconds told to the client in `Keep-Alive: timeout=`; 0 tells nothing.
    pub keepalive_header: Setting<u64>,
    pub keepalive_min_timeout: Setting<u64>,
    pub keepalive_requests: Setting<u64>,
    pub keepalive_disable: Setting<KeepaliveDisable>,
    pub satisfy: Setting<Satisfy>,
    pub auth_delay: Setting<u64>,
    /// Not inherited.
    pub internal: Setting<bool>,
    pub lingering_close: Setting<LingeringClose>,
    pub lingering_time: Setting<u64>,
    pub lingering_timeout: Setting<u64>,
    pub reset_timedout_connection: Setting<bool>,
    pub absolute_redirect: Setting<bool>,
    pub server_name_in_redirect: Setting<bool>,
    pub port_in_redirect: Setting<bool>,
    pub msie_padding: Setting<bool>,
    pub msie_refresh: Setting<bool>,
    pub subrequest_output_buffer_size: Setting<u64>,
    pub log_not_found: Setting<bool>,
    pub log_subrequest: Setting<bool>,
    pub recursive_error_pages: Setting<bool>,
    pub server_tokens: Setting<ServerTokens>,
    pub if_modified_since: Setting<IfModifiedSince>,
    /// Conditions on which what upstreams hint at goes on.
    pub early_hints: Vec<Template>,
    /// `client_body_early_read`
    pub early_read: Vec<Template>,
    /// `None` is `off`. All levels that inherit it have one cache.
    pub open_file_cache: Setting<Option<Arc<OpenFileCache>>>,
    /// Seconds.
    pub open_file_cache_valid: Setting<u64>,
    pub open_file_cache_min_uses: Setting<u64>,
    pub open_file_cache_errors: Setting<bool>,
    /// The path, or the named location, of what is done after a request.
    pub post_action: Setting<Box<[u8]>>,
    pub max_ranges: Setting<u64>,
    pub chunked_transfer_encoding: Setting<bool>,
    pub etag: Setting<bool>,
    /// With the part of paths that it is not about.
    pub disable_symlinks: Setting<(Symlinks, Option<Template>)>,
    pub resolver: Setting<Arc<Resolver>>,
    pub resolver_timeout: Setting<u64>,
    pub error_pages: Vec<ErrorPage>,
    pub error_logs: Vec<crate::core::error_log::ErrorLog>,
    once: Once,
}

impl Conf for Core {
    const EVERY_LEVEL: bool = true;

    fn inherit(&mut self, outer: &Self, merge: &mut Merge<'_>) -> Result<(), Fault> {
        macro_rules! settings {
            ($($field:ident),* $(,)?) => { $(self.$field.inherit(&outer.$field);)* };
        }
        settings!(
            open_file_cache,
            open_file_cache_valid,
            open_file_cache_min_uses,
            open_file_cache_errors,
            client_header_timeout,
            client_header_buffer_size,
            large_client_header_buffers,
            connection_pool_size,
            max_headers,
            ignore_invalid_headers,
            merge_slashes,
            underscores_in_headers,
            types,
            default_type,
            client_max_body_size,
            client_body_buffer_size,
            client_body_timeout,
            client_body_temp_path,
            client_body_in_file_only,
            limit_rate,
            limit_rate_after,
            sendfile,
            tcp_nopush,
            tcp_nodelay,
            send_timeout,
            keepalive_time,
            keepalive_timeout,
            keepalive_header,
            keepalive_min_timeout,
            keepalive_requests,
            keepalive_disable,
            satisfy,
            auth_delay,
            lingering_close,
            lingering_time,
            lingering_timeout,
            reset_timedout_connection,
            absolute_redirect,
            server_name_in_redirect,
            port_in_redirect,
            msie_padding,
            msie_refresh,
            subrequest_output_buffer_size,
            log_not_found,
            log_subrequest,
            recursive_error_pages,
            server_tokens,
            if_modified_since,
            post_action,
            max_ranges,
            chunked_transfer_encoding,
            etag,
            root,
            disable_symlinks,
            resolver,
            resolver_timeout,
        );
        if self.early_hints.is_empty() {
            self.early_hints.clone_from(&outer.early_hints);
        }
        if self.early_read.is_empty() {
            self.early_read.clone_from(&outer.early_read);
        }
        if self.error_pages.is_empty() {
            self.error_pages.clone_from(&outer.error_pages);
        }
        if self.error_logs.is_empty() {
            self.error_logs.clone_from(&outer.error_logs);
        }
        match merge.kind() {
            ScopeKind::Server if !self.root.is_set() => {
                let path = crate::lowering::absolute("html", &merge.prefixes().prefix);
                self.root.replace(Root {
                    path: Template::literal(path.as_bytes()),
                    below: None,
                    alias: None,
                });
            }
            // Blocks without a name of their own stay in the location that they stand in.
            ScopeKind::If | ScopeKind::LimitExcept => self.internal.inherit(&outer.internal),
            ScopeKind::Http | ScopeKind::Server | ScopeKind::Location(_) => {}
        }
        if matches!(merge.kind(), ScopeKind::Server)
            && self.large_client_header_buffers.or((4, 8192)).1 < self.connection_pool_size.or(512)
        {
            return Err(merge.fail(
                "the \"large_client_header_buffers\" size must be equal to or greater than \"connection_pool_size\"",
            ));
        }
        if !self.client_body_temp_path.is_set() {
            let spec = PathSpec {
                path: crate::lowering::absolute("client_body_temp", &merge.prefixes().state),
                levels: [0; 3],
                position: None,
            };
            merge.directory(spec.clone())?;
            self.client_body_temp_path.replace(spec);
        }
        Ok(())
    }
}

/// The size of a pool: room for nginx's own head of it, and aligned.
///
/// # Errors
/// It is neither.
pub fn pool_size(call: &mut Call<'_>) -> Result<u64, Fault> {
    const LEAST: u64 = 112;
    const ALIGNMENT: u64 = 16;
    let size = call.size()?;
    if size < LEAST {
        return Err(call.fail(format!("the pool size must be no less than {LEAST}")));
    }
    if size % ALIGNMENT != 0 {
        return Err(call.fail(format!("the pool size must be a multiple of {ALIGNMENT}")));
    }
    Ok(size)
}

/// Adds values of which one that is neither empty nor `0` is enough.
pub fn predicates(list: &mut Vec<Template>, call: &mut Call<'_>) -> Result<(), Fault> {
    for index in 0..call.args().len() {
        list.push(call.template(index)?);
    }
    Ok(())
}

fn server(_: &mut Core, call: &mut Call<'_>) -> Result<(), Fault> {
    let id = call.descend(ScopeKind::Server);
    call.http().servers.push(id);
    let mut core = std::mem::take(call.http().scope_mut(id).confs.get_mut::<HttpCore>());
    let mut result = Ok(());
    if core.listens.is_empty() {
        result = crate::http::listen::add_default(&mut core, id, call);
    }
    if core.server_names.is_empty() {
        core.server_names.push(ServerName::Exact("".into()));
    }
    *call.http().scope_mut(id).confs.get_mut::<HttpCore>() = core;
    result
}

fn location(_: &mut Core, call: &mut Call<'_>) -> Result<(), Fault> {
    let pattern = location_match(call)?;
    let parent = call.location();
    if let ScopeKind::Location(outer) = call.http().scope(parent).kind.clone() {
        nested(&outer, &pattern, call)?;
    }
    call.descend(ScopeKind::Location(pattern));
    Ok(())
}

fn location_match(call: &mut Call<'_>) -> Result<LocationMatch, Fault> {
    let first = call.arg(0);
    if call.args().len() == 2 {
        let name = call.arg(1);
        return match first {
            b"=" => Ok(LocationMatch::Exact(name.into())),
            b"^~" => Ok(LocationMatch::PrefixFinal(name.into())),
            b"~" => Ok(LocationMatch::Regex(Regex::compile(name, false, call)?)),
            b"~*" => Ok(LocationMatch::Regex(Regex::compile(name, true, call)?)),
            _ => Err(call.fail_at(0, "invalid location modifier")),
        };
    }
    // The modifier may be written without a space before the name.
    match first {
        [b'=', name @ ..] => Ok(LocationMatch::Exact(name.into())),
        [b'^', b'~', name @ ..] => Ok(LocationMatch::PrefixFinal(name.into())),
        [b'~', b'*', name @ ..] => Ok(LocationMatch::Regex(Regex::compile(name, true, call)?)),
        [b'~', name @ ..] => Ok(LocationMatch::Regex(Regex::compile(name, false, call)?)),
        [b'@', ..] => Ok(LocationMatch::Named(first.into())),
        _ => Ok(LocationMatch::Prefix(first.into())),
    }
}

fn nested(outer: &LocationMatch, inner: &LocationMatch, call: &Call<'_>) -> Result<(), Fault> {
    let (inside, around) = (inner.name(), outer.name());
    let both = |start: &str, between: &str| {
        Err(call.fail(
            [start.as_bytes(), b" \"", inside, b"\" ", between.as_bytes(), b" \"", around, b"\""].concat(),
        ))
    };
    match (outer, inner) {
        (LocationMatch::Exact(_), _) => both("location", "cannot be inside the exact location"),
        (LocationMatch::Named(_), _) => both("location", "cannot be inside the named location"),
        (_, LocationMatch::Named(_)) => {
            let message = [&b"named location \""[..], inside, b"\" can be on the server level only"].concat();
            Err(call.fail(message))
        }
        (_, LocationMatch::Regex(_)) => Ok(()),
        // Also inside of a regex, whose text nginx takes for a prefix.
        _ if inside.starts_with(around) => Ok(()),
        _ => both("location", "is outside location"),
    }
}

fn limit_except(core: &mut Core, call: &mut Call<'_>) -> Result<(), Fault> {
    if core.limit_except.is_some() {
        return Err(call.duplicate());
    }
    const METHODS: [&str; 14] = [
        "GET",
        "HEAD",
        "POST",
        "PUT",
        "DELETE",
        "MKCOL",
        "COPY",
        "MOVE",
        "OPTIONS",
        "PROPFIND",
        "PROPPATCH",
        "LOCK",
        "UNLOCK",
        "PATCH",
    ];
    let mut methods: Vec<Box<[u8]>> = vec![];
    for index in 0..call.args().len() {
        let method = call.arg(index).to_ascii_uppercase();
        if !METHODS.iter().any(|m| m.as_bytes() == method) {
            return Err(call.fail_at(index, "invalid method"));
        }
        // GET allows HEAD too.
        if method == b"GET" {
            methods.push(b"HEAD".as_slice().into());
        }
        methods.push(method.into());
    }
    let id = call.descend(ScopeKind::LimitExcept);
    core.limit_except = Some((methods, id));
    Ok(())
}

fn types(core: &mut Core, call: &mut Call<'_>) -> Result<(), Fault> {
    // A second block of one level adds to the first.
    let mut all = core.types.get().map(|t| t.to_vec()).unwrap_or_default();
    call.entries(|entry| {
        let content_type: Box<[u8]> = entry.name().into();
        for index in 0..entry.args().len() {
            let exten = entry.arg(index).to_ascii_lowercase();
            if let Some(known) = all.iter_mut().find(|(e, _): &&mut (Box<[u8]>, Box<[u8]>)| **e == *exten) {
                let message = [
                    &b"duplicate extension \""[..],
                    &exten,
                    b"\", content type: \"",
                    &content_type,
                    b"\", previous content type: \"",
                    &known.1,
                    b"\"",
                ];
                entry.warn(message.concat());
                known.1.clone_from(&content_type);
                continue;
            }
            all.push((exten.into(), content_type.clone()));
        }
        Ok(())
    })?;
    core.types.replace(Arc::new(all));
    Ok(())
}

fn root(core: &mut Core, call: &mut Call<'_>) -> Result<(), Fault> {
    let alias = call.name() == b"alias";
    if let Some(before) = core.root.get() {
        if before.alias.is_some() == alias {
            return Err(call.duplicate());
        }
        let (this, that) = if alias { ("alias", "root") } else { ("root", "alias") };
        return Err(call
            .fail(format!("\"{this}\" directive is duplicate, \"{that}\" directive was specified earlier")));
    }
    if alias {
        let level = call.location();
        if matches!(call.http().scope(level).kind, ScopeKind::Location(LocationMatch::Named(_))) {
            return Err(call.fail("the \"alias\" directive cannot be used inside the named location"));
        }
    }
    let text = call.arg(0);
    if text.windows(14).any(|w| w == b"$document_root") || text.windows(16).any(|w| w == b"${document_root}")
    {
        return Err(call.fail(format!(
            "the $document_root variable cannot be used in the \"{}\" directive",
            if alias { "alias" } else { "root" }
        )));
    }
    if text.windows(14).any(|w| w == b"$realpath_root") || text.windows(16).any(|w| w == b"${realpath_root}")
    {
        return Err(call.fail(format!(
            "the $realpath_root variable cannot be used in the \"{}\" directive",
            if alias { "alias" } else { "root" }
        )));
    }
    let mut text = if alias { text } else { text.strip_suffix(b"/").unwrap_or(text) }.to_vec();
    // What begins with a variable cannot be told from an absolute path before there is a request; anything else can.
    let below = text.starts_with(b"$").then(|| Arc::clone(&call.prefixes().prefix));
    if below.is_none() && !call.arg(0).starts_with(b"/") {
        text.splice(..0, call.prefixes().prefix.bytes());
    }
    let path = Template::parse(&text, call).map_err(|fault| call.under(fault, 0))?;
    let location = call.location();
    let alias = alias.then(|| match &call.http().scope(location).kind {
        ScopeKind::Location(LocationMatch::Regex(_)) => Alias::Whole,
        ScopeKind::Location(pattern) => Alias::Prefix(pattern.name().len()),
        _ => Alias::Prefix(0),
    });
    core.root.replace(Root { path, below, alias });
    Ok(())
}

/// A directory with the lengths of its levels of subdirectories.
///
/// # Errors
/// `invalid value` for a level that is no number, or for levels longer than a file's name there.
pub fn temp_path(call: &mut Call<'_>) -> Result<PathSpec, Fault> {
    let mut levels = [0u8; 3];
    let mut length = 0;
    let given = call.args().len() - 1;
    for (slot, index) in levels.iter_mut().zip(1..=given) {
        match value::number(call.arg(index)).and_then(|n| u8::try_from(n).ok()) {
            Some(level @ 1..) => *slot = level,
            Some(0) | None => return Err(call.under(call.refuse("invalid value"), index)),
        }
        length += usize::from(*slot) + 1;
    }
    if length > 10 + given {
        return Err(call.refuse("invalid value"));
    }
    let name = call.text(0);
    let path = crate::lowering::absolute(name.strip_suffix('/').unwrap_or(&name), &call.prefixes().prefix);
    let spec = PathSpec { path, levels, position: Some(call.position()) };
    call.directory(spec.clone())?;
    Ok(spec)
}

/// A size that may have variables in it.
///
/// # Errors
/// `invalid value` for one that is none.
pub fn size_template(call: &mut Call<'_>) -> Result<Template, Fault> {
    let template = call.template(0)?;
    match template.as_literal() {
        Some(text) if value::size(text).is_none() => Err(call.under(call.refuse("invalid value"), 0)),
        Some(_) | None => Ok(template),
    }
}

fn aio(core: &mut Core, call: &mut Call<'_>) -> Result<(), Fault> {
    core.once.read(call, |call| match call.arg(0) {
        b"on" | b"off" => Ok(()),
        b"threads" => call.thread_pool(b"default", false),
        [b't', b'h', b'r', b'e', b'a', b'd', b's', b'=', pool @ ..] => {
            if pool.contains(&b'$') {
                return Template::parse(pool, call).map(drop);
            }
            call.thread_pool(pool, false)
        }
        _ => Err(call.refuse("invalid value")),
    })
}

fn disable_symlinks(core: &mut Core, call: &mut Call<'_>) -> Result<(), Fault> {
    core.disable_symlinks.put_with(call, |call| {
        let (mut symlinks, mut from) = (None, None);
        for index in 0..call.args().len() {
            match call.arg(index) {
                b"off" => symlinks = Some(Symlinks::Followed),
                b"on" => symlinks = Some(Symlinks::Refused),
                b"if_not_owner" => symlinks = Some(Symlinks::OfOwner),
                text if text.starts_with(b"from=") => from = Some(Template::parse(&text[5..], call)?),
                _ => return Err(call.invalid_parameter(index)),
            }
        }
        match (symlinks, &from) {
            (None, _) => {
                Err(call.fail("\"disable_symlinks\" must have \"off\", \"on\" or \"if_not_owner\" parameter"))
            }
            (Some(_), None) if call.args().len() == 2 => {
                Err(call
                    .fail([&b"duplicate parameters \""[..], call.arg(0), b" ", call.arg(1), b"\""].concat()))
            }
            (Some(Symlinks::Followed), Some(_)) => {
                Err(call.fail("\"from=\" cannot be used with \"off\" parameter"))
            }
            (Some(symlinks), _) => Ok((symlinks, from)),
        }
    })
}

fn open_file_cache(core: &mut Core, call: &mut Call<'_>) -> Result<(), Fault> {
    core.open_file_cache.put_with(call, |call| {
        let (mut max, mut inactive, mut off) = (None, 60, false);
        for index in 0..call.args().len() {
            let text = call.arg(index);
            let known = if let Some(number) = text.strip_prefix(b"max=") {
                max = value::number(number).filter(|n| *n > 0);
                max.is_some()
            } else if let Some(time) = text.strip_prefix(b"inactive=") {
                value::sec(time).map(|seconds| inactive = seconds).is_some()
            } else {
                off |= text == b"off";
                text == b"off"
            };
            if !known {
                return Err(call.fail_at(index, "invalid \"open_file_cache\" parameter"));
            }
        }
        match max {
            _ if off => Ok(None),
            Some(max) => Ok(Some(Arc::new(OpenFileCache { max, inactive }))),
            None => Err(call.fail("\"open_file_cache\" must have the \"max\" parameter")),
        }
    })
}

fn directio(core: &mut Core, call: &mut Call<'_>) -> Result<(), Fault> {
    core.once.read(call, |call| if call.arg(0) == b"off" { Ok(()) } else { call.offset().map(drop) })
}

fn keepalive_timeout(core: &mut Core, call: &mut Call<'_>) -> Result<(), Fault> {
    core.keepalive_timeout.msec(call)?;
    if call.args().len() == 2 {
        let seconds = value::sec(call.arg(1)).ok_or_else(|| call.under(call.refuse("invalid value"), 1))?;
        core.keepalive_header.replace(seconds);
    }
    Ok(())
}

fn keepalive_disable(core: &mut Core, call: &mut Call<'_>) -> Result<(), Fault> {
    const NONE: u32 = 1;
    const MSIE6: u32 = 2;
    const SAFARI: u32 = 4;
    // A second directive of a level adds to the first.
    let disable = core.keepalive_disable.or(KeepaliveDisable::default());
    let bit = |on: bool, bit: u32| if on { bit } else { 0 };
    let mut bits = bit(disable.none, NONE) | bit(disable.msie6, MSIE6) | bit(disable.safari, SAFARI);
    call.add_bits(&mut bits, &[("none", NONE), ("msie6", MSIE6), ("safari", SAFARI)])?;
    core.keepalive_disable.replace(KeepaliveDisable {
        none: bits & NONE != 0,
        msie6: bits & MSIE6 != 0,
        safari: bits & SAFARI != 0,
    });
    Ok(())
}

fn error_page(core: &mut Core, call: &mut Call<'_>) -> Result<(), Fault> {
    let last = call.args().len() - 1;
    let mut codes_end = last;
    let mut overwrite = None;
    if call.arg(last - 1).first() == Some(&b'=') {
        if last == 1 {
            return Err(call.fail_at(0, "invalid value"));
        }
        let code = &call.arg(last - 1)[1..];
        overwrite = Some(match value::number(code) {
            _ if code.is_empty() => 0,
            Some(code) => u16::try_from(code).unwrap_or(u16::MAX),
            None => return Err(call.fail_at(last - 1, "invalid value")),
        });
        codes_end = last - 1;
    }
    let uri = call.arg(last);
    let mut target = call.template(last)?;
    let mut args = vec![];
    if target.as_literal().is_some()
        && uri.first() == Some(&b'/')
        && let Some(at) = memchr::memchr(b'?', uri)
    {
        args = uri[at + 1..].to_vec();
        target = Template::literal(&uri[..at]);
    }
    for index in 0..codes_end {
        let text = call.arg(index);
        let code = match value::number(text) {
            Some(499) | None => return Err(call.fail_at(index, "invalid value")),
            Some(code @ 300..=599) => code as u16,
            Some(_) => {
                let message = [&b"value \""[..], text, b"\" must be between 300 and 599"].concat();
                return Err(call.under(call.fail(message), index));
            }
        };
        core.error_pages.push(ErrorPage { code, overwrite, target: target.clone(), args: args.clone() });
    }
    Ok(())
}

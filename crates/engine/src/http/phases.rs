//! The phases of a request, a loop over the handlers of its location (nginx: `ngx_http_core_run_phases`).
//!
//! ```text
//! post-read -> server-rewrite -> find-location -> rewrite -> preaccess -> access -> precontent -> content
//!              ^ internal redirect ^ rewrite last  ^ named location
//! ```

use std::borrow::Cow;

use weir_ir::LocationId;
use weir_ir::http::core::{Alias, Satisfy};
use weir_ir::program::ScopeKind;
use weir_syntax::Level;

use crate::contract::{Check, Flow, Step};
use crate::generation::{ContentHandler, Generation};
use crate::http::router::{self, Found};
use crate::http::special;
use crate::http::subrequest;
use crate::http::{Body, Exchange, Response};
use crate::http1::uri::{Escape, escape};
use crate::upstream;

/// The phase in which a redirected request starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    ServerRewrite,
    FindLocation,
    Named(LocationId),
    /// Right at the content, where the request is already.
    Content,
}

/// Runs a request to its response, filters applied. The generation is the exchange's own, lent so that its handlers can
/// be called with the exchange.
pub async fn run(x: &mut Exchange, generation: &Generation) -> Box<Response> {
    x.restart = Restart::ServerRewrite;
    let flow = post_read(x, generation).await;
    complete(x, generation, flow).await
}

/// Runs a subrequest, which has no part in what is done before a server rewrites it.
pub(crate) async fn run_part(x: &mut Exchange, generation: &Generation) -> Box<Response> {
    complete(x, generation, Flow::Redirect).await
}

/// What `post_action` asks for of a request that was answered; each may ask for another one. Nobody sees the responses.
pub(crate) async fn post_actions(x: &mut Exchange, generation: &Generation) {
    while let Some(target) = &generation.location(x.location).core.post_action {
        if x.post_action && x.redirects_left == 0 {
            return;
        }
        x.post_action = true;
        let flow = match target.first() {
            Some(b'/') => x.internal_redirect(target.to_vec(), vec![]),
            Some(_) | None => x.named_redirect(target),
        };
        let answered = x.status;
        let mut response = complete(x, generation, flow).await;
        if let Body::Stream(mut source) = std::mem::take(&mut response.body) {
            source.finish(x, false);
        }
        // The log tells how it ended, unless the request itself was answered with an error.
        x.status = if answered < 300 || response.status >= 300 { response.status } else { answered };
    }
}

/// The response to a request that was refused before any phase.
pub async fn refuse(x: &mut Exchange, generation: &Generation, code: u16) -> Box<Response> {
    complete(x, generation, Flow::Answer(code)).await
}

/// Goes on until there is a response that every filter lets pass.
async fn complete(x: &mut Exchange, generation: &Generation, mut flow: Flow) -> Box<Response> {
    loop {
        flow = match flow {
            Flow::Decline | Flow::Pass | Flow::Redirect => match from_restart(x, generation).await {
                // No content handler took the request.
                Flow::Decline | Flow::Pass => Flow::Answer(404),
                ended @ (Flow::Answer(_) | Flow::Respond(_) | Flow::Redirect) => ended,
            },
            Flow::Respond(response) => match finish(x, generation, response) {
                Ok(response) => return response,
                Err(code) => Flow::Answer(code),
            },
            Flow::Answer(code) => match x.take_stub() {
                Some(stub) => Flow::Respond(stub),
                None => special::answer(x, code),
            },
        };
    }
}

/// Gives the response its final status and sends it through the filters of the location, each of which knows what of it
/// is for a subrequest.
///
/// # Errors
/// A filter gave it up for the answer of this status.
fn finish(
    x: &mut Exchange,
    generation: &Generation,
    mut response: Box<Response>,
) -> Result<Box<Response>, u16> {
    if x.err_status != 0 {
        response.status = x.err_status;
        response.status_line = None;
        response.upstream_type &= x.err_status != 204;
    }
    if response.location.is_none() {
        response.location = x.redirect_target.take();
    }
    if let Some(content_type) = x.answer_type.take() {
        response.content_type = Some(content_type);
    }
    if let Some(single) = x.answer_ranges.take() {
        response.allow_ranges = true;
        response.single_range |= single;
    }
    if let Some(charset) = &x.accel_charset
        && response.override_charset.is_none()
    {
        response.override_charset = Some(charset.clone());
    }
    if !x.answer_headers.is_empty() {
        let mut headers = std::mem::take(&mut x.answer_headers);
        response.headers.iter().for_each(|(name, value)| headers.push(name, value));
        response.headers = headers;
    }
    if let Some(stub) = x.take_stub() {
        response.body = subrequest::or(response.body, stub.body);
    }
    // A piece goes through those of the whole, and what nobody sees through none.
    if x.is_piece() || x.post_action {
        return Ok(response);
    }
    for filter in &generation.location(x.location).handlers.filters {
        filter.filter(x, &mut response);
        if response.unsent {
            return Ok(response);
        }
        if let Some(code) = response.replaced_by.take() {
            if let Body::Stream(source) = &mut response.body {
                source.finish(x, false);
            }
            x.answer_headers = std::mem::take(&mut response.headers);
            return Err(code);
        }
    }
    Ok(response)
}

async fn step<'a>(handler: &'a dyn Check, x: &'a mut Exchange) -> Flow {
    match handler.check(x) {
        Step::Now(flow) => flow,
        Step::Later(later) => later.await,
    }
}

/// Asks handlers in order until one ends the phase with something to do. Phases without handlers are the rule: whoever
/// calls looks first.
async fn each(handlers: &[Box<dyn Check>], x: &mut Exchange) -> Option<Flow> {
    for handler in handlers {
        match step(&**handler, x).await {
            Flow::Decline => {}
            Flow::Pass => return None,
            ended @ (Flow::Answer(_) | Flow::Respond(_) | Flow::Redirect) => return Some(ended),
        }
    }
    None
}

async fn post_read(x: &mut Exchange, generation: &Generation) -> Flow {
    let handlers = &generation.location(x.server).handlers.post_read;
    if handlers.is_empty() { Flow::Decline } else { each(handlers, x).await.unwrap_or(Flow::Decline) }
}

async fn from_restart(x: &mut Exchange, generation: &Generation) -> Flow {
    if x.restart != Restart::Content
        && let Some(ended) = to_content(x, generation).await
    {
        return ended;
    }
    x.restart = Restart::ServerRewrite;
    content(x, generation).await
}

/// The phases before the content, unless they end the request or send it elsewhere.
async fn to_content(x: &mut Exchange, generation: &Generation) -> Option<Flow> {
    let start = x.restart;
    if start == Restart::ServerRewrite {
        x.location = x.server;
        let rewrite = &generation.location(x.server).handlers.rewrite;
        if !rewrite.is_empty() {
            // A path that the server rewrites is looked up right after, so the handlers' redirect is no restart.
            match each(rewrite, x).await {
                None | Some(Flow::Redirect | Flow::Decline | Flow::Pass) => {}
                Some(ended @ (Flow::Answer(_) | Flow::Respond(_))) => return Some(ended),
            }
        }
    }
    match start {
        Restart::Named(id) => enter(x, generation, id),
        Restart::ServerRewrite | Restart::FindLocation | Restart::Content => {
            if let Some(ended) = find_location(x, generation) {
                return Some(ended);
            }
        }
    }
    // The location may change within its own rewriting (`if`), so it is looked up for each phase.
    x.restart = Restart::ServerRewrite;
    // A request without a location stays in its server, whose rewriting is done.
    let rewrite =
        if x.location == x.server { &[][..] } else { &generation.location(x.location).handlers.rewrite };
    if !rewrite.is_empty()
        && let Some(ended) = each(rewrite, x).await
    {
        if matches!(ended, Flow::Redirect) {
            let uri = std::mem::take(&mut x.uri);
            let taken = x.take_redirect("processing", &uri);
            x.uri = uri;
            if !taken {
                return Some(Flow::Answer(500));
            }
        }
        return Some(ended);
    }
    let location = generation.location(x.location);
    for handler in &location.handlers.preaccess {
        match step(&**handler, x).await {
            Flow::Decline | Flow::Pass => {}
            ended @ (Flow::Answer(_) | Flow::Respond(_) | Flow::Redirect) => return Some(ended),
        }
    }
    // Whoever may ask for the request may ask for what it is made of.
    if !location.handlers.access.is_empty()
        && !x.is_subrequest()
        && let Some(ended) = access(&location.handlers.access, location.core.satisfy, x).await
    {
        if matches!(ended, Flow::Answer(401 | 407)) && location.core.auth_delay > 0 {
            x.log(Level::Info, "delaying unauthorized request");
            x.reactor.timers().sleep(location.core.auth_delay).await;
        }
        return Some(ended);
    }
    if !location.handlers.precontent.is_empty()
        && let Some(ended) = each(&location.handlers.precontent, x).await
    {
        return Some(ended);
    }
    None
}

fn enter(x: &mut Exchange, generation: &Generation, id: LocationId) {
    x.location = id;
    x.left_if = None;
    x.debug(|| generation.location(id).debug_text());
    if let Some((methods, inner)) = &generation.location(id).core.limit_except
        && !methods.iter().any(|m| **m == *x.method_name())
    {
        x.location = *inner;
    }
}

fn find_location(x: &mut Exchange, generation: &Generation) -> Option<Flow> {
    let id = match router::location(x, x.server) {
        Found::Location(id) => id,
        Found::None => x.server,
        Found::Redirect(id) => {
            x.location = id;
            let mut target = Vec::new();
            escape(x.generation.location(id).name(), Escape::Uri, &mut target);
            append_args(&x.args, &mut target);
            x.redirect_target = Some(Cow::Owned(target));
            return Some(Flow::Answer(301));
        }
    };
    enter(x, generation, id);
    let core = &x.location().core;
    if core.internal && !x.internal {
        return Some(Flow::Answer(404));
    }
    too_large(x)
}

/// Refuses a body that is known to be longer than it may be.
pub(crate) fn too_large(x: &mut Exchange) -> Option<Flow> {
    let most = x.location().core.client_max_body_size;
    if x.body.exists()
        && most > 0
        && let Some(length) = x.body.known_length().or(x.head.content_length())
        && length > most
    {
        x.log(Level::Error, format_args!("client intended to send too large body: {length} bytes"));
        x.body.discard();
        return Some(Flow::Answer(413));
    }
    None
}

/// Appends `?args` where there are any.
pub fn append_args(args: &[u8], out: &mut Vec<u8>) {
    if !args.is_empty() {
        out.push(b'?');
        out.extend_from_slice(args);
    }
}

async fn access(handlers: &[Box<dyn Check>], satisfy: Satisfy, x: &mut Exchange) -> Option<Flow> {
    let mut refused = 0;
    for handler in handlers {
        match (step(&**handler, x).await, satisfy) {
            (Flow::Decline, _) | (Flow::Pass, Satisfy::All) => {}
            (Flow::Pass, Satisfy::Any) => {
                // Nobody needs to know any more how else to get in.
                x.answer_headers.remove(b"WWW-Authenticate");
                return None;
            }
            (Flow::Answer(code @ (401 | 403)), Satisfy::Any) => {
                // The code that tells how to get in is the better answer.
                if refused != 401 {
                    refused = code;
                }
            }
            (ended @ (Flow::Answer(_) | Flow::Respond(_) | Flow::Redirect), _) => return Some(ended),
        }
    }
    if refused == 0 {
        return None;
    }
    if refused == 403 {
        x.log(Level::Error, "access forbidden by rule");
    }
    Some(Flow::Answer(refused))
}

async fn content(x: &mut Exchange, generation: &Generation) -> Flow {
    let location = generation.location(x.location);
    let handlers = &location.handlers;
    let left = x.left_if.filter(|_| handlers.handler.is_none() && matches!(location.kind, ScopeKind::If));
    let handler = match left {
        // The handler that was set stays, and finds the settings of the `if` that the request is in now.
        Some(left) => &generation.location(left).handlers.handler,
        None => &handlers.handler,
    };
    match handler {
        None => {}
        Some(ContentHandler::Upstream(_)) if left.is_some() => {
            x.log(Level::Alert, "no upstream configuration");
            return Flow::Answer(500);
        }
        Some(ContentHandler::Upstream(protocol)) => return upstream::exchange::run(x, &**protocol).await,
        Some(ContentHandler::Content(handler)) => {
            let flow = match handler.respond(x) {
                Step::Now(flow) => flow,
                Step::Later(later) => later.await,
            };
            // What is not its own is left to the handlers of any location.
            if !matches!(flow, Flow::Decline) {
                return if x.body.is_settled() { flow } else { without_body(x, flow).await };
            }
        }
    }
    for handler in &handlers.content {
        let flow = match handler.respond(x) {
            Step::Now(flow) => flow,
            Step::Later(later) => later.await,
        };
        if !matches!(flow, Flow::Decline) {
            return if x.body.is_settled() { flow } else { without_body(x, flow).await };
        }
    }
    if x.uri.ends_with(b"/") {
        if let Some(file) = x.file() {
            let path = String::from_utf8_lossy(&file.path);
            x.log(Level::Error, format_args!("directory index of \"{path}\" is forbidden"));
        }
        return Flow::Answer(403);
    }
    Flow::Answer(404)
}

/// An answer that was made without asking for the request's body.
#[cold]
async fn without_body(x: &mut Exchange, flow: Flow) -> Flow {
    if !matches!(flow, Flow::Respond(_)) {
        return flow;
    }
    x.forgo_body().await.map_or_else(|error| Flow::Answer(error.0), |()| flow)
}

impl Exchange {
    /// The file that the present path names: below `root`, or in place of the location's prefix with `alias`.
    /// `None` where the path was rewritten within a location with `alias`, which is then logged.
    pub fn file(&self) -> Option<FilePath> {
        let location = self.location();
        if location.core.alias.is_some() && !self.valid_location {
            let name = String::from_utf8_lossy(location.name()).into_owned();
            self.log(
                Level::Alert,
                format_args!("\"alias\" cannot be used in location \"{name}\" where URI was rewritten"),
            );
            return None;
        }
        let mut path = self.root();
        let root = path.len();
        match location.core.alias {
            None => path.extend_from_slice(&self.uri),
            Some(Alias::Whole) if self.uri_below_alias => path.extend_from_slice(&self.uri),
            Some(Alias::Whole) => {}
            Some(Alias::Prefix(length)) => {
                path.extend_from_slice(self.uri.get(length..).unwrap_or_default());
            }
        }
        Some(FilePath { path, root })
    }

    /// The folder of files, `root` or `alias`, never relative.
    pub fn root(&self) -> Vec<u8> {
        let core = &self.location().core;
        let mut root = core.root.value(self);
        if let Some(below) = &core.root_below
            && !root.starts_with(b"/")
        {
            root.splice(..0, below.bytes());
        }
        root
    }

    /// As [`Exchange::file`], empty where there is no such file name.
    pub fn file_path(&self) -> Vec<u8> {
        self.file().map(|file| file.path).unwrap_or_default()
    }
}

/// The name of a file that a path stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePath {
    pub path: Vec<u8>,
    /// How long the part is that `root` or `alias` gave.
    pub root: usize,
}

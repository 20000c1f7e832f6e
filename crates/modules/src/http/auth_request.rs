//! `ngx_http_auth_request_module`: who may enter is asked of another location.

use weir_engine::contract::{Check, Flow, Install, Step};
use weir_engine::generation::Plan;
use weir_engine::http::subrequest::Answer;
use weir_engine::http::template::Assign;
use weir_engine::http::{Exchange, Headers, Template};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge, VariableId};
use weir_syntax::{Diagnostic, Level};

pub struct AuthRequest;

type D = Directive<AuthRequest>;

impl Module for AuthRequest {
    const NAME: &'static str = "http_auth_request";
    type Main = ();
    type Scope = Auth;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("auth_request", Contexts::SCOPES, Takes::ONE, |auth, call| {
            auth.uri.put_with(call, |call| Ok(Some(call.arg(0)).filter(|uri| *uri != b"off").map(Box::from)))
        }),
        D::scope("auth_request_set", Contexts::SCOPES, Takes::TWO, Auth::set),
    ];
}

/// Who is asked at one level, and what is kept of the answer.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    /// None is `off`.
    uri: Setting<Option<Box<[u8]>>>,
    variables: Vec<(VariableId, weir_ir::Template)>,
}

impl Auth {
    fn set(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        let name = call.variable_name(0)?;
        let id = call.declare(&name, true)?;
        self.variables.push((id, call.template(1)?));
        Ok(())
    }
}

impl Conf for Auth {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.uri.inherit(&outer.uri);
        if self.variables.is_empty() {
            self.variables.clone_from(&outer.variables);
        }
        Ok(())
    }
}

impl Install for AuthRequest {
    fn install(auth: &Auth, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if let Some(uri) = auth.uri.or(None).filter(|uri| !uri.is_empty()) {
            let kept = auth
                .variables
                .iter()
                .map(|(id, value)| (plan.build.assign(*id), plan.template(value)))
                .collect();
            plan.handlers.access.push(Box::new(Asking { uri, kept }));
        }
        Ok(())
    }
}

struct Asking {
    uri: Box<[u8]>,
    /// Variables, and what of the answer they are given.
    kept: Vec<(Assign, Template)>,
}

impl Check for Asking {
    fn check<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        let mut part = match x.subrequest(&self.uri, b"") {
            Ok(part) => part,
            Err(code) => return Step::Now(Flow::Answer(code)),
        };
        part.without_body();
        Step::Later(Box::pin(async move { x.ask(part, |x, answer| self.judge(x, answer)).await }))
    }
}

impl Asking {
    fn judge(&self, x: &mut Exchange, answer: &Answer) -> Flow {
        if answer.is_unsent() {
            return Flow::Answer(answer.status());
        }
        for (variable, value) in &self.kept {
            variable.set(x, value.value(&answer.x));
        }
        match answer.status() {
            200..300 => Flow::Pass,
            403 => Flow::Answer(403),
            401 => {
                let name = b"WWW-Authenticate";
                let sent = answer.x.response.as_ref().map(|response| &response.headers);
                let has = |headers: &&Headers| headers.all(name).next().is_some();
                let told = sent.filter(has).or(answer.x.upstream_headers.as_ref());
                for value in told.iter().flat_map(|headers| headers.all(name)) {
                    x.answer_headers.push(name, value);
                }
                Flow::Answer(401)
            }
            status => {
                // In nginx the log still has what was last done for an upstream's answer.
                let doing = if answer.x.upstream_states.is_empty() { "" } else { "sending to client" };
                let message = format_args!("auth request unexpected status: {status}");
                x.log_while(Level::Error, None, message, doing);
                Flow::Answer(500)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Site, check_conf};

    #[test]
    fn messages() {
        let refused = |words: &str, message: &str| check_conf(&format!("server {{ {words} }}"), message);
        refused("auth_request /a; auth_request off;", "\"auth_request\" directive is duplicate");
        refused("auth_request off; auth_request /a;", "\"auth_request\" directive is duplicate");
        refused("auth_request_set a b;", "invalid variable name \"a\"");
        refused("auth_request_set $ b;", "invalid variable name \"$\"");
        refused("auth_request_set $uri b;", "the duplicate \"uri\" variable");
        refused("auth_request_set $a $b;", "unknown \"b\" variable");
        refused("auth_request /a; location / { auth_request off; auth_request_set $a $status; }", "");
    }

    #[test]
    fn the_answer_decides() {
        let site = Site::new(
            "server { location / { auth_request /auth; answer 200 text/plain in$args; } \
             location /off { auth_request off; answer 200 text/plain off; } \
             location /both { satisfy any; deny all; auth_request /auth; answer 200 text/plain in; } \
             location /page { auth_request /auth; error_page 401 = /login; } location /login { return 200 login; } \
             location = /auth { internal; deny all; error_page 410 =204 /gone; if ($arg_a) { return 500; } \
             if ($request_uri ~ =401) { return 401; } \
             if ($request_uri ~ =403) { return 403; } if ($request_uri ~ =302) { return 302 /x; } \
             if ($request_uri ~ =444) { return 444; } if ($request_uri ~ =410) { return 410; } return 204; } \
             location /gone { return 204; } }",
        );
        for (uri, expected) in [
            ("/", "200 in"),
            ("/?a=204", "200 ina=204"),
            ("/?a=401", "401"),
            ("/?a=403", "403"),
            ("/?a=302", "500"),
            ("/?a=410", "200 ina=410"),
            ("/off?a=401", "200 off"),
            ("/both", "200 in"),
            ("/both?a=401", "401"),
            ("/both?a=403", "403"),
            ("/page?a=401", "200 login"),
        ] {
            assert_eq!(site.short(uri), expected, "{uri}");
        }
        assert_eq!(site.get("/?a=444", ""), "");
        assert!(site.log().contains(&"auth request unexpected status: 302".to_owned()), "{:?}", site.log());
        assert!(
            site.read("logs/error.log").contains(", client: 127.0.0.1, server: , request: \"GET /?a=302 ")
        );
    }

    #[test]
    fn variables_are_kept_of_the_answer() {
        let site = Site::new(
            "server { auth_request_set $a \"$status $uri $request_method\"; auth_request_set $args b; \
             location / { auth_request /auth; answer 404 text/plain x; } \
             location /kept { auth_request /auth; answer 200 text/plain \"$a $args $c\"; } \
             location /none { return 200 [$a]; } location = /auth { set $c c; return 202; } }",
        );
        assert_eq!(site.short("/kept?x"), "200 202 /auth GET b c");
        assert_eq!(site.short("/none"), "200 []");
    }
}

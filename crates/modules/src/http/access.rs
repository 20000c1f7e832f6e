//! `ngx_http_access_module`: lets clients in or keeps them out by their address.

use std::net::IpAddr;

use weir_engine::contract::{Check, Flow, Install, Step};
use weir_engine::generation::Plan;
use weir_engine::http::Exchange;
use weir_ir::address::Address;
use weir_ir::cidr::{Cidr, unmapped};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Takes};
use weir_ir::http::core::Satisfy;
use weir_ir::{Call, Fault, Merge};
use weir_syntax::{Diagnostic, Level};

pub struct Access;

type D = Directive<Access>;

const SCOPES_LIMIT: Contexts = Contexts::SCOPES.or(Contexts::LIMIT_EXCEPT);

impl Module for Access {
    const NAME: &'static str = "http_access";
    type Main = ();
    type Scope = Rules;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("allow", SCOPES_LIMIT, Takes::ONE, |rules, call| rules.add(call, false)),
        D::scope("deny", SCOPES_LIMIT, Takes::ONE, |rules, call| rules.add(call, true)),
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    All,
    Range(Cidr),
}

/// The rules of one level; the first that matches decides.
#[derive(Clone, Debug, Default)]
pub struct Rules(Vec<(Whom, bool)>);

impl Conf for Rules {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        if self.0.is_empty() {
            self.0.clone_from(&outer.0);
        }
        Ok(())
    }
}

impl Rules {
    fn add(&mut self, call: &mut Call<'_>, deny: bool) -> Result<(), Fault> {
        let whom = match call.arg(0) {
            b"all" => Whom::All,
            b"unix:" => Whom::Range(Cidr::Unix),
            text => {
                let Some((range, low_bits)) = Cidr::parse(text) else {
                    return Err(call.invalid_parameter(0));
                };
                if low_bits {
                    call.warn(format!("low address bits of {} are meaningless", call.text(0)));
                }
                Whom::Range(range)
            }
        };
        self.0.push((whom, deny));
        Ok(())
    }

    /// Whether the first rule for a client keeps it out; `None` where no rule is about it.
    fn denies(&self, client: &Address) -> Option<bool> {
        let first = |matches: &dyn Fn(&Cidr) -> bool| {
            let rule = self.0.iter().find(|(whom, _)| match whom {
                Whom::All => true,
                Whom::Range(range) => matches(range),
            });
            rule.map(|(_, deny)| *deny)
        };
        let ip = match client {
            Address::Unix(_) => return first(&|range| *range == Cidr::Unix),
            Address::Ip(inet) => inet.ip(),
        };
        // IPv4 within IPv6 is told apart only where there is a rule for IPv4.
        let has_v4 = self.0.iter().any(|(whom, _)| matches!(whom, Whom::All | Whom::Range(Cidr::V4 { .. })));
        match if has_v4 { unmapped(ip) } else { ip } {
            IpAddr::V4(ip) => first(&|range| range.contains_v4(ip)),
            IpAddr::V6(ip) => first(&|range| range.contains_v6(ip)),
        }
    }
}

impl Install for Access {
    fn install(rules: &Rules, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if !rules.0.is_empty() {
            plan.handlers.access.push(Box::new(rules.clone()));
        }
        Ok(())
    }
}

impl Check for Rules {
    fn check<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        Step::Now(match self.denies(&x.peer().address) {
            None => Flow::Decline,
            Some(false) => Flow::Pass,
            Some(true) => {
                // With `satisfy any` it is the end of the phase that tells.
                if x.location().core.satisfy == Satisfy::All {
                    x.log(Level::Error, "access forbidden by rule");
                }
                Flow::Answer(403)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Site, check_conf, code};

    #[test]
    fn messages() {
        check_conf("deny all; allow 192.0.2.0/24; allow unix:; allow ::1;", "");
        check_conf("deny x;", "invalid parameter \"x\"");
        check_conf("deny 1.2.3.4/40;", "invalid parameter \"1.2.3.4/40\"");
    }

    #[track_caller]
    fn check(rules: &str, client: &str, expected: &str) {
        let site =
            Site::new(&format!("server {{ listen 80; location / {{ {rules} answer 200 text/plain ok; }} }}"));
        assert_eq!(code(&site.get_from(client, "/", "")), expected, "{rules} {client}");
        let errors: &[&str] = if expected == "403" { &["access forbidden by rule"] } else { &[] };
        assert_eq!(site.log(), errors);
    }

    #[test]
    fn rules() {
        check("allow 192.0.2.0/24; deny all;", "192.0.2.9:1", "200");
        check("allow 192.0.2.0/24; deny all;", "192.0.3.9:1", "403");
        check("allow 192.0.2.0/24; deny all;", "[2001:db8::1]:1", "403");
        check("allow 2001:db8::/32; deny all;", "[2001:db8::1]:1", "200");
        check("deny 192.0.2.1;", "192.0.2.1:1", "403");
        check("deny 192.0.2.1;", "[::ffff:192.0.2.1]:1", "403");
        check("deny ::/0;", "[::ffff:192.0.2.1]:1", "403");
        check("deny ::/0; allow 192.0.2.1;", "[::ffff:192.0.2.1]:1", "200");
        check("deny unix:;", "unix:", "403");
        check("deny all;", "unix:", "403");
        check("deny 192.0.2.1;", "unix:", "200");
        check("", "192.0.2.1:1", "200");
    }

    #[test]
    fn a_level_with_rules_forgets_the_outer_ones() {
        let site = Site::new(
            "deny all; server { listen 80;
                location / { answer 200 text/plain ok; }
                location /open { allow 127.0.0.1; answer 200 text/plain ok; }
             }",
        );
        assert_eq!(code(&site.get("/", "")), "403");
        assert_eq!(code(&site.get("/open", "")), "200");
        assert_eq!(code(&site.get_from("192.0.2.2:1", "/open", "")), "200");
    }
}

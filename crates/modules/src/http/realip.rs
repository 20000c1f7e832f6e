//! `ngx_http_realip_module`: takes the client's address from a header that a trusted proxy sent, or from what it told in
//! the PROXY protocol.

use weir_engine::contract::{Check, Flow, Install, Step, Variable};
use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, variables};
use weir_engine::http1::Known;
use weir_engine::reactor::Peer;
use weir_ir::address::Address;
use weir_ir::cidr::Cidr;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge};
use weir_syntax::Diagnostic;

use super::forwarded;

pub struct RealIp;

type D = Directive<RealIp>;

impl Module for RealIp {
    const NAME: &'static str = "http_realip";
    type Main = ();
    type Scope = Trust;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("set_real_ip_from", Contexts::SCOPES, Takes::ONE, set_real_ip_from),
        D::scope("real_ip_header", Contexts::SCOPES, Takes::ONE, |trust, call| {
            trust.header.put_with(call, |call| match call.arg(0) {
                // As written here, which nginx compares with case.
                b"proxy_protocol" => Ok(Header::ProxyProtocol),
                b"X-Forwarded-For" => Ok(Header::Forwarded),
                name => Ok(Header::Named(name.to_ascii_lowercase().into())),
            })
        }),
        D::scope("real_ip_recursive", Contexts::SCOPES, Takes::FLAG, |trust, call| {
            trust.recursive.flag(call)
        }),
    ];
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Header {
    /// All `X-Forwarded-For` lines together.
    Forwarded,
    /// What the PROXY protocol tells.
    ProxyProtocol,
    /// The first line of that name, in lower case.
    Named(Box<[u8]>),
}

/// Whom one level trusts to say what.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    from: Vec<Cidr>,
    header: Setting<Header>,
    recursive: Setting<bool>,
}

impl Conf for Trust {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        if self.from.is_empty() {
            self.from.clone_from(&outer.from);
        }
        self.header.inherit(&outer.header);
        self.recursive.inherit(&outer.recursive);
        Ok(())
    }
}

fn set_real_ip_from(trust: &mut Trust, call: &mut Call<'_>) -> Result<(), Fault> {
    let text = call.arg(0);
    if text == b"unix:" {
        trust.from.push(Cidr::Unix);
        return Ok(());
    }
    if let Some((range, low_bits)) = Cidr::parse(text) {
        if low_bits {
            call.warn(format!("low address bits of {} are meaningless", call.text(0)));
        }
        trust.from.push(range);
        return Ok(());
    }
    match call.world().resolve(&call.text(0)) {
        Ok(found) if !found.is_empty() => {
            trust.from.extend(found.into_iter().map(Cidr::of));
            Ok(())
        }
        Ok(_) | Err(_) => {
            let message = format!("host not found in set_real_ip_from \"{}\"", call.text(0));
            Err(call.under(call.fail(message), 0))
        }
    }
}

impl Install for RealIp {
    const VARIABLES: &'static [Variable] = &[
        Variable::new("realip_remote_addr", |x, out| {
            out.extend_from_slice(x.connection.peer.text());
            true
        }),
        Variable::new("realip_remote_port", |x, out| match x.connection.peer.port() {
            Some(port) => variables::number(u64::from(port), out),
            None => true,
        }),
    ];

    fn install(trust: &Trust, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if trust.from.is_empty() {
            return Ok(());
        }
        // The server's settings count before a location is found, the location's where those changed nothing.
        plan.handlers.post_read.push(Box::new(Finder::of(trust)));
        plan.handlers.preaccess.push(Box::new(Finder::of(trust)));
        Ok(())
    }
}

struct Finder {
    from: Vec<Cidr>,
    header: Header,
    recursive: bool,
}

impl Finder {
    fn of(trust: &Trust) -> Self {
        Self {
            from: trust.from.clone(),
            header: trust.header.or(Header::Named(b"x-real-ip"[..].into())),
            recursive: trust.recursive.or(false),
        }
    }

    fn find(&self, x: &Exchange) -> Option<Address> {
        let told = x.connection.proxy_protocol.as_deref();
        let lines: Vec<_> = match &self.header {
            Header::Forwarded => x.head.all(Known::XForwardedFor).collect(),
            Header::ProxyProtocol => told.map(|told| &*told.source).into_iter().collect(),
            Header::Named(name) => x.head.named(name).take(1).collect(),
        };
        let mut found = forwarded::client(&x.peer().address, &lines, &self.from, self.recursive)?;
        if let (Header::ProxyProtocol, Some(told)) = (&self.header, told) {
            found.set_port(told.source_port);
        }
        Some(Address::Ip(found))
    }
}

impl Check for Finder {
    fn check<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        if !x.has_real_peer()
            && let Some(address) = self.find(x)
        {
            x.set_peer(Peer::new(address));
        }
        Step::Now(Flow::Decline)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Site, check_conf};

    #[test]
    fn messages() {
        check_conf("set_real_ip_from 10.0.0.0/8; set_real_ip_from unix:; set_real_ip_from localhost;", "");
        check_conf("real_ip_header X-Forwarded-For; real_ip_recursive on;", "");
        check_conf("set_real_ip_from nix.example;", "host not found in set_real_ip_from \"nix.example\"");
        check_conf("real_ip_header proxy_protocol;", "");
        check_conf("real_ip_header A; real_ip_header B;", "\"real_ip_header\" directive is duplicate");
    }

    #[track_caller]
    fn check(conf: &str, client: &str, headers: &str, expected: &str) {
        let site = Site::new(&format!(
            "server {{ listen 80; {conf}
                location / {{
                    answer 200 text/plain $remote_addr|$remote_port|$realip_remote_addr|$realip_remote_port;
                }} }}"
        ));
        let response = site.get_from(client, "/", headers);
        assert_eq!(response.split_once("\r\n\r\n").unwrap().1, expected, "{conf} {headers}");
    }

    #[test]
    fn addresses() {
        let proxy = "192.0.2.1:1234";
        let real = |addr: &str, port: &str| format!("{addr}|{port}|192.0.2.1|1234");
        let own = real("192.0.2.1", "1234");
        let conf = "set_real_ip_from 192.0.2.1;";
        check(conf, proxy, "X-Real-IP: 198.51.100.1\r\n", &real("198.51.100.1", ""));
        check(conf, proxy, "X-Real-IP: 198.51.100.1:80\r\n", &real("198.51.100.1", "80"));
        check(conf, proxy, "X-Real-IP: [2001:db8::1]:80\r\n", &real("2001:db8::1", "80"));
        check(conf, proxy, "X-Real-IP: 2001:db8::1\r\n", &real("2001:db8::1", ""));
        check(conf, proxy, "X-Real-IP: [2001:db8::1]\r\n", &real("2001:db8::1", ""));
        check(conf, proxy, "X-Real-IP: nonsense\r\n", &own);
        check(conf, proxy, "", &own);
        check("set_real_ip_from 10.0.0.0/8;", proxy, "X-Real-IP: 198.51.100.1\r\n", &own);
        check("set_real_ip_from unix:;", "unix:", "X-Real-IP: 198.51.100.1\r\n", "198.51.100.1||unix:|");
        check(
            "set_real_ip_from 192.0.2.1; real_ip_header x-client;",
            proxy,
            "X-Client: 198.51.100.1\r\n",
            &real("198.51.100.1", ""),
        );
        let list = "X-Forwarded-For: 203.0.113.9, 198.51.100.1\r\nX-Forwarded-For: 10.0.0.2, 10.0.0.1\r\n";
        let conf = "set_real_ip_from 192.0.2.1; set_real_ip_from 10.0.0.0/8; real_ip_header X-Forwarded-For;";
        check(conf, proxy, list, &real("10.0.0.1", ""));
        check(&format!("{conf} real_ip_recursive on;"), proxy, list, &real("198.51.100.1", ""));
        let bad = "X-Forwarded-For: x, 10.0.0.2\r\n";
        check(&format!("{conf} real_ip_recursive on;"), proxy, bad, &real("10.0.0.2", ""));
    }

    #[test]
    fn a_location_may_trust_whom_its_server_does_not() {
        let site = Site::new(
            "server { listen 80; location / { set_real_ip_from 127.0.0.1; deny 198.51.100.1; answer 200 a $remote_addr; } }",
        );
        assert!(site.get("/", "X-Real-IP: 198.51.100.1\r\n").starts_with("HTTP/1.1 403 "));
        assert!(site.get("/", "X-Real-IP: 198.51.100.2\r\n").ends_with("\r\n\r\n198.51.100.2"));
    }
}

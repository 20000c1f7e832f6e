//! `syslog:server=…`: where `error_log` and `access_log` send lines instead of writing them to a file.

use std::sync::Arc;

use crate::address::{self, Address, Form};
use crate::contract::Setting;
use crate::lowering::{Call, Fault};

/// A syslog server, and how lines are marked for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Syslog {
    pub server: Address,
    /// As written, for messages.
    pub name: Box<str>,
    pub facility: u8,
    /// Of lines that have no level of their own.
    pub severity: u8,
    pub tag: Box<str>,
    /// This machine's name, unless `nohostname` leaves it out.
    pub hostname: Option<Box<str>>,
}

/// In the order of their numbers.
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "intern", "lpr", "news", "uucp", "clock", "authpriv", "ftp",
    "ntp", "audit", "alert", "cron", "local0", "local1", "local2", "local3", "local4", "local5", "local6",
    "local7",
];
const SEVERITIES: [&str; 8] = ["emerg", "alert", "crit", "error", "warn", "notice", "info", "debug"];
const LOCAL7: u8 = 23;
const INFO: u8 = 6;
const PORT: u16 = 514;
/// RFC 3164 section 5.3.
const LONGEST_TAG: usize = 32;

impl Syslog {
    /// Reads the parameters in the first argument, behind `syslog:`.
    ///
    /// # Errors
    /// One that is unknown, given twice or has a bad value, or a missing server.
    pub fn read(call: &Call<'_>) -> Result<Arc<Self>, Fault> {
        let fail = |message: String| call.under(call.fail(message), 0);
        let text = call.text(0);
        let (mut server, mut facility) = (Setting::default(), Setting::default());
        let (mut severity, mut tag) = (Setting::default(), Setting::default());
        let mut nohostname = false;
        for parameter in text.strip_prefix("syslog:").unwrap_or(&text).split(',') {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let twice = match (name, parameter.len() > name.len()) {
                ("server", true) => server.is_set(),
                ("facility", true) => facility.is_set(),
                ("severity", true) => severity.is_set(),
                ("tag", true) => tag.is_set(),
                ("nohostname", false) => false,
                _ => return Err(fail(format!("unknown syslog parameter \"{parameter}\""))),
            };
            if twice {
                return Err(fail(format!("duplicate syslog \"{name}\"")));
            }
            let one_of = |words: &[&str]| {
                let at = words.iter().position(|word| *word == value);
                at.map(|at| at as u8).ok_or_else(|| fail(format!("unknown syslog {name} \"{value}\"")))
            };
            match name {
                "server" => {
                    let addresses = address::parse(value.as_bytes(), Form::default())
                        .and_then(|authority| call.addresses(&authority, PORT));
                    match addresses.map(|addresses| addresses.into_iter().next()) {
                        Ok(Some(address)) => server.replace((address, value.into())),
                        Ok(None) => return Err(fail(format!("host not found in syslog server \"{value}\""))),
                        Err(reason) => return Err(fail(format!("{reason} in syslog server \"{value}\""))),
                    }
                }
                "facility" => facility.replace(one_of(&FACILITIES)?),
                "severity" => severity.replace(one_of(&SEVERITIES)?),
                "tag" if value.len() > LONGEST_TAG => {
                    return Err(fail(format!("syslog tag length exceeds {LONGEST_TAG}")));
                }
                "tag" if !value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') => {
                    let only = "only allows alphanumeric characters and underscore";
                    return Err(fail(format!("syslog \"tag\" {only}")));
                }
                "tag" => tag.replace(value.into()),
                _ => nohostname = true,
            }
        }
        let Some((server, name)) = server.get().cloned() else {
            return Err(fail("no syslog server specified".into()));
        };
        Ok(Arc::new(Self {
            server,
            name,
            facility: facility.or(LOCAL7),
            severity: severity.or(INFO),
            tag: tag.or("nginx".into()),
            hostname: (!nohostname).then(|| call.world().hostname().into()),
        }))
    }
}

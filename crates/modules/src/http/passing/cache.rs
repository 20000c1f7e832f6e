//! What the modules that ask upstreams have in common where they keep answers: `…_cache_path`, `…_cache` and their like.

use std::sync::Arc;

use weir_engine::cache::{Pace, Spec};
use weir_engine::generation::{Build, Plan};
use weir_engine::upstream::caching::{Caching, Place};
use weir_engine::upstream::exchange::{ignore, next};
use weir_ir::contract::{Conf, Setting};
use weir_ir::http::core;
use weir_ir::program::PathSpec;
use weir_ir::{Call, Fault, Merge, value};
use weir_syntax::Diagnostic;

use super::Names;

/// All `…_cache_path` of a module.
#[derive(Clone, Debug, Default)]
pub struct Paths(Vec<Arc<Spec>>);

impl Conf for Paths {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

/// Two pages.
const SMALLEST: u64 = 2 * 4096;

impl Paths {
    pub(crate) fn add(&mut self, module: &'static str, call: &mut Call<'_>) -> Result<(), Fault> {
        let path = call.path(0);
        let path = path.strip_suffix('/').unwrap_or(&path).into();
        let pace = Pace { files: 100, sleep: 50, threshold: 200 };
        let mut spec = Spec {
            module,
            name: "".into(),
            path: PathSpec { path, levels: [0; 3], position: Some(call.position()) },
            size: 0,
            use_temp_path: true,
            inactive: 600,
            max_size: None,
            min_free: 0,
            manager: pace,
            loader: pace,
            purger: None,
        };
        let mut purger = (false, Pace { files: 10, sleep: 50, threshold: 50 });
        for index in 1..call.args().len() {
            parameter(&mut spec, &mut purger, call, index)?;
        }
        let (purges, pace) = purger;
        spec.purger = purges.then_some(pace);
        if spec.name.is_empty() || spec.size == 0 {
            return Err(call.fail(format!(
                "\"{}\" must have \"keys_zone\" parameter",
                String::from_utf8_lossy(call.name())
            )));
        }
        if let Some(other) = self.0.iter().find(|other| other.path.path == spec.path.path) {
            return Err(call.fail(format!(
                "the same path name \"{}\" used in {} and",
                spec.path.path,
                weir_ir::program::Position::shown(other.path.position.as_ref())
            )));
        }
        call.directory(spec.path.clone())?;
        call.zone(&spec.name, spec.size, module)?;
        if self.0.iter().any(|other| other.name == spec.name) {
            return Err(call.fail(format!("duplicate zone \"{}\"", spec.name)));
        }
        self.0.push(Arc::new(spec));
        Ok(())
    }

    /// Opens the caches of a generation.
    pub(crate) fn prepare(&self, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        self.0.iter().try_for_each(|spec| build.open_cache(spec))
    }

    fn has(&self, name: &[u8]) -> bool {
        self.0.iter().any(|spec| spec.name.as_bytes() == name)
    }
}

/// `purger` says whether there is one, and its pace.
fn parameter(spec: &mut Spec, purger: &mut (bool, Pace), call: &Call<'_>, index: usize) -> Result<(), Fault> {
    let whole = call.arg(index);
    let Some(at) = whole.iter().position(|byte| *byte == b'=') else {
        return Err(call.invalid_parameter(index));
    };
    let (name, text) = (&whole[..at], &whole[at + 1..]);
    let invalid = || {
        let name = String::from_utf8_lossy(name).into_owned();
        call.fail_at(index, &format!("invalid {name} value"))
    };
    let number = || value::number(text).ok_or_else(invalid);
    let msec = || value::msec(text).ok_or_else(invalid);
    let flag = || match text {
        b"on" => Ok(true),
        b"off" => Ok(false),
        _ => {
            let mut fault = invalid();
            fault.0.message.extend_from_slice(b", it must be \"on\" or \"off\"");
            Err(fault)
        }
    };
    match name {
        b"levels" => {
            spec.path.levels = levels(text).ok_or_else(|| call.fail_at(index, "invalid \"levels\""))?;
        }
        b"use_temp_path" => spec.use_temp_path = flag()?,
        b"keys_zone" => {
            let text = String::from_utf8_lossy(text).into_owned();
            let invalid = || call.fail_at(index, "invalid keys zone size");
            let (name, size) = text.split_once(':').ok_or_else(invalid)?;
            spec.size = value::size(size.as_bytes()).ok_or_else(invalid)?;
            if spec.size < SMALLEST {
                let whole = call.text(index);
                return Err(call.under(call.fail(format!("keys zone \"{whole}\" is too small")), index));
            }
            spec.name = name.into();
        }
        b"inactive" => spec.inactive = value::sec(text).ok_or_else(invalid)?,
        b"max_size" => spec.max_size = Some(value::offset(text).ok_or_else(invalid)?),
        b"min_free" => spec.min_free = value::offset(text).ok_or_else(invalid)?,
        b"loader_files" => spec.loader.files = number()?,
        b"loader_sleep" => spec.loader.sleep = msec()?,
        b"loader_threshold" => spec.loader.threshold = msec()?,
        b"manager_files" => spec.manager.files = number()?,
        b"manager_sleep" => spec.manager.sleep = msec()?,
        b"manager_threshold" => spec.manager.threshold = msec()?,
        b"purger" => purger.0 = flag()?,
        b"purger_files" => purger.1.files = number()?,
        b"purger_sleep" => purger.1.sleep = msec()?,
        b"purger_threshold" => purger.1.threshold = msec()?,
        _ => return Err(call.invalid_parameter(index)),
    }
    Ok(())
}

/// `1:2:2`: up to three levels of one or two digits.
fn levels(text: &[u8]) -> Option<[u8; 3]> {
    let mut levels = [0; 3];
    if text.is_empty() {
        return Some(levels);
    }
    for (index, digit) in text.split(|byte| *byte == b':').enumerate() {
        *levels.get_mut(index)? = match digit {
            b"1" => 1,
            b"2" => 2,
            _ => return None,
        };
    }
    Some(levels)
}

/// The settings of one level.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `None` is `off`.
    zone: Setting<Option<weir_ir::Template>>,
    pub key: Setting<weir_ir::Template>,
    valid: Vec<(u16, u64)>,
    pub min_uses: Setting<u64>,
    methods: u32,
    bypass: Vec<weir_ir::Template>,
    no_cache: Vec<weir_ir::Template>,
    purge: Vec<weir_ir::Template>,
    use_stale: u32,
    pub background_update: Setting<bool>,
    pub revalidate: Setting<bool>,
    pub lock: Setting<bool>,
    pub lock_age: Setting<u64>,
    pub lock_timeout: Setting<u64>,
    pub convert_head: Setting<bool>,
    pub max_range_offset: Setting<u64>,
    /// Bits of [`ignore`].
    pub ignore_headers: u32,
}

const GET: u32 = 1;
const HEAD: u32 = 2;
const POST: u32 = 4;

impl Settings {
    /// `…_cache zone | off`
    pub(crate) fn set_zone(&mut self, module: &'static str, call: &mut Call<'_>) -> Result<(), Fault> {
        self.zone.put_with(call, |call| {
            if call.arg(0) == b"off" {
                return Ok(None);
            }
            let name = call.template(0)?;
            if name.as_literal().is_some() {
                call.zone(&call.text(0), 0, module)?;
            }
            Ok(Some(name))
        })
    }

    /// `…_cache_valid [code …] time`
    pub(crate) fn add_valid(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        let last = call.args().len() - 1;
        let time = value::sec(call.arg(last)).ok_or_else(|| call.fail_at(last, "invalid time value"))?;
        if last == 0 {
            self.valid.extend([200, 301, 302].map(|code| (code, time)));
        }
        for index in 0..last {
            let code = match call.arg(index) {
                b"any" => 0,
                text => match value::number(text) {
                    Some(code @ 100..=599) => code as u16,
                    Some(_) | None => return Err(call.fail_at(index, "invalid status")),
                },
            };
            self.valid.push((code, time));
        }
        Ok(())
    }

    pub(crate) fn add_methods(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        call.add_bits(&mut self.methods, &[("GET", GET), ("HEAD", HEAD), ("POST", POST)])
    }

    pub(crate) fn add_bypass(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        core::predicates(&mut self.bypass, call)
    }

    pub(crate) fn add_no_cache(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        core::predicates(&mut self.no_cache, call)
    }

    pub(crate) fn add_purge(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        core::predicates(&mut self.purge, call)
    }

    /// The words are those of the protocol's `…_next_upstream`.
    pub(crate) fn add_use_stale(&mut self, words: &[(&str, u32)], call: &mut Call<'_>) -> Result<(), Fault> {
        call.add_bits(&mut self.use_stale, words)
    }

    pub(crate) fn add_ignored(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        const WORDS: [(&str, u32); 9] = [
            ("X-Accel-Redirect", ignore::X_ACCEL_REDIRECT),
            ("X-Accel-Expires", ignore::X_ACCEL_EXPIRES),
            ("X-Accel-Limit-Rate", ignore::X_ACCEL_LIMIT_RATE),
            ("X-Accel-Buffering", ignore::X_ACCEL_BUFFERING),
            ("X-Accel-Charset", ignore::X_ACCEL_CHARSET),
            ("Expires", ignore::EXPIRES),
            ("Cache-Control", ignore::CACHE_CONTROL),
            ("Set-Cookie", ignore::SET_COOKIE),
            ("Vary", ignore::VARY),
        ];
        call.add_bits(&mut self.ignore_headers, &WORDS)
    }

    /// Takes over what the level leaves open.
    pub(crate) fn inherit(&mut self, outer: &Self) {
        macro_rules! settings {
            ($($field:ident),*) => { $(self.$field.inherit(&outer.$field);)* };
        }
        settings!(
            zone,
            key,
            min_uses,
            background_update,
            revalidate,
            lock,
            lock_age,
            lock_timeout,
            convert_head,
            max_range_offset
        );
        let lists = [
            (&mut self.bypass, &outer.bypass),
            (&mut self.no_cache, &outer.no_cache),
            (&mut self.purge, &outer.purge),
        ];
        for (own, outer) in lists {
            if own.is_empty() {
                own.clone_from(outer);
            }
        }
        if self.valid.is_empty() {
            self.valid.clone_from(&outer.valid);
        }
        let bits = [
            (&mut self.methods, outer.methods),
            (&mut self.use_stale, outer.use_stale),
            (&mut self.ignore_headers, outer.ignore_headers),
        ];
        for (own, outer) in bits {
            if *own == 0 {
                *own = outer;
            }
        }
    }

    /// The cache's zone is one of the module's.
    pub(crate) fn check(&self, prefix: &str, paths: &Paths, merge: &Merge<'_>) -> Result<(), Fault> {
        let name = self.zone.get().and_then(Option::as_ref).and_then(weir_ir::Template::as_literal);
        match name.filter(|name| !paths.has(name)) {
            None => Ok(()),
            Some(name) => {
                let name = String::from_utf8_lossy(name);
                Err(merge.fail(format!("\"{prefix}_cache\" zone \"{name}\" is unknown")))
            }
        }
    }

    pub(crate) fn is_set(&self) -> bool {
        self.zone.is_set()
    }

    pub(crate) fn turn_off(&mut self) {
        self.zone.replace(None);
    }

    pub(crate) fn is_on(&self) -> bool {
        self.zone.get().is_some_and(Option::is_some)
    }

    /// What the engine goes by; `None` where nothing is kept.
    pub(crate) fn compile(&self, names: Names, plan: &Plan<'_, '_>) -> Option<Arc<Caching>> {
        let name = self.zone.get()?.as_ref()?;
        let mut zones = plan.build.caches().iter().filter(|zone| zone.spec.module == names.module);
        let zone = match name.as_literal() {
            Some(name) => Place::Zone(Arc::clone(zones.find(|zone| zone.spec.name.as_bytes() == name)?)),
            None => Place::Computed(plan.template(name), zones.cloned().collect()),
        };
        let templates = |list: &[weir_ir::Template]| list.iter().map(|t| plan.template(t)).collect();
        Some(Arc::new(Caching {
            module: names.prefix,
            zone,
            key: self.key.get().map(|key| plan.template(key)),
            valid: self.valid.clone().into(),
            min_uses: self.min_uses.or(1),
            post: self.methods & POST != 0,
            bypass: templates(&self.bypass),
            no_cache: templates(&self.no_cache),
            purge: templates(&self.purge),
            use_stale: if self.use_stale & next::OFF == 0 { self.use_stale } else { 0 },
            background_update: self.background_update.or(false),
            revalidate: self.revalidate.or(false),
            lock: self.lock.or(false),
            lock_age: self.lock_age.or(5000),
            lock_timeout: self.lock_timeout.or(5000),
            convert_head: self.convert_head.or(true),
            max_range_offset: self.max_range_offset.get().copied(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::check_conf;

    #[test]
    fn what_is_wrong_with_a_path() {
        let check = |parameters: &str, expected: &str| {
            check_conf(&format!("proxy_cache_path /c {parameters};"), expected);
        };
        let ok = "keys_zone=z:1m";
        check(ok, "");
        check(
            &format!(
                "{ok} levels=1:2 use_temp_path=off inactive=1d max_size=1g min_free=1k manager_files=1 \
                 manager_sleep=1s manager_threshold=2 loader_files=1 loader_sleep=1 loader_threshold=1"
            ),
            "",
        );
        check(&format!("{ok} levels=1:2:2"), "");
        for levels in ["3", "1:", "1:2:2:1", ":1", "11"] {
            check(&format!("{ok} levels={levels}"), &format!("invalid \"levels\" \"levels={levels}\""));
        }
        check(
            &format!("{ok} use_temp_path=x"),
            "invalid use_temp_path value \"use_temp_path=x\", it must be \"on\" or \"off\"",
        );
        check("keys_zone=z", "invalid keys zone size \"keys_zone=z\"");
        check("keys_zone=z:x", "invalid keys zone size \"keys_zone=z:x\"");
        check("keys_zone=z:1k", "keys zone \"keys_zone=z:1k\" is too small");
        check("levels=1", "\"proxy_cache_path\" must have \"keys_zone\" parameter");
        check("keys_zone=:1m", "\"proxy_cache_path\" must have \"keys_zone\" parameter");
        for name in ["inactive", "max_size", "min_free", "loader_files", "loader_sleep", "manager_threshold"]
        {
            check(&format!("{ok} {name}=x"), &format!("invalid {name} value \"{name}=x\""));
        }
        check(&format!("{ok} purger=on purger_files=1 purger_sleep=1s purger_threshold=5"), "");
        check(
            &format!("{ok} purger=yes"),
            "invalid purger value \"purger=yes\", it must be \"on\" or \"off\"",
        );
        check(&format!("{ok} purger_files=x"), "invalid purger_files value \"purger_files=x\"");
        check(&format!("{ok} x"), "invalid parameter \"x\"");
        check(&format!("{ok}; proxy_cache_path /d keys_zone=z:1m"), "duplicate zone \"z\"");
        check(
            &format!("{ok}; proxy_cache_path /c keys_zone=y:1m"),
            "the same path name \"/c\" used in /conf/nginx.conf:1 and",
        );
    }

    #[test]
    fn what_is_wrong_with_the_others() {
        let check = |directive: &str, expected: &str| {
            check_conf(&format!("proxy_cache_path /c keys_zone=z:1m; {directive}; server {{ }}"), expected);
        };
        check("proxy_cache z", "");
        check("proxy_cache $host", "");
        check("proxy_cache off", "");
        check("proxy_cache x", "\"proxy_cache\" zone \"x\" is unknown");
        check("proxy_cache z; proxy_cache z", "\"proxy_cache\" directive is duplicate");
        check("proxy_cache_key a; proxy_cache_key a", "\"proxy_cache_key\" directive is duplicate");
        check("proxy_cache_valid any 1m; proxy_cache_valid 1m", "");
        check("proxy_cache_valid x", "invalid time value \"x\"");
        check("proxy_cache_valid 99 1m", "invalid status \"99\"");
        check("proxy_cache_valid x 1m", "invalid status \"x\"");
        check("proxy_cache_methods get POST", "");
        check("proxy_cache_methods PUT", "invalid value \"PUT\"");
        check("proxy_cache_use_stale error updating http_500", "");
        check("proxy_cache_use_stale x", "invalid value \"x\"");
        check("proxy_cache_bypass $arg_a $arg_b; proxy_cache_bypass $arg_c; proxy_no_cache $arg_a", "");
        check(
            "proxy_cache_lock x",
            "invalid value \"x\" in \"proxy_cache_lock\" directive, it must be \"on\" or \"off\"",
        );
        check("proxy_cache_min_uses x", "\"proxy_cache_min_uses\" directive invalid number");
        check("proxy_cache_max_range_offset x", "\"proxy_cache_max_range_offset\" directive invalid value");
        check("proxy_ignore_headers Vary set-cookie", "");
        check("proxy_ignore_headers Date", "invalid value \"Date\"");
        check(
            "limit_req_zone $host zone=l:1m rate=1r/s; proxy_cache l",
            "the shared memory zone \"l\" is already declared for a different use",
        );
    }
}

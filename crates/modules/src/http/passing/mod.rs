//! What the modules that pass requests on have in common (`proxy_…`, `fastcgi_…`): their settings, how levels inherit them,
//! what the engine makes of them. Each has its own table of directives, and what only its protocol has.

pub mod attempts;
pub(crate) mod buffers;
pub mod cache;
pub(crate) mod response;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use weir_engine::generation::Plan;
use weir_engine::upstream::Settings;
use weir_ir::lowering::{Call, Fault, Merge};
use weir_ir::{Once, Setting};

use attempts::Attempts;
use buffers::{Buffers, Store};

/// A module as configurations and zones know it.
#[derive(Clone, Copy)]
pub(crate) struct Names {
    pub module: &'static str,
    /// What its directives begin with.
    pub prefix: &'static str,
}

/// The settings of one level.
#[derive(Clone, Debug, Default)]
pub struct Common {
    pub(crate) attempts: Attempts,
    pub(crate) pass_request_headers: Setting<bool>,
    pub(crate) pass_request_body: Setting<bool>,
    pub(crate) request_buffering: Setting<bool>,
    pub(crate) pass_headers: Vec<Box<[u8]>>,
    pub(crate) hide_headers: Vec<Box<[u8]>>,
    pub(crate) intercept_errors: Setting<bool>,
    pub(crate) ignore_client_abort: Setting<bool>,
    pub(crate) force_ranges: Setting<bool>,
    pub(crate) buffers: Buffers,
    pub(crate) cache: cache::Settings,
    pub(crate) once: Once,
}

impl Common {
    /// `…_pass_header`
    pub(crate) fn pass_header(&mut self, call: &Call<'_>) -> Result<(), Fault> {
        self.pass_headers.push(call.arg(0).to_ascii_lowercase().into());
        Ok(())
    }

    /// `…_hide_header`
    pub(crate) fn hide_header(&mut self, call: &Call<'_>) -> Result<(), Fault> {
        self.hide_headers.push(call.arg(0).to_ascii_lowercase().into());
        Ok(())
    }

    /// `…_store`
    pub(crate) fn store(&mut self, names: Names, call: &mut Call<'_>) -> Result<(), Fault> {
        let cached = self.cache.is_on();
        self.buffers.store.put_with(call, |call| match Store::read(call)? {
            Store::On | Store::At(_) if cached => {
                Err(call.refuse(&format!("is incompatible with \"{}_cache\"", names.prefix)))
            }
            store => Ok(store),
        })
    }

    /// `…_cache`
    pub(crate) fn cache_zone(&mut self, names: Names, call: &mut Call<'_>) -> Result<(), Fault> {
        let stored = self.buffers.store.get().is_some_and(|store| *store != Store::Off);
        if stored && !self.cache.is_set() && call.arg(0) != b"off" {
            return Err(call.refuse(&format!("is incompatible with \"{}_store\"", names.prefix)));
        }
        self.cache.set_zone(names.module, call)
    }

    /// Takes over what the level leaves open.
    pub(crate) fn inherit(
        &mut self,
        outer: &Self,
        names: Names,
        paths: &cache::Paths,
        merge: &Merge<'_>,
    ) -> Result<(), Fault> {
        macro_rules! settings {
            ($($field:ident),* $(,)?) => { $(self.$field.inherit(&outer.$field);)* };
        }
        settings!(
            attempts,
            pass_request_headers,
            pass_request_body,
            request_buffering,
            intercept_errors,
            ignore_client_abort,
            force_ranges,
        );
        // Lists are taken over whole or not at all.
        for (own, outer) in
            [(&mut self.pass_headers, &outer.pass_headers), (&mut self.hide_headers, &outer.hide_headers)]
        {
            if own.is_empty() {
                own.clone_from(outer);
            }
        }
        // Of a cache and a store the inner one counts.
        if self.buffers.store.get().is_some_and(|store| *store != Store::Off) {
            self.cache.turn_off();
        }
        if self.cache.is_on() {
            self.buffers.store.replace(Store::Off);
        }
        self.buffers.inherit(&outer.buffers, names.prefix, merge)?;
        self.cache.inherit(&outer.cache);
        self.cache.check(names.prefix, paths, merge)
    }

    /// What the engine goes by. `opened_by` is what else connections have of the settings.
    pub(crate) fn settings(&self, names: Names, opened_by: impl Hash, plan: &Plan<'_, '_>) -> Settings {
        let attempts = self.attempts.settings(plan);
        let mut hasher = DefaultHasher::new();
        (names.module, &attempts.socket, self.attempts.bound(), opened_by).hash(&mut hasher);
        Settings {
            request_buffering: self.request_buffering.or(true),
            pass_request_body: self.pass_request_body.or(true),
            buffer_size: self.buffers.head(),
            buffering: self.buffers.on.or(true),
            buffers: Arc::new(self.buffers.compile(plan)),
            ignore_client_abort: self.ignore_client_abort.or(false),
            intercept_errors: self.intercept_errors.or(false),
            opened_by: hasher.finish(),
            ignore_headers: self.cache.ignore_headers,
            cache: self.cache.compile(names, plan),
            store: self.buffers.compile_store(plan).map(Arc::new),
            ..attempts
        }
    }
}

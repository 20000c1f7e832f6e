//! `…_buffers` and what belongs to them, and `…_store`, of whoever asks upstreams.

use std::sync::Arc;

use weir_engine::generation::Plan;
use weir_engine::upstream::{Buffering, Storing};
use weir_ir::lowering::{Call, Fault, Merge};
use weir_ir::program::PathSpec;
use weir_ir::{Setting, Template};

/// The settings at one level.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers {
    pub on: Setting<bool>,
    pub head: Setting<u64>,
    pub body: Setting<(u64, u64)>,
    pub busy: Setting<u64>,
    pub max_temp_file_size: Setting<u64>,
    pub temp_file_write_size: Setting<u64>,
    pub temp_path: Setting<PathSpec>,
    pub limit_rate: Setting<Template>,
    pub store: Setting<Store>,
    pub store_access: Setting<u32>,
}

/// `…_store`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    Off,
    /// As the file that the location has for the request.
    On,
    At(Template),
}

const PAGE: u64 = 4096;

impl Store {
    pub(crate) fn read(call: &mut Call<'_>) -> Result<Self, Fault> {
        match call.arg(0) {
            b"off" => Ok(Self::Off),
            b"" => Err(call.under(call.fail("empty path"), 0)),
            b"on" => Ok(Self::On),
            _ => call.template(0).map(Self::At),
        }
    }
}

impl Buffers {
    /// Takes over what the level leaves open. `prefix` is the directives'.
    pub(crate) fn inherit(&mut self, outer: &Self, prefix: &str, merge: &Merge<'_>) -> Result<(), Fault> {
        macro_rules! settings {
            ($($field:ident),*) => { $(self.$field.inherit(&outer.$field);)* };
        }
        settings!(
            on,
            head,
            body,
            busy,
            max_temp_file_size,
            temp_file_write_size,
            temp_path,
            limit_rate,
            store,
            store_access
        );
        self.check(prefix, merge)
    }

    /// nginx's rules between the sizes.
    fn check(&self, prefix: &str, merge: &Merge<'_>) -> Result<(), Fault> {
        let (number, each) = self.body.or((8, PAGE));
        if number < 2 {
            return Err(merge.fail(format!("there must be at least 2 \"{prefix}_buffers\"")));
        }
        let largest = self.largest();
        let least = format!(
            "equal to or greater than the maximum of the value of \"{prefix}_buffer_size\" and one of the \
             \"{prefix}_buffers\""
        );
        let busy = self.busy.or(2 * largest);
        if busy < largest {
            return Err(merge.fail(format!("\"{prefix}_busy_buffers_size\" must be {least}")));
        }
        if busy > (number - 1).saturating_mul(each) {
            return Err(merge.fail(format!(
                "\"{prefix}_busy_buffers_size\" must be less than the size of all \"{prefix}_buffers\" minus one buffer"
            )));
        }
        if self.temp_file_write_size.or(2 * largest) < largest {
            return Err(merge.fail(format!("\"{prefix}_temp_file_write_size\" must be {least}")));
        }
        let temp = self.max_temp_file_size.or(1 << 30);
        if temp != 0 && temp < largest {
            return Err(merge.fail(format!(
                "\"{prefix}_max_temp_file_size\" must be equal to zero to disable temporary files usage or must be {least}"
            )));
        }
        Ok(())
    }

    fn largest(&self) -> u64 {
        self.head.or(PAGE).max(self.body.or((8, PAGE)).1)
    }

    /// Makes the folder for temporary files of that name where none is given.
    pub(crate) fn make_temp_path(&mut self, name: &str, merge: &mut Merge<'_>) -> Result<(), Fault> {
        if !self.temp_path.is_set() {
            let path = format!("{}{name}", merge.prefixes().state).into();
            let spec = PathSpec { path, levels: [1, 2, 0], position: None };
            merge.directory(spec.clone())?;
            self.temp_path.replace(spec);
        }
        Ok(())
    }

    pub(crate) fn head(&self) -> usize {
        self.head.or(PAGE) as usize
    }

    /// What the engine goes by.
    pub(crate) fn compile(&self, plan: &Plan<'_, '_>) -> Buffering {
        let (number, each) = self.body.or((8, PAGE));
        let memory = self.head.or(PAGE).saturating_add(number.saturating_mul(each));
        Buffering {
            memory: usize::try_from(memory).unwrap_or(usize::MAX),
            // Whoever asks an upstream has one.
            temp_path: Arc::new(self.temp_path.or(PathSpec::default())),
            max_file: self.max_temp_file_size.or(1 << 30),
            write_size: self.temp_file_write_size.or(2 * self.largest()) as usize,
            rate: self.limit_rate.get().map(|rate| plan.template(rate)),
            piece: each,
        }
    }

    /// Where answers are files of their own.
    pub(crate) fn compile_store(&self, plan: &Plan<'_, '_>) -> Option<Storing> {
        let path = match self.store.get()? {
            Store::Off => return None,
            Store::On => None,
            Store::At(path) => Some(plan.template(path)),
        };
        Some(Storing { path, access: self.store_access.or(0o600) })
    }
}

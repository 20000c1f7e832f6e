//! The configuration of modules whose one directive gives a level its handler.

use std::sync::Arc;

use weir_engine::contract::Content;
use weir_engine::generation::{ContentHandler, Plan};
use weir_ir::contract::Conf;
use weir_ir::{Fault, Merge};

/// Whether this very level has the handler, which is not inherited.
#[derive(Clone, Debug, Default)]
pub struct Shown(bool);

impl Conf for Shown {
    const EVERY_LEVEL: bool = true;

    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

impl Shown {
    pub(super) fn set(&mut self) -> Result<(), Fault> {
        self.0 = true;
        Ok(())
    }

    pub(super) fn install(&self, plan: &mut Plan<'_, '_>, handler: impl Content + 'static) {
        if self.0 {
            plan.handlers.handler = Some(ContentHandler::Content(Arc::new(handler)));
        }
    }
}

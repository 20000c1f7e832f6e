//! `client_body_early_read`: a request's body is read whole before anything is decided of it.

use crate::contract::{Check, Flow, Step};
use crate::http::{Exchange, Template, phases};

/// Where one of these values is neither empty nor `0`.
pub(crate) struct EarlyBody(pub Vec<Template>);

impl Check for EarlyBody {
    fn check<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        if !x.body.exists() || !self.0.iter().any(|value| value.is_true(x)) {
            return Step::Now(Flow::Decline);
        }
        if let Some(refused) = phases::too_large(x) {
            return Step::Now(refused);
        }
        Step::Later(Box::pin(async move {
            match x.read_body().await {
                Ok(()) => Flow::Decline,
                Err(error) => Flow::Answer(error.0),
            }
        }))
    }
}

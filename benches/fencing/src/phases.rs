//! How long the steps of a fence took: the spans that `drover-rbd-volume` opens around them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{Subscriber, span};
use tracing_subscriber::{Layer, filter::filter_fn, layer::Context, prelude::*, registry::LookupSpan};

/// The spans that have ended, in the order of their ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Phases(Arc<Mutex<Vec<(&'static str, Duration)>>>);

struct Began(Instant);

impl Phases {
    /// Records in this process from now on.
    pub(crate) fn record() -> Self {
        let phases = Self::default();
        let ours =
            filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("drover_rbd_volume"));
        tracing_subscriber::registry().with(phases.clone().with_filter(ours)).init();
        phases
    }

    /// What has ended since the last call.
    pub(crate) fn take(&self) -> Vec<(&'static str, Duration)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Phases {
    fn on_new_span(&self, _: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Began(Instant::now()));
        }
    }

    fn on_close(&self, id: span::Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(began) = span.extensions().get::<Began>().map(|began| began.0) else { return };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((span.name(), began.elapsed()));
    }
}

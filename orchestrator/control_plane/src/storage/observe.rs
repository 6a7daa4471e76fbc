//! Progress and cancellation of work that blocks a thread.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use drover_cluster_state::ClusterState;
use drover_ids::OperationId;
use drover_ports::Store;
use drover_reconcile::admission::{self, AdmissionError};
use drover_storage_pools::Observer;
use drover_units::Bytes;

use crate::{pools::blocking, services::Api};

/// How often progress is looked at and written: often enough for people, rarely enough for the store.
const LOOK: Duration = Duration::from_millis(500);

/// Shared by the thread that works and the task that looks.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

impl Observer for Progress {
    fn progress(&self, done: Bytes, total: Bytes) {
        self.done.store(done.get(), Ordering::Relaxed);
        self.total.store(total.get(), Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// A part of an operation: what it is called, and between which percentages it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Phase {
    pub(crate) step: &'static str,
    pub(crate) from: u8,
    pub(crate) to: u8,
}

impl Progress {
    fn percent(&self, phase: Phase) -> u8 {
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        let share = u128::from(phase.to - phase.from) * u128::from(done.min(total));
        let share = share.checked_div(u128::from(total)).unwrap_or(0);
        phase.from.saturating_add(u8::try_from(share).unwrap_or(0))
    }
}

impl<S: Store> Api<S> {
    /// Runs what waits for storage, shows how far it is, and tells it when the operation is taken back.
    pub(super) async fn observed<T: Send + 'static>(
        &self,
        id: OperationId,
        phase: Phase,
        work: impl FnOnce(&Progress) -> T + Send + 'static,
    ) -> T {
        let progress = Arc::new(Progress::default());
        let observed = Arc::clone(&progress);
        let mut work = Box::pin(blocking(move || work(&observed)));
        self.show(id, phase.from, phase.step).await;
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = tokio::time::sleep(LOOK) => {}
            }
            if self.is_cancelled(id).await {
                progress.cancelled.store(true, Ordering::Relaxed);
            }
            self.show(id, progress.percent(phase), phase.step).await;
        }
    }

    /// Whether a client has taken the operation back.
    pub(super) async fn is_cancelled(&self, id: OperationId) -> bool {
        let asked = move |state: &ClusterState| state.operations.get(&id).is_some_and(|o| o.cancel_requested);
        self.cluster.read(move |view| asked(view.state)).await.unwrap_or(false)
    }

    /// Ready once a client has taken the operation back.
    pub(super) async fn cancelled(&self, id: OperationId) {
        let mut changes = self.cluster.changes();
        while !self.is_cancelled(id).await {
            if changes.changed().await.is_err() {
                // The process is about to end: nobody takes anything back any more.
                std::future::pending::<()>().await;
            }
        }
    }

    pub(super) async fn show(&self, id: OperationId, percent: u8, step: &'static str) {
        let shown = self.cluster.submit(move |view| {
            Ok::<_, AdmissionError>(((), admission::progress_storage(view.state, id, percent, step)))
        });
        // Only for people: the next look tries again.
        let _unseen = shown.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lies_within_its_phase() {
        let progress = Progress::default();
        let phase = Phase { step: "", from: 50, to: 99 };
        assert_eq!(progress.percent(phase), 50);
        progress.progress(Bytes::mib(1), Bytes::mib(2));
        assert_eq!(progress.percent(phase), 74);
        progress.progress(Bytes::new(u64::MAX), Bytes::mib(2));
        assert_eq!(progress.percent(phase), 99);
    }
}

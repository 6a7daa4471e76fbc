//! What a migration is doing, for whoever watches.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use drover_units::{Bytes, BytesPerSec};

/// Where a migration is.
///
/// ```text
///  Reserved -> TargetReady -> Copying -> Switchover -> Committed -> SourceRetired
///      \____________\____________\____________\--> Aborted
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The ends find each other and compare shapes.
    #[default]
    Reserved,
    /// The target's machine fits.
    TargetReady,
    /// RAM moves while the guest runs at the source.
    Copying,
    /// The guest stands still; the rest moves.
    Switchover,
    /// The guest is the target's. The source stays paused.
    Committed,
    /// The guest runs at the target.
    SourceRetired,
    /// Given up before Commit: the guest is the source's.
    Aborted,
}

/// A migration's progress as one end sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MigrationProgress {
    /// Where it is.
    pub phase: Phase,
    /// Rounds that the target has acknowledged.
    pub rounds: u32,
    /// Bytes on the wire so far, headers included (at the target: received).
    pub bytes_sent: Bytes,
    /// Guest RAM dirty after the last round.
    pub bytes_remaining: Bytes,
    /// What the link carries. Zero: not measured yet.
    pub bandwidth: BytesPerSec,
    /// Since the migration began, until it ended.
    pub total: Duration,
    /// From the source's request to stop the vCPUs to the target's word that they run, by the source's clock.
    /// Zero before, and at the target.
    pub downtime: Duration,
    /// How many grants did not bring the guest back here.
    pub grants_failed: u32,
    /// Why the last of them did not. Empty: none has failed.
    pub grant_failure: String,
    /// For people: why it was aborted, or what is wrong after Commit. Empty: nothing is.
    pub detail: String,
}

type Observer = Box<dyn Fn(&MigrationProgress) + Send + Sync>;

/// Shared handle to a migration's progress: the driver writes, anyone reads the newest. Clones share it.
#[derive(Clone, Default)]
pub struct ProgressHandle {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    latest: Mutex<MigrationProgress>,
    observer: Option<Observer>,
}

impl fmt::Debug for ProgressHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProgressHandle").field(&self.latest()).finish()
    }
}

impl ProgressHandle {
    /// A handle that also tells `observer` of every change, on the driver's thread. The observer must not block: the
    /// guest may be standing still.
    pub fn observed_by(observer: impl Fn(&MigrationProgress) + Send + Sync + 'static) -> Self {
        let observer: Option<Observer> = Some(Box::new(observer));
        Self { shared: Arc::new(Shared { latest: Mutex::default(), observer }) }
    }

    /// The newest progress.
    pub fn latest(&self) -> MigrationProgress {
        self.shared.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Publishes progress if it differs from the newest.
    pub(crate) fn publish(&self, progress: MigrationProgress) {
        {
            let mut latest = self.shared.latest.lock().unwrap_or_else(PoisonError::into_inner);
            if *latest == progress {
                return;
            }
            latest.clone_from(&progress);
        }
        if let Some(observer) = &self.shared.observer {
            observer(&progress);
        }
    }
}

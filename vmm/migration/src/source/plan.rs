//! What the source is told before it begins.

use std::time::Duration;

use drover_ids::{MigrationId, OwnerEpoch};

use crate::convergence::Limits;

/// How long each part may take before the migration is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTimeouts {
    /// Connecting to the target.
    pub connect: Duration,
    /// From Hello to HelloAck. The target's machine is built already: comparing shapes takes no time.
    pub negotiate: Duration,
    /// From the end of a round to its acknowledgement: what the sockets still hold must be written to RAM.
    pub acknowledge: Duration,
    /// From the pause of the guest to Commit. The guest stands still all that time.
    pub switchover: Duration,
    /// From Commit to Resumed, after which the wait is reported. It does not end.
    pub confirm: Duration,
}

impl Default for SourceTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            negotiate: Duration::from_secs(10),
            acknowledge: Duration::from_secs(20),
            switchover: Duration::from_secs(2),
            confirm: Duration::from_secs(5),
        }
    }
}

/// One migration as the orchestrator ordered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePlan {
    /// Which attempt this is.
    pub migration: MigrationId,
    /// The epoch under which the guest runs here.
    pub source_epoch: OwnerEpoch,
    /// The epoch under which it will run there. Newer.
    pub target_epoch: OwnerEpoch,
    /// When to switch over.
    pub limits: Limits,
    /// When to give up.
    pub timeouts: SourceTimeouts,
}

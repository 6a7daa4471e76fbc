//! What may be asked of a VM, and the reasons to refuse.

use std::fmt;

use drover_ids::{MigrationId, OperationId, OwnerEpoch};

use crate::{Lease, State};

/// Who asks: every command that changes something carries this (B8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// The operation the command belongs to.
    pub operation: OperationId,
    /// The sender's epoch of the VM.
    pub epoch: OwnerEpoch,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Build the machine.
    Create {
        /// Until when it may run; absent: not limited by time.
        lease: Option<Lease>,
    },
    /// Run a built machine for the first time.
    Start,
    /// Take the vCPUs out.
    Pause,
    /// Let the vCPUs in again; after Commit, with a newer epoch, take the VM back.
    Resume,
    /// Write the VM into a file and end it here.
    Suspend,
    /// End the VM.
    Stop,
    /// Send the VM to another process.
    MigrateOut {
        /// The migration's id.
        migration: MigrationId,
        /// The epoch under which the target will run the VM.
        target_epoch: OwnerEpoch,
    },
    /// Give up sending, as long as Commit has not been sent.
    CancelMigration {
        /// The migration to cancel.
        migration: MigrationId,
    },
    /// Wait for a VM from another process.
    MigrateIn {
        /// The migration to expect.
        migration: MigrationId,
        /// Until when the VM may run here; absent: not limited by time.
        lease: Option<Lease>,
    },
}

impl Request {
    /// The request's name, without its data.
    pub const fn verb(&self) -> Verb {
        match self {
            Self::Create { .. } => Verb::Create,
            Self::Start => Verb::Start,
            Self::Pause => Verb::Pause,
            Self::Resume => Verb::Resume,
            Self::Suspend => Verb::Suspend,
            Self::Stop => Verb::Stop,
            Self::MigrateOut { .. } => Verb::MigrateOut,
            Self::CancelMigration { .. } => Verb::CancelMigration,
            Self::MigrateIn { .. } => Verb::MigrateIn,
        }
    }
}

/// The name of a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the Request of the same name")]
pub enum Verb {
    Create,
    Start,
    Pause,
    Resume,
    Suspend,
    Stop,
    MigrateOut,
    CancelMigration,
    MigrateIn,
    ExtendLease,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The names are those of the rpc methods.
        fmt::Debug::fmt(self, f)
    }
}

/// Why a request is refused. A refused request changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Epoch zero is held by nobody.
    #[error("command.owner_epoch is 0, which nobody holds: valid epochs start at 1")]
    NoEpoch,
    /// The sender has lost the VM to a newer owner.
    #[error("command.owner_epoch {given} is stale: this VM belongs to epoch {current}")]
    StaleEpoch {
        /// The sender's epoch.
        given: OwnerEpoch,
        /// The VM's.
        current: OwnerEpoch,
    },
    /// Epochs change by Create, MigrateIn and the grant after Commit only; Stop may come from any newer owner.
    #[error(
        "command.owner_epoch {given} is ahead of this VM's epoch {current}: \
         only Stop, and Resume in state COMMITTED, may carry a newer one"
    )]
    FutureEpoch {
        /// The sender's epoch.
        given: OwnerEpoch,
        /// The VM's.
        current: OwnerEpoch,
    },
    /// The state does not admit the verb.
    #[error("{verb} is not possible in state {state}: it needs {needs}")]
    WrongState {
        /// What was asked.
        verb: Verb,
        /// The VM's state.
        state: State,
        /// The states that admit it.
        needs: &'static str,
    },
    /// The driver is in the middle of something.
    #[error("{verb} is not possible right now: another command is being carried out, try again")]
    Busy {
        /// What was asked.
        verb: Verb,
    },
    /// The lease is overdue: only its renewal lets the VM run.
    #[error("{verb} is not possible: the lease is overdue, renew it with ExtendLease first")]
    LeaseOverdue {
        /// What was asked.
        verb: Verb,
    },
    /// A hand-over needs a newer epoch for the target.
    #[error("target_epoch {given} must be newer than this VM's epoch {current}")]
    TargetEpochNotNewer {
        /// The target's epoch as given.
        given: OwnerEpoch,
        /// The VM's.
        current: OwnerEpoch,
    },
    /// After Commit only the word that the target has been fenced lets the source run.
    #[error(
        "this VM has been handed over under epoch {target}: \
         Resume needs a command.owner_epoch newer than that, granted once the target is fenced, not {given}"
    )]
    HandedOver {
        /// The sender's epoch.
        given: OwnerEpoch,
        /// The target's.
        target: OwnerEpoch,
    },
    /// The migration named is not the one under way.
    #[error("migration_id {given} is not under way here{}", match .current {
        Some(current) => format!(": the current migration is {current}"),
        None => ", and no other is".to_owned(),
    })]
    UnknownMigration {
        /// The id given.
        given: MigrationId,
        /// The migration under way, if there is one.
        current: Option<MigrationId>,
    },
    /// Too late to cancel.
    #[error(
        "migration {migration} has been committed: the target owns the VM, and cancelling is no longer possible"
    )]
    AlreadyCommitted {
        /// The migration.
        migration: MigrationId,
    },
    /// The VM is being ended.
    #[error("{verb} is not possible: the VM is being stopped")]
    Ending {
        /// What was asked.
        verb: Verb,
    },
}

//! Where a VM is in its life: [`Phase`] with what belongs to each, [`State`] as the name that others see.

use std::fmt;

use drover_ids::{MigrationId, OwnerEpoch};

/// The thread that talks to the other side of a migration, as the lifecycle knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// It works.
    Open,
    /// It has been told to give up and has not answered yet.
    Aborting,
    /// It has ended and handed the machine back.
    Closed,
}

/// The phase of the VM and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing has been created.
    Empty,
    /// Built, never started.
    Created,
    /// The vCPUs run.
    Running,
    /// The vCPUs are out and the devices are quiet.
    Paused {
        /// Only the lease keeps the VM out: its renewal resumes it.
        resume_on_renewal: bool,
    },
    /// Waits for, or receives, the guest of another process.
    Incoming {
        /// The expected migration.
        migration: MigrationId,
        /// The receiving thread.
        link: Link,
    },
    /// Runs while it is sent away.
    MigratingOut {
        /// The migration under way.
        migration: MigrationId,
        /// The epoch under which the target will run it.
        target_epoch: OwnerEpoch,
        /// The sending thread.
        link: Link,
    },
    /// Commit has been sent: the target may run the VM, so this side may not, until the target is known to be fenced.
    Committed {
        /// The migration under way.
        migration: MigrationId,
        /// The epoch that was handed over. Only a newer one lets this side run again.
        target_epoch: OwnerEpoch,
        /// The sending thread, which waits for the target's confirmation.
        link: Link,
        /// The newer epoch that the sending thread has been told to take the VM back under.
        granted: Option<OwnerEpoch>,
    },
    /// The target runs the VM.
    Migrated {
        /// The migration that did it.
        migration: MigrationId,
    },
    /// Ended, for this reason.
    Stopped {
        /// Why.
        reason: StopReason,
        /// For people.
        detail: String,
    },
}

impl Phase {
    /// The phase's name, without its data.
    pub const fn state(&self) -> State {
        match self {
            Self::Empty => State::Empty,
            Self::Created => State::Created,
            Self::Running => State::Running,
            Self::Paused { .. } => State::Paused,
            Self::Incoming { .. } => State::Incoming,
            Self::MigratingOut { .. } => State::MigratingOut,
            Self::Committed { .. } => State::Committed,
            Self::Migrated { .. } => State::Migrated,
            Self::Stopped { .. } => State::Stopped,
        }
    }
}

/// The name of a [`Phase`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is the Phase of the same name")]
pub enum State {
    Empty,
    Created,
    Running,
    Paused,
    Incoming,
    MigratingOut,
    Committed,
    Migrated,
    Stopped,
}

impl State {
    /// Nothing runs here any more and nothing will.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Migrated | Self::Stopped)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "EMPTY",
            Self::Created => "CREATED",
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::Incoming => "INCOMING",
            Self::MigratingOut => "MIGRATING_OUT",
            Self::Committed => "COMMITTED",
            Self::Migrated => "MIGRATED",
            Self::Stopped => "STOPPED",
        })
    }
}

/// Why a VM stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopReason {
    /// By Stop, or a termination signal to the process.
    Command,
    /// The guest powered off or asked for a reset.
    GuestShutdown,
    /// The guest stopped the machine by a fault.
    GuestFault,
    /// The lease ran out.
    SelfFenced,
    /// Storage refused this owner.
    Fenced,
    /// A device or the VMM failed.
    VmmFailure,
    /// A migration left nothing here that could run.
    MigrationFailed,
    /// The storage did not answer for longer than the VM's policy allows.
    StorageStalled,
    /// By Suspend: the VM is in its file.
    Suspended,
}

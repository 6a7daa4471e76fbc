//! What a node says about a VM of its own.

use std::{collections::BTreeSet, time::Duration};

use drover_ids::{MigrationId, OwnerEpoch, VolumeId};

/// State of a VM's process (`drover.vm.v1.VmState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// The process runs, nothing has been created.
    Empty,
    /// Built, not started.
    Created,
    /// vCPUs run.
    Running,
    /// vCPUs are stopped.
    Paused,
    /// Waits for, or receives, a migration.
    Incoming,
    /// Runs while it is being sent.
    MigratingOut,
    /// Source after Commit: paused until the target says it runs, or a newer epoch is granted.
    Committed,
    /// Source after the target confirmed.
    Migrated,
    /// Ended.
    Stopped,
}

/// Why a VM ended (`drover.vm.v1.StopReason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Not said: the process died without a word.
    Unknown,
    /// By command.
    Command,
    /// The guest powered off or asked for a reset.
    GuestShutdown,
    /// The guest stopped the machine by fault.
    GuestFault,
    /// The lease ran out.
    SelfFenced,
    /// Storage refused this owner.
    Fenced,
    /// A device or the VMM failed.
    VmmFailure,
    /// As a migration's target: the migration failed.
    MigrationFailed,
    /// The storage did not answer for longer than the VM's policy allows.
    StorageStalled,
    /// Written into a file by command.
    Suspended,
}

impl StopReason {
    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Unknown => "the process died",
            Self::Command => "stopped by command",
            Self::GuestShutdown => "the guest shut itself down",
            Self::GuestFault => "the guest crashed",
            Self::SelfFenced => "the node lost its lease",
            Self::Fenced => "storage refused this owner",
            Self::VmmFailure => "the VMM failed",
            Self::MigrationFailed => "the incoming migration failed",
            Self::StorageStalled => "its storage did not answer",
            Self::Suspended => "suspended to a file",
        }
    }
}

/// How far a migration is (`drover.vm.v1.MigrationPhase`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MigrationPhase {
    /// Admitted.
    Reserved,
    /// The target has built the machine.
    TargetReady,
    /// Memory is sent while the guest runs.
    Copying,
    /// The guest is paused, the rest is sent.
    Switchover,
    /// Commit has been sent: the source will not resume on its own.
    Committed,
    /// The target runs.
    SourceRetired,
    /// Failed before Commit; the source runs.
    Aborted,
}

/// The latest migration of a VM's process, as the process tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationReport {
    /// Which attempt.
    pub migration: MigrationId,
    /// How far it is.
    pub phase: MigrationPhase,
    /// Rounds over dirty memory so far.
    pub rounds: u32,
    /// Bytes sent so far.
    pub bytes_sent: u64,
    /// Bytes still dirty after the last round.
    pub bytes_remaining: u64,
    /// From its start.
    pub total: Duration,
    /// From the pause of the vCPUs to the target's word that it runs.
    pub downtime: Duration,
    /// Why it failed. Empty: it did not.
    pub error: String,
}

/// How fast a VM came up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootTimes {
    /// From the spawn of the process to the guest's first serial byte. `None`: not yet.
    pub spawn_to_first_byte: Option<Duration>,
    /// From Start to the guest's first serial byte. `None`: not yet.
    pub start_to_first_byte: Option<Duration>,
}

/// A process as a client of a storage cluster (`drover.vm.v1.StorageClient`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StorageClient {
    /// The cluster's own identity: the fsid of a Ceph cluster.
    pub cluster: String,
    /// What has to be refused there to keep the process from writing: "192.0.2.7:0/3710147553".
    pub addresses: BTreeSet<String>,
}

/// What a node says about one VM (`drover.node.v1.VmStatus`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmReport {
    /// The epoch of the process.
    pub epoch: OwnerEpoch,
    /// Its state; `Stopped` for a process that is gone.
    pub state: RunState,
    /// Why it ended, in `Stopped`.
    pub stop_reason: StopReason,
    /// For people.
    pub detail: String,
    /// Grows with every change of the process's own report.
    pub revision: u64,
    /// Its process id on that node.
    pub pid: u64,
    /// How fast it came up.
    pub boot: BootTimes,
    /// Its latest migration.
    pub migration: Option<MigrationReport>,
    /// Itself, as storage clusters see it. Complete before it takes a volume.
    pub clients: Vec<StorageClient>,
    /// Volumes whose storage does not answer it at the moment.
    pub stalled: BTreeSet<VolumeId>,
    /// The agent has seen the process end, and how. `None`: a process is there.
    pub exit: Option<String>,
    /// The node has a file into which the VM's memory was being written, to the end or not.
    pub has_file: bool,
}

impl VmReport {
    /// Whether a process is there that may run the VM, now or later.
    pub fn is_live(&self) -> bool {
        self.exit.is_none() && self.state != RunState::Stopped
    }

    /// The report of this migration, if the process's latest one is this.
    pub fn migration_of(&self, id: MigrationId) -> Option<&MigrationReport> {
        self.migration.as_ref().filter(|m| m.migration == id)
    }

    /// How it ended, for people.
    pub fn describe_end(&self) -> String {
        let mut text = self.stop_reason.describe().to_owned();
        if !self.detail.is_empty() {
            text = format!("{text}: {}", self.detail);
        }
        match &self.exit {
            Some(exit) if !exit.is_empty() => format!("{text} ({exit})"),
            _ => text,
        }
    }
}

//! What happens to a supervisor.

use drover_ids::{MigrationId, OwnerEpoch, VmId};

use crate::Timers;

/// A command that waits for its answer. Chosen by the driver; answered exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// One process of a VM, as this agent counts them. What is said of a run that has been replaced is ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run(pub u64);

/// Where a VM is, as its vmmd reports it. The names are those of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "documented in vm.proto")]
pub enum VmState {
    /// The process has not said yet.
    Unreported,
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

impl VmState {
    /// Nothing is left to run: the process only waits for its report to be read.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Migrated | Self::Stopped)
    }
}

/// What a vmmd says of its VM, as far as the supervisor acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmReport {
    /// The epoch under which the vmmd holds its VM.
    pub epoch: OwnerEpoch,
    /// Where the VM is.
    pub state: VmState,
}

/// What is asked of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Bring the VM up from its disks.
    Ensure,
    /// End the VM, and prove it.
    Stop,
    /// Start a process that waits for the VM to arrive.
    PrepareIncoming {
        /// The migration that will bring it.
        migration: MigrationId,
    },
    /// Send the VM away.
    MigrateOut,
    /// Give up sending it.
    CancelMigration,
    /// Let a source that is paused after Commit run again, under a newer epoch.
    GrantEpoch,
    /// Take the vCPUs out.
    Pause,
    /// Let them in again.
    Resume,
}

/// What an agent that starts finds of a VM it has a record of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// A process, and what it reported; `None` while it has not answered.
    Alive(Option<VmReport>),
    /// No process: it ended while no agent was looking.
    Gone,
    /// The VM's end had been acknowledged: only the epoch is remembered.
    Retired,
}

/// An entry of the control plane's reap list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleVm {
    /// The VM to end.
    pub vm: VmId,
    /// Up to this epoch; a newer one here is none of the list's business.
    pub epoch: OwnerEpoch,
}

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The agent has started and found a record of this VM. Comes before anything else is said of it.
    Recovered {
        /// The VM.
        vm: VmId,
        /// Its newest recorded epoch.
        epoch: OwnerEpoch,
        /// What is left of it.
        process: Process,
    },
    /// The control plane asks for something.
    Command {
        /// To answer with.
        ticket: Ticket,
        /// About this VM.
        vm: VmId,
        /// The sender's epoch of it.
        epoch: OwnerEpoch,
        /// What it asks for.
        verb: Verb,
    },
    /// A launch has come as far as a process, which can be killed from now on.
    Spawned {
        /// The VM.
        vm: VmId,
        /// The launch.
        run: Run,
    },
    /// A launch has ended. Comes once for every [`Effect::Launch`](crate::Effect::Launch), after its `Spawned` if
    /// that came at all.
    Launched {
        /// The VM.
        vm: VmId,
        /// The launch.
        run: Run,
        /// What the vmmd reports; or, if it failed, whether the VM may have executed an instruction.
        result: Result<VmReport, LaunchFailed>,
    },
    /// A vmmd reports.
    Reported {
        /// The VM.
        vm: VmId,
        /// The process.
        run: Run,
        /// What it says.
        report: VmReport,
    },
    /// A process that was adopted does not answer.
    Unresponsive {
        /// The VM.
        vm: VmId,
        /// The process.
        run: Run,
    },
    /// The end of a process has been proven.
    ProcessEnded {
        /// The VM.
        vm: VmId,
        /// The process.
        run: Run,
    },
    /// A process that was to end has not, in the time that takes.
    EndOverdue {
        /// The VM.
        vm: VmId,
        /// The process.
        run: Run,
    },
    /// The control plane has accepted this node.
    Registered(Timers),
    /// It has not, or did not answer.
    RegisterFailed,
    /// A heartbeat has been answered.
    HeartbeatAnswered {
        /// Which.
        sequence: u64,
        /// Whether it extends the lease.
        lease_granted: bool,
        /// What must end before this node may take work.
        reap: Vec<StaleVm>,
    },
    /// A heartbeat has not been answered, or by an error.
    HeartbeatFailed {
        /// Which.
        sequence: u64,
        /// The control plane does not know this node (any more).
        unknown: bool,
    },
    /// Time has passed: due at [`Supervisor::next_deadline`](crate::Supervisor::next_deadline), harmless earlier.
    Tick,
}

/// How far a failed launch came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchFailed {
    /// The vCPUs may have run: the same epoch must not be launched again.
    pub may_have_run: bool,
}

//! What goes into [`Planner::step`](crate::Planner::step) and what comes out of it.
//!
//! The driver's side of the contract:
//!
//! - Events are handed in one at a time, in the order they happened. Each carries what the driver saw, not what it
//!   concluded.
//! - Every [`Effect::Commit`], [`Effect::Call`] and [`Effect::Fence`] gets exactly one answer, in any order, sooner or
//!   later: [`Event::Committed`], [`Event::Answered`], [`Event::VolumesFenced`]. A driver that cannot get one reports
//!   that. The planner gives up waiting by itself (each has a deadline) and ignores answers that come after that.
//! - Effects of one step may run concurrently. What must be ordered is ordered by the planner, over answers.
//! - Nothing is lost with the planner: a new one, made from the stored state, gets to the same end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use drover_cluster_state::{
    Change, ClusterEvent, Incarnation, Name, PoolAccess, Revision, Txn, VmReport, VmSpec, VolumeFence,
};
use drover_ids::{MigrationId, NodeId, OperationId, OwnerEpoch, VmId, VolumeId};

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time has passed. Expected every 100 ms or so.
    Tick,
    /// The store's watch delivered changes, in order of their revisions.
    Stored(Vec<Change>),
    /// A node's heartbeat was received. Answered by [`Effect::Answer`] of the same step.
    Heartbeat(Heartbeat),
    /// An agent answered a call, or did not.
    Answered {
        /// Which call.
        call: CallId,
        /// What it said.
        result: Result<AgentAnswer, CallError>,
    },
    /// The volumes of a request were fenced, or not.
    VolumesFenced {
        /// Which request.
        request: FenceId,
        /// For each volume asked for.
        results: Vec<(VolumeId, Result<VolumeFence, FenceRefusal>)>,
    },
    /// The store took a transaction, or did not.
    Committed {
        /// Which.
        commit: CommitId,
        /// What became of it.
        outcome: CommitOutcome,
    },
}

/// What a node says of itself (`drover.node.v1.HeartbeatRequest`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The node.
    pub node: NodeId,
    /// The agent's start.
    pub incarnation: Incarnation,
    /// Grows with every heartbeat of one incarnation.
    pub sequence: u64,
    /// Every VM of the node, ended ones until their end has been acknowledged with StopVm.
    pub vms: BTreeMap<VmId, VmReport>,
}

/// What to answer a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeartbeatAnswer {
    /// The node, or this start of its agent, is not known: it must register (again). Not a lease.
    Unknown {
        /// Who asked.
        node: NodeId,
        /// The heartbeat's number.
        sequence: u64,
    },
    /// Known.
    Known {
        /// Who asked.
        node: NodeId,
        /// The heartbeat's number.
        sequence: u64,
        /// Whether the heartbeat extends the lease.
        lease_granted: bool,
        /// What the node must end before it may take work, with the newest epoch to end.
        reap: Vec<(VmId, OwnerEpoch)>,
    },
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "made one at a time and moved once: an allocation would cost more than the bytes"
)]
pub enum Effect {
    /// Submit a transaction.
    Commit {
        /// Name it in the answer.
        id: CommitId,
        /// All or nothing.
        txn: Txn,
    },
    /// Call an agent.
    Call(AgentCall),
    /// Take volumes away from whoever holds them.
    Fence(FenceRequest),
    /// Append a line to the event log; nothing depends on it.
    Record(ClusterEvent),
    /// Answer the heartbeat that this step was given.
    Answer(HeartbeatAnswer),
}

/// What one step asks for.
pub type Effects = Vec<Effect>;

macro_rules! token {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub(crate) u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

token! {
    /// Names a transaction between its submission and its answer. Unique within one planner.
    CommitId
}
token! {
    /// Names a call between its start and its answer. Unique within one planner.
    CallId
}
token! {
    /// Names a fence request between its start and its answer. Unique within one planner.
    FenceId
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// Every guard held; it is stored as this revision.
    Committed(Revision),
    /// A guard did not hold; nothing is stored. Carries every guarded record as it is now: a `Put` for one that is
    /// there, a `Delete` with the store's present revision for one that is not.
    Conflict(Vec<Change>),
    /// The store did not answer: it may or may not be stored.
    Unknown(String),
}

/// A command for a node's agent (`drover.node.v1.NodeAgent`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentCall {
    /// Name it in the answer.
    pub id: CallId,
    /// Whose agent.
    pub node: NodeId,
    /// Where it is, host:port.
    pub address: String,
    /// Makes a repeated command have the effect of one. The same after a restart of the control plane; another one
    /// after a definite refusal, so that a new try is not answered with the old failure.
    pub operation: OperationId,
    /// The VM.
    pub vm: VmId,
    /// The command's epoch.
    pub epoch: OwnerEpoch,
    /// The driver's deadline: then the result is [`CallError::Unanswered`].
    pub timeout: Duration,
    /// For a command that brings a VM up: how its volumes are reached, where the node's configuration does not say.
    pub pools: BTreeMap<Name, PoolAccess>,
    /// What to do.
    pub command: AgentCommand,
}

/// What an agent can be told to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentCommand {
    /// Bring the VM up.
    EnsureVm {
        /// What it is.
        spec: VmSpec,
        /// From its memory, which is on this node, where that is still of use; otherwise from its disks.
        resume: bool,
    },
    /// End it, up to this epoch, and prove it.
    StopVm,
    /// Ask its guest to shut itself down.
    PressPowerButton,
    /// Wait for a migration.
    PrepareIncoming {
        /// Which.
        migration: MigrationId,
        /// What to expect.
        spec: VmSpec,
    },
    /// Send the VM.
    MigrateOut {
        /// Which.
        migration: MigrationId,
        /// host:port of the waiting process.
        target_address: String,
        /// The epoch it waits with.
        target_epoch: OwnerEpoch,
        /// Longest acceptable pause, milliseconds. `None`: the default.
        downtime_target_ms: Option<u32>,
    },
    /// Stop sending, if it has not committed.
    CancelMigration {
        /// Which.
        migration: MigrationId,
    },
    /// Resume a source that is paused after Commit, with this epoch.
    GrantEpoch,
}

impl AgentCommand {
    /// The RPC's name, for people and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::EnsureVm { .. } => "EnsureVm",
            Self::StopVm => "StopVm",
            Self::PressPowerButton => "PressPowerButton",
            Self::PrepareIncoming { .. } => "PrepareIncoming",
            Self::MigrateOut { .. } => "MigrateOut",
            Self::CancelMigration { .. } => "CancelMigration",
            Self::GrantEpoch => "GrantEpoch",
        }
    }
}

/// An agent's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "made one at a time and moved once: an allocation would cost more than the bytes"
)]
pub enum AgentAnswer {
    /// To EnsureVm, MigrateOut, CancelMigration, GrantEpoch: how the VM is now.
    Status(VmReport),
    /// To StopVm: no process up to the command's epoch is left.
    Stopped,
    /// To PressPowerButton: it has been.
    Pressed,
    /// To PrepareIncoming: where the migration is awaited, host:port.
    Incoming {
        /// host:port.
        address: String,
    },
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Not delivered, or delivered and not answered in time: it may have had its effect.
    #[error("{0}")]
    Unanswered(String),
    /// The agent said no (a status other than UNAVAILABLE, DEADLINE_EXCEEDED or UNKNOWN): it had no effect.
    #[error("{0}")]
    Refused(String),
}

/// Volumes of one VM that a new owner needs and an old one must not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceRequest {
    /// Name it in the answer.
    pub id: FenceId,
    /// The VM.
    pub vm: VmId,
    /// Each with its pool.
    pub volumes: Vec<(VolumeId, Name)>,
    /// Owners with an older epoch are refused from now on.
    pub min_epoch: OwnerEpoch,
    /// How processes of older owners are known to storage clusters, as far as they have told. Refused there, together
    /// with whoever the storage itself names.
    pub clients: BTreeSet<String>,
    /// Of those, who must not be refused: they wait to go on with a newer epoch, or end by themselves.
    pub spared: BTreeSet<String>,
}

/// Why a volume is not fenced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FenceRefusal(
    /// For people, naming the holder where there is one: "held by VM … on node … (pid 7)".
    pub String,
);

/// Measures placement decisions, which are made inside a step that has no clock.
pub trait Stopwatch: Send {
    /// Time since an origin of its own choosing; never goes back.
    fn elapsed(&self) -> Duration;
}

/// A stopwatch that stands still, for tests and simulations.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoStopwatch;

impl Stopwatch for NoStopwatch {
    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}

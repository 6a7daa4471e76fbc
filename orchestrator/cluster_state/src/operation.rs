//! Long-running operations, and the cluster's event log.

use std::{borrow::Cow, fmt, time::Duration};

use drover_ids::{MigrationId, NodeId, OperationId, VmId, VolumeId};

use crate::{Explanation, Hold, Name, StorageWork, WallTime};

/// What an operation is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Create a VM and bring it up.
    VmCreate,
    /// Start a VM.
    VmStart,
    /// Stop a VM.
    VmStop {
        /// How long its guest has to shut itself down once its power button has been pressed, milliseconds. 0: it is not
        /// asked.
        graceful_ms: u32,
    },
    /// Move a running VM.
    VmMigrate {
        /// Where to. `None`: placement chooses.
        target: Option<NodeId>,
        /// Longest acceptable pause, milliseconds. `None`: the default.
        downtime_target_ms: Option<u32>,
        /// The attempt, once the target has been admitted.
        migration: Option<MigrationId>,
    },
    /// Stop a VM and remove it.
    VmDelete,
    /// Fill a new volume. Run by the process that took the request: ends with it.
    VolumeImport,
    /// Store a boot image. Run by the process that took the request: ends with it.
    ImageImport,
    /// Work on a pool, volume or disk image. Taken up again by the next process if this one ends.
    Storage(StorageWork),
    /// Create a set of VMs and bring them up, all or none.
    VmSetCreate {
        /// How many.
        count: u32,
    },
    /// Move running VMs, for a reason that concerns more than one of them.
    Moves(Moves),
}

/// Why VMs are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MovesPurpose {
    /// A node is to be empty.
    DrainNode,
    /// Every node of a rack is to be empty.
    DrainRack,
    /// The load is to be even.
    Rebalance,
    /// What is free is to come in larger pieces.
    Defragment,
}

/// A move that has been decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedMove {
    /// Whose.
    pub vm: VmId,
    /// Where it ran when that was decided: elsewhere, it is left alone.
    pub from: NodeId,
    /// Where to.
    pub to: NodeId,
}

/// Moves of running VMs. Those of a drain follow from the nodes that are being drained and are decided as they are
/// made; the others are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moves {
    /// Why.
    pub purpose: MovesPurpose,
    /// Most that are under way at once.
    pub parallel: u32,
    /// How many there were at first, to tell how far it is.
    pub total: u32,
    /// Those decided on, in order.
    pub planned: Vec<PlannedMove>,
}

impl MovesPurpose {
    /// The stable name of the operation: "node.drain".
    pub fn operation_name(self) -> &'static str {
        match self {
            Self::DrainNode => "node.drain",
            Self::DrainRack => "rack.drain",
            Self::Rebalance => "cluster.rebalance",
            Self::Defragment => "cluster.defragment",
        }
    }
}

impl OperationKind {
    /// The stable name: "vm.create".
    pub fn name(&self) -> &'static str {
        match self {
            Self::VmCreate => "vm.create",
            Self::VmStart => "vm.start",
            Self::VmStop { .. } => "vm.stop",
            Self::VmMigrate { .. } => "vm.migrate",
            Self::VmDelete => "vm.delete",
            Self::VolumeImport => "volume.import",
            Self::ImageImport => "image.import",
            Self::Storage(work) => work.name(),
            Self::VmSetCreate { .. } => "vm.create-group",
            Self::Moves(moves) => moves.purpose.operation_name(),
        }
    }
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an operation or an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A VM.
    Vm(VmId),
    /// A volume.
    Volume(VolumeId),
    /// A boot image.
    Image(Name),
    /// A node.
    Node(NodeId),
    /// A pool.
    Pool(Name),
    /// A disk image.
    DiskImage(Name),
    /// The nodes with this rack label.
    Rack(Name),
    /// A set of VMs.
    VmSet(Name),
    /// All of it.
    Cluster,
}

impl fmt::Display for Subject {
    /// The id, as in every table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(id) => write!(f, "{id}"),
            Self::Volume(id) => write!(f, "{id}"),
            Self::Image(name) | Self::Pool(name) | Self::DiskImage(name) => write!(f, "{name}"),
            Self::Node(id) => write!(f, "{id}"),
            Self::Rack(name) | Self::VmSet(name) => write!(f, "{name}"),
            Self::Cluster => f.write_str("cluster"),
        }
    }
}

/// How far an operation is. Every accepted one leaves `Running` (B8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationState {
    /// Under way.
    Running,
    /// Did what was asked.
    Done,
    /// Did not; the reason says why.
    Failed,
    /// Was taken back before it was done.
    Cancelled,
}

/// Why one node was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRejection {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Every reason, for people.
    pub reasons: Vec<String>,
}

/// What a finished migration cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationResult {
    /// Rounds over dirty memory.
    pub rounds: u32,
    /// Bytes sent.
    pub bytes: u64,
    /// From start to the target's word that it runs.
    pub total: Duration,
    /// From the pause of the vCPUs to the target's word that it runs.
    pub downtime: Duration,
    /// Where from.
    pub source: NodeId,
    /// Where to.
    pub target: NodeId,
}

/// A long-running operation, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its identity; derived from the client's request id where there is one.
    pub id: OperationId,
    /// What it is to do.
    pub kind: OperationKind,
    /// What it works on.
    pub subject: Subject,
    /// The subject's name when it was accepted.
    pub subject_name: Name,
    /// How far it is.
    pub state: OperationState,
    /// What is happening now, for people.
    pub step: String,
    /// 0..=100.
    pub percent: u8,
    /// Why it ended as it did. Empty while it runs.
    pub reason: String,
    /// For placements that failed.
    pub rejections: Vec<NodeRejection>,
    /// For migrations that ended.
    pub migration: Option<MigrationResult>,
    /// Somebody asked to cancel it.
    pub cancel_requested: bool,
    /// When it was accepted.
    pub created_at: WallTime,
    /// When it ended.
    pub ended_at: Option<WallTime>,
    /// Time the placement decision took. `None`: no placement was made.
    pub placement: Option<Duration>,
    /// What placement said, for one that was decided.
    pub explanation: Option<Box<Explanation>>,
    /// The operation that this one is a part of.
    pub parent: Option<OperationId>,
    /// How the VM was held, for a snapshot of one that ran.
    pub hold: Option<Hold>,
}

impl Operation {
    /// One that has just been accepted.
    pub fn new(
        id: OperationId,
        kind: OperationKind,
        subject: Subject,
        subject_name: Name,
        created_at: WallTime,
    ) -> Self {
        Self {
            id,
            kind,
            subject,
            subject_name,
            state: OperationState::Running,
            step: "accepted".to_owned(),
            percent: 0,
            reason: String::new(),
            rejections: Vec::new(),
            migration: None,
            cancel_requested: false,
            created_at,
            ended_at: None,
            placement: None,
            explanation: None,
            parent: None,
            hold: None,
        }
    }

    /// Whether it is still under way.
    pub fn is_running(&self) -> bool {
        self.state == OperationState::Running
    }

    /// The same operation, ended.
    #[must_use]
    pub fn ended(&self, state: OperationState, reason: impl Into<String>, at: WallTime) -> Self {
        let mut operation = self.clone();
        operation.state = state;
        operation.reason = reason.into();
        operation.ended_at = Some(at);
        if state == OperationState::Done {
            operation.percent = 100;
            operation.step = "done".to_owned();
        }
        operation
    }
}

/// One line of the event log. The store gives it its sequence number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterEvent {
    /// When.
    pub at: WallTime,
    /// One of [`event_kind`].
    pub kind: Cow<'static, str>,
    /// The id of what it is about.
    pub subject_id: String,
    /// Its name.
    pub subject_name: String,
    /// What happened, for people.
    pub message: String,
}

/// The kinds of events. Stable: scripts match on them.
pub mod event_kind {
    /// An agent registered.
    pub const NODE_REGISTERED: &str = "node.registered";
    /// A node is heard, and takes work.
    pub const NODE_READY: &str = "node.ready";
    /// A node is silent.
    pub const NODE_SUSPECT: &str = "node.suspect";
    /// A node has been given up.
    pub const NODE_FENCING: &str = "node.fencing";
    /// Nothing of a node can do harm.
    pub const NODE_FENCED: &str = "node.fenced";
    /// An operator has changed a node's settings.
    pub const NODE_CHANGED: &str = "node.changed";
    /// No VM is left on a node that was drained.
    pub const NODE_DRAINED: &str = "node.drained";
    /// A policy, a project or the cluster's settings were changed.
    pub const PLACEMENT_CHANGED: &str = "placement.changed";
    /// Moves were found that would balance the cluster.
    pub const REBALANCE_PROPOSED: &str = "rebalance.proposed";
    /// A VM gave way to one of higher priority.
    pub const VM_PREEMPTED: &str = "vm.preempted";
    /// A VM was accepted.
    pub const VM_CREATED: &str = "vm.created";
    /// A VM got a node.
    pub const VM_PLACED: &str = "vm.placed";
    /// A VM runs.
    pub const VM_RUNNING: &str = "vm.running";
    /// A VM's right to run was taken away, with evidence.
    pub const VM_FENCED: &str = "vm.fenced";
    /// A VM's storage does not answer: its requests wait.
    pub const VM_STORAGE_STALLED: &str = "vm.storage-stalled";
    /// A VM's storage answers again.
    pub const VM_STORAGE_ANSWERS: &str = "vm.storage-answers";
    /// A VM got a node again.
    pub const VM_RESTARTED: &str = "vm.restarted";
    /// A VM does not run any more, and should not.
    pub const VM_STOPPED: &str = "vm.stopped";
    /// A VM is gone.
    pub const VM_DELETED: &str = "vm.deleted";
    /// A migration began.
    pub const MIGRATION_STARTED: &str = "migration.started";
    /// A VM runs on its new node.
    pub const MIGRATION_COMMITTED: &str = "migration.committed";
    /// A VM stays where it is.
    pub const MIGRATION_ABORTED: &str = "migration.aborted";
    /// A paused source runs again: its target died before it ran.
    pub const MIGRATION_REVERTED: &str = "migration.reverted";
}

//! Desired and observed state of a cluster as plain data.
//!
//! Two halves meet in [`ClusterState`]. The *stored* half (nodes, VMs, volumes, images, operations, names) changes
//! only by a [`Txn`] that the store has accepted and comes back as [`Change`]s. The *observed* half (one
//! [`NodeSession`] per node that has been heard of, one [`Progress`] per VM) lives in memory and is rebuilt from
//! heartbeats after every start of a control plane.
//!
//! A VM's right to run is an [`Ownership`]: its transitions are methods, so that a second owner, an epoch that goes
//! back, or a release without fence evidence cannot be written (B6, B7).
//!
//! Nothing here decides anything: placement, reconcile and the invariant checkers do, over these types. There is no
//! I/O and no clock; [`Moment`] and [`WallTime`] are handed in.
#![forbid(unsafe_code)]

mod blocklisting;
mod change;
mod constraints;
mod disk_image;
mod evidence;
mod explanation;
mod guest_devices;
mod host;
mod name;
mod node;
mod operation;
mod ownership;
mod policy;
mod pool;
mod report;
mod stall;
mod state;
mod storage_work;
mod time;
mod vm;
mod volume;

pub use blocklisting::Blocklisting;
pub use change::{Change, Expect, Guard, Key, NameKind, NameRecord, Record, Revision, Txn, Write};
pub use constraints::{
    Affinity, Constraints, Domain, LabelRule, LabelTest, NumaPolicy, Peer, Preemption, Relation, Spread,
    Strength,
};
pub use disk_image::{DiskImage, DiskImageState, ImageFormat, ImageSource};
/// What a device may do in a second: drover-rate-limit.
pub use drover_rate_limit::{Limit, Limits, Rate, RateError};
pub use evidence::{Blocklist, Evidence, VolumeFence, VolumeOwner};
pub use explanation::{Choice, Explanation, NearestMiss, RefusalCount, ScoreTerm};
pub use guest_devices::{
    BalloonSpec, Cid, DISK_PLACES, DISK_QUEUES_MAX, DeviceBus, Extras, GuestDevices, Hardware, Mac, MacError,
    NICS_MAX, Nic, OnReset,
};
pub use host::{
    CpuBaseline, CpuBaselineError, Drain, HostFacts, Labels, NodeSettings, NumaNode, Overcommit, RACK_LABEL,
    Ratio, Taint, TaintEffect, Toleration, ZONE_LABEL,
};
pub use name::{NAME_LEN_MAX, Name, NameError};
pub use node::{Capacity, Incarnation, Liveness, Node, NodeFence, NodeFenceEvidence, NodeSession, NodeState};
pub use operation::{
    ClusterEvent, MigrationResult, Moves, MovesPurpose, NodeRejection, Operation, OperationKind,
    OperationState, PlannedMove, Subject, event_kind,
};
pub use ownership::{Candidate, Claim, Ownership, OwnershipError, Right};
pub use policy::{
    DEFAULT_POLICY, DEFAULT_PROJECT, PolicyRecord, Project, ProjectLimits, ProjectUsage, RebalanceMode,
    Settings,
};
pub use pool::{Pool, PoolAccess, PoolState, RbdCredentials, RbdPool, Secret};
pub use report::{BootTimes, MigrationPhase, MigrationReport, RunState, StopReason, StorageClient, VmReport};
pub use stall::{StallAction, StallPolicy};
pub use state::{ClusterState, Stored, Usage};
pub use storage_work::{CloneSource, StorageWork};
pub use time::{Moment, Now, WallTime};
pub use vm::{Desired, Progress, Restarts, StopCause, Vm, VmPhase, VmSpec, VolumeAttachment};
pub use volume::{Hold, Image, Snapshot, SnapshotState, VmSnapshot, Volume, VolumeParent, VolumeState};

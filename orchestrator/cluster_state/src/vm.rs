//! VMs: what is wanted of them, who may run them, how they are.

use std::{collections::BTreeSet, fmt, sync::Arc};

use drover_cloud_init::Seed;
use drover_ids::{Generation, NodeId, OperationId, VmId, VolumeId};
use drover_units::{Bytes, VcpuCount};

use crate::{
    Capacity, Constraints, DEFAULT_PROJECT, GuestDevices, Moment, Name, Ownership, StallPolicy, WallTime,
};

/// A volume as a disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeAttachment {
    /// The volume.
    pub volume: VolumeId,
    /// Its pool.
    pub pool: Name,
    /// Whether the VM may only read it.
    pub read_only: bool,
}

/// What a VM is. Names have been resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSpec {
    /// Unique among VMs.
    pub name: Name,
    /// Virtual CPUs.
    pub vcpus: VcpuCount,
    /// Guest memory.
    pub memory: Bytes,
    /// Boot image.
    pub image: Name,
    /// The image's pool.
    pub image_pool: Name,
    /// Kernel command line.
    pub cmdline: String,
    /// Disks, in order.
    pub volumes: Vec<VolumeAttachment>,
    /// VMs of one group are kept on different nodes.
    pub anti_affinity_group: Option<Name>,
    /// Higher is restarted first, and placed before others; see [`Constraints::preemption`].
    pub priority: u32,
    /// What cloud-init in the guest is told; it gets a seed disk then. Shared: specifications are often copied.
    pub cloud_init: Option<Arc<Seed>>,
    /// Its network interfaces, and what its devices may do.
    pub devices: GuestDevices,
    /// Where it may run, beyond what it takes.
    pub constraints: Constraints,
    /// What becomes of it when its storage does not answer. `None`: as its first volume's pool says that says anything.
    pub stall: Option<StallPolicy>,
}

impl VmSpec {
    /// What it takes of a node.
    pub fn demand(&self) -> Capacity {
        Capacity { vcpus: self.vcpus, memory: self.memory }
    }

    /// Pools its node must reach.
    pub fn pools(&self) -> BTreeSet<Name> {
        self.volumes.iter().map(|v| v.pool.clone()).chain([self.image_pool.clone()]).collect()
    }

    /// Groups it is a member of; the anti-affinity group is one.
    pub fn groups(&self) -> BTreeSet<Name> {
        self.constraints.groups.iter().chain(&self.anti_affinity_group).cloned().collect()
    }

    /// The project it belongs to.
    pub fn project(&self) -> &str {
        self.constraints.project.as_ref().map_or(DEFAULT_PROJECT, Name::as_str)
    }

    /// Attachments it can write, each of which needs a fence.
    pub fn writable_volumes(&self) -> impl Iterator<Item = &VolumeAttachment> {
        self.volumes.iter().filter(|v| !v.read_only)
    }
}

/// What is wanted of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Desired {
    /// It runs; if it ends, it is restarted.
    Running,
    /// It does not run.
    Stopped,
    /// It is gone.
    Deleted,
}

/// Why `desired` is not `Running`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// Somebody asked.
    Requested,
    /// The guest ended it; restarting would go against its word.
    GuestShutdown,
    /// Its memory is in a file of the node it ran on.
    Suspended,
    /// The operation that should have started it failed: a failed start leaves nothing trying.
    StartFailed(String),
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => f.write_str("stopped on request"),
            Self::GuestShutdown => f.write_str("the guest shut itself down"),
            Self::Suspended => f.write_str("suspended"),
            Self::StartFailed(reason) => write!(f, "its start failed: {reason}"),
        }
    }
}

/// Restart bookkeeping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restarts {
    /// Restarts in the VM's life.
    pub count: u32,
    /// Failures without a stable run in between: sets the backoff.
    pub failures: u32,
    /// What ended the last run.
    pub last_reason: String,
}

/// A VM, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its identity.
    pub id: VmId,
    /// What it is.
    pub spec: VmSpec,
    /// Grows with every change of `spec` or `desired` by a client.
    pub generation: Generation,
    /// What is wanted.
    pub desired: Desired,
    /// Why it is not wanted to run.
    pub stop_cause: Option<StopCause>,
    /// The node that has its memory in a file, or may have where it was lost before it could say, until it has run again.
    pub suspended_on: Option<NodeId>,
    /// Who may run it.
    pub ownership: Ownership,
    /// Restart bookkeeping.
    pub restarts: Restarts,
    /// The operation that works on it. One at a time.
    pub operation: Option<OperationId>,
    /// When it was created.
    pub created_at: WallTime,
}

/// What reconcile is doing about a VM, for people. In memory only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What it waits for: "volume v1 is still held by …". Empty: nothing to say.
    pub detail: String,
    /// It waits for fence evidence.
    pub fencing: bool,
    /// It waits for its next try.
    pub next_try: Option<Moment>,
}

/// The state of a VM for people (`drover.control.v1.VmPhase`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmPhase {
    /// Wants to run, has no node yet.
    Pending,
    /// Has a node, does not run yet.
    Starting,
    /// Runs.
    Running,
    /// Runs, and is being moved.
    Migrating,
    /// Is being ended.
    Stopping,
    /// Does not run, and should not.
    Stopped,
    /// Its node or process died; waits for fence evidence.
    Fencing,
    /// Keeps failing; waits for its next try.
    Backoff,
    /// Is being removed.
    Deleting,
}

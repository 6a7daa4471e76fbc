//! What a decision says.

use std::fmt;

use drover_ids::{NodeId, VmId};
use drover_units::Bytes;

use crate::{ProjectLimit, ProjectUsage};

/// Changes of one host: grows with everything that may change a decision about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostVersion(pub u64);

/// A weighted sum of terms; larger is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Score(pub i64);

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Where to. Counts for nothing until it is committed: [`Inventory::commit`](crate::Inventory::commit).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The VM.
    pub vm: VmId,
    /// The host.
    pub host: NodeId,
    /// The host as it was when this was decided.
    pub version: HostVersion,
    /// How good it is by the policy.
    pub score: Score,
    /// VMs of lower priority that must go first. Empty unless the policy preempts and there was no other way.
    pub victims: Vec<VmId>,
}

/// Why there is no decision, in short; [`explain`](crate::explain) has the details.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No host will do. Exact: every host has been ruled out.
    #[error("no host can take it")]
    NoHost,
    /// The project may not take more.
    #[error("project '{project}' {limit}")]
    Project {
        /// The project.
        project: String,
        /// Which limit.
        limit: LimitReached,
    },
    /// Some host would do, but then the fullest hosts' VMs could not be restarted after a failure.
    #[error("room is kept to restart the VMs of {failures} host(s), and this would take it")]
    FailoverReserve {
        /// How many failures are provided for.
        failures: u8,
    },
    /// Of a group, only some members would have found a host.
    #[error("only {placed} of {count} could be placed: {cause}")]
    Group {
        /// How many would have been placed.
        placed: usize,
        /// How many were asked for.
        count: usize,
        /// Why the next one could not.
        cause: Box<Refusal>,
    },
}

/// A project's limit that a request would pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitReached {
    /// Virtual CPUs.
    Vcpus {
        /// What was asked for.
        wanted: u64,
        /// What the project's VMs take.
        used: u64,
        /// What they may take.
        limit: u64,
    },
    /// Guest memory.
    Memory {
        /// What was asked for.
        wanted: Bytes,
        /// What the project's VMs take.
        used: Bytes,
        /// What they may take.
        limit: Bytes,
    },
    /// VMs.
    Vms {
        /// What the project has.
        used: u64,
        /// What it may have.
        limit: u64,
    },
}

impl LimitReached {
    /// The first limit that so much more would pass.
    pub fn check(limit: ProjectLimit, used: ProjectUsage, wanted: ProjectUsage) -> Option<Self> {
        if let Some(most) = limit.vcpus.filter(|most| used.vcpus.saturating_add(wanted.vcpus) > *most) {
            return Some(Self::Vcpus { wanted: wanted.vcpus, used: used.vcpus, limit: most });
        }
        if let Some(most) = limit.memory.filter(|most| used.memory.saturating_add(wanted.memory) > *most) {
            return Some(Self::Memory { wanted: wanted.memory, used: used.memory, limit: most });
        }
        let most = limit.vms.filter(|most| used.vms.saturating_add(wanted.vms) > *most)?;
        Some(Self::Vms { used: used.vms, limit: most })
    }
}

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpus { wanted, used, limit } => {
                write!(f, "may take {limit} vCPU(s), takes {used}, and this needs {wanted}")
            }
            Self::Memory { wanted, used, limit } => {
                write!(f, "may take {limit} memory, takes {used}, and this needs {wanted}")
            }
            Self::Vms { used, limit } => write!(f, "may have {limit} VM(s) and has {used}"),
        }
    }
}

/// Why a decision cannot be committed: what it was decided on has changed. Decide again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The host has gone.
    #[error("host {0} has been removed since it was chosen")]
    HostGone(NodeId),
    /// The host will not do any more.
    #[error("host {host} will not do any more: {reason}")]
    HostChanged {
        /// The host.
        host: NodeId,
        /// What is against it now.
        reason: crate::Reason,
    },
    /// The project's limit has been reached.
    #[error("project '{project}' {limit}")]
    Project {
        /// The project.
        project: String,
        /// Which limit.
        limit: LimitReached,
    },
    /// A VM that was to be preempted is not there any more, or must not be preempted.
    #[error("VM {0} cannot be preempted any more")]
    Victim(VmId),
    /// The VM has been placed by somebody else.
    #[error("VM {0} has been placed already")]
    AlreadyPlaced(VmId),
    /// The VM that was to be moved is nowhere any more.
    #[error("VM {0} is not placed any more")]
    NotPlaced(VmId),
    /// A member of a group whose commit was undone.
    #[error("of the group, VM {vm}: {cause}")]
    Group {
        /// The member.
        vm: VmId,
        /// What was against it.
        cause: Box<Conflict>,
    },
}

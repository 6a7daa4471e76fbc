//! Nodes: what is stored about them, and what has been heard of them.

use std::{collections::BTreeMap, collections::BTreeSet, fmt, time::Duration};

use drover_ids::{NodeId, VmId};
use drover_units::{Bytes, VcpuCount};

use crate::{HostFacts, Labels, Moment, Name, NodeSettings, Overcommit, Taint, VmReport};

/// What a node can hold, or what something takes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Virtual CPUs.
    pub vcpus: VcpuCount,
    /// Guest memory.
    pub memory: Bytes,
}

impl Capacity {
    /// The sum, saturating: a sum that large is over any capacity.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory: self.memory.saturating_add(other.memory),
        }
    }

    /// What is left after `used`, or zero where it is more than there is.
    #[must_use]
    pub fn minus(self, used: Self) -> Self {
        Self { vcpus: self.vcpus.saturating_sub(used.vcpus), memory: self.memory.saturating_sub(used.memory) }
    }

    /// Whether `wanted` fits in this.
    pub fn holds(self, wanted: Self) -> bool {
        wanted.vcpus <= self.vcpus && wanted.memory <= self.memory
    }
}

/// One start of an agent process: fresh each time.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Incarnation(pub String);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a node is fenced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFenceEvidence {
    /// How long no lease had been granted when it was given up.
    pub silent: Duration,
    /// VMs that were taken from it.
    pub vms: u32,
    /// Their volumes, each with proof that the storage refuses this node's owners.
    pub volumes: u32,
}

impl fmt::Display for NodeFenceEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "self-fence-lease-expired: no lease for {} ms, {} volume(s) of {} VM(s) fenced",
            self.silent.as_millis(),
            self.volumes,
            self.vms
        )
    }
}

/// Whether a node has been given up. Stored: a new control plane goes on where the old one was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodeFence {
    /// It has not.
    #[default]
    Clear,
    /// It gets no lease any more; its VMs are being fenced.
    Fencing {
        /// How long no lease had been granted when it was given up.
        silent: Duration,
    },
    /// Nothing that runs there can do harm. It gets work again once it has reaped what is stale.
    Fenced(NodeFenceEvidence),
}

/// A host with a node agent, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its identity, from its state directory.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// host:port of its agent.
    pub address: String,
    /// What it can hold.
    pub capacity: Capacity,
    /// Pools it reaches.
    pub pools: BTreeSet<Name>,
    /// The agent's latest start.
    pub incarnation: Incarnation,
    /// The agent's version.
    pub version: String,
    /// The version of librbd there. Empty: none, and pools of RBD images are out of its reach.
    pub librbd: String,
    /// Whether it has been given up.
    pub fence: NodeFence,
    /// Grows with every VM that is assigned to it. Each assignment writes this record, so that two that were decided
    /// on the same view of its capacity cannot both be stored.
    pub assignments: u64,
    /// What its agent says of the host.
    pub facts: HostFacts,
    /// What an operator has set for it.
    pub settings: NodeSettings,
}

impl Node {
    /// Its labels: the agent's, changed by the operator's.
    pub fn labels(&self) -> Labels {
        let mut labels = self.facts.labels.clone();
        for (key, value) in &self.settings.labels {
            match value {
                Some(value) => labels.insert(key.clone(), value.clone()),
                None => labels.remove(key),
            };
        }
        labels
    }

    /// One of its labels.
    pub fn label(&self, key: &str) -> Option<&Name> {
        let set = self.settings.labels.iter().find(|(name, _)| name.as_str() == key);
        let reported =
            || self.facts.labels.iter().find(|(name, _)| name.as_str() == key).map(|(_, value)| value);
        set.map_or_else(reported, |(_, value)| value.as_ref())
    }

    /// Its taints: the agent's and the operator's.
    pub fn taints(&self) -> BTreeSet<Taint> {
        self.facts.taints.union(&self.settings.taints).cloned().collect()
    }

    /// How far it may be filled.
    pub fn overcommit(&self) -> Overcommit {
        Overcommit {
            vcpus: self.settings.vcpu_overcommit.unwrap_or(self.facts.overcommit.vcpus),
            memory: self.settings.memory_overcommit.unwrap_or(self.facts.overcommit.memory),
        }
    }

    /// What is kept for the host itself.
    pub fn reserved(&self) -> Capacity {
        self.settings.reserved.unwrap_or(self.facts.reserved)
    }

    /// What VMs may take of it: its capacity without the reserve, overcommitted. Hugepages are a pool apart that is
    /// given out once, and count once.
    pub fn offered(&self) -> Capacity {
        let hugepages = self.hugepages();
        let pool = hugepages.values().fold(Bytes::ZERO, |sum, bytes| sum.saturating_add(*bytes));
        let apart = Capacity { memory: pool, ..Capacity::default() };
        self.overcommit().apply(self.capacity.minus(apart), self.reserved()).plus(apart)
    }

    /// Its memory that is reserved as hugepages, by page size; no more than it offers at all.
    pub fn hugepages(&self) -> BTreeMap<Bytes, Bytes> {
        let mut left = self.capacity.memory;
        let mut pools: BTreeMap<Bytes, Bytes> = BTreeMap::new();
        for (page, total) in self.facts.numa.iter().flat_map(|node| &node.hugepages) {
            let counted = (*total).min(left);
            left = left.saturating_sub(counted);
            let pool = pools.entry(*page).or_default();
            *pool = pool.saturating_add(counted);
        }
        pools
    }

    /// Whether it takes no new VM.
    pub fn is_cordoned(&self) -> bool {
        self.settings.cordoned || self.settings.drain.is_some()
    }
}

/// How recently a node has been heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Liveness {
    /// Not since this control plane started.
    #[default]
    Unheard,
    /// Within the suspicion time.
    Alive,
    /// Not within the suspicion time.
    Suspect,
}

/// What this control plane has heard of a node. In memory only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSession {
    /// The agent start the reports are from.
    pub incarnation: Incarnation,
    /// The newest heartbeat's number.
    pub sequence: u64,
    /// When the newest heartbeat was received.
    pub last_heartbeat: Moment,
    /// When the last heartbeat that was answered with a lease was received, or this control plane's start: until then
    /// a predecessor may have granted one.
    pub lease_from: Moment,
    /// How recently it has been heard.
    pub liveness: Liveness,
    /// What it runs, and what has ended there unacknowledged. Complete once `liveness` is not `Unheard`.
    pub vms: BTreeMap<VmId, VmReport>,
}

/// The state of a node for people and for placement (`drover.control.v1.NodeState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Takes work.
    Ready,
    /// Silent for longer than it should be.
    Suspect,
    /// Given up; its VMs are being fenced.
    Fencing,
    /// Given up, and nothing of it can do harm.
    Fenced,
    /// Stored, not heard of since this control plane started.
    Unknown,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Suspect => "suspect",
            Self::Fencing => "fencing",
            Self::Fenced => "fenced",
            Self::Unknown => "unknown",
        })
    }
}

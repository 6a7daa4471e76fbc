//! Where a VM may run, beyond what it takes: stored with its specification.

use std::{collections::BTreeSet, fmt, time::Duration};

use drover_ids::VmId;
use drover_units::Bytes;

use crate::{CpuBaseline, Name, Toleration};

/// What counts as one place in a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Domain {
    /// Each host by itself.
    #[default]
    Host,
    /// Hosts with the same `rack` label; hosts without one are in no rack.
    Rack,
    /// Hosts with the same `zone` label; hosts without one are in no zone.
    Zone,
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Rack => "rack",
            Self::Zone => "zone",
        })
    }
}

/// Whether a rule must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strength {
    /// No host that breaks it is taken.
    Required,
    /// Hosts that keep it are better by this much, 1..=100.
    Preferred(u8),
}

/// Whom a VM wants to be near to, or far from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// One VM.
    Vm(VmId),
    /// Every member of a group.
    Group(Name),
}

/// Together with a peer, or apart from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Relation {
    /// In the same domain.
    Together,
    /// In different domains.
    Apart,
}

/// A rule about other VMs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Affinity {
    /// Together or apart.
    pub relation: Relation,
    /// From whom.
    pub peer: Peer,
    /// In which domains.
    pub domain: Domain,
    /// How strict.
    pub strength: Strength,
}

/// A rule that keeps the members of a group evenly distributed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spread {
    /// Whose members are counted.
    pub group: Name,
    /// Over which domains.
    pub domain: Domain,
    /// The most by which the fullest domain may exceed the emptiest; at least 1.
    pub max_skew: u32,
    /// How strict.
    pub strength: Strength,
}

/// What is asked of a label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LabelTest {
    /// It has one of these values.
    In(BTreeSet<Name>),
    /// It has none of these values, or is not there.
    NotIn(BTreeSet<Name>),
    /// It is there.
    Exists,
    /// It is not there.
    Absent,
}

/// A rule about a host's labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LabelRule {
    /// Which label.
    pub key: Name,
    /// What is asked of it.
    pub test: LabelTest,
    /// How strict.
    pub strength: Strength,
}

/// How a VM's CPUs and memory lie on the host's NUMA nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum NumaPolicy {
    /// Anywhere.
    #[default]
    Any,
    /// All of it on one NUMA node.
    Single,
    /// On one NUMA node if there is room on one.
    PreferSingle,
}

/// What a VM may push away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Preemption {
    /// Nothing: it waits for room.
    #[default]
    Never,
    /// VMs of lower priority, if it fits nowhere else. They restart where there is room.
    LowerPriority,
}

/// Everything that limits where a VM may run, and how it stands to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Constraints {
    /// Groups it is a member of, for other VMs' rules and its own.
    pub groups: BTreeSet<Name>,
    /// Rules about other VMs.
    pub affinity: Vec<Affinity>,
    /// Rules about the distribution of groups.
    pub spread: Vec<Spread>,
    /// Rules about labels.
    pub labels: Vec<LabelRule>,
    /// Taints it does not mind.
    pub tolerations: Vec<Toleration>,
    /// NUMA.
    pub numa: NumaPolicy,
    /// Each of its CPUs has a host thread of its own.
    pub pinned: bool,
    /// Its memory comes from hugepages of this size.
    pub hugepages: Option<Bytes>,
    /// The least its host's processor must have.
    pub cpu_baseline: CpuBaseline,
    /// Networks its host must reach.
    pub networks: BTreeSet<Name>,
    /// Whose it is; `None` is the project "default".
    pub project: Option<Name>,
    /// What it may push away.
    pub preemption: Preemption,
    /// How long it is expected to live, for policies that group by it.
    pub lifetime: Option<Duration>,
    /// The set that it was created in: all or none of it are placed.
    pub set: Option<Name>,
}

//! What is asked for.

use std::{collections::BTreeSet, fmt, num::NonZeroU32, sync::Arc};

use drover_ids::{NodeId, VmId};
use drover_units::{Bytes, VcpuCount};

use crate::PageBacking;

/// How a VM's CPUs and memory lie on the host's NUMA nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NumaPolicy {
    /// Anywhere.
    #[default]
    Float,
    /// On one node, or nowhere.
    Single,
    /// On one node if there is room on one, otherwise it floats.
    PreferSingle,
}

/// Whether vCPUs share threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pinning {
    /// They share, as often as the host's overcommit says.
    #[default]
    Shared,
    /// Each has a hardware thread for itself.
    Dedicated,
}

/// What a VM takes of its host: its flavour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Demand {
    /// Virtual CPUs.
    pub vcpus: VcpuCount,
    /// Guest memory. On hugepages it is rounded up to whole pages.
    pub memory: Bytes,
    /// What that memory is made of.
    pub backing: PageBacking,
    /// Whether its vCPUs share threads.
    pub pinning: Pinning,
    /// How it lies on NUMA nodes.
    pub numa: NumaPolicy,
}

impl Demand {
    /// So many shared vCPUs and so much ordinary memory, anywhere.
    pub fn new(vcpus: VcpuCount, memory: Bytes) -> Self {
        Self { vcpus, memory, ..Self::default() }
    }
}

/// Whether a constraint must hold, or counts in the score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Strength {
    /// It must hold.
    Required,
    /// It counts, relative to other preferences: 1 to [`PREFERENCE_MAX`]; more counts as that.
    Preferred(u16),
}

/// Largest weight of one preference.
pub const PREFERENCE_MAX: u16 = 100;

/// What hosts have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Each host is by itself.
    #[default]
    Host,
    /// Hosts of a rack. A host without one is by itself in no rack: constraints of this scope do not bind it.
    Rack,
    /// Hosts of a zone. A host without one is in no zone: constraints of this scope do not bind it.
    Zone,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Rack => "rack",
            Self::Zone => "zone",
        })
    }
}

/// Whom a VM wants near or far.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// Members of a group.
    Group(String),
    /// One VM.
    Vm(VmId),
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(group) => write!(f, "group '{group}'"),
            Self::Vm(vm) => write!(f, "VM {vm}"),
        }
    }
}

/// Near or far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// In a place that holds at least one of them. The first member of its own group may go anywhere. Required of a VM
    /// that is not there: nothing will do.
    Together,
    /// In a place that holds none of them. Required, it binds both sides: none of them may come to this VM either.
    Apart,
}

/// Affinity or anti-affinity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity {
    /// To whom.
    pub peers: Peers,
    /// Near or far.
    pub direction: Direction,
    /// In what sense near or far.
    pub scope: Scope,
    /// Whether it must hold.
    pub strength: Strength,
}

/// Even distribution of a group over places: with this VM counted in, its place may hold at most `max_skew` members
/// more than the place that holds the fewest. Places count that have at least one ready host which meets the request's
/// required labels, taints, pools, networks and baseline (whether or not it has room).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spread {
    /// The group, which the VM need not be a member of.
    pub group: String,
    /// Over what.
    pub scope: Scope,
    /// How uneven it may be.
    pub max_skew: NonZeroU32,
    /// Whether it must hold.
    pub strength: Strength,
}

/// What a label must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LabelMatch {
    /// One of these.
    In(BTreeSet<String>),
    /// None of these; a host without the label passes.
    NotIn(BTreeSet<String>),
    /// There, whatever its value.
    Exists,
    /// Not there.
    Absent,
}

/// A rule about one label of the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelRule {
    /// The label. `zone`, `rack` and `host` mean where the host stands and its name.
    pub key: String,
    /// What it must be.
    pub matches: LabelMatch,
    /// Whether it must hold.
    pub strength: Strength,
}

impl fmt::Display for LabelRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join(", ");
        match &self.matches {
            LabelMatch::In(values) if values.len() == 1 => write!(f, "{}={}", self.key, list(values)),
            LabelMatch::In(values) => write!(f, "{} in ({})", self.key, list(values)),
            LabelMatch::NotIn(values) => write!(f, "{} not in ({})", self.key, list(values)),
            LabelMatch::Exists => write!(f, "{} set", self.key),
            LabelMatch::Absent => write!(f, "{} not set", self.key),
        }
    }
}

/// A taint that does not keep the VM away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Toleration {
    /// The taint's key.
    pub key: String,
    /// The taint's value; `None`: any.
    pub value: Option<String>,
}

/// Everything about a VM that placement asks for, apart from its identity. Shared between equal VMs: the inventory keeps
/// one copy of equal profiles however many VMs have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Profile {
    /// What it takes.
    pub demand: Demand,
    /// Whose limits it counts against; empty: nobody's.
    pub project: String,
    /// Higher may preempt lower.
    pub priority: u32,
    /// Groups that it is a member of.
    pub groups: BTreeSet<String>,
    /// Whom it wants near or far.
    pub affinity: Vec<Affinity>,
    /// Over what it is spread.
    pub spread: Vec<Spread>,
    /// What labels its host must, or should, have.
    pub labels: Vec<LabelRule>,
    /// Taints that do not keep it away.
    pub tolerations: BTreeSet<Toleration>,
    /// Storage pools that its host must reach.
    pub pools: BTreeSet<String>,
    /// Networks that its host must reach.
    pub networks: BTreeSet<String>,
    /// CPU baseline that its host must present; empty: any.
    pub baseline: String,
}

impl Profile {
    /// A profile that asks for room and nothing else.
    pub fn new(demand: Demand) -> Self {
        Self { demand, ..Self::default() }
    }
}

/// A time in seconds since an epoch of the caller's choosing, the same for all it tells one inventory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seconds(pub u32);

/// One VM that is to be placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The VM. If it is in the inventory already, it does not stand in its own way, and where it is does not count as
    /// free.
    pub vm: VmId,
    /// Its name, for explanations. May be empty; the inventory keeps it.
    pub name: String,
    /// What it asks for.
    pub profile: Arc<Profile>,
    /// When it is expected to end, for the lifetime-aware policy.
    pub ends: Option<Seconds>,
    /// Taken if it passes, however good the others are: a restart finds warm caches where it was.
    pub preferred: Option<NodeId>,
    /// No other host will do.
    pub only: Option<NodeId>,
    /// Hosts that will not do: a migration's source, hosts that are to be emptied.
    pub excluded: Vec<NodeId>,
}

impl Request {
    /// A VM that may go anywhere its profile allows.
    pub fn new(vm: VmId, profile: Arc<Profile>) -> Self {
        Self {
            vm,
            name: String::new(),
            profile,
            ends: None,
            preferred: None,
            only: None,
            excluded: Vec::new(),
        }
    }
}

/// What the VMs of a project may take together. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProjectLimit {
    /// Virtual CPUs.
    pub vcpus: Option<u64>,
    /// Guest memory.
    pub memory: Option<Bytes>,
    /// VMs.
    pub vms: Option<u64>,
}

/// What the VMs of a project take together. A VM that is being moved counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProjectUsage {
    /// Virtual CPUs.
    pub vcpus: u64,
    /// Guest memory.
    pub memory: Bytes,
    /// VMs.
    pub vms: u64,
}

//! What a host is, as its owner describes it.
//!
//! These are plain data in the caller's words. The inventory interns every name, so that nothing here is kept per host
//! apart from small numbers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use drover_ids::NodeId;
use drover_units::{Bytes, VcpuCount};

/// A ratio in hundredths: 100 gives each thing out once, 400 four times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u16);

impl Percent {
    /// Each thing once.
    pub const HUNDRED: Self = Self(100);

    /// A ratio in hundredths.
    pub const fn new(hundredths: u16) -> Self {
        Self(hundredths)
    }
    /// The hundredths.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl Default for Percent {
    fn default() -> Self {
        Self::HUNDRED
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// Whether a host takes work. Only a ready one does; the others say why not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostState {
    /// Takes work.
    #[default]
    Ready,
    /// Keeps what it runs and takes nothing new: somebody said so.
    Cordoned,
    /// Is being emptied.
    Draining,
    /// Silent for longer than it should be.
    Suspect,
    /// Given up; its VMs are being fenced.
    Fencing,
    /// Given up, and nothing of it can do harm.
    Fenced,
    /// Not heard of yet.
    Unknown,
}

impl fmt::Display for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Suspect => "suspect",
            Self::Fencing => "fencing",
            Self::Fenced => "fenced",
            Self::Unknown => "unknown",
        })
    }
}

/// Where a host stands. An empty name: it is in no such place, and shares none with any other host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// What fails together at large: a room, a site.
    pub zone: String,
    /// What fails together at small: a rack. Rack names are the cluster's: equal ones in two zones are one rack.
    pub rack: String,
}

/// The page sizes that a guest's memory may be made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageBacking {
    /// Ordinary memory, which overcommit applies to.
    #[default]
    Base,
    /// 2 MiB pages from the host's pool of them.
    Huge2Mib,
    /// 1 GiB pages from the host's pool of them.
    Huge1Gib,
}

impl PageBacking {
    /// Size of one page.
    pub const fn page(self) -> Bytes {
        match self {
            Self::Base => Bytes::kib(4),
            Self::Huge2Mib => Bytes::mib(2),
            Self::Huge1Gib => Bytes::gib(1),
        }
    }
}

impl fmt::Display for PageBacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "memory",
            Self::Huge2Mib => "2 MiB hugepages",
            Self::Huge1Gib => "1 GiB hugepages",
        })
    }
}

/// A host's memory. What VMs on base pages may take together is
/// `(total - hugepages_2mib - hugepages_1gib - reserved) * overcommit`; each hugepage pool is given out once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// All of it.
    pub total: Bytes,
    /// Of it, the pool of 2 MiB pages.
    pub hugepages_2mib: Bytes,
    /// Of it, the pool of 1 GiB pages.
    pub hugepages_1gib: Bytes,
    /// Kept for the host itself.
    pub reserved: Bytes,
    /// How often base pages are given out.
    pub overcommit: Percent,
}

/// A host's CPUs. With `t = threads - reserved` and ratio `r = overcommit`, VMs fit while
/// `shared vCPUs + r * pinned vCPUs <= r * t`: a pinned vCPU takes a hardware thread for itself, which the others
/// then cannot share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCpu {
    /// Cores.
    pub cores: u32,
    /// Hardware threads: what vCPUs run on.
    pub threads: VcpuCount,
    /// Threads kept for the host itself.
    pub reserved: VcpuCount,
    /// How often an unpinned thread is given out.
    pub overcommit: Percent,
}

/// One NUMA node of a host. VMs that are bound to a node share its threads (as often as the host's overcommit says) and
/// its memory (once); VMs that float take from the host as a whole only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NumaNode {
    /// Hardware threads.
    pub threads: VcpuCount,
    /// Memory.
    pub memory: Bytes,
}

/// How much a taint keeps away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaintEffect {
    /// VMs that do not tolerate it stay away.
    NoSchedule,
    /// VMs that do not tolerate it rather go elsewhere.
    PreferNoSchedule,
}

/// A mark that keeps VMs away which do not tolerate it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Taint {
    /// What about.
    pub key: String,
    /// Which.
    pub value: String,
    /// How much.
    pub effect: TaintEffect,
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// A host, as described to [`Inventory::add_host`](crate::Inventory::add_host).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSpec {
    /// Its identity. Ties between equal hosts go to the smaller one.
    pub id: NodeId,
    /// Its name, for people and for the label `host`.
    pub name: String,
    /// Whether it takes work.
    pub state: HostState,
    /// Its CPUs.
    pub cpu: HostCpu,
    /// Its memory.
    pub memory: HostMemory,
    /// Its NUMA nodes; empty: one, which is the whole host. At most [`NUMA_NODES_MAX`].
    pub numa: Vec<NumaNode>,
    /// CPU baselines that it can present to a guest, by name.
    pub baselines: BTreeSet<String>,
    /// Where it stands.
    pub topology: Topology,
    /// Labels. The keys `zone`, `rack` and `host` are taken: they read `topology` and `name`.
    pub labels: BTreeMap<String, String>,
    /// Marks that keep VMs away.
    pub taints: BTreeSet<Taint>,
    /// Storage pools that it reaches.
    pub pools: BTreeSet<String>,
    /// Networks that it reaches.
    pub networks: BTreeSet<String>,
}

/// NUMA nodes of one host: what x86 servers have at most today, in their finest partition (two sockets of four nodes),
/// twice.
pub const NUMA_NODES_MAX: usize = 16;

impl HostSpec {
    /// A ready host with so many threads and so much memory, and nothing special about it.
    pub fn new(id: NodeId, name: impl Into<String>, threads: VcpuCount, memory: Bytes) -> Self {
        Self {
            id,
            name: name.into(),
            state: HostState::Ready,
            cpu: HostCpu { cores: threads.get(), threads, ..HostCpu::default() },
            memory: HostMemory { total: memory, ..HostMemory::default() },
            numa: Vec::new(),
            baselines: BTreeSet::new(),
            topology: Topology::default(),
            labels: BTreeMap::new(),
            taints: BTreeSet::new(),
            pools: BTreeSet::new(),
            networks: BTreeSet::new(),
        }
    }
}

/// Measured load of a host, from a heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// CPU time in use, hundredths of a thread.
    pub cpu_centi: u32,
    /// Memory in use.
    pub memory: Bytes,
}

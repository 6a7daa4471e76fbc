//! Why not.

use std::fmt;

use drover_ids::VmId;
use drover_units::{Bytes, VcpuCount};

use crate::{HostState, LabelRule, PageBacking, Peers, Scope, Taint};

/// Names shown of the VMs that stand in the way; the rest are counted.
const BLOCKERS_SHOWN: usize = 3;

/// A VM as it is called, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmName {
    /// Its id.
    pub id: VmId,
    /// Its name; empty if nobody said.
    pub name: String,
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() { fmt::Display::fmt(&self.id, f) } else { write!(f, "'{}'", self.name) }
    }
}

/// A number of vCPUs in hundredths: overcommit and reserve leave fractions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CentiVcpus(pub u32);

impl CentiVcpus {
    /// Whole vCPUs.
    pub const fn whole(vcpus: VcpuCount) -> Self {
        Self(vcpus.get().saturating_mul(100))
    }
}

impl fmt::Display for CentiVcpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => write!(f, "{whole}"),
            (whole, part) => write!(f, "{whole}.{part:02}"),
        }
    }
}

/// One reason against one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It does not take work.
    NotReady(HostState),
    /// Another host was asked for.
    NotAskedFor,
    /// The request rules it out.
    Excluded,
    /// Too few vCPUs are free.
    Vcpus {
        /// What was asked for.
        wanted: CentiVcpus,
        /// What is free.
        free: CentiVcpus,
        /// What VMs may take of the host.
        capacity: CentiVcpus,
    },
    /// Too few threads are free of pinned vCPUs.
    DedicatedThreads {
        /// What was asked for.
        wanted: VcpuCount,
        /// What is free.
        free: VcpuCount,
        /// What VMs may take of the host.
        capacity: VcpuCount,
    },
    /// Too little memory is free.
    Memory {
        /// Of which kind.
        backing: PageBacking,
        /// What was asked for.
        wanted: Bytes,
        /// What is free.
        free: Bytes,
        /// What VMs may take of the host.
        capacity: Bytes,
    },
    /// No NUMA node has room for all of it.
    Numa {
        /// Free vCPUs of the node with the most of them.
        best_free: CentiVcpus,
        /// Free memory of the node with the most of it.
        best_memory: Bytes,
        /// How many nodes there are.
        nodes: usize,
    },
    /// A required label is not as it must be.
    Label {
        /// The rule.
        rule: LabelRule,
        /// What the label is.
        value: Option<String>,
    },
    /// It has a mark that the VM does not tolerate.
    Taint(Taint),
    /// It does not reach a pool that the VM needs.
    Pool(String),
    /// It does not reach a network that the VM needs.
    Network(String),
    /// It cannot present the CPU baseline.
    Baseline(String),
    /// It must be near VMs that are not there.
    NotTogether {
        /// Whom.
        peers: Peers,
        /// In what sense near.
        scope: Scope,
    },
    /// It must be apart from VMs that are there.
    NotApart {
        /// Whom.
        peers: Peers,
        /// In what sense apart.
        scope: Scope,
        /// The VMs in the way, if they are on this very host.
        vms: Vec<VmName>,
    },
    /// VMs that are there must be apart from this one.
    KeptAway {
        /// What of this VM they keep away: a group that it is a member of, or itself.
        peers: Peers,
        /// In what sense apart.
        scope: Scope,
        /// The VMs that say so, if they are on this very host.
        vms: Vec<VmName>,
    },
    /// The group would be spread too unevenly.
    Spread {
        /// The group.
        group: String,
        /// Over what.
        scope: Scope,
        /// Members where this host is, with this VM.
        here: u32,
        /// Members in the place that has the fewest.
        fewest: u32,
        /// How many more there may be.
        max_skew: u32,
    },
}

impl Reason {
    /// A stable word for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotReady(_) => "not-ready",
            Self::NotAskedFor => "not-asked-for",
            Self::Excluded => "excluded",
            Self::Vcpus { .. } => "vcpus",
            Self::DedicatedThreads { .. } => "dedicated-threads",
            Self::Memory { backing: PageBacking::Base, .. } => "memory",
            Self::Memory { .. } => "hugepages",
            Self::Numa { .. } => "numa",
            Self::Label { .. } => "label",
            Self::Taint(_) => "taint",
            Self::Pool(_) => "pool",
            Self::Network(_) => "network",
            Self::Baseline(_) => "cpu-baseline",
            Self::NotTogether { .. } => "affinity",
            Self::NotApart { .. } => "anti-affinity",
            Self::KeptAway { .. } => "kept-away",
            Self::Spread { .. } => "spread",
        }
    }

    /// What would cure it, for people. `None`: nothing that somebody can do to this host.
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::NotReady(HostState::Cordoned | HostState::Draining) => "uncordon the host".to_owned(),
            Self::NotReady(state) => format!("bring the host back: it is {state}"),
            Self::NotAskedFor | Self::Excluded => return None,
            Self::Vcpus { wanted, free, .. } => {
                format!("free {} more vCPU(s)", CentiVcpus(wanted.0.saturating_sub(free.0)))
            }
            Self::DedicatedThreads { wanted, free, .. } => {
                format!("free {} more dedicated thread(s)", wanted.saturating_sub(*free))
            }
            Self::Memory { backing, wanted, free, .. } => {
                format!("free {} more of {backing}", wanted.saturating_sub(*free))
            }
            Self::Numa { .. } => "let the VM float over NUMA nodes, or free room on one".to_owned(),
            Self::Label { rule, .. } => format!("label the host so that {rule}"),
            Self::Taint(taint) => format!("tolerate {taint}, or remove it"),
            Self::Pool(pool) => format!("connect pool '{pool}'"),
            Self::Network(network) => format!("connect network '{network}'"),
            Self::Baseline(baseline) => format!("ask for a lower CPU baseline than '{baseline}'"),
            Self::NotTogether { peers, scope } => format!("move {peers} to this {scope}"),
            Self::NotApart { vms, scope, .. } | Self::KeptAway { vms, scope, .. } if vms.is_empty() => {
                format!("move those VMs out of this {scope}")
            }
            Self::NotApart { vms, .. } | Self::KeptAway { vms, .. } => format!("move {} away", shown(vms)),
            Self::Spread { here, fewest, max_skew, .. } => {
                format!("allow a skew of {}, or place elsewhere first (now {max_skew})", here - fewest)
            }
        })
    }
}

fn shown(vms: &[VmName]) -> String {
    let names: Vec<String> = vms.iter().take(BLOCKERS_SHOWN).map(ToString::to_string).collect();
    match vms.len().saturating_sub(BLOCKERS_SHOWN) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady(state) => write!(f, "the host is {state}, not ready"),
            Self::NotAskedFor => f.write_str("another host was asked for"),
            Self::Excluded => f.write_str("the request rules it out"),
            Self::Vcpus { wanted, free, capacity } => {
                write!(f, "needs {wanted} vCPU(s), {free} of {capacity} free")
            }
            Self::DedicatedThreads { wanted, free, capacity } => {
                write!(f, "needs {wanted} dedicated thread(s), {free} of {capacity} free")
            }
            Self::Memory { backing, wanted, free, capacity } => {
                write!(f, "needs {wanted} {backing}, {free} of {capacity} free")
            }
            Self::Numa { best_free, best_memory, nodes } => write!(
                f,
                "does not fit on one of {nodes} NUMA node(s): at most {best_free} vCPU(s) and {best_memory} free on one"
            ),
            Self::Label { rule, value: Some(value) } => write!(f, "needs {rule}, and it is '{value}'"),
            Self::Label { rule, value: None } => write!(f, "needs {rule}"),
            Self::Taint(taint) => write!(f, "has taint {taint}"),
            Self::Pool(pool) => write!(f, "does not reach pool '{pool}'"),
            Self::Network(network) => write!(f, "does not reach network '{network}'"),
            Self::Baseline(baseline) => write!(f, "cannot present CPU baseline '{baseline}'"),
            Self::NotTogether { peers, scope } => write!(f, "no VM of {peers} is on this {scope}"),
            Self::NotApart { peers: Peers::Group(group), scope: Scope::Host, vms } if !vms.is_empty() => {
                write!(f, "holds {} of anti-affinity group '{group}'", shown(vms))
            }
            Self::NotApart { peers, scope, .. } => {
                write!(f, "this {scope} holds {peers}, which it must be apart from")
            }
            Self::KeptAway { peers, scope, vms } if vms.is_empty() => {
                write!(f, "VMs on this {scope} must be apart from {peers}")
            }
            Self::KeptAway { peers, vms, .. } => write!(f, "{} must be apart from {peers}", shown(vms)),
            Self::Spread { group, scope, here, fewest, max_skew } => write!(
                f,
                "would be number {here} of group '{group}' on this {scope}, another has {fewest}, and the skew may be {max_skew}"
            ),
        }
    }
}

//! Where VMs may stand, checked by hand.
//!
//! Plain lists and plain loops, written from the rules and not from the engine that keeps them: no index, no cache, no
//! incremental sum. [`PlainCluster::against`] names everything that is wrong with one VM on one host,
//! [`PlainCluster::over_capacity`] every host that holds more than it has, [`PlainCluster::arrangement`] finds by
//! trying whether VMs fit at all. Everything is worked out anew on every call: for small clusters, in tests.

use std::collections::{BTreeMap, BTreeSet};

use drover_ids::{NodeId, VmId};

use crate::Violation;

mod brute_force;
mod capacity;
mod constraints;

/// What a VM's memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlainPages {
    /// Ordinary pages.
    #[default]
    Base,
    /// 2 MiB pages.
    TwoMib,
    /// 1 GiB pages.
    OneGib,
}

/// Whether a VM's CPUs and memory are on one NUMA node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlainNuma {
    /// They may be anywhere.
    #[default]
    Anywhere,
    /// They must be on one.
    OneNode,
    /// They should be on one.
    RatherOneNode,
}

/// What counts as one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlainScope {
    /// A host.
    #[default]
    Host,
    /// A rack.
    Rack,
    /// A zone.
    Zone,
}

/// Whom an affinity means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlainPeers {
    /// Members of a group.
    Group(String),
    /// One VM.
    Vm(VmId),
}

/// A hard rule about other VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainAffinity {
    /// Near them, or away from them.
    pub together: bool,
    /// Whom.
    pub peers: PlainPeers,
    /// What near means.
    pub scope: PlainScope,
}

/// A hard rule about evenness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainSpread {
    /// Whose members are counted.
    pub group: String,
    /// Over what places.
    pub scope: PlainScope,
    /// By how much the fullest may lead.
    pub max_skew: u64,
}

/// A hard rule about a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlainLabelRule {
    /// It is one of these.
    In(String, BTreeSet<String>),
    /// It is none of these.
    NotIn(String, BTreeSet<String>),
    /// It is there.
    Exists(String),
    /// It is not there.
    Absent(String),
}

/// A VM: what it takes and what it insists on. Preferences are nobody's violation and are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainVm {
    /// Its identity.
    pub id: VmId,
    /// Virtual CPUs.
    pub vcpus: u64,
    /// Guest memory, bytes.
    pub memory: u64,
    /// What the memory is made of.
    pub pages: PlainPages,
    /// Whether each vCPU has a thread for itself.
    pub pinned: bool,
    /// Whether it is on one NUMA node.
    pub numa: PlainNuma,
    /// Its project; empty: none.
    pub project: String,
    /// Lower ones give way.
    pub priority: u32,
    /// Groups it is a member of.
    pub groups: BTreeSet<String>,
    /// Rules about other VMs.
    pub affinity: Vec<PlainAffinity>,
    /// Rules about evenness.
    pub spread: Vec<PlainSpread>,
    /// Rules about labels.
    pub labels: Vec<PlainLabelRule>,
    /// Taints that do not matter to it, by key and, unless any will do, value.
    pub tolerations: Vec<(String, Option<String>)>,
    /// Pools it needs.
    pub pools: BTreeSet<String>,
    /// Networks it needs.
    pub networks: BTreeSet<String>,
    /// CPU baseline it needs; empty: none.
    pub baseline: String,
}

impl PlainVm {
    /// A VM that takes room and insists on nothing.
    pub fn new(id: VmId, vcpus: u64, memory: u64) -> Self {
        Self {
            id,
            vcpus,
            memory,
            pages: PlainPages::Base,
            pinned: false,
            numa: PlainNuma::Anywhere,
            project: String::new(),
            priority: 0,
            groups: BTreeSet::new(),
            affinity: Vec::new(),
            spread: Vec::new(),
            labels: Vec::new(),
            tolerations: Vec::new(),
            pools: BTreeSet::new(),
            networks: BTreeSet::new(),
            baseline: String::new(),
        }
    }
}

/// A host: what it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainHost {
    /// Its identity.
    pub id: NodeId,
    /// Its name: the label `host`.
    pub name: String,
    /// Whether it takes anything new.
    pub takes_work: bool,
    /// Hardware threads.
    pub threads: u64,
    /// Threads that are the host's own.
    pub threads_reserved: u64,
    /// How often a thread is given out, hundredths.
    pub cpu_overcommit: u64,
    /// Memory, bytes.
    pub memory: u64,
    /// Of it, 2 MiB pages, bytes.
    pub two_mib: u64,
    /// Of it, 1 GiB pages, bytes.
    pub one_gib: u64,
    /// Of it, the host's own, bytes.
    pub memory_reserved: u64,
    /// How often ordinary memory is given out, hundredths.
    pub memory_overcommit: u64,
    /// Threads and bytes of each NUMA node. Empty: the host is one node.
    pub numa: Vec<(u64, u64)>,
    /// Baselines it can present.
    pub baselines: BTreeSet<String>,
    /// Its zone; empty: none.
    pub zone: String,
    /// Its rack; empty: none.
    pub rack: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Hard taints, by key and value.
    pub taints: BTreeSet<(String, String)>,
    /// Pools it reaches.
    pub pools: BTreeSet<String>,
    /// Networks it reaches.
    pub networks: BTreeSet<String>,
}

impl PlainHost {
    /// A host with so many threads and so much memory, and nothing special about it.
    pub fn new(id: NodeId, threads: u64, memory: u64) -> Self {
        Self {
            id,
            name: id.to_string(),
            takes_work: true,
            threads,
            threads_reserved: 0,
            cpu_overcommit: 100,
            memory,
            two_mib: 0,
            one_gib: 0,
            memory_reserved: 0,
            memory_overcommit: 100,
            numa: Vec::new(),
            baselines: BTreeSet::new(),
            zone: String::new(),
            rack: String::new(),
            labels: BTreeMap::new(),
            taints: BTreeSet::new(),
            pools: BTreeSet::new(),
            networks: BTreeSet::new(),
        }
    }
}

/// A VM on a host. One that moves stands on both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whose.
    pub vm: PlainVm,
    /// Where.
    pub host: NodeId,
    /// The NUMA node that it is bound to there.
    pub numa_node: Option<usize>,
}

/// What the VMs of a project may take together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlainLimit {
    /// Virtual CPUs.
    pub vcpus: Option<u64>,
    /// Guest memory, bytes.
    pub memory: Option<u64>,
    /// VMs.
    pub vms: Option<u64>,
}

/// Hosts, and what stands on them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlainCluster {
    /// The hosts.
    pub hosts: Vec<PlainHost>,
    /// What stands where.
    pub standing: Vec<Standing>,
    /// Limits of projects, by name.
    pub limits: BTreeMap<String, PlainLimit>,
}

impl PlainCluster {
    /// A host.
    pub fn host(&self, id: NodeId) -> Option<&PlainHost> {
        self.hosts.iter().find(|host| host.id == id)
    }

    /// The same without one VM, wherever it stands.
    #[must_use]
    pub fn without(&self, vm: VmId) -> Self {
        let mut rest = self.clone();
        rest.standing.retain(|standing| standing.vm.id != vm);
        rest
    }

    /// The same with one VM more.
    #[must_use]
    pub fn with(&self, vm: &PlainVm, host: NodeId, numa_node: Option<usize>) -> Self {
        let mut more = self.clone();
        more.standing.push(Standing { vm: vm.clone(), host, numa_node });
        more
    }

    /// Everything that is wrong with putting a VM on a host, if it is put there besides all that stands: what it lacks,
    /// what keeps it away, what it would break. Empty: nothing. Where the VM stands already does not count in rules
    /// about other VMs, and its project has it already; the room it takes there counts.
    pub fn against(&self, vm: &PlainVm, host: NodeId) -> Vec<Violation> {
        let Some(host) = self.host(host) else {
            return vec![Violation::new(
                "host-exists",
                format!("VM {} on host {host}, which is not there", vm.id),
            )];
        };
        let mut violations = Vec::new();
        constraints::of_host(vm, host, &mut violations);
        constraints::of_others(self, vm, host, &mut violations);
        if self.standing.iter().all(|standing| standing.vm.id != vm.id) {
            capacity::of_projects(&self.with(vm, host.id, None), Some(&vm.project), &mut violations);
        }
        capacity::of_one_more(self, vm, host, &mut violations);
        violations
    }

    /// Everything that stands where there is not enough: threads, memory, hugepages, NUMA nodes.
    pub fn over_capacity(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        for host in &self.hosts {
            capacity::of_host(self, host, &mut violations);
        }
        violations
    }

    /// Every project that has more than it may.
    pub fn over_limits(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        capacity::of_projects(self, None, &mut violations);
        violations
    }

    /// Every standing VM that would not be allowed where it stands if it were put there now. Rules that only bind the
    /// placing (state, taints) and rules that a departure can break (affinity, evenness) show here, too: what is named
    /// need not be anybody's fault.
    pub fn misplaced(&self) -> Vec<Violation> {
        let moved_from =
            |standing: &Standing| self.without(standing.vm.id).against(&standing.vm, standing.host);
        self.standing.iter().flat_map(moved_from).collect()
    }
}

#[cfg(test)]
mod tests;

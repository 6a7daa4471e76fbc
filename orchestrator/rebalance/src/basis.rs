//! What planners decide on.

use std::collections::{BTreeMap, BTreeSet};

use drover_ids::{NodeId, VmId};
use drover_placement::{Inventory, Policies};
use drover_units::{Bytes, BytesPerSec};

use crate::CostModel;

/// What was measured of a VM lately, a mean over some minutes: planning for a peak of seconds moves VMs after it is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmUsage {
    /// CPU time in use, hundredths of a thread. `None`: not measured.
    pub cpu_centi: Option<u32>,
    /// Memory in use on the host. `None`: not measured.
    pub memory: Option<Bytes>,
    /// What it writes to its memory. `None`: not measured.
    pub dirty_rate: Option<BytesPerSec>,
}

/// What was measured of VMs. Those that are not there are taken to use what they ask for, or their share of what was
/// measured of their host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    vms: BTreeMap<VmId, VmUsage>,
}

impl Usage {
    /// Nothing measured.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a measurement, in place of an earlier one.
    pub fn measure(&mut self, vm: VmId, usage: VmUsage) {
        self.vms.insert(vm, usage);
    }

    /// Forgets a VM that is gone.
    pub fn forget(&mut self, vm: VmId) {
        self.vms.remove(&vm);
    }

    /// What was measured of a VM.
    pub fn of(&self, vm: VmId) -> Option<&VmUsage> {
        self.vms.get(&vm)
    }
}

impl FromIterator<(VmId, VmUsage)> for Usage {
    fn from_iter<T: IntoIterator<Item = (VmId, VmUsage)>>(measured: T) -> Self {
        Self { vms: measured.into_iter().collect() }
    }
}

/// What planners decide on: the cluster as it is now, and what is known of its VMs. All of it borrowed; planners change
/// copies.
#[derive(Clone, Copy, Debug)]
pub struct Basis<'a> {
    /// Hosts, and what is on them. A VM that is being moved already is on two hosts, and is left alone.
    pub inventory: &'a Inventory,
    /// What a good host is.
    pub policies: &'a Policies,
    /// What migrations cost.
    pub costs: &'a CostModel,
    /// What VMs use.
    pub usage: &'a Usage,
    /// VMs that must stay where they are: an operation works on them, they are not running, they cannot migrate.
    pub immovable: &'a BTreeSet<VmId>,
}

impl Basis<'_> {
    /// Every host of a rack.
    pub fn hosts_of_rack(&self, rack: &str) -> BTreeSet<NodeId> {
        self.hosts_where(|host_rack, _| host_rack == rack)
    }

    /// Every host of a zone.
    pub fn hosts_of_zone(&self, zone: &str) -> BTreeSet<NodeId> {
        self.hosts_where(|_, host_zone| host_zone == zone)
    }

    fn hosts_where(&self, is_meant: impl Fn(&str, &str) -> bool) -> BTreeSet<NodeId> {
        let hosts = self.inventory.hosts();
        hosts.filter(|host| is_meant(host.rack(), host.zone())).map(|host| host.id()).collect()
    }
}

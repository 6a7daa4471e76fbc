//! Looking at an inventory.

use std::{collections::BTreeMap, sync::Arc};

use drover_ids::{NodeId, VmId};
use drover_units::{Bytes, VcpuCount};

use crate::{
    CentiVcpus, HostCpu, HostMemory, HostSpec, HostState, HostVersion, Load, NumaNode, PageBacking, Percent,
    Profile, Request, Seconds, Taint, Topology, containers::NameId,
};

use super::{FLOATS, HostDetail, HostSlot, Inventory, Traits, VmSlot};

impl Inventory {
    /// Every host, in no particular order that anything depends on.
    pub fn hosts(&self) -> impl Iterator<Item = HostView<'_>> {
        let live = |(slot, host): (usize, &HostSlot)| host.live.then_some(slot as u32);
        self.hosts.iter().enumerate().filter_map(live).map(|slot| HostView { inventory: self, slot })
    }

    /// A host.
    pub fn host(&self, host: NodeId) -> Option<HostView<'_>> {
        self.host_slot(host).map(|slot| HostView { inventory: self, slot })
    }

    /// Every VM on every host that holds it.
    pub fn vms(&self) -> impl Iterator<Item = VmView<'_>> {
        self.hosts().flat_map(|host| host.vms())
    }

    /// A VM, once for each host that holds it.
    pub fn vm(&self, vm: VmId) -> impl Iterator<Item = VmView<'_>> {
        self.slots_of_vm(vm.as_u128()).map(|slot| VmView { inventory: self, slot })
    }

    /// Hosts of a rack, in the order of their ids.
    pub fn hosts_of_rack(&self, rack: &str) -> impl Iterator<Item = HostView<'_>> {
        let book = self.rack_books.get(self.racks.get(rack).0 as usize);
        book.into_iter().flat_map(|book| book.hosts.iter()).map(|slot| HostView { inventory: self, slot })
    }
}

/// A host, as it is now.
#[derive(Clone, Copy, Debug)]
pub struct HostView<'a> {
    inventory: &'a Inventory,
    slot: u32,
}

/// A host's pool of hugepages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HugepageUse {
    /// What the pool has.
    pub capacity: Bytes,
    /// What VMs take of it.
    pub used: Bytes,
}

/// A NUMA node with what VMs that are bound to it take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumaUse {
    /// What it has.
    pub node: NumaNode,
    /// Hundredths of shared vCPUs that bound VMs take.
    pub cpu_used: u64,
    /// Memory that bound VMs take.
    pub memory_used: Bytes,
}

impl<'a> HostView<'a> {
    fn host(&self) -> &'a HostSlot {
        &self.inventory.hosts[self.slot as usize]
    }
    fn detail(&self) -> &'a HostDetail {
        &self.inventory.details[self.slot as usize]
    }
    fn traits(&self) -> Option<&'a Arc<Traits>> {
        self.inventory.traits.get(self.detail().traits)
    }
    fn text(&self, id: NameId) -> &'a str {
        self.inventory.names.name(id)
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        NodeId::from_u128(self.host().id)
    }
    /// Its name.
    pub fn name(&self) -> &'a str {
        self.text(self.detail().name)
    }
    /// Whether it takes work.
    pub fn state(&self) -> HostState {
        self.host().state
    }
    /// Its zone; empty: none.
    pub fn zone(&self) -> &'a str {
        self.text(self.host().zone)
    }
    /// Its rack; empty: none.
    pub fn rack(&self) -> &'a str {
        self.inventory.racks.name(self.host().rack)
    }
    /// Changes so far that a decision about it depends on.
    pub fn version(&self) -> HostVersion {
        HostVersion(self.host().version)
    }
    /// vCPUs that VMs may take, with overcommit and without what is reserved.
    pub fn cpu_capacity(&self) -> CentiVcpus {
        CentiVcpus(self.host().cpu)
    }
    /// How often an unpinned thread is given out.
    pub fn cpu_overcommit(&self) -> Percent {
        Percent::new(self.host().cpu_overcommit)
    }
    /// vCPUs that VMs take; a pinned one as many as its thread would be shared into.
    pub fn cpu_used(&self) -> CentiVcpus {
        CentiVcpus(u32::try_from(self.host().cpu_used).unwrap_or(u32::MAX))
    }
    /// vCPUs that are free.
    pub fn cpu_free(&self) -> CentiVcpus {
        CentiVcpus(self.host().cpu_free())
    }
    /// Memory on base pages that VMs may take, with overcommit and without what is reserved.
    pub fn memory_capacity(&self) -> Bytes {
        Bytes::new(self.host().memory)
    }
    /// Memory on base pages that VMs take.
    pub fn memory_used(&self) -> Bytes {
        Bytes::new(self.host().memory_used)
    }
    /// Memory on base pages that is free.
    pub fn memory_free(&self) -> Bytes {
        Bytes::new(self.host().memory_free())
    }
    /// A pool of hugepages; for base pages, the same as the three above.
    pub fn hugepages(&self, backing: PageBacking) -> HugepageUse {
        let detail = self.detail();
        let (capacity, used) = match backing {
            PageBacking::Base => (self.host().memory, self.host().memory_used),
            PageBacking::Huge2Mib => (detail.huge[0], detail.huge_used[0]),
            PageBacking::Huge1Gib => (detail.huge[1], detail.huge_used[1]),
        };
        HugepageUse { capacity: Bytes::new(capacity), used: Bytes::new(used) }
    }
    /// Its NUMA nodes; at least one, which is the whole host if nobody has named any.
    pub fn numa(&self) -> impl Iterator<Item = NumaUse> + use<'a> {
        self.detail().numa.iter().map(|node| NumaUse {
            node: NumaNode { threads: VcpuCount::new(node.threads), memory: Bytes::new(node.memory) },
            cpu_used: node.cpu_used,
            memory_used: Bytes::new(node.memory_used),
        })
    }
    /// Its measured load.
    pub fn load(&self) -> Load {
        self.inventory.loads[self.slot as usize]
    }
    /// How many VMs it holds.
    pub fn vm_count(&self) -> u32 {
        self.host().vms
    }
    /// Its VMs, in no particular order.
    pub fn vms(&self) -> impl Iterator<Item = VmView<'a>> + use<'a> {
        let inventory = self.inventory;
        inventory.slots_on(self.slot).map(move |slot| VmView { inventory, slot })
    }
    /// When the last of its VMs ends, of those that say so.
    pub fn ends(&self) -> Option<Seconds> {
        Some(self.host().ends).filter(|ends| *ends != 0).map(Seconds)
    }
    /// A label, also `zone`, `rack` and `host`.
    pub fn label(&self, key: &str) -> Option<&'a str> {
        let place = |text: &'a str| Some(text).filter(|text| !text.is_empty());
        match key {
            "zone" => place(self.zone()),
            "rack" => place(self.rack()),
            "host" => place(self.name()),
            key => self.traits()?.label(self.inventory.names.get(key)).map(|value| self.text(value)),
        }
    }
    /// Everything about it in the words in which it was described.
    pub fn spec(&self) -> HostSpec {
        let (host, detail) = (self.host(), self.detail());
        let traits = self.traits().map(|traits| Traits::clone(traits)).unwrap_or_default();
        let owned = |id: &NameId| self.text(*id).to_owned();
        let labels: BTreeMap<_, _> = traits.labels.iter().map(|(k, v)| (owned(k), owned(v))).collect();
        let taint =
            |(k, v, effect): &_| Taint { key: owned(k), value: owned(v), effect: Clone::clone(effect) };
        let numa = if detail.numa_named { self.numa().map(|n| n.node).collect() } else { Vec::new() };
        HostSpec {
            id: self.id(),
            name: self.name().to_owned(),
            state: host.state,
            cpu: HostCpu {
                cores: detail.cores,
                threads: VcpuCount::new(detail.threads),
                reserved: VcpuCount::new(detail.threads_reserved),
                overcommit: Percent::new(host.cpu_overcommit),
            },
            memory: HostMemory {
                total: Bytes::new(detail.memory_total),
                hugepages_2mib: Bytes::new(detail.huge[0]),
                hugepages_1gib: Bytes::new(detail.huge[1]),
                reserved: Bytes::new(detail.memory_reserved),
                overcommit: Percent::new(detail.memory_overcommit),
            },
            numa,
            baselines: traits.baselines.iter().map(owned).collect(),
            topology: Topology { zone: self.zone().to_owned(), rack: self.rack().to_owned() },
            labels,
            taints: traits.taints.iter().map(taint).collect(),
            pools: traits.pools.iter().map(owned).collect(),
            networks: traits.networks.iter().map(owned).collect(),
        }
    }
}

/// A VM on one host that holds it.
#[derive(Clone, Copy, Debug)]
pub struct VmView<'a> {
    inventory: &'a Inventory,
    slot: u32,
}

impl<'a> VmView<'a> {
    fn vm(&self) -> &'a VmSlot {
        &self.inventory.vms[self.slot as usize]
    }

    /// Its id.
    pub fn id(&self) -> VmId {
        VmId::from_u128(self.vm().id)
    }
    /// Its name; empty if nobody said.
    pub fn name(&self) -> &'a str {
        &self.vm().name
    }
    /// The host.
    pub fn host(&self) -> HostView<'a> {
        HostView { inventory: self.inventory, slot: self.vm().host }
    }
    /// What it asked for.
    pub fn profile(&self) -> &'a Arc<Profile> {
        self.inventory.profiles.get(self.vm().profile).expect("a VM holds its profile")
    }
    /// When it is expected to end.
    pub fn ends(&self) -> Option<Seconds> {
        Some(self.vm().ends).filter(|ends| *ends != 0).map(Seconds)
    }
    /// The NUMA node that it is bound to.
    pub fn numa_node(&self) -> Option<usize> {
        Some(self.vm().numa).filter(|node| *node != FLOATS).map(usize::from)
    }
    /// A request that would place it anew.
    pub fn request(&self) -> Request {
        Request {
            name: self.name().to_owned(),
            ends: self.ends(),
            ..Request::new(self.id(), Arc::clone(self.profile()))
        }
    }
}

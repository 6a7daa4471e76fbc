//! Whether what is kept event by event is what would be worked out anew.

use std::collections::BTreeMap;

use crate::HostState;

use super::{Inventory, NONE, hosts::cell_in};

impl Inventory {
    /// Compares everything that is kept event by event (sums, counts of groups, the index) with what follows from hosts
    /// and VMs alone. For tests, simulators and alarms; looks at everything.
    ///
    /// # Errors
    /// What differs first, for people.
    pub fn verify(&self) -> Result<(), String> {
        let rebuilt = self.rebuilt()?;
        for host in self.hosts() {
            let slot = self.host_slot(host.id()).ok_or("a host cannot be found by its id")?;
            let other = rebuilt.host(host.id()).ok_or("a host is lost")?;
            let sums = |view: &crate::HostView<'_>| {
                let huge = [crate::PageBacking::Huge2Mib, crate::PageBacking::Huge1Gib];
                let huge = huge.map(|backing| view.hugepages(backing));
                (view.cpu_used(), view.memory_used(), huge, view.vm_count(), view.ends())
            };
            if sums(&host) != sums(&other) {
                return Err(format!("{}: {:?}, and anew {:?}", host.name(), sums(&host), sums(&other)));
            }
            self.verify_numa(slot)?;
            self.verify_cell(slot)?;
        }
        let indexed: usize = self.classes.iter().map(|(_, class)| class.hosts as usize).sum();
        let ready = self.hosts().filter(|host| host.state() == HostState::Ready).count();
        if indexed != ready {
            return Err(format!("{indexed} hosts in the index, {ready} are ready"));
        }
        self.verify_groups(&rebuilt)?;
        for slot in 0..self.projects.len() {
            let project = self.projects.name(crate::containers::NameId(slot as u32));
            let (kept, anew) = (self.project_usage(project), rebuilt.project_usage(project));
            if kept != anew {
                return Err(format!("project '{project}' has {kept:?}, and anew {anew:?}"));
            }
        }
        Ok(())
    }

    /// The same hosts and VMs in a new inventory.
    fn rebuilt(&self) -> Result<Self, String> {
        let mut rebuilt = Self::new();
        for host in self.hosts() {
            rebuilt.add_host(&host.spec()).map_err(|error| error.to_string())?;
        }
        for vm in self.vms() {
            rebuilt.hold(vm.host().id(), &vm.request()).map_err(|error| error.to_string())?;
        }
        Ok(rebuilt)
    }

    /// Which node a VM is bound to depends on the order of events; the sums must be those of the bindings.
    fn verify_numa(&self, host: u32) -> Result<(), String> {
        let detail = &self.details[host as usize];
        let overcommit = self.hosts[host as usize].cpu_overcommit;
        for (node, kept) in detail.numa.iter().enumerate() {
            let (mut cpu, mut memory) = (0u64, 0u64);
            for vm in self.slots_on(host).map(|vm| &self.vms[vm as usize]) {
                let wanted = self.profiles.resolved(vm.profile).ok_or("a VM without profile")?;
                if usize::from(vm.numa) == node {
                    cpu += u64::from(wanted.cpu(overcommit));
                    memory += wanted.memory;
                }
            }
            if (kept.cpu_used, kept.memory_used) != (cpu, memory) {
                return Err(format!("NUMA node {node} counts {kept:?}, and anew {cpu} and {memory}"));
            }
        }
        Ok(())
    }

    fn verify_cell(&self, slot: u32) -> Result<(), String> {
        let host = &self.hosts[slot as usize];
        if host.state != HostState::Ready {
            return if host.class == NONE {
                Ok(())
            } else {
                Err("in the index without being ready".to_owned())
            };
        }
        let class = self.classes.get(host.class).ok_or("a ready host without class")?;
        if class.key != self.class_key(slot) || cell_in(host, class.scale) != (host.row, host.column) {
            return Err(format!("host {} is in the wrong cell", drover_ids::NodeId::from_u128(host.id)));
        }
        let there = class.row(host.row).filter(|row| row.columns_from(0) & (1 << host.column) != 0);
        match there.is_some_and(|row| row.cell(host.column).iter().any(|other| other == slot)) {
            true => Ok(()),
            false => Err(format!("host {} is not in its cell", drover_ids::NodeId::from_u128(host.id))),
        }
    }

    /// Counts of groups, with places by name: numbers differ between two inventories.
    fn verify_groups(&self, rebuilt: &Self) -> Result<(), String> {
        let (kept, anew) = (self.census(), rebuilt.census());
        if kept == anew { Ok(()) } else { Err(format!("groups: {kept:?}, and anew {anew:?}")) }
    }

    fn census(&self) -> BTreeMap<String, Vec<(String, u32)>> {
        use crate::Scope::{Host, Rack, Zone};
        let mut census = BTreeMap::new();
        for (_, group) in self.groups.iter() {
            let mut counts = Vec::new();
            for (what, who) in [("members", &group.members), ("repellers", &group.repellers)] {
                for scope in [Host, Rack, Zone] {
                    for (place, count) in who.by(scope).iter() {
                        let place = match scope {
                            Host => drover_ids::NodeId::from_u128(self.hosts[place as usize].id).to_string(),
                            Rack => self.racks.name(crate::containers::NameId(place)).to_owned(),
                            Zone => self.names.name(crate::containers::NameId(place)).to_owned(),
                        };
                        counts.push((format!("{what} on {scope} {place}"), count));
                    }
                }
            }
            counts.sort_unstable();
            census.insert(format!("{:?}", group.name()), counts);
        }
        census
    }
}

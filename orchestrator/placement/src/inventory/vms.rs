//! Events of VMs.

use std::sync::Arc;

use drover_ids::{NodeId, VmId};
use drover_units::Bytes;

use crate::{
    Direction, NumaPolicy, PageBacking, Profile, ProjectUsage, Request,
    containers::{Interner, NameId, mix},
};

use super::{
    DEMAND_MEMORY_MAX, DEMAND_VCPUS_MAX, GroupName, Groups, HostDetail, Inventory, InventoryError, NONE,
    Naming, VmSlot, Wanted, slots::FLOATS,
};

/// Makes new numbers for new names.
struct Interning<'a> {
    names: &'a mut Interner,
    racks: &'a mut Interner,
    projects: &'a mut Interner,
    groups: &'a mut Groups,
}

impl Naming for Interning<'_> {
    fn name(&mut self, text: &str) -> NameId {
        self.names.intern(text)
    }
    fn rack(&mut self, text: &str) -> NameId {
        self.racks.intern(text)
    }
    fn project(&mut self, text: &str) -> Option<u32> {
        Some(self.projects.intern(text).0)
    }
    fn group(&mut self, group: GroupName<'_>) -> Option<u32> {
        let slot = self.groups.intern(group);
        self.groups.refer(slot);
        Some(slot)
    }
}

/// Knows the names that there are.
struct LookingUp<'a>(&'a Inventory);

impl Naming for LookingUp<'_> {
    fn name(&mut self, text: &str) -> NameId {
        self.0.names.get(text)
    }
    fn rack(&mut self, text: &str) -> NameId {
        self.0.racks.get(text)
    }
    fn project(&mut self, text: &str) -> Option<u32> {
        Some(self.0.projects.get(text).0).filter(|slot| *slot != NameId::NONE.0)
    }
    fn group(&mut self, group: GroupName<'_>) -> Option<u32> {
        self.0.groups.find(group)
    }
}

impl Inventory {
    /// A VM is on a host: a fact, which counts whether or not it fits. A VM may be held on several hosts: on both ends
    /// of a move, and on a dead host until it has been fenced.
    pub fn hold(&mut self, host: NodeId, request: &Request) -> Result<(), InventoryError> {
        let slot = self.host_slot(host).ok_or(InventoryError::NoHost(host))?;
        let id = request.vm.as_u128();
        if self.slots_of_vm(id).any(|vm| self.vms[vm as usize].host == slot) {
            return Err(InventoryError::AlreadyThere { vm: request.vm, host });
        }
        let demand = request.profile.demand;
        if demand.vcpus.get() > DEMAND_VCPUS_MAX || demand.memory.get() > DEMAND_MEMORY_MAX {
            return Err(InventoryError::Demand { vm: request.vm });
        }
        let profile = self.use_profile(&request.profile);
        let numa = self.profiles.resolved(profile).map_or(FLOATS, |wanted| self.numa_node(slot, wanted));
        let vm = self.new_vm_slot();
        let first = self.hosts[slot as usize].first_vm;
        self.vms[vm as usize] = VmSlot {
            id,
            name: request.name.as_str().into(),
            host: slot,
            next: first,
            previous: NONE,
            profile,
            ends: request.ends.map_or(0, |ends| ends.0.max(1)),
            numa,
            charged: false,
        };
        if first != NONE {
            self.vms[first as usize].previous = vm;
        }
        self.hosts[slot as usize].first_vm = vm;
        self.hosts[slot as usize].vms += 1;
        let vms = &self.vms;
        self.vm_table.insert(mix(id), vm, |slot| mix(vms[slot as usize].id));
        self.held += 1;
        self.charge(vm);
        self.account(vm, true);
        self.reindex(slot);
        self.touch(slot);
        Ok(())
    }

    /// A VM is not on a host any more.
    pub fn release(&mut self, vm: VmId, host: NodeId) -> Result<(), InventoryError> {
        let slot = self.host_slot(host).ok_or(InventoryError::NoHost(host))?;
        let there = self.slots_of_vm(vm.as_u128()).find(|held| self.vms[*held as usize].host == slot);
        self.release_slot(there.ok_or(InventoryError::NotThere { vm, host })?);
        Ok(())
    }

    /// A VM is nowhere any more.
    pub fn remove_vm(&mut self, vm: VmId) -> Result<(), InventoryError> {
        let slots: Vec<u32> = self.slots_of_vm(vm.as_u128()).collect();
        if slots.is_empty() {
            return Err(InventoryError::NoVm(vm));
        }
        slots.into_iter().for_each(|slot| self.release_slot(slot));
        Ok(())
    }

    fn release_slot(&mut self, vm: u32) {
        self.account(vm, false);
        let VmSlot { id, host, next, previous, profile, ends, charged, .. } = self.vms[vm as usize];
        match previous {
            NONE => self.hosts[host as usize].first_vm = next,
            previous => self.vms[previous as usize].next = next,
        }
        if next != NONE {
            self.vms[next as usize].previous = previous;
        }
        let vms = &self.vms;
        self.vm_table.remove(mix(id), vm, |slot| mix(vms[slot as usize].id));
        self.vms[vm as usize] = VmSlot { next: self.free_vm.unwrap_or(NONE), ..VmSlot::default() };
        self.free_vm = Some(vm);
        self.held -= 1;
        self.hosts[host as usize].vms -= 1;
        if ends == self.hosts[host as usize].ends {
            let last = self.slots_on(host).map(|vm| self.vms[vm as usize].ends).max();
            self.hosts[host as usize].ends = last.unwrap_or(0);
        }
        if charged {
            self.count_in_project(profile, false);
            // Whoever is left of the same VM in the same project is charged instead.
            let others: Vec<u32> = self.slots_of_vm(id).collect();
            others.into_iter().for_each(|other| self.charge(other));
        }
        if let Some(wanted) = self.profiles.leave(profile) {
            wanted.groups_spoken_of().for_each(|group| self.groups.forget(group));
        }
        self.reindex(host);
        self.touch(host);
    }

    fn new_vm_slot(&mut self) -> u32 {
        match self.free_vm {
            Some(slot) => {
                self.free_vm = Some(self.vms[slot as usize].next).filter(|next| *next != NONE);
                slot
            }
            None => {
                self.vms.push(VmSlot::default());
                self.vms.len() as u32 - 1
            }
        }
    }

    /// Charges a VM's project for it, unless that is charged for another place of the VM.
    fn charge(&mut self, vm: u32) {
        let project =
            |slot: u32| self.profiles.resolved(self.vms[slot as usize].profile).map(|wanted| wanted.project);
        let mut same =
            self.slots_of_vm(self.vms[vm as usize].id).filter(|slot| project(*slot) == project(vm));
        let first = same.all(|slot| !self.vms[slot as usize].charged);
        drop(same);
        if first {
            self.vms[vm as usize].charged = true;
            self.count_in_project(self.vms[vm as usize].profile, true);
        }
    }

    fn count_in_project(&mut self, profile: u32, more: bool) {
        let Some(wanted) = self.profiles.resolved(profile) else { return };
        let Some(project) = wanted.project else { return };
        let Some(profile) = self.profiles.get(profile) else { return };
        let (vcpus, memory) = (u64::from(wanted.vcpus), profile.demand.memory);
        let usage: &mut ProjectUsage = &mut self.project_books[project as usize].usage;
        if more {
            usage.vms += 1;
            usage.vcpus += vcpus;
            usage.memory = usage.memory.saturating_add(memory);
        } else {
            usage.vms -= 1;
            usage.vcpus -= vcpus;
            usage.memory = usage.memory.saturating_sub(memory);
        }
    }

    /// Has one user more of a profile.
    fn use_profile(&mut self, profile: &Arc<Profile>) -> u32 {
        if let Some(slot) = self.profiles.find(profile) {
            self.profiles.join(slot);
            return slot;
        }
        let mut naming = Interning {
            names: &mut self.names,
            racks: &mut self.racks,
            projects: &mut self.projects,
            groups: &mut self.groups,
        };
        let wanted = Wanted::of(profile, &mut naming);
        if let Some(project) = wanted.project {
            self.project_books.grow(project as usize + 1);
        }
        self.profiles.add(Arc::clone(profile), wanted)
    }

    /// What a profile wants, in numbers: as kept, or looked up.
    pub(crate) fn wanted(&self, profile: &Profile) -> Arc<Wanted> {
        let known = self.profiles.find(profile).and_then(|slot| self.profiles.resolved(slot));
        known.map_or_else(|| Arc::new(Wanted::of(profile, &mut LookingUp(self))), Arc::clone)
    }

    /// The NUMA node that a VM would be bound to: of those with room, the one with the least left.
    pub(crate) fn numa_node(&self, host: u32, wanted: &Wanted) -> u8 {
        if wanted.numa == NumaPolicy::Float {
            return FLOATS;
        }
        let overcommit = self.hosts[host as usize].cpu_overcommit;
        let cpu = wanted.cpu(overcommit);
        let nodes = self.details[host as usize].numa.iter().enumerate();
        nodes
            .filter_map(|(index, node)| {
                let left_cpu = node.cpu_free(overcommit).checked_sub(cpu)?;
                let left_memory = node.memory.saturating_sub(node.memory_used).checked_sub(wanted.memory)?;
                Some((left_cpu, left_memory, index))
            })
            .min()
            .map_or(FLOATS, |(_, _, index)| index as u8)
    }

    /// Adds what a VM takes of its host and says to others, or takes it away.
    pub(super) fn account(&mut self, vm: u32, more: bool) {
        let VmSlot { host, profile, ends, numa, .. } = self.vms[vm as usize];
        let Some(wanted) = self.profiles.resolved(profile).map(Arc::clone) else { return };
        let slot = &mut self.hosts[host as usize];
        let cpu = u64::from(wanted.cpu(slot.cpu_overcommit));
        let add_cpu = |used: &mut u64| *used = if more { *used + cpu } else { *used - cpu };
        let add = |used: &mut u64, bytes: u64| *used = if more { *used + bytes } else { *used - bytes };
        add_cpu(&mut slot.cpu_used);
        add(&mut slot.memory_used, wanted.base_memory());
        slot.ends = slot.ends.max(ends);
        if wanted.dedicated || wanted.backing != PageBacking::Base || numa != FLOATS {
            let detail: &mut HostDetail = &mut self.details[host as usize];
            if wanted.dedicated {
                detail.pinned =
                    if more { detail.pinned + wanted.vcpus } else { detail.pinned - wanted.vcpus };
            }
            match wanted.backing {
                PageBacking::Base => {}
                PageBacking::Huge2Mib => add(&mut detail.huge_used[0], wanted.memory),
                PageBacking::Huge1Gib => add(&mut detail.huge_used[1], wanted.memory),
            }
            if let Some(node) = detail.numa.get_mut(usize::from(numa)) {
                add_cpu(&mut node.cpu_used);
                add(&mut node.memory_used, wanted.memory);
            }
        }
        self.account_in_groups(host, &wanted, more);
    }

    fn account_in_groups(&mut self, host: u32, wanted: &Wanted, more: bool) {
        let place = self.place(host);
        for group in &wanted.groups {
            if let Some(group) = self.groups.get_mut(*group) {
                group.add_member(place, more);
            }
        }
        for rule in
            wanted.affinity.iter().filter(|r| r.direction == Direction::Apart && r.preferred.is_none())
        {
            if let Some(group) = rule.group.and_then(|slot| self.groups.get_mut(slot)) {
                group.repellers.change(rule.scope, place, more);
            }
        }
    }
}

impl Wanted {
    /// The groups that a kept profile keeps alive, as often as it speaks of them.
    fn groups_spoken_of(&self) -> impl Iterator<Item = u32> {
        let affinity = self.affinity.iter().filter_map(|rule| rule.group);
        let spread = self.spread.iter().filter_map(|rule| rule.group);
        self.groups.iter().copied().chain(affinity).chain(spread)
    }
}

/// What a request counts against its project's limit.
pub(crate) fn project_demand(profile: &Profile) -> ProjectUsage {
    ProjectUsage {
        vcpus: u64::from(profile.demand.vcpus.get()),
        memory: Bytes::new(profile.demand.memory.get()),
        vms: 1,
    }
}

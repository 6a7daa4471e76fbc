//! Events of hosts.

use std::sync::Arc;

use drover_ids::NodeId;

use crate::{
    HostSpec, HostState, Load, NUMA_NODES_MAX, NumaNode, PageBacking,
    containers::{NameId, mix},
};

use super::{
    DEMAND_MEMORY_MAX, DEMAND_VCPUS_MAX, HostDetail, HostSlot, Inventory, InventoryError, NONE, ROW_EMPTY,
    RackBook, Traits,
    classes::{Cell, ClassKey},
    slots::{FLOATS, NumaSlot},
};

impl Inventory {
    /// A host comes.
    pub fn add_host(&mut self, spec: &HostSpec) -> Result<(), InventoryError> {
        if self.host_slot(spec.id).is_some() {
            return Err(InventoryError::HostKnown(spec.id));
        }
        validate(spec)?;
        let slot = self.free_hosts.pop().unwrap_or_else(|| {
            self.hosts.push(HostSlot::default());
            self.details.push(HostDetail::default());
            self.loads.push(Load::default());
            self.hosts.len() as u32 - 1
        });
        self.hosts[slot as usize] = HostSlot {
            id: spec.id.as_u128(),
            first_vm: NONE,
            class: NONE,
            live: true,
            ..HostSlot::default()
        };
        self.loads[slot as usize] = Load::default();
        let hosts = &self.hosts;
        self.host_table.insert(mix(spec.id.as_u128()), slot, |slot| mix(hosts[slot as usize].id));
        self.host_count += 1;
        self.describe(slot, spec);
        self.enter_index(slot);
        self.touch(slot);
        Ok(())
    }

    /// A host is described anew: what it has, where it stands, its state. Its VMs stay, whether or not they still fit.
    pub fn update_host(&mut self, spec: &HostSpec) -> Result<(), InventoryError> {
        let slot = self.host_slot(spec.id).ok_or(InventoryError::NoHost(spec.id))?;
        validate(spec)?;
        let vms: Vec<u32> = self.slots_on(slot).collect();
        vms.iter().for_each(|vm| self.account(*vm, false));
        self.leave_index(slot);
        let traits = self.details[slot as usize].traits;
        self.leave_rack(slot);
        self.describe(slot, spec);
        self.traits.leave(traits);
        for vm in vms {
            // Bindings to nodes that are no more are bindings to none.
            if usize::from(self.vms[vm as usize].numa) >= self.details[slot as usize].numa.len() {
                self.vms[vm as usize].numa = FLOATS;
            }
            self.account(vm, true);
        }
        self.enter_index(slot);
        self.touch(slot);
        Ok(())
    }

    /// A host begins or ceases to take work.
    pub fn set_state(&mut self, host: NodeId, state: HostState) -> Result<(), InventoryError> {
        let slot = self.host_slot(host).ok_or(InventoryError::NoHost(host))?;
        if self.hosts[slot as usize].state != state {
            self.leave_index(slot);
            self.hosts[slot as usize].state = state;
            self.enter_index(slot);
            self.touch(slot);
        }
        Ok(())
    }

    /// A host goes. It must not hold any VM.
    pub fn remove_host(&mut self, host: NodeId) -> Result<(), InventoryError> {
        let slot = self.host_slot(host).ok_or(InventoryError::NoHost(host))?;
        let vms = self.hosts[slot as usize].vms;
        if vms > 0 {
            return Err(InventoryError::HostInUse { host, vms });
        }
        self.leave_index(slot);
        self.leave_rack(slot);
        self.traits.leave(self.details[slot as usize].traits);
        let hosts = &self.hosts;
        self.host_table.remove(mix(host.as_u128()), slot, |slot| mix(hosts[slot as usize].id));
        self.hosts[slot as usize].live = false;
        self.details[slot as usize] = HostDetail::default();
        self.free_hosts.push(slot);
        self.host_count -= 1;
        self.clock += 1;
        Ok(())
    }

    /// A host reports its load. Costs one look-up and one write: no decision but those of a policy that weighs load depends
    /// on it.
    pub fn heartbeat(&mut self, host: NodeId, load: Load) -> Result<(), InventoryError> {
        let slot = self.host_slot(host).ok_or(InventoryError::NoHost(host))?;
        self.loads[slot as usize] = load;
        Ok(())
    }

    /// Writes down everything about a host but what its VMs take.
    fn describe(&mut self, slot: u32, spec: &HostSpec) {
        let traits = Traits::of(spec, &mut self.names);
        let traits = match self.traits.find(&traits) {
            Some(known) => {
                self.traits.join(known);
                known
            }
            None => self.traits.add(Arc::new(traits), ()),
        };
        let named = |text: &str, id: NameId| if text.is_empty() { NameId::NONE } else { id };
        let zone = named(&spec.topology.zone, self.names.intern(&spec.topology.zone));
        let rack = match spec.topology.rack.as_str() {
            "" => NameId::NONE,
            rack => self.racks.intern(rack),
        };
        let threads = spec.cpu.threads.saturating_sub(spec.cpu.reserved).get();
        let huge = [spec.memory.hugepages_2mib.get(), spec.memory.hugepages_1gib.get()];
        let whole = NumaNode { threads: spec.cpu.threads, memory: spec.memory.total };
        let nodes = if spec.numa.is_empty() { std::slice::from_ref(&whole) } else { &spec.numa };
        let numa = nodes
            .iter()
            .map(|node| NumaSlot {
                threads: node.threads.get(),
                memory: node.memory.get(),
                ..NumaSlot::default()
            })
            .collect();
        self.details[slot as usize] = HostDetail {
            name: self.names.intern(&spec.name),
            traits,
            cores: spec.cpu.cores,
            threads: spec.cpu.threads.get(),
            threads_reserved: spec.cpu.reserved.get(),
            pinned: 0,
            memory_overcommit: spec.memory.overcommit.get(),
            memory_total: spec.memory.total.get(),
            memory_reserved: spec.memory.reserved.get(),
            huge,
            huge_used: [0; 2],
            numa,
            numa_named: !spec.numa.is_empty(),
        };
        let host = &mut self.hosts[slot as usize];
        host.cpu_overcommit = spec.cpu.overcommit.get();
        host.cpu = threads.saturating_mul(u32::from(host.cpu_overcommit));
        host.memory = base_memory(spec);
        (host.cpu_used, host.memory_used) = (0, 0);
        (host.zone, host.rack, host.state) = (zone, rack, spec.state);
        if rack != NameId::NONE {
            self.rack_books.grow(rack.0 as usize + 1);
            let hosts = &self.hosts;
            let book: &mut RackBook = Arc::make_mut(&mut self.rack_books[rack.0 as usize]);
            book.hosts.insert(slot, |slot| hosts[slot as usize].id);
        } else {
            self.rackless += 1;
        }
    }

    fn leave_rack(&mut self, slot: u32) {
        let rack = self.hosts[slot as usize].rack;
        if rack != NameId::NONE {
            let hosts = &self.hosts;
            let book: &mut RackBook = Arc::make_mut(&mut self.rack_books[rack.0 as usize]);
            book.hosts.remove(slot, |slot| hosts[slot as usize].id);
        } else {
            self.rackless -= 1;
        }
    }

    pub(super) fn class_key(&self, slot: u32) -> ClassKey {
        let host = &self.hosts[slot as usize];
        ClassKey {
            traits: self.details[slot as usize].traits,
            zone: host.zone,
            cpu: host.cpu,
            memory: host.memory,
            cpu_overcommit: host.cpu_overcommit,
        }
    }

    fn enter_index(&mut self, slot: u32) {
        if self.hosts[slot as usize].state != HostState::Ready {
            return;
        }
        let (class, scale) = self.classes.intern(self.class_key(slot));
        let host = &mut self.hosts[slot as usize];
        host.class = class;
        (host.row, host.column) = cell_in(host, scale);
        let (cell, rack) = (Cell { class, row: host.row, column: host.column }, host.rack);
        let hosts = &self.hosts;
        self.classes.insert(cell, slot, |slot| hosts[slot as usize].id);
        self.count_in_rack(rack, class, true);
    }

    fn leave_index(&mut self, slot: u32) {
        let host = &mut self.hosts[slot as usize];
        if host.class == NONE {
            return;
        }
        let (cell, rack) = (Cell { class: host.class, row: host.row, column: host.column }, host.rack);
        host.class = NONE;
        let hosts = &self.hosts;
        self.classes.remove(cell, slot, |slot| hosts[slot as usize].id);
        self.classes.forget_if_empty(cell.class);
        self.count_in_rack(rack, cell.class, false);
    }

    fn count_in_rack(&mut self, rack: NameId, class: u32, more: bool) {
        if rack == NameId::NONE {
            return;
        }
        let book: &mut RackBook = Arc::make_mut(&mut self.rack_books[rack.0 as usize]);
        let found = book.classes.iter().position(|(known, _)| *known == class);
        match (found, more) {
            (Some(index), true) => book.classes[index].1 += 1,
            (None, true) => book.classes.push((class, 1)),
            (Some(index), false) => {
                book.classes[index].1 -= 1;
                if book.classes[index].1 == 0 {
                    book.classes.swap_remove(index);
                }
            }
            (None, false) => {}
        }
    }

    /// What a host holds has changed: it may belong in another cell.
    pub(super) fn reindex(&mut self, slot: u32) {
        let host = &self.hosts[slot as usize];
        let Some(class) = self.classes.get(host.class) else { return };
        let (row, column) = cell_in(host, class.scale);
        if (row, column) == (host.row, host.column) {
            return;
        }
        let old = Cell { class: host.class, row: host.row, column: host.column };
        let host = &mut self.hosts[slot as usize];
        (host.row, host.column) = (row, column);
        let hosts = &self.hosts;
        self.classes.remove(old, slot, |slot| hosts[slot as usize].id);
        self.classes.insert(Cell { row, column, ..old }, slot, |slot| hosts[slot as usize].id);
    }
}

/// Where a host belongs by what it has free.
pub(super) fn cell_in(host: &HostSlot, scale: super::Scale) -> (u8, u8) {
    if host.vms == 0 {
        return (ROW_EMPTY, 0);
    }
    (scale.row(host.cpu_free()), scale.column(host.memory_free()))
}

/// Bytes of base pages that VMs may take.
fn base_memory(spec: &HostSpec) -> u64 {
    let memory = &spec.memory;
    let kept = memory.hugepages_2mib.saturating_add(memory.hugepages_1gib).saturating_add(memory.reserved);
    let base = u128::from(memory.total.saturating_sub(kept).get());
    u64::try_from(base * u128::from(memory.overcommit.get()) / 100).unwrap_or(u64::MAX)
}

fn validate(spec: &HostSpec) -> Result<(), InventoryError> {
    let wrong = |field, value: String, valid: String| {
        Err(InventoryError::HostSpec { host: spec.id, field, value, valid })
    };
    let memory = &spec.memory;
    if spec.cpu.threads.get() > DEMAND_VCPUS_MAX {
        return wrong(
            "number of threads",
            spec.cpu.threads.to_string(),
            format!("at most {DEMAND_VCPUS_MAX}"),
        );
    }
    if memory.total.get() > DEMAND_MEMORY_MAX {
        let most = drover_units::Bytes::new(DEMAND_MEMORY_MAX);
        return wrong("memory", memory.total.to_string(), format!("at most {most}"));
    }
    let pools = memory.hugepages_2mib.saturating_add(memory.hugepages_1gib);
    if pools > memory.total {
        return wrong("memory of hugepage pools", pools.to_string(), format!("at most {}", memory.total));
    }
    for (field, pool, backing) in [
        ("memory of 2 MiB pages", memory.hugepages_2mib, PageBacking::Huge2Mib),
        ("memory of 1 GiB pages", memory.hugepages_1gib, PageBacking::Huge1Gib),
    ] {
        if !pool.get().is_multiple_of(backing.page().get()) {
            return wrong(field, pool.to_string(), format!("a multiple of {}", backing.page()));
        }
    }
    if spec.numa.len() > NUMA_NODES_MAX {
        return wrong(
            "number of NUMA nodes",
            spec.numa.len().to_string(),
            format!("at most {NUMA_NODES_MAX}"),
        );
    }
    Ok(())
}

//! What is kept of each host and each VM.

use crate::{HostState, containers::NameId};

/// No host, VM or class.
pub(crate) const NONE: u32 = u32::MAX;

/// What every decision looks at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HostSlot {
    pub(crate) id: u128,
    /// Hundredths of shared vCPUs that VMs may take, and take.
    pub(crate) cpu: u32,
    pub(crate) cpu_used: u64,
    /// Bytes of base pages that VMs may take, and take.
    pub(crate) memory: u64,
    pub(crate) memory_used: u64,
    pub(crate) zone: NameId,
    pub(crate) rack: NameId,
    /// Where it is in the index, if it is ready.
    pub(crate) class: u32,
    pub(crate) row: u8,
    pub(crate) column: u8,
    pub(crate) cpu_overcommit: u16,
    pub(crate) state: HostState,
    pub(crate) live: bool,
    /// Its VMs, linked through their slots.
    pub(crate) first_vm: u32,
    pub(crate) vms: u32,
    /// The inventory's clock when it last changed.
    pub(crate) version: u64,
    /// When the last of its VMs ends, of those that say so; 0: none says so.
    pub(crate) ends: u32,
}

impl HostSlot {
    pub(crate) fn cpu_free(&self) -> u32 {
        u64::from(self.cpu).saturating_sub(self.cpu_used) as u32
    }
    pub(crate) fn memory_free(&self) -> u64 {
        self.memory.saturating_sub(self.memory_used)
    }
}

/// What some decisions look at.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostDetail {
    pub(crate) name: NameId,
    pub(crate) traits: u32,
    pub(crate) cores: u32,
    pub(crate) threads: u32,
    pub(crate) threads_reserved: u32,
    /// Threads that pinned vCPUs have for themselves.
    pub(crate) pinned: u32,
    pub(crate) memory_overcommit: u16,
    pub(crate) memory_total: u64,
    pub(crate) memory_reserved: u64,
    /// 2 MiB and 1 GiB pages, bytes.
    pub(crate) huge: [u64; 2],
    pub(crate) huge_used: [u64; 2],
    /// At least one: the whole host.
    pub(crate) numa: Box<[NumaSlot]>,
    /// The owner has named its NUMA nodes.
    pub(crate) numa_named: bool,
}

/// A NUMA node, with what VMs that are bound to it take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NumaSlot {
    pub(crate) threads: u32,
    pub(crate) cpu_used: u64,
    pub(crate) memory: u64,
    pub(crate) memory_used: u64,
}

impl NumaSlot {
    pub(crate) fn cpu_free(&self, overcommit: u16) -> u32 {
        u64::from(self.threads.saturating_mul(u32::from(overcommit))).saturating_sub(self.cpu_used) as u32
    }
}

/// A VM floats over NUMA nodes.
pub(crate) const FLOATS: u8 = u8::MAX;

/// A VM on a host. One that is being moved has two.
#[derive(Clone, Debug)]
pub(crate) struct VmSlot {
    pub(crate) id: u128,
    pub(crate) name: Box<str>,
    /// `NONE`: the slot is free, and `next` is the next free one.
    pub(crate) host: u32,
    pub(crate) next: u32,
    pub(crate) previous: u32,
    pub(crate) profile: u32,
    /// 0: nobody knows.
    pub(crate) ends: u32,
    pub(crate) numa: u8,
    /// Its project is charged for it here. Of the places of a VM that is being moved, one is.
    pub(crate) charged: bool,
}

impl Default for VmSlot {
    fn default() -> Self {
        Self {
            id: 0,
            name: Box::default(),
            host: NONE,
            next: NONE,
            previous: NONE,
            profile: NONE,
            ends: 0,
            numa: FLOATS,
            charged: false,
        }
    }
}

//! What there is, kept up to date event by event.

mod classes;
mod consistency;
mod grid;
mod groups;
mod hosts;
mod names;
mod profiles;
mod slots;
mod view;
mod vms;

use std::sync::Arc;

use drover_ids::{NodeId, VmId};

use crate::{
    HostVersion, Load, Profile, ProjectLimit, ProjectUsage,
    containers::{CowVec, HostSet, Interner, SlotTable, mix},
};

pub(crate) use classes::{Class, Classes};
pub(crate) use grid::{COLUMNS, ROW_EMPTY, ROWS, Scale};
pub(crate) use groups::{Groups, Place};
pub(crate) use names::{DEMAND_MEMORY_MAX, DEMAND_VCPUS_MAX, GroupName, LabelKey, Naming, Traits, Wanted};
pub(crate) use profiles::Pool;
pub(crate) use slots::{FLOATS, HostDetail, HostSlot, NONE, VmSlot};
pub use view::{HostView, HugepageUse, NumaUse, VmView};
pub(crate) use vms::project_demand;

/// An event that cannot be: nothing has been changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InventoryError {
    /// No such host.
    #[error("there is no host {0}")]
    NoHost(NodeId),
    /// The host is there already.
    #[error("host {0} is there already")]
    HostKnown(NodeId),
    /// The host still holds VMs.
    #[error("host {host} still holds {vms} VM(s)")]
    HostInUse {
        /// The host.
        host: NodeId,
        /// How many.
        vms: u32,
    },
    /// A host's description contradicts itself.
    #[error("host {host}: {field} is {value}: it may be {valid}")]
    HostSpec {
        /// The host.
        host: NodeId,
        /// What is wrong.
        field: &'static str,
        /// What it is.
        value: String,
        /// What would be right.
        valid: String,
    },
    /// No such VM.
    #[error("there is no VM {0}")]
    NoVm(VmId),
    /// The VM is not on that host.
    #[error("VM {vm} is not on host {host}")]
    NotThere {
        /// The VM.
        vm: VmId,
        /// The host.
        host: NodeId,
    },
    /// The VM is larger than any VM may be.
    #[error(
        "VM {vm} is too large: at most {DEMAND_VCPUS_MAX} vCPUs and {}",
        drover_units::Bytes::new(DEMAND_MEMORY_MAX)
    )]
    Demand {
        /// The VM.
        vm: VmId,
    },
    /// The VM is on that host already.
    #[error("VM {vm} is on host {host} already")]
    AlreadyThere {
        /// The VM.
        vm: VmId,
        /// The host.
        host: NodeId,
    },
}

/// A project's limit and what counts against it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProjectBook {
    pub(crate) limit: ProjectLimit,
    pub(crate) usage: ProjectUsage,
}

/// The hosts of a rack.
#[derive(Clone, Debug, Default)]
pub(crate) struct RackBook {
    pub(crate) hosts: HostSet,
    /// Its ready hosts, by class.
    pub(crate) classes: Vec<(u32, u32)>,
}

/// Hosts, what they hold, and the index that decisions search.
///
/// An inventory is a value: it is changed by events (a host comes, changes, goes; a VM is held, released) and each costs
/// what it changes. Cloning is a snapshot: the clone shares everything until one of the two is changed, and then
/// copies only the part that is written.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    pub(crate) names: Interner,
    pub(crate) racks: Interner,
    pub(crate) rack_books: CowVec<Arc<RackBook>>,
    pub(crate) projects: Interner,
    pub(crate) project_books: CowVec<ProjectBook>,
    pub(crate) hosts: CowVec<HostSlot>,
    pub(crate) details: CowVec<HostDetail>,
    pub(crate) loads: CowVec<Load>,
    host_table: SlotTable,
    free_hosts: Vec<u32>,
    host_count: usize,
    /// Hosts that are in no rack.
    pub(crate) rackless: usize,
    pub(crate) vms: CowVec<VmSlot>,
    vm_table: SlotTable,
    free_vm: Option<u32>,
    held: usize,
    pub(crate) profiles: Pool<Profile, Wanted>,
    pub(crate) traits: Pool<Traits, ()>,
    pub(crate) groups: Groups,
    pub(crate) classes: Classes,
    clock: u64,
}

impl Inventory {
    /// One without hosts.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many hosts there are.
    pub fn host_count(&self) -> usize {
        self.host_count
    }

    /// How many VMs are held; one that is held on two hosts counts twice.
    pub fn held_count(&self) -> usize {
        self.held
    }

    /// Sets what a project may take. What it takes already stays.
    pub fn set_project_limit(&mut self, project: &str, limit: ProjectLimit) {
        let slot = self.project_slot(project);
        self.project_books[slot as usize].limit = limit;
    }

    /// What a project may take.
    pub fn project_limit(&self, project: &str) -> ProjectLimit {
        self.project_book(project).limit
    }

    /// What a project takes.
    pub fn project_usage(&self, project: &str) -> ProjectUsage {
        self.project_book(project).usage
    }

    fn project_book(&self, project: &str) -> ProjectBook {
        self.project_books.get(self.projects.get(project).0 as usize).copied().unwrap_or_default()
    }

    fn project_slot(&mut self, project: &str) -> u32 {
        let slot = self.projects.intern(project).0;
        self.project_books.grow(slot as usize + 1);
        slot
    }

    /// Changes so far of what decisions are made on: an inventory of the same version says the same.
    pub fn version(&self) -> HostVersion {
        HostVersion(self.clock)
    }

    fn touch(&mut self, host: u32) {
        self.clock += 1;
        self.hosts[host as usize].version = self.clock;
    }

    /// The slot of a host.
    pub(crate) fn host_slot(&self, node: NodeId) -> Option<u32> {
        let id = node.as_u128();
        self.host_table.find(mix(id), |slot| self.hosts[slot as usize].id == id)
    }

    /// Where a VM is held: on no host, on one, or on both ends of a move.
    pub(crate) fn slots_of_vm(&self, vm: u128) -> impl Iterator<Item = u32> {
        let is = move |slot: &u32| self.vms[*slot as usize].id == vm;
        self.vm_table.candidates(mix(vm)).filter(is)
    }

    /// VM slots of a host.
    pub(crate) fn slots_on(&self, host: u32) -> impl Iterator<Item = u32> {
        let first = self.hosts[host as usize].first_vm;
        let next = |slot: &u32| Some(self.vms[*slot as usize].next).filter(|next| *next != NONE);
        std::iter::successors((first != NONE).then_some(first), next)
    }

    /// A host's places, in every sense.
    pub(crate) fn place(&self, host: u32) -> Place {
        self.place_of(host, &self.hosts[host as usize])
    }

    pub(crate) fn place_of(&self, host: u32, slot: &HostSlot) -> Place {
        let some = |id: crate::containers::NameId| (id != crate::containers::NameId::NONE).then_some(id.0);
        Place { host, rack: some(slot.rack), zone: some(slot.zone) }
    }
}

//! The Azure packing trace: tables `vm` and `vmType`, whose sizes are fractions of a machine.
//!
//! - `vm(vmId, tenantId, vmTypeId, priority, starttime, endtime)`: priority 0 is high, 1 is low and may be evicted; times are
//!   fractional days since the collection began. VMs that existed before have a negative `starttime`; the `endtime` of one
//!   that outlived the 90 days after it is NULL.
//! - `vmType(id, vmTypeId, machineId, core, memory, hdd, ssd, nic)`: what a type takes of a machine of one hardware
//!   generation, each as a fraction of what that machine has. One type may be offered on several machines.
//!
//! Source: "Azure Trace for Packing 2020", revision 1 (<https://github.com/Azure/AzurePublicDataset>), of the paper
//! "Protean: VM Allocation Service at Scale" (OSDI 2020).
//!
//! A [`Tables`] becomes a [`Trace`] for one machine of the trace and one size of it: [`Tables::on_machine`].

mod csv;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::collections::BTreeMap;

use drover_units::{Bytes, VcpuCount};

use crate::{
    Error, Flavour, Moment, Priority, Problem, Trace,
    trace::{MS_IN_DAY, Stay, assemble},
};

pub use csv::{read_csv, write_csv};
#[cfg(feature = "sqlite")]
pub use sqlite::{read_sqlite, write_sqlite};

/// Most VMs of a trace; the published one has 5.5 million.
pub const MAX_VMS: usize = crate::MAX_EVENTS / 2;
/// Most rows of `vmType`.
pub const MAX_TYPES: usize = crate::MAX_FLAVOURS;
/// The furthest a time may be from the beginning of the collection, days: ends are capped at 90, and nothing is older than a
/// century.
const MAX_DAYS: f64 = 36_500.0;

/// A row of `vm`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VmRow {
    /// Unique in the file.
    pub vm: u64,
    /// Owner of a group of requests.
    pub tenant: u32,
    /// What is asked for.
    pub vm_type: u32,
    /// Whether it may be evicted.
    pub priority: Priority,
    /// Fractional days since the collection began; negative: before.
    pub start_days: f64,
    /// The same; `None`: after the cap.
    pub end_days: Option<f64>,
}

/// A row of `vmType`: each resource as a fraction of what the machine has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VmTypeRow {
    /// Names the type; unique only together with the machine.
    pub vm_type: u32,
    /// Names the hardware generation.
    pub machine: u32,
    /// CPU cores.
    pub core: f64,
    /// Memory.
    pub memory: f64,
    /// Disk.
    pub hdd: f64,
    /// Solid-state disk.
    pub ssd: f64,
    /// Network bandwidth.
    pub nic: f64,
}

/// The trace as it is published.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tables {
    /// Requests.
    pub vms: Vec<VmRow>,
    /// Their types.
    pub vm_types: Vec<VmTypeRow>,
}

/// A machine of the trace: a value of `machineId`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MachineId(pub u32);

impl Tables {
    /// The machine on which most requests can be placed, the smaller id if there are several; `None` without types.
    #[must_use]
    pub fn commonest_machine(&self) -> Option<MachineId> {
        let mut requests: BTreeMap<u32, u64> = BTreeMap::new();
        for vm in &self.vms {
            *requests.entry(vm.vm_type).or_default() += 1;
        }
        let mut by_machine: BTreeMap<u32, u64> = BTreeMap::new();
        for row in &self.vm_types {
            *by_machine.entry(row.machine).or_default() += requests.get(&row.vm_type).copied().unwrap_or(0);
        }
        let best =
            by_machine.into_iter().max_by_key(|(machine, requests)| (*requests, u32::MAX - machine))?;
        Some(MachineId(best.0))
    }

    /// The requests that can be placed on one machine, in the size of such a machine; a fraction becomes whole vCPUs and MiB,
    /// rounded up, so that what fits here fits there. How many requests are not offered on the machine comes with it.
    ///
    /// VMs from before the collection arrive at its beginning, in the order of their start.
    ///
    /// # Errors
    /// If nothing is offered on the machine.
    pub fn on_machine(&self, machine: MachineId, size: Flavour) -> Result<(Trace, usize), Error> {
        let mut flavours = BTreeMap::new();
        for row in self.vm_types.iter().filter(|row| row.machine == machine.0) {
            flavours.insert(row.vm_type, flavour_of(row, size));
        }
        let mut order: Vec<(&VmRow, Flavour)> = Vec::with_capacity(self.vms.len());
        for vm in &self.vms {
            if let Some(flavour) = flavours.get(&vm.vm_type) {
                order.push((vm, *flavour));
            }
        }
        let left_out = self.vms.len() - order.len();
        if let (true, Some(vm)) = (order.is_empty(), self.vms.first()) {
            return Err(Error::Whole(Problem::UnknownType { vm_type: vm.vm_type, machine: machine.0 }));
        }
        order.sort_by(|(a, _), (b, _)| a.start_days.total_cmp(&b.start_days));
        let stays = order.into_iter().filter_map(|(vm, flavour)| {
            let begin = moment(vm.start_days);
            // One that left before the collection began was never seen by it.
            let gone = vm.end_days.is_some_and(|end| end < 0.0);
            (!gone).then(|| Stay { begin, end: vm.end_days.map(moment), flavour, priority: vm.priority })
        });
        Ok((assemble(stays.collect(), 0)?, left_out))
    }
}

fn moment(days: f64) -> Moment {
    // A float becomes an integer by saturation: what is before the beginning is at the beginning.
    Moment::from_ms((days * MS_IN_DAY).round() as u64)
}

/// Fractions of a machine in its own size. A fraction is rounded to a billionth first: 1/48 of 48 cores is one, not two.
fn flavour_of(row: &VmTypeRow, size: Flavour) -> Flavour {
    let share = |fraction: f64, whole: f64| ((fraction * whole * 1e9).round() / 1e9).ceil().max(1.0);
    let mib = size.memory.get() as f64 / Bytes::mib(1).get() as f64;
    Flavour {
        vcpus: VcpuCount::new(share(row.core, f64::from(size.vcpus.get())) as u32),
        memory: Bytes::new((share(row.memory, mib) as u64).saturating_mul(Bytes::mib(1).get())),
    }
}

fn is_time(days: &f64) -> bool {
    days.is_finite() && days.abs() <= MAX_DAYS
}

fn is_fraction(fraction: &f64) -> bool {
    (0.0..=1.0).contains(fraction)
}

#[cfg(test)]
mod tests;

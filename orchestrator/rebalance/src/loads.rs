//! What VMs and hosts use: measured where it was measured, otherwise what they ask for.

use std::collections::BTreeMap;

use drover_ids::{NodeId, VmId};

use crate::{
    load::{Amount, Gauge},
    trial::Trial,
};

/// The hosts that take part in balancing, those that take work, and what the VMs on them use.
#[derive(Clone, Debug)]
pub(crate) struct Loads {
    hosts: Vec<(NodeId, Gauge)>,
    vms: BTreeMap<VmId, Amount>,
}

impl Loads {
    pub(crate) fn of(trial: &Trial<'_>) -> Self {
        let mut loads = Self { hosts: Vec::new(), vms: BTreeMap::new() };
        for host in trial.hosts().into_iter().filter(|host| trial.is_ready(*host)) {
            let gauge = loads.measure(trial, host);
            loads.hosts.push((host, gauge));
        }
        loads
    }

    /// A host's gauge, and its VMs' loads. What was measured of a host but not of its VMs is theirs in proportion to
    /// what they ask for; what was measured of VMs alone makes up the host.
    fn measure(&mut self, trial: &Trial<'_>, host: NodeId) -> Gauge {
        let (capacity, measured) = trial.capacity_and_load(host);
        let (mut known, mut nominal, mut unknown) = ([0.0; 2], [0.0; 2], Vec::new());
        for vm in trial.vms_of(host) {
            let asked = trial.nominal(vm, host);
            let usage = trial.basis.usage.of(vm).copied().unwrap_or_default();
            let cpu = usage.cpu_centi.map(|centi| f64::from(centi) / 100.0);
            let parts = [cpu, usage.memory.map(|memory| memory.get() as f64)];
            for dimension in 0..2 {
                match parts[dimension] {
                    Some(part) => known[dimension] += part,
                    None => nominal[dimension] += asked[dimension],
                }
            }
            unknown.push((vm, parts, asked));
        }
        // What is left of the host's load for those that nobody measured, relative to what they ask for.
        let scale = [0, 1].map(|dimension| match measured {
            Some(load) if nominal[dimension] > 0.0 => {
                (load[dimension] - known[dimension]).max(0.0) / nominal[dimension]
            }
            _ => 1.0,
        });
        let mut used = [0.0; 2];
        for (vm, parts, asked) in unknown {
            let load =
                [0, 1].map(|dimension| parts[dimension].unwrap_or(asked[dimension] * scale[dimension]));
            used = [used[0] + load[0], used[1] + load[1]];
            // One that moves is on two hosts; it is left alone, and either number will do.
            self.vms.insert(vm, load);
        }
        Gauge { capacity, used }
    }

    pub(crate) fn gauges(&self) -> Vec<Gauge> {
        self.hosts.iter().map(|(_, gauge)| *gauge).collect()
    }

    pub(crate) fn host(&self, index: usize) -> NodeId {
        self.hosts[index].0
    }

    pub(crate) fn of_vm(&self, vm: VmId) -> Amount {
        self.vms.get(&vm).copied().unwrap_or_default()
    }
}

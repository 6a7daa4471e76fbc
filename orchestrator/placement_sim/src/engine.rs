//! The engine as a placer.

use std::{collections::BTreeMap, sync::Arc};

use drover_ids::{NodeId, VmId};
use drover_placement::{
    Conflict, Decider, Demand, HostCpu, HostMemory, HostSpec, Inventory, InventoryError, Percent, Policy,
    Profile, Request, Seconds, Topology,
};
use drover_placement_trace::{Flavour, Moment, Priority, TraceVm};

use crate::{Ask, Cluster, HostClass, HostIndex, Move, Placer};

/// The engine refused the cluster.
#[derive(Debug, thiserror::Error)]
#[error("host {host} cannot be added to the inventory")]
pub struct EngineError {
    /// Its name.
    host: String,
    /// Why.
    #[source]
    cause: InventoryError,
}

/// Places by `drover-placement` and one of its policies: each request is decided and committed as a control plane does it.
#[derive(Debug)]
pub struct EnginePlacer {
    inventory: Inventory,
    decider: Decider,
    policy: Policy,
    profiles: BTreeMap<(Flavour, Priority), Arc<Profile>>,
}

impl EnginePlacer {
    /// Begins with empty hosts.
    ///
    /// # Errors
    /// If the inventory refuses a host of the cluster.
    pub fn new(cluster: &Cluster, policy: Policy) -> Result<Self, EngineError> {
        let mut inventory = Inventory::new();
        for (index, class, zone, rack) in cluster.hosts() {
            let spec = host_spec(index, class, zone, rack);
            let failed = |cause| EngineError { host: spec.name.clone(), cause };
            inventory.add_host(&spec).map_err(failed)?;
        }
        Ok(Self { inventory, decider: Decider::new(), policy, profiles: BTreeMap::new() })
    }

    fn request(&mut self, ask: &Ask) -> Request {
        let profile = self.profiles.entry((ask.flavour, ask.priority)).or_insert_with(|| {
            let mut profile = Profile::new(Demand::new(ask.flavour.vcpus, ask.flavour.memory));
            profile.priority = u32::from(ask.priority == Priority::High);
            Arc::new(profile)
        });
        let mut request = Request::new(vm_id(ask.vm), profile.clone());
        request.ends = ask.ends.map(seconds);
        request
    }
}

impl Placer for EnginePlacer {
    fn place(&mut self, ask: &Ask) -> Option<HostIndex> {
        let request = self.request(ask);
        let decision = self.decider.decide(&self.inventory, &request, &self.policy).ok()?;
        let committed: Result<(), Conflict> = self.inventory.commit(&request, &decision);
        committed.expect("nobody else changes this inventory between decision and commit");
        Some(host_index(decision.host))
    }

    fn release(&mut self, vm: TraceVm) {
        self.inventory.remove_vm(vm_id(vm)).expect("it was placed and is released once");
    }

    fn make_room(&mut self, _: &Ask) -> Vec<Move> {
        Vec::new()
    }
}

// Ids are indices and one: zero stays nobody's.

fn vm_id(vm: TraceVm) -> VmId {
    VmId::from_u128(u128::from(vm.0) + 1)
}

fn node_id(host: HostIndex) -> NodeId {
    NodeId::from_u128(u128::from(host.0) + 1)
}

fn host_index(node: NodeId) -> HostIndex {
    HostIndex(u32::try_from(node.as_u128() - 1).expect("every host's id was made from an index"))
}

fn seconds(moment: Moment) -> Seconds {
    Seconds(u32::try_from(moment.secs()).unwrap_or(u32::MAX))
}

fn host_spec(index: HostIndex, class: &HostClass, zone: &str, rack: String) -> HostSpec {
    let mut spec =
        HostSpec::new(node_id(index), format!("{}-{}", class.name, index.0), class.cores, class.memory);
    spec.cpu = HostCpu {
        reserved: class.reserved_cores,
        overcommit: Percent::new(class.cpu_overcommit_percent),
        ..spec.cpu
    };
    spec.memory = HostMemory {
        reserved: class.reserved_memory,
        overcommit: Percent::new(class.memory_overcommit_percent),
        ..spec.memory
    };
    spec.topology = Topology { zone: zone.to_owned(), rack };
    spec
}

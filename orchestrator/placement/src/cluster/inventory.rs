//! What the nodes have to offer.

use std::collections::{BTreeMap, BTreeSet};

use drover_cluster_state::{Capacity, ClusterState, Name, NodeState, VmSpec};
use drover_ids::{NodeId, VmId};

/// One node, as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name, for reasons.
    pub name: Name,
    /// Only a ready node takes work.
    pub state: NodeState,
    /// What it can hold.
    pub capacity: Capacity,
    /// What its VMs take.
    pub taken: Capacity,
    /// Pools it reaches.
    pub pools: BTreeSet<Name>,
    /// Members of anti-affinity groups that it holds, with their names.
    pub groups: BTreeMap<Name, BTreeMap<VmId, Name>>,
}

impl Host {
    /// An empty host.
    pub fn new(name: Name, state: NodeState, capacity: Capacity, pools: BTreeSet<Name>) -> Self {
        Self { name, state, capacity, taken: Capacity::default(), pools, groups: BTreeMap::new() }
    }

    /// What is not taken.
    pub fn free(&self) -> Capacity {
        self.capacity.minus(self.taken)
    }
}

/// Every node, with what is on it. A snapshot: kept up to date with [`Inventory::hold`] by whoever decides several
/// placements in a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    hosts: BTreeMap<NodeId, Host>,
}

impl Inventory {
    /// One without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// The present state of a cluster. A VM counts wherever its right to run may be in use: on both ends of a
    /// migration, and on a dead node until it has been fenced.
    pub fn of(state: &ClusterState) -> Self {
        let mut inventory = Self::new();
        for (id, node) in &state.nodes {
            let node_state = state.node_state(*id).unwrap_or(NodeState::Unknown);
            inventory
                .add(*id, Host::new(node.name.clone(), node_state, node.capacity, state.reached_pools(node)));
        }
        for vm in state.vms.values() {
            for candidate in vm.ownership.candidates() {
                inventory.hold(candidate.node, vm.id, &vm.spec);
            }
        }
        inventory
    }

    /// Adds a node, or replaces it.
    pub fn add(&mut self, node: NodeId, host: Host) {
        self.hosts.insert(node, host);
    }

    /// Counts a VM on a node. A node that is not there is ignored: nothing can be placed on it either.
    pub fn hold(&mut self, node: NodeId, vm: VmId, spec: &VmSpec) {
        let Some(host) = self.hosts.get_mut(&node) else { return };
        host.taken = host.taken.plus(spec.demand());
        if let Some(group) = &spec.anti_affinity_group {
            host.groups.entry(group.clone()).or_default().insert(vm, spec.name.clone());
        }
    }

    /// A node.
    pub fn host(&self, node: NodeId) -> Option<&Host> {
        self.hosts.get(&node)
    }

    #[cfg(test)]
    pub(crate) fn host_mut(&mut self, node: NodeId) -> &mut Host {
        self.hosts.get_mut(&node).expect("the test added it")
    }

    /// Every node, by id.
    pub fn hosts(&self) -> impl Iterator<Item = (NodeId, &Host)> {
        self.hosts.iter().map(|(id, host)| (*id, host))
    }
}

//! The decision.

use std::collections::BTreeSet;

use drover_cluster_state::{Capacity, Name, NodeState, Vm};
use drover_ids::{NodeId, VmId};
use drover_units::{Bytes, VcpuCount};

use super::{Host, Inventory, Reason, Rejection, Rejections};

/// What is to be placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The VM: it does not stand in its own way.
    pub vm: VmId,
    /// What it takes.
    pub demand: Capacity,
    /// Pools it needs.
    pub pools: BTreeSet<Name>,
    /// VMs of this group must be elsewhere.
    pub group: Option<Name>,
    /// Taken if it passes, however tight the others are: a restart finds warm caches where it was.
    pub preferred: Option<NodeId>,
    /// No other node will do.
    pub only: Option<NodeId>,
    /// A migration's source: never a target.
    pub leaving: Option<NodeId>,
}

impl Request {
    /// What a VM's specification asks for, anywhere.
    pub fn of(vm: &Vm) -> Self {
        Self {
            vm: vm.id,
            demand: vm.spec.demand(),
            pools: vm.spec.pools(),
            group: vm.spec.anti_affinity_group.clone(),
            preferred: None,
            only: None,
            leaving: None,
        }
    }
}

/// How tight a node would be: what it would have left. Smaller is better, memory first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    /// Memory left.
    pub memory: Bytes,
    /// CPUs left.
    pub vcpus: VcpuCount,
}

/// Where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The node.
    pub node: NodeId,
    /// What it has left afterwards.
    pub score: Score,
    /// How many nodes would have done.
    pub feasible: usize,
}

/// Finds the node for a request, or says what is against each.
pub fn decide(inventory: &Inventory, request: &Request) -> Result<Decision, Rejections> {
    let mut best: Option<(bool, Score, NodeId)> = None;
    let mut feasible = 0;
    for (node, host) in inventory.hosts() {
        if !passes(node, host, request) {
            continue;
        }
        feasible += 1;
        let left = host.free().minus(request.demand);
        let score = Score { memory: left.memory, vcpus: left.vcpus };
        let candidate = (request.preferred != Some(node), score, node);
        if best.is_none_or(|best| candidate < best) {
            best = Some(candidate);
        }
    }
    match best {
        Some((_, score, node)) => Ok(Decision { node, score, feasible }),
        None => Err(explain(inventory, request)),
    }
}

/// The same constraints as [`reasons`], without building text for nodes that nobody will ask about. A test holds the
/// two together.
fn passes(node: NodeId, host: &Host, request: &Request) -> bool {
    host.state == NodeState::Ready
        && request.only.is_none_or(|only| only == node)
        && request.leaving != Some(node)
        && host.free().holds(request.demand)
        && request.pools.is_subset(&host.pools)
        && request
            .group
            .as_ref()
            .and_then(|g| host.groups.get(g))
            .is_none_or(|vms| vms.keys().all(|v| *v == request.vm))
}

fn explain(inventory: &Inventory, request: &Request) -> Rejections {
    let rejection = |(node, host): (NodeId, &Host)| Rejection {
        node,
        name: host.name.clone(),
        reasons: reasons(node, host, request),
    };
    Rejections(inventory.hosts().map(rejection).collect())
}

/// Everything against one node; empty if it passes.
fn reasons(node: NodeId, host: &Host, request: &Request) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if request.only.is_some_and(|only| only != node) {
        // What else is against it does not matter to anyone.
        return vec![Reason::NotAskedFor];
    }
    if request.leaving == Some(node) {
        return vec![Reason::AlreadyThere];
    }
    if host.state != NodeState::Ready {
        reasons.push(Reason::NotReady(host.state));
    }
    let (free, wanted) = (host.free(), request.demand);
    if wanted.vcpus > free.vcpus {
        let capacity = host.capacity.vcpus;
        reasons.push(Reason::Vcpus { wanted: wanted.vcpus, free: free.vcpus, capacity });
    }
    if wanted.memory > free.memory {
        let capacity = host.capacity.memory;
        reasons.push(Reason::Memory { wanted: wanted.memory, free: free.memory, capacity });
    }
    reasons.extend(request.pools.difference(&host.pools).cloned().map(Reason::Pool));
    if let Some(group) = &request.group {
        let others = host.groups.get(group).into_iter().flatten().filter(|(vm, _)| **vm != request.vm);
        let vms: Vec<Name> = others.map(|(_, name)| name.clone()).collect();
        if !vms.is_empty() {
            reasons.push(Reason::AntiAffinity { group: group.clone(), vms });
        }
    }
    reasons
}

#[cfg(test)]
mod tests;

//! The placement inventory of the cluster, kept up to date change by change.
//!
//! [`Book`] follows [`ClusterState`]: each change of a node, a VM, a policy or a node's liveness costs what it changes.
//! Nothing is rebuilt for a decision; [`Book::verify`] compares it with one that is, for tests and as an alarm.
//!
//! Besides what is stored it counts what has been submitted and not answered yet ([`Book::expect`]): the next decision
//! of the same step must not take the same room, nor break a rule about racks that no single record guards.

mod describe;
mod explain;
mod policies;

use std::collections::{BTreeMap, BTreeSet};

use drover_cluster_state::{Claim, ClusterState, Desired, Moment, Right, RunState, Vm};
use drover_ids::{NodeId, VmId};
use drover_placement::{Decider, Decision, Inventory, InventoryError, Policies, Policy, Refusal, Request};
use drover_rebalance::{Basis, CostModel, MigrationSample, Plan, Rebalancer, Usage};

use crate::CommitId;

pub(crate) use describe::host_state;
pub use describe::{host_spec, request_of, request_of_spec};
pub use explain::explain;
pub(crate) use explain::rejections;
pub use policies::{built_in_policies, check_policy, policies_of, policy_names};

/// What placement has done since this process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Decisions, good or bad.
    pub decisions: u64,
    /// Of these, that no host would do.
    pub refusals: u64,
    /// Assignments that could not be stored because something else had been faster; each was decided again.
    pub conflicts: u64,
    /// VMs that gave way to others.
    pub preemptions: u64,
    /// How long the last decision took, nanoseconds.
    pub last_decision_ns: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Book {
    inventory: Inventory,
    policies: Policies,
    decider: Decider,
    rebalancer: Rebalancer,
    costs: CostModel,
    usage: Usage,
    /// Submitted and not answered: counted on top of what is stored.
    expected: BTreeMap<CommitId, Vec<(VmId, NodeId)>>,
    expected_of: BTreeMap<VmId, BTreeSet<NodeId>>,
    pub(crate) statistics: Statistics,
}

impl Book {
    /// The book of a state, from scratch.
    pub fn of(state: &ClusterState) -> Self {
        let mut book = Self {
            inventory: Inventory::new(),
            policies: policies_of(state),
            decider: Decider::new(),
            rebalancer: Rebalancer::new(drover_rebalance::Settings::default()),
            costs: CostModel::new(),
            usage: Usage::new(),
            expected: BTreeMap::new(),
            expected_of: BTreeMap::new(),
            statistics: Statistics::default(),
        };
        for node in state.nodes.keys() {
            book.sync_node(state, *node);
        }
        for vm in state.vms.keys() {
            book.sync_vm(state, *vm);
        }
        book
    }

    /// Hosts and what they hold.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// What a good host is, for whom.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// What placement has done.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// The policy that decides for a VM.
    pub fn policy_for(&self, vm: &drover_cluster_state::VmSpec) -> Policy {
        let preemption = vm.constraints.preemption == drover_cluster_state::Preemption::LowerPriority;
        Policy { preemption, ..self.policies.of(vm.project()).clone() }
    }

    /// What planners of moves go by. `immovable` stay where they are.
    pub fn basis<'a>(&'a self, immovable: &'a BTreeSet<VmId>) -> Basis<'a> {
        Basis {
            inventory: &self.inventory,
            policies: &self.policies,
            costs: &self.costs,
            usage: &self.usage,
            immovable,
        }
    }

    /// Proposes moves that balance the cluster. A copy of it can be asked without leaving a trace.
    pub fn rebalancer(&self) -> &Rebalancer {
        &self.rebalancer
    }

    /// The same, remembering what has been proposed.
    pub(crate) fn propose(&mut self, now: Moment, immovable: &BTreeSet<VmId>) -> Plan {
        let basis = Basis {
            inventory: &self.inventory,
            policies: &self.policies,
            costs: &self.costs,
            usage: &self.usage,
            immovable,
        };
        self.rebalancer.propose(now, &basis).plan
    }

    /// A migration has begun.
    pub(crate) fn began(&mut self, now: Moment, vm: VmId) {
        self.rebalancer.began(now, vm);
    }

    /// A migration has ended well, and this is what it cost.
    pub(crate) fn measured(&mut self, sample: MigrationSample) {
        self.costs.observe(sample);
    }

    /// Decides on what is known now, and counts it.
    pub(crate) fn decide(&mut self, request: &Request, policy: &Policy) -> Result<Decision, Refusal> {
        let decision = self.decider.decide(&self.inventory, request, policy);
        self.statistics.decisions += 1;
        self.statistics.refusals += u64::from(decision.is_err());
        decision
    }

    /// The same for several VMs: all or none.
    pub(crate) fn decide_group(
        &mut self,
        requests: &[Request],
        policy: &Policy,
    ) -> Result<Vec<Decision>, Refusal> {
        let decisions = self.decider.decide_group(&self.inventory, requests, policy);
        self.statistics.decisions += requests.len() as u64;
        self.statistics.refusals += u64::from(decisions.is_err());
        decisions
    }

    /// The policy that decides for a request that no VM stands behind.
    pub fn policy_for_request(
        &self,
        request: &Request,
        preemption: drover_cluster_state::Preemption,
    ) -> Policy {
        let preemption = preemption == drover_cluster_state::Preemption::LowerPriority;
        Policy { preemption, ..self.policies.of(&request.profile.project).clone() }
    }

    /// A policy, a project or the settings have changed: in force for the next decision.
    pub(crate) fn sync_policies(&mut self, state: &ClusterState) {
        self.policies = policies_of(state);
    }

    /// A node has come, changed or gone, or is heard differently.
    pub(crate) fn sync_node(&mut self, state: &ClusterState, node: NodeId) {
        let known = self.inventory.host(node).is_some();
        let Some(stored) = state.nodes.get(&node) else {
            if known && self.inventory.remove_host(node).is_err() {
                // Whoever deletes a node has made sure that no VM involves it; a late change of a VM may still come.
                self.evict_all(node);
                let _gone = self.inventory.remove_host(node);
            }
            return;
        };
        let spec = host_spec(state, stored);
        if known {
            let same = self.inventory.host(node).is_some_and(|host| host.spec() == spec);
            // Limits of the engine that no host of ours reaches: such a host keeps its old description.
            let _updated = if same { Ok(()) } else { self.inventory.update_host(&spec) };
            return;
        }
        if self.inventory.add_host(&spec).is_ok() {
            let held = state.vms.values().filter(|vm| vm.ownership.involves(node)).map(|vm| vm.id);
            for vm in held.collect::<Vec<_>>() {
                self.sync_vm(state, vm);
            }
        }
    }

    /// What nodes reach has changed for all of them.
    pub(crate) fn sync_nodes(&mut self, state: &ClusterState) {
        for node in state.nodes.keys() {
            self.sync_node(state, *node);
        }
    }

    /// Whether a node is heard has changed. Cheaper than [`Self::sync_node`].
    pub(crate) fn sync_node_state(&mut self, state: &ClusterState, node: NodeId) {
        if let Some(stored) = state.nodes.get(&node) {
            // A node that is not in the book yet comes with its record.
            let _unknown = self.inventory.set_state(node, host_state(state, stored));
        }
    }

    /// A VM has come, changed, moved or gone.
    pub(crate) fn sync_vm(&mut self, state: &ClusterState, vm: VmId) {
        let stored = state.vms.get(&vm);
        if stored.is_none() {
            self.costs.forget(vm);
            self.rebalancer.forget(vm);
        }
        let mut wanted: BTreeSet<NodeId> =
            stored.iter().flat_map(|vm| vm.ownership.candidates()).map(|candidate| candidate.node).collect();
        if stored.is_some() {
            wanted.extend(self.expected_of.get(&vm).into_iter().flatten());
        }
        let held: BTreeSet<NodeId> = self.inventory.vm(vm).map(|view| view.host().id()).collect();
        let request = stored.map(|vm| request_of(vm));
        let changed = request.as_ref().is_some_and(|request| {
            self.inventory.vm(vm).any(|view| {
                *view.profile() != request.profile
                    || view.name() != request.name
                    || view.ends() != request.ends
            })
        });
        for host in held.iter().filter(|host| changed || !wanted.contains(host)) {
            // It is there: that was just looked up.
            let _released = self.inventory.release(vm, *host);
        }
        let Some(request) = request else { return };
        for host in wanted.iter().filter(|host| changed || !held.contains(host)) {
            match self.inventory.hold(*host, &request) {
                // A node whose record has not arrived: its VMs are counted when it has.
                Ok(()) | Err(InventoryError::NoHost(_)) => {}
                Err(_) => debug_assert!(false, "a VM is larger than any host, or held twice"),
            }
        }
    }

    /// Counts assignments that have been submitted, until [`Self::settle`].
    pub(crate) fn expect(&mut self, state: &ClusterState, commit: CommitId, holds: Vec<(VmId, NodeId)>) {
        for (vm, node) in &holds {
            self.expected_of.entry(*vm).or_default().insert(*node);
            self.sync_vm(state, *vm);
        }
        self.expected.insert(commit, holds);
    }

    /// A submission has been answered, or is not waited for any more: what is stored counts. Returns whether it was an
    /// assignment.
    pub(crate) fn settle(&mut self, state: &ClusterState, commit: CommitId) -> bool {
        let Some(holds) = self.expected.remove(&commit) else { return false };
        for (vm, node) in holds {
            if let Some(nodes) = self.expected_of.get_mut(&vm) {
                nodes.remove(&node);
                if nodes.is_empty() {
                    self.expected_of.remove(&vm);
                }
            }
            self.sync_vm(state, vm);
        }
        true
    }

    fn evict_all(&mut self, node: NodeId) {
        let vms: Vec<VmId> =
            self.inventory.host(node).map(|host| host.vms().map(|vm| vm.id()).collect()).unwrap_or_default();
        for vm in vms {
            let _released = self.inventory.release(vm, node);
        }
    }

    /// Compares it with one that is built from scratch, and the inventory with itself. Looks at everything.
    ///
    /// # Errors
    /// What differs first, for people.
    pub fn verify(&self, state: &ClusterState) -> Result<(), String> {
        self.inventory.verify()?;
        let mut fresh = Self::of(state);
        for (commit, holds) in &self.expected {
            fresh.expect(state, *commit, holds.clone());
        }
        if self.policies != fresh.policies {
            return Err("the policies are not those that are stored".to_owned());
        }
        let hosts = |book: &Self| -> BTreeMap<NodeId, _> {
            book.inventory.hosts().map(|host| (host.id(), host.spec())).collect()
        };
        if let Some((mine, theirs)) = hosts(self).into_iter().zip(hosts(&fresh)).find(|(a, b)| a != b) {
            return Err(format!("host {}: {:?} is not {:?}", mine.0, mine.1, theirs.1));
        }
        let vms = |book: &Self| -> BTreeMap<(VmId, NodeId), Request> {
            let view = |vm: drover_placement::VmView<'_>| {
                let mut request = Request::new(vm.id(), vm.profile().clone());
                (request.name, request.ends) = (vm.name().to_owned(), vm.ends());
                ((vm.id(), vm.host().id()), request)
            };
            book.inventory.vms().map(view).collect()
        };
        let (mine, theirs) = (vms(self), vms(&fresh));
        if mine != theirs {
            let differs = |((vm, node), _): &(&(VmId, NodeId), &Request)| format!("{vm} on {node}");
            let extra = mine.iter().find(|(key, value)| theirs.get(key) != Some(value));
            let missing = theirs.iter().find(|(key, value)| mine.get(key) != Some(value));
            let (extra, missing) = (extra.as_ref().map(differs), missing.as_ref().map(differs));
            return Err(format!("VMs held: kept {extra:?}, stored {missing:?}"));
        }
        Ok(())
    }
}

/// VMs that cannot be moved now: they do not run, or an operation works on them.
pub(crate) fn immovable(state: &ClusterState) -> BTreeSet<VmId> {
    let busy = |vm: &Vm| {
        let operation = vm.operation.and_then(|id| state.operations.get(&id));
        operation.is_some_and(|operation| operation.is_running())
    };
    let runs = |vm: &Vm| {
        let settled = matches!(vm.ownership.right(), Right::Owned { claim: Claim::Taken, .. });
        let report = state.owner_report(vm);
        settled
            && vm.desired == Desired::Running
            && report.is_some_and(|report| report.is_live() && report.state == RunState::Running)
    };
    state.vms.values().filter(|vm| busy(vm) || !runs(vm)).map(|vm| vm.id).collect()
}

/// What a VM that exists asks for, were it to leave `source`.
pub fn request_of_move(vm: &Vm, source: NodeId, target: Option<NodeId>) -> Request {
    Request { only: target, excluded: vec![source], ..request_of(vm) }
}

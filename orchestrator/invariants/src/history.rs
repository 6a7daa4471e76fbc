//! Successive states.

use std::collections::BTreeMap;

use drover_cluster_state::{Candidate, Claim, ClusterState, OperationState, Ownership, Right};
use drover_ids::{OperationId, VmId};

use crate::Violation;

/// What earlier states said. Feed it every state of a store, in order.
#[derive(Clone, Debug, Default)]
pub struct History {
    ownerships: BTreeMap<VmId, Ownership>,
    ended: BTreeMap<OperationId, OperationState>,
}

impl History {
    /// One that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything that is wrong with `state` after the ones before it.
    pub fn observe(&mut self, state: &ClusterState) -> Vec<Violation> {
        let mut violations = Vec::new();
        for vm in state.vms.values() {
            if let Some(before) = self.ownerships.insert(vm.id, vm.ownership.clone()) {
                transition(vm.spec.name.as_str(), &before, &vm.ownership, &mut violations);
            }
        }
        self.gone(state, &mut violations);
        self.operations(state, &mut violations);
        violations
    }

    /// A VM whose record is removed must not have left anyone with a right to run it.
    fn gone(&mut self, state: &ClusterState, violations: &mut Vec<Violation>) {
        self.ownerships.retain(|vm, last| {
            let there = state.vms.contains_key(vm);
            if !there && last.right() != Right::Unowned {
                violations
                    .push(Violation::new("evidence", format!("VM {vm} was removed while it was owned")));
            }
            there
        });
    }

    fn operations(&mut self, state: &ClusterState, violations: &mut Vec<Violation>) {
        for operation in state.operations.values() {
            match self.ended.get(&operation.id) {
                Some(end) if *end != operation.state => {
                    let what = format!("operation {} was {end:?} and is {:?}", operation.id, operation.state);
                    violations.push(Violation::new("operation-ends-once", what));
                }
                Some(_) => {}
                None if operation.state == OperationState::Running => {}
                None => {
                    self.ended.insert(operation.id, operation.state);
                }
            }
        }
        self.ended.retain(|id, _| state.operations.contains_key(id));
    }
}

/// The rules of one change of the right to run.
fn transition(name: &str, before: &Ownership, after: &Ownership, violations: &mut Vec<Violation>) {
    if after.highest() < before.highest() {
        let what = format!("VM {name} went from epoch {} to {}", before.highest(), after.highest());
        violations.push(Violation::new("epoch-monotone", what));
    }
    let old: Vec<Candidate> = before.candidates().collect();
    let new: Vec<Candidate> = after.candidates().collect();
    for candidate in new.iter().filter(|c| !old.contains(c)) {
        if candidate.epoch <= before.highest() {
            let what =
                format!("VM {name} grants epoch {} again, to node {}", candidate.epoch, candidate.node);
            violations.push(Violation::new("epoch-new", what));
        }
    }
    for dropped in old.iter().filter(|c| !new.contains(c)) {
        let has_evidence = after.evidence().iter().any(|e| e.covers(dropped.node, dropped.epoch));
        if !has_evidence && !stays_in_the_move(before, dropped, after) {
            let what = format!(
                "VM {name}: nothing proves that epoch {} on node {} ended",
                dropped.epoch, dropped.node
            );
            violations.push(Violation::new("evidence", what));
        }
    }
}

/// Whether a grant was dropped within a move, which needs no evidence: the source, when the target has been seen to run;
/// the target, when the source goes on; and the epoch of a paused source, when that same process gets a newer one.
fn stays_in_the_move(before: &Ownership, dropped: &Candidate, after: &Ownership) -> bool {
    let Right::Owned { node, epoch, claim } = after.right() else { return false };
    if let Claim::Resume { from } = claim {
        return node == dropped.node && from == dropped.epoch;
    }
    let other_end = Candidate { node, epoch };
    matches!(before.right(), Right::Migrating { .. }) && before.candidates().any(|c| c == other_end)
}

#[cfg(test)]
mod tests;

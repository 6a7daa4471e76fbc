//! VMs that are created together: all of them get a place in one transaction, or none stays.

use std::{collections::BTreeSet, time::Duration};

use drover_cluster_state::{
    Claim, Desired, Operation, OperationKind, OperationState, Record, Right, StopCause, Stored, Txn, Vm,
};
use drover_ids::{NodeId, OperationId, VmId};
use drover_placement::Request;

use crate::{
    book::{explain, rejections, request_of},
    operations::OPERATION_TIME_MAX,
    planner::{Next, Planner},
};

impl Planner {
    /// Places a VM together with the others of its set. `None`: it is in none that is being created.
    pub(crate) fn place_set(&mut self, vm: &Stored<Vm>) -> Option<Next> {
        let operation = self.running_operation(vm)?;
        if !matches!(operation.kind, OperationKind::VmSetCreate { .. }) {
            return None;
        }
        let members = self.members(operation.id);
        let unplaced: Vec<&Stored<Vm>> =
            members.iter().filter(|member| member.ownership.right() == Right::Unowned).collect();
        if unplaced.len() < members.len() {
            // They have been placed, and this one has lost its place again: as any other VM.
            return None;
        }
        if operation.cancel_requested {
            return Some(self.undo_set(vm.id, &operation, OperationState::Cancelled, "it was cancelled"));
        }
        let requests: Vec<Request> = unplaced.iter().map(|member| request_of(member)).collect();
        // A set takes nobody's place: which of its members would is not for the others to suffer.
        let policy = drover_placement::Policy { preemption: false, ..self.book.policy_for(&vm.spec) };
        let start = self.stopwatch.elapsed();
        let decisions = self.book.decide_group(&requests, &policy);
        let took = self.note_decision(start);
        let decisions = match decisions {
            Ok(decisions) => decisions,
            Err(_) if self.may_still_be_heard() => return Some(Next::wait("waiting for nodes to report")),
            Err(refusal) => {
                let explanation = explain(self.book.inventory(), &requests[0], &policy);
                let reason = format!("not all of them have room: {refusal}; the first one: {explanation}");
                let mut failed = operation.value.clone();
                failed.rejections = rejections(self.book.inventory(), &requests[0]);
                failed.explanation = Some(Box::new(explanation));
                failed.placement = Some(took);
                let operation = Stored { revision: operation.revision, value: failed };
                return Some(self.undo_set(vm.id, &operation, OperationState::Failed, &reason));
            }
        };
        let mut txn = Txn::new();
        let mut holds: Vec<(VmId, NodeId)> = Vec::with_capacity(decisions.len());
        for (member, decision) in unplaced.iter().zip(&decisions) {
            if !self.grant(&mut txn, member, decision.host) {
                return Some(Next::wait("its right to run is not free"));
            }
            holds.push((member.id, decision.host));
        }
        let nodes: BTreeSet<NodeId> = holds.iter().map(|(_, node)| *node).collect();
        for node in nodes {
            self.guard_assignment(&mut txn, node);
        }
        let step = format!("starting {} VMs", holds.len());
        let placed = Operation { step, percent: 40, placement: Some(took), ..operation.value.clone() };
        txn.update(operation.revision, Record::Operation(placed));
        Some(self.submit_assignment(vm.id, txn, holds))
    }

    /// Every VM that an operation works on.
    pub(crate) fn members(&self, operation: OperationId) -> Vec<Stored<Vm>> {
        self.state.vms.values().filter(|vm| vm.operation == Some(operation)).cloned().collect()
    }

    /// Ends the operation of a set, once every member runs. Asked when one of them has begun to.
    pub(crate) fn finish_set(&mut self, vm: &Stored<Vm>, operation: &Stored<Operation>) -> Next {
        let members = self.members(operation.id);
        let runs =
            |vm: &&Stored<Vm>| matches!(vm.ownership.right(), Right::Owned { claim: Claim::Taken, .. });
        let running = members.iter().filter(runs).count();
        if running == members.len() {
            return self.end_operation(vm, operation, OperationState::Done, "");
        }
        let share = u8::try_from(40 + running * 60 / members.len().max(1)).unwrap_or(99);
        self.progress_operation(vm, share, format!("{running} of {} run", members.len()));
        Next::wait("")
    }

    /// Ends the operation of a set that would not end by itself.
    pub(crate) fn watch_set(&mut self, operation: &Stored<Operation>, age: Duration) {
        if self.members(operation.id).is_empty() {
            self.fail(operation, "its VMs are gone", None);
        } else if age >= OPERATION_TIME_MAX {
            let reason = format!("not done within {} s; last step: {}", age.as_secs(), operation.step);
            let mut txn = Txn::new();
            self.write_undo(&mut txn, operation, OperationState::Failed, &reason, None);
            self.submit(txn);
        }
    }

    /// Takes a set back: none of it stays.
    fn undo_set(
        &mut self,
        vm: VmId,
        operation: &Stored<Operation>,
        state: OperationState,
        reason: &str,
    ) -> Next {
        let mut txn = Txn::new();
        self.write_undo(&mut txn, operation, state, reason, None);
        self.submit_for(vm, txn)
    }

    /// Writes the end of a set: its operation, and that none of its VMs is wanted but `except`, which the caller writes.
    pub(crate) fn write_undo(
        &self,
        txn: &mut Txn,
        operation: &Stored<Operation>,
        state: OperationState,
        reason: &str,
        except: Option<VmId>,
    ) {
        let text = format!("{reason}. None of its VMs is kept");
        txn.update(operation.revision, Record::Operation(operation.ended(state, text, self.now.wall)));
        for member in self.members(operation.id).iter().filter(|member| Some(member.id) != except) {
            let mut changed = member.value.clone();
            changed.desired = Desired::Deleted;
            changed.stop_cause = Some(StopCause::StartFailed(reason.to_owned()));
            txn.update(member.revision, Record::Vm(changed));
        }
    }
}

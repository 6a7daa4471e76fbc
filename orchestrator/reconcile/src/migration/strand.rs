//! A source that is paused behind Commit while its target will never run it: how it comes back, if it may.
//!
//! The source may resume only if the target never ran: what a guest has written there is on the disks, but not in the
//! memory of the source, and a guest that goes back in time against its own disks corrupts them. The proof is on the
//! volumes. A target takes each of them, under its epoch, before it resumes; the fence reports who held a volume last.
//! If that is an epoch newer than the source's, the source is ended too and the VM restarts from its disks, which then
//! hold everything that was acknowledged. The fence itself is written as such an epoch: where it is found instead of
//! the owner before it (after a restart of the control plane), the answer is the same, and safe.

use drover_cluster_state::{
    Candidate, OperationKind, OperationState, OwnershipError, Record, RunState, Stored, Txn, Vm, VmReport,
    VolumeFence, event_kind,
};
use drover_ids::OwnerEpoch;

use crate::{
    AgentCommand,
    calls::{Slot, Verb},
    fencing::{Cause, Proof},
    planner::{Next, Planner},
};

/// GrantEpoch calls without an answer after which the source is given up.
const UNANSWERED_GRANTS_MAX: u32 = 5;

impl Planner {
    /// Brings a VM back whose source is stuck. `target`: the other end, where the right to run still names it.
    pub(crate) fn strand(&mut self, vm: &Stored<Vm>, target: Option<Candidate>) -> Next {
        self.progress_operation(vm, 95, "fencing the target, which does not run it".to_owned());
        let mut evidence = Vec::new();
        if let Some(target) = target {
            match self.prove_end(vm, target) {
                Proof::Have(proof) => evidence.push(proof),
                Proof::Wait(detail) => return Next::fencing(detail),
            }
        } else if self.end_strays(vm.id) {
            return Next::fencing("ending the target, which has no right to run it any more");
        }
        let volumes = match self.fence_volumes(vm, vm.ownership.next_epoch()) {
            Ok(volumes) => volumes,
            Err(detail) => return Next::fencing(detail),
        };
        let Some(source) = vm.ownership.candidates().next() else { return Next::Settled };
        if target_ran(&volumes, source.epoch) {
            let reason = "the target of its migration took its volumes and then failed".to_owned();
            return self.release(vm, Cause::Failure(reason));
        }
        match vm.ownership.regrant(evidence) {
            Ok(ownership) => self.commit_regrant(vm, Vm { ownership, ..vm.value.clone() }, &volumes),
            Err(OwnershipError::NoEvidence { .. }) => {
                Next::fencing("the target is not proven to be out of use")
            }
            Err(_) => Next::wait("its right to run does not allow a newer grant"),
        }
    }

    fn commit_regrant(&mut self, vm: &Stored<Vm>, changed: Vm, volumes: &[VolumeFence]) -> Next {
        let mut txn = Txn::new();
        self.keep_blocklisted(&mut txn, vm, volumes);
        let epoch = changed.ownership.highest();
        let message = format!("the target never ran it: the source goes on with epoch {epoch}");
        txn.event(self.vm_event(event_kind::MIGRATION_REVERTED, vm, message.clone()));
        if let Some(operation) = self.running_operation(vm)
            && matches!(operation.kind, OperationKind::VmMigrate { .. })
        {
            let ended = operation.ended(OperationState::Failed, message, self.now.wall);
            txn.update(operation.revision, Record::Operation(ended));
        }
        txn.update(vm.revision, Record::Vm(changed));
        self.submit_for(vm.id, txn)
    }

    /// Hands the newer epoch to the paused source; if it cannot use it, the VM restarts from its disks.
    pub(crate) fn resume_source(
        &mut self,
        vm: &Stored<Vm>,
        owner: Candidate,
        from: OwnerEpoch,
        report: Option<&VmReport>,
    ) -> Next {
        let book =
            self.calls.book(Slot { vm: vm.id, node: owner.node, epoch: owner.epoch, verb: Verb::Grant });
        let Some(report) = report else {
            return self.await_vanished(vm, owner);
        };
        let paused = report.epoch == from && report.state == RunState::Committed && report.exit.is_none();
        if !paused || book.refused > 0 || book.unanswered >= UNANSWERED_GRANTS_MAX {
            let reason = if paused {
                format!("its paused source could not go on: {}", book.error)
            } else {
                format!("its paused source ended: {}", report.describe_end())
            };
            return self.release(vm, Cause::Failure(reason));
        }
        self.call(owner.node, vm.id, owner.epoch, AgentCommand::GrantEpoch);
        Next::wait("resuming its source")
    }
}

/// Whether anybody newer than the source has held a volume.
fn target_ran(volumes: &[VolumeFence], source: OwnerEpoch) -> bool {
    volumes.iter().any(|fence| fence.previous.is_some_and(|owner| owner.epoch > source))
}

#[cfg(test)]
mod tests {
    use drover_cluster_state::VolumeOwner;
    use drover_ids::{NodeId, VmId, VolumeId};

    use super::*;

    fn fence(previous: Option<u64>) -> VolumeFence {
        let owner = |epoch| VolumeOwner {
            vm: VmId::from_u128(1),
            node: NodeId::from_u128(1),
            epoch: OwnerEpoch::new(epoch),
        };
        VolumeFence {
            volume: VolumeId::from_u128(1),
            epoch: OwnerEpoch::new(9),
            previous: previous.map(owner),
            blocklist: None,
        }
    }

    #[test]
    fn one_volume_that_the_target_took_is_enough() {
        let source = OwnerEpoch::new(3);
        assert!(!target_ran(&[], source));
        assert!(!target_ran(&[fence(Some(3)), fence(None)], source));
        assert!(target_ran(&[fence(Some(3)), fence(Some(4))], source));
    }
}

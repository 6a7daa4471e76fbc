//! The evidence that a grant is out of use (B7), and the release that stores it.

use std::collections::BTreeSet;

use drover_cluster_state::{
    Blocklisting, Candidate, Desired, Evidence, Liveness, NodeFence, OperationKind, OperationState, Record,
    Right, RunState, StopCause, StopReason, Stored, Txn, Vm, VolumeFence, event_kind,
};
use drover_ids::{NodeId, OwnerEpoch};

use crate::{
    AgentCommand,
    fences::Clients,
    planner::{Next, Planner, Standing},
    restart::{START_ATTEMPTS, backoff},
};

/// Whether there is evidence.
pub(crate) enum Proof {
    /// There is.
    Have(Evidence),
    /// It is being obtained; this is what it waits for.
    Wait(String),
}

/// Why a VM's right to run is taken away.
#[derive(Clone, Debug)]
pub(crate) enum Cause {
    /// It is not wanted to run.
    Unwanted,
    /// Its guest ended it.
    GuestShutdown,
    /// Its memory was written into a file of this node.
    Suspended(NodeId),
    /// It, or its start, failed.
    Failure(String),
    /// Its node died: not its own failure.
    NodeLost(String),
}

impl Planner {
    /// Evidence that a grant is out of use, obtained by whatever way its node's standing leaves open:
    /// the agent's word that the process has ended, or, of a node that was given up, its expired lease together with a
    /// fence of every volume.
    pub(crate) fn prove_end(&mut self, vm: &Vm, candidate: Candidate) -> Proof {
        let Candidate { node, epoch } = candidate;
        let report = self.state.report(vm.id, node);
        if let Some(exit) = report.filter(|r| r.epoch == epoch).and_then(|r| r.exit.clone()) {
            return Proof::Have(Evidence::ProcessDeath { node, epoch, exit });
        }
        if self.calls.stopped(vm.id, node, epoch) {
            return Proof::Have(Evidence::Stopped { node, epoch });
        }
        let name = self.state.node_name(node);
        match self.standing(node) {
            Standing::Heard => {
                self.call(node, vm.id, epoch, AgentCommand::StopVm);
                Proof::Wait(format!("ending its process on node {name}"))
            }
            Standing::Silent => Proof::Wait(format!("node {name} is silent, and not yet given up")),
            Standing::Lost => self.prove_end_on_lost_node(vm, candidate),
        }
    }

    fn prove_end_on_lost_node(&mut self, vm: &Vm, candidate: Candidate) -> Proof {
        let Candidate { node, epoch } = candidate;
        let silent = match self.state.nodes.get(&node).map(|node| &node.fence) {
            Some(NodeFence::Fencing { silent }) => *silent,
            Some(NodeFence::Fenced(evidence)) => evidence.silent,
            Some(NodeFence::Clear) | None => return Proof::Wait("its node is not given up".to_owned()),
        };
        let back = self.state.sessions.get(&node).is_some_and(|s| s.liveness == Liveness::Alive);
        if back && self.state.report(vm.id, node).is_some_and(|report| report.exit.is_none()) {
            // It should have ended its VMs and says that it has not: its own word on their end is worth waiting for.
            let heard = self.state.sessions.get(&node).map(|s| self.now.moment.since(s.last_heartbeat));
            if heard.is_some_and(|heard| heard < self.timers.get().suspect) {
                return Proof::Wait(format!("node {} is back and ends its VMs", self.state.node_name(node)));
            }
        }
        match self.fence_volumes(vm, vm.ownership.next_epoch()) {
            Ok(volumes) => Proof::Have(Evidence::SelfFenceLeaseExpired { node, epoch, silent, volumes }),
            Err(detail) => Proof::Wait(detail),
        }
    }

    /// Obtains evidence for every grant that may be in use, then takes the right away.
    pub(crate) fn release(&mut self, vm: &Stored<Vm>, cause: Cause) -> Next {
        let mut evidence = Vec::new();
        let mut waiting = None;
        // All are pursued at once, and those that need a process ended come before the volumes it holds.
        for candidate in vm.ownership.candidates() {
            match self.prove_end(vm, candidate) {
                Proof::Have(proof) => evidence.push(proof),
                Proof::Wait(detail) => waiting = waiting.or(Some(detail)),
            }
        }
        if let Some(detail) = waiting {
            return match &cause {
                Cause::Unwanted => Next::wait(detail),
                Cause::GuestShutdown | Cause::Suspended(_) | Cause::Failure(_) | Cause::NodeLost(_) => {
                    Next::fencing(detail)
                }
            };
        }
        if self.state.holds_rbd(&vm.spec) && evidence.iter().all(|proof| proof.volumes().is_empty()) {
            // A process that ended without a word has left its lock behind, and requests that may still be under way:
            // the next owner would wait half a minute for the one, and must not meet the other.
            let floor = vm.ownership.next_epoch();
            match self.fence_volumes(vm, floor) {
                Ok(volumes) => {
                    let Some((node, epoch)) = evidence.first().map(Evidence::subject) else {
                        return Next::fencing("there is no evidence");
                    };
                    evidence.push(Evidence::StorageFenced { node, epoch, volumes });
                }
                Err(detail) => return Next::fencing(detail),
            }
        }
        self.commit_release(vm, evidence, cause)
    }

    /// How the VM's processes with epochs before `floor` are known to storage clusters. Spared are those that agents
    /// can speak for: they end when they are told to, or go on with a newer epoch.
    pub(crate) fn clients_of(&self, vm: &Vm, floor: OwnerEpoch) -> Clients {
        let mut clients = Clients::default();
        for (node, session) in &self.state.sessions {
            let Some(report) = session.vms.get(&vm.id).filter(|report| report.epoch < floor) else {
                continue;
            };
            let addresses = report.clients.iter().flat_map(|client| client.addresses.iter().cloned());
            let there = report.exit.is_none() && !self.calls.stopped(vm.id, *node, report.epoch);
            if there && self.standing(*node) == Standing::Heard {
                clients.spared.extend(addresses);
            } else {
                clients.refused.extend(addresses);
            }
        }
        clients
    }

    /// Stores what the fence has had refused, so that it is kept up, and lifted when its processes are gone.
    pub(crate) fn keep_blocklisted<'a>(
        &self,
        txn: &mut Txn,
        vm: &Vm,
        fences: impl IntoIterator<Item = &'a VolumeFence>,
    ) {
        let mut entries = BTreeSet::new();
        for fence in fences {
            let Some(attachment) = vm.spec.volumes.iter().find(|v| v.volume == fence.volume) else {
                continue;
            };
            let refused = fence.blocklist.iter().flat_map(|blocklist| &blocklist.entries);
            entries.extend(refused.map(|address| (attachment.pool.clone(), address.clone())));
        }
        if entries.is_empty() {
            return;
        }
        let floor = vm.ownership.next_epoch();
        let candidates = vm.ownership.candidates().collect();
        let created_at = self.now.wall;
        let entry = Blocklisting { vm: vm.id, floor, candidates, entries, created_at };
        match self.state.blocklistings.get(&(vm.id, floor)) {
            Some(known) => txn.update(known.revision, Record::Blocklisting(entry)),
            None => txn.create(Record::Blocklisting(entry)),
        }
    }

    fn commit_release(&mut self, vm: &Stored<Vm>, evidence: Vec<Evidence>, cause: Cause) -> Next {
        let proofs = evidence.iter().map(Evidence::to_string).collect::<Vec<_>>().join("; ");
        let mut txn = Txn::new();
        self.keep_blocklisted(&mut txn, vm, evidence.iter().flat_map(Evidence::volumes));
        let Ok(ownership) = vm.ownership.release(evidence) else {
            // prove_end covers each candidate, so that this cannot be; and if it were, nothing may be released.
            return Next::fencing("its evidence does not cover every owner");
        };
        // What is not wanted to run does not fail.
        let cause = if vm.desired == Desired::Running { cause } else { Cause::Unwanted };
        let mut changed = after_end(vm, &cause).unwrap_or_else(|| vm.value.clone());
        changed.suspended_on = self.may_have_memory(vm, &cause).or(changed.suspended_on);
        changed.ownership = ownership;
        let (kind, message) = match &cause {
            Cause::Unwanted => match &vm.stop_cause {
                Some(end @ (StopCause::GuestShutdown | StopCause::Suspended)) => {
                    (event_kind::VM_STOPPED, format!("{end}; {proofs}"))
                }
                _ => (event_kind::VM_STOPPED, proofs),
            },
            Cause::GuestShutdown => {
                (event_kind::VM_STOPPED, format!("{}; {proofs}", StopCause::GuestShutdown))
            }
            Cause::Suspended(_) => (event_kind::VM_STOPPED, format!("{}; {proofs}", StopCause::Suspended)),
            Cause::Failure(reason) | Cause::NodeLost(reason) => {
                (event_kind::VM_FENCED, format!("{reason}; {proofs}"))
            }
        };
        txn.event(self.vm_event(kind, vm, message));
        match cause {
            Cause::Unwanted | Cause::GuestShutdown | Cause::Suspended(_) => {
                changed.restarts.failures = 0;
                changed.restarts.last_reason.clear();
            }
            Cause::Failure(reason) => {
                changed.restarts.failures = changed.restarts.failures.saturating_add(1);
                changed.restarts.last_reason = reason;
            }
            Cause::NodeLost(reason) => changed.restarts.last_reason = reason,
        }
        self.settle_operation_with_release(&mut txn, vm, &mut changed);
        let (failures, moment) = (changed.restarts.failures, self.now.moment);
        txn.update(vm.revision, Record::Vm(changed));
        let memory = self.memory.entry(vm.id).or_default();
        memory.running_since = None;
        memory.given_up = None;
        memory.next_try = (failures > 0).then(|| moment.after(backoff(failures)));
        self.submit_for(vm.id, txn)
    }

    /// The node that may have the memory of a VM which was being suspended when it, or its node, was heard of last. The
    /// file there says, when somebody resumes it, whether it was written to the end and nobody has run the VM since.
    fn may_have_memory(&self, vm: &Vm, cause: &Cause) -> Option<NodeId> {
        let mut candidates = vm.ownership.candidates();
        // One that is being moved is not suspended.
        let (Some(owner), None) = (candidates.next(), candidates.next()) else { return None };
        let report = self.state.report(vm.id, owner.node).filter(|report| report.epoch == owner.epoch);
        let has = match cause {
            Cause::Failure(_) => report.is_some_and(|report| {
                report.has_file && report.exit.is_some() && report.stop_reason == StopReason::Unknown
            }),
            // It has not said, and may come back with it.
            Cause::NodeLost(_) => true,
            Cause::Unwanted | Cause::GuestShutdown | Cause::Suspended(_) => false,
        };
        has.then_some(owner.node)
    }

    /// Ends, with the release, the operation that it decides.
    fn settle_operation_with_release(&self, txn: &mut Txn, vm: &Stored<Vm>, changed: &mut Vm) {
        let Some(operation) = self.running_operation(vm) else { return };
        let reason = changed.restarts.last_reason.clone();
        let (state, reason) = match &operation.kind {
            OperationKind::VmCreate | OperationKind::VmStart => match changed.stop_cause {
                Some(StopCause::GuestShutdown) => {
                    (OperationState::Done, "it ran, and its guest shut it down".to_owned())
                }
                Some(StopCause::Suspended) => (OperationState::Done, "it ran, and was suspended".to_owned()),
                _ if changed.restarts.failures >= START_ATTEMPTS => {
                    changed.desired = Desired::Stopped;
                    changed.stop_cause = Some(StopCause::StartFailed(reason.clone()));
                    let kept = match changed.suspended_on {
                        Some(_) => {
                            "; its memory is kept until it is started again, or discarded by stopping it"
                        }
                        None => "",
                    };
                    (
                        OperationState::Failed,
                        format!("it failed {START_ATTEMPTS} times, the last time: {reason}{kept}"),
                    )
                }
                _ => return,
            },
            OperationKind::VmSetCreate { .. } if changed.restarts.failures >= START_ATTEMPTS => {
                changed.desired = Desired::Deleted;
                changed.stop_cause = Some(StopCause::StartFailed(reason.clone()));
                let reason =
                    format!("VM '{}' failed {START_ATTEMPTS} times, the last time: {reason}", vm.spec.name);
                self.write_undo(txn, &operation, OperationState::Failed, &reason, Some(vm.id));
                return;
            }
            OperationKind::VmMigrate { migration: Some(_), .. }
                if matches!(vm.ownership.right(), Right::Owned { .. }) =>
            {
                (OperationState::Done, "it was moved, and then lost".to_owned())
            }
            OperationKind::VmMigrate { .. } if changed.desired == Desired::Running => {
                (OperationState::Failed, format!("the VM was lost and is restarted: {reason}"))
            }
            OperationKind::VmMigrate { .. } => {
                (OperationState::Failed, "the VM ended before it was moved".to_owned())
            }
            OperationKind::VmStop { .. } => (OperationState::Done, String::new()),
            _ => return,
        };
        txn.update(operation.revision, Record::Operation(operation.ended(state, reason, self.now.wall)));
    }
}

/// A VM that has ended by itself, for good. `None` where it is to run again, as one that was suspended and asked for since.
pub(crate) fn after_end(vm: &Vm, cause: &Cause) -> Option<Vm> {
    let (stop_cause, suspended_on) = match cause {
        Cause::GuestShutdown => (StopCause::GuestShutdown, None),
        Cause::Suspended(node) if vm.suspended_on != Some(*node) => (StopCause::Suspended, Some(*node)),
        _ => return None,
    };
    Some(Vm { desired: Desired::Stopped, stop_cause: Some(stop_cause), suspended_on, ..vm.clone() })
}

/// What the end of a process on this node means for its VM.
pub(crate) fn cause_of_end(node: NodeId, report: &drover_cluster_state::VmReport) -> Cause {
    match report.stop_reason {
        StopReason::GuestShutdown => Cause::GuestShutdown,
        StopReason::Suspended => Cause::Suspended(node),
        _ => Cause::Failure(report.describe_end()),
    }
}

/// Whether a process has ended, or says that its VM has.
pub(crate) fn has_ended(report: &drover_cluster_state::VmReport) -> bool {
    report.exit.is_some() || report.state == RunState::Stopped
}

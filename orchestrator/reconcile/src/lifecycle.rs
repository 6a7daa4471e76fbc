//! One VM: from what is wanted of it and who may run it to the next thing to do.

use std::time::Duration;

use drover_cluster_state::{
    Candidate, Claim, Desired, Key, NameKind, OperationKind, OperationState, Record, Right, RunState, Stored,
    Txn, Vm, VmReport, Volume, event_kind,
};
use drover_ids::VmId;

use crate::{
    AgentCommand,
    calls::{Slot, Verb},
    fencing::{Cause, after_end, cause_of_end, has_ended},
    planner::{Next, Planner, Standing, Wait},
    restart::STABLE_AFTER,
};

/// How long a process must be missing from the reports of a node that is heard: longer than `suspect`, so that at least
/// one report was sent meanwhile.
const VANISHED_WAIT: Duration = Duration::from_secs(3);
/// Starts without an answer after which this grant is given up.
const UNANSWERED_STARTS_MAX: u32 = 5;

impl Planner {
    /// The next thing to do about a VM, or about processes of one that is gone.
    pub(crate) fn plan_vm(&mut self, id: VmId) -> Next {
        let strays = self.end_strays(id);
        let Some(vm) = self.state.vms.get(&id).cloned() else {
            return if strays { Next::wait("ending processes of a VM that is gone") } else { Next::Settled };
        };
        if self.commits.holds(&Key::Vm(id)) {
            self.commits.wait(id);
            return Next::Wait(self.state.progress.get(&id).cloned().unwrap_or_default());
        }
        let next = match vm.ownership.right() {
            Right::Unowned => self.plan_unowned(&vm),
            Right::Owned { node, epoch, claim } => self.plan_owned(&vm, Candidate { node, epoch }, claim),
            Right::Migrating { .. } => self.plan_migrating(&vm),
        };
        match next {
            Next::Settled if strays => Next::wait("ending older processes of it"),
            next => next,
        }
    }

    fn plan_unowned(&mut self, vm: &Stored<Vm>) -> Next {
        match vm.desired {
            Desired::Deleted => self.remove(vm),
            Desired::Stopped => match self.running_operation(vm) {
                Some(operation) => {
                    let (state, reason) = match operation.kind {
                        OperationKind::VmMigrate { .. } => (OperationState::Failed, "the VM is stopped"),
                        _ => (OperationState::Done, ""),
                    };
                    self.end_operation(vm, &operation, state, reason)
                }
                None => Next::Settled,
            },
            Desired::Running => self.place(vm),
        }
    }

    /// Removes a VM that nobody has a right to run: its record and name go, its volumes are free, its operation is done.
    fn remove(&mut self, vm: &Stored<Vm>) -> Next {
        let mut txn = Txn::new();
        for attachment in &vm.spec.volumes {
            let volume = self.state.volumes.get(&attachment.volume);
            if let Some(volume) = volume.filter(|volume| volume.attached == Some(vm.id)) {
                txn.update(
                    volume.revision,
                    Record::Volume(Volume { attached: None, ..volume.value.clone() }),
                );
            }
        }
        let name = (NameKind::Vm, vm.spec.name.clone());
        if let Some(entry) = self.state.names.get(&name) {
            txn.delete(Key::Name(name.0, name.1), entry);
        }
        if let Some(operation) = self.running_operation(vm) {
            let ended = operation.ended(OperationState::Done, "", self.now.wall);
            txn.update(operation.revision, Record::Operation(ended));
        }
        txn.event(self.vm_event(event_kind::VM_DELETED, vm, String::new()));
        txn.delete(Key::Vm(vm.id), vm);
        self.submit_for(vm.id, txn)
    }

    fn plan_owned(&mut self, vm: &Stored<Vm>, owner: Candidate, claim: Claim) -> Next {
        if let Some(next) = self.finish_migration(vm) {
            return next;
        }
        let name = self.state.node_name(owner.node);
        match self.standing(owner.node) {
            Standing::Lost => return self.release(vm, Cause::NodeLost(format!("node {name} died"))),
            Standing::Silent => return Next::wait(format!("node {name} is silent")),
            Standing::Heard => {}
        }
        if let Some(next) = self.take_back_start(vm) {
            return next;
        }
        if vm.desired != Desired::Running {
            if let Some(next) = self.await_shutdown(vm, owner) {
                return next;
            }
            self.progress_operation(vm, 50, format!("stopping on node {name}"));
            return self.release(vm, Cause::Unwanted);
        }
        if let Some((epoch, reason)) = self.memory.get(&vm.id).and_then(|m| m.given_up.clone())
            && epoch == owner.epoch
        {
            return self.release(vm, Cause::Failure(reason));
        }
        if let Some(reason) = self.gives_way(vm) {
            return self.release(vm, Cause::Failure(reason));
        }
        let report = self.state.report(vm.id, owner.node).cloned();
        match report.filter(|report| report.epoch <= owner.epoch) {
            Some(report) if report.epoch == owner.epoch => {
                self.stop_waiting(vm.id, Wait::Vanished);
                self.watch_owner(vm, owner, claim, &report)
            }
            older => match claim {
                Claim::Boot => self.start(vm, owner),
                Claim::Resume { from } => self.resume_source(vm, owner, from, older.as_ref()),
                Claim::Taken => self.await_vanished(vm, owner),
            },
        }
    }

    /// Asks the guest of a VM that is to be stopped to shut itself down, and gives it time. `None`: it has done so, or has had
    /// its time, or nobody has asked for it. A planner that takes over gives it its time anew.
    fn await_shutdown(&mut self, vm: &Stored<Vm>, owner: Candidate) -> Option<Next> {
        let OperationKind::VmStop { graceful_ms } = self.running_operation(vm)?.kind else { return None };
        let limit = Duration::from_millis(graceful_ms.into());
        let report = self.state.report(vm.id, owner.node).filter(|report| report.epoch == owner.epoch)?;
        if limit.is_zero() || has_ended(report) || report.state != RunState::Running {
            return None;
        }
        let book =
            self.calls.book(Slot { vm: vm.id, node: owner.node, epoch: owner.epoch, verb: Verb::Press });
        // It has no button: there is nothing to wait for.
        if book.refused > 0 || self.waited(vm.id, Wait::Grace, owner.epoch) >= limit {
            return None;
        }
        if book.answer.is_none() {
            self.call(owner.node, vm.id, owner.epoch, AgentCommand::PressPowerButton);
        }
        self.progress_operation(vm, 25, "its guest shuts itself down".to_owned());
        Some(Next::wait("its guest shuts itself down"))
    }

    /// A node that is heard does not list the process that it should have. Its news may be older than the process (a
    /// migration can be quicker than a heartbeat); if it stays like that, the process is gone.
    pub(crate) fn await_vanished(&mut self, vm: &Stored<Vm>, owner: Candidate) -> Next {
        let name = self.state.node_name(owner.node);
        if !self.has_vanished(vm, owner, false) {
            return Next::wait(format!("node {name} does not list its process"));
        }
        self.release(vm, Cause::Failure(format!("node {name} does not have its process any more")))
    }

    /// Whether a process that should be there has not been listed for long enough to be gone.
    pub(crate) fn has_vanished(&mut self, vm: &Vm, candidate: Candidate, present: bool) -> bool {
        if present || self.standing(candidate.node) != Standing::Heard {
            self.stop_waiting(vm.id, Wait::Vanished);
            return false;
        }
        self.waited(vm.id, Wait::Vanished, candidate.epoch) >= VANISHED_WAIT
    }

    /// The owner's process is there, or has just ended.
    fn watch_owner(&mut self, vm: &Stored<Vm>, owner: Candidate, claim: Claim, report: &VmReport) -> Next {
        if has_ended(report) {
            let cause = cause_of_end(owner.node, report);
            let Some(changed) = after_end(vm, &cause) else { return self.release(vm, cause) };
            // Before anybody tells the process to go: its report goes with it, and so would what it says.
            let mut txn = Txn::new();
            txn.update(vm.revision, Record::Vm(changed));
            return self.submit_for(vm.id, txn);
        }
        match report.state {
            RunState::Running | RunState::MigratingOut if claim != Claim::Taken => self.confirm(vm, owner),
            RunState::MigratingOut => {
                // No migration of this VM is wanted: its record says so.
                if let Some(migration) = report.migration.as_ref().map(|m| m.migration) {
                    self.call(owner.node, vm.id, owner.epoch, AgentCommand::CancelMigration { migration });
                }
                Next::wait("taking back a migration that is not wanted")
            }
            RunState::Running => self.keep_running(vm, owner),
            RunState::Committed if claim == Claim::Taken => self.strand(vm, None),
            RunState::Migrated => self.release(
                vm,
                Cause::Failure("its process was moved to a node that has no right to it".to_owned()),
            ),
            RunState::Empty | RunState::Created if claim == Claim::Boot => self.start(vm, owner),
            // A process that has run and does not say so yet, as after a restart of its agent.
            RunState::Empty | RunState::Created => Next::wait("its process has not reported yet"),
            RunState::Committed | RunState::Paused | RunState::Incoming => {
                Next::wait(format!("its process is {:?}", report.state))
            }
            // has_ended has dealt with it.
            RunState::Stopped => Next::Settled,
        }
    }

    /// Brings it up from its disks, or from its memory where that is on the node, at an epoch at which it has never run.
    fn start(&mut self, vm: &Stored<Vm>, owner: Candidate) -> Next {
        let name = self.state.node_name(owner.node);
        let book =
            self.calls.book(Slot { vm: vm.id, node: owner.node, epoch: owner.epoch, verb: Verb::Ensure });
        if book.refused > 0 || book.unanswered >= UNANSWERED_STARTS_MAX {
            let reason = format!("node {name} could not start it: {}", book.error);
            self.memory.entry(vm.id).or_default().given_up = Some((owner.epoch, reason.clone()));
            return self.release(vm, Cause::Failure(reason));
        }
        self.progress_operation(vm, 50, format!("starting on node {name}"));
        let resume = vm.suspended_on == Some(owner.node);
        let command = AgentCommand::EnsureVm { spec: vm.spec.clone(), resume };
        self.call(owner.node, vm.id, owner.epoch, command);
        Next::wait(format!("starting on node {name}"))
    }

    /// It has been seen to run for the first time with this grant.
    fn confirm(&mut self, vm: &Stored<Vm>, owner: Candidate) -> Next {
        let Ok(ownership) = vm.ownership.confirm() else { return Next::Settled };
        let mut txn = Txn::new();
        let message = format!("on node {}, epoch {}", self.state.node_name(owner.node), owner.epoch);
        txn.event(self.vm_event(event_kind::VM_RUNNING, vm, message));
        if let Some(operation) = self.running_operation(vm)
            && matches!(operation.kind, OperationKind::VmCreate | OperationKind::VmStart)
        {
            let ended = operation.ended(OperationState::Done, "", self.now.wall);
            txn.update(operation.revision, Record::Operation(ended));
        }
        // Whatever its memory was is behind it now.
        txn.update(vm.revision, Record::Vm(Vm { ownership, suspended_on: None, ..vm.value.clone() }));
        self.submit_for(vm.id, txn)
    }

    /// It runs as it should: what is left is an operation that waits for it, and failures to be forgiven.
    fn keep_running(&mut self, vm: &Stored<Vm>, owner: Candidate) -> Next {
        let moment = self.now.moment;
        let since = *self.memory.entry(vm.id).or_default().running_since.get_or_insert(moment);
        if let Some(operation) = self.running_operation(vm) {
            return match &operation.kind {
                OperationKind::VmMigrate { target, migration: None, .. } => {
                    self.begin_migration(vm, owner, &operation, *target)
                }
                // It is done; its operation waits for the source's last word.
                OperationKind::VmMigrate { .. } => Next::wait(""),
                OperationKind::VmSetCreate { .. } => self.finish_set(vm, &operation),
                _ => self.end_operation(vm, &operation, OperationState::Done, ""),
            };
        }
        if vm.restarts.failures == 0 {
            return Next::Settled;
        }
        if moment.since(since) < STABLE_AFTER {
            return Next::wait("");
        }
        let mut changed = vm.value.clone();
        changed.restarts.failures = 0;
        let mut txn = Txn::new();
        txn.update(vm.revision, Record::Vm(changed));
        self.submit_for(vm.id, txn)
    }
}

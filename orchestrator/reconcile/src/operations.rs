//! What clients see of the work, and that it always ends (B8).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use drover_cluster_state::{
    ClusterState, Desired, Key, Moment, Operation, OperationKind, OperationState, Record, StopCause, Stored,
    Subject, Txn, Vm,
};
use drover_ids::OperationId;

use crate::planner::{Next, Planner};

/// An operation that has not ended after this fails. The VM's desired state stays what it is, except that a start that
/// took too long is taken back; a migration is taken back first, and given a second period to settle.
pub(crate) const OPERATION_TIME_MAX: Duration = Duration::from_secs(300);
/// The same for migrations, whose time depends on memory and network.
const MIGRATION_TIME_MAX: Duration = Duration::from_secs(1800);
/// Ended operations that are kept.
const ENDED_KEPT: usize = 1000;
/// Ended operations removed in one transaction.
const PRUNE_BATCH: usize = 32;

/// What is remembered of the operations.
#[derive(Debug, Default)]
pub(crate) struct OperationWatch {
    first_seen: BTreeMap<OperationId, Moment>,
    /// Work that was done inside a control plane that is gone.
    orphans: BTreeSet<OperationId>,
}

impl OperationWatch {
    pub(crate) fn new(state: &ClusterState) -> Self {
        let inside = |o: &&Stored<Operation>| {
            o.is_running() && matches!(o.kind, OperationKind::VolumeImport | OperationKind::ImageImport)
        };
        let orphans = state.operations.values().filter(inside).map(|o| o.id).collect();
        Self { first_seen: BTreeMap::new(), orphans }
    }
}

impl Planner {
    /// The operation that works on a VM.
    pub(crate) fn running_operation(&self, vm: &Vm) -> Option<Stored<Operation>> {
        self.state.operations.get(&vm.operation?).filter(|operation| operation.is_running()).cloned()
    }

    /// Ends an operation, with nothing else in the transaction.
    pub(crate) fn end_operation(
        &mut self,
        vm: &Stored<Vm>,
        operation: &Stored<Operation>,
        state: OperationState,
        reason: &str,
    ) -> Next {
        let mut txn = Txn::new();
        txn.update(operation.revision, Record::Operation(operation.ended(state, reason, self.now.wall)));
        self.submit_for(vm.id, txn)
    }

    /// Shows what is happening in a VM's operation, if that is news and its record is free: a step that passes too
    /// quickly to be stored is not missed.
    pub(crate) fn progress_operation(&mut self, vm: &Stored<Vm>, percent: u8, step: String) {
        let Some(operation) = self.running_operation(vm) else { return };
        let percent = percent.max(operation.percent);
        if operation.step == step && operation.percent == percent {
            return;
        }
        let mut txn = Txn::new();
        txn.update(
            operation.revision,
            Record::Operation(Operation { step, percent, ..operation.value.clone() }),
        );
        self.submit(txn);
    }

    /// Ends what would not end by itself, and forgets what has ended long ago.
    pub(crate) fn watch_operations(&mut self) {
        let running: Vec<OperationId> =
            self.state.operations.values().filter(|o| o.is_running()).map(|o| o.id).collect();
        let now = self.now.moment;
        let watch = &mut self.operations;
        watch.first_seen.retain(|id, _| running.binary_search(id).is_ok());
        for id in running {
            let age = now.since(*self.operations.first_seen.entry(id).or_insert(now));
            self.watch_operation(id, age);
        }
        self.prune_operations();
    }

    fn watch_operation(&mut self, id: OperationId, age: Duration) {
        let Some(operation) = self.state.operations.get(&id).cloned() else { return };
        if self.commits.holds(&Key::Operation(id)) {
            return;
        }
        if self.operations.orphans.contains(&id) {
            self.fail(&operation, "the control plane restarted before it was done", None);
            return;
        }
        match operation.kind {
            OperationKind::VmSetCreate { .. } => return self.watch_set(&operation, age),
            OperationKind::Moves(_) => return,
            // Whoever does it ends it; a VM's snapshot does not keep the VM from anything.
            OperationKind::Storage(_) => return,
            _ => {}
        }
        let Subject::Vm(subject) = operation.subject else { return };
        let vm = self.state.vms.get(&subject).filter(|vm| vm.operation == Some(id)).cloned();
        let Some(vm) = vm else {
            self.fail(&operation, "the VM is gone, or another operation has taken its place", None);
            return;
        };
        let migrates = matches!(operation.kind, OperationKind::VmMigrate { .. });
        let limit = if migrates { MIGRATION_TIME_MAX } else { OPERATION_TIME_MAX };
        if migrates && age >= limit && age < limit * 2 {
            if !operation.cancel_requested {
                let mut txn = Txn::new();
                let cancelled = Operation { cancel_requested: true, ..operation.value.clone() };
                txn.update(operation.revision, Record::Operation(cancelled));
                self.submit(txn);
            }
        } else if age >= limit {
            let reason = format!("not done within {} s; last step: {}", age.as_secs(), operation.step);
            self.fail(&operation, &reason, Some(&vm));
        }
    }

    pub(crate) fn fail(&mut self, operation: &Stored<Operation>, reason: &str, vm: Option<&Stored<Vm>>) {
        let mut txn = Txn::new();
        let failed = operation.ended(OperationState::Failed, reason, self.now.wall);
        txn.update(operation.revision, Record::Operation(failed));
        let starts = matches!(operation.kind, OperationKind::VmCreate | OperationKind::VmStart);
        if let Some(vm) = vm.filter(|vm| starts && vm.desired == Desired::Running) {
            let mut changed = vm.value.clone();
            changed.desired = Desired::Stopped;
            changed.stop_cause = Some(StopCause::StartFailed(reason.to_owned()));
            txn.update(vm.revision, Record::Vm(changed));
        }
        self.submit(txn);
    }

    fn prune_operations(&mut self) {
        if self.state.operations.len() <= ENDED_KEPT + PRUNE_BATCH {
            return;
        }
        let mut ended: Vec<&Stored<Operation>> =
            self.state.operations.values().filter(|o| !o.is_running()).collect();
        ended.sort_by_key(|operation| (operation.ended_at, operation.id));
        let surplus = ended.len().saturating_sub(ENDED_KEPT).min(PRUNE_BATCH);
        let mut txn = Txn::new();
        for operation in ended.into_iter().take(surplus) {
            txn.delete(Key::Operation(operation.id), operation);
        }
        if surplus > 0 {
            self.submit(txn);
        }
    }
}

//! Snapshots of whole VMs.
//!
//! ```text
//! prepare every volume --> hold the VM --> keep every volume, all at once --> release --> judge
//!        ^                                                                                 |
//!        +------------------- what was kept is of no one moment: again --------------------+
//! ```
//!
//! vmmd is the judge: only it knows whether the guest stood still from before the first volume was kept until after the
//! last one. It ends a hold by itself when its limit is over, so a control plane that dies in between stops nobody; its
//! successor begins again, and what was kept before is deleted as that volume is prepared.

use std::{collections::BTreeSet, time::Duration};

use drover_cluster_state::{ClusterState, Desired, Hold, Name, Right, StorageWork, VmPhase};
use drover_ids::{OperationId, OwnerEpoch, SnapshotId, VmId, VolumeId};
use drover_ports::Store;
use drover_reconcile::admission::{StorageFailure, StorageOutcome};
use drover_storage_pools::{PreparedSnapshot, StorageError, StoragePool};
use drover_wire::{
    node::v1::{HoldQueuesRequest, ReleaseQueuesRequest},
    vm::v1::Command,
};
use tokio::task::JoinHandle;
use tonic::Status;
use uuid::Uuid;

use super::{
    Progress,
    work::{done, failed, vanished},
};
use crate::{pools::blocking, services::Api, status::describe};

/// Longest a guest may be asked to stand still: the longest that vmmd agrees to. What it takes is what the storage takes,
/// some tens of milliseconds; a Ceph cluster whose monitors decide once a second may need all of it.
const HOLD_MAX: Duration = Duration::from_secs(1);
/// Beyond the hold's limit, until an agent has answered.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// How often volumes are kept that turn out to be of no one moment.
const TRIES_MAX: u32 = 5;
/// How often a VM is looked for that is on its way to another node, or to its start.
const LOOKS_MAX: u32 = 120;
/// Between two tries or looks. Longer than a hold lasts that nobody releases.
const PAUSE: Duration = Duration::from_millis(1100);

/// Where a VM is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Nowhere, and its volumes keep it from being started.
    Stopped,
    /// On a node.
    On { address: String, epoch: OwnerEpoch },
    /// Neither, for the time being.
    Between(VmPhase),
    /// Gone.
    Gone,
}

/// Why volumes are not kept.
enum KeepError {
    /// Another time they may be.
    Again(String),
    /// The storage says no.
    Storage(StorageError),
}

impl From<StorageError> for KeepError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Failed { .. } => Self::Again(describe(&error)),
            error => Self::Storage(error),
        }
    }
}

fn place_of(state: &ClusterState, vm: VmId) -> Place {
    let Some(vm) = state.vms.get(&vm) else { return Place::Gone };
    match (vm.desired, vm.ownership.right(), state.vm_phase(vm)) {
        (Desired::Stopped, Right::Unowned, _) => Place::Stopped,
        (_, Right::Owned { node, epoch, .. }, VmPhase::Running) => match state.nodes.get(&node) {
            Some(node) => Place::On { address: node.address.clone(), epoch },
            None => Place::Between(VmPhase::Running),
        },
        (_, _, phase) => Place::Between(phase),
    }
}

impl<S: Store> Api<S> {
    pub(super) async fn work_on_vm(&self, id: OperationId, work: &StorageWork, vm: VmId) -> StorageOutcome {
        // The volumes' records say whose they are: they are its own until it ends.
        let of = move |state: &ClusterState| -> Vec<(VolumeId, Name)> {
            let own = state.volumes.values().filter(|volume| volume.operation == Some(id));
            own.map(|volume| (volume.id, volume.pool.clone())).collect()
        };
        let volumes = match self.cluster.read(move |view| of(view.state)).await {
            Ok(volumes) if !volumes.is_empty() => volumes,
            _ => return vanished("what it should work on"),
        };
        let each: Each = match *work {
            StorageWork::VmSnapshotCreate { snapshot } => {
                return self.keep(id, vm, snapshot, &volumes).await;
            }
            StorageWork::VmSnapshotRollback { snapshot } => {
                Box::new(move |storage, of, progress| storage.rollback(of, snapshot, progress))
            }
            StorageWork::VmSnapshotDelete { snapshot } => {
                Box::new(move |storage, of, _| delete(storage, of, snapshot))
            }
            _ => return vanished("what it should work on"),
        };
        match self.each(id, &volumes, each).await {
            Ok(()) => StorageOutcome::Done,
            Err(error) => failed(&error, true),
        }
    }

    /// The same to every volume, one after the other. Ends with the first error.
    async fn each(
        &self,
        id: OperationId,
        volumes: &[(VolumeId, Name)],
        work: Each,
    ) -> Result<(), StorageError> {
        let work = std::sync::Arc::new(work);
        for (of, pool) in volumes {
            let (of, work) = (*of, std::sync::Arc::clone(&work));
            self.tried(id, pool, move |storage, progress| work(storage, of, progress).map(done)).await?;
        }
        Ok(())
    }

    async fn keep(
        &self,
        id: OperationId,
        vm: VmId,
        snapshot: SnapshotId,
        volumes: &[(VolumeId, Name)],
    ) -> StorageOutcome {
        let reason = match self.keep_at_last(id, vm, snapshot, volumes).await {
            Ok(hold) => return StorageOutcome::Kept(hold),
            Err(reason) => reason,
        };
        let undo: Each = Box::new(move |storage, of, _| delete(storage, of, snapshot));
        let leftover = self.each(id, volumes, undo).await.is_err();
        StorageOutcome::Failed(StorageFailure { reason, cancelled: false, leftover })
    }

    async fn keep_at_last(
        &self,
        id: OperationId,
        vm: VmId,
        snapshot: SnapshotId,
        volumes: &[(VolumeId, Name)],
    ) -> Result<Option<Hold>, String> {
        let (mut tries, mut looks) = (0, 0);
        loop {
            let found = self.cluster.read(move |view| place_of(view.state, vm)).await;
            let reason = match found.unwrap_or(Place::Gone) {
                Place::Gone => return Err("the VM is gone".to_owned()),
                Place::Between(phase) => {
                    looks += 1;
                    format!("the VM is {phase:?}, neither running nor stopped")
                }
                place => {
                    tries += 1;
                    self.show(id, 10, "getting the volumes ready").await;
                    match self.keep_once(id, vm, &place, snapshot, volumes).await {
                        Ok(hold) => return Ok(hold),
                        Err(KeepError::Storage(error)) => return Err(describe(&error)),
                        Err(KeepError::Again(reason)) => reason,
                    }
                }
            };
            if tries >= TRIES_MAX || looks >= LOOKS_MAX {
                return Err(reason);
            }
            tracing::info!(%id, %vm, reason, "the volumes are not kept yet");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One try: the volumes, all of one moment, or an error and perhaps some of them.
    async fn keep_once(
        &self,
        id: OperationId,
        vm: VmId,
        place: &Place,
        snapshot: SnapshotId,
        volumes: &[(VolumeId, Name)],
    ) -> Result<Option<Hold>, KeepError> {
        // Of each pool once: who waits for more with some in hand could wait for ever.
        let mut permits = Vec::new();
        for pool in volumes.iter().map(|(_, pool)| pool).collect::<BTreeSet<_>>() {
            permits.push(self.storage.permit(pool).await);
        }
        let mut prepared = Vec::with_capacity(volumes.len());
        for (of, pool) in volumes {
            let (of, storage) = (*of, self.storage_of(pool).await?);
            prepared.push(tokio::spawn(blocking(move || storage.prepare_snapshot(of, snapshot))));
        }
        let prepared = collected(prepared).await?;
        let Place::On { address, epoch } = place else {
            self.show(id, 50, "keeping the volumes").await;
            collected(take_all(prepared)).await?;
            return Ok(None);
        };
        self.show(id, 50, "holding the VM").await;
        let held = Held::take(self, vm, address, *epoch).await.map_err(|status| refused(&status))?;
        let mut taking = Box::pin(collected(take_all(prepared)));
        let in_time = tokio::time::timeout(HOLD_MAX, &mut taking).await;
        let released = held.release().await;
        // Storage that takes longer is waited for nevertheless: what it has begun must not appear later.
        match in_time {
            Ok(taken) => taken?,
            Err(_) => taking.await?,
        };
        match released {
            Ok(hold) => Ok(Some(hold)),
            Err(reason) => Err(KeepError::Again(reason)),
        }
    }
}

/// What is done to a volume.
type Each = Box<dyn Fn(&dyn StoragePool, VolumeId, &Progress) -> Result<(), StorageError> + Send + Sync>;

pub(super) fn delete(
    storage: &dyn StoragePool,
    of: VolumeId,
    snapshot: SnapshotId,
) -> Result<(), StorageError> {
    // Cloning may have protected it; nobody asked for it to be kept.
    match storage.protect_snapshot(of, snapshot, false) {
        Ok(()) | Err(StorageError::NoSuchSnapshot { .. } | StorageError::NoSuchVolume(_)) => {}
        Err(error) => return Err(error),
    }
    storage.delete_snapshot(of, snapshot)
}

/// A thread for each: the guest stands still for as long as the slowest takes, not for all of them in turn.
fn take_all(prepared: Vec<Box<dyn PreparedSnapshot>>) -> Vec<JoinHandle<Result<(), StorageError>>> {
    prepared.into_iter().map(|one| tokio::spawn(blocking(move || one.take()))).collect()
}

/// The result of each; the first error, once all have ended.
async fn collected<T>(tasks: Vec<JoinHandle<Result<T, StorageError>>>) -> Result<Vec<T>, StorageError> {
    let mut results = Vec::with_capacity(tasks.len());
    for task in tasks {
        results.push(match task.await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        });
    }
    results.into_iter().collect()
}

fn refused(status: &Status) -> KeepError {
    KeepError::Again(format!("the VM cannot be held: {}", describe(status)))
}

/// A VM that stands still, for [`HOLD_MAX`] at most. To be released: dropped, it stands until then.
struct Held<'a, S> {
    api: &'a Api<S>,
    vm: VmId,
    address: &'a str,
    command: Command,
    drained: Duration,
}

impl<'a, S: Store> Held<'a, S> {
    async fn take(api: &'a Api<S>, vm: VmId, address: &'a str, epoch: OwnerEpoch) -> Result<Self, Status> {
        // Of its own for each try: vmmd must not take it for one that it knows and that has run out.
        let command = Command { operation_id: Uuid::new_v4().to_string(), owner_epoch: epoch.get() };
        let limit_ms = u32::try_from(HOLD_MAX.as_millis()).unwrap_or(u32::MAX);
        let mut held = Self { api, vm, address, command: command.clone(), drained: Duration::ZERO };
        let mut agent = api.agents.client(address)?;
        let request = HoldQueuesRequest { command: Some(command), vm_id: vm.to_string(), limit_ms };
        let answered = tokio::time::timeout(HOLD_MAX + ANSWER_TIME, agent.hold_queues(request)).await;
        match answered.unwrap_or_else(|_| Err(Status::deadline_exceeded("its agent does not answer"))) {
            Ok(answer) => {
                held.drained = Duration::from_micros(answer.into_inner().drained_us);
                Ok(held)
            }
            Err(status) => {
                // It may stand nevertheless.
                let _tried = held.release().await;
                Err(status)
            }
        }
    }

    /// Lets it go on. How it stood, if it stood all the time.
    async fn release(self) -> Result<Hold, String> {
        let Self { api, vm, address, command, drained } = self;
        let unanswered =
            |status: &Status| format!("whether the VM stood still is not known: {}", describe(status));
        let mut agent = api.agents.client(address).map_err(|status| unanswered(&status))?;
        let request = ReleaseQueuesRequest { command: Some(command), vm_id: vm.to_string() };
        let answered = tokio::time::timeout(ANSWER_TIME, agent.release_queues(request)).await;
        let answered =
            answered.unwrap_or_else(|_| Err(Status::deadline_exceeded("its agent does not answer")));
        let answer = answered.map_err(|status| unanswered(&status))?.into_inner();
        if answer.expired {
            return Err(format!(
                "the storage took longer than the VM may stand still, {} ms",
                HOLD_MAX.as_millis()
            ));
        }
        Ok(Hold { drained, lasted: Duration::from_micros(answer.held_us) })
    }
}

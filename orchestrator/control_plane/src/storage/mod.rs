//! Carries out work on storage.
//!
//! A request that stands leaves an operation in the store; [`Api::carry_out`] does what it says and writes how it ended.
//! Whatever is under way when the process ends is found by [`resume`] in the next one and done again from the start,
//! except for what an import has received. Nothing waits for that: agents are served meanwhile.
//!
//! - `work`: what each kind of operation does to a pool.
//! - `vm_snapshot`: volumes of one VM, all at one moment.
//! - `import`: disk images, in pieces; `fetch`: from a web server; `uploads`: from a client.
//! - `observe`: progress and cancellation of what blocks a thread.

mod fetch;
mod import;
mod observe;
mod receive;
mod uploads;
mod vm_snapshot;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use drover_cluster_state::{
    ClusterState, Name, OperationKind, SnapshotState, StorageWork, Subject, VolumeState,
};
use drover_driver::SubmitError;
use drover_ids::{ImageDigest, OperationId, VolumeId};
use drover_ports::Store;
use drover_reconcile::admission::{self, AdmissionError, StorageOutcome};
use drover_storage_pools::{StorageError, StoragePool, Unobserved};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use crate::{
    background::Background,
    pools::{Place, blocking},
    services::Api,
    status::describe,
};
pub(crate) use observe::Progress;
pub(crate) use uploads::{Incoming, Uploads};

/// Work on one pool at a time. Each occupies a thread while the storage answers: a pool that hangs must not take those
/// of the others.
const WORK_PER_POOL_MAX: usize = 8;
/// Before the end of an operation is written again.
const WRITE_PAUSE: Duration = Duration::from_millis(200);

/// One for each image that is being made or removed.
type ObjectLocks = BTreeMap<(Name, ImageDigest), Arc<tokio::sync::Mutex<()>>>;

/// What is under way. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct StorageWorker {
    active: Arc<Mutex<BTreeSet<OperationId>>>,
    permits: Arc<Mutex<BTreeMap<Name, Arc<Semaphore>>>>,
    objects: Arc<Mutex<ObjectLocks>>,
    pub(crate) uploads: Uploads,
    pub(crate) background: Background,
}

/// Ends an operation's being under way.
struct Active<'a>(&'a StorageWorker, OperationId);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.active.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl StorageWorker {
    /// Room for one more piece of work on a pool.
    pub(crate) async fn permit(&self, pool: &Name) -> OwnedSemaphorePermit {
        let semaphore = {
            let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Semaphore::new(WORK_PER_POOL_MAX));
            Arc::clone(permits.entry(pool.clone()).or_insert_with(new))
        };
        semaphore.acquire_owned().await.expect("nobody closes it")
    }

    /// The right to make or remove an image's object.
    async fn object(&self, pool: &Name, digest: ImageDigest) -> OwnedMutexGuard<()> {
        let lock = {
            let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
            objects.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(objects.entry((pool.clone(), digest)).or_default())
        };
        lock.lock_owned().await
    }
}

/// What has to be known to do an operation.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    id: OperationId,
    work: StorageWork,
    subject: Subject,
}

impl<S: Store> Api<S> {
    /// Does an operation that has been admitted, in the background. One that is under way already, or has ended, is left
    /// alone.
    pub(crate) fn carry_out(&self, id: OperationId) {
        if !self.storage.active.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            return;
        }
        let api = self.clone();
        self.storage.background.spawn(async move {
            let _active = Active(&api.storage, id);
            api.work_on(id).await;
        });
    }

    async fn work_on(&self, id: OperationId) {
        let find = move |state: &ClusterState| {
            let operation = state.operations.get(&id).filter(|operation| operation.is_running())?;
            match &operation.kind {
                OperationKind::Storage(work) => {
                    Some(Job { id, work: work.clone(), subject: operation.subject.clone() })
                }
                _ => None,
            }
        };
        let Ok(Some(job)) = self.cluster.read(move |view| find(view.state)).await else { return };
        let (kind, subject) = (job.work.name(), job.subject.to_string());
        let outcome = self.do_work(job).await;
        match &outcome {
            StorageOutcome::Failed(failure) => {
                tracing::warn!(%id, kind, subject, reason = failure.reason, "work on storage failed");
            }
            _ => tracing::info!(%id, kind, subject, "work on storage is done"),
        }
        self.write_end(id, outcome).await;
    }

    /// Writes how an operation ended, however long the store takes: without that it would be done again.
    async fn write_end(&self, id: OperationId, outcome: StorageOutcome) {
        loop {
            let outcome = outcome.clone();
            let written = self.cluster.submit(move |view| {
                let txn = admission::finish_storage(view.state, id, &outcome, view.now.wall);
                Ok::<_, AdmissionError>(((), txn))
            });
            match written.await {
                Ok(()) | Err(SubmitError::Refused(_) | SubmitError::Gone(_)) => return,
                Err(SubmitError::Contended | SubmitError::Unknown(_)) => {
                    tokio::time::sleep(WRITE_PAUSE).await
                }
            }
        }
    }

    /// The storage of a pool. Waits for it, outside of the async threads.
    pub(crate) async fn storage_of(&self, pool: &Name) -> Result<Arc<dyn StoragePool>, StorageError> {
        let place = self.place_of(pool).await?;
        let pools = self.pools.clone();
        blocking(move || pools.storage(&place)).await
    }

    pub(crate) async fn place_of(&self, pool: &Name) -> Result<Place, StorageError> {
        let (pools, name) = (self.pools.clone(), pool.clone());
        let place = self.cluster.read(move |view| pools.place(view.state, &name)).await;
        let gone = || StorageError::Unsupported(format!("there is no pool '{pool}' any more"));
        place.ok().flatten().ok_or_else(gone)
    }
}

/// Takes up what a predecessor left: operations that run, and things that are half made or half removed without one.
/// In the background, for as long as it takes.
pub(crate) async fn resume<S: Store>(api: Api<S>) {
    let operations = |state: &ClusterState| -> Vec<OperationId> {
        let running = state.operations.values().filter(|operation| operation.is_running());
        running.filter(|o| matches!(o.kind, OperationKind::Storage(_))).map(|o| o.id).collect()
    };
    let Ok(operations) = api.cluster.read(move |view| operations(view.state)).await else { return };
    for id in operations {
        tracing::info!(%id, "work on storage is taken up again");
        api.carry_out(id);
    }
    import::forget_staged(&api).await;
    sweep(&api).await;
}

/// Removes volumes that are half made or half removed and that no operation works on, and snapshots alike. What cannot be
/// removed now is left for the next time.
async fn sweep<S: Store>(api: &Api<S>) {
    let idle = |state: &ClusterState, operation: Option<OperationId>| {
        operation.and_then(|id| state.operations.get(&id)).is_none_or(|operation| !operation.is_running())
    };
    let half = move |state: &ClusterState| -> Vec<(VolumeId, Name)> {
        let half = state.volumes.values().filter(|volume| volume.state != VolumeState::Ready);
        let half = half.filter(|volume| idle(state, volume.operation));
        half.map(|volume| (volume.id, volume.pool.clone())).collect()
    };
    let Ok(half) = api.cluster.read(move |view| half(view.state)).await else { return };
    for (id, pool) in half {
        let removed = match api.storage_of(&pool).await {
            Ok(storage) => blocking(move || storage.delete_volume(id, &Unobserved)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::warn!(volume = %id, error = describe(&error), "a half-made volume cannot be removed");
            continue;
        }
        let forgotten = api
            .cluster
            .submit(move |view| Ok::<_, AdmissionError>(((), admission::forget_volume(view.state, id))));
        match forgotten.await {
            Ok(()) => tracing::info!(volume = %id, "a half-made volume was removed"),
            Err(error) => tracing::warn!(volume = %id, error = describe(&error), "a half-made volume stays"),
        }
    }
    let left = |state: &ClusterState| {
        let snapshots = state.volumes.values().flat_map(|volume| &volume.snapshots);
        snapshots.filter(|snapshot| snapshot.state == SnapshotState::Deleting).count()
    };
    if let Ok(left @ 1..) = api.cluster.read(move |view| left(view.state)).await {
        tracing::warn!(left, "snapshots are half removed; `drover snapshot delete` removes them");
    }
}

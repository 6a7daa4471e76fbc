//! Carries out work on storage.
//!
//! A request that stands leaves an operation in the store; [`Api::carry_out`] does what it says and writes how it ended.
//! Whatever is under way when the process ends is found by [`resume`] in the next one and done again from the start,
//! except for what an import has received. Nothing waits for that: agents are served meanwhile.
//!
//! - `work`: what each kind of operation does to a pool.
//! - `vm_snapshot`: volumes of one VM, all at one moment.
//! - `import`: disk images, in pieces; `fetch`: from a web server; `uploads`: from a client.
//! - `sweep`: what predecessors left.
//! - `observe`: progress and cancellation of what blocks a thread.

mod fetch;
mod import;
mod observe;
mod receive;
mod sweep;
mod uploads;
mod vm_snapshot;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use drover_cluster_state::{ClusterState, Name, OperationKind, StorageWork, Subject};
use drover_driver::SubmitError;
use drover_ids::{ImageDigest, OperationId, VolumeId};
use drover_ports::Store;
use drover_reconcile::admission::{self, AdmissionError, StorageOutcome};
use drover_storage_pools::{StorageError, StoragePool};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use crate::{
    background::Background,
    pools::{Place, blocking},
    services::Api,
};
pub use fetch::AuthorityError;
pub(crate) use fetch::Fetcher;
pub(crate) use observe::Progress;
pub(crate) use sweep::{Leftovers, resume};
pub(crate) use uploads::{Incoming, Uploads};

/// Work on one pool at a time. Each occupies a thread while the storage answers: a pool that hangs must not take those
/// of the others.
const WORK_PER_POOL_MAX: usize = 8;
/// Before the end of an operation is written again.
const WRITE_PAUSE: Duration = Duration::from_millis(200);

/// One for each thing that is being made or removed.
type Locks<K> = Mutex<BTreeMap<K, Arc<tokio::sync::Mutex<()>>>>;

async fn locked<K: Ord>(locks: &Locks<K>, key: K) -> OwnedMutexGuard<()> {
    let lock = {
        let mut locks = locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(key).or_default())
    };
    lock.lock_owned().await
}

/// What is under way. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct StorageWorker {
    active: Arc<Mutex<BTreeSet<OperationId>>>,
    permits: Arc<Mutex<BTreeMap<Name, Arc<Semaphore>>>>,
    objects: Arc<Locks<(Name, ImageDigest)>>,
    volumes: Arc<Locks<VolumeId>>,
    fetcher: Fetcher,
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
    /// Nothing is under way. Files are fetched by `fetcher`.
    pub(crate) fn new(fetcher: Fetcher) -> Self {
        Self { fetcher, ..Self::default() }
    }

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
        locked(&self.objects, (pool.clone(), digest)).await
    }

    /// The right to make a volume without an operation, or to remove one that was left half made.
    pub(crate) async fn volume(&self, volume: VolumeId) -> OwnedMutexGuard<()> {
        locked(&self.volumes, volume).await
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

//! What each kind of operation does to a pool.

use std::{sync::Arc, time::Duration};

use drover_cluster_state::{
    CloneSource, ClusterState, DiskImage, Name, PoolState, StorageWork, Subject, Volume,
};
use drover_ids::{OperationId, VolumeId};
use drover_ports::Store;
use drover_reconcile::admission::{self, StorageFailure, StorageOutcome};
use drover_storage_pools::{Observer, Result as PoolResult, Source, StorageError, StoragePool, Target, copy};
use drover_units::Bytes;

use super::{Job, Progress, observe::Phase};
use crate::{pools::blocking, services::Api, status::describe};

/// How often work is tried again that the storage failed at: it may be back by then.
const TRIES_MAX: u32 = 4;
/// Before it is tried again, the first time; doubled each time.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// A client that has died still watches its images for 30 s: for that long "in use" may mean nobody.
const IN_USE_TRIES_MAX: u32 = 36;
/// Between two tries then.
const IN_USE_PAUSE: Duration = Duration::from_secs(1);

/// Work that has no parts.
pub(super) const WHOLE: Phase = Phase { step: "working", from: 0, to: 99 };

pub(super) fn failed(error: &StorageError, leftover: bool) -> StorageOutcome {
    let cancelled = matches!(error, StorageError::Cancelled);
    let reason = if cancelled { "cancelled".to_owned() } else { describe(error) };
    StorageOutcome::Failed(StorageFailure { reason, cancelled, leftover })
}

/// Work on something that is not there any more, or is not what it should be.
pub(super) fn vanished(what: &str) -> StorageOutcome {
    let reason = format!("{what} is not there any more");
    StorageOutcome::Failed(StorageFailure { reason, cancelled: false, leftover: false })
}

impl<S: Store> Api<S> {
    pub(super) async fn do_work(&self, job: Job) -> StorageOutcome {
        match (&job.subject, job.work.clone()) {
            (Subject::Pool(name), StorageWork::PoolCreate) => self.create_user(name).await,
            (Subject::Pool(name), StorageWork::PoolDelete) => self.delete_user(name).await,
            (Subject::DiskImage(name), work) => {
                let find = name.clone();
                let image = move |state: &ClusterState| state.disk_images.get(&find).map(|i| i.value.clone());
                match self.cluster.read(move |view| image(view.state)).await {
                    Ok(Some(image)) => self.work_on_image(job.id, &work, image).await,
                    _ => vanished("the disk image"),
                }
            }
            (Subject::Volume(id), work) => {
                let id = *id;
                let volume = move |state: &ClusterState| state.volumes.get(&id).map(|v| v.value.clone());
                match self.cluster.read(move |view| volume(view.state)).await {
                    Ok(Some(volume)) => self.work_on_volume(job.id, &work, volume).await,
                    _ => vanished("the volume"),
                }
            }
            (Subject::Vm(vm), work) => self.work_on_vm(job.id, &work, *vm).await,
            _ => vanished("what it should work on"),
        }
    }

    async fn create_user(&self, name: &Name) -> StorageOutcome {
        let find = name.clone();
        let pool = move |state: &ClusterState| state.pools.get(&find).map(|pool| pool.value.clone());
        let Ok(Some(pool)) = self.cluster.read(move |view| pool(view.state)).await else {
            return vanished("the pool");
        };
        let ceph = self.pools.ceph().clone();
        let made = blocking(move || {
            let made = ceph.make_user(&pool.rbd);
            if made.is_err() {
                // Best effort: a user that nobody knows the key of can do nothing.
                let _left = ceph.remove_user(&pool.rbd);
            }
            made
        });
        match made.await {
            Ok(credentials) => StorageOutcome::Pool(credentials),
            Err(error) => {
                let failure = StorageFailure { reason: describe(&error), cancelled: false, leftover: false };
                StorageOutcome::Failed(failure)
            }
        }
    }

    async fn delete_user(&self, name: &Name) -> StorageOutcome {
        let find = name.clone();
        let pool = move |state: &ClusterState| {
            let used = state.volumes.values().any(|volume| volume.pool == find)
                || state.disk_images.values().any(|image| image.pool == find);
            state
                .pools
                .get(&find)
                .filter(|pool| pool.state == PoolState::Deleting && !used)
                .map(|p| p.rbd.clone())
        };
        let Ok(Some(rbd)) = self.cluster.read(move |view| pool(view.state)).await else {
            let reason = "something has been made in it meanwhile".to_owned();
            return StorageOutcome::Failed(StorageFailure { reason, cancelled: false, leftover: false });
        };
        let ceph = self.pools.ceph().clone();
        match blocking(move || ceph.remove_user(&rbd)).await {
            Ok(()) => StorageOutcome::Done,
            Err(error) => {
                let reason = describe(&error);
                StorageOutcome::Failed(StorageFailure { reason, cancelled: false, leftover: false })
            }
        }
    }

    async fn work_on_volume(&self, id: OperationId, work: &StorageWork, volume: Volume) -> StorageOutcome {
        let (pool, of) = (volume.pool.clone(), volume.id);
        let outcome = match work.clone() {
            StorageWork::VolumeClone(source) => return self.clone_volume(id, source, volume).await,
            StorageWork::VolumeResize { size } => {
                let grow = move |storage: &dyn StoragePool, _: &Progress| {
                    storage.grow_volume(of, size)?;
                    Ok(StorageOutcome::Volume(storage.volume_usage(of)?.size))
                };
                self.tried(id, &pool, grow).await
            }
            StorageWork::VolumeFlatten => {
                let flatten = move |storage: &dyn StoragePool, progress: &Progress| {
                    storage.flatten_volume(of, progress).map(done)
                };
                self.tried(id, &pool, flatten).await
            }
            StorageWork::VolumeDelete => {
                let delete = move |storage: &dyn StoragePool, progress: &Progress| {
                    storage.delete_volume(of, progress).map(done)
                };
                self.tried(id, &pool, delete).await
            }
            StorageWork::SnapshotCreate { snapshot } => {
                let create = move |storage: &dyn StoragePool, _: &Progress| {
                    storage.create_snapshot(of, snapshot).map(done)
                };
                let outcome = self.tried(id, &pool, create).await;
                return match outcome {
                    Ok(outcome) => outcome,
                    Err(error) => {
                        let undo = move |storage: &dyn StoragePool, _: &Progress| {
                            storage.delete_snapshot(of, snapshot).map(done)
                        };
                        failed(&error, self.tried(id, &pool, undo).await.is_err())
                    }
                };
            }
            StorageWork::SnapshotProtect { snapshot, protect } => {
                let protect = move |storage: &dyn StoragePool, _: &Progress| {
                    storage.protect_snapshot(of, snapshot, protect).map(done)
                };
                self.tried(id, &pool, protect).await
            }
            StorageWork::SnapshotRollback { snapshot } => {
                let roll_back = move |storage: &dyn StoragePool, progress: &Progress| {
                    storage.rollback(of, snapshot, progress)?;
                    Ok(StorageOutcome::Volume(storage.volume_usage(of)?.size))
                };
                self.tried(id, &pool, roll_back).await
            }
            StorageWork::SnapshotDelete { snapshot } => {
                let delete = move |storage: &dyn StoragePool, _: &Progress| {
                    // Cloning may have protected it; nobody asked for it to be kept.
                    match storage.protect_snapshot(of, snapshot, false) {
                        Ok(()) | Err(StorageError::NoSuchSnapshot { .. } | StorageError::NoSuchVolume(_)) => {
                        }
                        Err(error) => return Err(error),
                    }
                    storage.delete_snapshot(of, snapshot).map(done)
                };
                self.tried(id, &pool, delete).await
            }
            _ => return vanished("what it should work on"),
        };
        match outcome {
            Ok(outcome) => outcome,
            // Refusals have changed nothing; whatever else may have begun.
            Err(error) => {
                let changed = matches!(error, StorageError::Failed { .. } | StorageError::Full { .. });
                failed(&error, changed)
            }
        }
    }

    /// A volume with the content of something else: at once in the same pool, copied into another one.
    async fn clone_volume(&self, id: OperationId, source: CloneSource, volume: Volume) -> StorageOutcome {
        let (pool, of, size) = (volume.pool.clone(), volume.id, volume.size);
        let from = match &source {
            CloneSource::Image { digest, .. } => Source::Image(*digest),
            CloneSource::Snapshot { volume, snapshot, .. } => {
                Source::Snapshot { volume: *volume, snapshot: *snapshot }
            }
        };
        let outcome = if *source.pool() == pool {
            let clone = move |storage: &dyn StoragePool, progress: &Progress| {
                storage.clone_volume(of, from, size, progress).map(done)
            };
            self.tried(id, &pool, clone).await
        } else {
            match self.storage_of(source.pool()).await {
                Err(error) => Err(error),
                Ok(other) => {
                    let copy = move |storage: &dyn StoragePool, progress: &Progress| {
                        copy_into(&*other, from, storage, (Target::Volume(of), size), progress).map(done)
                    };
                    self.tried(id, &pool, copy).await
                }
            }
        };
        match outcome {
            Ok(outcome) => outcome,
            Err(error) => failed(&error, !self.remove_volume_of(&pool, of).await),
        }
    }

    /// Removes what is left of a volume that could not be made. Whether nothing is left.
    pub(super) async fn remove_volume_of(&self, pool: &Name, volume: VolumeId) -> bool {
        match self.storage_of(pool).await {
            Ok(storage) => {
                blocking(move || storage.delete_volume(volume, &drover_storage_pools::Unobserved).is_ok())
                    .await
            }
            Err(_) => false,
        }
    }

    async fn work_on_image(&self, id: OperationId, work: &StorageWork, image: DiskImage) -> StorageOutcome {
        match work {
            StorageWork::DiskImageImport => self.import(id, image).await,
            StorageWork::DiskImageCopy => self.copy_image(id, image).await,
            StorageWork::DiskImageDelete => self.delete_object(id, image).await,
            _ => vanished("what it should work on"),
        }
    }

    async fn delete_object(&self, id: OperationId, image: DiskImage) -> StorageOutcome {
        let _alone = self.storage.object(&image.pool, image.digest).await;
        let (shared, digest) = (image.clone(), image.digest);
        let shared = move |state: &ClusterState| admission::same_object_as(state, &shared).next().is_some();
        match self.cluster.read(move |view| shared(view.state)).await {
            Ok(false) => {}
            // Another name keeps the object.
            Ok(true) => return StorageOutcome::Done,
            Err(_) => return vanished("the cluster's state"),
        }
        let delete = move |storage: &dyn StoragePool, progress: &Progress| {
            storage.delete_image(digest, progress).map(done)
        };
        match self.tried(id, &image.pool, delete).await {
            Ok(outcome) => outcome,
            Err(error) => failed(&error, matches!(error, StorageError::Failed { .. })),
        }
    }

    /// Runs work on a pool's storage; again, if the storage fails or somebody may merely seem to use a volume.
    pub(super) async fn tried<W>(&self, id: OperationId, pool: &Name, work: W) -> PoolResult<StorageOutcome>
    where
        W: Fn(&dyn StoragePool, &Progress) -> PoolResult<StorageOutcome> + Send + Sync + 'static,
    {
        let work = Arc::new(work);
        let (mut tries, mut in_use) = (0, 0);
        let mut pause = RETRY_PAUSE;
        loop {
            let work = Arc::clone(&work);
            let permit = self.storage.permit(pool).await;
            let result = match self.storage_of(pool).await {
                Err(error) => Err(error),
                Ok(storage) => {
                    let lingers = storage.capabilities().clones_need_source;
                    let run = move |progress: &Progress| {
                        let _permit = permit;
                        work(&*storage, progress)
                    };
                    match self.observed(id, WHOLE, run).await {
                        Err(StorageError::InUse { .. }) if lingers && in_use < IN_USE_TRIES_MAX => {
                            in_use += 1;
                            self.show(id, 0, "waiting for its last user to be gone").await;
                            tokio::time::sleep(IN_USE_PAUSE).await;
                            continue;
                        }
                        result => result,
                    }
                }
            };
            tries += 1;
            match result {
                Err(error @ StorageError::Failed { .. }) if tries < TRIES_MAX => {
                    tracing::warn!(%id, %pool, error = describe(&error), "the storage failed; trying again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                result => return result,
            }
        }
    }
}

pub(super) fn done((): ()) -> StorageOutcome {
    StorageOutcome::Done
}

/// Copies a disk from one pool into another, from the start: what an interrupted copy has left is written again.
pub(super) fn copy_into(
    from: &dyn StoragePool,
    source: Source,
    to: &dyn StoragePool,
    (target, size): (Target, Bytes),
    observer: &dyn Observer,
) -> PoolResult<()> {
    let mut reader = from.open(source)?;
    let mut writer = match to.begin(target, size) {
        Ok(writer) => writer,
        // Done by a predecessor that was killed before it could say so.
        Err(StorageError::Exists(_)) => return Ok(()),
        Err(error) => return Err(error),
    };
    copy(&mut *reader, &mut *writer, observer)?;
    writer.finish()
}

//! What a predecessor left: operations that run, and things that are half made or half removed without one.

use std::time::Duration;

use drover_cluster_state::{
    ClusterState, DiskImageState, Name, OperationKind, SnapshotState, Txn, VolumeState,
};
use drover_ids::{OperationId, SnapshotId, VolumeId};
use drover_ports::Store;
use drover_reconcile::admission::{self, AdmissionError};
use drover_storage_pools::{StorageError, StoragePool, Unobserved};

use super::import;
use crate::{pools::blocking, services::Api, status::describe};

/// Before what could not be removed is tried again. A client that has died, as a predecessor of this process, still watches its
/// images for 30 s, and for that long they are in use.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest pause: the storage may be away for days.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// What was half made or half removed when this process began. What becomes so later has somebody who works on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leftovers {
    volumes: Vec<(VolumeId, Name)>,
    snapshots: Vec<(VolumeId, SnapshotId, Name)>,
    images: Vec<Name>,
}

impl Leftovers {
    /// To be looked for before any request is taken.
    pub(crate) fn of(state: &ClusterState) -> Self {
        let idle = |operation: Option<OperationId>| {
            let found = operation.and_then(|id| state.operations.get(&id));
            found.is_none_or(|operation| !operation.is_running())
        };
        let volumes = || state.volumes.values().filter(|volume| idle(volume.operation));
        let half = volumes().filter(|volume| volume.state != VolumeState::Ready);
        let snapshots = volumes().flat_map(|volume| {
            let half = volume.snapshots.iter().filter(|one| one.state == SnapshotState::Deleting);
            half.map(|one| (volume.id, one.id, volume.pool.clone()))
        });
        let images = state.disk_images.values().filter(|image| idle(image.operation));
        let images = images.filter(|image| image.state == DiskImageState::Deleting);
        Self {
            volumes: half.map(|volume| (volume.id, volume.pool.clone())).collect(),
            snapshots: snapshots.collect(),
            images: images.map(|image| image.name.clone()).collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.volumes.is_empty() && self.snapshots.is_empty() && self.images.is_empty()
    }
}

/// Takes it all up. In the background, for as long as it takes.
pub(crate) async fn resume<S: Store>(api: Api<S>, mut leftovers: Leftovers) {
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
    let mut pause = PAUSE;
    loop {
        leftovers = sweep(&api, leftovers).await;
        if leftovers.is_empty() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Removes what is left; what is still there then.
async fn sweep<S: Store>(api: &Api<S>, leftovers: Leftovers) -> Leftovers {
    let mut left = Leftovers::default();
    // Snapshots first: a volume that has any stays.
    for (volume, snapshot, pool) in leftovers.snapshots {
        if !api.remove_snapshot(volume, snapshot, &pool).await {
            left.snapshots.push((volume, snapshot, pool));
        }
    }
    for (volume, pool) in leftovers.volumes {
        if !api.remove_volume(volume, &pool).await {
            left.volumes.push((volume, pool));
        }
    }
    for image in leftovers.images {
        if !api.remove_disk_image(&image).await {
            left.images.push(image);
        }
    }
    left
}

impl<S: Store> Api<S> {
    async fn remove_volume(&self, id: VolumeId, pool: &Name) -> bool {
        // A client may ask for it once more, by its request's id: then it is made after all, before this or after it.
        let _alone = self.storage.volume(id).await;
        match self.cluster.read(move |view| admission::forget_volume(view.state, id).is_some()).await {
            Ok(true) => {}
            Ok(false) => return true,
            Err(_) => return false,
        }
        let removed = self.on(pool, move |storage| storage.delete_volume(id, &Unobserved)).await;
        self.removed("volume", &id, removed, move |state| admission::forget_volume(state, id)).await
    }

    async fn remove_snapshot(&self, of: VolumeId, id: SnapshotId, pool: &Name) -> bool {
        let due = move |state: &ClusterState| admission::forget_snapshot(state, of, id).is_some();
        if !matches!(self.cluster.read(move |view| due(view.state)).await, Ok(true)) {
            // Somebody works on its volume, and perhaps on it.
            return true;
        }
        let removed = self.on(pool, move |storage| super::vm_snapshot::delete(storage, of, id)).await;
        self.removed("snapshot", &id, removed, move |state| admission::forget_snapshot(state, of, id)).await
    }

    async fn remove_disk_image(&self, name: &Name) -> bool {
        let find = name.clone();
        let object = move |state: &ClusterState| {
            state.disk_images.get(&find).map(|image| (image.pool.clone(), image.digest))
        };
        let Ok(Some((pool, digest))) = self.cluster.read(move |view| object(view.state)).await else {
            return true;
        };
        let _alone = self.storage.object(&pool, digest).await;
        let find = name.clone();
        let shared = move |state: &ClusterState| -> Option<bool> {
            admission::forget_disk_image(state, &find)?;
            let image = &state.disk_images.get(&find)?.value;
            Some(admission::same_object_as(state, image).next().is_some())
        };
        let removed = match self.cluster.read(move |view| shared(view.state)).await {
            Ok(Some(false)) => self.on(&pool, move |storage| storage.delete_image(digest, &Unobserved)).await,
            // Another name keeps the object.
            Ok(Some(true)) => Ok(()),
            _ => return true,
        };
        let forget = name.clone();
        self.removed("disk image", name, removed, move |state| admission::forget_disk_image(state, &forget))
            .await
    }

    async fn on(
        &self,
        pool: &Name,
        work: impl FnOnce(&dyn StoragePool) -> Result<(), StorageError> + Send + 'static,
    ) -> Result<(), StorageError> {
        let permit = self.storage.permit(pool).await;
        let storage = self.storage_of(pool).await?;
        blocking(move || {
            let _permit = permit;
            work(&*storage)
        })
        .await
    }

    /// Writes down that something is gone, if it is. Whether there is nothing left to do about it.
    async fn removed(
        &self,
        kind: &'static str,
        id: &(dyn std::fmt::Display + Send + Sync),
        removed: Result<(), StorageError>,
        forget: impl Fn(&ClusterState) -> Option<Txn> + Clone + Send + 'static,
    ) -> bool {
        if let Err(error) = removed {
            tracing::warn!(kind, %id, error = describe(&error), "something half made or removed cannot be removed yet");
            return false;
        }
        let forgotten = self.cluster.submit(move |view| Ok::<_, AdmissionError>(((), forget(view.state))));
        match forgotten.await {
            Ok(()) => {
                tracing::info!(kind, %id, "something half made or removed was removed");
                true
            }
            Err(error) => {
                tracing::warn!(kind, %id, error = describe(&error), "something that was removed is still in the store");
                false
            }
        }
    }
}

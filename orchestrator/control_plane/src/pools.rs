//! The storage pools of this cluster: directories of this host, and Ceph.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use drover_cluster_state::{ClusterState, Name, PoolState, RbdPool, VolumeFence, VolumeOwner};
use drover_dir_volume::{DirPool, FenceProof, LockError, PoolError};
use drover_ids::VolumeId;
use drover_ports::Fence;
use drover_reconcile::{FenceRefusal, FenceRequest};
use drover_storage_pools::{DirStorage, RbdStorage, StorageError, StoragePool};
use tokio::sync::Semaphore;

use crate::{
    ceph::{CephClusters, CephError},
    rbd_fence::RbdFence,
    status::describe,
};

/// Volumes that are fenced at a time. Each occupies a thread while the storage answers: a pool that hangs must not
/// take all of them.
const FENCES_MAX: usize = 32;

/// Every pool, by name. Clones are the same pools.
#[derive(Clone, Debug)]
pub(crate) struct Pools {
    /// Those of the configuration.
    pools: Arc<BTreeMap<Name, (DirPool, Arc<DirStorage>)>>,
    ceph: CephClusters,
    /// Those that clients made, as the store said last: for who has no time to ask it.
    made: Arc<RwLock<BTreeMap<Name, RbdPool>>>,
    fences: Arc<Semaphore>,
}

/// Where a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a directory of the configuration, by the pool's name.
    Dir(Name),
    /// In Ceph.
    Rbd(RbdPool),
}

impl Pools {
    /// Opens every pool's directory.
    pub(crate) fn open(paths: BTreeMap<Name, PathBuf>, ceph: CephClusters) -> Result<Self, PoolError> {
        let open = |(name, path): (Name, PathBuf)| {
            let pool = DirPool::open(&path)?;
            let storage = Arc::new(DirStorage::new(pool.clone()));
            Ok((name, (pool, storage)))
        };
        let pools = paths.into_iter().map(open).collect::<Result<_, PoolError>>()?;
        let fences = Arc::new(Semaphore::new(FENCES_MAX));
        Ok(Self { pools: Arc::new(pools), ceph, made: Arc::default(), fences })
    }

    /// The names of those of the configuration.
    pub(crate) fn names(&self) -> BTreeSet<Name> {
        self.pools.keys().cloned().collect()
    }

    /// The names of those that cannot keep what a volume holds while a VM runs. Blocks.
    pub(crate) fn without_online_snapshots(&self) -> BTreeSet<Name> {
        let without = self.pools.iter().filter(|(_, (_, storage))| !storage.capabilities().online_snapshot);
        without.map(|(name, _)| name.clone()).collect()
    }

    /// The directory with this name, if this control plane is configured with it.
    pub(crate) fn get(&self, name: &Name) -> Option<&DirPool> {
        self.pools.get(name).map(|(pool, _)| pool)
    }

    /// The Ceph clusters that pools can be made in.
    pub(crate) fn ceph(&self) -> &CephClusters {
        &self.ceph
    }

    /// The pool in Ceph with this name, ready or not.
    pub(crate) fn made(&self, name: &Name) -> Option<RbdPool> {
        self.made.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Takes over what the store says of the pools that clients made.
    pub(crate) fn remember(&self, pools: BTreeMap<Name, RbdPool>) {
        *self.made.write().unwrap_or_else(PoisonError::into_inner) = pools;
    }

    /// Where a pool is; `None`: there is no such pool, or it is not ready.
    pub(crate) fn place(&self, state: &ClusterState, name: &Name) -> Option<Place> {
        if self.pools.contains_key(name) {
            return Some(Place::Dir(name.clone()));
        }
        let pool = state.pools.get(name).filter(|pool| pool.state != PoolState::Creating)?;
        Some(Place::Rbd(pool.rbd.clone()))
    }

    /// The storage at a place. Blocks, some seconds where nobody answers.
    pub(crate) fn storage(&self, place: &Place) -> Result<Arc<dyn StoragePool>, StorageError> {
        match place {
            Place::Dir(name) => match self.pools.get(name) {
                Some((_, storage)) => Ok(Arc::clone(storage) as Arc<dyn StoragePool>),
                None => Err(StorageError::Unsupported(format!("pool '{name}' is not configured any more"))),
            },
            Place::Rbd(rbd) => match self.ceph.open(rbd) {
                Ok(pool) => Ok(Arc::new(RbdStorage::new(pool))),
                Err(source) => {
                    let action = format!("use Ceph pool '{}'", rbd.ceph_pool);
                    Err(StorageError::Failed { action, source: source.into() })
                }
            },
        }
    }
}

/// Runs what waits for storage outside of the async threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        // Not cancelled, since nobody can: it panicked, and so do we.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

impl Fence for Pools {
    async fn fence(&self, request: FenceRequest) -> Vec<(VolumeId, Result<VolumeFence, FenceRefusal>)> {
        // All at once: with Ceph's own settings each may take a round of its monitors.
        let mut under_way = Vec::with_capacity(request.volumes.len());
        for (volume, pool) in &request.volumes {
            let permit = Arc::clone(&self.fences).acquire_owned().await;
            let work = self.fence_one(&request, *volume, pool);
            under_way.push((
                *volume,
                tokio::spawn(blocking(move || {
                    let _permit = permit;
                    work()
                })),
            ));
        }
        let mut results = Vec::with_capacity(under_way.len());
        for (volume, work) in under_way {
            let result =
                work.await.unwrap_or_else(|_| Err(FenceRefusal("the fence was given up".to_owned())));
            results.push((volume, result));
        }
        results
    }
}

impl Pools {
    /// What fences one volume. It blocks.
    fn fence_one(
        &self,
        request: &FenceRequest,
        volume: VolumeId,
        pool: &Name,
    ) -> Box<dyn FnOnce() -> Result<VolumeFence, FenceRefusal> + Send> {
        let (vm, floor) = (request.vm, request.min_epoch);
        if let Some(directory) = self.get(pool).cloned() {
            return Box::new(move || {
                let fenced = drover_dir_volume::fence(&directory, volume, vm, floor);
                fenced.map(proof).map_err(|error| refusal(&error))
            });
        }
        if let Some(rbd) = self.made(pool) {
            let (clients, spared) = (request.clients.clone(), request.spared.clone());
            let fence = RbdFence { volume, vm, floor, clients, spared };
            let ceph = self.ceph.clone();
            return Box::new(move || {
                let pool = ceph.open(&rbd).map_err(|error| FenceRefusal(describe(&error)))?;
                fence.carry_out(&pool)
            });
        }
        let text = format!("pool '{pool}' is not configured at the control plane");
        Box::new(move || Err(FenceRefusal(text)))
    }

    /// The Ceph cluster of a pool, as who may blocklist there; `None`: there is no such pool. Blocks.
    pub(crate) fn ceph_of(&self, pool: &Name) -> Option<Result<drover_rbd::Cluster, CephError>> {
        self.made(pool).map(|rbd| self.ceph.connect(&rbd.cluster))
    }
}

fn proof(proof: FenceProof) -> VolumeFence {
    let previous =
        proof.previous.map(|owner| VolumeOwner { vm: owner.vm, node: owner.node, epoch: owner.epoch });
    VolumeFence { volume: proof.volume, epoch: proof.epoch, previous, blocklist: None }
}

fn refusal(error: &LockError) -> FenceRefusal {
    FenceRefusal(describe(error))
}

#[cfg(test)]
mod tests {
    use drover_dir_volume::{Owner, VolumeLock};
    use drover_ids::{NodeId, OwnerEpoch, VmId};
    use drover_reconcile::FenceId;
    use drover_units::Bytes;

    use super::*;

    #[tokio::test]
    async fn a_volume_in_use_is_refused_and_a_free_one_is_fenced_for_good() {
        let directory = tempfile::tempdir().unwrap();
        let name = Name::new("default").unwrap();
        let pools =
            Pools::open([(name.clone(), directory.path().to_owned())].into(), CephClusters::default())
                .unwrap();
        let pool = pools.get(&name).unwrap();
        let (volume, vm) = (VolumeId::from_u128(1), VmId::from_u128(2));
        let owner = Owner { vm, node: NodeId::from_u128(3), epoch: OwnerEpoch::new(1), pid: 4 };
        pool.create_volume(volume, Bytes::mib(1)).unwrap();
        let open =
            || std::fs::OpenOptions::new().read(true).write(true).open(pool.volume_path(volume)).unwrap();
        let file = open();
        let lock = VolumeLock::acquire(&file, &pool.sidecar_path(volume), owner).unwrap();
        let elsewhere = Name::new("elsewhere").unwrap();
        let request = FenceRequest {
            id: FenceId::default(),
            vm,
            volumes: vec![(volume, name.clone()), (volume, elsewhere)],
            min_epoch: OwnerEpoch::new(2),
            clients: BTreeSet::new(),
            spared: BTreeSet::new(),
        };
        let results = pools.fence(request.clone()).await;
        let refusals: Vec<String> = results.iter().map(|(_, result)| result.clone().unwrap_err().0).collect();
        assert!(refusals[0].contains("pid 4"), "{refusals:?}");
        assert!(refusals[1].contains("'elsewhere' is not configured"), "{refusals:?}");

        lock.release();
        drop(file);
        let proof = pools.fence(request).await[0].1.clone().unwrap();
        let previous = Some(VolumeOwner { vm, node: owner.node, epoch: owner.epoch });
        assert_eq!(proof, VolumeFence { volume, epoch: OwnerEpoch::new(2), previous, blocklist: None });
        assert!(VolumeLock::acquire(&open(), &pool.sidecar_path(volume), owner).is_err());
    }
}

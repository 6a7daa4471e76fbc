//! Storage that refuses whom a test says.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use drover_cluster_state::{VolumeFence, VolumeOwner};
use drover_ids::{OwnerEpoch, VolumeId};
use drover_reconcile::{FenceRefusal, FenceRequest};

use crate::Fence;

/// Volumes with holders and epoch floors. Clones are the same storage.
#[derive(Clone, Debug, Default)]
pub struct FakeFence {
    volumes: Arc<Mutex<BTreeMap<VolumeId, FakeVolume>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct FakeVolume {
    holder: Option<VolumeOwner>,
    previous: Option<VolumeOwner>,
    floor: OwnerEpoch,
}

impl FakeFence {
    /// Lets `owner` hold `volume`.
    ///
    /// # Errors
    /// The holder or the floor that is in the way.
    pub fn acquire(&self, volume: VolumeId, owner: VolumeOwner) -> Result<(), FenceRefusal> {
        let mut volumes = self.volumes();
        let volume = volumes.entry(volume).or_default();
        if let Some(holder) = volume.holder {
            return Err(held(holder));
        }
        if owner.epoch < volume.floor {
            return Err(FenceRefusal(format!("epoch {} is below {}", owner.epoch, volume.floor)));
        }
        *volume = FakeVolume { holder: Some(owner), previous: Some(owner), floor: owner.epoch };
        Ok(())
    }

    /// Ends whoever holds `volume`.
    pub fn release(&self, volume: VolumeId) {
        if let Some(volume) = self.volumes().get_mut(&volume) {
            volume.holder = None;
        }
    }

    fn volumes(&self) -> MutexGuard<'_, BTreeMap<VolumeId, FakeVolume>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn held(holder: VolumeOwner) -> FenceRefusal {
    FenceRefusal(format!("held by VM {} on node {} with epoch {}", holder.vm, holder.node, holder.epoch))
}

impl Fence for FakeFence {
    async fn fence(&self, request: FenceRequest) -> Vec<(VolumeId, Result<VolumeFence, FenceRefusal>)> {
        let mut volumes = self.volumes();
        let fence = |(id, _): (VolumeId, _)| {
            let volume = volumes.entry(id).or_default();
            let outcome = match volume.holder {
                Some(holder) => Err(held(holder)),
                None => {
                    volume.floor = volume.floor.max(request.min_epoch);
                    Ok(VolumeFence {
                        volume: id,
                        epoch: volume.floor,
                        previous: volume.previous,
                        blocklist: None,
                    })
                }
            };
            (id, outcome)
        };
        request.volumes.into_iter().map(fence).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use drover_cluster_state::Name;
    use drover_ids::{NodeId, VmId};
    use drover_reconcile::FenceId;

    use super::*;

    #[tokio::test]
    async fn a_held_volume_is_not_fenced_and_a_fenced_one_is_not_held() {
        let (fence, volume, vm) = (FakeFence::default(), VolumeId::from_u128(1), VmId::from_u128(2));
        let owner = |epoch| VolumeOwner { vm, node: NodeId::from_u128(3), epoch: OwnerEpoch::new(epoch) };
        let request = FenceRequest {
            id: FenceId::default(),
            vm,
            volumes: vec![(volume, Name::new("default").unwrap())],
            min_epoch: OwnerEpoch::new(2),
            clients: BTreeSet::new(),
            spared: BTreeSet::new(),
        };
        fence.acquire(volume, owner(1)).unwrap();
        assert!(fence.fence(request.clone()).await[0].1.is_err());
        fence.release(volume);
        let proof = fence.fence(request).await[0].1.clone().unwrap();
        assert_eq!((proof.epoch, proof.previous), (OwnerEpoch::new(2), Some(owner(1))));
        assert!(fence.acquire(volume, owner(1)).is_err());
        assert!(fence.acquire(volume, owner(2)).is_ok());
    }
}

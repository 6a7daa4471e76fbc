//! Fence evidence.

use std::time::Duration;

use drover_cluster_state::{Blocklist, Evidence, VolumeFence, VolumeOwner};
use drover_ids::{NodeId, OwnerEpoch, VmId, VolumeId};
use drover_wire::store::v1 as stored;
use stored::evidence::Proof;

use crate::{
    RecordError, StoredForm,
    fields::{id, id_bytes, millis, required},
};

impl StoredForm for Evidence {
    type Message = stored::Evidence;

    fn to_message(&self) -> stored::Evidence {
        let (node, epoch) = self.subject();
        let proof = match self {
            Self::ProcessDeath { exit, .. } => Proof::ProcessDeath(exit.clone()),
            Self::Stopped { .. } => Proof::Stopped(stored::Empty {}),
            Self::SelfFenceLeaseExpired { silent, volumes, .. } => {
                Proof::LeaseExpired(stored::LeaseExpired {
                    silent_ms: millis(*silent),
                    volumes: volumes.iter().map(StoredForm::to_message).collect(),
                })
            }
            Self::StorageFenced { volumes, .. } => Proof::StorageFenced(stored::StorageFenced {
                volumes: volumes.iter().map(StoredForm::to_message).collect(),
            }),
        };
        stored::Evidence { node_id: id_bytes(node.as_u128()), epoch: epoch.get(), proof: Some(proof) }
    }

    fn from_message(message: stored::Evidence) -> Result<Self, RecordError> {
        let node = id("evidence.node_id", &message.node_id, NodeId::from_u128)?;
        let epoch = OwnerEpoch::new(message.epoch);
        Ok(match required("evidence.proof", message.proof)? {
            Proof::ProcessDeath(exit) => Self::ProcessDeath { node, epoch, exit },
            Proof::Stopped(_) => Self::Stopped { node, epoch },
            Proof::LeaseExpired(expired) => Self::SelfFenceLeaseExpired {
                node,
                epoch,
                silent: Duration::from_millis(expired.silent_ms),
                volumes: fences(expired.volumes)?,
            },
            Proof::StorageFenced(fenced) => {
                Self::StorageFenced { node, epoch, volumes: fences(fenced.volumes)? }
            }
        })
    }
}

fn fences(messages: Vec<stored::VolumeFence>) -> Result<Vec<VolumeFence>, RecordError> {
    messages.into_iter().map(StoredForm::from_message).collect()
}

impl StoredForm for VolumeFence {
    type Message = stored::VolumeFence;

    fn to_message(&self) -> stored::VolumeFence {
        stored::VolumeFence {
            volume_id: id_bytes(self.volume.as_u128()),
            epoch: self.epoch.get(),
            previous: self.previous.as_ref().map(StoredForm::to_message),
            blocklist: self.blocklist.as_ref().map(|blocklist| stored::Blocklist {
                entries: blocklist.entries.iter().cloned().collect(),
                map_epoch: blocklist.map_epoch,
            }),
        }
    }

    fn from_message(message: stored::VolumeFence) -> Result<Self, RecordError> {
        Ok(Self {
            volume: id("volume_fence.volume_id", &message.volume_id, VolumeId::from_u128)?,
            epoch: OwnerEpoch::new(message.epoch),
            previous: message.previous.map(StoredForm::from_message).transpose()?,
            blocklist: message.blocklist.map(|blocklist| Blocklist {
                entries: blocklist.entries.into_iter().collect(),
                map_epoch: blocklist.map_epoch,
            }),
        })
    }
}

impl StoredForm for VolumeOwner {
    type Message = stored::VolumeOwner;

    fn to_message(&self) -> stored::VolumeOwner {
        stored::VolumeOwner {
            vm_id: id_bytes(self.vm.as_u128()),
            node_id: id_bytes(self.node.as_u128()),
            epoch: self.epoch.get(),
        }
    }

    fn from_message(message: stored::VolumeOwner) -> Result<Self, RecordError> {
        Ok(Self {
            vm: id("volume_owner.vm_id", &message.vm_id, VmId::from_u128)?,
            node: id("volume_owner.node_id", &message.node_id, NodeId::from_u128)?,
            epoch: OwnerEpoch::new(message.epoch),
        })
    }
}

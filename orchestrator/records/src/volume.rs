//! Volumes.

use std::time::Duration;

use drover_cluster_state::{
    Hold, Snapshot, SnapshotState, VmSnapshot, Volume, VolumeParent, VolumeState, WallTime,
};
use drover_ids::{OperationId, SnapshotId, VmId, VolumeId};
use drover_units::Bytes;
use drover_wire::store::v1 as stored;

use crate::{
    RecordError, StoredForm,
    fields::{digest, id, id_bytes, invalid, micros, name, optional_id, required},
};

impl StoredForm for Volume {
    type Message = stored::Volume;

    fn to_message(&self) -> stored::Volume {
        let state = match self.state {
            VolumeState::Creating => stored::VolumeState::Creating,
            VolumeState::Ready => stored::VolumeState::Ready,
            VolumeState::Deleting => stored::VolumeState::Deleting,
        };
        stored::Volume {
            id: id_bytes(self.id.as_u128()),
            name: self.name.to_string(),
            pool: self.pool.to_string(),
            size_bytes: self.size.get(),
            state: state.into(),
            attached_vm_id: self.attached.map(|vm| id_bytes(vm.as_u128())).unwrap_or_default(),
            parent: self.parent.as_ref().map(StoredForm::to_message),
            snapshots: self.snapshots.iter().map(StoredForm::to_message).collect(),
            operation_id: self.operation.map(|id| id_bytes(id.as_u128())).unwrap_or_default(),
            created_at_ms: self.created_at.as_unix_millis(),
        }
    }

    fn from_message(message: stored::Volume) -> Result<Self, RecordError> {
        let state = match message.state() {
            stored::VolumeState::Creating => VolumeState::Creating,
            stored::VolumeState::Ready => VolumeState::Ready,
            stored::VolumeState::Deleting => VolumeState::Deleting,
            stored::VolumeState::Unspecified => return Err(invalid("volume.state", message.state)),
        };
        Ok(Self {
            id: id("volume.id", &message.id, VolumeId::from_u128)?,
            name: name("volume.name", &message.name)?,
            pool: name("volume.pool", &message.pool)?,
            size: Bytes::new(message.size_bytes),
            state,
            attached: optional_id("volume.attached_vm_id", &message.attached_vm_id, VmId::from_u128)?,
            parent: message.parent.map(StoredForm::from_message).transpose()?,
            snapshots: message
                .snapshots
                .into_iter()
                .map(StoredForm::from_message)
                .collect::<Result<_, _>>()?,
            operation: optional_id("volume.operation_id", &message.operation_id, OperationId::from_u128)?,
            created_at: WallTime::from_unix_millis(message.created_at_ms),
        })
    }
}

impl StoredForm for VolumeParent {
    type Message = stored::VolumeParent;

    fn to_message(&self) -> stored::VolumeParent {
        use stored::volume_parent::Parent;
        let parent = match self {
            Self::Image(digest) => Parent::ImageDigest(digest.as_bytes().to_vec()),
            Self::Snapshot { volume, snapshot } => Parent::Snapshot(stored::SnapshotRef {
                volume_id: id_bytes(volume.as_u128()),
                snapshot_id: id_bytes(snapshot.as_u128()),
            }),
        };
        stored::VolumeParent { parent: Some(parent) }
    }

    fn from_message(message: stored::VolumeParent) -> Result<Self, RecordError> {
        use stored::volume_parent::Parent;
        Ok(match required("volume.parent", message.parent)? {
            Parent::ImageDigest(bytes) => Self::Image(digest("volume.parent.image_digest", &bytes)?),
            Parent::Snapshot(of) => Self::Snapshot {
                volume: id("volume.parent.volume_id", &of.volume_id, VolumeId::from_u128)?,
                snapshot: id("volume.parent.snapshot_id", &of.snapshot_id, SnapshotId::from_u128)?,
            },
        })
    }
}

impl StoredForm for Snapshot {
    type Message = stored::Snapshot;

    fn to_message(&self) -> stored::Snapshot {
        let state = match self.state {
            SnapshotState::Creating => stored::SnapshotState::Creating,
            SnapshotState::Ready => stored::SnapshotState::Ready,
            SnapshotState::Deleting => stored::SnapshotState::Deleting,
        };
        stored::Snapshot {
            id: id_bytes(self.id.as_u128()),
            name: self.name.to_string(),
            size_bytes: self.size.get(),
            is_protected: self.protected,
            state: state.into(),
            created_at_ms: self.created_at.as_unix_millis(),
            part_of: self.part_of.as_ref().map(StoredForm::to_message),
        }
    }

    fn from_message(message: stored::Snapshot) -> Result<Self, RecordError> {
        let state = match message.state() {
            stored::SnapshotState::Creating => SnapshotState::Creating,
            stored::SnapshotState::Ready => SnapshotState::Ready,
            stored::SnapshotState::Deleting => SnapshotState::Deleting,
            stored::SnapshotState::Unspecified => return Err(invalid("snapshot.state", message.state)),
        };
        Ok(Self {
            id: id("snapshot.id", &message.id, SnapshotId::from_u128)?,
            name: name("snapshot.name", &message.name)?,
            size: Bytes::new(message.size_bytes),
            protected: message.is_protected,
            state,
            created_at: WallTime::from_unix_millis(message.created_at_ms),
            part_of: message.part_of.map(StoredForm::from_message).transpose()?,
        })
    }
}

impl StoredForm for VmSnapshot {
    type Message = stored::VmSnapshot;

    fn to_message(&self) -> stored::VmSnapshot {
        stored::VmSnapshot {
            vm_id: id_bytes(self.vm.as_u128()),
            volumes: self.volumes,
            hold: self.hold.as_ref().map(StoredForm::to_message),
        }
    }

    fn from_message(message: stored::VmSnapshot) -> Result<Self, RecordError> {
        Ok(Self {
            vm: id("vm_snapshot.vm_id", &message.vm_id, VmId::from_u128)?,
            volumes: message.volumes,
            hold: message.hold.map(StoredForm::from_message).transpose()?,
        })
    }
}

impl StoredForm for Hold {
    type Message = stored::Hold;

    fn to_message(&self) -> stored::Hold {
        stored::Hold { drained_us: micros(self.drained), lasted_us: micros(self.lasted) }
    }

    fn from_message(message: stored::Hold) -> Result<Self, RecordError> {
        Ok(Self {
            drained: Duration::from_micros(message.drained_us),
            lasted: Duration::from_micros(message.lasted_us),
        })
    }
}

//! Volumes.

use drover_cluster_state::{Volume, VolumeState, WallTime};
use drover_ids::{VmId, VolumeId};
use drover_units::Bytes;
use drover_wire::store::v1 as stored;

use crate::{
    RecordError, StoredForm,
    fields::{id, id_bytes, invalid, name, optional_id},
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
            created_at: WallTime::from_unix_millis(message.created_at_ms),
        })
    }
}

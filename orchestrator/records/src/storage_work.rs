//! What is needed to take up work on storage again.

use drover_cluster_state::{CloneSource, StorageWork};
use drover_ids::{SnapshotId, VolumeId};
use drover_units::Bytes;
use drover_wire::store::v1 as stored;
use stored::{operation_kind::Kind, volume_clone::Source};

use crate::{
    RecordError, StoredForm,
    fields::{digest, id, id_bytes, invalid, name, required},
};

pub(crate) fn to_kind(work: &StorageWork) -> Kind {
    let empty = stored::Empty {};
    let snapshot_work =
        |snapshot: &SnapshotId| stored::SnapshotWork { snapshot_id: id_bytes(snapshot.as_u128()) };
    match work {
        StorageWork::PoolCreate => Kind::PoolCreate(empty),
        StorageWork::PoolDelete => Kind::PoolDelete(empty),
        StorageWork::VolumeClone(source) => Kind::VolumeClone(source.to_message()),
        StorageWork::VolumeResize { size } => {
            Kind::VolumeResize(stored::VolumeResize { size_bytes: size.get() })
        }
        StorageWork::VolumeFlatten => Kind::VolumeFlatten(empty),
        StorageWork::VolumeDelete => Kind::VolumeDelete(empty),
        StorageWork::SnapshotCreate { snapshot } => Kind::SnapshotCreate(snapshot_work(snapshot)),
        StorageWork::SnapshotProtect { snapshot, protect } => {
            Kind::SnapshotProtect(stored::SnapshotProtect {
                snapshot_id: id_bytes(snapshot.as_u128()),
                protect: *protect,
            })
        }
        StorageWork::SnapshotRollback { snapshot } => Kind::SnapshotRollback(snapshot_work(snapshot)),
        StorageWork::SnapshotDelete { snapshot } => Kind::SnapshotDelete(snapshot_work(snapshot)),
        StorageWork::VmSnapshotCreate { snapshot } => Kind::VmSnapshotCreate(snapshot_work(snapshot)),
        StorageWork::VmSnapshotRollback { snapshot } => Kind::VmSnapshotRollback(snapshot_work(snapshot)),
        StorageWork::VmSnapshotDelete { snapshot } => Kind::VmSnapshotDelete(snapshot_work(snapshot)),
        StorageWork::ImageDelete => Kind::ImageDelete(empty),
        StorageWork::DiskImageImport => Kind::DiskImageImport(empty),
        StorageWork::DiskImageCopy => Kind::DiskImageCopy(empty),
        StorageWork::DiskImageDelete => Kind::DiskImageDelete(empty),
    }
}

pub(crate) fn from_kind(kind: &Kind) -> Result<StorageWork, RecordError> {
    let snapshot = |bytes: &[u8]| id("operation.snapshot_id", bytes, SnapshotId::from_u128);
    Ok(match kind {
        Kind::PoolCreate(_) => StorageWork::PoolCreate,
        Kind::PoolDelete(_) => StorageWork::PoolDelete,
        Kind::VolumeClone(clone) => StorageWork::VolumeClone(StoredForm::from_message(clone.clone())?),
        Kind::VolumeResize(resize) => StorageWork::VolumeResize { size: Bytes::new(resize.size_bytes) },
        Kind::VolumeFlatten(_) => StorageWork::VolumeFlatten,
        Kind::VolumeDelete(_) => StorageWork::VolumeDelete,
        Kind::SnapshotCreate(work) => StorageWork::SnapshotCreate { snapshot: snapshot(&work.snapshot_id)? },
        Kind::SnapshotProtect(work) => {
            StorageWork::SnapshotProtect { snapshot: snapshot(&work.snapshot_id)?, protect: work.protect }
        }
        Kind::SnapshotRollback(work) => {
            StorageWork::SnapshotRollback { snapshot: snapshot(&work.snapshot_id)? }
        }
        Kind::SnapshotDelete(work) => StorageWork::SnapshotDelete { snapshot: snapshot(&work.snapshot_id)? },
        Kind::VmSnapshotCreate(work) => {
            StorageWork::VmSnapshotCreate { snapshot: snapshot(&work.snapshot_id)? }
        }
        Kind::VmSnapshotRollback(work) => {
            StorageWork::VmSnapshotRollback { snapshot: snapshot(&work.snapshot_id)? }
        }
        Kind::VmSnapshotDelete(work) => {
            StorageWork::VmSnapshotDelete { snapshot: snapshot(&work.snapshot_id)? }
        }
        Kind::ImageDelete(_) => StorageWork::ImageDelete,
        Kind::DiskImageImport(_) => StorageWork::DiskImageImport,
        Kind::DiskImageCopy(_) => StorageWork::DiskImageCopy,
        Kind::DiskImageDelete(_) => StorageWork::DiskImageDelete,
        _ => return Err(invalid("operation.kind", "it is not work on storage")),
    })
}

impl StoredForm for CloneSource {
    type Message = stored::VolumeClone;

    fn to_message(&self) -> stored::VolumeClone {
        let source = match self {
            Self::Image { pool, digest } => Source::Image(stored::CloneOfImage {
                pool: pool.to_string(),
                digest: digest.as_bytes().to_vec(),
            }),
            Self::Snapshot { pool, volume, snapshot } => Source::Snapshot(stored::CloneOfSnapshot {
                pool: pool.to_string(),
                volume_id: id_bytes(volume.as_u128()),
                snapshot_id: id_bytes(snapshot.as_u128()),
            }),
        };
        stored::VolumeClone { source: Some(source) }
    }

    fn from_message(message: stored::VolumeClone) -> Result<Self, RecordError> {
        Ok(match required("volume_clone.source", message.source)? {
            Source::Image(image) => Self::Image {
                pool: name("volume_clone.pool", &image.pool)?,
                digest: digest("volume_clone.digest", &image.digest)?,
            },
            Source::Snapshot(of) => Self::Snapshot {
                pool: name("volume_clone.pool", &of.pool)?,
                volume: id("volume_clone.volume_id", &of.volume_id, VolumeId::from_u128)?,
                snapshot: id("volume_clone.snapshot_id", &of.snapshot_id, SnapshotId::from_u128)?,
            },
        })
    }
}

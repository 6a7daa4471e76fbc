//! Long work on storage. What is needed to do it is in here and in the record it works on, so that a control plane that
//! has been restarted takes it up where its predecessor was killed.

use drover_ids::{ImageDigest, SnapshotId, VolumeId};
use drover_units::Bytes;

use crate::Name;

/// What a clone is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloneSource {
    /// A disk image's object.
    Image {
        /// The pool it is in.
        pool: Name,
        /// Which object.
        digest: ImageDigest,
    },
    /// A volume at some moment.
    Snapshot {
        /// The pool it is in.
        pool: Name,
        /// The volume.
        volume: VolumeId,
        /// The moment.
        snapshot: SnapshotId,
    },
}

impl CloneSource {
    /// The pool it is in.
    pub fn pool(&self) -> &Name {
        match self {
            Self::Image { pool, .. } | Self::Snapshot { pool, .. } => pool,
        }
    }
}

/// One piece of work. Each is idempotent: done twice, it has been done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorageWork {
    /// Make a pool usable.
    PoolCreate,
    /// Forget a pool.
    PoolDelete,
    /// Fill a new volume.
    VolumeClone(CloneSource),
    /// Make a volume larger.
    VolumeResize {
        /// What it is to have.
        size: Bytes,
    },
    /// Make a volume independent of what it was cloned from.
    VolumeFlatten,
    /// Remove a volume.
    VolumeDelete,
    /// Keep a volume's present content.
    SnapshotCreate {
        /// Under this id.
        snapshot: SnapshotId,
    },
    /// Keep a snapshot from being deleted, or stop doing so.
    SnapshotProtect {
        /// Which.
        snapshot: SnapshotId,
        /// Keep it.
        protect: bool,
    },
    /// Give a volume the content it had.
    SnapshotRollback {
        /// Then.
        snapshot: SnapshotId,
    },
    /// Remove a snapshot.
    SnapshotDelete {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Keep the present content of every writable volume of a VM, all of one moment. The volumes' records name the
    /// operation.
    VmSnapshotCreate {
        /// Under this id, in each.
        snapshot: SnapshotId,
    },
    /// Give the volumes of a VM the content they had.
    VmSnapshotRollback {
        /// Then.
        snapshot: SnapshotId,
    },
    /// Remove a VM's snapshot from its volumes.
    VmSnapshotDelete {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Remove a boot image. Done when it is accepted: kept so that a repetition is recognised.
    ImageDelete,
    /// Fill a disk image from a file.
    DiskImageImport,
    /// Fill a disk image from another one.
    DiskImageCopy,
    /// Remove a disk image.
    DiskImageDelete,
}

impl StorageWork {
    /// The name of [`VolumeClone`](Self::VolumeClone).
    pub const VOLUME_CLONE: &str = "volume.clone";

    /// The stable name: "volume.resize".
    pub fn name(&self) -> &'static str {
        match self {
            Self::PoolCreate => "pool.create",
            Self::PoolDelete => "pool.delete",
            Self::VolumeClone(_) => Self::VOLUME_CLONE,
            Self::VolumeResize { .. } => "volume.resize",
            Self::VolumeFlatten => "volume.flatten",
            Self::VolumeDelete => "volume.delete",
            Self::SnapshotCreate { .. } => "snapshot.create",
            Self::SnapshotProtect { .. } => "snapshot.protect",
            Self::SnapshotRollback { .. } => "snapshot.rollback",
            Self::SnapshotDelete { .. } => "snapshot.delete",
            Self::VmSnapshotCreate { .. } => "vm.snapshot.create",
            Self::VmSnapshotRollback { .. } => "vm.snapshot.rollback",
            Self::VmSnapshotDelete { .. } => "vm.snapshot.delete",
            Self::ImageDelete => "image.delete",
            Self::DiskImageImport => "disk-image.import",
            Self::DiskImageCopy => "disk-image.copy",
            Self::DiskImageDelete => "disk-image.delete",
        }
    }

    /// Whether a client can take it back. The rest is short, or leaves nothing to go back to.
    pub fn can_be_cancelled(&self) -> bool {
        matches!(
            self,
            Self::VolumeClone(_) | Self::VolumeFlatten | Self::DiskImageImport | Self::DiskImageCopy
        )
    }
}

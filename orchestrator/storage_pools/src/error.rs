//! Why storage did not do as asked.

use std::error::Error;

use drover_ids::{ImageDigest, SnapshotId, VolumeId};
use drover_units::{Bytes, SECTOR_SIZE};

/// The cause of a failure, whatever the kind of pool.
pub type Cause = Box<dyn Error + Send + Sync>;

/// Why a pool did not do as asked. Unless the variant says otherwise, nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// There is no such volume.
    #[error("volume {0} is not in the pool")]
    NoSuchVolume(VolumeId),
    /// There is no such snapshot.
    #[error("volume {volume} has no snapshot {snapshot}")]
    NoSuchSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// There is no such image, or it is not complete.
    #[error("image {0} is not in the pool")]
    NoSuchImage(ImageDigest),
    /// Something with this identity is there already, and is not what was asked for.
    #[error("{0} exists already")]
    Exists(String),
    /// A size that no disk can have.
    #[error("{} bytes is not a positive multiple of {SECTOR_SIZE}", .0.get())]
    Size(Bytes),
    /// Less than it has.
    #[error("it has {from}, which is more than {to}: disks are not made smaller")]
    Shrink {
        /// What it has.
        from: Bytes,
        /// What it was to have.
        to: Bytes,
    },
    /// Somebody uses the volume.
    #[error("volume {volume} is in use")]
    InUse {
        /// The volume.
        volume: VolumeId,
        /// By whom.
        #[source]
        source: Cause,
    },
    /// Clones of it need it.
    #[error("{0} is needed by its clones")]
    HasClones(String),
    /// Snapshots would be lost.
    #[error("volume {volume} has {snapshots} snapshot(s)")]
    HasSnapshots {
        /// The volume.
        volume: VolumeId,
        /// How many.
        snapshots: usize,
    },
    /// It is protected.
    #[error("snapshot {0} is protected")]
    Protected(SnapshotId),
    /// No room. What was being filled is incomplete.
    #[error("cannot {action}: the storage is full")]
    Full {
        /// What was tried.
        action: String,
        /// What the storage said.
        #[source]
        source: Cause,
    },
    /// Somebody took the work back. What was being filled is incomplete.
    #[error("cancelled")]
    Cancelled,
    /// This kind of pool, or this pool, cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// The storage failed, or cannot be reached: it may have been done or not.
    #[error("cannot {action}")]
    Failed {
        /// What was tried.
        action: String,
        /// What the storage said.
        #[source]
        source: Cause,
    },
}

impl StorageError {
    /// A failure of the storage, told apart from a storage that is full.
    pub(crate) fn io(action: impl Into<String>, source: std::io::Error) -> Self {
        let action = action.into();
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::Full { action, source: source.into() }
            }
            _ => Self::Failed { action, source: source.into() },
        }
    }
}

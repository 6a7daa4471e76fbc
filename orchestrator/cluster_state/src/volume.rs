//! Volumes and boot images.

use std::time::Duration;

use drover_ids::{ImageDigest, OperationId, SnapshotId, VmId, VolumeId};
use drover_units::Bytes;

use crate::{Name, WallTime};

/// Whether a volume's bytes are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// Its file is being made or filled. Cannot be attached.
    Creating,
    /// Usable.
    Ready,
    /// Its file is being removed. Cannot be attached.
    Deleting,
}

/// Whether a snapshot can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotState {
    /// It is being taken.
    Creating,
    /// Usable.
    Ready,
    /// It is being removed.
    Deleting,
}

/// A volume's content at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its identity.
    pub id: SnapshotId,
    /// Unique among the volume's snapshots.
    pub name: Name,
    /// The volume's size then.
    pub size: Bytes,
    /// Whether somebody wants it kept.
    pub protected: bool,
    /// Whether it can be used.
    pub state: SnapshotState,
    /// When it was asked for.
    pub created_at: WallTime,
    /// The snapshot of a whole VM that it is a part of. `None`: it stands for itself.
    pub part_of: Option<VmSnapshot>,
}

/// All writable volumes of a VM at one moment. Its parts are snapshots of these, one of each, with one id and one name
/// between them; it is as ready as all of them are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSnapshot {
    /// Whose. It may be gone.
    pub vm: VmId,
    /// How many parts it was made of.
    pub volumes: u32,
    /// How the VM was held meanwhile. `None`: it did not run.
    pub hold: Option<Hold>,
}

/// How a VM's disks were held for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Until every request under way had been finished.
    pub drained: Duration,
    /// From the first request that had to wait until the machine went on.
    pub lasted: Duration,
}

/// What a clone still needs: blocks that it has not written are read from there. In the same pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeParent {
    /// A disk image's object.
    Image(ImageDigest),
    /// A volume's snapshot.
    Snapshot {
        /// The volume.
        volume: VolumeId,
        /// Its snapshot.
        snapshot: SnapshotId,
    },
}

/// A volume, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its identity.
    pub id: VolumeId,
    /// Unique among volumes.
    pub name: Name,
    /// Where its bytes are.
    pub pool: Name,
    /// A multiple of a sector.
    pub size: Bytes,
    /// Whether its bytes are there.
    pub state: VolumeState,
    /// The VM it belongs to, running or not.
    pub attached: Option<VmId>,
    /// What it needs to be kept.
    pub parent: Option<VolumeParent>,
    /// Oldest first.
    pub snapshots: Vec<Snapshot>,
    /// What works on it.
    pub operation: Option<OperationId>,
    /// When it was created.
    pub created_at: WallTime,
}

impl Volume {
    /// One that is still to be made.
    pub fn new(id: VolumeId, name: Name, pool: Name, size: Bytes, created_at: WallTime) -> Self {
        let state = VolumeState::Creating;
        let (attached, parent, operation) = (None, None, None);
        Self { id, name, pool, size, state, attached, parent, snapshots: Vec::new(), operation, created_at }
    }

    /// Its snapshot with this id.
    pub fn snapshot(&self, id: SnapshotId) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.id == id)
    }
}

/// A boot image (ELF kernel with a PVH entry), as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Unique among images.
    pub name: Name,
    /// Where its bytes are.
    pub pool: Name,
    /// Size of the file.
    pub size: Bytes,
    /// SHA-256 of the file, hex.
    pub sha256: String,
    /// The least memory a VM needs to load it.
    pub min_memory: Bytes,
    /// When it was imported.
    pub created_at: WallTime,
}

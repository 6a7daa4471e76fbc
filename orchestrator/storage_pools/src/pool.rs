//! What every pool can do.

use std::{fmt, ops::Range};

use drover_ids::{ImageDigest, SnapshotId, VolumeId};
use drover_units::{Bytes, SECTOR_SIZE};

use crate::StorageError;

/// What a call gives back.
pub type Result<T, E = StorageError> = std::result::Result<T, E>;

/// What a pool can do beyond holding volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// A clone is made at once, whatever its size.
    pub instant_clone: bool,
    /// A clone needs what it was made of until it is flattened.
    pub clones_need_source: bool,
    /// A volume can be snapshotted while somebody writes it.
    pub online_snapshot: bool,
}

/// Room in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUsage {
    /// All there is, shared with whatever else the storage holds. `None`: the storage does not say.
    pub capacity: Option<Bytes>,
    /// What is left of it.
    pub available: Option<Bytes>,
    /// What the pool's own content takes. `None`: the storage does not say.
    pub used: Option<Bytes>,
}

/// Room of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeUsage {
    /// The size of the disk.
    pub size: Bytes,
    /// What it takes, its snapshots not counted. `None`: the storage cannot say quickly.
    pub used: Option<Bytes>,
}

/// A snapshot, as the storage knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its identity.
    pub id: SnapshotId,
    /// The volume's size then.
    pub size: Bytes,
    /// Whether the storage keeps it from being deleted.
    pub protected: bool,
}

/// Something that never changes, to make a clone or a copy of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A complete disk image.
    Image(ImageDigest),
    /// A volume's snapshot.
    Snapshot {
        /// The volume.
        volume: VolumeId,
        /// Its snapshot.
        snapshot: SnapshotId,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(digest) => write!(f, "image {digest}"),
            Self::Snapshot { volume, snapshot } => write!(f, "snapshot {snapshot} of volume {volume}"),
        }
    }
}

/// Something to be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A new volume.
    Volume(VolumeId),
    /// A new disk image.
    Image(ImageDigest),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(digest) => write!(f, "image {digest}"),
            Self::Volume(volume) => write!(f, "volume {volume}"),
        }
    }
}

/// Whoever waits for long work. Called from the thread that does it, often: both must be quick.
pub trait Observer {
    /// So much is done.
    fn progress(&self, done: Bytes, total: Bytes);
    /// Whether the work is to be given up.
    fn is_cancelled(&self) -> bool;
}

/// Nobody waits.
#[derive(Clone, Copy, Debug)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn progress(&self, _: Bytes, _: Bytes) {}
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// The bytes of a [`Source`].
pub trait DiskReader: Send {
    /// How many there are.
    fn size(&self) -> Bytes;
    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// What the storage says; a range that does not lie within the disk.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()>;
    /// The next range at or after `offset` that may hold something else than zeros; `None`: only zeros follow.
    ///
    /// # Errors
    /// What the storage says.
    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>>;
}

/// A disk that is being filled. It reads as zeros where nothing has been written. Dropping it leaves it incomplete:
/// [`StoragePool::begin`] takes it up again, and the target's deletion removes it.
pub trait DiskWriter: Send {
    /// Writes, from `offset` on. Runs of zeros may be left out by the caller.
    ///
    /// # Errors
    /// What the storage says; a range that does not lie within the disk.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;
    /// Reads what has been written.
    ///
    /// # Errors
    /// As [`write_at`](DiskWriter::write_at).
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()>;
    /// Everything written so far survives a crash once this returns.
    ///
    /// # Errors
    /// What the storage says.
    fn sync(&mut self) -> Result<()>;
    /// Makes it complete, durably.
    ///
    /// # Errors
    /// What the storage says; [`StorageError::Exists`] where a complete one has appeared meanwhile.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// A snapshot that can be taken at once. Dropped without that, it leaves nothing.
pub trait PreparedSnapshot: Send {
    /// As [`StoragePool::create_snapshot`], of this moment.
    ///
    /// # Errors
    /// As there. It may have been taken nevertheless.
    fn take(self: Box<Self>) -> Result<()>;
}

/// A place for disks.
///
/// **Contract.** Every call blocks until the storage has answered and may take as long as that; none is made from an
/// async thread. Callers keep to one change at a time of a volume, snapshot or image (the control plane's records do),
/// while reads may come at any time. Everything is **idempotent**: repeated after a crash at any instant, with the same
/// arguments, a call finishes what it had begun, and deleting what is not there is done. What is `Ok` survives a crash
/// of the host. Identities are the caller's; no name that people give reaches a pool.
///
/// What a pool never does: decide who may write a volume (the ownership protocols do), or know VMs.
pub trait StoragePool: fmt::Debug + Send + Sync {
    /// What it can do. Does not change while it is open.
    fn capabilities(&self) -> Capabilities;

    /// Room in it.
    ///
    /// # Errors
    /// [`StorageError::Failed`] where it cannot be reached.
    fn usage(&self) -> Result<PoolUsage>;

    /// Makes a volume that reads as zeros. It takes no room until it is written.
    ///
    /// # Errors
    /// [`StorageError::Size`], [`StorageError::Exists`] where it is there with another size.
    fn create_volume(&self, volume: VolumeId, size: Bytes) -> Result<()>;

    /// Makes a volume of `size` bytes that begins with the content of `source`.
    ///
    /// # Errors
    /// [`StorageError::NoSuchImage`], [`StorageError::NoSuchSnapshot`]; [`StorageError::Shrink`] where the source has
    /// more than `size`.
    fn clone_volume(
        &self,
        volume: VolumeId,
        source: Source,
        size: Bytes,
        observer: &dyn Observer,
    ) -> Result<()>;

    /// Makes a volume larger, in use or not. Whoever has it open can tell.
    ///
    /// # Errors
    /// [`StorageError::Shrink`].
    fn grow_volume(&self, volume: VolumeId, size: Bytes) -> Result<()>;

    /// Makes a clone independent of its source, in use or not.
    ///
    /// # Errors
    /// What the storage says. Incomplete work is no harm: the clone reads the same.
    fn flatten_volume(&self, volume: VolumeId, observer: &dyn Observer) -> Result<()>;

    /// Size and room of a volume.
    ///
    /// # Errors
    /// [`StorageError::NoSuchVolume`].
    fn volume_usage(&self, volume: VolumeId) -> Result<VolumeUsage>;

    /// Deletes a volume, complete or not.
    ///
    /// # Errors
    /// [`StorageError::InUse`] while somebody has it open for writing, [`StorageError::HasSnapshots`].
    fn delete_volume(&self, volume: VolumeId, observer: &dyn Observer) -> Result<()>;

    /// Keeps a volume's present content: what a machine would find on the disk after the power had failed now.
    ///
    /// # Errors
    /// [`StorageError::InUse`] where the pool cannot do that while somebody writes.
    fn create_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<()>;

    /// Gets everything ready to keep a volume's content, so that keeping it takes as little time as the storage can: a
    /// guest may stand still meanwhile. A snapshot of this id that is there already is of another moment, and is
    /// deleted. Nothing is kept before [`PreparedSnapshot::take`].
    ///
    /// # Errors
    /// [`StorageError::Protected`], [`StorageError::HasClones`] where one is there that cannot be deleted.
    fn prepare_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<Box<dyn PreparedSnapshot>>;

    /// The snapshots of a volume, by id.
    ///
    /// # Errors
    /// [`StorageError::NoSuchVolume`].
    fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotInfo>>;

    /// Has the storage keep a snapshot from being deleted, by whatever means people have, or stop doing so.
    ///
    /// # Errors
    /// [`StorageError::NoSuchSnapshot`], [`StorageError::HasClones`] where clones need the protection.
    fn protect_snapshot(&self, volume: VolumeId, snapshot: SnapshotId, protect: bool) -> Result<()>;

    /// Gives a volume, its size included, what it was when the snapshot was made. The snapshot stays.
    ///
    /// # Errors
    /// [`StorageError::InUse`] while somebody has it open for writing. An interrupted one must be repeated.
    fn rollback(&self, volume: VolumeId, snapshot: SnapshotId, observer: &dyn Observer) -> Result<()>;

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// [`StorageError::Protected`], [`StorageError::HasClones`].
    fn delete_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<()>;

    /// The size of a complete disk image; `None` where there is none.
    ///
    /// # Errors
    /// What the storage says.
    fn image(&self, image: ImageDigest) -> Result<Option<Bytes>>;

    /// Deletes a disk image, complete or not.
    ///
    /// # Errors
    /// [`StorageError::HasClones`].
    fn delete_image(&self, image: ImageDigest, observer: &dyn Observer) -> Result<()>;

    /// Begins to fill a target, or goes on with one that is incomplete: it then holds what was written before.
    ///
    /// # Errors
    /// [`StorageError::Size`], [`StorageError::Exists`] where it is complete.
    fn begin(&self, target: Target, size: Bytes) -> Result<Box<dyn DiskWriter>>;

    /// Opens something to be copied.
    ///
    /// # Errors
    /// [`StorageError::NoSuchImage`], [`StorageError::NoSuchSnapshot`].
    fn open(&self, source: Source) -> Result<Box<dyn DiskReader>>;

    /// Every volume and image, complete or not: to find what no record knows.
    ///
    /// # Errors
    /// What the storage says.
    fn list(&self) -> Result<Vec<Target>>;
}

/// Refuses what is no size of a disk.
pub(crate) fn check_size(size: Bytes) -> Result<()> {
    if size == Bytes::ZERO || !size.get().is_multiple_of(SECTOR_SIZE) {
        Err(StorageError::Size(size))
    } else {
        Ok(())
    }
}

//! Volumes and boot images.

use drover_ids::{VmId, VolumeId};
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
    /// When it was created.
    pub created_at: WallTime,
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

//! Disk images: what volumes are cloned from.

use drover_ids::{ImageDigest, OperationId};
use drover_units::Bytes;

use crate::{Name, WallTime};

/// How an image's file says what is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// The disk's bytes.
    Raw,
    /// QEMU's format, version 2 or 3, without a backing file.
    Qcow2,
}

/// Where an image's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// A client sends them.
    Upload,
    /// The control plane fetches them. May hold credentials: it is shown without them, and forgotten once it has been
    /// used.
    Url(String),
    /// Another image's.
    Copy(Name),
}

/// Whether an image can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskImageState {
    /// Its bytes are on their way.
    Importing,
    /// Volumes can be cloned from it.
    Ready,
    /// It is being removed.
    Deleting,
}

/// A disk image, as stored. Images with the same digest in the same pool share one object there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskImage {
    /// Unique among images, boot images included.
    pub name: Name,
    /// Where the object is.
    pub pool: Name,
    /// Of the file it was made from; names the object.
    pub digest: ImageDigest,
    /// Size of the file it was made from. Zero: not known yet.
    pub file_size: Bytes,
    /// Size of the disk. Zero: not known yet.
    pub size: Bytes,
    /// The file's format. `None`: its first bytes will tell.
    pub format: Option<ImageFormat>,
    /// Where the bytes come from.
    pub source: ImageSource,
    /// Bytes of the file that will not have to be sent again.
    pub received: Bytes,
    /// Whether it can be used.
    pub state: DiskImageState,
    /// What works on it.
    pub operation: Option<OperationId>,
    /// When it was created.
    pub created_at: WallTime,
}

//! What can go wrong, by who must hear of it: the guest, the machine, or whoever opened the image.

use std::{error::Error, io, path::PathBuf};

use drover_dir_volume::{LockError, Owner, Refusal};
use drover_ids::OwnerEpoch;
use drover_units::{Bytes, Sectors};

use crate::Operation;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The request leaves the disk.
    #[error("{length} at sector {} is outside a disk of {capacity}", .sector.get())]
    OutOfRange {
        /// First sector asked for.
        sector: Sectors,
        /// How much.
        length: Bytes,
        /// The disk's size.
        capacity: Sectors,
    },
    /// The length is not a whole number of blocks.
    #[error("{} bytes are not a whole number of blocks of {block_size}", .length.get())]
    Unaligned {
        /// How much was asked for.
        length: Bytes,
        /// The disk's block size.
        block_size: Bytes,
    },
    /// The request has more segments than the backend takes at once.
    #[error("{segments} segments are more than the {max} that this disk takes at once")]
    TooManySegments {
        /// How many it has.
        segments: usize,
        /// [`BackendInfo::segments_max`](crate::BackendInfo::segments_max).
        max: u16,
    },
    /// The range is longer than the backend takes at once.
    #[error("{} sectors are more than the {} that this disk takes at once", .sectors.get(), .max.get())]
    TooLong {
        /// How many were asked for.
        sectors: Sectors,
        /// [`RangeLimits::sectors_max`](crate::RangeLimits::sectors_max).
        max: Sectors,
    },
    /// The backend has not offered this kind of request.
    #[error("the storage does not {operation} this disk")]
    NotOffered {
        /// What was asked for.
        operation: Operation,
    },
    /// A write to a disk that was opened for reading.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The image is not acquired. The caller has a bug, or lost a race with a release: never told to the guest.
    #[error("the disk is not owned by this process at the moment")]
    NotOwner,
    /// Another owner has been put in our place. The VM must stop at once; never told to the guest.
    #[error("the disk belongs to a newer owner: this one has been fenced")]
    Fenced,
    /// The storage failed. The guest is told.
    #[error("cannot {operation} the disk")]
    Io {
        /// What was tried.
        operation: Operation,
        /// The storage's answer.
        #[source]
        source: io::Error,
    },
}

impl BlockError {
    /// Whether this process has no right to the disk (any more), so that the VM must stop instead of seeing an I/O
    /// error: a guest would take one for a broken disk, and remount read-only or lose data.
    pub fn is_loss_of_ownership(&self) -> bool {
        matches!(self, Self::NotOwner | Self::Fenced)
    }
}

/// Why an image could not be acquired or released. The ownership is as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnershipError {
    /// Somebody else has it.
    #[error("the disk is in use by {}", match .owner { Some(owner) => owner.to_string(), None => "a process that left no owner record".to_owned() })]
    Held {
        /// Who, where that is known.
        owner: Option<Owner>,
    },
    /// The caller has been replaced and must never write again.
    #[error("epoch {offered} is too old: the disk demands at least {recorded}")]
    StaleEpoch {
        /// The floor.
        recorded: OwnerEpoch,
        /// What the caller came with.
        offered: OwnerEpoch,
    },
    /// It is acquired through this very handle, by another owner.
    #[error("this handle already acts for {owner}")]
    AlreadyOwned {
        /// For whom.
        owner: Owner,
    },
    /// Requests are under way: reap them first.
    #[error("{0} requests are under way")]
    InFlight(u64),
    /// The last writes could not be made durable, so the disk is kept.
    #[error("cannot flush the disk before giving it up")]
    Flush(#[source] io::Error),
    /// Refused for another reason.
    #[error("cannot acquire the disk")]
    Refused(#[source] Box<dyn Error + Send + Sync>),
}

impl From<LockError> for OwnershipError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Held { owner } => Self::Held { owner },
            LockError::StaleEpoch { recorded, offered } => Self::StaleEpoch { recorded, offered },
            other => Self::Refused(Box::new(other)),
        }
    }
}

impl From<Refusal> for OwnershipError {
    fn from(refusal: Refusal) -> Self {
        LockError::from(refusal).into()
    }
}

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system refused.
    #[error("cannot {attempt} the disk image {path}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file cannot be a disk.
    #[error("the disk image {path} has {size} bytes: a raw disk has a positive multiple of 512")]
    Size {
        /// The file.
        path: PathBuf,
        /// Its length, bytes.
        size: u64,
    },
    /// The file is a directory, a device or the like.
    #[error("the disk image {path} is not a regular file")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
}

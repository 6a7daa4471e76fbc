//! What can go wrong with a file of a suspended VM.

use std::{io, path::PathBuf};

use drover_guest_memory::MemoryError;
use drover_ids::OwnerEpoch;
use drover_saved_state::StateError;
use drover_units::Bytes;

/// Why a VM could not be written to a file. The file holds nothing that can be resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The file system refused.
    #[error("cannot {attempt} {}", path.display())]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// With which file.
        path: PathBuf,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// Its file system is about to be full.
    #[error("no room for {}: {free} are left, and {} stay free", path.display(), crate::write::ROOM_LEFT)]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// What is left of its file system.
        free: Bytes,
    },
    /// The last step failed, and so did taking it back: the file may hold the VM or not.
    #[error("cannot tell whether {} is written", path.display())]
    Doubtful {
        /// The file.
        path: PathBuf,
        /// What failed first.
        #[source]
        source: io::Error,
    },
    /// Guest RAM cannot be read.
    #[error("cannot read guest memory")]
    Memory(#[from] MemoryError),
}

/// Why a file is not a suspended VM that can be resumed. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file system refused.
    #[error("cannot {attempt} {}", path.display())]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// With which file.
        path: PathBuf,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// It is something else, or its beginning is damaged.
    #[error("{} is not a suspended VM: {reason}", path.display())]
    NotSuspended {
        /// The file.
        path: PathBuf,
        /// What gave it away.
        reason: &'static str,
    },
    /// Written by a newer release.
    #[error("{} has version {found} of the format; this release reads versions 1 to {newest}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest known.
        newest: u32,
    },
    /// Part of it is missing.
    #[error("{} is cut short: it has {found} of {expected}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: Bytes,
        /// What its header says.
        expected: Bytes,
    },
    /// A checksum does not fit, or a number contradicts another.
    #[error("{} is damaged: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Which part.
        what: &'static str,
    },
    /// The states inside are no states.
    #[error("{} holds states that cannot be read", path.display())]
    States {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: StateError,
    },
    /// The guest has gone on since.
    #[error("{} has been resumed already: the guest's disks have gone on since", path.display())]
    Consumed {
        /// The file.
        path: PathBuf,
    },
    /// Nobody has said under which epoch to resume.
    #[error("{} has not been claimed", path.display())]
    Unclaimed {
        /// The file.
        path: PathBuf,
    },
    /// Epochs only grow.
    #[error(
        "epoch {asked} cannot resume what epoch {newest} has suspended or begun to resume: it takes a newer one"
    )]
    StaleEpoch {
        /// Who wants to resume.
        asked: OwnerEpoch,
        /// Who was there before.
        newest: OwnerEpoch,
    },
}

/// Why RAM could not be brought. Whoever waits for a page that has not come waits on: the machine must end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the guest's memory from its file")]
    Read(#[source] io::Error),
    /// A piece of RAM is not what was written.
    #[error("the guest's memory from offset {offset} on is damaged in its file")]
    Corrupt {
        /// Where in RAM, counted without the hole.
        offset: Bytes,
    },
    /// The host refuses to bring a page.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host does not say which pages are waited for.
    #[error("cannot learn which pages are waited for")]
    Faults(#[source] io::Error),
}

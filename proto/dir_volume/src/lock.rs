//! The exclusive lock of one writer.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use drover_ids::{OwnerEpoch, VmId};
use drover_volume_owner::{Owner, OwnerRecord, Refusal};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

use crate::owner::{RecordError, Sidecar};

/// Why a volume could not be locked. Nothing has changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another open file holds the lock.
    #[error("the volume is in use by {}", describe(.owner))]
    Held {
        /// Who last acquired it; `None` where the holder left no record (it is creating, deleting or fencing it).
        owner: Option<Owner>,
    },
    /// The volume's record demands a later epoch: this owner has been replaced and must never write again.
    #[error("epoch {offered} is too old: the volume demands at least {recorded}")]
    StaleEpoch {
        /// The floor in the record.
        recorded: OwnerEpoch,
        /// What the caller came with.
        offered: OwnerEpoch,
    },
    /// The same epoch was already used on another node. An epoch is handed out once, so one of the two is wrong.
    #[error("this epoch already belongs to {owner}")]
    EpochInUse {
        /// Who acquired the volume with this epoch.
        owner: Owner,
    },
    /// The volume belongs to another VM until it is detached from it.
    #[error("the volume is attached to VM {vm}")]
    OtherVm {
        /// The VM it belongs to.
        vm: VmId,
    },
    /// The volume was deleted after the caller had opened it.
    #[error("the volume has been deleted")]
    Deleted,
    /// The owner record cannot be used.
    #[error("cannot tell who owns the volume")]
    Record(#[from] RecordError),
    /// The system refused.
    #[error("cannot lock the volume {path}")]
    Io {
        /// The file in question.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn describe(owner: &Option<Owner>) -> String {
    match owner {
        Some(owner) => owner.to_string(),
        None => "a process that left no owner record".to_owned(),
    }
}

/// The exclusive right to write one volume, until dropped or [released](VolumeLock::release).
///
/// The owner record stays behind: it is the epoch floor for whoever comes next.
#[derive(Debug)]
pub struct VolumeLock {
    locked: RawLock,
    owner: Owner,
}

impl VolumeLock {
    /// Takes the lock for `owner` and records it, durably, in `sidecar`. Never waits.
    ///
    /// `file` is the raw file, open for writing. The lock belongs to that open file: every duplicate of the
    /// descriptor shares it, and it ends when the last one is closed and its I/O has ended; for a killed process that
    /// can be some milliseconds after the process is gone, so whoever takes over tries again. Two handles of one
    /// process that were opened separately exclude each other like two processes do.
    ///
    /// # Errors
    /// See [`LockError`]. Repeating the call with the same owner after a release is allowed: that is how the source
    /// of an aborted migration goes on.
    pub fn acquire(file: &File, sidecar: &Path, owner: Owner) -> Result<Self, LockError> {
        Self::acquire_with(file, &Sidecar::At(sidecar.to_owned()), owner)
    }

    /// As [`acquire`](Self::acquire), also for a process that may open nothing.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn acquire_with(file: &File, sidecar: &Sidecar, owner: Owner) -> Result<Self, LockError> {
        let locked = RawLock::try_lock_with(file, sidecar)?;
        let record = sidecar.read()?;
        if let Some(record) = &record {
            record.admit(&owner)?;
        }
        // The source of an aborted migration comes back as who it was: its guest stands still meanwhile, and the
        // record on disk says so already.
        if record != Some(OwnerRecord::Acquired(owner)) {
            sidecar.write(&OwnerRecord::Acquired(owner))?;
        }
        Ok(Self { locked, owner })
    }

    /// Who holds it.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Gives the lock up. I/O must have ended. Dropping does the same.
    pub fn release(self) {
        drop(self.locked);
    }
}

impl From<Refusal> for LockError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::StaleEpoch { recorded, offered } => Self::StaleEpoch { recorded, offered },
            Refusal::EpochInUse { owner } => Self::EpochInUse { owner },
            Refusal::OtherVm { vm } => Self::OtherVm { vm },
        }
    }
}

/// The bare OFD lock on a volume's raw file.
#[derive(Debug)]
pub(crate) struct RawLock {
    /// A duplicate: it keeps the open file, and with it the lock, alive for as long as this value.
    file: File,
}

impl RawLock {
    pub(crate) fn try_lock(file: &File, sidecar: &Path) -> Result<Self, LockError> {
        Self::try_lock_with(file, &Sidecar::At(sidecar.to_owned()))
    }

    fn try_lock_with(file: &File, sidecar: &Sidecar) -> Result<Self, LockError> {
        let io_error = |source| LockError::Io { path: sidecar.path().with_extension("raw"), source };
        let file = file.try_clone().map_err(io_error)?;
        match set_lock(&file, libc::F_WRLCK) {
            Ok(()) => {}
            // A record that cannot be read must not hide that the volume is in use.
            Err(Errno::EAGAIN | Errno::EACCES) => {
                let record = sidecar.read().unwrap_or(None);
                return Err(LockError::Held { owner: record.and_then(|record| record.last_owner()) });
            }
            Err(errno) => return Err(io_error(errno.into())),
        }
        let locked = Self { file };
        // Whoever deletes a volume holds the lock while doing so, hence this answer is final.
        if locked.file.metadata().map_err(io_error)?.nlink() == 0 {
            return Err(LockError::Deleted);
        }
        Ok(locked)
    }
}

impl Drop for RawLock {
    fn drop(&mut self) {
        // Unlocking what is locked cannot fail on a local file; on a network one the close that follows unlocks too.
        let _ = set_lock(&self.file, libc::F_UNLCK);
    }
}

fn set_lock(file: &File, kind: libc::c_int) -> nix::Result<()> {
    let whole_file = libc::flock {
        l_type: i16::try_from(kind).expect("F_RDLCK, F_WRLCK and F_UNLCK are below 3"),
        l_whence: i16::try_from(libc::SEEK_SET).expect("SEEK_SET is 0"),
        l_start: 0,
        // Zero: to the end, however far the file grows.
        l_len: 0,
        // The kernel demands zero for OFD locks.
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file)).map(drop)
}

//! Refusing old owners for ever, and letting a volume go from its VM.

use std::{fs, io};

use drover_ids::{OwnerEpoch, VmId, VolumeId};
use drover_volume_owner::{Owner, OwnerRecord};

use crate::{
    durable,
    lock::{LockError, RawLock},
    owner::{RecordError, read_record, write_record},
    pool::DirPool,
};

/// Evidence that no owner of `vm` older than `epoch` can write `volume`, now or later: its lock was free, which
/// proves that none of their I/O is in flight, and the record on disk refuses them from now on.
///
/// Only [`fence`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FenceProof {
    /// The volume.
    pub volume: VolumeId,
    /// The VM it belongs to.
    pub vm: VmId,
    /// The floor that is on disk: the one asked for, or a higher one that was already there.
    pub epoch: OwnerEpoch,
    /// The last process that had acquired the volume, if any.
    pub previous: Option<Owner>,
}

/// Refuses every owner of `vm` with an epoch below `floor`, for ever. Idempotent; never waits.
///
/// Does not stop a live owner: [`LockError::Held`] says that somebody still writes, and the caller tries again or
/// finds other means. A volume that nobody has acquired yet is bound to `vm` by this.
///
/// # Errors
/// [`LockError::Held`], [`LockError::OtherVm`] where the volume belongs to another VM, and what the file system says.
pub fn fence(pool: &DirPool, volume: VolumeId, vm: VmId, floor: OwnerEpoch) -> Result<FenceProof, LockError> {
    let sidecar = pool.sidecar_path(volume);
    let _locked = RawLock::try_lock(&open(pool, volume)?, &sidecar)?;
    let record = read_record(&sidecar)?;
    let previous = record.and_then(|record| record.last_owner());
    match OwnerRecord::fenced(record.as_ref(), vm, floor)? {
        Some(raised) => {
            write_record(&sidecar, &raised)?;
            Ok(FenceProof { volume, vm, epoch: floor, previous })
        }
        None => {
            let epoch = record.map_or(floor, |record| record.floor());
            Ok(FenceProof { volume, vm, epoch, previous })
        }
    }
}

/// Ends `vm`'s claim to a volume, so that another VM may acquire it. Idempotent; never waits.
///
/// # Errors
/// [`LockError::Held`] while somebody writes it, [`LockError::OtherVm`] where it belongs to another VM.
pub fn detach(pool: &DirPool, volume: VolumeId, vm: VmId) -> Result<(), LockError> {
    let sidecar = pool.sidecar_path(volume);
    let _locked = RawLock::try_lock(&open(pool, volume)?, &sidecar)?;
    match read_record(&sidecar)? {
        None => return Ok(()),
        Some(record) if record.vm() != vm => return Err(LockError::OtherVm { vm: record.vm() }),
        Some(_) => {}
    }
    fs::remove_file(&sidecar)
        .and_then(|()| durable::sync_parent(&sidecar))
        .map_err(|source| RecordError::Io { path: sidecar, source }.into())
}

fn open(pool: &DirPool, volume: VolumeId) -> Result<fs::File, LockError> {
    let path = pool.volume_path(volume);
    let opened = fs::OpenOptions::new().read(true).write(true).open(&path);
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => LockError::Deleted,
        _ => LockError::Io { path, source },
    })
}

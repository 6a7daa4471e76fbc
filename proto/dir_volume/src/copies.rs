//! Copies of disks beside the volumes: snapshots, disk images, and files that are still being filled.
//!
//! A file that is being filled has a name of its own (`.<name>.part`), the same in every process, so that whoever goes
//! on after a crash finds it, and a failed one leaves nothing that has to be searched for.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use drover_ids::{ImageDigest, SnapshotId, VolumeId};

use crate::{
    durable,
    lock::{LockError, RawLock},
    pool::{DirPool, remove_if_present},
};

/// A volume that nobody else holds, for as long as this value lives: for work on the file of a VM that is stopped.
#[derive(Debug)]
pub struct HeldVolume {
    file: File,
    path: PathBuf,
    _locked: RawLock,
}

impl HeldVolume {
    /// The raw file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Puts another file in the place of the volume's, durably and at once: a reader finds the old content or the new
    /// one. Whoever had opened the old file and waits for its lock is told that it is gone.
    pub fn replace_with(self, content: &Partial) -> io::Result<()> {
        content.file.sync_all()?;
        fs::rename(&content.path, &self.path)?;
        durable::sync_parent(&self.path)
    }
}

/// A file that is being filled. Dropping it leaves it as it is: [`DirPool::discard_partial`] removes it.
#[derive(Debug)]
pub struct Partial {
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Partial {
    /// Open for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its final name, durably.
    ///
    /// # Errors
    /// `AlreadyExists` where that name is taken.
    pub fn publish(self) -> io::Result<()> {
        durable::publish(&self.file, &self.path, &self.target)?;
        fs::remove_file(&self.path)
    }
}

fn partial_path(target: &Path) -> io::Result<PathBuf> {
    let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    Ok(target.with_file_name(format!(".{name}.part")))
}

impl DirPool {
    /// The file of a disk image, whether or not it exists.
    pub fn disk_image_path(&self, image: ImageDigest) -> PathBuf {
        self.root().join("disk-images").join(format!("{image}.raw"))
    }

    /// The file of a snapshot, whether or not it exists.
    pub fn snapshot_path(&self, volume: VolumeId, snapshot: SnapshotId) -> PathBuf {
        self.snapshots_path(volume).join(format!("{snapshot}.raw"))
    }

    /// The folder of a volume's snapshots, whether or not it exists.
    pub fn snapshots_path(&self, volume: VolumeId) -> PathBuf {
        self.root().join("snapshots").join(volume.to_string())
    }

    /// Takes a volume that nobody holds. Never waits.
    ///
    /// # Errors
    /// [`LockError::Held`], naming the holder; [`LockError::Deleted`] where there is no such volume.
    pub fn hold_volume(&self, volume: VolumeId) -> Result<HeldVolume, LockError> {
        let path = self.volume_path(volume);
        let file =
            OpenOptions::new().read(true).write(true).open(&path).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => LockError::Deleted,
                _ => LockError::Io { path: path.clone(), source },
            })?;
        let locked = RawLock::try_lock(&file, &self.sidecar_path(volume))?;
        Ok(HeldVolume { file, path, _locked: locked })
    }

    /// Opens the file that is to become `target`, one of this pool's, with whatever an earlier call has put in it.
    pub fn begin_partial(&self, target: &Path) -> io::Result<Partial> {
        let folder = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
        fs::create_dir_all(folder)?;
        let path = partial_path(target)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        Ok(Partial { file, path, target: target.to_owned() })
    }

    /// Removes what [`begin_partial`](DirPool::begin_partial) has made. Idempotent.
    pub fn discard_partial(&self, target: &Path) -> io::Result<()> {
        remove_if_present(&partial_path(target)?)
    }
}

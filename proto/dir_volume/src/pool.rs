//! Names and life of what is in a pool.

use std::{
    fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use drover_ids::VolumeId;
use drover_units::{Bytes, SECTOR_SIZE, Sectors};

use crate::{
    durable::{self, Pending},
    lock::{LockError, RawLock},
};

/// Longest name of an image, bytes. What ext4 and xfs allow, less room for the decoration of a pending copy.
const IMAGE_NAME_BYTES_MAX: usize = 200;

/// Why a pool could not do as asked. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The pool's directory is missing or not usable.
    #[error("cannot open the pool {path}: it must be an existing directory that this process may write")]
    Open {
        /// The root as given.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A size that no disk can have.
    #[error("size: {size} bytes is not a positive multiple of {SECTOR_SIZE}")]
    Size {
        /// What was asked for, bytes.
        size: u64,
    },
    /// The volume is already there.
    #[error("volume {0} already exists")]
    VolumeExists(VolumeId),
    /// There is no such volume.
    #[error("volume {0} does not exist in this pool")]
    NoSuchVolume(VolumeId),
    /// The volume is locked by its owner.
    #[error("cannot delete volume {volume}")]
    InUse {
        /// The volume.
        volume: VolumeId,
        /// Names the owner.
        #[source]
        source: LockError,
    },
    /// A text that cannot be the name of an image.
    #[error(
        "image name: '{0}' is not valid: use 1 to 200 letters, digits, '.', '_' or '-', not starting with '.'"
    )]
    ImageName(String),
    /// The image is already there. Images never change: use another name.
    #[error("image '{0}' already exists")]
    ImageExists(String),
    /// What was to be copied ended early or went on.
    #[error("the source has {copied} bytes, not the {expected} announced")]
    Length {
        /// Bytes announced.
        expected: u64,
        /// Bytes that came, at most one more than announced.
        copied: u64,
    },
    /// The file system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A directory of raw volumes and boot images. Cheap to clone; holds no descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirPool {
    root: PathBuf,
}

impl DirPool {
    /// Opens the pool in `root`, an existing directory; an empty one becomes a pool.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, PoolError> {
        let root = root.into();
        let prepare = || {
            if !fs::metadata(&root)?.is_dir() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            fs::create_dir_all(root.join("volumes"))?;
            fs::create_dir_all(root.join("images"))
        };
        match prepare() {
            Ok(()) => Ok(Self { root }),
            Err(source) => Err(PoolError::Open { path: root, source }),
        }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The raw file of a volume, whether or not it exists.
    pub fn volume_path(&self, volume: VolumeId) -> PathBuf {
        self.root.join("volumes").join(format!("{volume}.raw"))
    }

    /// The owner record of a volume, whether or not it exists. The same as [`sidecar_of`](DirPool::sidecar_of) the
    /// volume's raw file.
    pub fn sidecar_path(&self, volume: VolumeId) -> PathBuf {
        Self::sidecar_of(&self.volume_path(volume))
    }

    /// The owner record that belongs to a raw file: for processes that are given a path, not a pool.
    pub fn sidecar_of(raw_file: &Path) -> PathBuf {
        raw_file.with_extension("owner")
    }

    /// Creates a volume that reads as zeros, durably. It takes no space until it is written.
    ///
    /// # Errors
    /// [`PoolError::Size`] unless `size` is a positive multiple of a sector; [`PoolError::VolumeExists`].
    pub fn create_volume(&self, volume: VolumeId, size: Bytes) -> Result<(), PoolError> {
        self.import_volume(volume, size, &mut io::empty(), Bytes::ZERO)
    }

    /// Creates a volume of `size` bytes that starts with the `length` bytes of `content` and reads as zeros after
    /// them. Runs of zeros stay sparse. Until it is complete the volume does not exist.
    ///
    /// # Errors
    /// As [`create_volume`](DirPool::create_volume); [`PoolError::Length`] where `content` is not `length` bytes
    /// long or does not fit.
    pub fn import_volume(
        &self,
        volume: VolumeId,
        size: Bytes,
        content: &mut dyn Read,
        length: Bytes,
    ) -> Result<(), PoolError> {
        self.import(volume, size, content, Some(length))
    }

    /// Like [`import_volume`](DirPool::import_volume), for content whose length is known by its end: a source that may
    /// break off says so with an error.
    ///
    /// # Errors
    /// As [`create_volume`](DirPool::create_volume); [`PoolError::Length`] where `content` does not fit.
    pub fn import_volume_to_end(
        &self,
        volume: VolumeId,
        size: Bytes,
        content: &mut dyn Read,
    ) -> Result<(), PoolError> {
        self.import(volume, size, content, None)
    }

    fn import(
        &self,
        volume: VolumeId,
        size: Bytes,
        content: &mut dyn Read,
        length: Option<Bytes>,
    ) -> Result<(), PoolError> {
        if size == Bytes::ZERO || size.to_sectors().is_none() {
            return Err(PoolError::Size { size: size.get() });
        }
        if let Some(length) = length.filter(|length| *length > size) {
            return Err(PoolError::Length { expected: size.get(), copied: length.get() });
        }
        let path = self.volume_path(volume);
        let io_error = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => PoolError::VolumeExists(volume),
            _ => PoolError::Io { action: "create", path: path.clone(), source },
        };
        // Asked first so that a long import fails at its start; publishing asks again, for good.
        if path.exists() {
            return Err(PoolError::VolumeExists(volume));
        }
        let pending = Pending::create(&path).map_err(io_error)?;
        let most = length.unwrap_or(size).get();
        let copied = copy_sparse(content, &pending.file, most).map_err(io_error)?;
        if copied > most || (length.is_some() && copied < most) {
            return Err(PoolError::Length { expected: most, copied });
        }
        pending.file.set_len(size.get()).map_err(io_error)?;
        pending.publish(&path).map_err(io_error)
    }

    /// The size of a volume.
    pub fn volume_size(&self, volume: VolumeId) -> Result<Sectors, PoolError> {
        let path = self.volume_path(volume);
        match fs::metadata(&path) {
            Ok(metadata) => {
                Bytes::new(metadata.len()).to_sectors().ok_or(PoolError::Size { size: metadata.len() })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(PoolError::NoSuchVolume(volume)),
            Err(source) => Err(PoolError::Io { action: "read the size of", path, source }),
        }
    }

    /// Deletes a volume and its owner record, durably. Idempotent: a volume that is not there is deleted.
    ///
    /// # Errors
    /// [`PoolError::InUse`], naming the owner, while somebody holds its lock.
    pub fn delete_volume(&self, volume: VolumeId) -> Result<(), PoolError> {
        let (path, sidecar) = (self.volume_path(volume), self.sidecar_path(volume));
        let io_error = |source| PoolError::Io { action: "delete", path: path.clone(), source };
        let file = match fs::OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A crash between the two removals below leaves the record behind.
                return remove_if_present(&sidecar).map_err(io_error);
            }
            Err(error) => return Err(io_error(error)),
        };
        // Held until both are gone, so that a process that had opened the file cannot acquire it in between.
        let _locked = match RawLock::try_lock(&file, &sidecar) {
            Ok(locked) => locked,
            Err(LockError::Deleted) => return Ok(()),
            Err(source) => return Err(PoolError::InUse { volume, source }),
        };
        remove_if_present(&path)
            .and_then(|()| remove_if_present(&sidecar))
            .and_then(|()| durable::sync_parent(&path))
            .map_err(io_error)
    }

    /// The file of a boot image, whether or not it exists.
    ///
    /// # Errors
    /// [`PoolError::ImageName`] for a name that could leave the pool or hide in it.
    pub fn image_path(&self, name: &str) -> Result<PathBuf, PoolError> {
        let valid = (1..=IMAGE_NAME_BYTES_MAX).contains(&name.len())
            && !name.starts_with('.')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if !valid {
            // Bounded: the name may come from a peer.
            return Err(PoolError::ImageName(name.chars().take(64).collect()));
        }
        Ok(self.root.join("images").join(name))
    }

    /// Adds a boot image, durably. Until it is complete it does not exist.
    ///
    /// # Errors
    /// [`PoolError::ImageExists`]; [`PoolError::Length`] where `content` is not `length` bytes long.
    pub fn add_image(&self, name: &str, content: &mut dyn Read, length: Bytes) -> Result<(), PoolError> {
        let path = self.image_path(name)?;
        let io_error = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => PoolError::ImageExists(name.to_owned()),
            _ => PoolError::Io { action: "create", path: path.clone(), source },
        };
        if path.exists() {
            return Err(PoolError::ImageExists(name.to_owned()));
        }
        let pending = Pending::create(&path).map_err(io_error)?;
        let copied = copy_sparse(content, &pending.file, length.get()).map_err(io_error)?;
        if copied != length.get() {
            return Err(PoolError::Length { expected: length.get(), copied });
        }
        pending.file.set_len(length.get()).map_err(io_error)?;
        pending.publish(&path).map_err(io_error)
    }

    /// Deletes a boot image, durably. Idempotent. A VM that has it open keeps what it opened.
    pub fn delete_image(&self, name: &str) -> Result<(), PoolError> {
        let path = self.image_path(name)?;
        remove_if_present(&path).and_then(|()| durable::sync_parent(&path)).map_err(|source| PoolError::Io {
            action: "delete",
            path,
            source,
        })
    }
}

pub(crate) fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Copies at most `expected` + 1 bytes and returns how many there were; blocks of zeros become holes.
fn copy_sparse(from: &mut dyn Read, to: &fs::File, expected: u64) -> io::Result<u64> {
    use std::os::unix::fs::FileExt;
    // The granularity of holes. A multiple of every file system's block size, small enough for the stack's sake.
    const BLOCK_BYTES: usize = 64 << 10;
    let mut block = vec![0; BLOCK_BYTES];
    let mut from = from.take(expected.saturating_add(1));
    let mut position = 0;
    loop {
        let filled = fill(&mut from, &mut block)?;
        if filled == 0 {
            return Ok(position);
        }
        if block[..filled].iter().any(|byte| *byte != 0) {
            to.write_all_at(&block[..filled], position)?;
        }
        position += filled as u64;
    }
}

/// Reads until `block` is full or the source has ended.
fn fill(from: &mut dyn Read, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match from.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

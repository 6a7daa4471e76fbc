//! Raw files, over io_uring.

mod uring;

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use drover_dir_volume::{DirPool, VolumeLock};
use drover_units::{Bytes, SECTOR_SIZE, Sectors};

use crate::{Backend, BackendInfo, BackendQueue, OpenError, Owner, OwnershipError, QueueConfig, gate::Gate};

/// Most segments of one request: what the kernel takes in one vectored call (UIO_MAXIOV, linux/uio.h).
const SEGMENTS_MAX: u16 = 1024;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading: no lock is taken, writes are refused.
    ReadOnly,
    /// For reading and writing, by one owner at a time.
    ReadWrite,
}

/// A raw file, usually a volume of a `dir` pool.
///
/// Reads and writes go through the host's page cache; a flush is fdatasync. The exclusive owner is enforced by
/// [`VolumeLock`] on the file itself, with the owner record in the `.owner` file beside it.
#[derive(Debug)]
pub struct FileBackend {
    volume: Arc<Volume>,
}

/// What a handle and its queues share. The lock is in here so that it lasts until the last queue has let go of the
/// file.
#[derive(Debug)]
pub(crate) struct Volume {
    file: File,
    path: PathBuf,
    info: BackendInfo,
    gate: Gate,
    ownership: Mutex<Option<Ownership>>,
}

#[derive(Debug)]
enum Ownership {
    /// Nobody is kept out by a reader.
    Reader(Owner),
    Writer(VolumeLock),
}

impl Ownership {
    fn owner(&self) -> Owner {
        match self {
            Self::Reader(owner) => *owner,
            Self::Writer(lock) => lock.owner(),
        }
    }
}

impl FileBackend {
    /// Opens a raw file. Takes no lock: see [`Backend::acquire`].
    ///
    /// # Errors
    /// [`OpenError`] where the file is not there, not a regular file, or not a whole number of sectors long.
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<Self, OpenError> {
        let path = path.as_ref().to_owned();
        let failed = |attempt| {
            let path = path.clone();
            move |source| OpenError::Io { attempt, path, source }
        };
        let read_only = access == Access::ReadOnly;
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only);
        // A FIFO in place of the file must not make the open wait for its other end.
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
        let file = options.open(&path).map_err(failed("open"))?;
        let metadata = file.metadata().map_err(failed("read the size of"))?;
        if !metadata.is_file() {
            return Err(OpenError::NotAFile { path });
        }
        let size = metadata.len();
        let Some(capacity) = Bytes::new(size).to_sectors().filter(|sectors| *sectors > Sectors::ZERO) else {
            return Err(OpenError::Size { path, size });
        };
        let info = BackendInfo {
            capacity,
            block_size: Bytes::new(SECTOR_SIZE),
            read_only,
            segments_max: SEGMENTS_MAX,
        };
        let volume = Volume { file, path, info, gate: Gate::default(), ownership: Mutex::default() };
        Ok(Self { volume: Arc::new(volume) })
    }
}

impl Volume {
    fn ownership(&self) -> MutexGuard<'_, Option<Ownership>> {
        self.ownership.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn info(&self) -> &BackendInfo {
        &self.info
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Backend for FileBackend {
    fn info(&self) -> BackendInfo {
        self.volume.info
    }

    fn acquire(&self, owner: &Owner) -> Result<(), OwnershipError> {
        let mut ownership = self.volume.ownership();
        match ownership.as_ref().map(Ownership::owner) {
            Some(current) if current == *owner => return Ok(()),
            Some(current) => return Err(OwnershipError::AlreadyOwned { owner: current }),
            None => {}
        }
        *ownership = Some(if self.volume.info.read_only {
            Ownership::Reader(*owner)
        } else {
            let sidecar = DirPool::sidecar_of(&self.volume.path);
            Ownership::Writer(VolumeLock::acquire(&self.volume.file, &sidecar, *owner)?)
        });
        self.volume.gate.open();
        Ok(())
    }

    fn release(&self) -> Result<(), OwnershipError> {
        let mut ownership = self.volume.ownership();
        if ownership.is_none() {
            return Ok(());
        }
        self.volume.gate.close()?;
        if !self.volume.info.read_only
            && let Err(error) = self.volume.file.sync_data()
        {
            self.volume.gate.open();
            return Err(OwnershipError::Flush(error));
        }
        *ownership = None;
        Ok(())
    }

    fn owner(&self) -> Option<Owner> {
        self.volume.ownership().as_ref().map(Ownership::owner)
    }

    fn queue(&self, config: QueueConfig) -> io::Result<Box<dyn BackendQueue>> {
        Ok(Box::new(uring::UringQueue::new(Arc::clone(&self.volume), config.depth)?))
    }
}

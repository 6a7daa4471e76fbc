//! Raw files, over io_uring.

mod uring;

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drover_dir_volume::{DirPool, Sidecar, VolumeLock};
use drover_units::{Bytes, SECTOR_SIZE, Sectors};

use nix::fcntl::{FallocateFlags, fallocate};

use crate::{
    Backend, BackendInfo, BackendQueue, Capacity, OpenError, Owner, OwnershipError, QueueConfig, RangeLimits,
    RequestAges, ResizeListener, gate::Gate,
};

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
    sidecar: Sidecar,
    /// All but the capacity.
    info: BackendInfo,
    capacity: Capacity,
    gate: Gate,
    ages: RequestAges,
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
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite);
        // A FIFO in place of the file must not make the open wait for its other end.
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
        let file = options.open(&path).map_err(failed("open"))?;
        let sidecar = Sidecar::At(DirPool::sidecar_of(&path));
        Self::of_file(file, access, (path, sidecar))
    }

    /// Takes a file that is open, for what `access` says, and the file of its owner record; for a process that may open
    /// nothing. The path is for people.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of_file(
        file: File,
        access: Access,
        (path, sidecar): (PathBuf, Sidecar),
    ) -> Result<Self, OpenError> {
        let read_only = access == Access::ReadOnly;
        let failed = |attempt| {
            let path = path.clone();
            move |source| OpenError::Io { attempt, path, source }
        };
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
            optimal_io: None,
            discard: None,
            write_zeroes: None,
        };
        let limits = RangeLimits {
            sectors_max: RangeLimits::SECTORS_MAX,
            alignment: Bytes::new(metadata.blksize()).to_sectors().unwrap_or(Sectors::new(1)),
        };
        let ranges = (!read_only && has_holes(&file, size)).then_some(limits);
        let volume = Volume {
            file,
            path,
            sidecar,
            info: BackendInfo { discard: ranges, write_zeroes: ranges, ..info },
            capacity: Capacity::new(capacity),
            gate: Gate::default(),
            ages: RequestAges::default(),
            ownership: Mutex::default(),
        };
        Ok(Self { volume: Arc::new(volume) })
    }
}

/// Whether the file system can make holes: asked for one behind the file's end, which changes nothing.
fn has_holes(file: &File, size: u64) -> bool {
    let Ok(end) = i64::try_from(size) else { return false };
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, mode, end, 4096).is_ok()
}

impl Volume {
    fn ownership(&self) -> MutexGuard<'_, Option<Ownership>> {
        self.ownership.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn info(&self) -> BackendInfo {
        BackendInfo { capacity: self.capacity.get(), ..self.info }
    }

    pub(crate) fn ages(&self) -> &RequestAges {
        &self.ages
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
        self.volume.info()
    }

    fn refresh(&self) -> io::Result<Sectors> {
        self.volume.capacity.look(|| {
            let size = self.volume.file.metadata()?.len();
            // A file that does not end with a sector is being changed by somebody at this moment.
            let capacity = Bytes::new(size).to_sectors().filter(|sectors| *sectors > Sectors::ZERO);
            Ok(capacity.ok_or(io::ErrorKind::InvalidData)?)
        })
    }

    fn set_resize_listener(&self, listener: ResizeListener) {
        self.volume.capacity.set_listener(listener);
    }

    fn oldest_request(&self) -> Option<Duration> {
        self.volume.ages.oldest()
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
            let Volume { file, sidecar, .. } = &*self.volume;
            Ownership::Writer(VolumeLock::acquire_with(file, sidecar, *owner)?)
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

    fn last_owner(&self) -> Result<Option<Owner>, OwnershipError> {
        let record = self.volume.sidecar.read().map_err(drover_dir_volume::LockError::from)?;
        Ok(record.and_then(|record| record.last_owner()))
    }

    fn owner(&self) -> Option<Owner> {
        self.volume.ownership().as_ref().map(Ownership::owner)
    }

    fn queue(&self, config: QueueConfig) -> io::Result<Box<dyn BackendQueue>> {
        Ok(Box::new(uring::UringQueue::new(Arc::clone(&self.volume), config.depth)?))
    }
}

//! The handle on an image.

use std::{
    io,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use drover_block::{
    Access, Backend, BackendInfo, BackendQueue, Capacity, Gate, Owner, OwnershipError, QueueConfig,
    RangeLimits, RequestAges, ResizeListener,
};
use drover_rbd::{DISCARD_GRANULARITY, EncryptionFormat, Image, Pool, Secret, UpdateWatch};
use drover_rbd_volume::{ImageLock, LockError};
use drover_units::{Bytes, SECTOR_SIZE, Sectors};

use crate::{
    disk::{Disk, Ownership, sectors},
    merge::SEGMENTS_MAX,
    observer,
    queue::RbdQueue,
};

/// An image as a disk.
#[derive(Debug)]
pub struct RbdBackend {
    disk: Arc<Disk>,
    /// There for writers: librbd tells readers nothing.
    _watch: Option<UpdateWatch>,
}

/// Which image, and how.
#[derive(Clone, Debug)]
pub struct RbdDisk<'a> {
    /// The pool it is in.
    pub pool: &'a Pool,
    /// Its name there.
    pub image: &'a str,
    /// For reading, or for one owner at a time.
    pub access: Access,
    /// How its content is encrypted, and the passphrase.
    pub encryption: Option<(EncryptionFormat, Secret)>,
}

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The cluster refused.
    #[error("cannot open the disk image {image}")]
    Ceph {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: drover_rbd::Error,
    },
    /// The image cannot be a disk.
    #[error("the disk image {image} has {size} bytes: a disk has at least 512")]
    Size {
        /// The image.
        image: String,
        /// Its size.
        size: u64,
    },
    /// The host lacks something that is needed.
    #[error("cannot start the thread that follows changes of disks")]
    Host(#[source] io::Error),
}

impl RbdBackend {
    /// Opens an image. Takes no lock: see [`Backend::acquire`]. Waits for the cluster.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: &RbdDisk<'_>) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Ceph { image: config.image.to_owned(), source };
        let read_only = config.access == Access::ReadOnly;
        let access = if read_only { drover_rbd::Access::ReadOnly } else { drover_rbd::Access::ReadWrite };
        let image = Image::open(config.pool, config.image, access).map_err(failed)?;
        if let Some((format, passphrase)) = &config.encryption {
            image.load_encryption(*format, passphrase).map_err(failed)?;
        }
        let shape = image.shape().map_err(failed)?;
        let size = image.size().map_err(failed)?;
        let Some(capacity) = sectors(size) else {
            return Err(OpenError::Size { image: config.image.to_owned(), size });
        };
        let ranges = (!read_only).then_some(RangeLimits {
            sectors_max: RangeLimits::SECTORS_MAX,
            alignment: Sectors::new(DISCARD_GRANULARITY / SECTOR_SIZE),
        });
        let info = BackendInfo {
            capacity,
            block_size: Bytes::new(SECTOR_SIZE),
            read_only,
            segments_max: SEGMENTS_MAX,
            optimal_io: Some(Bytes::new(shape.object_size)),
            discard: ranges,
            write_zeroes: ranges,
        };
        let disk = Arc::new(Disk {
            image,
            info,
            capacity: Capacity::new(capacity),
            gate: Gate::default(),
            ages: RequestAges::default(),
            look_wanted: AtomicBool::new(false),
            ownership: Mutex::default(),
        });
        let watch = if read_only { None } else { Some(follow(&disk, failed)?) };
        Ok(Self { disk, _watch: watch })
    }

    /// The image behind it, for what is done to it as a whole: snapshots, resizing, flattening.
    pub fn image(&self) -> &Image {
        &self.disk.image
    }

    /// Whether this client has been fenced, as far as it has noticed.
    pub fn is_fenced(&self) -> bool {
        self.disk.gate.is_fenced()
    }
}

fn follow(
    disk: &Arc<Disk>,
    failed: impl FnOnce(drover_rbd::Error) -> OpenError,
) -> Result<UpdateWatch, OpenError> {
    let changes = observer::changes().map_err(OpenError::Host)?;
    let weak = Arc::downgrade(disk);
    let watch = disk.image.watch_updates(move || observer::report(&weak, changes)).map_err(failed)?;
    // What has changed between the opening and the watch was told to nobody.
    observer::report(&Arc::downgrade(disk), changes);
    Ok(watch)
}

impl Backend for RbdBackend {
    fn info(&self) -> BackendInfo {
        self.disk.info()
    }

    fn refresh(&self) -> io::Result<Sectors> {
        self.disk.look_at_size()
    }

    fn set_resize_listener(&self, listener: ResizeListener) {
        self.disk.capacity.set_listener(listener);
    }

    fn oldest_request(&self) -> Option<Duration> {
        self.disk.ages.oldest()
    }

    fn acquire(&self, owner: &Owner) -> Result<(), OwnershipError> {
        let mut ownership = self.disk.ownership();
        match ownership.as_ref().map(Ownership::owner) {
            Some(current) if current == *owner => return Ok(()),
            Some(current) => return Err(OwnershipError::AlreadyOwned { owner: current }),
            None => {}
        }
        *ownership = Some(if self.disk.info.read_only {
            Ownership::Reader(*owner)
        } else {
            Ownership::Writer(
                ImageLock::acquire(&self.disk.image, *owner).map_err(|error| self.refused(error))?,
            )
        });
        self.disk.gate.open();
        Ok(())
    }

    fn release(&self) -> Result<(), OwnershipError> {
        let mut ownership = self.disk.ownership();
        let Some(owned) = ownership.as_ref() else { return Ok(()) };
        self.disk.gate.close()?;
        if let Ownership::Writer(lock) = owned {
            let kept = |error| {
                self.disk.gate.open();
                error
            };
            self.disk
                .image
                .flush()
                .map_err(|error| kept(OwnershipError::Flush(self.disk.io_error(error))))?;
            lock.release().map_err(|error| kept(self.refused(error)))?;
        }
        *ownership = None;
        Ok(())
    }

    fn last_owner(&self) -> Result<Option<Owner>, OwnershipError> {
        drover_rbd_volume::last_owner(&self.disk.image).map_err(|error| self.refused(error))
    }

    fn owner(&self) -> Option<Owner> {
        self.disk.ownership().as_ref().map(Ownership::owner)
    }

    fn queue(&self, config: QueueConfig) -> io::Result<Box<dyn BackendQueue>> {
        Ok(Box::new(RbdQueue::open(&self.disk, config)?))
    }
}

impl RbdBackend {
    fn refused(&self, error: LockError) -> OwnershipError {
        match error {
            LockError::Held { owner } => OwnershipError::Held { owner },
            LockError::Refused(refusal) => refusal.into(),
            LockError::Fenced => {
                self.disk.gate.fence();
                OwnershipError::Refused(Box::new(LockError::Fenced))
            }
            other => OwnershipError::Refused(Box::new(other)),
        }
    }
}

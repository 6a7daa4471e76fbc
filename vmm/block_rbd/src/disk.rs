//! What a handle and its queues share.

use std::{
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use drover_block::{BackendInfo, Capacity, Gate, Owner, RequestAges};
use drover_rbd::Image;
use drover_rbd_volume::ImageLock;
use drover_units::{Bytes, Sectors};

/// An open image. It closes, and with it its lock goes, when the last queue has let go of it.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) image: Image,
    /// All but the capacity.
    pub(crate) info: BackendInfo,
    pub(crate) capacity: Capacity,
    pub(crate) gate: Gate,
    pub(crate) ages: RequestAges,
    /// A look at the size has been asked for and not begun.
    pub(crate) look_wanted: AtomicBool,
    pub(crate) ownership: Mutex<Option<Ownership>>,
}

#[derive(Debug)]
pub(crate) enum Ownership {
    /// Nobody is kept out by a reader.
    Reader(Owner),
    Writer(ImageLock),
}

impl Ownership {
    pub(crate) fn owner(&self) -> Owner {
        match self {
            Self::Reader(owner) => *owner,
            Self::Writer(lock) => lock.owner(),
        }
    }
}

impl Disk {
    pub(crate) fn info(&self) -> BackendInfo {
        BackendInfo { capacity: self.capacity.get(), ..self.info }
    }

    pub(crate) fn ownership(&self) -> MutexGuard<'_, Option<Ownership>> {
        self.ownership.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the library for the size. May wait for the cluster.
    pub(crate) fn look_at_size(&self) -> io::Result<Sectors> {
        self.capacity.look(|| {
            self.look_wanted.store(false, Ordering::Release);
            let size = self.image.size().map_err(|error| self.io_error(error))?;
            Ok(sectors(size).ok_or(io::ErrorKind::InvalidData)?)
        })
    }

    /// Ceph's answer as an error of the system; takes note of one that says that this client has been fenced.
    pub(crate) fn io_error(&self, error: drover_rbd::Error) -> io::Error {
        if error.is_fenced() {
            self.gate.fence();
        }
        match error.errno() {
            Some(errno) => errno.into(),
            None => io::Error::other(error),
        }
    }
}

/// An image's size as a disk's: what does not fill the last sector cannot be used.
pub(crate) fn sectors(size: u64) -> Option<Sectors> {
    let whole = size - size % drover_units::SECTOR_SIZE;
    Bytes::new(whole).to_sectors().filter(|sectors| *sectors > Sectors::ZERO)
}

//! The machine's disks, and whether they are ours to write.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use drover_block::{Access, Backend, FileBackend, OpenError, Owner, OwnershipError};
use drover_ids::{NodeId, OwnerEpoch, VmId};

use crate::{BuildError, DISKS_MAX, MachineError};

/// A disk to be attached.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Its identity: the volume's id, for people, and what the guest reads as the disk's serial number (virtio-blk
    /// shows 20 bytes of it).
    pub id: String,
    /// The opened image.
    pub backend: Arc<dyn Backend>,
    /// How many queues the guest may use, each with a thread of its own. Part of the guest's hardware: the machine that
    /// a guest moves to has as many.
    pub queues: u16,
}

impl Disk {
    /// A raw file to read and write, reached through the host's page cache, with one queue. Its name is its identity.
    ///
    /// # Errors
    /// [`OpenError`] where there is no such file, or it is no disk.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let backend = Arc::new(FileBackend::open(path, Access::ReadWrite)?);
        let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { id, backend, queues: 1 })
    }
}

/// Whose the disks are to be once they are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Ours, from the start.
    Take(Owner),
    /// Somebody else's, until the guest has arrived ([`Machine::acquire_volumes`](crate::Machine::acquire_volumes)).
    Later,
}

impl Ownership {
    /// Ours, for a process that is part of no cluster: nobody else can have the disks while this process has them, and
    /// whoever comes after it can.
    pub fn standalone() -> Self {
        let (vm, node) = (VmId::from_u128(0), NodeId::from_u128(0));
        Self::Take(Owner { vm, node, epoch: OwnerEpoch::new(1), pid: std::process::id() })
    }
}

/// The disks of a machine. Dropping it releases those that are ours.
#[derive(Debug)]
pub(crate) struct Volumes {
    disks: Mutex<Vec<Disk>>,
}

/// A disk that could not change hands.
#[derive(Debug)]
pub(crate) struct Refused {
    disk: String,
    attempt: &'static str,
    source: OwnershipError,
}

impl From<Refused> for MachineError {
    fn from(Refused { disk, attempt, source }: Refused) -> Self {
        Self::Disk { disk, attempt, source }
    }
}

impl Volumes {
    pub(crate) fn open(disks: Vec<Disk>, ownership: Ownership) -> Result<Self, BuildError> {
        if disks.len() > DISKS_MAX {
            return Err(BuildError::TooManyDisks { asked: disks.len() });
        }
        let volumes = Self { disks: Mutex::new(disks) };
        if let Ownership::Take(owner) = ownership {
            volumes
                .acquire(&owner)
                .map_err(|Refused { disk, source, .. }| BuildError::Disk { disk, source })?;
        }
        Ok(volumes)
    }

    /// Those that are there at the moment. Storage may take its time: nothing is locked meanwhile.
    pub(crate) fn disks(&self) -> Vec<Disk> {
        self.lock().clone()
    }

    /// A disk more, which is ours to write.
    pub(crate) fn add(&self, disk: Disk) {
        self.lock().push(disk);
    }

    /// One of them has been given up.
    pub(crate) fn forget(&self, backend: &Arc<dyn Backend>) {
        // Closing it may take its time: nothing is locked meanwhile.
        let gone: Vec<Disk> =
            self.lock().extract_if(.., |disk| Arc::ptr_eq(&disk.backend, backend)).collect();
        drop(gone);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Disk>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all of them or none. Those that were this owner's before stay so either way.
    pub(crate) fn acquire(&self, owner: &Owner) -> Result<(), Refused> {
        let disks = self.disks();
        let mut taken = Vec::with_capacity(disks.len());
        for disk in &disks {
            let ours = disk.backend.owner().as_ref() == Some(owner);
            if let Err(source) = disk.backend.acquire(owner) {
                taken.into_iter().for_each(release_logged);
                return Err(Refused { disk: disk.id.clone(), attempt: "acquire", source });
            }
            if !ours {
                taken.push(disk);
            }
        }
        Ok(())
    }

    /// Gives all of them up. Tries every one; the first failure is reported, and that disk is still ours.
    pub(crate) fn release(&self) -> Result<(), Refused> {
        let mut result = Ok(());
        for disk in &self.disks() {
            if let Err(source) = disk.backend.release()
                && result.is_ok()
            {
                result = Err(Refused { disk: disk.id.clone(), attempt: "release", source });
            }
        }
        result
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        self.disks().iter().for_each(release_logged);
    }
}

fn release_logged(disk: &Disk) {
    if let Err(error) = disk.backend.release() {
        let error: &dyn std::error::Error = &error;
        tracing::error!(disk = disk.id, error, "cannot release a disk");
    }
}

#[cfg(test)]
mod tests {
    use drover_block::MemoryImage;
    use drover_ids::{NodeId, OwnerEpoch, VmId};
    use drover_units::Bytes;

    use super::*;

    fn owner(epoch: u64) -> Owner {
        Owner { vm: VmId::from_u128(1), node: NodeId::from_u128(2), epoch: OwnerEpoch::new(epoch), pid: 3 }
    }

    fn disks(images: &[MemoryImage]) -> Vec<Disk> {
        let disk = |(n, image): (usize, &MemoryImage)| Disk {
            id: n.to_string(),
            backend: Arc::new(image.open()),
            queues: 1,
        };
        images.iter().enumerate().map(disk).collect()
    }

    fn images(count: usize) -> Vec<MemoryImage> {
        (0..count).map(|_| MemoryImage::new(Bytes::kib(4))).collect()
    }

    fn owned(volumes: &Volumes) -> Vec<bool> {
        volumes.disks().iter().map(|disk| disk.backend.owner().is_some()).collect()
    }

    #[test]
    fn all_disks_are_taken_or_none() {
        let images = images(3);
        let elsewhere = images[2].open();
        elsewhere.acquire(&owner(1)).unwrap();
        let volumes = Volumes::open(disks(&images), Ownership::Later).unwrap();
        volumes.disks()[0].backend.acquire(&owner(2)).unwrap();
        let refused = volumes.acquire(&owner(2)).unwrap_err();
        assert_eq!((refused.disk.as_str(), refused.attempt), ("2", "acquire"));
        assert_eq!(owned(&volumes), [true, false, false], "the first was ours before");
        elsewhere.release().unwrap();
        volumes.acquire(&owner(2)).unwrap();
        assert_eq!(owned(&volumes), [true; 3]);
        volumes.release().unwrap();
        assert_eq!(owned(&volumes), [false; 3]);
    }

    #[test]
    fn a_machine_that_is_not_built_leaves_no_disk_taken() {
        let images = images(2);
        let elsewhere = images[1].open();
        elsewhere.acquire(&owner(1)).unwrap();
        let error = Volumes::open(disks(&images), Ownership::Take(owner(2))).unwrap_err();
        assert!(matches!(&error, BuildError::Disk { disk, .. } if disk == "1"), "{error}");
        images[0].open().acquire(&owner(3)).unwrap();
        elsewhere.release().unwrap();
        drop(Volumes::open(disks(&images[1..]), Ownership::Take(owner(2))).unwrap());
        images[1].open().acquire(&owner(3)).unwrap();
    }

    #[test]
    fn more_disks_than_places_are_refused() {
        let error = Volumes::open(disks(&images(DISKS_MAX + 1)), Ownership::Later).unwrap_err();
        assert!(matches!(error, BuildError::TooManyDisks { asked } if asked == DISKS_MAX + 1), "{error}");
        Volumes::open(disks(&images(DISKS_MAX)), Ownership::Later).unwrap();
    }
}

//! The machine's disks, and whether they are ours to write.

use std::sync::Arc;

use drover_block::{Backend, Owner, OwnershipError};

use crate::{BuildError, DISKS_MAX, MachineError};

/// A disk to be attached.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Its identity: the volume's id, for people, and what the guest reads as the disk's serial number (virtio-blk
    /// shows 20 bytes of it).
    pub id: String,
    /// The opened image.
    pub backend: Arc<dyn Backend>,
}

/// Whose the disks are to be once they are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Ours, from the start.
    Take(Owner),
    /// Somebody else's, until the guest has arrived ([`Machine::acquire_volumes`](crate::Machine::acquire_volumes)).
    Later,
}

/// The disks of a machine. Dropping it releases those that are ours.
#[derive(Debug)]
pub(crate) struct Volumes {
    disks: Vec<Disk>,
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
        let volumes = Self { disks };
        if let Ownership::Take(owner) = ownership {
            volumes
                .acquire(&owner)
                .map_err(|Refused { disk, source, .. }| BuildError::Disk { disk, source })?;
        }
        Ok(volumes)
    }

    pub(crate) fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// Takes all of them or none.
    pub(crate) fn acquire(&self, owner: &Owner) -> Result<(), Refused> {
        for (index, disk) in self.disks.iter().enumerate() {
            let before = disk.backend.owner();
            if let Err(source) = disk.backend.acquire(owner) {
                // Those that were ours before this call stay ours.
                let taken = self.disks[..index].iter().filter(|_| before.as_ref() != Some(owner));
                taken.for_each(release_logged);
                return Err(Refused { disk: disk.id.clone(), attempt: "acquire", source });
            }
        }
        Ok(())
    }

    /// Gives all of them up. Tries every one; the first failure is reported, and that disk is still ours.
    pub(crate) fn release(&self) -> Result<(), Refused> {
        let mut result = Ok(());
        for disk in &self.disks {
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
        self.disks.iter().for_each(release_logged);
    }
}

fn release_logged(disk: &Disk) {
    if let Err(error) = disk.backend.release() {
        let error: &dyn std::error::Error = &error;
        tracing::error!(disk = disk.id, error, "cannot release a disk");
    }
}

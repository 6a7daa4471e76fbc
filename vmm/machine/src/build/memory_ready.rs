//! Second step: there is RAM.

use drover_guest_memory::GuestMemory;

use crate::{BuildError, Disk, MachineConfig, Ownership, VolumesOpen, volumes::Volumes};

/// A machine with RAM.
#[derive(Debug)]
pub struct MemoryReady {
    pub(super) config: MachineConfig,
    pub(super) memory: GuestMemory,
}

impl MemoryReady {
    /// The RAM.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Takes the disks, in the order in which the guest sees them, and makes them ours unless that comes later.
    ///
    /// # Errors
    /// [`BuildError::TooManyDisks`], or [`BuildError::Disk`] for one that somebody else owns; none is ours then.
    pub fn open_volumes(self, disks: Vec<Disk>, ownership: Ownership) -> Result<VolumesOpen, BuildError> {
        let volumes = Volumes::open(disks, ownership)?;
        Ok(VolumesOpen {
            config: self.config,
            memory: self.memory,
            volumes,
            others: Vec::new(),
            disk_slots: Vec::new(),
        })
    }
}

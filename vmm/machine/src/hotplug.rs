//! Devices that come to a machine and go from it while its guest runs.
//!
//! A device comes in two steps, `attach` and the guest's own look at its bus. It goes in two as well: the guest is asked for
//! it ([`Panel::ask_back`](crate::Panel::ask_back)) and lets go of it in its own time
//! ([`Panel::wait_let_go`](crate::Panel::wait_let_go)), and then `detach` takes it out. `detach` alone takes a device away
//! from a guest that does not let go, like pulling out a card.

use std::sync::{Arc, Weak};

use drover_devices::DeviceEvents;

use crate::{
    Disk, DiskInstruments, Machine, MachineError, NewDevice, PauseGuard, Slot, device_set::Surroundings,
    volumes::Volumes,
};

/// A disk of a machine, to be given up. It may outlive the machine.
#[derive(Debug)]
pub struct Detached {
    volumes: Weak<Volumes>,
    disk: Disk,
}

impl Detached {
    /// Flushes the disk and gives it up. Waits for its storage, for as long as that takes; the machine may go on meanwhile,
    /// which must have had its device taken away.
    ///
    /// # Errors
    /// [`MachineError::Disk`] where it cannot be given up: it is the machine's still, and is released when that ends.
    pub fn give_up(self) -> Result<(), MachineError> {
        let Self { volumes, disk } = self;
        if let Err(source) = disk.backend.release() {
            return Err(MachineError::Disk { disk: disk.id, attempt: "release", source });
        }
        if let Some(volumes) = volumes.upgrade() {
            volumes.forget(&disk.backend);
        }
        Ok(())
    }
}

impl Machine {
    /// Attaches a disk, which is the machine's owner's to write already, in a free slot. The guest hears of it when it
    /// runs again.
    ///
    /// # Errors
    /// [`MachineError::NotHotPluggable`], [`MachineError::SlotNotFree`], [`MachineError::Device`]; the disk is the caller's
    /// still.
    ///
    /// # Panics
    /// If the guard is another machine's.
    pub fn attach_disk(
        &self,
        paused: &PauseGuard,
        disk: Disk,
        slot: Slot,
    ) -> Result<DiskInstruments, MachineError> {
        self.check(paused);
        let instruments =
            self.with_surroundings(|around| self.shared.devices.attach_disk(around, &disk, slot))?;
        self.shared.volumes.add(disk);
        Ok(instruments)
    }

    /// Its disks, those included whose devices have been taken away and that have not been given up.
    pub fn disks(&self) -> Vec<Disk> {
        self.shared.volumes.disks()
    }

    /// The disk of this identity, to be given up once its device has been taken away.
    pub fn detached(&self, id: &str) -> Option<Detached> {
        let disk = self.disks().into_iter().find(|disk| disk.id == id)?;
        Some(Detached { volumes: Arc::downgrade(&self.shared.volumes), disk })
    }

    /// Attaches a device that is no disk, in the slot that it asks for.
    ///
    /// # Errors
    /// As [`attach_disk`](Self::attach_disk), and [`MachineError::NoSlot`].
    ///
    /// # Panics
    /// If the guard is another machine's.
    pub fn attach_device(&self, paused: &PauseGuard, device: NewDevice) -> Result<Slot, MachineError> {
        self.check(paused);
        self.with_surroundings(|around| self.shared.devices.attach(around, device))
    }

    /// Takes the device in this slot away, whether or not the guest has let go of it. False where nothing is there. A disk that
    /// was there is the machine's until it is [given up](Self::detached).
    ///
    /// # Errors
    /// [`MachineError::NotHotPluggable`].
    ///
    /// # Panics
    /// If the guard is another machine's.
    pub fn detach_device(&self, paused: &PauseGuard, slot: Slot) -> Result<bool, MachineError> {
        self.check(paused);
        self.shared.devices.detach(slot)
    }

    fn with_surroundings<T>(&self, act: impl FnOnce(&Surroundings<'_>) -> T) -> T {
        act(&Surroundings {
            vm: &self.shared.vm,
            memory: &self.shared.memory,
            events: Arc::clone(&self.shared.ender) as Arc<dyn DeviceEvents>,
        })
    }
}

//! Devices that come to a machine and go from it while its guest runs.
//!
//! A device comes in two steps, `attach` and the guest's own look at its bus. It goes in two as well: the guest is asked for
//! it ([`Panel::ask_back`](crate::Panel::ask_back)) and lets go of it in its own time
//! ([`Panel::wait_let_go`](crate::Panel::wait_let_go)), and then `detach` takes it out. `detach` alone takes a device away
//! from a guest that does not let go, like pulling out a card.

use std::sync::Arc;

use drover_block::Backend;
use drover_devices::DeviceEvents;

use crate::{
    Disk, DiskInstruments, Machine, MachineError, NewDevice, PauseGuard, Slot, device_set::Surroundings,
};

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

    /// The image of the disk of this identity.
    pub fn disk(&self, id: &str) -> Option<Arc<dyn Backend>> {
        self.shared.volumes.disks().into_iter().find(|disk| disk.id == id).map(|disk| disk.backend)
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

    /// Takes the device in this slot away, whether or not the guest has let go of it. False where nothing is there.
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

    /// As [`detach_device`](Self::detach_device), and gives up the disk that was there.
    ///
    /// # Errors
    /// [`MachineError::NotHotPluggable`]; [`MachineError::Disk`] where it cannot be given up: the guest does not have it any
    /// more, and it is released when the machine ends.
    ///
    /// # Panics
    /// If the guard is another machine's.
    pub fn detach_disk(
        &self,
        paused: &PauseGuard,
        slot: Slot,
        backend: &Arc<dyn Backend>,
    ) -> Result<bool, MachineError> {
        let was_there = self.detach_device(paused, slot)?;
        self.shared.volumes.remove(backend)?;
        Ok(was_there)
    }

    fn with_surroundings<T>(&self, act: impl FnOnce(&Surroundings<'_>) -> T) -> T {
        act(&Surroundings {
            vm: &self.shared.vm,
            memory: &self.shared.memory,
            events: Arc::clone(&self.shared.ender) as Arc<dyn DeviceEvents>,
        })
    }
}

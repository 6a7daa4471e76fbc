//! Devices that come to the machine on KVM and go from it while its guest runs.
//!
//! The machine stands still for as long as it takes to put a device onto its bus, or off it: about as long as one pause.
//! What may take its time, storage above all, happens before.

use std::sync::Arc;

use drover_block::{Backend, OwnershipError};
use drover_machine::{Disk, Machine, MachineError, PauseGuard};
use tracing::info;

use crate::{
    devices, disks,
    hosted::{DiskInstrument, QUIESCE_LIMIT},
    kvm::{Held, Kvm, KvmVm},
    order::{DiskConfig, DiskPlace, LimitedDevice, NicConfig},
    refused::{Refused, chain},
    stall::{self, Watched},
};

impl Kvm {
    /// Takes the volume for the VM's owner, then attaches it. Where that fails, the volume is given up again.
    pub(crate) fn attach_disk(&mut self, vm: &mut KvmVm, config: &DiskConfig) -> Result<(), Refused> {
        match self.instruments.slot_of(LimitedDevice::Disk(config.volume)) {
            Some(slot) if slot == config.slot => return Ok(()),
            Some(_) => return Err(elsewhere("disk")),
            None => {}
        }
        let disk = disks::open_one("disk", config, &mut self.clusters, &self.files)?;
        disks::acquire(std::slice::from_ref(&disk), &vm.owner)?;
        let taken = Taken(&disk.backend);
        let attached =
            while_paused(vm, |machine, paused| machine.attach_disk(paused, disk.clone(), config.slot))?;
        let counters = attached.map_err(|error| refused(&error))?;
        // It is the machine's to give up from now on.
        std::mem::forget(taken);
        counters.throttle.set_limits(config.limits);
        vm.backends.push(Arc::downgrade(&disk.backend));
        self.instruments.add_disk(DiskInstrument { volume: config.volume, slot: config.slot, counters });
        info!(volume = %config.volume, slot = config.slot.number(), "disk attached");
        self.watch(vm, config, &disk)
    }

    fn watch(&self, vm: &KvmVm, config: &DiskConfig, disk: &Disk) -> Result<(), Refused> {
        if !matches!(config.place, DiskPlace::Rbd(_)) {
            return Ok(());
        }
        let watched = Watched {
            disks: vec![(config.volume, Arc::downgrade(&disk.backend))],
            holder: vm.machine.holder(),
            policy: vm.stall,
            status: Arc::clone(&self.status),
        };
        stall::watch(watched).map_err(|error| Refused::Failed(format!("cannot start a thread: {error}")))
    }

    /// Attaches an interface on its tap.
    pub(crate) fn attach_nic(&mut self, vm: &mut KvmVm, config: &NicConfig) -> Result<(), Refused> {
        match self.instruments.slot_of(LimitedDevice::Nic(config.mac)) {
            Some(slot) if slot == config.pci_slot() => return Ok(()),
            Some(_) => return Err(elsewhere("nic")),
            None => {}
        }
        let (device, instrument) = devices::interface("nic", config, &self.files)?;
        let device = device.in_slot(config.pci_slot());
        let attached = while_paused(vm, |machine, paused| machine.attach_device(paused, device))?;
        attached.map_err(|error| refused(&error))?;
        self.instruments.add_nic(instrument);
        info!(mac = %config.mac, "interface attached");
        Ok(())
    }

    /// Takes a device away, whether or not the guest has let go of it.
    pub(crate) fn detach(&mut self, vm: &mut KvmVm, device: LimitedDevice) -> Result<(), Refused> {
        let Some(slot) = self.instruments.slot_of(device) else { return Ok(()) };
        let backend = match device {
            LimitedDevice::Nic(_) => None,
            LimitedDevice::Disk(volume) => vm.machine.disk(&volume.to_string()),
        };
        let detached = while_paused(vm, |machine, paused| match &backend {
            Some(backend) => machine.detach_disk(paused, slot, backend),
            None => machine.detach_device(paused, slot),
        })?;
        match detached {
            Ok(_) => {}
            // The guest does not have it any more; whoever asks again tries the volume again.
            Err(error) => return Err(refused(&error)),
        }
        vm.backends.retain(|other| {
            other
                .upgrade()
                .is_some_and(|other| backend.as_ref().is_none_or(|gone| !Arc::ptr_eq(&other, gone)))
        });
        self.instruments.remove(device);
        info!(slot = slot.number(), "device detached");
        Ok(())
    }
}

/// Gives a volume up again where its disk does not come to be.
struct Taken<'a>(&'a Arc<dyn Backend>);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.release() {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "a volume that was not attached cannot be released");
        }
    }
}

/// Does something with a machine that stands still, and lets it run again if it did.
fn while_paused<T>(vm: &mut KvmVm, act: impl FnOnce(&Machine, &PauseGuard) -> T) -> Result<T, Refused> {
    match &vm.held {
        Held::Whole(guard) => Ok(act(&vm.machine, guard)),
        Held::Partly(_) => Err(Refused::Precondition("the machine does not stand still".to_owned())),
        Held::No => {
            let guard = vm.machine.pause(QUIESCE_LIMIT).map_err(|error| {
                Refused::Precondition(format!("the machine does not stand still for it: {}", chain(&error)))
            })?;
            let result = act(&vm.machine, &guard);
            guard.resume().map_err(|error| Refused::Failed(chain(&error)))?;
            Ok(result)
        }
    }
}

fn elsewhere(what: &str) -> Refused {
    Refused::Precondition(format!("{what}.place: it is attached in another place already"))
}

fn refused(error: &MachineError) -> Refused {
    match error {
        MachineError::Disk { source: OwnershipError::Held { .. }, .. }
        | MachineError::NotHotPluggable
        | MachineError::NoSlot
        | MachineError::SlotNotFree(_) => Refused::Precondition(chain(error)),
        _ => Refused::Failed(chain(error)),
    }
}

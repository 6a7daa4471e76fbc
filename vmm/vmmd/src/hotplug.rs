//! Devices that come to the machine on KVM and go from it while its guest runs.
//!
//! The machine stands still for as long as it takes to put a device onto its bus, or off it: about as long as one pause.
//! What may take its time, storage above all, happens before.

use std::{
    sync::{Arc, Mutex, PoisonError, TryLockError},
    time::Duration,
};

use drover_block::{Owner, OwnershipError};
use drover_machine::{Detached, Disk, Machine, MachineError, PauseGuard};
use tracing::{info, warn};

use crate::{
    clusters::Clusters,
    devices, disks,
    files::Files,
    hosted::DiskInstrument,
    kvm::{Held, Kvm, KvmVm},
    order::{DiskConfig, DiskPlace, LimitedDevice, NicConfig},
    refused::{Refused, chain},
    stall::{self, Watched},
    vm_thread::within,
};

/// How long storage has to open a volume, or to take one back: milliseconds where it answers, and librbd waits for ever where
/// it does not. Whoever asks waits a quarter of a minute.
const STORAGE_LIMIT: Duration = Duration::from_secs(5);
/// How long the guest stands still for a device at most. A disk that does not become quiet in this time is not waited for.
const PAUSE_LIMIT: Duration = Duration::from_secs(3);
/// A request that is as old as this will hardly end within that time.
const STALLED: Duration = Duration::from_secs(1);

impl Kvm {
    /// Takes the volume for the VM's owner, then attaches it. Where that fails, the volume is given up again.
    pub(crate) fn attach_disk(&mut self, vm: &mut KvmVm, config: &DiskConfig) -> Result<(), Refused> {
        match self.instruments.slot_of(LimitedDevice::Disk(config.volume)) {
            Some(slot) if slot == config.slot => {
                self.files.discard(config);
                self.instruments.set_limits(LimitedDevice::Disk(config.volume), config.limits);
                return Ok(());
            }
            Some(_) => return Err(elsewhere("disk")),
            None => {}
        }
        if vm.machine.detached(&config.volume.to_string()).is_some() {
            let text = "disk: its storage has not taken it back since it was detached: detach it again";
            return Err(Refused::NotNow(text.to_owned()));
        }
        require_answers(vm)?;
        let opening = Opening {
            clusters: Arc::clone(&self.clusters),
            files: self.files.clone(),
            config: config.clone(),
            owner: vm.owner,
        };
        let mut taken = within("vm-attach", STORAGE_LIMIT, opening, Opening::take).map_err(|_| {
            let limit = STORAGE_LIMIT.as_secs();
            Refused::NotNow(format!("disk: its storage has not answered within {limit} s"))
        })??;
        let Some(disk) = taken.0.clone() else { return Ok(()) };
        while_paused(vm, |machine, paused| {
            let counters = machine.attach_disk(paused, disk.clone(), config.slot)?;
            // It is the machine's to give up from now on.
            taken.0 = None;
            counters.throttle.set_limits(config.limits);
            self.instruments.add_disk(DiskInstrument { volume: config.volume, slot: config.slot, counters });
            Ok(())
        })?;
        vm.backends.push(Arc::downgrade(&disk.backend));
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
            Some(slot) if slot == config.pci_slot() => {
                self.instruments.set_limits(LimitedDevice::Nic(config.mac), config.limits);
                return Ok(());
            }
            Some(_) => return Err(elsewhere("nic")),
            None => {}
        }
        let (device, instrument) = devices::interface("nic", config, &self.files)?;
        let device = device.in_slot(config.pci_slot());
        require_answers(vm)?;
        while_paused(vm, |machine, paused| {
            machine.attach_device(paused, device)?;
            self.instruments.add_nic(instrument);
            Ok(())
        })?;
        info!(mac = %config.mac, "interface attached");
        Ok(())
    }

    /// Takes a device away, whether or not the guest has let go of it, then gives its volume up. Where the storage does not take
    /// that back in time, whoever asks again waits for it again.
    pub(crate) fn detach(&mut self, vm: &mut KvmVm, device: LimitedDevice) -> Result<(), Refused> {
        if let Some(slot) = self.instruments.slot_of(device) {
            require_answers(vm)?;
            while_paused(vm, |machine, paused| {
                machine.detach_device(paused, slot)?;
                self.instruments.remove(device);
                Ok(())
            })?;
            info!(slot = slot.number(), "device detached");
        }
        let detached = match device {
            LimitedDevice::Nic(_) => None,
            LimitedDevice::Disk(volume) => vm.machine.detached(&volume.to_string()),
        };
        let Some(detached) = detached else { return Ok(()) };
        let given_up = within("vm-detach", STORAGE_LIMIT, detached, Detached::give_up);
        vm.backends.retain(|backend| backend.strong_count() > 0);
        match given_up {
            Ok(given_up) => given_up.map_err(|error| refused(&error)),
            Err(_) => Err(Refused::NotNow(format!(
                "the guest does not have it any more, but its storage has not taken it back within {} s: try again when it \
                 answers",
                STORAGE_LIMIT.as_secs()
            ))),
        }
    }
}

/// What it takes to open a volume and to take it.
#[derive(Clone)]
struct Opening {
    clusters: Arc<Mutex<Clusters>>,
    files: Files,
    config: DiskConfig,
    owner: Owner,
}

impl Opening {
    fn take(self) -> Result<Taken, Refused> {
        let Self { clusters, files, config, owner } = self;
        let mut clusters = match clusters.try_lock() {
            Ok(clusters) => clusters,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => {
                let text = "disk: another volume is still being opened, whose storage does not answer";
                return Err(Refused::NotNow(text.to_owned()));
            }
        };
        let disk = disks::open_one("disk", &config, &mut clusters, &files)?;
        drop(clusters);
        let taken = Taken(Some(disk.clone()));
        disks::acquire(std::slice::from_ref(&disk), &owner)?;
        Ok(taken)
    }
}

/// Gives a volume up again where its disk does not come to be.
struct Taken(Option<Disk>);

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(disk) = &self.0
            && let Err(error) = disk.backend.release()
        {
            let error: &dyn std::error::Error = &error;
            warn!(error, "a volume that was not attached cannot be released");
        }
    }
}

/// A machine cannot stand still while a request is under way, which may write the guest's memory until it ends; and no request
/// can be called back. To try would only stop the guest for a while.
fn require_answers(vm: &KvmVm) -> Result<(), Refused> {
    let age = |disk: &Disk| disk.backend.oldest_request().filter(|age| *age >= STALLED);
    let stalled = vm.machine.disks().into_iter().find_map(|disk| Some((age(&disk)?, disk.id)));
    match stalled {
        None => Ok(()),
        Some((age, id)) => Err(Refused::NotNow(format!(
            "the storage of volume {id} has not answered for {} ms: devices come and go when it does, or when the VM is \
             stopped",
            age.as_millis()
        ))),
    }
}

/// Does something with a machine that stands still, and lets it run again if it did.
fn while_paused(
    vm: &mut KvmVm,
    act: impl FnOnce(&Machine, &PauseGuard) -> Result<(), MachineError>,
) -> Result<(), Refused> {
    let acted = match &vm.held {
        Held::Whole(guard) => act(&vm.machine, guard),
        Held::Partly(_) => {
            return Err(Refused::NotNow("the machine does not stand still".to_owned()));
        }
        Held::No => {
            let guard = vm.machine.pause(PAUSE_LIMIT).map_err(|error| {
                Refused::NotNow(format!("the machine does not stand still for it: {}", chain(&error)))
            })?;
            let acted = act(&vm.machine, &guard);
            guard.resume().map_err(|error| Refused::Failed(chain(&error)))?;
            acted
        }
    };
    acted.map_err(|error| refused(&error))
}

fn elsewhere(what: &str) -> Refused {
    // It is the VM's, and that must not be undone.
    Refused::Failed(format!("{what}.place: it is attached in another place already"))
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

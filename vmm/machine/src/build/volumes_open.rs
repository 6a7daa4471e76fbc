//! Third step: the disks are there.

use std::sync::{Arc, Mutex};

use drover_devices::DeviceEvents;
use drover_guest_memory::GuestMemory;
use drover_hypervisor::{Hypervisor, HypervisorError, Kicker, VmOptions};

use crate::{
    BuildError, ConsoleSink, DevicesReady, EventSink, MachineConfig, NewDevice, Slot,
    device_set::{DeviceSet, Surroundings, Wanted},
    gate::Gate,
    restart::Restart,
    vcpu_thread::{Buses, Ender},
    volumes::Volumes,
};

/// A machine with RAM and disks.
#[derive(Debug)]
pub struct VolumesOpen {
    pub(super) config: MachineConfig,
    pub(super) memory: GuestMemory,
    pub(super) volumes: Volumes,
    pub(super) others: Vec<NewDevice>,
    /// Of the disks; the first ones where there are none.
    pub(super) disk_slots: Vec<Slot>,
}

impl VolumesOpen {
    /// Adds virtio devices that are no disks, after those added before; [`NewDevice`] says how they get their slots.
    #[must_use]
    pub fn with_devices(mut self, devices: impl IntoIterator<Item = NewDevice>) -> Self {
        self.others.extend(devices);
        self
    }

    /// Puts the disks into these slots, a slot for each, and not into the first ones in their order: where a disk before
    /// them has gone, those behind it stay where they are.
    #[must_use]
    pub fn with_disk_slots(self, disk_slots: Vec<Slot>) -> Self {
        Self { disk_slots, ..self }
    }

    /// Makes the virtual machine, its vCPUs and its devices. The guest's console output goes to `console`, the
    /// machine's one event to `events`.
    ///
    /// # Errors
    /// [`BuildError::Hypervisor`], [`BuildError::Device`]; [`BuildError::TooManyDevices`], [`BuildError::NoSuchSlot`] or
    /// [`BuildError::SlotTaken`] where devices do not find their places.
    pub fn attach_devices(
        self,
        hypervisor: &Hypervisor,
        console: Box<dyn ConsoleSink>,
        events: EventSink,
    ) -> Result<DevicesReady, BuildError> {
        // No interval timer: PVH guests have their TSC's frequency from CPUID and the APIC timer, and it would cost a
        // kernel thread for each machine.
        let vm = hypervisor.create_vm(&self.memory, VmOptions { pit: false, cpu: self.config.cpu })?;
        let count = self.config.vcpus;
        let vcpus = (0..count.get())
            .map(|number| vm.create_vcpu(number, count))
            .collect::<Result<Vec<_>, HypervisorError>>()?;
        let tsc_khz = vcpus.first().and_then(|vcpu| vcpu.tsc_khz());

        let kickers: Vec<Kicker> = vcpus.iter().map(|vcpu| vcpu.kicker()).collect();
        let gate = Arc::new(Gate::new(move || kickers.iter().for_each(Kicker::kick)));
        let restart = Arc::new(Restart::new(self.config.on_reset));
        let ender = Arc::new(Ender { gate, events, restart });
        let mut buses = Buses::default();
        let around = Surroundings {
            vm: &vm,
            memory: &self.memory,
            events: Arc::clone(&ender) as Arc<dyn DeviceEvents>,
        };
        let disks = self.volumes.disks();
        let slot = |(n, disk)| (disk, self.disk_slots.get(n).copied().unwrap_or(first_slot(n)));
        let disks = disks.into_iter().enumerate().map(slot).collect();
        let wanted = Wanted { bus: self.config.bus, disks, others: self.others };
        let devices = DeviceSet::new(&around, &mut buses, wanted, console)?;
        let vcpus = vcpus.into_iter().map(|vcpu| Arc::new(Mutex::new(vcpu))).collect();
        Ok(DevicesReady {
            cmdline: self.config.cmdline,
            bus: self.config.bus,
            memory: self.memory,
            volumes: self.volumes,
            vm,
            vcpus,
            tsc_khz,
            devices,
            buses,
            ender,
        })
    }
}

/// The slot of the `n`th disk where it has not been given one.
fn first_slot(n: usize) -> Slot {
    Slot::new(u8::try_from(n).unwrap_or(u8::MAX))
}

//! The devices of a machine, in the order in which they are made.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use drover_bus::{Doorbells, IrqLine, MsiLines};
use drover_devices::{
    BlkConfig, ConsoleSink, Device, DeviceEvents, I8042, MmioConfig, PciConfig, PciRoot, Power, Rtc, Serial,
    VirtioBlk, VirtioDevice, VirtioKind, VirtioMmio, VirtioPci, WallClock,
};
use drover_guest_memory::GuestMemory;
use drover_hypervisor::{Gsi, Vm};

use crate::{
    BuildError, DeviceBus, DeviceContext, Disk, MachineError, NewDevice, Panel, Slot, VirtioShape,
    address_map::{PCI_CONFIG, PCI_MEMORY, PCI_MEMORY_END, POWER_BUTTON_GSI, mmio_place, pci_place},
    pause::FreezeFault,
    slot,
    vcpu_thread::Buses,
    wiring::{VmDoorbells, VmIrqLine, VmMsiLines},
};

/// A machine's devices.
#[derive(Debug)]
pub(crate) struct DeviceSet {
    devices: Vec<Arc<dyn Device>>,
    lines: Vec<Arc<VmIrqLine>>,
    virtio: Vec<VirtioShape>,
    panel: Panel,
}

/// What devices are connected to.
pub(crate) struct Surroundings<'a> {
    pub(crate) vm: &'a Vm,
    pub(crate) memory: &'a GuestMemory,
    pub(crate) events: Arc<dyn DeviceEvents>,
}

/// The virtio devices that a machine is to have.
pub(crate) struct Wanted<'a> {
    pub(crate) bus: DeviceBus,
    pub(crate) disks: &'a [Disk],
    pub(crate) others: Vec<NewDevice>,
}

/// A virtio device on its way to its transport.
struct Made {
    name: String,
    kind: VirtioKind,
    slot: Slot,
    device: Box<dyn VirtioDevice>,
}

impl Made {
    fn failed<E: std::error::Error + Send + Sync + 'static>(name: &str) -> impl FnOnce(E) -> BuildError {
        let device = name.to_owned();
        move |source| BuildError::Device { device, source: Box::new(source) }
    }
}

/// Names devices by their kind and a number.
#[derive(Default)]
struct Names(BTreeMap<VirtioKind, usize>);

impl Names {
    fn next(&mut self, kind: VirtioKind) -> String {
        let count = self.0.entry(kind).or_default();
        let name = format!("{}{count}", kind.name());
        *count += 1;
        name
    }
}

/// The host's clock, for the guest's.
fn host_clock() -> WallClock {
    WallClock::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
    })
}

impl DeviceSet {
    /// Makes the devices and puts them on the buses.
    pub(crate) fn new(
        around: &Surroundings<'_>,
        buses: &mut Buses,
        wanted: Wanted<'_>,
        console: Box<dyn ConsoleSink>,
    ) -> Result<Self, BuildError> {
        let line = VmIrqLine::new(around.vm, Gsi(Serial::GSI))?;
        let serial = Arc::new(Serial::new(line.clone(), console));
        buses.ports.insert("serial port", Serial::PORT, Serial::LEN, serial.clone())?;
        let i8042 = Arc::new(I8042::new(Arc::clone(&around.events)));
        buses.ports.insert("keyboard controller", I8042::PORT, I8042::LEN, i8042.clone())?;
        let power = Arc::new(Power::new(Arc::clone(&around.events)));
        buses.ports.insert("power registers", Power::PORT, Power::LEN, power.clone())?;
        let rtc = Arc::new(Rtc::new(host_clock()));
        buses.ports.insert("clock", Rtc::PORT, Rtc::LEN, rtc.clone())?;
        let button = VmIrqLine::new(around.vm, POWER_BUTTON_GSI)?;
        let mut set = Self {
            devices: vec![serial.clone(), i8042, power, rtc],
            lines: vec![line],
            virtio: Vec::new(),
            panel: Panel { serial, button, disk_metrics: Arc::default(), disk_throttles: Arc::default() },
        };
        let bus = wanted.bus;
        let made = set.make_virtio(around, wanted)?;
        match bus {
            DeviceBus::VirtioMmio => set.add_on_mmio(around, buses, made)?,
            DeviceBus::VirtioPci => set.add_on_pci(around, buses, made)?,
        }
        Ok(set)
    }

    /// Makes the virtio devices, the disks first, and gives each its slot.
    fn make_virtio(
        &mut self,
        around: &Surroundings<'_>,
        wanted: Wanted<'_>,
    ) -> Result<Vec<Made>, BuildError> {
        let Wanted { bus, disks, others } = wanted;
        let slots = slot::assign(bus, disks.len(), others.iter().map(|device| device.slot))?;
        let mut slots = slots.into_iter();
        let mut next_slot = || slots.next().expect("every device has been given one");
        let mut names = Names::default();
        let mut made = Vec::with_capacity(disks.len() + others.len());
        let mut metrics = Vec::with_capacity(disks.len());
        let mut throttles = Vec::with_capacity(disks.len());
        for disk in disks {
            let (kind, slot) = (VirtioKind::Block, next_slot());
            let name = names.next(kind);
            let config = BlkConfig {
                name: name.clone(),
                id: disk.id.clone(),
                queues: disk.queues,
                events: Arc::clone(&around.events),
            };
            let block = VirtioBlk::new(config, Arc::clone(&disk.backend));
            metrics.push(block.metrics());
            throttles.push(block.throttle());
            self.note(kind, slot, disk.id.clone(), &block);
            made.push(Made { name, kind, slot, device: Box::new(block) });
        }
        for NewDevice { kind, identity, make, .. } in others {
            let slot = next_slot();
            let name = names.next(kind);
            let context = DeviceContext { name: name.clone(), events: Arc::clone(&around.events) };
            let device =
                make(context).map_err(|source| BuildError::Device { device: name.clone(), source })?;
            debug_assert_eq!(device.device_id(), kind.id(), "a device is of the kind it is announced as");
            self.note(kind, slot, identity, device.as_ref());
            made.push(Made { name, kind, slot, device });
        }
        self.panel.disk_metrics = metrics.into();
        self.panel.disk_throttles = throttles.into();
        Ok(made)
    }

    /// Takes down what a machine must have for this device's state.
    fn note(&mut self, kind: VirtioKind, slot: Slot, identity: String, device: &dyn VirtioDevice) {
        // What it would save says in which form it does.
        let state = device.save();
        self.virtio.push(VirtioShape {
            kind,
            slot,
            identity,
            state: state.kind().as_str().to_owned(),
            state_version: state.version(),
        });
    }

    /// Gives each device a window and an interrupt line.
    fn add_on_mmio(
        &mut self,
        around: &Surroundings<'_>,
        buses: &mut Buses,
        made: Vec<Made>,
    ) -> Result<(), BuildError> {
        let doorbells: Arc<dyn Doorbells> = Arc::new(VmDoorbells(around.vm.clone()));
        for Made { name, slot, device, .. } in made {
            let (base, gsi) = mmio_place(slot);
            let line = VmIrqLine::new(around.vm, gsi)?;
            self.lines.push(Arc::clone(&line));
            let config = MmioConfig {
                name: name.clone(),
                instance: slot.number().into(),
                base,
                memory: around.memory.clone(),
                line,
                doorbells: Arc::clone(&doorbells),
            };
            let device = Arc::new(VirtioMmio::new(config, device).map_err(Made::failed(&name))?);
            buses.mmio.insert("virtio device", base, VirtioMmio::LEN, device.clone())?;
            self.devices.push(device);
        }
        Ok(())
    }

    /// Makes a PCI bus and each device a function on it.
    fn add_on_pci(
        &mut self,
        around: &Surroundings<'_>,
        buses: &mut Buses,
        made: Vec<Made>,
    ) -> Result<(), BuildError> {
        let doorbells: Arc<dyn Doorbells> = Arc::new(VmDoorbells(around.vm.clone()));
        let lines: Arc<dyn MsiLines> = Arc::new(VmMsiLines(around.vm.clone()));
        let mut root = PciRoot::new();
        let mut functions: Vec<Arc<dyn Device>> = Vec::with_capacity(made.len());
        for Made { name, kind, slot, device } in made {
            let (address, base) = pci_place(slot);
            let config = PciConfig {
                name: name.clone(),
                instance: slot.number().into(),
                class: kind.pci_class(),
                base,
                memory: around.memory.clone(),
                lines: Arc::clone(&lines),
                doorbells: Arc::clone(&doorbells),
            };
            let device = Arc::new(VirtioPci::new(config, device).map_err(Made::failed(&name))?);
            root.insert(address, device.clone()).map_err(Made::failed(&name))?;
            functions.push(device);
        }
        let root = Arc::new(root);
        buses.ports.insert("PCI configuration", PciRoot::PORT, PciRoot::PORT_LEN, root.ports())?;
        buses.mmio.insert("PCI configuration", PCI_CONFIG, PciRoot::ECAM_LEN, root.ecam())?;
        let len = PCI_MEMORY_END.saturating_sub(PCI_MEMORY).get();
        buses.mmio.insert("PCI memory", PCI_MEMORY, len, root.memory(PCI_MEMORY))?;
        self.devices.push(root);
        self.devices.append(&mut functions);
        Ok(())
    }

    /// The virtio devices, disks first, in the order in which they were given.
    pub(crate) fn virtio(&self) -> &[VirtioShape] {
        &self.virtio
    }

    /// Its console input and counters.
    pub(crate) fn panel(&self) -> &Panel {
        &self.panel
    }

    /// Everything that can be saved, in the order in which it was made.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &dyn Device> {
        self.devices.iter().map(Arc::as_ref)
    }

    /// Stops them, the last made first: what moves data stands still before what reports it.
    pub(crate) fn pause(&self, deadline: Instant) -> Result<(), FreezeFault> {
        self.iter_back().try_for_each(|device| {
            let left = deadline.saturating_duration_since(Instant::now());
            device.pause(left).map_err(|error| FreezeFault::Device(Box::new(error)))
        })
    }

    /// Makes them as new, those that move data first. They are paused.
    pub(crate) fn reset(&self) -> Result<(), MachineError> {
        self.iter_back().try_for_each(|device| {
            device.reset().map_err(|source| MachineError::Device {
                device: device.name().to_owned(),
                attempt: "be reset",
                source: Box::new(source),
            })
        })
    }

    /// Runs them again.
    pub(crate) fn resume(&self) -> Result<(), MachineError> {
        self.iter().try_for_each(|device| {
            device.resume().map_err(|source| MachineError::Device {
                device: device.name().to_owned(),
                attempt: "resume",
                source: Box::new(source),
            })
        })
    }

    /// Pulses every line once. An interrupt that was on its way inside the kernel when the state was read is not in
    /// the state; a guest that finds no reason for one ignores it.
    pub(crate) fn pulse_lines(&self) -> Result<(), MachineError> {
        self.lines.iter().try_for_each(|line| {
            line.pulse().map_err(|source| MachineError::Device {
                device: "interrupt line".to_owned(),
                attempt: "pulse",
                source: Box::new(source),
            })
        })
    }

    fn iter_back(&self) -> impl Iterator<Item = &dyn Device> {
        self.devices.iter().rev().map(Arc::as_ref)
    }
}

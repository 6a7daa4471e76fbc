//! The devices of a machine, in the order in which they are made.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use drover_bus::{Doorbells, IrqLine, MsiLines};
use drover_devices::{
    BlkConfig, BlkMetrics, ConsoleSink, Device, DeviceEvents, Hotplug, I8042, MmioConfig, PciConfig, PciRoot,
    Power, Rtc, Serial, Throttle, VirtioBlk, VirtioDevice, VirtioKind, VirtioMmio, VirtioPci, WallClock,
};
use drover_guest_memory::GuestMemory;
use drover_hypervisor::{Gsi, Vm};

use crate::{
    BuildError, DeviceBus, DeviceContext, Disk, MachineError, NewDevice, Panel, Slot, VirtioShape,
    address_map::{
        HOTPLUG_GSI, PCI_CONFIG, PCI_MEMORY, PCI_MEMORY_END, PCI_SLOTS, POWER_BUTTON_GSI, mmio_place,
        pci_place,
    },
    pause::FreezeFault,
    slot,
    vcpu_thread::Buses,
    wiring::{VmDoorbells, VmIrqLine, VmMsiLines},
};

/// A machine's devices.
#[derive(Debug)]
pub(crate) struct DeviceSet {
    /// Those that have always been there, in the order in which they were made.
    devices: Vec<Arc<dyn Device>>,
    lines: Vec<Arc<VmIrqLine>>,
    virtio: Mutex<Vec<VirtioShape>>,
    panel: Panel,
    slots: Option<HotSlots>,
}

/// The slots of a PCI bus, which devices come to and go from.
#[derive(Debug)]
struct HotSlots {
    root: Arc<PciRoot>,
    hotplug: Arc<Hotplug>,
    doorbells: Arc<dyn Doorbells>,
    lines: Arc<dyn MsiLines>,
    present: Mutex<Present>,
}

/// The functions that are there, in the order in which they came, and what the next ones are called.
#[derive(Debug, Default)]
struct Present {
    functions: Vec<(Slot, Arc<dyn Device>)>,
    names: Names,
}

/// What devices are connected to.
pub(crate) struct Surroundings<'a> {
    pub(crate) vm: &'a Vm,
    pub(crate) memory: &'a GuestMemory,
    pub(crate) events: Arc<dyn DeviceEvents>,
}

/// The virtio devices that a machine is to have.
pub(crate) struct Wanted {
    pub(crate) bus: DeviceBus,
    pub(crate) disks: Vec<(Disk, Slot)>,
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
#[derive(Debug, Default)]
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
        wanted: Wanted,
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
            virtio: Mutex::default(),
            panel: Panel {
                serial,
                button,
                disk_metrics: Arc::default(),
                disk_throttles: Arc::default(),
                hotplug: None,
            },
            slots: None,
        };
        let bus = wanted.bus;
        let mut names = Names::default();
        let made = set.make_virtio(around, wanted, &mut names)?;
        match bus {
            DeviceBus::VirtioMmio => set.add_on_mmio(around, buses, made)?,
            DeviceBus::VirtioPci => set.add_on_pci(around, buses, (made, names))?,
        }
        Ok(set)
    }

    /// Makes the virtio devices, the disks first, and gives each its slot.
    fn make_virtio(
        &mut self,
        around: &Surroundings<'_>,
        wanted: Wanted,
        names: &mut Names,
    ) -> Result<Vec<Made>, BuildError> {
        let Wanted { bus, disks, others } = wanted;
        let of_disks = disks.iter().map(|(_, slot)| *slot);
        let slots = slot::assign(bus, of_disks, others.iter().map(|device| device.slot))?;
        let mut slots = slots.into_iter();
        let mut next_slot = || slots.next().expect("every device has been given one");
        let mut made = Vec::with_capacity(disks.len() + others.len());
        let mut metrics = Vec::with_capacity(disks.len());
        let mut throttles = Vec::with_capacity(disks.len());
        for (disk, _) in &disks {
            let name = names.next(VirtioKind::Block);
            let (block, instruments) = make_disk(&name, disk, around);
            metrics.push(instruments.metrics);
            throttles.push(instruments.throttle);
            made.push(self.noted((name, VirtioKind::Block, next_slot()), disk.id.clone(), block));
        }
        for device in others {
            let name = names.next(device.kind);
            let (kind, identity) = (device.kind, device.identity.clone());
            let device = make_other(&name, device, around)?;
            made.push(self.noted((name, kind, next_slot()), identity, device));
        }
        self.panel.disk_metrics = metrics.into();
        self.panel.disk_throttles = throttles.into();
        Ok(made)
    }

    /// Takes down what a machine must have for this device's state.
    fn noted(
        &self,
        (name, kind, slot): (String, VirtioKind, Slot),
        identity: String,
        device: Box<dyn VirtioDevice>,
    ) -> Made {
        // What it would save says in which form it does.
        let state = device.save();
        let (state, state_version) = (state.kind().as_str().to_owned(), state.version());
        self.shapes().push(VirtioShape { kind, slot, identity, state, state_version });
        Made { name, kind, slot, device }
    }

    fn shapes(&self) -> MutexGuard<'_, Vec<VirtioShape>> {
        self.virtio.lock().unwrap_or_else(PoisonError::into_inner)
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
        (made, names): (Vec<Made>, Names),
    ) -> Result<(), BuildError> {
        let root = Arc::new(PciRoot::new());
        buses.ports.insert("PCI configuration", PciRoot::PORT, PciRoot::PORT_LEN, root.ports())?;
        buses.mmio.insert("PCI configuration", PCI_CONFIG, PciRoot::ECAM_LEN, root.ecam())?;
        let len = PCI_MEMORY_END.saturating_sub(PCI_MEMORY).get();
        buses.mmio.insert("PCI memory", PCI_MEMORY, len, root.memory(PCI_MEMORY))?;
        self.devices.push(root.clone());
        let line = VmIrqLine::new(around.vm, HOTPLUG_GSI)?;
        let hotplug = Arc::new(Hotplug::new(Arc::clone(&root), line));
        buses.ports.insert("hot-plug registers", Hotplug::PORT, Hotplug::LEN, hotplug.clone())?;
        self.devices.push(hotplug.clone());
        self.panel.hotplug = Some(hotplug.clone());
        let slots = HotSlots {
            root,
            hotplug,
            doorbells: Arc::new(VmDoorbells(around.vm.clone())),
            lines: Arc::new(VmMsiLines(around.vm.clone())),
            present: Mutex::new(Present { functions: Vec::with_capacity(made.len()), names }),
        };
        made.into_iter().try_for_each(|made| slots.put(made, around.memory).map(drop))?;
        self.slots = Some(slots);
        Ok(())
    }

    /// Makes a disk in a free slot of a machine that stands still. The guest hears of it when it runs again.
    pub(crate) fn attach_disk(
        &self,
        around: &Surroundings<'_>,
        disk: &Disk,
        slot: Slot,
    ) -> Result<DiskInstruments, MachineError> {
        let slots = self.slots.as_ref().ok_or(MachineError::NotHotPluggable)?;
        self.check_free(slot)?;
        let name = slots.present().names.next(VirtioKind::Block);
        let (block, instruments) = make_disk(&name, disk, around);
        self.plug(slots, around, ((name, VirtioKind::Block, slot), disk.id.clone(), block))?;
        Ok(instruments)
    }

    /// The same for any other device, in the slot that it asks for.
    pub(crate) fn attach(&self, around: &Surroundings<'_>, device: NewDevice) -> Result<Slot, MachineError> {
        let slots = self.slots.as_ref().ok_or(MachineError::NotHotPluggable)?;
        let slot = device.slot.ok_or(MachineError::NoSlot)?;
        self.check_free(slot)?;
        let (kind, identity) = (device.kind, device.identity.clone());
        let name = slots.present().names.next(kind);
        let made = make_other(&name, device, around).map_err(cannot_attach(&name))?;
        self.plug(slots, around, ((name, kind, slot), identity, made))?;
        Ok(slot)
    }

    fn check_free(&self, slot: Slot) -> Result<(), MachineError> {
        if slot.number() >= PCI_SLOTS || self.shapes().iter().any(|shape| shape.slot == slot) {
            return Err(MachineError::SlotNotFree(slot));
        }
        Ok(())
    }

    fn plug(
        &self,
        slots: &HotSlots,
        around: &Surroundings<'_>,
        (place, identity, device): ((String, VirtioKind, Slot), String, Box<dyn VirtioDevice>),
    ) -> Result<(), MachineError> {
        let (name, slot) = (place.0.clone(), place.2);
        let made = self.noted(place, identity, device);
        let put = slots.put(made, around.memory).map_err(cannot_attach(&name));
        match put {
            Ok(()) => slots.hotplug.announce(pci_place(slot).0),
            Err(_) => self.shapes().retain(|shape| shape.slot != slot),
        }
        put
    }

    /// Takes the device in this slot out of a machine that stands still, whether or not the guest has let go of it. One that
    /// has not finds nothing there. False where nothing is.
    pub(crate) fn detach(&self, slot: Slot) -> Result<bool, MachineError> {
        let slots = self.slots.as_ref().ok_or(MachineError::NotHotPluggable)?;
        let mut present = slots.present();
        let Some(index) = present.functions.iter().position(|(other, _)| *other == slot) else {
            return Ok(false);
        };
        let (_, function) = present.functions.remove(index);
        drop(present);
        let (at, _) = pci_place(slot);
        let let_go = slots.hotplug.wait_let_go(at, Duration::ZERO);
        slots.root.remove(at);
        if let_go {
            slots.hotplug.forget(at);
        } else {
            slots.hotplug.announce(at);
        }
        self.shapes().retain(|shape| shape.slot != slot);
        // Its threads and its doorbells end with it.
        drop(function);
        Ok(true)
    }

    /// The virtio devices, by their slots.
    pub(crate) fn virtio(&self) -> Vec<VirtioShape> {
        let mut shapes = self.shapes().clone();
        shapes.sort_by_key(|shape| shape.slot);
        shapes
    }

    /// Its console input and counters.
    pub(crate) fn panel(&self) -> &Panel {
        &self.panel
    }

    /// Everything that can be saved, in the order in which it was made.
    pub(crate) fn all(&self) -> Vec<Arc<dyn Device>> {
        let mut all = self.devices.clone();
        if let Some(slots) = &self.slots {
            all.extend(slots.present().functions.iter().map(|(_, function)| Arc::clone(function)));
        }
        all
    }

    /// Stops them, the last made first: what moves data stands still before what reports it.
    pub(crate) fn pause(&self, deadline: Instant) -> Result<(), FreezeFault> {
        self.all().into_iter().rev().try_for_each(|device| {
            let left = deadline.saturating_duration_since(Instant::now());
            device.pause(left).map_err(|error| FreezeFault::Device(Box::new(error)))
        })
    }

    /// Makes them as new, those that move data first. They are paused.
    pub(crate) fn reset(&self) -> Result<(), MachineError> {
        self.all().into_iter().rev().try_for_each(|device| {
            device.reset().map_err(|source| MachineError::Device {
                device: device.name().to_owned(),
                attempt: "be reset",
                source: Box::new(source),
            })
        })
    }

    /// Runs them again.
    pub(crate) fn resume(&self) -> Result<(), MachineError> {
        self.all().into_iter().try_for_each(|device| {
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
}

impl HotSlots {
    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a device a function on the bus.
    fn put(&self, made: Made, memory: &GuestMemory) -> Result<(), BuildError> {
        let Made { name, kind, slot, device } = made;
        let (address, base) = pci_place(slot);
        let config = PciConfig {
            name: name.clone(),
            instance: slot.number().into(),
            class: kind.pci_class(),
            base,
            memory: memory.clone(),
            lines: Arc::clone(&self.lines),
            doorbells: Arc::clone(&self.doorbells),
        };
        let device = Arc::new(VirtioPci::new(config, device).map_err(Made::failed(&name))?);
        self.root.insert(address, device.clone()).map_err(Made::failed(&name))?;
        self.present().functions.push((slot, device));
        Ok(())
    }
}

/// A disk's counters and limits.
#[derive(Clone, Debug)]
pub struct DiskInstruments {
    /// What it has done.
    pub metrics: Arc<BlkMetrics>,
    /// What it may do: anything, until limits are set.
    pub throttle: Arc<Throttle>,
}

fn make_disk(name: &str, disk: &Disk, around: &Surroundings<'_>) -> (Box<dyn VirtioDevice>, DiskInstruments) {
    let config = BlkConfig {
        name: name.to_owned(),
        id: disk.id.clone(),
        queues: disk.queues,
        events: Arc::clone(&around.events),
    };
    let block = VirtioBlk::new(config, Arc::clone(&disk.backend));
    let instruments = DiskInstruments { metrics: block.metrics(), throttle: block.throttle() };
    (Box::new(block), instruments)
}

fn make_other(
    name: &str,
    device: NewDevice,
    around: &Surroundings<'_>,
) -> Result<Box<dyn VirtioDevice>, BuildError> {
    let NewDevice { kind, make, .. } = device;
    let context = DeviceContext { name: name.to_owned(), events: Arc::clone(&around.events) };
    let device = make(context).map_err(|source| BuildError::Device { device: name.to_owned(), source })?;
    debug_assert_eq!(device.device_id(), kind.id(), "a device is of the kind it is announced as");
    Ok(device)
}

fn cannot_attach(name: &str) -> impl FnOnce(BuildError) -> MachineError {
    let device = name.to_owned();
    move |source| MachineError::Device { device, attempt: "be attached", source: Box::new(source) }
}

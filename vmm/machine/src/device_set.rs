//! The devices of a machine, in the order in which they are made.

use std::{sync::Arc, time::Instant};

use drover_bus::{Doorbells, IrqLine, MsiLines};
use drover_devices::{
    BlkConfig, ConsoleSink, Device, DeviceEvents, I8042, MmioConfig, PciConfig, PciRoot, Power, Serial,
    VirtioBlk, VirtioMmio, VirtioPci,
};
use drover_guest_memory::GuestMemory;
use drover_hypervisor::{Gsi, Vm};

use crate::{
    BuildError, DeviceBus, Disk, MachineError, Panel,
    address_map::{PCI_CONFIG, PCI_MEMORY, PCI_MEMORY_END, disk_function, disk_slot},
    pause::FreezeFault,
    vcpu_thread::Buses,
    wiring::{VmDoorbells, VmIrqLine, VmMsiLines},
};

/// A machine's devices.
#[derive(Debug)]
pub(crate) struct DeviceSet {
    devices: Vec<Arc<dyn Device>>,
    lines: Vec<Arc<VmIrqLine>>,
    panel: Panel,
}

/// What devices are connected to.
pub(crate) struct Surroundings<'a> {
    pub(crate) vm: &'a Vm,
    pub(crate) memory: &'a GuestMemory,
    pub(crate) events: Arc<dyn DeviceEvents>,
}

impl Surroundings<'_> {
    fn block(&self, index: usize, disk: &Disk) -> VirtioBlk {
        let config =
            BlkConfig { name: disk_name(index), id: disk.id.clone(), events: Arc::clone(&self.events) };
        VirtioBlk::new(config, Arc::clone(&disk.backend))
    }
}

/// Mass storage of a kind that the class codes do not know.
const PCI_CLASS_STORAGE: u32 = 0x01_8000;

fn disk_name(index: usize) -> String {
    format!("disk{index}")
}

fn disk_instance(index: usize) -> u16 {
    u16::try_from(index).expect("disks are counted against DISKS_MAX")
}

fn device_error(index: usize) -> impl FnOnce(std::io::Error) -> BuildError {
    move |source| BuildError::Device { device: disk_name(index), source: Box::new(source) }
}

impl DeviceSet {
    /// Makes the devices and puts them on the buses.
    pub(crate) fn new(
        around: &Surroundings<'_>,
        bus: DeviceBus,
        buses: &mut Buses,
        disks: &[Disk],
        console: Box<dyn ConsoleSink>,
    ) -> Result<Self, BuildError> {
        let line = VmIrqLine::new(around.vm, Gsi(Serial::GSI))?;
        let serial = Arc::new(Serial::new(line.clone(), console));
        buses.ports.insert("serial port", Serial::PORT, Serial::LEN, serial.clone())?;
        let i8042 = Arc::new(I8042::new(Arc::clone(&around.events)));
        buses.ports.insert("keyboard controller", I8042::PORT, I8042::LEN, i8042.clone())?;
        let power = Arc::new(Power::new(Arc::clone(&around.events)));
        buses.ports.insert("power registers", Power::PORT, Power::LEN, power.clone())?;
        let mut set = Self {
            devices: vec![serial.clone(), i8042, power],
            lines: vec![line],
            panel: Panel { serial, disk_metrics: Arc::default() },
        };
        let blocks: Vec<_> =
            disks.iter().enumerate().map(|(index, disk)| around.block(index, disk)).collect();
        set.panel.disk_metrics = blocks.iter().map(|block| block.metrics()).collect();
        match bus {
            DeviceBus::VirtioMmio => set.add_on_mmio(around, buses, blocks)?,
            DeviceBus::VirtioPci => set.add_on_pci(around, buses, blocks)?,
        }
        Ok(set)
    }

    /// Gives each disk a window and an interrupt line.
    fn add_on_mmio(
        &mut self,
        around: &Surroundings<'_>,
        buses: &mut Buses,
        blocks: Vec<VirtioBlk>,
    ) -> Result<(), BuildError> {
        let doorbells: Arc<dyn Doorbells> = Arc::new(VmDoorbells(around.vm.clone()));
        for (index, block) in blocks.into_iter().enumerate() {
            let slot = disk_slot(index);
            let line = VmIrqLine::new(around.vm, slot.gsi)?;
            self.lines.push(Arc::clone(&line));
            let config = MmioConfig {
                name: disk_name(index),
                instance: disk_instance(index),
                base: slot.window,
                memory: around.memory.clone(),
                line,
                doorbells: Arc::clone(&doorbells),
            };
            let device = VirtioMmio::new(config, Box::new(block)).map_err(device_error(index))?;
            let device = Arc::new(device);
            buses.mmio.insert("disk", slot.window, VirtioMmio::LEN, device.clone())?;
            self.devices.push(device);
        }
        Ok(())
    }

    /// Makes a PCI bus and each disk a function on it.
    fn add_on_pci(
        &mut self,
        around: &Surroundings<'_>,
        buses: &mut Buses,
        blocks: Vec<VirtioBlk>,
    ) -> Result<(), BuildError> {
        let doorbells: Arc<dyn Doorbells> = Arc::new(VmDoorbells(around.vm.clone()));
        let lines: Arc<dyn MsiLines> = Arc::new(VmMsiLines(around.vm.clone()));
        let mut root = PciRoot::new();
        let mut functions: Vec<Arc<dyn Device>> = Vec::with_capacity(blocks.len());
        for (index, block) in blocks.into_iter().enumerate() {
            let (address, base) = disk_function(index);
            let config = PciConfig {
                name: disk_name(index),
                instance: disk_instance(index),
                class: PCI_CLASS_STORAGE,
                base,
                memory: around.memory.clone(),
                lines: Arc::clone(&lines),
                doorbells: Arc::clone(&doorbells),
            };
            let device = Arc::new(VirtioPci::new(config, Box::new(block)).map_err(device_error(index))?);
            root.insert(address, device.clone()).map_err(|source| BuildError::Device {
                device: disk_name(index),
                source: Box::new(source),
            })?;
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

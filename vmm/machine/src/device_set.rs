//! The devices of a machine, in the order in which they are made.

use std::{sync::Arc, time::Instant};

use drover_bus::{Doorbells, IrqLine};
use drover_devices::{
    BlkConfig, ConsoleSink, Device, DeviceEvents, I8042, MmioConfig, Serial, VirtioBlk, VirtioMmio,
};
use drover_guest_memory::GuestMemory;
use drover_hypervisor::{Gsi, Vm};

use crate::{
    BuildError, Disk, MachineError, Panel,
    address_map::disk_slot,
    pause::FreezeFault,
    vcpu_thread::Buses,
    wiring::{VmDoorbells, VmIrqLine},
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

impl DeviceSet {
    /// Makes the devices and puts them on the buses.
    pub(crate) fn new(
        around: &Surroundings<'_>,
        buses: &mut Buses,
        disks: &[Disk],
        console: Box<dyn ConsoleSink>,
    ) -> Result<Self, BuildError> {
        let line = VmIrqLine::new(around.vm, Gsi(Serial::GSI))?;
        let mut lines = vec![Arc::clone(&line)];
        let serial = Arc::new(Serial::new(line, console));
        buses.ports.insert("serial port", Serial::PORT, Serial::LEN, serial.clone())?;
        let i8042 = Arc::new(I8042::new(Arc::clone(&around.events)));
        buses.ports.insert("keyboard controller", I8042::PORT, I8042::LEN, i8042.clone())?;
        let mut devices: Vec<Arc<dyn Device>> = vec![serial.clone(), i8042];
        let doorbells: Arc<dyn Doorbells> = Arc::new(VmDoorbells(around.vm.clone()));
        let mut disk_metrics = Vec::with_capacity(disks.len());
        for (index, disk) in disks.iter().enumerate() {
            let slot = disk_slot(index);
            let line = VmIrqLine::new(around.vm, slot.gsi)?;
            lines.push(Arc::clone(&line));
            let name = format!("disk{index}");
            let config =
                BlkConfig { name: name.clone(), id: disk.id.clone(), events: Arc::clone(&around.events) };
            let block = VirtioBlk::new(config, Arc::clone(&disk.backend));
            disk_metrics.push(block.metrics());
            let config = MmioConfig {
                name: name.clone(),
                instance: u16::try_from(index).expect("disks are counted against DISKS_MAX"),
                base: slot.window,
                memory: around.memory.clone(),
                line,
                doorbells: Arc::clone(&doorbells),
            };
            let device = VirtioMmio::new(config, Box::new(block))
                .map_err(|source| BuildError::Device { device: name, source: Box::new(source) })?;
            let device = Arc::new(device);
            buses.mmio.insert("disk", slot.window, VirtioMmio::LEN, device.clone())?;
            devices.push(device);
        }
        Ok(Self { devices, lines, panel: Panel { serial, disk_metrics: disk_metrics.into() } })
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

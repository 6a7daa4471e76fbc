//! Where a guest finds a device: behind registers of its own, or as a function on a PCI bus. Registers are named by their
//! place in the first, and found in the other.

use std::{io, sync::Arc};

use drover_bus::{BusDevice, Doorbell, DoorbellAddress, IrqLine as _, MsiLine, MsiLines, MsiMessage};
use drover_devices::{
    Device, MmioConfig, PciAddress, PciConfig, PciRoot, VirtioDevice, VirtioMmio, VirtioPci,
};
use drover_guest_memory::GuestMemory;
use drover_units::Bytes;

use super::{BASE, Bells, Line};

/// How a device is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Mmio,
    Pci,
}

/// A device's slot: which one of the bus, and its configuration space in the memory-mapped window.
const SLOT: u8 = 3;
const ECAM: u64 = 3 << 15;
/// Parts of the function's memory.
const DEVICE_CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x8000;
/// Vectors that the driver fills in: one for changes, one for each queue of the largest device here.
const VECTORS: u64 = 6;

/// One device in its place.
pub(crate) enum Machine {
    Mmio(Arc<VirtioMmio>),
    Pci { function: Arc<VirtioPci>, window: Arc<dyn BusDevice> },
}

/// Messages that come where the line of the other transport does.
#[derive(Debug)]
struct Messages(Arc<Line>);

#[derive(Debug)]
struct Message(Arc<Line>);

impl MsiLines for Messages {
    fn line(&self) -> io::Result<Arc<dyn MsiLine>> {
        Ok(Arc::new(Message(Arc::clone(&self.0))))
    }
}

impl MsiLine for Message {
    fn route(&self, _message: MsiMessage) -> io::Result<()> {
        Ok(())
    }

    fn pulse(&self) -> io::Result<()> {
        self.0.pulse()
    }
}

impl Machine {
    pub(crate) fn new(
        transport: Transport,
        device: Box<dyn VirtioDevice>,
        memory: &GuestMemory,
        (line, bells): (&Arc<Line>, &Arc<Bells>),
    ) -> Self {
        let (name, memory, doorbells) = ("device".into(), memory.clone(), bells.clone());
        if transport == Transport::Mmio {
            let line = line.clone();
            let config = MmioConfig { name, instance: 0, base: BASE, memory, line, doorbells };
            return Self::Mmio(Arc::new(VirtioMmio::new(config, device).unwrap()));
        }
        let lines = Arc::new(Messages(Arc::clone(line)));
        let class = 0xff_0000;
        let config = PciConfig { name, instance: 0, class, base: BASE, memory, lines, doorbells };
        let function = Arc::new(VirtioPci::new(config, device).unwrap());
        let root = Arc::new(PciRoot::new());
        root.insert(PciAddress::device(SLOT).unwrap(), function.clone()).unwrap();
        let window = root.memory(BASE);
        enable(root.ecam().as_ref(), window.as_ref());
        Self::Pci { function, window }
    }

    pub(crate) fn device(&self) -> Arc<dyn Device> {
        match self {
            Self::Mmio(device) => device.clone(),
            Self::Pci { function, .. } => function.clone(),
        }
    }

    pub(crate) fn register(&self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        match self {
            Self::Mmio(device) => device.read(offset, &mut data),
            Self::Pci { window, .. } => {
                let (at, len) = on_pci(offset);
                data = [0; 4];
                window.read(at, &mut data[..len]);
            }
        }
        u32::from_le_bytes(data)
    }

    pub(crate) fn set_register(&self, offset: u64, value: u32) {
        match self {
            Self::Mmio(device) => device.write(offset, &value.to_le_bytes()),
            Self::Pci { window, .. } => {
                let (at, len) = on_pci(offset);
                window.write(at, &value.to_le_bytes()[..len]);
            }
        }
    }

    pub(crate) fn write_config(&self, offset: u64, bytes: &[u8]) {
        match self {
            Self::Mmio(device) => device.write(0x100 + offset, bytes),
            Self::Pci { window, .. } => window.write(DEVICE_CONFIG + offset, bytes),
        }
    }

    /// Changes and the chosen queue have a vector, where there are vectors.
    pub(crate) fn connect(&self, queue: usize) {
        if let Self::Pci { window, .. } = self {
            window.write(0x10, &0_u16.to_le_bytes());
            window.write(0x1a, &(queue as u16 + 1).to_le_bytes());
        }
    }

    pub(crate) fn doorbell(&self, queue: usize) -> Doorbell {
        let at = |offset| DoorbellAddress::Mmio(BASE.checked_offset(Bytes::new(offset)).unwrap());
        match self {
            Self::Mmio(_) => Doorbell { address: at(0x50), value: Some(queue as u32) },
            Self::Pci { .. } => Doorbell { address: at(NOTIFY + 4 * queue as u64), value: None },
        }
    }
}

/// Turns the function's memory and its vectors on.
fn enable(ecam: &dyn BusDevice, window: &dyn BusDevice) {
    let config = |register: u64| {
        let mut data = [0; 4];
        ecam.read(ECAM + register, &mut data);
        u32::from_le_bytes(data)
    };
    ecam.write(ECAM + 4, &0b110_u32.to_le_bytes());
    let mut capability = u64::from(config(0x34) & 0xff);
    while config(capability) & 0xff != 0x11 {
        capability = u64::from(config(capability) >> 8 & 0xff);
        assert_ne!(capability, 0, "the function has MSI-X");
    }
    ecam.write(ECAM + capability, &(1_u32 << 31).to_le_bytes());
    for vector in 0..VECTORS {
        window.write(TABLE + 16 * vector, &0xfee0_0000_u64.to_le_bytes());
        window.write(TABLE + 16 * vector + 8, &(0x40 + vector).to_le_bytes());
    }
}

/// Where the common configuration has a register of the other transport, and its length (4.1.4.3 and 4.2.2).
fn on_pci(offset: u64) -> (u64, usize) {
    match offset {
        0x10 => (0x4, 4),
        0x14 => (0x0, 4),
        0x20 => (0xc, 4),
        0x24 => (0x8, 4),
        0x30 => (0x16, 2),
        0x38 => (0x18, 2),
        0x44 => (0x1c, 2),
        0x70 => (0x14, 1),
        0x80 | 0x84 => (offset - 0x80 + 0x20, 4),
        0x90 | 0x94 => (offset - 0x90 + 0x28, 4),
        0xa0 | 0xa4 => (offset - 0xa0 + 0x30, 4),
        0x100.. => (DEVICE_CONFIG + offset - 0x100, 4),
        _ => panic!("register {offset:#x} is nowhere on PCI"),
    }
}

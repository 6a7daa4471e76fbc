//! A device's registers: on the MMIO transport (virtio 1.2, section 4.2.2; version 2 only, version 1 is the legacy interface),
//! or on a PCI bus (pci.rs).

use core::cell::Cell;

use drover_probe_record::MmioDevice;

use super::pci;
use crate::apic;
use crate::gate::DEVICE_VECTOR;
use crate::instructions::{read_register, write_register};
use crate::serial::report_error;

const MAGIC: usize = 0x000;
const VERSION: usize = 0x004;
const DEVICE_ID: usize = 0x008;
const DEVICE_FEATURES: usize = 0x010;
const DEVICE_FEATURES_SELECT: usize = 0x014;
const DRIVER_FEATURES: usize = 0x020;
const DRIVER_FEATURES_SELECT: usize = 0x024;
const QUEUE_SELECT: usize = 0x030;
const QUEUE_SIZE_MAX: usize = 0x034;
const QUEUE_SIZE: usize = 0x038;
const QUEUE_READY: usize = 0x044;
const QUEUE_NOTIFY: usize = 0x050;
const INTERRUPT_STATUS: usize = 0x060;
const INTERRUPT_ACK: usize = 0x064;
const STATUS: usize = 0x070;
const QUEUE_DESCRIPTORS: usize = 0x080;
const QUEUE_AVAILABLE: usize = 0x090;
const QUEUE_USED: usize = 0x0a0;
const CONFIG: usize = 0x100;

const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
const CONFIGURATION_CHANGED: u32 = 2;
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;

/// Everything that this driver needs of a device (virtio 1.2, section 6).
pub(crate) const VERSION_1: u64 = 1 << 32;

/// Queues whose bells are remembered.
const BELLS: usize = super::queue::QUEUES_MAX;

/// A device's registers.
pub(crate) struct Transport {
    bus: Bus,
}

enum Bus {
    Mmio {
        base: usize,
        interrupt: u32,
    },
    /// And where the queues' bells are.
    Pci(pci::Registers, [Cell<usize>; BELLS]),
}

/// Where a device is.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// Among those that the command line announces.
    Announced(&'a MmioDevice),
    /// On the PCI bus, by its number.
    Pci(u32),
}

impl core::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Place::Announced(device) => device.fmt(f),
            Place::Pci(number) => write!(f, "PCI device {number}"),
        }
    }
}

/// Everywhere that a device may be: where the command line announces any, there, and otherwise on the PCI bus.
pub(crate) fn places(announced: &[MmioDevice]) -> impl Iterator<Item = Place<'_>> {
    let on_pci = if announced.is_empty() { 0..pci::DEVICES } else { 0..0 };
    announced.iter().map(Place::Announced).chain(on_pci.map(Place::Pci))
}

/// Where the device finds a queue's parts.
pub(crate) struct QueueAddresses {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

impl Transport {
    /// The device at an announced place, with its type (section 5); `None` where none is plugged in.
    ///
    /// # Errors
    /// There is no virtio device, or one of another version.
    pub(crate) fn open(place: &MmioDevice) -> Result<Option<(Transport, u32)>, &'static str> {
        let base = place.address as usize;
        if read_register(base + MAGIC) != MAGIC_VALUE {
            return Err("no virtio device is there");
        }
        if read_register(base + VERSION) != 2 {
            return Err("it is a legacy device (version 1), this driver wants version 2");
        }
        let kind = read_register(base + DEVICE_ID);
        let bus = Bus::Mmio { base, interrupt: place.irq };
        Ok((kind != 0).then_some((Transport { bus }, kind)))
    }

    /// The first announced device of a type; those that cannot be opened are reported.
    pub(crate) fn find(places: &[MmioDevice], device_type: u32) -> Option<Transport> {
        places.iter().find_map(|place| match Self::open(place) {
            Ok(Some((transport, kind))) if kind == device_type => Some(transport),
            Ok(_) => None,
            Err(why) => {
                report_error(format_args!("{place}: {why}"));
                None
            }
        })
    }

    /// What is at a place of either kind, with its type.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_at(place: Place<'_>) -> Result<Option<(Transport, u32)>, &'static str> {
        match place {
            Place::Announced(device) => Self::open(device),
            Place::Pci(number) => match pci::kind(number) {
                None => Ok(None),
                Some(kind) => {
                    let bus = Bus::Pci(pci::Registers::open(number)?, [const { Cell::new(0) }; BELLS]);
                    Ok(Some((Transport { bus }, kind)))
                }
            },
        }
    }

    /// Has its interrupts come here.
    ///
    /// # Errors
    /// There is no way for them.
    pub(crate) fn route_interrupts(&self) -> Result<(), &'static str> {
        match &self.bus {
            Bus::Mmio { interrupt, .. } => apic::route(*interrupt, DEVICE_VECTOR),
            // They come as messages, which have been told where to go.
            Bus::Pci(..) => Ok(()),
        }
    }

    /// Makes the device let go of all memory.
    pub(crate) fn reset(&self) {
        self.set_status(0);
    }

    /// Resets the device and agrees on features: those of `wanted` that it offers.
    ///
    /// # Errors
    /// The device does not reset, does not offer [`VERSION_1`], or does not accept what it offered.
    pub(crate) fn negotiate(&self, wanted: u64) -> Result<u64, &'static str> {
        self.set_status(0);
        if self.status() != 0 {
            return Err("it does not reset");
        }
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        let half = |select| {
            u64::from(match &self.bus {
                Bus::Mmio { base, .. } => {
                    write_register(base + DEVICE_FEATURES_SELECT, select);
                    read_register(base + DEVICE_FEATURES)
                }
                Bus::Pci(registers, _) => registers.offered(select),
            })
        };
        let offered = half(0) | half(1) << 32;
        if offered & VERSION_1 == 0 {
            return Err("it does not offer VIRTIO_F_VERSION_1");
        }
        let agreed = offered & (wanted | VERSION_1);
        for (select, half) in [(0, agreed as u32), (1, (agreed >> 32) as u32)] {
            match &self.bus {
                Bus::Mmio { base, .. } => {
                    write_register(base + DRIVER_FEATURES_SELECT, select);
                    write_register(base + DRIVER_FEATURES, half);
                }
                Bus::Pci(registers, _) => registers.accept(select, half),
            }
        }
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if self.status() & FEATURES_OK == 0 {
            return Err("it does not accept the features that it offers");
        }
        Ok(agreed)
    }

    /// The entries that a queue can have, 0 for no such queue.
    pub(crate) fn queue_size_max(&self, queue: u32) -> u32 {
        match &self.bus {
            Bus::Mmio { base, .. } => {
                write_register(base + QUEUE_SELECT, queue);
                read_register(base + QUEUE_SIZE_MAX)
            }
            Bus::Pci(registers, _) => registers.queue_size_max(queue),
        }
    }

    /// Hands a queue to the device.
    pub(crate) fn set_up_queue(&self, queue: u32, size: u16, addresses: &QueueAddresses) {
        match &self.bus {
            Bus::Mmio { base, .. } => {
                write_register(base + QUEUE_SELECT, queue);
                write_register(base + QUEUE_SIZE, u32::from(size));
                for (register, address) in [
                    (QUEUE_DESCRIPTORS, addresses.descriptors),
                    (QUEUE_AVAILABLE, addresses.available),
                    (QUEUE_USED, addresses.used),
                ] {
                    write_register(base + register, address as u32);
                    write_register(base + register + 4, (address >> 32) as u32);
                }
                write_register(base + QUEUE_READY, 1);
            }
            Bus::Pci(registers, bells) => {
                registers.set_up_queue(queue, size, addresses);
                bells[queue as usize % BELLS].set(registers.bell(queue));
            }
        }
    }

    /// Lets the device work on the queues that it has.
    pub(crate) fn start(&self) {
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Rings a queue's bell.
    pub(crate) fn notify(&self, queue: u32) {
        match &self.bus {
            Bus::Mmio { base, .. } => write_register(base + QUEUE_NOTIFY, queue),
            Bus::Pci(_, bells) => write_register(bells[queue as usize % BELLS].get(), queue),
        }
    }

    /// Takes note of an interrupt, so that the next one is a new edge. Returns whether the device has given up, which comes
    /// as a change of configuration (section 2.1.2).
    pub(crate) fn acknowledge_interrupt(&self) -> bool {
        match &self.bus {
            Bus::Mmio { base, .. } => {
                let pending = read_register(base + INTERRUPT_STATUS);
                write_register(base + INTERRUPT_ACK, pending);
                pending & CONFIGURATION_CHANGED != 0 && self.status() & NEEDS_RESET != 0
            }
            // Messages need no answer. A device that has been pulled out reads as ones.
            Bus::Pci(registers, _) => {
                let status = registers.status();
                status != 0xff && status & NEEDS_RESET != 0
            }
        }
    }

    /// A 64-bit field of the device's configuration; read once, before the device runs, while it cannot change.
    pub(crate) fn config(&self, offset: usize) -> u64 {
        let half = |offset| u64::from(self.config_half(offset));
        half(offset) | half(offset + 4) << 32
    }

    /// 32 bits of the device's configuration, which may change at any time.
    pub(crate) fn config_half(&self, offset: usize) -> u32 {
        read_register(self.config_base() + offset)
    }

    /// Changes 32 bits of the device's configuration.
    pub(crate) fn set_config(&self, offset: usize, value: u32) {
        write_register(self.config_base() + offset, value);
    }

    fn config_base(&self) -> usize {
        match &self.bus {
            Bus::Mmio { base, .. } => base + CONFIG,
            Bus::Pci(registers, _) => registers.device(),
        }
    }

    fn status(&self) -> u32 {
        match &self.bus {
            Bus::Mmio { base, .. } => read_register(base + STATUS),
            Bus::Pci(registers, _) => registers.status(),
        }
    }

    fn set_status(&self, status: u32) {
        match &self.bus {
            Bus::Mmio { base, .. } => write_register(base + STATUS, status),
            Bus::Pci(registers, _) => registers.set_status(status),
        }
    }
}

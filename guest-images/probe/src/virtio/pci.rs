//! The PCI transport (virtio 1.2, section 4.1) on the bus of our own machine: its configuration space is at an address that this
//! knows, and its devices' memory has been placed by the VMM.
//!
//! Each field is read and written in its own width (section 4.1.3.1). Every queue interrupts by the one MSI-X entry, which
//! goes where the interrupts of devices on the other transport go.

use super::transport::QueueAddresses;
use crate::apic;
use crate::gate::DEVICE_VECTOR;
use crate::instructions::{read_register, write_register};

/// Device numbers of the bus.
pub(crate) const DEVICES: u32 = 32;
/// The machine's configuration space (its address map), a page for each function, eight functions for each device.
const CONFIGURATION: usize = 0xc800_0000;
const DEVICE_BYTES: usize = 1 << 15;

const VIRTIO_VENDOR: u32 = 0x1af4;
/// Device ids of virtio 1.x are this plus the device's type (section 4.1.2).
const FIRST_DEVICE_ID: u32 = 0x1040;

const COMMAND: usize = 0x04;
const MEMORY_AND_BUS_MASTER: u32 = 0b110;
const FIRST_BAR: usize = 0x10;
const BAR_ADDRESS: u32 = !0xf;
const CAPABILITIES: usize = 0x34;
const CAPABILITY_VENDOR: u32 = 0x09;
const CAPABILITY_MSIX: u32 = 0x11;
/// A list that does not end is no list.
const CAPABILITIES_MAX: usize = 48;
const MSIX_ENABLE: u32 = 1 << 31;

/// Kinds of virtio structures (section 4.1.4).
const COMMON: u32 = 1;
const NOTIFY: u32 = 2;
const DEVICE: u32 = 4;

// The common configuration (section 4.1.4.3).
const DEVICE_FEATURES_SELECT: usize = 0x00;
const DEVICE_FEATURES: usize = 0x04;
const DRIVER_FEATURES_SELECT: usize = 0x08;
const DRIVER_FEATURES: usize = 0x0c;
const STATUS: usize = 0x14;
const QUEUE_SELECT: usize = 0x16;
const QUEUE_SIZE: usize = 0x18;
const QUEUE_VECTOR: usize = 0x1a;
const QUEUE_ENABLE: usize = 0x1c;
const QUEUE_NOTIFY_OFFSET: usize = 0x1e;
const QUEUE_DESCRIPTORS: usize = 0x20;
const QUEUE_AVAILABLE: usize = 0x28;
const QUEUE_USED: usize = 0x30;

/// Where a device's structures are.
pub(crate) struct Registers {
    common: usize,
    notify: usize,
    notify_multiplier: usize,
    device: usize,
}

/// What is on the bus at this number: its type, if it is a virtio device.
pub(crate) fn kind(number: u32) -> Option<u32> {
    let identity = read_register(configuration(number));
    let is_ours = identity & 0xffff == VIRTIO_VENDOR;
    (identity >> 16).checked_sub(FIRST_DEVICE_ID).filter(|_| is_ours)
}

fn configuration(number: u32) -> usize {
    CONFIGURATION + number as usize * DEVICE_BYTES
}

impl Registers {
    /// Those of the virtio device with this number, which may interrupt from now on.
    ///
    /// # Errors
    /// It has not all that this driver needs.
    pub(crate) fn open(number: u32) -> Result<Self, &'static str> {
        let config = configuration(number);
        write_register(config + COMMAND, MEMORY_AND_BUS_MASTER);
        let mut registers = Registers { common: 0, notify: 0, notify_multiplier: 0, device: 0 };
        let mut at = read_register(config + CAPABILITIES) as usize & 0xfc;
        for _ in 0..CAPABILITIES_MAX {
            if at == 0 {
                break;
            }
            let head = read_register(config + at);
            match head & 0xff {
                CAPABILITY_VENDOR => registers.take(config, at, head >> 24),
                CAPABILITY_MSIX => interrupt_here(config, at),
                _ => {}
            }
            at = (head >> 8) as usize & 0xfc;
        }
        let Registers { common, notify, device, .. } = registers;
        if common == 0 || notify == 0 || device == 0 {
            return Err("it lacks a structure that every virtio device has");
        }
        Ok(registers)
    }

    fn take(&mut self, config: usize, at: usize, kind: u32) {
        let bar = read_register(config + at + 4) & 0xff;
        let place = memory_of(config, bar) + read_register(config + at + 8) as usize;
        match kind {
            COMMON => self.common = place,
            NOTIFY => {
                self.notify = place;
                self.notify_multiplier = read_register(config + at + 16) as usize;
            }
            DEVICE => self.device = place,
            _ => {}
        }
    }

    pub(super) fn set_status(&self, status: u32) {
        store(self.common + STATUS, status as u8);
    }

    pub(super) fn status(&self) -> u32 {
        u32::from(load::<u8>(self.common + STATUS))
    }

    /// 32 of the features that it offers.
    pub(super) fn offered(&self, select: u32) -> u32 {
        store(self.common + DEVICE_FEATURES_SELECT, select);
        load(self.common + DEVICE_FEATURES)
    }

    pub(super) fn accept(&self, select: u32, features: u32) {
        store(self.common + DRIVER_FEATURES_SELECT, select);
        store(self.common + DRIVER_FEATURES, features);
    }

    pub(super) fn queue_size_max(&self, queue: u32) -> u32 {
        store(self.common + QUEUE_SELECT, queue as u16);
        u32::from(load::<u16>(self.common + QUEUE_SIZE))
    }

    pub(super) fn set_up_queue(&self, queue: u32, size: u16, addresses: &QueueAddresses) {
        store(self.common + QUEUE_SELECT, queue as u16);
        store(self.common + QUEUE_SIZE, size);
        store(self.common + QUEUE_VECTOR, 0u16);
        for (register, address) in [
            (QUEUE_DESCRIPTORS, addresses.descriptors),
            (QUEUE_AVAILABLE, addresses.available),
            (QUEUE_USED, addresses.used),
        ] {
            store(self.common + register, address as u32);
            store(self.common + register + 4, (address >> 32) as u32);
        }
        store(self.common + QUEUE_ENABLE, 1u16);
    }

    /// Where a queue's bell is.
    pub(super) fn bell(&self, queue: u32) -> usize {
        store(self.common + QUEUE_SELECT, queue as u16);
        let offset = usize::from(load::<u16>(self.common + QUEUE_NOTIFY_OFFSET));
        self.notify + offset * self.notify_multiplier
    }

    /// Where the device's own configuration is.
    pub(super) fn device(&self) -> usize {
        self.device
    }
}

/// Where the memory behind a base address register is. All of the probe's memory is below 4 GiB.
fn memory_of(config: usize, bar: u32) -> usize {
    (read_register(config + FIRST_BAR + 4 * bar as usize) & BAR_ADDRESS) as usize
}

/// Lets the first entry of the MSI-X table interrupt this vCPU (PCI Local Bus 3.0, section 6.8.2).
fn interrupt_here(config: usize, at: usize) {
    let table = read_register(config + at + 4);
    let entry = memory_of(config, table & 7) + (table & !7) as usize;
    let (address, data) = apic::message_to_here(DEVICE_VECTOR);
    for (offset, value) in [(0, address), (4, 0), (8, data), (12, 0)] {
        write_register(entry + offset, value);
    }
    write_register(config + at, read_register(config + at) | MSIX_ENABLE);
}

fn store<T>(address: usize, value: T) {
    // SAFETY: a register of a device's, aligned, which no Rust object shares.
    unsafe { (address as *mut T).write_volatile(value) }
}

fn load<T: Copy>(address: usize) -> T {
    // SAFETY: as for `store`.
    unsafe { (address as *const T).read_volatile() }
}

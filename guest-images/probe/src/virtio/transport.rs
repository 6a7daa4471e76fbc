//! The MMIO transport's registers (virtio 1.2, section 4.2.2). Version 2 only: version 1 is the legacy interface.

use drover_probe_record::MmioDevice;

use crate::instructions::{read_register, write_register};

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

/// A device's registers.
pub(crate) struct Transport {
    base: usize,
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
        let transport = Transport { base: place.address as usize };
        if transport.read(MAGIC) != MAGIC_VALUE {
            return Err("no virtio device is there");
        }
        if transport.read(VERSION) != 2 {
            return Err("it is a legacy device (version 1), this driver wants version 2");
        }
        let kind = transport.read(DEVICE_ID);
        Ok((kind != 0).then_some((transport, kind)))
    }

    /// Resets the device and agrees on features: those of `wanted` that it offers.
    ///
    /// # Errors
    /// The device does not reset, does not offer [`VERSION_1`], or does not accept what it offered.
    pub(crate) fn negotiate(&self, wanted: u64) -> Result<u64, &'static str> {
        self.write(STATUS, 0);
        if self.read(STATUS) != 0 {
            return Err("it does not reset");
        }
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        let half = |select| {
            self.write(DEVICE_FEATURES_SELECT, select);
            u64::from(self.read(DEVICE_FEATURES))
        };
        let offered = half(0) | half(1) << 32;
        if offered & VERSION_1 == 0 {
            return Err("it does not offer VIRTIO_F_VERSION_1");
        }
        let agreed = offered & (wanted | VERSION_1);
        for (select, half) in [(0, agreed as u32), (1, (agreed >> 32) as u32)] {
            self.write(DRIVER_FEATURES_SELECT, select);
            self.write(DRIVER_FEATURES, half);
        }
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if self.read(STATUS) & FEATURES_OK == 0 {
            return Err("it does not accept the features that it offers");
        }
        Ok(agreed)
    }

    /// The entries that a queue can have, 0 for no such queue.
    pub(crate) fn queue_size_max(&self, queue: u32) -> u32 {
        self.write(QUEUE_SELECT, queue);
        self.read(QUEUE_SIZE_MAX)
    }

    /// Hands a queue to the device.
    pub(crate) fn set_up_queue(&self, queue: u32, size: u16, addresses: &QueueAddresses) {
        self.write(QUEUE_SELECT, queue);
        self.write(QUEUE_SIZE, u32::from(size));
        self.write_address(QUEUE_DESCRIPTORS, addresses.descriptors);
        self.write_address(QUEUE_AVAILABLE, addresses.available);
        self.write_address(QUEUE_USED, addresses.used);
        self.write(QUEUE_READY, 1);
    }

    /// Lets the device work on the queues that it has.
    pub(crate) fn start(&self) {
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Rings a queue's bell.
    pub(crate) fn notify(&self, queue: u32) {
        self.write(QUEUE_NOTIFY, queue);
    }

    /// Takes note of an interrupt, so that the next one is a new edge. Returns whether the device has given up, which comes
    /// as a change of configuration (section 2.1.2).
    pub(crate) fn acknowledge_interrupt(&self) -> bool {
        let pending = self.read(INTERRUPT_STATUS);
        self.write(INTERRUPT_ACK, pending);
        pending & CONFIGURATION_CHANGED != 0 && self.read(STATUS) & NEEDS_RESET != 0
    }

    /// A 64-bit field of the device's configuration; read once, before the device runs, while it cannot change.
    pub(crate) fn config(&self, offset: usize) -> u64 {
        let half = |offset| u64::from(self.read(CONFIG + offset));
        half(offset) | half(offset + 4) << 32
    }

    /// 32 bits of the device's configuration, which may change at any time.
    pub(crate) fn config_half(&self, offset: usize) -> u32 {
        self.read(CONFIG + offset)
    }

    /// Changes 32 bits of the device's configuration.
    pub(crate) fn set_config(&self, offset: usize, value: u32) {
        self.write(CONFIG + offset, value);
    }

    fn write_address(&self, register: usize, address: u64) {
        self.write(register, address as u32);
        self.write(register + 4, (address >> 32) as u32);
    }

    fn read(&self, register: usize) -> u32 {
        read_register(self.base + register)
    }

    fn write(&self, register: usize, value: u32) {
        write_register(self.base + register, value);
    }
}

//! Registers of one device in a window of guest-physical addresses.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drover_bus::{BusDevice, Doorbell, DoorbellAddress, Doorbells, IrqLine};
use drover_guest_memory::GuestMemory;
use drover_saved_state::{Envelope, SavedState};
use drover_units::{Bytes, Gpa};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    interrupt::MmioInterrupt,
    request::{Read, Ring, WINDOW_LEN, Write, parse_read, parse_write},
    state::MmioState,
};
use crate::{Device, DeviceError, Saved, VirtioDevice, virtio::negotiation::Negotiation};

/// "virt" (4.2.2).
const MAGIC: u32 = 0x7472_6976;
/// Not the legacy interface.
const VERSION: u32 = 2;
/// "DROV"; the driver prints it and does not care.
const VENDOR_ID: u32 = 0x564f_5244;

/// Where a device is and what it is connected to.
#[derive(Debug)]
pub struct MmioConfig {
    /// For people, and for telling devices of one kind apart; for instance `disk0`.
    pub name: String,
    /// The device's number among those of its transport: the instance of its saved state.
    pub instance: u16,
    /// First address of its register window of [`VirtioMmio::LEN`] bytes.
    pub base: Gpa,
    /// Guest RAM.
    pub memory: GuestMemory,
    /// Its interrupt.
    pub line: Arc<dyn IrqLine>,
    /// Where its queues' doorbells are connected.
    pub doorbells: Arc<dyn Doorbells>,
}

/// A device behind MMIO registers. Goes on the MMIO bus at [`MmioConfig::base`].
#[derive(Debug)]
pub struct VirtioMmio {
    name: String,
    instance: u16,
    base: Gpa,
    interrupt: Arc<MmioInterrupt>,
    doorbells: Arc<dyn Doorbells>,
    bells: Arc<[EventFd]>,
    /// How many of `bells` are connected: all of them, once made.
    connected: usize,
    registers: Mutex<Negotiation<MmioInterrupt>>,
}

impl VirtioMmio {
    /// Length of the register window, bytes.
    pub const LEN: u64 = WINDOW_LEN;

    /// Connects a device's doorbells and puts registers before it.
    ///
    /// # Errors
    /// Where the host has no more descriptors or doorbells.
    pub fn new(config: MmioConfig, device: Box<dyn VirtioDevice>) -> io::Result<Self> {
        let count = device.queue_sizes().len();
        let bells: Arc<[EventFd]> =
            (0..count).map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<_>>()?;
        let interrupt = Arc::new(MmioInterrupt::new(config.line));
        let registers = Negotiation::new(
            config.name.clone(),
            config.memory,
            Arc::clone(&interrupt),
            Arc::clone(&bells),
            device,
        );
        let mut transport = Self {
            name: config.name,
            instance: config.instance,
            base: config.base,
            interrupt,
            doorbells: config.doorbells,
            bells,
            connected: 0,
            registers: Mutex::new(registers),
        };
        // One by one, so that dropping a half-connected transport disconnects exactly what was connected.
        for queue in 0..count {
            transport.doorbells.connect(transport.doorbell(queue), &transport.bells[queue])?;
            transport.connected += 1;
        }
        Ok(transport)
    }

    /// A write of a queue's number to QueueNotify.
    fn doorbell(&self, queue: usize) -> Doorbell {
        let offset = Bytes::new(VIRTIO_MMIO_QUEUE_NOTIFY.into());
        let address = self.base.checked_offset(offset).expect("the machine places windows below 4 GiB");
        let value = Some(u32::try_from(queue).expect("a device has few queues"));
        Doorbell { address: DoorbellAddress::Mmio(address), value }
    }

    fn registers(&self) -> MutexGuard<'_, Negotiation<MmioInterrupt>> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, register: Read) -> u32 {
        let registers = self.registers();
        match register {
            Read::Magic => MAGIC,
            Read::Version => VERSION,
            Read::DeviceId => registers.device().device_id(),
            Read::VendorId => VENDOR_ID,
            Read::DeviceFeatures => registers.device_features(),
            Read::QueueSizeMax => registers.queue_size_max().into(),
            Read::QueueReady => registers.queue().is_some_and(|queue| queue.ready).into(),
            Read::InterruptStatus => self.interrupt.status(),
            Read::Status => registers.status(),
            Read::NoSharedMemory => u32::MAX,
            Read::ConfigGeneration => registers.device().config_generation(),
            // Answered where the access is known in its length.
            Read::Config(_) => 0,
        }
    }

    fn write_register(&self, register: Write) {
        match register {
            // Not under the lock: both are what a running guest writes.
            Write::InterruptAck(bits) => return self.interrupt.acknowledge(bits),
            Write::QueueNotify(queue) => return self.ring(queue),
            _ => {}
        }
        let mut registers = self.registers();
        match register {
            Write::DeviceFeaturesSelect(select) => registers.select_device_features(select),
            Write::DriverFeaturesSelect(select) => registers.select_driver_features(select),
            Write::DriverFeatures(value) => registers.set_driver_features(value),
            Write::QueueSelect(select) => registers.select_queue(select),
            Write::QueueSize(size) => {
                registers.configure_queue(|queue| queue.size = u16::try_from(size).unwrap_or(0));
            }
            Write::QueueReady(ready) => registers.configure_queue(|queue| queue.ready = ready),
            Write::QueueAddress(ring, half, value) => registers.configure_queue(|queue| {
                let address = match ring {
                    Ring::Descriptors => &mut queue.descriptors,
                    Ring::Available => &mut queue.available,
                    Ring::Used => &mut queue.used,
                };
                *address = half.replace(*address, value);
            }),
            Write::Status(status) => registers.set_status(status),
            Write::InterruptAck(_) | Write::QueueNotify(_) => unreachable!("answered above"),
            // Answered where its bytes are.
            Write::Config(_) => {}
        }
    }

    /// A notification that came through the bus: its doorbell is not connected at the moment.
    fn ring(&self, queue: u32) {
        if let Some(bell) = self.bells.get(queue as usize) {
            // Fails only where the counter is full, and then it rings already.
            let _ = bell.write(1);
        }
    }
}

impl BusDevice for VirtioMmio {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match parse_read(offset, data.len()) {
            Some(Read::Config(offset)) => self.registers().device().read_config(offset, data),
            Some(register) => data.copy_from_slice(&self.read_register(register).to_le_bytes()),
            None => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match parse_write(offset, data) {
            Some(Write::Config(offset)) => self.registers().device_mut().write_config(offset, data),
            Some(register) => self.write_register(register),
            None => {}
        }
    }
}

impl Device for VirtioMmio {
    fn name(&self) -> &str {
        &self.name
    }

    fn pause(&self, limit: Duration) -> Result<(), DeviceError> {
        self.registers().device_mut().pause(limit)
    }

    fn resume(&self) -> Result<(), DeviceError> {
        self.registers().device_mut().resume()?;
        self.interrupt.repeat();
        Ok(())
    }

    fn reset(&self) -> Result<(), DeviceError> {
        self.registers().reset()
    }

    fn save(&self) -> Saved {
        let negotiation = self.registers().save();
        let state = MmioState { negotiation, interrupt_status: self.interrupt.status() };
        Saved::State(state.to_envelope(self.instance))
    }

    fn restore(&self, envelope: &Envelope) -> Result<(), DeviceError> {
        let state = MmioState::from_envelope(envelope)
            .map_err(|source| DeviceError::State { device: self.name.clone(), source })?;
        let mut registers = self.registers();
        registers.check(&state.negotiation)?;
        self.interrupt.set(state.interrupt_status, state.negotiation.needs_reset);
        registers.restore(state.negotiation)
    }
}

impl Drop for VirtioMmio {
    fn drop(&mut self) {
        for queue in 0..self.connected {
            if let Err(error) = self.doorbells.disconnect(self.doorbell(queue), &self.bells[queue]) {
                tracing::warn!(device = self.name, %error, "cannot disconnect a doorbell");
            }
        }
    }
}

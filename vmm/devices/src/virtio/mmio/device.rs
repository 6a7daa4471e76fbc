//! Registers, negotiation and queues of one device.
//!
//! ```text
//! reset (status 0) -> ACKNOWLEDGE, DRIVER -> FEATURES_OK -> queues set up -> DRIVER_OK: active
//!      ^                                                                        |
//!      +---- the driver writes 0 to Status; waits until the device has ended ---+
//! ```

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drover_bus::{BusDevice, Doorbell, DoorbellAddress, Doorbells, IrqLine};
use drover_guest_memory::GuestMemory;
use drover_saved_state::{Envelope, SavedState};
use drover_units::{Bytes, Gpa};
use virtio_bindings::{
    virtio_config::{
        VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
        VIRTIO_F_VERSION_1,
    },
    virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY,
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    interrupt::MmioInterrupt,
    request::{Read, Ring, WINDOW_LEN, Write, parse_read, parse_write},
    state::{MmioState, QueueRegisters},
};
use crate::{Activation, ActiveQueue, Device, DeviceError, Saved, VirtioDevice, VirtioInterrupt};

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
    memory: GuestMemory,
    interrupt: Arc<MmioInterrupt>,
    doorbells: Arc<dyn Doorbells>,
    bells: Vec<EventFd>,
    registers: Mutex<Registers>,
}

#[derive(Debug)]
struct Registers {
    device: Box<dyn VirtioDevice>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueRegisters>,
    /// By number; there while the device is active.
    active: Vec<Option<Arc<Mutex<Queue>>>>,
}

impl VirtioMmio {
    /// Length of the register window, bytes.
    pub const LEN: u64 = WINDOW_LEN;

    /// Connects a device's doorbells and puts registers before it.
    ///
    /// # Errors
    /// Where the host has no more descriptors or doorbells.
    pub fn new(config: MmioConfig, device: Box<dyn VirtioDevice>) -> io::Result<Self> {
        let queues: Vec<_> = device
            .queue_sizes()
            .iter()
            .map(|size| QueueRegisters { size: *size, ..Default::default() })
            .collect();
        let registers = Registers {
            device,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            active: vec![None; queues.len()],
            queues,
        };
        let count = registers.queues.len();
        let mut transport = Self {
            name: config.name,
            instance: config.instance,
            base: config.base,
            memory: config.memory,
            interrupt: Arc::new(MmioInterrupt::new(config.line)),
            doorbells: config.doorbells,
            bells: Vec::with_capacity(count),
            registers: Mutex::new(registers),
        };
        // One by one, so that dropping a half-connected transport disconnects exactly what was connected.
        for queue in 0..count {
            let bell = EventFd::new(EFD_NONBLOCK)?;
            transport.doorbells.connect(transport.doorbell(queue), &bell)?;
            transport.bells.push(bell);
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

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, register: Read) -> u32 {
        let registers = self.registers();
        let selected = registers.queues.get(registers.queue_select as usize);
        match register {
            Read::Magic => MAGIC,
            Read::Version => VERSION,
            Read::DeviceId => registers.device.device_id(),
            Read::VendorId => VENDOR_ID,
            Read::DeviceFeatures => {
                word(registers.device.features() | VERSION_1, registers.device_features_select)
            }
            // Zero says that there is no such queue.
            Read::QueueSizeMax => {
                let sizes = registers.device.queue_sizes();
                sizes.get(registers.queue_select as usize).copied().unwrap_or(0).into()
            }
            Read::QueueReady => selected.is_some_and(|queue| queue.ready).into(),
            Read::InterruptStatus => self.interrupt.status(),
            Read::Status if self.interrupt.is_reset_needed() => {
                registers.status | VIRTIO_CONFIG_S_NEEDS_RESET
            }
            Read::Status => registers.status,
            Read::NoSharedMemory => u32::MAX,
            // No field of a configuration space changes while the machine runs.
            Read::ConfigGeneration | Read::Config(_) => 0,
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
        let negotiating = registers.status & VIRTIO_CONFIG_S_FEATURES_OK == 0;
        let configuring = registers.status & VIRTIO_CONFIG_S_DRIVER_OK == 0;
        match register {
            Write::DeviceFeaturesSelect(select) => registers.device_features_select = select,
            Write::DriverFeaturesSelect(select) => registers.driver_features_select = select,
            Write::DriverFeatures(value) if negotiating => {
                let select = registers.driver_features_select;
                set_word(&mut registers.driver_features, select, value);
            }
            Write::QueueSelect(select) => registers.queue_select = select,
            Write::QueueSize(size) if configuring => {
                registers.configure(|queue| queue.size = u16::try_from(size).unwrap_or(0));
            }
            Write::QueueReady(ready) if configuring => registers.configure(|queue| queue.ready = ready),
            Write::QueueAddress(ring, half, value) if configuring => registers.configure(|queue| {
                let address = match ring {
                    Ring::Descriptors => &mut queue.descriptors,
                    Ring::Available => &mut queue.available,
                    Ring::Used => &mut queue.used,
                };
                *address = half.replace(*address, value);
            }),
            Write::Status(status) => self.write_status(&mut registers, status),
            // Against the rules at this moment: as if it had not been written.
            _ => {}
        }
    }

    /// A notification that came through the bus: its doorbell is not connected at the moment.
    fn ring(&self, queue: u32) {
        if let Some(bell) = self.bells.get(queue as usize) {
            // Fails only where the counter is full, and then it rings already.
            let _ = bell.write(1);
        }
    }

    fn write_status(&self, registers: &mut Registers, status: u32) {
        if status == 0 {
            return self.reset(registers);
        }
        // The driver only ever adds bits; NEEDS_RESET is ours.
        let added = status & !registers.status & !VIRTIO_CONFIG_S_NEEDS_RESET & 0xff;
        let mut accepted = registers.status | added;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !registers.are_features_acceptable() {
            tracing::warn!(
                device = self.name,
                features = registers.driver_features,
                "the driver asks for features that were not offered"
            );
            accepted &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 && accepted & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            accepted &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        registers.status = accepted;
        if added & accepted & VIRTIO_CONFIG_S_DRIVER_OK != 0
            && let Err(reason) = self.activate(registers)
        {
            tracing::warn!(device = self.name, reason, "cannot start the device for its driver");
            self.interrupt.needs_reset();
        }
    }

    fn reset(&self, registers: &mut Registers) {
        if let Err(error) = registers.device.reset() {
            // The status stays as it is, by which the driver sees that the device has not been reset (2.1.1).
            tracing::error!(device = self.name, %error, "the driver's reset has to wait");
            return;
        }
        let sizes = registers.device.queue_sizes();
        registers.queues =
            sizes.iter().map(|size| QueueRegisters { size: *size, ..Default::default() }).collect();
        registers.active.fill(None);
        registers.status = 0;
        registers.device_features_select = 0;
        registers.driver_features_select = 0;
        registers.driver_features = 0;
        registers.queue_select = 0;
        self.interrupt.set(0, false);
    }

    /// Starts the device with the queues that are set up. The error is for the log.
    fn activate(&self, registers: &mut Registers) -> Result<(), String> {
        let mut queues = Vec::new();
        let mut active = vec![None; registers.queues.len()];
        for (index, setup) in registers.queues.iter().enumerate() {
            if !setup.ready {
                continue;
            }
            let max = registers.device.queue_sizes()[index];
            let queue = setup
                .build(max, registers.driver_features, &self.memory)
                .map_err(|reason| format!("queue {index}: {reason}"))?;
            let queue = Arc::new(Mutex::new(queue));
            active[index] = Some(Arc::clone(&queue));
            let doorbell = self.bells[index].try_clone().map_err(|error| error.to_string())?;
            queues.push(ActiveQueue {
                index: u16::try_from(index).expect("a device has few queues"),
                queue,
                doorbell,
            });
        }
        let interrupt: Arc<dyn VirtioInterrupt> = Arc::clone(&self.interrupt) as _;
        let memory = self.memory.clone();
        let features = registers.driver_features;
        let activation = Activation { features, queues, memory, interrupt };
        registers.device.activate(activation).map_err(|error| error.to_string())?;
        registers.active = active;
        Ok(())
    }
}

/// Every device of version 2 offers it and every driver accepts it (6.1).
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

impl Registers {
    fn configure(&mut self, change: impl FnOnce(&mut QueueRegisters)) {
        if let Some(queue) = self.queues.get_mut(self.queue_select as usize) {
            change(queue);
        }
    }

    fn are_features_acceptable(&self) -> bool {
        let offered = self.device.features() | VERSION_1;
        self.driver_features & !offered == 0 && self.driver_features & VERSION_1 != 0
    }

    fn save(&self, interrupt: &MmioInterrupt) -> MmioState {
        let queues = self.queues.iter().zip(&self.active).map(|(setup, active)| match active {
            None => *setup,
            Some(queue) => {
                let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                QueueRegisters { next_available: queue.next_avail(), next_used: queue.next_used(), ..*setup }
            }
        });
        MmioState {
            status: self.status,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            interrupt_status: interrupt.status(),
            needs_reset: interrupt.is_reset_needed(),
            queues: queues.collect(),
            device: self.device.save(),
        }
    }

    /// Checks a state against the device, without its rings, which the activation checks.
    fn check(&self, state: &MmioState) -> Result<(), String> {
        let sizes = self.device.queue_sizes();
        if state.queues.len() != sizes.len() {
            return Err(format!("it has {} queues, the device {}", state.queues.len(), sizes.len()));
        }
        let unknown = state.driver_features & !(self.device.features() | VERSION_1);
        if unknown != 0 {
            return Err(format!(
                "its driver uses the features {unknown:#x}, which this device does not offer"
            ));
        }
        Ok(())
    }
}

impl QueueRegisters {
    /// The queue, where it is one.
    fn build(&self, size_max: u16, features: u64, memory: &GuestMemory) -> Result<Queue, String> {
        let state = QueueState {
            max_size: size_max,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: features & 1 << VIRTIO_RING_F_EVENT_IDX != 0,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        };
        let queue = Queue::try_from(state).map_err(|error| error.to_string())?;
        if !queue.is_valid(memory.as_vm_memory()) {
            return Err("its rings are not in RAM".to_owned());
        }
        Ok(queue)
    }
}

/// One 32-bit word of a 64-bit feature set; words beyond it are zero.
fn word(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_word(features: &mut u64, select: u32, value: u32) {
    match select {
        0 => *features = *features & !0xffff_ffff | u64::from(value),
        1 => *features = *features & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}

impl BusDevice for VirtioMmio {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match parse_read(offset, data.len()) {
            Some(Read::Config(offset)) => self.registers().device.read_config(offset, data),
            Some(register) => data.copy_from_slice(&self.read_register(register).to_le_bytes()),
            None => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(register) = parse_write(offset, data) {
            self.write_register(register);
        }
    }
}

impl Device for VirtioMmio {
    fn name(&self) -> &str {
        &self.name
    }

    fn pause(&self, limit: Duration) -> Result<(), DeviceError> {
        self.registers().device.pause(limit)
    }

    fn resume(&self) -> Result<(), DeviceError> {
        self.registers().device.resume()?;
        self.interrupt.repeat();
        Ok(())
    }

    fn save(&self) -> Saved {
        Saved::State(self.registers().save(&self.interrupt).to_envelope(self.instance))
    }

    fn restore(&self, envelope: &Envelope) -> Result<(), DeviceError> {
        let device = || self.name.clone();
        let incompatible = |reason| DeviceError::Incompatible { device: device(), reason };
        let state = MmioState::from_envelope(envelope)
            .map_err(|source| DeviceError::State { device: device(), source })?;
        let mut registers = self.registers();
        registers.check(&state).map_err(incompatible)?;
        registers.device.restore(&state.device)?;
        registers.status = state.status;
        registers.device_features_select = state.device_features_select;
        registers.driver_features_select = state.driver_features_select;
        registers.driver_features = state.driver_features;
        registers.queue_select = state.queue_select;
        registers.queues = state.queues;
        self.interrupt.set(state.interrupt_status, state.needs_reset);
        // A device that waits for its reset was not at work, and its rings may be anything.
        if registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !state.needs_reset {
            self.activate(&mut registers).map_err(incompatible)?;
        }
        Ok(())
    }
}

impl Drop for VirtioMmio {
    fn drop(&mut self) {
        for (queue, bell) in self.bells.iter().enumerate() {
            if let Err(error) = self.doorbells.disconnect(self.doorbell(queue), bell) {
                tracing::warn!(device = self.name, %error, "cannot disconnect a doorbell");
            }
        }
    }
}

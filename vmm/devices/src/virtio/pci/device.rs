//! One virtio device as a PCI function: capabilities, registers, doorbells.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drover_bus::{Doorbell, DoorbellAddress, Doorbells, MsiLines};
use drover_guest_memory::GuestMemory;
use drover_saved_state::{Envelope, SavedState};
use drover_units::{Bytes, Gpa};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    interrupt::PciInterrupt,
    layout::{self, Area, ReadAccess, WriteAccess},
    request::{Read, Ring, Write},
    state::PciState,
};
use crate::{
    Device, DeviceError, PciFunction, Saved, VirtioDevice,
    pci::{
        BarKind, ConfigSpace, Identity, config_space,
        msix::{self, Msix},
    },
    virtio::negotiation::{Negotiation, QueueSetup},
};

/// Virtio's vendor (4.1.2).
const VENDOR: u16 = 0x1af4;
/// A device's PCI number is its virtio number and this (4.1.2.1).
const FIRST_DEVICE: u16 = 0x1040;
/// A non-transitional device's revision and subsystem are 1 and 0x40 or more (4.1.2.1).
const REVISION: u8 = 1;
const SUBSYSTEM: u16 = 0x40;

/// The vendor-specific capability (4.1.4).
const CAPABILITY_VENDOR: u8 = 0x09;
/// Which structure a capability points to (4.1.4).
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// Where a device is and what it is connected to.
#[derive(Debug)]
pub struct PciConfig {
    /// For people, and for telling devices of one kind apart; for instance `disk0`.
    pub name: String,
    /// The device's number among those of its transport: the instance of its saved state.
    pub instance: u16,
    /// Base class, sub-class and interface, from high to low; drivers go by the device number.
    pub class: u32,
    /// Where its [`VirtioPci::LEN`] bytes of memory are at first; a multiple of that. The guest may move them.
    pub base: Gpa,
    /// Guest RAM.
    pub memory: GuestMemory,
    /// Where its interrupts come from.
    pub lines: Arc<dyn MsiLines>,
    /// Where its queues' doorbells are connected.
    pub doorbells: Arc<dyn Doorbells>,
}

/// A device behind a PCI function. Goes on a [`PciRoot`](crate::PciRoot).
#[derive(Debug)]
pub struct VirtioPci {
    name: String,
    instance: u16,
    interrupt: Arc<PciInterrupt>,
    doorbells: Arc<dyn Doorbells>,
    bells: Arc<[EventFd]>,
    msix_control: u8,
    window: u8,
    place: Mutex<Place>,
    /// The guest's part of the configuration space, before it has touched it.
    unchanged: [u8; config_space::LEN],
    registers: Mutex<Negotiation<PciInterrupt>>,
}

/// The configuration space, and where the doorbells are because of it.
#[derive(Debug)]
struct Place {
    space: ConfigSpace,
    /// Base of the BAR at which doorbells are connected, and of how many queues.
    connected: Option<(Gpa, usize)>,
}

impl VirtioPci {
    /// Length of the device's memory, bytes.
    pub const LEN: u64 = layout::LEN;

    /// Makes a function of a device: one message per queue and one for its configuration.
    ///
    /// # Errors
    /// Where the host has no more descriptors or interrupts.
    pub fn new(config: PciConfig, device: Box<dyn VirtioDevice>) -> io::Result<Self> {
        let queues = device.queue_sizes().len();
        let msix = Msix::new(queues + 1, config.lines.as_ref())?;
        let bells: Arc<[EventFd]> =
            (0..queues).map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<_>>()?;
        let mut space = ConfigSpace::new(identity(device.as_ref(), config.class));
        space.add_bar(0, BarKind::Memory64, Self::LEN, config.base);
        let (table, pending) = (layout::TABLE.start as u32, layout::PENDING.start as u32);
        let msix_at = space.add_capability(
            msix::CAPABILITY,
            &msix.capability(table, pending),
            &Msix::CAPABILITY_WRITABLE,
        );
        let window = add_virtio_capabilities(&mut space);
        let interrupt = Arc::new(PciInterrupt::new(msix, queues));
        let registers = Negotiation::new(
            config.name.clone(),
            config.memory,
            Arc::clone(&interrupt),
            Arc::clone(&bells),
            device,
        );
        Ok(Self {
            name: config.name,
            instance: config.instance,
            interrupt,
            doorbells: config.doorbells,
            bells,
            msix_control: msix_at + 2,
            window,
            unchanged: space.changed(),
            place: Mutex::new(Place { space, connected: None }),
            registers: Mutex::new(registers),
        })
    }

    fn registers(&self) -> MutexGuard<'_, Negotiation<PciInterrupt>> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The offset in the BAR, where the access is to it at the moment.
    fn offset(&self, address: Gpa, len: usize) -> Option<u64> {
        let (start, bar_len) = self.place().space.bar(0)?;
        let offset = address.get().checked_sub(start.get())?;
        (offset.checked_add(len as u64)? <= bar_len).then_some(offset)
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        match layout::parse_read(offset, data.len()) {
            Some(ReadAccess::Common(field)) => {
                let value = self.read_field(field).to_le_bytes();
                data.copy_from_slice(&value[..data.len()]);
            }
            Some(ReadAccess::Status) => data[0] = self.interrupt.take_status(),
            Some(ReadAccess::Device(offset)) => self.registers().device().read_config(offset, data),
            Some(ReadAccess::Pending(offset)) => self.interrupt.msix.read_pending(offset, data),
            Some(ReadAccess::Table(offset)) => self.interrupt.msix.read_table(offset, data),
            None => {}
        }
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        match layout::parse_write(offset, data) {
            Some(WriteAccess::Common(field)) => self.write_field(field),
            // Fails only where the counter is full, and then it rings already.
            Some(WriteAccess::Notify(queue)) => {
                let _ = self.bells.get(queue).map(|bell| bell.write(1));
            }
            Some(WriteAccess::Device(offset)) => self.registers().device_mut().write_config(offset, data),
            Some(WriteAccess::Table(offset)) => self.interrupt.msix.write_table(offset, data),
            None => {}
        }
    }

    fn read_field(&self, field: Read) -> u64 {
        let registers = self.registers();
        let selected = u16::try_from(registers.queue_select()).unwrap_or(u16::MAX);
        let queue = registers.queue();
        match field {
            Read::DeviceFeaturesSelect => registers.device_features_select().into(),
            Read::DeviceFeatures => registers.device_features().into(),
            Read::DriverFeaturesSelect => registers.driver_features_select().into(),
            Read::DriverFeatures => registers.driver_features().into(),
            Read::ConfigVector => self.interrupt.config_vector().into(),
            Read::QueueCount => self.bells.len() as u64,
            Read::Status => registers.status().into(),
            // One byte of it is to be had here; neighbouring numbers differ in that.
            Read::ConfigGeneration => (registers.device().config_generation() & 0xff).into(),
            Read::QueueSelect => selected.into(),
            // Zero says that there is no such queue.
            Read::QueueSize => queue.map_or(0, |queue| queue.size).into(),
            Read::QueueVector => self.interrupt.queue_vector(selected).into(),
            Read::QueueEnable => queue.is_some_and(|queue| queue.ready).into(),
            Read::QueueNotifyOffset => selected.into(),
            Read::QueueAddress(ring, part) => {
                queue.map_or(0, |queue| part.of(*address(&mut queue.clone(), ring)))
            }
        }
    }

    fn write_field(&self, field: Write) {
        let mut registers = self.registers();
        match field {
            Write::DeviceFeaturesSelect(select) => registers.select_device_features(select),
            Write::DriverFeaturesSelect(select) => registers.select_driver_features(select),
            Write::DriverFeatures(value) => registers.set_driver_features(value),
            Write::ConfigVector(vector) => self.interrupt.set_config_vector(vector),
            Write::Status(status) => registers.set_status(status.into()),
            Write::QueueSelect(select) => registers.select_queue(select.into()),
            Write::QueueSize(size) => registers.configure_queue(|queue| queue.size = size),
            Write::QueueVector(vector) => {
                let queue = u16::try_from(registers.queue_select()).unwrap_or(u16::MAX);
                self.interrupt.set_queue_vector(queue, vector);
            }
            // Only a reset takes a queue away again (4.1.4.3.2).
            Write::QueueEnable(1) => registers.configure_queue(|queue| queue.ready = true),
            Write::QueueEnable(_) => {}
            Write::QueueAddress(ring, part, value) => registers.configure_queue(|queue| {
                let field = address(queue, ring);
                *field = part.replace(*field, value);
            }),
        }
    }

    /// Brings what depends on the configuration space in line with it.
    fn follow(&self, place: &mut Place) {
        self.interrupt.msix.set_control(place.space.u16(self.msix_control));
        let base = place.space.bar(0).map(|(start, _)| start);
        if base != place.connected.map(|(start, _)| start) {
            self.disconnect(place);
            if let Some(base) = base {
                self.connect(place, base);
            }
        }
    }

    /// Where the host refuses, notifications come through the bus: slower, and as good.
    fn connect(&self, place: &mut Place, base: Gpa) {
        let mut connected = 0;
        for (queue, bell) in self.bells.iter().enumerate() {
            let Some(doorbell) = doorbell(base, queue) else { break };
            if let Err(error) = self.doorbells.connect(doorbell, bell) {
                tracing::warn!(device = self.name, %error, "cannot connect a doorbell");
                break;
            }
            connected += 1;
        }
        place.connected = Some((base, connected));
    }

    fn disconnect(&self, place: &mut Place) {
        let Some((base, connected)) = place.connected.take() else { return };
        for (queue, bell) in self.bells.iter().enumerate().take(connected) {
            let Some(doorbell) = doorbell(base, queue) else { break };
            if let Err(error) = self.doorbells.disconnect(doorbell, bell) {
                tracing::warn!(device = self.name, %error, "cannot disconnect a doorbell");
            }
        }
    }

    /// The access that the configuration window describes (4.1.4.9), if `offset` is that of its data.
    fn windowed(&self, place: &Place, offset: u8, len: usize) -> Option<u64> {
        let at = |field: u8| self.window + field;
        let asked = place.space.u32(at(12));
        let (bar, address) = (place.space.u32(at(4)) & 0xff, place.space.u32(at(8)));
        let fits = u64::from(address).checked_add(len as u64).is_some_and(|end| end <= Self::LEN);
        (offset == at(16) && asked as usize == len && bar == 0 && fits).then_some(address.into())
    }
}

fn identity(device: &dyn VirtioDevice, class: u32) -> Identity {
    let number = u16::try_from(device.device_id()).expect("virtio numbers devices from 1");
    Identity {
        vendor: VENDOR,
        device: FIRST_DEVICE + number,
        revision: REVISION,
        class,
        subsystem_vendor: VENDOR,
        subsystem: SUBSYSTEM,
    }
}

/// Points to every structure. Returns where the configuration window is.
fn add_virtio_capabilities(space: &mut ConfigSpace) -> u8 {
    let multiplier = u32::try_from(layout::NOTIFY_MULTIPLIER).expect("four").to_le_bytes();
    for (kind, area, more) in [
        (CFG_COMMON, layout::COMMON, &[][..]),
        (CFG_ISR, layout::STATUS, &[]),
        (CFG_DEVICE, layout::DEVICE, &[]),
        (CFG_NOTIFY, layout::NOTIFY, &multiplier),
    ] {
        space.add_capability(CAPABILITY_VENDOR, &capability(kind, area, more), &[]);
    }
    // The guest writes bar, offset and length, then reads or writes the four bytes of data behind them.
    let window = capability(CFG_PCI, Area { start: 0, len: 0 }, &[0; 4]);
    let mut writable = vec![0; window.len()];
    writable[2] = 0xff;
    writable[6..14].fill(0xff);
    space.add_capability(CAPABILITY_VENDOR, &window, &writable)
}

/// A virtio capability behind its id (4.1.4): its length, what it points to, and where that is in the first BAR.
fn capability(kind: u8, area: Area, more: &[u8]) -> Vec<u8> {
    let len = u8::try_from(16 + more.len()).expect("a few bytes");
    let mut body = vec![len, kind, 0, 0, 0, 0];
    body.extend((area.start as u32).to_le_bytes());
    body.extend((area.len as u32).to_le_bytes());
    body.extend(more);
    body
}

fn doorbell(base: Gpa, queue: usize) -> Option<Doorbell> {
    let offset = layout::NOTIFY.start + queue as u64 * layout::NOTIFY_MULTIPLIER;
    let address = base.checked_offset(Bytes::new(offset))?;
    Some(Doorbell { address: DoorbellAddress::Mmio(address), value: None })
}

fn address(queue: &mut QueueSetup, ring: Ring) -> &mut u64 {
    match ring {
        Ring::Descriptors => &mut queue.descriptors,
        Ring::Available => &mut queue.available,
        Ring::Used => &mut queue.used,
    }
}

impl PciFunction for VirtioPci {
    fn read_config(&self, offset: u8, data: &mut [u8]) {
        let place = self.place();
        match self.windowed(&place, offset, data.len()) {
            Some(address) => {
                drop(place);
                self.read_bar(address, data);
            }
            None => place.space.read(offset, data),
        }
    }

    fn write_config(&self, offset: u8, data: &[u8]) {
        let mut place = self.place();
        match self.windowed(&place, offset, data.len()) {
            Some(address) => {
                drop(place);
                self.write_bar(address, data);
            }
            None => {
                place.space.write(offset, data);
                self.follow(&mut place);
            }
        }
    }

    fn read_memory(&self, address: Gpa, data: &mut [u8]) -> bool {
        let offset = self.offset(address, data.len());
        offset.inspect(|offset| self.read_bar(*offset, data)).is_some()
    }

    fn write_memory(&self, address: Gpa, data: &[u8]) -> bool {
        let offset = self.offset(address, data.len());
        offset.inspect(|offset| self.write_bar(*offset, data)).is_some()
    }
}

impl Device for VirtioPci {
    fn name(&self) -> &str {
        &self.name
    }

    fn pause(&self, limit: Duration) -> Result<(), DeviceError> {
        self.registers().device_mut().pause(limit)
    }

    fn resume(&self) -> Result<(), DeviceError> {
        self.registers().device_mut().resume()?;
        // A message may have been lost with the machine that this one stands in for; a guest ignores one too many.
        self.interrupt.msix.pulse_all();
        Ok(())
    }

    fn reset(&self) -> Result<(), DeviceError> {
        self.registers().reset()?;
        let mut place = self.place();
        place.space.restore(&self.unchanged);
        self.interrupt.msix.reset();
        self.follow(&mut place);
        Ok(())
    }

    fn save(&self) -> Saved {
        let negotiation = self.registers().save();
        let queues = u16::try_from(self.bells.len()).expect("a device has few queues");
        let state = PciState {
            config: self.place().space.changed(),
            interrupt_status: self.interrupt.status(),
            config_vector: self.interrupt.config_vector(),
            queue_vectors: (0..queues).map(|queue| self.interrupt.queue_vector(queue)).collect(),
            msix: self.interrupt.msix.save(),
            negotiation,
        };
        Saved::State(state.to_envelope(self.instance))
    }

    fn restore(&self, envelope: &Envelope) -> Result<(), DeviceError> {
        let state = PciState::from_envelope(envelope)
            .map_err(|source| DeviceError::State { device: self.name.clone(), source })?;
        let mut registers = self.registers();
        registers.check(&state.negotiation)?;
        if state.msix.len() != self.interrupt.msix.len() || state.queue_vectors.len() != self.bells.len() {
            let reason =
                format!("it has {} messages, the device {}", state.msix.len(), self.interrupt.msix.len());
            return Err(DeviceError::Incompatible { device: self.name.clone(), reason });
        }
        let mut place = self.place();
        place.space.restore(&state.config);
        self.interrupt.msix.restore(&state.msix, place.space.u16(self.msix_control));
        self.follow(&mut place);
        drop(place);
        self.interrupt.restore(state.interrupt_status, state.negotiation.needs_reset);
        self.interrupt.set_config_vector(state.config_vector);
        for (queue, vector) in state.queue_vectors.iter().enumerate() {
            self.interrupt.set_queue_vector(queue as u16, *vector);
        }
        registers.restore(state.negotiation)
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        let mut place = self.place();
        self.disconnect(&mut place);
    }
}

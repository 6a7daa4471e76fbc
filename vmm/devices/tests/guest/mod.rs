//! A guest's side of a virtio-mmio disk: a driver that does what it is told, right or wrong.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, reason = "waits for the device with a deadline")]
#![allow(dead_code, reason = "no test uses all of it")]

pub(crate) mod driver;
pub(crate) mod golden;
pub(crate) mod steady;
pub(crate) mod transport;
pub(crate) mod wire;

use std::{
    io,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use drover_block::{Backend, MemoryImage, Owner};
use drover_bus::{BusDevice, Doorbell, DoorbellAddress, Doorbells, IrqLine};
use drover_devices::{
    BlkConfig, BlkMetrics, Device, DeviceEvent, DeviceEvents, MmioConfig, Saved, Throttle, VirtioBlk,
    VirtioMmio,
};
use drover_guest_memory::GuestMemory;
use drover_ids::{NodeId, OwnerEpoch, VmId};
use drover_saved_state::Envelope;
use drover_units::{Bytes, Gpa};
use vmm_sys_util::eventfd::EventFd;

pub(crate) const RAM: Bytes = Bytes::mib(1);
pub(crate) const DISK: Bytes = Bytes::mib(1);
pub(crate) const BASE: Gpa = Gpa::new(0xd000_0000);
pub(crate) const QUEUE_SIZE: u16 = 16;

pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const AVAILABLE: u64 = 0x2000;
pub(crate) const USED: u64 = 0x3000;
/// Headers and status bytes: 32 bytes per request.
pub(crate) const HEADERS: u64 = 0x4000;

pub(crate) const STATUS: u64 = 0x70;
pub(crate) const INTERRUPT_STATUS: u64 = 0x60;

pub(crate) const SIZE_MAX: u64 = 1 << 1;
pub(crate) const FLUSH: u64 = 1 << 9;
pub(crate) const CONFIG_WCE: u64 = 1 << 11;
pub(crate) const MQ: u64 = 1 << 12;
pub(crate) const DISCARD: u64 = 1 << 13;
pub(crate) const WRITE_ZEROES: u64 = 1 << 14;
pub(crate) const DISCARD_KIND: u32 = 11;
pub(crate) const WRITE_ZEROES_KIND: u32 = 13;
pub(crate) const READ_ONLY: u64 = 1 << 5;
pub(crate) const INDIRECT: u64 = 1 << 28;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const VERSION_1: u64 = 1 << 32;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;

pub(crate) const DRIVER_OK: u32 = 4;
pub(crate) const FEATURES_OK: u32 = 8;
pub(crate) const NEEDS_RESET: u32 = 64;

pub(crate) const OK: u8 = 0;
pub(crate) const IOERR: u8 = 1;
pub(crate) const UNSUPP: u8 = 2;
/// What a status byte holds before it is answered.
pub(crate) const UNANSWERED: u8 = 0xaa;

/// For a pause of a disk that answers.
pub(crate) const SOON: Duration = DEADLINE;

const DEADLINE: Duration = Duration::from_secs(30);

/// Counts pulses and lets a test wait for the next.
#[derive(Debug, Default)]
pub(crate) struct Line {
    pulses: Mutex<usize>,
    pulsed: Condvar,
}

impl Line {
    pub(crate) fn count(&self) -> usize {
        *self.pulses.lock().unwrap()
    }
}

impl IrqLine for Line {
    fn pulse(&self) -> io::Result<()> {
        *self.pulses.lock().unwrap() += 1;
        self.pulsed.notify_all();
        Ok(())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Bells(Mutex<Vec<(Doorbell, EventFd)>>);

impl Bells {
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
    pub(crate) fn ring(&self, offset: u64, value: u32) {
        let address = DoorbellAddress::Mmio(BASE.checked_offset(Bytes::new(offset)).unwrap());
        self.ring_at(Doorbell { address, value: Some(value) });
    }
    pub(crate) fn ring_at(&self, doorbell: Doorbell) {
        let bells = self.0.lock().unwrap();
        let (_, event) = bells.iter().find(|(bell, _)| *bell == doorbell).unwrap();
        event.write(1).unwrap();
    }
}

impl Doorbells for Bells {
    fn connect(&self, doorbell: Doorbell, event: &EventFd) -> io::Result<()> {
        self.0.lock().unwrap().push((doorbell, event.try_clone()?));
        Ok(())
    }
    fn disconnect(&self, doorbell: Doorbell, _event: &EventFd) -> io::Result<()> {
        self.0.lock().unwrap().retain(|(other, _)| *other != doorbell);
        Ok(())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Events {
    seen: Mutex<Vec<DeviceEvent>>,
    changed: Condvar,
}

impl Events {
    pub(crate) fn seen(&self) -> Vec<DeviceEvent> {
        self.seen.lock().unwrap().clone()
    }
    pub(crate) fn wait(&self) -> DeviceEvent {
        let seen = self.seen.lock().unwrap();
        let (seen, _) = self.changed.wait_timeout_while(seen, DEADLINE, |seen| seen.is_empty()).unwrap();
        seen.first().expect("an event within the deadline").clone()
    }
}

impl DeviceEvents for Events {
    fn notify(&self, event: DeviceEvent) {
        self.seen.lock().unwrap().push(event);
        self.changed.notify_all();
    }
}

pub(crate) fn owner(node: u128, epoch: u64) -> Owner {
    Owner { vm: VmId::from_u128(1), node: NodeId::from_u128(node), epoch: OwnerEpoch::new(epoch), pid: 1 }
}

/// One machine with one disk.
pub(crate) struct Guest {
    pub(crate) memory: GuestMemory,
    pub(crate) disk: VirtioMmio,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) metrics: Arc<BlkMetrics>,
    pub(crate) throttle: Arc<Throttle>,
    pub(crate) line: Arc<Line>,
    pub(crate) bells: Arc<Bells>,
    pub(crate) events: Arc<Events>,
    available: u16,
    used: u16,
    requests: u64,
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) head: u16,
    pub(crate) status: Gpa,
}

impl Guest {
    /// A machine whose disk is a new image, owned.
    pub(crate) fn new() -> Self {
        let backend = Arc::new(MemoryImage::new(DISK).open());
        backend.acquire(&owner(1, 1)).unwrap();
        Self::with(backend)
    }

    pub(crate) fn with(backend: Arc<dyn Backend>) -> Self {
        Self::with_memory(backend, GuestMemory::anonymous(RAM))
    }

    pub(crate) fn with_memory(backend: Arc<dyn Backend>, memory: GuestMemory) -> Self {
        Self::with_queues(backend, memory, 1)
    }

    pub(crate) fn with_queues(backend: Arc<dyn Backend>, memory: GuestMemory, queues: u16) -> Self {
        let (line, bells, events) =
            (Arc::<Line>::default(), Arc::<Bells>::default(), Arc::<Events>::default());
        let config = BlkConfig { name: "disk0".into(), id: "a-disk".into(), queues, events: events.clone() };
        let blk = VirtioBlk::new(config, backend.clone());
        let (metrics, throttle) = (blk.metrics(), blk.throttle());
        let config = MmioConfig {
            name: "disk0".into(),
            instance: 0,
            base: BASE,
            memory: memory.clone(),
            line: line.clone(),
            doorbells: bells.clone(),
        };
        let disk = VirtioMmio::new(config, Box::new(blk)).unwrap();
        Self {
            memory,
            disk,
            backend,
            metrics,
            throttle,
            line,
            bells,
            events,
            available: 0,
            used: 0,
            requests: 0,
        }
    }

    /// A machine on another node that takes over this one's disk and RAM, both of which stay where they are.
    pub(crate) fn moved(&self, backend: Arc<dyn Backend>, state: &Envelope) -> Self {
        let mut target = Self::with_memory(backend, self.memory.clone());
        target.disk.restore(state).unwrap();
        (target.available, target.used, target.requests) = (self.available, self.used, self.requests);
        target
    }

    pub(crate) fn saved(&self) -> Envelope {
        match self.disk.save() {
            Saved::State(envelope) => envelope,
            other => panic!("a disk has state, not {other:?}"),
        }
    }

    pub(crate) fn read_register(&self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.disk.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write_register(&self, offset: u64, value: u32) {
        self.disk.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn offered(&self) -> u64 {
        self.write_register(0x14, 0);
        let low = self.read_register(0x10);
        self.write_register(0x14, 1);
        u64::from(self.read_register(0x10)) << 32 | u64::from(low)
    }

    /// The whole start-up as section 3.1.1 has it. Forgets what was in the rings.
    pub(crate) fn start(&mut self, features: u64) {
        self.memory.write(Gpa::new(DESCRIPTORS), &[0; 0x4000]).unwrap();
        (self.available, self.used, self.requests) = (0, 0, 0);
        self.negotiate(features);
        self.set_up_queue(QUEUE_SIZE, [DESCRIPTORS, AVAILABLE, USED]);
        self.write_register(STATUS, 3 | FEATURES_OK | DRIVER_OK);
    }

    pub(crate) fn negotiate(&self, features: u64) {
        self.write_register(STATUS, 0);
        assert_eq!(self.read_register(STATUS), 0);
        self.write_register(STATUS, 1);
        self.write_register(STATUS, 3);
        self.write_register(0x24, 0);
        self.write_register(0x20, features as u32);
        self.write_register(0x24, 1);
        self.write_register(0x20, (features >> 32) as u32);
        self.write_register(STATUS, 3 | FEATURES_OK);
    }

    pub(crate) fn set_up_queue(&self, size: u16, rings: [u64; 3]) {
        self.set_up_queue_of(0, size, rings);
    }

    pub(crate) fn set_up_queue_of(&self, number: u32, size: u16, rings: [u64; 3]) {
        self.write_register(0x30, number);
        self.write_register(0x38, size.into());
        for (register, ring) in [0x80, 0x90, 0xa0].into_iter().zip(rings) {
            self.write_register(register, ring as u32);
            self.write_register(register + 4, (ring >> 32) as u32);
        }
        self.write_register(0x44, 1);
    }

    pub(crate) fn put_descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.put_descriptor_at(DESCRIPTORS, index, address, len, flags, next);
    }

    pub(crate) fn put_descriptor_at(
        &self,
        table: u64,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let mut raw = Vec::new();
        raw.extend(address.to_le_bytes());
        raw.extend(len.to_le_bytes());
        raw.extend(flags.to_le_bytes());
        raw.extend(next.to_le_bytes());
        self.memory.write(Gpa::new(table + 16 * u64::from(index)), &raw).unwrap();
    }

    /// Makes a chain available without telling.
    pub(crate) fn offer(&mut self, head: u16) {
        let entry = AVAILABLE + 4 + 2 * u64::from(self.available % QUEUE_SIZE);
        self.memory.write(Gpa::new(entry), &head.to_le_bytes()).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
    }

    pub(crate) fn set_available_index(&self, index: u16) {
        self.memory.write(Gpa::new(AVAILABLE + 2), &index.to_le_bytes()).unwrap();
    }

    pub(crate) fn kick(&self) {
        self.bells.ring(0x50, 0);
    }

    /// Offers a request of three descriptors; at most five at a time fit the table.
    pub(crate) fn send(&mut self, kind: u32, sector: u64, data: Option<(u64, u32)>) -> Sent {
        let slot = self.requests % 5;
        self.requests += 1;
        let first = u16::try_from(slot * 3).unwrap();
        let header = HEADERS + slot * 32;
        let status = header + 16;
        let mut bytes = Vec::new();
        bytes.extend(kind.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        bytes.push(UNANSWERED);
        self.memory.write(Gpa::new(header), &bytes).unwrap();
        self.put_descriptor(first, header, 16, NEXT, if data.is_some() { first + 1 } else { first + 2 });
        if let Some((address, len)) = data {
            let from_driver = [1, DISCARD_KIND, WRITE_ZEROES_KIND].contains(&kind);
            let flags = if from_driver { NEXT } else { NEXT | WRITE };
            self.put_descriptor(first + 1, address, len, flags, first + 2);
        }
        self.put_descriptor(first + 2, status, 1, WRITE, 0);
        self.offer(first);
        Sent { head: first, status: Gpa::new(status) }
    }

    pub(crate) fn status(&self, sent: Sent) -> u8 {
        let mut status = [0];
        self.memory.read(sent.status, &mut status).unwrap();
        status[0]
    }

    pub(crate) fn used_index(&self) -> u16 {
        let mut index = [0; 2];
        self.memory.read(Gpa::new(USED + 2), &mut index).unwrap();
        u16::from_le_bytes(index)
    }

    /// Waits for `count` answers: head and length each.
    pub(crate) fn wait(&mut self, count: u16) -> Vec<(u32, u32)> {
        let until = self.used.wrapping_add(count);
        self.wait_until("answers", |guest| guest.used_index() == until);
        let mut answers = Vec::new();
        for _ in 0..count {
            let mut entry = [0; 8];
            let at = USED + 4 + 8 * u64::from(self.used % QUEUE_SIZE);
            self.memory.read(Gpa::new(at), &mut entry).unwrap();
            let (head, len) = entry.split_at(4);
            answers.push((
                u32::from_le_bytes(head.try_into().unwrap()),
                u32::from_le_bytes(len.try_into().unwrap()),
            ));
            self.used = self.used.wrapping_add(1);
        }
        answers
    }

    /// Looks whenever the device interrupts, and now and then, since not every change comes with an interrupt.
    pub(crate) fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !condition(self) {
            assert!(started.elapsed() < DEADLINE, "no {what} within the deadline");
            let pulses = self.line.pulses.lock().unwrap();
            drop(self.line.pulsed.wait_timeout(pulses, Duration::from_millis(2)).unwrap());
        }
    }

    /// Sends one request, kicks, waits; returns its status and the length in the used ring.
    pub(crate) fn request(&mut self, kind: u32, sector: u64, data: Option<(u64, u32)>) -> (u8, u32) {
        let sent = self.send(kind, sector, data);
        self.kick();
        let answers = self.wait(1);
        assert_eq!(answers[0].0, u32::from(sent.head));
        (self.status(sent), answers[0].1)
    }

    pub(crate) fn write_disk(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.memory.write(Gpa::new(0x20000), bytes).unwrap();
        self.request(1, sector, Some((0x20000, bytes.len() as u32))).0
    }

    pub(crate) fn read_disk(&mut self, sector: u64, len: usize) -> Vec<u8> {
        assert_eq!(self.request(0, sector, Some((0x40000, len as u32))), (OK, len as u32 + 1));
        let mut bytes = vec![0; len];
        self.memory.read(Gpa::new(0x40000), &mut bytes).unwrap();
        bytes
    }
}

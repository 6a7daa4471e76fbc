//! A guest's side of any virtio device, on either transport: a driver that does what it is told, right or wrong.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use drover_devices::{Device, Saved, VirtioDevice};
use drover_guest_memory::GuestMemory;
use drover_saved_state::Envelope;
use drover_units::{Bytes, Gpa};

use super::{
    Bells, DRIVER_OK, FEATURES_OK, Line, NEEDS_RESET, NEXT, STATUS, WRITE,
    transport::{Machine, Transport},
};

/// Where the rings are; what is above is the test's.
const RINGS: u64 = 0x1000;
const RINGS_LEN: u64 = 0x3000;
/// First address that no ring uses.
pub(crate) const FREE: u64 = 0x4_0000;
const QUEUE_SIZE: u16 = 64;
const DEADLINE: Duration = Duration::from_secs(30);

/// One machine with one device.
pub(crate) struct Driver {
    pub(crate) memory: GuestMemory,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) line: Arc<Line>,
    bells: Arc<Bells>,
    machine: Machine,
    queues: Vec<Rings>,
}

#[derive(Clone, Copy, Default)]
struct Rings {
    available: u16,
    used: u16,
    next_descriptor: u16,
}

/// A buffer of a chain.
#[derive(Clone, Copy)]
pub(crate) enum Buffer {
    Read(u64, u32),
    Write(u64, u32),
}

impl Driver {
    pub(crate) fn new(device: impl VirtioDevice + 'static, ram: Bytes) -> Self {
        Self::with_memory(device, GuestMemory::anonymous(ram))
    }

    pub(crate) fn with_memory(device: impl VirtioDevice + 'static, memory: GuestMemory) -> Self {
        Self::on(Transport::Mmio, device, memory)
    }

    pub(crate) fn on(transport: Transport, device: impl VirtioDevice + 'static, memory: GuestMemory) -> Self {
        let (line, bells) = (Arc::<Line>::default(), Arc::<Bells>::default());
        let machine = Machine::new(transport, Box::new(device), &memory, (&line, &bells));
        Self { memory, device: machine.device(), line, bells, machine, queues: Vec::new() }
    }

    /// Another machine with the same RAM, which takes over this one's guest.
    pub(crate) fn moved(&self, device: impl VirtioDevice + 'static) -> Self {
        let state = self.saved();
        let mut target = Self::with_memory(device, self.memory.clone());
        target.device.restore(&state).unwrap();
        target.queues.clone_from(&self.queues);
        target
    }

    pub(crate) fn saved(&self) -> Envelope {
        match self.device.save() {
            Saved::State(envelope) => envelope,
            other => panic!("a virtio device has state, not {other:?}"),
        }
    }

    pub(crate) fn register(&self, offset: u64) -> u32 {
        self.machine.register(offset)
    }

    pub(crate) fn set_register(&self, offset: u64, value: u32) {
        self.machine.set_register(offset, value);
    }

    pub(crate) fn config(&self, offset: u64) -> u32 {
        self.register(0x100 + offset)
    }

    pub(crate) fn set_config(&self, offset: u64, value: u32) {
        self.set_register(0x100 + offset, value);
    }

    /// Any bytes at any place of the device's configuration.
    pub(crate) fn write_config(&self, offset: u64, bytes: &[u8]) {
        self.machine.write_config(offset, bytes);
    }

    pub(crate) fn offered(&self) -> u64 {
        self.set_register(0x14, 0);
        let low = self.register(0x10);
        self.set_register(0x14, 1);
        u64::from(self.register(0x10)) << 32 | u64::from(low)
    }

    /// The whole start-up as section 3.1.1 has it, with so many queues.
    pub(crate) fn start(&mut self, features: u64, queues: usize) {
        self.set_register(STATUS, 0);
        assert_eq!(self.register(STATUS), 0);
        self.set_register(STATUS, 3);
        self.set_register(0x24, 0);
        self.set_register(0x20, features as u32);
        self.set_register(0x24, 1);
        self.set_register(0x20, (features >> 32) as u32);
        self.set_register(STATUS, 3 | FEATURES_OK);
        self.queues = vec![Rings::default(); queues];
        for queue in 0..queues {
            self.memory.write(Gpa::new(rings(queue)), &[0; RINGS_LEN as usize]).unwrap();
            self.set_register(0x30, queue as u32);
            self.set_register(0x38, QUEUE_SIZE.into());
            for (register, part) in [(0x80, 0), (0x90, 0x1000), (0xa0, 0x2000)] {
                self.set_register(register, (rings(queue) + part) as u32);
                self.set_register(register + 4, 0);
            }
            self.machine.connect(queue);
            self.set_register(0x44, 1);
        }
        self.set_register(STATUS, 3 | FEATURES_OK | DRIVER_OK);
        assert_eq!(self.register(STATUS), 3 | FEATURES_OK | DRIVER_OK);
    }

    /// Makes a chain available and rings.
    pub(crate) fn send(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let head = self.offer(queue, buffers);
        self.kick(queue);
        head
    }

    /// Makes a chain available.
    pub(crate) fn offer(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let first = self.queues[queue].next_descriptor;
        for (n, buffer) in buffers.iter().enumerate() {
            let index = self.queues[queue].next_descriptor;
            let next = (index + 1) % QUEUE_SIZE;
            self.queues[queue].next_descriptor = next;
            let (address, len, mut flags) = match *buffer {
                Buffer::Read(address, len) => (address, len, 0),
                Buffer::Write(address, len) => (address, len, WRITE),
            };
            if n + 1 < buffers.len() {
                flags |= NEXT;
            }
            // Without an allocation, which some tests count.
            let mut raw = [0; 16];
            raw[..8].copy_from_slice(&address.to_le_bytes());
            raw[8..12].copy_from_slice(&len.to_le_bytes());
            raw[12..14].copy_from_slice(&flags.to_le_bytes());
            raw[14..].copy_from_slice(&next.to_le_bytes());
            self.memory.write(Gpa::new(rings(queue) + 16 * u64::from(index)), &raw).unwrap();
        }
        self.offer_head(queue, first);
        first
    }

    /// Makes any descriptor available as the head of a chain.
    pub(crate) fn offer_head(&mut self, queue: usize, head: u16) {
        let state = &mut self.queues[queue];
        let entry = rings(queue) + 0x1000 + 4 + 2 * u64::from(state.available % QUEUE_SIZE);
        state.available = state.available.wrapping_add(1);
        self.memory.write(Gpa::new(entry), &head.to_le_bytes()).unwrap();
        self.memory.write(Gpa::new(rings(queue) + 0x1002), &state.available.to_le_bytes()).unwrap();
    }

    pub(crate) fn kick(&self, queue: usize) {
        self.bells.ring_at(self.machine.doorbell(queue));
    }

    /// How many answers have come that nobody has taken.
    pub(crate) fn answered(&self, queue: usize) -> u16 {
        let mut index = [0; 2];
        self.memory.read(Gpa::new(rings(queue) + 0x2002), &mut index).unwrap();
        u16::from_le_bytes(index).wrapping_sub(self.queues[queue].used)
    }

    /// The next answer: head and length.
    pub(crate) fn wait(&mut self, queue: usize) -> (u32, u32) {
        self.wait_until("answer", |driver| driver.answered(queue) > 0);
        let state = &mut self.queues[queue];
        let at = rings(queue) + 0x2000 + 4 + 8 * u64::from(state.used % QUEUE_SIZE);
        state.used = state.used.wrapping_add(1);
        let mut entry = [0; 8];
        self.memory.read(Gpa::new(at), &mut entry).unwrap();
        let (head, len) = entry.split_at(4);
        (u32::from_le_bytes(head.try_into().unwrap()), u32::from_le_bytes(len.try_into().unwrap()))
    }

    pub(crate) fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !condition(self) {
            assert!(started.elapsed() < DEADLINE, "no {what} within the deadline");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn wait_for_needs_reset(&self) {
        self.wait_until("refusal", |driver| driver.register(STATUS) & NEEDS_RESET != 0);
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write(Gpa::new(address), bytes).unwrap();
    }

    pub(crate) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(Gpa::new(address), &mut bytes).unwrap();
        bytes
    }
}

fn rings(queue: usize) -> u64 {
    RINGS + queue as u64 * RINGS_LEN
}

//! A disk behind a PCI function, driven as a guest drives it: through configuration space, BAR, rings and messages.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, reason = "waits for the device with a deadline")]

mod guest;

use std::{
    io,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use drover_block::{Backend, MemoryImage};
use drover_bus::{BusDevice, Doorbell, DoorbellAddress, MsiLine, MsiLines, MsiMessage};
use drover_devices::{BlkConfig, Device, PciAddress, PciConfig, PciRoot, Saved, VirtioBlk, VirtioPci};
use drover_guest_memory::GuestMemory;
use drover_saved_state::Envelope;
use drover_units::Gpa;
use guest::{
    AVAILABLE, Bells, DESCRIPTORS, DISK, Events, HEADERS, NEXT, RAM, SOON, USED, VERSION_1, WRITE,
    golden::golden, owner,
};
use proptest::prelude::*;

/// Device memory of this machine, and where the disk's is at first.
const WINDOW: Gpa = Gpa::new(0xe000_0000);
const ELSEWHERE: u64 = 0xe123_0000;
/// The disk is device 3 of the bus: its configuration space in the memory-mapped window.
const ECAM: u64 = 3 << 15;

const COMMON: u64 = 0;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x8000;

/// Every message that was sent, in order.
#[derive(Debug, Default)]
struct Messages {
    sent: Mutex<Vec<u32>>,
    changed: Condvar,
}

impl Messages {
    fn wait(&self, count: usize) -> Vec<u32> {
        let sent = self.sent.lock().unwrap();
        let limit = Duration::from_secs(30);
        let (sent, _) = self.changed.wait_timeout_while(sent, limit, |sent| sent.len() < count).unwrap();
        sent.clone()
    }
}

#[derive(Debug)]
struct Lines(Arc<Messages>);

#[derive(Debug)]
struct Line(Arc<Messages>, Mutex<MsiMessage>);

impl MsiLines for Lines {
    fn line(&self) -> io::Result<Arc<dyn MsiLine>> {
        Ok(Arc::new(Line(Arc::clone(&self.0), Mutex::default())))
    }
}

impl MsiLine for Line {
    fn route(&self, message: MsiMessage) -> io::Result<()> {
        *self.1.lock().unwrap() = message;
        Ok(())
    }
    fn pulse(&self) -> io::Result<()> {
        self.0.sent.lock().unwrap().push(self.1.lock().unwrap().data);
        self.0.changed.notify_all();
        Ok(())
    }
}

/// One machine with one disk on its PCI bus.
struct Machine {
    memory: GuestMemory,
    disk: Arc<VirtioPci>,
    ecam: Arc<dyn BusDevice>,
    window: Arc<dyn BusDevice>,
    messages: Arc<Messages>,
    bells: Arc<Bells>,
}

impl Machine {
    fn new() -> Self {
        let backend = Arc::new(MemoryImage::new(DISK).open());
        backend.acquire(&owner(1, 1)).unwrap();
        Self::with(backend, GuestMemory::anonymous(RAM))
    }

    fn with(backend: Arc<dyn Backend>, memory: GuestMemory) -> Self {
        Self::with_queues(backend, memory, 1)
    }

    fn with_queues(backend: Arc<dyn Backend>, memory: GuestMemory, queues: u16) -> Self {
        let (messages, bells) = (Arc::<Messages>::default(), Arc::<Bells>::default());
        let events = Arc::<Events>::default();
        let config = BlkConfig { name: "disk0".into(), id: "a-disk".into(), queues, events };
        let blk = VirtioBlk::new(config, backend);
        let config = PciConfig {
            name: "disk0".into(),
            instance: 0,
            class: 0x01_8000,
            base: WINDOW,
            memory: memory.clone(),
            lines: Arc::new(Lines(Arc::clone(&messages))),
            doorbells: bells.clone(),
        };
        let disk = Arc::new(VirtioPci::new(config, Box::new(blk)).unwrap());
        let root = PciRoot::new();
        root.insert(PciAddress::device(3).unwrap(), disk.clone()).unwrap();
        let root = Arc::new(root);
        Self { memory, disk, ecam: root.ecam(), window: root.memory(WINDOW), messages, bells }
    }

    fn config(&self, register: u64) -> u32 {
        let mut data = [0xff; 4];
        self.ecam.read(ECAM + register, &mut data);
        u32::from_le_bytes(data)
    }

    fn set_config(&self, register: u64, value: u32) {
        self.ecam.write(ECAM + register, &value.to_le_bytes());
    }

    fn read(&self, at: u64, len: usize) -> u64 {
        let mut data = vec![0xff; len];
        self.window.read(at, &mut data);
        data.resize(8, 0);
        u64::from_le_bytes(data.try_into().unwrap())
    }

    fn write(&self, at: u64, len: usize, value: u64) {
        self.window.write(at, &value.to_le_bytes()[..len]);
    }

    /// Offset of the first capability that `wanted` takes, given its offset.
    fn capability(&self, wanted: impl Fn(u32) -> bool) -> u64 {
        let mut at = u64::from(self.config(0x34) & 0xff);
        while at != 0 {
            let header = self.config(at);
            if wanted(header) {
                return at;
            }
            at = u64::from(header >> 8 & 0xff);
        }
        panic!("the function has no such capability");
    }

    /// Everything that a driver does before its first request.
    fn start(&self) {
        self.set_config(4, 0b110);
        let msix = self.capability(|header| header & 0xff == 0x11);
        self.set_config(msix, 1 << 31);
        for (vector, data) in [(0, 0x40), (1, 0x41)] {
            self.write(TABLE + 16 * vector, 8, 0xfee0_0000);
            self.write(TABLE + 16 * vector + 8, 8, data);
        }
        self.write(COMMON + 0x14, 1, 0);
        assert_eq!(self.read(COMMON + 0x14, 1), 0);
        self.write(COMMON + 0x14, 1, 1 | 2);
        self.write(COMMON + 8, 4, 1);
        self.write(COMMON + 0xc, 4, VERSION_1 >> 32);
        self.write(COMMON + 0x14, 1, 1 | 2 | 8);
        assert_eq!(self.read(COMMON + 0x14, 1), 1 | 2 | 8);
        self.write(COMMON + 0x10, 2, 0);
        self.write(COMMON + 0x16, 2, 0);
        self.write(COMMON + 0x18, 2, 16);
        self.write(COMMON + 0x1a, 2, 1);
        for (field, ring) in [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)] {
            self.write(COMMON + field, 4, ring);
            self.write(COMMON + field + 4, 4, 0);
            assert_eq!(self.read(COMMON + field, 8), ring);
        }
        self.write(COMMON + 0x1c, 2, 1);
        self.write(COMMON + 0x14, 1, 1 | 2 | 8 | 4);
        assert_eq!(self.read(COMMON + 0x14, 1), 1 | 2 | 8 | 4);
    }

    /// Offers the `n`-th request: 512 bytes from or to sector 1.
    fn offer(&self, n: u16, kind: u32) {
        let status = HEADERS + 16;
        let mut header = Vec::from(kind.to_le_bytes());
        header.extend([0; 4]);
        header.extend(1_u64.to_le_bytes());
        header.push(0xaa);
        self.memory.write(Gpa::new(HEADERS), &header).unwrap();
        let data_flags = if kind == 0 { NEXT | WRITE } else { NEXT };
        for (index, address, len, flags) in
            [(0, HEADERS, 16, NEXT), (1, 0x20000, 512, data_flags), (2, status, 1, WRITE)]
        {
            let mut raw = Vec::from(u64::to_le_bytes(address));
            raw.extend(u32::to_le_bytes(len));
            raw.extend(u16::to_le_bytes(flags));
            raw.extend(u16::to_le_bytes(index + 1));
            self.memory.write(Gpa::new(DESCRIPTORS + 16 * u64::from(index)), &raw).unwrap();
        }
        self.memory.write(Gpa::new(AVAILABLE + 2), &(n + 1).to_le_bytes()).unwrap();
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        self.memory.read(Gpa::new(HEADERS + 16), &mut status).unwrap();
        status[0]
    }

    /// Rings by the doorbell that is connected at this base.
    fn ring(&self, base: u64) {
        let address = DoorbellAddress::Mmio(Gpa::new(base + NOTIFY));
        self.bells.ring_at(Doorbell { address, value: None });
    }

    fn saved(&self) -> Envelope {
        match self.disk.save() {
            Saved::State(envelope) => envelope,
            other => panic!("a disk has state, not {other:?}"),
        }
    }
}

#[test]
fn a_driver_finds_the_disk_and_uses_it_without_an_exit() {
    let machine = Machine::new();
    assert_eq!(machine.config(0), 0x1042_1af4);
    assert_eq!(machine.config(8), 0x0180_0001);
    assert_eq!(machine.read(COMMON, 4), 0xffff_ffff, "its memory is off until the guest turns it on");
    machine.start();
    assert_eq!(machine.read(COMMON + 0x12, 2), 1, "queues");
    assert_eq!(machine.read(0x2000, 8), DISK.get() / 512, "capacity");
    machine.memory.write(Gpa::new(0x20000), &[0x5a; 512]).unwrap();
    machine.offer(0, 1);
    machine.ring(WINDOW.get());
    assert_eq!(machine.messages.wait(1), [0x41]);
    assert_eq!(machine.status(), 0);
    machine.memory.write(Gpa::new(0x20000), &[0; 512]).unwrap();
    machine.offer(1, 0);
    machine.ring(WINDOW.get());
    assert_eq!(machine.messages.wait(2), [0x41, 0x41]);
    let mut read = [0; 512];
    machine.memory.read(Gpa::new(0x20000), &mut read).unwrap();
    assert_eq!(read, [0x5a; 512]);
}

#[test]
fn every_structure_is_announced_and_the_window_reaches_them() {
    let machine = Machine::new();
    for (kind, start) in [(1, COMMON), (2, NOTIFY), (3, 0x1000), (4, 0x2000)] {
        let at = machine.capability(|header| header & 0xff == 9 && header >> 24 == kind);
        assert_eq!(
            (machine.config(at + 4), u64::from(machine.config(at + 8))),
            (0, start),
            "structure {kind}"
        );
    }
    // Read the number of queues through the configuration space, with the memory off.
    let window = machine.capability(|header| header & 0xff == 9 && header >> 24 == 5);
    machine.set_config(window + 8, 0x12);
    machine.set_config(window + 12, 2);
    let mut count = [0; 2];
    machine.ecam.read(ECAM + window + 16, &mut count);
    assert_eq!(u16::from_le_bytes(count), 1);
    machine.set_config(window + 8, 0xffff_ffff);
    machine.ecam.read(ECAM + window + 16, &mut count);
    machine.ecam.write(ECAM + window + 16, &count);
}

#[test]
fn doorbells_follow_the_memory() {
    let machine = Machine::new();
    assert_eq!(machine.bells.count(), 0, "off at first");
    machine.start();
    assert_eq!(machine.bells.count(), 1);
    machine.set_config(0x10, ELSEWHERE as u32);
    assert_eq!(machine.bells.count(), 1);
    machine.offer(0, 0);
    machine.ring(ELSEWHERE);
    assert_eq!(machine.messages.wait(1), [0x41]);
    assert_eq!(machine.read(COMMON, 4), 0xffff_ffff);
    assert_eq!(machine.read(ELSEWHERE - WINDOW.get() + 0x12, 2), 1);
    // Without a doorbell the bus is as good.
    machine.offer(1, 0);
    machine.write(ELSEWHERE - WINDOW.get() + NOTIFY, 2, 0);
    assert_eq!(machine.messages.wait(2), [0x41, 0x41]);
    machine.set_config(4, 0);
    assert_eq!(machine.bells.count(), 0);
}

#[test]
fn a_disk_in_use_moves_with_its_messages() {
    let backend = Arc::new(MemoryImage::new(DISK).open());
    backend.acquire(&owner(1, 1)).unwrap();
    let source = Machine::with(backend.clone(), GuestMemory::anonymous(RAM));
    source.start();
    source.set_config(0x10, ELSEWHERE as u32);
    source.offer(0, 1);
    source.ring(ELSEWHERE);
    source.messages.wait(1);
    source.disk.pause(SOON).unwrap();
    let target = Machine::with(backend, source.memory.clone());
    target.disk.restore(&source.saved()).unwrap();
    assert_eq!(target.saved(), source.saved());
    target.disk.resume().unwrap();
    // What could be sent is, once: an interrupt may have been lost on the way.
    assert_eq!(target.messages.wait(2), [0x40, 0x41]);
    target.offer(1, 0);
    target.ring(ELSEWHERE);
    assert_eq!(target.messages.wait(3).last(), Some(&0x41));
}

/// A disk behind PCI that has answered one write, paused.
fn disk_in_use(image: &MemoryImage) -> Machine {
    let backend = Arc::new(image.open());
    backend.acquire(&owner(1, 1)).unwrap();
    let machine = Machine::with(backend, GuestMemory::anonymous(RAM));
    machine.start();
    machine.set_config(0x10, ELSEWHERE as u32);
    machine.offer(0, 1);
    machine.ring(ELSEWHERE);
    machine.messages.wait(1);
    machine.disk.pause(SOON).unwrap();
    machine
}

#[test]
fn a_disk_in_use_of_a_release_is_restored() {
    let image = MemoryImage::new(DISK);
    let machine = disk_in_use(&image);
    let golden = golden("virtio-pci-blk-v3.bin", &machine.saved());
    assert_eq!(machine.saved(), golden);
    let successor = Machine::with(Arc::new(image.open()), machine.memory.clone());
    successor.disk.restore(&golden).unwrap();
    assert_eq!(successor.saved(), golden);
}

#[test]
fn a_disk_with_several_queues_has_a_doorbell_and_a_vector_for_each() {
    let backend = Arc::new(MemoryImage::new(DISK).open());
    backend.acquire(&owner(1, 1)).unwrap();
    let machine = Machine::with_queues(backend, GuestMemory::anonymous(RAM), 3);
    machine.start();
    assert_eq!(machine.read(COMMON + 0x12, 2), 3);
    assert_eq!(machine.bells.count(), 3);
    for queue in 0..3 {
        machine.write(COMMON + 0x16, 2, queue);
        machine.write(COMMON + 0x1a, 2, queue + 1);
        assert_eq!(machine.read(COMMON + 0x1a, 2), queue + 1);
    }
    machine.write(COMMON + 0x1a, 2, 4);
    assert_eq!(machine.read(COMMON + 0x1a, 2), 0xffff, "one for each queue and one for changes");
}

#[test]
fn a_reset_of_the_machine_puts_the_function_back_to_where_it_was_at_first() {
    let machine = Machine::new();
    let new = machine.saved();
    machine.start();
    machine.set_config(0x10, ELSEWHERE as u32);
    machine.offer(0, 1);
    machine.ring(ELSEWHERE);
    machine.messages.wait(1);
    machine.disk.pause(SOON).unwrap();
    assert_ne!(machine.saved(), new);
    machine.disk.reset().unwrap();
    assert_eq!(machine.saved(), new);
}

#[test]
fn a_reset_forgets_vectors_and_a_vector_beyond_the_table_is_refused() {
    let machine = Machine::new();
    machine.start();
    assert_eq!(machine.read(COMMON + 0x1a, 2), 1);
    machine.write(COMMON + 0x10, 2, 2);
    assert_eq!(machine.read(COMMON + 0x10, 2), 0xffff);
    machine.write(COMMON + 0x14, 1, 0);
    assert_eq!(machine.read(COMMON + 0x1a, 2), 0xffff);
    assert_eq!(machine.read(COMMON + 0x1c, 2), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_access_is_survived(
        accesses in prop::collection::vec(
            (any::<bool>(), any::<bool>(), 0_u64..0x1_2000, prop::sample::select(vec![1_usize, 2, 4, 8]), any::<u64>()),
            1..200,
        ),
    ) {
        let machine = Machine::new();
        machine.set_config(4, 0b110);
        for (config, write, at, len, value) in accesses {
            let bytes = &value.to_le_bytes()[..len];
            let mut data = vec![0; len];
            match (config, write) {
                (true, true) => machine.ecam.write(ECAM + at % 0x1000, bytes),
                (true, false) => machine.ecam.read(ECAM + at % 0x1000, &mut data),
                (false, true) => machine.window.write(at, bytes),
                (false, false) => machine.window.read(at, &mut data),
            }
        }
    }
}

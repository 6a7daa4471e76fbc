//! A disk with several queues, and one whose driver turns its cache off.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use std::sync::{Arc, Condvar, Mutex};

use drover_block::{Backend, MemoryImage, Operation, decorators::Faulty};
use drover_bus::BusDevice;
use drover_devices::{Device, DeviceError};
use drover_guest_memory::GuestMemory;
use drover_units::Gpa;
use guest::{
    CONFIG_WCE, DISK, DRIVER_OK, EVENT_IDX, FEATURES_OK, FLUSH, Guest, MQ, NEXT, OK, QUEUE_SIZE, RAM, SOON,
    STATUS, VERSION_1, WRITE, owner,
};

const QUEUES: u16 = 3;
/// Where the driver finds and sets whether writes may wait for a flush.
const WRITEBACK: u64 = 0x100 + 32;

fn owned(image: &MemoryImage) -> Arc<dyn Backend> {
    let backend = Arc::new(image.open());
    backend.acquire(&owner(1, 1)).unwrap();
    backend
}

/// The rings of the queues behind the first, which is the harness's own; each has room for one read of a sector.
fn rings(queue: u32) -> u64 {
    0x10000 * u64::from(queue)
}

fn start_all(guest: &Guest) {
    guest.negotiate(VERSION_1 | FLUSH | MQ);
    guest.set_up_queue(QUEUE_SIZE, [guest::DESCRIPTORS, guest::AVAILABLE, guest::USED]);
    for queue in 1..u32::from(QUEUES) {
        let base = rings(queue);
        guest.set_up_queue_of(queue, QUEUE_SIZE, [base, base + 0x1000, base + 0x2000]);
    }
    guest.write_register(STATUS, 3 | FEATURES_OK | DRIVER_OK);
}

/// Reads sector 0 through a queue behind the first.
fn read_through(guest: &Guest, queue: u32, nth: u16) {
    let base = rings(queue);
    let (header, data, status) = (base + 0x3000, base + 0x4000, base + 0x3010);
    guest.memory.write(Gpa::new(header), &[0; 16]).unwrap();
    guest.memory.write(Gpa::new(status), &[guest::UNANSWERED]).unwrap();
    guest.put_descriptor_at(base, 0, header, 16, NEXT, 1);
    guest.put_descriptor_at(base, 1, data, 512, NEXT | WRITE, 2);
    guest.put_descriptor_at(base, 2, status, 1, WRITE, 0);
    guest.memory.write(Gpa::new(base + 0x1002), &nth.to_le_bytes()).unwrap();
    guest.bells.ring(0x50, queue);
    let word = |at: u64| {
        let mut word = [0; 2];
        guest.memory.read(Gpa::new(at), &mut word).unwrap();
        u16::from_le_bytes(word)
    };
    guest.wait_until("answer", |_| word(base + 0x2002) == nth);
    assert_eq!(word(status).to_le_bytes()[0], OK);
}

#[test]
fn a_disk_with_several_queues_says_so_and_serves_them_all() {
    let image = MemoryImage::new(DISK);
    let mut guest = Guest::with_queues(owned(&image), GuestMemory::anonymous(RAM), QUEUES);
    assert_ne!(guest.offered() & MQ, 0);
    let mut count = [0; 2];
    guest.disk.read(0x100 + 34, &mut count);
    assert_eq!(u16::from_le_bytes(count), QUEUES);
    guest.write_register(0x30, u32::from(QUEUES) - 1);
    assert_ne!(guest.read_register(0x34), 0);
    start_all(&guest);
    assert_eq!(guest.write_disk(0, &[7; 512]), OK);
    for nth in 1..3 {
        for queue in 1..u32::from(QUEUES) {
            read_through(&guest, queue, nth);
            let mut data = [0; 512];
            guest.memory.read(Gpa::new(rings(queue) + 0x4000), &mut data).unwrap();
            assert_eq!(data, [7; 512]);
        }
    }
}

#[test]
fn a_driver_need_not_use_all_queues() {
    let image = MemoryImage::new(DISK);
    let mut guest = Guest::with_queues(owned(&image), GuestMemory::anonymous(RAM), QUEUES);
    guest.start(VERSION_1 | FLUSH);
    assert_eq!(guest.write_disk(0, &[7; 512]), OK);
    guest.disk.pause(SOON).unwrap();
    guest.disk.resume().unwrap();
    assert_eq!(guest.read_disk(0, 512), [7; 512]);
}

#[test]
fn a_queue_that_is_stuck_holds_up_no_other() {
    let image = MemoryImage::new(DISK);
    let stuck = Arc::new((Mutex::new(true), Condvar::new()));
    let gate = stuck.clone();
    // The worker's thread itself waits: what a lock shared between queues would make the others do.
    let backend = Faulty::new(owned(&image), move |request| {
        if request.operation() == Operation::Write {
            drop(gate.1.wait_while(gate.0.lock().unwrap(), |stuck| *stuck).unwrap());
        }
        None
    });
    let mut guest = Guest::with_queues(Arc::new(backend), GuestMemory::anonymous(RAM), QUEUES);
    start_all(&guest);
    let sent = guest.send(1, 0, Some((0x8000, 512)));
    guest.kick();
    for queue in 1..u32::from(QUEUES) {
        read_through(&guest, queue, 1);
    }
    assert_eq!(guest.status(sent), guest::UNANSWERED);
    *stuck.0.lock().unwrap() = false;
    stuck.1.notify_all();
    guest.wait(1);
    assert_eq!(guest.status(sent), OK);
}

#[test]
fn a_disk_with_several_queues_moves_to_one_with_as_many() {
    let image = MemoryImage::new(DISK);
    let source = Guest::with_queues(owned(&image), GuestMemory::anonymous(RAM), QUEUES);
    start_all(&source);
    read_through(&source, 2, 1);
    source.disk.pause(SOON).unwrap();
    let state = source.saved();
    source.backend.release().unwrap();
    let target = Guest::with_queues(owned(&image), source.memory.clone(), QUEUES);
    target.disk.restore(&state).unwrap();
    assert_eq!(target.saved(), state);
    target.disk.resume().unwrap();
    read_through(&target, 2, 2);
    read_through(&target, 1, 1);
    let fewer = Guest::with_queues(Arc::new(image.open()), source.memory.clone(), 1);
    assert!(matches!(fewer.disk.restore(&state), Err(DeviceError::Incompatible { .. })));
}

/// A guest, and how many flushes its backend has seen.
fn counting_flushes(features: u64) -> (Guest, impl Fn() -> usize) {
    let image = MemoryImage::new(DISK);
    let flushes = Arc::new(Mutex::new(0));
    let seen = flushes.clone();
    let backend = Faulty::new(owned(&image), move |request| {
        *seen.lock().unwrap() += usize::from(request.operation() == Operation::Flush);
        None
    });
    let mut guest = Guest::with(Arc::new(backend));
    guest.start(features);
    (guest, move || *flushes.lock().unwrap())
}

fn writeback(guest: &Guest) -> u8 {
    let mut byte = [0xff];
    guest.disk.read(WRITEBACK, &mut byte);
    byte[0]
}

#[test]
fn a_driver_turns_the_cache_off_and_on() {
    let (mut guest, flushes) = counting_flushes(VERSION_1 | FLUSH | CONFIG_WCE);
    assert_eq!(writeback(&guest), 1);
    assert_eq!((guest.write_disk(0, &[1; 512]), flushes()), (OK, 0));
    guest.disk.write(WRITEBACK, &[0]);
    assert_eq!(writeback(&guest), 0);
    assert_eq!((guest.write_disk(0, &[1; 512]), flushes()), (OK, 1), "answered when it is durable");
    guest.disk.write(WRITEBACK, &[7]);
    assert_eq!(writeback(&guest), 0, "neither on nor off");
    guest.disk.write(WRITEBACK, &[1]);
    assert_eq!((guest.write_disk(0, &[1; 512]), flushes()), (OK, 1));
    guest.disk.write(WRITEBACK, &[0]);
    guest.start(VERSION_1 | FLUSH | CONFIG_WCE);
    assert_eq!(writeback(&guest), 1, "a reset turns it on");
}

#[test]
fn a_driver_that_has_not_asked_for_it_cannot_turn_the_cache_off() {
    let (mut guest, flushes) = counting_flushes(VERSION_1 | FLUSH);
    guest.disk.write(WRITEBACK, &[0]);
    assert_eq!(writeback(&guest), 1);
    assert_eq!((guest.write_disk(0, &[1; 512]), flushes()), (OK, 0));
}

#[test]
fn the_cache_of_a_driver_that_knows_no_flush_starts_turned_off() {
    let (mut guest, flushes) = counting_flushes(VERSION_1 | CONFIG_WCE);
    assert_eq!(writeback(&guest), 0);
    assert_eq!((guest.write_disk(0, &[1; 512]), flushes()), (OK, 1));
    guest.disk.write(WRITEBACK, &[1]);
    assert_eq!((guest.write_disk(0, &[1; 512]), flushes()), (OK, 1));
}

#[test]
fn a_cache_that_is_off_is_off_after_a_move() {
    let image = MemoryImage::new(DISK);
    let mut source = Guest::with(owned(&image));
    source.start(VERSION_1 | FLUSH | CONFIG_WCE | EVENT_IDX);
    source.disk.write(WRITEBACK, &[0]);
    source.disk.pause(SOON).unwrap();
    let state = source.saved();
    source.backend.release().unwrap();
    let target = source.moved(owned(&image), &state);
    assert_eq!(writeback(&target), 0);
    target.disk.resume().unwrap();
}

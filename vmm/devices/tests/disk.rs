//! A disk as its driver and its machine see it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering, fence},
    },
    time::{Duration, Instant},
};

use drover_block::{
    Access, Backend, FileBackend, MemoryImage, Operation,
    decorators::{Delayed, Fault, Faulty},
};
use drover_bus::BusDevice;
use drover_devices::{BlkMetricsSnapshot, Device, DeviceError, DeviceEvent};
use drover_guest_memory::DirtyTracker;
use drover_units::{Bytes, Gpa};
use guest::{
    AVAILABLE, CONFIG_WCE, DISK, DRIVER_OK, EVENT_IDX, FEATURES_OK, FLUSH, Guest, HEADERS, INDIRECT,
    INTERRUPT_STATUS, IOERR, NEEDS_RESET, NEXT, OK, QUEUE_SIZE, READ_ONLY, SIZE_MAX, SOON, STATUS,
    UNANSWERED, UNSUPP, USED, VERSION_1, WRITE, owner,
};

const FEATURES: u64 = VERSION_1 | FLUSH;

fn owned(image: &MemoryImage) -> Arc<dyn Backend> {
    let backend = Arc::new(image.open());
    backend.acquire(&owner(1, 1)).unwrap();
    backend
}

/// A backend that takes its time, and how many requests have reached it.
fn slow_and_counting(backend: Arc<dyn Backend>) -> (Arc<dyn Backend>, Arc<AtomicUsize>) {
    let seen = Arc::<AtomicUsize>::default();
    let slow = Arc::new(Delayed::new(backend, Duration::from_millis(20)));
    let counter = seen.clone();
    let counting = Faulty::new(slow, move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        None
    });
    (Arc::new(counting), seen)
}

fn started() -> Guest {
    let mut guest = Guest::new();
    guest.start(FEATURES);
    guest
}

#[test]
fn the_window_identifies_a_disk() {
    let guest = Guest::new();
    assert_eq!(guest.read_register(0), u32::from_le_bytes(*b"virt"));
    assert_eq!((guest.read_register(4), guest.read_register(8)), (2, 2));
    assert_eq!(guest.read_register(0x34), 256, "queue 0 exists");
    guest.write_register(0x30, 1);
    assert_eq!(guest.read_register(0x34), 0, "queue 1 does not");
    let mut capacity = [0; 8];
    guest.disk.read(0x100, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), DISK.get() / 512);
    let of_disks = SIZE_MAX | 1 << 2 | 1 << 6 | FLUSH | CONFIG_WCE | 1 << 13 | 1 << 14;
    let expected = VERSION_1 | EVENT_IDX | INDIRECT | of_disks;
    assert_eq!(guest.offered(), expected);
    guest.disk.write(0, &[0; 4]);
    assert_eq!(guest.read_register(0), u32::from_le_bytes(*b"virt"));
}

#[test]
fn what_the_driver_writes_it_reads_back() {
    let mut guest = started();
    assert_eq!(guest.read_register(STATUS), 3 | FEATURES_OK | DRIVER_OK);
    let data: Vec<u8> = (0..8192).map(|n| (n % 251) as u8).collect();
    assert_eq!(guest.write_disk(7, &data), OK);
    assert_eq!(guest.request(4, 0, None), (OK, 1));
    assert_eq!(guest.read_disk(7, 8192), data);
    assert_eq!(guest.read_disk(100, 512), [0; 512]);
    let expected = BlkMetricsSnapshot {
        reads: 2,
        writes: 1,
        flushes: 1,
        discards: 0,
        zeroings: 0,
        bytes_read: 8192 + 512,
        bytes_written: 8192,
        errors: 0,
    };
    assert_eq!(guest.metrics.snapshot(), expected);
    assert_eq!(guest.read_register(INTERRUPT_STATUS), 1);
    guest.write_register(0x64, 1);
    assert_eq!(guest.read_register(INTERRUPT_STATUS), 0);
}

#[test]
fn a_notification_without_a_doorbell_is_heard_too() {
    let mut guest = started();
    let sent = guest.send(4, 0, None);
    guest.write_register(0x50, 0);
    guest.wait(1);
    assert_eq!(guest.status(sent), OK);
}

/// The device says in the used ring whether it wants to be told (virtio 1.2, section 2.7.10).
fn wants_no_bell(guest: &Guest) -> bool {
    fence(Ordering::SeqCst);
    let mut flags = [0; 2];
    guest.memory.read(Gpa::new(USED), &mut flags).unwrap();
    flags == [1, 0]
}

#[test]
fn who_asks_on_at_once_need_not_ring() {
    let mut guest = started();
    let began = Instant::now();
    let (mut rung, mut unrung) = (0, 0);
    // Each is answered, rung for or not: a bell that was left off for good would leave one waiting.
    while rung < 5 || unrung < 5 {
        let answered = guest.used_index().wrapping_add(1);
        let sent = guest.send(0, 0, Some((0x20000, 512)));
        if wants_no_bell(&guest) {
            unrung += 1;
        } else {
            guest.kick();
            rung += 1;
        }
        while guest.used_index() != answered {
            assert!(began.elapsed() < SOON, "{rung} have been answered after a bell, {unrung} without");
            std::hint::spin_loop();
        }
        guest.wait(1);
        assert_eq!(guest.status(sent), OK);
        // Now and then the driver has something else to do, and finds the worker asleep.
        if unrung > rung {
            guest.wait_until("sleep", |guest| !wants_no_bell(guest));
        }
    }
}

#[test]
fn the_disk_tells_its_id() {
    let mut guest = started();
    assert_eq!(guest.request(8, 0, Some((0x20000, 20))), (OK, 21));
    let mut id = [0xff; 20];
    guest.memory.read(Gpa::new(0x20000), &mut id).unwrap();
    assert_eq!(&id, b"a-disk\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn requests_that_cannot_be_are_answered_with_an_error() {
    let mut guest = started();
    let end = DISK.get() / 512;
    assert_eq!(guest.request(0, end, Some((0x20000, 512))), (IOERR, 1));
    assert_eq!(guest.request(1, u64::MAX, Some((0x20000, 512))), (IOERR, 1));
    assert_eq!(guest.request(1, 0, Some((0x20000, 513))), (IOERR, 1));
    assert_eq!(guest.request(0, 0, Some((0xdead_0000, 512))), (IOERR, 1));
    assert_eq!(guest.request(99, 0, Some((0x20000, 512))), (UNSUPP, 1));
    assert_eq!(guest.metrics.snapshot().errors, 5);
    assert_eq!(guest.read_disk(0, 512), [0; 512], "and the disk goes on");
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let image = MemoryImage::new(DISK);
    let backend = Arc::new(image.open_read_only());
    backend.acquire(&owner(1, 1)).unwrap();
    let mut guest = Guest::with(backend);
    assert_ne!(guest.offered() & READ_ONLY, 0);
    guest.start(FEATURES | READ_ONLY);
    assert_eq!(guest.write_disk(0, &[1; 512]), IOERR);
    assert_eq!(guest.read_disk(0, 512), [0; 512]);
}

#[test]
fn a_request_may_be_cut_into_descriptors_in_any_way() {
    let mut guest = started();
    // Header in three pieces, the last of which runs on into the data; data and status in one piece.
    let mut bytes = Vec::from([1_u8, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([0x5a; 512]);
    guest.memory.write(Gpa::new(0x30000), &bytes).unwrap();
    guest.put_descriptor(0, 0x30000, 3, NEXT, 4);
    guest.put_descriptor(4, 0x30003, 0, NEXT, 2);
    guest.put_descriptor(2, 0x30003, 5, NEXT, 9);
    guest.put_descriptor(9, 0x30008, 8 + 512, NEXT, 1);
    guest.put_descriptor(1, HEADERS, 1, WRITE, 0);
    guest.offer(0);
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 1)]);
    // The other way round, through an indirect table: header, then data and status in one piece.
    guest.memory.write(Gpa::new(0x30000), &[0, 0, 0, 0]).unwrap();
    guest.put_descriptor_at(0x38000, 0, 0x30000, 16, NEXT, 1);
    guest.put_descriptor_at(0x38000, 1, 0x40000, 513, WRITE, 0);
    guest.put_descriptor(0, 0x38000, 32, 4, 0);
    guest.offer(0);
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 513)]);
    let mut data = [0xff; 513];
    guest.memory.read(Gpa::new(0x40000), &mut data).unwrap();
    assert_eq!(data[..512], [0x5a; 512]);
    assert_eq!(data[512], OK);
}

#[test]
fn with_an_event_index_the_driver_is_interrupted_when_it_wants() {
    let image = MemoryImage::new(DISK);
    // All four are answered by one look at the storage.
    let slow = Delayed::new(owned(&image), Duration::from_millis(5));
    let mut guest = Guest::with(Arc::new(slow));
    guest.start(FEATURES | EVENT_IDX);
    // used_event: interrupt at the fourth answer.
    guest.memory.write(Gpa::new(AVAILABLE + 4 + 2 * u64::from(QUEUE_SIZE)), &[3, 0]).unwrap();
    for _ in 0..3 {
        guest.send(4, 0, None);
        guest.kick();
        guest.wait(1);
    }
    assert_eq!(guest.line.count(), 0);
    guest.send(4, 0, None);
    guest.kick();
    guest.wait(1);
    guest.wait_until("interrupt", |guest| guest.line.count() == 1);
    // avail_event: the device wants to hear of the fifth.
    let mut event = [0; 2];
    guest.memory.read(Gpa::new(USED + 4 + 8 * u64::from(QUEUE_SIZE)), &mut event).unwrap();
    assert_eq!(u16::from_le_bytes(event), 4);
}

#[test]
fn without_one_the_driver_can_still_ask_for_silence() {
    let mut guest = started();
    guest.memory.write(Gpa::new(AVAILABLE), &[1, 0]).unwrap();
    assert_eq!(guest.request(4, 0, None), (OK, 1));
    guest.memory.write(Gpa::new(AVAILABLE), &[0, 0]).unwrap();
    assert_eq!(guest.request(4, 0, None), (OK, 1));
    guest.wait_until("interrupt", |guest| guest.line.count() > 0);
    assert_eq!(guest.line.count(), 1);
}

#[test]
fn a_driver_that_does_not_flush_gets_durable_writes() {
    let image = MemoryImage::new(DISK);
    let mut guest = Guest::with(owned(&image));
    guest.start(VERSION_1);
    assert_eq!(guest.write_disk(0, &[7; 512]), OK);
    assert_eq!(image.durable()[..512], [7; 512]);
    guest.start(FEATURES);
    assert_eq!(guest.write_disk(0, &[8; 512]), OK);
    assert_eq!(image.durable()[..512], [7; 512], "a driver that flushes does so when it wants");
    assert_eq!(guest.request(4, 0, None).0, OK);
    assert_eq!(image.durable()[..512], [8; 512]);
}

#[test]
fn everything_the_device_writes_to_ram_is_marked() {
    let mut guest = started();
    let mut tracker = DirtyTracker::new(&guest.memory);
    let sent = guest.send(0, 0, Some((0x50000, 8192)));
    tracker.take();
    guest.kick();
    guest.wait(1);
    assert_eq!(guest.status(sent), OK);
    let dirty: Vec<_> = tracker.take().iter().map(Gpa::get).collect();
    assert_eq!(dirty, [USED, HEADERS, 0x50000, 0x51000], "used ring, status byte, data");
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let guest = Guest::new();
    for features in [FEATURES | 1 << 34, FEATURES | 1 << 12, FLUSH] {
        guest.negotiate(features);
        assert_eq!(guest.read_register(STATUS), 3, "{features:#x}");
        guest.set_up_queue(QUEUE_SIZE, [0x1000, 0x2000, 0x3000]);
        guest.write_register(STATUS, 3 | FEATURES_OK | DRIVER_OK);
        assert_eq!(guest.read_register(STATUS) & DRIVER_OK, 0, "{features:#x}");
    }
}

#[test]
fn rings_that_are_not_in_ram_are_refused() {
    let mut guest = Guest::new();
    for (size, rings) in [
        (QUEUE_SIZE, [0xf_fff8, 0x2000, 0x3000]),
        (QUEUE_SIZE, [0x1001, 0x2000, 0x3000]),
        (QUEUE_SIZE, [0x1000, 0x2001, 0x3000]),
        (QUEUE_SIZE, [0x1000, 0x2000, 0x10_0000]),
        (QUEUE_SIZE, [0x1000, u64::MAX - 1, 0x3000]),
        (0, [0x1000, 0x2000, 0x3000]),
        (3, [0x1000, 0x2000, 0x3000]),
        (512, [0x1000, 0x2000, 0x3000]),
    ] {
        guest.negotiate(FEATURES);
        guest.set_up_queue(size, rings);
        guest.write_register(STATUS, 3 | FEATURES_OK | DRIVER_OK);
        assert_ne!(guest.read_register(STATUS) & NEEDS_RESET, 0, "{size} {rings:x?}");
        assert_eq!(guest.read_register(INTERRUPT_STATUS), 2, "a configuration change");
    }
    guest.start(FEATURES);
    assert_eq!(guest.request(4, 0, None), (OK, 1), "a reset brings it back");
}

#[test]
fn a_broken_chain_stops_the_disk_until_it_is_reset() {
    type Break = fn(&mut Guest);
    let breaks: [(&str, Break); 8] = [
        ("a loop", |guest| guest.put_descriptor(0, HEADERS, 16, NEXT, 0)),
        ("a next beyond the table", |guest| guest.put_descriptor(0, HEADERS, 16, NEXT, QUEUE_SIZE)),
        ("no header", |guest| guest.put_descriptor(0, HEADERS, 1, WRITE, 0)),
        ("half a header", |guest| guest.put_descriptor(0, HEADERS, 15, NEXT, 2)),
        ("no status", |guest| guest.put_descriptor(0, HEADERS, 16, 0, 0)),
        ("a status that is not RAM", |guest| guest.put_descriptor(2, u64::MAX, 1, WRITE, 0)),
        ("a header that is not RAM", |guest| guest.put_descriptor(0, 1 << 40, 16, NEXT, 2)),
        ("readable after writable", |guest| {
            guest.put_descriptor(0, HEADERS, 16, NEXT | WRITE, 1);
            guest.put_descriptor(1, HEADERS, 16, NEXT, 2);
        }),
    ];
    let mut guest = Guest::new();
    for (what, break_it) in breaks {
        guest.start(FEATURES);
        assert_eq!(guest.request(4, 0, None), (OK, 1), "after a reset");
        guest.start(FEATURES);
        let sent = guest.send(4, 0, None);
        break_it(&mut guest);
        guest.kick();
        guest.wait_until(what, |guest| guest.read_register(STATUS) & NEEDS_RESET != 0);
        assert_eq!((guest.status(sent), guest.used_index()), (UNANSWERED, 0), "{what}");
    }
    // An index further ahead than the queue is long, and a head that does not exist.
    guest.start(FEATURES);
    guest.set_available_index(QUEUE_SIZE + 1);
    guest.kick();
    guest.wait_until("refusal", |guest| guest.read_register(STATUS) & NEEDS_RESET != 0);
    guest.start(FEATURES);
    guest.offer(QUEUE_SIZE);
    guest.kick();
    guest.wait_until("refusal", |guest| guest.read_register(STATUS) & NEEDS_RESET != 0);
}

#[test]
fn more_chains_at_once_than_the_queue_has_room_for_are_all_answered() {
    let image = MemoryImage::new(DISK);
    let mut guest = Guest::with(Arc::new(Delayed::new(owned(&image), Duration::from_millis(1))));
    guest.start(FEATURES);
    // The same chain again and again, which a driver must not do: harmless, and every one is answered.
    let sent = guest.send(4, 0, None);
    for _ in 1..QUEUE_SIZE {
        guest.offer(sent.head);
    }
    guest.kick();
    assert_eq!(guest.wait(QUEUE_SIZE).len(), usize::from(QUEUE_SIZE));
    for _ in 0..QUEUE_SIZE {
        guest.offer(sent.head);
    }
    guest.kick();
    guest.wait(QUEUE_SIZE);
}

#[test]
fn a_failing_storage_is_an_error_to_the_driver() {
    let image = MemoryImage::new(DISK);
    let faulty = Faulty::new(owned(&image), |request| {
        (request.operation() == Operation::Write).then_some(Fault::Io(28))
    });
    let mut guest = Guest::with(Arc::new(faulty));
    guest.start(FEATURES);
    assert_eq!(guest.write_disk(0, &[1; 512]), IOERR);
    assert_eq!(guest.read_disk(0, 512), [0; 512]);
    assert_eq!((guest.metrics.snapshot().errors, guest.metrics.snapshot().writes), (1, 0));
    assert_eq!(guest.events.seen(), []);
}

#[test]
fn a_lost_disk_stops_the_vm_and_never_answers() {
    let image = MemoryImage::new(DISK);
    let lost = Faulty::new(owned(&image), |request| {
        (request.operation() == Operation::Write).then_some(Fault::Fenced)
    });
    let mut guest = Guest::with(Arc::new(lost));
    guest.start(FEATURES);
    guest.read_disk(0, 512);
    let sent = guest.send(1, 0, Some((0x20000, 512)));
    guest.send(0, 0, Some((0x20000, 512)));
    guest.kick();
    assert_eq!(guest.events.wait(), DeviceEvent::Fenced { device: "disk0".into() });
    assert!(matches!(guest.disk.pause(SOON), Err(DeviceError::Fenced { .. })));
    assert!(matches!(guest.disk.resume(), Err(DeviceError::Fenced { .. })));
    guest.send(0, 0, Some((0x20000, 512)));
    guest.kick();
    guest.write_register(STATUS, 0);
    assert_eq!(guest.status(sent), UNANSWERED);
    assert_eq!(guest.events.seen().len(), 1, "told once");
}

#[test]
fn io_without_ownership_stops_the_vm_too() {
    let image = MemoryImage::new(DISK);
    let mut guest = Guest::with(Arc::new(image.open()));
    guest.start(FEATURES);
    let sent = guest.send(0, 0, Some((0x20000, 512)));
    guest.kick();
    assert_eq!(guest.events.wait(), DeviceEvent::Fenced { device: "disk0".into() });
    assert_eq!(guest.status(sent), UNANSWERED);
}

#[test]
fn a_pause_answers_what_was_taken_and_leaves_the_rest_in_the_ring() {
    let image = MemoryImage::new(DISK);
    let backend = owned(&image);
    let (slow, seen) = slow_and_counting(backend.clone());
    let mut guest = Guest::with(slow);
    guest.start(FEATURES);
    let before: Vec<_> = (0..3).map(|n| guest.send(1, n, Some((0x20000, 512)))).collect();
    guest.kick();
    guest.wait_until("start of the writes", |_| seen.load(Ordering::Relaxed) == 3);
    guest.disk.pause(SOON).unwrap();
    assert!(before.iter().all(|sent| guest.status(*sent) == OK));
    backend.release().expect("nothing is under way");
    let mut tracker = DirtyTracker::new(&guest.memory);
    let after = guest.send(1, 3, Some((0x20000, 512)));
    tracker.take();
    guest.kick();
    guest.disk.pause(SOON).expect("pausing twice is one pause");
    assert_eq!(guest.status(after), UNANSWERED);
    assert!(tracker.take().is_empty(), "a paused device writes nothing");
    backend.acquire(&owner(1, 1)).unwrap();
    guest.disk.resume().unwrap();
    guest.wait(4);
    assert_eq!(guest.status(after), OK);
}

#[test]
fn a_pause_does_not_outlast_its_limit_and_leaves_the_disk_running() {
    let image = MemoryImage::new(DISK);
    let (slow, seen) = slow_and_counting(owned(&image));
    let mut guest = Guest::with(slow);
    guest.start(FEATURES);
    let sent = guest.send(1, 0, Some((0x20000, 512)));
    guest.kick();
    guest.wait_until("start of the write", |_| seen.load(Ordering::Relaxed) == 1);
    assert!(matches!(guest.disk.pause(Duration::ZERO), Err(DeviceError::DrainTimeout { .. })));
    guest.wait(1);
    assert_eq!(guest.status(sent), OK);
    guest.send(1, 1, Some((0x20000, 512)));
    guest.kick();
    guest.wait(1);
}

#[test]
fn a_disk_in_memory_moves_with_a_request_in_its_ring() {
    let image = MemoryImage::new(DISK);
    check_move(|| Arc::new(image.open()));
}

#[test]
fn a_disk_on_a_raw_file_moves_with_a_request_in_its_ring() {
    let file = tempfile::Builder::new().suffix(".raw").tempfile().unwrap();
    file.as_file().set_len(DISK.get()).unwrap();
    check_move(|| Arc::new(FileBackend::open(file.path(), Access::ReadWrite).unwrap()));
    std::fs::remove_file(file.path().with_extension("owner")).unwrap();
}

fn check_move(open: impl Fn() -> Arc<dyn Backend>) {
    let source_backend = open();
    source_backend.acquire(&owner(1, 1)).unwrap();
    let mut source = Guest::with(source_backend);
    source.start(FEATURES | EVENT_IDX);
    assert_eq!(source.write_disk(0, &[1; 512]), OK);
    source.disk.pause(SOON).unwrap();
    let in_ring = source.send(1, 1, Some((0x20000, 512)));
    source.kick();
    let state = source.saved();
    // The target opens early, and takes the disk only when the source has let go.
    let target_backend = open();
    let mut target = source.moved(target_backend.clone(), &state);
    assert_eq!(target.saved(), state, "a restored disk saves what it was given");
    source.backend.release().unwrap();
    assert_eq!(target.status(in_ring), UNANSWERED, "restored disks are paused");
    target_backend.acquire(&owner(2, 2)).unwrap();
    target.disk.resume().unwrap();
    target.wait(1);
    assert_eq!(target.status(in_ring), OK);
    assert_eq!(target.read_disk(0, 1024), [1; 1024]);
    assert_eq!(source.events.seen(), []);
    drop(source);
    assert_eq!(target.write_disk(9, &[2; 512]), OK);
    assert_eq!(target.request(4, 0, None).0, OK);
}

#[test]
fn an_unanswered_interrupt_is_repeated_after_a_move() {
    let image = MemoryImage::new(DISK);
    let mut source = Guest::with(owned(&image));
    source.start(FEATURES);
    source.request(4, 0, None);
    source.wait_until("interrupt", |guest| guest.line.count() == 1);
    source.disk.pause(SOON).unwrap();
    let target = source.moved(Arc::new(image.open()), &source.saved());
    assert_eq!(target.read_register(INTERRUPT_STATUS), 1);
    target.disk.resume().unwrap();
    assert_eq!(target.line.count(), 1);
}

#[test]
fn a_state_of_an_unlike_disk_is_refused() {
    let image = MemoryImage::new(DISK);
    let source = Guest::with(owned(&image));
    let state = source.saved();
    let smaller = Guest::with(Arc::new(MemoryImage::new(Bytes::kib(512)).open()));
    let error = smaller.disk.restore(&state).unwrap_err();
    assert!(
        matches!(&error, DeviceError::Incompatible { reason, .. } if reason.contains("2048 sectors")),
        "{error}"
    );
    let read_only = Guest::with(Arc::new(image.open_read_only()));
    assert!(matches!(read_only.disk.restore(&state), Err(DeviceError::Incompatible { .. })));
}

#[test]
fn a_dropped_disk_disconnects_its_doorbells_and_ends_its_thread() {
    let image = MemoryImage::new(DISK);
    let backend = owned(&image);
    let (slow, seen) = slow_and_counting(backend.clone());
    let mut guest = Guest::with(slow);
    guest.start(FEATURES);
    guest.send(1, 0, Some((0x20000, 512)));
    guest.kick();
    guest.wait_until("start of the write", |_| seen.load(Ordering::Relaxed) == 1);
    let bells = guest.bells.clone();
    drop(guest);
    assert_eq!(bells.count(), 0);
    backend.release().expect("the write has ended");
}

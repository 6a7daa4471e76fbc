//! Discards, writes of zeros, and disks that change their size, as a driver sees them.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use std::sync::Arc;

use drover_block::{Backend, MemoryImage};
use drover_devices::{Device, DeviceError};
use drover_units::{Bytes, Gpa};
use guest::{
    DISCARD, DISCARD_KIND, DISK, FLUSH, Guest, INTERRUPT_STATUS, IOERR, OK, SOON, UNSUPP, VERSION_1,
    WRITE_ZEROES, WRITE_ZEROES_KIND, owner,
};

const CONFIG: u64 = 0x100;
const CONFIG_GENERATION: u64 = 0xfc;
/// InterruptStatus: the configuration has changed.
const CONFIG_CHANGED: u32 = 2;
const DATA: u64 = 0x20000;

fn owned(image: &MemoryImage) -> Arc<dyn Backend> {
    let backend = image.open();
    backend.acquire(&owner(1, 1)).unwrap();
    Arc::new(backend)
}

fn started(image: &MemoryImage, features: u64) -> Guest {
    let mut guest = Guest::with(owned(image));
    guest.start(VERSION_1 | FLUSH | features);
    guest
}

/// Sends ranges of (sector, sectors, flags) and returns the status.
fn send(guest: &mut Guest, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
    let mut data = Vec::new();
    for (sector, sectors, flags) in ranges {
        data.extend(sector.to_le_bytes());
        data.extend(sectors.to_le_bytes());
        data.extend(flags.to_le_bytes());
    }
    guest.memory.write(Gpa::new(DATA), &data).unwrap();
    guest.request(kind, 0, Some((DATA, data.len() as u32))).0
}

fn capacity(guest: &Guest) -> u64 {
    let word = |at| u64::from(guest.read_register(CONFIG + at));
    word(0) | word(4) << 32
}

#[test]
fn every_range_of_a_request_is_zeroed_and_nothing_else() {
    let image = MemoryImage::new(DISK);
    let mut guest = started(&image, DISCARD | WRITE_ZEROES);
    for (kind, flags) in [(WRITE_ZEROES_KIND, 0), (WRITE_ZEROES_KIND, 1), (DISCARD_KIND, 0)] {
        assert_eq!(guest.write_disk(0, &[7; 32 * 512]), OK);
        assert_eq!(send(&mut guest, kind, &[(1, 2, flags), (9, 1, flags), (30, 2, flags)]), OK);
        let read = guest.read_disk(0, 32 * 512);
        for (sector, bytes) in read.chunks(512).enumerate() {
            let zeroed = [1, 2, 9, 30, 31].contains(&sector);
            assert_eq!(bytes, [if zeroed { 0 } else { 7 }; 512], "sector {sector}, kind {kind}");
        }
    }
    let done = guest.metrics.snapshot();
    assert_eq!((done.zeroings, done.discards, done.errors), (2, 1, 0));
}

#[test]
fn ranges_against_the_rules_are_refused_and_the_disk_goes_on() {
    let image = MemoryImage::new(DISK);
    let mut guest = started(&image, DISCARD | WRITE_ZEROES);
    assert_eq!(guest.write_disk(0, &[7; 512]), OK);
    let end = DISK.to_sectors().unwrap().get();
    for kind in [DISCARD_KIND, WRITE_ZEROES_KIND] {
        // One good range does not save the others.
        for bad in [(end, 1, 0), (u64::MAX, 1, 0), (0, u32::MAX, 0)] {
            assert_eq!(send(&mut guest, kind, &[bad]), IOERR, "{bad:?}");
            assert_eq!(send(&mut guest, kind, &[(end - 1, 1, 0), bad, (end - 1, 1, 0)]), IOERR, "{bad:?}");
        }
        assert_eq!(send(&mut guest, kind, &[(0, 1, 2)]), UNSUPP);
        assert_eq!(send(&mut guest, kind, &[]), IOERR);
        assert_eq!(send(&mut guest, kind, &[(end - 1, 0, 0); 17]), IOERR);
        assert_eq!(guest.request(kind, 0, Some((DATA, 24))).0, IOERR);
    }
    assert_eq!(send(&mut guest, DISCARD_KIND, &[(0, 1, 1)]), UNSUPP);
    assert_eq!(guest.read_disk(0, 512), [7; 512]);
}

#[test]
fn a_driver_that_did_not_ask_for_ranges_does_not_get_them() {
    let image = MemoryImage::new(DISK);
    let mut guest = started(&image, 0);
    assert_eq!(guest.write_disk(0, &[7; 512]), OK);
    assert_eq!(send(&mut guest, DISCARD_KIND, &[(0, 1, 0)]), UNSUPP);
    assert_eq!(send(&mut guest, WRITE_ZEROES_KIND, &[(0, 1, 0)]), UNSUPP);
    assert_eq!(guest.read_disk(0, 512), [7; 512]);
}

#[test]
fn without_flushes_zeros_are_durable_when_they_are_answered() {
    let image = MemoryImage::new(DISK);
    let mut guest = Guest::with(owned(&image));
    guest.start(VERSION_1 | WRITE_ZEROES);
    assert_eq!(guest.write_disk(0, &[7; 1024]), OK);
    assert_eq!(send(&mut guest, WRITE_ZEROES_KIND, &[(0, 1, 0)]), OK);
    assert_eq!(image.durable()[..1024], [[0; 512], [7; 512]].concat());
}

#[test]
fn a_disk_that_grows_interrupts_its_driver_and_is_used_to_its_new_end() {
    let image = MemoryImage::new(DISK);
    let backend = owned(&image);
    let mut guest = Guest::with(Arc::clone(&backend));
    guest.start(VERSION_1 | FLUSH);
    let (before, generation) = (capacity(&guest), guest.read_register(CONFIG_GENERATION));
    image.grow(Bytes::mib(2));
    assert_eq!(capacity(&guest), before, "not before the storage has been asked");
    backend.refresh().unwrap();
    assert_eq!(guest.read_register(INTERRUPT_STATUS), CONFIG_CHANGED);
    assert_eq!(guest.line.count(), 1);
    assert_eq!(capacity(&guest), 4096);
    assert_ne!(guest.read_register(CONFIG_GENERATION), generation);
    assert_eq!(guest.write_disk(4095, &[7; 512]), OK);
}

#[test]
fn a_disk_that_grows_while_it_moves_tells_its_driver_at_the_target() {
    let image = MemoryImage::new(DISK);
    let source_backend = owned(&image);
    let mut source = Guest::with(Arc::clone(&source_backend));
    source.start(VERSION_1 | FLUSH);
    source.disk.pause(SOON).unwrap();
    image.grow(Bytes::mib(2));
    source_backend.refresh().unwrap();
    assert_eq!(source.line.count(), 0, "a paused disk is silent");
    let state = source.saved();
    source_backend.release().unwrap();
    let target = source.moved(owned(&image), &state);
    assert_eq!(target.read_register(INTERRUPT_STATUS), 0);
    target.disk.resume().unwrap();
    assert_eq!(target.read_register(INTERRUPT_STATUS), CONFIG_CHANGED);
    assert_eq!(capacity(&target), 4096);
}

#[test]
fn a_disk_that_takes_no_ranges_does_not_stand_in_for_one_that_does() {
    let image = MemoryImage::new(DISK);
    let source = started(&image, DISCARD);
    source.disk.pause(SOON).unwrap();
    let state = source.saved();
    let target = Guest::with(Arc::new(image.open_read_only()));
    assert!(matches!(target.disk.restore(&state), Err(DeviceError::Incompatible { .. })));
}

//! A disk with limits: what is held back waits in its ring, and goes on with it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use std::sync::Arc;

use drover_block::{Backend, MemoryImage};
use drover_devices::Device;
use drover_rate_limit::{Limit, Limits, Rate};
use guest::{DISK, FLUSH, Guest, OK, SOON, STATUS, Sent, UNANSWERED, VERSION_1, owner};

/// Lets one write of a sector pass, and the next after 512 seconds: longer than any test waits.
fn one_write() -> Limits {
    let bytes = Some(Rate::new(1, Some(512)).unwrap());
    Limits { outbound: Limit { requests: None, bytes }, ..Limits::default() }
}

fn limited(image: &MemoryImage) -> Guest {
    let backend = image.open();
    backend.acquire(&owner(1, 1)).unwrap();
    let mut guest = Guest::with(Arc::new(backend));
    guest.throttle.set_limits(one_write());
    guest.start(VERSION_1 | FLUSH);
    guest
}

/// Sends two writes, the second of which is held back, and a read behind it. The first is answered.
fn held_back(guest: &mut Guest) -> [Sent; 2] {
    guest.send(1, 0, Some((0x20000, 512)));
    let held = [guest.send(1, 1, Some((0x20000, 512))), guest.send(0, 0, Some((0x30000, 512)))];
    guest.kick();
    guest.wait(1);
    assert!(held.iter().all(|sent| guest.status(*sent) == UNANSWERED), "a queue keeps its order");
    held
}

fn both_answered(guest: &mut Guest, held: [Sent; 2]) {
    guest.wait(2);
    assert!(held.iter().all(|sent| guest.status(*sent) == OK));
}

#[test]
fn what_is_held_back_passes_when_the_limit_is_lifted() {
    let image = MemoryImage::new(DISK);
    let mut guest = limited(&image);
    let held = held_back(&mut guest);
    assert_eq!(guest.throttle.counters().requests, 0, "not before it has passed");
    guest.throttle.set_limits(Limits::default());
    both_answered(&mut guest, held);
    let counters = guest.throttle.counters();
    assert_eq!((counters.requests, counters.bytes), (1, 512));
    assert!(!counters.time.is_zero());
}

#[test]
fn what_is_held_back_passes_when_the_limit_is_raised() {
    let image = MemoryImage::new(DISK);
    let mut guest = limited(&image);
    let held = held_back(&mut guest);
    let bytes = Some(Rate::new(1 << 20, Some(512)).unwrap());
    guest.throttle.set_limits(Limits { outbound: Limit { requests: None, bytes }, ..Limits::default() });
    both_answered(&mut guest, held);
}

#[test]
fn what_is_held_back_passes_by_itself_when_its_time_has_come() {
    let image = MemoryImage::new(DISK);
    let mut guest = limited(&image);
    let requests = Some(Rate::new(100, Some(1)).unwrap());
    guest.throttle.set_limits(Limits { total: Limit { requests, bytes: None }, ..Limits::default() });
    for n in 0..5 {
        guest.send(n % 2, u64::from(n), Some((0x20000, 512)));
    }
    guest.kick();
    guest.wait(5);
    // A flush has no bytes, but is a request.
    assert_eq!(guest.request(4, 0, None), (OK, 1));
}

#[test]
fn a_pause_does_not_wait_for_what_is_held_back() {
    let image = MemoryImage::new(DISK);
    let mut guest = limited(&image);
    let held = held_back(&mut guest);
    guest.disk.pause(SOON).unwrap();
    guest.throttle.set_limits(Limits::default());
    assert_eq!(guest.status(held[0]), UNANSWERED, "a paused disk takes nothing");
    guest.disk.resume().unwrap();
    both_answered(&mut guest, held);
}

#[test]
fn a_move_takes_what_is_held_back_along() {
    let image = MemoryImage::new(DISK);
    let mut source = limited(&image);
    let held = held_back(&mut source);
    source.disk.pause(SOON).unwrap();
    let state = source.saved();
    source.backend.release().unwrap();
    let backend = Arc::new(image.open());
    backend.acquire(&owner(2, 2)).unwrap();
    let mut target = source.moved(backend, &state);
    // Its own bucket is full: the write passes. The next does not.
    target.throttle.set_limits(one_write());
    target.disk.resume().unwrap();
    both_answered(&mut target, held);
    let next = target.send(1, 0, Some((0x20000, 512)));
    target.send(4, 0, None);
    target.kick();
    target.throttle.set_limits(Limits::default());
    target.wait(2);
    assert_eq!(target.status(next), OK);
}

#[test]
fn a_reset_forgets_what_is_held_back() {
    let image = MemoryImage::new(DISK);
    let mut guest = limited(&image);
    held_back(&mut guest);
    guest.write_register(STATUS, 0);
    assert_eq!(guest.read_register(STATUS), 0);
    guest.start(VERSION_1 | FLUSH);
    assert_eq!(guest.request(0, 0, Some((0x30000, 512))).0, OK, "reads are not limited");
    guest.throttle.set_limits(Limits::default());
    assert_eq!(guest.request(1, 0, Some((0x30000, 512))).0, OK);
    assert_eq!(guest.throttle.counters().requests, 0);
}

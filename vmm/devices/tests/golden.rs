//! The saved states of this release, byte for byte. A file that is here was written by some release: today's devices
//! restore it, and where its version is today's, they save exactly it. `UPDATE_EXPECT=1` writes files that are
//! missing, never one that is there: a changed format is a new version with a new file.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use std::sync::Arc;

use drover_block::{Backend, MemoryImage};
use drover_bus::BusDevice;
use drover_devices::{ConsoleSink, Device, Hotplug, PciAddress, PciRoot, Saved, Serial};
use drover_saved_state::Envelope;
use guest::{DISK, EVENT_IDX, FLUSH, Guest, Line, OK, SOON, VERSION_1, golden::golden, owner};

#[derive(Debug)]
struct Nowhere;

impl ConsoleSink for Nowhere {
    fn write(&mut self, _bytes: &[u8]) {}
}

fn serial() -> Serial {
    Serial::new(Arc::new(Line::default()), Box::new(Nowhere))
}

fn saved(device: &impl Device) -> Envelope {
    match device.save() {
        Saved::State(envelope) => envelope,
        other => panic!("{} has state, not {other:?}", device.name()),
    }
}

#[test]
fn a_serial_port() {
    let port = serial();
    // Divisor 0x0201, 8 bits, receive interrupt on, a scratch byte, and more input than the FIFO holds.
    for (register, value) in [(3, 0x80), (0, 0x01), (1, 0x02), (3, 0x03), (1, 0x01), (4, 0x08), (7, 0x5a)] {
        port.write(register, &[value]);
    }
    port.input(&[b'x'; 70]);
    let golden = golden("serial-v1.bin", &saved(&port));
    assert_eq!(saved(&port), golden);
    let successor = serial();
    successor.restore(&golden).unwrap();
    assert_eq!(saved(&successor), golden);
    let mut scratch = [0];
    successor.read(7, &mut scratch);
    assert_eq!(scratch, [0x5a]);
}

#[test]
fn hot_plug_registers() {
    let make = || Hotplug::new(Arc::new(PciRoot::new()), Arc::new(Line::default()));
    let hotplug = make();
    let at = |number| PciAddress::device(number).unwrap();
    [1, 17, 30].into_iter().for_each(|number| hotplug.announce(at(number)));
    hotplug.ask_back(at(2));
    hotplug.write(Hotplug::CHANGED, &(1_u32 << 17).to_le_bytes());
    let golden = golden("pci-hotplug-v1.bin", &saved(&hotplug));
    assert_eq!(saved(&hotplug), golden);
    let successor = make();
    successor.restore(&golden).unwrap();
    let mut changed = [0; 4];
    successor.read(Hotplug::CHANGED, &mut changed);
    assert_eq!(u32::from_le_bytes(changed), 1 << 1 | 1 << 30);
}

/// A disk that has answered three writes, paused.
fn disk_in_use(image: &MemoryImage) -> Guest {
    let backend = Arc::new(image.open());
    backend.acquire(&owner(1, 1)).unwrap();
    let mut guest = Guest::with(backend);
    guest.start(VERSION_1 | FLUSH | EVENT_IDX);
    for sector in 0..3 {
        assert_eq!(guest.write_disk(sector, &[1; 512]), OK);
    }
    guest.wait_until("interrupt", |guest| guest.line.count() > 0);
    guest.disk.pause(SOON).unwrap();
    guest
}

#[test]
fn a_disk_in_use() {
    let image = MemoryImage::new(DISK);
    let guest = disk_in_use(&image);
    let golden = golden("virtio-mmio-blk-v3.bin", &guest.saved());
    assert_eq!(guest.saved(), golden);
    // Its RAM is not in the file; the rings are where they were and hold nothing new.
    let successor = Guest::with_memory(Arc::new(image.open()), guest.memory.clone());
    successor.disk.restore(&golden).unwrap();
    assert_eq!(successor.saved(), golden);
}

fn check_disk_of_an_older_release(file: &str) {
    let image = MemoryImage::new(DISK);
    let guest = disk_in_use(&image);
    let golden = golden(file, &guest.saved());
    let successor = Guest::with_memory(Arc::new(image.open()), guest.memory.clone());
    successor.disk.restore(&golden).unwrap();
    assert_eq!(successor.saved(), guest.saved(), "saved in today's form");
}

#[test]
fn a_disk_in_use_of_a_release_that_knew_no_discards() {
    check_disk_of_an_older_release("virtio-mmio-blk-v1.bin");
}

#[test]
fn a_disk_in_use_of_a_release_that_knew_one_queue() {
    check_disk_of_an_older_release("virtio-mmio-blk-v2.bin");
}

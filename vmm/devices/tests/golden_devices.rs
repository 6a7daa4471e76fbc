//! The saved states of every device but disks, interfaces and the serial port, byte for byte: see `golden.rs`, which
//! has those.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use std::{os::unix::net::UnixListener, path::Path, sync::Arc};

use drover_bus::BusDevice;
use drover_devices::{
    BalloonConfig, ConsoleConfig, ConsoleSink, ConsoleSize, Device, I8042, PciRoot, Power, RngConfig, Rtc,
    Saved, VirtioBalloon, VirtioConsole, VirtioDevice, VirtioRng, VirtioVsock, VsockConfig, WallClock,
};
use drover_guest_memory::RamLayout;
use drover_saved_state::Envelope;
use drover_units::Bytes;
use guest::{
    EVENT_IDX, Events, SOON, VERSION_1,
    driver::{
        Buffer::{Read, Write},
        Driver, FREE,
    },
    golden::golden,
};

const RAM: Bytes = Bytes::mib(4);

/// The paused device saves what the file holds, and a new one that takes the file over saves the same.
fn check(name: &str, driver: &Driver, successor: impl VirtioDevice + 'static) -> Driver {
    driver.device.pause(SOON).unwrap();
    let golden = golden(name, &driver.saved());
    assert_eq!(driver.saved(), golden);
    let successor = Driver::with_memory(successor, driver.memory.clone());
    successor.device.restore(&golden).unwrap();
    assert_eq!(successor.saved(), golden);
    successor
}

fn rng() -> VirtioRng {
    VirtioRng::new(RngConfig { name: "rng".into(), events: Arc::<Events>::default() })
}

#[test]
fn an_entropy_device_in_use() {
    let mut driver = Driver::new(rng(), RAM);
    driver.start(VERSION_1 | EVENT_IDX, 1);
    for _ in 0..3 {
        driver.send(0, &[Write(FREE, 16)]);
        driver.wait(0);
    }
    check("virtio-mmio-rng-v1.bin", &driver, rng());
}

#[derive(Debug)]
struct Nowhere;

impl ConsoleSink for Nowhere {
    fn write(&mut self, _bytes: &[u8]) {}
}

fn console() -> VirtioConsole {
    VirtioConsole::new(ConsoleConfig {
        name: "console".into(),
        sink: Box::new(Nowhere),
        size: ConsoleSize { columns: 132, rows: 50 },
        events: Arc::<Events>::default(),
    })
    .unwrap()
}

#[test]
fn a_console_with_input_that_waits() {
    let device = console();
    let port = device.port();
    let mut driver = Driver::new(device, RAM);
    driver.start(VERSION_1 | 1, 2);
    driver.write(FREE, b"login: ");
    driver.send(1, &[Read(FREE, 7)]);
    driver.wait(1);
    port.input(b"root\n");
    check("virtio-mmio-console-v1.bin", &driver, console());
}

fn balloon() -> VirtioBalloon {
    VirtioBalloon::new(BalloonConfig {
        name: "balloon".into(),
        ram: RamLayout::for_size(RAM).unwrap(),
        deflate_on_oom: true,
        events: Arc::<Events>::default(),
    })
    .unwrap()
}

#[test]
fn a_balloon_on_its_way() {
    let device = balloon();
    let handle = device.balloon();
    let mut driver = Driver::new(device, RAM);
    driver.start(VERSION_1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5, 5);
    handle.set_target(Bytes::mib(1));
    driver.set_config(4, 100);
    driver.set_config(12, 0xaaaa_aaaa);
    check("virtio-mmio-balloon-v1.bin", &driver, balloon());
}

fn vsock(dir: &Path, name: &str) -> VirtioVsock {
    let path = dir.join(name);
    VirtioVsock::new(VsockConfig {
        name: "vsock".into(),
        cid: 42,
        listener: UnixListener::bind(&path).unwrap(),
        path,
        events: Arc::<Events>::default(),
    })
    .unwrap()
}

#[test]
fn sockets_of_a_guest() {
    let dir = tempfile::tempdir().unwrap();
    let mut driver = Driver::new(vsock(dir.path(), "one"), RAM);
    driver.start(VERSION_1, 3);
    driver.send(0, &[Write(FREE, 4096)]);
    check("virtio-mmio-vsock-v1.bin", &driver, vsock(dir.path(), "other"));
}

fn saved(device: &dyn Device) -> Envelope {
    match device.save() {
        Saved::State(envelope) => envelope,
        other => panic!("{} has state, not {other:?}", device.name()),
    }
}

/// A clock on a host where it is always the same second of 2026.
fn clock() -> Rtc {
    Rtc::new(WallClock::new(|| 1_795_000_000))
}

fn write_byte(clock: &Rtc, index: u8, value: u8) {
    clock.write(0, &[index]);
    clock.write(1, &[value]);
}

fn check_clock(name: &str, rtc: &Rtc) -> Rtc {
    let golden = golden(name, &saved(rtc));
    assert_eq!(saved(rtc), golden);
    let successor = clock();
    successor.restore(&golden).unwrap();
    assert_eq!(saved(&successor), golden);
    successor
}

#[test]
fn a_clock_that_was_set_with_something_in_its_memory() {
    let rtc = clock();
    // Binary numbers, the year 2031, a byte of its memory.
    for (index, value) in [(0x0b, 4), (0x09, 31), (0x40, 0x5a)] {
        write_byte(&rtc, index, value);
    }
    let successor = check_clock("rtc-v1.bin", &rtc);
    let mut byte = [0];
    successor.read(1, &mut byte);
    assert_eq!(byte, [0x5a], "the byte that was chosen last");
}

#[test]
fn a_clock_while_it_is_set() {
    let rtc = clock();
    // Held, with the first of March so far.
    for (index, value) in [(0x0b, 0x84), (0x07, 1), (0x08, 3)] {
        write_byte(&rtc, index, value);
    }
    let successor = check_clock("rtc-v1-held.bin", &rtc);
    let mut month = [0];
    successor.read(1, &mut month);
    assert_eq!(month, [3]);
}

#[test]
fn a_bus_whose_address_port_was_written() {
    let root = Arc::new(PciRoot::new());
    root.ports().write(0, &0x8000_1810_u32.to_le_bytes());
    let golden = golden("pci-root-v1.bin", &saved(root.as_ref()));
    assert_eq!(saved(root.as_ref()), golden);
    let successor = Arc::new(PciRoot::new());
    successor.restore(&golden).unwrap();
    assert_eq!(saved(successor.as_ref()), golden);
    let mut selected = [0; 4];
    successor.ports().read(0, &mut selected);
    assert_eq!(u32::from_le_bytes(selected), 0x8000_1810);
}

#[test]
fn keyboard_controller_and_power_registers_keep_nothing_whatever_was_written() {
    let (keyboard, power) = (I8042::new(Arc::<Events>::default()), Power::new(Arc::<Events>::default()));
    for value in [0x00, 0x34, 0x60, 0xfe] {
        keyboard.write(0, &[value]);
        power.write(0, &[value]);
    }
    for device in [&keyboard as &dyn Device, &power] {
        assert_eq!(device.save(), Saved::Stateless, "{}: with a state it needs a golden file", device.name());
        assert!(device.restore(&saved(&PciRoot::new())).is_err(), "nobody's state is its own");
    }
}

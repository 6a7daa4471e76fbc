//! The saved states of every device but disks and the serial port, byte for byte: see `golden.rs`, which has those. What is a
//! virtio device is saved on either transport.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use std::{
    os::unix::net::UnixListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use drover_bus::BusDevice;
use drover_devices::{
    BalloonConfig, ConsoleConfig, ConsoleSink, ConsoleSize, Device, I8042, PciRoot, Power, RngConfig, Rtc,
    Saved, VirtioBalloon, VirtioConsole, VirtioDevice, VirtioRng, VirtioVsock, VsockConfig, WallClock,
};
use drover_guest_memory::{GuestMemory, RamLayout};
use drover_saved_state::Envelope;
use drover_units::Bytes;
use guest::{
    EVENT_IDX, Events, SOON, VERSION_1,
    driver::{
        Buffer::{Read, Write},
        Driver, FREE,
    },
    golden::golden,
    transport::Transport,
    wire::interface,
};

const RAM: Bytes = Bytes::mib(4);

/// On either transport: a device that `use_it` has used, and that is paused, saves what the file holds, and a new one that takes
/// the file over saves the same.
fn check<D: VirtioDevice + 'static>(name: &str, make: impl Fn() -> D, use_it: impl Fn(D, &Place) -> Driver) {
    for (transport, bus) in [(Transport::Mmio, "mmio"), (Transport::Pci, "pci")] {
        let place = Place { transport, memory: GuestMemory::anonymous(RAM) };
        let driver = use_it(make(), &place);
        driver.device.pause(SOON).unwrap();
        let golden = golden(&format!("virtio-{bus}-{name}.bin"), &driver.saved());
        assert_eq!(driver.saved(), golden, "{transport:?}");
        let successor = place.driver(make());
        successor.device.restore(&golden).unwrap();
        assert_eq!(successor.saved(), golden, "{transport:?}");
    }
}

/// A machine to put a device into.
struct Place {
    transport: Transport,
    memory: GuestMemory,
}

impl Place {
    fn driver(&self, device: impl VirtioDevice + 'static) -> Driver {
        Driver::on(self.transport, device, self.memory.clone())
    }
}

#[test]
fn an_entropy_device_in_use() {
    let make = || VirtioRng::new(RngConfig { name: "rng".into(), events: Arc::<Events>::default() });
    check("rng-v1", make, |rng, place| {
        let mut driver = place.driver(rng);
        driver.start(VERSION_1 | EVENT_IDX, 1);
        for _ in 0..3 {
            driver.send(0, &[Write(FREE, 16)]);
            driver.wait(0);
        }
        driver.wait_until("interrupt", |driver| driver.line.count() > 0);
        driver
    });
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
    check("console-v1", console, |device, place| {
        let port = device.port();
        let mut driver = place.driver(device);
        driver.start(VERSION_1 | 1, 2);
        driver.write(FREE, b"login: ");
        driver.send(1, &[Read(FREE, 7)]);
        driver.wait(1);
        driver.wait_until("interrupt", |driver| driver.line.count() > 0);
        port.input(b"root\n");
        driver
    });
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
    check("balloon-v1", balloon, |device, place| {
        let handle = device.balloon();
        let mut driver = place.driver(device);
        driver.start(VERSION_1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5, 5);
        handle.set_target(Bytes::mib(1));
        driver.set_config(4, 100);
        driver.set_config(12, 0xaaaa_aaaa);
        driver
    });
}

#[test]
fn sockets_of_a_guest() {
    let dir = tempfile::tempdir().unwrap();
    let made = AtomicUsize::new(0);
    let make = || {
        let path = dir.path().join(made.fetch_add(1, Ordering::Relaxed).to_string());
        VirtioVsock::new(VsockConfig {
            name: "vsock".into(),
            cid: 42,
            listener: UnixListener::bind(&path).unwrap(),
            path,
            events: Arc::<Events>::default(),
        })
        .unwrap()
    };
    check("vsock-v1", make, |device, place| {
        let mut driver = place.driver(device);
        driver.start(VERSION_1, 3);
        driver.send(0, &[Write(FREE, 4096)]);
        driver
    });
}

#[test]
fn an_interface_in_use() {
    let wires = Mutex::new(Vec::new());
    let make = || {
        let (net, mut ends) = interface(2);
        wires.lock().unwrap().append(&mut ends);
        net
    };
    check("net-v1", make, |net, place| {
        let mut driver = place.driver(net);
        // With several queues, a control queue and mergeable buffers.
        driver.start(VERSION_1 | 1 << 22 | 1 << 17 | 1 << 15, 5);
        // Two pairs, not promiscuous, one tag, an address of its own, and one in each table.
        let commands: [&[u8]; 5] = [
            &[4, 0, 2, 0],
            &[0, 0, 0],
            &[2, 0, 7, 0],
            &[1, 1, 2, 3, 4, 5, 6, 7],
            &[1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 9, 1, 0, 0, 0, 1, 0, 0x5e, 0, 0, 1],
        ];
        for command in commands {
            driver.write(FREE, command);
            driver.send(4, &[Read(FREE, command.len() as u32), Write(FREE + 0x1000, 1)]);
            driver.wait(4);
            assert_eq!(driver.read(FREE + 0x1000, 1), [0]);
        }
        driver.wait_until("interrupt", |driver| driver.line.count() > 0);
        driver
    });
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

//! A console as its driver, its machine and whoever types see it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use std::sync::{Arc, Mutex};

use drover_devices::{ConsoleConfig, ConsolePort, ConsoleSink, ConsoleSize, VirtioConsole};
use drover_units::Bytes;
use guest::{
    EVENT_IDX, Events, INDIRECT, INTERRUPT_STATUS, SOON, VERSION_1,
    driver::{
        Buffer::{Read, Write},
        Driver, FREE,
    },
};

const SIZE: u64 = 1;
const EMERGENCY: u64 = 1 << 2;

#[derive(Clone, Debug, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl ConsoleSink for Screen {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap().extend(bytes);
    }
}

impl Screen {
    fn shows(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

fn console(screen: &Screen) -> VirtioConsole {
    VirtioConsole::new(ConsoleConfig {
        name: "console".into(),
        sink: Box::new(screen.clone()),
        size: ConsoleSize { columns: 80, rows: 25 },
        events: Arc::<Events>::default(),
    })
    .unwrap()
}

fn started() -> (Driver, ConsolePort, Screen) {
    let screen = Screen::default();
    let device = console(&screen);
    let port = device.port();
    let mut driver = Driver::new(device, Bytes::mib(1));
    assert_eq!(driver.offered(), VERSION_1 | EVENT_IDX | INDIRECT | SIZE | EMERGENCY);
    driver.start(VERSION_1 | SIZE, 2);
    (driver, port, screen)
}

#[test]
fn what_the_guest_writes_is_shown_in_order() {
    let (mut driver, port, screen) = started();
    assert!(!port.has_spoken());
    let text: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
    driver.write(FREE, &text);
    driver.send(1, &[Read(FREE, 6000), Read(FREE + 6000, 4000)]);
    assert_eq!(driver.wait(1).1, 0);
    driver.write(FREE, b"!");
    driver.send(1, &[Read(FREE, 1)]);
    driver.wait(1);
    assert_eq!(screen.shows(), [text, b"!".to_vec()].concat());
    assert!(port.has_spoken());
}

#[test]
fn what_is_typed_waits_for_room_and_has_a_limit() {
    let (mut driver, port, _) = started();
    let typed: Vec<u8> = (0..10_000_u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(port.input(&typed), ConsolePort::INPUT_BYTES_MAX);
    let mut read = Vec::new();
    while read.len() < ConsolePort::INPUT_BYTES_MAX {
        driver.send(0, &[Write(FREE, 100), Write(FREE + 0x1000, 1000)]);
        let len = driver.wait(0).1 as usize;
        read.extend(driver.read(FREE, len.min(100)));
        read.extend(driver.read(FREE + 0x1000, len.saturating_sub(100)));
    }
    assert_eq!(read, typed[..read.len()]);
    driver.send(0, &[Write(FREE, 100)]);
    assert_eq!(port.input(b"again"), 5);
    assert_eq!(driver.wait(0).1, 5);
}

#[test]
fn an_emergency_write_needs_no_queues() {
    let screen = Screen::default();
    let driver = Driver::new(console(&screen), Bytes::mib(1));
    for byte in b"panic" {
        driver.set_config(8, u32::from(*byte) | 0xaaaa_0000);
    }
    driver.write_config(4, b"no such field");
    assert_eq!(screen.shows(), b"panic");
}

#[test]
fn a_new_size_is_told() {
    let (driver, port, _) = started();
    assert_eq!(driver.config(0), 25 << 16 | 80);
    let generation = driver.register(0xfc);
    port.resize(ConsoleSize { columns: 132, rows: 50 });
    assert_eq!(driver.register(INTERRUPT_STATUS), 2);
    assert_eq!(driver.config(0), 50 << 16 | 132);
    assert_ne!(driver.register(0xfc), generation);
    let pulses = driver.line.count();
    port.resize(ConsoleSize { columns: 132, rows: 50 });
    assert_eq!(driver.line.count(), pulses, "the same size is no news");
}

#[test]
fn a_driver_that_breaks_the_rules_is_told_and_starts_again() {
    let (mut driver, port, screen) = started();
    driver.send(1, &[Read(FREE, 1 << 20)]);
    driver.wait_for_needs_reset();
    driver.start(VERSION_1, 2);
    driver.send(1, &[Read(0xffff_0000, 16)]);
    driver.wait_for_needs_reset();
    driver.start(VERSION_1, 2);
    port.input(b"x");
    driver.send(0, &[Write(0xffff_0000, 16)]);
    driver.wait_for_needs_reset();
    driver.start(VERSION_1, 2);
    driver.send(1, &[Write(FREE, 16)]);
    driver.wait(1);
    assert_eq!(screen.shows(), b"");
    driver.send(0, &[Read(FREE, 16), Write(FREE, 16)]);
    assert_eq!(driver.wait(0).1, 1, "what was typed is still there");
}

#[test]
fn a_console_goes_on_elsewhere_with_what_was_typed() {
    let (mut driver, port, screen) = started();
    driver.write(FREE, b"login: ");
    driver.send(1, &[Read(FREE, 7)]);
    driver.wait(1);
    driver.device.pause(SOON).unwrap();
    port.input(b"root\n");
    let elsewhere = Screen::default();
    let device = console(&elsewhere);
    let port = device.port();
    let mut target = driver.moved(device);
    assert!(port.has_spoken());
    target.device.resume().unwrap();
    target.send(0, &[Write(FREE, 100)]);
    assert_eq!(target.wait(0).1, 5);
    assert_eq!(target.read(FREE, 5), b"root\n");
    target.write(FREE, b"Password: ");
    target.send(1, &[Read(FREE, 10)]);
    target.wait(1);
    assert_eq!((screen.shows(), elsewhere.shows()), (b"login: ".to_vec(), b"Password: ".to_vec()));
}

//! An entropy device as its driver and its machine see it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use std::sync::Arc;

use drover_devices::{RngConfig, RngMetrics, VirtioRng};
use drover_units::Bytes;
use guest::{
    EVENT_IDX, Events, INDIRECT, SOON, VERSION_1,
    driver::{
        Buffer::{Read, Write},
        Driver, FREE,
    },
};

fn rng() -> VirtioRng {
    VirtioRng::new(RngConfig { name: "rng".into(), events: Arc::<Events>::default() })
}

fn started() -> (Driver, Arc<RngMetrics>) {
    let device = rng();
    let metrics = device.metrics();
    let mut driver = Driver::new(device, Bytes::mib(4));
    assert_eq!(driver.offered(), VERSION_1 | EVENT_IDX | INDIRECT);
    driver.start(VERSION_1, 1);
    (driver, metrics)
}

#[test]
fn the_driver_gets_random_bytes_in_all_its_buffers() {
    let (mut driver, metrics) = started();
    assert_eq!(driver.register(8), 4);
    let head = driver.send(0, &[Write(FREE, 32), Write(FREE + 0x100, 32)]);
    assert_eq!(driver.wait(0), (head.into(), 64));
    let (one, other) = (driver.read(FREE, 32), driver.read(FREE + 0x100, 32));
    assert!(one != other && one != [0; 32] && other != [0; 32]);
    assert_eq!(driver.read(FREE + 32, 32), [0; 32], "and nothing elsewhere");
    assert_eq!(metrics.bytes(), 64);
}

#[test]
fn a_greedy_driver_gets_a_page_to_a_request_and_waits_for_the_next_period() {
    let (mut driver, metrics) = started();
    // 3 MiB are asked for, and a page each is given; more than a period's worth of them.
    for _ in 0..80 {
        driver.send(0, &[Write(FREE, 3 << 20)]);
        assert_eq!(driver.wait(0).1, 4096);
    }
    assert_eq!(metrics.bytes(), 80 * 4096);
    assert!(metrics.waits() > 0, "80 pages are more than one period has");
}

#[test]
fn a_driver_that_breaks_the_rules_is_told_and_starts_again() {
    let (mut driver, _) = started();
    for bad in [Write(0xffff_0000, 64), Write(u64::MAX - 8, 64)] {
        driver.send(0, &[bad]);
        driver.wait_for_needs_reset();
        driver.start(VERSION_1, 1);
    }
    driver.offer_head(0, 64);
    driver.kick(0);
    driver.wait_for_needs_reset();
    driver.start(VERSION_1, 1);
    driver.send(0, &[Read(FREE, 64)]);
    assert_eq!(driver.wait(0).1, 0, "nothing to write to is nothing written");
    driver.send(0, &[Write(FREE, 64)]);
    assert_eq!(driver.wait(0).1, 64);
}

#[test]
fn a_paused_device_writes_nothing_and_another_goes_on_with_its_queue() {
    let (mut driver, _) = started();
    driver.device.pause(SOON).unwrap();
    driver.send(0, &[Write(FREE, 64)]);
    let mut target = driver.moved(rng());
    drop(driver);
    assert_eq!(target.answered(0), 0);
    target.device.resume().unwrap();
    assert_eq!(target.wait(0).1, 64);
}

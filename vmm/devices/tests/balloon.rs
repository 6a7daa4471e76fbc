//! A balloon as its driver, its machine and the host see it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use std::sync::Arc;

use drover_devices::{Balloon, BalloonConfig, GuestStatistic, VirtioBalloon};
use drover_guest_memory::{DirtyTracker, RamLayout};
use drover_units::{Bytes, PAGE_SIZE};
use guest::{
    EVENT_IDX, Events, INDIRECT, INTERRUPT_STATUS, SOON, VERSION_1,
    driver::{
        Buffer::{Read, Write},
        Driver, FREE,
    },
};

const RAM: Bytes = Bytes::mib(16);
const STATS: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const HINT: u64 = 1 << 3;
const POISON: u64 = 1 << 4;
const REPORTING: u64 = 1 << 5;
const ALL: u64 = VERSION_1 | STATS | HINT | REPORTING;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const HINTS: usize = 3;
const REPORTS: usize = 4;

const TARGET: u64 = 0;
const ACTUAL: u64 = 4;
const COMMAND: u64 = 8;
const POISON_VALUE: u64 = 12;

/// What the guest uses, from 8 MiB on: written, so that the host has memory for it.
const USED: u64 = 8 << 20;
const USED_PAGES: u64 = 1024;

fn device() -> VirtioBalloon {
    VirtioBalloon::new(BalloonConfig {
        name: "balloon".into(),
        ram: RamLayout::for_size(RAM).unwrap(),
        deflate_on_oom: true,
        events: Arc::<Events>::default(),
    })
    .unwrap()
}

fn started(features: u64) -> (Driver, Balloon) {
    let device = device();
    let balloon = device.balloon();
    let mut driver = Driver::new(device, RAM);
    driver.start(features, 5);
    driver.write(USED, &vec![0xa5; (USED_PAGES * PAGE_SIZE) as usize]);
    (driver, balloon)
}

/// Pages of the guest for which the host has memory, of those that it uses.
fn kept(driver: &Driver) -> u64 {
    let pages = driver.memory.populated().unwrap();
    pages.iter().filter(|page| (USED..USED + USED_PAGES * PAGE_SIZE).contains(&page.get())).count() as u64
}

fn numbers(pages: impl Iterator<Item = u64>) -> Vec<u8> {
    pages.flat_map(|page| u32::try_from(USED / PAGE_SIZE + page).unwrap().to_le_bytes()).collect()
}

fn inflate(driver: &mut Driver, numbers: &[u8]) {
    driver.write(FREE, numbers);
    driver.send(INFLATE, &[Read(FREE, numbers.len() as u32)]);
    assert_eq!(driver.wait(INFLATE).1, 0);
}

#[test]
fn all_five_queues_are_offered() {
    let driver = Driver::new(device(), RAM);
    let expected = ALL | POISON | DEFLATE_ON_OOM | EVENT_IDX | INDIRECT;
    assert_eq!((driver.register(8), driver.offered()), (5, expected));
}

#[test]
fn inflating_gives_memory_back_and_marks_it_as_zero() {
    let (mut driver, balloon) = started(ALL);
    assert_eq!(kept(&driver), USED_PAGES);
    let mut tracker = DirtyTracker::new(&driver.memory);
    // From the end, as Linux does; some of them twice.
    let list = numbers((0..600).rev().chain([5, 5, 599]));
    inflate(&mut driver, &list);
    assert_eq!(kept(&driver), USED_PAGES - 600);
    assert_eq!(balloon.status().inflated, Bytes::new(600 * PAGE_SIZE));
    assert_eq!(driver.read(USED, 600 * PAGE_SIZE as usize), vec![0; 600 * PAGE_SIZE as usize]);
    assert_eq!(driver.read(USED + 600 * PAGE_SIZE, 1), [0xa5]);
    let dirty = tracker.take();
    let marked = dirty.iter().filter(|page| (USED..USED + 600 * PAGE_SIZE).contains(&page.get())).count();
    assert_eq!(marked, 600, "whoever copies the guest at the moment hears of it");
    // And back.
    driver.send(DEFLATE, &[Read(FREE, list.len() as u32)]);
    assert_eq!(driver.wait(DEFLATE).1, 0);
    driver.write(USED, b"again");
    assert_eq!(driver.read(USED, 5), b"again");
}

/// What the guest's RAM takes of the host, by the kernel's own word.
fn pss_kib(driver: &Driver) -> u64 {
    let region = driver.memory.regions().next().unwrap();
    let start = format!("{:x}-", region.host_address.addr());
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mapping = smaps.lines().skip_while(|line| !line.starts_with(&start));
    let pss = mapping.into_iter().find(|line| line.starts_with("Pss:")).expect("a mapping");
    pss.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn the_hosts_memory_goes_down_with_each_way_of_giving_back() {
    let (mut driver, _) = started(ALL);
    let used = pss_kib(&driver);
    assert!(used >= USED_PAGES * 4, "{used} KiB");
    inflate(&mut driver, &numbers(0..512));
    let inflated = pss_kib(&driver);
    driver.send(REPORTS, &[Write(USED + 512 * 4096, 256 * 4096)]);
    driver.wait(REPORTS);
    let reported = pss_kib(&driver);
    println!(
        "PSS of guest RAM: {used} KiB, {inflated} after inflating 2 MiB, {reported} after 1 MiB was reported free"
    );
    // The list of page numbers takes a page itself.
    assert!(inflated <= used - 508 * 4 && reported <= inflated - 252 * 4);
}

#[test]
fn the_host_asks_and_the_driver_says_how_far_it_is() {
    let (driver, balloon) = started(ALL);
    let generation = driver.register(0xfc);
    assert_eq!(balloon.set_target(Bytes::mib(4)), Bytes::mib(4));
    assert_eq!((driver.config(TARGET), driver.register(INTERRUPT_STATUS) & 2), (1024, 2));
    assert_ne!(driver.register(0xfc), generation);
    driver.set_config(ACTUAL, 1000);
    driver.set_config(TARGET, 7);
    driver.set_config(COMMAND, 7);
    let status = balloon.status();
    assert_eq!((status.target, status.actual), (Bytes::mib(4), Bytes::new(1000 * PAGE_SIZE)));
    assert_eq!(balloon.set_target(Bytes::gib(9)), RAM);
    driver.set_config(ACTUAL, u32::MAX);
    assert_eq!(balloon.status().actual, RAM, "a lie is cut to what there can be");
}

#[test]
fn statistics_come_when_asked_for() {
    let (mut driver, balloon) = started(ALL);
    let tell = |driver: &mut Driver, free: u64| {
        let mut bytes = Vec::new();
        for (tag, value) in [(4_u16, free), (5, 16 << 20), (77, 1)] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        driver.write(FREE, &bytes);
        driver.send(STATISTICS, &[Read(FREE, bytes.len() as u32)]);
    };
    tell(&mut driver, 5 << 20);
    driver.wait_until("statistics", |_| balloon.status().statistics_received == 1);
    assert_eq!(balloon.status().statistics.get(GuestStatistic::FreeBytes), Some(5 << 20));
    assert_eq!(driver.answered(STATISTICS), 0, "the device keeps the chain until it wants more");
    balloon.refresh_statistics();
    driver.wait(STATISTICS);
    // A second wish before the driver has told.
    balloon.refresh_statistics();
    tell(&mut driver, 6 << 20);
    driver.wait_until("statistics", |_| balloon.status().statistics_received == 2);
    assert_eq!(balloon.status().statistics.get(GuestStatistic::FreeBytes), Some(6 << 20));
    // Before a pause the chain goes back: the device that goes on has none of the driver's.
    driver.device.pause(SOON).unwrap();
    driver.wait(STATISTICS);
}

#[test]
fn reported_pages_go_back_before_the_answer() {
    let (mut driver, balloon) = started(ALL);
    // 100 pages, a part of a page on both sides of 50 more, something that is no RAM, and less than a page.
    let chain = [
        Write(USED, 100 * 4096),
        Write(USED + 200 * 4096 - 8, 50 * 4096 + 16),
        Write(1 << 40, 4096),
        Write(USED + 300 * 4096 + 1, 4096),
    ];
    driver.send(REPORTS, &chain);
    assert_eq!(driver.wait(REPORTS).1, 0);
    assert_eq!(kept(&driver), USED_PAGES - 150);
    assert_eq!(driver.read(USED + 200 * 4096 - 8, 8), [0xa5; 8]);
    let status = balloon.status();
    assert_eq!((status.reported, status.strange_pages), (Bytes::new(150 * 4096), 1));
}

#[test]
fn free_pages_with_a_pattern_stay() {
    let (mut driver, balloon) = started(ALL | POISON);
    driver.set_config(POISON_VALUE, 0xaaaa_aaaa);
    driver.send(REPORTS, &[Write(USED, 100 * 4096)]);
    driver.wait(REPORTS);
    assert_eq!((kept(&driver), balloon.status().reported), (USED_PAGES, Bytes::ZERO));
    assert!(!balloon.start_hinting());
    driver.set_config(POISON_VALUE, 0);
    driver.send(REPORTS, &[Write(USED, 100 * 4096)]);
    driver.wait(REPORTS);
    assert_eq!(kept(&driver), USED_PAGES - 100);
}

#[test]
fn a_session_of_hints_brings_pages_and_takes_none() {
    let (mut driver, balloon) = started(ALL);
    assert_eq!(driver.config(COMMAND), 1, "none is under way");
    assert!(balloon.start_hinting());
    let command = driver.config(COMMAND);
    assert!(command > 1);
    driver.write(FREE, &command.to_le_bytes());
    driver.write(FREE + 4, &0_u32.to_le_bytes());
    for chain in [
        [Write(USED + 500 * 4096, 4096)],
        [Read(FREE, 4)],
        [Write(USED, 4 * 4096)],
        [Write(USED + 8 * 4096, 4096)],
        [Write(1 << 40, 4096)],
    ] {
        driver.send(HINTS, &chain);
        driver.wait(HINTS);
    }
    assert_eq!(balloon.hinted(), None, "not all have been named");
    driver.send(HINTS, &[Read(FREE + 4, 4)]);
    driver.wait(HINTS);
    let named: Vec<u64> = balloon.hinted().unwrap().iter().map(|page| (page.get() - USED) / 4096).collect();
    assert_eq!(named, [0, 1, 2, 3, 8]);
    assert_eq!(kept(&driver), USED_PAGES);
    balloon.finish_hinting();
    assert_eq!((driver.config(COMMAND), balloon.hinted()), (1, None));
    assert!(balloon.start_hinting());
    assert_ne!(driver.config(COMMAND), command, "each session has its own number");
}

#[test]
fn a_driver_that_cannot_name_free_pages_is_not_asked() {
    let (_driver, balloon) = started(VERSION_1 | STATS);
    assert!(!balloon.start_hinting());
}

#[test]
fn a_driver_that_breaks_the_rules_is_told_and_starts_again() {
    let (mut driver, balloon) = started(ALL);
    for (queue, chain) in [
        (INFLATE, Read(FREE, 7)),
        (INFLATE, Read(FREE, 2 << 20)),
        (INFLATE, Read(0xffff_0000, 8)),
        (DEFLATE, Read(FREE, 7)),
        (STATISTICS, Read(0xffff_0000, 10)),
    ] {
        driver.send(queue, &[chain]);
        driver.wait_for_needs_reset();
        driver.start(ALL, 5);
    }
    for queue in [HINTS, REPORTS] {
        driver.send(queue, &[Write(0, u32::MAX), Write(0, u32::MAX)]);
        driver.wait_for_needs_reset();
        driver.start(ALL, 5);
    }
    // Page numbers that mean nothing are counted.
    inflate(&mut driver, &[0xff; 64]);
    assert_eq!(balloon.status().strange_pages, 1);
    driver.write(USED, &[0xa5]);
    inflate(&mut driver, &numbers(0..1));
    assert_eq!(driver.read(USED, 1), [0]);
}

#[test]
fn a_balloon_goes_on_elsewhere_and_ends_its_session_there() {
    let (mut driver, balloon) = started(ALL);
    balloon.set_target(Bytes::mib(2));
    inflate(&mut driver, &numbers(0..512));
    driver.set_config(ACTUAL, 512);
    assert!(balloon.start_hinting());
    driver.device.pause(SOON).unwrap();
    driver.set_register(0x64, 3);
    let device = device();
    let balloon = device.balloon();
    let mut target = driver.moved(device);
    target.device.resume().unwrap();
    assert_eq!((target.config(TARGET), target.config(ACTUAL), target.config(COMMAND)), (512, 512, 1));
    assert_eq!(target.register(INTERRUPT_STATUS) & 2, 2);
    let status = balloon.status();
    assert_eq!((status.target, status.actual, status.driver), (Bytes::mib(2), Bytes::mib(2), true));
    inflate(&mut target, &numbers(512..600));
    assert_eq!(kept(&target), USED_PAGES - 600);
}

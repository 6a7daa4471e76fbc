//! A network interface as its driver and its host see it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use drover_devices::{MacAddress, NetMetrics, Throttle, VirtioDevice, VirtioNet};
use drover_guest_memory::DirtyTracker;
use drover_rate_limit::{Limit, Limits, Rate};
use drover_tap::Offloads;
use drover_units::{Bytes, Gpa};
use std::sync::Arc;

use guest::{
    EVENT_IDX, INDIRECT, INTERRUPT_STATUS, SOON, VERSION_1,
    driver::{
        Buffer::{Read, Write},
        Driver, FREE,
    },
    wire::{HEADER, MAC, Wire, frame, instrumented, interface},
};

const RAM: Bytes = Bytes::mib(2);
const RX: usize = 0;
const TX: usize = 1;

const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
const MERGEABLE: u64 = 1 << 15;
const CONTROL: u64 = 1 << 17;
const ANNOUNCE: u64 = 1 << 21;
const MQ: u64 = 1 << 22;

const OTHER: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);
const EVERYONE: MacAddress = MacAddress([0xff; 6]);

struct Nic {
    driver: Driver,
    wires: Vec<Wire>,
    metrics: Arc<NetMetrics>,
    throttle: Arc<Throttle>,
    pairs: usize,
    control: usize,
}

impl Nic {
    fn new(pairs: usize) -> Self {
        Self::made(pairs, |net| Driver::new(net, RAM))
    }

    fn made(pairs: usize, attach: impl FnOnce(VirtioNet) -> Driver) -> Self {
        let (metrics, throttle) = (Arc::<NetMetrics>::default(), Arc::<Throttle>::default());
        let (net, wires) = instrumented(pairs, Arc::clone(&metrics), Arc::clone(&throttle));
        Self { driver: attach(net), wires, metrics, throttle, pairs, control: 2 * pairs }
    }

    fn started(pairs: usize, features: u64) -> Self {
        let mut nic = Self::new(pairs);
        nic.start(features);
        nic
    }

    fn start(&mut self, features: u64) {
        self.control = if features & MQ != 0 { 2 * self.pairs } else { 2 };
        self.driver.start(VERSION_1 | features, self.control + 1);
    }

    /// Posts `count` buffers of `len` bytes from `at` on.
    fn post(&mut self, queue: usize, at: u64, count: u64, len: u32) {
        for n in 0..count {
            self.driver.offer(queue, &[Write(at + n * u64::from(len), len)]);
        }
        self.driver.kick(queue);
    }

    /// Sends a frame from `at`, with an empty header.
    fn send(&mut self, queue: usize, at: u64, frame: &[u8]) {
        self.driver.write(at, &[0; HEADER]);
        self.driver.write(at + HEADER as u64, frame);
        self.driver.send(queue, &[Read(at, HEADER as u32), Read(at + HEADER as u64, frame.len() as u32)]);
    }

    fn command(&mut self, bytes: &[u8]) -> u8 {
        let at = FREE + 0x8_0000;
        self.driver.write(at, bytes);
        self.driver.write(at + 0x1000, &[0xaa]);
        let buffers = [Read(at, 2), Read(at + 2, bytes.len() as u32 - 2), Write(at + 0x1000, 1)];
        if bytes.len() == 2 {
            self.driver.send(self.control, &[buffers[0], buffers[2]]);
        } else {
            self.driver.send(self.control, &buffers);
        }
        assert_eq!(self.driver.wait(self.control).1, 1);
        self.driver.read(at + 0x1000, 1)[0]
    }

    /// Takes a packet out of buffers of this length that were posted one after the other from `at` on.
    fn received(&mut self, queue: usize, at: u64, len: u32) -> Vec<u8> {
        let mut packet = Vec::new();
        let mut wanted = 1;
        let mut n = 0;
        while n < wanted {
            let (_, written) = self.driver.wait(queue);
            packet.extend(self.driver.read(at + n * u64::from(len), written as usize));
            if n == 0 {
                wanted = u64::from(u16::from_le_bytes([packet[10], packet[11]]));
            }
            n += 1;
        }
        packet
    }
}

#[test]
fn the_interface_says_what_it_is() {
    let nic = Nic::new(2);
    let offloads = 1 | GUEST_CSUM | CTRL_GUEST_OFFLOADS | GUEST_TSO4 | 1 << 8 | 1 << 9 | 7 << 11 | 7 << 54;
    let control = CONTROL | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 23 | ANNOUNCE | MQ;
    let always = VERSION_1 | EVENT_IDX | INDIRECT | 1 << 3 | 1 << 5 | MERGEABLE | 1 << 16;
    assert_eq!(nic.driver.offered(), offloads | control | always);
    let (net, _) = interface(1);
    assert_eq!(net.features() & MQ, 0);
    let mut data = [0; 12];
    net.read_config(0, &mut data);
    assert_eq!(data, [0x52, 0x54, 0, 0, 0, 1, 1, 0, 1, 0, 0xdc, 5]);
    assert!(nic.wires[0].is_attached() && !nic.wires[1].is_attached());
}

#[test]
fn what_the_driver_sends_is_on_the_wire_as_it_is() {
    let mut nic = Nic::started(1, EVENT_IDX);
    let frame = frame(OTHER, 1514);
    nic.send(TX, FREE, &frame);
    assert_eq!(nic.driver.wait(TX).1, 0);
    let packet = nic.wires[0].take();
    assert_eq!((&packet[..HEADER], &packet[HEADER..]), (&[0; HEADER][..], &frame[..]));
    // In pieces of any length, the header cut as well.
    nic.driver.send(TX, &[Read(FREE, 3), Read(FREE + 3, 100), Read(FREE + 103, 1423)]);
    nic.driver.wait(TX);
    assert_eq!(nic.wires[0].take(), packet);
    let counted = nic.metrics.snapshot();
    assert_eq!((counted.packets_sent, counted.bytes_sent, counted.refused), (2, 2 * 1514, 0));
}

#[test]
fn packets_that_are_none_are_counted_and_answered() {
    let mut nic = Nic::started(1, 0);
    for len in [1, HEADER as u32, 1 << 17] {
        nic.driver.send(TX, &[Read(FREE, len)]);
        nic.driver.wait(TX);
    }
    assert_eq!(nic.metrics.snapshot().refused, 3);
    nic.send(TX, FREE, &frame(OTHER, 60));
    assert_eq!(nic.wires[0].take().len(), HEADER + 60);
}

#[test]
fn what_is_on_the_wire_comes_to_the_driver() {
    let mut nic = Nic::started(1, 0);
    // Before there is room, and after.
    nic.wires[0].put(&frame(MAC, 60));
    nic.post(RX, FREE, 2, 2048);
    let packet = nic.received(RX, FREE, 2048);
    assert_eq!(packet[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(packet[HEADER..], frame(MAC, 60));
    nic.wires[0].put(&frame(EVERYONE, 1514));
    assert_eq!(nic.received(RX, FREE + 2048, 2048)[HEADER..], frame(EVERYONE, 1514));
    let counted = nic.metrics.snapshot();
    assert_eq!((counted.packets_received, counted.bytes_received), (2, 60 + 1514));
}

#[test]
fn a_long_packet_comes_in_several_buffers_at_once() {
    let mut nic = Nic::started(1, MERGEABLE | EVENT_IDX | GUEST_CSUM | GUEST_TSO4);
    nic.post(RX, FREE, 60, 1500);
    // The driver wants to hear of the first.
    let long = frame(MAC, 60_000);
    nic.wires[0].put(&long);
    let packet = nic.received(RX, FREE, 1500);
    assert_eq!(packet[10..12], [41, 0], "60,012 bytes in buffers of 1500");
    assert_eq!(packet[HEADER..], long);
    nic.wires[0].put(&frame(MAC, 60));
    assert_eq!(nic.received(RX, FREE + 41 * 1500, 1500)[HEADER..], frame(MAC, 60));
}

#[test]
fn a_packet_beyond_the_room_is_lost_and_the_next_is_not() {
    let mut nic = Nic::started(1, 0);
    nic.post(RX, FREE, 1, 1000);
    nic.wires[0].put(&frame(MAC, 1000));
    nic.wires[0].put(&frame(MAC, 900));
    assert_eq!(nic.received(RX, FREE, 1000)[HEADER..], frame(MAC, 900));
    assert_eq!(nic.metrics.snapshot().too_long, 1);
}

#[test]
fn everything_that_is_written_to_ram_is_marked() {
    let mut nic = Nic::started(1, 0);
    nic.post(RX, FREE, 1, 3 * 4096);
    let mut tracker = DirtyTracker::new(&nic.driver.memory);
    tracker.take();
    nic.wires[0].put(&frame(MAC, 5000));
    nic.received(RX, FREE, 3 * 4096);
    let mut dirty: Vec<_> = tracker.take().iter().map(Gpa::get).collect();
    // The other queues' workers may only just have begun, and asked for notifications in their used rings.
    dirty.retain(|page| ![0x6000, 0x9000].contains(page));
    assert_eq!(dirty, [0x3000, FREE, FREE + 0x1000], "used ring and data, and no more of it than there is");
}

#[test]
fn the_filter_keeps_out_what_the_driver_does_not_want() {
    let mut nic = Nic::started(1, CONTROL);
    nic.post(RX, FREE, 8, 2048);
    assert_eq!(nic.command(&[0, 0, 0]), 0, "not promiscuous");
    nic.wires[0].put(&frame(OTHER, 60));
    nic.wires[0].put(&frame(MAC, 61));
    assert_eq!(nic.received(RX, FREE, 2048).len(), HEADER + 61);
    assert_eq!(nic.metrics.snapshot().filtered, 1);
    assert_eq!(nic.command(&[1, 1, 0x52, 0x54, 0, 0, 0, 2]), 0);
    assert_eq!(nic.driver.config(0), 0x5452, "the new address shows");
    assert_eq!(nic.driver.config(4) as u16, 0x200);
    nic.wires[0].put(&frame(OTHER, 62));
    assert_eq!(nic.received(RX, FREE + 2048, 2048).len(), HEADER + 62);
    assert_eq!(nic.command(&[0, 9, 0]), 1, "there is no such mode");
    assert_eq!(nic.command(&[4, 0, 2, 0]), 1, "nor a second pair");
    nic.start(CONTROL);
    assert_eq!(nic.driver.config(4) as u16, 0x100, "a reset brings the first address back");
}

#[test]
fn offloads_are_those_the_driver_takes() {
    let mut nic = Nic::started(1, CONTROL | CTRL_GUEST_OFFLOADS | GUEST_CSUM | GUEST_TSO4);
    let in_force = |nic: &Nic| *nic.wires[0].offloads.lock().unwrap();
    assert_eq!(in_force(&nic), Offloads { checksum: true, tso4: true, ..Offloads::default() });
    assert_eq!(nic.command(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), 0);
    assert_eq!(in_force(&nic), Offloads { checksum: true, ..Offloads::default() });
    assert_eq!(nic.command(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]), 1, "it has not negotiated TSO6");
    nic.start(0);
    assert_eq!(in_force(&nic), Offloads::default());
}

#[test]
fn pairs_of_queues_are_used_when_the_driver_says_so() {
    let mut nic = Nic::started(2, CONTROL | MQ);
    assert!(!nic.wires[1].is_attached());
    nic.send(3, FREE + 0x4000, &frame(OTHER, 70));
    assert_eq!(nic.command(&[4, 0, 3, 0]), 1);
    assert_eq!(nic.command(&[4, 0, 0, 0]), 1);
    assert_eq!(nic.driver.answered(3), 0, "not in use");
    assert_eq!(nic.command(&[4, 0, 2, 0]), 0);
    assert!(nic.wires[1].is_attached());
    nic.driver.kick(3);
    nic.driver.wait(3);
    assert_eq!(nic.wires[1].take().len(), HEADER + 70);
    nic.post(2, FREE, 1, 2048);
    nic.wires[1].put(&frame(MAC, 80));
    assert_eq!(nic.received(2, FREE, 2048)[HEADER..], frame(MAC, 80));
    assert_eq!(nic.command(&[4, 0, 1, 0]), 0);
    assert!(!nic.wires[1].is_attached());
    // A driver that knows nothing of several pairs finds the control queue after the first.
    nic.start(CONTROL);
    assert_eq!(nic.command(&[0, 0, 1]), 0);
    nic.send(TX, FREE, &frame(OTHER, 60));
    nic.wires[0].take();
}

#[test]
fn a_pair_that_is_stuck_holds_up_no_other() {
    let mut nic = Nic::started(2, CONTROL | MQ);
    assert_eq!(nic.command(&[4, 0, 2, 0]), 0);
    // When it has read one packet its thread waits for the next: what a lock shared between pairs would make the other do.
    nic.wires[1].set_waits(true);
    nic.post(2, FREE, 2, 2048);
    nic.wires[1].put(&frame(MAC, 80));
    nic.received(2, FREE, 2048);
    nic.send(3, FREE + 0x2000, &frame(OTHER, 70));
    for n in 0..8 {
        nic.send(TX, FREE + 0x4000, &frame(OTHER, 60 + n));
        assert_eq!(nic.wires[0].take().len(), HEADER + 60 + n);
        nic.driver.wait(TX);
        nic.post(RX, FREE + 0x6000, 1, 2048);
        nic.wires[0].put(&frame(MAC, 60 + n));
        nic.received(RX, FREE + 0x6000, 2048);
        assert_eq!(nic.command(&[0, 0, 1]), 0);
    }
    assert_eq!(nic.driver.answered(3), 0, "stuck all the while");
    nic.wires[1].set_waits(false);
    nic.wires[1].put(&frame(MAC, 80));
    nic.driver.wait(3);
}

#[test]
fn a_move_takes_buffers_and_settings_along_and_is_announced() {
    let features = CONTROL | MQ | MERGEABLE | ANNOUNCE | GUEST_CSUM | GUEST_TSO4;
    let mut source = Nic::started(2, features);
    assert_eq!(source.command(&[4, 0, 2, 0]), 0);
    assert_eq!(source.command(&[0, 0, 0]), 0);
    source.post(RX, FREE, 60, 2048);
    source.wires[0].put(&frame(MAC, 100));
    source.received(RX, FREE, 2048);
    source.driver.device.pause(SOON).unwrap();
    source.wires[0].put(&frame(MAC, 100));

    let mut target = Nic::made(2, |net| source.driver.moved(net));
    target.control = source.control;
    assert!(target.wires[1].is_attached());
    assert!(target.wires[0].offloads.lock().unwrap().tso4);
    target.driver.device.resume().unwrap();
    let told = target.wires[0].take();
    assert_eq!(told[HEADER + 6..HEADER + 14], [0x52, 0x54, 0, 0, 0, 1, 0x80, 0x35]);
    assert_eq!(target.driver.register(INTERRUPT_STATUS) & 2, 2, "a configuration change");
    assert_eq!(target.driver.config(6) as u16, 3, "up, and asked to announce itself");
    assert_eq!(target.command(&[3, 0]), 0);
    assert_eq!(target.driver.config(6) as u16, 1);
    target.wires[0].put(&frame(OTHER, 100));
    target.wires[0].put(&frame(MAC, 5000));
    let packet = target.received(RX, FREE + 2048, 2048);
    assert_eq!(packet[HEADER..], frame(MAC, 5000), "into the buffers that the source had taken");
    assert_eq!(target.metrics.snapshot().filtered, 1);
    target.driver.device.pause(SOON).unwrap();
    target.driver.device.resume().unwrap();
    assert_eq!(target.driver.config(6) as u16, 1, "a pause is no move");
}

#[test]
fn a_state_of_another_interface_is_refused() {
    let source = Nic::started(2, CONTROL | MQ);
    source.driver.device.pause(SOON).unwrap();
    let state = source.driver.saved();
    let (net, _) = interface(1);
    let target = Driver::new(net, RAM);
    target.device.restore(&state).unwrap_err();
}

/// One packet of 1000 bytes, and the next after 1000 seconds.
fn one_packet() -> Option<Rate> {
    Some(Rate::new(1, Some(1000)).unwrap())
}

#[test]
fn what_is_sent_beyond_a_limit_waits_in_its_ring() {
    let mut nic = Nic::new(1);
    let outbound = Limit { requests: None, bytes: one_packet() };
    nic.throttle.set_limits(Limits { outbound, ..Limits::default() });
    nic.start(0);
    for n in 0..3 {
        nic.send(TX, FREE + n * 0x1000, &frame(OTHER, 1000));
    }
    nic.driver.wait(TX);
    nic.wires[0].take();
    nic.driver.device.pause(SOON).expect("a pause does not wait for it");
    nic.driver.device.resume().unwrap();
    assert_eq!(nic.driver.answered(TX), 0);
    nic.post(RX, FREE + 0x8000, 2, 2048);
    nic.wires[0].put(&frame(MAC, 100));
    nic.received(RX, FREE + 0x8000, 2048);
    nic.throttle.set_limits(Limits::default());
    for _ in 0..2 {
        nic.driver.wait(TX);
        nic.wires[0].take();
    }
    assert_eq!((nic.throttle.counters().requests, nic.throttle.counters().bytes), (1, 1000));
}

#[test]
fn what_comes_beyond_a_limit_waits_outside() {
    let mut nic = Nic::new(1);
    let inbound = Limit { requests: None, bytes: one_packet() };
    nic.throttle.set_limits(Limits { inbound, ..Limits::default() });
    nic.start(0);
    nic.post(RX, FREE, 4, 2048);
    for _ in 0..3 {
        nic.wires[0].put(&frame(MAC, 1000));
    }
    nic.received(RX, FREE, 2048);
    nic.send(TX, FREE + 0x8000, &frame(OTHER, 1000));
    nic.driver.wait(TX);
    assert_eq!(nic.driver.answered(RX), 0);
    nic.throttle.set_limits(Limits::default());
    nic.received(RX, FREE + 2048, 2048);
    nic.received(RX, FREE + 4096, 2048);
    assert_eq!((nic.throttle.counters().requests, nic.throttle.counters().bytes), (1, 1000));
}

#[test]
fn a_driver_that_breaks_the_rules_gets_a_device_that_waits_for_its_reset() {
    type Break = fn(&mut Nic);
    let breaks: [Break; 9] = [
        |nic| _ = nic.driver.send(RX, &[Read(FREE, 100)]),
        |nic| _ = nic.driver.send(RX, &[Read(FREE, 12), Write(FREE, 2048)]),
        |nic| _ = nic.driver.send(RX, &[Write(FREE, 0)]),
        |nic| _ = nic.driver.send(RX, &[Write(RAM.get() - 10, 2048)]),
        |nic| _ = nic.driver.send(RX, &[Write(u64::MAX - 10, u32::MAX)]),
        |nic| _ = nic.driver.send(TX, &[Read(FREE, 100), Write(FREE, 100)]),
        |nic| _ = nic.driver.send(TX, &[Read(RAM.get() - 10, 100)]),
        |nic| _ = nic.driver.send(2, &[Read(FREE, 3)]),
        |nic| {
            nic.driver.offer_head(RX, 64);
            nic.driver.kick(RX);
        },
    ];
    let mut nic = Nic::new(1);
    for break_it in breaks {
        nic.start(CONTROL | MERGEABLE);
        break_it(&mut nic);
        nic.driver.wait_for_needs_reset();
        nic.driver.device.pause(SOON).unwrap();
        nic.driver.device.resume().unwrap();
        nic.start(CONTROL);
        nic.send(TX, FREE, &frame(OTHER, 60));
        nic.wires[0].take();
    }
}

//! In steady state a packet allocates nothing, in either direction, whether the interface has limits or not. A file of its own,
//! with one test: it counts what the whole process does.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use std::sync::Arc;

use drover_devices::{NetMetrics, Throttle};
use drover_units::Bytes;
use guest::{
    EVENT_IDX, INDIRECT, VERSION_1,
    driver::{
        Buffer::{Read, Write},
        Driver, FREE,
    },
    steady::{limits, steady},
    wire::{HEADER, MAC, Wire, frame, instrumented},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATIONS: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

const MERGEABLE: u64 = 1 << 15;
/// In one direction, of one round.
const PACKETS: usize = 8;
const FRAME: usize = 1400;
/// Smaller than a packet, which then comes in several.
const ROOM: u32 = 1024;

struct Traffic {
    driver: Driver,
    wires: Vec<Wire>,
    packet: Vec<u8>,
    taken: Vec<u8>,
}

impl Traffic {
    /// Packets from the driver, and as many to it, each in as many buffers as it needs.
    fn round(&mut self) {
        let Self { driver, wires, packet, taken } = self;
        for n in 0..2 * PACKETS as u64 {
            driver.offer(0, &[Write(FREE + 0x1_0000 + 0x1000 * n, ROOM)]);
        }
        driver.kick(0);
        for _ in 0..PACKETS {
            driver.offer(1, &[Read(FREE, HEADER as u32), Read(FREE + HEADER as u64, FRAME as u32)]);
        }
        driver.kick(1);
        for _ in 0..PACKETS {
            wires[0].put_packet(packet);
        }
        for _ in 0..PACKETS {
            assert_eq!(wires[0].take_into(taken), packet.len());
            driver.wait(1);
        }
        let mut received = 0;
        for _ in 0..2 * PACKETS {
            received += driver.wait(0).1 as usize;
        }
        assert_eq!(received, PACKETS * packet.len());
    }
}

#[test]
fn a_steady_stream_of_packets_allocates_nothing() {
    let throttle = Arc::<Throttle>::default();
    let (net, wires) = instrumented(1, Arc::<NetMetrics>::default(), Arc::clone(&throttle));
    let mut driver = Driver::new(net, Bytes::mib(1));
    driver.start(VERSION_1 | INDIRECT | EVENT_IDX | MERGEABLE, 2);
    let mut packet = vec![0; HEADER];
    packet.extend(frame(MAC, FRAME));
    driver.write(FREE, &packet);
    let taken = vec![0; 1 << 16];
    let mut traffic = Traffic { driver, wires, packet, taken };
    steady(ALLOCATIONS, || traffic.round());
    throttle.set_limits(limits());
    steady(ALLOCATIONS, || traffic.round());
    assert!(throttle.counters().requests > 0, "the limit holds something back");
}

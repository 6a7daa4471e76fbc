//! A driver that writes anything into its rings. Whatever it does, the device neither panics nor hangs nor runs on
//! after a pause, and a reset makes it as good as new.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use drover_bus::BusDevice;
use drover_devices::Device;
use drover_guest_memory::DirtyTracker;
use drover_units::{Bytes, Gpa};
use guest::{
    AVAILABLE, DESCRIPTORS, DISCARD, EVENT_IDX, FLUSH, Guest, HEADERS, INDIRECT, NEEDS_RESET, OK, QUEUE_SIZE,
    RAM, SOON, STATUS, USED, VERSION_1, WRITE_ZEROES,
};
use proptest::prelude::*;

/// One entry of a descriptor table.
type Descriptor = (u64, u32, u16, u16);

/// What a driver puts into RAM before it rings.
#[derive(Debug)]
struct Garbage {
    event_idx: bool,
    descriptors: Vec<Descriptor>,
    /// A second table, for indirect descriptors.
    indirect: Vec<Descriptor>,
    headers: Vec<(u32, u64)>,
    heads: Vec<u16>,
    available: u16,
}

/// Where an indirect table is.
const INDIRECT_TABLE: u64 = 0x8000;

/// Mostly addresses that are almost right.
fn addresses() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..16_u64).prop_map(|slot| HEADERS + slot * 32),
        4 => 0x10000..RAM.get(),
        2 => Just(INDIRECT_TABLE),
        2 => (0..64_u64).prop_map(|back| RAM.get() - back),
        1 => prop_oneof![Just(DESCRIPTORS), Just(AVAILABLE), Just(USED), Just(0)],
        1 => any::<u64>(),
        1 => (0..64_u64).prop_map(|back| u64::MAX - back),
    ]
}

fn lengths() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => Just(16_u32),
        4 => Just(1_u32),
        4 => (1..16_u32).prop_map(|sectors| sectors * 512),
        2 => 0..600_u32,
        1 => (0..8_u32).prop_map(|entries| entries * 16),
        1 => any::<u32>(),
    ]
}

fn descriptors() -> impl Strategy<Value = Vec<Descriptor>> {
    // Next, write, indirect; and sometimes a next that is not one.
    let one = (addresses(), lengths(), 0..8_u16, 0..QUEUE_SIZE + 2);
    prop::collection::vec(one, usize::from(QUEUE_SIZE))
}

fn garbage() -> impl Strategy<Value = Garbage> {
    let kinds = prop_oneof![Just(0_u32), Just(1), Just(4), Just(8), Just(11), Just(13), any::<u32>()];
    let sectors = prop_oneof![0..2100_u64, any::<u64>()];
    (
        any::<bool>(),
        descriptors(),
        descriptors(),
        prop::collection::vec((kinds, sectors), 16),
        prop::collection::vec(0..QUEUE_SIZE + 1, usize::from(QUEUE_SIZE)),
        0..QUEUE_SIZE + 2,
    )
        .prop_map(|(event_idx, descriptors, indirect, headers, heads, available)| Garbage {
            event_idx,
            descriptors,
            indirect,
            headers,
            heads,
            available,
        })
}

fn write_to_ram(guest: &Guest, garbage: &Garbage) {
    for (index, (kind, sector)) in (0..).zip(&garbage.headers) {
        let mut header = Vec::from(kind.to_le_bytes());
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        guest.memory.write(Gpa::new(HEADERS + index * 32), &header).unwrap();
    }
    for (table, descriptors) in [(DESCRIPTORS, &garbage.descriptors), (INDIRECT_TABLE, &garbage.indirect)] {
        for (index, (address, len, flags, next)) in (0..).zip(descriptors) {
            guest.put_descriptor_at(table, index, *address, *len, *flags, *next);
        }
    }
    for (slot, head) in (0..).zip(&garbage.heads) {
        guest.memory.write(Gpa::new(AVAILABLE + 4 + 2 * slot), &head.to_le_bytes()).unwrap();
    }
    guest.set_available_index(garbage.available);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn garbage_in_the_rings_harms_nobody_but_its_driver(garbage in garbage()) {
        let mut guest = Guest::new();
        let offered = VERSION_1 | FLUSH | DISCARD | WRITE_ZEROES | INDIRECT;
        guest.start(offered | if garbage.event_idx { EVENT_IDX } else { 0 });
        write_to_ram(&guest, &garbage);
        guest.kick();
        guest.disk.pause(SOON).unwrap();
        let mut tracker = DirtyTracker::new(&guest.memory);
        guest.kick();
        prop_assert!(tracker.take().is_empty(), "a paused device writes nothing");
        // A garbled ring can be saved, and its successor is neither better nor worse off.
        let state = guest.saved();
        let target = Guest::with_memory(guest.backend.clone(), guest.memory.clone());
        if target.disk.restore(&state).is_ok() {
            prop_assert_eq!(target.saved(), state);
        }
        drop(target);
        guest.disk.resume().unwrap();
        guest.write_register(STATUS, 0);
        prop_assert_eq!(guest.read_register(STATUS), 0);
        prop_assert_eq!(guest.events.seen(), []);
        guest.start(VERSION_1 | FLUSH);
        prop_assert_eq!(guest.request(4, 0, None), (OK, 1));
    }

    #[test]
    fn any_access_to_the_registers_is_survived(
        accesses in prop::collection::vec((any::<bool>(), registers(), prop::sample::select(vec![1_usize, 2, 4, 8]), values()), 1..200),
    ) {
        let mut guest = Guest::new();
        for (is_write, offset, len, value) in accesses {
            let mut data = value.to_le_bytes();
            if is_write {
                guest.disk.write(offset, &data[..len]);
            } else {
                guest.disk.read(offset, &mut data[..len]);
            }
        }
        guest.disk.pause(SOON).unwrap();
        guest.disk.resume().unwrap();
        guest.start(VERSION_1 | FLUSH);
        prop_assert_eq!(guest.request(4, 0, None), (OK, 1));
    }
}

/// Mostly registers, and mostly at their own address.
fn registers() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => prop::sample::select(vec![
            0x14_u64, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4,
        ]),
        2 => (0..0x400_u64).prop_map(|word| word * 4),
        1 => 0..0x1000_u64,
    ]
}

fn values() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => prop::sample::select(vec![0_u64, 1, 3, 11, 15, 16, 256, u64::from(NEEDS_RESET)]),
        2 => prop::sample::select(vec![DESCRIPTORS, AVAILABLE, USED]),
        1 => any::<u64>(),
    ]
}

/// The largest request a queue can carry moves a chain of its full length.
#[test]
fn a_chain_as_long_as_its_queue_is_served() {
    let mut guest = Guest::new();
    guest.start(VERSION_1 | FLUSH | INDIRECT);
    let mut header = Vec::from([1, 0, 0, 0, 0, 0, 0, 0]);
    header.extend([0; 8]);
    guest.memory.write(Gpa::new(HEADERS), &header).unwrap();
    let entries = 256_u16;
    guest.put_descriptor_at(0x8000, 0, HEADERS, 16, 1, 1);
    for index in 1..entries - 1 {
        guest.put_descriptor_at(0x8000, index, 0x20000 + u64::from(index) * 512, 512, 1, index + 1);
    }
    guest.put_descriptor_at(0x8000, entries - 1, HEADERS + 16, 1, 2, 0);
    guest.put_descriptor(0, 0x8000, 16 * u32::from(entries), 4, 0);
    guest.offer(0);
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 1)]);
    assert_eq!(guest.metrics.snapshot().bytes_written, Bytes::new(254 * 512).get());
    // One more is against the rules.
    guest.put_descriptor_at(0x8000, entries - 1, HEADERS + 16, 1, 3, entries);
    guest.put_descriptor_at(0x8000, entries, HEADERS + 17, 1, 2, 0);
    guest.put_descriptor(0, 0x8000, 16 * u32::from(entries + 1), 4, 0);
    guest.offer(0);
    guest.kick();
    guest.wait_until("refusal", |guest| guest.read_register(STATUS) & NEEDS_RESET != 0);
}

//! In steady state a request allocates nothing, from the doorbell to the interrupt, whether the disk has limits or not. A file of
//! its own, with one test: it counts what the whole process does.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use std::sync::Arc;

use drover_block::{Access, Backend, FileBackend};
use drover_units::{Bytes, Gpa};
use guest::{
    DISCARD, DISCARD_KIND, DISK, EVENT_IDX, FLUSH, Guest, HEADERS, INDIRECT, NEXT, OK, UNANSWERED, VERSION_1,
    WRITE, WRITE_ZEROES, WRITE_ZEROES_KIND, owner,
    steady::{limits, steady},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATIONS: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// More than fit into a request's own list.
const PIECES: u16 = 40;
/// Tables of indirect descriptors.
const TABLES: u64 = 0x10000;
const DATA: u64 = 0x40000;
const RANGES: u64 = 0x3f000;

/// One of each kind of request, by their heads.
struct Load {
    guest: Guest,
    heads: Vec<(u16, Gpa)>,
    answered: u16,
}

impl Load {
    fn new(guest: Guest) -> Self {
        let ranges = [0_u64, 16].map(|sector| {
            let mut range = [0; 16];
            range[..8].copy_from_slice(&sector.to_le_bytes());
            range[8..12].copy_from_slice(&8_u32.to_le_bytes());
            range
        });
        guest.memory.write(Gpa::new(RANGES), ranges.as_flattened()).unwrap();
        let mut load = Self { guest, heads: Vec::new(), answered: 0 };
        for (kind, address, len, pieces) in [
            (0, DATA, 4096, 1),
            (1, DATA, 4096, 1),
            (0, DATA, 512, PIECES),
            (1, DATA, 512, PIECES),
            (4, 0, 0, 0),
            (8, DATA, 20, 1),
            (DISCARD_KIND, RANGES, 32, 1),
            (WRITE_ZEROES_KIND, RANGES, 32, 1),
        ] {
            load.prepare(kind, (address, len), pieces);
        }
        load
    }

    /// Makes a chain behind an indirect descriptor of its own.
    fn prepare(&mut self, kind: u32, (address, len): (u64, u32), pieces: u16) {
        let head = u16::try_from(self.heads.len()).unwrap();
        let table = TABLES + 0x1000 * u64::from(head);
        let (header, status) = (HEADERS + 32 * u64::from(head), HEADERS + 32 * u64::from(head) + 16);
        let guest = &self.guest;
        guest.memory.write(Gpa::new(header), &kind.to_le_bytes()).unwrap();
        guest.put_descriptor_at(table, 0, header, 16, NEXT, 1);
        let to_driver = if [0, 8].contains(&kind) { WRITE } else { 0 };
        for piece in 0..pieces {
            // Apart from each other, so that nobody can join them.
            let at = address + 8192 * u64::from(piece);
            guest.put_descriptor_at(table, piece + 1, at, len, NEXT | to_driver, piece + 2);
        }
        guest.put_descriptor_at(table, pieces + 1, status, 1, WRITE, 0);
        const IS_TABLE: u16 = 4;
        guest.put_descriptor(head, table, 16 * (u32::from(pieces) + 2), IS_TABLE, 0);
        self.heads.push((head, Gpa::new(status)));
    }

    /// Sends all of them and waits for the answers, without an allocation of its own.
    fn round(&mut self) {
        for (head, status) in &self.heads {
            self.guest.memory.write(*status, &[UNANSWERED]).unwrap();
            self.guest.offer(*head);
        }
        self.answered = self.answered.wrapping_add(self.heads.len() as u16);
        self.guest.kick();
        let answered = self.answered;
        self.guest.wait_until("answers", |guest| guest.used_index() == answered);
        for (head, status) in &self.heads {
            let mut code = [0];
            self.guest.memory.read(*status, &mut code).unwrap();
            assert_eq!(code[0], OK, "request {head}");
        }
    }
}

#[test]
fn a_steady_stream_of_requests_to_a_file_allocates_nothing() {
    let file = tempfile::Builder::new().suffix(".raw").tempfile().unwrap();
    file.as_file().set_len(DISK.get()).unwrap();
    let backend: Arc<dyn Backend> = Arc::new(FileBackend::open(file.path(), Access::ReadWrite).unwrap());
    backend.acquire(&owner(1, 1)).unwrap();
    let ranges = backend.info().discard.is_some();
    assert!(ranges, "the file system of this machine's temporary files makes holes");
    let mut guest = Guest::with_memory(backend, drover_guest_memory::GuestMemory::anonymous(Bytes::mib(2)));
    guest.start(VERSION_1 | FLUSH | INDIRECT | EVENT_IDX | DISCARD | WRITE_ZEROES);
    let mut load = Load::new(guest);
    // Every list grows once to what the largest request needs, whenever that comes to it: there are as many lists as
    // slots, and which slot a request gets depends on the order of the answers before it.
    steady(ALLOCATIONS, || load.round());
    load.guest.throttle.set_limits(limits());
    steady(ALLOCATIONS, || load.round());
    assert!(load.guest.throttle.counters().requests > 0, "the limit holds something back");
    drop(load);
    std::fs::remove_file(file.path().with_extension("owner")).unwrap();
}

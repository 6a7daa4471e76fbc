//! In steady state our side of a request to an image allocates nothing. librbd has an allocator of its own, which is not
//! counted. A file of its own, with one test: it counts what the whole process does.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, reason = "waits for the cluster with a deadline")]

#[allow(dead_code, reason = "no test uses all of it")]
#[path = "disk/support.rs"]
mod support;

use drover_block::{Access, Backend, QueueConfig, Request, RequestBatch, Segments, Tag, Token};
use drover_guest_memory::GuestMemory;
use drover_test_ceph_cluster::CephOptions;
use drover_units::{Bytes, Gpa, Sectors};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::{Ceph, owner};

#[global_allocator]
static ALLOCATIONS: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

const DEPTH: u16 = 8;
/// More than fit into a request's own list.
const PIECES: u64 = 40;
/// That many in a row without an allocation are a steady state ...
const ROUNDS: usize = 64;
/// ... which has come by then.
const ROUNDS_MAX: usize = 8 * ROUNDS;

#[test]
fn a_steady_stream_of_requests_to_an_image_allocates_nothing_of_ours() {
    let Some(ceph) = Ceph::start(&CephOptions::default()) else { return };
    let disk = ceph.open(&ceph.image(Bytes::mib(16)), Access::ReadWrite);
    disk.acquire(&owner(1, 1)).unwrap();
    let memory = GuestMemory::anonymous(Bytes::mib(4));
    let mut queue = disk.queue(QueueConfig { depth: DEPTH }).unwrap();
    let (mut batch, mut answers) =
        (RequestBatch::with_capacity(DEPTH.into()), Vec::with_capacity(DEPTH.into()));
    let mut rooms: Vec<Segments> = (0..DEPTH).map(|_| Segments::with_capacity(PIECES as usize)).collect();
    let mut round = |rounds: usize| {
        for _ in 0..rounds {
            for nth in 0..u64::from(DEPTH) {
                let mut segments = rooms.pop().unwrap();
                segments.extend((0..PIECES).map(|n| memory.segment(Gpa::new(n * 8192), 512).unwrap()));
                let (sector, token) = (Sectors::new(nth * 64), Token::new(Tag(nth)));
                batch.push(match nth % 4 {
                    0 | 1 => Request::write(sector, segments, token),
                    2 => Request::read(sector, segments, token),
                    _ => {
                        segments.clear();
                        rooms.push(segments);
                        Request::flush(token)
                    }
                });
            }
            queue.submit(&mut batch);
            while queue.in_flight() > 0 {
                let mut wait = [PollFd::new(queue.completion_event(), PollFlags::POLLIN)];
                assert_eq!(
                    poll(&mut wait, PollTimeout::from(60_000_u16)),
                    Ok(1),
                    "an answer within the deadline"
                );
                queue.reap(&mut answers);
                for completion in answers.drain(..) {
                    let (result, room) = completion.into_result_and_room();
                    result.unwrap();
                    if room.spilled() {
                        rooms.push(room);
                    }
                }
            }
        }
    };
    // Every list grows once to what the largest request needs, whenever that comes to it.
    let mut change = stats_alloc::Stats::default();
    let steady = (0..ROUNDS_MAX).step_by(ROUNDS).any(|_| {
        let region = Region::new(ALLOCATIONS);
        round(ROUNDS);
        change = region.change();
        (change.allocations, change.reallocations) == (0, 0)
    });
    assert!(steady, "in the last {ROUNDS} of {ROUNDS_MAX} rounds: {change:?}");
    drop(queue);
    disk.release().unwrap();
    drop(disk);
}

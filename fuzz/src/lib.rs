//! What the fuzz targets share.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a finding")]

use std::{alloc::System, fs::File, io::Write as _};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

pub mod envelope;
#[path = "../../vmm/devices/tests/hostile_guest/mod.rs"]
pub mod hostile_guest;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Most that one input may make a target allocate, all in all: a script of 256 requests can move a disk of 1 MiB with each,
/// through buffers of the disk's. A length of 32 bits that was believed is beyond it.
const ALLOCATED_MAX: usize = 1 << 30;

/// Runs one input, which must not make us allocate what it claims to be.
pub fn bounded(run: impl FnOnce()) {
    let region = Region::new(ALLOCATOR);
    run();
    let change = region.change();
    let allocated = change.bytes_allocated.saturating_add_signed(change.bytes_reallocated.max(0));
    assert!(allocated < ALLOCATED_MAX, "{allocated} bytes allocated for one input");
}

/// A file in memory with this content.
pub fn file_with(content: &[u8]) -> File {
    let mut file = File::from(
        rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("memory for a file"),
    );
    file.write_all(content).expect("memory for a file");
    file
}

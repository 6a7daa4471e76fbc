//! Drivers that do anything at all, to every device on both transports: none exits, hangs, grows, or reaches beyond RAM.
//!
//! One test in a program of its own, since it measures what the program allocates.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod hostile_guest;

use std::alloc::System;

use hostile_guest::{KINDS, Transport, run};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Scripts for each device on each transport.
const CASES: u32 = 48;
/// What may stay behind of all scripts of one device: caches of the runtime's, a generator's state.
const GROWTH_MAX: isize = 256 << 10;

#[test]
fn no_driver_makes_a_device_exit_hang_or_grow() {
    let config = || Config { cases: CASES, failure_persistence: None, ..Config::default() };
    for kind in KINDS {
        for transport in [Transport::Mmio, Transport::Pci] {
            // What is made once is made now.
            run(kind, transport, &[]);
            let region = Region::new(ALLOCATOR);
            let scripts = prop::collection::vec(any::<u8>(), 0..2000);
            let outcome = TestRunner::new(config()).run(&scripts, |script| {
                run(kind, transport, &script);
                Ok(())
            });
            outcome.unwrap_or_else(|error| panic!("{kind} on {transport:?}: {error}"));
            let change = region.change();
            let kept = change.bytes_allocated.cast_signed() - change.bytes_deallocated.cast_signed();
            assert!(kept < GROWTH_MAX, "{kind} on {transport:?} keeps {kept} bytes of {CASES} drivers");
        }
    }
}

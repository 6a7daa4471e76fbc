//! A state in which nothing is allocated, and how to wait for it.

use std::alloc::System;

use drover_rate_limit::{Limit, Limits, Rate};
use stats_alloc::{Region, Stats, StatsAlloc};

/// That many in a row without an allocation are a steady state ...
const ROUNDS: usize = 256;
/// ... which has come by then.
const ROUNDS_MAX: usize = 16 * ROUNDS;

/// Repeats a round until the process has allocated nothing for many of them.
pub(crate) fn steady(allocations: &'static StatsAlloc<System>, mut round: impl FnMut()) {
    let mut change = Stats::default();
    let steady = (0..ROUNDS_MAX).step_by(ROUNDS).any(|_| {
        let region = Region::new(allocations);
        (0..ROUNDS).for_each(|_| round());
        change = region.change();
        (change.allocations, change.reallocations) == (0, 0)
    });
    assert!(steady, "in the last {ROUNDS} of {ROUNDS_MAX} rounds: {change:?}");
}

/// Limits that hold most requests of a round back, for a moment.
pub(crate) fn limits() -> Limits {
    let requests = Some(Rate::new(20_000, Some(2)).unwrap());
    let bytes = Some(Rate::new(1 << 32, None).unwrap());
    Limits { total: Limit { requests, bytes }, ..Limits::default() }
}

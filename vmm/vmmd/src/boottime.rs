//! The clock of leases and boot times: CLOCK_BOOTTIME, which goes on while the host sleeps.

use drover_lifecycle::BootTime;
use nix::time::{ClockId, clock_gettime};

/// Now.
pub(crate) fn now() -> BootTime {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME since 2.6.39");
    let ns = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
    BootTime::from_ns(ns)
}

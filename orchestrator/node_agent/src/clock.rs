//! The clock of the leases.

use drover_node_supervisor::BootTime;
use rustix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME, now.
pub(crate) fn now() -> BootTime {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    BootTime::from_ns(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
}

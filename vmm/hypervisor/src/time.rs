//! The host's two clocks at one moment.
#![expect(unsafe_code, reason = "reads the time-stamp counter")]
#![allow(clippy::disallowed_methods, reason = "this module is where the machine's clocks are read")]

use std::time::{SystemTime, UNIX_EPOCH};

/// The host's TSC and wall-clock time at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeSample {
    /// The time-stamp counter.
    pub tsc: u64,
    /// Nanoseconds since 1970, by CLOCK_REALTIME.
    pub realtime_ns: u64,
}

impl TimeSample {
    /// Reads both. The closest of three tries counts, so that being scheduled away between the two reads does not
    /// show up as a jump of the guest's clock.
    pub fn now() -> Self {
        let closest = (0..3).map(|_| Self::bracketed()).min_by_key(|&(width, _)| width);
        closest.expect("three tries were made").1
    }

    fn bracketed() -> (u64, Self) {
        let before = host_tsc();
        let realtime = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let width = host_tsc().saturating_sub(before);
        let realtime_ns = u64::try_from(realtime.as_nanos()).unwrap_or(u64::MAX);
        (width, Self { tsc: before.saturating_add(width / 2), realtime_ns })
    }

    /// Nanoseconds from `earlier` to this sample; zero if the clocks of two hosts disagree about the order.
    pub fn ns_since(&self, earlier: &Self) -> u64 {
        self.realtime_ns.saturating_sub(earlier.realtime_ns)
    }
}

/// This processor's time-stamp counter.
pub(crate) fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and the kernel lets user space use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Ticks of a counter of `khz` in `ns`; wraps as the counter does.
pub(crate) fn ticks(ns: u64, khz: u32) -> u64 {
    (u128::from(ns) * u128::from(khz) / 1_000_000) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_follow_the_frequency() {
        assert_eq!(ticks(1_000_000, 2_400_000), 2_400_000);
        assert_eq!(ticks(1, 999_999), 0);
        // A state that claims to come from 1970 does not overflow.
        ticks(u64::MAX, u32::MAX);
    }

    #[test]
    fn time_does_not_run_backwards_between_hosts() {
        let a = TimeSample { tsc: 5, realtime_ns: 100 };
        let b = TimeSample { tsc: 9, realtime_ns: 90 };
        assert_eq!(b.ns_since(&a), 0);
        assert_eq!(a.ns_since(&b), 10);
    }
}

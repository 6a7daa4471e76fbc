//! Time as the leases count it.

use std::time::Duration;

/// A moment on CLOCK_BOOTTIME of this host. That clock goes on while the host sleeps, so that a host which wakes up
/// after its lease does not take it for valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(u64);

impl BootTime {
    /// The moment `ns` nanoseconds after boot.
    pub const fn from_ns(ns: u64) -> Self {
        Self(ns)
    }
    /// Nanoseconds since boot.
    pub const fn as_ns(self) -> u64 {
        self.0
    }
    /// The moment `by` later; the end of time where that overflows.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
    /// How long after `earlier` this is; zero if it is before.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The control plane's timers that concern a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    heartbeat: Duration,
    pause_after: Duration,
    kill_after: Duration,
}

/// Timers that cannot keep a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "timers heartbeat {heartbeat:?}, pause_after {pause_after:?}, kill_after {kill_after:?} cannot keep a lease: \
     they must rise in this order, and the first must not be zero"
)]
pub struct InvalidTimers {
    heartbeat: Duration,
    pause_after: Duration,
    kill_after: Duration,
}

impl Timers {
    /// # Errors
    /// Unless `0 < heartbeat < pause_after < kill_after`.
    pub fn new(
        heartbeat: Duration,
        pause_after: Duration,
        kill_after: Duration,
    ) -> Result<Self, InvalidTimers> {
        if heartbeat.is_zero() || heartbeat >= pause_after || pause_after >= kill_after {
            return Err(InvalidTimers { heartbeat, pause_after, kill_after });
        }
        Ok(Self { heartbeat, pause_after, kill_after })
    }

    /// The interval between heartbeats.
    pub const fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// The lease that a heartbeat sent at `sent` buys.
    pub fn lease_from(&self, sent: BootTime) -> Lease {
        Lease { pause_at: sent.plus(self.pause_after), kill_at: sent.plus(self.kill_after) }
    }
}

/// Until when this node may run VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// From here on VMs are paused.
    pub pause_at: BootTime,
    /// From here on VMs are dead (T_self).
    pub kill_at: BootTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn timers_must_rise() {
        assert!(Timers::new(ms(500), ms(2000), ms(3000)).is_ok());
        for (heartbeat, pause, kill) in [(0, 2, 3), (2, 2, 3), (1, 3, 3), (1, 4, 3)] {
            assert!(Timers::new(ms(heartbeat), ms(pause), ms(kill)).is_err(), "{heartbeat} {pause} {kill}");
        }
    }

    #[test]
    fn a_lease_counts_from_the_sending() {
        let timers = Timers::new(ms(500), ms(2000), ms(3000)).unwrap();
        let lease = timers.lease_from(BootTime::from_ns(1_000_000));
        assert_eq!(lease.pause_at, BootTime::from_ns(2_001_000_000));
        assert_eq!(lease.kill_at, BootTime::from_ns(3_001_000_000));
    }

    #[test]
    fn the_end_of_time_does_not_wrap() {
        assert_eq!(BootTime::from_ns(u64::MAX - 1).plus(ms(1)), BootTime::from_ns(u64::MAX));
    }
}

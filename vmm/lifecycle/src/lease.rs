//! The owner's lease: until when this process may run its VM without hearing from its owner.
//!
//! Both deadlines are on the host's CLOCK_BOOTTIME, which goes on while the host sleeps: a host that was suspended past
//! its lease must not run the VM when it wakes.

use std::time::Duration;

/// A moment on CLOCK_BOOTTIME of this host, in nanoseconds since its boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(u64);

impl BootTime {
    /// The moment `ns` nanoseconds after the host's boot.
    pub const fn from_ns(ns: u64) -> Self {
        Self(ns)
    }
    /// Nanoseconds since the host's boot.
    pub const fn as_ns(self) -> u64 {
        self.0
    }
    /// How long after `earlier` this is; zero where it is not after.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Why two deadlines are not a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// A deadline of zero is a field that was not set.
    #[error("lease.pause_at_boottime_ns and lease.kill_at_boottime_ns must both be set to a time after boot")]
    Unset,
    /// The VM would be killed before it was paused.
    #[error(
        "lease.kill_at_boottime_ns ({kill_at}) must be later than lease.pause_at_boottime_ns ({pause_at})"
    )]
    KillNotAfterPause {
        /// The pause deadline given, nanoseconds.
        pause_at: u64,
        /// The kill deadline given, nanoseconds.
        kill_at: u64,
    },
}

/// The two deadlines: pause first, which loses nothing, then the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pause_at: BootTime,
    kill_at: BootTime,
}

/// What a lease says at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeaseVerdict {
    /// The VM may run.
    Valid,
    /// The vCPUs must be out; a renewal lets them in again.
    PauseDue,
    /// The process must end. Nothing renews this lease any more.
    KillDue,
}

impl Lease {
    /// A lease with these deadlines.
    ///
    /// # Errors
    /// Where a deadline is zero or the kill is not after the pause.
    pub const fn new(pause_at: BootTime, kill_at: BootTime) -> Result<Self, LeaseError> {
        if pause_at.0 == 0 || kill_at.0 == 0 {
            return Err(LeaseError::Unset);
        }
        if kill_at.0 <= pause_at.0 {
            return Err(LeaseError::KillNotAfterPause { pause_at: pause_at.0, kill_at: kill_at.0 });
        }
        Ok(Self { pause_at, kill_at })
    }

    /// When the vCPUs have to be out.
    pub const fn pause_at(self) -> BootTime {
        self.pause_at
    }

    /// When the process has to be gone.
    pub const fn kill_at(self) -> BootTime {
        self.kill_at
    }

    /// What holds at `now`. A deadline is due in its own nanosecond.
    #[must_use]
    pub fn verdict(self, now: BootTime) -> LeaseVerdict {
        if now >= self.kill_at {
            LeaseVerdict::KillDue
        } else if now >= self.pause_at {
            LeaseVerdict::PauseDue
        } else {
            LeaseVerdict::Valid
        }
    }

    /// This lease after a renewal. Renewals may overtake each other on their way, and a late one must not take back
    /// what a newer one has granted: each deadline only ever moves later.
    #[must_use]
    pub fn renewed(self, renewal: Self) -> Self {
        Self { pause_at: self.pause_at.max(renewal.pause_at), kill_at: self.kill_at.max(renewal.kill_at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(pause_at: u64, kill_at: u64) -> Lease {
        Lease::new(BootTime::from_ns(pause_at), BootTime::from_ns(kill_at)).expect("a valid lease")
    }

    #[test]
    fn deadlines_are_due_in_their_own_nanosecond() {
        let check =
            |now, expect| assert_eq!(lease(10, 20).verdict(BootTime::from_ns(now)), expect, "at {now}");
        check(9, LeaseVerdict::Valid);
        check(10, LeaseVerdict::PauseDue);
        check(19, LeaseVerdict::PauseDue);
        check(20, LeaseVerdict::KillDue);
    }

    #[test]
    fn a_late_renewal_takes_nothing_back() {
        assert_eq!(lease(10, 20).renewed(lease(30, 40)), lease(30, 40));
        assert_eq!(lease(30, 40).renewed(lease(10, 20)), lease(30, 40));
    }

    #[test]
    fn deadlines_that_make_no_lease_are_named() {
        let new = |pause_at, kill_at| Lease::new(BootTime::from_ns(pause_at), BootTime::from_ns(kill_at));
        assert_eq!(new(0, 20), Err(LeaseError::Unset));
        assert_eq!(new(10, 0), Err(LeaseError::Unset));
        assert_eq!(new(10, 10), Err(LeaseError::KillNotAfterPause { pause_at: 10, kill_at: 10 }));
    }
}

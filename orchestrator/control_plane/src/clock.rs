//! The process's clocks.

use std::time::{Duration, Instant, SystemTime};

use drover_cluster_state::{Moment, Now, WallTime};
use drover_ports::Clock;
use drover_reconcile::Stopwatch;

/// The system's clocks. Moments count from its creation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose moments start now.
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        Now { moment: Moment::from_millis(millis(self.origin.elapsed())), wall: wall_now() }
    }
}

impl Stopwatch for SystemClock {
    fn elapsed(&self) -> Duration {
        self.origin.elapsed()
    }
}

/// Calendar time.
pub(crate) fn wall_now() -> WallTime {
    // A clock before 1970 is wrong, and wall times are only for people.
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    WallTime::from_unix_millis(millis(since))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
